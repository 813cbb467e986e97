"""The agent beside a GPU while nothing happens: does the host still let this container use it?

It stays as long as the container lives, once for each server with a GPU, so it imports next to
nothing: it opens one device file three times a minute. What there is to say is said by a process
that ends (``gpu-turn``).

Source: issue 48 of nvidia-container-toolkit; after systemd reloads, a container that was not given
its GPU by CDI has lost it, and its programs learn that from NVML's "Unknown Error" at best.
"""

from __future__ import annotations

import errno
import os
import time

from pytorch_spawner.agent.launch import self_command

TYPE_CHECKING = False  # of typing, which costs a megabyte here
if TYPE_CHECKING:
    from typing import Mapping, NoReturn, Sequence, Tuple

STATE_ENV = "PYTORCH_SPAWNER_GPU_STATE"
# Opening it wakes no GPU, as opening /dev/nvidia0 would.
NODES = ("/dev/nvidiactl",)
LOOK_S = 20.0


def denied(paths: Sequence[str] = NODES) -> Tuple[str, ...]:
    """Device files that exist, and that this container's cgroup forbids to open.

    It costs microseconds and wakes no GPU, so it can be asked again at any time. EPERM is the
    cgroup's answer; wrong owners and modes would be EACCES.
    """
    found = []
    for path in paths:
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK))
        except OSError as error:
            if error.errno == errno.EPERM:
                found.append(path)
    return tuple(found)


def has_changed(environ: Mapping[str, str]) -> bool:
    """Whether a GPU was lost, or came back, since that was told last; False without a GPU."""
    told = environ.get(STATE_ENV, "")
    return bool(told) and bool(denied()) != (told == "denied")


def remember(*, is_denied: bool) -> None:
    """Note what was told, for the processes to come."""
    os.environ[STATE_ENV] = "denied" if is_denied else "fine"


def is_there() -> bool:
    """Whether this container has device files to watch."""
    return any(map(os.path.exists, NODES))


def become_idle() -> NoReturn:
    """Replace this process by one that waits. Never returns."""
    python, *program = self_command(isolated=True)
    # Without site-packages, which nothing here needs; they cost memory in some images.
    command = [python, *(["-S"] if "-I" in program else []), *program, "--worker", "gpu-idle"]
    os.execv(command[0], command)  # noqa: S606 (the program itself)


def idle() -> NoReturn:
    """Wait until there is something to say; then become the process that says it."""
    while not has_changed(os.environ):
        time.sleep(LOOK_S)
    command = [*self_command(isolated=True), "--worker", "gpu-turn"]
    os.execv(command[0], command)  # noqa: S606 (the program itself)
