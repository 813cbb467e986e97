"""Where a person stands, out of the real ledger: hours of the grant, classes of their own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from lab_fakes import HUB
from lab_seed import COURSE, OTHER, Prepared

from pytorch_spawner.core.course_text import parse_manifest
from pytorch_spawner.lab.standing import KnownCourses, read_standing

TOMORROW = int(time.time()) + 24 * 3600


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Any]:
    """Grants with 20 h a week; "cv" meets tomorrow, "nlp" an hour from now."""
    folder = tmp_path / "seeded"
    folder.mkdir()
    ledger = Prepared(folder).copy(tmp_path)
    ledger.edit_grants(
        HUB, "root", lambda known: [replace(one, weekly_gpu_hours=20.0) for one in known]
    )
    for said, at in ((COURSE, TOMORROW), (OTHER, TOMORROW - 23 * 3600)):
        begins = datetime.fromtimestamp(at, timezone.utc)
        session = {"start": begins.isoformat(), "end": (begins + timedelta(hours=2)).isoformat()}
        manifest = parse_manifest({**said, "timetable": {"sessions": [session]}})
        ledger.save_course(HUB, manifest, "ida", lambda course: None)
    yield ledger
    ledger.close()


def standing(ledger: Any, username: str, servername: str = "") -> dict[str, Any]:
    start = ledger.latest_start(HUB, username, servername)
    return read_standing(ledger, HUB, start, KnownCourses())


def test_a_slot_counts_as_its_part_of_the_grants_hours(ledger: Any) -> None:
    week = standing(ledger, "bo")["week"]
    assert (week["limit_h"], week["rate"]) == (20.0, 0.25)
    assert 0.0 <= week["used_h"] < 0.1
    assert week["at"] < week["ends_at"] <= week["at"] + 7 * 86_400


def test_who_holds_nothing_has_no_hours_but_a_next_class(ledger: Any) -> None:
    said = standing(ledger, "ana", "thesis")
    assert said["week"] is None
    assert said["next_class"] == {
        "course": "cv", "title": "Computer vision",
        "starts_at": float(TOMORROW), "ends_at": float(TOMORROW + 7200),
    }  # fmt: skip


def test_somebody_elses_course_is_not_told(ledger: Any) -> None:
    assert standing(ledger, "ana")["next_class"]["course"] == "cv"
    assert standing(ledger, "bo")["next_class"]["course"] == "nlp"
    assert standing(ledger, "cyd")["next_class"] is None


def test_a_server_that_ended_stands_nowhere(ledger: Any) -> None:
    start = ledger.latest_start(HUB, "bo", "")
    ledger.end_start(start.id, "stopped")
    assert standing(ledger, "bo") == {"week": None, "next_class": None}


def test_the_courses_are_read_again_when_one_changed_and_only_then(ledger: Any) -> None:
    courses, read = KnownCourses(), ledger.courses
    reads = []
    ledger.courses = lambda hub: reads.append(hub) or read(hub)
    start = ledger.latest_start(HUB, "ana", "thesis")
    for _ in range(20):
        assert read_standing(ledger, HUB, start, courses)["next_class"]["course"] == "cv"
    assert len(reads) == 1
    ledger.begin_start(HUB, "bo", "new", {"image": "lab/base:1"})
    read_standing(ledger, HUB, start, courses)
    assert len(reads) == 1, "a start changes no manifest"
    ledger.remove_course(HUB, "cv", "ida", lambda course: None)
    assert read_standing(ledger, HUB, start, courses)["next_class"] is None
    assert len(reads) == 2


def test_who_comes_while_the_courses_are_read_waits_for_them_and_reads_none(ledger: Any) -> None:
    courses, read = KnownCourses(), ledger.courses
    reads = []

    def slow(hub: str) -> Any:
        reads.append(hub)
        time.sleep(0.2)
        return read(hub)

    ledger.courses = slow
    with ThreadPoolExecutor(8) as viewers:
        answers = list(viewers.map(lambda _: courses.read(ledger, HUB), range(8)))
    assert all([one.name for one in answer] == ["busy", "cv", "nlp"] for answer in answers)
    assert len(reads) == 1
