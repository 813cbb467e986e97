from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pytorch_spawner.core.course_files import Entry
from pytorch_spawner.core.course_text import parse_manifest
from pytorch_spawner.core.course_words import verdict
from pytorch_spawner.core.courses import STEPS, Course, Step
from pytorch_spawner.core.journal import Event
from pytorch_spawner.lab import smoke, warmup
from pytorch_spawner.lab.course_progress import GivenUp, Progress, StepFailed
from pytorch_spawner.lab.preloader import Preloader
from pytorch_spawner.lab.settings import LabSettings
from pytorch_spawner.lab.smoke import GoOn, Smoked
from pytorch_spawner.ledger.store import Ledger
from tests.clocked import Clock, ledger_at


class Written:
    def __init__(self) -> None:
        self.last: dict[str, Step] = {}
        self.times = 0

    async def __call__(self, steps: tuple[Step, ...]) -> None:
        self.last = {one.name: one for one in steps}
        self.times += 1


async def test_a_step_that_ends_is_done_and_has_its_seconds():
    written = Written()
    progress = Progress(written, is_served=False)
    async with progress.step("fetch"):
        assert written.last["fetch"].state == "running"
        await progress.set("fetch", message="4f1c2a First lesson")
    fetch = written.last["fetch"]
    assert (fetch.state, fetch.message) == ("done", "4f1c2a First lesson")
    assert fetch.seconds is not None
    assert {written.last[name].state for name in STEPS[1:]} == {"waiting"}


async def test_a_step_may_end_with_a_warning():
    written = Written()
    async with Progress(written, is_served=False).step("check"):
        pass
    progress = Progress(written, is_served=False)
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
    progress = Progress(written, is_served=False)
    with pytest.raises(StepFailed):
        async with progress.step("smoke"):
            raise error
    await progress.skip_rest("A step before it failed.")
    step = written.last["smoke"]
    assert step.state == "failed"
    assert says in step.message
    assert step.seconds is not None
    assert step.notes == getattr(error, "notes", ())
    assert written.last["warm"].state == "skipped"


@pytest.mark.parametrize(
    ("name", "is_served", "state"),
    [
        ("image", False, "failed"),
        ("smoke", False, "failed"),
        ("warm", False, "warned"),
        ("smoke", True, "warned"),
    ],
    ids=[
        "no server was tried",
        "no notebook was tried",
        "it works without a warm cache",
        "students have it already",
    ],
)
async def test_a_step_that_is_given_up_for_the_class_says_so(
    name: str, state: str, *, is_served: bool
) -> None:
    written = Written()
    progress = Progress(written, is_served=is_served)
    with pytest.raises(GivenUp):
        async with progress.step(name):
            raise GivenUp("Given up at 08:45.", notes=("a.ipynb: ok, 4.2 s. ",))
    step = written.last[name]
    assert (step.state, step.message) == (state, "Given up at 08:45.")
    assert (step.notes, step.is_given_up) == (("a.ipynb: ok, 4.2 s. ",), True)
    assert step.seconds is not None


@pytest.mark.parametrize(
    ("error", "is_given_up"),
    [(StepFailed("Somebody stopped it."), False), (GivenUp("Given up at 08:45."), True)],
    ids=["somebody stops it", "the class begins"],
)
async def test_a_step_whose_turn_never_came_did_not_go_well(
    error: StepFailed, *, is_given_up: bool
) -> None:
    written = Written()
    progress = Progress(written, is_served=False)
    with pytest.raises(type(error)):
        async with progress.before("image"):
            raise error
    image = written.last["image"]
    assert (image.state, image.message) == ("failed", str(error))
    assert image.is_given_up is is_given_up


async def test_a_wait_that_ends_well_leaves_the_step_to_begin() -> None:
    written = Written()
    progress = Progress(written, is_served=False)
    async with progress.before("image"):
        pass
    async with progress.step("image"):
        assert written.last["image"].state == "running"
    assert written.last["image"].state == "done"


# -- the class begins while a preload is under way ------------------------------------------------

# 2026-11-24 09:00 UTC.
CLASS = 1795510800.0
GIVEN_UP = "Given up at 08:45: the class begins at 09:00 UTC"


@pytest.fixture
def clock() -> Clock:
    return Clock(CLASS - 3600)


@pytest.fixture
def kept(tmp_path: Path, clock: Clock) -> Iterator[Ledger]:
    with ledger_at(tmp_path, clock) as opened:
        yield opened


def taught(ledger: Ledger, *, is_served: bool = True, **more: Any) -> Course:
    """A course that meets at nine, with a preload that was just asked for."""
    said = {
        "name": "cv",
        "title": "CV",
        "source": {"git": "https://forge.example/cv.git"},
        "timetable": {"sessions": [{"start": "2026-11-24T09:00", "end": "2026-11-24T10:30"}]},
        "warmup": {"targets": [{"name": "a", "script": "a.py"}]},
        **more,
    }
    ledger.save_course("lab", parse_manifest(said), "bo")
    if is_served:
        ledger.publish_course("lab", "cv", ("a" * 40, "b" * 40), "bo")
    ledger.ask_course("lab", "cv", "preload", "the timetable")
    taken = ledger.next_course_task("lab")
    assert taken is not None
    return taken


class FakeMirror:
    """Of a course with one script."""

    def entries(self, _path: str) -> list[Entry]:
        return [Entry("a.py", "100644", "file", 5, "0" * 40)]

    def read(self, _entry: Entry, _most: int) -> bytes:
        return b"a = 1"


class FakeSmoke:
    """A smoke test that lasts until the clock says otherwise."""

    def __init__(self, clock: Clock, until: float) -> None:
        self._clock, self._until, self.has_stopped = clock, until, False

    async def run(self, course: Course, progress: Progress, go_on: GoOn) -> Smoked:
        try:
            async with progress.step("smoke"):
                while self._clock.time < self._until:
                    self._clock.time += 60
                    await go_on(course)
        finally:
            self.has_stopped = True
        return Smoked(image="lab:1", gpus=1)


@pytest.fixture
def preloader(kept: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Preloader:
    settings = LabSettings("lab", "", "http://127.0.0.1:1", "t", course_dir=str(tmp_path / "c"))
    made = Preloader(settings, kept)
    monkeypatch.setattr(warmup, "_LOOK_S", 0.01)
    monkeypatch.setattr(made._volumes, "mirror", lambda _name: FakeMirror())

    async def fetch(_course: Course, _mirror: Any, progress: Progress) -> None:
        async with progress.step("fetch"):
            pass

    async def check(_course: Course, _mirror: Any, _fetched: Any, progress: Progress) -> None:
        async with progress.step("check"):
            pass

    monkeypatch.setattr(made, "_fetch", fetch)
    monkeypatch.setattr(made, "_check", check)
    return made


def steps_of(ledger: Ledger) -> dict[str, Step]:
    course = ledger.course("lab", "cv")
    assert course is not None
    return {one.name: one for one in course.steps}


@pytest.mark.parametrize("is_served", [True, False], ids=["students have it", "nobody has it"])
async def test_a_smoke_test_that_lasts_until_the_class_ends_before_it_and_says_why(
    preloader: Preloader,
    kept: Ledger,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    *,
    is_served: bool,
) -> None:
    trial = FakeSmoke(clock, until=CLASS + 3600)
    monkeypatch.setattr(preloader, "_smoke", trial)
    await preloader._do(taught(kept, is_served=is_served))
    assert CLASS - 900 <= clock.time <= CLASS - 840
    assert trial.has_stopped
    steps = steps_of(kept)
    assert steps["smoke"].state == ("warned" if is_served else "failed")
    assert steps["smoke"].message.startswith(GIVEN_UP)
    assert (steps["warm"].state, steps["warm"].message) == (
        "skipped",
        "There was no time left before the class.",
    )
    course = kept.course("lab", "cv")
    assert course is not None
    served = "b" * 40 if is_served else ""
    assert (course.task, course.is_running, course.served) == ("", False, served)
    assert verdict(course)[0] == ("warn" if is_served else "bad")


@pytest.mark.parametrize("is_building", [False, True], ids=["it waits", "it is under way"])
async def test_a_warm_cache_that_is_not_done_by_the_class_is_stopped_and_the_course_is_ready(
    preloader: Preloader,
    kept: Ledger,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    *,
    is_building: bool,
) -> None:
    monkeypatch.setattr(preloader, "_smoke", FakeSmoke(clock, until=CLASS - 1800))
    doing = asyncio.create_task(preloader._do(taught(kept)))
    while not kept.caches("lab"):
        assert not doing.done(), steps_of(kept)
        await asyncio.sleep(0.01)
    (build,) = kept.caches("lab")
    if is_building:
        taken = kept.next_cache("lab")
        assert taken is not None
    await asyncio.sleep(0.05)
    assert not doing.done()
    clock.time = CLASS - 900
    await asyncio.wait_for(doing, 10)
    steps = steps_of(kept)
    assert steps["smoke"].state == "done"
    assert steps["warm"].state == "warned"
    assert steps["warm"].message.startswith(GIVEN_UP)
    # The warmer ends its server, and with it the lease, as soon as it sees this.
    assert kept.is_cache_stopped(build.id)
    course = kept.course("lab", "cv")
    assert course is not None
    assert verdict(course)[0] == "ok"


@pytest.mark.parametrize(
    ("is_served", "state", "tone"),
    [(True, "warned", "warn"), (False, "failed", "bad")],
    ids=["students have it", "nobody has it"],
)
async def test_a_course_whose_turn_does_not_come_before_its_class_says_so(
    preloader: Preloader,
    kept: Ledger,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    state: str,
    tone: str,
    *,
    is_served: bool,
) -> None:
    monkeypatch.setattr(smoke, "_LOOK_S", 0.01)
    # Another course is being tried.
    await preloader._smoke._turn.acquire()
    doing = asyncio.create_task(preloader._do(taught(kept, is_served=is_served)))
    while not steps_of(kept).get("image", Step("image")).message:
        assert not doing.done()
        await asyncio.sleep(0.01)
    assert kept.smoke_course("lab") is None, "no server is started for it"
    clock.time = CLASS - 900
    await asyncio.wait_for(doing, 10)
    image = steps_of(kept)["image"]
    assert (image.state, image.is_given_up) == (state, True)
    assert image.message.startswith(GIVEN_UP)
    course = kept.course("lab", "cv")
    assert course is not None
    assert verdict(course)[0] == tone


async def test_what_is_asked_for_in_the_last_minutes_goes_on_into_the_class(
    preloader: Preloader, kept: Ledger, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock.time = CLASS - 600
    trial = FakeSmoke(clock, until=CLASS + 600)
    monkeypatch.setattr(preloader, "_smoke", trial)
    await preloader._do(taught(kept, warmup=None))
    assert clock.time == CLASS + 600
    assert steps_of(kept)["smoke"].state == "done"


async def test_a_preload_that_a_restart_of_the_service_brings_too_late_is_given_up_at_once(
    preloader: Preloader, kept: Ledger, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    course = taught(kept)
    clock.time = CLASS - 300
    trial = FakeSmoke(clock, until=CLASS + 600)
    monkeypatch.setattr(preloader, "_smoke", trial)
    await preloader._do(course)
    assert clock.time <= CLASS - 240
    assert steps_of(kept)["smoke"].message.startswith(GIVEN_UP)


async def test_somebody_who_stops_it_is_said_before_the_class_is(
    preloader: Preloader, kept: Ledger, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    course = taught(kept)
    kept.stop_course("lab", "cv", "bo")
    monkeypatch.setattr(preloader, "_smoke", FakeSmoke(clock, until=CLASS))
    await preloader._do(course)
    assert steps_of(kept)["smoke"].message == "Somebody stopped it."


# -- the timetable asks ---------------------------------------------------------------------------


def waits(ledger: Ledger) -> str:
    """What is asked for."""
    course = ledger.course("lab", "cv")
    assert course is not None
    return course.task


@pytest.fixture
def meets(kept: Ledger) -> Ledger:
    """A published course that meets at nine and at half past ten; nobody asked for anything."""
    sessions = [
        {"start": "2026-11-24T09:00", "end": "2026-11-24T10:00"},
        {"start": "2026-11-24T10:30", "end": "2026-11-24T11:30"},
    ]
    taught(kept, timetable={"sessions": sessions})
    kept.note_course("lab", "cv", is_over=True)
    return kept


@pytest.mark.parametrize("has_begun", [False, True], ids=["it waits", "it is under way"])
async def test_what_the_timetable_asked_for_stays_stopped_until_that_class_has_begun(
    preloader: Preloader, meets: Ledger, clock: Clock, *, has_begun: bool
) -> None:
    preloader._look_at_timetables()
    assert waits(meets) == "preload"
    clock.time += 60
    if has_begun:
        begun = meets.next_course_task("lab")
        assert begun is not None
    assert meets.stop_course("lab", "cv", "bo")
    if has_begun:
        await preloader._do(begun)
    assert waits(meets) == ""
    for at in range(int(clock.time), int(CLASS + 1800), 60):
        clock.time = at
        preloader._look_at_timetables()
        assert waits(meets) == "", clock.time - CLASS
    clock.time = CLASS + 1860
    preloader._look_at_timetables()
    assert waits(meets) == "preload", "the next class is another one"


def test_what_is_asked_for_by_hand_after_a_stop_is_done(
    preloader: Preloader, meets: Ledger, clock: Clock
) -> None:
    preloader._look_at_timetables()
    meets.stop_course("lab", "cv", "bo")
    assert meets.ask_course("lab", "cv", "preload", "bo")
    course = meets.next_course_task("lab")
    assert course is not None
    assert (course.task_by, course.stopped_at) == ("bo", None)


def test_a_publication_that_is_stopped_keeps_no_timetable_from_asking(
    preloader: Preloader, meets: Ledger, clock: Clock
) -> None:
    meets.note_course("lab", "cv", candidate=("c" * 40, "d" * 40, "Week 2"))
    assert meets.ask_course("lab", "cv", "publish", "bo")
    assert meets.stop_course("lab", "cv", "bo")
    preloader._look_at_timetables()
    assert waits(meets) == "preload"


def test_a_publication_after_a_stop_takes_nothing_of_it_back(
    preloader: Preloader, meets: Ledger, clock: Clock
) -> None:
    meets.note_course("lab", "cv", candidate=("c" * 40, "d" * 40, "Week 2"))
    preloader._look_at_timetables()
    meets.stop_course("lab", "cv", "bo")
    assert meets.ask_course("lab", "cv", "publish", "bo")
    meets.note_course("lab", "cv", is_over=True)
    preloader._look_at_timetables()
    assert waits(meets) == ""


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
