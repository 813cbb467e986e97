"""A real ledger under a clock that a test sets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pytorch_spawner.ledger.store import Ledger


class Clock:
    """Tells ``time``, Unix time in seconds, until a test sets another one."""

    def __init__(self, time: float) -> None:
        self.time = time

    def __call__(self) -> float:
        return self.time


@contextmanager
def ledger_at(folder: Path, clock: Clock) -> Iterator[Ledger]:
    """A ledger of its own in a folder."""
    opened = Ledger.open(f"sqlite:///{folder / 'ledger.sqlite'}", clock)
    try:
        yield opened
    finally:
        opened.close()
