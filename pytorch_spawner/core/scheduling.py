"""Who gets which GPU now, and what everybody else is told: one pure function, ``schedule``.

Order of the queue: tickets that have waited longer than the policy's patience come first, in order
of arrival; then by priority, then by decayed past use (fair share, in steps), then by arrival.
A server that comes back to what is kept for it after a crash gets it back out of turn, before
anybody is told a time.

No starvation: a ticket that cannot be served keeps the devices it could already have (they are
reserved for it), and nobody behind it gets them, except a lease that is sure to end before the
ticket expects to start. A ticket past the patience is overtaken by nobody any more.

Nothing here reads a clock: ``now`` comes from the ledger, where it never runs backwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from pytorch_spawner.core.entitlement import Entitlements, Option
from pytorch_spawner.core.forecast import Expectation, Forecast, Line
from pytorch_spawner.core.gpus import Gpu, Inventory
from pytorch_spawner.core.grants import Grant, GrantBook, explain_one, week_start
from pytorch_spawner.core.placement import Board, Device, Holding, Kind
from pytorch_spawner.core.refusals import (
    Refused,
    beyond_the_lab,
    holds_all,
    hours_used_up,
    no_gpu_at_all,
    not_covered,
    not_in_time,
    out_of_service,
)
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

# A lease shorter than this is of no use to anybody: who has less left in the week is refused.
_SHORTEST_LEASE_S: Final = 60.0


def schedule(  # noqa: PLR0913  (what a decision depends on, each by its name)
    inventory: Inventory,
    leases: Sequence[Held],
    tickets: Sequence[Ticket],
    grants: GrantBook,
    usage: Usage,
    now: float,
    policy: Policy | None = None,
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

    Returns:
        A decision for each ticket; the same input gives the same decisions.
    """
    return _Pass(inventory, leases, grants, usage, now, policy or Policy()).run(tickets)


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
        for held in self.leases:
            self._count(held.username, held.grant, len(held.holdings))
        # From when until when hours of a grant are used, and how many an hour; until None: open.
        self.spending: dict[tuple[str, str], list[tuple[float, float | None, float]]] = {}
        self.reserved = grants.reserved(now)
        self.board = Board(
            inventory, _taken(inventory, self.leases), self.reserved, policy.preference
        )
        for held in self.leases:
            if held.grant in grants.with_hours:
                weight = sum(
                    gpu_share(device.gpu)
                    for holding in held.holdings
                    if (device := self.board.by_uuid.get(holding.gpu)) is not None
                )
                self._spend(held.username, held.grant, now, held.free_at, weight)
        self.forecast = Forecast(self.board, self.leases)
        self.troubles: dict[tuple[Kind, int], str] = {}
        self.failed: set[tuple[Kind, int, float | None]] = set()
        self.entitlements = Entitlements(grants, self.board, policy.max_lease_s, now)
        self.give: list[Give] = []
        self.refuse: list[Refuse] = []

    def run(self, tickets: Sequence[Ticket]) -> Decisions:
        in_order = sorted(tickets, key=self._order)
        # Before anybody is promised a time: what its server comes back to does not fall free.
        back = [one for one in in_order if one.server in self.kept and not one.is_away]
        decided = {ticket.id for ticket in back if self._decide_kept(ticket)}
        waiting = Line(self.board)
        for ticket in in_order:
            if ticket.id in decided:
                continue
            try:
                options = self._options(ticket)
            except Refused as refused:
                self.refuse.append(Refuse(ticket, refused.code, str(refused)))
                continue
            given = self._place(ticket, options)
            if given is None:
                option = self._in_service(ticket, options)
                expected, trouble = self._expect(ticket, option, is_only=len(options) == 1)
                waiting.join(ticket, option.kind, expected.at, expected.after, trouble)
            else:
                self.give.append(given)
        return Decisions(
            tuple(self.give), tuple(waiting.told()), tuple(self.refuse), tuple(self.release)
        )

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
        self.held_count[key] = self.held_count.get(key, 0) + count

    def _spend(
        self, username: str, grant: str, start: float, until: float | None, weight: float
    ) -> None:
        self.spending.setdefault((username, grant), []).append((start, until, weight))

    # -- order ------------------------------------------------------------------------------

    def _order(self, ticket: Ticket) -> tuple[float, ...]:
        if self.now - ticket.since >= self.policy.patience_s:
            return (0, 0, 0, ticket.seq)
        used_h = self.usage.decayed_h.get(ticket.username, 0.0)
        step = used_h // self.policy.usage_step_h if self.policy.usage_step_h > 0 else used_h
        return (1, -self._priority(ticket), step, ticket.seq)

    def _priority(self, ticket: Ticket) -> int:
        priorities = [option.grant.priority for option in self.entitlements.of(ticket)]
        return max(priorities, default=0) + ticket.boost

    # -- what a ticket may have -------------------------------------------------------------

    def _options(self, ticket: Ticket) -> list[Option]:
        """What is left of the options once the person's own holdings and hours are counted."""
        covering = self.entitlements.of(ticket)
        room = [
            option
            for option in covering
            if option.most >= ticket.gpus
            and self._has_hours(ticket, option.grant)
            and self._held(ticket, option.grant) + ticket.gpus <= option.grant.count
        ]
        if not room:
            raise self._refused(ticket, covering)
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
        left = [option.grant for option in possible if self._has_hours(ticket, option.grant)]
        if not left:
            return hours_used_up(possible[0].grant)
        return holds_all(ticket, left[0], self._held(ticket, left[0]), self.leases)

    def _held(self, ticket: Ticket, grant: Grant) -> int:
        held = self.held_count.get((ticket.username, grant.id), 0)
        kept = self.kept.get(ticket.server)
        # What is kept for this very server is not held beside it.
        return held - len(kept.holdings) if kept is not None and kept.grant == grant.id else held

    def _left_h(self, ticket: Ticket, grant: Grant) -> float | None:
        if grant.weekly_gpu_hours is None:
            return None
        return grant.weekly_gpu_hours - self.usage.week_h.get((ticket.username, grant.id), 0.0)

    def _has_hours(self, ticket: Ticket, grant: Grant) -> bool:
        left_h = self._left_h(ticket, grant)
        return left_h is None or left_h * 3600 >= _SHORTEST_LEASE_S

    # -- serving ----------------------------------------------------------------------------

    def _resume(self, ticket: Ticket, options: Sequence[Option]) -> Give | None:
        """Give a server that ended unexpectedly what was kept for it, out of turn."""
        kept = self.kept.pop(ticket.server, None)
        if kept is None:  # two tickets of one server, and the other one was first
            return None
        self._count(kept.username, kept.grant, -len(kept.holdings))
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
        left_h = self._left_h(ticket, grant)
        if left_h is not None:
            by_hours_s = left_h * 3600 / sum(map(gpu_share, gpus))
            longest_s = by_hours_s if longest_s is None else min(longest_s, by_hours_s)
        until = None if longest_s is None else self.now + longest_s
        if resumed is not None and resumed.until is not None:
            # A server that ends and comes back does not earn more time by it.
            until = resumed.until if until is None else min(resumed.until, until)
        self._count(ticket.username, grant.id, len(holdings))
        for holding in holdings:
            self.forecast.add(holding.gpu, until, ticket.username)
        if left_h is not None:
            self._spend(ticket.username, grant.id, self.now, until, sum(map(gpu_share, gpus)))
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

    def _in_service(self, ticket: Ticket, options: Sequence[Option]) -> Option:
        """The option to wait for: the first for which enough devices are in service."""
        for option in options:
            if self.board.most_at_once(option.kind, in_service=True) >= ticket.gpus:
                return option
        return options[0]

    def _expect(self, ticket: Ticket, option: Option, *, is_only: bool) -> tuple[Expectation, str]:
        """When a waiting ticket should be served; what is free already is kept for it."""
        trouble = self._trouble(option.kind, ticket.gpus)
        if trouble or ticket.is_away:
            return Expectation(None), trouble
        kind = option.kind
        kept: list[Device] = []
        if ticket.gpus > 1:  # whoever wants one and waits saw nothing free
            kind, kept = self.board.gather(kind, ticket.gpus)
        beside = [device.gpu.uuid for device in kept]
        expected = self.forecast.next(kind, ticket.gpus - len(kept), self.now, beside)
        for device in kept:
            device.reserved_until = self.now if expected.at is None else expected.at
        ends_at = option.grant.valid_until
        if expected.at is not None and ends_at is not None and expected.at >= ends_at:
            # Somebody may stop earlier, so it waits; but by then nothing gives it anything.
            return Expectation(None), not_in_time(option.grant) if is_only else ""
        if expected.at is not None and not self._has_hours_at(ticket, option.grant, expected.at):
            return Expectation(None), ""
        if expected.at is not None and option.longest_s is not None:
            # Those behind it wait until it is done in its turn.
            for uuid in (*expected.gpus, *beside):
                self.forecast.add(uuid, expected.at + option.longest_s, ticket.username)
        return expected, ""

    def _has_hours_at(self, ticket: Ticket, grant: Grant, at: float) -> bool:
        """Whether hours are left by then, if the person's other servers run as long as they may.

        Whoever is served at that time uses hours from then on, for all that comes behind it.
        """
        if grant.weekly_gpu_hours is None:
            return True
        monday = week_start(at)
        used_h = 0.0
        if monday <= self.now:
            used_h = self.usage.week_h.get((ticket.username, grant.id), 0.0)
        for start, until, weight in self.spending.get((ticket.username, grant.id), ()):
            end = at if until is None else min(until, at)
            used_h += weight * max(0.0, end - max(start, monday)) / 3600
        self._spend(ticket.username, grant.id, at, None, float(ticket.gpus))
        return (grant.weekly_gpu_hours - used_h) * 3600 >= _SHORTEST_LEASE_S

    def _trouble(self, kind: Kind, count: int) -> str:
        """Why fewer than ``count`` devices of a kind are in service; "" where there are enough."""
        key = (kind, count)
        if key not in self.troubles:
            most = self.board.most_at_once(kind, in_service=True)
            is_enough = most >= count
            self.troubles[key] = "" if is_enough else out_of_service(self.board.of_kind(kind), most)
        return self.troubles[key]


def gpu_share(gpu: Gpu) -> float:
    """What holding one slot counts in GPU-hours: 1 for a whole GPU, 1/N for a slot, g/7 for MIG.

    Source: NVIDIA's MIG guide: a GPU has seven compute slices; "2g" has two.
    """
    if gpu.mig_profile:
        return min(7, int(gpu.mig_profile.partition("g")[0] or 7)) / 7 / max(1, gpu.slots)
    return 1 / max(1, gpu.slots)


def _taken(inventory: Inventory, leases: Iterable[Held]) -> dict[str, set[int]]:
    """Slots in use; a device held under another mode is taken whole, however it is cut now."""
    cut: dict[str, int] = {gpu.uuid: gpu.slots for gpu in inventory.gpus}
    taken: dict[str, set[int]] = {}
    for held in leases:
        for holding in held.holdings:
            slots = taken.setdefault(holding.gpu, set())
            slots.add(holding.slot)
            now = cut.get(holding.gpu, holding.slots)
            if now != holding.slots:
                slots.update(range(now))
    return taken
