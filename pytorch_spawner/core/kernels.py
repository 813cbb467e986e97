"""What the notebooks of one server hold: memory by kernel, and which one to shut down.

The container says which kernels and processes there are, the service's meter which process holds
how much of a GPU; here the two are brought together and said in a sentence. Nothing here asks
anybody. Unknown is None, never 0: a notebook that nobody could look at may hold everything.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from pytorch_spawner.errors import LabError

_KINDS: Final = ("terminal", "leftover", "lab", "other")
_STATES: Final = ("idle", "busy", "starting", "restarting", "dead")
_MOST_KERNELS: Final = 100
_MOST_OTHERS: Final = 20
_MOST_PIDS: Final = 200
_MOST_CHARS: Final = 300
_MAX_MIB: Final = 2**24
_MAX_S: Final = 10 * 366 * 86_400
_ID: Final = re.compile(r"[0-9A-Za-z-]{1,64}")
# Beyond this share the next larger batch usually does not fit any more.
_NEARLY_FULL: Final = 0.9
# A notebook that did something within so many seconds is somebody's who works.
_FORGOTTEN_S: Final = 600
# An idle kernel without a GPU that holds less is not worth naming before a larger one.
_WORTH_MIB: Final = 1024


class BadAnswer(LabError):
    """What came out of a container is no list of kernels."""

    code = "no-answer"


@dataclass(frozen=True, slots=True)
class Holder:
    """What holds memory: a kernel with its processes, or processes of no kernel.

    Attributes:
        id: Of the kernel; "" for what is none.
        path: Path of the notebook below the home; "" where none is known.
        name: Of the kernel's language, or of the largest process.
        kind: "kernel", "terminal", "leftover" (of a kernel that is gone), "lab" (the lab's own) or
            "other".
        state: "idle", "busy", "starting", "restarting", "dead"; "" where unknown.
        idle_s: Since when a kernel does nothing, in seconds; None where it does, or unknown.
        pid: Of the largest process, as its container numbers it; None for a kernel.
        pids: All processes, as their container numbers them.
        memory_mib: Memory of all of them together; None where unknown.
        gpu_mib: GPU memory of all of them, on all GPUs; None where unknown.
        uses_gpu: Whether one of them has CUDA open; None where unknown.
    """

    id: str
    path: str
    name: str
    kind: str
    state: str = ""
    idle_s: int | None = None
    pid: int | None = None
    pids: tuple[int, ...] = ()
    memory_mib: int | None = None
    gpu_mib: int | None = None
    uses_gpu: bool | None = None

    @property
    def notebook(self) -> str:
        """What people call it: the notebook's file name, else what it is."""
        file = self.path.rpartition("/")[2]
        if self.kind == "kernel":
            return file or "A kernel without a notebook"
        return self.name or "A process"

    def as_json(self) -> dict[str, Any]:
        """As the API sends it."""
        said = {
            "notebook": self.notebook,
            "path": self.path,
            "memory_mib": self.memory_mib,
            "gpu_mib": self.gpu_mib,
            "uses_gpu": self.uses_gpu,
            "processes": len(self.pids),
        }
        if self.kind == "kernel":
            return {"id": self.id, **said, "state": self.state, "idle_s": self.idle_s}
        return {"pid": self.pid, "kind": self.kind, **said}


@dataclass(frozen=True, slots=True)
class Share:
    """What a server has of one GPU.

    Attributes:
        uuid: Of the GPU.
        total_mib: The GPU's memory, or the slot's; None where unknown.
        used_mib: In use: of a whole GPU by everybody, of a slot by this server; None where unknown.
        is_slot: Whether others have slots of the same GPU.
    """

    uuid: str
    total_mib: int | None
    used_mib: int | None
    is_slot: bool

    @property
    def is_nearly_full(self) -> bool:
        """Whether it is known to be nearly full."""
        if not self.total_mib or self.used_mib is None:
            return False
        return self.used_mib >= _NEARLY_FULL * self.total_mib


@dataclass(frozen=True, slots=True)
class Found:
    """What a container said.

    Attributes:
        kernels: Of notebooks and consoles.
        others: What else is worth a line.
        gpu_mib: GPU memory by process, as the driver says inside the container; None: it was not
            asked, or does not say.
        trouble: Why the kernels are not known; "" where they are.
    """

    kernels: tuple[Holder, ...] = ()
    others: tuple[Holder, ...] = ()
    gpu_mib: Mapping[int, int] | None = None
    trouble: str = ""


def read_found(text: str) -> Found:
    """Read what the agent printed; hostile, like everything out of a container.

    Raises:
        BadAnswer: It is no such answer; a single row that is none is left out.
    """
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict) or said.get("v") != 1:
        raise BadAnswer("The server's answer about its notebooks cannot be read. Try again.")
    kernels = (_kernel(row) for row in _rows(said.get("kernels"), _MOST_KERNELS))
    others = (_other(row) for row in _rows(said.get("others"), _MOST_OTHERS))
    gpu = said.get("gpu")
    return Found(
        tuple({one.id: one for one in kernels if one is not None}.values()),
        tuple(others),
        _by_pid(gpu) if isinstance(gpu, dict) else None,
        _text(said.get("trouble")),
    )


def _rows(value: Any, most: int) -> list[dict[str, Any]]:
    rows = value[:most] if isinstance(value, list) else []
    return [row for row in rows if isinstance(row, dict)]


def _kernel(row: Mapping[str, Any]) -> Holder | None:
    kernel = row.get("id")
    if not isinstance(kernel, str) or not _ID.fullmatch(kernel):
        return None
    state = row.get("state")
    return Holder(
        id=kernel,
        path=_text(row.get("path")),
        name=_text(row.get("name")),
        kind="kernel",
        state=state if state in _STATES else "",
        idle_s=_whole(row.get("idle_s"), _MAX_S) if state == "idle" else None,
        **_held(row),
    )


def _other(row: Mapping[str, Any]) -> Holder:
    kind = row.get("kind")
    return Holder(
        id="",
        path=_text(row.get("path")),
        name=_text(row.get("name")),
        kind=kind if kind in _KINDS else "other",
        pid=_whole(row.get("pid"), 2**31),
        **_held(row),
    )


def _held(row: Mapping[str, Any]) -> dict[str, Any]:
    pids = row.get("pids")
    known = (_whole(pid, 2**31) for pid in (pids[:_MOST_PIDS] if isinstance(pids, list) else ()))
    uses = row.get("uses_gpu")
    return {
        "pids": tuple(pid for pid in known if pid is not None),
        "memory_mib": _whole(row.get("memory_mib"), _MAX_MIB),
        "uses_gpu": uses if isinstance(uses, bool) else None,
    }


def _by_pid(said: Mapping[str, Any]) -> dict[int, int]:
    found = {}
    for pid, used in list(said.items())[: 10 * _MOST_PIDS]:
        mib = _whole(used, _MAX_MIB)
        if pid.isascii() and pid.isdigit() and len(pid) < 11 and mib is not None:
            found[int(pid)] = mib
    return found


def _whole(value: Any, most: int) -> int | None:
    return value if type(value) is int and 0 <= value <= most else None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        return ""
    return "".join(letter for letter in value if letter.isprintable())[:_MOST_CHARS]


# -- whose the GPU's memory is --------------------------------------------------------------------


def with_gpu(found: Found, held: Mapping[int, int | None] | None) -> Found:
    """Say of each holder how much GPU memory it has.

    Args:
        found: What the container said.
        held: GPU memory in MiB by process, numbered as the container does, of every process of
            this server that uses a GPU; None in it where the driver does not say how much. None
            for all: nobody outside could look; then the container's own driver counts.
    """
    by_pid = found.gpu_mib if held is None else held

    def fill(holder: Holder) -> Holder:
        return replace(holder, gpu_mib=_gpu_mib(holder, by_pid))

    return replace(
        found,
        kernels=tuple(map(fill, found.kernels)),
        others=tuple(map(fill, found.others)),
    )


def _gpu_mib(holder: Holder, by_pid: Mapping[int, int | None] | None) -> int | None:
    used = [by_pid[pid] for pid in holder.pids if pid in by_pid] if by_pid else []
    if not used:
        # A driver that lists others would list these: a mere question opens CUDA, too. One that
        # lists nothing although CUDA is open does not know.
        is_none = holder.uses_gpu is False or (bool(by_pid) and bool(holder.pids))
        return 0 if is_none else None
    known = [mib for mib in used if mib is not None]
    return sum(known) if len(known) == len(used) else None


def sorted_by_weight(holders: Iterable[Holder]) -> tuple[Holder, ...]:
    """What holds most of the GPU first, then what holds most memory."""
    return tuple(sorted(holders, key=_weight, reverse=True))


def _weight(holder: Holder) -> tuple[int, bool, int]:
    return holder.gpu_mib or 0, bool(holder.uses_gpu), holder.memory_mib or 0


# -- in words -------------------------------------------------------------------------------------


def say(found: Found, shares: Sequence[Share], your: str = "your") -> str:
    """The sentence in front: is a GPU full, and which notebook would give back most.

    Args:
        found: After ``with_gpu``.
        shares: What the server has of GPUs; empty without one.
        your: "your", or "ana's" for somebody who looks at ana's.
    """
    said = [_full(share, your) for share in shares if share.is_nearly_full]
    gpu = f"{your} GPU{'s' if len(shares) > 1 else ''}"
    if found.trouble:
        return " ".join([*said, found.trouble])
    if not found.kernels:
        return " ".join([*said, "No notebook is open.", *_beside(found.others, gpu)])
    largest = _to_name(sorted_by_weight(found.kernels))
    what = _holds(largest, gpu if shares else "", f"{your} server's memory")
    said.append(f"{largest.notebook} {what}{_does(largest)}.")
    if not largest.gpu_mib:
        said += _beside(found.others, gpu)
    return " ".join(said)


def _to_name(ranked: Sequence[Holder]) -> Holder:
    """The one that would be missed least: forgotten and worth it, else whatever holds most."""
    for one in ranked:
        is_worth_it = one.uses_gpu or (one.memory_mib or 0) >= _WORTH_MIB
        if is_worth_it and one.idle_s is not None and one.idle_s >= _FORGOTTEN_S:
            return one
    return ranked[0]


def _full(share: Share, your: str) -> str:
    whose = "Your" if your == "your" else your
    what = "slot of a GPU" if share.is_slot else "GPU"
    used, total = gib(share.used_mib or 0), gib(share.total_mib or 0)
    return f"{whose} {what} is nearly full: {used} of {total} in use."


def _holds(holder: Holder, gpu: str, memory: str) -> str:
    """What it holds; ``gpu`` and ``memory`` say whose, ``gpu`` is "" without one."""
    if gpu and holder.gpu_mib:
        return f"holds {gib(holder.gpu_mib)} of {gpu}"
    if gpu and holder.uses_gpu and holder.gpu_mib is None:
        return f"uses {gpu} (how much is unknown)"
    if holder.memory_mib is None:
        return "is open (what it holds is unknown)"
    return f"holds {gib(holder.memory_mib)} of {memory}"


def _does(holder: Holder) -> str:
    if holder.state == "busy":
        return " and is computing"
    if holder.idle_s is not None and holder.idle_s >= _FORGOTTEN_S:
        return f" and has done nothing for {lasting(holder.idle_s)}"
    return ""


def _beside(others: Iterable[Holder], gpu: str) -> list[str]:
    """Of what is no notebook, whatever holds the GPU."""
    on_gpu = [one for one in sorted_by_weight(others) if one.gpu_mib and one.kind != "lab"]
    return [
        f"{one.notebook} (process {one.pid}) holds {gib(one.gpu_mib or 0)} of {gpu}."
        for one in on_gpu[:1]
    ]


def gib(mib: int) -> str:
    """Memory for people: "1.5 GiB", "11 GiB", "300 MiB"."""
    if mib < 1000:
        return f"{mib} MiB"
    value = mib / 1024
    return f"{value:.1f}".removesuffix(".0") + " GiB" if value < 10 else f"{round(value)} GiB"


def lasting(seconds: int) -> str:
    """A time for people: "40 min", "3 h", "2 days"."""
    if seconds < 7200:
        return f"{seconds // 60} min"
    return f"{seconds // 3600} h" if seconds < 2 * 86_400 else f"{seconds // 86_400} days"
