"""Rows of a benchmark: collected, printed, and written to ``bench/results/<name>.json``.

The file's shape is fixed, so that figures of two versions can be laid side by side::

    {"name", "machine", "at", "unit",
     "rows": [{"what", "n", "median", "min", "max"}], "ratios": {"ours/stock": 0.29}}

A row may also hold ``p99``, and with ``goal`` (the most that is wanted of its p99, or else of its
largest) ``met``.
"""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of figures, all in the benchmark's unit.

    Attributes:
        what: What was measured, and of whom.
        n: How many samples.
        p99: The 99th percentile; None where it was not asked for.
        goal: The most that is wanted of the p99, or of the largest where there is no p99.
    """

    what: str
    n: int
    median: float
    min: float
    max: float
    p99: float | None = None
    goal: float | None = None

    @property
    def is_met(self) -> bool | None:
        """Whether the goal is met; None without one."""
        if self.goal is None:
            return None
        return (self.max if self.p99 is None else self.p99) <= self.goal

    def as_json(self) -> dict[str, Any]:
        """The row as it is written, with the keys that apply."""
        told: dict[str, Any] = {
            "what": self.what,
            "n": self.n,
            "median": rounded(self.median),
            "min": rounded(self.min),
            "max": rounded(self.max),
        }
        if self.p99 is not None:
            told["p99"] = rounded(self.p99)
        if self.goal is not None:
            told |= {"goal": self.goal, "met": self.is_met}
        return told


@dataclass(slots=True)
class Bench:
    """What one benchmark found."""

    name: str
    unit: str = "ms"
    rows: list[Row] = field(default_factory=list)
    ratios: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(
        self,
        what: str,
        samples: Iterable[float],
        *,
        with_p99: bool = False,
        goal: float | None = None,
    ) -> Row:
        """Add a row of samples (at least one) in the benchmark's unit."""
        values = sorted(samples)
        if not values:
            raise ValueError(f"no samples of {what}")
        row = Row(
            what=what,
            n=len(values),
            median=statistics.median(values),
            min=values[0],
            max=values[-1],
            p99=percentile(values, 99) if with_p99 else None,
            goal=goal,
        )
        self.rows.append(row)
        return row

    def as_json(self) -> dict[str, Any]:
        """The results in the fixed shape."""
        told: dict[str, Any] = {
            "name": self.name,
            "machine": machine(),
            "at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "unit": self.unit,
            "rows": [row.as_json() for row in self.rows],
            "ratios": {what: rounded(ratio) for what, ratio in self.ratios.items()},
        }
        return {**told, "notes": self.notes} if self.notes else told

    def write(self, folder: Path | None = None) -> Path:
        """Write ``<name>.json`` in one step, so that a reader never sees half of it."""
        folder = folder or RESULTS
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.json"
        draft = path.with_suffix(".json.new")
        draft.write_text(json.dumps(self.as_json(), indent=1) + "\n")
        draft.replace(path)
        return path

    def table(self) -> str:
        """The figures for a person, one line each."""
        wide = max([len(row.what) for row in self.rows] + [len("what")])
        lines = [
            f"{self.name} [{self.unit}]",
            f"  {'what':<{wide}} {'n':>6} {'median':>10} {'min':>10} {'max':>10} {'p99':>10}  goal",
        ]
        for row in self.rows:
            figures = (row.median, row.min, row.max, row.p99)
            said = " ".join(f"{'-' if x is None else f'{rounded(x):g}':>10}" for x in figures)
            goal = "" if row.goal is None else f"<= {row.goal:g}: {'met' if row.is_met else 'NOT'}"
            lines.append(f"  {row.what:<{wide}} {row.n:>6} {said}  {goal}".rstrip())
        lines += [f"  {what} = {rounded(ratio):g}" for what, ratio in self.ratios.items()]
        lines += [f"  {note}" for note in self.notes]
        return "\n".join(lines)


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile of sorted values (at least one)."""
    rank = math.ceil(len(values) * percent / 100)
    return values[min(len(values), max(1, rank)) - 1]


def rounded(value: float) -> float:
    """Four significant digits: more than any timing here is good for."""
    return float(f"{value:.4g}")


def machine() -> str:
    """What the figures were taken on, without its name."""
    try:
        memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
        memory = f"{memory_gib:.0f} GiB"
    except (OSError, ValueError):
        memory = "memory unknown"
    return ", ".join(
        [
            _cpu_model(),
            f"{os.cpu_count()} cores",
            memory,
            _system(),
            f"{platform.system()} {platform.release()}",
            f"{platform.python_implementation()} {platform.python_version()}",
        ]
    )


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()
