"""Which GPUs a start gets. A pure function of what there is, what is held and what is asked.

Truth has two parts: the ledger's leases, and the labels on running containers. A GPU is free only
when neither names it, so a lost or late ledger cannot put two students on one GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Final

from pytorch_spawner.core.gpus import Gpu, GpuUuid, Inventory
from pytorch_spawner.core.request import Request
from pytorch_spawner.errors import BadRequest, NoGpuAvailable

Preference = Callable[[Gpu], tuple[int, ...]]

# A key function each: the algorithm is written once and ties break on the UUID, so that the same
# input gives the same answer whatever order the driver lists devices in.
PREFERENCES: Final[Mapping[str, Preference]] = {
    # The smallest GPU that will do, so that the large ones stay free for those who ask for them.
    "smallest": lambda gpu: (gpu.memory_mib or 0, gpu.index),
    "index": lambda gpu: (gpu.index,),
}


def choose(
    inventory: Inventory,
    occupied: Collection[GpuUuid],
    request: Request,
    *,
    preference: str = "smallest",
) -> tuple[Gpu, ...]:
    """Pick whole GPUs for a request.

    Args:
        inventory: The engine's GPUs.
        occupied: UUIDs that a lease holds or a running container carries; unknown ones are ignored.
        request: What is asked for; ``gpus`` >= 0.
        preference: Key of ``PREFERENCES``.

    Returns:
        ``request.gpus`` GPUs of one pool, best first; empty when none is asked for.

    Raises:
        BadRequest: The lab could never serve this, however idle: too few GPUs in any one pool.
        NoGpuAvailable: It could, but not now; carries wanted and free.
    """
    if request.gpus == 0:
        return ()
    key = PREFERENCES[preference]
    pools = [request.pool] if request.pool else list(inventory.pools)
    most_free = 0
    largest_pool = 0
    for pool in pools:
        members = [gpu for gpu in inventory.gpus if gpu.pool == pool]
        free = [gpu for gpu in members if gpu.uuid not in occupied]
        largest_pool = max(largest_pool, len(members))
        most_free = max(most_free, len(free))
        if len(free) >= request.gpus:
            ranked = sorted(free, key=lambda gpu: (*key(gpu), gpu.uuid))
            return tuple(ranked[: request.gpus])
    if largest_pool < request.gpus:
        where = f"the pool {request.pool}" if request.pool else "this lab"
        reason = f" {inventory.reason}" if inventory.reason else ""
        raise BadRequest(
            f"You asked for {_gpus(request.gpus)}, but {where} has {_gpus(largest_pool)}.{reason}"
        )
    raise NoGpuAvailable(
        f"All GPUs are in use: you asked for {_gpus(request.gpus)}, {most_free} of {largest_pool} "
        f"{'is' if most_free == 1 else 'are'} free. Try again in a while, start without a GPU, or "
        "ask the lab's admin who holds them.",
        wanted=request.gpus,
        free=most_free,
    )


def _gpus(count: int) -> str:
    return "no GPU" if count == 0 else f"{count} GPU" if count == 1 else f"{count} GPUs"
