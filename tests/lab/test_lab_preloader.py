from __future__ import annotations

from dataclasses import replace

import pytest

from pytorch_spawner.core.courses import STEPS, Course, Manifest, Step, parse_manifest
from pytorch_spawner.core.journal import Event
from pytorch_spawner.lab.preloader import Progress, is_due_before_class
from pytorch_spawner.lab.smoke import Smoked, StepFailed

# 2026-11-24 09:00 UTC, a Tuesday.
CLASS = 1795510800.0
HOUR = 3600.0


def manifest(**more) -> Manifest:
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
    ("course", "now", "is_due"),
    [
        pytest.param(READY, CLASS - 0.5 * HOUR, True, id="half an hour before"),
        pytest.param(READY, CLASS - HOUR, True, id="an hour before"),
        pytest.param(READY, CLASS - 1.1 * HOUR, False, id="too early"),
        pytest.param(READY, CLASS + HOUR, False, id="while it goes on"),
        pytest.param(READY, CLASS + 7 * 24 * HOUR - 60, True, id="a week later, again"),
        pytest.param(
            replace(READY, preloaded_at=CLASS - HOUR), CLASS - 60, False, id="it was done lately"
        ),
        pytest.param(replace(READY, preloaded_at=None), CLASS - 60, True, id="it never was"),
        pytest.param(replace(READY, served=""), CLASS - 60, False, id="nobody published it"),
        pytest.param(replace(READY, task="publish"), CLASS - 60, False, id="it is at work"),
        pytest.param(
            replace(READY, manifest=manifest(timetable={})), CLASS - 60, False, id="no timetable"
        ),
    ],
)
def test_a_course_is_looked_at_again_before_its_class_meets(course, now, is_due):
    assert is_due_before_class(course, now) == is_due


class Written:
    def __init__(self) -> None:
        self.last: dict[str, Step] = {}
        self.times = 0

    async def __call__(self, steps: tuple[Step, ...]) -> None:
        self.last = {one.name: one for one in steps}
        self.times += 1


async def test_a_step_that_ends_is_done_and_has_its_seconds():
    written = Written()
    progress = Progress(written)
    async with progress.step("fetch"):
        assert written.last["fetch"].state == "running"
        await progress.set("fetch", message="4f1c2a First lesson")
    fetch = written.last["fetch"]
    assert (fetch.state, fetch.message) == ("done", "4f1c2a First lesson")
    assert fetch.seconds is not None
    assert {written.last[name].state for name in STEPS[1:]} == {"waiting"}


async def test_a_step_may_end_with_a_warning():
    written = Written()
    async with Progress(written).step("check"):
        pass
    progress = Progress(written)
    async with progress.step("check"):
        await progress.set("check", state="warned", notes=("a link was left out.",))
    assert written.last["check"].state == "warned"
    assert written.last["check"].notes == ("a link was left out.",)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (StepFailed("The notebook failed.", notes=("a", "b")), "The notebook failed."),
        (OSError(28, "No space left on device"), "No space left"),
    ],
)
async def test_a_step_that_fails_says_why_and_those_after_it_are_skipped(error, says):
    written = Written()
    progress = Progress(written)
    with pytest.raises(StepFailed):
        async with progress.step("smoke"):
            raise error
    await progress.skip_rest("A step before it failed.")
    smoke = written.last["smoke"]
    assert smoke.state == "failed"
    assert says in smoke.message
    assert smoke.seconds is not None
    assert smoke.notes == getattr(error, "notes", ())
    assert written.last["warm"].state == "skipped"


def events(*said: tuple[str, dict]) -> Smoked:
    smoked = Smoked()
    for number, (kind, data) in enumerate(said):
        smoked.take(Event(number, 0.0, kind, data))
    return smoked


IMAGE = ("start", {"stage": "image", "image": "lab:1"})
RUNS = ("start", {"stage": "container"})
SYNCED = ("course", {"phase": "done", "message": "12 files."})


def test_a_smoke_test_is_heard_out_of_the_journal():
    smoked = events(
        ("queue", {"place": 3, "reason": "All in use."}),
        ("start", {"stage": "gpu", "gpus": [{}, {}]}),
        IMAGE,
        RUNS,
        SYNCED,
        ("course", {"phase": "smoke", "notebook": "a.ipynb", "level": "ok", "seconds": 4.21}),
        ("course", {"phase": "smoke-done", "level": "ok"}),
    )
    assert (smoked.image, smoked.gpus, smoked.is_running) == ("lab:1", 2, True)
    assert (smoked.is_done, smoked.failure, smoked.waits) == (True, "", "")
    assert smoked.notes == ["a.ipynb: ok, 4.2 s. "]


@pytest.mark.parametrize(
    ("said", "why"),
    [
        pytest.param(
            [("start", {"stage": "failed", "message": "The image is not here."})],
            "The image is not here.",
            id="the start failed",
        ),
        pytest.param(
            [IMAGE, RUNS, ("start", {"stage": "stopped"})],
            "Its server ended.",
            id="somebody stopped the server",
        ),
        pytest.param(
            [IMAGE, RUNS, ("course", {"phase": "failed", "message": "No.", "admin_remedy": "Do."})],
            "No. Do.",
            id="the notebooks did not arrive",
        ),
        pytest.param(
            [
                SYNCED,
                ("course", {"phase": "smoke", "level": "fail", "message": "ValueError: gone"}),
                ("course", {"phase": "smoke-done", "level": "fail"}),
            ],
            "ValueError: gone",
            id="a notebook failed",
        ),
        pytest.param(
            [("start", {"stage": "course", "message": "Not published yet."})],
            "Not published yet.",
            id="there is nothing to try",
        ),
    ],
)
def test_a_smoke_test_that_fails_says_why(said, why):
    assert events(*said).failure == why
