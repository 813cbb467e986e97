"""Whether the machine has a core to spare: a class that starts at once has none."""

from __future__ import annotations

import os
from pathlib import Path


def is_busy(root: Path = Path("/"), cores: int | None = None) -> bool:
    """Whether more processes want to run than there are cores, on the whole host.

    A standby costs seconds of a core. While others are still waiting for their JupyterLab those
    seconds are theirs.

    Args:
        root: Where proc is; tests give a directory of their own.
        cores: Of the host; None asks.
    """
    try:
        # proc(5): "0.20 0.18 0.12 1/80 11206", of which 1 runs or wants to. It is us.
        running = int((root / "proc/loadavg").read_text().split()[3].partition("/")[0]) - 1
    except (OSError, ValueError, IndexError):
        return False
    return running >= (cores or os.cpu_count() or 1)
