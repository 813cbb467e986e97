"""A restart: what is answered at once, what is polled, and what a slow or sick hub makes of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from lab_fakes import BY_HAND
from lab_site import Site, run_site
from tornado.web import RequestHandler

from pytorch_spawner.lab import stops

pytestmark = BY_HAND
PATH = "api/servers/ana//restart"
AGAIN = "/hub/spawn/ana?image=base&share=whole&course="


class Hub:
    """A hub that stops servers.

    Attributes:
        told: What it was asked, in order.
        servers: The servers of everybody that it calls active.
        status: Of its answer to a stop.
        answers: Set when it answers a stop.
    """

    def __init__(self) -> None:
        self.told: list[str] = []
        self.servers: dict[str, Any] = {"": {"pending": None}}
        self.status = 204
        self.answers = asyncio.Event()
        self.answers.set()


class Stopping(RequestHandler):
    """The hub's way to stop a server."""

    def initialize(self, hub: Hub) -> None:
        self.fake = hub

    def check_xsrf_cookie(self) -> None:
        return

    async def delete(self, username: str) -> None:
        self.fake.told.append(f"DELETE {username}")
        await self.fake.answers.wait()
        self.set_status(self.fake.status)
        if self.fake.status == 204:
            self.fake.servers.pop("", None)


class Who(RequestHandler):
    """What the hub says of somebody."""

    def initialize(self, hub: Hub) -> None:
        self.fake = hub

    def get(self, username: str) -> None:
        self.fake.told.append(f"GET {username}")
        self.finish({"name": username, "servers": self.fake.servers})


@pytest_asyncio.fixture
async def lab(ledger: Any) -> AsyncIterator[Site]:
    async for running in run_site(ledger):
        yield running


@pytest.fixture
async def hub(lab: Site) -> Hub:
    fake = Hub()
    shared = {"hub": fake}
    lab.app.add_handlers(
        r".*",
        [
            (r"/hub/api/users/([^/]+)/server", Stopping, shared),
            (r"/hub/api/users/([^/]+)", Who, shared),
        ],
    )
    return fake


async def restart(lab: Site, start: str = "") -> Any:
    return await lab.send("POST", PATH, {"start": start}, "ana-page")


async def test_a_server_that_is_stopped_at_once_has_its_address_at_once(
    lab: Site, hub: Hub
) -> None:
    start = lab.begin()
    answer = await restart(lab, start.id)
    assert (answer.status, answer.json) == (202, {"start_url": AGAIN, "poll": None})
    assert hub.told == ["DELETE ana", "GET ana"]


async def test_a_hub_that_takes_its_time_is_not_waited_for_and_asked_once(
    lab: Site, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stops, "ANSWER_S", 0.2)
    hub.answers.clear()
    start = lab.begin()
    began = time.monotonic()
    first, second = await asyncio.gather(restart(lab, start.id), restart(lab, start.id))
    assert "GET ana" not in hub.told, "who waits for the hub need not ask it"
    assert time.monotonic() - began < 3
    poll = f"/services/lab/api/servers/ana//restart?start={start.id}"
    assert first.status == second.status == 202
    assert first.json == second.json == {"start_url": None, "poll": poll}
    path = poll.removeprefix("/services/lab/")
    assert (await lab.get(path)).json == first.json
    hub.servers[""]["pending"] = "stop"
    hub.status = 202
    hub.answers.set()
    await asyncio.sleep(0.1)
    assert (await lab.get(path)).json == first.json, "the hub has answered, and is not done"
    hub.servers.clear()
    answer = await lab.get(path)
    assert (answer.status, answer.json) == (200, {"start_url": AGAIN, "poll": None})
    assert hub.told.count("DELETE ana") == 1, "looking stops nothing"


async def test_who_goes_away_leaves_a_stop_that_goes_on(
    lab: Site, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stops, "ANSWER_S", 30.0)
    hub.answers.clear()
    start = lab.begin()
    tab = asyncio.create_task(restart(lab, start.id))
    while not hub.told:
        await asyncio.sleep(0.01)
    tab.cancel()
    await asyncio.gather(tab, return_exceptions=True)
    hub.answers.set()
    while hub.servers:
        await asyncio.sleep(0.01)
    lab.ledger.end_start(start.id, "stopped")
    async with lab.stream() as viewer:
        name, _, server = await viewer.next()
    assert (name, server["outcome"], server["start_url"]) == ("server", "stopped", AGAIN)


async def test_a_server_that_another_tab_starts_just_now_is_let_alone(lab: Site, hub: Hub) -> None:
    start = lab.begin()
    hub.servers = {"": {"pending": "spawn"}}
    answer = await lab.get(f"{PATH}?start={start.id}")
    assert (answer.status, answer.json["now"]) == (409, start.id)


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [(503, "hub-unavailable", "status 503"), (202, "not-stopped", "tell an admin")],
    ids=["the hub refuses", "the stop came to nothing"],
)
async def test_a_stop_that_failed_is_said_when_it_is_asked_for(
    lab: Site, hub: Hub, status: int, code: str, words: str
) -> None:
    start = lab.begin()
    hub.status = status
    answer = await restart(lab, start.id)
    assert (answer.status, answer.code) == (502, code)
    assert words in answer.json["message"]


async def test_a_stop_that_fails_later_is_said_to_who_polls(
    lab: Site, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stops, "ANSWER_S", 0.05)
    hub.answers.clear()
    hub.status = 500
    start = lab.begin()
    assert (await restart(lab, start.id)).json["start_url"] is None
    hub.answers.set()
    await asyncio.sleep(0.1)
    answer = await lab.get(f"{PATH}?start={start.id}")
    assert (answer.status, answer.code) == (502, "not-stopped")
    assert "did not get this server stopped" in answer.json["message"]


async def test_only_its_owner_and_only_the_start_that_is_meant(lab: Site, hub: Hub) -> None:
    assert (await lab.get(PATH)).code == "no-such-server"
    old, new = lab.begin(), lab.begin()
    for token in ("kim-page", "bo-page", "ana-server"):
        assert (await lab.get(PATH, token=token)).status == 403, token
        assert (await lab.send("POST", PATH, {}, token)).status == 403, token
    answer = await lab.get(f"{PATH}?start={old.id}")
    assert (answer.status, answer.json["now"]) == (409, new.id)
    assert (await restart(lab, old.id)).status == 409
    assert hub.told == []


async def test_a_class_that_restarts_together_is_stopped_together(
    lab: Site, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stops, "ANSWER_S", 0.1)
    hub.answers.clear()
    many = [f"student-{number}" for number in range(30)]
    asked = [asyncio.create_task(lab.lab.stops.ask(lab.lab.settings, name, "")) for name in many]
    await asyncio.gather(*asked)
    give_up_at = time.monotonic() + 10
    while len(hub.told) < len(many):
        assert time.monotonic() < give_up_at, "the hub was not asked to stop the others"
        await asyncio.sleep(0.01)
    # Nor does anything else that asks the hub stand in line behind them.
    start = lab.begin()
    assert (await lab.get(f"{PATH}?start={start.id}")).status == 502
    hub.answers.set()
