"""How late an event loop runs, measured on the loop itself; loaded into the hub's process.

Four things are written down, a line each, with CLOCK_MONOTONIC so that another process can tell
which belong to what it did:

- ``L at late_ms cpu_ms``: a task that sleeps 5 ms woke up ``late_ms`` too late; the loop's thread
  computed ``cpu_ms`` of that time, the rest it waited for the GIL, a disk or a processor;
- ``C at ms cpu_ms what``: one callback (a handler's step between two awaits) took ``ms``;
- ``G at ms generation``: the garbage collector stopped the loop's thread;
- ``O at ms cpu_ms what``: a step in the code of a class that was given to ``watch``, without what
  the hub did before and after it.

With ``profile`` a second thread notes where the loop's thread is while the loop is late:
``S at ms file:line:function < caller < ...``.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import gc
import inspect
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

EVERY_MS = 5.0
_SLOW_MS = 20.0
_GC_MS = 2.0
_WRITE_S = 0.5
_SAMPLE_S = 0.01
_FRAMES = 45


class LoopMeter:
    """Measures the running loop from ``start`` on, until the process ends."""

    def __init__(self, path: Path, *, profile: bool = False) -> None:
        self._path = path
        self._profile = profile
        self._lines: list[str] = []
        self._task: asyncio.Task[None] | None = None
        self._thread = 0
        self._woke = 0.0
        self._depth = 0
        self._gc_began = 0.0

    def start(self) -> None:
        """Begin, once, on the loop's own thread."""
        self._thread = threading.get_ident()
        self._task = asyncio.get_running_loop().create_task(self._measure())
        self._time_callbacks()
        gc.callbacks.append(self._time_gc)
        threading.Thread(target=self._write_forever, daemon=True, name="loop-meter").start()
        if self._profile:
            threading.Thread(target=self._sample_forever, daemon=True, name="loop-samples").start()
        atexit.register(self._write)

    async def _measure(self) -> None:
        while True:
            began, cpu = time.monotonic(), time.thread_time()
            self._woke = began
            await asyncio.sleep(EVERY_MS / 1000)
            now = time.monotonic()
            late_ms = (now - began) * 1000 - EVERY_MS
            cpu_ms = (time.thread_time() - cpu) * 1000
            self._lines.append(f"L {now:.6f} {max(0.0, late_ms):.3f} {cpu_ms:.3f}")

    def _time_callbacks(self) -> None:
        plain = asyncio.events.Handle._run
        meter = self

        def timed(handle: Any) -> None:
            if threading.get_ident() != meter._thread:
                plain(handle)
                return
            began = time.monotonic()
            cpu = time.thread_time()
            plain(handle)
            now = time.monotonic()
            if (now - began) * 1000 >= _SLOW_MS:
                cpu_ms = (time.thread_time() - cpu) * 1000
                what = " ".join(repr(handle).split())[:300]
                meter._lines.append(f"C {now:.6f} {(now - began) * 1000:.3f} {cpu_ms:.3f} {what}")

        asyncio.events.Handle._run = timed  # type: ignore[method-assign]

    def watch(self, cls: type, outside: type) -> None:
        """Time every step in the methods of ``cls``, those of ``outside`` and its bases left out.

        A step is what runs on the loop between two awaits. Of methods that call each other only the
        outermost counts.
        """
        seen: set[str] = set()
        for owner in cls.__mro__[: cls.__mro__.index(outside)]:
            for name, method in list(vars(owner).items()):
                if not inspect.isfunction(method) or name in seen or _is_odd(method):
                    continue
                seen.add(name)
                if inspect.iscoroutinefunction(method):
                    setattr(owner, name, self._timed_coroutine(name, method))
                elif name in _SYNC:
                    setattr(owner, name, self._timed(name, method))
        if "__init__" not in seen:
            cls.__init__ = self._timed("__init__", cls.__init__)  # type: ignore[misc]

    def _timed(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self._step(name):
                return method(*args, **kwargs)

        return timed

    def _timed_coroutine(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        async def timed(*args: Any, **kwargs: Any) -> Any:
            return await _Steps(self, name, method(*args, **kwargs))

        return timed

    @contextmanager
    def _step(self, name: str) -> Iterator[None]:
        if self._depth or threading.get_ident() != self._thread:
            yield
            return
        self._depth = 1
        began, cpu = time.monotonic(), time.thread_time()
        try:
            yield
        finally:
            self._depth = 0
            now = time.monotonic()
            cpu_ms = (time.thread_time() - cpu) * 1000
            self._lines.append(f"O {now:.6f} {(now - began) * 1000:.3f} {cpu_ms:.3f} {name}")

    def _time_gc(self, phase: str, facts: dict[str, int]) -> None:
        if threading.get_ident() != self._thread:
            return
        now = time.monotonic()
        if phase == "start":
            self._gc_began = now
        elif (took_ms := (now - self._gc_began) * 1000) >= _GC_MS:
            self._lines.append(f"G {now:.6f} {took_ms:.3f} {facts['generation']}")

    def _write_forever(self) -> None:
        while True:
            time.sleep(_WRITE_S)
            self._write()

    def _write(self) -> None:
        lines, self._lines = self._lines, []
        if lines:
            with self._path.open("a") as file:
                file.write("\n".join(lines) + "\n")

    def _sample_forever(self) -> None:
        while True:
            time.sleep(_SAMPLE_S)
            late_ms = (time.monotonic() - self._woke) * 1000 - EVERY_MS
            if late_ms >= _SLOW_MS:
                frame = sys._current_frames().get(self._thread)
                stack = " < ".join(_frames(frame))
                self._lines.append(f"S {time.monotonic():.6f} {late_ms:.3f} {stack}")


def _frames(frame: FrameType | None) -> list[str]:
    found: list[str] = []
    while frame is not None and len(found) < _FRAMES:
        code = frame.f_code
        place = "/".join(code.co_filename.rsplit("/", 2)[-2:])
        found.append(f"{place}:{frame.f_lineno}:{code.co_name}")
        frame = frame.f_back
    return found


class _Steps:
    """Awaits a coroutine and times each of its steps."""

    def __init__(self, meter: LoopMeter, name: str, inner: Coroutine[Any, Any, Any]) -> None:
        self._meter, self._name, self._inner = meter, name, inner

    def __await__(self) -> Generator[Any, Any, Any]:
        advance: Callable[[], Any] = functools.partial(self._inner.send, None)
        while True:
            try:
                with self._meter._step(self._name):
                    waits_for = advance()
            except StopIteration as end:
                return end.value
            try:
                sent = yield waits_for
            except BaseException as error:  # noqa: BLE001  (a cancellation belongs to the coroutine)
                advance = functools.partial(self._inner.throw, error)
            else:
                advance = functools.partial(self._inner.send, sent)


# What the hub calls that is no coroutine and does more than return a value.
_SYNC = frozenset({"__init__", "get_state", "load_state", "clear_state", "get_env", "get_args"})


def _is_odd(method: Callable[..., Any]) -> bool:
    return inspect.isasyncgenfunction(method) or inspect.isgeneratorfunction(method)


_meters: dict[Path, LoopMeter] = {}


def meter_hook(
    path: Path, *, profile: bool, watch: tuple[type, type] | None = None
) -> Callable[..., None]:
    """A spawner's hook whose first call starts the meter of ``path``.

    A function and no bound method, because traitlets copies what is configured, deep, once for each
    spawner: there would be a meter for each.
    """

    def start(*_: Any) -> None:
        if path not in _meters:
            _meters[path] = LoopMeter(path, profile=profile)
            _meters[path].start()
            if watch is not None:
                _meters[path].watch(*watch)

    return start


@dataclass(frozen=True, slots=True)
class Reading:
    """What was measured in a stretch of time, in ms.

    Attributes:
        late: How late each wake-up was.
        worst_cpu: CPU time of the loop's thread during the latest of them.
        callbacks: (ms, cpu_ms, what) of the slow callbacks, the slowest first.
        gc: How long each collection took that was long enough to be noted.
        steps: (ms, cpu_ms, what) of every step in the code that is watched, the longest first.
    """

    late: tuple[float, ...]
    worst_cpu: float
    callbacks: tuple[tuple[float, float, str], ...]
    gc: tuple[float, ...]
    steps: tuple[tuple[float, float, str], ...]


def read(path: Path, began: float, ended: float) -> Reading:
    """Read what a meter wrote between two times of CLOCK_MONOTONIC."""
    late: list[tuple[float, float]] = []
    callbacks: list[tuple[float, float, str]] = []
    pauses: list[float] = []
    steps: list[tuple[float, float, str]] = []
    for line in path.read_text().splitlines():
        kind, _, rest = line.partition(" ")
        words = rest.split(" ", 3)
        # A wake-up that came late began to be late before.
        if len(words) < 3 or not began <= float(words[0]) <= ended + 1:
            continue
        if kind == "L":
            late.append((float(words[1]), float(words[2])))
        elif kind == "C":
            callbacks.append((float(words[1]), float(words[2]), words[3]))
        elif kind == "O":
            steps.append((float(words[1]), float(words[2]), words[3]))
        elif kind == "G":
            pauses.append(float(words[1]))
    return Reading(
        late=tuple(ms for ms, _ in late),
        worst_cpu=max(late, default=(0.0, 0.0))[1],
        callbacks=tuple(sorted(callbacks, reverse=True)),
        gc=tuple(pauses),
        steps=tuple(sorted(steps, reverse=True)),
    )


def blocked(late: Iterable[float], every_ms: float = EVERY_MS) -> Sequence[float]:
    """What wake-ups every 5 ms would have seen, had the late ones not kept them from happening.

    A task that sleeps notes one wake-up for a loop that stood still for a second, where two hundred
    were due; without them a percentile would hide every stall. Source: "coordinated omission", as
    HdrHistogram's copyCorrectedForCoordinatedOmission corrects it.
    """
    found: list[float] = []
    for ms in late:
        found.append(ms)
        missed = ms - every_ms
        while missed > 0:
            found.append(missed)
            missed -= every_ms
    return found
