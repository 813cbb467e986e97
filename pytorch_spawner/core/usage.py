"""Past use, for fair share and weekly hours. Pure arithmetic over seconds.

Use decays by half every ``HALF_LIFE_S``: a GPU held yesterday counts half as much as one held now,
so that nobody is punished for last month. One number a user is kept; it decays exactly, because
all of it decays alike.
"""

from __future__ import annotations

import math
from typing import Final

HALF_LIFE_S: Final = 24 * 3600.0


def decayed(gpu_s: float, age_s: float) -> float:
    """What is left of past use after ``age_s`` >= 0 seconds."""
    left: float = gpu_s * 0.5 ** (max(0.0, age_s) / HALF_LIFE_S)
    return left


def accrued(weight: float, since: float, until: float, now: float) -> float:
    """Decayed GPU-seconds at ``now`` of holding ``weight`` GPUs from ``since`` to ``until``.

    The integral of ``decayed`` over that time; ``since <= until <= now``.
    """
    rate = HALF_LIFE_S / math.log(2)
    newest, oldest = max(0.0, now - until), max(0.0, now - since)
    return max(0.0, weight * rate * (decayed(1.0, newest) - decayed(1.0, oldest)))


def overlap_s(since: float, until: float, first: float, last: float) -> float:
    """Seconds that [since, until] and [first, last] have in common."""
    return max(0.0, min(until, last) - max(since, first))
