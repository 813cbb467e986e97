"""Keeps standbys ready in the Jupyter server's event loop.

One task starts them, one after the other, and looks now and then whether memory got short or a
student installed something. All of it may fail: a kernel is then started as it always was.
"""

from __future__ import annotations

import asyncio
import logging
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import machine, memory
from .rules import Start
from .standby import Standby

_current: Pool | None = None


def current() -> Pool | None:
    """The server's pool, if it has one."""
    return _current


def use(pool: Pool | None) -> None:
    """Make this the server's pool."""
    global _current
    _current = pool


@dataclass(frozen=True)
class Limits:
    """How much, how often, how long.

    Attributes:
        kernels: Standbys kept ready.
        start_mib: Memory that must be left for one to be started.
        end_mib: Memory below which all are ended.
        patience_s: The longest that a standby waits for a machine with a core to spare.
        quiet_s: Time between two looks at that.
        tick_s: Time between two looks at memory and packages.
        refill_after_s: A notebook's first cells come first.
        import_s: The longest that imports may take.
        answer_s: The longest that a hand-over may take.
        backoff_s: Wait after a standby that ended at import; twice as long after the second.
        failures: In a row, after which none is started any more.
    """

    kernels: int = 1
    start_mib: int = 1536
    end_mib: int = 1024
    patience_s: float = 20.0
    quiet_s: float = 0.5
    tick_s: float = 4.0
    refill_after_s: float = 2.0
    import_s: float = 120.0
    answer_s: float = 0.5
    backoff_s: float = 5.0
    failures: int = 3


class Pool:
    """The standbys of one server.

    Args:
        start: Called before each start, for what a kernel would be started with now; None where
            that is not known.
        log: The server's.
        limits: See ``Limits``.
        available_mib: Tells the memory left; None where unknown.
        is_busy: Tells whether the machine has no core to spare.
    """

    def __init__(
        self,
        start: Callable[[], Start | None],
        log: logging.Logger,
        limits: Limits | None = None,
        available_mib: Callable[[], int | None] = memory.available_mib,
        is_busy: Callable[[], bool] = machine.is_busy,
    ) -> None:
        self._start = start
        self._log = log
        self._limits = limits or Limits()
        self._available_mib = available_mib
        self._is_busy = is_busy
        self._wanted_since: float | None = None
        self._ready: list[Standby] = []
        self._why_none = "none is ready yet"
        self._asked = 0
        self._failures = 0
        self._needs_mib = self._limits.start_mib
        self._not_before = 0.0
        self._keeper: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._woken = asyncio.Event()

    def begin(self) -> None:
        """Start keeping; called in the server's event loop."""
        self._loop = asyncio.get_running_loop()
        self._keeper = self._loop.create_task(self._keep())

    async def close(self) -> None:
        """End all standbys."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        await self._end_all()

    @property
    def ready(self) -> int:
        """How many could be handed over now."""
        return sum(standby.is_alive for standby in self._ready)

    async def take(
        self, command: Sequence[str], options: Mapping[str, Any]
    ) -> subprocess.Popen[bytes] | None:
        """Return a process that is about to be this kernel, or None: start an ordinary one."""
        try:
            process, why = await self._take(command, options)
        except Exception as error:  # noqa: BLE001 - a kernel must start whatever happens here
            process, why = None, f"{type(error).__name__}: {error}"
        if why:
            self._log.info("Standby kernels: an ordinary kernel is started: %s", why)
        return process

    async def _take(
        self, command: Sequence[str], options: Mapping[str, Any]
    ) -> tuple[subprocess.Popen[bytes] | None, str]:
        if self._loop is not asyncio.get_running_loop():
            return None, "it is asked for outside the server's event loop"
        if not self._ready:
            return None, self._why_none
        standby = self._ready.pop(0)
        self._asked += 1
        began = time.monotonic()
        try:
            if why := await asyncio.to_thread(standby.trouble, command, options):
                self._ready.insert(0, standby)
                return None, why
            why = await asyncio.to_thread(standby.staleness) or await standby.hand_over(
                command, options, self._limits.answer_s
            )
        except BaseException:
            await standby.end()
            raise
        finally:
            self._asked -= 1
        self._why_none = "the next one is not ready yet"
        if why:
            await standby.end()
            self._woken.set()
            return None, why
        took_ms = (time.monotonic() - began) * 1000
        self._log.info("Standby kernels: %d handed over in %.0f ms", standby.process.pid, took_ms)
        self._not_before = time.monotonic() + self._limits.refill_after_s
        self._woken.set()
        return standby.process, ""

    async def _keep(self) -> None:
        while True:
            self._woken.clear()
            try:
                wait_s = await self._look_once()
            except Exception:  # noqa: BLE001 - whatever it is, kernels start as they always did
                self._log.exception("Standby kernels: none is started for a while")
                wait_s = 60.0
            try:
                await asyncio.wait_for(self._woken.wait(), wait_s)
            except (TimeoutError, asyncio.TimeoutError):
                pass

    async def _look_once(self) -> float:
        """End what is of no use, start at most one, and return when to look again."""
        await self._drop_useless()
        there = len(self._ready) + self._asked
        if there >= self._limits.kernels or self._failures >= self._limits.failures:
            return self._limits.tick_s
        if (wait_s := self._not_before - time.monotonic()) > 0:
            return min(wait_s, self._limits.tick_s)
        left = self._available_mib()
        if left is None or left < self._needs_mib:
            self._why_none = f"memory is short ({left} MiB left, {self._needs_mib} needed)"
            return self._limits.tick_s
        if self._waits_for_quiet():
            self._why_none = "the machine is busy with other starts"
            return self._limits.quiet_s
        self._wanted_since = None
        await self._start_one()
        return 0.0

    def _waits_for_quiet(self) -> bool:
        now = time.monotonic()
        if self._wanted_since is None:
            self._wanted_since = now
        return now - self._wanted_since < self._limits.patience_s and self._is_busy()

    async def _drop_useless(self) -> None:
        left = self._available_mib()
        if self._ready and (left is None or left < self._limits.end_mib):
            # With what they give back they must not be started again at once.
            held = max(memory.resident_mib(standby.process.pid) for standby in self._ready)
            self._needs_mib = self._limits.start_mib + held
            self._why_none = f"memory is short ({left} MiB left)"
            self._log.info("Standby kernels: ended, %s", self._why_none)
            await self._end_all()
        for standby in list(self._ready):
            why = await asyncio.to_thread(standby.staleness) if standby.is_alive else "it ended"
            if why and standby in self._ready:
                self._ready.remove(standby)
                self._log.info("Standby kernels: %d ended: %s", standby.process.pid, why)
                await standby.end()

    async def _start_one(self) -> None:
        start = self._start()
        if start is None:
            self._why_none = "the default kernel is not an ordinary ipykernel"
            self._failures = self._limits.failures
            return
        standby = Standby(start)
        try:
            why = await self._imported(standby)
        except BaseException:
            await asyncio.shield(standby.end())
            raise
        if why:
            await standby.end()
            self._note_failure(why)
            return
        self._failures = 0
        self._ready.append(standby)
        self._not_before = 0.0
        said = standby.said or {}
        absent = f", not in the image: {', '.join(said['absent'])}" if said["absent"] else ""
        self._log.info(
            "Standby kernels: %d ready after %.1f s, %d MiB%s",
            standby.process.pid,
            said["seconds"],
            memory.resident_mib(standby.process.pid),
            absent,
        )

    async def _imported(self, standby: Standby) -> str:
        """Wait until it is ready; return why it is not."""
        importing = asyncio.ensure_future(standby.ready())
        until = time.monotonic() + self._limits.import_s
        try:
            while not importing.done():
                if time.monotonic() > until:
                    return f"its imports took more than {self._limits.import_s:g} s"
                if (self._available_mib() or 0) < self._limits.end_mib:
                    return "memory got short while it imported"
                await asyncio.wait({importing}, timeout=min(1.0, self._limits.import_s))
            if importing.result():
                return ""
            return f"it ended with status {await standby.ended()}"
        finally:
            importing.cancel()

    def _note_failure(self, why: str) -> None:
        self._failures += 1
        self._not_before = time.monotonic() + self._limits.backoff_s * 2 ** (self._failures - 1)
        last = self._failures >= self._limits.failures
        self._why_none = f"no standby could be made: {why}"
        self._log.warning(
            "Standby kernels: one could not be made: %s%s",
            why,
            "; none is tried any more until the server restarts" if last else "",
        )

    async def _end_all(self) -> None:
        ended, self._ready = self._ready, []
        for standby in ended:
            await standby.end()
