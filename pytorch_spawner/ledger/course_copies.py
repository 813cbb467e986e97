"""Whose copy of a course is where: what students' containers say, and orders to them."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from pytorch_spawner.core.courses import Order, Student
from pytorch_spawner.errors import BadRequest
from pytorch_spawner.ledger.log import Log
from pytorch_spawner.ledger.models import CourseOrderRow, CourseRow, CourseStudentRow

# What a student's container may have us keep: of each list, and of each text.
MAX_PATHS: Final = 50
MAX_TEXT: Final = 400
# Orders that nobody carried out yet, of one person.
MAX_OPEN_ORDERS: Final = 50
# The counter of all changes of courses' rows.
VERSION: Final = "courses"


class CourseCopies(Log):
    """The part of the ledger about students' copies of courses."""

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
                path=storable(path), by=by[:255], at=self._moment(session, hub),
            )  # fmt: skip
            session.add(order)
            row.serial += 1
            after = {"is": "reset", "title": title_of(row), "user": username, "path": order.path}
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
        self._moved(session, row.hub)
        return self._note(session, row.hub, by, "course", row.name, before, after)

    def _moved(self, session: Session, hub: str) -> None:
        """A row of a course changed: pages show it, and hubs read courses anew."""
        self._count_up(session, hub, "shown")
        self._count_up(session, hub, VERSION)


def _orders(hub: str, course: str, username: str) -> Any:
    found = select(CourseOrderRow).where(CourseOrderRow.hub == hub, CourseOrderRow.course == course)
    return found.where(CourseOrderRow.username == username) if username else found


def title_of(row: CourseRow) -> str:
    """A course's title, also where its manifest is none any more."""
    return str((row.manifest or {}).get("title", row.name))


def _student(row: CourseStudentRow) -> Student:
    return Student(
        row.username, row.served, row.commit, row.at, row.level, row.message, tuple(row.kept),
        dict(row.conflicts),
    )  # fmt: skip


def _order(row: CourseOrderRow) -> Order:
    return Order(
        row.id, row.course, row.username, row.path, row.by, row.at, row.done_at, row.message
    )


def storable(text: str) -> str:
    """Text of a container as any database takes it: no zero byte, no half of a character."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()


def _text(said: Any) -> str:
    return storable(said if isinstance(said, str) else "")[:MAX_TEXT]


def _commit(said: Any) -> str:
    is_one = isinstance(said, str) and len(said) <= 64 and said.isalnum()
    return str(said) if is_one else ""


def _list(said: Any) -> list[Any]:
    return said[:MAX_PATHS] if isinstance(said, list) else []
