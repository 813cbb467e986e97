"""Following journals: one poller per watched server, any number of viewers (up to a bound).

The hub's process writes to the ledger behind our back, so a watched server is polled; a report that
arrives here wakes its poller at once. It must not write, and must not keep what nobody watches.

A viewer registers *before* it reads the journal so far, then drops what it has seen already:

    register -> read 1..40 -> (the poller publishes 39..42) -> drop 39, 40 -> pass on 41, 42

so that nothing falls between the reading and the following.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from pytorch_spawner.core.journal import Event
from pytorch_spawner.core.report_facts import Start
from pytorch_spawner.core.tickets import Place
from pytorch_spawner.errors import LabError
from pytorch_spawner.lab.ports import Ledger
from pytorch_spawner.lab.queue import Places, still_waits

log = logging.getLogger(__name__)

POLL_S: Final = 0.5
# A server that said nothing for a while is a running one: what comes next is its end or a restart.
QUIET_AFTER_S: Final = 120.0
QUIET_POLL_S: Final = 2.0
MAX_VIEWERS: Final = 20
_QUEUE_ITEMS: Final = 256


class TooManyViewers(LabError):
    """As many pages as we allow watch this server already."""

    code = "too-many-viewers"


@dataclass(frozen=True, slots=True)
class Batch:
    """News of one start.

    Attributes:
        start: The start as it is now.
        events: Its new events in order; may be empty when only the rest changed.
        place: Its place in the queue now; None while it does not wait.
    """

    start: Start
    events: tuple[Event, ...]
    place: Place | None = None


class _Watch:
    """One watched server: its viewers' queues, and the task that polls for them."""

    def __init__(self, key: tuple[str, str]) -> None:
        self.key = key
        self.queues: set[asyncio.Queue[Batch | None]] = set()
        self.wake = asyncio.Event()
        self.task: asyncio.Task[None] | None = None


class Follower:
    """Hands every viewer of a server its journal, from the start and onwards.

    Args:
        ledger: Where journals are.
        hub_id: Whose servers.
        poll_s: Seconds between two looks at a watched server.
    """

    def __init__(self, ledger: Ledger, hub_id: str, poll_s: float = POLL_S) -> None:
        self._ledger = ledger
        self._hub_id = hub_id
        self._poll_s = poll_s
        self._places = Places(ledger, hub_id, poll_s)
        self._watches: dict[tuple[str, str], _Watch] = {}

    def wake(self, username: str, servername: str) -> None:
        """Say that something was written about a server: its viewers get it now."""
        watch = self._watches.get((username, servername))
        if watch is not None:
            watch.wake.set()

    @property
    def viewers(self) -> int:
        """Open views, over all servers."""
        return sum(len(watch.queues) for watch in self._watches.values())

    @asynccontextmanager
    async def view(self, username: str, servername: str) -> AsyncIterator[View]:
        """Watch a server for as long as the block runs.

        Raises:
            TooManyViewers: The server has ``MAX_VIEWERS`` views already.
        """
        key = (username, servername)
        watch = self._watches.setdefault(key, _Watch(key))
        if len(watch.queues) >= MAX_VIEWERS:
            raise TooManyViewers(
                f"{MAX_VIEWERS} pages watch this server already. Close some of them."
            )
        queue: asyncio.Queue[Batch | None] = asyncio.Queue(_QUEUE_ITEMS)
        watch.queues.add(queue)
        if watch.task is None:
            watch.task = asyncio.create_task(self._poll(watch), name=f"watch {key}")
        try:
            yield View(self._ledger, self._hub_id, key, queue, self._places)
        finally:
            watch.queues.discard(queue)
            if not watch.queues:
                watch.task.cancel()
                self._watches.pop(key, None)

    async def _poll(self, watch: _Watch) -> None:
        """Look, publish what is new, sleep until woken; a ledger that fails is asked again."""
        seen: Start | None = None
        told: Place | None = None
        last_seq, quiet_since, has_failed, waits = 0, time.monotonic(), False, False
        while True:
            watch.wake.clear()
            try:
                start = await asyncio.to_thread(self._ledger.latest_start, self._hub_id, *watch.key)
                if start is not None and (seen is None or seen.id != start.id):
                    last_seq, waits = 0, False
                events = await self._read(start, last_seq)
                waits = still_waits(waits, events)
                place = await self._places.of(start.id) if start is not None and waits else None
                has_failed = False
            except LabError as error:
                if not has_failed:
                    log.warning("cannot read the journal of %s: %s", watch.key, error.code)
                has_failed = True
                start, events, place = seen, (), told
            is_news = place != told or seen is None or (start and has_changed(seen, start))
            if start is not None and (events or is_news):
                _publish(watch, Batch(start, events, place))
                quiet_since = time.monotonic()
            if events:
                last_seq = events[-1].seq
            seen, told = start, place
            is_quiet = time.monotonic() - quiet_since > QUIET_AFTER_S
            await _wait(watch.wake, QUIET_POLL_S if is_quiet else self._poll_s)

    async def _read(self, start: Start | None, after_seq: int) -> tuple[Event, ...]:
        if start is None:
            return ()
        return tuple(await asyncio.to_thread(self._ledger.read_events, start.id, after_seq))


class View:
    """One viewer's way through the journal."""

    def __init__(
        self,
        ledger: Ledger,
        hub_id: str,
        key: tuple[str, str],
        queue: asyncio.Queue[Batch | None],
        places: Places,
    ) -> None:
        self._ledger = ledger
        self._hub_id = hub_id
        self._key = key
        self._queue = queue
        self._places = places
        self._start: Start | None = None
        self._place: Place | None = None
        self._last_seq = 0

    async def replay(self, start_id: str, after_seq: int) -> Batch | None:
        """Return the journal so far, without what the viewer has.

        Args:
            start_id: The start the viewer knows; "" when it did not say.
            after_seq: The last event it has of that start; 0 for none.

        Returns:
            The latest start with its events. All of them when the viewer's number is of another
            start (a number beyond the journal's end can only be). None when there was no start.
        """
        start = await asyncio.to_thread(self._ledger.latest_start, self._hub_id, *self._key)
        if start is None:
            return None
        known = after_seq if start_id in ("", start.id) else 0
        # From the last event that the viewer has: it is there, or the number is of another start.
        events = await self._read(start.id, max(known - 1, 0))
        if known and (not events or events[0].seq != known):
            known, events = 0, await self._read(start.id, 0)
        self._start = start
        self._last_seq = events[-1].seq if events else 0
        # Whether it waited before what was read, the queue itself knows.
        if still_waits(waited=known > 0, events=events):
            self._place = await self._places.of(start.id)
        return Batch(start, events[1:] if known else events, self._place)

    async def _read(self, start_id: str, after_seq: int) -> tuple[Event, ...]:
        return tuple(await asyncio.to_thread(self._ledger.read_events, start_id, after_seq))

    async def next(self, timeout_s: float) -> Batch | None:
        """Wait for news.

        Returns:
            The next batch, without events that were passed on before; None after ``timeout_s``.

        Raises:
            EOFError: The viewer was too slow, its queue overflowed: it has to come again.
        """
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            try:
                batch = await asyncio.wait_for(self._queue.get(), left)
            except (asyncio.TimeoutError, TimeoutError):
                return None
            if batch is None:
                raise EOFError
            if (fresh := self._fresh(batch)) is not None:
                return fresh
        return None

    def _fresh(self, batch: Batch) -> Batch | None:
        known, self._start = self._start, batch.start
        place, self._place = self._place, batch.place
        if known is None or known.id != batch.start.id:
            self._last_seq = batch.events[-1].seq if batch.events else 0
            return batch
        events = tuple(event for event in batch.events if event.seq > self._last_seq)
        if events:
            self._last_seq = events[-1].seq
        news = batch.place if batch.place != place else None
        if events or news is not None or has_changed(known, batch.start):
            return Batch(batch.start, events, news)
        return None


def has_changed(old: Start, new: Start) -> bool:
    """Whether a start is another one, or ended meanwhile."""
    return (old.id, old.outcome, old.ended_at) != (new.id, new.outcome, new.ended_at)


def _publish(watch: _Watch, batch: Batch) -> None:
    for queue in watch.queues:
        if queue.full():
            # Too slow: throw its backlog away and send it off; it comes back with its last number.
            while not queue.empty():
                queue.get_nowait()
            queue.put_nowait(None)
        else:
            queue.put_nowait(batch)


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except (asyncio.TimeoutError, TimeoutError):
        return
