"""Makes courses ready: fetch, check, try it in a fresh student's server, warm up; and publishes.

It knows the order of the steps and writes down how each went. What a source may hold is decided by
``core.course_files``, what a server gets by the spawner, and whether a warm cache is good by
``core.warmcache``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from tornado.httpclient import HTTPClientError

from pytorch_spawner.adapters.git_source import Fetched, Mirror, Served
from pytorch_spawner.core.class_preload import End, ends_by, is_due
from pytorch_spawner.core.course_files import check_tree
from pytorch_spawner.core.course_notebooks import MAX_NOTEBOOK_BYTES, check_notebook
from pytorch_spawner.core.course_notes import Note
from pytorch_spawner.core.courses import BUNDLE, Course, Step
from pytorch_spawner.errors import LabError, SourceUnusable
from pytorch_spawner.lab.accounts import reason
from pytorch_spawner.lab.course_progress import MAX_NOTES, GivenUp, Progress, StepFailed
from pytorch_spawner.lab.course_volumes import CourseVolumes
from pytorch_spawner.lab.settings import LabSettings
from pytorch_spawner.lab.smoke import Smoked, SmokeTest
from pytorch_spawner.lab.warmup import warm_up
from pytorch_spawner.ledger.store import Ledger

log = logging.getLogger("pytorch_spawner.preloader")

_LOOK_S: Final = 1.0
# Fetches wait for other machines; more at once would only compete for this one's disk.
_AT_ONCE: Final = 4
_TIMETABLE_LOOK_S: Final = 60.0
# So often what students get is looked after though nobody changed anything.
_SWEEP_S: Final = 30.0


class Preloader:
    """One in each service process; ``run`` never ends."""

    def __init__(self, settings: LabSettings, ledger: Ledger) -> None:
        self._ledger = ledger
        self._hub = settings.hub_id
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._smoke = SmokeTest(settings, ledger)
        self._volumes = CourseVolumes(settings, ledger)
        # By when each preload under way has to be over, by the course's name.
        self._ends: dict[str, End] = {}
        self._seen = -1
        # Tasks whose end could not be written down yet: course -> when it was asked for.
        self._over: dict[str, float] = {}
        self._timetable_seen = self._swept = -1e9

    async def run(self) -> None:
        """Do what is asked for, for ever; what another process left half done begins again."""
        is_first = True
        while True:
            try:
                if is_first:
                    await self._smoke.end_left_over()
                    await self._call(lambda ledger: ledger.requeue_courses(self._hub))
                    is_first = False
                await self._look()
            except (LabError, HTTPClientError, OSError) as error:
                log.warning("courses are not looked after at the moment: %s", error)
            except Exception:  # a background loop: one odd answer must not end it for good
                log.exception("looking after courses fell over")
            await asyncio.sleep(_LOOK_S)

    async def _look(self) -> None:
        for name, asked_at in list(self._over.items()):
            await self._end(name, asked_at)
        while len(self._tasks) < _AT_ONCE:
            # Of a course that was removed and added again, the first one's task may be ending yet.
            course = await self._call(
                lambda ledger: ledger.next_course_task(self._hub, tuple(self._tasks))
            )
            if course is None:
                break
            task = asyncio.create_task(self._do(course), name=f"course-{course.name}")
            self._tasks[course.name] = task
            task.add_done_callback(partial(self._forget, course.name))
        version = await self._call(lambda ledger: ledger.version(self._hub))
        is_time = time.monotonic() - self._swept > _SWEEP_S
        if version != self._seen or is_time:
            self._swept = time.monotonic() if is_time else self._swept
            await self._volumes.bring_all(self._tasks.__contains__)
            self._seen = version
        if time.monotonic() - self._timetable_seen > _TIMETABLE_LOOK_S:
            self._timetable_seen = time.monotonic()
            await asyncio.to_thread(self._look_at_timetables)

    def _look_at_timetables(self) -> None:
        """Ask for a preload of what meets within the hour; blocking."""
        now = self._ledger.now()
        for course in self._ledger.courses(self._hub):
            if is_due(course, now):
                self._ledger.ask_course(self._hub, course.name, "preload", "the timetable")

    def _forget(self, name: str, _task: asyncio.Task[None]) -> None:
        self._tasks.pop(name, None)

    async def _do(self, course: Course) -> None:
        try:
            if course.task == "publish":
                await self._publish(course, course.candidate, course.candidate_served)
            else:
                await self._preload(course)
        except asyncio.CancelledError:
            raise  # the service ends; the next one begins it again
        except Exception as error:
            if not isinstance(error, (LabError, HTTPClientError, OSError)):
                log.exception("the %s of the course %s fell over", course.task, course.name)
            await self._tell_failure(course, reason(error))
        await self._end(course.name, course.asked_at)

    async def _tell_failure(self, course: Course, why: str) -> None:
        """Into the log of changes, which the course's page shows."""
        log.warning("the %s of the course %s failed: %s", course.task, course.name, why)
        said = {"is": f"{course.task} failed", "title": course.manifest.title, "message": why}
        with contextlib.suppress(LabError):
            await self._call(
                lambda ledger: ledger.note(self._hub, course.task_by, "course", course.name, said)
            )

    async def _end(self, name: str, asked_at: float) -> None:
        self._over[name] = asked_at
        await self._call(
            lambda ledger: ledger.note_course(self._hub, name, asked_at=asked_at, is_over=True)
        )
        self._over.pop(name, None)

    async def _note(self, course: Course, **facts: Any) -> None:
        """Write down how far a course is, unless it is another's by now."""
        await self._call(
            lambda ledger: ledger.note_course(
                self._hub, course.name, asked_at=course.asked_at, **facts
            )
        )

    def _is_stopped(self, course: Course) -> bool:
        return self._ledger.is_course_stopped(self._hub, course.name, course.asked_at)

    # -- a preload --------------------------------------------------------------------------------

    async def _preload(self, course: Course) -> None:
        name = course.name
        log.info("preloading the course %s", name)
        self._ends.pop(name, None)
        if (end := ends_by(course.manifest, course.asked_at or self._ledger.now())) is not None:
            self._ends[name] = end

        async def note(steps: tuple[Step, ...]) -> None:
            await self._note(course, steps=steps)

        progress = Progress(note, is_served=bool(course.served))
        try:
            mirror = self._volumes.mirror(name)
            fetched = await self._fetch(course, mirror, progress)
            served = await self._check(course, mirror, fetched, progress)
            smoked = await self._smoke.run(course, progress, self._go_on)
            if not course.served:
                # The first one: nobody has anything yet that it could take by surprise. Before the
                # warm cache, without which a course works as well.
                await self._publish(course, fetched.commit, served.served)
            await self._warm(course, mirror, smoked, progress)
        except GivenUp as error:
            await progress.skip_rest("There was no time left before the class.")
            log.info("the preload of the course %s was given up: %s", name, error)
        except StepFailed as error:
            await progress.skip_rest("A step before it failed.")
            log.info("the preload of the course %s ended: %s", name, error)
        except LabError:
            await progress.skip_rest("It could not be published.")
            raise
        await self._note(course, preloaded_at=self._ledger.now())

    async def _fetch(self, course: Course, mirror: Mirror, progress: Progress) -> Fetched:
        async with progress.step("fetch"):
            fetched = await asyncio.to_thread(
                mirror.fetch,
                course.manifest.source,
                is_stopped=lambda: self._is_stopped(course),
            )
            await progress.set("fetch", message=f"{fetched.commit[:8]} {fetched.says}"[:200])
        return fetched

    async def _check(
        self, course: Course, mirror: Mirror, fetched: Fetched, progress: Progress
    ) -> Served:
        async with progress.step("check"):
            served, notes = await asyncio.to_thread(self._serve, course, mirror, fetched)
            await self._volumes.fill_next(course.name, served, fetched.commit)
            candidate = (fetched.commit, served.served, fetched.says)
            await self._note(course, candidate=candidate)
            await progress.set(
                "check",
                state="warned" if notes else "done",
                message=f"{served.files} files, {served.size_bytes / 2**20:.1f} MiB.",
                notes=_sentences(notes),
            )
        return served

    def _serve(
        self, course: Course, mirror: Mirror, fetched: Fetched
    ) -> tuple[Served, tuple[Note, ...]]:
        """Check what was fetched and make a publication of it; blocking.

        Raises:
            StepFailed: Something in it must not reach students.
        """
        entries = mirror.entries(course.manifest.source.path)
        checked = check_tree(entries, mirror.limits)
        notes = [*checked.notes, *_missing(course, {one.path for one in checked.kept})]
        for entry in checked.kept:
            if entry.path.endswith(".ipynb"):
                notes += check_notebook(entry.path, mirror.read(entry, MAX_NOTEBOOK_BYTES + 1))
        faults = [one for one in notes if one.level == "fail"]
        if faults:
            more = f" {len(faults) - 1} more like this." if len(faults) > 1 else ""
            raise StepFailed(
                f"{faults[0].message}{more}", notes=_sentences((*faults, *_warnings(notes)))
            )
        says = fetched.says or fetched.commit
        try:
            served = mirror.serve(checked.kept, course.served, says)
        except SourceUnusable as error:
            if error.cause != "history-missing":
                raise
            # The service's directory was lost; what students have is still on the engine.
            with tempfile.TemporaryDirectory() as folder:
                self._volumes.adopt(course.name, mirror, Path(folder) / BUNDLE)
            served = mirror.serve(checked.kept, course.served, says)
        return served, tuple(notes)

    async def _warm(
        self, course: Course, mirror: Mirror, smoked: Smoked, progress: Progress
    ) -> None:
        if course.manifest.warmup is None:
            await progress.set("warm", state="skipped", message="The manifest asks for none.")
            return
        async with progress.step("warm"):
            await warm_up(self._ledger, self._hub, course, mirror, smoked, progress, self._go_on)

    # -- publications and orders -------------------------------------------------------------------

    async def _publish(self, course: Course, commit: str, served: str) -> None:
        """Decide what students get; bringing it to them is done as after every such decision.

        Raises:
            SourceUnusable: The publication is not here any more.
            StepFailed: Somebody stopped it.
        """
        await asyncio.to_thread(self._volumes.mirror(course.name).bundle_of, served)
        is_done = await self._call(
            lambda ledger: ledger.publish_course(
                self._hub, course.name, (commit, served), course.task_by, course.asked_at
            )
        )
        if not is_done:
            raise StepFailed("Somebody stopped it.")
        log.info("published %s of the course %s", commit[:8], course.name)
        await self._volumes.bring_all(self._tasks.__contains__)

    # -- small things -----------------------------------------------------------------------------

    async def _go_on(self, course: Course) -> None:
        """Asked again and again while something is done for a course.

        Raises:
            StepFailed: Somebody stopped it.
            GivenUp: Its class begins soon.
        """
        if await asyncio.to_thread(self._is_stopped, course):
            raise StepFailed("Somebody stopped it.")
        end = self._ends.get(course.name)
        if end is not None and self._ledger.now() >= end.at:
            raise GivenUp(end.sentence)

    async def _call(self, function: Callable[[Ledger], Any]) -> Any:
        return await asyncio.to_thread(function, self._ledger)


def _missing(course: Course, there: set[str]) -> list[Note]:
    """What the manifest names and the source does not hold."""
    named = course.manifest.smoke.notebooks if course.manifest.smoke else ()
    return [
        Note("fail", path, f"The smoke test names {path}, which the course does not have.")
        for path in named
        if path not in there
    ]


def _warnings(notes: list[Note]) -> tuple[Note, ...]:
    return tuple(one for one in notes if one.level != "fail")


def _sentences(notes: tuple[Note, ...]) -> tuple[str, ...]:
    return tuple(one.message[:400] for one in notes[:MAX_NOTES])
