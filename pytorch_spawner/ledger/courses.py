"""Courses: their manifests, what the service does for them, and what students' containers say."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from pydantic import ValidationError
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from pytorch_spawner.core.courses import Course, Manifest, Order, Step, Student
from pytorch_spawner.errors import BadRequest
from pytorch_spawner.ledger.log import Log
from pytorch_spawner.ledger.models import CourseOrderRow, CourseRow, CourseStudentRow

log = logging.getLogger("pytorch_spawner")

MAX_COURSES: Final = 500
# What a student's container may have us keep: of each list, and of each text.
MAX_PATHS: Final = 50
MAX_TEXT: Final = 400
# Orders that nobody carried out yet, of one person.
MAX_OPEN_ORDERS: Final = 50
_TASKS: Final = ("preload", "publish")
_PLAIN: Final = (
    "hub", "name", "by", "changed_at", "task", "task_by", "is_running", "preloaded_at",
    "candidate", "candidate_served", "candidate_says", "commit", "served", "published_at",
    "published_by", "serial",
)  # fmt: skip


class Courses(Log):
    """The part of the ledger about courses."""

    # -- manifests --------------------------------------------------------------------------

    def courses(self, hub: str) -> tuple[Course, ...]:
        """Every course, by name."""
        with self._reading() as session:
            found = select(CourseRow).where(CourseRow.hub == hub).order_by(CourseRow.name)
            known = map(_course, session.scalars(found))
            return tuple(one for one in known if one is not None)

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
    ) -> Course:
        """Add a course, or change its manifest.

        Args:
            hub: Id of the hub.
            manifest: Of the course; its name says which.
            by: Who does.
            check: Raises where it is not as it was seen; nothing is written then.

        Raises:
            BadRequest: There are too many courses.
        """
        said = manifest.as_json()
        with self._transaction() as session:
            row = session.get(CourseRow, (hub, manifest.name))
            check(None if row is None else _course(row))
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
        """Remove a course; nobody's copy of its notebooks is touched.

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
            session.delete(row)
            self._log_course(session, row, by, row.manifest, None)
            return was

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
            self._log_course(session, row, by, None, {"is": task, "title": _title(row)})
            return True

    def stop_course(self, hub: str, name: str, by: str) -> bool:
        """Ask for the end of what is done for a course; False where nothing is."""
        with self._transaction() as session:
            row = session.get(CourseRow, (hub, name))
            if row is None or not row.task:
                return False
            if not row.is_running:
                row.task = ""
            row.stop_asked = True
            self._log_course(session, row, by, None, {"is": "stopped", "title": _title(row)})
            return True

    def is_course_stopped(self, hub: str, name: str) -> bool:
        """Whether what is done for a course is to end; true for one that is gone, too."""
        with self._reading() as session:
            row = session.get(CourseRow, (hub, name))
            return row is None or row.stop_asked

    def next_course_task(self, hub: str) -> Course | None:
        """Take up what was asked for first; None where nothing waits.

        What a service that died was at is asked for again.
        """
        waiting = (
            select(CourseRow)
            .where(CourseRow.hub == hub, CourseRow.task != "", CourseRow.is_running.is_(False))
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
            found = _course(row)
            if found is None:
                row.task = ""
                return None
            row.is_running = True
            self._count_up(session, hub, "shown")
            return found

    def requeue_courses(self, hub: str) -> None:
        """At the service's start: whatever the last one was at, begins again."""
        running = select(CourseRow).where(CourseRow.hub == hub, CourseRow.is_running.is_(True))
        with self._reading() as session:
            if session.scalar(running.limit(1)) is None:
                return
        with self._transaction() as session:
            for row in session.scalars(running):
                row.is_running = False
                self._count_up(session, hub, "shown")

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

    def note_course(
        self,
        hub: str,
        name: str,
        *,
        steps: Sequence[Step] | None = None,
        preloaded_at: float | None = None,
        candidate: tuple[str, str, str] | None = None,
        is_over: bool = False,
    ) -> None:
        """Write down how far a course is; what is None stays as it is.

        Args:
            hub: Id of the hub.
            name: Of the course.
            steps: Of the preload.
            preloaded_at: When it ended, Unix time in seconds.
            candidate: (source's commit, publication made of it, first line of its message).
            is_over: The task is done, or failed.
        """
        with self._transaction() as session:
            row = session.get(CourseRow, (hub, name))
            if row is None:
                return
            if steps is not None:
                row.steps = [one.as_json() for one in steps]
            if preloaded_at is not None:
                row.preloaded_at = preloaded_at
            if candidate is not None:
                row.candidate, row.candidate_served = candidate[0], candidate[1]
                row.candidate_says = _storable(candidate[2])
            if is_over:
                row.task, row.is_running, row.stop_asked = "", False, False
            self._count_up(session, hub, "shown")

    def publish_course(self, hub: str, name: str, candidate: tuple[str, str], by: str) -> int:
        """Write down that students are given a publication from now on.

        Args:
            hub: Id of the hub.
            name: Of the course.
            candidate: (source's commit, publication made of it).
            by: Who asked for it.

        Returns:
            The course's serial; 0 where there is no such course.
        """
        with self._transaction() as session:
            row = session.get(CourseRow, (hub, name))
            if row is None:
                return 0
            before = {"is": "published", "commit": row.commit, "title": _title(row)}
            row.commit, row.served = candidate
            row.published_at, row.published_by = self._moment(session, hub), by[:255]
            row.serial += 1
            self._log_course(session, row, by, before, {**before, "commit": row.commit})
            return row.serial

    # -- whose copy is where ----------------------------------------------------------------

    def students(self, hub: str, course: str) -> tuple[Student, ...]:
        """Everybody whose container reported about a course, by name."""
        with self._reading() as session:
            found = (
                select(CourseStudentRow)
                .where(CourseStudentRow.hub == hub, CourseStudentRow.course == course)
                .order_by(CourseStudentRow.username)
            )
            return tuple(map(_student, session.scalars(found)))

    def note_student(self, hub: str, course: str, username: str, data: Mapping[str, Any]) -> None:
        """Take in what somebody's container says of its copy; anything in it may be a lie.

        Args:
            hub: Id of the hub.
            course: What the start was for; a report about another one is left out.
            username: Whose container.
            data: Of an event of the kind "course".
        """
        phase = data.get("phase")
        if data.get("course") != course or phase not in ("done", "failed", "reset"):
            return
        with self._transaction() as session:
            if session.get(CourseRow, (hub, course)) is None:
                return
            if phase == "reset":
                self._end_order(session, hub, course, username, data)
                return
            row = session.get(CourseStudentRow, (hub, course, username[:255]))
            if row is None:
                row = CourseStudentRow(hub=hub, course=course, username=username[:255])
            row.at = self._moment(session, hub)
            row.level = str(data.get("level"))
            if row.level not in ("ok", "warn", "fail"):
                row.level = "fail"
            row.message = _text(data.get("message"))
            if phase == "done":
                row.served, row.commit = _commit(data.get("served")), _commit(data.get("commit"))
                kept, conflicts = data.get("kept"), data.get("conflicts")
                row.kept = [_text(one) for one in _list(kept)]
                said = conflicts if isinstance(conflicts, Mapping) else {}
                row.conflicts = {
                    _text(path): _text(beside) for path, beside in [*said.items()][:MAX_PATHS]
                }
            session.add(row)
            self._count_up(session, hub, "shown")

    def _end_order(
        self, session: Session, hub: str, course: str, username: str, data: Mapping[str, Any]
    ) -> None:
        order = session.get(CourseOrderRow, _text(data.get("order"))[:32])
        is_theirs = order is not None and (order.hub, order.course, order.username) == (
            hub, course, username,
        )  # fmt: skip
        if order is not None and is_theirs and order.done_at is None:
            order.done_at, order.message = self.now(), _text(data.get("message"))
            self._count_up(session, hub, "shown")

    def ask_reset(self, hub: str, course: str, username: str, path: str, by: str) -> Order:
        """Order one person's copy of one file back to the course's version.

        Raises:
            BadRequest: There is no such course, or too many orders wait already.
        """
        with self._transaction() as session:
            row = session.get(CourseRow, (hub, course))
            if row is None:
                raise BadRequest("There is no such course any more.")
            waiting = session.scalars(
                _orders(hub, course, username).where(CourseOrderRow.done_at.is_(None))
            ).all()
            for one in waiting:
                if one.path == path:
                    return _order(one)
            if len(waiting) >= MAX_OPEN_ORDERS:
                raise BadRequest(
                    f"{MAX_OPEN_ORDERS} orders wait for {username} already. They are carried out "
                    "when that server runs."
                )
            order = CourseOrderRow(
                id=uuid.uuid4().hex[:12], hub=hub, course=course, username=username[:255],
                path=_storable(path), by=by[:255], at=self._moment(session, hub),
            )  # fmt: skip
            session.add(order)
            row.serial += 1
            after = {"is": "reset", "title": _title(row), "user": username, "path": order.path}
            self._log_course(session, row, by, None, after)
            session.flush()
            return _order(order)

    def orders(
        self, hub: str, course: str, username: str = "", *, open_only: bool = True
    ) -> tuple[Order, ...]:
        """Orders to one person's copy, or to everybody's (""), the oldest first."""
        with self._reading() as session:
            found = _orders(hub, course, username).order_by(CourseOrderRow.at, CourseOrderRow.id)
            if open_only:
                found = found.where(CourseOrderRow.done_at.is_(None))
            return tuple(map(_order, session.scalars(found)))

    def _log_course(
        self, session: Session, row: CourseRow, by: str, before: Any, after: Any
    ) -> int:
        """Write a line into the audit log; who may start what and when may have changed."""
        self._count_up(session, row.hub, "shown")
        return self._note(session, row.hub, by, "course", row.name, before, after)


def _names(hub: str) -> Any:
    return select(CourseRow.name).where(CourseRow.hub == hub)


def _orders(hub: str, course: str, username: str) -> Any:
    found = select(CourseOrderRow).where(CourseOrderRow.hub == hub, CourseOrderRow.course == course)
    return found.where(CourseOrderRow.username == username) if username else found


def _title(row: CourseRow) -> str:
    return str((row.manifest or {}).get("title", row.name))


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


def _student(row: CourseStudentRow) -> Student:
    return Student(
        row.username, row.served, row.commit, row.at, row.level, row.message, tuple(row.kept),
        dict(row.conflicts),
    )  # fmt: skip


def _order(row: CourseOrderRow) -> Order:
    return Order(
        row.id, row.course, row.username, row.path, row.by, row.at, row.done_at, row.message
    )


def _storable(text: str) -> str:
    """Text of a container as any database takes it: no zero byte, no half of a character."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()


def _text(said: Any) -> str:
    return _storable(said if isinstance(said, str) else "")[:MAX_TEXT]


def _commit(said: Any) -> str:
    is_one = isinstance(said, str) and len(said) <= 64 and said.isalnum()
    return str(said) if is_one else ""


def _list(said: Any) -> list[Any]:
    return said[:MAX_PATHS] if isinstance(said, list) else []
