"""The checks that need torch, in one process that imports it once. Nobody else waits for them."""

from __future__ import annotations

import importlib
import os
import re
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from pytorch_spawner.agent import evidence, features
from pytorch_spawner.agent import kernel_processes as processes
from pytorch_spawner.agent.codes import TORCH_CODES, Outcome, done, outcome
from pytorch_spawner.agent.config import Config, from_job
from pytorch_spawner.agent.report import Send

_MIB = 1024 * 1024

# CUDA's major version to the oldest Linux driver that runs it, by minor-version compatibility.
# Source: CUDA Toolkit Release Notes 13.0, table 2; CUDA Compatibility, "Minor Version".
OLDEST_DRIVER: Mapping[int, str] = {11: "450.80.02", 12: "525.60.13", 13: "580.65.06"}


class Bench:
    """What the checks share.

    Attributes:
        config: What the agent was told.
        cuda_of_driver: The newest CUDA the driver runs; ``None`` is unknown.
        torch: The module, once the first check imported it.
        device: "cuda:0" or "cpu".
        is_full: A check found no memory left on the GPU; the others would find the same.
    """

    def __init__(self, config: Config, cuda_of_driver: Optional[Tuple[int, int]]) -> None:
        self.config = config
        self.cuda_of_driver = cuda_of_driver
        self.torch: Any = None
        self.device = "cpu"
        self.is_full = False

    @property
    def lost_gpu(self) -> bool:
        """A GPU is leased, and PyTorch does not find it."""
        return bool(self.config.real_gpus) and self.device == "cpu"


def run(job: Dict[str, Any], emit: Send) -> None:
    """Run the checks in order, reporting each.

    Args:
        job: ``{"config": as_job(...), "cuda": [major, minor] or None}``.
        emit: Takes the events.
    """
    os.nice(10)
    cuda = job.get("cuda")
    bench = Bench(from_job(job["config"]), tuple(cuda) if cuda else None)
    for code in TORCH_CODES:
        emit("check", {"code": code, "phase": "running"})
        began = time.monotonic()
        found = _one(bench, CHECKS[code])
        emit("check", done(code, found, time.monotonic() - began))


def _one(bench: Bench, check: Callable[[Bench], Outcome]) -> Outcome:
    if check is not _torch and bench.torch is None:
        return outcome("unknown", "Not checked, because there is no PyTorch to check.")
    if check in _ON_GPU and bench.lost_gpu:
        return outcome("unknown", "Not checked, because PyTorch does not find your GPU.")
    if check in _ON_GPU and bench.is_full:
        return outcome("unknown", "Not checked, because the GPU's memory is full.")
    try:
        return check(bench)
    except Exception as error:  # noqa: BLE001 (whatever torch raises is the finding)
        sentence, admin_remedy = evidence.cause(error)
        remedy = "Tell your admin, or choose another image."
        if evidence.is_out_of_memory(error):
            bench.is_full = bench.device != "cpu"
            remedy = "Shut down notebooks that still hold memory of this GPU; else tell your admin."
        return outcome("fail", f"{sentence}.", remedy, admin_remedy, error=repr(error)[:500])


def _torch(bench: Bench) -> Outcome:
    try:
        torch: Any = importlib.import_module("torch")
    except ModuleNotFoundError as error:
        if error.name == "torch":
            return outcome(
                "warn", "This image has no PyTorch.", "Choose an image with PyTorch.",
                "Install torch for the python3 that comes first on PATH.",
            )  # fmt: skip
        return _broken(error)
    except Exception as error:  # noqa: BLE001 (OSError of a library, and anything else)
        return _broken(error)
    bench.torch = torch
    cuda = torch.version.cuda
    if bench.config.may_use_gpu and torch.cuda.is_available():
        bench.device = "cuda:0"
    facts = {
        "version": str(torch.__version__),
        "cuda": cuda,
        "device": bench.device,
        "device_name": _device_name(bench),
        "file": torch.__file__,
    }
    built = f"built for CUDA {cuda}" if cuda else "built for CPUs"
    return outcome("ok", f"PyTorch {torch.__version__}, {built}.", **facts)


def _broken(error: Exception) -> Outcome:
    return outcome(
        "fail", "PyTorch is in this image, but importing it fails.",
        "If you installed packages of your own, remove them: `pip list --user` shows them. Else "
        "tell your admin.",
        "Try `python3 -c 'import torch'` in the image.", error=repr(error)[:500],
    )  # fmt: skip


def _device_name(bench: Bench) -> str:
    if bench.device != "cpu":
        return str(bench.torch.cuda.get_device_name(0))
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "CPU"
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else "CPU"


def _driver_fits(bench: Bench) -> Outcome:
    built, driver = bench.torch.version.cuda, bench.cuda_of_driver
    facts = {"torch_cuda": built, "driver_cuda": None if driver is None else list(driver)}
    if not bench.config.may_use_gpu or (not bench.config.real_gpus and bench.device == "cpu"):
        return outcome("ok", features.NO_GPU, **facts)
    if not built:
        return outcome(
            "fail", "This image's PyTorch was built without CUDA, so it cannot use your GPU.",
            "Choose an image whose PyTorch has CUDA.",
            "Mark this image as CPU-only in the catalog.", **facts,
        )  # fmt: skip
    major = int(built.split(".")[0])
    if driver is not None and major > driver[0]:
        return outcome(
            "fail", f"This image's PyTorch needs CUDA {built}, and the driver runs no newer than "
            f"CUDA {driver[0]}.{driver[1]}.", f"Choose an image for CUDA {driver[0]} or older.",
            f"Update the host's driver to {OLDEST_DRIVER.get(major, 'a newer one')} or newer.",
            **facts,
        )  # fmt: skip
    if bench.lost_gpu:
        return outcome(
            "fail", "The driver fits, but PyTorch finds no GPU.",
            "Stop and start your server; if it happens again, tell your admin.",
            "Check CUDA_VISIBLE_DEVICES in the container and dmesg (Xid) on the host.",
            error=_why_no_cuda(bench.torch), **facts,
        )  # fmt: skip
    return outcome("ok", f"The driver runs the CUDA {built} that PyTorch was built for.", **facts)


def _why_no_cuda(torch: Any) -> str:
    try:
        torch.cuda.init()
    except Exception as error:  # noqa: BLE001 (whatever it raises is the finding)
        return str(error)[:300]
    return ""


def _gpu_name_memory(bench: Bench) -> Outcome:
    if bench.lost_gpu:
        return outcome("fail", "PyTorch finds no GPU.", "See the checks above.")
    if bench.device == "cpu":
        return outcome("ok", features.NO_GPU, device_name=_device_name(bench))
    cuda = bench.torch.cuda
    seen = [_describe(cuda, index) for index in range(cuda.device_count())]
    built_for = list(cuda.get_arch_list())
    facts: Dict[str, Any] = {"gpus": seen, "built_for": built_for}
    for gpu in seen:
        if built_for and not runs_on(gpu["capability"], built_for):
            return outcome(
                "fail", f"This image's PyTorch has no code for the {gpu['name']}.",
                "Choose another image.", "Offer an image built for compute capability "
                f"{gpu['capability'][0]}.{gpu['capability'][1]}.", **facts,
            )  # fmt: skip
    names = ", ".join(f"{gpu['name']} with {gpu['memory_mib'] / 1024:.0f} GiB" for gpu in seen)
    return _memory_note(bench.config, seen, facts) or outcome("ok", f"{names}.", **facts)


def _describe(cuda: Any, index: int) -> Dict[str, Any]:
    properties = cuda.get_device_properties(index)
    free, total = cuda.mem_get_info(index)
    return {
        "name": str(properties.name),
        "memory_mib": total // _MIB,
        "free_mib": free // _MIB,
        "capability": [properties.major, properties.minor],
        "processors": properties.multi_processor_count,
    }


def _memory_note(
    config: Config, seen: List[Dict[str, Any]], facts: Dict[str, Any]
) -> Optional[Outcome]:
    """A warning about memory; ``None`` when there is nothing to say. Slots share on purpose."""
    promised = sum(gpu.memory_mib or 0 for gpu in config.real_gpus)
    there = sum(gpu["memory_mib"] for gpu in seen)
    used = sum(gpu["memory_mib"] - gpu["free_mib"] for gpu in seen)
    if config.share == "whole" and there < 0.9 * promised:
        return outcome(
            "warn", f"Your GPU has {there} MiB instead of the {promised} MiB it should have.",
            "", "Correct the inventory, or check the GPU.", **facts,
        )  # fmt: skip
    is_full = config.share == "whole" and used > max(4096, 0.15 * there)
    if is_full and not _is_used_here():
        return outcome(
            "warn", f"{used} MiB of your GPU's memory are in use before you started anything.",
            "Close notebooks that still run; else tell your admin.",
            "A process outside this server holds the GPU: see nvidia-smi on the host.", **facts,
        )  # fmt: skip
    return None


def _is_used_here(proc: str = processes.PROC) -> bool:
    """Whether another process of this container uses the GPU: somebody who began to compute."""
    there = processes.read_all(proc)
    return bool(processes.uses_gpu(there.keys() - processes.tree(there, os.getpid()), proc))


def runs_on(capability: Sequence[int], built_for: Sequence[str]) -> bool:
    """Whether code for some architectures runs on a GPU.

    Args:
        capability: The GPU's compute capability, (major, minor).
        built_for: As ``torch.cuda.get_arch_list`` writes them: "sm_86", "sm_90a", "compute_90".

    Source: CUDA C++ Programming Guide, "Binary Compatibility" (same major, minor not newer) and
    "PTX Compatibility" (not newer); an "a" at the end binds code to exactly that GPU.
    """
    major, minor = capability
    for name in built_for:
        found = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", name)
        if found is None:
            continue
        kind, its_major, its_minor = found.group(1), int(found.group(2)), int(found.group(3))
        if found.group(4) == "a":
            fits = (its_major, its_minor) == (major, minor)
        elif kind == "sm":
            fits = its_major == major and its_minor <= minor
        else:
            fits = (its_major, its_minor) <= (major, minor)
        if fits:
            return True
    return False


def _tensor(bench: Bench) -> Outcome:
    """``a @ b`` with a, b: float32 [256, 256] on each device, against float64 on the CPU."""
    torch = bench.torch
    a, b = torch.randn(256, 256), torch.randn(256, 256)
    right = a.double() @ b.double()
    devices = ["cpu"]
    if bench.device != "cpu":
        devices = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    errors = {}
    for device in devices:
        product = (a.to(device) @ b.to(device)).double().cpu()
        errors[device] = float((product - right).norm() / right.norm())
    # TF32 keeps 10 bits of the mantissa: about 5e-4 here; a broken GPU is far off, or NaN.
    wrong = [device for device, error in errors.items() if not error < 0.01]
    if wrong:
        return outcome(
            "fail", f"A matrix product on {', '.join(wrong)} gives wrong numbers.",
            "Do not trust results from this server; tell your admin.",
            "Take the GPU out of service and run a memory test (dcgmi diag -r 3).",
            relative_error=errors,
        )  # fmt: skip
    where = "the CPU" if bench.device == "cpu" else "the GPU"
    return outcome("ok", f"A matrix product on {where} is right.", relative_error=errors)


def _compile(bench: Bench) -> Outcome:
    """``relu(a @ b) * sin(a)`` with a, b: float32 [64, 64], compiled, against eager."""
    torch = bench.torch
    if not hasattr(torch, "compile"):
        return outcome("warn", f"PyTorch {torch.__version__} is too old to have torch.compile.")

    def formula(a: Any, b: Any) -> Any:
        return torch.relu(a @ b) * torch.sin(a)

    evidence.clear()
    compiled = torch.compile(formula)
    with torch.no_grad():
        a = torch.randn(64, 64, device=bench.device)
        b = torch.randn(64, 64, device=bench.device)
        same = torch.allclose(compiled(a, b), formula(a, b), rtol=1e-2, atol=1e-2)
    seen = evidence.read()
    hidden = bool(torch._dynamo.config.suppress_errors)
    torch._dynamo.reset()
    facts: Dict[str, Any] = {**vars(seen), "suppress_errors": hidden}
    if not same:
        return outcome("fail", "Compiled code gives other numbers than PyTorch without it.",
                       "Do not use torch.compile here; tell your admin.", "", **facts)  # fmt: skip
    if not seen.compiled:
        return outcome(
            "fail", "torch.compile runs your code uncompiled, without saying so.",
            "Unset TORCHDYNAMO_SUPPRESS_ERRORS and TORCHDYNAMO_DISABLE, and look at the error.",
            "Try the same in the image.", **facts,
        )  # fmt: skip
    if seen.graph_breaks:
        return outcome("warn", "torch.compile compiled only a part: "
                       f"{seen.graph_breaks[0]}.", "", "", **facts)  # fmt: skip
    if hidden:
        return outcome(
            "warn", "torch.compile works, but TORCHDYNAMO_SUPPRESS_ERRORS hides its errors.",
            "Unset it: even the value 0 turns it on.", "Remove it from the image.", **facts,
        )  # fmt: skip
    cached = ", from the cache" if seen.from_cache else ""
    return outcome("ok", f"torch.compile really compiles{cached}.", **facts)


CHECKS: Mapping[str, Callable[[Bench], Outcome]] = {
    "torch": _torch,
    "driver-fits": _driver_fits,
    "gpu-name-memory": _gpu_name_memory,
    "tensor": _tensor,
    "compile": _compile,
    # After what the warm-up depends on: a native crash in one of these ends the process.
    "convolution": features.convolution,
    "precision": features.precision,
    "cuda-graph": features.cuda_graph,
    "data-loader": features.data_loader,
    "export": features.export,
    "several-gpus": features.several_gpus,
}
# These would silently say something of the CPU where the GPU is lost.
_ON_GPU = (
    _tensor, features.convolution, features.precision, features.cuda_graph, _compile,
    features.several_gpus,
)  # fmt: skip
