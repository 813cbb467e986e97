"""Who may start now, of many who came at once; the rest wait in the order in which they came."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

# A boot that takes longer is not waited for: the machine is at work for others, or it is no boot
# of ours, and standing in line would only give this lab a smaller share of the cores.
_HOLD_S: Final = 1.5
_LOOK_S: Final = 0.5
# Whoever waits is told how many are before them, and again at most this often. Each time is an
# entry of a journal, so whoever is far back is told less often: every 5 s behind 50 others.
_TELL_S: Final = 1.0
_TELL_S_PER_AHEAD: Final = 0.1
# Of a class that comes at once, nobody's first word is written in the same moment as another's.
_APART_S: Final = 0.005
# Words are written before the start goes on, so that its journal is in order; but a start that may
# begin does not stand still for a ledger that is locked.
_WRITE_S: Final = 0.25

# Of how many are starting before one that waits, and of the seconds it waited once that is 0.
OnWait = Callable[[int, float], Awaitable[None]]


class StartingPlaces:
    """The two things that a start may have to wait for once it has its GPU: a place, and a turn.

    A place is one of ``starts_at_once``, held until the container answers. A turn is a core of the
    engine's machine, for as long as it takes to boot.

    Args:
        is_busy: Whether the machine has no core to spare.
    """

    def __init__(self, is_busy: Callable[[], bool]) -> None:
        self._places = Places()
        self._turns = Turns(is_busy)
        # What is still being told to those who may start.
        self._last_words: dict[asyncio.Future[None], object] = {}

    async def take(
        self,
        starter: object,
        at_once: int,
        boots_at_once: int,
        on_wait: OnWait,
    ) -> None:
        """Wait until a container may be started; until then the GPU waits.

        JupyterHub's own limit refuses whoever comes too many, and counts those who only queue.
        Whoever is cancelled meanwhile holds nothing.

        Args:
            starter: Who starts.
            at_once: Most containers being started at the same time; 0 for no limit.
            boots_at_once: Most that boot at the same time; 0 for no limit.
            on_wait: Called with how many are starting before this one (>= 1), after one to two
                seconds of waiting and whenever that has changed, at most once a second; and once
                more, with 0 and the seconds waited, when one that was told so may start. Nobody
                waits for that last word longer than a moment, so it may come after the return, but
                not after ``leave``.
        """
        taking = asyncio.ensure_future(self._take(starter, at_once, boots_at_once))
        telling = asyncio.ensure_future(self._tell(starter, taking, on_wait))
        try:
            await asyncio.wait({taking, telling}, return_when=asyncio.FIRST_COMPLETED)
            if not taking.done():
                telling.result()  # it has failed: before the place is there, nothing else ends it
            taking.result()
            self._last_words[telling] = starter
            telling.add_done_callback(self._last_words.pop)
            await asyncio.wait({telling}, timeout=_WRITE_S)
            if telling.done() and not telling.cancelled():
                telling.result()
        except BaseException:
            taking.cancel()
            telling.cancel()
            self.leave(starter)
            raise

    async def _take(self, starter: object, at_once: int, boots_at_once: int) -> float:
        """Wait; how long that was, in seconds."""
        clock = asyncio.get_running_loop().time
        began = clock()
        if at_once:
            await self._places.take(starter, at_once)
        if boots_at_once:
            await self._turns.take(starter, boots_at_once)
        return clock() - began

    async def _tell(self, starter: object, taking: asyncio.Future[float], on_wait: OnWait) -> None:
        """Say how many are ahead until it may start, and then that it may: one after the other."""
        await asyncio.wait({taking}, timeout=_TELL_S)
        await asyncio.wait({taking}, timeout=self.ahead(starter) * _APART_S % 1.0)
        told = 0
        while not taking.done():
            ahead = self.ahead(starter)
            if ahead not in (0, told):
                told = ahead
                await on_wait(ahead, 0.0)
            await asyncio.wait({taking}, timeout=max(_TELL_S, told * _TELL_S_PER_AHEAD))
        if told and not taking.cancelled():
            await on_wait(0, taking.result())

    def ahead(self, starter: object) -> int:
        """How many are starting before one that waits; 0 for one that does not wait."""
        return self._places.ahead(starter) or self._turns.ahead(starter)

    def leave(self, starter: object) -> None:
        """The container answers, or the start is over; calling it again changes nothing."""
        self._places.leave(starter)
        self._turns.leave(starter)
        for telling, who in tuple(self._last_words.items()):
            if who is starter:
                telling.cancel()


@dataclass(frozen=True, slots=True, eq=False)
class _Waiter:
    holder: object
    at_once: int
    given: asyncio.Future[None]


class Places:
    """So many at once; whoever has a place keeps it until it is given back.

    It belongs to the event loop in which it is used. What is left of a loop that has ended is
    forgotten: nobody there will ever give anything back.
    """

    def __init__(self) -> None:
        # By identity, and the holders themselves: an id alone could be somebody else's by now.
        self._holders: dict[int, object] = {}
        self._waiting: deque[_Waiter] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def take(self, holder: object, at_once: int) -> None:
        """Wait for a place.

        Args:
            holder: Who takes it; one that has a place has it already.
            at_once: How many there are, >= 1.

        Raises:
            CancelledError: It was cancelled, or left while it waited; it has no place then.
        """
        loop = self._enter()
        if id(holder) in self._holders:
            return
        waiter = _Waiter(holder, at_once, loop.create_future())
        self._waiting.append(waiter)
        self._look()
        try:
            await waiter.given
        except asyncio.CancelledError:
            if not waiter.given.cancelled():
                self.leave(holder)  # it was given just now
            elif waiter in self._waiting:
                self._waiting.remove(waiter)
                self._look()  # the next may ask for more room than this one did
            raise

    def leave(self, holder: object) -> None:
        """Give a place back, or leave the line; doing it again changes nothing."""
        self._enter()
        for waiter in self._waiting:
            if waiter.holder is holder:
                waiter.given.cancel()
        self._let_go(holder)

    def ahead(self, holder: object) -> int:
        """How many have a place or are before this one in the line; 0 for one that is not in it."""
        for before, waiter in enumerate(self._waiting, len(self._holders)):
            if waiter.holder is holder:
                return before
        return 0

    def _enter(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._forget()
            self._loop = loop
        return loop

    def _let_go(self, holder: object) -> None:
        self._holders.pop(id(holder), None)
        self._look()

    def _forget(self) -> None:
        self._holders.clear()
        self._waiting.clear()

    def _may_go(self, at_once: int) -> bool:
        return len(self._holders) < at_once

    def _look(self) -> None:
        while self._waiting:
            waiter = self._waiting[0]
            if not waiter.given.cancelled() and not self._may_go(waiter.at_once):
                return
            self._waiting.popleft()
            if not waiter.given.cancelled():
                self._holders[id(waiter.holder)] = waiter.holder
                waiter.given.set_result(None)
                self._gave(waiter.holder)

    def _gave(self, holder: object) -> None:
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
        self._ends: dict[int, asyncio.TimerHandle] = {}

    def _may_go(self, at_once: int) -> bool:
        if super()._may_go(at_once):
            return True
        # Once a look, for whoever began just now is not seen to be at work yet.
        has_spare, self._has_spare = self._has_spare, False
        return has_spare

    def _gave(self, holder: object) -> None:
        loop = asyncio.get_running_loop()
        self._ends[id(holder)] = loop.call_later(_HOLD_S, self._let_go, holder)

    def _look(self) -> None:
        super()._look()
        if self._waiting and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_LOOK_S, self._look_again)

    def _let_go(self, holder: object) -> None:
        # Else it would end the next turn of the same holder before its time.
        if (end := self._ends.pop(id(holder), None)) is not None:
            end.cancel()
        super()._let_go(holder)

    def _forget(self) -> None:
        super()._forget()
        for timer in (self._timer, *self._ends.values()):
            if timer is not None:
                timer.cancel()
        self._timer = None
        self._ends.clear()

    def _look_again(self) -> None:
        self._timer = None
        if self._waiting:
            self._has_spare = not self._is_busy()
            self._look()
            self._has_spare = False
