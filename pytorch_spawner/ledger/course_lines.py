"""What the audit log says about one course; blocking."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Protocol, TypeVar

from pytorch_spawner.core import course_words as words
from pytorch_spawner.core.courses import Course

# Among how many lines of the log those of a course are sought.
_LOOKED_AT: Final = 100


class Line(Protocol):
    """A line of the audit log, as far as it is read here."""

    @property
    def at(self) -> float: ...
    @property
    def what(self) -> str: ...
    @property
    def subject(self) -> str: ...
    @property
    def before(self) -> Any: ...
    @property
    def after(self) -> Any: ...


AnyLine = TypeVar("AnyLine", bound=Line, covariant=True)


class Log(Protocol[AnyLine]):
    """The ledger, as far as it is asked here."""

    def changes(self, hub: str, limit: int = 100, *, search: str = "") -> Sequence[AnyLine]:
        """The audit log, the newest first."""


def lines_of(log: Log[AnyLine], course: Course) -> tuple[list[AnyLine], float]:
    """The latest lines about a course, and since when they are all there."""
    found = log.changes(course.hub, _LOOKED_AT, search=course.name)
    oldest = found[-1].at if len(found) == _LOOKED_AT else 0.0
    mine = [one for one in found if (one.what, one.subject) == ("course", course.name)]
    return mine, oldest


def is_stale(log: Log[Any], course: Course) -> bool:
    """Whether the manifest was changed since the last preload so that it needs another."""
    if not words.is_stale(course):
        return False
    lines, oldest = lines_of(log, course)
    since = course.tried_at or 0.0
    known = [(one.before, one.after) for one in lines if one.at > since]
    return words.is_stale(course, known if oldest <= since else None)
