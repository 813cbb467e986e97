"""What proves that ``torch.compile`` compiled, and what its errors mean.

torch falls back to eager without an error in several cases; only its own counters tell. Source:
``torch._dynamo.utils.counters``, torch 2.1 to 2.13.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Tuple

_SHORT, _LONG = 160, 400
_OUT_OF_MEMORY = "out of memory|OutOfMemoryError"

# (words in the error, sentence, what the admin can do); the first that matches.
CAUSES: Tuple[Tuple[str, str, str], ...] = (
    (
        "InvalidCxxCompiler|No working C++ compiler",
        "This image has no C++ compiler, which torch.compile needs on a CPU",
        "Install g++ in the image.",
    ),
    (
        "Failed to find C compiler",
        "This image has no C compiler, which torch.compile needs",
        "Install gcc in the image.",
    ),
    (
        "Python.h",
        "This image lacks Python's header files, which torch.compile needs",
        "Install python3-dev, or the headers of its Python, in the image.",
    ),
    (
        "TritonMissing|Cannot find a working triton",
        "This image has no working Triton, which torch.compile needs on a GPU",
        "Install the Triton version that torch asks for.",
    ),
    (
        "GPUTooOldForTriton|too old to be supported by the triton",
        "This GPU is too old for torch.compile, though PyTorch works on it",
        "torch.compile needs compute capability 7.0 or newer.",
    ),
    (
        _OUT_OF_MEMORY,
        "The GPU's memory is full",
        "See who uses it: nvidia-smi on the host, or the lab's GPU page.",
    ),
    (
        "no kernel image is available",
        "This image's PyTorch has no code for this GPU",
        "Offer an image whose PyTorch supports it.",
    ),
    (
        "denied: 'g++'|denied: 'gcc'|denied: 'c++'|denied: 'clang",
        "This image's compiler may not be run, and torch.compile needs it",
        "Make gcc and g++ executable for everybody in the image.",
    ),
    (
        "Read-only file system|PermissionError|Permission denied|No space left|Disk quota",
        "The compile cache cannot be written",
        "Check the volume of the compile cache: owner, space, read-only.",
    ),
    (
        "Dynamo is not supported on Python|Dynamo not supported on Python",
        "This image's PyTorch cannot compile under its Python version",
        "Use a newer PyTorch or an older Python in the image.",
    ),
    ("uid not found", "The container has no user name", "Set USER in the container."),
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the GPU had no memory left."""
    text = f"{type(error).__name__}: {error}"
    return any(word in text for word in _OUT_OF_MEMORY.split("|"))


def cause(error: BaseException) -> Tuple[str, str]:
    """Why compiling or computing failed.

    Returns:
        A sentence without its full stop, and what the admin can do ("" when nothing known).
    """
    text = f"{type(error).__name__}: {error}"
    for words, sentence, remedy in CAUSES:
        if any(word in text for word in words.split("|")):
            return sentence, remedy
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"PyTorch says {type(error).__name__}: {first.strip()}"[:_SHORT].rstrip("."), ""


@dataclass(frozen=True)
class Evidence:
    """torch's counters since they were cleared.

    Attributes:
        graphs: Compiled graphs.
        frames: Python functions that torch tried to compile.
        frames_ok: Those it did compile; fewer than ``frames`` means silent eager.
        graph_breaks: Reasons why a function was split, shortened.
        fx_hit: Compiled code found in the cache; 0 before torch 2.6, which has no such cache.
        fx_miss: Compiled code that had to be made.
        reasons: Why functions were split or stayed uncompiled, in torch's own words and at length.
        fx_bypass: Compiled code that torch refuses to keep in the cache, so everybody makes it.
    """

    graphs: int
    frames: int
    frames_ok: int
    graph_breaks: Tuple[str, ...]
    fx_hit: int
    fx_miss: int
    reasons: Tuple[str, ...] = ()
    fx_bypass: int = 0

    @property
    def compiled(self) -> bool:
        """Whether everything was compiled."""
        return self.graphs > 0 and self.frames_ok == self.frames

    @property
    def from_cache(self) -> bool:
        """Whether nothing had to be compiled anew."""
        return self.fx_hit > 0 and self.fx_miss == 0 and self.fx_bypass == 0


def clear() -> None:
    """Forget compiled code in memory and set the counters to zero; the disk's cache stays."""
    import torch._dynamo
    import torch._inductor.utils
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    forget = getattr(torch._inductor.utils, "clear_caches", None)  # torch 2.8 and newer
    if forget is not None:
        forget()
    counters.clear()


def read() -> Evidence:
    """The counters now."""
    from torch._dynamo.utils import counters

    inductor = counters["inductor"]
    reasons = (*counters["graph_break"], *counters["unimplemented"])
    return Evidence(
        graphs=int(counters["stats"]["unique_graphs"]),
        frames=int(counters["frames"]["total"]),
        frames_ok=int(counters["frames"]["ok"]),
        graph_breaks=tuple(str(reason)[:_SHORT] for reason in counters["graph_break"])[:5],
        fx_hit=int(inductor["fxgraph_cache_hit"]),
        fx_miss=int(inductor["fxgraph_cache_miss"]),
        reasons=tuple(str(reason)[:_LONG] for reason in reasons)[:5],
        fx_bypass=int(inductor["fxgraph_cache_bypass"]),
    )
