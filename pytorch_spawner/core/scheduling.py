"""Who gets which GPU now, and what everybody else is told: one pure function, ``schedule``.

Order of the queue: tickets that have waited longer than the policy's patience come first, in order
of arrival; then by priority, then by decayed past use (fair share, in steps), then by arrival.
A server that comes back to what is kept for it after a crash gets it back out of turn, before
anybody is told a time. Around the beginning of a class, starts that take one of its seats come
next, before everybody else, and what is left of the seats is nobody's (``core.seats``).

No starvation: a ticket that cannot be served keeps devices that it could already have, and nobody
behind it gets them, except a lease that is sure to end before the ticket expects to start. Once it
is past the patience it keeps them wherever it may be served, and nobody overtakes it any more;
``core.reservation`` says what that guarantees.

Nothing here reads a clock: ``now`` comes from the ledger, where it never runs backwards.
"""

from __future__ import annotations

from collections.abc import Sequence

from pytorch_spawner.core.entitlement import Entitlements, Option
from pytorch_spawner.core.forecast import Forecast, Line
from pytorch_spawner.core.gpus import Gpu, Inventory, gpu_share
from pytorch_spawner.core.grants import Grant, GrantBook, explain_one
from pytorch_spawner.core.placement import Board, Holding, Kind, slots_in_use
from pytorch_spawner.core.refusals import (
    Refused,
    beyond_the_lab,
    ends_too_soon,
    holds_all,
    hours_used_up,
    no_gpu_at_all,
    not_covered,
    not_in_time,
    out_of_service,
)
from pytorch_spawner.core.reservation import Reservations
from pytorch_spawner.core.seats import ClassSeats, Seats
from pytorch_spawner.core.tickets import (
    Decisions,
    Give,
    Held,
    Policy,
    Refuse,
    Ticket,
    Usage,
    Wait,
)
from pytorch_spawner.core.weekly import SHORTEST_LEASE_S, WeeklyHours

__all__ = [
    "Decisions",
    "Give",
    "Held",
    "Policy",
    "Refuse",
    "Ticket",
    "Usage",
    "Wait",
    "gpu_share",
    "schedule",
]


def schedule(  # noqa: PLR0913  (what a decision depends on, each by its name)
    inventory: Inventory,
    leases: Sequence[Held],
    tickets: Sequence[Ticket],
    grants: GrantBook,
    usage: Usage,
    now: float,
    policy: Policy | None = None,
    seats: Sequence[Seats] = (),
) -> Decisions:
    """Decide about every ticket.

    Args:
        inventory: The devices, with the admin's settings laid over them
            (``placement.with_settings``).
        leases: What is held, containers without a lease included.
        tickets: Who waits, in any order.
        grants: All grants of the hub.
        usage: Past use.
        now: Unix time in seconds that never runs backwards.
        policy: How the queue is kept.
        seats: What is still to be kept for classes now (``seats.open_seats``).

    Returns:
        A decision for each ticket; the same input gives the same decisions.
    """
    one = _Pass(inventory, leases, grants, usage, now, policy or Policy())
    share = one.policy.class_seats_share
    return one.run(tickets, ClassSeats(seats, grants, now, one.board, share) if seats else None)


class _Pass:
    """One run of ``schedule``; its state is what the decisions so far have changed."""

    def __init__(
        self,
        inventory: Inventory,
        leases: Sequence[Held],
        grants: GrantBook,
        usage: Usage,
        now: float,
        policy: Policy,
    ) -> None:
        self.inventory, self.grants, self.usage = inventory, grants, usage
        self.now, self.policy = now, policy
        # In an order of our own, so that the answer does not depend on the order of the input.
        leases = sorted(leases, key=lambda held: (held.id, held.username, held.servername))
        over = [held for held in leases if held.is_over(now)]
        self.release = [held.id for held in over]
        self.leases = [held for held in leases if held not in over] if over else leases
        self.kept = {
            (held.username, held.servername): held
            for held in self.leases
            if held.kept_until is not None
        }
        self.held_count: dict[tuple[str, str], int] = {}
        self.holders: set[str] = set()
        for held in self.leases:
            self._count(held.username, held.grant, len(held.holdings))
        self.reserved = grants.reserved(now)
        holdings = [holding for held in self.leases for holding in held.holdings]
        self.board = Board(
            inventory, slots_in_use(inventory, holdings), self.reserved, policy.preference
        )
        self.hours = WeeklyHours(usage, now)
        for held in self.leases:
            if held.grant in grants.with_hours:
                weight = sum(
                    device.share
                    for holding in held.holdings
                    if (device := self.board.by_uuid.get(holding.gpu)) is not None
                )
                # Kept or not: its server may come back, and then it lasts as long as it may.
                self.hours.hold(held.username, held.grant, held.id, held.until, weight)
        self.forecast = Forecast(self.board, self.leases)
        self.reservations = Reservations(self.board, self.forecast, self.hours, now)
        self.troubles: dict[tuple[Kind, int], str] = {}
        self.failed: set[tuple[Kind, int, float | None]] = set()
        self.entitlements = Entitlements(grants, self.board, policy.max_lease_s, now)
        # What has room by the state before anybody was served, and who was served since.
        self.rooms: dict[str, Sequence[Option]] = {}
        self.touched: set[str] = set()
        self.give: list[Give] = []
        self.refuse: list[Refuse] = []

    def run(self, tickets: Sequence[Ticket], classes: ClassSeats | None) -> Decisions:
        in_order = sorted(tickets, key=self._order)
        # Before anybody is promised a time: what its server comes back to does not fall free.
        back = [one for one in in_order if one.server in self.kept and not one.is_away]
        decided = {ticket.id for ticket in back if self._decide_kept(ticket)}
        waiting = Line(self.board)
        if classes is not None:
            for ticket in in_order:
                if ticket.id not in decided and classes.has_seat(ticket):
                    decided.add(ticket.id)
                    before = len(self.give)
                    if self._decide(ticket, waiting):
                        classes.take(ticket, self.give[before:])
            classes.withhold(self.board, self.forecast)
        for ticket in in_order:
            if ticket.id not in decided:
                self._decide(ticket, waiting)
        kept = None if classes is None else lambda kind: classes.say(kind, self.board)
        return Decisions(
            tuple(self.give), tuple(waiting.told(kept)), tuple(self.refuse), tuple(self.release)
        )

    def _decide(self, ticket: Ticket, waiting: Line) -> bool:
        """Decide about one ticket in its turn; False where it is refused."""
        try:
            options = self._options(ticket)
        except Refused as refused:
            self.refuse.append(Refuse(ticket, refused.code, str(refused)))
            return False
        given = self._place(ticket, options)
        if given is None:
            waiting.join(ticket, *self._expect(ticket, options))
        else:
            self.give.append(given)
        return True

    def _decide_kept(self, ticket: Ticket) -> bool:
        """Decide about a server that something is kept for; False where it queues like others."""
        try:
            given = self._resume(ticket, self._options(ticket))
        except Refused as refused:
            self.refuse.append(Refuse(ticket, refused.code, str(refused)))
            return True
        if given is not None:
            self.give.append(given)
        return given is not None

    def _count(self, username: str, grant: str, count: int) -> None:
        key = (username, grant)
        self.holders.add(username)
        self.held_count[key] = self.held_count.get(key, 0) + count

    def _is_past(self, ticket: Ticket) -> bool:
        """Whether it has waited longer than the patience."""
        return self.now - ticket.since >= self.policy.patience_s

    # -- order ------------------------------------------------------------------------------

    def _order(self, ticket: Ticket) -> tuple[float, ...]:
        if self._is_past(ticket):
            return (0, 0, 0, ticket.seq)
        used_h = self.usage.decayed_h.get(ticket.username, 0.0)
        step = used_h // self.policy.usage_step_h if self.policy.usage_step_h > 0 else used_h
        return (1, -self._priority(ticket), step, ticket.seq)

    def _priority(self, ticket: Ticket) -> int:
        # A grant that gives nothing any more gives no priority either.
        room = self._room(ticket)
        return max([option.grant.priority for option in room] or (0,)) + ticket.boost

    # -- what a ticket may have -------------------------------------------------------------

    def _options(self, ticket: Ticket) -> Sequence[Option]:
        """What is left of the options once the person's own holdings and hours are counted."""
        room = self._room(ticket)
        if not room:
            raise self._refused(ticket, self.entitlements.of(ticket))
        return room

    def _room(self, ticket: Ticket) -> Sequence[Option]:
        room = None if ticket.username in self.touched else self.rooms.get(ticket.id)
        if room is None:
            gpus = ticket.gpus
            room = [
                option
                for option in self.entitlements.of(ticket)
                if option.most >= gpus
                and not option.is_ending
                # 0: its grant sets no limit.
                and (not option.weight or self._has_hours(ticket, option))
            ]
            if ticket.username in self.holders:  # a grant covers nothing beyond its count
                room = [
                    option
                    for option in room
                    if self._held(ticket, option.grant) + gpus <= option.grant.count
                ]
            self.rooms[ticket.id] = room
        return room

    def _refused(self, ticket: Ticket, covering: Sequence[Option]) -> Refused:
        """Which of the conditions none of the options meets."""
        if not covering:
            return not_covered(ticket, self.entitlements.grants_of(ticket))
        possible = [option for option in covering if option.most >= ticket.gpus]
        if not possible:
            if not self.inventory.gpus:
                return no_gpu_at_all(self.inventory.reason)
            most = max(option.most for option in covering)
            return beyond_the_lab(ticket, covering[0].kind, most)
        lasting = [option for option in possible if not option.is_ending]
        if not lasting:
            return ends_too_soon(possible[0].grant)
        left = [option.grant for option in lasting if self._has_hours(ticket, option)]
        if not left:
            grant = lasting[0].grant
            are_shared = self.hours.are_shared(ticket.username, grant.id, self._kept_id(ticket))
            return hours_used_up(grant, are_shared=are_shared)
        return holds_all(ticket, left[0], self._held(ticket, left[0]), self.leases, self.give)

    def _held(self, ticket: Ticket, grant: Grant) -> int:
        held = self.held_count.get((ticket.username, grant.id), 0)
        kept = self.kept.get(ticket.server)
        # What is kept for this very server is not held beside it.
        return held - len(kept.holdings) if kept is not None and kept.grant == grant.id else held

    def _has_hours(self, ticket: Ticket, option: Option) -> bool:
        own = self._kept_id(ticket)
        return self.hours.suffice(ticket.username, option.grant, option.weight, own=own)

    def _kept_id(self, ticket: Ticket) -> str:
        kept = self.kept.get(ticket.server)
        return "" if kept is None else kept.id

    # -- serving ----------------------------------------------------------------------------

    def _resume(self, ticket: Ticket, options: Sequence[Option]) -> Give | None:
        """Give a server that ended unexpectedly what was kept for it, out of turn."""
        kept = self.kept.pop(ticket.server, None)
        if kept is None:  # two tickets of one server, and the other one was first
            return None
        self._count(kept.username, kept.grant, -len(kept.holdings))
        self.hours.forget(kept.username, kept.grant, kept.id)
        self.touched.add(kept.username)
        self.release.append(kept.id)
        devices = [self.board.by_uuid.get(holding.gpu) for holding in kept.holdings]
        option = next((option for option in options if option.grant.id == kept.grant), None)
        if (
            option is None
            or len(devices) != ticket.gpus
            or any(
                device is None
                or not device.is_open
                or not option.kind.fits(device.gpu, device.slots, self.reserved)
                for device in devices
            )
        ):
            # Its devices come back with the next decision, when the lease is gone.
            return None
        gpus = tuple(device.gpu for device in devices if device is not None)
        self.forecast.forget(kept.id)
        return self._given(ticket, option, gpus, kept.holdings, resumed=kept)

    def _place(self, ticket: Ticket, options: Sequence[Option]) -> Give | None:
        if ticket.is_away:
            return None
        for option in options:
            # Nothing is ever given back during a pass, so what failed once fails again.
            key = (option.kind, ticket.gpus, option.longest_s)
            if key in self.failed:
                continue
            ends_at = None if option.longest_s is None else self.now + option.longest_s
            devices = self.board.find(option.kind, ticket.gpus, ends_at)
            if devices is None:
                self.failed.add(key)
                continue
            holdings = tuple(self.board.take(device) for device in devices)
            return self._given(ticket, option, tuple(d.gpu for d in devices), holdings)
        return None

    def _given(
        self,
        ticket: Ticket,
        option: Option,
        gpus: tuple[Gpu, ...],
        holdings: tuple[Holding, ...],
        *,
        resumed: Held | None = None,
    ) -> Give:
        grant = option.grant
        longest_s = option.longest_s
        weight = sum(map(gpu_share, gpus))
        by_hours_s = self.hours.last_s(ticket.username, grant, weight)
        if by_hours_s is not None:
            longest_s = by_hours_s if longest_s is None else min(longest_s, by_hours_s)
        until = None if longest_s is None else self.now + longest_s
        if resumed is not None and resumed.until is not None:
            # A server that ends and comes back does not earn more time by it.
            until = resumed.until if until is None else min(resumed.until, until)
        self._count(ticket.username, grant.id, len(holdings))
        for holding in holdings:
            self.forecast.add(holding.gpu, until, ticket.username)
        self.touched.add(ticket.username)
        if by_hours_s is not None:
            self.hours.hold(ticket.username, grant.id, f"for {ticket.id}", until, weight)
        used_h = self.usage.week_h.get((ticket.username, grant.id), 0.0)
        why = explain_one("you", grant, self.inventory, used_h)
        return Give(
            ticket=ticket,
            gpus=gpus,
            holdings=holdings,
            grant=grant,
            until=until,
            why=why.replace("you gets", "You get", 1),
            resumes="" if resumed is None else resumed.id,
        )

    def _expect(
        self, ticket: Ticket, options: Sequence[Option]
    ) -> tuple[Kind, float | None, str, str]:
        """For what kind a ticket waits, when it should be served, after whom; what prevents it."""
        count = ticket.gpus
        in_service = [option for option in options if option.most_now >= count]
        if not in_service:
            return options[0].kind, None, "", self._trouble(options[0].kind, count)
        if ticket.is_away:
            return in_service[0].kind, None, "", ""
        if count == 1:
            place = self.reservations.wait_for_one(ticket, in_service)
        else:
            place = self.reservations.wait(ticket, in_service, is_past=self._is_past(ticket))
        kind, expected, grant = place.option.kind, place.expected, place.option.grant
        if place.told is not None:
            return kind, place.told, expected.after, ""
        # Only what its one grant cannot give in time is worth a sentence of its own.
        is_late = (
            len(options) == 1
            and expected.at is not None
            and grant.valid_until is not None
            and expected.at + SHORTEST_LEASE_S > grant.valid_until
        )
        return kind, None, "", not_in_time(grant) if is_late else ""

    def _trouble(self, kind: Kind, count: int) -> str:
        """Why fewer than ``count`` devices of a kind are in service."""
        key = (kind, count)
        if key not in self.troubles:
            most = self.board.most_at_once(kind, in_service=True)
            self.troubles[key] = out_of_service(self.board.of_kind(kind), most)
        return self.troubles[key]
