"""Whether the machine has a core to spare: a class that starts at once has none."""

import os
import time
from pathlib import Path
from typing import Callable, Optional

# Costly work that nobody waits for begins at the latest so long after JupyterLab answered.
PATIENCE_S = 20.0
_LOOK_S = 0.5


def is_busy(root: Path = Path("/"), cores: Optional[int] = None) -> bool:
    """Whether more processes want to run than there are cores, on the whole host.

    Args:
        root: Where proc is; tests give a directory of their own.
        cores: Of the host; ``None`` asks.
    """
    try:
        # proc(5): "0.20 0.18 0.12 1/80 11206", of which 1 runs or wants to. It is us.
        running = int((root / "proc/loadavg").read_text().split()[3].partition("/")[0]) - 1
    except (OSError, ValueError, IndexError):
        return False
    return running >= (cores or os.cpu_count() or 1)


def wait_for_quiet(
    patience_s: float = PATIENCE_S,
    busy: Callable[[], bool] = is_busy,
    sleep: Callable[[float], object] = time.sleep,
) -> float:
    """Let others come first whose JupyterLab is still starting.

    PyTorch's checks cost seconds of a core. Low priority alone does not do: of thirty servers that
    start within a minute, twenty of them at it take most of what the others' JupyterLab needs.

    Returns:
        The seconds that were waited, at most ``patience_s``.
    """
    began = time.monotonic()
    while busy() and time.monotonic() - began < patience_s:
        sleep(min(_LOOK_S, max(0.0, began + patience_s - time.monotonic())))
    return time.monotonic() - began
