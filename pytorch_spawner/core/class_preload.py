"""When a course is preloaded for its class, and by when that is given up. Pure.

A preload holds a GPU while it tries the notebooks and builds the warm cache. The class needs that
GPU at its beginning, so whatever is not done in time ends before the seats are kept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from pytorch_spawner.core.course_manifest import Manifest
from pytorch_spawner.core.courses import Course, Step
from pytorch_spawner.core.timetable import Session, local, sessions_of, zone_of

# So long before a class meets its course is preloaded again, unless that was done lately: the
# image is there, a fresh student's server starts, the notebooks run.
BEFORE_CLASS_S: Final = 3600.0
LATELY_S: Final = 3 * 3600.0
# So long before the class no GPU is held for it any more: the ten minutes in which seats are kept
# (the default of ``class_early_s``), and five for a server and a build to end.
CLEAR_S: Final = 900.0
# With less time than this none is begun.
SHORTEST_S: Final = 600.0
# A preload takes hours at most.
_AHEAD_S: Final = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class End:
    """By when a preload has to be over.

    Attributes:
        at: Unix time in seconds.
        sentence: Why, for an instructor.
    """

    at: float
    sentence: str


def is_due(course: Course, now: float) -> bool:
    """Whether a course is to be preloaded for a class that meets soon.

    What students have stays: a new commit of the source waits for its publication. So a course that
    nobody published yet is left alone, for its first preload publishes. What somebody stopped stays
    so until the class has begun that it was for, whether it waited or was under way.

    Args:
        course: Any.
        now: Unix time in seconds.
    """
    if not course.served or course.task:
        return False
    meets = _next(course.manifest, now)
    if meets is None or _is_seen_to(course, meets, now):
        return False
    return CLEAR_S + SHORTEST_S <= meets.starts_at - now <= BEFORE_CLASS_S


def ends_by(manifest: Manifest, asked_at: float) -> End | None:
    """By when a preload of a course has to be over, whoever asked for it.

    Args:
        manifest: Of the course.
        asked_at: When, Unix time in seconds; a service that was restarted begins it again later.

    Returns:
        None where no class is near, where the class needs no GPU, and for a preload that is asked
        for in the last minutes before the class: whoever does means it.
    """
    meets = _next(manifest, asked_at)
    if meets is None or manifest.request.gpus == 0:
        return None
    at = meets.starts_at - CLEAR_S
    if asked_at >= at:
        return None
    zone = zone_of(manifest)
    return End(
        at,
        f"Given up at {local(at, zone):%H:%M}: the class begins at "
        f"{local(meets.starts_at, zone):%H:%M %Z}, and no GPU is held for a preload by then. "
        "Preload it again after the class, or earlier before the next one.",
    )


def given_up(step: Step, *, is_served: bool) -> Step:
    """A step that was ended because the class begins.

    Args:
        step: As it was then, with why it ended.
        is_served: Students had the course before this preload began, and keep it.

    Returns:
        A warning where students have all that they need: what they had, or a course that only
        misses its warm cache. Else it failed: what nobody tried is not ready.
    """
    is_harmless = is_served or step.name == "warm"
    return replace(step, state="warned" if is_harmless else "failed", is_given_up=True)


def _is_seen_to(course: Course, meets: Session, now: float) -> bool:
    """Whether a course was preloaded lately, or somebody stopped that for the session."""
    if course.stopped_at is None:
        # One that was given up for an earlier class tried nothing for this one; the warm cache
        # alone is no reason to do all the rest again.
        is_half = any(step.is_given_up and step.name != "warm" for step in course.steps)
        return not is_half and now - (course.preloaded_at or 0.0) < LATELY_S
    was_next = _next(course.manifest, course.stopped_at)
    return was_next == meets and meets.starts_at - course.stopped_at < LATELY_S


def _next(manifest: Manifest, now: float) -> Session | None:
    """The next session that begins; one that goes on already is none."""
    coming = sessions_of(manifest, now, now + _AHEAD_S)
    return next((one for one in coming if one.starts_at > now), None)
