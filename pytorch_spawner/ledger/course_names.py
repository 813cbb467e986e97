"""Names of removed courses, held until no server has their files any more."""

from __future__ import annotations

from collections.abc import Callable, Collection

from sqlalchemy import select
from sqlalchemy.orm import Session

from pytorch_spawner.errors import BadRequest
from pytorch_spawner.ledger.log import Log
from pytorch_spawner.ledger.models import RemovedCourseRow


class CourseNames(Log):
    """The part of the ledger about whose a removed course's name is."""

    def removed_courses(self, hub: str) -> frozenset[str]:
        """Names of removed courses whose files servers may still have."""
        with self._reading() as session:
            names = select(RemovedCourseRow.name).where(RemovedCourseRow.hub == hub)
            return frozenset(session.scalars(names))

    def release_name(self, hub: str, name: str) -> None:
        """Let anybody have the name of a removed course: no server has its files any more."""
        with self._transaction() as session:
            row = session.get(RemovedCourseRow, (hub, name))
            if row is not None:
                session.delete(row)

    def _hold_name(
        self, session: Session, hub: str, name: str, staff: Collection[str], by: str
    ) -> None:
        """Keep the name of a course that is removed for those who looked after it."""
        session.merge(
            RemovedCourseRow(
                hub=hub,
                name=name,
                staff=[*staff],
                by=by[:255],
                removed_at=self._moment(session, hub),
            )
        )

    def _take_over(
        self,
        session: Session,
        hub: str,
        name: str,
        may_follow: Callable[[Collection[str]], bool],
    ) -> None:
        left = session.get(RemovedCourseRow, (hub, name))
        if left is None:
            return
        if not may_follow(left.staff):
            raise BadRequest(
                f"{left.by} removed a course {name}, and servers that run may still have its "
                "files. Whoever looked after it, or an admin, may add it again now; anybody else "
                "when those servers have stopped. Take another name, or wait."
            )
        session.delete(left)
