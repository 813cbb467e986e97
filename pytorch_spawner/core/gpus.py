"""GPUs as data: what a device is, how a device list is read, how an inventory is looked up.

A GPU is named by its UUID everywhere; the index is for display only (it changes with the PCI bus).
Nothing here asks a driver or an engine: adapters do, and hand the answer over as these values.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NewType

from pytorch_spawner.errors import BadRequest

GpuUuid = NewType("GpuUuid", str)

# NVML's form of an identifier: "GPU-" or "MIG-" and a UUID. Old drivers (< 470) wrote
# "MIG-GPU-<uuid>/<gi>/<ci>"; source: nvidia-smi -L, MIG user guide.
_UUID = re.compile(r"(GPU|MIG)-[0-9A-Za-z][0-9A-Za-z/-]{3,127}")


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

    @property
    def qualified_cdi_name(self) -> str:
        """The CDI device name to ask the engine for."""
        return self.cdi_name or f"nvidia.com/gpu={self.uuid}"


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


_DEVICE_KEYS = frozenset(
    {
        "uuid",
        "index",
        "name",
        "memory_mib",
        "compute_capability",
        "driver",
        "cdi_name",
        "pool",
        "is_simulated",
    }
)


def parse_inventory(devices: Sequence[Mapping[str, Any]]) -> Inventory:
    """Read a static list of devices, as an admin writes it in the configuration.

    Args:
        devices: One mapping a device, in display order. ``uuid`` is required; the other keys are
            ``Gpu``'s attributes. ``compute_capability`` may be "9.0" or (9, 0).

    Returns:
        The inventory; ``reason`` is set when the list is empty.

    Raises:
        BadRequest: A device lacks a UUID, has an unknown key or a value out of range, or two share
            a UUID. Every fault is named, not only the first.
    """
    faults: list[str] = []
    gpus: list[Gpu] = []
    for place, device in enumerate(devices):
        faults += [f"device {place}: {fault}" for fault in _faults(device)]
        if not faults:
            gpus.append(_parse_device(place, device))
    if faults:
        raise BadRequest("The list of GPUs is not usable: " + "; ".join(faults) + ".")
    return Inventory(tuple(gpus), "" if gpus else "The static list of GPUs is empty.")


def _faults(device: Mapping[str, Any]) -> Iterable[str]:
    if unknown := sorted(set(device) - _DEVICE_KEYS):
        yield f"unknown key {', '.join(unknown)}"
    uuid = device.get("uuid")
    if not isinstance(uuid, str) or not _UUID.fullmatch(uuid):
        yield f"uuid {uuid!r} is not of the form GPU-... or MIG-..."
    memory_mib = device.get("memory_mib")
    if memory_mib is not None and (not isinstance(memory_mib, int) or memory_mib <= 0):
        yield f"memory_mib {memory_mib!r} is not a positive whole number"
    capability = device.get("compute_capability")
    if capability is not None and not re.fullmatch(r"\d+\.\d+", _capability_text(capability)):
        yield f"compute_capability {capability!r} is not of the form 9.0"


def _capability_text(capability: Any) -> str:
    if isinstance(capability, (tuple, list)):
        return ".".join(str(part) for part in capability)
    return str(capability)


def _parse_device(place: int, device: Mapping[str, Any]) -> Gpu:
    capability = device.get("compute_capability")
    major_minor: tuple[int, int] | None = None
    if capability is not None:
        major, minor = _capability_text(capability).split(".")
        major_minor = (int(major), int(minor))
    return Gpu(
        uuid=GpuUuid(device["uuid"]),
        index=int(device.get("index", place)),
        name=str(device.get("name", "")),
        memory_mib=device.get("memory_mib"),
        compute_capability=major_minor,
        driver=str(device.get("driver", "")),
        cdi_name=str(device.get("cdi_name", "")),
        pool=str(device.get("pool", "default")),
        is_simulated=bool(device.get("is_simulated", False)),
    )
