from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytorch_spawner.core.lifetime import Due, Ending, due
from pytorch_spawner.core.usage import HALF_LIFE_S, accrued, decayed, overlap_s

NOW = 1_790_000_000.0


@pytest.mark.parametrize(
    ("left_s", "is_warned", "expected"),
    [
        (601, False, Due()),
        (600, False, Due(warn=("l",))),
        (600, True, Due()),
        (1, True, Due()),
        (0, True, Due(stop=("l",))),
        (-5, True, Due(stop=("l",))),
        (-5, False, Due(warn=("l",))),
    ],
)
def test_nobody_is_stopped_unwarned_or_early(left_s: float, is_warned: bool, expected: Due) -> None:
    assert due([Ending("l", NOW + left_s, is_warned)], NOW, 600) == expected


def test_past_use_counts_half_after_its_half_life() -> None:
    assert decayed(100.0, HALF_LIFE_S) == pytest.approx(50.0)
    assert decayed(100.0, -1.0) == 100.0, "a clock that ran back earns nothing"


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0, 1e6))
def test_use_told_in_two_parts_is_the_same_use(first: float, second: float, after: float) -> None:
    middle, end = NOW + first, NOW + first + second
    now = end + after
    parts = accrued(2.0, NOW, middle, now) + accrued(2.0, middle, end, now)
    assert parts == pytest.approx(accrued(2.0, NOW, end, now), rel=1e-6, abs=1e-3)
    assert parts <= 2.0 * (first + second) + 1e-3


def test_time_in_common_is_never_negative() -> None:
    assert overlap_s(0, 10, 5, 20) == 5
    assert overlap_s(0, 10, 10, 20) == 0
    assert overlap_s(0, 10, 15, 20) == 0
