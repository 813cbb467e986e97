from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pytorch_spawner.core.gpus import LINKS, Gpu, GpuUuid, Inventory, Link
from pytorch_spawner.core.nearness import nearest
from pytorch_spawner.core.placement import (
    PREFERENCES,
    Board,
    Device,
    DeviceSetting,
    Holding,
    with_settings,
)


def gpu(number: int, memory_mib: int | None = 40_000, **more: object) -> Gpu:
    return Gpu(GpuUuid(f"GPU-{number:04d}"), number, memory_mib=memory_mib, **more)


def board(gpus: list[Gpu], taken: dict | None = None, preference: str = "pack") -> Board:
    return Board(Inventory(tuple(gpus)), taken or {}, {}, preference)


def numbers(devices: list[Device] | None) -> list[int] | None:
    return None if devices is None else [device.gpu.index for device in devices]


def find(on: Board, count: int = 1, share: str = "any", **more: object) -> list[int] | None:
    return numbers(on.find(on.kind("", (), share, ""), count, **more))


# -- preference ----------------------------------------------------------------------------------

# Two slots each: 0 is half full and of 40 GiB, 1 is empty and of 40 GiB, 2 is empty and of 80 GiB,
# 3 is half full and of 80 GiB.
MIXED = [
    gpu(0, 40_960, mode="shared:2"),
    gpu(1, 40_960, mode="shared:2"),
    gpu(2, 81_920, mode="shared:2"),
    gpu(3, 81_920, mode="shared:2"),
]
HALF = {"GPU-0000": {0}, "GPU-0003": {1}}


@pytest.mark.parametrize(
    ("preference", "order"),
    [
        ("pack", [0, 1, 3, 2]),
        ("spread", [1, 2, 0, 3]),
        ("largest", [2, 3, 1, 0]),
        ("index", [0, 1, 2, 3]),
    ],
    ids=[
        "pack: the smallest that will do, the fullest first",
        "spread: the emptiest first, the smaller of two",
        "largest: the most memory first, the emptier of two",
        "index: as nvidia-smi lists them",
    ],
)
def test_which_device_comes_first(preference: str, order: list[int]) -> None:
    for gpus in itertools.permutations(MIXED):
        left, got = list(gpus), []
        while left:
            (chosen,) = find(board(left, HALF, preference))
            got.append(chosen)
            left = [one for one in left if one.index != chosen]
        assert got == order


def test_every_preference_has_a_test() -> None:
    assert set(PREFERENCES) == {"pack", "spread", "largest", "index"}


def test_a_device_of_unknown_memory_is_chosen_like_any_other() -> None:
    for preference in PREFERENCES:
        assert find(board([gpu(0, None)], preference=preference)) == [0]


def test_packing_fills_a_shared_gpu_before_the_next() -> None:
    on = board(MIXED[:2])
    kind = on.kind("", (), "any", "")
    taken = [on.take(on.find(kind, 1)[0]) for _ in range(4)]
    assert taken == [Holding(f"GPU-{n:04d}", slot, 2) for n in (0, 1) for slot in (0, 1)]
    assert on.find(kind, 1) is None


def test_spreading_uses_every_gpu_once_before_any_twice() -> None:
    on = board(MIXED[:2], preference="spread")
    kind = on.kind("", (), "any", "")
    taken = [on.take(on.find(kind, 1)[0]) for _ in range(4)]
    assert [(hold.gpu[-1], hold.slot) for hold in taken] == [("0", 0), ("1", 0), ("0", 1), ("1", 1)]


# -- nearness ------------------------------------------------------------------------------------


def box(count: int, pairs: list[tuple[int, int]], numa: int = 0, **more: object) -> list[Gpu]:
    """A host whose pairs are bridged by NVLink; inside a half the PCIe switch, else the system."""
    bridged = {frozenset(pair) for pair in pairs}

    def kind(one: int, other: int) -> str:
        if frozenset((one, other)) in bridged:
            return "nvlink"
        return "pcie-switch" if one * 2 // count == other * 2 // count else "system"

    return [
        gpu(
            one,
            numa_node=one // numa if numa else None,
            links=tuple(
                Link(GpuUuid(f"GPU-{other:04d}"), kind(one, other))
                for other in range(count)
                if other != one
            ),
            **more,
        )
        for one in range(count)
    ]


BRIDGED = box(8, [(0, 3), (1, 2), (4, 7), (5, 6)])
NUMA = [gpu(number, numa_node=number % 2) for number in range(4)]


@pytest.mark.parametrize(
    ("gpus", "held", "count", "got"),
    [
        (BRIDGED, (), 2, {0, 3}),
        (BRIDGED, (0,), 2, {1, 2}),
        (BRIDGED, (0, 1), 2, {4, 7}),
        (BRIDGED, (0, 1, 4, 5), 2, {2, 3}),
        (BRIDGED, (), 4, {0, 1, 2, 3}),
        (BRIDGED, (1,), 4, {4, 5, 6, 7}),
        (BRIDGED, (1, 5), 3, {0, 2, 3}),
        (NUMA, (), 2, {0, 2}),
        (NUMA, (0,), 2, {1, 3}),
        (NUMA, (0, 1), 2, {2, 3}),
        ([gpu(number) for number in range(4)], (1,), 2, {0, 2}),
        (BRIDGED, (), 8, set(range(8))),
    ],
    ids=[
        "two: a pair that NVLink bridges",
        "the pair is broken: the next pair",
        "two pairs are broken: a pair of the other half",
        "no pair is whole: two behind one switch",
        "four: one half",
        "half of it is held: the other half",
        "three: a pair and its neighbour",
        "nothing known of links: one NUMA node",
        "that node is half held: the other one",
        "one left on each node: both",
        "nothing known at all: the preferred ones",
        "all of them",
    ],
)
def test_several_gpus_reach_each_other_best(
    gpus: list[Gpu], held: tuple[int, ...], count: int, got: set[int]
) -> None:
    taken = {f"GPU-{number:04d}": {0} for number in held}
    for order in (gpus, gpus[::-1]):
        assert set(find(board(order, taken), count)) == got


def test_eight_of_one_kind_are_the_preferred_ones() -> None:
    assert find(board([gpu(number) for number in range(12)]), 8) == list(range(8))


def linked(kinds: dict[tuple[int, int], str], count: int) -> list[Gpu]:
    return [
        gpu(
            one,
            links=tuple(
                Link(GpuUuid(f"GPU-{other:04d}"), kinds[min(one, other), max(one, other)])
                for other in range(count)
                if other != one
            ),
        )
        for one in range(count)
    ]


def distances(kinds: dict[tuple[int, int], str], group: tuple[int, ...]) -> int:
    return sum(LINKS.index(kinds[pair]) for pair in itertools.combinations(group, 2))


def tree(shape: list[tuple[int, int, int]]) -> dict[tuple[int, int], str]:
    """Kinds of links of devices at (socket, switch, bridge)."""

    def kind(one: tuple[int, int, int], other: tuple[int, int, int]) -> str:
        if one[0] != other[0]:
            return "system"
        if one[1] != other[1]:
            return "numa-node"
        return "nvlink" if one[2] == other[2] else "pcie-switch"

    places = itertools.combinations(range(len(shape)), 2)
    return {(one, other): kind(shape[one], shape[other]) for one, other in places}


@given(st.lists(st.tuples(*[st.integers(0, 1)] * 3), min_size=2, max_size=8), st.integers(1, 8))
@example([(0, 0, 0)] * 4 + [(1, 0, 1), (1, 0, 0), (1, 0, 0)], 6)
def test_on_a_tree_of_links_the_nearest_group_is_found_and_the_first_of_them(
    shape: list[tuple[int, int, int]], count: int
) -> None:
    """Against every group there is."""
    kinds = tree(shape)
    count = min(count, len(shape))
    groups = itertools.combinations(range(len(shape)), count)
    best = min(groups, key=lambda group: (distances(kinds, group), group))
    assert nearest(linked(kinds, len(shape)), count) == best


@given(st.data())
def test_where_links_are_no_tree_a_pair_is_the_nearest_and_a_group_is_a_group(
    data: st.DataObject,
) -> None:
    n = data.draw(st.integers(2, 8))
    pairs = itertools.combinations(range(n), 2)
    kinds = {pair: data.draw(st.sampled_from(LINKS)) for pair in pairs}
    got = nearest(linked(kinds, n), 2)
    assert distances(kinds, got) == min(map(LINKS.index, kinds.values()))
    count = data.draw(st.integers(1, n))
    got = nearest(linked(kinds, n), count)
    assert len(set(got)) == count
    assert set(got) <= set(range(n))


def test_eight_in_a_cube_of_links_give_four_that_are_all_joined() -> None:
    """A DGX-1: NVLink inside each half, and from each GPU to its twin in the other half."""
    kinds = {
        (one, other): "nvlink" if one // 4 == other // 4 or other - one == 4 else "system"
        for one, other in itertools.combinations(range(8), 2)
    }
    assert nearest(linked(kinds, 8), 4) == (0, 1, 2, 3)
    assert nearest(linked(kinds, 8)[1:], 4) == (3, 4, 5, 6)


# -- pools, pins, reservations -------------------------------------------------------------------


def test_several_are_of_the_pool_of_the_preferred_one() -> None:
    gpus = [gpu(0, pool="b"), gpu(1, 20_000, pool="a"), gpu(2, pool="b"), gpu(3, pool="a")]
    assert set(find(board(gpus), 2)) == {1, 3}
    assert find(board(gpus), 3) is None
    on = board(gpus)
    assert numbers(on.find(on.kind("b", (), "any", ""), 2)) == [0, 2]


def test_pins_name_the_devices() -> None:
    on = Board(Inventory((gpu(0), gpu(1))), {}, {"GPU-0001": {"g"}}, "pack")
    pinned = on.kind("", (GpuUuid("GPU-0001"),), "any", "g")
    assert numbers(on.of_kind(pinned)) == [1]
    assert find(on) == [0]
    assert on.most_at_once(on.kind("", (), "any", "")) == 1
    assert on.most_at_once(on.kind("", (GpuUuid("GPU-0001"),), "any", "other")) == 0


@pytest.mark.parametrize(
    ("reserved_until", "ends_at", "is_given"),
    [(100.0, 100.0, True), (100.0, 100.5, False), (100.0, None, False), (None, None, True)],
    ids=["ends just in time", "ends too late", "nobody knows when", "not reserved"],
)
def test_a_reserved_device_is_lent_to_who_ends_in_time(
    reserved_until: float | None, ends_at: float | None, *, is_given: bool
) -> None:
    on = board([gpu(0)])
    on.devices[0].reserved_until = reserved_until
    assert (find(on, ends_at=ends_at) is not None) == is_given


def test_what_could_be_kept_is_told_for_each_pool_that_has_enough_in_service() -> None:
    gpus = [
        gpu(0, pool="a"),
        gpu(1, pool="a"),
        gpu(2, pool="b"),
        gpu(3, pool="b", drained="Fans."),
        gpu(4, pool="c"),
        gpu(5, pool="d"),
        gpu(6, pool="d"),
    ]
    on = board(gpus, {"GPU-0001": {0}, "GPU-0005": {0}, "GPU-0006": {0}})
    kind = on.kind("", (), "any", "")
    assert on.find(kind, 2) is None
    gathered = [(narrowed.pool, numbers(kept)) for narrowed, kept in on.gather(kind, 2)]
    assert gathered == [("a", [0]), ("d", [])]
    assert (on.most_at_once(kind), on.most_at_once(kind, in_service=True)) == (2, 2)
    assert on.most_at_once(on.kind("b", (), "any", ""), in_service=True) == 1


@pytest.mark.parametrize(
    ("one", "shares"),
    [
        (gpu(0), {"any", "whole"}),
        (gpu(0, mode="shared:2"), {"any", "slot"}),
        (gpu(0, mode="mig"), set()),
        (gpu(0, mig_profile="1g.10gb"), {"any", "mig:1g.10gb"}),
        (gpu(0, mig_profile="1g.10gb", mode="shared:2"), {"any", "slot", "mig:1g.10gb"}),
    ],
    ids=["whole", "shared", "cut into instances", "an instance", "a shared instance"],
)
def test_what_a_device_serves(one: Gpu, shares: set[str]) -> None:
    every = ("any", "whole", "slot", "mig:1g.10gb", "mig:2g.20gb")
    assert {share for share in every if find(board([one]), share=share)} == shares


# -- the admin's settings ------------------------------------------------------------------------

SHARED = gpu(0, mode="shared:2")


@pytest.mark.parametrize(
    "one",
    [gpu(0, mode="mig"), gpu(0, mig_profile="1g.10gb", parent="GPU-0009")],
    ids=["a GPU in MIG mode", "an instance"],
)
def test_a_mode_decided_before_the_gpu_was_cut_by_mig_is_ignored(one: Gpu) -> None:
    stale = DeviceSetting(one.uuid, pool="big", mode="shared:2", drained="Fans.")
    (got,) = with_settings(Inventory((one,)), [stale], {}).gpus
    assert (got.mode, got.pool, got.drained) == (one.mode, "big", "Fans.")


@pytest.mark.parametrize(
    ("setting", "in_force", "expected"),
    [
        ({}, {}, ("default", "shared:2", "")),
        ({"pool": "big"}, {}, ("big", "shared:2", "")),
        ({"drained": "Fans."}, {}, ("default", "shared:2", "Fans.")),
        ({"mode": "exclusive"}, {}, ("default", "exclusive", "")),
        ({"mode": "shared:4"}, {"GPU-0000": 4}, ("default", "shared:4", "")),
        (
            {"mode": "exclusive"},
            {"GPU-0000": 2},
            ("default", "shared:2", "It becomes exclusive once nobody holds it."),
        ),
        (
            {"mode": "mig"},
            {"GPU-0000": 2},
            ("default", "shared:2", "It becomes mig once nobody holds it."),
        ),
        (
            {},
            {"GPU-0000": 1},
            ("default", "exclusive", "It becomes shared:2 once nobody holds it."),
        ),
        (
            {"mode": "exclusive", "drained": "Fans."},
            {"GPU-0000": 2},
            ("default", "shared:2", "Fans."),
        ),
    ],
    ids=[
        "nothing decided",
        "another pool",
        "drained",
        "another mode, and empty",
        "it is in the wished mode already",
        "another mode, and in use: drained until it is empty",
        "to be cut into instances, and in use",
        "the driver's list changed while it is in use",
        "the admin's reason is the one that is said",
    ],
)
def test_what_is_scheduled_on(setting: dict, in_force: dict, expected: tuple) -> None:
    settings = [DeviceSetting(GpuUuid("GPU-0000"), **setting)] if setting else []
    settings.append(DeviceSetting(GpuUuid("GPU-9999"), pool="nowhere"))
    (got,) = with_settings(Inventory((SHARED,), ""), settings, in_force).gpus
    assert (got.pool, got.mode, got.drained) == expected


def test_a_reason_for_no_gpu_stays() -> None:
    assert with_settings(Inventory(reason="None."), [], {}).reason == "None."
