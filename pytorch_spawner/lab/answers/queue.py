"""What the API answers about those who wait."""

from __future__ import annotations

from pytorch_spawner.lab.answers.common import Answer


class Waiting(Answer):
    """One who waits."""

    user: str
    server: str
    start: str
    place: int
    of: int
    ahead: int
    since: float
    expected_at: float | None
    reason: str
    can_start_cpu: bool
    gpus: int
    share: str
    pool: str
    boost: int
    is_away: bool
    etag: str


class Queue(Answer):
    """One page of the queue."""

    length: int
    version: str
    total: int
    waiting: list[Waiting]


class WaitingChanged(Answer):
    """One who waits, as it is now; null when served meanwhile."""

    waiting: Waiting | None
    change: int | None
