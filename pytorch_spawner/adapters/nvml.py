"""The GPUs of this machine, as NVIDIA's management library tells them.

No driver, no library, no GPU: each is an empty inventory with a reason, never an error. A function
that an old driver lacks leaves its field unknown.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from pytorch_spawner.core.gpus import Gpu, GpuUuid, Inventory

T = TypeVar("T")


def read_inventory() -> Inventory:
    """Ask NVML for every GPU; MIG instances take the place of the GPU they are cut from."""
    try:
        import pynvml
    except ImportError:
        return Inventory(reason="nvidia-ml-py is not installed beside the hub.")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return Inventory(reason=f"No NVIDIA driver answers on the hub's machine ({error}).")
    try:
        driver = _text(pynvml.nvmlSystemGetDriverVersion())
        gpus = tuple(
            gpu
            for index in range(pynvml.nvmlDeviceGetCount())
            for gpu in _devices(pynvml, pynvml.nvmlDeviceGetHandleByIndex(index), index, driver)
        )
    except pynvml.NVMLError as error:
        return Inventory(reason=f"The NVIDIA driver answers with an error ({error}).")
    finally:
        pynvml.nvmlShutdown()
    return Inventory(gpus, "" if gpus else "The NVIDIA driver is there, but it sees no GPU.")


def _devices(nvml: Any, handle: Any, index: int, driver: str) -> list[Gpu]:
    capability = _known(nvml, lambda: nvml.nvmlDeviceGetCudaComputeCapability(handle))
    modes = _known(nvml, lambda: nvml.nvmlDeviceGetMigMode(handle))
    handles = [handle]
    if modes and modes[0] == 1:
        count = nvml.nvmlDeviceGetMaxMigDeviceCount(handle)
        instances = (
            _known(nvml, partial(nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, place))
            for place in range(count)
        )
        handles = [instance for instance in instances if instance is not None]
    return [
        Gpu(
            uuid=GpuUuid(_text(nvml.nvmlDeviceGetUUID(device))),
            index=index,
            name=_text(_known(nvml, partial(nvml.nvmlDeviceGetName, device)) or ""),
            memory_mib=_memory_mib(nvml, device),
            compute_capability=tuple(capability) if capability else None,
            driver=driver,
        )
        for device in handles
    ]


def _memory_mib(nvml: Any, device: Any) -> int | None:
    memory = _known(nvml, lambda: nvml.nvmlDeviceGetMemoryInfo(device))
    return int(memory.total) // 2**20 if memory is not None else None


def _known(nvml: Any, ask: Callable[[], T]) -> T | None:
    try:
        return ask()
    except nvml.NVMLError:
        return None


def _text(said: Any) -> str:
    return said.decode() if isinstance(said, bytes) else str(said)
