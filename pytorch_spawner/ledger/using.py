"""Which GPU time was held, by the leases, and which was used, by what the service measured."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import or_, select

from pytorch_spawner.core.usage_report import DAY_S, Busy, Used
from pytorch_spawner.ledger.database import Database
from pytorch_spawner.ledger.models import BusyRow, LeaseRow


class Using(Database):
    """The part of the ledger about GPU time."""

    def add_busy(self, hub: str, rows: Iterable[tuple[float, str, str, str, float]]) -> None:
        """Add measured time.

        Args:
            hub: Id of the hub.
            rows: (Unix time of the UTC midnight, user, course, GPU, seconds >= 0).
        """
        with self._transaction() as session:
            for day, username, course, gpu, busy_s in rows:
                key = (hub, day, username[:255], course[:255], gpu)
                row = session.get(BusyRow, key)
                if row is None:
                    row = BusyRow(
                        hub=hub, day=day, username=key[2], course=key[3], gpu=gpu, busy_s=0.0
                    )
                    session.add(row)
                row.busy_s += busy_s

    def used(self, hub: str, first: float, last: float) -> tuple[list[Used], list[Busy]]:
        """Return what was held and what was busy.

        Args:
            hub: Id of the hub.
            first: Unix time of the first day's UTC midnight.
            last: Of the last day's.
        """
        end, now = last + DAY_S, self.now()
        held = select(
            LeaseRow.username,
            LeaseRow.request,
            LeaseRow.gpus,
            LeaseRow.weight,
            LeaseRow.slots,
            LeaseRow.since,
            LeaseRow.released_at,
        ).where(
            LeaseRow.hub == hub,
            LeaseRow.since < end,
            or_(LeaseRow.released_at.is_(None), LeaseRow.released_at > first),
        )
        measured = select(BusyRow).where(
            BusyRow.hub == hub, BusyRow.day >= first, BusyRow.day <= last
        )
        with self._reading() as session:
            leases = [
                Used(
                    row.username,
                    str((row.request or {}).get("course") or ""),
                    tuple(row.gpus),
                    _weights(len(row.gpus), row.weight, row.slots),
                    row.since,
                    now if row.released_at is None else row.released_at,
                )
                for row in session.execute(held)
            ]
            busy = [
                Busy(row.day, row.username, row.course, row.gpu, row.busy_s)
                for row in session.scalars(measured)
            ]
        return leases, busy


def _weights(count: int, weight: float, slots: list[list[int]]) -> tuple[float, ...]:
    """What each GPU of a lease counts: the lease's weight, by the slots that were given."""
    parts = [1.0 / cut for _, cut in slots] if slots else [1.0] * count
    return tuple(weight * part / sum(parts) for part in parts)
