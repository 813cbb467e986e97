"""How much a server may say and how often a stranger may knock: token buckets. It has no clock."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable


class TokenBuckets:
    """One bucket per key, filled at a steady rate, forgotten when full again.

    Args:
        rate: Tokens that a bucket gains in a second, > 0.
        burst: Tokens that a full bucket holds, >= 1.
        most: Keys remembered at most; the one used longest ago is forgotten first.
    """

    def __init__(self, rate: float, burst: float, most: int = 4096) -> None:
        self._rate = rate
        self._burst = burst
        self._most = most
        self._buckets: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()

    def take(self, key: Hashable, cost: float, now: float) -> float:
        """Take tokens out of a bucket.

        Args:
            key: Whose bucket.
            cost: How many tokens, 0 < cost <= burst.
            now: Seconds of a clock that never goes back.

        Returns:
            0.0 when they were taken; else the seconds until they could be, and nothing is taken.
        """
        tokens = self._tokens(key, now)
        if tokens < cost:
            return (cost - tokens) / self._rate
        self._buckets[key] = (tokens - cost, now)
        self._buckets.move_to_end(key)
        while len(self._buckets) > self._most:
            self._buckets.popitem(last=False)
        return 0.0

    def wait_s(self, key: Hashable, cost: float, now: float) -> float:
        """How long until ``cost`` tokens are there; 0.0 when they are. Takes nothing."""
        return max(0.0, (cost - self._tokens(key, now)) / self._rate)

    def _tokens(self, key: Hashable, now: float) -> float:
        tokens, at = self._buckets.get(key, (self._burst, now))
        return min(self._burst, tokens + (now - at) * self._rate)


def retry_after(seconds: float) -> str:
    """A wait as the ``Retry-After`` header says it: whole seconds, at least one."""
    return str(max(1, math.ceil(seconds)))
