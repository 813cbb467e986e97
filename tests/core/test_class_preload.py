"""When a course is preloaded for its class, and by when that is given up."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

import pytest

from pytorch_spawner.core.class_preload import CLEAR_S, ends_by, given_up, is_due
from pytorch_spawner.core.course_manifest import Manifest
from pytorch_spawner.core.course_text import parse_manifest
from pytorch_spawner.core.courses import STEPS, Course, Step
from pytorch_spawner.core.tickets import Policy

# 2026-11-24 09:00 UTC, a Tuesday.
CLASS = 1795510800.0
HOUR = 3600.0
SOON = CLASS - 0.5 * HOUR


def manifest(**more: Any) -> Manifest:
    return parse_manifest(
        {
            "name": "cv",
            "title": "CV",
            "source": {"git": "https://forge.example/cv.git"},
            "timetable": {
                "sessions": [
                    {
                        "start": "2026-11-24T09:00",
                        "end": "2026-11-24T10:30",
                        "weekly_until": "2026-12-15",
                    }
                ]
            },
            **more,
        }
    )


READY = Course("lab", "cv", manifest(), served="a" * 40, preloaded_at=CLASS - 24 * HOUR)


@pytest.mark.parametrize(
    ("course", "now", "expected"),
    [
        pytest.param(READY, SOON, True, id="half an hour before"),
        pytest.param(READY, CLASS - HOUR, True, id="an hour before"),
        pytest.param(READY, CLASS - 1.1 * HOUR, False, id="too early"),
        pytest.param(READY, CLASS - 1500, True, id="ten minutes before it would be given up"),
        pytest.param(READY, CLASS - 1499, False, id="later there is no time left for it"),
        pytest.param(READY, CLASS + HOUR, False, id="while it goes on"),
        pytest.param(READY, CLASS + 7 * 24 * HOUR - 0.5 * HOUR, True, id="a week later, again"),
        pytest.param(
            replace(READY, preloaded_at=CLASS - HOUR),
            SOON,
            False,
            id="it was done lately",
        ),
        pytest.param(replace(READY, preloaded_at=None), SOON, True, id="it never was"),
        pytest.param(replace(READY, served=""), SOON, False, id="nobody published it"),
        pytest.param(replace(READY, task="publish"), SOON, False, id="it is at work"),
        pytest.param(
            replace(READY, manifest=manifest(timetable={})),
            SOON,
            False,
            id="no timetable",
        ),
    ],
)
def test_a_course_is_looked_at_again_before_its_class_meets(
    course: Course, now: float, expected: bool
) -> None:
    assert is_due(course, now) == expected


STOPPED = replace(READY, stopped_at=CLASS - 0.9 * HOUR, preloaded_at=CLASS - 0.9 * HOUR)


@pytest.mark.parametrize(
    ("course", "now", "expected"),
    [
        pytest.param(STOPPED, SOON, False, id="it was under way"),
        pytest.param(replace(STOPPED, preloaded_at=None), SOON, False, id="it still waited"),
        pytest.param(
            replace(STOPPED, stopped_at=CLASS - 2.9 * HOUR), SOON, False, id="earlier that morning"
        ),
        pytest.param(
            replace(STOPPED, stopped_at=CLASS - 14 * HOUR), SOON, True, id="the evening before"
        ),
        pytest.param(
            STOPPED, CLASS + 7 * 24 * HOUR - 0.5 * HOUR, True, id="for the class of the week before"
        ),
    ],
)
def test_what_somebody_stopped_is_not_asked_for_again_before_that_class_has_begun(
    course: Course, now: float, *, expected: bool
) -> None:
    assert is_due(course, now) == expected


@pytest.mark.parametrize("has_run", [True, False], ids=["it was under way", "it still waited"])
def test_a_stop_before_one_class_says_nothing_of_the_next_one_on_the_same_day(
    *, has_run: bool
) -> None:
    sessions = [
        {"start": "2026-11-24T09:00", "end": "2026-11-24T09:30"},
        {"start": "2026-11-24T10:30", "end": "2026-11-24T12:00"},
    ]
    both = replace(
        STOPPED,
        manifest=manifest(timetable={"sessions": sessions}),
        preloaded_at=STOPPED.stopped_at if has_run else None,
    )
    assert not is_due(both, SOON)
    assert is_due(both, CLASS + 0.75 * HOUR)


@pytest.mark.parametrize(("step", "expected"), [("smoke", True), ("warm", False)])
def test_what_was_given_up_for_one_class_is_tried_again_for_the_next(
    step: str, *, expected: bool
) -> None:
    sessions = [
        {"start": "2026-11-24T09:00", "end": "2026-11-24T09:30"},
        {"start": "2026-11-24T10:30", "end": "2026-11-24T12:00"},
    ]
    both = replace(
        READY,
        manifest=manifest(timetable={"sessions": sessions}),
        preloaded_at=CLASS - CLEAR_S,
        steps=(Step("fetch", "done"), given_up(Step(step, "running"), is_served=True)),
    )
    assert is_due(both, CLASS + 0.75 * HOUR) == expected
    assert not is_due(both, CLASS - CLEAR_S + 1), "not for the class that it was given up for"


def test_a_stop_holds_though_the_class_is_put_off() -> None:
    later = [{"start": "2026-11-24T10:00", "end": "2026-11-24T11:00"}]
    moved = replace(STOPPED, manifest=manifest(timetable={"sessions": later}))
    assert not is_due(moved, CLASS + 0.25 * HOUR)


def test_while_one_session_goes_on_the_next_one_is_prepared() -> None:
    sessions = [
        {"start": "2026-11-24T09:00", "end": "2026-11-24T12:00"},
        {"start": "2026-11-24T10:30", "end": "2026-11-24T12:00"},
    ]
    both = replace(READY, manifest=manifest(timetable={"sessions": sessions}))
    assert is_due(both, CLASS + 0.75 * HOUR)
    assert not is_due(both, CLASS + 0.25 * HOUR)


@pytest.mark.parametrize(
    ("asked_at", "ends_at"),
    [
        (CLASS - HOUR, CLASS - 900),
        (CLASS - 20 * HOUR, CLASS - 900),
        (CLASS - 901, CLASS - 900),
        (CLASS - 900, None),
        (CLASS - 60, None),
        (CLASS, None),
        (CLASS - 25 * HOUR, None),
    ],
    ids=[
        "by the timetable",
        "by somebody in the evening before",
        "just in time",
        "too late: whoever asks for it means it",
        "in the last minute",
        "as the class begins",
        "no class within a day",
    ],
)
def test_what_is_not_done_in_time_is_given_up_before_seats_are_kept(
    asked_at: float, ends_at: float | None
) -> None:
    end = ends_by(manifest(), asked_at)
    assert (None if end is None else end.at) == ends_at


def test_no_gpu_is_held_any_more_when_the_hub_begins_to_keep_seats() -> None:
    assert CLEAR_S - Policy().class_early_s >= 300


def test_a_class_on_the_cpu_needs_no_gpu_of_its_preload() -> None:
    assert ends_by(manifest(request={"gpus": 0}), CLASS - HOUR) is None
    assert ends_by(manifest(request={"gpus": 2}), CLASS - HOUR) is not None


def test_the_sentence_is_told_on_the_courses_own_clocks() -> None:
    sessions = [{"start": "2026-11-24T10:00", "end": "2026-11-24T11:00"}]
    there = manifest(timetable={"timezone": "Europe/Berlin", "sessions": sessions})
    end = ends_by(there, CLASS - HOUR)
    assert end is not None
    assert datetime.fromtimestamp(end.at, timezone.utc).hour == 8
    assert end.sentence == (
        "Given up at 09:45: the class begins at 10:00 CET, and no GPU is held for a preload by "
        "then. Preload it again after the class, or earlier before the next one."
    )


@pytest.mark.parametrize("name", STEPS)
def test_what_students_have_is_not_broken_by_a_preload_that_was_given_up(name: str) -> None:
    running = Step(name, "running", "Given up at 08:45.", 4.0, ("a.ipynb: ok",))
    ended = given_up(running, is_served=True)
    assert ended == replace(running, state="warned", is_given_up=True)


@pytest.mark.parametrize("name", STEPS)
def test_what_nobody_has_yet_and_nobody_tried_is_not_ready(name: str) -> None:
    ended = given_up(Step(name, "running"), is_served=False)
    assert ended.state == ("warned" if name == "warm" else "failed")
    assert ended.is_given_up
