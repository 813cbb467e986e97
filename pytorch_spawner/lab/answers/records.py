"""What the API answers about what was used and what was changed."""

from __future__ import annotations

from typing import Any

from pytorch_spawner.lab.answers.common import Answer


class DayUse(Answer):
    """GPU-hours on one day; busy is null where nobody measured."""

    held_h: float
    busy_h: float | None


class UsageRow(Answer):
    """One user, course or GPU."""

    key: str
    label: str
    held_h: float
    busy_h: float | None
    days: list[DayUse]


class Usage(Answer):
    """GPU-hours by day."""

    first: str
    last: str
    by: str
    days: list[str]
    rows: list[UsageRow]
    sums: list[DayUse]
    total: DayUse
    note: str


class Change(Answer):
    """One line of the audit log."""

    id: int
    at: float
    by: str
    what: str
    subject: str
    before: Any
    after: Any
    sentence: str
    can_undo: bool
    undone_by: int | None
    undoes: int | None


class Log(Answer):
    """One page of the audit log."""

    rows: list[Change]
    next: int | None


class Undone(Answer):
    """Id of the line that took it back."""

    change: int
