"""The audit log: who changed what, before and after. Lines are never changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from sqlalchemy import String, cast, delete, func, or_, select
from sqlalchemy.orm import Session

from pytorch_spawner.ledger.database import Database
from pytorch_spawner.ledger.models import ChangeRow, CounterRow

_REFUSED_KEPT_S: Final = 90 * 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Change:
    """One line of the audit log; ``before`` and ``after`` are JSON, or None."""

    id: int
    at: float
    by: str
    what: str
    subject: str
    before: Any
    after: Any
    undoes: int | None = None
    undone_by: int | None = None
    together: int = 1


class Log(Database):
    """The part of the ledger about who changed what."""

    def _note(  # noqa: PLR0913  (a line of the log has these fields)
        self,
        session: Session,
        hub: str,
        by: str,
        what: str,
        subject: str,
        before: Any,
        after: Any,
        at: float | None = None,
        *,
        undoes: int | None = None,
        is_decision: bool = True,
    ) -> int:
        row = ChangeRow(
            hub=hub,
            at=self._moment(session, hub) if at is None else at,
            by=by[:255],
            what=what,
            subject=subject[:255],
            before=before,
            after=after,
            undoes=undoes,
        )
        session.add(row)
        session.flush()
        if is_decision:
            self._count_up(session, hub, "version")
        return int(row.id)

    def note(self, hub: str, by: str, what: str, subject: str, after: Any) -> int:
        """Write a line that changes no decision: a stop, or a request that was refused."""
        with self._transaction() as session:
            if what == "refused":
                # Anybody can make these; what admins did is kept for ever.
                session.execute(
                    delete(ChangeRow)
                    .where(ChangeRow.hub == hub, ChangeRow.what == what)
                    .where(ChangeRow.at < self.now() - _REFUSED_KEPT_S)
                )
            return self._note(session, hub, by, what, subject, None, after, is_decision=False)

    def changes(
        self, hub: str, limit: int = 100, *, before: int | None = None, search: str = ""
    ) -> tuple[Change, ...]:
        """Return the audit log, the newest first.

        Args:
            hub: Id of the hub.
            limit: How many lines at most.
            before: Only lines with a smaller id; None for the newest.
            search: Only lines whose person, kind, subject or values hold this text.
        """
        found = select(ChangeRow).where(ChangeRow.hub == hub)
        if before is not None:
            found = found.where(ChangeRow.id < before)
        if search:
            found = found.where(
                or_(
                    *(
                        column.icontains(search, autoescape=True)
                        for column in (
                            ChangeRow.by,
                            ChangeRow.what,
                            ChangeRow.subject,
                            cast(ChangeRow.before, String),
                            cast(ChangeRow.after, String),
                        )
                    )
                )
            )
        with self._reading() as session:
            rows = session.scalars(found.order_by(ChangeRow.id.desc()).limit(limit)).all()
            undone = self._undone(session, [row.id for row in rows])
            together = self._together_counts(session, hub, rows)
            return tuple(
                replace(
                    _change(row, undone.get(row.id)),
                    together=together.get((row.at, row.by, row.what), 1),
                )
                for row in rows
            )

    def _together_counts(
        self, session: Session, hub: str, rows: Sequence[ChangeRow]
    ) -> dict[tuple[float, str, str], int]:
        """How many lines were written at once with these; a table of grants writes many."""
        key = (ChangeRow.at, ChangeRow.by, ChangeRow.what)
        found = session.execute(
            select(*key, func.count())
            .where(ChangeRow.hub == hub, ChangeRow.what == "grant")
            .where(ChangeRow.at.in_({row.at for row in rows}))
            .group_by(*key)
        )
        return {(at, by, what): count for at, by, what, count in found}

    def _undone(self, session: Session, ids: Sequence[int]) -> dict[int, int]:
        """What took back which of these, by id."""
        rows = session.execute(
            select(ChangeRow.undoes, ChangeRow.id).where(ChangeRow.undoes.in_(ids))
        )
        return {one: by for one, by in rows if one is not None}

    def _newest(self, session: Session, hub: str, what: str, subject: str) -> ChangeRow | None:
        found: ChangeRow | None = session.scalar(
            select(ChangeRow)
            .where(ChangeRow.hub == hub, ChangeRow.what == what, ChangeRow.subject == subject)
            .order_by(ChangeRow.id.desc())
            .limit(1)
        )
        return found

    def latest_change(self, hub: str, what: str, subject: str) -> Change | None:
        """The newest line about a grant, a device or a ticket; None when there is none."""
        with self._reading() as session:
            row = self._newest(session, hub, what, subject)
            return None if row is None else _change(row)

    def shown_version(self, hub: str) -> int:
        """A number that grows whenever anything changes that pages show, but for the inventory.

        More than ``version``: what the scheduler itself decided must not wake it again.
        """
        with self._reading() as session:
            rows = [session.get(CounterRow, (hub, name)) for name in ("version", "shown")]
            return sum(int(row.value) for row in rows if row is not None)

    def version(self, hub: str) -> int:
        """A number that grows whenever something a decision depends on is written."""
        return self._counted(hub, "version")

    def _counted(self, hub: str, name: str) -> int:
        """How far a counter is; 0 before its first number."""
        with self._reading() as session:
            row = session.get(CounterRow, (hub, name))
            return int(row.value) if row is not None else 0


def _change(row: ChangeRow, undone_by: int | None = None) -> Change:
    return Change(
        row.id, row.at, row.by, row.what, row.subject, row.before, row.after, row.undoes, undone_by
    )
