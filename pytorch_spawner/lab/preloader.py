"""Makes courses ready: fetch, check, try it in a fresh student's server, warm up; and publishes.

It knows the order of the steps and writes down how each went. What a source may hold is decided by
``core.course_files``, what a server gets by the spawner, and whether a warm cache is good by
``core.warmcache``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from tornado.httpclient import HTTPClientError

from pytorch_spawner.adapters import course_engine, engine, warm_engine
from pytorch_spawner.adapters.git_source import Fetched, Mirror, Served
from pytorch_spawner.core import courses
from pytorch_spawner.core.course_files import check_tree
from pytorch_spawner.core.course_notebooks import MAX_NOTEBOOK_BYTES, check_notebook
from pytorch_spawner.core.course_notes import Note
from pytorch_spawner.core.courses import STEPS, Course, Step
from pytorch_spawner.core.timetable import next_session
from pytorch_spawner.errors import LabError, SourceUnusable
from pytorch_spawner.lab.accounts import reason
from pytorch_spawner.lab.paths import courses_dir
from pytorch_spawner.lab.settings import LabSettings
from pytorch_spawner.lab.smoke import Smoked, SmokeTest, StepFailed
from pytorch_spawner.lab.warmup import warm_up
from pytorch_spawner.ledger.store import Ledger

T = TypeVar("T")
log = logging.getLogger("pytorch_spawner.preloader")

_LOOK_S: Final = 1.0
# Fetches wait for other machines; more at once would only compete for this one's disk.
_AT_ONCE: Final = 4
# So long before a class meets its course is preloaded again, unless that was done lately: the
# image is there, a fresh student's server starts, the notebooks run.
_BEFORE_CLASS_S: Final = 3600.0
_LATELY_S: Final = 3 * 3600.0
_TIMETABLE_LOOK_S: Final = 60.0
# So often what students get is looked after though nobody changed anything.
_SWEEP_S: Final = 30.0
_MAX_NOTES: Final = 50


class Progress:
    """The steps of one preload, written into the ledger as they go."""

    def __init__(self, note: Callable[[tuple[Step, ...]], Any]) -> None:
        self._note = note
        self._steps = {name: Step(name) for name in STEPS}

    async def set(self, name: str, **facts: Any) -> None:
        """Change what is known of a step."""
        self._steps[name] = replace(self._steps[name], **facts)
        await self._note(tuple(self._steps.values()))

    @property
    def has_failed(self) -> bool:
        """Whether any step failed."""
        return any(one.state == "failed" for one in self._steps.values())

    @asynccontextmanager
    async def step(self, name: str) -> AsyncIterator[None]:
        """Run a step: it is done at the end, unless it says something else, or fails by raising.

        Raises:
            StepFailed: It failed; that is written down, and those after it are skipped.
        """
        began = time.monotonic()
        await self.set(name, state="running")
        try:
            yield
        except asyncio.CancelledError:
            raise  # the service ends; the next one begins the task again
        except Exception as error:
            if not isinstance(error, (LabError, HTTPClientError, OSError)):
                log.exception("the step %s fell over", name)
            notes = error.notes if isinstance(error, StepFailed) else ()
            seconds = round(time.monotonic() - began, 2)
            said = {"message": reason(error), "notes": notes[:_MAX_NOTES], "seconds": seconds}
            await self.set(name, state="failed", **said)
            raise StepFailed(reason(error)) from error
        is_over = self._steps[name].state != "running"
        await self.set(
            name,
            seconds=round(time.monotonic() - began, 2),
            **({} if is_over else {"state": "done"}),
        )

    async def skip_rest(self, why: str) -> None:
        """What has not begun will not begin."""
        for name, step in self._steps.items():
            if step.state == "waiting":
                self._steps[name] = replace(step, state="skipped", message=why)
        await self._note(tuple(self._steps.values()))


class Preloader:
    """One in each service process; ``run`` never ends."""

    def __init__(self, settings: LabSettings, ledger: Ledger) -> None:
        self._settings = settings
        self._ledger = ledger
        self._hub = settings.hub_id
        self._client: Any = None
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._smoke = SmokeTest(settings, ledger)
        # What containers were last told of each course: (publication, serial).
        self._told: dict[str, tuple[str, int]] = {}
        self._seen = -1
        # Tasks whose end could not be written down yet.
        self._over: set[str] = set()
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
        for name in list(self._over):
            await self._end(name)
        while len(self._tasks) < _AT_ONCE:
            course = await self._call(lambda ledger: ledger.next_course_task(self._hub))
            if course is None:
                break
            task = asyncio.create_task(self._do(course), name=f"course-{course.name}")
            self._tasks[course.name] = task
            task.add_done_callback(partial(self._forget, course.name))
        version = await self._call(lambda ledger: ledger.version(self._hub))
        is_due = time.monotonic() - self._swept > _SWEEP_S
        if version != self._seen or is_due:
            self._swept = time.monotonic() if is_due else self._swept
            await self._bring_all()
            self._seen = version
        if time.monotonic() - self._timetable_seen > _TIMETABLE_LOOK_S:
            self._timetable_seen = time.monotonic()
            await asyncio.to_thread(self._look_at_timetables)

    def _look_at_timetables(self) -> None:
        """Ask for a preload of what meets within the hour; blocking."""
        now = self._ledger.now()
        for course in self._ledger.courses(self._hub):
            if is_due_before_class(course, now):
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
        await self._end(course.name)

    async def _tell_failure(self, course: Course, why: str) -> None:
        """Into the log of changes, which the course's page shows."""
        log.warning("the %s of the course %s failed: %s", course.task, course.name, why)
        said = {"is": f"{course.task} failed", "title": course.manifest.title, "message": why}
        with contextlib.suppress(LabError):
            await self._call(
                lambda ledger: ledger.note(self._hub, course.task_by, "course", course.name, said)
            )

    async def _end(self, name: str) -> None:
        self._over.add(name)
        await self._call(lambda ledger: ledger.note_course(self._hub, name, is_over=True))
        self._over.discard(name)

    # -- a preload --------------------------------------------------------------------------------

    async def _preload(self, course: Course) -> None:
        name = course.name
        log.info("preloading the course %s", name)

        async def note(steps: tuple[Step, ...]) -> None:
            await self._call(lambda ledger: ledger.note_course(self._hub, name, steps=steps))

        progress = Progress(note)
        try:
            mirror = self._mirror(name)
            fetched = await self._fetch(course, mirror, progress)
            served = await self._check(course, mirror, fetched, progress)
            smoked = await self._smoke.run(course, progress, self._is_stopped)
            if not course.served:
                # The first one: nobody has anything yet that it could take by surprise. Before the
                # warm cache, without which a course works as well.
                await self._publish(course, fetched.commit, served.served)
            await self._warm(course, mirror, smoked, progress)
        except StepFailed as error:
            await progress.skip_rest("A step before it failed.")
            log.info("the preload of the course %s ended: %s", name, error)
        except LabError:
            await progress.skip_rest("It could not be published.")
            raise
        await self._call(
            lambda ledger: ledger.note_course(self._hub, name, preloaded_at=ledger.now())
        )

    async def _fetch(self, course: Course, mirror: Mirror, progress: Progress) -> Fetched:
        async with progress.step("fetch"):
            fetched = await asyncio.to_thread(
                mirror.fetch,
                course.manifest.source,
                is_stopped=lambda: self._ledger.is_course_stopped(self._hub, course.name),
            )
            await progress.set("fetch", message=f"{fetched.commit[:8]} {fetched.says}"[:200])
        return fetched

    async def _check(
        self, course: Course, mirror: Mirror, fetched: Fetched, progress: Progress
    ) -> Served:
        async with progress.step("check"):
            served, notes = await asyncio.to_thread(self._serve, course, mirror, fetched)
            await self._with_engine(
                course_engine.fill,
                courses.volumes_of(self._hub, course.name)[1],
                self._hub,
                served.bundle,
                _notice(served.served, fetched.commit, 0),
            )
            candidate = (fetched.commit, served.served, fetched.says)
            await self._call(
                lambda ledger: ledger.note_course(self._hub, course.name, candidate=candidate)
            )
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
                there = Path(folder) / courses.BUNDLE
                volume = courses.volumes_of(self._hub, course.name)[0]
                course_engine.read_bundle(self._engine(), volume, self._hub, there)
                mirror.adopt(there)
            served = mirror.serve(checked.kept, course.served, says)
        return served, tuple(notes)

    async def _warm(
        self, course: Course, mirror: Mirror, smoked: Smoked, progress: Progress
    ) -> None:
        if course.manifest.warmup is None:
            await progress.set("warm", state="skipped", message="The manifest asks for none.")
            return
        async with progress.step("warm"):
            await warm_up(
                self._ledger, self._hub, course, mirror, smoked, progress, self._is_stopped
            )

    # -- publications and orders -------------------------------------------------------------------

    async def _publish(self, course: Course, commit: str, served: str) -> None:
        """Decide what students get; bringing it to them is done as after every such decision.

        Raises:
            SourceUnusable: The publication is not here any more.
        """
        await asyncio.to_thread(self._mirror(course.name).bundle_of, served)
        await self._call(
            lambda ledger: ledger.publish_course(
                self._hub, course.name, (commit, served), course.task_by
            )
        )
        log.info("published %s of the course %s", commit[:8], course.name)
        await self._bring_all()

    async def _bring_all(self) -> None:
        """Make what containers see equal to what the ledger says, whatever happened to it.

        After a publication, an order to one of them, a volume that was lost, a service that was
        killed in between; and throw away what no course owns any more.
        """
        known = await self._call(lambda ledger: ledger.courses(self._hub))
        there = await self._with_engine(course_engine.course_volumes, self._hub)
        for one in known:
            if one.served:
                try:
                    await self._bring(one, is_there=self._volume_of(one.name) in there)
                except LabError as error:
                    log.warning("the course %s does not reach students: %s", one.name, error)
        owned = {volume for one in known for volume in courses.volumes_of(self._hub, one.name)}
        for volume in there:
            if volume not in owned:
                await self._with_engine(warm_engine.remove_volume, volume)
        names = {one.name for one in known}
        for gone in await asyncio.to_thread(self._mirrors):
            if gone not in names and gone not in self._tasks:
                self._told.pop(gone, None)
                with contextlib.suppress(SourceUnusable):  # busy: at the next look
                    await asyncio.to_thread(self._mirror(gone).remove)

    async def _bring(self, course: Course, *, is_there: bool) -> None:
        volume, wanted = self._volume_of(course.name), (course.served, course.serial)
        if not is_there:
            self._told.pop(course.name, None)
        elif course.name not in self._told:
            said = await self._with_engine(course_engine.read_notice, volume, self._hub)
            self._told[course.name] = _told(said)
        told = self._told.get(course.name, ("", -1))
        if told == wanted:
            return
        bundle = None
        if told[0] != course.served:
            bundle = await asyncio.to_thread(self._mirror(course.name).bundle_of, course.served)
        notice = _notice(course.served, course.commit, course.serial)
        await self._with_engine(course_engine.fill, volume, self._hub, bundle, notice)
        self._told[course.name] = wanted

    def _volume_of(self, name: str) -> str:
        return courses.volumes_of(self._hub, name)[0]

    def _mirrors(self) -> list[str]:
        """Names of all mirrors on disk."""
        folder = Path(self._settings.course_dir)
        return [one.name for one in folder.iterdir() if one.is_dir()] if folder.is_dir() else []

    # -- small things -----------------------------------------------------------------------------

    def _mirror(self, name: str) -> Mirror:
        folder = Path(self._settings.course_dir) / name
        return Mirror(folder, roots=[*map(Path, self._settings.course_roots), courses_dir()])

    async def _is_stopped(self, course: Course) -> bool:
        return bool(await self._call(lambda led: led.is_course_stopped(self._hub, course.name)))

    async def _call(self, function: Callable[[Ledger], Any]) -> Any:
        return await asyncio.to_thread(function, self._ledger)

    async def _with_engine(self, ask: Callable[..., T], *args: Any) -> T:
        """Ask the engine in a thread: connecting to one that hangs takes a minute, too."""
        return await asyncio.to_thread(lambda: ask(self._engine(), *args))

    def _engine(self) -> Any:
        if self._client is None:
            self._client = engine.connect(self._settings.client_kwargs)
        return self._client


def _told(notice: str) -> tuple[str, int]:
    """(publication, serial) that a notice names; nothing that is, where it cannot be read."""
    try:
        said = json.loads(notice)
        return str(said["served"]), int(said["serial"])
    except (ValueError, KeyError, TypeError):
        return "", -1


def is_due_before_class(course: Course, now: float) -> bool:
    """Whether a course is to be preloaded for a class that meets soon.

    What students have stays: a new commit of the source waits for its publication. So a course that
    nobody published yet is left alone, for its first preload publishes.

    Args:
        course: Any.
        now: Unix time in seconds.
    """
    if not course.served or course.task or now - (course.preloaded_at or 0.0) < _LATELY_S:
        return False
    meets = next_session(course.manifest, now)
    return meets is not None and 0 <= meets.starts_at - now <= _BEFORE_CLASS_S


def _notice(served: str, commit: str, serial: int) -> bytes:
    """What containers watch: a new serial is a publication, or an order to one of them."""
    return json.dumps({"v": 1, "served": served, "commit": commit, "serial": serial}).encode()


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
    return tuple(one.message[:400] for one in notes[:_MAX_NOTES])
