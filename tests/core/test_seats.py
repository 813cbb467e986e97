"""What is kept for a class, from whom, and until when."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import datetime, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytorch_spawner.core.course_manifest import Manifest
from pytorch_spawner.core.course_text import parse_manifest
from pytorch_spawner.core.courses import SMOKER
from pytorch_spawner.core.gpus import Gpu, GpuUuid, Inventory
from pytorch_spawner.core.grants import Grant, GrantBook
from pytorch_spawner.core.placement import Holding
from pytorch_spawner.core.scheduling import schedule
from pytorch_spawner.core.seat_room import most_of, say_shortage, sizes_of
from pytorch_spawner.core.seats import Seats, Taken, open_seats, seats_of
from pytorch_spawner.core.tickets import Decisions, Held, Policy, Ticket, Usage
from tests.examples import examples

NINE = datetime(2026, 10, 12, 9, 0, tzinfo=timezone.utc).timestamp()
NOW = NINE - 300
UNTIL = NINE + 600
HOUR = 3600.0
ALL = Grant("all")
# Classes may have the whole lab.
UNBOUND = Policy(class_seats_share=1.0)


def gpu(number: int, pool: str = "default", **more: object) -> Gpu:
    return Gpu(GpuUuid(f"GPU-{number:04d}"), number, f"G{number}", pool=pool, **more)


def gpus(count: int, **more: object) -> Inventory:
    return Inventory(tuple(gpu(number, **more) for number in range(count)))


def ticket(name: str, seq: int, course: str = "", **more: object) -> Ticket:
    said = {"since": NOW, **more}
    return Ticket(f"t-{name}", name, seq=seq, course=course, **said)


def others(count: int) -> list[Ticket]:
    return [ticket(f"other{number}", number) for number in range(count)]


def students(count: int, course: str = "cv") -> list[Ticket]:
    """They come after everybody else."""
    first = 100 if course == "cv" else 200
    return [ticket(f"{course}{number}", first + number, course) for number in range(count)]


def held(name: str, number: int, **more: object) -> Held:
    said = {"holdings": (Holding(GpuUuid(f"GPU-{number:04d}")),), "grant": "all", **more}
    return Held(f"l-{name}", name, "", **said)


def seats(count: int, course: str = "cv", **more: object) -> Seats:
    said = {"since": NINE - 600, "until": UNTIL, "clock": "09:10 UTC", **more}
    return Seats(course, {"cv": "Computer vision"}.get(course, course.upper()), count, **said)


def decide(
    inventory: Inventory,
    tickets: list[Ticket],
    kept: list[Seats],
    grants: list[Grant] | None = None,
    leases: list[Held] | None = None,
    usage: Usage | None = None,
    policy: Policy = UNBOUND,
) -> Decisions:
    book = GrantBook([ALL] if grants is None else grants)
    return schedule(inventory, leases or [], tickets, book, usage or Usage(), NOW, policy, kept)


def served(said: Decisions) -> list[str]:
    return sorted(one.ticket.username for one in said.give)


def count_of(said: Decisions, prefix: str) -> int:
    return sum(name.startswith(prefix) for name in served(said))


# -- in a decision -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inventory", "tickets", "kept", "expected"),
    [
        (gpus(6), others(6), [seats(4)], {"other": 2}),
        (gpus(6), others(6) + students(3), [seats(4)], {"cv": 3, "other": 2}),
        (gpus(6), others(6) + students(6), [seats(4)], {"cv": 4, "other": 2}),
        (gpus(6), others(1) + students(6), [seats(4)], {"cv": 5, "other": 1}),
        (gpus(3), others(3), [seats(9)], {}),
        (gpus(3), others(3) + students(9), [seats(9)], {"cv": 3}),
        (gpus(1, mode="shared:4"), others(4), [seats(3)], {"other": 1}),
        (gpus(2, mode="shared:2"), others(4) + students(1), [seats(2)], {"cv": 1, "other": 2}),
        (gpus(5), others(5), [seats(2), seats(2, "ml")], {"other": 1}),
        (
            gpus(3),
            others(3) + students(2) + students(2, "ml"),
            [seats(2), seats(2, "ml")],
            {"cv": 2, "ml": 1},
        ),
        (gpus(2), others(2), [seats(1, share="slot")], {"other": 2}),
        (gpus(2), others(2), [seats(1, pool="elsewhere")], {"other": 2}),
        (gpus(2, drained="Fans."), others(2), [seats(1)], {}),
        (
            Inventory((gpu(0, drained="Fans."), gpu(1), gpu(2))),
            others(3),
            [seats(1)],
            {"other": 1},
        ),
        (
            Inventory((gpu(0, "teaching"), gpu(1, "teaching"), gpu(2, "research"))),
            others(3),
            [seats(9, pool="teaching")],
            {"other": 1},
        ),
    ],
    ids=[
        "what nobody takes is withheld",
        "students come first, though they came last",
        "whoever is one too many queues like everybody else",
        "and gets what is free then",
        "more seats than devices withhold all of them",
        "and students get all of them",
        "slots are kept one by one",
        "slots of two devices",
        "two classes at once",
        "two classes for fewer devices: by order of arrival",
        "a share that there is none of keeps nothing",
        "nor does a pool that there is not",
        "what is out of service is not kept, and not given",
        "nor counted as a seat",
        "only in the pool that the course asks for",
    ],
)
def test_who_gets_what(
    inventory: Inventory, tickets: list[Ticket], kept: list[Seats], expected: dict[str, int]
) -> None:
    said = decide(inventory, tickets, kept)
    found = Counter(name.rstrip("0123456789") for name in served(said))
    assert found == expected
    assert len(said.give) + len(said.wait) == len(tickets)
    again = decide(inventory, tickets[::-1], kept)
    assert said == again, "the order of the input decides nothing"


def test_who_waits_because_of_a_class_is_told_so_and_until_when() -> None:
    said = decide(gpus(6), others(4), [seats(4)], leases=[held("eve", 5)])
    assert served(said) == ["other0"]
    first, second, _ = said.wait
    text = "4 GPUs are kept for the class Computer vision until 09:10 UTC."
    assert first.reason == f"Nobody is ahead of you; {text}"
    assert second.reason == f"1 ahead of you; {text}"
    assert [one.expected_at for one in said.wait] == [UNTIL] * 3


@pytest.mark.parametrize(
    ("inventory", "kept", "text"),
    [
        (gpus(1), [seats(1)], "1 GPU is kept for the class Computer vision until 09:10 UTC."),
        (
            gpus(1, mode="shared:3"),
            [seats(3)],
            "3 slots are kept for the class Computer vision until 09:10 UTC.",
        ),
        (
            gpus(1, mig_profile="1g.10gb"),
            [seats(1, share="mig:1g.10gb")],
            "1 MIG instance is kept for the class Computer vision until 09:10 UTC.",
        ),
        (
            gpus(3),
            [seats(2), seats(2, "ml", clock="09:40 UTC")],
            "2 GPUs are kept for the class Computer vision until 09:10 UTC; 1 GPU is kept for the "
            "class ML until 09:40 UTC.",
        ),
    ],
    ids=["one GPU", "slots", "a MIG instance", "two classes take turns"],
)
def test_what_is_kept_is_said_in_its_own_words(
    inventory: Inventory, kept: list[Seats], text: str
) -> None:
    (wait,) = decide(inventory, others(1), kept).wait
    assert wait.kept == text


def test_who_could_never_have_had_what_is_kept_is_not_told_of_it() -> None:
    inventory = Inventory((gpu(0, "teaching"), gpu(1, "research")))
    grants = [Grant("t", "group", "cv", pool="teaching"), Grant("r", pool="research")]
    kept = [seats(1, groups=("cv",), pool="teaching")]
    said = decide(inventory, others(2), kept, grants)
    assert served(said) == ["other0"]
    assert said.wait[0].kept == ""


def test_a_seat_that_is_not_free_takes_the_next_gpu_before_the_queue() -> None:
    leases = [held("eve", 0, until=NOW + 120), held("fay", 1, until=NOW + 240)]
    tickets = [*others(1), *students(1)]
    said = decide(gpus(2), tickets, [seats(1)], leases=leases)
    assert [(one.ticket.username, one.expected_at) for one in said.wait] == [
        ("cv0", NOW + 120),
        ("other0", NOW + 240),
    ]
    # And it does so once the first of them is free.
    later = decide(gpus(2), tickets, [seats(1)], leases=leases[1:])
    assert served(later) == ["cv0"]


def test_a_seat_nobody_came_for_yet_counts_in_what_others_are_told() -> None:
    leases = [held("eve", 0, until=NOW + 120), held("fay", 1, until=UNTIL + 240)]
    said = decide(gpus(2), others(2), [seats(1)], leases=leases)
    assert [one.expected_at for one in said.wait] == [UNTIL, UNTIL + 240]
    later = decide(gpus(2), others(2), [seats(1)], leases=leases[1:])
    assert served(later) == []


@pytest.mark.parametrize(
    "odd",
    [
        {"gpus": 2},
        {"share": "slot"},
        {"pool": "research"},
        {"is_away": True},
        {"course": ""},
        {"course": "ml"},
        {"username": SMOKER},
    ],
    ids=str,
)
def test_what_is_no_start_of_the_class_takes_no_seat(odd: dict[str, object]) -> None:
    inventory = Inventory((gpu(0), gpu(1), gpu(2, "research", mode="shared:2")))
    grants = [Grant("all", count=2)]
    ours = replace(ticket("ana", 9, "cv"), **odd)
    kept = [seats(2, share="whole", pool="default")]
    said = decide(inventory, [ours], kept, grants)
    assert all(one.gpus[0].pool == "research" for one in said.give)
    assert served(decide(inventory, [ticket("ana", 9, "cv")], kept, grants)) == ["ana"]


def test_several_gpus_each() -> None:
    grants = [Grant("all", count=2)]
    pairs = [replace(one, gpus=2) for one in students(3)]
    said = decide(gpus(6), others(6) + pairs, [seats(4, each=2)], grants)
    assert served(said) == ["cv0", "cv1", "other0", "other1"]


def test_what_the_class_cannot_be_given_is_not_kept_for_it() -> None:
    """Its grants say which devices are of any use to it."""
    inventory = Inventory((gpu(0, "teaching"), gpu(1, "research"), gpu(2, "research")))
    grants = [
        Grant("class", "group", "cv", pool="teaching"),
        Grant("staff", "user", "other0", pool="research"),
        Grant("staff1", "user", "other1", pool="research"),
    ]
    said = decide(inventory, others(2), [seats(3, groups=("cv",))], grants)
    assert served(said) == ["other0", "other1"]


def test_gpus_that_are_pinned_to_the_class_are_its_seats() -> None:
    grants = [Grant("pin", "group", "cv", gpus=(GpuUuid("GPU-0000"),)), ALL]
    ours = ticket("ana", 1, groups=("cv",))  # a start of hers that is not for the course
    kept = [seats(1, groups=("cv",))]
    said = decide(gpus(2), [ours, *others(2)], kept, grants)
    # She is given another one, by the grant to everyone.
    assert [(one.ticket.username, one.gpus[0].index) for one in said.give] == [("other0", 1)]
    student = ticket("cyd", 99, "cv", groups=("cv",))
    (first, _) = decide(gpus(2), [*others(2), student], kept, grants).give
    assert (first.ticket.username, first.gpus[0].index) == ("cyd", 0)


def test_a_students_own_grant_counts() -> None:
    inventory = Inventory((gpu(0, "teaching"), gpu(1, "research")))
    grants = [
        Grant("ana", "user", "ana", pool="teaching"),
        Grant("teachers", "group", "staff", pool="teaching"),
    ]
    teacher = ticket("eve", 1, groups=("staff",))
    kept = [seats(1, users=("ana", "bo"))]
    assert served(decide(inventory, [teacher], kept, grants)) == []
    both = [teacher, ticket("ana", 2, "cv")]
    assert served(decide(inventory, both, kept, grants)) == ["ana"]


def test_a_student_whose_hours_are_used_up_is_refused_and_the_seat_stays() -> None:
    grants = [Grant("all", weekly_gpu_hours=5.0)]
    used = Usage({}, {("cv0", "all"): 5.0})
    said = decide(gpus(1), [*others(1), *students(2)], [seats(1)], grants, usage=used)
    assert [one.ticket.username for one in said.refuse] == ["cv0"]
    assert served(said) == ["cv1"]


def test_a_server_that_comes_back_to_what_is_kept_for_it_is_before_every_class() -> None:
    kept_lease = held("eve", 0, kept_until=NOW + 60)
    back = Ticket("t-eve", "eve", seq=200, since=NOW)
    said = decide(gpus(1), [*students(1), back], [seats(1)], leases=[kept_lease])
    assert served(said) == ["eve"]


def test_a_class_is_before_whoever_waited_beyond_the_patience() -> None:
    old = ticket("other", 1, since=NOW - 9 * HOUR)
    said = decide(gpus(1), [old, *students(1)], [seats(1)])
    assert served(said) == ["cv0"]
    assert served(decide(gpus(1), [old], [])) == ["other"]


# -- what classes may have at most ---------------------------------------------------------------

TWO_POOLS = Inventory(
    tuple(gpu(n, "teaching" if n < 4 else "research") for n in range(8)),
)


@pytest.mark.parametrize(
    ("inventory", "share", "tickets", "kept", "expected"),
    [
        (gpus(10), 0.8, others(10), [seats(10)], {"other": 2}),
        (gpus(10), 0.8, others(10) + students(10), [seats(10)], {"cv": 8, "other": 2}),
        (gpus(4), 0.8, others(4), [seats(4)], {}),
        (gpus(1), 0.5, others(1), [seats(1)], {}),
        (gpus(5), 0.6, others(5), [seats(9)], {"other": 2}),
        (gpus(4), 0.0, others(4) + students(2), [seats(4)], {"other": 4}),
        (gpus(6), 0.5, others(6), [seats(2), seats(2, "ml")], {"other": 3}),
        (TWO_POOLS, 0.5, others(8), [seats(8)], {"other": 4}),
        (TWO_POOLS, 0.5, others(8), [seats(8, pool="teaching")], {"other": 6}),
        (TWO_POOLS, 0.5, others(8) + students(8), [seats(8)], {"cv": 4, "other": 4}),
        (gpus(2, mode="shared:4"), 0.5, others(8), [seats(8, share="slot")], {"other": 4}),
        (
            Inventory((*gpus(4).gpus, gpu(4, drained="Fans."), gpu(5, health="Xid 79"))),
            0.5,
            others(4),
            [seats(4)],
            {"other": 2},
        ),
        (gpus(4), 0.5, others(4), [seats(2, taken=("GPU-0002", "GPU-0003"))], {"other": 4}),
        (gpus(4), 0.5, others(4), [seats(2, taken=("GPU-0003",))], {"other": 3}),
    ],
    ids=[
        "four fifths of ten",
        "also once the students come: the others queue like everybody",
        "of four all, rounded up",
        "of one GPU the one",
        "three fifths of five are three",
        "none at all",
        "of all classes together",
        "of each pool, where any will do",
        "of the pool that is asked for",
        "of each pool, as the students come",
        "slots count one by one",
        "of what is in service",
        "what its students hold counts",
        "and leaves the rest",
    ],
)
def test_classes_get_their_share_and_the_rest_is_everybodys(
    inventory: Inventory,
    share: float,
    tickets: list[Ticket],
    kept: list[Seats],
    expected: dict[str, int],
) -> None:
    policy = Policy(class_seats_share=share)
    said = decide(inventory, tickets, kept, policy=policy)
    assert Counter(name.rstrip("0123456789") for name in served(said)) == expected
    assert decide(inventory, tickets[::-1], kept, policy=policy) == said


def test_a_seat_beyond_the_share_is_not_waited_for_either() -> None:
    leases = [held(name, n, until=NOW + 60 * (n + 1)) for n, name in enumerate(("eve", "fay"))]
    tickets = [*others(2), *students(2)]
    half = Policy(class_seats_share=0.5)
    said = decide(gpus(2), tickets, [seats(2)], leases=leases, policy=half)
    told = [(one.ticket.username, one.expected_at) for one in said.wait]
    assert told[:2] == [("cv0", NOW + 60), ("other0", NOW + 120)]


def test_staff_takes_a_students_seat_from_the_beginning_on_alone() -> None:
    teacher = ticket("zoe", 50, "cv")
    ours = seats(2, staff=("zoe",), begins_at=NINE)
    said = decide(gpus(2), [teacher], [ours])
    assert served(said) == []
    assert said.wait[0].kept == "2 GPUs are kept for the class Computer vision until 09:10 UTC."
    assert served(decide(gpus(2), [teacher, *students(1)], [ours])) == ["cv0"]
    assert served(decide(gpus(3), [teacher], [ours])) == ["zoe"], "what is nobody's seat"
    begun = replace(ours, begins_at=NOW)
    assert served(decide(gpus(2), [*others(2), teacher], [begun])) == ["zoe"]


# -- whatever happens ----------------------------------------------------------------------------

_MODES = st.sampled_from(["exclusive", "shared:2", "shared:4"])
_POOLS = st.sampled_from(["a", "b"])


@st.composite
def situations(draw: st.DrawFn) -> tuple[Inventory, list[Ticket], list[Seats], list[Held]]:
    inventory = Inventory(
        tuple(
            gpu(n, draw(_POOLS), mode=draw(_MODES), drained=draw(st.sampled_from(["", "", "X"])))
            for n in range(draw(st.integers(1, 5)))
        )
    )
    tickets = [
        ticket(
            f"u{n}",
            n,
            draw(st.sampled_from(["", "cv", "ml"])),
            gpus=draw(st.sampled_from([1, 1, 1, 2])),
            pool=draw(st.sampled_from(["", "a"])),
            is_away=draw(st.integers(0, 9)) == 0,
        )
        for n in range(draw(st.integers(0, 12)))
    ]
    kept = [
        seats(
            draw(st.integers(1, 8)),
            course,
            pool=draw(st.sampled_from(["", "a", "b"])),
            share=draw(st.sampled_from(["any", "any", "slot", "whole"])),
            each=draw(st.integers(1, 2)),
        )
        for course in draw(st.sampled_from([["cv"], ["ml"], ["cv", "ml"]]))
    ]
    leases = [
        Held(
            f"l{n}",
            f"h{n}",
            "",
            (Holding(one.uuid, 0, one.slots),),
            "all",
            until=draw(st.sampled_from([None, NOW + 60, UNTIL + 60])),
        )
        for n, one in enumerate(inventory.gpus)
        if draw(st.booleans())
    ]
    return inventory, tickets, kept, leases


GRANTS = [Grant("all", count=2)]


@given(situations())
@settings(max_examples=examples(400), deadline=None)
def test_nothing_is_given_twice_and_no_more_is_withheld_than_there_are_seats(
    situation: tuple[Inventory, list[Ticket], list[Seats], list[Held]],
) -> None:
    inventory, tickets, kept, leases = situation
    said = decide(inventory, tickets, kept, GRANTS, leases)
    slots = [(h.gpu, h.slot) for lease in leases for h in lease.holdings]
    slots += [(h.gpu, h.slot) for give in said.give for h in give.holdings]
    assert len(slots) == len(set(slots)), "a slot was given twice"
    told = [one.ticket.id for one in (*said.give, *said.wait, *said.refuse)]
    assert sorted(told) == sorted(one.id for one in tickets), "each is decided about once"
    cut = {one.uuid: one.slots for one in inventory.gpus}
    assert all(h.slot < cut[h.gpu] for give in said.give for h in give.holdings)
    assert all(not one.drained for give in said.give for one in give.gpus)
    # Without the seats, starts of one GPU get all there is: with them, that but the seats.
    ones = [replace(one, gpus=1, pool="", is_away=False) for one in tickets]
    free = len(decide(inventory, ones, [], GRANTS, leases).give)
    given_now = len(decide(inventory, ones, kept, GRANTS, leases).give)
    assert free - sum(one.count for one in kept) <= given_now <= free
    # A student who has a seat is never worse off for it.
    ours = [one for one in ones if one.course == "cv"][
        : sum(s.count for s in kept if s.course == "cv")
    ]
    with_seats = served(decide(inventory, ones, [seats(len(ours))] if ours else [], GRANTS, leases))
    alone = served(decide(inventory, ours, [], GRANTS, leases))
    assert {one.username for one in ours} & set(with_seats) >= set(alone) & set(with_seats)
    assert len([n for n in with_seats if n in {one.username for one in ours}]) >= len(alone)


@given(situations())
@settings(max_examples=examples(100), deadline=None)
def test_without_seats_a_decision_is_what_it_was(
    situation: tuple[Inventory, list[Ticket], list[Seats], list[Held]],
) -> None:
    inventory, tickets, _, leases = situation
    book = GrantBook(GRANTS)
    said = schedule(inventory, leases, tickets, book, Usage(), NOW, UNBOUND)
    assert decide(inventory, tickets, [], GRANTS, leases) == said
    assert not any(one.kept for one in said.wait)
    # Nor do seats that nothing could be kept for change who gets what.
    none = decide(inventory, tickets, [seats(3, "xx", share="mig:1g.10gb")], GRANTS, leases)
    assert (none.give, none.refuse) == (said.give, said.refuse)
    assert [replace(one, kept="") for one in none.wait] == list(said.wait)


@given(situations(), st.sampled_from([0.0, 0.3, 0.5, 0.8]))
@settings(max_examples=examples(200), deadline=None)
def test_whatever_is_asked_for_no_more_of_a_pool_is_withheld_than_the_share_says(
    situation: tuple[Inventory, list[Ticket], list[Seats], list[Held]], share: float
) -> None:
    inventory, _, kept, leases = situation
    policy = Policy(class_seats_share=share)
    sizes = sizes_of(inventory)
    for pool, size in sizes.items():
        ones = [replace(one, pool=pool) for one in others(20)]
        free = len(decide(inventory, ones, [], GRANTS, leases).give)
        given_now = len(decide(inventory, ones, kept, GRANTS, leases, policy=policy).give)
        assert free - given_now <= most_of(size, share)


# -- how many, and when --------------------------------------------------------------------------


def course(**more: object) -> Manifest:
    said = {
        "name": "cv",
        "title": "Computer vision",
        "source": {"git": "https://forge.example.org/cv.git"},
        "members": {"groups": ["cv"], "users": ["ana", "bo"], "staff": ["zoe"]},
        "timetable": {
            "timezone": "Europe/Berlin",
            "sessions": [{"start": "2026-10-12T11:00", "end": "2026-10-12T12:30"}],
        },
    }
    return parse_manifest({**said, **more})


def session(**more: object) -> dict[str, object]:
    said = {"start": "2026-10-12T11:00", "end": "2026-10-12T12:30", **more}
    return {"timetable": {"timezone": "Europe/Berlin", "sessions": [said]}}


@pytest.mark.parametrize(
    ("manifest", "seen", "count", "each"),
    [
        (course(), [], 2, 1),
        (course(), ["ana", "cyd", "zoe", SMOKER], 3, 1),
        (course(request={"gpus": 2}), ["cyd"], 6, 2),
        (course(request={"gpus": 0}), ["cyd"], None, 0),
        (course(**session(seats=8)), ["cyd"], 8, 1),
        (course(**session(seats=8), request={"gpus": 2}), [], 8, 2),
        (course(**session(seats=0)), ["cyd"], None, 1),
        (course(members={"groups": ["cv"]}), [], None, 1),
        (course(timetable={}), ["cyd"], None, 1),
    ],
    ids=[
        "one for each named student",
        "and for each who had a copy once, but not for staff or the service",
        "two GPUs for each",
        "a course without a GPU keeps none",
        "as many as the timetable says",
        "devices, not students",
        "a session that wants none",
        "a group of whom nobody was seen yet",
        "no timetable",
    ],
)
def test_how_many_seats_a_session_has(
    manifest: Manifest, seen: list[str], count: int | None, each: int
) -> None:
    found = seats_of(manifest, seen, NOW)
    assert [(one.count, one.each) for one in found] == ([] if count is None else [(count, each)])


def test_seats_are_told_on_the_courses_own_clocks() -> None:
    (one,) = seats_of(course(), [], NOW)
    assert (one.since, one.until, one.clock) == (NINE - 600, NINE + 600, "11:10 CEST")
    (brief,) = seats_of(course(**session(end="2026-10-12T11:05", seats=1)), [], NOW)
    assert (brief.until, brief.clock) == (NINE + 300, "11:05 CEST")
    assert one.groups == ("cv",)


def lease(course: str, username: str, count: int, since: float = NINE - 60) -> Taken:
    return Taken(course, username, tuple(f"GPU-{n:04d}" for n in range(count)), since)


@pytest.mark.parametrize(
    ("at", "taken", "left"),
    [
        (NINE - 601, [], []),
        (NINE - 600, [], [4]),
        (
            NINE,
            [
                lease("cv", "ana", 1),
                lease("cv", "bo", 1),
                lease("", "eve", 1),
                lease("ml", "fay", 1),
            ],
            [2],
        ),
        (NINE, [lease("cv", "ana", 4)], [3]),
        (NINE, [lease("cv", SMOKER, 1)], [4]),
        (NINE, [lease("cv", f"u{n}", 1) for n in range(5)], [0]),
        (NINE + 599, [], [4]),
        (NINE + 600, [], []),
    ],
    ids=[
        "more than ten minutes before",
        "ten minutes before",
        "what students of the course hold is taken",
        "but nobody takes more than one seat",
        "a smoke test takes none",
        "more students than seats",
        "ten minutes after, but for a second",
        "ten minutes after: a no-show's seat is everybody's",
    ],
)
def test_seats_are_kept_around_the_beginning(
    at: float, taken: list[Taken], left: list[int]
) -> None:
    planned = [seats(4), seats(9, since=NINE + 6 * HOUR, until=NINE + 7 * HOUR)]
    assert [one.count for one in open_seats(planned, taken, at)] == left


@pytest.mark.parametrize(
    ("since", "at", "left"),
    [(NINE - HOUR, NINE, 4), (NINE - 1, NINE + 60, 4), (NINE, NINE + 60, 3)],
    ids=["long before", "just before", "as anybody from the beginning on"],
)
def test_what_staff_holds_is_a_seat_only_if_it_was_given_after_the_beginning(
    since: float, at: float, left: int
) -> None:
    planned = [seats(4, staff=("zoe",), begins_at=NINE)]
    (one,) = open_seats(planned, [lease("cv", "zoe", 1, since)], at)
    assert one.count == left


def test_what_students_hold_is_told_for_the_bound_of_all_classes() -> None:
    leases = [lease("cv", "ana", 2), lease("cv", "bo", 1), lease("ml", "fay", 1)]
    (one,) = open_seats([seats(2)], leases, NINE)
    assert (one.count, one.taken) == (0, ("GPU-0000", "GPU-0000"))


def test_sessions_of_one_course_that_overlap_keep_seats_once() -> None:
    later = seats(6, since=NINE - 300, until=NINE + 900)
    for planned in ([seats(4), later], [later, seats(4)]):
        (one,) = open_seats(planned, [], NINE)
        assert (one.count, one.until) == (6, NINE + 900)


# -- what an instructor is told --------------------------------------------------------------------

SIZES = {"teaching": 10, "research": 4}


@pytest.mark.parametrize(
    ("asked", "pool", "share", "said"),
    [
        (8, "teaching", 0.8, ""),
        (
            9,
            "teaching",
            0.8,
            "it asks for 9 seats, and the lab keeps at most 8 of the 10 in the pool teaching for "
            "classes: the others queue. Ask an admin, who sets "
            "c.PyTorchSpawner.class_seats_share.",
        ),
        (12, "", 0.8, ""),
        (
            13,
            "",
            0.8,
            "it asks for 13 seats, and the lab keeps at most 12 of the 14 that there are for "
            "classes: the others queue. Ask an admin, who sets c.PyTorchSpawner.class_seats_share.",
        ),
        (
            11,
            "teaching",
            1.0,
            "it asks for 11 seats, and the pool teaching has 10: the others queue. Ask an admin "
            "for another pool, or for slots in place of whole GPUs.",
        ),
        (
            1,
            "gone",
            0.8,
            "it asks for 1 seat, and the pool gone has none in service: the others queue. Ask an "
            "admin for another pool, or for slots in place of whole GPUs.",
        ),
    ],
    ids=["just enough", "one too many", "of all pools", "beyond all", "beyond the pool", "no pool"],
)
def test_a_session_that_asks_for_more_than_classes_may_have_is_told_so(
    asked: int, pool: str, share: float, said: str
) -> None:
    assert say_shortage(asked, pool, SIZES, share) == said


def test_where_nobody_knows_the_gpus_nothing_is_said() -> None:
    assert say_shortage(99, "", {}, 0.8) == ""
