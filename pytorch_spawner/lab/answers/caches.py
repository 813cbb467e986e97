"""What the API answers about warm caches and their builds."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pytorch_spawner.lab.answers.common import Answer


class SuiteTarget(Answer):
    """What a suite runs."""

    name: str
    kind: Literal["function", "script", "notebook"]
    what: str
    tag: str
    vary: Annotated[list[str | int], Field(min_length=2, max_length=2)] | None


class Suite(Answer):
    """What a build compiles."""

    name: str
    targets: list[SuiteTarget]
    imports: list[str]
    network: bool
    deadline_s: int


class CacheKey(Answer):
    """What a start must have in common with a warm cache; empty texts for the CPU."""

    image_id: str
    gpu: str
    capability: str
    driver_branch: str
    scope: str


class CacheTarget(Answer):
    """What one first step took; cold is null for a size whose graph was there already."""

    name: str
    size: int | None
    cold_s: float | None
    warm_s: float | None
    hits: int
    misses: int


class Cache(Answer):
    """A warm cache, or a build of one; cold_s and warm_s are of all first steps together."""

    id: str
    course: str
    image: str
    pool: str
    gpus: int
    suite: Suite
    suite_digest: str
    by: str
    asked_at: float
    state: Literal["queued", "building", "checking", "published", "failed", "expired"]
    standing: str
    is_current: bool
    message: str
    ended_at: float | None
    where: str
    key: CacheKey | None
    torch: str
    triton: str
    digest: str
    size_bytes: int
    files: int
    targets: list[CacheTarget]
    cold_s: float | None
    warm_s: float | None
    hits: int
    promoted_at: float | None
    used_at: float | None
    etag: str


class CacheWithLog(Cache):
    """A warm cache with the end of its build's log, which is whatever its code wrote."""

    log: str


class Caches(Answer):
    """All warm caches and builds, the newest first."""

    caches: list[Cache]


class KnownSuite(Answer):
    """A suite that the lab has; a fault tells why it cannot be built."""

    name: str
    targets: list[str]
    fault: str


class CacheChoices(Answer):
    """What a build can be asked for with."""

    suites: list[KnownSuite]
    images: list[str]
    courses: list[str]
    pools: list[str]
    gpus: int


class OneCache(Answer):
    """One warm cache."""

    cache: CacheWithLog


class CacheChanged(Answer):
    """A warm cache as it is now, and what starts with its key are given."""

    cache: Cache
    change: int | None
    sentence: str
