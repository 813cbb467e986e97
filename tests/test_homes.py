"""Uids while the ledger is away, and what it remembers of homes under a bind root."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pytorch_spawner.adapters import home_engine
from pytorch_spawner.adapters.home_engine import Place
from pytorch_spawner.core.identity import Identity
from pytorch_spawner.errors import LedgerUnavailable
from pytorch_spawner.homes import Homes
from pytorch_spawner.ledger.store import Ledger

RANGE = (20000, 20009)


class Lab:
    """An engine that lists its volumes as slowly as one, and a ledger that may be away."""

    def __init__(self, ledger: Ledger | None) -> None:
        self.hub, self.client, self._ledger = "lab", None, ledger

    def ledger(self) -> Any:
        if self._ledger is None:
            raise LedgerUnavailable("It is away.")
        return self._ledger

    async def call(self, function: Any) -> Any:
        return function(self.ledger())

    async def in_lane(self, _lane: str, call: Any) -> Any:
        said = call()
        await asyncio.sleep(0.01)
        return said


@pytest.fixture
def labelled(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    owners: dict[str, int] = {}
    monkeypatch.setattr(home_engine, "volume_owners", lambda _client, _hub: dict(owners))
    return owners


async def uid_of(homes: Homes, name: str) -> int:
    place = Place(volume=f"lab-home-{name}")
    return (await homes.identity_of(name, None, RANGE, place, name)).uid


async def test_two_who_come_first_at_once_without_a_ledger_get_two_uids(
    labelled: dict[str, int],
) -> None:
    homes = Homes(Lab(None))  # type: ignore[arg-type]
    uids = await asyncio.gather(*(uid_of(homes, name) for name in ("ana", "bo", "ana")))
    assert uids == [20009, 20008, 20009]
    labelled["lab-home-ana"] = 20009  # her volume is made; his is not yet
    assert await uid_of(homes, "cy") == 20007


async def test_a_ledger_that_comes_back_gives_nobody_such_a_uid(
    labelled: dict[str, int], tmp_path: Path
) -> None:
    lab = Lab(None)
    homes = Homes(lab)  # type: ignore[arg-type]
    assert [await uid_of(homes, name) for name in ("ana", "bo")] == [20009, 20008]
    labelled["lab-home-ana"] = 20009
    lab._ledger = Ledger.open(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    # Its own go on from the range's near end, past nobody's.
    assert [await uid_of(homes, name) for name in ("cy", "bo", "ana")] == [20000, 20008, 20009]
    assert await uid_of(homes, "dan") == 20001
    lab._ledger.close()


async def test_the_ledger_knows_a_root_that_homes_were_made_in(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[Sequence[Place]] = []
    monkeypatch.setattr(home_engine, "prepare_places", lambda *args: asked.append(args[2]))
    lab = Lab(Ledger.open(f"sqlite:///{tmp_path / 'ledger.sqlite'}"))
    homes = Homes(lab)  # type: ignore[arg-type]

    async def pull() -> None: ...

    async def prepare(name: str, uid: int) -> bool:
        place = Place(root="/srv/homes", name=name)
        return await homes.prepare((place,), Identity(uid, uid, ""), "image", name, pull=pull)

    assert [await prepare("ana", 20000), await prepare("bo", 20001)] == [True, True]
    assert not await prepare("ana", 20000)
    lab.ledger().close()
    lab._ledger = None
    assert await prepare("cy", 20002)
    # Who cannot know takes an empty root for one whose file system is not mounted.
    assert [place.has_neighbours for places in asked for place in places] == [False, True, True]
