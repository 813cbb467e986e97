from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone

import pytest

from pytorch_spawner.core.gpus import Gpu, GpuUuid
from pytorch_spawner.core.grants import Grant, GrantBook, next_week
from pytorch_spawner.core.placement import Holding
from pytorch_spawner.core.scheduling import Decisions, Held, Ticket, Usage, schedule
from tests.core.test_scheduling import HOUR, NOW, decide, gpu, held, lab, ticket

FIVE = Grant("five", count=2, weekly_gpu_hours=5.0)
MONDAY = next_week(NOW)


def servers(*names: str) -> list[Ticket]:
    return [
        replace(ticket("ana", place, servername=name), id=f"t-{name}")
        for place, name in enumerate(names)
    ]


def hours_until(said: Decisions) -> dict[str, float]:
    return {give.ticket.servername: (give.until - NOW) / HOUR for give in said.give if give.until}


# -- servers side by side ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("until", "used_h", "expected_h"),
    [
        (NOW + 2 * HOUR, 0.0, 3.0),
        (NOW + 2 * HOUR, 1.0, 2.0),
        (NOW - HOUR, 0.0, 5.0),
        (None, 0.0, 2.5),
        (None, 1.0, 2.0),
    ],
    ids=[
        "the other one still uses two",
        "and one is used already",
        "the other one is at its end",
        "the other one has no end: they share",
        "they share what is left",
    ],
)
def test_what_another_server_will_use_is_not_there_twice(
    until: float | None, used_h: float, expected_h: float
) -> None:
    leases = [held("ana", 0, grant="five", until=until)]
    usage = Usage(week_h={("ana", "five"): used_h})
    said = decide(lab(gpu(0), gpu(1)), servers("two"), [FIVE], leases, usage)
    assert hours_until(said) == {"two": pytest.approx(expected_h)}


def test_a_heavier_server_without_an_end_leaves_less() -> None:
    three = replace(FIVE, count=3, weekly_gpu_hours=6.0)
    leases = [held("ana", 0, 1, grant="five")]
    said = decide(lab(gpu(0), gpu(1), gpu(2)), servers("two"), [three], leases)
    assert hours_until(said) == {"two": pytest.approx(2.0)}


def test_two_servers_in_one_decision_do_not_get_the_same_hours() -> None:
    grant = replace(FIVE, max_lease_s=4 * 3600)
    said = decide(lab(gpu(0), gpu(1)), servers("one", "two"), [grant])
    assert hours_until(said) == {"one": pytest.approx(4.0), "two": pytest.approx(1.0)}


def test_who_has_promised_all_hours_to_other_servers_is_told_which_to_stop() -> None:
    said = decide(lab(gpu(0), gpu(1)), servers("one", "two"), [FIVE])
    assert hours_until(said) == {"one": pytest.approx(5.0)}
    assert said.refuse[0].message == (
        "Your 5 GPU-hours of this week are used up or needed by your other servers until their "
        "time ends (grant of everyone). They start anew on Monday; until then stop one of those or "
        "start without a GPU."
    )


def test_a_server_that_comes_back_does_not_compete_with_what_is_kept_for_it() -> None:
    kept = held("ana", 0, grant="five", kept_until=NOW + 60, until=NOW + 5 * HOUR)
    said = decide(lab(gpu(0)), [ticket("ana")], [FIVE], [kept])
    assert [(give.resumes, give.until) for give in said.give] == [("l-ana", NOW + 5 * HOUR)]
    other = decide(lab(gpu(0), gpu(1)), servers("two"), [FIVE], [kept])
    assert other.refuse[0].code == "not-granted", "its hours are kept as its GPU is"


def test_hours_too_few_for_the_gpus_asked_for_are_none() -> None:
    """Two GPUs would use up what is left of the week within 45 seconds."""
    usage = Usage(week_h={("ana", "five"): 5.0 - 90 / HOUR})
    both = decide(lab(gpu(0), gpu(1)), [ticket("ana", gpus=2)], [FIVE], usage=usage)
    assert "are used up (grant of everyone)" in both.refuse[0].message
    one = decide(lab(gpu(0), gpu(1)), [ticket("ana")], [FIVE], usage=usage)
    assert one.give[0].until == pytest.approx(NOW + 90)


# -- the next week -------------------------------------------------------------------------------


def on_sunday(
    before_s: float, used_h: float, leases: list[Held] | None = None, weekly_h: float = 20.0
) -> Decisions:
    return schedule(
        lab(gpu(0), gpu(1)),
        leases or [],
        servers("two"),
        GrantBook([replace(FIVE, weekly_gpu_hours=weekly_h)]),
        Usage(week_h={("ana", "five"): used_h}),
        MONDAY - before_s,
    )


@pytest.mark.parametrize(
    ("before_s", "used_h", "expected_h"),
    [(0.5 * HOUR, 19.0, 20.0), (0.5 * HOUR, 19.75, -0.25), (HOUR, 19.0, 20.0), (10, 19.99, 20.0)],
    ids=["they last", "they do not last", "they last to the very second", "seconds before"],
)
def test_hours_that_last_to_monday_are_followed_by_a_full_week(
    before_s: float, used_h: float, expected_h: float
) -> None:
    (give,) = on_sunday(before_s, used_h).give
    assert give.until == pytest.approx(MONDAY + expected_h * HOUR)


def test_what_another_server_will_use_next_week_is_not_there_twice_either() -> None:
    leases = [held("ana", 0, grant="five", until=MONDAY + 4 * HOUR)]
    (give,) = on_sunday(0.5 * HOUR, 19.0, leases).give
    assert give.until == pytest.approx(MONDAY + 16 * HOUR)


def test_a_lease_does_not_reach_into_a_third_weeks_hours() -> None:
    (give,) = on_sunday(0.5 * HOUR, 0.0, weekly_h=500.0).give
    assert give.until == next_week(MONDAY)


# -- what is left of a grant ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spent", "leases"),
    [
        ({("ana", "vip"): 5.0}, []),
        ({}, [held("ana", 1, grant="vip")]),
    ],
    ids=["no hours left", "no room left"],
)
def test_a_grant_that_gives_nothing_more_gives_no_priority(spent: dict, leases: list[Held]) -> None:
    vip = Grant("vip", "user", "ana", weekly_gpu_hours=5.0, priority=50)
    wishes = [ticket("bob", 1), ticket("ana", 2, servername="two")]
    said = decide(
        lab(gpu(0), gpu(1, "held")),
        [replace(one, pool="default") for one in wishes],
        [vip, Grant("all")],
        leases,
        Usage(week_h=spent),
    )
    assert [give.ticket.username for give in said.give] == ["bob"]
    assert [waits.ticket.username for waits in said.wait] == ["ana"]


@pytest.mark.parametrize("ends_s", [2, 59])
def test_a_grant_about_to_end_gives_no_useless_lease(ends_s: float) -> None:
    said = decide(lab(gpu(0)), [ticket("ana")], [Grant("all", valid_until=NOW + ends_s)])
    ends_at = datetime.fromtimestamp(NOW + ends_s, timezone.utc)
    assert said.refuse[0].message == (
        f"Your grant (of everyone) ends at {ends_at:%Y-%m-%d %H:%M:%S} UTC, in less than a minute. "
        "Start without a GPU, or ask the lab's admin for a longer one."
    )


def test_a_minute_before_its_end_a_grant_still_gives_a_lease() -> None:
    said = decide(lab(gpu(0)), [ticket("ana")], [Grant("all", valid_until=NOW + 60)])
    assert said.give[0].until == NOW + 60


def test_a_limit_of_the_lab_below_the_shortest_lease_is_the_labs_own_choice() -> None:
    said = decide(lab(gpu(0)), [ticket("ana")], max_lease_s=5)
    assert said.give[0].until == NOW + 5


def test_two_servers_in_one_decision_are_named_when_the_grant_has_no_more() -> None:
    said = decide(lab(gpu(0), gpu(1)), servers("one", "two"), [Grant("all")])
    assert said.refuse[0].message == (
        "You already hold 1 of the 1 GPU that you may have (grant of everyone), in your server "
        "one. Stop that one first, or start without a GPU."
    )
    both = replace(FIVE, weekly_gpu_hours=None)
    said = decide(lab(gpu(0), gpu(1), gpu(2)), servers("one", "two", "three"), [both])
    assert "in your servers one, two. Stop one of them first" in said.refuse[0].message


# -- what a slot counts --------------------------------------------------------------------------


def quarters(name: str, number: int, hours: float) -> Held:
    uuid = GpuUuid(f"GPU-{number:04d}")
    holdings = tuple(Holding(uuid, slot, 4) for slot in range(4))
    return held(name, holdings=holdings, grant="all", until=NOW + hours * HOUR)


def quartered(number: int) -> Gpu:
    return gpu(number, mode="shared:4")


def test_who_waits_for_a_slot_uses_a_slots_hours_by_then() -> None:
    """The first server, for a quarter from hour 1 on, leaves enough for the second at hour 3."""
    wishes = [*servers("one", "two")]
    leases = [quarters("eve", 0, 1), quarters("fay", 1, 3)]
    # Those of one device end together: the other slots are told to others first.
    crowd = [ticket(name, -place) for place, name in enumerate("bcd", 1)]
    grants = [Grant("five", "user", "ana", count=2, weekly_gpu_hours=1.0), Grant("all")]
    said = decide(lab(quartered(0), quartered(1)), [*crowd, *wishes], grants, leases)
    told = {w.ticket.servername: w.expected_at for w in said.wait if w.ticket.username == "ana"}
    assert told == {"one": NOW + HOUR, "two": NOW + 3 * HOUR}
