from __future__ import annotations

import itertools
import json
from datetime import date, datetime, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytorch_spawner.core.gpus import Gpu, GpuUuid, Inventory
from pytorch_spawner.core.grant_rows import Known, parse_grants
from pytorch_spawner.core.grants import (
    Grant,
    GrantBook,
    count_of,
    covers,
    explain,
    hours,
    next_week,
    share_name,
    week_start,
)
from pytorch_spawner.errors import BadRequest

NOW = 1_790_000_000.0
ONE, OTHER = GpuUuid("GPU-0001"), GpuUuid("GPU-0002")
INVENTORY = Inventory(
    (
        Gpu(ONE, 0, memory_mib=81_920, pool="teaching", mode="shared:4"),
        Gpu(OTHER, 1, memory_mib=40_960, pool="research"),
    )
)
KNOWN = Known(frozenset({"ana", "bob"}), frozenset({"cv"}), INVENTORY)


def faults(*rows: object) -> tuple[str, ...]:
    with pytest.raises(BadRequest) as refused:
        parse_grants(rows, KNOWN)
    assert refused.value.public_message.startswith("The grants are not usable: ")
    assert refused.value.public_message.isprintable()
    return refused.value.faults


# -- reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"to": "user", "subject": "eve"}, "there is no user 'eve'"),
        ({"to": "group", "subject": "nlp"}, "there is no group 'nlp'"),
        ({"pool": "big"}, "there is no pool 'big'; there is teaching, research"),
        ({"gpus": ["GPU-9999"]}, "there is no GPU GPU-9999"),
        ({"gpus": ["0"]}, "gpus: '0' is not of the form GPU-... or MIG-..."),
        ({"gpus": [ONE, ONE]}, "gpus: names one GPU twice"),
        ({"gpus": [ONE], "count": 2}, "count is 2, of 1 pinned"),
        ({"gpus": [ONE], "pool": "teaching"}, "either gpus or pool, not both"),
        ({"subject": "ana"}, "a grant to everyone has no subject"),
        ({"to": "user"}, "a grant to a user names the user in subject"),
        ({"to": "group"}, "a grant to a group names the group in subject"),
        ({"to": "world"}, "to: "),
        ({"colour": "red"}, "unknown key colour"),
        ({"count": 0}, "count: "),
        ({"count": 65}, "count: "),
        ({"count": True}, "count: a number, not true or false"),
        ({"count": "many"}, "count: "),
        ({"priority": 101}, "priority: "),
        ({"priority": False}, "priority: a number, not true or false"),
        ({"share": "half"}, 'share: "any", "whole", "slot" or "mig:<profile>"'),
        ({"share": "mig:big"}, 'share: "any"'),
        ({"weekly_gpu_hours": 0}, "weekly_gpu_hours: "),
        ({"weekly_gpu_hours": float("nan")}, "weekly_gpu_hours: "),
        ({"weekly_gpu_hours": float("inf")}, "weekly_gpu_hours: "),
        ({"max_lease_s": 59}, "max_lease_s: "),
        ({"max_lease_s": True}, "max_lease_s: a number, not true or false"),
        ({"valid_from": "tomorrow"}, "valid_from: not a date: write 2026-10-01"),
        ({"valid_from": True}, "valid_from: not a date"),
        ({"valid_until": float("inf")}, "valid_until: not a date"),
        (
            {"valid_from": "2026-10-02", "valid_until": "2026-10-01"},
            "valid_until is not after valid_from",
        ),
        (
            {"valid_from": "2026-10-01", "valid_until": "2026-10-01"},
            "valid_until is not after valid_from",
        ),
        ({"id": "a b"}, "id: "),
        ({"id": ""}, "id: "),
        ({"images": "lab:1"}, "images: "),
        ("everyone", "grant 1: "),
        (None, "grant 1: "),
    ],
    ids=[
        "unknown user",
        "unknown group",
        "unknown pool",
        "unknown GPU",
        "an index for a GPU",
        "one GPU twice",
        "more than is pinned",
        "pins and a pool",
        "everyone with a subject",
        "a user without a name",
        "a group without a name",
        "neither user nor group nor everyone",
        "unknown key",
        "0 GPUs",
        "too many GPUs",
        "true for a count",
        "a word for a count",
        "priority too high",
        "false for a priority",
        "unknown share",
        "unknown MIG profile",
        "0 hours",
        "hours that are no number",
        "endless hours",
        "a lease of less than a minute",
        "true for a time",
        "a word for a date",
        "true for a date",
        "an endless date",
        "dates backwards",
        "dates equal",
        "an id with a space",
        "an empty id",
        "a text for a list",
        "no mapping",
        "nothing",
    ],
)
def test_a_fault_is_named(row: object, says: str) -> None:
    (fault,) = faults(row)
    assert fault.startswith("grant 1")
    assert says in fault


def test_every_fault_of_every_row_is_named_and_nothing_is_taken() -> None:
    found = faults({"id": "x", "count": 0, "colour": "red"}, {}, {"to": "user", "subject": "eve"})
    assert [fault.split(":")[0] for fault in found] == ["grant 1 (x)"] * 2 + ["grant 3"]


def test_two_of_one_id() -> None:
    assert faults({"id": "a"}, {"id": "a"}) == ("two grants have the id a",)
    assert faults({"id": "g2"}, {}) == ("two grants have the id g2",)


ANA, BOB = {"to": "user", "subject": "ana"}, {"to": "user", "subject": "bob"}


@pytest.mark.parametrize(
    ("one", "other", "is_refused"),
    [
        ({**ANA, "gpus": [ONE]}, {**BOB, "gpus": [ONE]}, True),
        ({**ANA, "gpus": [ONE]}, {**ANA, "gpus": [ONE]}, False),
        ({**ANA, "gpus": [ONE]}, {**BOB, "gpus": [OTHER]}, False),
        ({**ANA, "gpus": [ONE]}, {"gpus": [OTHER, ONE]}, True),
        (
            {**ANA, "gpus": [ONE], "valid_until": 2000},
            {**BOB, "gpus": [ONE], "valid_from": 2000},
            False,
        ),
        (
            {**ANA, "gpus": [ONE], "valid_until": 2001},
            {**BOB, "gpus": [ONE], "valid_from": 2000},
            True,
        ),
        ({**ANA, "gpus": [ONE], "valid_from": 1000}, {**BOB, "gpus": [ONE]}, True),
    ],
    ids=[
        "two people",
        "one person twice",
        "two GPUs",
        "a person and everyone",
        "one after the other",
        "a second too long",
        "one of them for ever",
    ],
)
def test_one_gpu_is_not_pinned_to_two_at_a_time(
    one: dict, other: dict, *, is_refused: bool
) -> None:
    for rows in ((one, other), (other, one)):
        if not is_refused:
            assert len(parse_grants(rows, KNOWN)) == 2
        else:
            (fault,) = faults(*rows)
            assert fault.startswith(f"{ONE} is pinned to ")
            assert fault.endswith("at the same time")


def test_names_that_nobody_knows_are_not_checked() -> None:
    rows = [{"to": "user", "subject": "eve"}, {"pool": "big"}, {"gpus": ["GPU-9999"]}]
    assert len(parse_grants(rows, Known())) == 3


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({}, Grant("g1")),
        ({"gpus": [ONE, OTHER]}, Grant("g1", gpus=(ONE, OTHER), count=2)),
        ({"gpus": [ONE, OTHER], "count": 1}, Grant("g1", gpus=(ONE, OTHER), count=1)),
        ({"valid_from": "1970-01-02"}, Grant("g1", valid_from=86_400.0)),
        ({"valid_from": date(1970, 1, 2)}, Grant("g1", valid_from=86_400.0)),
        ({"valid_from": datetime(1970, 1, 2, 1)}, Grant("g1", valid_from=90_000.0)),
        ({"valid_from": "1970-01-02T01:00:00+01:00"}, Grant("g1", valid_from=86_400.0)),
        ({"valid_from": "1970-01-02T00:00:00Z"}, Grant("g1", valid_from=86_400.0)),
        ({"valid_from": 86_400}, Grant("g1", valid_from=86_400.0)),
        ({"share": "mig:1g.10gb"}, Grant("g1", share="mig:1g.10gb")),
        ({"id": "lab:a-1", "source": "config"}, Grant("lab:a-1")),
    ],
    ids=[
        "nothing said: one for everyone",
        "all that is pinned",
        "one of those pinned",
        "a day begins at midnight UTC",
        "a date as YAML reads it",
        "a time without a zone is UTC",
        "a time with its zone",
        "a time in UTC",
        "Unix seconds",
        "a MIG profile",
        "where it was written is forgotten",
    ],
)
def test_a_row_is_read(row: dict, expected: Grant) -> None:
    assert parse_grants([row], KNOWN) == (expected,)


def test_a_count_that_nobody_said_is_the_labs() -> None:
    (grant,) = parse_grants([{}], KNOWN, source="config", default_count=3)
    assert (grant.count, grant.source) == (3, "config")


_IMAGES = st.from_regex(r"[!-+\--~]{1,9}", fullmatch=True)
whole_seconds = st.integers(1, 10**9).map(float)


@st.composite
def grants(draw: st.DrawFn) -> Grant:
    to = draw(st.sampled_from(["user", "group", "everyone"]))
    subject = {"user": "ana", "group": "cv", "everyone": ""}[to]
    pins = draw(st.sampled_from([(), (ONE,), (ONE, OTHER)]))
    start = draw(st.none() | whole_seconds)
    end = draw(st.none() | whole_seconds)
    return Grant(
        id=draw(st.from_regex(r"[A-Za-z0-9_.:-]{1,64}", fullmatch=True)),
        to=to,
        subject=subject,
        pool="" if pins else draw(st.sampled_from(["", "teaching"])),
        gpus=pins,
        count=draw(st.integers(1, len(pins) or 64)),
        share=draw(st.sampled_from(["any", "whole", "slot", "mig:1g.10gb", "mig:1g.24gb+me"])),
        priority=draw(st.integers(-100, 100)),
        weekly_gpu_hours=draw(st.none() | st.floats(0.1, 1000.0)),
        max_lease_s=draw(st.none() | st.integers(60, 10**6)),
        valid_from=start,
        valid_until=None if end is None else (start or 0.0) + end,
        images=tuple(draw(st.lists(_IMAGES, max_size=2))),
    )


@given(grants())
def test_what_is_exported_is_read_back_equal(grant: Grant) -> None:
    text = json.dumps(grant.as_json())
    assert parse_grants([json.loads(text)], KNOWN) == (grant,)


def test_what_is_not_set_is_not_exported() -> None:
    assert Grant("a").as_json() == {
        "id": "a",
        "to": "everyone",
        "count": 1,
        "share": "any",
        "source": "ledger",
    }
    assert Grant("a", valid_from=86_400.0).as_json()["valid_from"] == "1970-01-02T00:00:00+00:00"


# -- looking up ----------------------------------------------------------------------------------

BOOK = (
    Grant("e1"),
    Grant("e2", priority=50),
    Grant("g1", "group", "cv", count=2),
    Grant("g2", "group", "cv", count=3),
    Grant("g3", "group", "nlp", priority=7),
    Grant("u1", "user", "ana", priority=-9),
    Grant("u2", "user", "ana", priority=-9),
    Grant("u3", "user", "bob"),
    Grant("old", "user", "ana", priority=99, valid_until=NOW),
    Grant("new", "user", "ana", priority=99, valid_from=NOW + 1),
)


@pytest.mark.parametrize(
    ("user", "groups", "expected"),
    [
        ("ana", ("cv", "nlp"), ["u1", "u2", "g3", "g2", "g1", "e2", "e1"]),
        ("ana", ("nlp", "cv"), ["u1", "u2", "g3", "g2", "g1", "e2", "e1"]),
        ("bob", ("cv",), ["u3", "g2", "g1", "e2", "e1"]),
        ("cv", (), ["e2", "e1"]),
    ],
    ids=[
        "own, then groups by priority and count, then everyone's",
        "the order of the groups does not matter",
        "another person",
        "a person named like a group",
    ],
)
def test_which_grant_is_used_first(user: str, groups: tuple[str, ...], expected: list[str]) -> None:
    for order in itertools.islice(itertools.permutations(BOOK), 0, 4000, 97):
        book = GrantBook(order)
        assert [grant.id for grant in book.for_person(user, groups, NOW)] == expected
    assert GrantBook(BOOK).has_personal(user) == (user in ("ana", "bob"))


@pytest.mark.parametrize(
    ("now", "is_valid"),
    [(99.0, False), (100.0, True), (199.9, True), (200.0, False)],
    ids=["before", "from the first second", "to the last", "after"],
)
def test_a_grant_has_its_time(now: float, *, is_valid: bool) -> None:
    grant = Grant("a", gpus=(ONE,), valid_from=100.0, valid_until=200.0)
    assert grant.is_valid(now) is is_valid
    assert GrantBook([grant]).reserved(now) == ({ONE: {"a"}} if is_valid else {})


def test_a_gpu_is_reserved_for_every_grant_that_pins_it() -> None:
    book = GrantBook([Grant("a", gpus=(ONE,)), Grant("b", gpus=(ONE, OTHER)), Grant("c")])
    assert book.reserved(NOW) == {ONE: {"a", "b"}, OTHER: {"b"}}


WISH = {"gpus": 1, "share": "any", "pool": "", "image": "lab:1"}


@pytest.mark.parametrize(
    ("grant", "wish", "says"),
    [
        (Grant("a"), {}, ""),
        (Grant("a"), {"share": "slot", "pool": "x"}, ""),
        (Grant("a", share="slot", pool="x"), {}, ""),
        (Grant("a", count=2), {"gpus": 3}, "it gives 2 GPUs, not 3"),
        (Grant("a", share="slot"), {"gpus": 2}, "it gives 1 slot, not 2"),
        (Grant("a", share="slot"), {"share": "whole"}, "it gives a slot, not a whole GPU"),
        (
            Grant("a", share="whole"),
            {"share": "mig:1g.10gb"},
            "it gives a whole GPU, not a MIG instance 1g.10gb",
        ),
        (Grant("a", pool="x"), {"pool": "y"}, "it is for the pool x, not y"),
        (Grant("a", images=("lab:1",)), {}, ""),
        (Grant("a", images=("lab:2",)), {}, "it is not for this image, but for lab:2"),
    ],
    ids=[
        "all of it",
        "the grant leaves it open",
        "the wish leaves it open",
        "too many GPUs",
        "too many slots",
        "another share",
        "another share, MIG",
        "another pool",
        "this image",
        "another image",
    ],
)
def test_whether_a_grant_covers_a_wish(grant: Grant, wish: dict, says: str) -> None:
    assert covers(grant, **{**WISH, **wish}) == says


# -- words ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grant", "used_h", "sentence"),
    [
        (Grant("a"), 0.0, "ana gets 1 GPU, priority 0, as everyone does."),
        (
            Grant(
                "a", "group", "cv", share="slot", pool="teaching", priority=5, weekly_gpu_hours=20
            ),
            13.5,
            "ana gets 1 slot of 20 GiB on pool teaching, priority 5, because group cv; "
            "6.5 of 20 h left this week.",
        ),
        (
            Grant("a", "user", "ana", gpus=(OTHER,), max_lease_s=5400, images=("lab:1", "lab:2")),
            0.0,
            f"ana gets 1 GPU on {OTHER}, priority 0, because user ana; at most 1.5 h at a time; "
            "with lab:1, lab:2.",
        ),
        (
            Grant("a", count=4, valid_until=86_400.0),
            0.0,
            "ana gets at most 4 GPUs, priority 0, as everyone does; until 1970-01-02 00:00 UTC.",
        ),
        (
            Grant("a", weekly_gpu_hours=2.0),
            3.0,
            "ana gets 1 GPU, priority 0, as everyone does; 0 of 2 h left this week.",
        ),
        (
            Grant("a", count=2, share="mig:1g.10gb"),
            0.0,
            "ana gets at most 2 MIG 1g.10gb instances, priority 0, as everyone does.",
        ),
        (
            Grant("a", share="slot", pool="research"),
            0.0,
            "ana gets 1 slot on pool research, priority 0, as everyone does.",
        ),
    ],
    ids=[
        "the least",
        "a slot with its memory and hours",
        "a pinned GPU, a limit, images",
        "several, and an end",
        "more used than there was",
        "MIG instances",
        "slots where nothing is shared",
    ],
)
def test_what_a_person_is_told(grant: Grant, used_h: float, sentence: str) -> None:
    assert explain("ana", [grant], INVENTORY, {"a": used_h}) == [sentence]


def test_who_has_nothing_is_told_so() -> None:
    assert explain("ana", [], INVENTORY, {}) == [
        "ana gets no GPU, because no grant names ana, one of their groups, or everyone. An admin "
        "can add one."
    ]


def test_slots_of_several_sizes() -> None:
    small = Gpu(OTHER, 1, memory_mib=40_960, mode="shared:4")
    inventory = Inventory((INVENTORY.gpus[0], small))
    (told,) = explain("ana", [Grant("a", share="slot")], inventory, {})
    assert "1 slot of 10 to 20 GiB," in told


@pytest.mark.parametrize(
    ("value", "text"), [(6.5, "6.5"), (20.0, "20"), (0.04, "0"), (100.25, "100.2")], ids=str
)
def test_hours_in_words(value: float, text: str) -> None:
    assert hours(value) == text


def test_shares_and_counts_in_words() -> None:
    assert share_name("any") == "a GPU or slot"
    assert share_name("mig:1g.10gb") == "a MIG instance 1g.10gb"
    assert [count_of(n, "slot") for n in (1, 2)] == ["1 slot", "2 slots"]
    assert [count_of(n, "mig:1g.10gb") for n in (1, 2)] == [
        "1 MIG 1g.10gb instance",
        "2 MIG 1g.10gb instances",
    ]


# -- weeks ---------------------------------------------------------------------------------------


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=timezone.utc).timestamp()


@pytest.mark.parametrize(
    "moment",
    ["2026-09-21T00:00:00", "2026-09-23T12:00:00", "2026-09-27T23:59:59"],
    ids=["Monday's first second", "Wednesday", "Sunday's last second"],
)
def test_a_week_is_from_monday_to_sunday(moment: str) -> None:
    assert week_start(at(moment)) == at("2026-09-21T00:00:00")
    assert next_week(at(moment)) == at("2026-09-28T00:00:00")


@given(st.floats(0, 4e9))
def test_every_moment_is_in_one_week(moment: float) -> None:
    start = week_start(moment)
    assert start <= moment < next_week(moment) + 1e-3
    if start >= 0:
        monday = datetime.fromtimestamp(round(start), timezone.utc)
        assert (monday.weekday(), monday.hour, monday.minute) == (0, 0, 0)
