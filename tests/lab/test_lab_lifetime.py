"""The service announces the end of a lease in the journal, and stops the server when it is over."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from lab_fakes import FOR_REAL, HUB
from tornado.web import RequestHandler

from pytorch_spawner.core.gpus import Gpu, GpuUuid
from pytorch_spawner.core.grants import Grant
from pytorch_spawner.core.placement import Holding
from pytorch_spawner.core.tickets import Decisions, Give
from pytorch_spawner.lab import lifetime
from pytorch_spawner.lab.lifetime import watch_once

pytestmark = FOR_REAL
ONE = Gpu(GpuUuid("GPU-0001"))


class Server(RequestHandler):
    """The hub's API for stopping a server."""

    def initialize(self, stopped: list[str], answers: list[int]) -> None:
        self.stopped, self.answers = stopped, answers

    def delete(self) -> None:
        assert self.request.headers["Authorization"] == "token service"
        self.stopped.append(self.request.path.removeprefix("/hub/api/users/"))
        self.set_status(self.answers[0] if self.answers else 202)


class SlowServer(RequestHandler):
    """The hub's API for stopping a server, where a stop takes its time."""

    at_once = most_at_once = 0

    def initialize(self, stopped: list[str], meanwhile: Callable[[], object]) -> None:
        self.stopped, self.meanwhile = stopped, meanwhile

    async def delete(self) -> None:
        kind = SlowServer
        self.stopped.append(self.request.path.removeprefix("/hub/api/users/"))
        kind.at_once += 1
        kind.most_at_once = max(kind.most_at_once, kind.at_once)
        self.meanwhile()
        await asyncio.sleep(0.3)
        kind.at_once -= 1
        self.set_status(204)


def answer_slowly(site: Any, meanwhile: Callable[[], object] = lambda: None) -> list[str]:
    """Have the hub answer a stop after 0.3 s; returns the paths that it is asked for."""
    asked: list[str] = []
    SlowServer.at_once = SlowServer.most_at_once = 0
    handler = (r"/hub/api/users/.*", SlowServer, {"stopped": asked, "meanwhile": meanwhile})
    site.app.add_handlers(r".*", [handler])
    return asked


@pytest.fixture
def stopped(site: Any) -> list[str]:
    """Paths of the servers that the hub was asked to stop."""
    asked: list[str] = []
    site.answers = []
    handler = (r"/hub/api/users/.*", Server, {"stopped": asked, "answers": site.answers})
    site.app.add_handlers(r".*", [handler])
    return asked


def lend(site: Any, server: str, for_s: float | None, gpu: Gpu = ONE) -> Any:
    """A server with a lease that ends so many seconds from now."""
    start = site.begin("ana", server)
    site.ledger.join(start)
    until = None if for_s is None else site.ledger.now() + for_s

    def decide(state: Any) -> Decisions:
        held = (Holding(gpu.uuid),)
        return Decisions(give=(Give(state.tickets[0], (gpu,), held, Grant("all"), until, "all"),))

    site.ledger.decide(HUB, decide)
    return start


def endings(site: Any, start: Any) -> list[dict[str, Any]]:
    return [dict(event.data) for event in site.ledger.read_events(start.id)]


async def look(site: Any) -> None:
    await watch_once(replace(site.lab.settings, warn_s=600.0), site.ledger)


async def test_an_end_is_announced_once_with_its_time(site, stopped):
    start = lend(site, "", 300)
    await look(site)
    await look(site)
    (said,) = endings(site, start)
    assert said["stage"] == "ending"
    assert said["message"].endswith("Save your work.")
    assert said["until"] == site.ledger.leases(HUB)[0].until
    assert stopped == []


@pytest.mark.parametrize("for_s", [None, 3600], ids=["no end", "far away"])
async def test_an_end_that_is_not_near_is_not_announced(site, stopped, for_s):
    start = lend(site, "", for_s)
    await look(site)
    assert (endings(site, start), stopped) == ([], [])


@pytest.mark.parametrize(("server", "path"), [("", "ana/server"), ("a b", "ana/servers/a%20b")])
async def test_nobody_is_stopped_unwarned_and_everybody_when_it_is_over(
    site, stopped, server, path
):
    start = lend(site, server, 0.0)
    await look(site)
    assert (len(endings(site, start)), stopped) == (1, [])
    await look(site)
    assert stopped == [path]


@pytest.mark.parametrize("status", [400, 404], ids=["is being stopped", "is stopped"])
async def test_a_server_that_is_stopped_already_is_no_trouble(site, stopped, status):
    lend(site, "", 0.0)
    site.answers.append(status)
    await look(site)
    await look(site)
    assert stopped == ["ana/server"]


@pytest.mark.parametrize("at_once", [1, 2], ids=["one after the other", "together"])
async def test_a_server_that_cannot_be_stopped_holds_up_no_other(
    site, stopped, monkeypatch, at_once
):
    monkeypatch.setattr(lifetime, "AT_ONCE", at_once)
    lend(site, "", 0.0)
    lend(site, "second", 0.0, Gpu(GpuUuid("GPU-0002")))
    await look(site)
    site.answers.append(500)
    await look(site)
    asked = stopped if at_once == 1 else sorted(stopped)  # two at once arrive in any order
    assert asked == ["ana/server", "ana/servers/second"]


@pytest.mark.parametrize("meanwhile", ["given back", "kept"])
async def test_a_lease_that_is_no_more_when_its_turn_comes_stops_nothing(
    site, monkeypatch, meanwhile
):
    def change() -> None:
        if meanwhile == "given back":  # and another server of that name may have begun
            site.ledger.release(HUB, "ana", "second", "stopped")
        else:
            site.ledger.keep(HUB, "ana", "second", 120.0)

    monkeypatch.setattr(lifetime, "AT_ONCE", 1)
    stopped = answer_slowly(site, change)
    lend(site, "", 0.0)
    lend(site, "second", 0.0, Gpu(GpuUuid("GPU-0002")))
    await look(site)
    await look(site)
    assert stopped == ["ana/server"]


async def test_a_class_is_stopped_together_and_no_more_at_once_than_the_hub_is_asked_for(
    site, monkeypatch
):
    monkeypatch.setattr(lifetime, "AT_ONCE", 3)
    stopped = answer_slowly(site)
    for number in range(7):
        lend(site, f"s{number}", 0.0, Gpu(GpuUuid(f"GPU-000{number}")))
    await look(site)
    await look(site)
    assert sorted(stopped) == [f"ana/servers/s{number}" for number in range(7)]
    assert SlowServer.most_at_once == 3


async def test_what_is_kept_for_a_server_that_ended_is_not_announced(site, stopped):
    start = lend(site, "", 0.0)
    site.ledger.keep(HUB, "ana", "", 120.0)
    await look(site)
    assert (endings(site, start), stopped) == ([], [])


async def test_the_announcement_reaches_who_watches(site, stopped):
    lend(site, "", 300)
    async with site.stream() as viewer:
        await viewer.next()
        await look(site)
        assert (await viewer.next())[2]["data"]["stage"] == "ending"
