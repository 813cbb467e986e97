"""What NVML says of every GPU, as plain JSON values.

Imports the standard library only, and runs on Python 3.9: ``adapters.probe`` copies this file into
a helper container that knows nothing else of this package. A function that a driver lacks, does not
support or answers with nonsense leaves its field unknown (None, "" or no link), never 0.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

# Numbers of nvml.h, which never change once they are out. pynvml's own names will not do: its
# NVML_P2P_CAPS_INDEX_READ is the tuple (0,), which ctypes refuses, and old versions lack some.
_GPU_IS_LOST = 15
_RESET_REQUIRED = 16
_P2P_READ = 0
_P2P_NVLINK = 2
_P2P_OK = 0
_P2P_UNKNOWN = 6
_NVLINK_TO_SWITCH = 2
_UNCORRECTED = 1
_VOLATILE = 0

# nvmlGpuTopologyLevel_t -> ``core.gpus.LINKS``. INTERNAL is two GPUs on one board, behind its own
# switch.
_KINDS = {
    0: "pcie-switch",
    10: "pcie-switch",
    20: "pcie-switch",
    30: "host-bridge",
    40: "numa-node",
    50: "system",
}

_TROUBLES = {
    _GPU_IS_LOST: "It has fallen off the PCI bus; the host must be restarted.",
    _RESET_REQUIRED: "The driver says that it must be reset.",
}
_PROFILE = re.compile(r"\bMIG ((?:[0-9]c\.)?[0-9]g\.[0-9]+gb\S*)")
_ADDRESS = re.compile(r"([0-9a-f]{4,8}):([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])")


class _Device:
    """One handle, with what speaks against it.

    Attributes:
        trouble: A sentence, once an answer says that the GPU is lost or must be reset.
        facts: As ``read_facts`` returns them.
        ends: What its NVLinks end at; None before anybody asked.
    """

    def __init__(self, nvml: Any, handle: Any) -> None:
        self.nvml = nvml
        self.handle = handle
        self.trouble = ""
        self.facts: dict[str, Any] = {}
        self.ends: set[str] | None = None

    def ask(self, function: str, *arguments: Any, blames: bool = True) -> Any:
        """What a function of NVML answers for this handle; None where it does not.

        Args:
            function: Its name.
            arguments: What follows the handle.
            blames: A lost GPU means this one; not so where the call names a second one.
        """
        try:
            return getattr(self.nvml, function)(self.handle, *arguments)
        except AttributeError:  # pynvml is older than the function
            return None
        except ValueError:  # bytes that are no UTF-8
            return None
        except self.nvml.NVMLError as error:
            if blames:
                self.trouble = _TROUBLES.get(getattr(error, "value", 0), self.trouble)
            return None


def read_facts(nvml: Any, sys_root: str = "/sys") -> dict[str, Any]:
    """Ask NVML for every GPU and MIG instance.

    Args:
        nvml: The module ``pynvml``, not initialised.
        sys_root: Where sysfs is.

    Returns:
        ``{"driver": str, "reason": str, "devices": [...]}``; the keys of a device are those of
        ``core.gpus.Gpu``. A GPU in MIG mode is listed with the mode "mig", its instances follow
        it. ``reason`` says why a GPU, or every one, is missing; it is a sentence.
    """
    facts: dict[str, Any] = {"driver": "", "reason": "", "devices": []}
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        facts["reason"] = f"No NVIDIA driver answers ({error})."
        return facts
    try:
        facts["driver"] = _driver(nvml)
        count = nvml.nvmlDeviceGetCount()
        gpus = [gpu for gpu in (_gpu(nvml, index) for index in range(count)) if gpu is not None]
        _add_links(gpus)
        for gpu in gpus:
            _add_place(gpu, Path(sys_root))
            gpu.facts["health"] = _health(gpu)
            gpu.facts["driver"] = facts["driver"]
            facts["devices"] += [gpu.facts, *_instances(gpu)]
        facts["reason"] = _missing(count, len(gpus))
    except nvml.NVMLError as error:
        facts["reason"] = f"The NVIDIA driver answers with an error ({error})."
    finally:
        _shut_down(nvml)
    return facts


def _driver(nvml: Any) -> str:
    try:
        return _text(nvml.nvmlSystemGetDriverVersion())
    except (AttributeError, nvml.NVMLError):
        return ""


def _missing(count: int, found: int) -> str:
    if count == 0:
        return "The NVIDIA driver is there, but it sees no GPU."
    return (
        f"{count - found} of {count} GPUs that the driver counts gave no answer."
        if found < count
        else ""
    )


def _shut_down(nvml: Any) -> None:
    try:
        nvml.nvmlShutdown()
    except nvml.NVMLError:
        pass  # the answers are here; the library goes with the process


def _gpu(nvml: Any, index: int) -> _Device | None:
    try:
        device = _Device(nvml, nvml.nvmlDeviceGetHandleByIndex(index))
    except nvml.NVMLError:  # counted, but lost, or not given to this container
        return None
    uuid = _text(device.ask("nvmlDeviceGetUUID"))
    if not uuid:
        return None
    modes = device.ask("nvmlDeviceGetMigMode")
    device.facts = {
        "uuid": uuid,
        "index": index,
        "name": _text(device.ask("nvmlDeviceGetName")),
        "memory_mib": _memory_mib(device),
        "compute_capability": _capability(device),
        "driver": "",
        # The first is the mode now, the second the one after the next reset.
        "mode": "mig" if modes and modes[0] == 1 else "exclusive",
        "mig_profile": "",
        "parent": "",
        "pci": _pci(getattr(device.ask("nvmlDeviceGetPciInfo"), "busId", "")),
        "numa_node": None,
        "links": [],
        "health": "",
    }
    return device


def _instances(gpu: _Device) -> list[dict[str, Any]]:
    if gpu.facts["mode"] != "mig":
        return []
    found = []
    # Places of instances that do not exist answer "not found".
    for place in range(_number(gpu.ask("nvmlDeviceGetMaxMigDeviceCount")) or 0):
        handle = gpu.ask("nvmlDeviceGetMigDeviceHandleByIndex", place)
        if handle is None:
            continue
        instance = _Device(gpu.nvml, handle)
        uuid = _text(instance.ask("nvmlDeviceGetUUID"))
        name = _text(instance.ask("nvmlDeviceGetName"))
        if uuid:
            found.append(
                {
                    **gpu.facts,  # index, place, driver, capability and health are the GPU's
                    "uuid": uuid,
                    "name": name,
                    "memory_mib": _memory_mib(instance),
                    "mode": "exclusive",
                    "mig_profile": _profile(name) or _profile_by_size(instance, gpu),
                    "parent": gpu.facts["uuid"],
                    # No peer-to-peer to or from an instance; source: MIG user guide, "Application
                    # Considerations".
                    "links": [],
                }
            )
    return found


def _profile(name: str) -> str:
    match = _PROFILE.search(name)
    return match[1] if match else ""


def _profile_by_size(instance: _Device, gpu: _Device) -> str:
    """The profile from slices and memory, as nvidia-smi names it: memory in eighths of the GPU.

    Source: NVIDIA go-nvlib, pkg/nvlib/device/mig_profile.go.
    """
    size = instance.ask("nvmlDeviceGetAttributes")
    memory_mib = _number(getattr(size, "memorySizeMB", None))
    slices = _number(getattr(size, "gpuInstanceSliceCount", None))
    compute = _number(getattr(size, "computeInstanceSliceCount", None))
    total_mib = gpu.facts["memory_mib"]
    if not (memory_mib and slices and compute and total_mib):
        return ""
    eighths = -(-8 * memory_mib // total_mib)
    size_gb = round(eighths / 8 * -(-total_mib // 1024))
    prefix = f"{compute}c." if compute < slices else ""
    return f"{prefix}{slices}g.{size_gb}gb"


def _memory_mib(device: _Device) -> int | None:
    total = _number(getattr(device.ask("nvmlDeviceGetMemoryInfo"), "total", None))
    return total // 2**20 or None if total else None


def _capability(device: _Device) -> list[int] | None:
    said = device.ask("nvmlDeviceGetCudaComputeCapability")
    if not isinstance(said, (tuple, list)):
        return None
    numbers = [number for number in map(_number, said) if number is not None]
    return numbers if len(numbers) == 2 and numbers[0] else None


def _health(gpu: _Device) -> str:
    """What speaks against the GPU, the worst first; "" when nothing does.

    Source: NVIDIA GPU Memory Error Management ("RMA policy thresholds for row-remapping", "GPU
    reset"), and Dynamic Page Retirement for GPUs before Ampere.
    """
    remapped = gpu.ask("nvmlDeviceGetRemappedRows")
    rows = list(remapped) if isinstance(remapped, (tuple, list)) else []
    pending, failed = rows[2:4] if len(rows) == 4 else (None, None)
    errors = gpu.ask("nvmlDeviceGetTotalEccErrors", _UNCORRECTED, _VOLATILE)
    retiring = gpu.ask("nvmlDeviceGetRetiredPagesPendingStatus")
    if gpu.trouble:
        return gpu.trouble
    if _number(failed):
        return "A faulty row of its memory could not be replaced; the GPU must be exchanged."
    if _number(pending) or _number(retiring):
        return "A faulty part of its memory is replaced at the next reset, which it waits for."
    if count := _number(errors):
        what = "memory error" if count == 1 else "memory errors"
        return f"It had {count} {what} that ECC could not correct since the driver was loaded."
    return ""


def _add_place(gpu: _Device, sys_root: Path) -> None:
    """The NUMA node by the kernel's word.

    Not nvmlDeviceGetNumaNodeId: that is the node that the GPU's own memory makes up on machines
    such as Grace Hopper, not the node of the CPU it hangs off.
    """
    if not gpu.facts["pci"]:
        return
    place = sys_root / "bus" / "pci" / "devices" / gpu.facts["pci"] / "numa_node"
    try:
        node = int(place.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return
    gpu.facts["numa_node"] = node if node >= 0 else None  # -1: the firmware does not say


def _add_links(gpus: list[_Device]) -> None:
    addresses = {gpu.facts["pci"] for gpu in gpus}
    for gpu in gpus:
        for other in gpus:
            if other is gpu:
                continue
            kind = _kind(gpu, other, addresses)
            if kind:
                has_p2p = _p2p(gpu, other, _P2P_READ)
                uuid = other.facts["uuid"]
                gpu.facts["links"].append({"uuid": uuid, "kind": kind, "has_p2p": has_p2p})


def _kind(gpu: _Device, other: _Device, addresses: set[str]) -> str:
    has_nvlink = _p2p(gpu, other, _P2P_NVLINK)
    if has_nvlink is None:
        # Where the driver does not say: a link that ends at the other GPU, or both have one that
        # ends at the same NVSwitch (a third GPU that both reach is no switch).
        mine, theirs = _nvlink_ends(gpu), _nvlink_ends(other)
        has_nvlink = other.facts["pci"] in mine or bool((mine & theirs) - addresses)
    if has_nvlink:
        return "nvlink"
    level = _number(gpu.ask("nvmlDeviceGetTopologyCommonAncestor", other.handle, blames=False))
    return "" if level is None else _KINDS.get(level, "")


def _p2p(gpu: _Device, other: _Device, index: int) -> bool | None:
    said = _number(gpu.ask("nvmlDeviceGetP2PStatus", other.handle, index, blames=False))
    return None if said is None or said == _P2P_UNKNOWN else said == _P2P_OK


def _nvlink_ends(gpu: _Device) -> set[str]:
    """PCI addresses of what its active NVLinks end at; "switch" for one without an address."""
    if gpu.ends is None:
        gpu.ends = set()
        # 18 links on an H100; the binding knows how many its NVML can name.
        for link in range(getattr(gpu.nvml, "NVML_NVLINK_MAX_LINKS", 18)):
            if gpu.ask("nvmlDeviceGetNvLinkState", link) == 1:
                end = _pci(getattr(gpu.ask("nvmlDeviceGetNvLinkRemotePciInfo", link), "busId", ""))
                if end.startswith("ffff"):
                    # So a virtual machine sees the host's NVSwitch (H200, driver 580.159.04).
                    kind = gpu.ask("nvmlDeviceGetNvLinkRemoteDeviceType", link)
                    end = "switch" if kind == _NVLINK_TO_SWITCH else ""
                gpu.ends.add(end)
        gpu.ends.discard("")
    return gpu.ends


def _pci(said: Any) -> str:
    """The address as the kernel writes it: NVML has "00000000:1B:00.0"."""
    match = _ADDRESS.fullmatch(_text(said).lower())
    return f"{match[1].lstrip('0').zfill(4)}:{match[2]}:{match[3]}.{match[4]}" if match else ""


def _number(said: Any) -> int | None:
    return said if type(said) is int and said >= 0 else None


def _text(said: Any) -> str:
    text = said.decode("utf-8", "replace") if isinstance(said, bytes) else said
    return text.strip() if isinstance(text, str) and text != "N/A" else ""


def main() -> None:
    """Print the facts as one line of JSON."""
    try:
        import pynvml
    except ImportError:
        facts: dict[str, Any] = {"driver": "", "devices": []}
        facts["reason"] = "nvidia-ml-py cannot be loaded."
    else:
        facts = read_facts(pynvml)
    sys.stdout.write(json.dumps(facts) + "\n")


if __name__ == "__main__":
    main()
