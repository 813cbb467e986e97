"""Points of a start and a stop at which a test may do harm; off by default, for tests only.

The variable PYTORCH_SPAWNER_FAILPOINT says what happens, and where:

- ``<point>``: this process ends with SIGKILL, as in a power cut.
- ``<point>=<shell command>``: the command runs, once in this process, and then the start goes on.
- ``@<file>``: the file's first line says one of these and is read at every point, so one hub serves
  many cases.
"""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

VARIABLE = "PYTORCH_SPAWNER_FAILPOINT"
POINTS = (
    "start-written",
    "ticket-written",
    "lease-taken",
    "plan-made",
    "home-ready",
    "container-created",
    "files-copied",
    "container-started",
    "lab-answers",
    "server-runs",
    "stop-begun",
    "container-stopped",
    "container-removed",
    "lease-released",
)
_COMMAND_S = 30
_done: set[str] = set()


def reach(point: str) -> None:
    """Do what the environment says for this point; nothing if it names another one, or none."""
    said = os.environ.get(VARIABLE)
    if not said:
        return
    if said.startswith("@"):
        file = Path(said[1:])
        said = (file.read_text().splitlines() or [""])[0] if file.exists() else ""
    name, _, command = said.partition("=")
    if name != point:
        return
    if not command:
        os.kill(os.getpid(), signal.SIGKILL)
    elif said not in _done:
        _done.add(said)
        subprocess.run(  # noqa: S602  the test that set the variable wrote the command
            command,
            shell=True,
            check=False,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            timeout=_COMMAND_S,
        )
