from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest

from pytorch_spawner.core.gpus import Gpu, GpuUuid, Inventory, parse_inventory
from pytorch_spawner.core.grants import Grant, GrantBook
from pytorch_spawner.core.placement import DeviceSetting, Holding, with_settings
from pytorch_spawner.core.scheduling import (
    Decisions,
    Held,
    Policy,
    Ticket,
    Usage,
    gpu_share,
    schedule,
)
from pytorch_spawner.errors import BadRequest

NOW = 1_790_000_000.0
HOUR = 3600.0
ALL = Grant("all")
TWO = Grant("two", count=2)


def gpu(number: int, pool: str = "default", **more: object) -> Gpu:
    facts = {"name": f"G{number}", "memory_mib": 40_000, **more}
    return Gpu(GpuUuid(f"GPU-{number:04d}"), number, pool=pool, **facts)


def lab(*gpus: Gpu) -> Inventory:
    return Inventory(gpus)


def ticket(name: str, seq: int = 1, **more: object) -> Ticket:
    said = {"since": NOW, **more}
    return Ticket(f"t-{name}", name, seq=seq, **said)


def held(name: str, *numbers: int, **more: object) -> Held:
    holdings = tuple(Holding(GpuUuid(f"GPU-{number:04d}")) for number in numbers)
    said = {"holdings": holdings, "grant": "all", "since": NOW - HOUR, **more}
    return Held(f"l-{name}", name, "", **said)


def decide(
    inventory: Inventory,
    tickets: list[Ticket],
    grants: list[Grant] | None = None,
    leases: list[Held] | None = None,
    usage: Usage | None = None,
    **policy: object,
) -> Decisions:
    book = GrantBook([ALL] if grants is None else grants)
    policy_ = Policy(**policy)
    return schedule(inventory, leases or [], tickets, book, usage or Usage(), NOW, policy_)


def served(said: Decisions) -> list[str]:
    return [given.ticket.username for given in said.give]


def waiting(said: Decisions) -> list[str]:
    return [waits.ticket.username for waits in said.wait]


def devices(said: Decisions) -> dict[str, list[int]]:
    return {
        given.ticket.username: [int(one.uuid[-4:]) for one in given.gpus] for given in said.give
    }


# -- order ---------------------------------------------------------------------------------------

CV = Grant("cv", "group", "cv", priority=5)
OLD = {"since": NOW - 5 * HOUR}


@pytest.mark.parametrize(
    ("tickets", "used_h", "first"),
    [
        ([ticket("ana", 1), ticket("bob", 2)], {}, "ana"),
        ([ticket("ana", 1), ticket("bob", 2, groups=("cv",))], {}, "bob"),
        ([ticket("ana", 1), ticket("bob", 2)], {"ana": 3.0}, "bob"),
        ([ticket("ana", 1), ticket("bob", 2)], {"ana": 3.4, "bob": 3.1}, "ana"),
        ([ticket("ana", 1), ticket("bob", 2)], {"ana": 3.6, "bob": 3.1}, "bob"),
        ([ticket("ana", 1), ticket("bob", 2, groups=("cv",))], {"bob": 99.0}, "bob"),
        ([ticket("ana", 1, groups=("cv",)), ticket("bob", 2, boost=6)], {}, "bob"),
        ([ticket("ana", 1, groups=("cv",)), ticket("bob", 2, boost=4)], {}, "ana"),
        ([ticket("ana", 1, groups=("cv",), boost=9), ticket("bob", 2, **OLD)], {}, "bob"),
        ([ticket("ana", 9, **OLD), ticket("bob", 2, **OLD)], {"bob": 50.0}, "bob"),
        ([ticket("ana", 1, is_away=True, **OLD), ticket("bob", 2)], {}, "bob"),
    ],
    ids=[
        "equals: who came first",
        "a higher priority comes first",
        "who used less comes first",
        "about the same use: who came first",
        "a step more use: the other one",
        "priority counts more than use",
        "an admin's boost adds to the priority",
        "a boost below the difference changes nothing",
        "who waited beyond the patience comes before every priority",
        "among those beyond the patience arrival alone counts",
        "who is away gets nothing",
    ],
)
def test_whose_turn_it_is(tickets: list[Ticket], used_h: dict[str, float], first: str) -> None:
    for order in itertools.permutations(tickets):
        said = decide(lab(gpu(0)), list(order), [ALL, CV], usage=Usage(used_h))
        assert served(said) == [first]
        assert len(said.wait) == 1


def test_who_is_away_keeps_the_place() -> None:
    tickets = [ticket("ana", 1, is_away=True), ticket("bob", 2)]
    said = decide(lab(gpu(0)), tickets, leases=[held("eve", 0)])
    assert [(waits.ticket.username, waits.place, waits.of) for waits in said.wait] == [
        ("ana", 1, 2),
        ("bob", 2, 2),
    ]


def test_who_is_away_keeps_no_device() -> None:
    tickets = [ticket("ana", 1, gpus=2, is_away=True), ticket("bob", 2)]
    said = decide(lab(gpu(0), gpu(1)), tickets, [TWO], [held("eve", 0)])
    assert devices(said) == {"bob": [1]}


# -- how long ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grant", "policy_s", "used_h", "expected_s"),
    [
        (ALL, None, 0.0, None),
        (ALL, 7200, 0.0, 7200.0),
        (Grant("all", max_lease_s=3600), 7200, 0.0, 3600.0),
        (Grant("all", max_lease_s=9000), 7200, 0.0, 7200.0),
        (Grant("all", valid_until=NOW + 600), 7200, 0.0, 600.0),
        (Grant("all", weekly_gpu_hours=10.0), None, 9.0, 3600.0),
        (Grant("all", weekly_gpu_hours=10.0, max_lease_s=60), None, 9.0, 60.0),
    ],
    ids=[
        "no limit, no end",
        "the lab's limit",
        "the grant's limit is the shorter one",
        "the lab's limit is the shorter one",
        "the grant ends",
        "the hours of the week end",
        "the hours last longer than the grant's limit",
    ],
)
def test_when_a_lease_ends(
    grant: Grant, policy_s: int | None, used_h: float, expected_s: float | None
) -> None:
    usage = Usage(week_h={("ana", "all"): used_h})
    said = decide(lab(gpu(0)), [ticket("ana")], [grant], usage=usage, max_lease_s=policy_s)
    until = said.give[0].until
    assert until == (None if expected_s is None else pytest.approx(NOW + expected_s))


@pytest.mark.parametrize(
    ("one", "share", "expected_s"),
    [
        (gpu(0, mode="shared:4"), "slot", 4 * HOUR),
        (gpu(0, mig_profile="2g.10gb"), "mig:2g.10gb", 3.5 * HOUR),
        (gpu(0), "whole", 1 * HOUR),
    ],
    ids=["a slot of four", "two of seven slices", "a whole GPU"],
)
def test_a_part_of_a_gpu_makes_the_hours_last_longer(
    one: Gpu, share: str, expected_s: float
) -> None:
    grant = Grant("all", weekly_gpu_hours=1.0)
    said = decide(lab(one), [ticket("ana", share=share)], [grant])
    assert said.give[0].until == pytest.approx(NOW + expected_s)
    assert gpu_share(one) == pytest.approx(HOUR / expected_s)


def test_two_gpus_use_the_hours_twice_as_fast() -> None:
    grant = replace(TWO, weekly_gpu_hours=1.0)
    said = decide(lab(gpu(0), gpu(1)), [ticket("ana", gpus=2)], [grant])
    assert said.give[0].until == pytest.approx(NOW + HOUR / 2)


def test_hours_of_another_grant_are_used_when_the_first_has_none_left() -> None:
    grants = [Grant("mine", "user", "ana", weekly_gpu_hours=2.0), ALL]
    usage = Usage(week_h={("ana", "mine"): 2.0})
    said = decide(lab(gpu(0)), [ticket("ana")], grants, usage=usage)
    assert said.give[0].grant.id == "all"


# -- what is refused -----------------------------------------------------------------------------

HOURS = Grant("h", "group", "cv", weekly_gpu_hours=2.5)
USED_UP = Usage(week_h={("ana", "h"): 2.49})


@pytest.mark.parametrize(
    ("wish", "grants", "usage", "leases", "code", "says"),
    [
        ({}, [], None, [], "not-granted", "No grant gives you a GPU."),
        ({}, [Grant("b", "user", "bob")], None, [], "not-granted", "No grant gives you a GPU."),
        (
            {"gpus": 2},
            [ALL],
            None,
            [],
            "not-granted",
            "No grant of yours covers this request (2 GPUs): everyone: it gives 1 GPU, not 2.",
        ),
        (
            {"pool": "big"},
            [Grant("p", pool="default")],
            None,
            [],
            "not-granted",
            "it is for the pool default, not big",
        ),
        (
            {"pool": "big"},
            [Grant("p", "user", "ana", gpus=(GpuUuid("GPU-0000"),))],
            None,
            [],
            "not-granted",
            "user ana: its GPUs are not in the pool big",
        ),
        (
            {"share": "slot"},
            [Grant("p", share="whole")],
            None,
            [],
            "not-granted",
            "it gives a whole GPU, not a slot",
        ),
        (
            {"image": "evil"},
            [Grant("p", images=("lab:1", "lab:2"))],
            None,
            [],
            "not-granted",
            "it is not for this image, but for lab:1, lab:2",
        ),
        (
            {"groups": ("cv",)},
            [HOURS],
            USED_UP,
            [],
            "not-granted",
            "Your 2.5 GPU-hours of this week are used up (grant of group cv). They start anew on "
            "Monday; until then start without a GPU.",
        ),
        (
            {"servername": "two"},
            [ALL],
            None,
            [held("ana", 0)],
            "not-granted",
            "You already hold 1 of the 1 GPU that you may have (grant of everyone), in your server "
            "default. Stop that one first, or start without a GPU.",
        ),
        (
            {"gpus": 3},
            [Grant("many", count=4)],
            None,
            [],
            "bad-request",
            "You asked for 3 GPUs, but this lab has 2. Ask for less, or start without a GPU.",
        ),
        (
            {"gpus": 2, "pool": "big"},
            [Grant("many", count=4)],
            None,
            [],
            "bad-request",
            "You asked for 2 GPUs, but the pool big has 1.",
        ),
        (
            {"share": "slot"},
            [ALL],
            None,
            [],
            "bad-request",
            "You asked for 1 slot, but this lab has none that you may use.",
        ),
    ],
    ids=[
        "no grant at all",
        "a grant for somebody else",
        "more than the grant gives",
        "another pool",
        "pinned GPUs of another pool",
        "another share",
        "another image",
        "no hours left",
        "the grant's count is used by another server",
        "more than any pool has",
        "more than this pool has",
        "no such device",
    ],
)
def test_what_is_refused_and_in_what_words(
    wish: dict, grants: list[Grant], usage: Usage | None, leases: list[Held], code: str, says: str
) -> None:
    inventory = lab(gpu(0), gpu(1), gpu(2, "big"))
    said = decide(inventory, [ticket("ana", **wish)], grants, leases, usage)
    (refused,) = said.refuse
    assert refused.code == code
    assert says in refused.message
    assert refused.message.endswith(".")


def test_a_lab_without_gpus_says_why() -> None:
    said = decide(Inventory(reason="The driver does not answer."), [ticket("ana")])
    assert said.refuse[0].message == (
        "This lab has no GPU. The driver does not answer. Start without one."
    )


def test_a_second_server_is_served_while_the_grant_has_room() -> None:
    tickets = [ticket("ana", 1, servername="two"), replace(ticket("ana", 2), id="t2")]
    tickets[1] = replace(tickets[1], servername="three")
    leases = [held("ana", 0, grant="two")]
    said = decide(lab(gpu(0), gpu(1), gpu(2)), tickets, [TWO], leases)
    assert devices(said) == {"ana": [1]}
    assert [refused.ticket.servername for refused in said.refuse] == ["three"]


# -- which devices -------------------------------------------------------------------------------

PIN = Grant("pin", "user", "ana", gpus=(GpuUuid("GPU-0000"),))


def test_a_pinned_gpu_is_reserved_for_its_grant() -> None:
    said = decide(lab(gpu(0), gpu(1)), [ticket("bob", 1), ticket("eve", 2)], [ALL, PIN])
    assert devices(said) == {"bob": [1]}
    assert waiting(said) == ["eve"]
    said = decide(lab(gpu(0), gpu(1)), [ticket("bob", 1), ticket("ana", 2)], [ALL, PIN])
    assert devices(said) == {"bob": [1], "ana": [0]}


def test_a_pin_that_is_not_valid_yet_reserves_nothing() -> None:
    later = replace(PIN, valid_from=NOW + 1)
    assert devices(decide(lab(gpu(0)), [ticket("bob")], [ALL, later])) == {"bob": [0]}


def test_who_is_pinned_gets_another_when_the_own_one_is_held() -> None:
    leases = [held("eve", 0)]
    said = decide(lab(gpu(0), gpu(1)), [ticket("ana")], [ALL, PIN], leases)
    assert devices(said) == {"ana": [1]}
    assert said.give[0].grant.id == "all"


def test_two_gpus_wait_where_enough_are_in_service() -> None:
    """The first grant's devices are out of service: the second one's are kept, one by one."""
    pins = (GpuUuid("GPU-0000"), GpuUuid("GPU-0001"))
    grants = [Grant("pin", "user", "ana", gpus=pins, count=2), TWO]
    inventory = lab(gpu(0, drained="Fans."), gpu(1), gpu(2), gpu(3))
    leases = [held("eve", 3, grant="two", until=NOW + HOUR)]
    tickets = [ticket("ana", 1, gpus=2), ticket("bob", 2)]
    said = decide(inventory, tickets, grants, leases)
    assert served(said) == []
    assert said.wait[0].expected_at == NOW + HOUR


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"drained": "Fans are changed."}, "Fans are changed."),
        ({"health": "It fell off the bus."}, "It fell off the bus."),
    ],
    ids=["drained", "unhealthy"],
)
def test_what_is_out_of_service_is_given_to_nobody(bad: dict, says: str) -> None:
    said = decide(lab(gpu(0, **bad)), [ticket("ana")])
    assert said.wait[0].reason == f"No GPU that you may use is in service: G0. {says}"
    assert said.wait[0].expected_at is None
    assert devices(decide(lab(gpu(0, **bad), gpu(1)), [ticket("ana")])) == {"ana": [1]}


def test_too_few_in_service_is_said() -> None:
    said = decide(lab(gpu(0, drained="Fans."), gpu(1)), [ticket("ana", gpus=2)], [TWO])
    assert said.wait[0].reason == (
        "Only 1 of the GPUs that you may use can be given: without G0. Fans."
    )
    tickets = [ticket("ana", 1, gpus=2), ticket("bob", 2)]
    said = decide(lab(gpu(0, drained="Fans."), gpu(1)), tickets, [TWO])
    assert devices(said) == {"bob": [1]}, "nothing is kept for who cannot be served"


MIG = (
    gpu(0, mode="mig"),
    gpu(1, mig_profile="1g.10gb", parent=GpuUuid("GPU-0000")),
    gpu(2, mig_profile="2g.20gb", parent=GpuUuid("GPU-0000")),
    gpu(3),
    gpu(4, mode="shared:2"),
)


@pytest.mark.parametrize(
    ("share", "got"),
    [("mig:1g.10gb", 1), ("mig:2g.20gb", 2), ("whole", 3), ("slot", 4)],
    ids=["this MIG profile", "that MIG profile", "a whole GPU", "a slot"],
)
def test_a_share_is_served_with_what_it_names(share: str, got: int) -> None:
    assert devices(decide(lab(*MIG), [ticket("ana", share=share)])) == {"ana": [got]}
    granted = decide(lab(*MIG), [ticket("ana")], [Grant("all", share=share)])
    assert devices(granted) == {"ana": [got]}, "what the grant says counts when the wish is open"


def test_a_gpu_cut_into_instances_is_given_to_nobody() -> None:
    said = decide(lab(MIG[0]), [ticket("ana")])
    assert said.refuse[0].code == "bad-request"


def test_slots_are_given_until_none_is_left() -> None:
    inventory = lab(gpu(0, mode="shared:3"))
    people = [ticket(name, place) for place, name in enumerate(("ana", "bob", "cyd", "dan"))]
    said = decide(inventory, people)
    assert [given.holdings[0] for given in said.give] == [
        Holding(GpuUuid("GPU-0000"), slot, 3) for slot in range(3)
    ]
    assert waiting(said) == ["dan"]


def test_two_slots_are_of_two_devices() -> None:
    one, other = gpu(0, mode="shared:2"), gpu(1, mode="shared:2")
    said = decide(lab(one, other), [ticket("ana", gpus=2, share="slot")], [TWO])
    assert sorted(devices(said)["ana"]) == [0, 1]
    refused = decide(lab(one), [ticket("ana", gpus=2, share="slot")], [TWO]).refuse
    assert "has 1" in refused[0].message


def test_several_gpus_are_of_one_pool() -> None:
    inventory = lab(gpu(0, "a"), gpu(1, "b"), gpu(2, "b"))
    assert devices(decide(inventory, [ticket("ana", gpus=2)], [TWO])) == {"ana": [1, 2]}


def test_a_device_whose_mode_changes_is_drained_until_it_is_empty() -> None:
    shared, wish = gpu(0, mode="shared:2"), DeviceSetting(GpuUuid("GPU-0000"), mode="exclusive")
    leases = [held("eve", holdings=(Holding(GpuUuid("GPU-0000"), 0, 2),))]
    inventory = with_settings(lab(shared), [wish], {"GPU-0000": 2})
    said = decide(inventory, [ticket("ana")], leases=leases)
    assert "It becomes exclusive once nobody holds it." in said.wait[0].reason
    inventory = with_settings(lab(shared), [wish], {})
    assert decide(inventory, [ticket("ana")]).give[0].holdings == (Holding(GpuUuid("GPU-0000")),)


def test_a_device_held_in_another_mode_is_taken_whole() -> None:
    leases = [held("eve", 0)]
    said = decide(lab(gpu(0, mode="shared:4")), [ticket("ana")], leases=leases)
    assert waiting(said) == ["ana"]


def test_a_container_without_a_lease_holds_its_device() -> None:
    leases = [replace(held("eve", 0), id="", grant="")]
    said = decide(lab(gpu(0)), [ticket("ana")], leases=leases)
    assert said.wait[0].reason == (
        "Nobody is ahead of you; the next GPU is free when somebody stops their server."
    )


# -- several GPUs and those behind them ----------------------------------------------------------

BOTH = lab(gpu(0), gpu(1))
HALF = [held("eve", 0, grant="two", until=NOW + 2 * HOUR)]


def test_what_is_free_is_kept_for_who_wants_two() -> None:
    said = decide(BOTH, [ticket("ana", 1, gpus=2), ticket("bob", 2)], [TWO], HALF)
    assert served(said) == []
    assert waiting(said) == ["ana", "bob"]


@pytest.mark.parametrize(
    ("longest_s", "is_served"),
    [(2 * 3600, True), (2 * 3600 + 1, False), (60, True), (None, False)],
    ids=[
        "it ends just when the other one is free",
        "it ends a second too late",
        "it is short",
        "nobody knows when it ends",
    ],
)
def test_only_who_surely_ends_before_may_use_it_meanwhile(
    longest_s: int | None, *, is_served: bool
) -> None:
    grants = [TWO, Grant("brief", "group", "cv", max_lease_s=longest_s, priority=-1)]
    tickets = [ticket("ana", 1, gpus=2, boost=9), ticket("bob", 2, groups=("cv",))]
    said = decide(BOTH, tickets, grants, HALF)
    assert served(said) == (["bob"] if is_served else [])


def test_nothing_is_lent_while_nobody_knows_when_the_other_one_is_free() -> None:
    leases = [held("eve", 0, grant="two")]
    tickets = [ticket("ana", 1, gpus=2), ticket("bob", 2)]
    said = decide(BOTH, tickets, [TWO], leases, max_lease_s=60)
    assert served(said) == []


def test_two_who_want_several_keep_different_devices() -> None:
    inventory = lab(*(gpu(number) for number in range(5)))
    leases = [held("eve", 0, grant="two", until=NOW + HOUR)]
    grants = [Grant("two", count=4)]
    tickets = [ticket("ana", 1, gpus=4), ticket("bob", 2, gpus=2), ticket("cyd", 3)]
    said = decide(inventory, tickets, grants, leases)
    assert devices(said) == {"ana": [1, 2, 3, 4]}
    assert waiting(said) == ["bob", "cyd"]


# -- a server that ended unexpectedly ------------------------------------------------------------

KEPT = held("ana", 0, kept_until=NOW + 60, until=NOW + HOUR)


def test_what_is_kept_is_given_back_out_of_turn() -> None:
    said = decide(BOTH, [ticket("bob", 1, boost=50), ticket("ana", 2)], leases=[KEPT])
    assert devices(said) == {"bob": [1], "ana": [0]}
    given = next(given for given in said.give if given.ticket.username == "ana")
    assert (given.resumes, given.until) == ("l-ana", NOW + HOUR)
    assert said.release == ("l-ana",)


def test_what_is_kept_is_given_to_nobody_else() -> None:
    said = decide(lab(gpu(0)), [ticket("bob")], leases=[KEPT])
    assert waiting(said) == ["bob"]
    assert said.wait[0].expected_at == NOW + 60
    assert said.release == ()


def test_what_was_kept_too_long_is_free() -> None:
    over = replace(KEPT, kept_until=NOW)
    said = decide(lab(gpu(0)), [ticket("bob")], leases=[over])
    assert devices(said) == {"bob": [0]}
    assert said.release == ("l-ana",)


def test_nothing_is_kept_beyond_the_end_of_the_lease() -> None:
    over = replace(KEPT, until=NOW)
    said = decide(lab(gpu(0)), [ticket("ana")], leases=[over])
    assert said.release == ("l-ana",)
    assert [(given.until, given.resumes) for given in said.give] == [(None, "")]
    soon = replace(KEPT, until=NOW + 5)
    assert decide(lab(gpu(0)), [ticket("bob")], leases=[soon]).wait[0].expected_at == NOW + 5


@pytest.mark.parametrize(
    ("inventory", "wish"),
    [
        (lab(gpu(0, drained="Fans."), gpu(1), gpu(2)), {}),
        (lab(gpu(0, health="It is hot."), gpu(1), gpu(2)), {}),
        (lab(gpu(1), gpu(2)), {}),
        (BOTH, {"share": "slot"}),
        (lab(gpu(0), gpu(1, mode="shared:2")), {"share": "slot"}),
    ],
    ids=["drained meanwhile", "unhealthy", "gone", "none such", "now another share is wanted"],
)
def test_what_does_not_fit_any_more_is_not_resumed(inventory: Inventory, wish: dict) -> None:
    said = decide(inventory, [ticket("ana", **wish)], leases=[KEPT])
    assert all(not given.resumes for given in said.give)
    assert [one.uuid for given in said.give for one in given.gpus] in ([], ["GPU-0001"])


def test_the_grant_is_gone_and_so_is_what_was_kept() -> None:
    said = decide(lab(gpu(0), gpu(1)), [ticket("ana")], [TWO], [KEPT])
    assert devices(said) == {"ana": [1]}
    assert said.release == ("l-ana",)


def test_what_is_kept_for_a_server_does_not_count_beside_it() -> None:
    said = decide(lab(gpu(0)), [ticket("ana")], leases=[KEPT])
    assert devices(said) == {"ana": [0]}
    assert said.refuse == ()


# -- what those who wait are told ----------------------------------------------------------------


def test_place_and_time_and_whose_server_ends() -> None:
    leases = [held("eve", 0, until=NOW + HOUR), held("fay", 1, until=NOW + 2 * HOUR)]
    people = [ticket(name, place) for place, name in enumerate(("ana", "bob", "cyd"))]
    said = decide(BOTH, people, leases=leases, max_lease_s=1800)
    told = [(waits.place, waits.of, waits.expected_at, waits.after) for waits in said.wait]
    assert told == [
        (1, 3, NOW + HOUR, "eve"),
        (2, 3, NOW + 1.5 * HOUR, "ana"),
        (3, 3, NOW + 2 * HOUR, "fay"),
    ]
    assert [waits.reason for waits in said.wait] == [
        "Nobody is ahead of you; the next GPU is expected when eve's time ends.",
        "1 ahead of you; a GPU is expected when the time of those who hold one ends.",
        "2 ahead of you; a GPU is expected when the time of those who hold one ends.",
    ]


def test_who_waits_for_other_devices_is_not_ahead() -> None:
    inventory = lab(gpu(0, "a"), gpu(1, "b"))
    people = [ticket("ana", 1, pool="a"), ticket("bob", 2, pool="b"), ticket("cyd", 3)]
    leases = [held("eve", 0), held("fay", 1)]
    said = decide(inventory, people, leases=leases)
    assert [(waits.place, waits.of) for waits in said.wait] == [(1, 2), (1, 2), (3, 3)]


def test_a_lease_that_is_overdue_is_expected_now() -> None:
    said = decide(lab(gpu(0)), [ticket("ana")], leases=[held("eve", 0, until=NOW - 5)])
    assert said.wait[0].expected_at == NOW


def test_a_second_slot_of_a_kept_device_is_no_second_device() -> None:
    """Two slots are wanted; one is free beside a busy one, and the other device is busy longer."""
    inventory = lab(gpu(0, mode="shared:2"), gpu(1, mode="shared:2"))

    def slots(name: str, number: int, ends_s: float, *which: int) -> Held:
        uuid = GpuUuid(f"GPU-{number:04d}")
        holdings = tuple(Holding(uuid, slot, 2) for slot in which)
        return held(name, holdings=holdings, until=NOW + ends_s)

    leases = [slots("eve", 0, 60, 0), slots("fay", 1, 3600, 0, 1)]
    said = decide(inventory, [ticket("ana", gpus=2)], [TWO], leases)
    assert said.wait[0].expected_at == NOW + 3600


def test_what_is_resumed_is_not_expected_when_it_would_have_been_released() -> None:
    said = decide(lab(gpu(0)), [ticket("ana", 1), ticket("bob", 2)], leases=[KEPT])
    assert said.wait[0].expected_at == NOW + HOUR


def test_what_is_resumed_in_this_very_pass_is_promised_to_nobody() -> None:
    """Whoever is ahead is told of the end that the resumed lease has, not of the kept one's."""
    tickets = [ticket("cyd", 1, gpus=2), ticket("ana", 2)]
    said = decide(BOTH, tickets, [TWO], leases=[replace(KEPT, grant="two")])
    assert devices(said) == {"ana": [0]}
    assert (said.wait[0].expected_at, said.wait[0].after) == (NOW + HOUR, "ana")


@pytest.mark.parametrize(
    ("others", "ends_s", "expected_s", "says"),
    [
        ([], HOUR + 60, HOUR, "Nobody is ahead of you; the next GPU is expected when eve's time"),
        (
            [],
            HOUR + 59,
            None,
            "No GPU is expected to be free before your grant ends (grant of grou",
        ),
        ([ALL], HOUR, HOUR, "Nobody is ahead of you; the next GPU is expected when eve's time"),
    ],
    ids=[
        "the grant lasts a minute longer",
        "the grant ends before a minute has passed",
        "it ends, and another one serves then",
    ],
)
def test_nobody_is_promised_a_time_at_which_the_grant_is_over(
    others: list[Grant], ends_s: float, expected_s: float | None, says: str
) -> None:
    grants = [Grant("brief", "group", "cv", valid_until=NOW + ends_s), *others]
    leases = [held("eve", 0, until=NOW + HOUR)]
    (waits,) = decide(lab(gpu(0)), [ticket("ana", groups=("cv",))], grants, leases).wait
    assert waits.expected_at == (None if expected_s is None else NOW + expected_s)
    assert says in waits.reason


def test_the_grant_is_said_to_who_is_served() -> None:
    said = decide(lab(gpu(0)), [ticket("ana")], [Grant("h", weekly_gpu_hours=20.0)])
    assert said.give[0].why == (
        "You get 1 GPU, priority 0, as everyone does; 20 of 20 h left this week."
    )


# -- the same input, the same answer -------------------------------------------------------------


def test_the_order_of_the_input_does_not_matter() -> None:
    inventory = lab(
        *(gpu(number, "a") for number in range(3)),
        *(gpu(number, "b", mode="shared:2") for number in range(3, 5)),
        gpu(5, "b", drained="Fans."),
    )
    grants = [ALL, TWO, CV, PIN, Grant("hours", weekly_gpu_hours=3.0, priority=5)]
    people = [
        ticket(name, place, gpus=1 + place % 2, groups=("cv",) if place % 3 else ())
        for place, name in enumerate("abcdefgh")
    ]
    leases = [
        held("x", 1, until=NOW + HOUR, grant="two"),
        held("y", 2, until=NOW + HOUR, grant="two"),
        held("z", 0, kept_until=NOW + 60, grant="all"),
    ]
    expected = decide(inventory, people, grants, leases)
    assert expected.give
    assert expected.wait
    draw = random.Random(3)
    for _ in range(50):
        gpus = list(inventory.gpus)
        for pile in (gpus, people, grants, leases):
            draw.shuffle(pile)
        assert decide(Inventory(tuple(gpus)), people, grants, leases) == expected


def test_an_unknown_preference_is_refused() -> None:
    with pytest.raises(ValueError, match="pack, spread, largest, index"):
        Policy(preference="random")


# -- the list of devices -------------------------------------------------------------------------


def test_a_static_list_names_every_fault() -> None:
    with pytest.raises(BadRequest) as refused:
        parse_inventory([{"uuid": "x"}, {"uuid": "GPU-1234", "memory_mib": -1, "colour": "red"}])
    for fault in ("device 0: uuid", "device 1: unknown key colour", "memory_mib -1"):
        assert fault in refused.value.public_message
    with pytest.raises(BadRequest, match="twice"):
        parse_inventory([{"uuid": "GPU-1234"}, {"uuid": "GPU-1234"}])


def test_a_static_list_is_read() -> None:
    inventory = parse_inventory([{"uuid": "GPU-1234", "compute_capability": "9.0"}])
    assert inventory.gpus[0].compute_capability == (9, 0)
    assert inventory.gpus[0].qualified_cdi_name == "nvidia.com/gpu=GPU-1234"
    assert parse_inventory([]).reason


@pytest.mark.parametrize(("used_h", "expected_s"), [(0.0, 3 * 3600.0), (3.0, None)])
def test_no_time_is_told_at_which_the_weeks_hours_are_used_up(
    used_h: float, expected_s: float | None
) -> None:
    """ana's other server runs on the same grant; bo's ends in three hours."""
    leases = [
        held("bo", 0, until=NOW + 3 * 3600),
        replace(held("ana", 1, grant="cv"), servername="first"),
    ]
    said = schedule(
        lab(gpu(0), gpu(1)),
        leases,
        [ticket("ana", servername="second")],
        GrantBook([Grant("cv", count=2, weekly_gpu_hours=5.0)]),
        Usage(week_h={("ana", "cv"): used_h}),
        NOW,
    )
    (wait,) = said.wait
    assert wait.expected_at == (None if expected_s is None else NOW + expected_s)
