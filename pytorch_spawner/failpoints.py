"""Points at which a test may end this process as a power cut would; off by default."""

from __future__ import annotations

import os
import signal

VARIABLE = "PYTORCH_SPAWNER_FAILPOINT"
POINTS = (
    "start-written",
    "lease-taken",
    "plan-made",
    "container-created",
    "files-copied",
    "container-started",
    "lab-answers",
    "stop-begun",
    "container-removed",
    "lease-released",
)


def reach(point: str) -> None:
    """End this process with SIGKILL if the environment names this point; else do nothing."""
    if os.environ.get(VARIABLE) == point:
        os.kill(os.getpid(), signal.SIGKILL)
