"""The journal of a start as JupyterHub's progress events, which the pending page is drawn from."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from pytorch_spawner.core.journal import Event
from pytorch_spawner.core.tickets import Wait, describe_place
from pytorch_spawner.ledger.store import Start

if TYPE_CHECKING:
    from pytorch_spawner.shared import Lab

_POLL_S: Final = 0.25
# How full the hub's bar is once a stage is reached, in percent.
_REACHED: Final = {"requested": 5, "gpu": 15, "home": 25, "image": 30, "container": 50, "lab": 95}


class Viewers:
    """Those who watch the starts of one server, and whether one of them has read all of the latest.

    Where a start's page leads goes by what was written last, and the hub tells a page nothing more
    from the moment that a start is over; so a start asks before it ends.
    """

    def __init__(self) -> None:
        # Set once somebody was told all that was written when this event was made.
        self._has_read = asyncio.Event()
        self._is_called = asyncio.Event()

    def begin(self) -> None:
        """A start begins, and nobody has read anything of it."""
        self._has_read = asyncio.Event()

    @property
    def has_come(self) -> bool:
        """Whether somebody watches this start, or did."""
        return self._has_read.is_set()

    def call(self) -> None:
        """Have all of them look at once; what they read before does not count any more."""
        self._has_read = asyncio.Event()
        self._is_called.set()
        self._is_called = asyncio.Event()

    async def come(self) -> None:
        """Return once somebody has read all that was written at the last beginning or call."""
        await self._has_read.wait()

    async def follow(
        self, lab: Lab, start: Callable[[], Start | None]
    ) -> AsyncIterator[dict[str, Any]]:
        """Tell the journal of a start and its place in the queue, until nobody listens any more.

        Every viewer gets the whole journal from its first entry, so that a page reloaded half way
        shows everything. Texts of a container are only in ``lab``, which pages insert as text.

        Args:
            lab: Where it is read.
            start: The start as of now; None while there is none yet.
        """
        seen, shown = 0, 5
        told: Wait | None = None
        while True:
            # Those of before the look: what is written or asked during it, it may have missed.
            has_read, is_called = self._has_read, self._is_called
            if (now := start()) is not None:
                for entry in await lab.read_events(now, seen):
                    seen = entry.seq
                    shown = max(shown, _REACHED.get(str(entry.data.get("stage")), shown))
                    yield {"progress": shown, "message": _told(entry), "lab": entry.as_json()}
                place = lab.queue.position(now.id)
                if place is not None and place != told:
                    yield {
                        "progress": shown,
                        "message": f"You are number {place.place} in the queue. {place.reason}",
                        "lab": Event(0, time.time(), "queue", describe_place(place)).as_json(),
                    }
                told = place
                has_read.set()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(is_called.wait(), _POLL_S)


def _told(entry: Event) -> str:
    """A line for the hub's own pages, which set it as text, never as HTML; "" says nothing."""
    said = entry.data.get("message" if entry.kind == "start" else "sentence", "")
    return str(said)[:300] if entry.kind in ("start", "check") else ""
