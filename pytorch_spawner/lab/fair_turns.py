"""Turns at something that few may do at once, so that nobody keeps the others from it.

One person has at most half of the turns, and only so many requests at a time; nobody waits longer
than a while. Everything runs on one loop.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

from pytorch_spawner.errors import LabError

# ``Retry-After`` in seconds: half of what one waits for a turn.
_AGAIN_S: Final = "5"


class TooMany(LabError):
    """One person asks for more at once than anybody may."""

    code = "too-many-requests"
    status = 429
    retry_after = _AGAIN_S


class TooBusy(LabError):
    """There was no turn within the time that one waits."""

    code = "too-busy"
    status = 503
    retry_after = _AGAIN_S


class FairTurns:
    """The turns.

    Args:
        at_once: How many turns there are, >= 2; one person has half of them at most.
        most_of_one: Requests that one person may have open, those that wait included.
        wait_s: How long one waits for a turn, in seconds.
    """

    def __init__(self, at_once: int, most_of_one: int, wait_s: float) -> None:
        self._most_of_one = most_of_one
        self._wait_s = wait_s
        self._at_once_of_one = at_once // 2
        self._all = asyncio.Semaphore(at_once)
        self._open: Counter[str] = Counter()
        self._own: dict[str, tuple[asyncio.Semaphore, int]] = {}

    @contextmanager
    def request(self, person: str) -> Iterator[None]:
        """Count a request for as long as the block runs; before anything is read for it.

        Raises:
            TooMany: The person has as many open as anybody may.
        """
        if self._open[person] >= self._most_of_one:
            raise TooMany(
                f"You ask for {self._most_of_one} looks into servers at once already. Wait for "
                "their answers, or close some pages; then try again."
            )
        self._open[person] += 1
        try:
            yield
        finally:
            self._open[person] -= 1
            if not self._open[person]:
                del self._open[person]

    @asynccontextmanager
    async def turn(self, person: str) -> AsyncIterator[None]:
        """Wait for a turn, and have it while the block runs.

        Raises:
            TooBusy: There was none in time.
        """
        give_up_at = time.monotonic() + self._wait_s
        own, users = self._own.get(person, (asyncio.Semaphore(self._at_once_of_one), 0))
        self._own[person] = own, users + 1
        try:
            # The own first: who waits for that keeps nobody else waiting.
            await _take(own, give_up_at)
            try:
                await _take(self._all, give_up_at)
                try:
                    yield
                finally:
                    self._all.release()
            finally:
                own.release()
        finally:
            own, users = self._own.pop(person)
            if users > 1:
                self._own[person] = own, users - 1


async def _take(turns: asyncio.Semaphore, give_up_at: float) -> None:
    try:
        await asyncio.wait_for(turns.acquire(), max(0.0, give_up_at - time.monotonic()))
    except (TimeoutError, asyncio.TimeoutError) as error:
        raise TooBusy(
            "Too many look into servers just now, or these answer slowly. Try again in a moment."
        ) from error
