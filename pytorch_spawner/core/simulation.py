"""What a policy would have done to a demand: ``schedule`` run on a trace. Pure.

Nothing is drawn and no clock is read: the same trace, lab and policy always give the same numbers.
"""

from __future__ import annotations

import heapq
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from pytorch_spawner.core.gpus import Inventory
from pytorch_spawner.core.grants import Grant, GrantBook, next_week, week_start
from pytorch_spawner.core.scheduling import (
    Give,
    Held,
    Policy,
    Ticket,
    Usage,
    gpu_share,
    schedule,
)
from pytorch_spawner.core.trace import Job
from pytorch_spawner.core.usage import accrued, decayed, overlap_s

# Second 0 of a trace where nothing else is said: a Monday, 00:00 UTC.
A_MONDAY: Final = next_week(0.0)


@dataclass(frozen=True, slots=True)
class Waits:
    """Seconds waited by those who were served; None where nobody was.

    Attributes:
        served: How many those are.
        median_s: The middle one; the mean of the middle two.
        p95_s: Nearest rank: 95 of a hundred waited no longer.
        max_s: The longest.
    """

    served: int
    median_s: float | None
    p95_s: float | None
    max_s: float | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a policy did to a trace.

    Attributes:
        starts: Jobs in the trace.
        waits: Of all who were served.
        by_group: The same for each group; a user of two groups counts in both, one of none in "".
        utilisation: GPU-time held / GPU-time there was, from the first arrival to the last end; a
            slot of N counts 1/N. None where there was none.
        fairness: Jain's index over users of GPU-time received / (GPU-time asked for + waited for):
            1 when everybody fares alike, 1/n when one has everything. Jobs that were refused do
            not count: that is the grants' doing. None where nobody is left. Source: R. Jain, D.
            Chiu, W. Hawe, "A Quantitative Measure of Fairness and Discrimination for Resource
            Allocation in Shared Computer Systems", DEC-TR-301, 1984.
        refused: Jobs that no grant covers, that no pool could ever serve, whose user has no hours
            left this week, or already holds all that the grant gives.
        unserved: Jobs that still waited when nothing happened any more.
        cut_short: Jobs whose lease ended before they were done.
    """

    starts: int
    waits: Waits
    by_group: Mapping[str, Waits]
    utilisation: float | None
    fairness: float | None
    refused: int
    unserved: int
    cut_short: int

    def as_json(self) -> dict[str, Any]:
        """All of it, for a file or the API."""
        return asdict(self)


def simulate(
    jobs: Sequence[Job],
    inventory: Inventory,
    grants: Sequence[Grant],
    policy: Policy,
    start: float = A_MONDAY,
    progress: Callable[[int], None] | None = None,
) -> Outcome:
    """Run a trace through the scheduler.

    Each job is a server of its own. It is stopped when its time is over, or its lease is.

    Args:
        jobs: Any order.
        inventory: The lab.
        grants: Who gets what, with whatever image: a trace names none.
        policy: How the queue is kept.
        start: Unix time of the trace's second 0.
        progress: Told now and then how many jobs have arrived.
    """
    return _Run(jobs, inventory, grants, policy, start).run(progress)


def jain(values: Sequence[float]) -> float | None:
    """Jain's fairness index (sum x)^2 / (n * sum x^2) of values >= 0; None where all are 0."""
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares > 0 else None


@dataclass(slots=True)
class _Record:
    """How one job fared."""

    job: Job
    served_at: float | None = None
    held_s: float = 0.0
    is_refused: bool = False
    is_cut: bool = False


@dataclass(slots=True)
class _Past:
    """A user's past use: what of it is left at a time, and this week's by grant."""

    decayed_s: float = 0.0
    at: float = 0.0
    week: float = 0.0
    week_s: dict[str, float] = field(default_factory=dict)


# At one moment servers end before others arrive, so that what is free is free.
_END, _ARRIVE, _PATIENCE = 0, 1, 2


class _Run:
    """The state of one simulation."""

    def __init__(
        self,
        jobs: Sequence[Job],
        inventory: Inventory,
        grants: Sequence[Grant],
        policy: Policy,
        start: float,
    ) -> None:
        self.inventory, self.policy = inventory, policy
        # With its images, a grant would refuse every job: none names one.
        self.book = GrantBook(replace(grant, images=()) for grant in grants)
        ordered = sorted(jobs, key=lambda job: job.arrive_s)
        self.records = {f"{place + 1}": _Record(job) for place, job in enumerate(ordered)}
        self.start = start
        self.now = start
        self.tickets: dict[str, Ticket] = {}
        self.leases: dict[str, tuple[Held, float]] = {}
        self.of_user: dict[str, set[str]] = {}
        self.past: dict[str, _Past] = {}
        self.held_gpu_s = 0.0
        self.events: list[tuple[float, int, int, str]] = []
        for number, (id_, record) in enumerate(self.records.items()):
            self.events.append((start + record.job.arrive_s, _ARRIVE, number, id_))
        heapq.heapify(self.events)

    def run(self, progress: Callable[[int], None] | None) -> Outcome:
        arrived = 0
        while self.events:
            at = self.events[0][0]
            is_news = False
            while self.events and self.events[0][0] == at:
                _, what, number, id_ = heapq.heappop(self.events)
                if what == _PATIENCE and id_ not in self.tickets:
                    continue  # served before
                self.now, is_news = at, True
                if what == _END:
                    self._end(id_)
                elif what == _ARRIVE:
                    self._arrive(id_, number)
                    arrived += 1
            if is_news and self.tickets:
                self._decide()
                if progress is not None:
                    progress(arrived)
        return self._outcome()

    def _arrive(self, id_: str, number: int) -> None:
        job = self.records[id_].job
        self.tickets[id_] = Ticket(
            id=id_,
            username=job.user,
            servername=id_,
            groups=job.groups,
            gpus=job.gpus,
            share=job.share,
            pool=job.pool,
            seq=number,
            since=self.now,
        )
        # Nothing else happens then, and yet the order of the queue changes.
        heapq.heappush(self.events, (self.now + self.policy.patience_s, _PATIENCE, number, id_))

    def _decide(self) -> None:
        leases = [held for held, _ in self.leases.values()]
        waiting = list(self.tickets.values())
        said = schedule(
            self.inventory, leases, waiting, self.book, self._usage(), self.now, self.policy
        )
        for refused in said.refuse:
            del self.tickets[refused.ticket.id]
            self.records[refused.ticket.id].is_refused = True
        for given in said.give:
            self._begin(given)

    def _begin(self, given: Give) -> None:
        ticket, record = given.ticket, self.records[given.ticket.id]
        del self.tickets[ticket.id]
        done = self.now + record.job.hold_s
        ends = done if given.until is None else min(done, given.until)
        held = Held(
            ticket.id,
            ticket.username,
            ticket.servername,
            given.holdings,
            given.grant.id,
            self.now,
            given.until,
        )
        self.leases[ticket.id] = (held, sum(map(gpu_share, given.gpus)))
        self.of_user.setdefault(ticket.username, set()).add(ticket.id)
        record.served_at = self.now
        record.held_s = ends - self.now
        record.is_cut = ends < done
        heapq.heappush(self.events, (ends, _END, ticket.seq, ticket.id))

    def _end(self, id_: str) -> None:
        held, weight = self.leases.pop(id_)
        user = held.username
        self.of_user[user].remove(id_)
        self.held_gpu_s += weight * (self.now - held.since)
        past = self.past.setdefault(user, _Past())
        past.decayed_s = decayed(past.decayed_s, self.now - past.at)
        past.decayed_s += accrued(weight, held.since, self.now, self.now)
        past.at = self.now
        week = week_start(self.now)
        if past.week != week:
            past.week, past.week_s = week, {}
        used_s = weight * overlap_s(held.since, self.now, week, self.now)
        past.week_s[held.grant] = past.week_s.get(held.grant, 0.0) + used_s

    def _usage(self) -> Usage:
        """Past use of those who wait; nobody else's matters."""
        decayed_h: dict[str, float] = {}
        week_h: dict[tuple[str, str], float] = {}
        week = week_start(self.now)
        # In the order of arrival: sums of floats depend on their order.
        for user in dict.fromkeys(ticket.username for ticket in self.tickets.values()):
            past = self.past.get(user, _Past())
            used_s = decayed(past.decayed_s, self.now - past.at)
            by_grant = dict(past.week_s) if past.week == week else {}
            for id_ in sorted(self.of_user.get(user, ())):
                held, weight = self.leases[id_]
                used_s += accrued(weight, held.since, self.now, self.now)
                week_s = weight * overlap_s(held.since, self.now, week, self.now)
                by_grant[held.grant] = by_grant.get(held.grant, 0.0) + week_s
            decayed_h[user] = used_s / 3600
            for grant, week_s in by_grant.items():
                week_h[user, grant] = week_s / 3600
        return Usage(decayed_h, week_h)

    # -- counting ---------------------------------------------------------------------------

    def _outcome(self) -> Outcome:
        records = self.records.values()
        by_group: dict[str, list[_Record]] = {}
        for record in records:
            for group in record.job.groups or ("",):
                by_group.setdefault(group, []).append(record)
        return Outcome(
            starts=len(self.records),
            waits=self._waits(records),
            by_group={group: self._waits(by_group[group]) for group in sorted(by_group)},
            utilisation=self._utilisation(),
            fairness=self._fairness(),
            refused=sum(record.is_refused for record in records),
            unserved=len(self.tickets),
            cut_short=sum(record.is_cut for record in records),
        )

    def _waited_s(self, record: _Record) -> float:
        until = self.now if record.served_at is None else record.served_at
        return until - self.start - record.job.arrive_s

    def _waits(self, records: Iterable[_Record]) -> Waits:
        waited = sorted(
            self._waited_s(record) for record in records if record.served_at is not None
        )
        if not waited:
            return Waits(0, None, None, None)
        p95 = waited[math.ceil(0.95 * len(waited)) - 1]
        return Waits(len(waited), statistics.median(waited), p95, waited[-1])

    def _utilisation(self) -> float | None:
        """Nothing is held any more when this is asked."""
        if not self.records:
            return None
        arrivals = [record.job.arrive_s for record in self.records.values()]
        ends = [
            record.served_at + record.held_s
            for record in self.records.values()
            if record.served_at is not None
        ]
        span_s = max(ends, default=self.start) - self.start - min(arrivals)
        gpus = sum(
            gpu_share(gpu) * gpu.slots
            for gpu in self.inventory.gpus
            if not gpu.drained and not gpu.health
        )
        return self.held_gpu_s / (gpus * span_s) if gpus > 0 and span_s > 0 else None

    def _fairness(self) -> float | None:
        received: dict[str, float] = {}
        wanted: dict[str, float] = {}
        for record in self.records.values():
            if record.is_refused:
                continue
            job = record.job
            received[job.user] = received.get(job.user, 0.0) + job.gpus * record.held_s
            asked_s = job.hold_s + self._waited_s(record)
            wanted[job.user] = wanted.get(job.user, 0.0) + job.gpus * asked_s
        return jain([received[user] / wanted[user] for user in received])
