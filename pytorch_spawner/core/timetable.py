"""When a class meets: a manifest's timetable as moments, and calendars (ICS) as timetables. Pure.

What is repeated weekly keeps its local time: nine o'clock is nine o'clock on both sides of a change
to or from summer time. A calendar is hostile text: how much of it is read is bounded beforehand.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta, timezone, tzinfo
from typing import Any, Final, NamedTuple
from zoneinfo import ZoneInfo

from pytorch_spawner.core.course_manifest import Manifest, Slot, Timetable

_WEEK: Final = timedelta(days=7)
_DAY_S: Final = 24 * 3600.0
# How far ahead ``next_session`` looks, in seconds: two hundred years.
AHEAD_S: Final = 200 * 366 * _DAY_S


class Session(NamedTuple):
    """One meeting of a class.

    Attributes:
        course: Its name.
        title: Of the session; "" for none.
        starts_at: Unix time in seconds.
        ends_at: Unix time in seconds, after ``starts_at``.
        seats: GPUs, slots or instances that are kept; None for one for each known student.
    """

    course: str
    title: str
    starts_at: float
    ends_at: float
    seats: int | None = None


def sessions_of(manifest: Manifest, first: float, last: float) -> tuple[Session, ...]:
    """The sessions of a course that overlap a span of time.

    Args:
        manifest: Of the course.
        first: Unix time in seconds: sessions that end later than this.
        last: Unix time in seconds: sessions that start before this.

    Returns:
        In order of their starts.
    """
    zone = zone_of(manifest)
    found = (
        Session(manifest.name, slot.title, starts_at, ends_at, slot.seats)
        for slot in manifest.timetable.sessions
        for starts_at, ends_at in _moments(slot, zone, first, last)
        if ends_at > first and starts_at < last
    )
    return tuple(sorted(found, key=lambda one: (one.starts_at, one.ends_at, one.title)))


def next_session(manifest: Manifest, now: float) -> Session | None:
    """The session that runs now, or the next one; None where none is to come."""
    return next(iter(sessions_of(manifest, now, now + AHEAD_S)), None)


def zone_of(manifest: Manifest) -> tzinfo:
    """The zone in which a course's times are meant, and told."""
    try:
        return ZoneInfo(manifest.timetable.timezone)
    except (KeyError, ValueError, OSError):  # it was known to the machine that took the manifest
        return timezone.utc


def local(at: float, zone: tzinfo) -> datetime:
    """A Unix time on the clocks of a zone; the first or last moment there is where it is beyond."""
    try:
        return datetime.fromtimestamp(at, zone)
    except (OverflowError, ValueError, OSError):
        return (datetime.max if at > 0 else datetime.min).replace(tzinfo=zone)


def _moments(slot: Slot, zone: tzinfo, first: float, last: float) -> Iterator[tuple[float, float]]:
    """Start and end of each repeat of a slot that is near a span of time."""
    try:
        start, end = _wall(slot.start, zone), _wall(slot.end, zone)
        begins, long = start.replace(tzinfo=zone).timestamp(), end - start
    except (OverflowError, ValueError):  # in the year 1 or 9999 not every zone has a time
        return
    repeats = (slot.weekly_until - start.date()).days // 7 if slot.weekly_until else 0
    # Not one by one: a pass of the scheduler asks about this very hour of a whole year.
    week_s = _WEEK.total_seconds()
    low = max(0, int((first - begins - 2 * _DAY_S) // week_s))
    high = min(repeats, int((last - begins + 2 * _DAY_S) // week_s))
    for number in range(low, high + 1):
        try:
            starts_at = (start + number * _WEEK).replace(tzinfo=zone).timestamp()
            ends_at = (end + number * _WEEK).replace(tzinfo=zone).timestamp()
        except (OverflowError, ValueError):
            return
        # A night session in which the clocks change may end before it began, by the clock.
        yield starts_at, ends_at if ends_at > starts_at else starts_at + long.total_seconds()


def _wall(said: datetime, zone: tzinfo) -> datetime:
    """What the clocks of the zone show, without it."""
    return said if said.tzinfo is None else said.astimezone(zone).replace(tzinfo=None)


def as_json(session: Session) -> dict[str, Any]:
    """For the API and the command line."""
    return session._asdict()


def from_ics(text: str | bytes, seats: int | None, now: float, zone: str = "") -> Timetable:
    """Read a calendar; ``core.ics.read_ics`` says more, and what was left out.

    Raises:
        BadRequest: It cannot be used; the sentence says why.
    """
    # Only who imports a calendar pays for the library.
    from pytorch_spawner.core.ics import read_ics

    return read_ics(text, seats, now, zone).timetable
