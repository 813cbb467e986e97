"""How the memory of a slot is limited: by CUDA MPS (hard), by PyTorch's allocator (soft), or not.

Pure. The device itself knows nothing of slots, so what is chosen here comes as environment and as a
mount of the host's MPS daemon.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from pytorch_spawner.core.gpus import Gpu

ALLOC_CONF: Final = "PYTORCH_CUDA_ALLOC_CONF"
MPS_PIPE_DIR: Final = "/var/run/pytorch-spawner/mps"
# The first PyTorch whose allocator reads its share of the memory from the environment; older ones
# refuse an option that they do not know, and with it every CUDA call (pytorch PR #161035).
_FRACTION_SINCE: Final = (2, 10)
# A process's CUDA context, which PyTorch does not count: 514 to 710 MiB on an H200 (docs:
# measurements), less on smaller GPUs.
_CONTEXT_MIB: Final = 768


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """How the memory of a slot is limited.

    Attributes:
        kind: "hard" (CUDA MPS refuses what is beyond it), "soft" (PyTorch's allocator does, unless
            the student switches it off), "none" (nothing does), or "" for whole GPUs.
        environment: Variables that put it in force.
        mounts: Path on the engine's host -> path in the container.
    """

    kind: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    mounts: Mapping[str, str] = field(default_factory=dict)


def memory_limit(
    gpus: Sequence[Gpu], torch: tuple[int, int] | None, mps_pipe_dir: str
) -> MemoryLimit:
    """Choose how slots are limited to their budget.

    Args:
        gpus: What the lease holds, in the order in which CUDA numbers them in the container.
        torch: (major, minor) of the image's PyTorch; None where unknown.
        mps_pipe_dir: Pipe directory of the host's MPS daemon; "" where it runs none.
    """
    slots = [gpu for gpu in gpus if gpu.slots > 1]
    if not slots:
        return MemoryLimit()
    environment: dict[str, str] = {}
    mounts: dict[str, str] = {}
    kind = "none"
    if torch is not None and torch >= _FRACTION_SINCE:
        fraction = min(map(_fraction, slots))
        environment[ALLOC_CONF] = f"per_process_memory_fraction:{fraction:.4f}"
        kind = "soft"
    budgets = [gpu.slot_memory_mib for gpu in gpus]
    if mps_pipe_dir and None not in budgets:
        # NVIDIA's MPS documentation, CUDA_MPS_PINNED_DEVICE_MEM_LIMIT: "0=1G,1=512MB", by the
        # device's number as the client sees it.
        environment["CUDA_MPS_PIPE_DIRECTORY"] = MPS_PIPE_DIR
        environment["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"] = ",".join(
            f"{place}={budget}M" for place, budget in enumerate(budgets)
        )
        mounts[mps_pipe_dir] = MPS_PIPE_DIR
        kind = "hard"
    return MemoryLimit(kind, environment, mounts)


def _fraction(gpu: Gpu) -> float:
    """PyTorch's share of a GPU: the slot's budget without what CUDA needs beside PyTorch."""
    slot, total = gpu.slot_memory_mib, gpu.memory_mib
    if slot is None or not total:
        return 0.9 / gpu.slots
    return (slot - min(_CONTEXT_MIB, slot // 8)) / total
