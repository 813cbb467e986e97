"""Processes of this machine: in which container one runs, and what it is called.

Reads /proc, of process ids as NVML says them: those of the host. A process may end at any moment,
and a service in a container sees its own few processes only; both are answers, never errors.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

PROC: Final = Path("/proc")
_READ_BYTES: Final = 64 * 1024
_NAME_CHARS: Final = 64
# The first process id namespace has this inode on every kernel; source: include/linux/proc_ns.h,
# PROC_PID_INIT_INO.
_HOST_NAMESPACE: Final = "pid:[4026531836]"
# "/docker/<id>" (cgroupfs driver), "/system.slice/docker-<id>.scope" (systemd driver), each with
# any path before or below it.
_ID: Final = re.compile(r"(?:^|[/:-])([0-9a-f]{64})(?=[/.]|$)", re.MULTILINE)


def containers_of(pid: int, proc: Path = PROC) -> tuple[str, ...] | None:
    """Ids of the containers that a process is in, the outermost first.

    Args:
        pid: As the host numbers it.
        proc: Where procfs is.

    Returns:
        Full ids, 64 hexadecimal digits each; several where containers are nested. Empty for a
        process in none. None where it cannot be said: it is gone, or this service does not see the
        host's processes.
    """
    text = _read(proc / str(pid) / "cgroup")
    if not text:
        return None
    # Each hierarchy of cgroup v1 has a line, and each says the same; v2 has one line.
    found = tuple(dict.fromkeys(_ID.findall(text)))
    return found if found or _sees_host(proc) else None


def container_of(pid: int, proc: Path = PROC) -> str:
    """Id of the innermost container that a process is in; "" for none, or when it is gone."""
    return (containers_of(pid, proc) or ("",))[-1]


def process_name(pid: int, proc: Path = PROC) -> str:
    """What a process calls itself, for people; at most 64 printable characters, "" when it is gone.

    The name of its program, else what the kernel has: threads of PyTorch rename the latter. Both
    are the process's own words.
    """
    folder = proc / str(pid)
    program = _read(folder / "cmdline").split("\0", 1)[0].strip()
    # The title that a daemon gives itself may hold slashes and blanks ("sshd: ana@pts/0").
    name = program.rpartition("/")[2] if program.startswith("/") else program
    name = name or _read(folder / "comm")
    return "".join(letter for letter in name if letter.isprintable())[:_NAME_CHARS].strip()


def pid_inside(pid: int, proc: Path = PROC) -> int | None:
    """The number that a process has in its own container.

    Args:
        pid: As the host numbers it.
        proc: Where procfs is.

    Returns:
        The same number for a process in no pid namespace of its own; None when it is gone, or the
        kernel (before 4.1) does not say.

    Source: proc(5), NSpid: the numbers from the namespace of the reader down to the innermost one.
    A container inside a student's container is one further; its processes are known by the first.
    """
    for line in _read(proc / str(pid) / "status").splitlines():
        if line.startswith("NSpid:"):
            numbers = line.split()[1:3]
            return int(numbers[-1]) if numbers else None
    return None


def _sees_host(proc: Path) -> bool:
    try:
        return str((proc / "self" / "ns" / "pid").readlink()) == _HOST_NAMESPACE
    except OSError:
        return False


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_READ_BYTES).decode("utf-8", "replace")
    except OSError:  # it ended, or is hidden (hidepid)
        return ""
