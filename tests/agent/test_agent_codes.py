"""The table of checks: in the code, in what runs, and in the reference."""

from __future__ import annotations

import re
from pathlib import Path

from pytorch_spawner.agent.codes import CHECKS, CODES, LEVELS, TORCH_CODES, worst
from pytorch_spawner.agent.torch_checks import CHECKS as TORCH_CHECKS

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "checks.md"


def test_the_reference_lists_every_check_in_its_order() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \| (.+?) \| (.+?) \|$", PAGE.read_text(), re.MULTILINE)
    assert rows == [(check.code, check.question, check.trouble) for check in CHECKS]


def test_the_reference_explains_every_level() -> None:
    text = PAGE.read_text()
    assert [level for level in LEVELS if f"- **{level}**" not in text] == []


def test_the_torch_checks_are_those_of_the_table_and_come_last() -> None:
    assert tuple(TORCH_CHECKS) == TORCH_CODES == CODES[-len(TORCH_CODES) :]


def test_the_worst_level_wins() -> None:
    assert worst([]) == "ok"
    assert worst(["ok", "unknown"]) == "unknown"
    assert worst(["warn", "unknown", "ok"]) == "warn"
    assert worst(["warn", "fail"]) == "fail"
