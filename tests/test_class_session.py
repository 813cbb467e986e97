"""A class meets: the real scheduler and the real queue in the ledger, under a clock of our own."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest

from pytorch_spawner import dispatch
from pytorch_spawner.core.course_text import parse_manifest
from pytorch_spawner.core.gpus import Gpu, GpuUuid, Inventory
from pytorch_spawner.core.grants import Grant, GrantBook
from pytorch_spawner.core.scheduling import schedule
from pytorch_spawner.core.tickets import Decisions, Policy, Wait
from pytorch_spawner.dispatch import Dispatcher, Rules
from pytorch_spawner.errors import NoGpuAvailable
from pytorch_spawner.ledger.store import Ledger, QueueState, Start
from pytorch_spawner.queue_pass import plan_seats, seats_now
from tests.clocked import Clock, ledger_at

HUB = "lab"
# 09:00 in Berlin, a week after summer time has ended.
NINE = datetime(2026, 11, 2, 8, 0, tzinfo=timezone.utc).timestamp()
WEEK_S = 7 * 24 * 3600.0
EIGHT = Inventory(tuple(Gpu(GpuUuid(f"GPU-{n}"), n, f"G{n}", mode="shared:4") for n in range(2)))
# Classes may have all of this lab.
ALL = Policy(class_seats_share=1.0)
T = TypeVar("T")


@pytest.fixture
def clock() -> Clock:
    return Clock(NINE - 3600)


@pytest.fixture
def ledger(tmp_path: Path, clock: Clock) -> Iterator[Ledger]:
    with ledger_at(tmp_path, clock) as opened:
        opened.write_grants(HUB, [Grant("all", share="slot")], "root")
        yield opened


def meet(ledger: Ledger, seats: int | None, weekly_until: str | None = None) -> None:
    """Let the class meet at nine, first in October."""
    when = {"start": "2026-10-19T09:00", "end": "2026-10-19T10:30", "seats": seats}
    manifest = {
        "name": "cv",
        "title": "Computer vision",
        "source": {"git": "https://forge.example.org/cv.git"},
        "members": {"groups": ["cv"]},
        "timetable": {
            "timezone": "Europe/Berlin",
            "sessions": [{**when, "weekly_until": weekly_until or "2026-12-31"}],
        },
    }
    ledger.save_course(HUB, parse_manifest(manifest), "zoe")


def arrive(ledger: Ledger, name: str, course: str = "") -> Start:
    wanted = {"image": "i", "gpus": 1, "share": "any", "course": course}
    start = ledger.begin_start(HUB, name, "", wanted, ("cv",) if course else ())
    ledger.join(start)
    return start


def decide(ledger: Ledger, inventory: Inventory = EIGHT, policy: Policy = ALL) -> Decisions:
    planned = plan_seats(ledger, HUB)

    def schedule_now(state: QueueState) -> Decisions:
        return schedule(
            inventory,
            [lease.as_held() for lease in state.leases],
            state.tickets,
            GrantBook(state.grants),
            state.usage,
            state.now,
            policy,
            seats_now(planned, state),
        )

    return ledger.decide(HUB, schedule_now)[0]


def holders(ledger: Ledger) -> list[str]:
    return sorted(lease.username for lease in ledger.leases(HUB))


def stop(ledger: Ledger, name: str) -> None:
    (lease,) = [one for one in ledger.leases(HUB) if one.username == name]
    ledger.release(HUB, name, "", "stopped")
    assert not ledger.is_in_force(lease.id)


def test_a_class_of_thirty_with_eight_slots(ledger: Ledger, clock: Clock) -> None:
    meet(ledger, 8)
    # An hour before, everything is everybody's: three of the lab's slots are in use.
    for number in range(3):
        arrive(ledger, f"other{number}")
    decide(ledger)
    assert holders(ledger) == ["other0", "other1", "other2"]

    # Ten minutes before, the five that are free are kept.
    clock.time = NINE - 601
    arrive(ledger, "early")
    decide(ledger)
    assert "early" in holders(ledger)
    clock.time = NINE - 600
    late = arrive(ledger, "late")
    said = decide(ledger)
    (wait,) = said.wait
    assert wait.ticket.id == late.id
    assert wait.kept == "4 slots are kept for the class Computer vision until 09:10 CET."
    assert wait.expected_at == NINE + 600
    (told,) = ledger.queue(HUB)
    assert told.reason == f"Nobody is ahead of you; {wait.kept}"

    # The class arrives: 30 students for 8 seats, of which 4 are free.
    clock.time = NINE
    for number in range(30):
        arrive(ledger, f"student{number:02d}", "cv")
    said = decide(ledger)
    assert [give.ticket.username for give in said.give] == [f"student{n:02d}" for n in range(4)]
    waiting = [one.ticket.username for one in ledger.queue(HUB)]
    # The four seats that are not free yet come first, then everybody in order of arrival.
    assert waiting[:6] == ["student04", "student05", "student06", "student07", "late", "student08"]

    # Nobody's lease ends for the class. What somebody gives back is a seat.
    assert {"early", "other0", "other1", "other2"} <= set(holders(ledger))
    stop(ledger, "other1")
    assert [give.ticket.username for give in decide(ledger).give] == ["student04"]

    # Ten minutes after the beginning the order of arrival counts again.
    clock.time = NINE + 600
    stop(ledger, "other0")
    assert [give.ticket.username for give in decide(ledger).give] == ["late"]


def test_the_seats_of_who_does_not_come_are_everybodys_ten_minutes_later(
    ledger: Ledger, clock: Clock
) -> None:
    meet(ledger, 8)
    clock.time = NINE
    arrive(ledger, "student", "cv")
    for number in range(9):
        arrive(ledger, f"other{number}")
    decide(ledger)
    assert holders(ledger) == ["student"]
    clock.time = NINE + 599
    assert decide(ledger).give == ()
    clock.time = NINE + 600
    decide(ledger)
    assert len(holders(ledger)) == 8


def test_a_session_takes_nothing_from_the_next_one_and_ends_with_the_term(
    ledger: Ledger, clock: Clock
) -> None:
    meet(ledger, 8, weekly_until="2026-11-09")
    for week, free in ((0, 0), (1, 0), (2, 8)):
        clock.time = NINE + week * WEEK_S
        names = [f"other{week}-{number}" for number in range(8)]
        for name in names:
            arrive(ledger, name)
        decide(ledger)
        assert len(holders(ledger)) == free
        clock.time += 3600
        decide(ledger)
        assert len(holders(ledger)) == 8
        for name in names:
            stop(ledger, name)


def test_what_classes_may_have_at_most_stays_so_while_they_come(
    ledger: Ledger, clock: Clock
) -> None:
    """Of eight slots half: the class that asks for all gets four, come or not, and no more."""
    half = Policy(class_seats_share=0.5)
    meet(ledger, 8)
    clock.time = NINE - 300
    for number in range(9):
        arrive(ledger, f"other{number}")
    decide(ledger, policy=half)
    assert holders(ledger) == [f"other{number}" for number in range(4)]
    for number in range(6):
        arrive(ledger, f"student{number}", "cv")
        decide(ledger, policy=half)
    assert [name for name in holders(ledger) if "student" in name] == [
        f"student{number}" for number in range(4)
    ]
    # What falls free is not the class's, which has its share: the queue's order counts.
    stop(ledger, "other0")
    assert [one.ticket.username for one in decide(ledger, policy=half).give] == ["other4"]
    stop(ledger, "student0")
    assert [one.ticket.username for one in decide(ledger, policy=half).give] == ["student4"]


def test_who_teaches_takes_no_students_seat_before_the_class_begins(
    ledger: Ledger, clock: Clock
) -> None:
    meet(ledger, 8)
    course = ledger.courses(HUB)[0].manifest
    members = course.members.model_copy(update={"staff": ("zoe",)})
    ledger.save_course(HUB, course.model_copy(update={"members": members}), "zoe")
    clock.time = NINE - 300
    arrive(ledger, "zoe", "cv")
    (wait,) = decide(ledger).wait
    assert wait.kept == "8 slots are kept for the class Computer vision until 09:10 CET."
    for number in range(8):
        arrive(ledger, f"student{number}", "cv")
    decide(ledger)
    assert holders(ledger) == [f"student{number}" for number in range(8)]
    stop(ledger, "student7")
    assert decide(ledger).give == (), "a seat falls free, for a student who may still come"
    clock.time = NINE
    assert [one.ticket.username for one in decide(ledger).give] == ["zoe"]


def test_seats_for_all_students_that_are_known(ledger: Ledger, clock: Clock) -> None:
    meet(ledger, None)
    clock.time = NINE
    for number in range(3):
        done = {"phase": "done", "course": "cv", "level": "ok"}
        ledger.note_student(HUB, "cv", f"student{number}", done)
    for number in range(8):
        arrive(ledger, f"other{number}")
    decide(ledger)
    assert len(holders(ledger)) == 5


def test_a_lab_without_courses_plans_nothing(ledger: Ledger) -> None:
    assert plan_seats(ledger, HUB) == ()
    assert seats_now((), None) == ()  # type: ignore[arg-type]  (nothing of it is looked at)


# -- through the hub's own queue -----------------------------------------------------------------


class FakeLab:
    """A hub process's Lab without an engine."""

    def __init__(self, ledger: Ledger) -> None:
        self.hub, self.client, self._ledger = HUB, None, ledger
        self.planned = 0

    async def call(self, function: Callable[[Ledger], T]) -> T:
        return await asyncio.to_thread(function, self._ledger)

    async def in_lane(self, lane: str, call: Callable[[], T]) -> T:
        return call()


@pytest.fixture
def lab(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> FakeLab:
    monkeypatch.setattr(dispatch, "engine", SimpleNamespace(list_containers=lambda *_: []))
    monkeypatch.setattr(dispatch, "_LOOK_S", 0.05)
    monkeypatch.setattr(dispatch, "_PASS_S", 0.2)
    monkeypatch.setattr(dispatch, "_CLASSES_S", 0.1)
    fake = FakeLab(ledger)
    plan = dispatch.plan_seats

    def count(*known: Any) -> Any:
        fake.planned += 1
        return plan(*known)

    monkeypatch.setattr(dispatch, "plan_seats", count)
    return fake


async def acquire(lab: FakeLab, queue: Dispatcher, start: Start, on_busy: str = "queue") -> Any:
    told: list[Wait] = []

    async def on_wait(wait: Wait) -> None:
        told.append(wait)

    async def inventory() -> Inventory:
        return EIGHT

    rules = Rules(inventory, (Grant("config:all", share="slot", source="config"),), ALL)
    return await queue.acquire(start, on_busy, rules, on_wait)


def begin(ledger: Ledger, name: str, course: str = "") -> Start:
    wanted = {"image": "i", "gpus": 1, "share": "any", "course": course}
    return ledger.begin_start(HUB, name, "", wanted, ("cv",) if course else ())


async def test_the_hub_keeps_seats_by_itself_and_gives_them_back(
    lab: FakeLab, ledger: Ledger, clock: Clock
) -> None:
    queue = Dispatcher(lab)  # type: ignore[arg-type]
    clock.time = NINE - 60
    meet(ledger, 8)
    other = begin(ledger, "other")
    waits = asyncio.create_task(acquire(lab, queue, other))
    # Whatever else is asked meanwhile: nobody but the class is served before ten past nine.
    with pytest.raises(NoGpuAvailable, match="8 slots are kept for the class Computer vision"):
        await acquire(lab, queue, begin(ledger, "hasty"), "fail")
    student = await acquire(lab, queue, begin(ledger, "student", "cv"))
    assert student.lease.username == "student"
    assert not waits.done()
    deadline = asyncio.get_running_loop().time() + 20
    while queue.position(other.id) is None and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(0.02)
    position = queue.position(other.id)
    assert position is not None
    assert "are kept for the class Computer vision until 09:10 CET" in position.reason
    clock.time = NINE + 601
    served = await asyncio.wait_for(waits, 20)
    assert served.lease.username == "other"


async def test_courses_are_not_asked_at_every_pass(
    lab: FakeLab, ledger: Ledger, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "_CLASSES_S", 60.0)
    queue = Dispatcher(lab)  # type: ignore[arg-type]
    for number in range(5):
        await acquire(lab, queue, begin(ledger, f"one{number}"))
    assert lab.planned == 1


async def test_a_course_that_cannot_be_read_keeps_nobody_from_a_gpu(
    lab: FakeLab, ledger: Ledger, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    meet(ledger, 3)
    with sqlite3.connect(ledger._url.removeprefix("sqlite:///")) as database:
        database.execute("UPDATE courses SET manifest = '{}'")
    queue = Dispatcher(lab)  # type: ignore[arg-type]
    assert (await acquire(lab, queue, begin(ledger, "ana"))).lease.username == "ana"
    assert "the manifest of the course cv cannot be read" in caplog.text
