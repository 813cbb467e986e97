"""Taking back what an admin changed, where nothing changed it again since."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy.orm import Session

from pytorch_spawner.core.changes import can_undo
from pytorch_spawner.core.gpus import GpuUuid
from pytorch_spawner.core.grant_rows import Known, parse_grants
from pytorch_spawner.core.grants import Grant
from pytorch_spawner.core.placement import DeviceSetting
from pytorch_spawner.errors import BadRequest, ChangedMeanwhile
from pytorch_spawner.ledger.granting import decided
from pytorch_spawner.ledger.models import ChangeRow, TicketRow
from pytorch_spawner.ledger.queueing import Queueing


class Undoing(Queueing):
    """The part of the ledger that takes changes back."""

    def undo(self, hub: str, change_id: int, by: str) -> int:
        """Take one change back.

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

            def back(grants: tuple[Grant, ...]) -> Sequence[Grant]:
                by_id = {grant.id: grant for grant in grants}
                there = by_id.pop(row.subject, None)
                shown = None if there is None else there.as_json()
                if shown != row.after:
                    raise self._moved_on(session, row, shown)
                if row.before is not None:
                    (by_id[row.subject],) = parse_grants([row.before], Known())
                return list(by_id.values())

            _, ids = self._edit_grants(session, hub, by, back, undoes=row.id)
            if not ids:
                raise BadRequest("This cannot be taken back: it changed nothing.")
            return ids[0]
        if row.what == "gpu":

            def restore(was: DeviceSetting) -> DeviceSetting:
                if decided(was) != row.after:
                    raise self._moved_on(session, row, decided(was))
                return DeviceSetting(was.uuid, **row.before)

            uuid = GpuUuid(row.subject)
            changed = self._change_setting(session, hub, uuid, by, restore, row.id)
            return row.id if changed is None else changed
        username, _, servername = row.subject.partition("/")
        ticket = session.get(TicketRow, (hub, username, servername))
        if ticket is None or ticket.boost != row.after:
            raise self._moved_on(session, row, None if ticket is None else ticket.boost)
        ticket.boost = int(row.before)
        return self._note(
            session, hub, by, "queue", row.subject, row.after, row.before, undoes=row.id
        )

    def _moved_on(self, session: Session, row: ChangeRow, now: Any) -> ChangedMeanwhile:
        latest = self._newest(session, row.hub, row.what, row.subject)
        who = f" by {latest.by}" if latest is not None and latest.id != row.id else ""
        return ChangedMeanwhile(f"{row.subject} was changed again since{who}.", now=now)
