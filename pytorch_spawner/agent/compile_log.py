"""What torch says while it compiles, bounded, for the page's compile log.

Everything in it is meant for a person who asks "why was this not compiled, why is it slow": reasons
of graph breaks, recompilations, warnings, a compiler's own words. It must NOT change what decides
the cache's keys; torch's log settings are no part of them.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections import deque
from typing import Any, Deque, Dict, Iterator, List, Tuple

from pytorch_spawner.agent import evidence

MAX_LINES = 24
MAX_LINE = 240
MAX_ERROR = 4000
# What torch._logging.set_logs may know (2.1 to 2.13), of use to who reads it.
_WANTED = ("graph_breaks", "recompiles", "perf_hints")


class Listener(logging.Handler):
    """Keeps the last lines that torch's loggers and Python's warnings print.

    Attributes:
        recompiles: How often torch compiled a function anew for other inputs.
    """

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self._lines: Deque[str] = deque(maxlen=MAX_LINES)
        self.recompiles = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record; what cannot be put into words is left out."""
        try:
            text = record.getMessage()
        except Exception:  # noqa: BLE001 (whatever a message's own __str__ raises)
            return
        self.recompiles += text.startswith("Recompiling function")
        # Dynamo repeats each graph break with the whole stack; its reason is among the counters.
        if "__graph_breaks" not in record.name:
            level = "" if record.levelno < logging.INFO else f"{record.levelname.lower()}: "
            rows = [line.rstrip()[:MAX_LINE] for line in text.splitlines() if line.strip()][:12]
            said = [level * (not place) + row for place, row in enumerate(rows)]
            if [*self._lines][-len(said) :] != said:
                self._lines.extend(said)

    def take(self) -> Tuple[List[str], int]:
        """The lines since the last time, and how many recompilations; both begin anew."""
        lines, recompiles = [*self._lines], self.recompiles
        self._lines.clear()
        self.recompiles = 0
        return lines, recompiles


@contextlib.contextmanager
def listening(torch: Any) -> Iterator[Listener]:
    """Listen to what torch says about compiling; its own settings by TORCH_LOGS stay in force."""
    listener = Listener()
    set_logs = getattr(getattr(torch, "_logging", None), "set_logs", None)
    if set_logs is not None:
        with contextlib.suppress(Exception):
            known = inspect.signature(set_logs).parameters
            set_logs(**{name: True for name in _WANTED if name in known})
    logging.captureWarnings(True)
    loggers = [logging.getLogger(name) for name in ("py.warnings", *_of_torch())]
    for logger in loggers:
        logger.addHandler(listener)
    try:
        yield listener
    finally:
        for logger in loggers:
            logger.removeHandler(listener)
        logging.captureWarnings(False)


def _of_torch() -> List[str]:
    """The loggers of torch at which a record ends: each of them passes nothing on."""
    return [
        name
        for name, logger in [*logging.root.manager.loggerDict.items()]
        if name.partition(".")[0] == "torch"
        and isinstance(logger, logging.Logger)
        and not logger.propagate
        and logger.handlers
    ]


def of_success(
    first: evidence.Evidence, second: evidence.Evidence, said: Tuple[List[str], int]
) -> Dict[str, Any]:
    """The log of a network that ran.

    Args:
        first: Counters of the first compiled step.
        second: Counters of the second one, from the cache on disk.
        said: What ``Listener.take`` gave.

    Returns:
        The counters, "reasons" of graph breaks and of what stayed uncompiled, "recompiles", and
        "lines".
    """
    lines, recompiles = said
    return {
        "first": counts(first),
        "second": counts(second),
        "reasons": list(first.reasons),
        "recompiles": recompiles,
        "lines": lines,
    }


def counts(found: evidence.Evidence) -> Dict[str, Any]:
    """Numbers only, as an event has them."""
    return {
        "graphs": found.graphs,
        "frames": found.frames,
        "frames_ok": found.frames_ok,
        "graph_breaks": len(found.graph_breaks),
        "fx_hit": found.fx_hit,
        "fx_miss": found.fx_miss,
    }


def of_failure(error: BaseException, said: Tuple[List[str], int]) -> Dict[str, Any]:
    """The log of a network that did not compile: the error, with what the compiler printed."""
    lines, recompiles = said
    return {"error": ends(f"{type(error).__name__}: {error}"), "recompiles": recompiles,
            "lines": lines}  # fmt: skip


def ends(text: str, longest: int = MAX_ERROR) -> str:
    """A long text's beginning and end: what was done, and what came of it."""
    text = text.strip()
    if len(text) <= longest:
        return text
    head = longest // 4
    return f"{text[:head]}\n…\n{text[head + 3 - longest :]}"
