"""How much of a GPU this server may use, and what keeps it within that."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Dict, Mapping, Optional

from pytorch_spawner.agent.codes import Outcome, outcome
from pytorch_spawner.agent.config import Config

_FRACTION = re.compile(r"per_process_memory_fraction\s*:\s*([0-9.]+)")
_NO_GPU = "This server has no GPU: PyTorch computes on the CPU."


def gpu_limit(config: Config, environ: Mapping[str, str]) -> Outcome:
    """What the limit is and whether it is hard.

    A hard limit is kept by the hardware (MIG) or by NVIDIA's MPS daemon, whatever the program. A
    soft one is kept by PyTorch alone, in each process for itself.

    Args:
        config: What the agent was told.
        environ: The container's environment.
    """
    leased = config.real_gpus
    if config.gpus is None:
        return outcome("unknown", "The agent was not told how much of a GPU this server has.")
    if not leased:
        return outcome("ok", _NO_GPU)
    budget = sum(gpu.memory_mib or 0 for gpu in leased)
    said = _size(budget) if budget else "its part"
    facts: Dict[str, Any] = {"memory_mib": budget or None}
    if any(gpu.uuid.startswith("MIG-") for gpu in leased):
        return outcome(
            "ok", f"Your part of the GPU has {said}, and the hardware keeps everybody within "
            "theirs.", kind="mig", hard=True, **facts,
        )  # fmt: skip
    if config.share != "slot":
        return outcome("ok", "The whole GPU is yours.", kind="whole", hard=None, **facts)
    hard = environ.get("CUDA_MPS_PINNED_DEVICE_MEM_LIMIT", "")
    pipe = environ.get("CUDA_MPS_PIPE_DIRECTORY", "")
    facts.update(mps_limit=hard or None, fraction=_fraction(environ))
    if hard and _has_daemon(pipe):
        return outcome(
            "ok", f"You share the GPU and may use {said}; the driver keeps every program within "
            "that.", kind="mps", hard=True, **facts,
        )  # fmt: skip
    if facts["fraction"] is not None:
        return outcome(
            "ok", f"You share the GPU and may use {said}; PyTorch stops there, in each notebook "
            "for itself.",
            "Shut down notebooks that you do not use, for together they may take more.",
            "This limit is soft. MPS or MIG makes it hard.", kind="fraction", hard=False, **facts,
        )  # fmt: skip
    return outcome(
        "warn", f"You share the GPU and may use {said}, but nothing keeps your programs within "
        "that.", "Keep below it, or you take the memory that others were given.",
        "MPS with a daemon on the host, or MIG, makes a hard limit. PyTorch before 2.10 knows no "
        "per_process_memory_fraction, and an image that sets PYTORCH_CUDA_ALLOC_CONF replaces "
        "ours.", kind="none", hard=False, **facts,
    )  # fmt: skip


def _fraction(environ: Mapping[str, str]) -> Optional[float]:
    # PyTorch reads the new name first, and the old one where that is not set.
    text = environ.get("PYTORCH_ALLOC_CONF") or environ.get("PYTORCH_CUDA_ALLOC_CONF", "")
    found = _FRACTION.search(text)
    try:
        value = float(found.group(1)) if found else 0.0
    except ValueError:
        return None
    return value if 0 < value <= 1 else None


def _has_daemon(pipe_dir: str) -> bool:
    """Whether MPS can be reached; without its pipe CUDA runs as if there were no limit."""
    try:
        return bool(pipe_dir) and Path(pipe_dir, "control").exists()
    except OSError:
        return False


def _size(mib: int) -> str:
    return f"{mib / 1024:.0f} GiB" if mib >= 10 * 1024 else f"{mib} MiB"
