"""Run a course's notebooks as a fresh student would, each in a copy of its own, with a deadline.

What runs here may hang, print without end or start processes without end: at the deadline all of it
is ended, and what is left of its output is a tail. It must NOT touch the student's own copy.
"""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterator, List, Optional, Sequence, Tuple

from pytorch_spawner.agent.config import Course, Smoke
from pytorch_spawner.agent.diagnose import find_kernel
from pytorch_spawner.agent.report import Send

MAX_LOG = 4000
MARK = "PYTORCH_SPAWNER_SMOKE"
_CHUNK = 256 * 1024
_NICE = 5
_COLOURS = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
# What ipykernel 7 says of itself, to whoever has no use for it.
_CHATTER = re.compile(r"(?m)^\[IPKernelApp\] WARNING \| Kernel is running over TCP.*\n?")
_UNSEEN = re.compile(r"[^\x20-\x7e\n\t\u00a0-\ud7ff\ue000-\ufffd]")

# Outputs go to a pipe instead of into memory: a cell may print a gigabyte.
_RUN = r"""
import os, sys
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
path = sys.argv[1]
class Client(NotebookClient):
    def process_message(self, msg, cell, cell_index):
        content = msg.get("content", {})
        if msg["msg_type"] == "stream":
            os.write(1, str(content.get("text", "")).encode("utf-8", "replace"))
            return None
        if msg["msg_type"] in ("display_data", "execute_result", "update_display_data"):
            return None
        return super().process_message(msg, cell, cell_index)
with open(path, encoding="utf-8") as file:
    notebook = nbformat.read(file, as_version=4)
count = sum(cell.cell_type == "code" for cell in notebook.cells)
where = {"metadata": {"path": os.path.dirname(os.path.abspath(path))}}
client = Client(notebook, timeout=None, startup_timeout=120, resources=where)
try:
    client.execute()
except DeadKernelError:
    sys.exit("The kernel died; a signal 9 in the container's log often means too little memory.")
except CellExecutionError as error:
    lines = str(error).strip().splitlines()
    sys.exit("\n".join(lines[-40:]))
os.write(1, ("\n%d cells ran.\n" % count).encode())
"""


@dataclass(frozen=True)
class Run:
    """How one notebook ended.

    Attributes:
        message: A sentence; "" when it ran to its end.
        log: The last it printed.
    """

    message: str
    log: str


def run_all(course: Course, smoke: Smoke, home: Path, send: Send) -> None:
    """Run every notebook of the smoke test and tell what came of it.

    Args:
        course: Whose folder is synced already.
        smoke: What to run.
        home: The home directory that holds the course.
        send: Takes the events.
    """
    began = time.monotonic()
    failed = 0
    for notebook in smoke.notebooks:
        left_s = smoke.deadline_s - (time.monotonic() - began)
        at = time.monotonic()
        if left_s <= 0:
            ended = Run(f"It did not begin: {smoke.deadline_s:g} s were over before.", "")
        else:
            ended = _run_copy(home / course.folder, notebook, left_s, smoke.deadline_s)
        failed += bool(ended.message)
        seconds = time.monotonic() - at
        send(
            "course",
            {
                "phase": "smoke",
                "course": course.name,
                "notebook": notebook,
                "level": "fail" if ended.message else "ok",
                "seconds": round(seconds, 3),
                "message": ended.message or f"It ran to its end in {seconds:.1f} s.",
                "log": ended.log,
            },
        )
    count = len(smoke.notebooks)
    tell_end(
        course, send, time.monotonic() - began,
        f"{failed} of {count} did not run to the end." if failed else
        f"All {count} ran to the end.", is_fine=not failed,
    )  # fmt: skip


def tell_end(course: Course, send: Send, seconds: float, message: str, *, is_fine: bool) -> None:
    """Tell that the smoke test is over."""
    send(
        "course",
        {
            "phase": "smoke-done",
            "course": course.name,
            "level": "ok" if is_fine else "fail",
            "seconds": round(seconds, 3),
            "message": message,
        },
    )


def _run_copy(root: Path, notebook: str, left_s: float, deadline_s: float) -> Run:
    folder = tempfile.mkdtemp(prefix="smoke-")
    try:
        copy = Path(folder, root.name)
        ignored = shutil.ignore_patterns(".git")
        shutil.copytree(root, copy, symlinks=True, ignore=ignored)
        path = copy / notebook
        if path.is_symlink() or not path.is_file():
            return Run(f"The course has no file {notebook}.", "")
        command = command_for(path)
        return run_one(command, path.parent, left_s, deadline_s)
    except OSError as error:
        return Run(f"It could not be copied or started: {error.strerror or error}.", "")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def command_for(path: Path) -> List[str]:
    """What runs a file: a notebook through nbclient, a program with the kernel's Python."""
    if path.suffix == ".py":
        _, kernel = find_kernel(os.environ, sys.prefix, sys.executable)
        return [shutil.which(kernel) or sys.executable, path.name]
    return [sys.executable, "-c", _RUN, path.name]


def run_one(command: Sequence[str], folder: Path, left_s: float, deadline_s: float) -> Run:
    """Run a command to its end or to the deadline, then end everything that it started.

    Args:
        command: What to run.
        folder: Where.
        left_s: Seconds it has.
        deadline_s: For the sentence.

    Raises:
        OSError: It could not be started.
    """
    mark = uuid.uuid4().hex
    env = {name: value for name, value in os.environ.items() if not name.endswith("_API_TOKEN")}
    env[MARK] = mark
    process = subprocess.Popen(
        list(command), cwd=folder, env=env, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    with contextlib.suppress(OSError):  # so that a bomb does not starve who has to end it
        os.setpriority(os.PRIO_PROCESS, process.pid, _NICE)
    try:
        tail = _read_until_end(process, time.monotonic() + left_s)
        status = process.poll()
    finally:
        # Most of what it started is of its group, and ends in one step.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        end_all(mark)
        process.stdout.close()
        process.wait()
    log = clean(tail)
    if status is None:
        return Run(f"It was stopped: the smoke test's {deadline_s:g} s were over.", log)
    if status < 0:
        memory = ", often because memory ran out" if status == -9 else ""
        return Run(f"It was ended by signal {-status}{memory}.", log)
    if status:
        lines = [line for line in log.splitlines() if line.strip()]
        return Run(f"It failed: {lines[-1].strip()[:300] if lines else f'status {status}'}", log)
    return Run("", log)


def _read_until_end(process: subprocess.Popen[bytes], give_up_at: float) -> bytes:
    """The last of what it prints; returns when it has ended, or at the deadline."""
    assert process.stdout is not None
    tail, is_open = b"", True
    fd = process.stdout.fileno()
    with selectors.DefaultSelector() as selector:
        selector.register(fd, selectors.EVENT_READ)
        while time.monotonic() < give_up_at:
            has_ended = process.poll() is not None
            chunk = b""
            if is_open and selector.select(0 if has_ended else 0.1):
                chunk = os.read(fd, _CHUNK)
                is_open = bool(chunk)
                tail = (tail + chunk)[-4 * MAX_LOG :]
            elif not is_open:
                time.sleep(0.05)
            if has_ended and not chunk:
                break
    return tail


def clean(tail: bytes) -> str:
    """Output without what would steer a terminal, at most ``MAX_LOG`` characters and bytes."""
    text = _COLOURS.sub("", tail.decode("utf-8", "replace")).replace("\r\n", "\n")
    text = _CHATTER.sub("", _UNSEEN.sub("", text.replace("\r", "\n")))
    while len(text.encode()) > MAX_LOG:
        text = text[max(1, (len(text.encode()) - MAX_LOG) // 4) :]
    return text.strip()


def end_all(mark: str, proc: Path = Path("/proc"), deadline_s: float = 60.0) -> None:
    """End every process that inherited a mark, whatever session it moved to.

    First all are stopped, and only then ended: a bomb that has taken every process it may have
    would fill each place that becomes free. This starts nothing itself, for the same reason.
    """
    give_up_at = time.monotonic() + deadline_s
    quiet = 0
    while quiet < 2 and time.monotonic() < give_up_at:
        stopped: List[int] = []
        count = 0
        for pid, state in marked(mark, proc):
            count += 1
            if state in "TZX":
                stopped.append(pid)
            else:
                _signal(pid, signal.SIGSTOP)
        if len(stopped) == count:
            for pid in stopped:
                _signal(pid, signal.SIGKILL)
        quiet = 0 if count else quiet + 1
        time.sleep(0.01)


def _signal(pid: int, number: int) -> None:
    """Signal a process with its whole group, in one step: no member can fork meanwhile."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        group = os.getpgid(pid)
        if group == os.getpgrp():
            os.kill(pid, number)
        else:
            os.killpg(group, number)


def marked(mark: str, proc: Path) -> Iterator[Tuple[int, str]]:
    """Processes of this user whose environment holds the mark, with their state; not this one."""
    wanted = f"{MARK}={mark}".encode()
    for folder in sorted(proc.glob("[0-9]*")):
        if folder.name != str(os.getpid()):
            with contextlib.suppress(OSError, ValueError, IndexError):
                if wanted in (folder / "environ").read_bytes().split(b"\0"):
                    facts = (folder / "stat").read_bytes().rpartition(b")")[2]
                    yield int(folder.name), facts.split()[0].decode()


def after_sync(
    course: Course, home: Optional[str], is_synced: Callable[[], bool], send: Send
) -> None:
    """Run the smoke test of a course, if it has one, or say why not."""
    if course.smoke is None:
        return
    if not is_synced():
        why = "Nothing ran, because the course's notebooks could not be copied."
        tell_end(course, send, 0.0, why, is_fine=False)
        return
    run_all(course, course.smoke, Path(home or "/"), send)
