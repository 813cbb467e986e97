"""Taking back what an admin changed, where nothing changed it again since."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from pytorch_spawner.core.changes import can_undo
from pytorch_spawner.core.gpus import GpuUuid
from pytorch_spawner.core.grant_rows import Known, parse_grants
from pytorch_spawner.core.grants import Grant
from pytorch_spawner.core.placement import DeviceSetting
from pytorch_spawner.errors import BadRequest, ChangedMeanwhile
from pytorch_spawner.ledger.caches import Caches
from pytorch_spawner.ledger.granting import decided
from pytorch_spawner.ledger.models import ChangeRow, TicketRow
from pytorch_spawner.ledger.queueing import Queueing


class Undoing(Caches, Queueing):
    """The part of the ledger that takes changes back."""

    def undo(self, hub: str, change_id: int, by: str) -> int:
        """Take one change back, whole: of a table of grants all lines together.

        Returns:
            Id of the log's new line.

        Raises:
            BadRequest: There is no such line, or it cannot be taken back.
            ChangedMeanwhile: What it changed is not any more as it left it; nothing was written.
        """
        with self._transaction() as session:
            row = session.get(ChangeRow, change_id)
            if row is None or row.hub != hub:
                raise BadRequest("There is no such line in the log.")
            if (undone := self._undone(session, [row.id]).get(row.id)) is not None:
                raise BadRequest(f"It was taken back before, by line {undone} of the log.")
            if not can_undo(row.what, row.before, row.after):
                raise BadRequest("This cannot be taken back.")
            return self._undo(session, hub, row, by)

    def _undo(self, session: Session, hub: str, row: ChangeRow, by: str) -> int:
        if row.what == "grant":
            return self._undo_grants(session, hub, row, by)
        if row.what == "gpu":

            def restore(was: DeviceSetting) -> DeviceSetting:
                if decided(was) != row.after:
                    raise self._moved_on(session, row, decided(was))
                return DeviceSetting(was.uuid, **row.before)

            uuid = GpuUuid(row.subject)
            changed = self._change_setting(session, hub, uuid, by, restore, row.id)
            return row.id if changed is None else changed
        if row.what == "cache":
            undone, now = self._undo_promotion(session, row, by)
            if undone is None:
                raise self._moved_on(session, row, now)
            return undone
        username, _, servername = row.subject.partition("/")
        ticket = session.get(TicketRow, (hub, username, servername))
        if ticket is None or ticket.boost != row.after:
            raise self._moved_on(session, row, None if ticket is None else ticket.boost)
        ticket.boost = int(row.before)
        return self._note(
            session, hub, by, "queue", row.subject, row.after, row.before, undoes=row.id
        )

    def _undo_grants(self, session: Session, hub: str, row: ChangeRow, by: str) -> int:
        lines = self._together(session, row)

        def back(grants: tuple[Grant, ...]) -> Sequence[Grant]:
            by_id = {grant.id: grant for grant in grants}
            for line in lines:
                there = by_id.pop(line.subject, None)
                shown = None if there is None else there.as_json()
                if shown != line.after:
                    raise self._moved_on(session, line, shown)
                if line.before is not None:
                    (by_id[line.subject],) = parse_grants([line.before], Known())
            return list(by_id.values())

        undoes = {line.subject: int(line.id) for line in lines}
        _, ids = self._edit_grants(session, hub, by, back, undoes=undoes)
        if not ids:
            raise BadRequest("This cannot be taken back: it changed nothing.")
        return ids[0]

    def _together(self, session: Session, row: ChangeRow) -> list[ChangeRow]:
        """The lines of one change: a table of grants writes many, and they may need each other."""
        same = select(ChangeRow).where(
            ChangeRow.hub == row.hub,
            ChangeRow.what == row.what,
            ChangeRow.at == row.at,
            ChangeRow.by == row.by,
        )
        lines = list(session.scalars(same))
        undone = self._undone(session, [line.id for line in lines])
        return [line for line in lines if line.id not in undone]

    def _moved_on(self, session: Session, row: ChangeRow, now: Any) -> ChangedMeanwhile:
        latest = self._newest(session, row.hub, row.what, row.subject)
        who = f" by {latest.by}" if latest is not None and latest.id != row.id else ""
        return ChangedMeanwhile(f"{row.subject} was changed again since{who}.", now=now)
