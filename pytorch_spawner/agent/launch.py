"""The way in: start the worker in the background, then become the container's own command.

Everything before ``exec`` is on the student's waiting time, so this module imports next to nothing
and parses nothing; the worker does. It must NOT raise before the command runs.
"""

from __future__ import annotations

import os
import signal
import sys
import time

CONFIG_ENV = "PYTORCH_SPAWNER_AGENT"
URL_ENV = "PYTORCH_SPAWNER_EVENTS_URL"
FIRST_ENV = "PYTORCH_SPAWNER_BRINGS_FIRST"

# What a shell answers, which is what people and tools know: not executable, not found.
EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127
EXIT_USAGE = 2

# CPython ignores these in every process of its own, and what is ignored stays ignored across exec.
# Source: subprocess, "restore_signals", Python 3.9 to 3.13.
_IGNORED_BY_PYTHON = ("SIGPIPE", "SIGXFZ", "SIGXFSZ")

# The worker begins at the latest so long after the container: a JupyterLab that does not come up
# is what the checks may explain. On a machine that has a core to spare it does not wait so long.
_PATIENCE_S = 8.0
_IDLE_PATIENCE_S = 1.2
# From the open port to the first answer.
_SETTLE_S = 0.25
_LOOK_S = 0.05
# For a core to be free, once JupyterLab is up: its student may look at the page already.
_QUIET_S = 2.0

_USAGE = """usage: python3 agent.pyz -- COMMAND [ARGUMENT...]  run COMMAND and the checks
       python3 agent.pyz --report [--json]        run the checks and print them
       python3 agent.pyz --kernels                print what notebooks and terminals hold
       python3 agent.pyz --build                  compile a suite, as the configuration says
       python3 agent.pyz --seal DIRECTORY cpu|gpu make what was compiled a read-only cache
"""


def main(argv: list[str]) -> int:
    """Do what the arguments say; with ``--`` it does not return unless the command cannot run.

    Args:
        argv: Arguments without the program's own name.

    Returns:
        The exit status.
    """
    if argv[:1] == ["--"] and len(argv) > 1:
        start_worker()
        from pytorch_spawner.agent import full_home

        full_home.move_jupyter(os.environ)
        return become(argv[1:])
    if argv == ["--worker", "course-idle"]:
        from pytorch_spawner.agent import course_idle

        return course_idle.idle(os.environ)
    if argv == ["--worker", "gpu-idle"]:
        from pytorch_spawner.agent import device_watch

        return device_watch.idle()
    if argv[:1] == ["--worker"] and len(argv) > 1:
        from pytorch_spawner.agent import worker

        return worker.main(argv[1])
    if argv[:1] == ["--build"]:
        from pytorch_spawner.agent import worker

        return worker.build()
    if argv[:1] == ["--seal"] and len(argv) == 3:
        from pytorch_spawner.agent import seed

        return seed.main(argv[1:])
    if argv[:1] == ["--kernels"]:
        from pytorch_spawner.agent import kernels

        return kernels.main(argv[1:])
    if argv[:1] == ["--report"]:
        from pytorch_spawner.agent import terminal

        return terminal.main(as_json="--json" in argv[1:])
    sys.stderr.write(_USAGE)
    return EXIT_USAGE


def self_command(*, isolated: bool = False) -> list[str]:
    """How to start this program again, as the beginning of a command.

    Args:
        isolated: Ignore ``PYTHON*`` variables and the user's own packages: whatever a student
            puts there cannot break the agent. Processes that import torch are not isolated, so
            that they import what a kernel would.
    """
    python = sys.executable or "/proc/self/exe"
    program = os.path.abspath(sys.argv[0])  # noqa: PTH100 (pathlib costs 5 ms here)
    if program.endswith("__main__.py"):
        return [python, "-m", "pytorch_spawner.agent"]
    return [python, *(["-I"] if isolated else []), program]


def start_worker() -> None:
    """Start the background worker, unless the environment does not ask for one.

    The worker is a grandchild in a session of its own: PID 1 adopts and reaps it, and a signal to
    the command's process group does not reach it.
    """
    if not (os.environ.get(CONFIG_ENV) or os.environ.get(URL_ENV)):
        return
    try:
        child = os.fork()
    except OSError as error:  # the pids limit, or no memory: the command may still fit
        sys.stderr.write(f"pytorch-spawner: no checks, because {error.strerror}.\n")
        return
    if child == 0:
        _detach()
    while True:
        try:
            os.waitpid(child, 0)
            return
        except InterruptedError:
            continue
        except OSError:
            return


def _detach() -> None:
    """In the child: become the worker in a new session. Never returns."""
    try:
        os.setsid()
        if os.fork() == 0:
            null = os.open(os.devnull, os.O_RDWR)
            for fd in (0, 1, 2):
                os.dup2(null, fd)
            os.closerange(3, 256)
            if not os.environ.get(FIRST_ENV):
                wait_for_turn()
            command = [*self_command(isolated=True), "--worker", "agent"]
            os.execv(command[0], command)  # noqa: S606 (the program itself)
    finally:
        os._exit(0)


def wait_for_turn(root: str = "/", patience_s: float = _PATIENCE_S) -> None:
    """Wait, at nearly no cost, until JupyterLab has opened its port and a core is free.

    The worker's own start and the cheap checks take a quarter of a second of a core. Within a class
    that starts at once, low priority would not help: each container is given its share of the
    machine, whatever the priorities in it are. Where there is something to bring before JupyterLab
    opens (``FIRST_ENV``: a course's notebooks, a warm cache), the worker starts at once, and waits
    before the checks. Without JupyterHub's variables nothing waits.

    Args:
        root: Where proc is; tests give a directory of their own.
        patience_s: Longest wait.
    """
    from pytorch_spawner.agent import own_server
    from pytorch_spawner.agent.machine import is_busy, wait_for_quiet

    if not own_server.is_told(os.environ):
        return
    port = own_server.address(os.environ).port
    began = time.monotonic()
    while port not in own_server.listening(f"{root}proc"):
        waited_s = time.monotonic() - began
        if waited_s > patience_s or (waited_s > _IDLE_PATIENCE_S and not is_busy()):
            break
        time.sleep(_LOOK_S)
    else:
        time.sleep(_SETTLE_S)
    wait_for_quiet(min(_QUIET_S, max(0.0, patience_s - (time.monotonic() - began))))


def become(command: list[str]) -> int:
    """Replace this process by a command, so that signals and the exit status are the command's.

    Args:
        command: The program, looked up on PATH, and its arguments; length >= 1.

    Returns:
        An exit status, only when the command could not be started.
    """
    for name in _IGNORED_BY_PYTHON:
        number = getattr(signal, name, None)
        if number is not None:
            signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(command[0], command)  # noqa: S606 (this is what the program is for)
    except FileNotFoundError:
        sys.stderr.write(
            f"pytorch-spawner: the container's command {command[0]!r} was not found in this image; "
            "name one that the image has.\n"
        )
        return EXIT_NOT_FOUND
    except (OSError, ValueError) as error:
        sys.stderr.write(
            f"pytorch-spawner: the container's command {command[0]!r} cannot be started: {error}.\n"
        )
        return EXIT_NOT_EXECUTABLE
