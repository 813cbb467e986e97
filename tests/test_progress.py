"""The journal of a start as the hub's progress stream tells it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pytorch_spawner import progress
from pytorch_spawner.core.tickets import Ticket, Wait
from pytorch_spawner.ledger.store import Start
from pytorch_spawner.progress import Viewers
from pytorch_spawner.shared import Lab


class Viewer:
    """Somebody who has the page open."""

    def __init__(self, told: AsyncIterator[dict[str, Any]]) -> None:
        self._told = told

    async def next(self) -> dict[str, Any]:
        return await asyncio.wait_for(anext(self._told), 20)


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setattr(progress, "_POLL_S", 0.0)
    return Lab(f"sqlite:///{tmp_path / 'ledger.sqlite'}", "lab", {})


async def begin(lab: Lab) -> Start:
    return await lab.call(lambda ledger: ledger.begin_start("lab", "ana", "", {}, ()))


async def test_every_viewer_gets_the_journal_from_its_first_entry(lab: Lab) -> None:
    start = await begin(lab)
    await lab.tell(start, "requested", "Your server is being prepared.")
    await lab.tell(start, "turn", "3 servers are starting before yours.", ahead=3)
    await lab.tell(start, "container", "The container runs.")
    for _ in range(2):
        viewer = Viewer(Viewers().follow(lab, lambda: start))
        told = [await viewer.next() for _ in range(3)]
        assert [(one["progress"], one["message"]) for one in told] == [
            (5, "Your server is being prepared."),
            (5, "3 servers are starting before yours."),
            (50, "The container runs."),
        ]
        assert [one["lab"]["seq"] for one in told] == [1, 2, 3]
        assert told[1]["lab"]["data"]["ahead"] == 3


async def test_what_comes_later_is_told_too_and_a_start_that_comes_later(lab: Lab) -> None:
    starts: list[Start] = []
    viewer = Viewer(Viewers().follow(lab, lambda: starts[0] if starts else None))
    waiting = asyncio.create_task(viewer.next())
    await asyncio.sleep(0)
    assert not waiting.done()
    starts.append(await begin(lab))
    await lab.tell(starts[0], "lab", "JupyterLab answers.")
    assert (await waiting)["progress"] == 95
    await lab.tell(starts[0], "home", "Your home directory is ready.")
    assert (await viewer.next())["progress"] == 95  # the bar never goes back


async def test_a_place_in_the_queue_is_told_when_it_changes_and_is_no_entry(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = await begin(lab)
    ticket = cast("Ticket", SimpleNamespace(since=0.0, gpus=1))
    places = [Wait(ticket, place, 3, trouble="All are in use.") for place in (2, 2, 1)]
    monkeypatch.setattr(lab.queue, "position", lambda _: places.pop(0) if places else None)
    viewer = Viewer(Viewers().follow(lab, lambda: start))
    told = [await viewer.next(), await viewer.next()]
    assert [one["message"] for one in told] == [
        "You are number 2 in the queue. All are in use.",
        "You are number 1 in the queue. All are in use.",
    ]
    assert [one["lab"]["seq"] for one in told] == [0, 0]


async def test_what_a_container_says_is_cut_and_only_checks_are_shown_as_text(lab: Lab) -> None:
    start = await begin(lab)
    await lab.note(start, "check", {"sentence": "x" * 1000})
    await lab.note(start, "course", {"message": "<b>hostile</b>"})
    viewer = Viewer(Viewers().follow(lab, lambda: start))
    assert (await viewer.next())["message"] == "x" * 300
    assert (await viewer.next())["message"] == ""


async def test_a_viewer_has_come_once_they_were_told_all_that_is_written(lab: Lab) -> None:
    start = await begin(lab)
    await lab.tell(start, "requested", "Your server is being prepared.")
    await lab.tell(start, "container", "The container runs.")
    viewers = Viewers()
    viewer = Viewer(viewers.follow(lab, lambda: start))
    await viewer.next()
    await viewer.next()
    assert not viewers.has_come, "the second entry may be on its way still"
    waiting = asyncio.create_task(viewer.next())
    await asyncio.wait_for(viewers.come(), 20)
    assert viewers.has_come
    viewers.begin()
    assert not viewers.has_come, "of the next start nothing was read"
    waiting.cancel()


async def test_whoever_is_called_reads_again_at_once_and_all_of_it(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_POLL_S", 3600.0)
    start = await begin(lab)
    viewers = Viewers()
    viewer = Viewer(viewers.follow(lab, lambda: start))
    waiting = asyncio.create_task(viewer.next())
    await asyncio.wait_for(viewers.come(), 20)
    await lab.tell(start, "lab", "JupyterLab answers.")
    viewers.call()
    assert not viewers.has_come
    assert (await waiting)["message"] == "JupyterLab answers."
    waiting = asyncio.create_task(viewer.next())
    await asyncio.wait_for(viewers.come(), 20)
    waiting.cancel()


async def test_a_look_that_began_before_the_call_is_no_answer_to_it(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = await begin(lab)
    read = lab.read_events
    looks, goes_on = asyncio.Event(), asyncio.Event()

    async def slow(*words: Any) -> Any:
        found = await read(*words)
        looks.set()
        await goes_on.wait()
        return found

    monkeypatch.setattr(lab, "read_events", slow)
    viewers = Viewers()
    viewer = Viewer(viewers.follow(lab, lambda: start))
    waiting = asyncio.create_task(viewer.next())
    await asyncio.wait_for(looks.wait(), 20)
    await lab.tell(start, "lab", "JupyterLab answers.")
    viewers.call()
    goes_on.set()
    assert (await waiting)["message"] == "JupyterLab answers."
    assert not viewers.has_come
