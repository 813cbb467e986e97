"""Tickets, leases, past use: the queue's state, and carrying out what the scheduler decided.

The store keeps what was decided and refuses what breaks a rule of the tables; it decides nothing:
the function that decides is handed in and runs inside the transaction.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from pytorch_spawner.core.gpus import GpuUuid
from pytorch_spawner.core.grants import Grant, next_week, week_start
from pytorch_spawner.core.placement import DeviceSetting, Holding
from pytorch_spawner.core.scheduling import gpu_share
from pytorch_spawner.core.tickets import Decisions, Give, Held, Ticket, Usage
from pytorch_spawner.core.usage import accrued, decayed, overlap_s
from pytorch_spawner.errors import StartIsOver
from pytorch_spawner.ledger.granting import Granting
from pytorch_spawner.ledger.models import (
    HoldingRow,
    LeaseRow,
    StartRow,
    TicketRow,
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


@dataclass(frozen=True, slots=True)
class Waiting:
    """A ticket and what the last decision told it; place 0 before the first decision."""

    ticket: Ticket
    place: int = 0
    of: int = 0
    expected_at: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class QueueState:
    """Everything of the ledger that a decision depends on, as of one transaction."""

    leases: tuple[Lease, ...]
    tickets: tuple[Ticket, ...]
    grants: tuple[Grant, ...]
    settings: tuple[DeviceSetting, ...]
    usage: Usage
    now: float


class Leasing(Granting):
    """The part of the ledger about who waits for GPUs and who holds them."""

    # -- the queue --------------------------------------------------------------------------

    def join(self, start: Start) -> Ticket:
        """Take a place in the queue; whatever the server still held is given back first.

        A server that waited before the hub restarted gets its old place.

        Raises:
            StartIsOver: The start ended meanwhile; nothing was written.
        """
        with self._transaction() as session:
            self._require_open(session, start.id)
            now = self._moment(session, start.hub)
            # What is kept after an unexpected exit stays: the scheduler hands it over.
            self._release(session, start, "superseded", with_kept=False)
            row = session.get(TicketRow, (start.hub, start.username, start.servername))
            if row is None:
                row = TicketRow(
                    hub=start.hub,
                    username=start.username,
                    servername=start.servername,
                    seq=self._count_up(session, start.hub, "ticket"),
                    since=now,
                    boost=0,
                )
                session.add(row)
            row.start_id = start.id
            row.groups = list(start.groups)
            row.request = dict(start.request)
            row.away_since = None
            self._count_up(session, start.hub, "version")
            session.flush()
            return _ticket(row)

    def leave(self, start_id: str) -> bool:
        """Give up a start's place in the queue; False when it has none."""
        with self._transaction() as session:
            row = session.scalar(select(TicketRow).where(TicketRow.start_id == start_id))
            if row is None:
                return False
            self._count_up(session, row.hub, "version")
            session.delete(row)
            return True

    def remove_ticket(self, hub: str, username: str, servername: str, by: str) -> bool:
        """An admin takes a start out of the queue; False when there is no such ticket."""
        with self._transaction() as session:
            row = session.get(TicketRow, (hub, username, servername))
            if row is None:
                return False
            self._note(session, hub, by, "queue", f"{username}/{servername}", "waits", "removed")
            session.delete(row)
            return True

    def boost(self, hub: str, username: str, servername: str, boost: int, by: str) -> bool:
        """Set what an admin adds to a ticket's priority; False when there is no such ticket."""
        with self._transaction() as session:
            row = session.get(TicketRow, (hub, username, servername))
            if row is None:
                return False
            self._note(session, hub, by, "queue", f"{username}/{servername}", row.boost, boost)
            row.boost = boost
            return True

    def mark_away(self, hub: str) -> int:
        """All tickets of a hub lose their waiters: the hub restarted. Returns how many."""
        with self._transaction() as session:
            done = session.execute(
                update(TicketRow)
                .where(TicketRow.hub == hub, TicketRow.away_since.is_(None))
                .values(away_since=self._moment(session, hub))
            )
            return int(getattr(done, "rowcount", 0))

    def mark_server_away(self, hub: str, username: str, servername: str) -> None:
        """A server's ticket loses its waiter and keeps its place for a while."""
        with self._transaction() as session:
            row = session.get(TicketRow, (hub, username, servername))
            if row is not None and row.away_since is None:
                row.away_since = self._moment(session, hub)

    def forget_away(self, hub: str, before: float) -> int:
        """Drop tickets that nobody came back to since ``before``; returns how many."""
        with self._transaction() as session:
            done = session.execute(
                delete(TicketRow).where(TicketRow.hub == hub, TicketRow.away_since < before)
            )
            return int(getattr(done, "rowcount", 0))

    def decide(
        self, hub: str, decide: Callable[[QueueState], Decisions]
    ) -> tuple[Decisions, Mapping[str, Lease]]:
        """Decide and carry out in one transaction.

        Args:
            hub: Id of the hub.
            decide: Pure; called with the state as of this transaction.

        Returns:
            The decisions, and the leases that were written, by start id. A start that ended in the
            meantime gets none, and its ticket goes.

        Raises:
            LedgerUnavailable: Nothing was written.
        """
        with self._transaction() as session:
            now = self._moment(session, hub)
            self._drop_dead(session, hub)
            decisions = decide(self._state(session, hub, now))
            for lease_id in decisions.release:
                self._give_back(session, _rows(session, LeaseRow.id == lease_id), "kept time over")
            # Not before what was given back above: in the history no GPU is held twice.
            since = self._moment(session, hub) if decisions.release else now
            leases: dict[str, Lease] = {}
            for give in decisions.give:
                if not self._is_open(session, give.ticket.id):
                    self._drop(session, hub, give.ticket)
                    continue
                lease = _lease_of(hub, give, since)
                self._hold(session, lease)
                self._drop(session, hub, give.ticket)
                leases[give.ticket.id] = lease
            for refuse in decisions.refuse:
                self._drop(session, hub, refuse.ticket)
            self._tell(session, hub, decisions)
            return decisions, leases

    @staticmethod
    def _tell(session: Session, hub: str, decisions: Decisions) -> None:
        """Write down what those who wait are told, where it changed."""
        rows = session.execute(
            select(TicketRow.start_id, TicketRow.told).where(TicketRow.hub == hub)
        )
        known = {row.start_id: row.told for row in rows}
        changed = [
            {
                "hub": hub,
                "username": wait.ticket.username,
                "servername": wait.ticket.servername,
                "told": [wait.place, wait.of, wait.expected_at, wait.reason],
            }
            for wait in decisions.wait
            if wait.ticket.id in known
            and known[wait.ticket.id] != [wait.place, wait.of, wait.expected_at, wait.reason]
        ]
        if changed:
            session.execute(update(TicketRow), changed)

    def queue(self, hub: str) -> tuple[Waiting, ...]:
        """Return who waits, in the order of the last decision, and what they are told."""
        with self._reading() as session:
            rows = session.scalars(select(TicketRow).where(TicketRow.hub == hub))
            waiting = [Waiting(_ticket(row), *(row.told if row.told else ())) for row in rows]
        return tuple(sorted(waiting, key=lambda row: (row.place or 10**9, row.ticket.seq)))

    def _state(self, session: Session, hub: str, now: float) -> QueueState:
        leases = tuple(map(_lease, session.scalars(_in_force(hub))))
        rows = session.scalars(
            select(TicketRow).where(TicketRow.hub == hub).order_by(TicketRow.seq)
        )
        return QueueState(
            leases=leases,
            tickets=tuple(map(_ticket, rows)),
            grants=self._grants(session, hub),
            settings=self._settings(session, hub),
            usage=self._usage(session, hub, leases, now),
            now=now,
        )

    def _usage(self, session: Session, hub: str, leases: Iterable[Lease], now: float) -> Usage:
        waiting = select(TicketRow.username).where(TicketRow.hub == hub)
        decayed_s = {
            row.username: decayed(row.gpu_s, now - row.at)
            for row in session.scalars(
                select(UsageRow).where(UsageRow.hub == hub, UsageRow.username.in_(waiting))
            )
        }
        monday = week_start(now)
        week_s = {
            (row.username, row.grant_id): row.gpu_s
            for row in session.scalars(
                select(WeekUsageRow)
                .where(WeekUsageRow.hub == hub, WeekUsageRow.week == monday)
                .where(WeekUsageRow.username.in_(waiting))
            )
        }
        for lease in leases:
            name = lease.username
            running_s = accrued(lease.weight, lease.since, now, now)
            decayed_s[name] = decayed_s.get(name, 0.0) + running_s
            key = (name, lease.grant)
            this_week_s = lease.weight * overlap_s(lease.since, now, monday, now)
            week_s[key] = week_s.get(key, 0.0) + this_week_s
        return Usage(
            {name: seconds / 3600 for name, seconds in decayed_s.items()},
            {key: seconds / 3600 for key, seconds in week_s.items()},
        )

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
            for lease in map(_lease, session.scalars(_in_force(hub))):
                if lease.username == username:
                    hours = lease.weight * overlap_s(lease.since, now, monday, now) / 3600
                    used[lease.grant] = used.get(lease.grant, 0.0) + hours
            return used

    def _drop_dead(self, session: Session, hub: str) -> None:
        """Tickets whose start is over wait for nothing: whoever ended it could not drop them."""
        still_open = select(StartRow.id).where(StartRow.hub == hub, StartRow.ended_at.is_(None))
        session.execute(
            delete(TicketRow)
            .where(TicketRow.hub == hub, TicketRow.away_since.is_(None))
            .where(TicketRow.start_id.not_in(still_open))
        )

    def _drop(self, session: Session, hub: str, ticket: Ticket) -> None:
        session.execute(
            delete(TicketRow).where(TicketRow.hub == hub, TicketRow.start_id == ticket.id)
        )

    @staticmethod
    def _is_open(session: Session, start_id: str) -> bool:
        row = session.get(StartRow, start_id)
        return row is not None and row.ended_at is None

    def _require_open(self, session: Session, start_id: str) -> None:
        # A start that was cancelled leaves its thread waiting for this transaction. It must not
        # take, nor release what the student's next start already holds.
        if not self._is_open(session, start_id):
            raise StartIsOver("This start was cancelled.")

    # -- leases -----------------------------------------------------------------------------

    def leases(self, hub: str) -> tuple[Lease, ...]:
        """Return what is held now, the oldest first."""
        with self._reading() as session:
            return tuple(map(_lease, session.scalars(_in_force(hub))))

    def is_in_force(self, lease_id: str) -> bool:
        """Whether a lease is still held."""
        with self._reading() as session:
            row = session.get(LeaseRow, lease_id)
            return row is not None and row.released_at is None

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
            rows = _rows(session, *_of_server(hub, username, servername))
            for row in rows:
                row.kept_until = row.kept_until or now + for_s
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
            rows = _rows(session, *_of_server(hub, username, servername))
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
                for row in _rows(session, LeaseRow.id == lease_id)
                if row.kept_until == kept_until
            ]
            self._give_back(session, rows, reason)
            return bool(rows)

    def _release(self, session: Session, start: Start, reason: str, *, with_kept: bool) -> None:
        rows = _rows(session, *_of_server(start.hub, start.username, start.servername))
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


def _in_force(hub: str) -> Any:
    return (
        select(LeaseRow)
        .where(LeaseRow.hub == hub, LeaseRow.released_at.is_(None))
        .order_by(LeaseRow.since, LeaseRow.id)
    )


def _of_server(hub: str, username: str, servername: str) -> tuple[Any, ...]:
    return LeaseRow.hub == hub, LeaseRow.username == username, LeaseRow.servername == servername


def _rows(session: Session, *conditions: Any) -> list[LeaseRow]:
    found = select(LeaseRow).where(*conditions, LeaseRow.released_at.is_(None))
    return list(session.scalars(found))


def _lease_of(hub: str, give: Give, now: float) -> Lease:
    ticket = give.ticket
    return Lease(
        id=uuid.uuid4().hex,
        hub=hub,
        start_id=ticket.id,
        username=ticket.username,
        servername=ticket.servername,
        holdings=give.holdings,
        request={
            "image": ticket.image,
            "gpus": ticket.gpus,
            "share": ticket.share,
            "pool": ticket.pool,
        },
        since=now,
        grant=give.grant.id,
        until=give.until,
        weight=sum(map(gpu_share, give.gpus)),
    )


def _lease(row: LeaseRow) -> Lease:
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


def _ticket(row: TicketRow) -> Ticket:
    wanted = row.request
    return Ticket(
        id=row.start_id,
        username=row.username,
        servername=row.servername,
        groups=tuple(row.groups),
        gpus=int(wanted.get("gpus", 1)),
        share=str(wanted.get("share", "any")),
        pool=str(wanted.get("pool", "")),
        image=str(wanted.get("image", "")),
        seq=row.seq,
        since=row.since,
        boost=row.boost,
        is_away=row.away_since is not None,
    )
