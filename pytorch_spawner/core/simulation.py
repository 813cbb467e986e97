"""What a policy would have done to a day's demand: ``schedule`` run on a trace. Pure.

Nothing is drawn and no clock is read but in ``generate``, which draws from a seed: the same trace,
lab and policy always give the same numbers.
"""

from __future__ import annotations

import csv
import heapq
import io
import math
import random
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from pytorch_spawner.core.gpus import MIG_PROFILE, Inventory
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
from pytorch_spawner.core.usage import accrued, decayed, overlap_s
from pytorch_spawner.errors import BadRequest

# Second 0 of a trace where nothing else is said: a Monday, 00:00 UTC.
A_MONDAY: Final = next_week(0.0)


@dataclass(frozen=True, slots=True)
class Job:
    """One start of a trace.

    Attributes:
        arrive_s: Seconds from the trace's beginning, >= 0.
        user: Who asks.
        hold_s: How long the server runs, > 0, unless its lease ends before.
        groups: The user's groups.
        gpus: How many, >= 1.
        share: "any", "whole", "slot" or "mig:<profile>".
        pool: Name of a pool; "" for any.
    """

    arrive_s: float
    user: str
    hold_s: float
    groups: tuple[str, ...] = ()
    gpus: int = 1
    share: str = "any"
    pool: str = ""


# -- reading a trace -----------------------------------------------------------------------------

_COLUMNS: Final = ("arrive_s", "user", "groups", "gpus", "share", "pool", "hold_s")
_REQUIRED: Final = ("arrive_s", "user", "hold_s")
_LONGEST_S: Final = 1e9


def parse_trace(text: str) -> tuple[Job, ...]:
    """Read a trace, or refuse it whole.

    Args:
        text: CSV with a header of ``arrive_s,user,groups,gpus,share,pool,hold_s``, in any order;
            the first, second and last are required. Several groups are separated by spaces or
            semicolons; empty cells are what ``Job`` has by default.

    Returns:
        The jobs in order of arrival; those that arrive together stay in the order of the file.

    Raises:
        BadRequest: Anything is wrong; the message lists every bad row with its line.
    """
    lines = csv.DictReader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    faults: list[str] = []
    jobs: list[Job] = []
    try:
        columns = [column.strip() for column in lines.fieldnames or ()]
        lines.fieldnames = columns
        faults += _bad_header(columns)
        for row in () if faults else lines:
            cells = {key: (value or "").strip() for key, value in row.items() if key is not None}
            found = [
                f"column {column}: {fault}"
                for column, (is_right, fault) in _RULES.items()
                if not is_right(cells.get(column, ""))
            ]
            if None in row:
                found.append("more cells than the header has columns")
            faults += [f"line {lines.line_num}: {fault}" for fault in found]
            if not found:
                jobs.append(_job(cells))
    except csv.Error as error:
        faults.append(f"line {lines.line_num}: {error}")
    if not jobs and not faults:
        faults.append("it has no row")
    if faults:
        raise BadRequest("The trace is not usable: " + "; ".join(faults) + ".", faults=faults)
    return tuple(sorted(jobs, key=lambda job: job.arrive_s))


def write_trace(jobs: Iterable[Job]) -> str:
    """The CSV that ``parse_trace`` reads back equal."""
    out = io.StringIO(newline="")
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(_COLUMNS)
    for job in jobs:
        cells = {**asdict(job), "groups": " ".join(job.groups)}
        rows.writerow([cells[column] for column in _COLUMNS])
    return out.getvalue()


def _bad_header(columns: Sequence[str]) -> list[str]:
    faults = [f"there is no column {column}" for column in _REQUIRED if column not in columns]
    faults += [f"unknown column {column[:40]!r}" for column in columns if column not in _COLUMNS]
    if len(set(columns)) != len(columns):
        faults.append("one column is named twice")
    return faults


def _job(cells: Mapping[str, str]) -> Job:
    return Job(
        arrive_s=float(cells["arrive_s"]),
        user=cells["user"],
        hold_s=float(cells["hold_s"]),
        groups=tuple(cells.get("groups", "").replace(";", " ").split()),
        gpus=int(cells.get("gpus") or 1),
        share=cells.get("share") or "any",
        pool=cells.get("pool", ""),
    )


def _seconds(said: str) -> float:
    """A number of seconds; -1 where it is none."""
    try:
        value = float(said)
    except ValueError:
        return -1.0
    return value if math.isfinite(value) and value <= _LONGEST_S else -1.0


def _is_share(said: str) -> bool:
    is_mig = said.startswith("mig:") and MIG_PROFILE.fullmatch(said[4:]) is not None
    return said in ("", "any", "whole", "slot") or is_mig


_RULES: Final[Mapping[str, tuple[Callable[[str], bool], str]]] = {
    "arrive_s": (lambda said: _seconds(said) >= 0, "not a number of seconds, 0 or more"),
    "user": (lambda said: 0 < len(said) <= 255, "names nobody"),
    "gpus": (
        lambda said: not said or bool(re.fullmatch(r"[1-9][0-9]?", said)),
        "not a number of GPUs from 1 to 99",
    ),
    "share": (_is_share, 'not "any", "whole", "slot" or "mig:<profile>"'),
    "hold_s": (lambda said: _seconds(said) > 0, "not a number of seconds above 0"),
}


# -- making one up -------------------------------------------------------------------------------

_HOUR_S: Final = 3600.0
_CLASS_SIZE: Final = 30
# Hours at which classes begin, and how many of them: the first of the morning is the fullest.
_LESSONS: Final = ((9, 5), (11, 2), (14, 3))


def generate(
    seed: int, users: int, days: int, *, researchers_pct: int = 15, max_gpus: int = 4
) -> tuple[Job, ...]:
    """Make up a demand like a school's: classes by day, long jobs of a few by night.

    Every user is in a class of 30 (groups "class-1", "class-2", ...) or in "research". A class
    meets on three days of the week at nine, eleven or two, mostly at nine, and four in five come
    within ten minutes of its beginning, for 45 to 100 minutes. One in four works on in the
    afternoon or evening, for up to three hours. Researchers start jobs of four to twelve hours in
    the evening, two days in five, one in three of them on several GPUs.

    Args:
        seed: The same seed gives the same demand.
        users: How many people, >= 1.
        days: How many days, >= 1; the first is a Monday.
        researchers_pct: How many of a hundred users are researchers.
        max_gpus: Most GPUs that one job asks for, >= 1.

    Returns:
        The jobs in order of arrival.
    """
    draw = random.Random(seed)  # noqa: S311  (a demand, no secret)
    researchers = users * researchers_pct // 100
    students = users - researchers
    jobs: list[Job] = []
    hours = [hour for hour, weight in _LESSONS for _ in range(weight)]
    for number in range(-(-students // _CLASS_SIZE)):
        first = number * _CLASS_SIZE
        members = range(first, min(students, first + _CLASS_SIZE))
        lessons = {day: draw.choice(hours) for day in draw.sample(range(5), 3)}
        for day in range(days):
            if day % 7 < 5:
                jobs += _class_day(draw, members, day, lessons.get(day % 7))
    for number in range(researchers):
        jobs += _research(draw, f"researcher-{number + 1}", days, max_gpus)
    return tuple(sorted(jobs, key=lambda job: (job.arrive_s, job.user)))


def _class_day(
    draw: random.Random, members: Iterable[int], day: int, hour: int | None
) -> Iterable[Job]:
    for member in members:
        user, groups = f"student-{member + 1}", (f"class-{member // _CLASS_SIZE + 1}",)
        free_from_h = 13.0
        if hour is not None and draw.random() < 0.8:
            starts = (day * 24 + hour) * _HOUR_S + draw.uniform(-300, 600)
            hold_s = draw.uniform(45, 100) * 60
            free_from_h = max(free_from_h, hour + 2.0)
            yield Job(round(starts), user, round(hold_s), groups)
        if draw.random() < 0.25:
            starts = (day * 24 + draw.uniform(free_from_h, 22)) * _HOUR_S
            yield Job(round(starts), user, round(draw.uniform(0.5, 3) * _HOUR_S), groups)


def _research(draw: random.Random, user: str, days: int, max_gpus: int) -> Iterable[Job]:
    for day in range(days):
        if draw.random() < 0.4:
            starts = (day * 24 + draw.triangular(17, 24, 19)) * _HOUR_S
            hold_s = draw.uniform(4, 12) * _HOUR_S
            gpus = min(max_gpus, draw.choice((1, 1, 1, 1, 2, 4)))
            yield Job(round(starts), user, round(hold_s), ("research",), gpus)


# -- running it ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Waits:
    """Seconds waited by those who were served; None where nobody was.

    Attributes:
        n: How many were served.
        median_s: The middle one; the mean of the middle two.
        p90_s: Nearest rank: nine of ten waited no longer.
        max_s: The longest.
    """

    n: int
    median_s: float | None
    p90_s: float | None
    max_s: float | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a policy did to a trace.

    Attributes:
        n: Jobs in the trace.
        waits: Of all who were served.
        by_group: The same for each group; a user of two groups counts in both, one of none in "".
        utilisation: GPU-time held / GPU-time there was, from the first arrival to the last end; a
            slot of N counts 1/N. None where there was none.
        fairness: Jain's index over users of GPU-time received / (GPU-time asked for + waited for):
            1 when everybody fares alike, 1/n when one has everything. Jobs that were refused do
            not count: that is the grants' doing. None where nobody is left. Source: R. Jain, D.
            Chiu, W. Hawe, "A Quantitative Measure of Fairness and Discrimination for Resource
            Allocation in Shared Computer Systems", DEC-TR-301, 1984.
        refused: Jobs that no grant covers, or that no pool could ever serve.
        unserved: Jobs that still waited when nothing happened any more.
        cut_short: Jobs whose lease ended before they were done.
    """

    n: int
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
) -> Outcome:
    """Run a trace through the scheduler.

    Each job is a server of its own. It is stopped when its time is over, or its lease is.

    Args:
        jobs: Any order.
        inventory: The lab.
        grants: Who gets what.
        policy: How the queue is kept.
        start: Unix time of the trace's second 0.
    """
    return _Run(jobs, inventory, grants, policy, start).run()


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
        self.inventory, self.book, self.policy = inventory, GrantBook(grants), policy
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

    def run(self) -> Outcome:
        while self.events:
            self.now = self.events[0][0]
            is_news = False
            while self.events and self.events[0][0] == self.now:
                _, what, number, id_ = heapq.heappop(self.events)
                if what == _END:
                    self._end(id_)
                elif what == _ARRIVE:
                    self._arrive(id_, number)
                is_news |= what != _PATIENCE or id_ in self.tickets
            if is_news and self.tickets:
                self._decide()
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
            n=len(self.records),
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
        p90 = waited[math.ceil(0.9 * len(waited)) - 1]
        return Waits(len(waited), statistics.median(waited), p90, waited[-1])

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
