"""How much of each pool classes may have, whatever their timetables ask for. Pure.

Whoever teaches writes a timetable, and only the site decides what of the lab that may take away
from everybody else: ``class_seats_share`` of each pool. What students hold as seats counts as well
as what is kept for those who have not come, so that a class does not get more by coming early.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping

from pytorch_spawner.core.gpus import Inventory
from pytorch_spawner.core.placement import Board


def most_of(size: int, share: float) -> int:
    """How many devices of a pool of ``size`` classes may have; of a small pool all, rounded up."""
    # 0.6 of 5 is 3, though 5 * 0.6 is a little more in binary.
    return min(size, math.ceil(round(size * share, 6)))


def sizes_of(inventory: Inventory) -> dict[str, int]:
    """GPUs, slots and MIG instances in service, by pool."""
    sizes: Counter[str] = Counter()
    for gpu in inventory.gpus:
        if not gpu.drained and not gpu.health:
            sizes[gpu.pool] += gpu.slots
    return dict(sizes)


class SeatRoom:
    """What classes may still have of each pool while one decision is made."""

    def __init__(self, board: Board, share: float, taken: Iterable[str]) -> None:
        """Begin with what they have already.

        Args:
            board: All devices.
            share: Of each pool, 0 to 1; 1 for no bound.
            taken: UUIDs of what students hold as seats; a device once for each slot.
        """
        self._is_bound = share < 1
        self._left: dict[str, int] = {}
        if not self._is_bound:
            return
        sizes = Counter[str]()
        for device in board.devices:
            sizes[device.gpu.pool] += device.slots if device.is_open else 0
        self._left = {pool: most_of(size, share) for pool, size in sizes.items()}
        for uuid in taken:
            device_taken = board.by_uuid.get(uuid)  # type: ignore[call-overload]
            if device_taken is not None:
                self._left[device_taken.gpu.pool] -= 1

    def has(self, pool: str, count: int = 1) -> bool:
        """Whether classes may have ``count`` more, of a pool or of any ("")."""
        if not self._is_bound:
            return True
        # A student who may have any pool may be given more of one than classes may have of it; that
        # is then missing in the others.
        most = self._left.get(pool, 0) if pool else max(self._left.values(), default=0)
        return min(most, sum(self._left.values())) >= count

    def take(self, pool: str, count: int = 1) -> None:
        """They have ``count`` more; of a pool that is not known yet ("") where most is left."""
        if self._is_bound and self._left:
            of = pool or max(self._left, key=lambda one: (self._left[one], one))
            self._left[of] = self._left.get(of, 0) - count

    def pools(self, pool: str) -> tuple[str, ...]:
        """The pools to look in one by one for what may come of any (""), in their order."""
        return (pool,) if pool or not self._is_bound else tuple(self._left)


def say_shortage(asked: int, pool: str, sizes: Mapping[str, int], share: float) -> str:
    """What an instructor is told whose session asks for more than classes may have.

    Args:
        asked: Seats of the session.
        pool: That the course names; "" for any.
        sizes: See ``sizes_of``; empty where nobody knows.
        share: Of each pool, 0 to 1.

    Returns:
        What follows after which session it is; "" where all seats can be kept, or nobody knows.
    """
    own = {pool: sizes.get(pool, 0)} if pool else dict(sizes)
    size = sum(own.values())
    most = sum(most_of(one, share) for one in own.values())
    if not sizes or asked <= most:
        return ""
    where = f"the pool {pool}" if pool else "the lab"
    place = f"in the pool {pool}" if pool else "that there are"
    asks = f"it asks for {asked} seat{'' if asked == 1 else 's'}"
    if size <= most:
        has = f"{where} has {size}" if size else f"{where} has none in service"
        return (
            f"{asks}, and {has}: the others queue. Ask an admin for another "
            "pool, or for slots in place of whole GPUs."
        )
    return (
        f"{asks}, and the lab keeps at most {most} of the {size} {place} for "
        "classes: the others queue. Ask an admin, who sets c.PyTorchSpawner.class_seats_share."
    )
