"""What a server's page says beside the journal: hours used this week, the person's next class.

Reads and shapes; it must not decide who may know it (the stream's right is the journal's).
"""

from __future__ import annotations

import logging
from typing import Any

from pytorch_spawner.core.report_facts import Start
from pytorch_spawner.core.standing import describe_class, describe_week
from pytorch_spawner.errors import LabError
from pytorch_spawner.lab.ports import Ledger

log = logging.getLogger(__name__)


def read_standing(ledger: Ledger, hub_id: str, start: Start) -> dict[str, Any]:
    """Where the owner of a start stands now; blocks.

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
            "next_class": describe_class(ledger.courses(hub_id), start.username, groups, now),
        }
    except LabError as error:  # the journal matters more than what stands beside it
        log.warning("no standing of %s: %s", start.username, error.code)
        return {"week": None, "next_class": None}
