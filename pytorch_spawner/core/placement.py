"""Which devices a start gets, once it is its turn: eligibility, preference, nearness. Pure.

A device is cut into slots: one if it is exclusive, N if it is shared. A ``Board`` is the state of
all of them while one scheduling decision is made; capacity on it only shrinks, which is what lets
the scheduler remember that a kind of request failed and not try it again for two thousand others.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from pytorch_spawner.core.gpus import Gpu, GpuUuid, Inventory, gpu_share
from pytorch_spawner.core.nearness import nearest


@dataclass(frozen=True, slots=True)
class Holding:
    """One slot of one GPU that a lease holds.

    Attributes:
        gpu: UUID.
        slot: From 0; 0 for a whole GPU.
        slots: Into how many the GPU was cut when it was given: 1 for a whole GPU. The mode of a
            device in use is what its holdings say, whatever an admin wishes meanwhile.
    """

    gpu: GpuUuid
    slot: int = 0
    slots: int = 1


@dataclass(frozen=True, slots=True)
class DeviceSetting:
    """What an admin decided about one device; None leaves it as the inventory says.

    Attributes:
        uuid: The device.
        pool: Name of the pool it is moved to.
        mode: "exclusive", "shared:N" or "mig".
        drained: Why nobody new is given it; "" when it is in service.
    """

    uuid: GpuUuid
    pool: str | None = None
    mode: str | None = None
    drained: str = ""


def with_config(
    inventory: Inventory, pools: Mapping[str, str], modes: Mapping[str, str]
) -> Inventory:
    """Lay the configuration's pools and modes over what the driver says.

    Args:
        inventory: As read.
        pools: UUID -> name of a pool.
        modes: UUID, name of a pool, or "*" -> mode; the first of these that is there counts. MIG
            instances and GPUs in MIG mode keep theirs: that is set on the host.
    """
    gpus = []
    for gpu in inventory.gpus:
        pool = pools.get(gpu.uuid, gpu.pool)
        mode = modes.get(gpu.uuid, modes.get(pool, modes.get("*", gpu.mode)))
        gpus.append(replace(gpu, pool=pool, mode=gpu.mode if is_cut(gpu) else mode))
    return Inventory(tuple(gpus), inventory.reason)


def is_cut(gpu: Gpu) -> bool:
    """Whether it is a GPU in MIG mode or an instance of one: their mode is set on the host."""
    return bool(gpu.mig_profile) or gpu.mode == "mig"


def with_settings(
    inventory: Inventory,
    settings: Iterable[DeviceSetting],
    in_force: Mapping[str, int],
) -> Inventory:
    """Lay the admin's decisions over what the driver says.

    Args:
        inventory: As read from the driver or the configuration.
        settings: The admin's decisions; those about unknown devices are ignored, and so is the
            mode of what MIG has cut, which is older than the cut.
        in_force: Slots into which devices in use are cut now; a device that is not in it is empty.

    Returns:
        The inventory to schedule on. A device in use whose mode is to change keeps its old mode and
        is drained until it is empty.
    """
    by_uuid = {setting.uuid: setting for setting in settings}
    gpus = []
    for gpu in inventory.gpus:
        setting = by_uuid.get(gpu.uuid)
        changed = gpu
        if setting is not None:
            changed = replace(
                gpu,
                pool=gpu.pool if setting.pool is None else setting.pool,
                mode=gpu.mode if setting.mode is None or is_cut(gpu) else setting.mode,
                drained=setting.drained or gpu.drained,
            )
        slots = in_force.get(gpu.uuid)
        if slots is not None and slots != changed.slots:
            changed = replace(
                changed,
                mode="exclusive" if slots == 1 else f"shared:{slots}",
                drained=changed.drained or f"It becomes {changed.mode} once nobody holds it.",
            )
        gpus.append(changed)
    return Inventory(tuple(gpus), inventory.reason)


@dataclass(frozen=True, slots=True, eq=False)
class Kind:
    """What devices a request may be served with, under one grant.

    Made by ``Board.kind``, once for each: kinds are compared by identity, because a decision
    about thousands of tickets looks them up tens of thousands of times.

    Attributes:
        pool: Name; "" for any.
        pins: UUIDs; empty for any of the pool.
        share: "any", "whole", "slot" or "mig:<profile>".
        grant: Id of the grant where it pins GPUs, which are reserved for it; else "".
    """

    pool: str
    pins: tuple[GpuUuid, ...]
    share: str
    grant: str = ""

    def fits(self, gpu: Gpu, slots: int, reserved: Mapping[str, Collection[str]]) -> bool:
        """Whether a device that is cut into so many slots is of this kind, in service or not."""
        if (self.pool and gpu.pool != self.pool) or (self.pins and gpu.uuid not in self.pins):
            return False
        if gpu.uuid in reserved and self.grant not in reserved[gpu.uuid]:
            return False
        if slots == 0:
            return False
        if self.share == "whole":
            return slots == 1 and not gpu.mig_profile
        if self.share == "slot":
            return slots > 1
        if self.share.startswith("mig:"):
            return gpu.mig_profile == self.share[4:]
        return True


class Device:
    """One device while a decision is made.

    Attributes:
        gpu: What it is.
        slots: Into how many it is cut.
        each_mib: What one holder gets of its memory; 0 where unknown.
        free: The slots that nobody holds.
        used: How many are held.
        is_open: It is in service.
        reserved_until: None: not reserved. Else the Unix time at which a waiting ticket is expected
            to need it.
    """

    __slots__ = ("each_mib", "free", "gpu", "is_open", "reserved_until", "slots", "used")

    def __init__(self, gpu: Gpu, taken: Collection[int]) -> None:
        self.gpu = gpu
        self.slots = gpu.slots
        self.each_mib = gpu.slot_memory_mib or 0
        # The lowest slot first, so that the numbers people see stay small.
        self.free = [slot for slot in range(self.slots - 1, -1, -1) if slot not in taken]
        self.used = self.slots - len(self.free)
        self.is_open = not gpu.drained and not gpu.health
        self.reserved_until: float | None = None

    @property
    def share(self) -> float:
        """What one holder counts in GPU-hours, above 0 and at most 1."""
        return gpu_share(self.gpu)

    @property
    def has_room(self) -> bool:
        """Whether somebody could be given a slot of it, were it not reserved."""
        return self.is_open and bool(self.free)


# A key function each: the algorithm is written once, and ties break on the UUID, so that the same
# input gives the same answer whatever order the driver lists devices in.
Preference = Callable[[Device], tuple[int, ...]]
PREFERENCES: Final[Mapping[str, Preference]] = {
    # The smallest that will do, the fullest shared GPU first: large and empty ones stay free.
    "pack": lambda device: (device.each_mib, -device.used, device.gpu.index),
    # The emptiest first: neighbours share as little as possible.
    "spread": lambda device: (device.used, device.each_mib, device.gpu.index),
    # The largest first, for labs whose users should get the best that is free.
    "largest": lambda device: (-device.each_mib, device.used, device.gpu.index),
    "index": lambda device: (device.gpu.index,),
}


class Board:
    """All devices while a decision is made."""

    def __init__(
        self,
        inventory: Inventory,
        taken: Mapping[str, Collection[int]],
        reserved: Mapping[str, Collection[str]],
        preference: str,
    ) -> None:
        """Set the board.

        Args:
            inventory: With the admin's settings laid over it.
            taken: Slots in use, by UUID; a whole GPU in use has all its slots taken.
            reserved: See ``GrantBook.reserved``.
            preference: Key of ``PREFERENCES``.
        """
        # In an order of our own, so that sentences do not depend on the order of the input.
        ordered = sorted(inventory.gpus, key=lambda gpu: (gpu.index, gpu.uuid))
        self.devices = [Device(gpu, taken.get(gpu.uuid, ())) for gpu in ordered]
        self.by_uuid = {device.gpu.uuid: device for device in self.devices}
        self._by_pool: dict[str, list[Device]] = {}
        for device in self.devices:
            self._by_pool.setdefault(device.gpu.pool, []).append(device)
        self._reserved = reserved
        self._key = PREFERENCES[preference]
        self._kinds: dict[tuple[object, ...], Kind] = {}
        self._of_kind: dict[Kind, list[Device]] = {}
        self._with_room: dict[Kind, list[Device]] = {}
        self._sizes: dict[tuple[Kind, bool], dict[str, int]] = {}
        self._most: dict[tuple[Kind, bool], int] = {}
        self._narrowed: dict[tuple[Kind, int], list[Kind]] = {}
        self._heaviest: dict[Kind, float] = {}

    def kind(self, pool: str, pins: tuple[GpuUuid, ...], share: str, grant: str) -> Kind:
        """The kind of that description; see ``Kind``."""
        key = (pool, pins, share, grant)
        if key not in self._kinds:
            self._kinds[key] = Kind(pool, pins, share, grant)
        return self._kinds[key]

    def of_kind(self, kind: Kind) -> list[Device]:
        """The devices of a kind, in service or not."""
        found = self._of_kind.get(kind)
        if found is None:
            of_pool = self._by_pool.get(kind.pool, []) if kind.pool else self.devices
            found = [
                device for device in of_pool if kind.fits(device.gpu, device.slots, self._reserved)
            ]
            self._of_kind[kind] = found
        return found

    def _pool_sizes(self, kind: Kind, *, in_service: bool) -> dict[str, int]:
        key = (kind, in_service)
        if key not in self._sizes:
            sizes: dict[str, int] = {}
            for device in self.of_kind(kind):
                if device.is_open or not in_service:
                    sizes[device.gpu.pool] = sizes.get(device.gpu.pool, 0) + 1
            self._sizes[key] = sizes
        return self._sizes[key]

    def most_at_once(self, kind: Kind, *, in_service: bool = False) -> int:
        """The most devices of one pool that a request of this kind could ever get.

        Args:
            kind: What is wanted.
            in_service: Leave out what is drained or unhealthy now.
        """
        key = (kind, in_service)
        if key not in self._most:
            sizes = self._pool_sizes(kind, in_service=in_service)
            self._most[key] = max(sizes.values(), default=0)
        return self._most[key]

    def heaviest(self, kind: Kind) -> float:
        """The most that one device of a kind counts in GPU-hours, in service or not; 0 to 1."""
        if kind not in self._heaviest:
            self._heaviest[kind] = max((one.share for one in self.of_kind(kind)), default=0.0)
        return self._heaviest[kind]

    def find(self, kind: Kind, count: int, ends_at: float | None = None) -> list[Device] | None:
        """Choose devices with room, all of one pool; None where there are too few.

        Args:
            kind: What is wanted.
            count: How many different devices, >= 1.
            ends_at: When the lease would end at the latest: devices that are reserved for a time
                not before that may be used meanwhile. None leaves reserved devices alone.
        """
        room = self._with_room.get(kind)
        room = [
            device for device in (self.of_kind(kind) if room is None else room) if device.has_room
        ]
        self._with_room[kind] = room
        usable = [
            device
            for device in room
            if device.reserved_until is None
            or (ends_at is not None and ends_at <= device.reserved_until)
        ]
        if count == 1:
            return [min(usable, key=self._rank)] if usable else None
        pools: dict[str, list[Device]] = {}
        for device in sorted(usable, key=self._rank):
            pools.setdefault(device.gpu.pool, []).append(device)
        for members in pools.values():  # the pool of the preferred device first
            if len(members) >= count:
                return [members[place] for place in nearest([d.gpu for d in members], count)]
        return None

    def _rank(self, device: Device) -> tuple[tuple[int, ...], str]:
        return self._key(device), device.gpu.uuid

    def take(self, device: Device) -> Holding:
        """Use one slot of a device."""
        slot = device.free.pop()
        device.used += 1
        return Holding(device.gpu.uuid, slot, device.slots)

    def gather(self, kind: Kind, count: int) -> list[tuple[Kind, list[Device]]]:
        """What a waiting ticket could keep, pool by pool.

        A pool with fewer than ``count`` devices in service is left out: what is kept there would
        stand idle.

        Args:
            kind: What is wanted, after ``find`` has looked for it in vain.
            count: How many different devices, >= 1.

        Returns:
            For each pool, by name, the kind narrowed to it, and up to ``count`` of its devices that
            have room and are reserved for nobody, the preferred first.
        """
        key = (kind, count)
        narrowed = self._narrowed.get(key)
        if narrowed is None:
            sizes = self._pool_sizes(kind, in_service=True)
            narrowed = [
                self.kind(pool, kind.pins, kind.share, kind.grant)
                for pool in sorted(sizes)
                if sizes[pool] >= count
            ]
            self._narrowed[key] = narrowed
        room: dict[str, list[Device]] = {}
        for device in self._with_room.get(kind, ()):
            if device.reserved_until is None and device.has_room:
                room.setdefault(device.gpu.pool, []).append(device)
        return [
            (one, sorted(room[one.pool], key=self._rank)[:count] if one.pool in room else [])
            for one in narrowed
        ]


def slots_in_use(inventory: Inventory, holdings: Iterable[Holding]) -> dict[str, set[int]]:
    """Slots that are held, by UUID: a device held in another mode than now is taken whole."""
    cut: dict[str, int] = {gpu.uuid: gpu.slots for gpu in inventory.gpus}
    taken: dict[str, set[int]] = {}
    for holding in holdings:
        slots = taken.setdefault(holding.gpu, set())
        slots.add(holding.slot)
        now = cut.get(holding.gpu, holding.slots)
        if now != holding.slots:
            slots.update(range(now))
    return taken
