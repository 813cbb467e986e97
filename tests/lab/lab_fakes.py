"""A ledger in memory, and a hub that knows tokens by heart: enough for the service to stand on."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from jupyterhub._data import DATA_FILES_PATH
from tornado.web import RequestHandler, StaticFileHandler

from pytorch_spawner.core.gpus import Gpu, GpuUuid, Inventory
from pytorch_spawner.core.journal import AGENT_KINDS, MAX_EVENTS_A_START, Event, Report
from pytorch_spawner.core.placement import DeviceSetting, Holding
from pytorch_spawner.core.tickets import Ticket
from pytorch_spawner.errors import InvalidEvent, LedgerUnavailable

HUB = "test"
# Tests that say by hand what the ledger answers, and tests that the real one answers the same.
BY_HAND = pytest.mark.parametrize("ledger", ["memory"], indirect=True)
FOR_REAL = pytest.mark.parametrize("ledger", ["sqlite"], indirect=True)
ENTER = "access:services!service=lab"
GPU = {
    "uuid": "GPU-11111111-2222-3333-4444-555555555555",
    "index": 0,
    "name": "NVIDIA H100 80GB HBM3",
    "memory_mib": 81559,
    "driver": "580.159.04",
    "pool": "teaching",
    "is_simulated": False,
}


@dataclass(frozen=True)
class FakeStart:
    id: str
    hub: str
    username: str
    servername: str
    image: str
    request: Mapping[str, Any]
    created_at: float
    ended_at: float | None = None
    outcome: str = ""


@dataclass(frozen=True)
class FakeLease:
    id: str
    hub: str
    start_id: str
    username: str
    servername: str
    holdings: tuple[Holding, ...]
    request: Mapping[str, Any]
    since: float
    until: float | None = None
    kept_until: float | None = None
    grant: str = ""
    weight: float = 1.0

    @property
    def gpus(self) -> tuple[str, ...]:
        return tuple(holding.gpu for holding in self.holdings)


@dataclass(frozen=True)
class FakeWaiting:
    ticket: Ticket
    place: int = 0
    of: int = 0
    expected_at: float | None = None
    reason: str = ""


@dataclass
class MemoryLedger:
    clock: Any = time.time
    all_starts: list[FakeStart] = field(default_factory=list)
    journals: dict[str, list[Event]] = field(default_factory=dict)
    all_leases: list[FakeLease] = field(default_factory=list)
    all_settings: list[DeviceSetting] = field(default_factory=list)
    all_waiting: list[FakeWaiting] = field(default_factory=list)
    notes: list[tuple[str, str, str, Any]] = field(default_factory=list)
    is_broken: bool = False
    lock: Any = field(default_factory=threading.Lock)

    def _check(self) -> None:
        if self.is_broken:
            raise LedgerUnavailable("The lab's ledger cannot be read just now.")

    def begin_start(
        self, hub: str, username: str, servername: str, request: Mapping[str, Any]
    ) -> FakeStart:
        start = FakeStart(
            id=f"start-{len(self.all_starts) + 1}",
            hub=hub,
            username=username,
            servername=servername,
            image=str(request.get("image", "")),
            request=dict(request),
            created_at=self.clock(),
        )
        self.all_starts.append(start)
        self.journals[start.id] = []
        return start

    def end_start(self, start_id: str, outcome: str) -> bool:
        for place, start in enumerate(self.all_starts):
            if start.id == start_id and start.ended_at is None:
                self.all_starts[place] = replace(start, ended_at=self.clock(), outcome=outcome)
                return True
        return False

    def latest_start(self, hub: str, username: str, servername: str) -> FakeStart | None:
        self._check()
        key = (hub, username, servername)
        for start in reversed(self.all_starts):
            if (start.hub, start.username, start.servername) == key:
                return start
        return None

    def starts(self, hub: str, username: str) -> tuple[FakeStart, ...]:
        self._check()
        mine = [
            start for start in self.all_starts if (start.hub, start.username) == (hub, username)
        ]
        return tuple({start.servername: start for start in mine}.values())

    def read_events(self, start_id: str, after_seq: int = 0) -> tuple[Event, ...]:
        self._check()
        return tuple(event for event in self.journals[start_id] if event.seq > after_seq)

    def append_events(
        self, start_id: str, events: Sequence[tuple[str, Mapping[str, Any]]]
    ) -> tuple[Event, ...]:
        self._check()
        with self.lock:
            journal = self.journals[start_id]
            if len(journal) + len(events) > MAX_EVENTS_A_START:
                raise InvalidEvent("A start's journal is full.")
            new = [
                Event(len(journal) + place, self.clock(), kind, data)
                for place, (kind, data) in enumerate(events, 1)
            ]
            journal.extend(new)
        return tuple(new)

    def reported_bytes(self, start_id: str) -> int:
        self._check()
        said = [(one.kind, one.data) for one in self.journals[start_id] if one.kind in AGENT_KINDS]
        return Report("", tuple(said)).stored_bytes

    def leases(self, hub: str) -> tuple[FakeLease, ...]:
        self._check()
        return tuple(self.all_leases)

    def settings(self, hub: str) -> tuple[DeviceSetting, ...]:
        self._check()
        return tuple(self.all_settings)

    def grants(self, hub: str) -> tuple[Any, ...]:
        self._check()
        return ()

    def courses(self, hub: str) -> tuple[Any, ...]:
        self._check()
        return ()

    def courses_version(self, hub: str) -> int:
        self._check()
        return 0

    def week_hours(self, hub: str, username: str) -> dict[str, float]:
        self._check()
        return {}

    def groups_of(self, hub: str, username: str) -> tuple[str, ...]:
        self._check()
        return ()

    def shown_version(self, hub: str) -> int:
        self._check()
        return 0

    def note(self, hub: str, by: str, what: str, subject: str, after: Any) -> int:
        self._check()
        self.notes.append((by, what, subject, after))
        return len(self.notes)

    def now(self) -> float:
        return float(self.clock())

    def queue(self, hub: str) -> tuple[FakeWaiting, ...]:
        self._check()
        return tuple(self.all_waiting)

    def read_inventory(self, hub: str) -> Inventory:
        self._check()
        return Inventory((Gpu(**{**GPU, "uuid": GpuUuid(GPU["uuid"])}),))


def server_scope(username: str, servername: str = "") -> str:
    return f"access:servers!server={username}/{servername}"


class FakeHub:
    """Tokens and whose they are; serves what the service and the pages ask of a hub."""

    def __init__(self) -> None:
        self.models: dict[str, dict[str, Any]] = {}
        self.asked: list[str] = []
        # Who is "logged in" at the hub when a browser comes to authorize.
        self.browser_user_token = ""
        self.is_down = False
        self.posted: list[tuple[str, str]] = []
        self.people: dict[str, list[str]] = {name: ["cv"] for name in ("ana", "bob", "cyd")}
        self.page = 2

    def add(self, token: str, name: str, *scopes: str, kind: str = "user") -> str:
        self.models[token] = {"name": name, "kind": kind, "scopes": list(scopes), "groups": []}
        return token

    def handlers(self) -> list[Any]:
        shared = {"hub": self}
        return [
            (r"/hub/api/user", _User, shared),
            (r"/hub/api/(users|groups)", _People, shared),
            (r"/hub/api/oauth2/authorize", _Authorize, shared),
            (r"/hub/api/oauth2/token", _Token, shared),
            (r"/hub/static/(.*)", StaticFileHandler, {"path": f"{DATA_FILES_PATH}/static"}),
            (r"/hub/logo", _Logo, shared),
        ]


class _HubHandler(RequestHandler):
    def initialize(self, hub: FakeHub) -> None:
        self.hub = hub

    def check_xsrf_cookie(self) -> None:
        return


class _Logo(_HubHandler):
    def get(self) -> None:
        self.set_header("Content-Type", "image/png")
        self.finish(Path(DATA_FILES_PATH, "static/images/jupyterhub-80.png").read_bytes())


class _User(_HubHandler):
    def get(self) -> None:
        token = self.request.headers["Authorization"].partition(" ")[2]
        self.hub.asked.append(token)
        if self.hub.is_down:
            self.set_status(503)
            return
        if token not in self.hub.models:
            self.set_status(403)
            self.finish(json.dumps({"status": 403}))
            return
        self.finish(json.dumps(self.hub.models[token]))


class _People(_HubHandler):
    """Two pages of users, one of groups."""

    def get(self, what: str) -> None:
        if self.hub.is_down:
            self.set_status(503)
            return
        users = [{"name": name, "groups": groups} for name, groups in self.hub.people.items()]
        items = users if what == "users" else [{"name": "empty"}]
        offset, size = int(self.get_argument("offset", "0")), self.hub.page
        following = {"offset": offset + size} if offset + size < len(items) else None
        page = {"items": items[offset : offset + size], "_pagination": {"next": following}}
        self.finish(json.dumps(page))


class _Authorize(_HubHandler):
    def get(self) -> None:
        if not self.hub.browser_user_token:
            self.finish("<h1>Log in to the hub</h1>")
            return
        answer = urlencode({"code": "code", "state": self.get_argument("state")})
        self.redirect(f"{self.get_argument('redirect_uri')}?{answer}")


class _Token(_HubHandler):
    def post(self) -> None:
        self.finish(json.dumps({"access_token": self.hub.browser_user_token}))
