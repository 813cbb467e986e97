"""What a standby imports and exercises, and the proof that nothing else has changed.

Python and torch keep what was read at import. So everything is imported that the first compiled
training step would import, and nothing is done that a notebook could tell: no CUDA, no compiler, no
random number.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import os
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

# In this order: ipykernel first, as in an ordinary kernel.
KERNEL = (
    "ipykernel.kernelapp",
    "ipykernel.ipkernel",
    "ipykernel.zmqshell",
    "ipykernel.debugger",
)
TORCH = (
    "numpy",
    "torch",
    "torch.optim",
    "torch.utils.data",
    "torch._dynamo",
    "torch._inductor.compile_fx",
    "torch._functorch.aot_autograd",
    "torch._inductor.select_algorithm",
    "torch.distributed.tensor.experimental._attention",
    "triton",
)
# What the first compiled step would import by itself, seen with torch 2.11 and 2.13. They set
# nothing; one that another version does not have is no lack of the image.
AT_FIRST_STEP = (
    "multiprocessing.synchronize",
    "sympy.tensor.tensor",
    "torch._dynamo.backends.cudagraphs",
    "torch._dynamo.backends.distributed",
    "torch._dynamo.backends.inductor",
    "torch._dynamo.backends.onnxrt",
    "torch._dynamo.backends.tensorrt",
    "torch._dynamo.backends.torchxla",
    "torch._dynamo.backends.tvm",
    "torch._dynamo.dce_extra_outputs",
    "torch._export.db.logging",
    "torch._export.passes.add_runtime_assertions_for_constraints_pass",
    "torch._export.passes.collect_tracepoints_pass",
    "torch._inductor.codegen.memory_planning",
    "torch._inductor.fx_passes.apply_gumbel_max_trick",
    "torch._inductor.fx_passes.efficient_conv_bn_eval",
    "torch._inductor.fx_passes.freezing_patterns",
    "torch._inductor.fx_passes.quantization",
    "torch._inductor.hooks",
    "torch._subclasses.schema_check_mode",
    "torch.export._leakage_detection_utils",
    "torch.export._trace",
    "torch.export._unlift",
    "torch.fx.experimental.validator",
    "triton.tools.experimental_descriptor",
    "triton.tools.tensor_descriptor",
)
# What ipykernel sets, but only at the hand-over, and what matplotlib reads, but only at its import.
BACKEND = "MPLBACKEND"
INLINE = "module://matplotlib_inline.backend_inline"
# CUDA's error for a call before cuInit.
_NOT_INITIALISED = 3


class Spoilt(Exception):
    """The imports did what a notebook could tell; such a process is not handed over."""


def preload(course: str) -> dict[str, Any]:
    """Import everything, exercise torch, and check.

    Args:
        course: Modules beside the usual ones, separated by commas.

    Returns:
        {"absent": [...], "sets": [...]}: what the image lacks; variables that an import has set.
    """
    before = dict(os.environ)
    named = tuple(name.strip() for name in course.split(",") if name.strip())
    # torch then counts GPUs through NVML: CUDA's own counting would read CUDA_VISIBLE_DEVICES for
    # good, before the student could set it.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    with _plots_shown():
        _import_all((*KERNEL, *TORCH))
        # After torch and numpy, for what they begin with is what is compared.
        with _unchanged(_state):
            absent = _import_all(named)
        if "torch" in sys.modules:
            for name in AT_FIRST_STEP:
                with contextlib.suppress(Exception):
                    importlib.import_module(name)
            with _unchanged(_torch_state), _variables_kept():
                exercise()
    check()
    os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK")
    if (had := before.get("PYTORCH_NVML_BASED_CUDA_CHECK")) is not None:
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = had
    names = before.keys() | os.environ.keys()
    sets = sorted(name for name in names if before.get(name) != os.environ.get(name))
    return {"absent": absent, "sets": sets}


def _import_all(names: Iterable[str]) -> list[str]:
    """Import each; what the image lacks is returned. Any other failure ends the standby."""
    absent = []
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError:
            absent.append(name)
    return absent


def exercise() -> None:
    """Make one of each: what torch imports or computes at first use is then there."""
    if _has_gpu():
        _load_cudnn()
    else:
        _trace_once()
    _make_once()
    _inductor_once()


def _load_cudnn() -> None:
    """Load what cuDNN loads at its first use; none of it asks for a GPU.

    0.2 s and 16 MiB (torch 2.11, the host of an H200).

    cuDNN 9 is a small library that torch is linked with, and opens its parts from beside itself.
    """
    for whole in _mapped("libcudnn.so."):
        for part in sorted(whole.parent.glob(f"libcudnn_*{whole.name.removeprefix('libcudnn')}")):
            with contextlib.suppress(OSError):
                ctypes.CDLL(str(part))


def _mapped(beginning: str) -> set[Path]:
    """Paths of this process's libraries whose names begin so (proc(5), maps)."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/maps").read_text(errors="replace").splitlines()
        paths = {Path(line[line.index("/") :]) for line in lines if "/" in line}
        return {path for path in paths if path.name.startswith(beginning)}
    return set()


def _has_gpu() -> bool:
    # Tracing, even of a function on the CPU, asks CUDA for its random state and for what Triton can
    # do there (seen with torch 2.11 on an H100: a context of 518 MiB). So with a GPU nothing is
    # traced. It is not hidden either: torch remembers the answers for good.
    return any(any(Path("/dev").glob(name)) for name in ("nvidia[0-9]*", "dxg", "kfd"))


def _trace_once() -> None:
    import torch
    import torch._dynamo
    from torch._dynamo.utils import counters

    def tiny(x: Any) -> Any:
        return (x * 2).sum()

    with _no_profile():
        x = torch.zeros(2, 3, requires_grad=True)
        torch.compile(tiny, backend="eager")(x).backward()
        _model_once()
    weight = torch.zeros(2, requires_grad=True)
    weight.sum().backward()
    torch.optim.AdamW([weight]).step()
    torch._dynamo.reset()
    counters.clear()


def _make_once() -> None:
    import torch

    torch.compile(lambda x: x)  # made, never called
    for kind in (torch.optim.SGD, torch.optim.AdamW):
        kind([torch.zeros(2, requires_grad=True)], lr=0.1)


def _model_once() -> None:
    """Trace a model with what most models have: dynamo's tables are made at first use."""
    import torch
    from torch import nn

    class Block(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.first, self.second = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Any) -> Any:
            y = self.norm(x)
            y = nn.functional.scaled_dot_product_attention(y, y, y, is_causal=True)
            return x + self.second(nn.functional.gelu(self.first(y)))

    with torch.random.fork_rng(devices=[]):
        model = Block()
    step = torch.compile(model, backend="aot_eager")
    for size in (2, 3):  # the second time with dynamic shapes
        x, goal = torch.zeros(size, 4, 8), torch.zeros(size * 4, dtype=torch.long)
        nn.functional.cross_entropy(step(x).flatten(0, 1), goal).backward()


@contextlib.contextmanager
def _no_profile() -> Iterator[None]:
    """A profile belongs to the student's code: ours is neither looked up nor written."""
    try:
        from torch.compiler import config

        patch = config.patch(job_id=None)
    except (ImportError, AttributeError):
        yield
        return
    with patch:
        yield


def _inductor_once() -> None:
    with contextlib.suppress(Exception):
        from torch._inductor.codegen.common import init_backend_registration

        init_backend_registration()
    # Parts of every cache key: hashes of torch's and Triton's own files.
    with contextlib.suppress(Exception):
        from torch._inductor.codecache import torch_key

        torch_key()
    with contextlib.suppress(Exception):
        from torch._inductor.runtime.triton_compat import triton_key

        triton_key()
    # Triton asks ldconfig for the driver's library, once a process.
    with contextlib.suppress(Exception):
        from triton.backends.nvidia.driver import libcuda_dirs

        libcuda_dirs()


@contextlib.contextmanager
def _variables_kept() -> Iterator[None]:
    """What inductor sets at its first use (its cache's default place) it sets again at the next."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


@contextlib.contextmanager
def _plots_shown() -> Iterator[None]:
    """A matplotlib that is imported here shows its plots in the notebook, as in any kernel."""
    if os.environ.get(BACKEND) or not importlib.util.find_spec("matplotlib_inline"):
        yield
        return
    had = os.environ.get(BACKEND)
    os.environ[BACKEND] = INLINE
    yield
    if INLINE.partition("//")[2] in sys.modules:
        raise Spoilt("an import set up matplotlib's backend, which there asks for the notebook")
    # Not loaded yet, so what the kernel's own environment says may still count.
    if "matplotlib" not in sys.modules and os.environ.get(BACKEND) == INLINE:
        del os.environ[BACKEND]
        if had is not None:
            os.environ[BACKEND] = had


@contextlib.contextmanager
def _unchanged(state: Callable[[], Mapping[str, Any]]) -> Iterator[None]:
    before = state()
    yield
    after = state()
    if names := [name for name, value in before.items() if after[name] != value]:
        raise Spoilt(f"{', '.join(names)} changed")


def _state() -> dict[str, Any]:
    """What a named module could set for every notebook, whether or not it imports it."""
    numpy = sys.modules.get("numpy")
    return {
        "Python's random state": random.getstate(),
        **({"numpy's random state": _numpy_state(numpy)} if numpy else {}),
        **_torch_state(),
    }


def _numpy_state(numpy: Any) -> tuple[Any, ...]:
    name, key, *rest = numpy.random.get_state()
    return (name, key.tobytes(), *rest)


def _torch_state() -> dict[str, Any]:
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return {}
    return {
        "torch's random state": bytes(torch.get_rng_state().tolist()),
        "torch's default dtype": str(torch.get_default_dtype()),
        "torch's gradient mode": torch.is_grad_enabled(),
        "torch's thread count": torch.get_num_threads(),
        "torch's float32 precision": torch.get_float32_matmul_precision(),
        "torch's deterministic mode": torch.are_deterministic_algorithms_enabled(),
    }


def check() -> None:
    """Raise Spoilt if CUDA was initialised, by torch or by anything else."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        raise Spoilt("an import initialised CUDA in torch")
    try:
        driver = ctypes.CDLL("libcuda.so.1", mode=os.RTLD_NOLOAD | os.RTLD_NOW)
    except OSError:
        return
    count = ctypes.c_int()
    if driver.cuDeviceGetCount(ctypes.byref(count)) != _NOT_INITIALISED:
        raise Spoilt("an import initialised CUDA's driver")
