from __future__ import annotations

import pytest

from pytorch_spawner.core.grants import Grant
from pytorch_spawner.core.scheduling import Decisions
from tests.core.test_scheduling import HOUR, NOW, TWO, decide, gpu, held, lab, served, ticket

# Two pools of two; one device of pool z is held by who never stops.
POOLS = lab(gpu(0, "b"), gpu(1, "b"), gpu(2, "z"), gpu(3, "z"))
ENDLESS = held("eve", 3, grant="two")
LONG_AGO = {"since": NOW - 9 * HOUR}


def turn_over(grants: list[Grant], since: float) -> list[Decisions]:
    """Six hours in which both GPUs of pool b are held for an hour each, in turn, by single starts.

    In each half hour one of them falls free; ana, who wants two, is there all the time.
    """
    said = []
    for half_hour in range(12):
        other = 1 - half_hour % 2
        leases = [ENDLESS, held("zoe", other, grant="one", until=NOW + HOUR / 2)]
        wishes = [ticket("ana", 1, gpus=2, groups=("cv",), since=since), ticket("bob", 2)]
        said.append(decide(POOLS, wishes, grants, leases))
    return said


ONE = Grant("one", count=1, max_lease_s=3600)
ANA_ANYWHERE = Grant("two", "group", "cv", count=2)
ANA_FIRST_Z = [
    Grant("z", "user", "ana", pool="z", count=2),
    Grant("b", "group", "cv", pool="b", count=2),
]


@pytest.mark.parametrize("since", [NOW, NOW - 9 * HOUR], ids=["just come", "past the patience"])
@pytest.mark.parametrize(
    "grants", [[ANA_ANYWHERE], ANA_FIRST_Z], ids=["one grant, two pools", "two grants, a pool each"]
)
def test_who_wants_two_waits_where_they_will_be_free(grants: list[Grant], since: float) -> None:
    for said in turn_over([*grants, ONE], since):
        by_user = {waits.ticket.username: waits for waits in said.wait}
        assert by_user["ana"].expected_at == NOW + HOUR / 2
        # Bob's hour does not end before that; the other pool's free GPU is his as long as ana has
        # patience, for nobody knows when she could use it.
        given = [give.gpus[0].pool for give in said.give]
        assert given == (["z"] if since == NOW else [])


def test_past_the_patience_no_single_passes_in_any_pool_though_no_time_is_known() -> None:
    leases = [ENDLESS, held("zoe", 1, grant="one")]
    singles = [ticket(name, place) for place, name in enumerate(("bob", "cyd", "dan"), 2)]
    wishes = [ticket("ana", 1, gpus=2, groups=("cv",), **LONG_AGO), *singles]
    said = decide(POOLS, wishes, [ANA_ANYWHERE, ONE], leases)
    assert served(said) == []
    assert said.wait[0].expected_at is None
    free = decide(POOLS, wishes, [ANA_ANYWHERE, ONE], [ENDLESS])
    assert {give.ticket.username: [one.pool for one in give.gpus] for give in free.give} == {
        "ana": ["b", "b"],
        "bob": ["z"],
    }


def test_within_the_patience_singles_get_what_is_free_elsewhere() -> None:
    leases = [ENDLESS, held("zoe", 1, grant="one")]
    wishes = [ticket("ana", 1, gpus=2, groups=("cv",)), ticket("bob", 2), ticket("cyd", 3)]
    said = decide(POOLS, wishes, [ANA_ANYWHERE, ONE], leases)
    assert {give.ticket.username: give.gpus[0].pool for give in said.give} == {"bob": "z"}


def test_past_the_patience_the_other_pools_are_lent_to_who_ends_in_time() -> None:
    leases = [ENDLESS, held("zoe", 1, grant="one", until=NOW + 2 * HOUR)]
    wishes = [ticket("ana", 1, gpus=2, groups=("cv",), **LONG_AGO)]
    wishes += [ticket(name, place) for place, name in enumerate(("bob", "cyd", "dan"), 2)]
    said = decide(POOLS, wishes, [ANA_ANYWHERE, ONE], leases)
    assert served(said) == ["bob", "cyd"]
    assert [waits.ticket.username for waits in said.wait] == ["ana", "dan"]


def test_who_comes_behind_is_told_no_time_at_which_the_gpu_is_kept_for_another() -> None:
    """Zoe's GPU ends first, but ana keeps it until she is served in the other pool."""
    inventory = lab(gpu(0, "b"), gpu(1, "b"), gpu(2, "z"), gpu(3, "z"))
    leases = [
        held("eve", 3, grant="two"),
        held("zoe", 2, grant="one", until=NOW + HOUR),
        held("fay", 0, grant="one", until=NOW + 2 * HOUR),
    ]
    wishes = [
        ticket("ana", 1, gpus=2, groups=("cv",), **LONG_AGO),
        ticket("bob", 2, pool="z"),
    ]
    brief = Grant("one", count=1, max_lease_s=3 * 3600)
    said = decide(inventory, wishes, [ANA_ANYWHERE, brief], leases)
    told = {waits.ticket.username: waits.expected_at for waits in said.wait}
    assert told == {"ana": NOW + 2 * HOUR, "bob": NOW + 2 * HOUR}


def test_a_place_that_the_grant_does_not_outlast_is_not_waited_for() -> None:
    """The first grant's pool is free sooner, but by then the grant is over."""
    grants = [
        Grant("z", "user", "ana", pool="z", count=2, valid_until=NOW + HOUR),
        Grant("b", "group", "cv", pool="b", count=2),
        TWO,
    ]
    leases = [
        held("eve", 2, 3, grant="two", until=NOW + HOUR),
        held("fay", 0, 1, grant="two", until=NOW + 2 * HOUR),
    ]
    wish = ticket("ana", 1, gpus=2, groups=("cv",), pool="")
    said = decide(POOLS, [wish], grants[:2], leases)
    assert said.wait[0].expected_at == NOW + 2 * HOUR


@pytest.mark.parametrize("until", [NOW + HOUR, None], ids=["both at one time", "nobody knows when"])
def test_on_a_tie_the_pool_with_more_free_is_kept(until: float | None) -> None:
    inventory = lab(*(gpu(number, "ab"[number // 3]) for number in range(6)))
    leases = [held("eve", 0, 1, 3, grant="three", until=until)]
    wishes = [ticket("ana", 1, gpus=3, groups=("cv",)), *(ticket(n, 2) for n in ("bob", "cyd"))]
    grants = [Grant("three", "group", "cv", count=3), Grant("one", max_lease_s=7200)]
    said = decide(inventory, wishes, grants, leases)
    assert [give.gpus[0].pool for give in said.give] == ["a"]
