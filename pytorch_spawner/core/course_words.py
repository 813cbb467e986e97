"""Courses in words and as JSON, the same for the command line, the API and its pages. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final

from pytorch_spawner.core.course_manifest import Manifest, Source
from pytorch_spawner.core.courses import STEPS, Course, Order, Step, Student
from pytorch_spawner.core.seat_room import say_shortage
from pytorch_spawner.core.seats import seats_of
from pytorch_spawner.core.timetable import AHEAD_S, local, sessions_of, zone_of
from pytorch_spawner.core.timetable import as_json as session_json

# How many of the next sessions a page lists.
SHOWN_SESSIONS: Final = 12
_LABELS: Final = {
    "fetch": "Notebooks",
    "check": "Checks",
    "image": "Image",
    "smoke": "Smoke test",
    "warm": "Warm cache",
}
# What of a manifest a preload depends on.
_PRELOADED: Final = (
    "source", "target", "image", "request", "data", "warmup", "smoke", "environment",
)  # fmt: skip


# -- when the class meets --------------------------------------------------------------------------


def coming(manifest: Manifest, now: float, most: int = SHOWN_SESSIONS) -> list[dict[str, Any]]:
    """The sessions that are not over, the next first."""
    return [session_json(one) for one in sessions_of(manifest, now, now + AHEAD_S)[:most]]


def seats_note(
    manifest: Manifest, seen: Collection[str], now: float, sizes: Mapping[str, int], share: float
) -> str:
    """Which of the next sessions asks for more seats than classes may have; "" where none does.

    Args:
        manifest: Of the course.
        seen: Names of all who ever had a copy of it.
        now: Unix time in seconds.
        sizes: Devices in service, by pool; empty where nobody knows.
        share: Of each pool that classes may have, 0 to 1.
    """
    for one in sessions_of(manifest, now, now + AHEAD_S)[:SHOWN_SESSIONS]:
        around = seats_of(manifest, seen, one.starts_at)
        asked = max((its.count for its in around if its.begins_at == one.starts_at), default=0)
        if why := say_shortage(asked, manifest.request.pool, sizes, share):
            when = local(one.starts_at, zone_of(manifest))
            return f"The session of {when:%a} {when.day} {when:%b %Y, %H:%M %Z}: {why}"
    return ""


# -- how it is with a course -----------------------------------------------------------------------


def short(commit: str) -> str:
    """A commit for people."""
    return commit[:8]


def source_words(source: Source) -> str:
    """Where the notebooks come from, in one line."""
    said = source.git or source.directory
    if source.branch:
        said += f", branch {source.branch}"
    return f"{said}, directory {source.path}" if source.path else said


def all_steps(course: Course) -> tuple[Step, ...]:
    """Every step of a preload; those that nothing is known of wait."""
    known = {step.name: step for step in course.steps}
    return tuple(known.get(name, Step(name)) for name in STEPS)


def has_news(course: Course) -> bool:
    """Whether something is preloaded that students do not have yet."""
    return bool(course.candidate_served) and course.candidate_served != course.served


def is_stale(course: Course, changes: Iterable[tuple[Any, Any]] | None = None) -> bool:
    """Whether the manifest was changed since the last preload read it, so that another is needed.

    Args:
        course: Which.
        changes: Manifests before and after each change since then; None where they are not known.
    """
    if course.preloaded_at is None or course.changed_at <= (course.tried_at or 0.0):
        return False
    return changes is None or any(_matters(before, after) for before, after in changes)


def _matters(before: Any, after: Any) -> bool:
    if not isinstance(before, Mapping) or not isinstance(after, Mapping):
        return False
    return any(before.get(key) != after.get(key) for key in _PRELOADED)


def not_done(course: Course) -> tuple[str, ...]:
    """What the last preload should have done before the class began, and did not.

    A warm cache alone is not worth a word: without one a course works as well.

    Returns:
        The steps as people know them; none where it was not given up.
    """
    began = next((n for n, one in enumerate(course.steps) if one.is_given_up), None)
    if began is None or course.steps[began].name == "warm":
        return ()
    missing = [one.name for one in course.steps[began:]]
    if course.manifest.warmup is None and "warm" in missing:
        missing.remove("warm")
    return tuple(_LABELS[name].lower() for name in missing)


def verdict(course: Course, *, stale: bool | None = None) -> tuple[str, str]:
    """The answer to "is my course ready?".

    Args:
        course: Which.
        stale: What ``is_stale`` said, where more was known than the course itself tells.

    Returns:
        "ok", "wait", "warn" or "bad", and a sentence or two.
    """
    if course.task:
        return "wait", _doing(course)
    has = f"Students have {short(course.commit)}"
    if missing := not_done(course):
        return _given_up(course, missing)
    if failed := next((step for step in course.steps if step.state == "failed"), None):
        first = f"{has}, but" if course.served else "Not ready:"
        said = f"{first} the last preload failed at {_LABELS[failed.name].lower()}."
        return "bad", f"{said} {failed.message}".strip()
    if course.preloaded_at is None:
        return "bad", "Not ready: it was never preloaded. The first preload also publishes it."
    if is_stale(course) if stale is None else stale:
        return "warn", "The manifest was changed after the last preload: preload it again."
    if not course.served:
        return "warn", "Preloaded, but students have nothing yet: publish it."
    if has_news(course):
        return "warn", f"{has}; {short(course.candidate)} is preloaded and waits to be published."
    return "ok", f"Ready: students have {short(course.commit)}."


def _given_up(course: Course, missing: Sequence[str]) -> tuple[str, str]:
    """The verdict on a course whose last preload was ended because the class began."""
    why = next(one.message for one in course.steps if one.is_given_up)
    what = " and ".join(filter(None, (", ".join(missing[:-1]), missing[-1])))
    left = f"{what} {'was' if len(missing) == 1 else 'were'} not done in the last preload. {why}"
    if not course.served:
        return "bad", f"Not ready: students have nothing yet, and {left}"
    news = f" {short(course.candidate)} was fetched, but" if has_news(course) else ""
    return "warn", f"Students have {short(course.commit)} and keep it;{news} {left}"


def _doing(course: Course) -> str:
    what = "preload" if course.task == "preload" else "publication"
    if not course.is_running:
        return f"The {what} waits for its turn."
    for step in course.steps:
        if step.state == "running":
            return f"Preloading: {_LABELS[step.name].lower()}."
    return "Publishing." if course.task == "publish" else "Preloading."


def why_not_published(course: Course) -> str:
    """Why there is nothing to publish now; "" where there is something."""
    if course.task:
        return "Something is done for this course just now; wait until it is over, or stop it."
    if not course.candidate_served:
        return "Nothing is preloaded yet that could be published; preload the course first."
    if not has_news(course):
        return (
            f"Students have {short(course.commit)} already. To give them something newer, "
            "preload the course again."
        )
    return ""


# -- students --------------------------------------------------------------------------------------


def standing(student: Student | None, served: str) -> str:
    """Which publication somebody's copy is at: "current", "behind" or "never"."""
    if student is None or not student.served:
        return "never"
    return "current" if student.served == served else "behind"


def students_of(manifest: Manifest, users: Mapping[str, Collection[str]]) -> frozenset[str]:
    """Everybody who is to be taught: by name, or by a group; without the staff.

    Args:
        manifest: Of the course.
        users: Names of groups by name of user, for all that the hub knows.
    """
    members = manifest.members
    groups = set(members.groups)
    of_groups = {name for name, theirs in users.items() if not groups.isdisjoint(theirs)}
    return frozenset({*members.users, *of_groups} - set(members.staff))


def student_rows(
    course: Course,
    expected: Collection[str],
    known: Iterable[Student],
    orders: Iterable[Order] = (),
) -> list[dict[str, Any]]:
    """Everybody of a course with the state of their copy; who needs a look comes first.

    Args:
        course: Which.
        expected: Who is to be taught.
        known: Of whom something was reported.
        orders: What has still to be done to their copies.
    """
    reported = {one.username: one for one in known}
    asked: dict[str, list[dict[str, Any]]] = {}
    for order in orders:
        said = {"id": order.id, "path": order.path, "by": order.by, "at": order.at}
        asked.setdefault(order.username, []).append(said)
    rows = [
        _student_row(name, reported.get(name), course.served, name in expected, asked.get(name, []))
        for name in {*expected, *reported}
    ]
    return sorted(rows, key=lambda row: (_urgency(row), row["user"].casefold(), row["user"]))


def _student_row(
    name: str,
    student: Student | None,
    served: str,
    is_member: bool,
    orders: list[dict[str, Any]],
) -> dict[str, Any]:
    return {
        "user": name,
        "state": standing(student, served),
        "is_member": is_member,
        "commit": student.commit if student else "",
        "at": student.at if student else None,
        "level": student.level if student else "ok",
        "message": student.message if student else "",
        "kept": list(student.kept) if student else [],
        "conflicts": dict(student.conflicts) if student else {},
        "orders": orders,
    }


def _urgency(row: Mapping[str, Any]) -> int:
    if row["level"] == "fail":
        return 0
    if row["conflicts"]:
        return 1
    return {"behind": 2, "current": 3, "never": 4}[row["state"]]


def counts(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How many students there are, and how many copies are how."""
    states = [row["state"] for row in rows]
    return {
        "total": len(rows),
        "current": states.count("current"),
        "behind": states.count("behind"),
        "never": states.count("never"),
        "conflicts": sum(1 for row in rows if row["conflicts"]),
        "failed": sum(1 for row in rows if row["level"] == "fail"),
    }


# -- for programs and pages ------------------------------------------------------------------------


def as_json(
    course: Course,
    rows: Sequence[Mapping[str, Any]],
    now: float,
    *,
    stale: bool | None = None,
) -> dict[str, Any]:
    """A course for whoever looks after it.

    Args:
        course: Which.
        rows: Its students, as ``student_rows`` gives them.
        now: Unix time in seconds.
        stale: As for ``verdict``.
    """
    manifest = course.manifest
    tone, sentence = verdict(course, stale=stale)
    return {
        "name": course.name,
        "title": manifest.title,
        "folder": manifest.folder,
        "source": source_words(manifest.source),
        "image": manifest.image,
        "staff": list(manifest.members.staff),
        "by": course.by,
        "changed_at": course.changed_at,
        "verdict": tone,
        "sentence": sentence,
        "task": course.task,
        "task_by": course.task_by,
        "is_running": course.is_running,
        "steps": [{**one.as_json(), "label": _LABELS[one.name]} for one in all_steps(course)],
        "preloaded_at": course.preloaded_at,
        "candidate": {
            "commit": course.candidate,
            "says": course.candidate_says,
            "is_new": has_news(course),
        },
        "published": {
            "commit": course.commit,
            "at": course.published_at,
            "by": course.published_by,
        },
        "serial": course.serial,
        "timezone": manifest.timetable.timezone,
        "sessions": coming(manifest, now),
        "students": counts(rows),
    }


def for_members(course: Course, now: float) -> dict[str, Any]:
    """What somebody is told who belongs to a course, and no more."""
    return {
        "name": course.name,
        "title": course.manifest.title,
        "folder": course.manifest.folder,
        "next_session": next(iter(coming(course.manifest, now, 1)), None),
    }
