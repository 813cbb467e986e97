"""Warm caches in words and as JSON, the same for the command line, the API and its pages. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict
from typing import Any, Final

from pytorch_spawner.core.gpus import Inventory
from pytorch_spawner.core.warmcache import Cache, choose
from pytorch_spawner.errors import BadRequest, Problem

# What a state means to somebody who reads a list.
_WORDS: Final = {
    "queued": "waits",
    "building": "compiling",
    "checking": "being proved",
    "published": "kept",
    "failed": "failed",
    "expired": "gone",
}


def standing(cache: Cache, given: Collection[str]) -> str:
    """How it is with a cache, in a word or two.

    Args:
        cache: Which.
        given: Ids of what starts are given now; see ``core.warmcache.currents``.
    """
    return "current" if cache.id in given else _WORDS[cache.state]


def where(cache: Cache) -> str:
    """What it is for: the GPU that it was built on, or what was asked for."""
    if cache.key is not None:
        key = cache.key
        return f"{key.gpu}, driver {key.driver_branch}" if key.gpu else "the CPU"
    if not cache.gpus:
        return "the CPU"
    return f"a GPU of the pool {cache.pool}" if cache.pool else "any GPU"


def first_steps(cache: Cache) -> tuple[float, float] | None:
    """Seconds of all first steps together, cold and warm; None before both are known.

    Of the same targets and sizes only, so that the two can be compared.
    """
    both = [
        (one.cold_s, one.warm_s)
        for one in cache.targets
        if one.cold_s is not None and one.warm_s is not None
    ]
    if not both:
        return None
    return sum(cold for cold, _ in both), sum(warm for _, warm in both)


def hits(cache: Cache) -> int:
    """Compiled graphs that the second container found."""
    return sum(one.hits for one in cache.targets)


def megabytes(size_bytes: int) -> str:
    """A size for people: "12.3 MB"; "" for none."""
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes else ""


def as_json(cache: Cache, given: Collection[str], *, log: bool = False) -> dict[str, Any]:
    """A cache for programs and pages.

    Args:
        cache: Which.
        given: Ids of what starts are given now.
        log: With the log's end, which is hostile text.
    """
    steps = first_steps(cache)
    said = {
        "id": cache.id,
        "course": cache.scope,
        "image": cache.image,
        "pool": cache.pool,
        "gpus": cache.gpus,
        "suite": dict(cache.suite),
        "suite_digest": cache.suite_digest,
        "by": cache.by,
        "asked_at": cache.asked_at,
        "state": cache.state,
        "standing": standing(cache, given),
        "is_current": cache.id in given,
        "message": cache.message,
        "ended_at": cache.ended_at,
        "where": where(cache),
        "key": None if cache.key is None else asdict(cache.key),
        "torch": cache.torch,
        "triton": cache.triton,
        "digest": cache.digest,
        "size_bytes": cache.size_bytes,
        "files": cache.files,
        "targets": [asdict(one) for one in cache.targets],
        "cold_s": None if steps is None else round(steps[0], 3),
        "warm_s": None if steps is None else round(steps[1], 3),
        "hits": hits(cache),
        "promoted_at": cache.promoted_at,
        "used_at": cache.used_at,
    }
    return {**said, "log": cache.log} if log else said


# -- asking for a build --------------------------------------------------------------------------


def check_request(course: str, image: str, pool: str, gpus: int, inventory: Inventory) -> None:
    """See that a build can be asked for.

    Args:
        course: Name of a course, or "".
        image: Reference of an image.
        pool: Name of a pool, or "".
        gpus: 1, or 0 for the CPU.
        inventory: The lab's GPUs.

    Raises:
        BadRequest: It cannot; every fault is named with its field.
    """
    problems = list(_problems(course, image, pool, gpus, inventory))
    if problems:
        faults = [f"{one.field}: {one.message}" for one in problems]
        text = "This cannot be built: " + "; ".join(faults) + "."
        raise BadRequest(text, faults=faults, problems=problems)


def _problems(
    course: str, image: str, pool: str, gpus: int, inventory: Inventory
) -> Iterator[Problem]:
    if not course.isprintable() or len(course) > 255:
        yield Problem("at most 255 printable characters", "course")
    is_plain = image.isprintable() and not any(one in image for one in " ,\u00a0")
    if not image or not is_plain or len(image) > 512:
        yield Problem("no image reference, such as pytorch-spawner/lab:cpu", "image")
    if not gpus:
        if pool:
            yield Problem("the CPU is in no pool", "pool")
    elif not inventory.gpus:
        yield Problem(
            "no GPU of this lab is known (it is once a server was started); build for the CPU",
            "gpus",
        )
    elif pool and pool not in inventory.pools:
        pools = ", ".join(inventory.pools)
        yield Problem(f"there is no pool {pool[:60]!r}; there is {pools}", "pool")


# -- what was done -------------------------------------------------------------------------------


def say_given(caches: Sequence[Cache], cache: Cache) -> str:
    """What starts with this cache's key are given now."""
    key = cache.key
    now = None if key is None else choose(caches, key)
    if now is None:
        return "Starts that fit are given no warm cache now; their first compile takes longer."
    return f"Starts that fit are given {now.id} now."


def why_not_promoted(cache: Cache) -> str:
    """Why a cache cannot be given to starts."""
    return f"Only what was built and proved can be promoted; {cache.id} is {_state(cache)}."


def why_not_retired(cache: Cache) -> str:
    """Why a cache cannot be rolled back."""
    return f"Starts are not given {cache.id} anyway."


def why_not_stopped(cache: Cache) -> str:
    """Why a build cannot be stopped."""
    return f"{cache.id} is over: it is {_state(cache)}."


def why_not_removed(cache: Cache) -> str:
    """Why a cache cannot be removed."""
    if cache.state == "expired":
        return f"The files of {cache.id} are gone already."
    return f"{cache.id} is {_state(cache)}; stop it first."


def _state(cache: Cache) -> str:
    return {"queued": "waiting", "published": "published", "expired": "gone"}.get(
        cache.state, _WORDS[cache.state]
    )
