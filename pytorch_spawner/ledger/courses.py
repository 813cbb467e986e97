"""Courses: their manifests, what the service does for them, and what students' containers say."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final

from pydantic import ValidationError
from sqlalchemy import delete, select

from pytorch_spawner.core.course_manifest import Manifest
from pytorch_spawner.core.courses import Course, Step
from pytorch_spawner.errors import BadRequest
from pytorch_spawner.ledger.caches import Caches
from pytorch_spawner.ledger.course_copies import VERSION, CourseCopies, storable, title_of
from pytorch_spawner.ledger.course_names import CourseNames
from pytorch_spawner.ledger.models import (
    CourseOrderRow,
    CourseRow,
    CourseStudentRow,
    HubSettingsRow,
)

log = logging.getLogger("pytorch_spawner")

MAX_COURSES: Final = 500
_TASKS: Final = ("preload", "publish")
_PLAIN: Final = (
    "hub", "name", "by", "changed_at", "task", "task_by", "asked_at", "is_running",
    "tried_at", "preloaded_at", "stopped_at", "candidate", "candidate_served", "candidate_says",
    "commit", "served", "published_at", "published_by", "serial",
)  # fmt: skip


class Courses(Caches, CourseCopies, CourseNames):
    """The part of the ledger about courses."""

    # -- manifests --------------------------------------------------------------------------

    def courses(self, hub: str) -> tuple[Course, ...]:
        """Every course, by name."""
        with self._reading() as session:
            found = select(CourseRow).where(CourseRow.hub == hub).order_by(CourseRow.name)
            known = map(_course, session.scalars(found))
            return tuple(one for one in known if one is not None)

    def course_names(self, hub: str) -> frozenset[str]:
        """Names of all courses, also of those whose manifest cannot be read any more."""
        with self._reading() as session:
            return frozenset(session.scalars(_names(hub)))

    def courses_version(self, hub: str) -> int:
        """A number that grows whenever anything changes that ``courses`` gives, and only then."""
        return self._counted(hub, VERSION)

    def course(self, hub: str, name: str) -> Course | None:
        """One course; None where there is none of this name."""
        with self._reading() as session:
            row = session.get(CourseRow, (hub, name))
            return None if row is None else _course(row)

    def save_course(
        self,
        hub: str,
        manifest: Manifest,
        by: str,
        check: Callable[[Course | None], None] = lambda _: None,
        may_follow: Callable[[Collection[str]], bool] = lambda _: True,
    ) -> Course:
        """Add a course, or change its manifest.

        Args:
            hub: Id of the hub.
            manifest: Of the course; its name says which.
            by: Who does.
            check: Raises where it is not as it was seen; nothing is written then.
            may_follow: Whether who adds it may go on with what those staff looked after: a removed
                course whose files servers still have, or one whose manifest cannot be read.

        Raises:
            BadRequest: There are too many courses, or the name is another's.
        """
        said = manifest.as_json()
        with self._transaction() as session:
            row = session.get(CourseRow, (hub, manifest.name))
            there = None if row is None else _course(row)
            check(there)
            if row is not None and there is None and not may_follow(_staff(row.manifest)):
                raise BadRequest(
                    f"There is a course {manifest.name} whose manifest cannot be read any more. "
                    "Whoever looks after it, or an admin, may put another one in its place."
                )
            if row is None:
                self._take_over(session, hub, manifest.name, may_follow)
            before = None if row is None else row.manifest
            if row is None:
                count = len(session.scalars(_names(hub)).all())
                if count >= MAX_COURSES:
                    raise BadRequest(f"There are {MAX_COURSES} courses; remove one of them first.")
                row = CourseRow(hub=hub, name=manifest.name, by=by[:255])
            if before != said:
                row.manifest, row.changed_at = said, self._moment(session, hub)
                session.add(row)
                session.flush()
                self._log_course(session, row, by, before, said)
            return _of(row, manifest)

    def remove_course(
        self,
        hub: str,
        name: str,
        by: str,
        check: Callable[[Course], None] = lambda _: None,
    ) -> Course | None:
        """Remove a course; nobody's copy of its notebooks is touched, its warm caches go.

        Its name is held for those who looked after it, and for admins, until ``release_name``:
        servers that run follow whatever is published under it.

        Returns:
            What it was; None where there is none.
        """
        with self._transaction() as session:
            row = session.get(CourseRow, (hub, name))
            if row is None:
                return None
            was = _course(row)
            if was is not None:
                check(was)
            for table in (CourseStudentRow, CourseOrderRow):
                session.execute(delete(table).where(table.hub == hub, table.course == name))
            self._give_up_caches_of(session, hub, name, by)
            self._hold_name(session, hub, name, _staff(row.manifest), by)
            session.delete(row)
            self._log_course(session, row, by, row.manifest, None)
            return was

    # -- what classes may have ----------------------------------------------------------------

    def class_share(self, hub: str) -> float | None:
        """The hub's ``class_seats_share``, 0 to 1; None before the hub said it."""
        with self._reading() as session:
            row = session.get(HubSettingsRow, hub)
            return None if row is None else row.class_share

    def note_class_share(self, hub: str, share: float) -> None:
        """Write down the hub's ``class_seats_share``, for pages: they do not read its settings."""
        if self.class_share(hub) == share:
            return
        with self._transaction() as session:
            session.merge(HubSettingsRow(hub=hub, class_share=share))
            self._count_up(session, hub, "shown")

    # -- what the service does --------------------------------------------------------------

    def ask_course(self, hub: str, name: str, task: str, by: str) -> bool:
        """Ask the service to preload a course, or to publish what was preloaded.

        Returns:
            False where there is no such course, it is at work already, or there is nothing that
            could be published.
        """
        if task not in _TASKS:
            raise ValueError(task)
        with self._transaction() as session:
            row = session.get(CourseRow, (hub, name))
            if row is None or row.task or (task == "publish" and not row.candidate_served):
                return False
            row.task, row.task_by, row.is_running, row.stop_asked = task, by[:255], False, False
            row.asked_at = self._moment(session, hub)
            if task == "preload":
                row.stopped_at = None
            self._log_course(session, row, by, None, {"is": task, "title": title_of(row)})
            return True

    def stop_course(self, hub: str, name: str, by: str) -> bool:
        """Ask for the end of what is done for a course; False where nothing is.

        That a preload was stopped is kept until one is asked for again, for the timetable.
        """
        with self._transaction() as session:
            row = session.get(CourseRow, (hub, name))
            if row is None or not row.task:
                return False
            if row.task == "preload":
                row.stopped_at = self._moment(session, hub)
            if not row.is_running:
                row.task = ""
            row.stop_asked = True
            self._log_course(session, row, by, None, {"is": "stopped", "title": title_of(row)})
            return True

    def is_course_stopped(self, hub: str, name: str, asked_at: float | None = None) -> bool:
        """Whether what is done for a course is to end.

        Args:
            hub: Id of the hub.
            name: Of the course.
            asked_at: When the task was asked for; of a course that was removed and added again it
                is another one's. None: whichever there is.

        Returns:
            True also where the course is gone, or the task is not its own.
        """
        with self._reading() as session:
            row = session.get(CourseRow, (hub, name))
            return row is None or row.stop_asked or not _is_of(row, asked_at)

    def next_course_task(self, hub: str, busy: Collection[str] = ()) -> Course | None:
        """Take up what was asked for first; None where nothing waits.

        What a service that died was at is asked for again.

        Args:
            hub: Id of the hub.
            busy: Names that are left out: something is still at work for them.
        """
        waiting = (
            select(CourseRow)
            .where(CourseRow.hub == hub, CourseRow.task != "", CourseRow.is_running.is_(False))
            .where(CourseRow.name.not_in(busy))
            .order_by(CourseRow.asked_at, CourseRow.name)
            .limit(1)
        )
        # Asked every second: nobody is to wait for a writer that has nothing to write.
        with self._reading() as session:
            if session.scalar(waiting) is None:
                return None
        with self._transaction() as session:
            row = session.scalar(waiting)
            if row is None:
                return None
            if _course(row) is None:
                row.task = ""
                self._moved(session, hub)
                return None
            row.is_running = True
            if row.task == "preload":
                row.tried_at = self._moment(session, hub)
            self._moved(session, hub)
            return _course(row)

    def requeue_courses(self, hub: str) -> None:
        """At the service's start: whatever the last one was at, begins again."""
        running = select(CourseRow).where(CourseRow.hub == hub, CourseRow.is_running.is_(True))
        with self._reading() as session:
            if session.scalar(running.limit(1)) is None:
                return
        with self._transaction() as session:
            for row in session.scalars(running):
                row.is_running = False
                self._moved(session, hub)

    def smoke_course(self, hub: str) -> Course | None:
        """The course that a fresh student's server is to be started for; None for none."""
        with self._reading() as session:
            found = select(CourseRow).where(
                CourseRow.hub == hub, CourseRow.is_running.is_(True), CourseRow.task == "preload"
            )
            for row in session.scalars(found):
                if any(
                    step["name"] in ("image", "smoke") and step["state"] == "running"
                    for step in row.steps
                ):
                    return _course(row)
        return None

    def note_course(  # noqa: PLR0913  (whatever is known by now)
        self,
        hub: str,
        name: str,
        *,
        asked_at: float | None = None,
        steps: Sequence[Step] | None = None,
        preloaded_at: float | None = None,
        candidate: tuple[str, str, str] | None = None,
        is_over: bool = False,
    ) -> None:
        """Write down how far a course is; what is None stays as it is.

        Args:
            hub: Id of the hub.
            name: Of the course.
            asked_at: When the task was asked for; what another one says is left out. None:
                whichever there is.
            steps: Of the preload.
            preloaded_at: When it ended, Unix time in seconds.
            candidate: (source's commit, publication made of it, first line of its message).
            is_over: The task is done, or failed.
        """
        with self._transaction() as session:
            row = session.get(CourseRow, (hub, name))
            if row is None or not _is_of(row, asked_at):
                return
            if steps is not None:
                row.steps = [one.as_json() for one in steps]
            if preloaded_at is not None:
                row.preloaded_at = preloaded_at
            if candidate is not None:
                row.candidate, row.candidate_served = candidate[0], candidate[1]
                row.candidate_says = storable(candidate[2])
            if is_over:
                row.task, row.is_running, row.stop_asked = "", False, False
            self._moved(session, hub)

    def publish_course(
        self,
        hub: str,
        name: str,
        candidate: tuple[str, str],
        by: str,
        asked_at: float | None = None,
    ) -> int:
        """Write down that students are given a publication from now on.

        Args:
            hub: Id of the hub.
            name: Of the course.
            candidate: (source's commit, publication made of it).
            by: Who asked for it.
            asked_at: When the task was asked for; None: whichever there is.

        Returns:
            The course's serial; 0 where there is no such course, the task is another's, or somebody
            asked for its end.
        """
        with self._transaction() as session:
            row = session.get(CourseRow, (hub, name))
            if row is None or row.stop_asked or not _is_of(row, asked_at):
                return 0
            before = {"is": "published", "commit": row.commit, "title": title_of(row)}
            row.commit, row.served = candidate
            row.published_at, row.published_by = self._moment(session, hub), by[:255]
            row.serial += 1
            self._log_course(session, row, by, before, {**before, "commit": row.commit})
            return row.serial


def _names(hub: str) -> Any:
    return select(CourseRow.name).where(CourseRow.hub == hub)


def _is_of(row: CourseRow, asked_at: float | None) -> bool:
    return asked_at is None or row.asked_at == asked_at


def _staff(manifest: Any) -> list[str]:
    """Who looks after a course, also out of a manifest that is none any more."""
    members = manifest.get("members") if isinstance(manifest, dict) else None
    staff = members.get("staff") if isinstance(members, dict) else None
    return [one for one in staff if isinstance(one, str)] if isinstance(staff, list) else []


def _course(row: CourseRow) -> Course | None:
    """A course; None where its manifest is not one any more, by a rule or a machine that changed.

    One such course must not keep everybody from starting.
    """
    try:
        return _of(row, Manifest.model_validate(row.manifest))
    except ValidationError as error:
        log.warning("the manifest of the course %s cannot be read: %s", row.name, error)
        return None


def _of(row: CourseRow, manifest: Manifest) -> Course:
    return Course(
        **{name: getattr(row, name) for name in _PLAIN},
        manifest=manifest,
        steps=tuple(Step.from_json(one) for one in row.steps),
    )
