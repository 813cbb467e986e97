"""What a server's page says beside the journal: hours used this week, the person's next class.

Reads and shapes; it must not decide who may know it (the stream's right is the journal's).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Any

from pytorch_spawner.core.courses import Course
from pytorch_spawner.core.report_facts import Start
from pytorch_spawner.core.standing import describe_class, describe_week
from pytorch_spawner.errors import LabError
from pytorch_spawner.lab.ports import Ledger

log = logging.getLogger(__name__)


class KnownCourses:
    """The courses as they were last read: every open page wants them, and they seldom change."""

    def __init__(self) -> None:
        self._known: tuple[int, Sequence[Course]] | None = None
        self._reading = threading.Lock()  # protects _known; who comes meanwhile waits for it

    def read(self, ledger: Ledger, hub_id: str) -> Sequence[Course]:
        """Every course of the one hub; read again when one has changed. Blocks."""
        with self._reading:
            # Asked for before they are read: a change meanwhile is read again.
            version = ledger.courses_version(hub_id)
            if self._known is None or self._known[0] != version:
                self._known = version, ledger.courses(hub_id)
            return self._known[1]


def read_standing(
    ledger: Ledger, hub_id: str, start: Start, courses: KnownCourses
) -> dict[str, Any]:
    """Where the owner of a start stands now; blocks.

    Args:
        ledger: The ledger.
        hub_id: Whose server it is.
        start: Whose owner.
        courses: What is remembered of the courses.

    Returns:
        ``week`` and ``next_class``, see ``core.standing``; None in them is unknown, or no limit.
    """
    if start.ended_at is not None:
        return {"week": None, "next_class": None}
    try:
        now = ledger.now()
        lease = next((one for one in ledger.leases(hub_id) if one.start_id == start.id), None)
        used_h = {} if lease is None else ledger.week_hours(hub_id, start.username)
        grants = () if lease is None else ledger.grants(hub_id)
        groups = ledger.groups_of(hub_id, start.username)
        return {
            "week": describe_week(lease, grants, used_h, now),
            "next_class": describe_class(courses.read(ledger, hub_id), start.username, groups, now),
        }
    except LabError as error:  # the journal matters more than what stands beside it
        log.warning("no standing of %s: %s", start.username, error.code)
        return {"week": None, "next_class": None}
