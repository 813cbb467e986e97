"""The checks there are, in the order they run. The reference page shows this table, tested."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Tuple


@dataclass(frozen=True)
class Check:
    """One diagnosis.

    Attributes:
        code: Stable; pages and help texts refer to it.
        question: What it finds out, for people.
        trouble: When it is not ``ok``, for people.
        needs_torch: Runs in the process that imports torch, after Lab answers.
    """

    code: str
    question: str
    trouble: str
    needs_torch: bool = False


CHECKS: Tuple[Check, ...] = (
    Check(
        "home-writable",
        "Can files be saved in the home directory?",
        "fail: nothing can be written; warn: it belongs to somebody else",
    ),
    Check(
        "home-space",
        "How much still fits into the home directory, in bytes and in files?",
        "fail: no space or no inodes are left; warn: less than 512 MiB or 1000 files",
    ),
    Check(
        "shm",
        "Is the shared memory, `/dev/shm`, as large as promised?",
        "fail: there is none; warn: it is smaller",
    ),
    Check(
        "hub-reachable",
        "Does JupyterHub answer from inside the container?",
        "fail: it does not; unknown: no hub started this container",
    ),
    Check(
        "driver",
        "Does the NVIDIA driver answer?",
        "fail: a GPU was asked for and no driver answers, or the host took the GPU away from the "
        "running container; unknown: nobody told the agent",
    ),
    Check(
        "gpu-visible",
        "Are exactly the GPUs visible that this server holds?",
        "fail: fewer, others, or more; warn: the GPUs are simulated",
    ),
    Check(
        "gpu-health",
        "Is the GPU cool, at full speed and without memory errors?",
        "fail: uncorrected memory errors, or a GPU that is lost; warn: hot, slowed down, a repair "
        "of its memory is due, or serious Xid errors since the host's start; unknown: the driver "
        "does not say",
    ),
    Check(
        "gpu-link",
        "Is the link between GPU and computer as wide and fast as both can?",
        "warn: fewer PCIe lanes, or under load an older PCIe generation; unknown: the driver does "
        "not say",
    ),
    Check(
        "gpu-limit",
        "How much of the GPU may this server use, and is that limit hard?",
        "warn: a slot without any limit; unknown: nobody told the agent",
    ),
    Check(
        "kernel-python",
        "Do notebooks and the terminal use the same Python?",
        "fail: the kernel's Python does not exist; warn: they differ",
    ),
    Check(
        "pip-user",
        "Are packages that `pip install` brings kept in the home directory?",
        "warn: they are lost when the server stops, not found by notebooks, or refused",
    ),
    Check(
        "torch",
        "Which PyTorch does the image have, and can it be imported?",
        "fail: it cannot be imported; warn: the image has none",
        needs_torch=True,
    ),
    Check(
        "driver-fits",
        "Is the driver new enough for the CUDA that PyTorch was built with?",
        "fail: it is not, PyTorch was built without CUDA, or it finds no GPU",
        needs_torch=True,
    ),
    Check(
        "gpu-name-memory",
        "Is it the promised GPU, with its memory, and does PyTorch support it?",
        "fail: PyTorch has no code for this GPU; warn: less memory than promised, or in use",
        needs_torch=True,
    ),
    Check(
        "tensor",
        "Does a matrix product give the right numbers?",
        "fail: it gives wrong ones, or none",
        needs_torch=True,
    ),
    Check(
        "compile",
        "Does `torch.compile` really compile?",
        "fail: it raises, or runs uncompiled; warn: a part stays uncompiled, or errors are hidden",
        needs_torch=True,
    ),
    Check(
        "convolution",
        "Does a convolution give the right numbers, with cuDNN?",
        "fail: it gives wrong ones, or none; warn: there is no cuDNN",
        needs_torch=True,
    ),
    Check(
        "precision",
        "Which of float16, bfloat16 and TF32 has the GPU, and are their products right?",
        "fail: wrong numbers, or none",
        needs_torch=True,
    ),
    Check(
        "cuda-graph",
        "Can CUDA graphs be recorded and replayed?",
        "fail: they cannot, or give other numbers",
        needs_torch=True,
    ),
    Check(
        "data-loader",
        "Can a DataLoader with two workers send batches through `/dev/shm`?",
        "fail: it raises or hangs, or the numbers arrive changed",
        needs_torch=True,
    ),
    Check(
        "export",
        "Can a network be exported with `torch.export`, saved, and loaded again?",
        "fail: it gives other numbers; warn: it cannot, or PyTorch is too old for it",
        needs_torch=True,
    ),
    Check(
        "several-gpus",
        "Do several GPUs compute together, and how fast do they exchange numbers?",
        "fail: NCCL raises, hangs or adds up wrongly; warn: PyTorch has no NCCL",
        needs_torch=True,
    ),
)
CODES: Tuple[str, ...] = tuple(check.code for check in CHECKS)
TORCH_CODES: Tuple[str, ...] = tuple(check.code for check in CHECKS if check.needs_torch)

LEVELS = ("ok", "unknown", "warn", "fail")


@dataclass(frozen=True)
class Outcome:
    """What a check found.

    Attributes:
        level: One of ``LEVELS``.
        sentence: One sentence a second-year student understands.
        remedy: What the student can do; "" when nothing.
        admin_remedy: What the admin can do; "" when nothing.
        facts: Small JSON object: the numbers behind the sentence.
    """

    level: str
    sentence: str
    remedy: str = ""
    admin_remedy: str = ""
    facts: Tuple[Tuple[str, object], ...] = ()


def outcome(
    level: str, sentence: str, remedy: str = "", admin_remedy: str = "", **facts: object
) -> Outcome:
    """An ``Outcome`` with its facts as keywords."""
    return Outcome(level, sentence, remedy, admin_remedy, tuple(facts.items()))


def done(code: str, found: Outcome, seconds: float) -> dict[str, object]:
    """The data of the event that ends a check.

    Args:
        code: One of ``CODES``.
        found: What the check found.
        seconds: How long it took.
    """
    return {
        "code": code,
        "phase": "done",
        "level": found.level,
        "sentence": found.sentence,
        "remedy": found.remedy,
        "admin_remedy": found.admin_remedy,
        "seconds": round(seconds, 3),
        "facts": dict(found.facts),
    }


def worst(levels: list[str]) -> str:
    """The worst of some levels; "ok" when there are none."""
    return max(levels, key=LEVELS.index, default="ok")
