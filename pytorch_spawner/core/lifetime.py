"""Which leases are to be warned of their end, and which are over. Pure.

The one place where a reason to take a GPU back turns into a deed; idleness will be another reason.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ending:
    """A lease with an end.

    Attributes:
        lease_id: Which.
        until: Unix time of its end.
        is_warned: Its end was announced.
    """

    lease_id: str
    until: float
    is_warned: bool


@dataclass(frozen=True, slots=True)
class Due:
    """Ids of leases to warn of their end now, and of those whose server is to be stopped."""

    warn: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()


def due(endings: Iterable[Ending], now: float, warn_s: float) -> Due:
    """Decide what is due.

    Args:
        endings: Leases in force that end some day and whose servers run.
        now: Unix time that never runs backwards.
        warn_s: Warn that many seconds before the end.

    Returns:
        Nobody is stopped unwarned: a lease that is over and was not announced is announced first,
        and stopped the next time.
    """
    seen = list(endings)
    return Due(
        warn=tuple(one.lease_id for one in seen if not one.is_warned and one.until - now <= warn_s),
        stop=tuple(one.lease_id for one in seen if one.is_warned and one.until <= now),
    )
