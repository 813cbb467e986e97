"""Warm caches as data: which one a start gets, which have to go, when one may be given out."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytorch_spawner.core import cache_words as words
from pytorch_spawner.core.gpus import Gpu, GpuUuid
from pytorch_spawner.core.warmcache import (
    KEPT_S,
    Cache,
    CacheKey,
    Target,
    choose,
    currents,
    is_offered,
    is_private_of,
    key_of,
    options_of,
    private_volume,
    to_expire,
    volumes_of,
    why_none,
    why_not_published,
    why_unlike,
)

H100 = Gpu(GpuUuid("GPU-1"), 0, "NVIDIA H100", 81_559, (9, 0), "580.159.04")
KEY = CacheKey("sha256:1", "NVIDIA H100", "9.0", "580")
DAY = 24 * 3600.0


def cache(cache_id="a", **said):
    known = {
        "state": "published",
        "key": KEY,
        "promoted_at": 1.0,
        "ended_at": 1.0,
        "size_bytes": 10,
        **said,
    }
    scope = known["key"].scope if known["key"] else ""
    return Cache(cache_id, "lab", scope, "i", "", 1, {"name": "gpt"}, "", "ana", 0.0, **known)


# -- keys ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpu", "key"),
    [
        (None, CacheKey("sha256:1", scope="ml")),
        (replace(H100, is_simulated=True), CacheKey("sha256:1", scope="ml")),
        (H100, CacheKey("sha256:1", "NVIDIA H100", "9.0", "580", "ml")),
        (
            replace(H100, mig_profile="1g.10gb"),
            CacheKey("sha256:1", "NVIDIA H100 MIG 1g.10gb", "9.0", "580", "ml"),
        ),
        (
            replace(H100, name="NVIDIA H100 MIG 1g.10gb", mig_profile="1g.10gb"),
            CacheKey("sha256:1", "NVIDIA H100 MIG 1g.10gb", "9.0", "580", "ml"),
        ),
        (replace(H100, name=""), None),
        (replace(H100, compute_capability=None), None),
        (replace(H100, driver=""), None),
    ],
)
def test_a_key_holds_what_must_be_the_same(gpu, key):
    assert key_of("sha256:1", gpu, "ml") == key


@pytest.mark.parametrize(
    "change", [{"driver": "580.95.05"}, {"uuid": GpuUuid("GPU-2")}, {"pool": "x"}, {"index": 7}]
)
def test_what_compiles_the_same_has_the_same_key(change):
    assert key_of("i", replace(H100, **change), "") == key_of("i", H100, "")


@pytest.mark.parametrize(
    "change",
    [{"driver": "590.1"}, {"name": "NVIDIA H200"}, {"compute_capability": (9, 1)}],
)
def test_what_compiles_otherwise_has_another(change):
    assert key_of("i", replace(H100, **change), "") != key_of("i", H100, "")


# -- choosing --------------------------------------------------------------------------------------


def test_of_one_key_the_one_promoted_last_is_chosen():
    old, new = cache("a", promoted_at=1.0), cache("b", promoted_at=2.0)
    assert choose([old, new], KEY) == new
    assert choose([old, replace(new, promoted_at=None)], KEY) == old
    assert choose([replace(old, promoted_at=3.0), new], KEY).id == "a"


@pytest.mark.parametrize(
    "other",
    [
        replace(KEY, image_id="sha256:2"),
        replace(KEY, gpu="NVIDIA H200"),
        replace(KEY, capability="9.1"),
        replace(KEY, driver_branch="590"),
        replace(KEY, scope="ml"),
        CacheKey("sha256:1"),
    ],
    ids=str,
)
def test_a_start_with_another_key_gets_none(other):
    assert choose([cache()], other) is None
    assert why_none([cache()], other).endswith("the first compile takes its usual time.")


def test_two_courses_caches_never_mix():
    mine, other = replace(KEY, scope="ml"), replace(KEY, scope="cv")
    caches = [cache("a", key=mine), cache("b", key=other, promoted_at=9.0), cache("c")]
    assert [choose(caches, key).id for key in (mine, other, KEY)] == ["a", "b", "c"]


@pytest.mark.parametrize("state", ["queued", "building", "checking", "failed", "expired"])
def test_only_what_is_published_and_promoted_is_given(state):
    assert not is_offered(cache(state=state))
    assert not is_offered(cache(promoted_at=None))
    assert choose([cache(state=state), cache(promoted_at=None)], KEY) is None
    assert currents([cache(state=state), cache(promoted_at=None), cache("b", key=None)]) == set()


@pytest.mark.parametrize(
    ("caches", "says"),
    [
        ([], "No warm cache has been built yet"),
        ([cache(promoted_at=None)], "No warm cache has been built yet"),
        ([cache(key=replace(KEY, image_id="sha256:2"))], "is of another image"),
        ([cache(key=replace(KEY, gpu="NVIDIA H200"))], "is not for NVIDIA H100"),
        (
            [
                cache(key=replace(KEY, gpu="NVIDIA H200"), promoted_at=9.0),
                cache("b", key=replace(KEY, driver_branch="560")),
                cache("c", key=replace(KEY, driver_branch="570"), promoted_at=5.0),
            ],
            "was built with driver 570 and this GPU has 580, so it needs a new build",
        ),
        ([cache(key=replace(KEY, capability="8.0"))], "with compute capability 8.0 and this GPU"),
        (
            [cache(key=replace(KEY, driver_branch="570", capability="8.0"))],
            "with driver 570 and compute capability 8.0 and this GPU has 580 and 9.0,",
        ),
    ],
)
def test_why_there_is_none_names_what_differs(caches, says):
    assert says in why_none(caches, KEY)
    assert "not for the CPU" in why_none([cache()], CacheKey("sha256:1"))


@pytest.mark.parametrize(
    ("second", "says"),
    [
        (KEY, ""),
        (replace(KEY, image_id="sha256:2"), "got another image than the first, for its tag"),
        (replace(KEY, gpu="NVIDIA L4", capability="8.9"), "got NVIDIA L4 and the first NVIDIA H1"),
        (CacheKey("sha256:1"), "got no GPU and the first NVIDIA H100; so it proves nothing. Build"),
        (replace(KEY, driver_branch="590"), "got another driver than the first, for it was upda"),
    ],
)
def test_a_second_container_unlike_the_first_is_told_with_what_differs(
    second: CacheKey, says: str
) -> None:
    why = why_unlike(KEY, second)
    assert says in why
    assert bool(why) == (second != KEY)
    assert ("one kind of GPU" in why) == (second.gpu != KEY.gpu)


_KEYS = st.sampled_from([KEY, replace(KEY, scope="ml"), CacheKey("sha256:1"), None])
_TIMES = st.none() | st.floats(0, 40 * DAY)
_CACHES = st.lists(
    st.builds(
        lambda key, state, promoted, ended, used, size: cache(
            key=key,
            state=state,
            promoted_at=promoted,
            ended_at=ended,
            used_at=used,
            size_bytes=size,
        ),
        _KEYS,
        st.sampled_from(["published", "published", "published", "failed", "building", "expired"]),
        _TIMES,
        _TIMES,
        _TIMES,
        st.integers(0, 100),
    ),
    max_size=8,
).map(lambda found: [replace(one, id=f"{place:012}") for place, one in enumerate(found)])


@given(_CACHES)
def test_current_is_what_a_start_of_some_key_is_given(caches):
    keys = {one.key for one in caches if one.key is not None}
    chosen = {one.id for key in keys if (one := choose(caches, key)) is not None}
    assert currents(caches) == chosen
    by_id = {one.id: one for one in caches}
    assert all(is_offered(by_id[one]) for one in chosen)
    assert len({by_id[one].key for one in chosen}) == len(chosen)


@given(_CACHES, st.integers(0, 400), st.sets(st.integers(0, 7)))
def test_what_goes_is_enough_and_never_what_is_in_use_or_still_good(caches, cap, in_use):
    used = {f"{place:012}" for place in in_use}
    now = 40 * DAY
    gone = to_expire(caches, now, cap, used)
    by_id = {one.id: one for one in caches}
    assert len(set(gone)) == len(gone)
    assert all(by_id[one].state == "published" for one in gone)
    assert not used.intersection(gone)
    left = [one for one in caches if one.state == "published" and one.id not in gone]
    assert sum(one.size_bytes for one in left) <= cap or {one.id for one in left} <= used
    if sum(one.size_bytes for one in caches if one.state == "published") <= cap:
        assert not currents(caches).intersection(gone), "there is place for what starts are given"
    # Once it is done there is nothing more to do.
    after = [replace(one, state="expired") if one.id in gone else one for one in caches]
    is_full = sum(one.size_bytes for one in left) > cap
    assert is_full or not to_expire(after, now, cap, used)


# -- what has to go --------------------------------------------------------------------------------


def test_what_starts_are_given_stays_however_old():
    assert to_expire([cache(ended_at=0.0)], 1000 * DAY, 100) == ()


def test_what_was_taken_back_is_kept_for_a_roll_back_and_goes_then():
    one = cache(promoted_at=None, ended_at=100.0)
    assert to_expire([one], 100.0 + KEPT_S, 100) == ()
    assert to_expire([one], 101.0 + KEPT_S, 100) == ("a",)
    assert to_expire([replace(one, used_at=200.0)], 101.0 + KEPT_S, 100) == ()


def test_what_another_replaced_is_kept_from_then_on_also_when_nobody_had_used_it_for_long():
    old, new = cache("a"), cache("b", promoted_at=100 * DAY)
    assert to_expire([old, new], 101 * DAY, 100) == ()
    assert to_expire([old, new], 100 * DAY + KEPT_S + 1, 100) == ("a",)


def test_over_the_cap_those_go_that_were_used_longest_ago_and_the_given_ones_last():
    caches = [
        cache("a", used_at=5.0, size_bytes=10),
        cache("b", key=replace(KEY, scope="x"), used_at=3.0, size_bytes=10),
        cache("c", promoted_at=None, used_at=4.0, size_bytes=10),
        cache("d", promoted_at=None, used_at=2.0, size_bytes=10),
    ]
    assert to_expire(caches, 10.0, 40) == ()
    assert to_expire(caches, 10.0, 39) == ("d",)
    assert to_expire(caches, 10.0, 29) == ("d", "c")
    assert to_expire(caches, 10.0, 0) == ("d", "c", "b", "a")
    assert to_expire(caches, 10.0, 29, {"d"}) == ("c", "b")


# -- publishing ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("targets", "says"),
    [
        ([], "Nothing was compiled"),
        ([Target("gpt", 8, 40.0, None, 3)], "gpt at size 8 did not run in the second container."),
        ([Target("gpt", None, 40.0, 3.0, 0)], "gpt found nothing in the cache"),
        ([Target("gpt", 8, 40.0, 3.0, 3, 2)], "had to compile 2 graphs anew"),
        ([Target("gpt", 8, 40.0, 36.1, 3)], "the cache does not help"),
        (
            [Target("gpt", 8, 40.0, 3.0, 3), Target("gpt", 16, None, 3.0, 0)],
            "gpt at size 16 found nothing",
        ),
    ],
)
def test_a_build_that_proves_nothing_is_not_published(targets, says):
    assert says in why_not_published(targets)


def test_a_build_that_found_every_graph_and_is_faster_is_published():
    fine = [Target("gpt", 8, 40.0, 3.0, 3), Target("gpt", 16, None, 3.1, 3)]
    assert why_not_published(fine) == ""
    # One small target's seconds are noise beside the others'.
    assert why_not_published([*fine, Target("mlp", None, 2.0, 2.1, 1)]) == ""
    assert why_not_published([Target("gpt", 16, None, 3.1, 3)]) == ""


def test_volumes_of_two_hubs_and_builds_differ():
    names = {
        name
        for hub in ("lab", "other")
        for one in ("a", "b")
        for name in (volumes_of(hub, one).cache, *volumes_of(hub, one).passing)
    }
    assert len(names) == 16


# -- in words --------------------------------------------------------------------------------------


def test_the_sums_are_of_what_can_be_compared():
    one = cache(targets=(Target("a", 8, 41.04, 3.21, 4), Target("a", 16, None, 3.0, 2)))
    assert words.first_steps(one) == (41.04, 3.21)
    assert words.hits(one) == 6
    assert words.first_steps(cache()) is None
    said = words.as_json(one, {"a"}, log=True)
    assert (said["cold_s"], said["warm_s"], said["standing"]) == (41.04, 3.21, "current")
    assert words.as_json(one, ())["standing"] == "kept"


@pytest.mark.parametrize(
    ("one", "says"),
    [
        (cache(), "NVIDIA H100, driver 580"),
        (cache(key=CacheKey("sha256:1")), "the CPU"),
        (cache(key=None), "any GPU"),
        (replace(cache(key=None), pool="teaching"), "a GPU of the pool teaching"),
        (replace(cache(key=None), gpus=0), "the CPU"),
    ],
)
def test_where_it_is_for(one, says):
    assert words.where(one) == says


def test_sizes_have_one_decimal():
    assert [words.megabytes(size) for size in (0, 1, 12_345_678)] == ["", "0.0 MB", "12.3 MB"]


@pytest.mark.parametrize(
    ("volume", "is_its"),
    [
        (private_volume("lab", "ana", "cv"), True),
        (private_volume("lab", "u-zoe-0123456789abcdef", "cv"), True),
        (private_volume("lab", "ana"), False),
        (private_volume("lab", "ana", "cv-2"), False),
        (private_volume("lab", "cv"), False),
        (private_volume("lab-2", "ana", "cv"), False),
        ("lab-home-ana--cv", False),
        ("lab-cache-ana--cv--cache", False),
    ],
)
def test_a_courses_private_caches_are_known_by_their_names(volume: str, is_its: bool) -> None:
    assert is_private_of("lab", "cv", volume) == is_its


@pytest.mark.parametrize(
    ("gpus", "share", "options"),
    [
        (0, "whole", {"share": "none"}),
        (1, "", {"gpus": 1, "pool": "teaching"}),
        (1, "mig:1g.10gb", {"gpus": 1, "pool": "teaching", "share": "mig:1g.10gb"}),
    ],
)
def test_a_build_asks_for_the_kind_of_gpu_that_its_courses_students_get(gpus, share, options):
    asked = options_of(replace(cache("c1"), image="lab:cpu", gpus=gpus, pool="teaching"), share)
    assert asked == {"image": "lab:cpu", "on_busy": "queue", **options}
