"""Leases: who holds which slots, kept after a crash, given back, and what was used by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from pytorch_spawner.core.gpus import GpuUuid
from pytorch_spawner.core.grants import next_week, week_start
from pytorch_spawner.core.placement import Holding
from pytorch_spawner.core.tickets import Held
from pytorch_spawner.core.usage import accrued, decayed, overlap_s
from pytorch_spawner.ledger.granting import Granting
from pytorch_spawner.ledger.models import (
    HoldingRow,
    LeaseRow,
    UsageRow,
    WeekUsageRow,
)
from pytorch_spawner.ledger.starts import Start


@dataclass(frozen=True, slots=True)
class Lease:
    """GPUs held by one start.

    Attributes:
        id: Unique in the ledger.
        hub: Id of the hub.
        start_id: The start that took it.
        username: Who holds it.
        servername: "" for the default server.
        holdings: What is held, the best device first.
        request: What was asked for.
        since: Unix time.
        grant: Id of the grant it was given through; "" where unknown (adopted from labels).
        until: When it ends at the latest; None for no limit.
        kept_until: Its server ended unexpectedly and it is kept until then; None while it runs.
        warned_at: When its end was announced; None before.
        weight: What it counts in GPU-hours an hour.
    """

    id: str
    hub: str
    start_id: str
    username: str
    servername: str
    holdings: tuple[Holding, ...]
    request: Mapping[str, Any]
    since: float
    grant: str = ""
    until: float | None = None
    kept_until: float | None = None
    warned_at: float | None = None
    weight: float = 1.0

    @property
    def gpus(self) -> tuple[GpuUuid, ...]:
        """UUIDs of what is held."""
        return tuple(holding.gpu for holding in self.holdings)

    def as_held(self) -> Held:
        """The lease as the scheduler needs it."""
        return Held(
            id=self.id,
            username=self.username,
            servername=self.servername,
            holdings=self.holdings,
            grant=self.grant,
            since=self.since,
            until=self.until,
            kept_until=self.kept_until,
        )


class Leases(Granting):
    """The part of the ledger about who holds GPUs."""

    def leases(self, hub: str) -> tuple[Lease, ...]:
        """Return what is held now, the oldest first."""
        with self._reading() as session:
            return tuple(map(lease_of_row, session.scalars(in_force(hub))))

    def lease(self, lease_id: str) -> Lease | None:
        """Return a lease that is held now; None where it was given back, or never was."""
        with self._reading() as session:
            row = session.get(LeaseRow, lease_id)
            return None if row is None or row.released_at is not None else lease_of_row(row)

    def is_in_force(self, lease_id: str) -> bool:
        """Whether a lease is still held."""
        with self._reading() as session:
            row = session.get(LeaseRow, lease_id)
            return row is not None and row.released_at is None

    def week_hours(self, hub: str, username: str) -> dict[str, float]:
        """GPU-hours that a user used this week, by grant id, running leases included."""
        with self._reading() as session:
            now = self.now()
            monday = week_start(now)
            rows = session.scalars(
                select(WeekUsageRow)
                .where(WeekUsageRow.hub == hub, WeekUsageRow.week == monday)
                .where(WeekUsageRow.username == username)
            )
            used = {row.grant_id: row.gpu_s / 3600 for row in rows}
            for lease in map(lease_of_row, session.scalars(in_force(hub))):
                if lease.username == username:
                    hours = lease.weight * overlap_s(lease.since, now, monday, now) / 3600
                    used[lease.grant] = used.get(lease.grant, 0.0) + hours
            return used

    def adopt_lease(self, lease: Lease) -> bool:
        """Hold what a running container's labels say; False when somebody else holds it."""
        try:
            with self._transaction() as session:
                self._hold(session, lease)
        except IntegrityError:
            return False
        return True

    def _hold(self, session: Session, lease: Lease) -> None:
        """Write a lease and its holdings.

        Raises:
            IntegrityError: A slot is held, by the primary key of ``holdings``.
        """
        session.merge(
            LeaseRow(
                id=lease.id,
                hub=lease.hub,
                start_id=lease.start_id,
                username=lease.username,
                servername=lease.servername,
                gpus=list(lease.gpus),
                slots=[[holding.slot, holding.slots] for holding in lease.holdings],
                request=dict(lease.request),
                since=lease.since,
                released_at=None,
                reason="",
                weight=lease.weight,
                grant_id=lease.grant,
                until=lease.until,
                kept_until=lease.kept_until,
                warned_at=lease.warned_at,
            )
        )
        self._count_up(session, lease.hub, "shown")
        session.flush()
        for holding in lease.holdings:
            others = session.scalars(
                select(HoldingRow.slots).where(
                    HoldingRow.hub == lease.hub,
                    HoldingRow.gpu == holding.gpu,
                    HoldingRow.slots != holding.slots,
                )
            )
            # The key forbids one slot twice; a GPU that is cut two ways at once would slip by it.
            if others.first() is not None or holding.slot >= holding.slots:
                raise IntegrityError(
                    f"{holding.gpu} is held under another mode", None, ValueError(lease.id)
                )
            session.add(
                HoldingRow(
                    hub=lease.hub,
                    gpu=holding.gpu,
                    slot=holding.slot,
                    slots=holding.slots,
                    lease_id=lease.id,
                )
            )
        session.flush()

    def keep(self, hub: str, username: str, servername: str, for_s: float) -> int:
        """Keep what a server holds for a while after it ended unexpectedly.

        Returns:
            How many leases are kept; 0 when it holds none. Time already kept is not prolonged.
        """
        with self._transaction() as session:
            now = self._moment(session, hub)
            rows = rows_of(session, *_of_server(hub, username, servername))
            for row in rows:
                row.kept_until = row.kept_until or now + for_s
            self._count_up(session, hub, "shown")
            return len(rows)

    def warn(self, lease_id: str) -> bool:
        """Note that a lease's end was announced; False when it was before, or is released."""
        with self._transaction() as session:
            row = session.get(LeaseRow, lease_id)
            if row is None or row.released_at is not None or row.warned_at is not None:
                return False
            row.warned_at = self.now()
            return True

    def release(self, hub: str, username: str, servername: str, reason: str) -> int:
        """Give back whatever a server holds; returns how many leases that were."""
        with self._transaction() as session:
            rows = rows_of(session, *_of_server(hub, username, servername))
            self._give_back(session, rows, reason)
            return len(rows)

    def release_lease(self, lease_id: str, reason: str, kept_until: float | None = None) -> bool:
        """Give back one lease, unless it changed since it was looked at.

        Args:
            lease_id: Which.
            reason: Why, for the history.
            kept_until: As it was seen: a lease that is kept by now is not given back for a server
                that was seen to be gone.

        Returns:
            False when it was given back before, or is kept meanwhile.
        """
        with self._transaction() as session:
            rows = [
                row
                for row in rows_of(session, LeaseRow.id == lease_id)
                if row.kept_until == kept_until
            ]
            self._give_back(session, rows, reason)
            return bool(rows)

    def _release(self, session: Session, start: Start, reason: str, *, with_kept: bool) -> None:
        rows = rows_of(session, *_of_server(start.hub, start.username, start.servername))
        self._give_back(
            session, [row for row in rows if with_kept or row.kept_until is None], reason
        )

    def _give_back(self, session: Session, rows: Sequence[LeaseRow], reason: str) -> None:
        for row in rows:
            now = self._moment(session, row.hub)
            row.released_at, row.reason = now, reason[:255]
            session.execute(delete(HoldingRow).where(HoldingRow.lease_id == row.id))
            _book(session, row, now)
            self._count_up(session, row.hub, "version")
        session.flush()


def _book(session: Session, row: LeaseRow, now: float) -> None:
    """Add an ended lease to its user's past use, and to the weeks it lasted."""
    usage = session.get(UsageRow, (row.hub, row.username))
    if usage is None:
        usage = UsageRow(hub=row.hub, username=row.username, gpu_s=0.0, at=now)
        session.add(usage)
    usage.gpu_s = decayed(usage.gpu_s, now - usage.at) + accrued(row.weight, row.since, now, now)
    usage.at = now
    monday = week_start(row.since)
    while monday < now:
        sunday = next_week(monday)
        seconds = row.weight * overlap_s(row.since, now, monday, sunday)
        key = (row.hub, row.username, row.grant_id, monday)
        week = session.get(WeekUsageRow, key)
        if week is None:
            week = WeekUsageRow(
                hub=row.hub, username=row.username, grant_id=row.grant_id, week=monday, gpu_s=0.0
            )
            session.add(week)
        week.gpu_s += seconds
        monday = sunday


def in_force(hub: str) -> Any:
    """The query for a hub's leases in force, the oldest first."""
    return (
        select(LeaseRow)
        .where(LeaseRow.hub == hub, LeaseRow.released_at.is_(None))
        .order_by(LeaseRow.since, LeaseRow.id)
    )


def _of_server(hub: str, username: str, servername: str) -> tuple[Any, ...]:
    return LeaseRow.hub == hub, LeaseRow.username == username, LeaseRow.servername == servername


def rows_of(session: Session, *conditions: Any) -> list[LeaseRow]:
    """Leases in force that meet the conditions."""
    found = select(LeaseRow).where(*conditions, LeaseRow.released_at.is_(None))
    return list(session.scalars(found))


def lease_of_row(row: LeaseRow) -> Lease:
    """A lease as a value."""
    slots = row.slots or [[0, 1]] * len(row.gpus)
    return Lease(
        id=row.id,
        hub=row.hub,
        start_id=row.start_id,
        username=row.username,
        servername=row.servername,
        holdings=tuple(
            Holding(GpuUuid(gpu), slot, cut)
            for gpu, (slot, cut) in zip(row.gpus, slots, strict=True)
        ),
        request=row.request,
        since=row.since,
        grant=row.grant_id,
        until=row.until,
        kept_until=row.kept_until,
        warned_at=row.warned_at,
        weight=row.weight,
    )
