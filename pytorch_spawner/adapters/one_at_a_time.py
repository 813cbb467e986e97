"""Blocking calls that may hang: neither repeated while they do, nor waited for at the end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Final, Generic, TypeVar

# How long one call is waited for in a round; it goes on, and a later round has its answer.
PATIENCE_S: Final = 4.0
T = TypeVar("T")


class OneAtATime(Generic[T]):
    """A blocking call in a thread of its own: one that hangs is neither repeated nor joined."""

    def __init__(self, call: Callable[[], T], name: str) -> None:
        self._call = call
        self._name = name
        self._future: asyncio.Future[T] | None = None

    @property
    def is_pending(self) -> bool:
        """Whether a call is under way, or its answer was not fetched."""
        return self._future is not None

    async def ask(self, patience_s: float | None = None) -> T | None:
        """The answer of the call under way, or of a new one; None while there is none.

        Args:
            patience_s: How long to wait for it; None for ``PATIENCE_S``.

        Raises:
            Exception: What the call raised.
        """
        if self._future is None:
            self._future = self._start()
        future = self._future
        done, _ = await asyncio.wait(
            {future}, timeout=PATIENCE_S if patience_s is None else patience_s
        )
        if not done:
            return None
        if self._future is future:
            self._future = None
        return future.result()

    def _start(self) -> asyncio.Future[T]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def settle(answer: list[T], error: BaseException | None) -> None:
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(answer[0])

        def work() -> None:
            answer: list[T] = []
            error: BaseException | None = None
            try:
                answer.append(self._call())
            except Exception as raised:  # noqa: BLE001 (whoever asked gets it)
                error = raised
            try:
                loop.call_soon_threadsafe(settle, answer, error)
            except RuntimeError:
                pass  # the process ends

        # Not of a pool that is joined at the process's end: a sick driver would hold that up.
        threading.Thread(target=work, name=self._name, daemon=True).start()
        return future
