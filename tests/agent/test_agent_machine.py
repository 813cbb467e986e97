from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pytorch_spawner.agent import machine


@pytest.mark.parametrize(
    ("said", "is_busy"),
    [
        ("0.20 0.18 0.12 1/80 11206\n", False),
        ("9.00 9.00 9.00 2/80 11206\n", False),
        ("0.20 0.18 0.12 3/80 11206\n", True),
        ("0.20 0.18 0.12 30/800 11206\n", True),
        ("0.20 0.18\n", False),
        ("a b c d/e f\n", False),
        ("", False),
    ],
)
def test_a_machine_is_busy_when_more_want_to_run_than_it_has_cores(
    tmp_path: Path, said: str, is_busy: bool
) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/loadavg").write_text(said)
    assert machine.is_busy(tmp_path, cores=2) == is_busy


def test_where_nobody_can_say_nobody_waits(tmp_path: Path) -> None:
    assert not machine.is_busy(tmp_path)


@pytest.fixture
def quiet(clock: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Waits by the clock of the test."""
    monkeypatch.setattr(machine, "time", clock)
    return lambda *patience_s, busy: machine.wait_for_quiet(*patience_s, busy, clock.sleep)


def test_others_come_first_until_there_is_a_core_to_spare(quiet: Any) -> None:
    left = iter([True, True, True, False])
    assert quiet(machine.PATIENCE_S, busy=lambda: next(left)) == 3 * machine._LOOK_S


@pytest.mark.parametrize("patience_s", [0.2, 3.7, 20.0])
def test_a_machine_that_never_rests_keeps_nobody_longer_than_its_patience(
    quiet: Any, patience_s: float
) -> None:
    assert quiet(patience_s, busy=lambda: True) == pytest.approx(patience_s)


def test_a_quiet_machine_is_not_waited_for(quiet: Any) -> None:
    assert quiet(machine.PATIENCE_S, busy=lambda: False) == 0
