"""What a change of grants means for people, in words."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytorch_spawner.core.effects import Holder, effects
from pytorch_spawner.core.gpus import Gpu, GpuUuid, Inventory
from pytorch_spawner.core.grants import Grant, GrantBook
from tests.examples import examples

UUID = GpuUuid("GPU-1111")
GPUS = Inventory((Gpu(UUID, index=3, name="NVIDIA A100", pool="a100"),))
CV = Grant("cv", "group", "cv", share="slot", priority=10)
PEOPLE = {"ana": ("cv",), "bo": ("cv",), "eve": ("cv",), "kim": ("cv",), "zed": ()}
PIN = Grant("pin", "user", "zoe", gpus=(UUID,), share="whole")
DAY = 1_800_000_000.0


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        pytest.param((CV,), (CV,), [], id="nothing changes"),
        pytest.param(
            (CV,),
            (replace(CV, priority=5),),
            ["4 people of cv: priority 5 (was: priority 10)"],
            id="a group loses priority",
        ),
        pytest.param(
            (CV,), (), ["4 people of cv: nothing (was: 1 slot, priority 10)"], id="a grant goes"
        ),
        pytest.param(
            (), (Grant("all"),), ["all 5 people: 1 GPU (was: nothing)"], id="everyone gets one"
        ),
        pytest.param(
            (),
            (PIN,),
            ["zoe: GPU 3 (NVIDIA A100), whole, reserved for them alone (was: nothing)"],
            id="somebody whom the hub does not know yet gets a GPU",
        ),
        pytest.param(
            (CV,),
            (CV, Grant("a", "user", "ana", pool="a100", share="whole")),
            ["ana: 1 whole GPU on pool a100; else 1 slot, priority 10 (was: 1 slot, priority 10)"],
            id="one grant more for one",
        ),
        pytest.param(
            (CV,), (replace(CV, id="other"),), [], id="the same under another id is no news"
        ),
        pytest.param(
            (Grant("all", weekly_gpu_hours=20),),
            (Grant("all", max_lease_s=7200),),
            ["all 5 people: at most 2 h at a time (was: 20 h a week)"],
            id="other limits",
        ),
        pytest.param(
            (),
            (Grant("all", valid_from=DAY + 86_400),),
            ["From 2027-01-16 08:00 UTC: all 5 people: 1 GPU (was: nothing)"],
            id="what begins later is told with its time",
        ),
        pytest.param(
            (),
            (Grant("a", "user", "ana"), Grant("b", "user", "bo")),
            ["ana and bo: 1 GPU (was: nothing)"],
            id="few are named",
        ),
    ],
)
def test_a_change_is_said_as(before, after, said):
    assert effects(before, after, PEOPLE, GPUS, [], DAY) == said


def test_whoever_is_left_without_a_gpu_is_told_so_though_their_grant_stays():
    everyone = Grant("all", pool="a100")
    (zoe, others) = effects((everyone,), (everyone, PIN), PEOPLE, GPUS, [], DAY)[::-1]
    assert zoe.startswith("zoe: GPU 3 (NVIDIA A100), whole, reserved")
    assert others == ("5 people: no GPU is left that they may use (was: GPU 3 (NVIDIA A100))")


def test_whoever_is_served_from_fewer_gpus_is_told_so():
    two = Inventory((GPUS.gpus[0], Gpu(GpuUuid("GPU-2222"), index=4, name="T4", pool="a100")))
    everyone = Grant("all", pool="a100")
    said = effects((everyone,), (everyone, PIN), PEOPLE, two, [], DAY)
    assert said[0] == "5 people: served from GPU 4 (T4) (was: GPU 3 (NVIDIA A100) and GPU 4 (T4))"


@pytest.mark.parametrize(
    ("change", "words"),
    [({"share": "slot"}, "a slot"), ({"gpus": (UUID, GpuUuid("GPU-2222"))}, "1 of GPU 3")],
)
def test_count_and_share_of_a_pin_are_said(change, words):
    (said,) = effects((PIN,), (replace(PIN, **change),), {"zoe": ()}, GPUS, [], DAY)
    assert words in said.partition("(was")[0]


def test_a_later_end_and_a_grant_of_the_future_that_goes_are_told_with_their_time():
    ends = Grant("all", valid_until=DAY + 3600)
    (said,) = effects((ends,), (replace(ends, valid_until=DAY + 7200),), PEOPLE, GPUS, [], DAY)[-1:]
    assert said.startswith("From 2027-01-15 09:00 UTC: all 5 people: 1 GPU")
    begins = Grant("all", valid_from=DAY + 3600)
    (gone,) = effects((begins,), (), PEOPLE, GPUS, [], DAY)
    assert gone == "From 2027-01-15 09:00 UTC: all 5 people: nothing (was: 1 GPU)"


def test_a_holder_in_the_group_that_a_gpu_is_pinned_to_is_not_warned():
    pin = Grant("pin", "group", "cv", gpus=(UUID,))
    said = effects((), (pin,), PEOPLE, GPUS, [Holder(UUID, "bo"), Holder(UUID, "zed")], DAY)
    assert said[1:] == ["zed holds GPU 3 (NVIDIA A100) and keeps it until their server stops."]


def test_ten_thousand_changed_grants_take_seconds_not_minutes():
    before = [Grant(f"g{n}", "user", f"u{n}") for n in range(10_000)]
    after = [replace(one, priority=5) for one in before]
    began = time.monotonic()
    effects(before, after, {}, GPUS, [], DAY)
    assert time.monotonic() - began < 5


def test_who_holds_a_gpu_that_is_pinned_to_another_keeps_it_until_their_server_stops():
    said = effects((), (PIN,), PEOPLE, GPUS, [Holder(UUID, "bo"), Holder(UUID, "zoe")], DAY)
    assert said[1:] == ["bo holds GPU 3 (NVIDIA A100) and keeps it until their server stops."]


def test_a_very_long_list_ends_with_how_many_more_there_are():
    people = {f"p{number:03}": () for number in range(100)}
    after = [Grant(name, "user", name, priority=place) for place, name in enumerate(people)]
    said = effects((), after, people, GPUS, [], DAY)
    assert len(said) == 41
    assert said[-1] == "And 60 more changes like these."


_GRANTS = st.lists(
    st.builds(
        Grant,
        id=st.sampled_from("abcdef"),
        to=st.just("user"),
        subject=st.sampled_from(["ana", "bo", "eve"]),
        priority=st.integers(-3, 3),
        count=st.integers(1, 3),
        pool=st.sampled_from(["", "a100"]),
    ),
    max_size=4,
    unique_by=lambda grant: grant.id,
)


@settings(max_examples=examples(200), deadline=None)
@given(_GRANTS, _GRANTS)
def test_whoever_is_not_named_gets_the_same_words_as_before(before, after):
    said = " ".join(effects(before, after, PEOPLE, GPUS, [], DAY))
    for name in ("ana", "bo", "eve"):
        was, now = (GrantBook(one).for_person(name, ("cv",), DAY) for one in (before, after))
        bare = [[replace(one, id="") for one in grants] for grants in (was, now)]
        if bare[0] == bare[1]:
            assert name not in said
        elif [(one.count, one.pool) for one in was] != [(one.count, one.pool) for one in now]:
            assert name in said
