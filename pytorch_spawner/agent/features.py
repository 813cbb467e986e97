"""What courses need of PyTorch beside a matrix product, each tried for real with a small example.

They run in the process that has imported torch (``torch_checks``). None keeps a GPU busy for
longer than a second, needs more than some 100 MiB, or changes a setting that PyTorch's compiler
has in its keys.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import signal
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Mapping, NoReturn, Tuple

from pytorch_spawner.agent import child
from pytorch_spawner.agent.codes import Outcome, outcome

if TYPE_CHECKING:
    from pytorch_spawner.agent.torch_checks import Bench

NO_GPU = "This server has no GPU: PyTorch computes on the CPU."
_TELL = "Tell your admin, or choose another image."

_BATCHES, _BATCH, _FLOATS = 4, 4, 256 * 1024  # batches of 4 MiB, as those of pictures are
_LOADER_S = 15.0
_PEERS_S = 45.0

# (words in the error, sentence, what the admin can do); the first that matches.
_LOADER_CAUSES: Tuple[Tuple[str, str, str], ...] = (
    (
        "Bus error|out of shared memory|unable to allocate shared memory|No space left",
        "Shared memory is too small, so loading data with workers stops with an error",
        "Start the containers with a larger shm_size.",
    ),
    (
        # The last two are what Python says of its semaphores, which lie there too.
        "unable to open shared memory object|unable to mmap|shm_open|FileNotFoundError|"
        "PermissionError",
        "There is no usable shared memory, so loading data with workers stops with an error",
        "Give the containers a /dev/shm that their users may write.",
    ),
    (
        "Too many open files",
        "Too few files may be open at once for loading data with workers",
        "Raise the limit on open files (ulimit nofile) of the containers.",
    ),
    (
        "Resource temporarily unavailable|can't start new thread",
        "Too few processes may run at once for loading data with workers",
        "Raise pids_limit of the containers.",
    ),
    (
        "exited unexpectedly",
        "The workers that load data end before they are done",
        "See the container's pids_limit and memory, and dmesg for a killed process.",
    ),
    (
        "timed out",
        "The workers that load data do not answer",
        "See the container's pids_limit, and the host's load and memory.",
    ),
)


def convolution(bench: Bench) -> Outcome:
    """``conv2d`` with x: float32 [2, 3, 16, 16], w: float32 [8, 3, 3, 3], against float64."""
    if bench.device == "cpu":
        return outcome("ok", NO_GPU)
    torch = bench.torch
    x, w = torch.randn(2, 3, 16, 16), torch.randn(8, 3, 3, 3)
    conv = torch.nn.functional.conv2d
    right = conv(x.double(), w.double(), padding=1)
    with torch.no_grad():
        there = conv(x.to(bench.device), w.to(bench.device), padding=1).double().cpu()
    error = float((there - right).norm() / right.norm())
    cudnn = torch.backends.cudnn
    has = bool(cudnn.is_available() and cudnn.enabled)
    facts: Dict[str, Any] = {"relative_error": error, "cudnn": cudnn.version() if has else None}
    if not error < 0.01:  # TF32, the usual setting of cuDNN, is about 5e-4 off; NaN is no number
        return outcome(
            "fail", "A convolution on the GPU gives wrong numbers.",
            "Do not trust results from this server; tell your admin.",
            "Try another image; if it happens there too, test the GPU (dcgmi diag -r 3).", **facts,
        )  # fmt: skip
    if not has:
        return outcome(
            "warn", "Convolutions run without cuDNN, which makes them slow.", _TELL,
            "Install the cuDNN that this PyTorch asks for, in the image.", **facts,
        )  # fmt: skip
    return outcome("ok", "A convolution on the GPU is right.", **facts)


def precision(bench: Bench) -> Outcome:
    """``a @ b`` with a, b: [256, 256] of each short type, against float64 of the same numbers."""
    if bench.device == "cpu":
        return outcome("ok", NO_GPU)
    torch = bench.torch
    capability = tuple(torch.cuda.get_device_capability(0))
    # Source: CUDA C++ Programming Guide, "Arithmetic Instructions" and "Tensor Cores" by
    # compute capability: float16 from 5.3, bfloat16 and TF32 from 8.0.
    has = {
        "float16": capability >= (5, 3),
        "bfloat16": capability >= (8, 0),
        "tf32": capability >= (8, 0),
    }
    errors = {}
    for name in ("float16", "bfloat16"):
        if has[name]:
            a, b = (torch.randn(256, 256).to(getattr(torch, name)) for _ in range(2))
            right = a.double() @ b.double()
            there = (a.to(bench.device) @ b.to(bench.device)).double().cpu()
            errors[name] = float((there - right).norm() / right.norm())
    facts: Dict[str, Any] = {
        "capability": list(capability),
        "supported": has,
        "relative_error": errors,
    }
    # The result is rounded to 8 bits at the least (bfloat16): about 2e-3.
    wrong = [name for name, error in errors.items() if not error < 0.02]
    if wrong:
        return outcome(
            "fail", f"A matrix product in {wrong[0]} gives wrong numbers on the GPU.",
            "Do not trust results from this server; tell your admin.",
            "Take the GPU out of service and test it (dcgmi diag -r 3).", **facts,
        )  # fmt: skip
    names = {"float16": "float16", "bfloat16": "bfloat16", "tf32": "TF32"}
    yes = [names[name] for name, is_there in has.items() if is_there]
    no = [names[name] for name, is_there in has.items() if not is_there]
    if not no:
        return outcome("ok", f"The GPU computes in {_and(yes)}.", **facts)
    return outcome(
        "ok", f"The GPU computes in {_and(yes)}; it is too old for {_and(no)}." if yes else
        f"The GPU is too old for {_and(no)}; use float32.", **facts,
    )  # fmt: skip


def cuda_graph(bench: Bench) -> Outcome:
    """Record ``x @ w``, x, w: float32 [64, 64], as a CUDA graph; replay it with other numbers."""
    if bench.device == "cpu":
        return outcome("ok", NO_GPU)
    torch = bench.torch
    x, w = (torch.randn(64, 64, device=bench.device) for _ in range(2))
    other = torch.randn(64, 64, device=bench.device)
    with torch.no_grad():
        # Once beforehand on another stream: what a library does at first use cannot be recorded.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            y = x @ w
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = x @ w
        x.copy_(other)
        graph.replay()
        torch.cuda.synchronize()
        same = torch.allclose(y, other @ w, rtol=1e-2, atol=1e-2)
    if not same:
        return outcome(
            "fail", "A recorded CUDA graph gives other numbers than the same code without it.",
            'Do not use torch.compile(mode="reduce-overhead") here; tell your admin.',
            "Try another image and another driver.",
        )  # fmt: skip
    return outcome("ok", "CUDA graphs can be recorded and replayed.")


def data_loader(bench: Bench) -> Outcome:
    """Load ``_BATCHES`` batches, float32 [4, 256 Ki] each, with two workers over ``/dev/shm``."""
    sums: List[float] = []
    text = ""
    with _at_most(_LOADER_S + 1):
        try:
            sums = _load(bench.torch)
        except Exception as error:  # noqa: BLE001 (whatever torch raises is the finding)
            text = f"{type(error).__name__}: {error}"
    if text:
        return _loader_trouble(text)
    right = [
        float(_FLOATS * sum(range(first, first + _BATCH)))
        for first in range(0, _BATCHES * _BATCH, _BATCH)
    ]
    if sums != right:
        return outcome("fail", "Data loaded with several workers arrives changed.",
                       "Use num_workers=0 in your DataLoader; tell your admin.",
                       "Test the host's memory.", sums=sums)  # fmt: skip
    return outcome("ok", "Data can be loaded with several workers.")


def _load(torch: Any) -> List[float]:
    """The sums of the batches, as they arrive."""
    data = importlib.import_module("torch.utils.data")
    numbers = [torch.full((_FLOATS,), float(place)) for place in range(_BATCHES * _BATCH)]
    # By fork, as on Linux before Python 3.14: the other ways import the main program again.
    loader = data.DataLoader(
        numbers, batch_size=_BATCH, num_workers=2, timeout=_LOADER_S,
        multiprocessing_context="fork",
    )  # fmt: skip
    return [float(batch.double().sum()) for batch in loader]


@contextlib.contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raise ``TimeoutError`` in what hangs, and again in its clean-up; main thread only.

    Where no process or thread can be started, a DataLoader may wait for ever, and the deadline of
    the whole worker would leave the checks after this one undone.
    """

    def late(number: int, frame: object) -> NoReturn:
        raise TimeoutError("the workers timed out")

    before = signal.signal(signal.SIGALRM, late)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds, 2.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, before)


def _loader_trouble(text: str) -> Outcome:
    known = (row for row in _LOADER_CAUSES if any(word in text for word in row[0].split("|")))
    sentence, admin = next(
        ((row[1], row[2]) for row in known), (f"PyTorch says {first_line(text)}", "")
    )
    return outcome("fail", f"{sentence}.", "Use num_workers=0 in your DataLoader.", admin,
                   error=text[:500])  # fmt: skip


def export(bench: Bench) -> Outcome:
    """Export a small network, save it, load it, and compare; on the CPU, x: float32 [2, 8]."""
    torch = bench.torch
    try:
        exporter = importlib.import_module("torch.export")
    except ModuleNotFoundError:
        return outcome("warn", f"PyTorch {torch.__version__} is too old to have torch.export.")
    nn = torch.nn
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    x = torch.randn(2, 8)
    file = io.BytesIO()
    try:
        exporter.save(exporter.export(model, (x,)), file)
        file.seek(0)
        # Read from memory what was written a moment ago: nobody else's pickle.
        again = exporter.load(file).module()
    except Exception as error:  # noqa: BLE001 (whatever torch raises is the finding)
        text = f"{type(error).__name__}: {error}"
        return outcome(
            "warn", f"torch.export does not work here: {first_line(text)}.",
            "Everything else can be used; for exporting, choose another image.",
            "Use a newer PyTorch in the image; before 2.5 torch.export was a prototype.",
            error=text[:500],
        )  # fmt: skip
    if not torch.allclose(again(x), model(x), rtol=1e-4, atol=1e-5):
        return outcome("fail", "An exported network gives other numbers than the original.",
                       "Do not use torch.export here; tell your admin.",
                       "Try another image.")  # fmt: skip
    return outcome("ok", "A network can be exported, saved and loaded again.")


def several_gpus(bench: Bench) -> Outcome:
    """Let all GPUs add up numbers through NCCL, in processes of their own; see ``peers``."""
    if bench.device == "cpu":
        return outcome("ok", NO_GPU)
    count = int(bench.torch.cuda.device_count())
    if count < 2:
        return outcome("ok", "This server has one GPU, which works alone.")
    if not bench.torch.distributed.is_nccl_available():
        return outcome("warn", "This PyTorch has no NCCL, so GPUs cannot train together.", _TELL,
                       "Install a PyTorch with NCCL.")  # fmt: skip
    return judge_peers(count, *ask_peers(count, "nccl", "cuda", _PEERS_S))


def ask_peers(
    count: int, backend: str, device: str, total_s: float
) -> Tuple[List[Dict[str, Any]], child.Ended]:
    """Run ``peers`` in a process of its own, killed after ``total_s`` seconds."""
    told: List[Dict[str, Any]] = []
    job = {"count": count, "backend": backend, "device": device, "total_s": total_s}
    ended = child.run("peers", job, lambda kind, data: told.append(data), total_s=total_s)
    return told, ended


def judge_peers(count: int, told: List[Dict[str, Any]], ended: child.Ended) -> Outcome:
    """What the processes of ``peers`` found.

    Args:
        count: How many there were.
        told: One report of each that got so far: "rank" with "right" or "error".
        ended: How it ended.
    """
    first: Mapping[str, Any] = next((one for one in told if one.get("rank") == 0), {})
    direct, speed = first.get("direct"), first.get("gigabytes_per_s")
    facts: Dict[str, Any] = {
        "gpus": count, "direct": direct, "gigabytes_per_s": speed, "nccl": first.get("nccl"),
        "init_s": first.get("init_s"),
    }  # fmt: skip
    remedy = "Train on one GPU (CUDA_VISIBLE_DEVICES=0); tell your admin."
    errors = [str(one["error"]) for one in told if one.get("error")]
    if errors:
        return outcome(
            "fail", f"Your {count} GPUs cannot train together: {first_line(errors[0])}.", remedy,
            "Try it with NCCL_DEBUG=INFO; too small a /dev/shm, PCIe ACS and the IOMMU are the "
            "usual causes.", error=errors[0][:500], **facts,
        )  # fmt: skip
    if ended.late or len(told) < count:
        return outcome(
            "fail", f"Your {count} GPUs cannot train together: NCCL does not come to an end.",
            remedy, "Try it with NCCL_DEBUG=INFO, then NCCL_P2P_DISABLE=1: PCIe ACS and IOMMU "
            "are the usual causes.", printed=(ended.trouble or ended.tail)[-500:], **facts,
        )  # fmt: skip
    if not all(one.get("right") is True for one in told):
        return outcome(
            "fail", f"Your {count} GPUs get wrong numbers when they compute together.",
            "Do not train on several GPUs here; tell your admin.",
            "Try it with NCCL_P2P_DISABLE=1: with it right, switch off the IOMMU or PCIe ACS.",
            **facts,
        )  # fmt: skip
    by = "" if not isinstance(speed, (int, float)) else f", at {speed:.1f} GB/s"
    pairs = [pair for row in direct or [] for pair in row]
    how = "" if not pairs or all(pairs) else "; not all reach each other directly"
    return outcome("ok", f"Your {count} GPUs compute together{by}{how}.", **facts)


def first_line(text: str) -> str:
    """The first line with anything on it, short enough for a sentence and without its full stop."""
    found = next((line.strip() for line in text.splitlines() if line.strip()), "nothing")
    return found[:160].rstrip(".: ")


def _and(names: List[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
