"""GPUs as data: what a device is, how a device list is read, how an inventory is looked up.

A GPU is named by its UUID everywhere; the index is for display only (it changes with the PCI bus).
Nothing here asks a driver or an engine: adapters do, and hand the answer over as these values.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from types import NoneType
from typing import Any, Final, NewType

from pytorch_spawner.errors import BadRequest

GpuUuid = NewType("GpuUuid", str)

# NVML's form of an identifier: "GPU-" or "MIG-" and a UUID. Old drivers (< 470) wrote
# "MIG-GPU-<uuid>/<gi>/<ci>"; source: nvidia-smi -L, MIG user guide.
GPU_UUID: Final = re.compile(r"(GPU|MIG)-[0-9A-Za-z][0-9A-Za-z/-]{3,127}")


# How near two GPUs are, the nearest first. Sources: NVML nvmlGpuTopologyLevel_t and the legend of
# `nvidia-smi topo -m` (NV#, PIX/PXB, PHB, NODE, SYS).
LINKS: Final = ("nvlink", "pcie-switch", "host-bridge", "numa-node", "system")

# Most slots one GPU is cut into: CUDA MPS serves at most 48 clients a GPU before CUDA 13 (NVIDIA's
# MPS documentation, "Limitations").
MAX_SLOTS: Final = 48


# What the slots of a GPU leave free: the driver keeps some of the total for itself (616 MiB on an
# H200), and an MPS server 66 MiB; without it the last of four neighbours came short of its budget
# (docs: measurements).
_RESERVE_MIB: Final = 1024


@dataclass(frozen=True, slots=True)
class Link:
    """How one GPU reaches another.

    Attributes:
        uuid: The other GPU.
        kind: One of ``LINKS``.
        has_p2p: Whether peer-to-peer reads work; None where unknown.
    """

    uuid: GpuUuid
    kind: str
    has_p2p: bool | None = None


@dataclass(frozen=True, slots=True)
class Gpu:
    """One device that a container can be given: a whole GPU or a MIG instance.

    Attributes:
        uuid: As NVML names it.
        index: Its place in nvidia-smi's list; for people only.
        name: Marketing name ("NVIDIA H100 80GB HBM3"); "" where the driver does not say.
        memory_mib: Total memory; None where unknown.
        compute_capability: (major, minor), for example (9, 0); None where unknown.
        driver: The host's driver version ("580.159.04"); "" where unknown.
        cdi_name: Fully qualified CDI name; "" means ``nvidia.com/gpu=<uuid>``.
        pool: Name of the pool it belongs to.
        is_simulated: There is no such hardware: PyTorch in the container computes on the CPU.
        mode: "exclusive", "shared:N" with 2 <= N <= ``MAX_SLOTS``, or "mig": cut into instances,
            which are devices of their own while the GPU itself is given to nobody.
        mig_profile: "1g.10gb" for a MIG instance; "" for a whole GPU.
        parent: UUID of the GPU a MIG instance is cut from; "" for a whole GPU.
        pci: PCI address ("0000:1b:00.0"); "" where unknown.
        numa_node: NUMA node it hangs off; None where unknown.
        links: Ways to the other GPUs of the host; empty where unknown.
        health: Why nobody should be given it, as a sentence; "" when nothing is known against it.
        drained: The admin's reason for giving it to nobody new; "" when it is in service.
    """

    uuid: GpuUuid
    index: int = 0
    name: str = ""
    memory_mib: int | None = None
    compute_capability: tuple[int, int] | None = None
    driver: str = ""
    cdi_name: str = ""
    pool: str = "default"
    is_simulated: bool = False
    mode: str = "exclusive"
    mig_profile: str = ""
    parent: str = ""
    pci: str = ""
    numa_node: int | None = None
    links: tuple[Link, ...] = ()
    health: str = ""
    drained: str = ""

    @property
    def slots(self) -> int:
        """How many servers may hold it at once: 1, or N in the mode "shared:N"."""
        return slots_of(self.mode)

    @property
    def slot_memory_mib(self) -> int | None:
        """Memory budget of one holder; None where the device's memory is unknown."""
        if self.memory_mib is None or self.slots == 0:
            return None
        if self.slots == 1:
            return self.memory_mib
        return (self.memory_mib - min(_RESERVE_MIB, self.memory_mib // 16)) // self.slots

    @property
    def qualified_cdi_name(self) -> str:
        """The CDI device name to ask the engine for."""
        return self.cdi_name or f"nvidia.com/gpu={self.uuid}"


def gpu_share(gpu: Gpu) -> float:
    """What holding one slot counts in GPU-hours, above 0 and at most 1.

    1 for a whole GPU, 1/N for a slot of N, and for a MIG instance its compute slices of the seven
    that a GPU has: "2g.20gb" has two, and "1c.3g.40gb" one of the three of its GPU instance.
    Source: NVIDIA's MIG user guide, "Concepts" and "Device Names".
    """
    return (_part(gpu.mig_profile) if gpu.mig_profile else 1.0) / max(1, gpu.slots)


@cache
def _part(profile: str) -> float:
    slices = _SLICES.match(profile)
    return min(7, int(slices[1] or slices[2])) / 7 if slices else 1.0


@cache
def slots_of(mode: str) -> int:
    """Slots of a mode: 1 for "exclusive", N for "shared:N", 0 for "mig".

    Raises:
        BadRequest: It is no mode.
    """
    if mode in ("exclusive", "mig"):
        return 1 if mode == "exclusive" else 0
    match = re.fullmatch(r"shared:([0-9]{1,2})", mode)
    if match and 2 <= int(match[1]) <= MAX_SLOTS:
        return int(match[1])
    raise BadRequest(
        f'There is no mode "{mode[:40]}"; a GPU is "exclusive", "shared:N" with N from 2 to '
        f'{MAX_SLOTS}, or "mig".'
    )


@dataclass(frozen=True, slots=True)
class Inventory:
    """The GPUs of one engine's host; none at all is a value with a reason, not an error.

    Attributes:
        gpus: In index order, UUIDs unique.
        reason: Why there is none; "" when there is one.
    """

    gpus: tuple[Gpu, ...] = ()
    reason: str = ""
    _by_uuid: Mapping[GpuUuid, Gpu] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        by_uuid = {gpu.uuid: gpu for gpu in self.gpus}
        if len(by_uuid) != len(self.gpus):
            raise BadRequest("The list of GPUs names one UUID twice.")
        object.__setattr__(self, "_by_uuid", by_uuid)

    def get(self, uuid: str) -> Gpu | None:
        """Return the GPU of that UUID, or None when this host has no such GPU."""
        return self._by_uuid.get(GpuUuid(uuid))

    @property
    def pools(self) -> tuple[str, ...]:
        """Names of the pools, each once, in order of appearance."""
        return tuple(dict.fromkeys(gpu.pool for gpu in self.gpus))


# What an admin decides; a driver says nothing of it. "drained" is kept in the ledger.
_ADMIN_KEYS: Final = frozenset({"cdi_name", "pool", "is_simulated"})
_DEVICE_KEYS: Final = frozenset(part.name for part in fields(Gpu)) - {"drained"}
_FACT_KEYS: Final = _DEVICE_KEYS - _ADMIN_KEYS
_LINK_KEYS: Final = frozenset({"uuid", "kind", "has_p2p"})

# "1g.10gb", "1c.3g.40gb", "1g.24gb+me.all", "1g.24gb-me"; source: MIG user guide, "Supported MIG
# Profiles".
MIG_PROFILE: Final = re.compile(r"([1-9]c\.)?[1-9]g\.[0-9]{1,4}gb([+-][a-z][a-z.,+]{0,31})?")
_SLICES: Final = re.compile(r"(?:([1-9])c\.)?([1-9])g")
_PCI = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_CAPABILITY = re.compile(r"[0-9]{1,3}\.[0-9]{1,3}")
_TEXT_CHARS: Final = 300


def parse_inventory(devices: Sequence[Mapping[str, Any]]) -> Inventory:
    """Read a static list of devices, as an admin writes it in the configuration.

    Args:
        devices: One mapping a device, in display order. ``uuid`` is required; the other keys are
            ``Gpu``'s attributes without ``drained``. ``compute_capability`` may be "9.0" or
            (9, 0); a link is a mapping with ``uuid``, ``kind`` and ``has_p2p``.

    Returns:
        The inventory; ``reason`` is set when the list is empty.

    Raises:
        BadRequest: A device lacks a UUID, has an unknown key or a value out of range, links to a
            GPU that is not listed, is cut from one that is listed in another mode than "mig", or
            two share a UUID. Every fault is named, not only the first.
    """
    gpus = _parse(devices, _DEVICE_KEYS)
    return Inventory(gpus, "" if gpus else "The static list of GPUs is empty.")


def inventory_of(facts: object) -> Inventory:
    """Read what ``adapters.nvml_facts`` found, however it came here; nothing in it is trusted.

    Args:
        facts: ``{"driver", "reason", "devices"}``; the keys of a device are ``Gpu``'s without
            those that an admin decides.

    Returns:
        The inventory; ``reason`` is set when there is no GPU, or what came is not usable.
    """
    devices = facts.get("devices") if isinstance(facts, Mapping) else None
    if not isinstance(facts, Mapping) or not isinstance(devices, list):
        return Inventory(reason="What was found out about the GPUs is not readable.")
    try:
        gpus = _parse(devices, _FACT_KEYS)
        inventory = Inventory(gpus)
    except BadRequest as error:
        return Inventory(reason=error.public_message[:_TEXT_CHARS])
    if gpus:
        return inventory
    reason = facts.get("reason")
    if isinstance(reason, str) and reason and _is_text(reason):
        return Inventory(reason=reason)
    return Inventory(reason="The NVIDIA driver lists no GPU.")


def build_gpu(place: int, device: Mapping[str, Any]) -> Gpu:
    """Build a device from values that were checked, or that this package wrote down itself.

    Args:
        place: Its index where the mapping says none.
        device: ``Gpu``'s attributes, as JSON has them: lists for tuples, a mapping for a link.
    """
    known = dict(device)
    if (capability := known.get("compute_capability")) is not None:
        major, minor = _capability_text(capability).split(".")
        known["compute_capability"] = (int(major), int(minor))
    known["links"] = tuple(
        link if isinstance(link, Link) else Link(**link) for link in known.get("links") or ()
    )
    return Gpu(**{"index": place, **known})


def _parse(devices: Sequence[Any], keys: Collection[str]) -> tuple[Gpu, ...]:
    listed = {
        uuid: device.get("mode", "exclusive")
        for device in devices
        if isinstance(device, Mapping) and isinstance(uuid := device.get("uuid"), str)
    }
    faults = [
        f"device {place}: {fault}"
        for place, device in enumerate(devices)
        for fault in _faults(device, keys, listed)
    ]
    if faults:
        raise BadRequest("The list of GPUs is not usable: " + "; ".join(faults) + ".")
    return tuple(build_gpu(place, device) for place, device in enumerate(devices))


def _faults(device: Any, keys: Collection[str], listed: Mapping[str, Any]) -> Iterable[str]:
    """What is wrong with one device; ``listed`` has the mode of each UUID in the list."""
    if not isinstance(device, Mapping):
        yield f"{_short(device)} is no mapping"
        return
    if unknown := sorted(str(key)[:40] for key in device if key not in keys):
        yield f"unknown key {', '.join(unknown)}"
    if "uuid" not in device:
        yield "uuid None is not of the form GPU-... or MIG-..."
    for key, (is_right, what) in _RULES.items():
        if key in device and not is_right(device[key]):
            yield f"{key} {_short(device[key])} {what}"
    parent = device.get("parent")
    if isinstance(parent, str) and parent and listed.get(parent, "mig") != "mig":
        # Whoever got the whole GPU would share it with those on its instances.
        yield f'parent {_short(parent)} is listed without the mode "mig"'
    yield from _link_faults(device, listed)


def _link_faults(device: Mapping[str, Any], listed: Collection[Any]) -> Iterable[str]:
    links = device.get("links", ())
    if not isinstance(links, (tuple, list)):
        yield f"links {_short(links)} is no list"
        return
    seen = {str(device.get("uuid"))}
    for link in links:
        if not isinstance(link, Mapping) or not {"uuid", "kind"} <= set(link) <= _LINK_KEYS:
            yield f"link {_short(link)} has not the keys uuid, kind and has_p2p"
            continue
        uuid = link["uuid"]
        if not isinstance(uuid, str) or uuid not in listed:
            yield f"link to {_short(uuid)}, which is not in the list"
        elif uuid in seen:
            yield f"link to {_short(uuid)}, which is itself or named before"
        else:
            seen.add(uuid)
        if link["kind"] not in LINKS:
            yield f"link kind {_short(link['kind'])} is not one of {', '.join(LINKS)}"
        if not isinstance(link.get("has_p2p"), (bool, NoneType)):
            yield f"has_p2p {_short(link['has_p2p'])} is not True, False or None"


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _TEXT_CHARS and value.isprintable()


def _is_whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**40


def _is_uuid(value: Any) -> bool:
    return isinstance(value, str) and GPU_UUID.fullmatch(value) is not None


def _is_mode(value: Any) -> bool:
    try:
        return isinstance(value, str) and slots_of(value) >= 0
    except BadRequest:
        return False


def _capability_text(capability: Any) -> str:
    if isinstance(capability, (tuple, list)):
        return ".".join(str(part) for part in capability)
    return str(capability)


def _short(value: Any) -> str:
    said = repr(value)
    return said if len(said) <= 60 else f"{said[:57]}..."


_TEXT_RULE: Final = (_is_text, f"is not a line of at most {_TEXT_CHARS} characters")

# What every value must be: a test, and how its failure is put. Links have tests of their own.
_RULES: Final[Mapping[str, tuple[Callable[[Any], bool], str]]] = {
    "uuid": (_is_uuid, "is not of the form GPU-... or MIG-..."),
    "index": (_is_whole, "is not a whole number"),
    "name": _TEXT_RULE,
    "memory_mib": (
        lambda value: value is None or (_is_whole(value) and value > 0),
        "is not a positive whole number",
    ),
    "compute_capability": (
        lambda value: value is None or bool(_CAPABILITY.fullmatch(_capability_text(value))),
        "is not of the form 9.0",
    ),
    "driver": _TEXT_RULE,
    "cdi_name": _TEXT_RULE,
    "pool": _TEXT_RULE,
    "is_simulated": (lambda value: isinstance(value, bool), "is not True or False"),
    "mode": (_is_mode, f'is not "exclusive", "shared:N" with N from 2 to {MAX_SLOTS}, or "mig"'),
    "mig_profile": (
        lambda value: isinstance(value, str) and (not value or bool(MIG_PROFILE.fullmatch(value))),
        "is not of the form 1g.10gb",
    ),
    "parent": (lambda value: value == "" or _is_uuid(value), "is not of the form GPU-..."),
    "pci": (
        lambda value: value == "" or (isinstance(value, str) and bool(_PCI.fullmatch(value))),
        "is not of the form 0000:1b:00.0",
    ),
    "numa_node": (lambda value: value is None or _is_whole(value), "is not a whole number"),
    "health": _TEXT_RULE,
}
