"""The agent beside a course while nothing happens: starts a process when one file changes.

It stays as long as the container lives, once for each student, so it imports next to nothing and
takes half the memory of the agent. What there is to do is done by a process that ends.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from dataclasses import asdict, dataclass, field
from typing import List, Mapping, NoReturn, Tuple

from pytorch_spawner.agent import device_watch
from pytorch_spawner.agent.launch import CONFIG_ENV, self_command

STATE_ENV = "PYTORCH_SPAWNER_COURSE_STATE"
LOOK_S = 5.0
AGAIN_S = 60.0
_TURN_S = 3600.0
_GPU_TURN_S = 300.0


@dataclass
class Seen:
    """What is remembered from turn to turn.

    Attributes:
        stamp: Of the notice: modified in nanoseconds, inode, size; zeros for none.
        serial: The notice's serial.
        failed: The latest sync could not be done.
        wants_orders: The latest question about orders had no answer.
        complaint: What was told last about a failure; "" when nothing is wrong.
        complained_at: When, Unix time in seconds.
        done_orders: Ids of orders that were carried out.
    """

    stamp: Tuple[int, int, int] = (0, 0, 0)
    serial: int = 0
    failed: bool = False
    wants_orders: bool = False
    complaint: str = ""
    complained_at: float = 0.0
    done_orders: List[str] = field(default_factory=list)

    def as_text(self) -> str:
        """For the next process; ``read`` takes it."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: str) -> Seen:
        """What ``as_text`` gave.

        Raises:
            ValueError, TypeError: It is something else.
        """
        said = json.loads(text)
        return cls(**{**said, "stamp": tuple(said["stamp"])})


def stamp_of(path: str) -> Tuple[int, int, int]:
    """What changes when a file is replaced or written."""
    try:
        found = os.stat(path)  # noqa: PTH116 (pathlib is not needed here)
    except OSError:
        return (0, 0, 0)
    return found.st_mtime_ns, found.st_ino, found.st_size


def is_due(seen: Seen, notice: str, again_at: float) -> bool:
    """Whether there is something to do."""
    waits = seen.failed or seen.wants_orders
    return stamp_of(notice) != seen.stamp or (waits and time.monotonic() >= again_at)


def become_idle(seen: Seen) -> NoReturn:
    """Replace this process by one that waits. Never returns."""
    os.environ[STATE_ENV] = seen.as_text()
    command = [*self_command(isolated=True), "--worker", "course-idle"]
    os.execv(command[0], command)  # noqa: S606 (the program itself)


def idle(environ: Mapping[str, str]) -> NoReturn:
    """Wait for publications and orders, for ever."""
    course = json.loads(environ[CONFIG_ENV])["course"]
    seen = Seen.read(environ[STATE_ENV])
    again_at = time.monotonic() + AGAIN_S
    looked_at = time.monotonic()
    while True:
        time.sleep(LOOK_S)
        if time.monotonic() - looked_at >= device_watch.pause_s(os.environ):
            tell_of_gpu()
            looked_at = time.monotonic()
        if is_due(seen, course["notice"], again_at):
            stamp = stamp_of(course["notice"])
            seen = take_turn(seen, stamp)
            again_at = time.monotonic() + AGAIN_S


def tell_of_gpu() -> None:
    """Let a process say that the GPU was lost, or came back, where that is so."""
    if not device_watch.has_changed(os.environ):
        return
    command = [*self_command(isolated=True), "--worker", "gpu-turn"]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True,
            timeout=_GPU_TURN_S,
        )  # fmt: skip
        device_watch.take_over(done.stdout.decode())
    except (OSError, subprocess.SubprocessError, ValueError):
        device_watch.remember(is_denied=True, is_delivered=False)


def take_turn(seen: Seen, stamp: Tuple[int, int, int]) -> Seen:
    """Let a process do what there is to do; when it fails, the same is tried again later."""
    command = [*self_command(isolated=True), "--worker", "course-turn"]
    try:
        done = subprocess.run(
            command, input=seen.as_text().encode(), stdout=subprocess.PIPE, check=True,
            timeout=_TURN_S,
        )  # fmt: skip
        return Seen.read(done.stdout.decode())
    except (OSError, subprocess.SubprocessError, ValueError, TypeError, KeyError):
        seen.failed, seen.stamp = True, stamp
        return seen
