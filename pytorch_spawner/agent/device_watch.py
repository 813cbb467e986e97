"""The agent beside a GPU while nothing happens: does the host still let this container use it?

It stays as long as the container lives, once for each server with a GPU, so it imports next to
nothing: it opens one device file three times a minute. What there is to say is said by a process
that ends (``gpu-turn``). It remembers what the service has confirmed, so a GPU that is lost while
the service is away is told when the service is back.

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
# Between tries to tell a service that does not answer; twice as long after each, up to the longest.
# A try asks the driver, which costs a third of a second of a core.
AGAIN_S = 60
LONGEST_S = 300


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
    """Whether there is something to tell; False without a GPU.

    A GPU was lost, or came back, since that was told last; or nobody knows what the service knows.
    """
    told = environ.get(STATE_ENV, "")
    return bool(told) and told != _word(is_denied=bool(denied()))


def pause_s(environ: Mapping[str, str]) -> float:
    """How long to wait until the next look, or the next try to tell, in seconds."""
    told = environ.get(STATE_ENV, "")
    return float(told) if told.isdecimal() else LOOK_S


def remember(*, is_denied: bool, is_delivered: bool) -> None:
    """Note what the service was told, for the processes to come.

    Args:
        is_denied: What was told.
        is_delivered: The service confirmed all of it. If it did not, it may know the old, the new,
            or half of it; so the seconds until the next try are noted, and then whatever is so is
            told.
    """
    told = os.environ.get(STATE_ENV, "")
    if is_delivered:
        state = _word(is_denied=is_denied)
    else:
        state = str(min(2 * int(told), LONGEST_S) if told.isdecimal() else AGAIN_S)
    os.environ[STATE_ENV] = state


def take_over(state: str) -> None:
    """Note what another process remembered.

    Raises:
        ValueError: It is nothing that ``remember`` notes.
    """
    if not state.isdecimal() and state not in (_word(is_denied=True), _word(is_denied=False)):
        raise ValueError("this is no state of a GPU")
    os.environ[STATE_ENV] = state


def _word(*, is_denied: bool) -> str:
    return "denied" if is_denied else "fine"


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
    while True:
        time.sleep(pause_s(os.environ))
        if has_changed(os.environ):
            break
    command = [*self_command(isolated=True), "--worker", "gpu-turn"]
    os.execv(command[0], command)  # noqa: S606 (the program itself)
