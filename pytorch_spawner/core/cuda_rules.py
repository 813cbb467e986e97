"""The single rules of the gate: code and GPU, driver and toolkit, names of GPUs. Pure.

Each cites what it follows. They know numbers and names alone; ``compat`` puts them together.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, Literal

from pytorch_spawner.core.catalog import clean, say_driver
from pytorch_spawner.core.cuda_tables import (
    DATA_CENTRE,
    FAMILY_DRIVERS,
    FIRST_DRIVERS,
    GENERATIONS,
    LAST_BRANCHES,
    NOT_DATA_CENTRE,
    ON_CHIP,
    TOOLKIT_DRIVERS,
    Capability,
    Driver,
    Toolkit,
)
from pytorch_spawner.core.gpus import Gpu

Kernels = Literal["compiled", "ptx", "none"]
Standing = Literal["full", "minor", "family", "old"]

_ARCH: Final = re.compile(r"(sm|compute)_([0-9]{1,2})([0-9])([af]?)")


def is_nvidia(arch: str) -> bool:
    """Whether an architecture is one of NVIDIA's: "sm_80", "compute_90a"."""
    return _ARCH.fullmatch(arch) is not None


def kernels_for(archs: Iterable[str], capability: Capability) -> Kernels:
    """Whether code for a GPU is in PyTorch: compiled, as PTX, or not at all.

    Compiled code (sm_XY) runs on GPUs of the same major number and the same or a higher minor one,
    never on lower ones; with "a" on the very same alone; GPUs on a processor's chip exchange it
    with none. PTX (compute_XY) is compiled by the driver for every GPU from X.Y on; with "f" within
    the same major number, with "a" for the very same alone.
    Source: CUDA C++ Programming Guide, "Binary Compatibility" and "PTX Compatibility"; for "a" and
    "f" the PTX ISA, ".target".

    Args:
        archs: What ``torch.cuda.get_arch_list()`` says.
        capability: The GPU's.
    """
    has_ptx = False
    for arch in archs:
        parts = _ARCH.fullmatch(arch)
        if parts is None:
            continue
        built, suffix = (int(parts[2]), int(parts[3])), parts[4]
        is_same_family = built[0] == capability[0] and built <= capability
        if parts[1] == "sm":
            if {built, capability} & ON_CHIP or suffix == "a":
                is_same_family = built == capability
            if is_same_family:
                return "compiled"
        elif suffix == "a":
            has_ptx = has_ptx or built == capability
        else:
            has_ptx = has_ptx or (is_same_family if suffix == "f" else built <= capability)
    return "ptx" if has_ptx else "none"


def standing_of(toolkit: Toolkit, driver: Driver) -> Standing | None:
    """How a driver stands to a CUDA toolkit.

    Returns:
        "full": as new as the toolkit's own; "minor": older, but compiled code of the toolkit's
        family runs (minor-version compatibility); "family": the same, of a toolkit that is newer
        than our table; "old": too old; None where nothing is known of such a toolkit.

    Source: see ``cuda_tables.TOOLKIT_DRIVERS`` and ``FAMILY_DRIVERS``.
    """
    full, family = TOOLKIT_DRIVERS.get(toolkit), FAMILY_DRIVERS.get(toolkit[0])
    if full is not None and driver >= full:
        return "full"
    if family is None:
        return None
    if driver < family:
        return "old"
    # A driver of a later family knows everything of an earlier one.
    later = FAMILY_DRIVERS.get(toolkit[0] + 1)
    if full is None:
        return "full" if later is not None and driver >= later else "family"
    return "minor"


def is_data_centre(name: str) -> bool | None:
    """Whether a GPU is one of those that take the forward compatibility package; None: unknown."""
    if re.search(NOT_DATA_CENTRE, name, re.IGNORECASE):
        # NVIDIA names "select" RTX cards in certified servers; which ones, a name does not say.
        return None if re.search(r"RTX (A|PRO|[4-6]000)", name) else False
    return True if re.search(DATA_CENTRE, name) else None


def say_gpu(gpu: Gpu) -> str:
    """A GPU as a sentence names it: "NVIDIA A100 (Ampere, 8.0)"."""
    name = clean(gpu.name) or "this GPU"
    if gpu.compute_capability is None:
        return name
    major, minor = gpu.compute_capability
    return f"{name} ({' '.join((*generation(gpu.compute_capability), f'{major}.{minor}'))})"


def generation(capability: Capability) -> tuple[str, ...]:
    """("Ampere",) for (8, 0); empty where it is newer or older than the table."""
    if capability >= (13, 0):
        return ()
    return next(((name,) for since, name in GENERATIONS if capability >= since), ())


def refusal_of(driver: Driver, capability: Capability, device: str) -> str:
    """Why a driver does not know a GPU, as a sentence; "" where nothing says so.

    Args:
        driver: The host's.
        capability: The GPU's.
        device: What the sentence calls it.

    Source: see ``cuda_tables.FIRST_DRIVERS`` and ``LAST_BRANCHES``.
    """
    first = FIRST_DRIVERS.get(capability)
    if first is not None and driver < first:
        return (
            f"Driver {say_driver(driver)} does not know {device}; the first that does is "
            f"{say_driver(first)}. Only an admin can install it."
        )
    for since, branch in LAST_BRANCHES:
        if capability < since and driver[0] > branch:
            return (
                f"Driver {say_driver(driver)} no longer supports {device}; the last branch that "
                f"does is {branch}. Only an admin can install it."
            )
    return ""
