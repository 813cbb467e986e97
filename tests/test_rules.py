"""What holds for everybody's queue is the configuration's, whatever one person's spawner says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
from traitlets.config import Config

from pytorch_spawner import dispatch
from pytorch_spawner.core.gpus import Gpu, GpuUuid, Inventory
from pytorch_spawner.core.grants import Grant, GrantBook
from pytorch_spawner.dispatch import Dispatcher
from pytorch_spawner.errors import NotGranted
from pytorch_spawner.gpu_source import Spec
from pytorch_spawner.ledger.store import Ledger
from pytorch_spawner.rules import GROUP_PROPERTY
from pytorch_spawner.spawner import PyTorchSpawner

T = TypeVar("T")
HUB = "lab"
FOUR = Inventory(tuple(Gpu(GpuUuid(f"GPU-000{one}"), one, pool="a100") for one in range(4)))


class FakeLab:
    """A hub process's Lab without an engine, with four GPUs."""

    def __init__(self, ledger: Ledger) -> None:
        self.hub, self.client, self._ledger = HUB, None, ledger
        self.looked_ahead: list[Spec] = []
        self.gpus = SimpleNamespace(
            read=self._gpus, offered=self._gpus, look_ahead=self.looked_ahead.append
        )
        self.queue = Dispatcher(self)  # type: ignore[arg-type]

    async def _gpus(self, _spec: Any) -> Inventory:
        return FOUR

    async def call(self, function: Callable[[Ledger], T]) -> T:
        return await asyncio.to_thread(function, self._ledger)

    async def in_lane(self, _lane: str, call: Callable[[], T]) -> T:
        return call()

    async def courses(self) -> tuple[()]:
        return ()

    async def scanned_images(self) -> tuple[()]:
        return ()


class Spawner(PyTorchSpawner):
    """A spawner of such a Lab."""

    lab: Any = None


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger.open(f"sqlite:///{tmp_path}/ledger.sqlite")
    yield opened
    opened.close()


@pytest.fixture
def lab(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> FakeLab:
    monkeypatch.setattr(dispatch, "engine", SimpleNamespace(list_containers=lambda *_: []))
    monkeypatch.setattr(dispatch, "_LOOK_S", 0.05)
    monkeypatch.setattr(dispatch, "_PASS_S", 0.2)
    monkeypatch.setattr(dispatch, "_GRANTS_S", 0.0)
    fake = FakeLab(ledger)
    monkeypatch.setattr(Spawner, "lab", fake)
    return fake


def config(**override: Any) -> Config:
    return Config(
        Spawner={
            "max_gpus": 1,
            "grants": [{"to": "everyone", "pool": "a100"}],
            "ask_options": "always",
            "gpu_pools": {"GPU-0000": "a100"},
            "group_overrides": {"1": {"groups": ["research"], "spawner_override": override}},
        }
    )


def spawner_of(name: str, *groups: str, of: Config, given: dict[str, Any] | None = None) -> Spawner:
    said = [
        SimpleNamespace(name=one, properties={GROUP_PROPERTY: given} if given else {})
        for one in groups
    ]

    async def get_auth_state() -> dict[str, int]:
        return {"gpus": 2}

    user = SimpleNamespace(
        name=name,
        escaped_name=name,
        groups=said,
        admin=False,
        url="/",
        get_auth_state=get_auth_state,
    )
    return Spawner(config=of, user=user, orm_spawner=SimpleNamespace(name="", server=None))


async def at_a_start(spawner: Spawner) -> Spawner:
    await spawner.apply_group_overrides()
    return spawner


async def both(of: Config, given: dict[str, Any] | None = None) -> tuple[Spawner, Spawner]:
    """Rita, of whom an override says something, and Sam."""
    rita = await at_a_start(spawner_of("rita", "research", of=of, given=given))
    return rita, await at_a_start(spawner_of("sam", of=of))


def begin(lab: FakeLab, spawner: Spawner, gpus: int, server: str = "") -> Any:
    wanted = {"image": "i", "gpus": gpus, "share": "any"}
    groups = [group.name for group in spawner.user.groups]
    return lab._ledger.begin_start(HUB, spawner.user.name, server, wanted, groups)


async def acquire(lab: FakeLab, spawner: Spawner, gpus: int, server: str = "") -> Any:
    async def on_wait(_wait: Any) -> None:
        pass

    start = begin(lab, spawner, gpus, server)
    return await asyncio.wait_for(lab.queue.acquire(start, "queue", spawner.rules, on_wait), 20)


def waits(lab: FakeLab, username: str) -> bool:
    return any(one.ticket.username == username for one in lab._ledger.queue(HUB))


async def until_it_waits(lab: FakeLab, username: str) -> None:
    for _ in range(400):
        if waits(lab, username):
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"{username} does not wait")


def test_the_hub_looks_for_the_configurations_gpus_as_soon_as_somebody_comes(lab: FakeLab) -> None:
    spawner_of("rita", of=config())
    (spec,) = lab.looked_ahead
    assert spec.pools == {"GPU-0000": "a100"}


async def test_an_override_changes_nothing_that_is_everybodys(lab: FakeLab) -> None:
    of = config(
        max_gpus=4,
        max_lease_s=60,
        patience_s=1.0,
        preference="largest",
        class_seats_share=0.1,
        grants=[{"to": "everyone", "count": 64}],
        gpu_pools={"GPU-0001": "theirs"},
    )
    rita, sam = await both(of)
    assert rita.max_lease_s == 60, "the override was not applied"
    assert rita.rules.grants == sam.rules.grants
    assert rita.rules.policy == sam.rules.policy
    assert rita._usual == sam._usual
    assert [grant.count for grant in sam.rules.grants] == [1]
    assert [grant.count for grant in rita.rules.own.values()] == [4]
    assert not sam.rules.own


async def test_a_groups_grant_without_a_count_is_the_same_whoever_starts(lab: FakeLab) -> None:
    rita, _ = await both(config(max_gpus=4), given={"pool": "a100"})
    (shared,) = rita.rules.of_groups.values()
    assert shared is not None
    assert shared.count == 1
    assert rita.rules.own[shared.id].count == 4


async def test_who_may_ask_for_four_waits_for_them_while_others_start(
    lab: FakeLab, ledger: Ledger
) -> None:
    rita, sam = await both(config(max_gpus=4))
    await acquire(lab, spawner_of("eve", of=config()), 1)
    four = asyncio.create_task(acquire(lab, rita, 4))
    await until_it_waits(lab, "rita")
    one = asyncio.create_task(acquire(lab, sam, 1))
    await until_it_waits(lab, "sam")
    await asyncio.sleep(0.5)
    assert not four.done(), four.result()
    ledger.release(HUB, "eve", "", "stopped")
    assert len((await four).gpus) == 4
    ledger.release(HUB, "rita", "", "stopped")
    assert len((await one).gpus) == 1
    # What the configuration grants was written down once, not anew with each start.
    assert len([line for line in ledger.changes(HUB) if line.what == "grant"]) == 1


async def test_nobody_holds_more_because_somebody_else_may(lab: FakeLab) -> None:
    rita, sam = await both(config(max_gpus=4))
    await acquire(lab, spawner_of("eve", of=config()), 1)
    four = asyncio.create_task(acquire(lab, rita, 4))
    await until_it_waits(lab, "rita")
    book = lab.queue._book_of((), rita.rules)
    assert [grant.count for grant in book.for_person("sam", (), 0.0)] == [1]
    with pytest.raises(NotGranted, match="it gives 1 GPU, not 2"):
        await acquire(lab, sam, 2)
    four.cancel()


async def test_a_place_for_four_is_kept_until_its_owner_is_back(
    lab: FakeLab, ledger: Ledger
) -> None:
    """After a restart the hub hears of an override with the next start of whom it is for."""
    rita, sam = await both(config(max_gpus=4))
    ledger.join(begin(lab, rita, 4))
    await acquire(lab, sam, 1)
    await asyncio.sleep(0.5)
    (told,) = ledger.queue(HUB)
    assert told.ticket.username == "rita"
    assert (told.place, told.of) == (1, 1)
    assert "it gives 1 GPU, not 4" in told.reason


async def test_the_form_offers_what_the_start_may_ask_for(lab: FakeLab) -> None:
    of = config(max_gpus=lambda spawner: spawner.max_gpus + 3)
    rita, sam = spawner_of("rita", "research", of=of), spawner_of("sam", of=of)
    for _ in range(2):  # an override that adds to what it finds adds once, however often it is seen
        page = await rita.get_options_form()
        assert '<option value="4">4</option>' in page
        assert 'value="5"' not in page
    assert rita.max_gpus == 1
    assert 'value="2"' not in await sam.get_options_form()


async def test_the_form_knows_what_a_hook_made_of_the_login(lab: FakeLab) -> None:
    def hook(spawner: Spawner, auth_state: dict[str, int]) -> None:
        spawner.max_gpus = auth_state["gpus"]

    of = config(max_gpus=4)
    of.Spawner.auth_state_hook = hook
    sam = spawner_of("sam", of=of)
    assert '<option value="2">2</option>' in await sam.get_options_form()


def test_a_grant_may_be_another_one_for_one_person() -> None:
    grants = (Grant("a", count=2), Grant("b", count=1))
    book = GrantBook(grants, {"rita": {"b": Grant("b", count=4)}})
    assert [one.count for one in book.for_person("rita", (), 0.0)] == [4, 2]
    assert [one.count for one in book.for_person("sam", (), 0.0)] == [2, 1]
    assert book.has_personal("rita")
    assert not book.has_personal("sam")
