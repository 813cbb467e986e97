"""The table of faults and points, at the end of a run and in the file LAB_CHAOS_TABLE names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

_COUNTS = ("double leases", "leaked leases", "orphaned containers", "lost grants")
_LEGEND = (
    "Each cell: the student's leases + containers after one reconcile, then the seconds until the "
    "student, back, had a server."
)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    cells: dict[tuple[str, str], str] = {}
    counts = dict.fromkeys(_COUNTS, 0)
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            properties = getattr(report, "user_properties", ())
            said = dict(properties)
            if "fault" not in said or report.when != "call":
                continue
            is_whole = outcome == "passed"
            cell = f"{said['left']}, {said['back_s']:.1f} s" if is_whole else "FAILED"
            cells[said["point"], said["fault"]] = cell
            for name, number in properties:
                if name in counts:
                    counts[name] += number
    if not cells:
        return
    sums = ", ".join(f"{number} {name}" for name, number in counts.items())
    lines = [*_table(cells), "", _LEGEND, f"{len(cells)} cases: {sums}."]
    terminalreporter.section("faults at the points of a start and a stop")
    terminalreporter.write_line("\n".join(lines))
    if place := os.environ.get("LAB_CHAOS_TABLE"):
        Path(place).write_text("\n".join(lines) + "\n")


def _table(cells: dict[tuple[str, str], str]) -> list[str]:
    points = list(dict.fromkeys(point for point, _ in cells))
    faults = list(dict.fromkeys(fault for _, fault in cells))
    rows = [["point", *faults], *([p, *(cells.get((p, f), "") for f in faults)] for p in points)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


@pytest.fixture(scope="session")
def engine(lab_image: str) -> Any:
    """A Docker Engine that may be killed, with a small Python image in it."""
    from tests.private_engine import missing, private_engine

    if reason := missing():
        pytest.skip(reason)
    with private_engine(lab_image) as running:
        yield running
