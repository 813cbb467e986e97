"""Who may start now, of many who came at once; the rest wait in the order in which they came."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

# A boot that takes longer is not waited for: the machine is at work for others, or it is no boot
# of ours, and standing in line would only give this lab a smaller share of the cores.
_HOLD_S: Final = 1.5
_LOOK_S: Final = 0.5


class Places:
    """So many at once; whoever has a place keeps it until it is given back."""

    def __init__(self) -> None:
        self._holders: set[int] = set()
        self._waiting: deque[tuple[int, int, asyncio.Future[None]]] = deque()

    async def take(self, holder: object, at_once: int) -> None:
        """Wait for a place.

        Args:
            holder: Who takes it; one that has a place has it already.
            at_once: How many there are, >= 1.
        """
        if id(holder) in self._holders:
            return
        mine = asyncio.get_running_loop().create_future()
        entry = (id(holder), at_once, mine)
        self._waiting.append(entry)
        self._look()
        try:
            await mine
        except asyncio.CancelledError:
            if mine.done() and not mine.cancelled():
                self.leave(holder)  # it was given just now
            elif entry in self._waiting:
                self._waiting.remove(entry)
                self._look()  # the next may ask for more room than this one did
            raise

    def leave(self, holder: object) -> None:
        """Give a place back; doing it again changes nothing."""
        self._holders.discard(id(holder))
        self._look()

    def _may_go(self, at_once: int) -> bool:
        return len(self._holders) < at_once

    def _look(self) -> None:
        while self._waiting:
            holder, at_once, future = self._waiting[0]
            if not future.cancelled() and not self._may_go(at_once):
                return
            self._waiting.popleft()
            if not future.cancelled():
                self._holders.add(holder)
                future.set_result(None)
                self._gave(holder)

    def _gave(self, holder: int) -> None:
        """A place was given."""


class Turns(Places):
    """Places on the cores of a machine, for what uses a whole one until it is up.

    Eight servers that boot at once on two cores are all up after eight boots' time; two by two, the
    first are up after one. What they wait for meanwhile is not the machine: as soon as it has a
    core to spare, one more begins, and after one and a half seconds nobody is waited for.

    Args:
        is_busy: Whether the machine has no core to spare.
    """

    def __init__(self, is_busy: Callable[[], bool]) -> None:
        super().__init__()
        self._is_busy = is_busy
        self._has_spare = False
        self._timer: asyncio.TimerHandle | None = None

    def _may_go(self, at_once: int) -> bool:
        if super()._may_go(at_once):
            return True
        # Once a look, for whoever began just now is not seen to be at work yet.
        has_spare, self._has_spare = self._has_spare, False
        return has_spare

    def _gave(self, holder: int) -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(_HOLD_S, self._let_go, holder)
        if self._timer is None:
            self._timer = loop.call_later(_LOOK_S, self._look_again)

    def _let_go(self, holder: int) -> None:
        self._holders.discard(holder)
        self._look()

    def _look_again(self) -> None:
        self._timer = None
        if self._waiting:
            self._timer = asyncio.get_running_loop().call_later(_LOOK_S, self._look_again)
            self._has_spare = not self._is_busy()
            self._look()
            self._has_spare = False
