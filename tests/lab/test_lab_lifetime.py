"""The service announces the end of a lease in the journal, and stops the server when it is over."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from lab_fakes import FOR_REAL, HUB
from tornado.web import RequestHandler

from pytorch_spawner.core.gpus import Gpu, GpuUuid
from pytorch_spawner.core.grants import Grant
from pytorch_spawner.core.placement import Holding
from pytorch_spawner.core.tickets import Decisions, Give
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


async def test_a_server_that_cannot_be_stopped_holds_up_no_other(site, stopped):
    lend(site, "", 0.0)
    lend(site, "second", 0.0, Gpu(GpuUuid("GPU-0002")))
    await look(site)
    site.answers.append(500)
    await look(site)
    assert stopped == ["ana/server", "ana/servers/second"]


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
