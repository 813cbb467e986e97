"""Processes of this container: whose child each is, what it holds, which kernel is which process.

Reads /proc alone, so it works in any image. Processes come and go while it reads; what is gone, or
belongs to somebody else, is left out or unknown (``None``), never an error and never 0.
"""

from __future__ import annotations

import json
import os
import re
from typing import Any, Dict, FrozenSet, Iterable, List, Mapping, NamedTuple, Optional, Set

from pytorch_spawner.agent import own_server, plain_files

PROC = "/proc"
MOST_PROCESSES = 2000
_CMDLINE_BYTES = 8192
_ENVIRON_BYTES = 128 * 1024
_CONNECTION_BYTES = 64 * 1024
_PORTS = ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port")
_CONNECTION_FILE = re.compile(r"kernel-([0-9A-Za-z-]{1,64})\.json$")
_STANDBY = "pytorch_spawner_standby.kernel"
# CUDA opens it in every process that computes; whoever only asks the driver (NVML) does not.
_GPU_DEVICE = "/dev/nvidia-uvm"


class Process(NamedTuple):
    """One process.

    Attributes:
        pid: As this container numbers it.
        parent: 0 for one that came in from outside, like whoever reads this.
        has_terminal: Whether it runs in a terminal.
        words: Its command line.
    """

    pid: int
    parent: int
    has_terminal: bool
    words: List[str]

    @property
    def name(self) -> str:
        """For people: the program, and of an interpreter what it runs."""
        words = [word.rpartition("/")[2] for word in self.words[:3] if word]
        if len(words) > 1 and words[0].startswith("python") and not words[1].startswith("-"):
            return " ".join(words[:2])
        return " ".join(words) if "-m" in words[1:2] else (words[0] if words else "")

    @property
    def was_standby(self) -> bool:
        """Whether it was started as a standby; it may be a kernel by now, or forked from one."""
        return _STANDBY in self.words

    @property
    def was_kernel(self) -> bool:
        """Whether it was started as a kernel or as a standby, or forked from one."""
        return self.was_standby or any(map(_CONNECTION_FILE.search, self.words[1:]))


def read_all(proc: str = PROC) -> Dict[int, Process]:
    """Every process by pid; at most ``MOST_PROCESSES``."""
    pids = sorted(int(name) for name in os.listdir(proc) if name.isdigit())  # noqa: PTH208
    found = (_read(proc, pid) for pid in pids[:MOST_PROCESSES])
    return {process.pid: process for process in found if process is not None}


def _read(proc: str, pid: int) -> Optional[Process]:
    stat = _text(f"{proc}/{pid}/stat", 4096)
    # The name may hold blanks and parentheses; what follows the last one does not (proc(5)).
    fields = stat.rpartition(")")[2].split()
    if len(fields) < 5 or fields[0] in "ZX":
        return None
    words = _text(f"{proc}/{pid}/cmdline", _CMDLINE_BYTES).split("\0")
    name = stat.partition("(")[2].rpartition(")")[0]
    return Process(pid, int(fields[1]), fields[4] != "0", words if words[0] else [name])


def tree(processes: Mapping[int, Process], root: int) -> FrozenSet[int]:
    """A process and all that descend from it."""
    children: Dict[int, List[int]] = {}
    for process in processes.values():
        children.setdefault(process.parent, []).append(process.pid)
    found: Set[int] = set()
    left = [root]
    while left:
        pid = left.pop()
        if pid not in found:
            found.add(pid)
            left += children.get(pid, [])
    return frozenset(found)


# -- what one holds -------------------------------------------------------------------------------


def memory_mib(pids: Iterable[int], proc: str = PROC) -> Optional[int]:
    """Memory of some processes, in MiB; ``None`` where it can be read of none of them.

    What several processes share counts once (PSS); where the kernel does not say that, all that is
    resident counts.
    """
    known = [kib for kib in (_memory_kib(proc, pid) for pid in pids) if kib is not None]
    return sum(known) // 1024 if known else None


def _memory_kib(proc: str, pid: int) -> Optional[int]:
    for path, key in (("smaps_rollup", "Pss:"), ("status", "VmRSS:")):
        for line in _text(f"{proc}/{pid}/{path}", 16384).splitlines():
            if line.startswith(key):
                return int(line.split()[1])
    return None


def uses_gpu(pids: Iterable[int], proc: str = PROC) -> Optional[bool]:
    """Whether any of some processes has CUDA open; ``None`` where none can be looked at."""
    answers = [_has_gpu(proc, pid) for pid in pids]
    if True in answers:
        return True
    return False if False in answers else None


def _has_gpu(proc: str, pid: int) -> Optional[bool]:
    targets = _open_files(proc, pid)
    return None if targets is None else _GPU_DEVICE in targets


def environment(pid: int, proc: str = PROC) -> Dict[str, str]:
    """The variables that a process was started with; empty where they cannot be read."""
    entries = _text(f"{proc}/{pid}/environ", _ENVIRON_BYTES).split("\0")
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)


def origin(pid: int, proc: str = PROC) -> str:
    """The notebook whose kernel a process descends from, as its environment says; "" for none.

    Source: jupyter_server, services/sessions/sessionmanager.py: JPY_SESSION_NAME is the path of
    the session that a kernel is started for.
    """
    return environment(pid, proc).get("JPY_SESSION_NAME", "")


# -- which process a kernel is --------------------------------------------------------------------


def kernel_pids(
    wanted: Iterable[str], processes: Mapping[int, Process], folders: Iterable[str],
    proc: str = PROC,
) -> Dict[str, int]:  # fmt: skip
    """The process of each kernel.

    A command line names its connection file. A kernel that was started before it was asked for (a
    standby) has another one, but it listens at the ports that its connection file names.

    Args:
        wanted: Ids of kernels.
        processes: Of this container.
        folders: Where connection files may lie.
        proc: Where procfs is.

    Returns:
        By id; a kernel whose process was not found is missing.
    """
    found: Dict[str, int] = {}
    places = dict.fromkeys(folders)
    for process in processes.values():
        for word in process.words[1:]:
            match = _CONNECTION_FILE.search(word)
            if match:
                found.setdefault(match[1], process.pid)
                places[os.path.dirname(word)] = None  # noqa: PTH120 (pathlib costs 5 ms here)
    ports = {
        kernel: _ports(kernel, places) for kernel in dict.fromkeys(wanted) if kernel not in found
    }
    missing = {port for several in ports.values() for port in several}
    owners = listeners(missing, processes, proc) if missing else {}
    for kernel, several in ports.items():
        pid = next((owners[port] for port in several if port in owners), None)
        if pid is not None:
            found[kernel] = pid
    return {kernel: found[kernel] for kernel in wanted if kernel in found}


def _ports(kernel: str, folders: Iterable[str]) -> List[int]:
    if not _CONNECTION_FILE.match(f"kernel-{kernel}.json"):
        return []
    for folder in folders:
        try:
            path = f"{folder}/kernel-{kernel}.json"
            said: Any = json.loads(plain_files.read(path, _CONNECTION_BYTES))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(said, dict) and said.get("transport", "tcp") == "tcp":
            return [said[name] for name in _PORTS if isinstance(said.get(name), int)]
    return []


def listeners(
    ports: Iterable[int], processes: Mapping[int, Process], proc: str = PROC
) -> Dict[int, int]:
    """The process that listens at each of some TCP ports; a port where none was found is missing.

    Of several that share a socket the oldest counts: the others inherited it.
    """
    sockets = own_server.listening(proc)
    inodes = {f"socket:[{inode}]": port for port in set(ports) for inode in sockets.get(port, ())}
    found: Dict[int, int] = {}
    for pid in sorted(processes) if inodes else ():
        for target in _open_files(proc, pid) or ():
            if target in inodes:
                found.setdefault(inodes[target], pid)
    return found


def _open_files(proc: str, pid: int) -> Optional[List[str]]:
    folder = f"{proc}/{pid}/fd"
    try:
        names = os.listdir(folder)  # noqa: PTH208 (pathlib costs 5 ms here)
    except OSError:
        return None
    targets = []
    for name in names:
        try:
            targets.append(os.readlink(f"{folder}/{name}"))  # noqa: PTH115 (pathlib costs 5 ms)
        except OSError:
            continue
    return targets


def _text(path: str, limit: int) -> str:
    try:
        with open(path, "rb") as file:  # noqa: PTH123 (pathlib costs 5 ms here)
            return file.read(limit).decode("utf-8", "replace")
    except OSError:
        return ""
