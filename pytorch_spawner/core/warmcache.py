"""Warm caches as data: what one fits, which one a start gets, which ones have to go.

A warm cache is a compile cache that a trusted run produced and a second, fresh run has proved. It
is published read-only under a key, and only a start with the very same key is given it: PyTorch's
own keys hold the GPU's name, the torch and Triton sources and the graph (torch 2.13,
_inductor/codecache.py, FxGraphHashDetails), so with another key it would be dead weight.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pytorch_spawner.core.gpus import Gpu

# Whose server a build runs in: an account of the hub that belongs to the service. A start of it
# that no build asked for is refused, so nobody gains anything by logging in under this name.
WARMER: Final = "pytorch-warm-up"

# A build's way: asked for, compiling in a first container, proved in a second, usable by starts.
STATES: Final = ("queued", "building", "checking", "published", "failed", "expired")
UNDER_WAY: Final = ("building", "checking")

# Where a published cache stands, read-only, in a student's container; the agent copies from there.
WARM_DIR: Final = "/var/lib/pytorch-spawner/warm-cache"

# How long a cache that is not given out any more is kept for a roll-back.
KEPT_S: Final = 14 * 24 * 3600.0


@dataclass(frozen=True, slots=True)
class CacheKey:
    """What must be the same for a cache to be any good.

    Attributes:
        image_id: The image's digest as the engine names it ("sha256:..."): with it torch, Triton,
            the compiler and every variable of the image are the same.
        gpu: Name of the GPU as the driver gives it, a MIG profile included; "" for the CPU.
        capability: Compute capability, "9.0"; "" for the CPU.
        driver_branch: Major number of the driver ("580"); "" for the CPU.
        scope: Name of the course it is for; "" for every start that no course's cache fits.
    """

    image_id: str
    gpu: str = ""
    capability: str = ""
    driver_branch: str = ""
    scope: str = ""


@dataclass(frozen=True, slots=True)
class Target:
    """What one target of a suite took, as measured in the two containers of a build.

    Attributes:
        name: The target's.
        size: The value of what varies, of this run; None where nothing does.
        cold_s: Seconds of its first run, with nothing compiled; None for a size whose graph was
            there already.
        warm_s: Seconds in the second, fresh container, from the published files.
        hits: Compiled graphs found in the cache there.
        misses: Graphs that had to be compiled there all the same.
    """

    name: str
    size: int | None
    cold_s: float | None
    warm_s: float | None
    hits: int = 0
    misses: int = 0


@dataclass(frozen=True, slots=True)
class Cache:
    """One build and what came of it.

    Attributes:
        id: 12 hex digits.
        hub: Whose.
        scope: See ``CacheKey``.
        image: Reference of the image that was asked for.
        pool: Pool of the GPU that was asked for; "" for any.
        gpus: 1, or 0 for the CPU.
        suite: What is compiled; see ``core.suites.Suite.as_json``.
        suite_digest: SHA-256 of the suite's files, in hex.
        by: Who asked for it.
        asked_at: Unix seconds.
        state: One of ``STATES``.
        message: What it is doing, or why it failed, as a sentence.
        ended_at: When its build ended, or, where that is later, when it was taken back; None while
            queued or under way.
        key: Known once its container is planned.
        torch: Version in the image; "" before the warmer said so.
        triton: Version; "" where there is none.
        volume: Name of the volume that holds the files; "" before and after.
        digest: SHA-256 of the manifest, in hex; what a start compares with.
        size_bytes: Of all files.
        files: How many.
        targets: What was measured.
        log: The last lines of the warmer's log, at most 16 KiB.
        promoted_at: Since when starts get it; None for one that was built or taken back only.
        used_at: When a start was given it last; None for never.
    """

    id: str
    hub: str
    scope: str
    image: str
    pool: str
    gpus: int
    suite: Mapping[str, Any]
    suite_digest: str
    by: str
    asked_at: float
    state: str = "queued"
    message: str = ""
    ended_at: float | None = None
    key: CacheKey | None = None
    torch: str = ""
    triton: str = ""
    volume: str = ""
    digest: str = ""
    size_bytes: int = 0
    files: int = 0
    targets: tuple[Target, ...] = field(default=())
    log: str = ""
    promoted_at: float | None = None
    used_at: float | None = None


def key_of(image_id: str, gpu: Gpu | None, scope: str) -> CacheKey | None:
    """The key of a start; None where the GPU's own facts are not known.

    Args:
        image_id: The image's digest.
        gpu: What the start holds first; None, or a simulated one, computes on the CPU.
        scope: Name of a course, or "".
    """
    if gpu is None or gpu.is_simulated:
        return CacheKey(image_id, scope=scope)
    if not (gpu.name and gpu.compute_capability and gpu.driver):
        return None
    major, minor = gpu.compute_capability
    name = gpu.name
    if gpu.mig_profile and "MIG" not in name:
        name = f"{name} MIG {gpu.mig_profile}"
    return CacheKey(image_id, name, f"{major}.{minor}", gpu.driver.partition(".")[0], scope)


def options_of(build: Cache, share: str = "") -> dict[str, Any]:
    """The options of a build's start, as ``core.request`` reads them.

    Args:
        build: Which.
        share: What the students of its course ask for, since another kind of device has another
            key; "" for any.
    """
    return {
        "image": build.image,
        "on_busy": "queue",
        **({"gpus": 1} if build.gpus else {"share": "none"}),
        **({"share": share} if build.gpus and share else {}),
        **({"pool": build.pool} if build.gpus and build.pool else {}),
    }


@dataclass(frozen=True, slots=True)
class Volumes:
    """The volumes of a build: what is published, and what is thrown away at its end."""

    cache: str
    check: str
    homes: tuple[str, str]

    @property
    def passing(self) -> tuple[str, ...]:
        """Those that go when the build ends, whatever came of it."""
        return (self.check, *self.homes)

    @property
    def all(self) -> tuple[str, ...]:
        """Everything that a build under way uses."""
        return (self.cache, *self.passing)


def volumes_of(hub: str, cache_id: str) -> Volumes:
    """The names of a build's volumes."""
    name = f"{hub}-warm-{cache_id}"
    return Volumes(name, f"{name}-check", (f"{name}-home-1", f"{name}-home-2"))


def is_volume_of(hub: str, name: str) -> bool:
    """Whether a volume is one of a build of this hub, by its name alone.

    Strict, because what is not known any more is removed: another hub's id may begin alike.
    """
    return (
        re.fullmatch(rf"{re.escape(hub)}-warm-[0-9a-f]{{12}}(-check|-home-[12])?", name) is not None
    )


def private_volume(hub: str, owner: str, scope: str = "") -> str:
    """The volume of a person's private compile cache: one, and one more for each course of theirs.

    Of their own, so that what one course compiled is never read in another. Two hyphens stand in
    no slug, so no user's name makes another's volume.

    Args:
        hub: Id of the hub.
        owner: The user's slug.
        scope: Slug of the course; "" for none.
    """
    name = f"{hub}-cache-{owner}"
    return f"{name}--{scope}" if scope else name


def is_private_of(hub: str, scope: str, name: str) -> bool:
    """Whether a volume is somebody's private compile cache for a course, by its name."""
    owner = r"[a-z](-?[a-z0-9])*"
    return re.fullmatch(rf"{re.escape(hub)}-cache-{owner}--{re.escape(scope)}", name) is not None


def environment_of(cache_id: str, imports: Iterable[str] = ()) -> dict[str, str]:
    """Variables of every container that fills or uses a cache; they must be the same in all.

    PyTorch keeps under the job's id what it learnt about varying sizes, and a fresh process begins
    with it (torch 2.13, _dynamo/pgo.py); the id is the cache's, so that no two caches' notes mix.
    Before torch 2.7 the two switches are off by default.
    """
    named = ",".join(imports)
    return {
        "TORCH_COMPILE_JOB_ID": f"pytorch-spawner-{cache_id}",
        "TORCH_DYNAMO_AUTOMATIC_DYNAMIC_LOCAL_PGO": "1",
        "TORCHINDUCTOR_AUTOGRAD_CACHE": "1",
        **({"PYTORCH_SPAWNER_STANDBY_IMPORTS": named} if named else {}),
    }


def agent_facts(cache: Cache) -> dict[str, Any]:
    """What a container's agent is told about the cache that it is given."""
    usual: dict[str, Target] = {}
    for one in cache.targets:
        usual.setdefault(one.name, one)
    return {
        "id": cache.id,
        "digest": cache.digest,
        "path": WARM_DIR,
        "name": str(cache.suite.get("name", "")),
        "targets": [[one.name, one.cold_s, one.warm_s] for one in usual.values()],
    }


def choose(caches: Iterable[Cache], key: CacheKey) -> Cache | None:
    """The cache that a start with this key is given; None where there is none.

    Of one key it is the one promoted last: taking that one back brings the one before.
    """
    fitting = [one for one in caches if is_offered(one) and one.key == key]
    return max(fitting, key=lambda one: (one.promoted_at or 0.0, one.id), default=None)


def is_offered(cache: Cache) -> bool:
    """Whether starts may be given it at all."""
    return cache.state == "published" and cache.promoted_at is not None


def currents(caches: Sequence[Cache]) -> frozenset[str]:
    """Ids of the caches that starts are given now: one for each key."""
    keys = {one.key for one in caches if one.key is not None and is_offered(one)}
    chosen = (choose(caches, key) for key in keys)
    return frozenset(one.id for one in chosen if one is not None)


def why_none(caches: Iterable[Cache], key: CacheKey) -> str:
    """Why no cache fits a start, as a sentence for its page: what is nearest, and what differs."""
    offered = [one for one in caches if is_offered(one) and one.key is not None]
    of_scope = [one for one in offered if one.scope == key.scope]
    if not of_scope:
        return "No warm cache has been built yet, so the first compile takes its usual time."
    same_image = [one for one in of_scope if one.key and one.key.image_id == key.image_id]
    if not same_image:
        return "The warm cache is of another image, so the first compile takes its usual time."
    # The same image has the same torch and Triton.
    same_gpu = [one for one in same_image if one.key and one.key.gpu == key.gpu]
    near = max(same_gpu, key=lambda one: (one.promoted_at or 0.0, one.id), default=None)
    if near and near.key and (why := _differing(near.key, key)):
        return f"{why}, so it needs a new build and the first compile takes its usual time."
    where = key.gpu or "the CPU"
    return f"The warm cache is not for {where}, so the first compile takes its usual time."


def why_unlike(built: CacheKey, key: CacheKey) -> str:
    """Why the second container of a build does not prove the first one's work; "" if it does.

    Args:
        built: What the first container was.
        key: What the second one is.
    """
    if built == key:
        return ""
    remedy = "Build it again."
    if built.image_id != key.image_id:
        what = "another image than the first, for its tag was moved meanwhile"
    elif built.gpu != key.gpu:
        what = f"{key.gpu or 'no GPU'} and the first {built.gpu or 'none'}"
        remedy = "Build it again for a pool with one kind of GPU."
    else:
        what = "another driver than the first, for it was updated meanwhile"
    return f"The second container got {what}; so it proves nothing. {remedy}"


def _differing(built: CacheKey, key: CacheKey) -> str:
    """What differs between two of the same image and GPU; "" for nothing."""
    pairs = (
        ("driver", built.driver_branch, key.driver_branch),
        ("compute capability", built.capability, key.capability),
    )
    differing = [pair for pair in pairs if pair[1] != pair[2]]
    if not differing:
        return ""
    was = " and ".join(f"{name} {old}" for name, old, _ in differing)
    return f"The warm cache was built with {was} and this GPU has " + " and ".join(
        new for _, _, new in differing
    )


def to_expire(
    caches: Sequence[Cache], now: float, cap_bytes: int, in_use: Collection[str] = ()
) -> tuple[str, ...]:
    """Ids of the caches whose files have to go, the first to go first.

    Those that no start is given go ``KEPT_S`` after one was given them last, or could have been;
    beyond ``cap_bytes`` in all, those
    go that were used longest ago, what starts are given last of all. Never what is in use.

    Args:
        caches: All of a hub.
        now: Unix seconds.
        cap_bytes: Most bytes of all published caches together.
        in_use: Ids whose volume a running container has mounted.
    """
    given = currents(caches)
    published = [one for one in caches if one.state == "published"]
    total = sum(one.size_bytes for one in published)
    # Until then, those that were promoted before it were the ones to give.
    since = {one.key: one.promoted_at or 0.0 for one in published if one.id in given}

    def last(one: Cache) -> float:
        until = since.get(one.key, 0.0) if is_offered(one) else 0.0
        return max(one.used_at or 0.0, one.promoted_at or 0.0, one.ended_at or 0.0, until)

    gone: list[str] = []
    for one in sorted(published, key=lambda one: (one.id in given, last(one), one.id)):
        is_old = one.id not in given and now - last(one) > KEPT_S
        if one.id not in in_use and (is_old or total > cap_bytes):
            gone.append(one.id)
            total -= one.size_bytes
    return tuple(gone)


def why_not_published(
    targets: Sequence[Target],
    expected: Collection[tuple[str, int | None]] = (),
    *,
    max_warm_ratio: float = 0.9,
) -> str:
    """Why a checked build must not be given out; "" when it may.

    A cache that does not help is worse than none: its files are copied for nothing. Every graph has
    to be found; the seconds count together, for one run of one target is mostly noise on a machine
    that also has students.

    Args:
        targets: As measured.
        expected: (target, size) of everything that has to be proved.
        max_warm_ratio: Most that all warm seconds may be of all cold ones.
    """
    if not targets:
        return "Nothing was compiled: the suite has no target that ran."
    for name, missing in set(expected) - {(one.name, one.size) for one in targets}:
        return f"{name}{'' if missing is None else f' at size {missing}'} did not run."
    for one in targets:
        size = "" if one.size is None else f" at size {one.size}"
        if one.warm_s is None:
            return f"{one.name}{size} did not run in the second container."
        if one.hits == 0:
            return f"{one.name}{size} found nothing in the cache in a fresh container."
        if one.misses:
            graphs = "1 graph" if one.misses == 1 else f"{one.misses} graphs"
            return f"{one.name}{size} had to compile {graphs} anew in a fresh container."
    both = [(one.cold_s, one.warm_s) for one in targets if one.cold_s and one.warm_s]
    cold_s, warm_s = (sum(seconds) for seconds in zip(*both, strict=True)) if both else (0.0, 0.0)
    if cold_s and warm_s > max_warm_ratio * cold_s:
        return (
            f"The suite took {warm_s:.1f} s from the cache and {cold_s:.1f} s without it: the "
            "cache does not help."
        )
    return ""
