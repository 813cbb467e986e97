"""GPU-hours by user, course or device and day, out of leases and of what was measured. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone
from typing import Final

from pytorch_spawner.core.usage import overlap_s

DAY_S: Final = 24 * 3600.0
MAX_DAYS: Final = 92
BY: Final = ("user", "course", "gpu")


@dataclass(frozen=True, slots=True)
class Used:
    """A lease that is or was.

    Attributes:
        username: Who held it.
        course: For which course; "" for none.
        gpus: UUIDs.
        weights: What holding each of them counts in GPU-hours an hour.
        since: Unix time in seconds.
        until: When it was given back, or now.
    """

    username: str
    course: str
    gpus: tuple[str, ...]
    weights: tuple[float, ...]
    since: float
    until: float


@dataclass(frozen=True, slots=True)
class Busy:
    """Seconds in which a GPU computed for somebody on one day (Unix time of its UTC midnight)."""

    day: float
    username: str
    course: str
    gpu: str
    busy_s: float


@dataclass(slots=True)
class Row:
    """One user, course or device.

    Attributes:
        key: Name of the user or course, or UUID.
        held_s: Seconds held by day, in order.
        busy_s: Seconds measured as busy by day; None where nobody measured.
    """

    key: str
    held_s: list[float] = field(default_factory=list)
    busy_s: list[float | None] = field(default_factory=list)

    @property
    def all_held_s(self) -> float:
        """Seconds held on all the days."""
        return sum(self.held_s)

    @property
    def all_busy_s(self) -> float | None:
        """Seconds busy on all the days; None where nobody ever measured."""
        known = [one for one in self.busy_s if one is not None]
        return sum(known) if known else None


def days_between(first: date, last: date) -> list[float]:
    """Unix times of the UTC midnights of the days from ``first`` to ``last``, both included."""
    count = (last - first).days + 1
    return [
        datetime.combine(first + timedelta(number), datetime.min.time(), timezone.utc).timestamp()
        for number in range(count)
    ]


def summarise(
    leases: Iterable[Used], busy: Iterable[Busy], days: Sequence[float], by: str
) -> list[Row]:
    """Add up what was held and what was busy.

    Args:
        leases: All that overlap the days; others count nothing.
        busy: What was measured.
        days: Unix times of UTC midnights, one day apart.
        by: "user", "course" or "gpu".

    Returns:
        One row for each key that held anything or was busy, the most held first.
    """
    place = {day: number for number, day in enumerate(days)}
    rows: dict[str, Row] = {}

    def row_of(key: str) -> Row:
        if key not in rows:
            rows[key] = Row(key, [0.0] * len(days), [None] * len(days))
        return rows[key]

    for lease in leases:
        key = lease.username if by == "user" else lease.course
        parts = (
            zip(lease.gpus, lease.weights, strict=True)
            if by == "gpu"
            else [(key, sum(lease.weights))]
        )
        parts = list(parts)
        for number in _touched(lease, days):
            held_s = overlap_s(lease.since, lease.until, days[number], days[number] + DAY_S)
            for name, weight in parts:
                row_of(name).held_s[number] += weight * held_s
    for one in busy:
        number_of = place.get(one.day)
        if number_of is not None:
            row = row_of({"user": one.username, "course": one.course, "gpu": one.gpu}[by])
            row.busy_s[number_of] = (row.busy_s[number_of] or 0.0) + one.busy_s
    found = [row for row in rows.values() if row.all_held_s > 0 or row.all_busy_s]
    return sorted(found, key=lambda row: (-row.all_held_s, row.key))


def _touched(lease: Used, days: Sequence[float]) -> range:
    """Places of the days on which a lease was held."""
    if not days or lease.until <= days[0] or lease.since >= days[-1] + DAY_S:
        return range(0)
    first = max(0, int((lease.since - days[0]) // DAY_S))
    last = min(len(days) - 1, int((lease.until - days[0]) // DAY_S))
    return range(first, last + 1)
