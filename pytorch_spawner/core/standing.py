"""Where a person stands beside one server: hours used this week, and their next class. Pure.

What nobody knows, or what has no limit, is None: pages show nothing of it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

from pytorch_spawner.core.courses import Course, courses_of
from pytorch_spawner.core.grants import Grant, next_week
from pytorch_spawner.core.timetable import next_session


class Held(Protocol):
    """A lease, as far as hours go."""

    @property
    def grant(self) -> str:
        """Id of the grant it was given through; "" where unknown."""

    @property
    def weight(self) -> float:
        """What it counts in GPU-hours an hour."""


def describe_week(
    lease: Held | None, grants: Iterable[Grant], used_h: Mapping[str, float], now: float
) -> dict[str, Any] | None:
    """The weekly hours of the grant that a lease was given through.

    Args:
        lease: What the server holds; None for nothing.
        grants: Of the lab.
        used_h: GPU-hours that the person used this week, by grant id, running leases included.
        now: Unix time in seconds.

    Returns:
        ``used_h`` and ``limit_h`` in GPU-hours, ``rate`` (GPU-hours an hour that the lease adds),
        ``at`` and ``ends_at`` (Unix times: as of when, and when the week ends); None where the
        grant sets no limit, is unknown, or nothing is held.
    """
    grant = next((one for one in grants if lease is not None and one.id == lease.grant), None)
    if lease is None or grant is None or grant.weekly_gpu_hours is None:
        return None
    return {
        "used_h": round(used_h.get(grant.id, 0.0), 3),
        "limit_h": grant.weekly_gpu_hours,
        "rate": lease.weight,
        "at": now,
        "ends_at": next_week(now),
    }


def describe_class(
    courses: Sequence[Course], username: str, groups: Collection[str], now: float
) -> dict[str, Any] | None:
    """The session that runs now, or the next one, of the courses that a person belongs to.

    Args:
        courses: Of the lab.
        username: Whose.
        groups: Theirs.
        now: Unix time in seconds.

    Returns:
        ``course`` (its name), ``title`` (of the course), ``starts_at`` and ``ends_at`` (Unix
        times); None where no course of theirs meets again.
    """
    sessions = [
        (session.starts_at, session.ends_at, course.name, course.manifest.title)
        for course in courses_of(courses, username, groups)
        if (session := next_session(course.manifest, now)) is not None
    ]
    if not sessions:
        return None
    starts_at, ends_at, name, title = min(sessions)
    return {"course": name, "title": title, "starts_at": starts_at, "ends_at": ends_at}
