"""A lab with something of everything in a real ledger; made once, copied for each test."""

from __future__ import annotations

import json
import shutil
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from lab_fakes import ENTER, HUB, FakeHub, server_scope
from tornado.web import RequestHandler

from pytorch_spawner.core.course_text import parse_manifest
from pytorch_spawner.core.courses import STEPS, Step
from pytorch_spawner.core.gpus import Gpu, GpuUuid, Inventory
from pytorch_spawner.core.grants import Grant
from pytorch_spawner.core.placement import DeviceSetting, Holding
from pytorch_spawner.core.suites import digest, pack, read_suite
from pytorch_spawner.core.tickets import Decisions, Give, Wait
from pytorch_spawner.core.warmcache import CacheKey, Target
from pytorch_spawner.ledger.store import Ledger

WHOLE = GpuUuid("GPU-00000000-1111-2222-3333-444444444444")
SHARED = GpuUuid("GPU-11111111-1111-2222-3333-444444444444")
CUT = GpuUuid("GPU-22222222-1111-2222-3333-444444444444")
INSTANCE = GpuUuid("MIG-33333333-1111-2222-3333-444444444444")
FREE = GpuUuid("GPU-44444444-1111-2222-3333-444444444444")
NAME, DRIVER = "NVIDIA H100 80GB HBM3", "580.159.04"
GPUS = (
    Gpu(WHOLE, 0, NAME, 81_559, (9, 0), DRIVER, pool="teaching"),
    Gpu(SHARED, 1, NAME, 81_559, (9, 0), DRIVER, pool="teaching", mode="shared:4"),
    Gpu(CUT, 2, NAME, 81_559, (9, 0), DRIVER, pool="research", mode="mig"),
    Gpu(INSTANCE, 2, NAME, 9_728, (9, 0), pool="research", mig_profile="1g.10gb", parent=CUT),
    Gpu(FREE, 3, pool="research", is_simulated=True, health="Its fan does not turn."),
)
GRANTS = (
    Grant("user-ana", to="user", subject="ana", gpus=(WHOLE,), weekly_gpu_hours=20.0),
    Grant("cv", to="group", subject="cv", pool="teaching", share="slot", priority=5),
    Grant("old", valid_until=1_700_000_000.0, max_lease_s=3600, images=("lab/base:1",)),
)

# Warm caches: the first is what starts are given, the second waits to be built.
CURRENT, QUEUED, FAILED = "c0ffee000001", "c0ffee000002", "c0ffee000003"
# Of a course that the instructor does not look after; see ``seed_courses``.
FOREIGN = "c0ffee000004"
SUITE = {
    "suite.yaml": b"name: gpt\ntargets: [{name: gpt, function: m:f, vary: {batch_size: 8}}]\n",
    "m.py": b"def f(batch_size): ...\n",
}
CACHE_KEY = CacheKey("sha256:1", NAME, "9.0", "580")


@dataclass(frozen=True)
class Lines:
    """Lines of the audit log that can be taken back."""

    drain: int
    grant: int
    boost: int


def seed(ledger: Any) -> Lines:
    """Fill a new ledger: five devices, three leases, two who wait, grants of three sources."""
    ledger.write_inventory(HUB, Inventory(GPUS))
    for source in ("config", "group"):
        ledger.write_grants(HUB, [Grant(f"{source}:g1", source=source)], source, source=source)
    starts = {
        place: ledger.begin_start(
            HUB, place[0], place[1], {"image": "lab/base:1", "gpus": 1, "course": "cv"}, ("cv",)
        )
        for place in (("ana", ""), ("bo", ""), ("cyd", ""), ("ana", "thesis"), ("eve", ""))
    }
    for start in starts.values():
        ledger.join(start)

    given = {
        "ana": (GPUS[0], Holding(WHOLE), 3600.0),
        "bo": (GPUS[1], Holding(SHARED, 1, 4), None),
        "cyd": (GPUS[3], Holding(INSTANCE), None),
    }

    def decide(state: Any) -> Decisions:
        gives, waits = [], []
        for ticket in state.tickets:
            if ticket.servername or ticket.username not in given:
                waits.append(Wait(ticket, len(waits) + 1, 2, state.now + 3600, "ana"))
                continue
            gpu, holding, for_s = given[ticket.username]
            until = None if for_s is None else state.now + for_s
            gives.append(Give(ticket, (gpu,), (holding,), GRANTS[1], until, "group cv"))
        return Decisions(give=tuple(gives), wait=tuple(waits))

    ledger.decide(HUB, decide)
    ledger.append_events(
        starts["ana", ""].id,
        [("start", {"stage": "queued"}), ("start", {"stage": "lab", "message": "Ready."})],
    )
    ledger.keep(HUB, "cyd", "", 300.0)
    drain = ledger.change_setting(
        HUB, FREE, "root", lambda was: DeviceSetting(was.uuid, drained="Its fan is loud.")
    )
    _, lines = ledger.edit_grants(HUB, "root", lambda _: GRANTS)
    boost = ledger.boost(HUB, "eve", "", 5, "root")
    ledger.note(HUB, "bo", "refused", "PUT api/grants", {"code": "forbidden", "message": "No."})
    ledger.note(HUB, "root", "server", "bob/", {"message": "Maintenance."})
    day = time.time() // 86_400 * 86_400
    ledger.add_busy(
        HUB, [(day, "ana", "cv", WHOLE, 1800.0), (day - 86_400, "bo", "", SHARED, 60.0)]
    )
    seed_courses(ledger)
    ledger.save_course(HUB, parse_manifest({**OTHER, "name": "busy", "title": "Busy"}), "zoe")
    ledger.ask_course(HUB, "busy", "preload", "zoe")
    ask_for_cache(ledger, FOREIGN, scope="nlp", by="zoe")
    ledger.next_cache(HUB)
    ledger.note_cache(FOREIGN, state="failed", message="bert raised ValueError.")
    seed_caches(ledger)
    return Lines(int(drain), int(lines[0]), int(boost))


def ask_for_cache(ledger: Any, cache_id: str = "", **said: Any) -> Any:
    """Somebody asks for a warm cache, of the id that is named."""
    name = SimpleNamespace(
        uuid4=lambda: SimpleNamespace(hex=cache_id or f"{time.time_ns():x}"[-12:])
    )
    asked = {
        "by": "ida",
        "scope": "",
        "image": "lab/base:1",
        "pool": "teaching",
        "gpus": 1,
        "suite": read_suite(SUITE).as_json(),
        "suite_digest": digest(SUITE),
        "archive": pack(SUITE),
    }
    with patch("pytorch_spawner.ledger.caches.uuid", name):
        return ledger.request_cache(HUB, **{**asked, **said})


def seed_caches(ledger: Any) -> None:
    """One that starts are given, one that failed, one that waits."""
    ask_for_cache(ledger, CURRENT)
    ledger.next_cache(HUB)
    targets = (Target("gpt", 8, 41.04, 3.21, 4, 0), Target("gpt", 16, None, 3.4, 4, 0))
    facts = {"torch": "2.13.0", "triton": "3.7", "size_bytes": 12_345_678, "files": 99}
    ledger.note_cache(CURRENT, key=CACHE_KEY, targets=targets, volume="v", digest="d" * 64, **facts)
    ledger.note_cache(CURRENT, state="published", log="compiled <b>gpt</b>\n")
    ledger.promote_cache(HUB, CURRENT, "ida")
    ask_for_cache(ledger, FAILED, scope="cv")
    ledger.next_cache(HUB)
    ledger.note_cache(
        FAILED, state="failed", message="gpt at size 8 raised ValueError.", log="oh\n"
    )
    ask_for_cache(ledger, QUEUED, scope="cv")


# Two courses: the instructor looks after the first, somebody else after the other.
OLD, NEW = "4f1c2a7d" * 5, "b7e09931" * 5
COURSE: dict[str, Any] = {
    "name": "cv",
    "title": "Computer vision",
    "source": {"git": "https://forge.example/cv.git", "branch": "main"},
    "members": {"users": ["ana", "eve"], "groups": ["vision"], "staff": ["ida"]},
}
OTHER: dict[str, Any] = {
    "name": "nlp",
    "title": "Language",
    "source": {"directory": "/srv/courses/nlp"},
    "members": {"users": ["bo"], "staff": ["zoe"]},
}


CALENDAR = """BEGIN:VCALENDAR
VERSION:2.0
PRODID:-//university//timetable//EN
BEGIN:VEVENT
UID:1
DTSTAMP:20250101T000000Z
DTSTART:{day}T090000Z
DTEND:{day}T110000Z
SUMMARY:Laboratory
END:VEVENT
END:VCALENDAR
""".format(day=time.strftime("%Y%m%d", time.gmtime(time.time() + 7 * 86_400)))


def seed_courses(ledger: Any) -> None:
    """One course that is published, with something newer; and one that was never preloaded."""
    for said in (COURSE, OTHER):
        ledger.save_course(HUB, parse_manifest(said), said["members"]["staff"][0])
    preload(ledger, OLD)
    ledger.publish_course(HUB, "cv", (OLD, f"served{OLD}"[:40]), "ida")
    report(ledger, "ana", OLD)
    preload(ledger, NEW)


def preload(ledger: Any, commit: str, *, course: str = "cv", **states: str) -> None:
    """A preload that ended; ``states`` are those of its steps where they are not "done"."""
    steps = [
        Step(name, states.get(name, "done"), f"{name.title()} is done.", 1.5 + place)
        for place, name in enumerate(STEPS)
    ]
    assert ledger.ask_course(HUB, course, "preload", "ida")
    others = [one.name for one in ledger.courses(HUB) if one.name != course]
    begun = ledger.next_course_task(HUB, others)
    ledger.note_course(
        HUB,
        course,
        asked_at=begun.asked_at,
        steps=steps,
        preloaded_at=ledger.now(),
        candidate=(commit, f"served{commit}"[:40], "Week 3: attention"),
        is_over=True,
    )


def report(ledger: Any, user: str, commit: str, *, course: str = "cv", **more: Any) -> None:
    """What somebody's container says once its copy is at a publication."""
    said = {"phase": "done", "course": course, "commit": commit, "level": "ok", "message": "Done."}
    said |= {"served": f"served{commit}"[:40], "kept": [], "conflicts": {}, **more}
    ledger.note_student(HUB, course, user, said)


class Prepared:
    """A seeded ledger's file, and what is known of it."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "seeded.sqlite"
        ledger = Ledger.open(f"sqlite:///{self._file}")
        self.lines = seed(ledger)
        ledger.close()
        # All of it into the one file that is copied.
        with sqlite3.connect(self._file) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()

    def copy(self, folder: Path) -> Ledger:
        """Open a copy of it."""
        shutil.copy(self._file, folder / "ledger.sqlite")
        return Ledger.open(f"sqlite:///{folder / 'ledger.sqlite'}")

    def restore(self, ledger: Ledger, folder: Path) -> None:
        """Make a copy what it was; the ledger opens it again by itself."""
        ledger.close()
        for left in folder.glob("ledger.sqlite*"):
            left.unlink()
        shutil.copy(self._file, folder / "ledger.sqlite")


def contents(folder: Path) -> dict[str, list[Any]]:
    """All rows of a ledger's file by table, but for its clock, which every line moves on."""
    with sqlite3.connect(folder / "ledger.sqlite") as connection:
        names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        rows = {
            name: sorted(map(repr, connection.execute(f"SELECT * FROM {name}").fetchall()))
            for (name,) in names.fetchall()
        }
        rows["counters"] = sorted(
            map(repr, connection.execute("SELECT * FROM counters WHERE name != 'clock'"))
        )
    connection.close()
    return rows


class _Server(RequestHandler):
    """The hub's way to stop a server."""

    def initialize(self, stopped: list[str]) -> None:
        self.stopped = stopped

    def check_xsrf_cookie(self) -> None:
        return

    def delete(self, username: str, servername: str = "") -> None:
        if self.request.headers.get("Authorization") != "token service":
            self.set_status(403)
            return
        if not username.isidentifier():
            self.set_status(404)
            self.finish(json.dumps({"status": 404}))
            return
        self.stopped.append(f"{username}/{servername}")
        self.set_status(204)


class _Stopped(RequestHandler):
    """What the hub says of somebody whose servers are all stopped."""

    def get(self, username: str) -> None:
        self.finish({"name": username, "servers": {}})


def stops_servers(app: Any) -> list[str]:
    """Let the fake hub stop servers; returns the list of those it was told to."""
    stopped: list[str] = []
    shared = {"stopped": stopped}
    app.add_handlers(
        r".*",
        [
            (r"/hub/api/users/([^/]+)/server", _Server, shared),
            (r"/hub/api/users/([^/]+)/servers/([^/]+)", _Server, shared),
            (r"/hub/api/users/([^/]+)", _Stopped),
        ],
    )
    return stopped


# Whose token it is, and what the hub says of it.
ROLES = {
    "anonymous": "",
    "student": "ana-page",
    "other student": "bo-page",
    "instructor": "instructor",
    "viewer": "viewer",
    "admin": "admin",
    "JupyterHub admin": "hub-admin",
    "JupyterHub admin's narrow token": "narrow",
    "service": "service-admin",
    "student's own server": "ana-server",
}


def add_roles(hub: FakeHub) -> None:
    """Make the fake hub know the roles' tokens."""
    hub.add("ana-page", "ana", ENTER)
    hub.add("bo-page", "bo", ENTER)
    hub.add("ana-server", "ana", server_scope("ana"), "users:activity!user=ana")
    hub.add("instructor", "ida", ENTER, "custom:lab:instruct")
    hub.add("viewer", "vic", ENTER, "custom:lab:view")
    hub.add("admin", "adam", ENTER, "custom:lab:admin")
    # What JupyterHub 6.1's own role "admin" expands to, as far as it matters here.
    hub.add("hub-admin", "root", ENTER, "admin-ui", "access:servers", "admin:users")
    hub.add("narrow", "root", ENTER)
    for token in ("hub-admin", "narrow"):
        hub.models[token]["admin"] = True
    hub.add("service-admin", "cron", ENTER, "custom:lab:admin", kind="service")
