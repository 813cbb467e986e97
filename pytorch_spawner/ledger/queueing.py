"""Tickets, and carrying out what the scheduler decided about them.

The store keeps what was decided and refuses what breaks a rule of the tables; it decides nothing:
the function that decides is handed in and runs inside the transaction.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from pytorch_spawner.core.grants import Grant, week_start
from pytorch_spawner.core.placement import DeviceSetting
from pytorch_spawner.core.scheduling import gpu_share
from pytorch_spawner.core.tickets import Decisions, Give, Ticket, Usage
from pytorch_spawner.core.usage import accrued, decayed, overlap_s
from pytorch_spawner.errors import StartIsOver
from pytorch_spawner.ledger.leases import Lease, Leases, in_force, lease_of_row, rows_of
from pytorch_spawner.ledger.models import (
    LeaseRow,
    StartRow,
    TicketRow,
    UsageRow,
    WeekUsageRow,
)
from pytorch_spawner.ledger.starts import Start


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


class Queueing(Leases):
    """The part of the ledger about who waits for GPUs."""

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

    def remove_ticket(
        self,
        hub: str,
        username: str,
        servername: str,
        by: str,
        check: Callable[[Ticket], None] = lambda _: None,
    ) -> int | None:
        """An admin takes a start out of the queue.

        Args:
            hub: Id of the hub.
            username: Whose server waits.
            servername: Which of them.
            by: Who takes it out.
            check: Called with the ticket inside the transaction; what it raises stops it.

        Returns:
            Id of the log's line; None when there is no such ticket.
        """
        with self._transaction() as session:
            row = session.get(TicketRow, (hub, username, servername))
            if row is None:
                return None
            check(_ticket(row))
            subject = f"{username}/{servername}"
            change = self._note(session, hub, by, "queue", subject, "waits", "removed")
            session.delete(row)
            return change

    def boost(
        self,
        hub: str,
        username: str,
        servername: str,
        boost: int,
        by: str,
        check: Callable[[Ticket], None] = lambda _: None,
    ) -> int | None:
        """Set what an admin adds to a ticket's priority; see ``remove_ticket``.

        Returns:
            Id of the log's line, 0 when it was that already; None when there is no such ticket.
        """
        with self._transaction() as session:
            row = session.get(TicketRow, (hub, username, servername))
            if row is None:
                return None
            check(_ticket(row))
            if row.boost == boost:
                return 0
            subject = f"{username}/{servername}"
            change = self._note(session, hub, by, "queue", subject, row.boost, boost)
            row.boost = boost
            return change

    def mark_away(self, hub: str) -> int:
        """All tickets of a hub lose their waiters: the hub restarted. Returns how many."""
        with self._transaction() as session:
            done = session.execute(
                update(TicketRow)
                .where(TicketRow.hub == hub, TicketRow.away_since.is_(None))
                .values(away_since=self._moment(session, hub))
            )
            self._count_up(session, hub, "shown")
            return int(getattr(done, "rowcount", 0))

    def mark_server_away(self, hub: str, username: str, servername: str) -> None:
        """A server's ticket loses its waiter and keeps its place for a while."""
        with self._transaction() as session:
            row = session.get(TicketRow, (hub, username, servername))
            if row is not None and row.away_since is None:
                row.away_since = self._moment(session, hub)
                self._count_up(session, hub, "shown")

    def forget_away(self, hub: str, before: float) -> int:
        """Drop tickets that nobody came back to since ``before``; returns how many."""
        with self._transaction() as session:
            done = session.execute(
                delete(TicketRow).where(TicketRow.hub == hub, TicketRow.away_since < before)
            )
            dropped = int(getattr(done, "rowcount", 0))
            if dropped:
                self._count_up(session, hub, "shown")
            return dropped

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
                self._give_back(
                    session, rows_of(session, LeaseRow.id == lease_id), "kept time over"
                )
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
            if self._tell(session, hub, decisions) or decisions.refuse:
                self._count_up(session, hub, "shown")
            return decisions, leases

    @staticmethod
    def _tell(session: Session, hub: str, decisions: Decisions) -> bool:
        """Write down what those who wait are told; whether anything changed."""
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
        return bool(changed)

    def queue(self, hub: str) -> tuple[Waiting, ...]:
        """Return who waits, in the order of the last decision, and what they are told."""
        with self._reading() as session:
            rows = session.scalars(select(TicketRow).where(TicketRow.hub == hub))
            waiting = [Waiting(_ticket(row), *(row.told if row.told else ())) for row in rows]
        return tuple(sorted(waiting, key=lambda row: (row.place or 10**9, row.ticket.seq)))

    def _state(self, session: Session, hub: str, now: float) -> QueueState:
        leases = tuple(map(lease_of_row, session.scalars(in_force(hub))))
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
            "course": ticket.course,
        },
        since=now,
        grant=give.grant.id,
        until=give.until,
        weight=sum(map(gpu_share, give.gpus)),
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
        course=str(wanted.get("course", "")),
        seq=row.seq,
        since=row.since,
        boost=row.boost,
        is_away=row.away_since is not None,
    )
