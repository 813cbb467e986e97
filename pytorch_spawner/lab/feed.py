"""News of the board for all who watch it: made once, sent to many.

While anybody watches, the ledger's version is looked at once a second. Rows are made again when it
moved, and every ten seconds because the inventory moves without it; only what differs is sent.
Each message is put into bytes once, whatever the number of viewers.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

from pytorch_spawner.core.grants import Grant
from pytorch_spawner.errors import LabError
from pytorch_spawner.lab.board import Board, counts
from pytorch_spawner.lab.etags import etag_of
from pytorch_spawner.lab.events import TooManyViewers
from pytorch_spawner.lab.views import describe_message

log = logging.getLogger(__name__)

LOOK_S: Final = 1.0
ANEW_S: Final = 10.0
MAX_VIEWERS: Final = 500
MAX_OF_ONE: Final = 40
_MESSAGES: Final = 64
# What a process holds moves all the time; a row is news when it moved by this much.
_MEMORY_STEP_MIB: Final = 256
_UNKNOWN: Final = (None, None, None, None)


class Feed:
    """Follows the board for its viewers.

    Args:
        board: What to follow.
        look_s: Seconds between two looks at the ledger.
    """

    def __init__(self, board: Board, look_s: float = LOOK_S) -> None:
        self._board = board
        self._look_s = look_s
        self._viewers: set[asyncio.Queue[str | None]] = set()
        self._pages: Counter[str] = Counter()
        self._task: asyncio.Task[None] | None = None
        self._changing = asyncio.Lock()  # protects _shown, _rest and _read_at
        self._shown: dict[str, dict[str, Any]] = {}
        self._rest: dict[str, Any] = {}
        self._about: dict[str, Any] = {}
        self._sent: dict[str, list[float | None]] = {}
        self._version = -1
        self._read_at = -1e9

    @property
    def viewers(self) -> int:
        """How many watch."""
        return len(self._viewers)

    @asynccontextmanager
    async def watch(self, whose: str) -> AsyncIterator[asyncio.Queue[str | None]]:
        """Messages from now on, the first a snapshot; None tells a viewer that is too slow to go.

        Args:
            whose: Name of the person who watches.

        Raises:
            TooManyViewers: As many as we allow watch already, in all or of this person.
        """
        if self._pages.total() >= MAX_VIEWERS or self._pages[whose] >= MAX_OF_ONE:
            raise TooManyViewers("Too many pages are open; close some, and load this one again.")
        self._pages[whose] += 1
        viewer: asyncio.Queue[str | None] = asyncio.Queue(_MESSAGES)
        try:
            async with self._changing:
                if not self._viewers:
                    # Nobody was told anything since the last one left.
                    self._read_at = -1e9
                    self._sent = self._samples()
                await self._look()
                viewer.put_nowait(self._snapshot())
                self._viewers.add(viewer)
            if self._task is None or self._task.done():
                self._task = asyncio.create_task(self._follow(), name="feed")
            yield viewer
        finally:
            self._viewers.discard(viewer)
            self._pages[whose] -= 1
            self._pages += Counter()  # forgets those without a page

    def measured(self) -> None:
        """New samples are there: tell those that differ from what was sent."""
        if not self._viewers:
            return
        now = self._samples()
        # What nobody measures any more is unknown from now on, and told once.
        gone: dict[str, list[float | None]] = {
            uuid: [*_UNKNOWN] for uuid in self._sent if uuid not in now
        }
        rows = {uuid: row for uuid, row in (now | gone).items() if self._sent.get(uuid) != row}
        self._sent |= rows
        if rows:
            self._tell("samples", {"at": round(time.time(), 1), "rows": rows})

    async def look(self) -> None:
        """Look now, after a change made here: one that is taken back within a second is two."""
        try:
            async with self._changing:
                if self._viewers:
                    await self._look()
        except LabError as error:  # the change is made, and told a second later
            log.warning("the board was not read: %s", error)

    async def _follow(self) -> None:
        while self._viewers:
            await asyncio.sleep(self._look_s)
            try:
                async with self._changing:
                    await self._look()
            except LabError as error:
                log.warning("the board was not read: %s", error)
            except Exception:  # a background loop: one odd answer must not end it for good
                log.exception("the board was not read")

    async def _look(self) -> None:
        """Read what moved, and tell it."""
        is_old = time.monotonic() - self._read_at > ANEW_S
        if not is_old and await asyncio.to_thread(self._board.version) == self._version:
            return
        state = await self._board.state()
        rows = self._board.rows(state)
        self._read_at, self._version = time.monotonic(), state.version
        self._tell_rows(rows, state.inventory.reason)
        rest = {
            "queue": {"length": state.waiting, "version": str(state.version)},
            "grants": grants_etag(state.grants),
            "counts": counts(rows, state.waiting),
            "reason": state.inventory.reason,
        }
        if self._rest:
            for name in ("queue", "grants", "counts"):
                if rest[name] != self._rest[name]:
                    self._tell(name, rest[name])
        self._rest = rest

    def _tell_rows(self, rows: list[dict[str, Any]], reason: str) -> None:
        by_uuid = {str(row["uuid"]): row for row in rows}
        changed = [
            row
            for uuid, row in by_uuid.items()
            if uuid not in self._shown or _coarse(row) != _coarse(self._shown[uuid])
        ]
        gone = [uuid for uuid in self._shown if uuid not in by_uuid]
        for row in changed:
            self._shown[row["uuid"]] = row
        for uuid in gone:
            del self._shown[uuid]
        meter = self._board.meter_state()
        about = {"meter": meter, "reason": reason}
        if changed or gone or about != self._about:
            self._about = about
            news = {"gpus": changed, "gone": gone, "meter": meter, "reason": reason}
            self._tell("gpus", news)

    def _snapshot(self) -> str:
        samples = {uuid: self._board.sample_of(uuid) for uuid in self._shown}
        rows = [{**row, "sample": samples[uuid]} for uuid, row in self._shown.items()]
        rows.sort(key=lambda row: (row["index"], row["uuid"]))
        return describe_message(
            "snapshot",
            {
                "gpus": rows,
                "meter": self._board.meter_state(),
                **self._rest,
                "now": time.time(),
            },
        )

    def _samples(self) -> dict[str, list[float | None]]:
        return {
            str(uuid): [
                _whole(sample.utilisation),
                _whole(sample.memory_used_mib),
                _whole(sample.temperature_c),
                _whole(sample.power_w),
            ]
            for uuid, sample in self._board.meter.latest.items()
        }

    def _tell(self, name: str, data: Any) -> None:
        if not self._viewers:
            return
        message = describe_message(name, data)
        for viewer in list(self._viewers):
            try:
                viewer.put_nowait(message)
            except asyncio.QueueFull:
                # It takes nothing for a minute: it comes back and gets a snapshot.
                self._viewers.discard(viewer)
                viewer.get_nowait()
                viewer.put_nowait(None)


def grants_etag(grants: Iterable[Grant]) -> str:
    """Version of the ledger's own grants together."""
    ours = [grant.as_json() for grant in grants if grant.source == "ledger"]
    # Databases sort names in ways of their own.
    return etag_of(sorted(ours, key=lambda said: str(said["id"])))


def _coarse(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row without what moves all the time."""
    processes = [
        (one["pid"], one["user"], (one["used_mib"] or 0) // _MEMORY_STEP_MIB)
        for one in row["processes"]
    ]
    return {**row, "processes": processes}


def _whole(value: float | None) -> float | None:
    return None if value is None else round(value)
