"""Blocking calls off the event loop: many at once, but in order for each server.

DockerSpawner runs every call of every user through one thread, so that one slow stop makes
everybody wait. That thread also keeps one server's calls in order: an in-flight `docker start` ends
before the poll that follows a cancel. A lane keeps the second without the first.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Lanes:
    """A thread pool in which calls of the same lane run one after the other.

    Example timeline for one lane: submit(a), submit(b) -> a runs, b waits even when the coroutine
    that waited for a was cancelled; other lanes are not held up.
    """

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="docker")
        self._lock = threading.Lock()  # protects _waiting
        self._waiting: dict[str, deque[Callable[[], None]]] = {}

    def submit(self, lane: str, call: Callable[[], Any]) -> Future[Any]:
        """Run ``call`` in a thread once everything submitted to ``lane`` before has ended."""
        future: Future[Any] = Future()

        def run() -> None:
            try:
                if future.set_running_or_notify_cancel():
                    try:
                        future.set_result(call())
                    except BaseException as error:  # noqa: BLE001  the waiting side raises it
                        future.set_exception(error)
            finally:
                self._next(lane)

        with self._lock:
            if lane in self._waiting:
                self._waiting[lane].append(run)
                return future
            self._waiting[lane] = deque()
        self._pool.submit(run)
        return future

    def _next(self, lane: str) -> None:
        with self._lock:
            waiting = self._waiting[lane]
            if not waiting:
                del self._waiting[lane]
                return
            run = waiting.popleft()
        self._pool.submit(run)
