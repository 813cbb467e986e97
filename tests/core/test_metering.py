"""Samples, the last quarter of an hour, and whose the work on a GPU was."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytorch_spawner.core.gpus import GpuUuid
from pytorch_spawner.core.metering import (
    MEASURES,
    GpuProcess,
    History,
    Sample,
    busy_seconds,
    busy_share,
    from_report,
    make_sample,
)

A, B = GpuUuid("GPU-aaaa"), GpuUuid("GPU-bbbb")
ANA, BO = ("ana", ""), ("bo", "second")


@dataclass(frozen=True)
class FakeLease:
    id: str
    username: str
    servername: str
    gpus: tuple[str, ...]


def at_work(server: tuple[str, str]) -> GpuProcess:
    return GpuProcess(7, "python3", 100, *server)


# -- samples --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "said", "kept"),
    [
        ("utilisation", 0, 0.0),
        ("utilisation", 100.0, 100.0),
        ("utilisation", 100.1, None),
        ("utilisation", -1, None),
        ("utilisation", True, None),
        ("utilisation", "50", None),
        ("utilisation", float("nan"), None),
        ("utilisation", 10**400, None),
        ("memory_used_mib", 1024.0, 1024),
        ("memory_used_mib", float("inf"), None),
        ("memory_used_mib", 2**40, None),
        ("temperature_c", -10, -10.0),
        ("temperature_c", 9999, None),
        ("power_w", 699.5, 699.5),
        ("power_w", [1], None),
        ("power_w", None, None),
    ],
)
def test_what_no_such_value_can_be_is_unknown(name: str, said: Any, kept: Any) -> None:
    assert getattr(make_sample(1.0, {name: said}), name) == kept


def test_a_sample_of_nothing_is_unknown_and_not_zero() -> None:
    assert make_sample(1.0, {}) == Sample(1.0, None, None, None, None)
    assert make_sample(1.0, {}).as_row() == [None] * 4


def test_a_report_speaks_of_the_servers_own_gpus_only() -> None:
    row = {
        "uuid": A, "utilisation_pct": 40.0, "memory_used_mib": 512.0, "memory_total_mib": 1,
        "temperature_c": 50.0, "power_w": 71.2,
    }  # fmt: skip
    data = {"gpus": [row, {**row, "uuid": B}, {**row, "utilisation_pct": 90.0}]}
    assert from_report(data, {A}, 5.0) == {A: Sample(5.0, 40.0, 512, 50.0, 71.2)}


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"gpus": None},
        {"gpus": {"uuid": A}},
        {"gpus": "GPU-aaaa"},
        {"gpus": [None, 5, [], "x", {"uuid": [A]}, {"uuid": None}, {"no": 1}]},
        {"gpus": [{"uuid": "GPU-zzzz"}]},
        {"gpus": [{}] * 64 + [{"uuid": A, "power_w": 1.0}]},
    ],
)
def test_a_report_of_another_form_says_nothing(data: dict[str, Any]) -> None:
    assert from_report(data, {A}, 5.0) == {}


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=10,
)


@given(
    st.lists(
        st.fixed_dictionaries(
            {"uuid": st.sampled_from([A, B, "GPU-c"]) | anything},
            optional={
                "utilisation_pct": anything,
                "memory_used_mib": anything,
                "temperature_c": anything,
                "power_w": anything,
            },
        )
        | anything
    )
)
def test_whatever_is_reported_becomes_values_in_range_or_unknown(rows: list[Any]) -> None:
    found = from_report({"gpus": rows}, {A}, 1.0)
    assert set(found) <= {A}
    for sample in found.values():
        assert sample.at == 1.0
        assert sample.utilisation is None or 0 <= sample.utilisation <= 100
        assert sample.memory_used_mib is None or type(sample.memory_used_mib) is int
        json.dumps(sample.as_json(), allow_nan=False)


# -- the history ----------------------------------------------------------------------------------


def test_within_a_step_utilisation_and_power_are_averaged_and_the_highest_of_the_rest_counts() -> (
    None
):
    history = History()
    history.add(100.0, {A: Sample(100.0, 10.0, 100, 40.0, 50.0)})
    history.add(105.0, {A: Sample(105.0, 20.0, 300, 60.0, 60.0)})
    history.add(109.9, {A: Sample(109.9, None, 200, None, None)})
    assert history.as_json() == {
        "step_s": 10,
        "at": [100],
        "gpus": {
            A: {
                "utilisation": [15.0],
                "memory_used_mib": [300],
                "temperature_c": [60.0],
                "power_w": [55.0],
            }
        },
    }


def test_a_gpu_that_comes_later_was_unknown_before_and_steps_without_samples_are_there() -> None:
    history = History()
    history.add(100.0, {A: Sample(100.0, 10.0)})
    history.add(130.0, {A: Sample(130.0, 30.0), B: Sample(130.0, 5.0)})
    said = history.as_json()
    assert said["at"] == [100, 110, 120, 130]
    assert said["gpus"][A]["utilisation"] == [10.0, None, None, 30.0]
    assert said["gpus"][B]["utilisation"] == [None, None, None, 5.0]
    assert said["gpus"][B]["power_w"] == [None] * 4


def test_a_gpu_of_which_nothing_came_for_a_quarter_of_an_hour_is_forgotten() -> None:
    history = History()
    history.add(0.0, {A: Sample(0.0, 10.0), B: Sample(0.0, 10.0)})
    history.add(890.0, {A: Sample(890.0, 1.0)})
    assert B in history.as_json()["gpus"]
    history.add(900.0, {})
    assert set(history.as_json()["gpus"]) == {A}
    history.add(1e9, {})
    assert history.as_json()["gpus"] == {}


def test_a_clock_that_is_set_back_leaves_nothing_in_the_future() -> None:
    history = History()
    history.add(10_000.0, {A: Sample(10_000.0, 10.0)})
    history.add(5_000.0, {B: Sample(5_000.0, 20.0)})
    said = history.as_json()
    assert said["at"] == [5_000]
    assert set(said["gpus"]) == {B}


def test_an_empty_history_is_empty_lists() -> None:
    assert History().as_json() == {"step_s": 10, "at": [], "gpus": {}}


percent = st.none() | st.floats(0, 100)
samples = st.builds(
    Sample,
    at=st.just(0.0),
    utilisation=percent,
    memory_used_mib=st.none() | st.integers(0, 10**6),
    temperature_c=percent,
    power_w=percent,
)
looks = st.lists(
    st.tuples(st.floats(-50, 400), st.dictionaries(st.sampled_from([A, B]), samples)), max_size=40
)


@given(looks, st.integers(1, 12))
def test_a_history_is_a_bounded_rectangle_of_values_that_were_seen(
    moves: list[tuple[float, dict[GpuUuid, Sample]]], points: int
) -> None:
    history, at = History(10, points), 1000.0
    lows: dict[str, float] = {}
    highs: dict[str, float] = {}
    for forward, seen in moves:
        at += forward
        history.add(at, seen)
        for sample in seen.values():
            for measure, value in zip(MEASURES, sample.as_row(), strict=True):
                if value is not None:
                    lows[measure] = min(lows.get(measure, value), value)
                    highs[measure] = max(highs.get(measure, value), value)
    said = history.as_json()
    assert len(said["at"]) <= points
    assert said["at"] == sorted(set(said["at"]))
    assert all(later - earlier == 10 for earlier, later in pairwise(said["at"]))
    if moves:
        assert said["at"][-1] <= at < said["at"][-1] + 10
    for columns in said["gpus"].values():
        assert set(columns) == set(MEASURES)
        for measure, values in columns.items():
            assert len(values) == len(said["at"])
            for value in values:
                # Averages are rounded to a tenth.
                assert value is None or lows[measure] - 0.1 <= value <= highs[measure] + 0.1


# -- whose the work was ---------------------------------------------------------------------------

HALF = Sample(0.0, 50.0)
FOREIGN = GpuProcess(1, "Xorg")
UNTOLD = GpuProcess(2, "", is_told=False)


@pytest.mark.parametrize(
    ("processes", "shares"),
    [
        (None, {ANA: 0.25, BO: 0.25}),
        ([], {ANA: 0.25, BO: 0.25}),
        ([at_work(ANA)], {ANA: 0.5, BO: 0.0}),
        ([at_work(ANA), at_work(ANA)], {ANA: 0.5, BO: 0.0}),
        ([at_work(ANA), at_work(BO)], {ANA: 0.25, BO: 0.25}),
        ([at_work(BO), FOREIGN], {ANA: 0.0, BO: 0.5}),
        ([FOREIGN], {ANA: 0.0, BO: 0.0}),
        ([at_work(("cy", ""))], {ANA: 0.0, BO: 0.0}),
        ([FOREIGN, UNTOLD], {ANA: 0.25, BO: 0.25}),
    ],
    ids=[
        "processes unknown: all", "none listed, so unknown: all", "one works: it alone",
        "two processes of one are one", "both work: both", "a stranger counts for nothing",
        "a stranger alone: nobody", "another server alone: nobody", "not told whose: all",
    ],
)  # fmt: skip
def test_busy_time_goes_to_the_holders_that_work(
    processes: list[GpuProcess] | None, shares: dict[tuple[str, str], float]
) -> None:
    assert busy_share(HALF, [ANA, BO], processes) == shares


@pytest.mark.parametrize("sample", [None, Sample(0.0), Sample(0.0, None, 100, 30.0, 50.0)])
def test_an_unknown_utilisation_gives_nothing_and_not_zero(sample: Sample | None) -> None:
    assert busy_share(sample, [ANA], [at_work(ANA)]) == {}


def test_an_idle_gpu_was_measured_and_gives_zero() -> None:
    lease = FakeLease("l1", *ANA, (A, B))
    found = busy_seconds({A: Sample(0.0, 0.0)}, {}, [lease], 5.0)
    assert found == {("ana", "", "l1", A): 0.0}


def test_seconds_are_booked_on_lease_and_device() -> None:
    leases = [FakeLease("l1", *ANA, (A, A, B)), FakeLease("l2", *BO, (A,))]
    found = busy_seconds({A: HALF, B: Sample(0.0, 100.0)}, {A: [at_work(BO)]}, leases, 10.0)
    assert found == {
        ("ana", "", "l1", A): 0.0,
        ("bo", "second", "l2", A): 5.0,
        ("ana", "", "l1", B): 10.0,
    }


servers = st.tuples(st.sampled_from(["ana", "bo", "cy"]), st.sampled_from(["", "two"]))
process = st.builds(
    lambda server, told: GpuProcess(1, "p", None, *(server or (None, None)), is_told=told),
    st.none() | servers,
    st.booleans(),
)


@given(
    st.dictionaries(st.sampled_from([A, B]), samples),
    st.dictionaries(st.sampled_from([A, B]), st.lists(process, max_size=6)),
    st.dictionaries(servers, st.lists(st.sampled_from([A, B, "GPU-c"]), max_size=3), max_size=6),
    st.floats(-5, 100),
)
def test_nobody_gets_more_than_the_device_gave(
    measured: dict[GpuUuid, Sample],
    running: dict[GpuUuid, list[GpuProcess]],
    held: dict[tuple[str, str], list[str]],
    dt_s: float,
) -> None:
    leases = [
        FakeLease(f"l{place}", *server, tuple(gpus))
        for place, (server, gpus) in enumerate(held.items())
    ]
    found = busy_seconds(measured, running, leases, dt_s)
    for gpu in (A, B):
        sample = measured.get(gpu)
        used = [seconds for key, seconds in found.items() if key[3] == gpu]
        if sample is None or sample.utilisation is None:
            assert used == []
        else:
            most = max(0.0, dt_s) * sample.utilisation / 100
            assert sum(used) <= most * (1 + 1e-9)
            assert all(seconds >= 0 for seconds in used)
            holders = [lease for lease in leases if gpu in lease.gpus]
            assert len(used) == len(holders)
            # What is told of nobody is not lost: it is everybody's.
            if holders and gpu not in running:
                assert sum(used) == pytest.approx(most)
    assert all(key[3] in (A, B) for key in found)
