"""Compile small networks ahead of the student, in a process that only takes idle time.

It fills the container's private compile cache. It must NOT change the environment or torch's
settings that are part of cache keys, and never holds more than a few hundred MiB of a GPU.
"""

from __future__ import annotations

import contextlib
import gc
import os
import threading
import time
from pathlib import Path
from typing import Any, Dict, Tuple

from pytorch_spawner.agent import compile_log, evidence
from pytorch_spawner.agent.models import BUILDERS, Workload, train_step
from pytorch_spawner.agent.report import Send

SAMPLE_S = 5.0
_MIB = 1024 * 1024


def run(job: Dict[str, Any], emit: Send) -> None:
    """Warm every target, reporting each; one that fails does not keep the others.

    Args:
        job: ``{"targets": [{"id", "model", "mode"}...], "device": str, "sample": [uuid...]}``; the
            UUIDs of the GPUs to report samples of, in CUDA's order, usually empty.
        emit: Takes the events.
    """
    step_back()
    import torch

    torch.set_num_threads(max(1, cpus() - 1))
    if job["sample"] and job["device"] != "cpu":
        threading.Thread(
            target=_sample_forever, args=(torch, job["sample"], emit), daemon=True
        ).start()
    with compile_log.listening(torch) as listener:
        for target in job["targets"]:
            emit("warmup", {"phase": "running", **target})
            try:
                found = warm(torch, target["model"], target["mode"], job["device"], listener)
            except Exception as error:  # noqa: BLE001 (whatever torch raises is the finding)
                sentence, _ = evidence.cause(error)
                log = compile_log.of_failure(error, listener.take())
                emit("warmup", {"phase": "failed", **target, "message": f"{sentence}.", "log": log})
            else:
                emit("warmup", {**found, **target})
            _let_go(torch)


def step_back() -> None:
    """Run only when nobody else wants the CPU; needs no privilege."""
    os.nice(15)
    with contextlib.suppress(OSError, AttributeError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def cpus() -> int:
    """How many CPUs this container may use, by affinity and by quota; at least 1.

    Source: cgroup v2, cpu.max: "QUOTA PERIOD" in microseconds, or "max PERIOD"; cgroup v1,
    cpu.cfs_quota_us, -1 for none, and cpu.cfs_period_us.
    """
    count = len(os.sched_getaffinity(0))
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        with contextlib.suppress(OSError, ValueError):
            texts = [Path("/sys/fs/cgroup", name).read_text(encoding="ascii") for name in names]
            quota, period = (int(word) for word in " ".join(texts).split())
            if quota > 0:
                count = min(count, -(-quota // period))
    return max(1, count)


def warm(
    torch: Any, model: str, mode: str, device: str, listener: compile_log.Listener
) -> Dict[str, Any]:
    """Compile one network twice: from whatever the disk holds, then from the disk alone.

    Args:
        torch: The module.
        model: Key of ``BUILDERS``.
        mode: Of ``torch.compile``.
        device: "cpu" or "cuda:N".
        listener: Hears what torch says meanwhile.

    Returns:
        The end of a warm-up event: "phase" ("done", or "failed" with a "message" when torch ran
        it uncompiled), seconds of the first and of the second compiled step, counters, and the
        "log". The second step is what a prepared kernel pays: a fresh process adds torch's own
        imports to it.
    """
    work = BUILDERS[model](torch, device)
    cold_s, first = _first_step(torch, work, mode)
    warm_s, second = _first_step(torch, work, mode)
    ended = {
        "phase": "done",
        "cold_s": round(cold_s, 3),
        "warm_s": round(warm_s, 3),
        "from_cache": first.from_cache,
        "counters": {
            "fx_hit": first.fx_hit,
            "fx_miss": first.fx_miss,
            "graph_breaks": len(first.graph_breaks),
        },
        "message": _note(first, second),
        "log": compile_log.of_success(first, second, listener.take()),
    }
    if not first.compiled:
        ended.update(phase="failed", message="PyTorch ran it uncompiled, without an error.")
    return ended


def _note(first: evidence.Evidence, second: evidence.Evidence) -> str:
    """What is worth knowing about a success; "" when nothing is."""
    if first.graph_breaks:
        return f"Not compiled as a whole: {first.graph_breaks[0]}"
    if second.fx_miss:
        return "The cache did not keep it, so your own code is compiled anew each time, too."
    return ""


def _first_step(torch: Any, work: Workload, mode: str) -> Tuple[float, evidence.Evidence]:
    """Seconds of the first compiled training step, and what proves that it was compiled."""
    evidence.clear()
    optimizer = torch.optim.SGD(work.model.parameters(), lr=0.01)
    began = time.monotonic()
    train_step(torch, torch.compile(work.model, mode=mode), work, optimizer)
    if work.x.is_cuda:
        torch.cuda.synchronize()
    return time.monotonic() - began, evidence.read()


def _let_go(torch: Any) -> None:
    evidence.clear()
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _sample_forever(torch: Any, uuids: Any, emit: Send) -> None:
    """Memory use as CUDA knows it, where there is no nvidia-smi; the rest is unknown."""
    while True:
        time.sleep(SAMPLE_S)
        rows = []
        for index, uuid in enumerate(uuids[: torch.cuda.device_count()]):
            free, total = torch.cuda.mem_get_info(index)
            rows.append(
                {
                    "uuid": uuid,
                    "utilisation_pct": None,
                    "memory_used_mib": (total - free) // _MIB,
                    "memory_total_mib": total // _MIB,
                    "temperature_c": None,
                    "power_w": None,
                }
            )
        emit("sample", {"gpus": rows})
