"""What the API answers about the notebooks of a running server."""

from __future__ import annotations

from typing import Literal

from pytorch_spawner.lab.answers.common import Answer


class OpenKernel(Answer):
    """A kernel with its processes; null is unknown."""

    id: str
    notebook: str
    path: str
    state: Literal["idle", "busy", "starting", "restarting", "dead", ""]
    idle_s: int | None
    memory_mib: int | None
    gpu_mib: int | None
    uses_gpu: bool | None
    processes: int


class OtherHolder(Answer):
    """Processes of no living kernel, named by the largest; null is unknown."""

    pid: int | None
    kind: Literal["terminal", "leftover", "lab", "other"]
    notebook: str
    path: str
    memory_mib: int | None
    gpu_mib: int | None
    uses_gpu: bool | None
    processes: int


class GpuShare(Answer):
    """What the server has of a GPU, and how much of it is in use."""

    uuid: str
    total_mib: int | None
    used_mib: int | None
    is_slot: bool
    is_nearly_full: bool


class HeldMemory(Answer):
    """What notebooks and other processes of a server hold, what holds most first."""

    at: float
    sentence: str
    trouble: str
    kernels: list[OpenKernel]
    others: list[OtherHolder]
    gpus: list[GpuShare]


class KernelStopped(Answer):
    """The kernel is over; ``change`` is the log's line where an admin did it."""

    stopped: str
    notebook: str
    change: int | None
