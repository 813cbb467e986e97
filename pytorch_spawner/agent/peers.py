"""Several GPUs adding up numbers through NCCL: one process each, as a student's training has them.

It runs in a worker process of its own, for NCCL may hang for ever. torch is imported once and the
ranks are forked from it before any of them touches CUDA.
"""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any, Dict, List

from pytorch_spawner.agent.report import Send

_MIB = 1024 * 1024
# Enough for a bandwidth, and a fraction of a second even through the computer's memory.
_BYTES = 64 * _MIB
_ROUNDS = 5
_PEER_S = 30


def run(job: Dict[str, Any], emit: Send) -> None:
    """Run the ranks; each reports once.

    Args:
        job: ``{"count": ranks, "backend": of torch.distributed, "device": "cuda" or "cpu",
            "total_s": longest life}``.
        emit: Takes one event of kind "peer" per rank, with "rank", and "right" or "error".
    """
    # Whoever started this may be killed itself; then nobody else would end it.
    signal.alarm(int(job["total_s"]) + 5)
    import torch
    import torch.distributed

    with tempfile.TemporaryDirectory(prefix="pytorch-spawner-") as folder:
        ranks: List[int] = []
        for rank in range(int(job["count"])):
            pid = os.fork()
            if pid == 0:
                _be_rank(torch, rank, job, folder, emit)
            ranks.append(pid)
        _wait(ranks)


def _wait(ranks: List[int]) -> None:
    """Wait for all; when one fails, the others would wait for it until their deadline."""
    left = set(ranks)
    while left:
        pid, status = os.wait()
        left.discard(pid)
        if status != 0:
            for other in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(other, signal.SIGKILL)


def _be_rank(torch: Any, rank: int, job: Dict[str, Any], folder: str, emit: Send) -> None:
    signal.alarm(int(job["total_s"]) + 5)
    try:
        emit("peer", {"rank": rank, **_work(torch, rank, job, folder)})
    except BaseException as error:  # noqa: BLE001 (a fork must not run on in its parent's code)
        emit("peer", {"rank": rank, "error": f"{type(error).__name__}: {error}"[:500]})
        os._exit(1)
    os._exit(0)


def _work(torch: Any, rank: int, job: Dict[str, Any], folder: str) -> Dict[str, Any]:
    count, on_gpu = int(job["count"]), job["device"] == "cuda"
    device = f"cuda:{rank}" if on_gpu else "cpu"
    began = time.monotonic()
    if on_gpu:
        torch.cuda.set_device(rank)
    distributed = torch.distributed
    distributed.init_process_group(
        job["backend"], init_method=f"file://{Path(folder, 'store')}", rank=rank,
        world_size=count, timeout=timedelta(seconds=_PEER_S),
    )  # fmt: skip
    numbers = torch.full((_BYTES // 4,), float(rank + 1), device=device)
    distributed.all_reduce(numbers)
    # Whole numbers below 2**24 are exact in float32, in whatever order they are added.
    wanted = float(count * (count + 1) // 2)
    right = bool((numbers == wanted).all())
    init_s = time.monotonic() - began
    found: Dict[str, Any] = {"right": right, "init_s": round(init_s, 3)}
    if on_gpu:
        torch.cuda.synchronize()
    began = time.monotonic()
    for _ in range(_ROUNDS):
        distributed.all_reduce(numbers)
    if on_gpu:
        torch.cuda.synchronize()
    per_round_s = (time.monotonic() - began) / _ROUNDS
    # What each link carries, by which rings of any size compare. Source: nccl-tests,
    # PERFORMANCE.md, "busbw".
    found["gigabytes_per_s"] = round(_BYTES * 2 * (count - 1) / count / per_round_s / 1e9, 2)
    if rank == 0 and on_gpu:
        found["direct"] = _direct(torch, count)
        found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    distributed.barrier()
    with contextlib.suppress(Exception):
        distributed.destroy_process_group()
    return found


def _direct(torch: Any, count: int) -> List[List[bool]]:
    """Which GPU reads the memory of which other directly; true on the diagonal."""
    return [
        [i == j or bool(torch.cuda.can_device_access_peer(i, j)) for j in range(count)]
        for i in range(count)
    ]
