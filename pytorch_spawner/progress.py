"""The journal of a start as JupyterHub's progress events, which the pending page is drawn from."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from pytorch_spawner.core.journal import Event
from pytorch_spawner.core.tickets import Wait, describe_place
from pytorch_spawner.ledger.store import Start

if TYPE_CHECKING:
    from pytorch_spawner.shared import Lab

_POLL_S: Final = 0.25
# How full the hub's bar is once a stage is reached, in percent.
_REACHED: Final = {"requested": 5, "gpu": 15, "home": 25, "image": 30, "container": 50, "lab": 95}


async def follow(
    lab: Lab,
    start: Callable[[], Start | None],
    on_told: Callable[[Start], None] = lambda _: None,
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> AsyncIterator[dict[str, Any]]:
    """Tell the journal of a start and its place in the queue, until nobody listens any more.

    Every viewer gets the whole journal from its first entry, so that a page reloaded half way
    shows everything. Texts of a container are only in ``lab``, which pages insert as text.

    Args:
        lab: Where it is read.
        start: The start as of now; None while there is none yet.
        on_told: Called whenever a viewer has been told all that is written so far.
        pause: Waits for so many seconds, or less where there is something to read.
    """
    seen, shown = 0, 5
    told: Wait | None = None
    while True:
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
            on_told(now)
        await pause(_POLL_S)


def _told(entry: Event) -> str:
    """A line for the hub's own pages, which set it as text, never as HTML; "" says nothing."""
    said = entry.data.get("message" if entry.kind == "start" else "sentence", "")
    return str(said)[:300] if entry.kind in ("start", "check") else ""
