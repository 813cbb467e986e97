"""Grants as a table for a spreadsheet, and back without a loss."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from typing import Any, Final

from pytorch_spawner.core.grants import Grant
from pytorch_spawner.errors import BadRequest, Problem

COLUMNS: Final = (
    "id",
    "to",
    "subject",
    "pool",
    "gpus",
    "count",
    "share",
    "priority",
    "weekly_gpu_hours",
    "max_lease_s",
    "valid_from",
    "valid_until",
    "images",
)
MAX_ROWS: Final = 10_000
_LISTS: Final = frozenset({"gpus", "images"})
_NUMBERS: Final = frozenset({"count", "priority", "weekly_gpu_hours", "max_lease_s"})
# A spreadsheet runs what begins so as a formula (OWASP: CSV injection), unless a quote precedes it.
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "'")


def write_csv(grants: Iterable[Grant]) -> str:
    """Return the grants as CSV with a header, one row a grant (RFC 4180, but lines end in LF)."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for grant in grants:
        said = grant.as_json()
        # What the JSON leaves out because it is 0 is a number here all the same.
        said.setdefault("priority", grant.priority)
        writer.writerow({name: _cell(name, said.get(name)) for name in COLUMNS})
    return text.getvalue()


def read_csv(text: str) -> tuple[list[dict[str, Any]], list[int]]:
    """Read rows for ``grant_rows.parse_grants``.

    Args:
        text: CSV with a header that names the columns, in any order; separated by comma, semicolon
            or tab, as spreadsheets write it. Cells that are empty are left out.

    Returns:
        The rows, and for each the line of the file on which it ends.

    Raises:
        BadRequest: It is empty or too long, its header lacks "to" or "subject", names an unknown
            column or one twice, or a row has more cells than the header; every fault is listed.
    """
    text = text.removeprefix("\ufeff")
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=_separator(text), strict=True)
        cells = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise _refused([Problem(f"it is no CSV: {error}")]) from error
    if not any(cell.strip() for _, row in cells for cell in row):
        raise _refused([Problem("the file is empty")])
    if len(cells) > MAX_ROWS:
        raise _refused([Problem(f"it has more than {MAX_ROWS} lines")])
    line, header = cells[0][0], [name.strip() for name in cells[0][1]]
    problems = [
        Problem(f"there is no column {name[:60]!r}", row=line)
        for name in header
        if name not in (*COLUMNS, "source")
    ]
    problems += [
        Problem(f"there is no column {name!r}; the first line names the columns", row=line)
        for name in ("to", "subject")
        if name not in header
    ]
    problems += [
        Problem(f"the column {name} is there twice", row=line)
        for name in COLUMNS
        if header.count(name) > 1
    ]
    rows, lines = [], []
    for number, row in cells[1:]:
        if not any(cell.strip() for cell in row):
            continue
        if len(row) > len(header):
            problems.append(Problem("it has more cells than the header", row=number))
            continue
        named = zip(header, row, strict=False)
        rows.append({name: _value(name, cell) for name, cell in named if cell.strip()})
        lines.append(number)
    if problems:
        raise _refused(problems)
    return rows, lines


def _refused(problems: Sequence[Problem]) -> BadRequest:
    faults = [
        one.message if one.row is None else f"line {one.row}: {one.message}" for one in problems
    ]
    text = "The table is not usable: " + "; ".join(faults) + "."
    return BadRequest(text, faults=faults, problems=problems)


def _separator(text: str) -> str:
    header = text.partition("\n")[0]
    return max(",;\t", key=header.count)


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    text = " ".join(value) if name in _LISTS else str(value)
    return f"'{text}" if name not in _NUMBERS and text.startswith(_FORMULA) else text


def _value(name: str, cell: str) -> Any:
    # An image reference and a UUID hold no blank, so a blank separates two.
    if name in _NUMBERS:
        return _number(cell.strip())
    if cell.startswith("'") and cell[1:].startswith(_FORMULA):
        cell = cell[1:]
    return cell.replace(",", " ").split() if name in _LISTS else cell


def _number(cell: str) -> Any:
    """A number, or the text as it is: what is wrong with it is said by whoever knows the field."""
    try:
        value = float(cell)
    except ValueError:
        return cell
    return int(value) if math.isfinite(value) and value == int(value) else value
