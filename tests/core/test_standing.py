"""Where a person stands: hours of the week, and the next class, known or not."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from pytorch_spawner.core.course_manifest import Manifest
from pytorch_spawner.core.courses import Course
from pytorch_spawner.core.grants import Grant, next_week
from pytorch_spawner.core.standing import describe_class, describe_week

NOON = datetime(2026, 3, 3, 12, tzinfo=timezone.utc).timestamp()
LIMITED = Grant("cv", "group", "cv", weekly_gpu_hours=20.0)
FREE = Grant("all", "everyone", "")


@dataclass(frozen=True)
class Lease:
    grant: str
    weight: float = 0.25


def test_the_hours_are_those_of_the_grant_the_gpu_was_given_through() -> None:
    said = describe_week(Lease("cv"), [FREE, LIMITED], {"cv": 3.51239, "all": 99.0}, NOON)
    assert said == {
        "used_h": 3.512, "limit_h": 20.0, "rate": 0.25, "at": NOON, "ends_at": next_week(NOON),
    }  # fmt: skip


@pytest.mark.parametrize(
    "lease",
    [None, Lease("all"), Lease("gone"), Lease("")],
    ids=["no lease", "no limit", "the grant was removed", "adopted from labels"],
)
def test_without_a_known_limit_nothing_is_said(lease: Lease | None) -> None:
    assert describe_week(lease, [FREE, LIMITED], {"cv": 3.5}, NOON) is None


def test_who_used_nothing_yet_has_used_none() -> None:
    said = describe_week(Lease("cv"), [LIMITED], {}, NOON)
    assert said is not None
    assert said["used_h"] == 0.0


def course(name: str, in_h: float, **members: Any) -> Course:
    """A course that meets for two hours."""
    begins = datetime.fromtimestamp(NOON + 3600 * in_h, timezone.utc)
    session = {"start": begins, "end": begins + timedelta(hours=2)}
    return Course(
        "hub",
        name,
        Manifest.model_validate(
            {
                "name": name,
                "title": f"Course {name}",
                "source": {"git": "https://git.example/course"},
                "members": members,
                "timetable": {"sessions": (session,)},
            }
        ),
    )


def test_the_next_class_is_the_first_of_ones_own_courses() -> None:
    courses = [
        course("late", 48, users=("ana",)),
        course("soon", 24, groups=("cv",)),
        course("others", 1, users=("bo",)),
        course("over", -5, users=("ana",)),
    ]
    assert describe_class(courses, "ana", ("cv",), NOON) == {
        "course": "soon", "title": "Course soon",
        "starts_at": NOON + 24 * 3600, "ends_at": NOON + 26 * 3600,
    }  # fmt: skip


def test_a_class_that_meets_now_comes_first() -> None:
    courses = [course("next", 1, users=("ana",)), course("now", -1, users=("ana",))]
    said = describe_class(courses, "ana", (), NOON)
    assert said is not None
    assert (said["course"], said["ends_at"]) == ("now", NOON + 3600)


def test_who_belongs_to_no_course_that_meets_again_has_no_next_class() -> None:
    assert describe_class([course("over", -5, users=("ana",))], "ana", (), NOON) is None
    assert describe_class([course("others", 1, users=("bo",))], "ana", (), NOON) is None
    assert describe_class([], "ana", (), NOON) is None
