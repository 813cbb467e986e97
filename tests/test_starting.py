"""The hub's hooks around a start: whatever ends it, its place goes to the next."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jupyterhub import orm
from jupyterhub.apihandlers.users import UserServerAPIHandler as SpawnAPIHandler
from jupyterhub.handlers.pages import SpawnHandler
from jupyterhub.objects import Hub
from jupyterhub.user import User
from traitlets.config import Config

from pytorch_spawner import progress, turns
from pytorch_spawner import spawner as spawner_module
from pytorch_spawner.adapters.hub import StartRefused
from pytorch_spawner.core.request import Request
from pytorch_spawner.errors import ContainerDied, EngineUnavailable
from pytorch_spawner.spawner import PyTorchSpawner

Make = Callable[[str], PyTorchSpawner]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Servers of one user, by name, in a hub where one is started at a time and no engine is."""
    monkeypatch.setattr(turns, "_TELL_S", 0.02)
    config = Config()
    config.PyTorchSpawner.ledger_url = f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    config.PyTorchSpawner.client_kwargs = {"base_url": f"unix://{tmp_path / 'nobody.sock'}"}
    config.PyTorchSpawner.prepull = False
    config.PyTorchSpawner.starts_at_once = 1
    config.PyTorchSpawner.boots_at_once = 0
    session = orm.new_session_factory("sqlite:///:memory:")()
    row = orm.User(name="ana")
    session.add(row)
    session.add_all(orm.Spawner(name=name, user=row) for name in ("", "second", "third", "my #2"))
    session.commit()
    user = User(row, {"spawner_class": PyTorchSpawner, "config": config, "hub": Hub()})

    def make_one(name: str) -> PyTorchSpawner:
        spawner: Any = user.spawners[name]
        spawner._request = Request("lab:cpu", gpus=0)
        return spawner

    return make_one


async def journal(spawner: PyTorchSpawner) -> list[str]:
    if spawner._start is None:
        return []
    return [
        str(one.data.get("message")) for one in await spawner.lab.read_events(spawner._start, 0)
    ]


TOLD = "1 server is starting before yours."


async def come(spawner: PyTorchSpawner) -> asyncio.Task[None]:
    """Let a start come that has to wait, until it is told so."""
    task = asyncio.create_task(spawner.run_pre_spawn_hook())
    while TOLD not in await journal(spawner):
        assert not task.done()
        await asyncio.sleep(0.01)
    return task


async def clean_up(spawner: PyTorchSpawner) -> None:
    """What the hub does in the end; without an engine only its warning is left of it."""
    await spawner.run_post_stop_hook()


async def test_whoever_waits_reads_it_in_the_journal_and_goes_on_when_the_other_is_up(
    make: Make,
) -> None:
    first, second = make(""), make("second")
    await first.run_pre_spawn_hook()
    waiting = await come(second)
    assert (await journal(second)).count(TOLD) == 1
    first.lab.starting.leave(first)  # it answers
    await asyncio.wait_for(waiting, 20)


async def test_a_start_that_fails_gives_its_place_to_the_next(make: Make) -> None:
    first, second = make(""), make("second")
    await first.run_pre_spawn_hook()
    waiting = await come(second)
    with pytest.raises(StartRefused) as refused:
        await first.start()
    assert refused.value.code == EngineUnavailable.code
    await asyncio.wait_for(waiting, 20)


async def test_a_start_that_fails_between_the_hub_s_two_calls_gives_its_place_to_the_next(
    make: Make,
) -> None:
    first, second = make(""), make("second")
    await first.run_pre_spawn_hook()
    waiting = await come(second)
    assert second.lab.starting.ahead(second) == 1
    await clean_up(first)  # start() was never called
    await asyncio.wait_for(waiting, 20)
    assert second.lab.starting.ahead(second) == 0


async def test_a_start_that_is_cancelled_while_it_waits_takes_no_place_later(make: Make) -> None:
    first, second, third = make(""), make("second"), make("third")
    await first.run_pre_spawn_hook()
    waiting = await come(second)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await clean_up(second)
    next_one = await come(third)
    await clean_up(first)
    await asyncio.wait_for(next_one, 20)


async def test_a_start_that_is_stopped_while_it_waits_ends_and_takes_no_place(make: Make) -> None:
    first, second, third = make(""), make("second"), make("third")
    await first.run_pre_spawn_hook()
    waiting = await come(second)
    await clean_up(second)
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(waiting, 20)
    next_one = await come(third)
    await clean_up(first)
    await asyncio.wait_for(next_one, 20)


async def test_a_start_that_runs_out_of_time_gives_its_place_to_the_next(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(_: Any) -> Any:
        await asyncio.sleep(3600)

    first, second = make(""), make("second")
    await first.run_pre_spawn_hook()
    waiting = await come(second)
    monkeypatch.setattr(PyTorchSpawner, "_make_plan", never)
    with pytest.raises((TimeoutError, asyncio.TimeoutError)):
        await asyncio.wait_for(first.start(), 0.05)  # as the hub does after start_timeout
    await asyncio.wait_for(waiting, 20)


async def test_a_viewer_who_goes_ends_the_telling(make: Make) -> None:
    spawner = make("")
    await spawner.run_pre_spawn_hook()
    told: Any = spawner.progress()
    assert (await told.__anext__())["message"] == "Your server is being prepared."
    await told.aclose()
    with pytest.raises(StopAsyncIteration):
        await told.__anext__()


# -- a start that is faster than its page --------------------------------------------------------


@pytest.fixture
def run(make: Make, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A start whose container answers at once; by a page of the hub, unless said otherwise."""

    async def run_one(
        *, by: Any = SpawnHandler, warmup: bool = True, course: str = ""
    ) -> tuple[PyTorchSpawner, asyncio.Task[str]]:
        async def answers(spawner: PyTorchSpawner, began: float) -> str:
            return "http://10.0.0.1:8888"

        async def lives(spawner: PyTorchSpawner) -> None:
            await asyncio.Event().wait()

        monkeypatch.setattr(PyTorchSpawner, "_start_container", answers)
        monkeypatch.setattr(PyTorchSpawner, "_watch_for_death", lives)
        spawner = make("")
        spawner.warmup = warmup
        spawner.handler = by and by.__new__(by)
        spawner._request = Request("lab:cpu", gpus=0, course=course)
        await spawner._begin(spawner._request)
        return spawner, asyncio.create_task(spawner.start())

    return run_one


async def is_done_soon(task: asyncio.Task[str]) -> bool:
    return bool((await asyncio.wait({task}, timeout=0.3))[0])


@pytest.mark.parametrize("why", [{"warmup": True}, {"warmup": False, "course": "cv"}])
async def test_a_start_by_page_that_has_more_to_show_waits_for_the_page(
    run: Callable[..., Any], why: dict[str, Any]
) -> None:
    spawner, started = await run(**why)
    assert not await is_done_soon(started)
    pages = spawner.progress()
    asked = asyncio.create_task(anext(pages))
    await asyncio.wait_for(started, 1)
    asked.cancel()


@pytest.mark.parametrize(
    "how", [{"by": SpawnAPIHandler}, {"by": None}, {"warmup": False}], ids=["API", "nobody", "bare"]
)
async def test_other_starts_wait_for_no_page(
    run: Callable[..., Any], how: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spawner_module, "_PAGE_WITHIN_S", 3600.0)
    _, started = await run(**how)
    assert await asyncio.wait_for(started, 20) == "http://10.0.0.1:8888"


async def test_a_page_that_never_comes_is_not_waited_for_long(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spawner_module, "_PAGE_WITHIN_S", 0.0)
    _, started = await run()
    assert await asyncio.wait_for(started, 20) == "http://10.0.0.1:8888"


async def test_a_page_that_is_there_has_read_all_that_was_written_when_the_start_is_over(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_POLL_S", 3600.0)
    spawner, started = await run()

    async def answers(spawner: PyTorchSpawner, began: float) -> str:
        await spawner._viewers.come()
        for line in ("The warm-up is over.", "JupyterLab answers."):
            await spawner.lab.tell(spawner._start, "lab", line)
        return "http://10.0.0.1:8888"

    monkeypatch.setattr(PyTorchSpawner, "_start_container", answers)
    told: list[list[str]] = [[], []]

    async def watch(said: list[str]) -> None:
        async for one in spawner.progress():
            said.append(one["message"])

    pages = [asyncio.create_task(watch(said)) for said in told]
    await asyncio.wait_for(started, 20)
    assert ["The warm-up is over.", "JupyterLab answers."] in told
    for page in pages:
        page.cancel()


async def test_a_page_that_has_gone_is_not_waited_for_long(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spawner_module, "_PAGE_WITHIN_S", 3600.0)
    monkeypatch.setattr(spawner_module, "_LAST_WORDS_S", 0.0)
    spawner, started = await run()
    page = asyncio.create_task(anext(spawner.progress()))

    async def answers(spawner: PyTorchSpawner, began: float) -> str:
        await spawner._viewers.come()
        page.cancel()
        return "http://10.0.0.1:8888"

    monkeypatch.setattr(PyTorchSpawner, "_start_container", answers)
    assert await asyncio.wait_for(started, 20) == "http://10.0.0.1:8888"


async def test_a_page_of_an_earlier_start_is_not_this_ones(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_POLL_S", 3600.0)
    spawner, started = await run()
    page = asyncio.create_task(anext(spawner.progress()))
    await spawner._viewers.come()
    await spawner._begin(spawner._request)
    assert not spawner._viewers.has_come
    for task in (page, started):
        task.cancel()


async def test_a_container_that_dies_before_the_page_comes_is_a_failed_start_with_its_reason(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    spawner, started = await run()

    async def dies(spawner: PyTorchSpawner) -> None:
        raise ContainerDied("It ran out of memory.", log_tail=("Killed",))

    monkeypatch.setattr(PyTorchSpawner, "_watch_for_death", dies)
    with pytest.raises(StartRefused, match="out of memory"):
        await started
    assert "It ran out of memory." in await journal(spawner)


async def test_a_servers_reports_reach_it_whatever_its_name(make: Make) -> None:
    """Such names are of an older JupyterHub, whose servers still start."""
    spawner = make("my #2")
    spawner.lab_url = "http://hub/services/lab/"
    place = "http://hub/services/lab/api/servers/ana/my%20%232/"
    assert (spawner._events_url(), spawner._orders_url()) == (place + "events", place + "course")


@pytest.mark.parametrize(
    ("policy", "asks"), [("always", ["pull", "look"]), ("ifnotpresent", ["look"])]
)
async def test_a_warm_cache_is_chosen_by_the_image_that_the_start_will_have(
    policy: str, asks: list[str], make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    async def pull_image(_self: Any, _name: str) -> None:
        asked.append("pull")

    async def docker(_self: Any, _method: str, _image: str) -> dict[str, str]:
        asked.append("look")
        return {"Id": "sha256:new"}

    monkeypatch.setattr(PyTorchSpawner, "pull_image", pull_image)
    monkeypatch.setattr(PyTorchSpawner, "docker", docker)
    spawner: Any = make("")
    spawner.pull_policy = policy
    assert (await spawner._image_id(), asked) == ("sha256:new", asks)
