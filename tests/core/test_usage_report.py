"""GPU-hours by user, course or device, by day."""

from __future__ import annotations

from datetime import date

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytorch_spawner.core.usage_report import DAY_S, Busy, Used, days_between, summarise
from tests.examples import examples

DAYS = days_between(date(2026, 11, 1), date(2026, 11, 3))
H = 3600.0


def used(since_h: float, until_h: float, **more: object) -> Used:
    said = {"username": "ana", "course": "cv", "gpus": ("G1",), "weights": (1.0,), **more}
    return Used(since=DAYS[0] + since_h * H, until=DAYS[0] + until_h * H, **said)  # type: ignore[arg-type]


def hours(leases: list[Used], by: str = "user") -> dict[str, list[float]]:
    return {row.key: [one / H for one in row.held_s] for row in summarise(leases, [], DAYS, by)}


@pytest.mark.parametrize(
    ("lease", "held"),
    [
        pytest.param(used(1, 3), [2, 0, 0], id="within a day"),
        pytest.param(used(22, 27), [2, 3, 0], id="over midnight"),
        pytest.param(used(-5, 2), [2, 0, 0], id="since before the first day"),
        pytest.param(used(70, 90), [0, 0, 2], id="until after the last day"),
        pytest.param(used(-9, 99), [24, 24, 24], id="longer than all of them"),
        pytest.param(used(1, 3, weights=(0.25,)), [0.5, 0, 0], id="a slot of four"),
        pytest.param(used(24, 48), [0, 24, 0], id="exactly one day"),
    ],
)
def test_a_lease_is_held(lease, held):
    assert hours([lease]) == {"ana": held}


def test_what_lies_outside_the_days_counts_nothing():
    assert hours([used(-9, -1), used(72, 80)]) == {}


def test_two_gpus_of_one_lease_count_each_for_itself():
    lease = used(0, 2, gpus=("G1", "G2"), weights=(1.5, 0.5))
    assert hours([lease], "gpu") == {"G1": [3, 0, 0], "G2": [1, 0, 0]}
    assert hours([lease], "course") == {"cv": [4, 0, 0]}


def test_the_most_held_comes_first():
    rows = summarise([used(0, 1), used(0, 5, username="bo")], [], DAYS, "user")
    assert [row.key for row in rows] == ["bo", "ana"]


def test_a_day_on_which_nobody_measured_is_unknown_and_not_idle():
    busy = [Busy(DAYS[1], "ana", "cv", "G1", 0.0), Busy(DAYS[2], "ana", "cv", "G1", 1800.0)]
    (row,) = summarise([used(0, 72)], busy, DAYS, "user")
    assert row.busy_s == [None, 0.0, 1800.0]
    assert row.all_busy_s == 1800.0
    (row,) = summarise([used(0, 72)], [], DAYS, "user")
    assert row.all_busy_s is None


@settings(max_examples=examples(200), deadline=None)
@given(
    st.lists(
        st.builds(
            lambda since, lasts, name: used(since, since + lasts, username=name),
            st.floats(-50, 100),
            st.floats(0, 60),
            st.sampled_from(["ana", "bo"]),
        ),
        max_size=6,
    )
)
def test_nothing_is_lost_or_counted_twice_however_it_is_cut(leases):
    whole = DAYS[-1] + DAY_S
    expected = sum(max(0.0, min(one.until, whole) - max(one.since, DAYS[0])) for one in leases)
    for by in ("user", "course", "gpu"):
        rows = summarise(leases, [], DAYS, by)
        assert sum(row.all_held_s for row in rows) == pytest.approx(expected)
        assert all(one <= len(leases) * DAY_S + 1e-6 for row in rows for one in row.held_s)
