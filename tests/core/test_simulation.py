"""What the simulator counts, on demands that can be counted by hand."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytorch_spawner.core import simulation
from pytorch_spawner.core.gpus import Gpu, GpuUuid, Inventory
from pytorch_spawner.core.grants import Grant
from pytorch_spawner.core.scheduling import Decisions, Policy
from pytorch_spawner.core.simulation import A_MONDAY, Waits, jain, simulate
from pytorch_spawner.core.trace import Job, generate
from tests.examples import examples

HOUR = 3600.0
WEEK = 7 * 24 * HOUR
ALL = (Grant("all", count=4),)


def lab(count: int = 1, **more: object) -> Inventory:
    return Inventory(tuple(Gpu(GpuUuid(f"GPU-{n:04d}"), n, **more) for n in range(count)))


THREE = (Job(0, "ana", 100), Job(10, "bob", 50), Job(20, "cyd", 50))


def test_three_on_one_gpu() -> None:
    said = simulate(THREE, lab(), ALL, Policy())
    # bob waits 10 to 100, cyd 20 to 150; held all the time, 0 to 200.
    assert said.waits == Waits(3, 90.0, 130.0, 130.0)
    assert said.by_group == {"": said.waits}
    assert said.utilisation == pytest.approx(1.0)
    assert said.fairness == pytest.approx(jain([1.0, 50 / 140, 50 / 180]))
    assert (said.starts, said.refused, said.unserved, said.cut_short) == (3, 0, 0, 0)


def test_the_order_of_the_jobs_does_not_matter() -> None:
    assert simulate(THREE[::-1], lab(), ALL, Policy()) == simulate(THREE, lab(), ALL, Policy())


@pytest.mark.parametrize(
    ("jobs", "inventory", "policy", "max_s", "utilisation"),
    [
        ((Job(0, "ana", 100), Job(100, "bob", 50)), lab(), Policy(), 0.0, 1.0),
        ((Job(50, "ana", 100), Job(0, "bob", 50)), lab(), Policy(), 0.0, 1.0),
        (THREE, lab(mode="shared:4"), Policy(), 0.0, 200 / 400),
        (THREE, lab(3), Policy(), 0.0, 200 / 300),
        (THREE, lab(7, mig_profile="1g.10gb"), Policy(), 0.0, 200 / 700),
        ((Job(0, "ana", 100, gpus=2), Job(0, "bob", 100)), lab(2), Policy(), 100.0, 3 / 4),
        (THREE, lab(), Policy(max_lease_s=60), 90.0, 1.0),
    ],
    ids=[
        "who arrives when another one stops finds it free",
        "jobs in no order",
        "a slot counts its part",
        "three GPUs, 100 seconds, 200 GPU-seconds",
        "an instance of one slice counts a seventh, of seven sevenths",
        "two GPUs at once, then one",
        "a lease ends before the job does",
    ],
)
def test_longest_wait_and_utilisation(
    jobs: tuple[Job, ...],
    inventory: Inventory,
    policy: Policy,
    max_s: float,
    utilisation: float,
) -> None:
    said = simulate(jobs, inventory, ALL, policy)
    assert said.waits.max_s == pytest.approx(max_s)
    assert said.utilisation == pytest.approx(utilisation)


def test_a_lease_that_ends_first_cuts_the_job_short() -> None:
    said = simulate(THREE, lab(), ALL, Policy(max_lease_s=60))
    assert said.cut_short == 1
    # ana gets 60 of 100 at once, bob 50 after 50 s, cyd 50 after 90 s.
    assert said.waits == Waits(3, 50.0, 90.0, 90.0)
    assert said.fairness == pytest.approx(jain([0.6, 50 / 100, 50 / 140]))


def test_who_is_refused_and_who_is_never_served() -> None:
    drained = Gpu(GpuUuid("GPU-0009"), 9, pool="old", drained="Fans.")
    inventory = Inventory((*lab().gpus, drained))
    jobs = (
        Job(0, "ana", 100, groups=("cv", "ml")),
        Job(0, "bob", 100, share="slot"),
        Job(0, "cyd", 100, gpus=9),
        Job(0, "dan", 100, pool="old"),
    )
    said = simulate(jobs, inventory, ALL, Policy())
    assert (said.waits.served, said.refused, said.unserved) == (1, 2, 1)
    assert said.by_group == {
        "": Waits(0, None, None, None),
        "cv": Waits(1, 0.0, 0.0, 0.0),
        "ml": Waits(1, 0.0, 0.0, 0.0),
    }
    # Of the two who were not refused one got everything and one nothing.
    assert said.fairness == pytest.approx(0.5)
    # What is out of service is no time that there was.
    assert said.utilisation == pytest.approx(1.0)


def test_a_grant_counts_whatever_its_images_for_a_trace_names_none() -> None:
    grants = (Grant("all", count=4, images=("lab:cuda",)),)
    assert simulate(THREE, lab(), grants, Policy()) == simulate(THREE, lab(), ALL, Policy())


def test_nobody_at_all_and_no_gpu_at_all() -> None:
    said = simulate((), lab(), ALL, Policy())
    assert (said.starts, said.utilisation, said.fairness) == (0, None, None)
    said = simulate(THREE, Inventory(reason="None."), ALL, Policy())
    assert (said.refused, said.utilisation, said.fairness) == (3, None, None)


def test_who_used_less_is_served_first() -> None:
    jobs = (Job(0, "ana", HOUR), Job(100, "ana", 60, ("late",)), Job(200, "bob", 60, ("early",)))
    said = simulate(jobs, lab(), ALL, Policy())
    assert said.by_group["early"].max_s == HOUR - 200
    assert said.by_group["late"].max_s == HOUR + 60 - 100
    # With a step above what was used, arrival decides.
    said = simulate(jobs, lab(), ALL, Policy(usage_step_h=10))
    assert said.by_group["late"].max_s == HOUR - 100


def test_use_decays_so_that_an_old_day_does_not_count_against_anybody() -> None:
    long_ago = 10 * 24 * HOUR
    jobs = (
        Job(0, "ana", HOUR),
        Job(long_ago, "cyd", 1000),
        Job(long_ago + 1, "ana", 60, ("first",)),
        Job(long_ago + 2, "bob", 60, ("second",)),
    )
    said = simulate(jobs, lab(), ALL, Policy())
    assert said.by_group["first"].max_s == 999
    assert said.by_group["second"].max_s == 1058


def test_the_hours_of_a_week_end_and_begin_anew_on_monday() -> None:
    hours = (Grant("h", weekly_gpu_hours=1.0),)
    jobs = (
        Job(0, "ana", 2 * HOUR, ("cut",)),
        Job(3 * HOUR, "ana", 60, ("refused",)),
        Job(WEEK - HOUR / 2, "bob", HOUR, ("across",)),
        Job(WEEK, "ana", 60, ("anew",)),
        Job(WEEK + HOUR, "bob", HOUR, ("half",)),
    )
    said = simulate(jobs, lab(2), hours, Policy())
    assert (said.refused, said.cut_short) == (1, 2)
    assert {group: waits.served for group, waits in said.by_group.items()} == {
        "across": 1,
        "anew": 1,
        "cut": 1,
        "half": 1,
        "refused": 0,
    }
    # ana an hour and a minute; bob an hour, half of it in each week, then the half hour left.
    held_s = HOUR + 60 + HOUR + HOUR / 2
    assert said.utilisation == pytest.approx(held_s / (2 * (WEEK + 1.5 * HOUR)))


def test_a_grant_counts_from_its_day() -> None:
    grants = (Grant("g", valid_from=A_MONDAY + 50, valid_until=A_MONDAY + 165),)
    jobs = (Job(0, "ana", 10), Job(60, "bob", 1000), Job(200, "cyd", 10))
    said = simulate(jobs, lab(3), grants, Policy())
    assert (said.waits.served, said.refused, said.cut_short) == (1, 2, 1)
    assert simulate(jobs, lab(3), grants, Policy(), A_MONDAY + 100).waits.served == 1


def test_who_is_out_of_patience_is_overtaken_by_nobody_any_more() -> None:
    """The order of the queue changes at a moment at which nobody comes or goes."""
    grants = (Grant("all"), Grant("vip", "group", "vip", priority=9))
    jobs = (
        Job(0, "eve", 1000),
        Job(10, "ana", 10, ("usual",)),
        Job(500, "bob", 10, ("vip",)),
    )
    late = simulate(jobs, lab(), grants, Policy(patience_s=5000))
    assert (late.by_group["vip"].max_s, late.by_group["usual"].max_s) == (500, 1000)
    soon = simulate(jobs, lab(), grants, Policy(patience_s=600))
    assert (soon.by_group["usual"].max_s, soon.by_group["vip"].max_s) == (990, 510)


def test_progress_counts_arrivals() -> None:
    told: list[int] = []
    simulate(THREE, lab(), ALL, Policy(), progress=told.append)
    assert told == sorted(told)
    assert told[-1] == 3


@pytest.mark.parametrize(
    ("values", "index"),
    [([1, 1, 1], 1.0), ([1, 0, 0, 0], 0.25), ([0.5, 0.5], 1.0), ([0, 0], None), ([], None)],
)
def test_jains_index(values: list[float], index: float | None) -> None:
    assert jain(values) == (None if index is None else pytest.approx(index))


JOBS = st.lists(
    st.builds(
        Job,
        arrive_s=st.integers(0, 40).map(lambda n: n * 600.0),
        user=st.sampled_from("abcdef"),
        hold_s=st.integers(1, 20).map(lambda n: n * 450.0),
        groups=st.sampled_from([(), ("cv",), ("cv", "ml")]),
        gpus=st.integers(1, 3),
        share=st.sampled_from(["any", "any", "whole", "slot"]),
    ),
    min_size=1,
    max_size=25,
)
POLICIES = st.builds(
    Policy,
    preference=st.sampled_from(["pack", "spread", "largest", "index"]),
    patience_s=st.sampled_from([0.0, 900.0, 1e6]),
    max_lease_s=st.sampled_from([None, 1800, 7200]),
)
MIXED = Inventory(
    (*lab(2).gpus, *(Gpu(GpuUuid(f"GPU-{n:04d}"), n, mode="shared:3") for n in (2, 3, 4)))
)


@given(JOBS, POLICIES)
@settings(max_examples=examples(60), deadline=None)
def test_nothing_is_lost_and_nothing_is_held_twice(jobs: list[Job], policy: Policy) -> None:
    real = simulation.schedule

    def checked(*args: object) -> Decisions:
        said = real(*args)
        held = [slot for lease in args[1] for slot in lease.holdings]
        held += [slot for given in said.give for slot in given.holdings]
        assert len({(one.gpu, one.slot) for one in held}) == len(held)
        return said

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulation, "schedule", checked)
        said = simulate(jobs, MIXED, ALL, policy)
    assert said.waits.served + said.refused + said.unserved == len(jobs) == said.starts
    # Every device is in service and every lease ends, so nobody is left.
    assert said.unserved == 0
    if said.waits.served:
        assert 0 <= said.waits.median_s <= said.waits.p95_s <= said.waits.max_s
        assert 0 < said.utilisation <= 1 + 1e-9
    assert said.cut_short == 0 or policy.max_lease_s is not None
    if said.fairness is not None:
        assert 0 < said.fairness <= 1 + 1e-9
    # Jobs that arrive together are one after the other in the order of the file: keep that.
    jobs = sorted(jobs, key=lambda job: job.arrive_s)
    assert simulate(jobs, MIXED, ALL, policy) == said


def test_a_school_fares_better_with_more_gpus() -> None:
    jobs = generate("school", people=60, days=5, seed=3)
    few, many = (simulate(jobs, lab(count), ALL, Policy()) for count in (4, 40))
    assert few.waits.median_s > many.waits.median_s == 0.0
    assert many.waits.max_s == 0.0
    assert many.fairness == pytest.approx(1.0)
    assert few.fairness < many.fairness
    assert few.utilisation > many.utilisation
    shuffled = list(jobs)
    random.Random(1).shuffle(shuffled)
    assert simulate(sorted(shuffled, key=jobs.index), lab(4), ALL, Policy()) == few
