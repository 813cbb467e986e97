"""A worker process and its supervision: deadlines, bounded output, results over a pipe of its own.

What such a process imports is the student's: it may hang, die, or print without end. Its results
come as JSON lines on a dedicated pipe, so that nothing it prints can be taken for one.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import selectors
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any, Callable, Dict, Mapping, Optional, Tuple

from pytorch_spawner.agent.launch import EXIT_NOT_EXECUTABLE, self_command
from pytorch_spawner.agent.report import Send

MAX_LINE = 64 * 1024
MAX_LINES = 4000
MAX_TAIL = 2000
_CHUNK = 256 * 1024
_TICK_S = 0.2


@dataclass(frozen=True)
class Ended:
    """How a worker process ended.

    Attributes:
        status: Its exit status, negative for a signal; ``None`` when it had to be killed.
        tail: The last it printed, for a sentence about the cause.
        trouble: Why it could not be started; "" when it was.
    """

    status: Optional[int]
    tail: str
    trouble: str = ""

    @property
    def late(self) -> bool:
        """Whether it was killed at a deadline."""
        return self.status is None


class _Lines:
    """Complete lines out of chunks; too long ones are left out."""

    def __init__(self, receive: Callable[[Dict[str, Any]], None]) -> None:
        self._receive = receive
        self._rest = b""
        self._left = MAX_LINES

    def feed(self, chunk: bytes) -> None:
        *lines, rest = (self._rest + chunk).split(b"\n")
        self._rest = rest[: MAX_LINE + 1]
        for line in lines:
            if self._left > 0 and len(line) <= MAX_LINE:
                self._left -= 1
                self._parse(line)

    def _parse(self, line: bytes) -> None:
        try:
            said = json.loads(line)
        except (ValueError, RecursionError):
            return
        if isinstance(said, dict) and isinstance(said.get("data"), dict):
            self._receive(said)


def run(
    role: str,
    job: Mapping[str, Any],
    receive: Callable[[str, Dict[str, Any]], None],
    *,
    idle_s: Callable[[], float] = lambda: math.inf,
    total_s: float = math.inf,
) -> Ended:
    """Run a worker process to its end or to a deadline, then kill what is left of its group.

    Args:
        role: Key of ``worker.ROLES``.
        job: JSON object it reads from its standard input; at most 60 KiB.
        receive: Called with (kind, data) for every event it reports.
        idle_s: Asked for the longest silence, in seconds, that is fine at the moment.
        total_s: Longest life.
    """
    reading, writing = os.pipe()
    try:
        process = subprocess.Popen(
            [*self_command(), "--worker", role],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(writing,),
            start_new_session=True,
        )
    except OSError as error:  # the pids limit, or no memory
        os.close(reading)
        return Ended(EXIT_NOT_EXECUTABLE, "", f"No process could be started: {error.strerror}")
    finally:
        os.close(writing)
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(BrokenPipeError), process.stdin:
        process.stdin.write(json.dumps({**job, "fd": writing}).encode())
    with os.fdopen(reading, "rb", buffering=0) as results, process.stdout:
        in_time, tail = _follow(process, results.fileno(), receive, idle_s, total_s)
    status = _finish(process)
    return Ended(status if in_time else None, tail.decode(errors="replace").strip())


def _follow(
    process: subprocess.Popen[bytes],
    results: int,
    receive: Callable[[str, Dict[str, Any]], None],
    idle_s: Callable[[], float],
    total_s: float,
) -> Tuple[bool, bytes]:
    """Read both pipes until the results end, the process does, or a deadline passes."""
    assert process.stdout is not None
    began = heard = time.monotonic()

    def hear(said: Dict[str, Any]) -> None:
        nonlocal heard
        heard = time.monotonic()
        receive(str(said.get("kind")), said["data"])

    lines, tail = _Lines(hear), b""
    with selectors.DefaultSelector() as selector:
        selector.register(results, selectors.EVENT_READ)
        selector.register(process.stdout.fileno(), selectors.EVENT_READ)
        while True:
            gone = _has_exited(process)
            ready = selector.select(0 if gone else _TICK_S)
            for key, _ in ready:
                chunk = os.read(key.fd, _CHUNK)
                if key.fd == results:
                    lines.feed(chunk)
                else:
                    tail = (tail + chunk)[-MAX_TAIL:]
                if not chunk:
                    selector.unregister(key.fd)
            now = time.monotonic()
            if (gone and not ready) or not selector.get_map():
                return True, tail
            if now - heard > idle_s() or now - began > total_s:
                return False, tail


def _has_exited(process: subprocess.Popen[bytes]) -> bool:
    """Whether it has, without reaping it: its group must stay ours until it is killed."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _finish(process: subprocess.Popen[bytes]) -> Optional[int]:
    deadline = time.monotonic() + 1.0
    while not _has_exited(process) and time.monotonic() < deadline:
        time.sleep(0.01)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    try:
        return process.wait(5.0)
    except subprocess.TimeoutExpired:  # stuck inside a driver: nobody can help, nobody waits
        return None


def begin() -> Tuple[Dict[str, Any], Send]:
    """In the worker process: read the job, and get the function that reports events."""
    job: Dict[str, Any] = json.loads(sys.stdin.buffer.read())
    fd = int(job.pop("fd"))
    os.set_inheritable(fd, False)

    def emit(kind: str, data: Mapping[str, Any]) -> None:
        try:
            said = json.dumps({"kind": kind, "data": dict(data)}, default=str)
            os.write(fd, said.encode() + b"\n")
        except OSError:  # the agent is gone: nobody wants the rest
            os._exit(1)

    return job, emit
