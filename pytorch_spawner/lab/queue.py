"""Places in the queue, for those who watch a server that waits.

They are no part of a journal: they change with every other start. The hub decides and writes them
down; here they are only read, once for all who watch.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence

from pytorch_spawner.core.journal import Event
from pytorch_spawner.core.tickets import Place
from pytorch_spawner.lab.ports import Ledger


def still_waits(waited: bool, events: Sequence[Event]) -> bool:
    """Whether a start waits for a GPU after these events of its journal, given whether it did."""
    for event in events:
        if event.kind == "queue":
            waited = True
        elif event.kind == "start" and event.data.get("stage") != "requested":
            waited = False
    return waited


class Places:
    """The queue as it was a moment ago.

    Args:
        ledger: Where the queue is.
        hub_id: Whose queue.
        fresh_s: For how many seconds an answer is good.
    """

    def __init__(self, ledger: Ledger, hub_id: str, fresh_s: float) -> None:
        self._ledger = ledger
        self._hub_id = hub_id
        self._fresh_s = fresh_s
        self._reading = asyncio.Lock()  # protects _known and _read_at
        self._known: Mapping[str, Place] = {}
        self._read_at = -1e9

    async def of(self, start_id: str) -> Place | None:
        """A start's place; None when it does not wait, or nothing is decided yet."""
        async with self._reading:
            if time.monotonic() - self._read_at > self._fresh_s:
                waiting = await asyncio.to_thread(self._ledger.queue, self._hub_id)
                self._known = {one.ticket.id: one for one in waiting if one.place}
                self._read_at = time.monotonic()
        return self._known.get(start_id)
