"""Courses in words: is it ready, whose copy is where, and the line of every fault."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pytorch_spawner.core import course_words as words
from pytorch_spawner.core.course_text import from_json, from_yaml, parse_manifest, to_yaml
from pytorch_spawner.core.courses import Course, Order, Step, Student
from pytorch_spawner.errors import BadRequest

SAID: dict[str, Any] = {
    "name": "cv",
    "title": "Computer vision",
    "source": {"git": "https://forge.example/cv.git", "branch": "main", "path": "nb"},
    "members": {"users": ["ana", "bo"], "groups": ["vision"], "staff": ["ida"]},
}
OLD, NEW = "4f1c2a7d" * 5, "b7e09931" * 5
NEVER = Course("lab", "cv", parse_manifest(SAID), changed_at=100.0)
DONE = tuple(Step(name, "done") for name in ("fetch", "check", "image", "smoke", "warm"))
LOADED = replace(
    NEVER, steps=DONE, tried_at=120.0, preloaded_at=200.0, candidate=NEW, candidate_served="s2"
)
READY = replace(LOADED, commit=NEW, served="s2", published_at=300.0)
BEHIND = replace(READY, commit=OLD, served="s1")
FAILED = (*DONE[:3], Step("smoke", "failed", "cnn.ipynb raised ValueError."))

WHY = "Given up at 08:45: the class begins at 09:00 UTC."
WARMED = replace(READY, manifest=parse_manifest({**SAID, "warmup": {"targets": []}}))
NEVER_WARMED = replace(LOADED, manifest=WARMED.manifest)


def given_up(name: str, state: str) -> tuple[Step, ...]:
    at = [one.name for one in DONE].index(name)
    rest = (Step(one.name, "skipped") for one in DONE[at + 1 :])
    return (*DONE[:at], Step(name, state, WHY, is_given_up=True), *rest)


VERDICTS = {
    "nothing was done yet": (NEVER, "bad", "Not ready: it was never preloaded."),
    "it waits for the service": (
        replace(NEVER, task="preload"), "wait", "The preload waits for its turn.",
    ),
    "a step runs": (
        replace(NEVER, task="preload", is_running=True, steps=(Step("smoke", "running"),)),
        "wait", "Preloading: smoke test.",
    ),
    "it is being published": (
        replace(BEHIND, task="publish", is_running=True), "wait", "Publishing.",
    ),
    "preloaded, but nobody has it": (LOADED, "warn", "Preloaded, but students have nothing yet"),
    "students have it": (READY, "ok", "Ready: students have b7e09931."),
    "something newer waits": (
        BEHIND, "warn", "Students have 4f1c2a7d; b7e09931 is preloaded and waits",
    ),
    "a step failed": (
        replace(LOADED, steps=FAILED), "bad",
        "Not ready: the last preload failed at smoke test. cnn.ipynb raised ValueError.",
    ),
    "a step failed, but students have something": (
        replace(BEHIND, steps=FAILED), "bad",
        "Students have 4f1c2a7d, but the last preload failed at smoke test.",
    ),
    "the class began before a server was tried again": (
        replace(WARMED, steps=given_up("image", "warned")), "warn",
        "Students have b7e09931 and keep it; image, smoke test and warm cache were not done in the "
        f"last preload. {WHY}",
    ),
    "the class began before the notebooks were tried again": (
        replace(READY, steps=given_up("smoke", "warned")), "warn",
        f"Students have b7e09931 and keep it; smoke test was not done in the last preload. {WHY}",
    ),
    "the class began before what is new was tried": (
        replace(BEHIND, steps=given_up("smoke", "warned")), "warn",
        "Students have 4f1c2a7d and keep it; b7e09931 was fetched, but smoke test was not done",
    ),
    "the class began before anybody has anything": (
        replace(NEVER_WARMED, steps=given_up("smoke", "failed")), "bad",
        "Not ready: students have nothing yet, and smoke test and warm cache were not done in the "
        f"last preload. {WHY}",
    ),
    "the class began before the warm cache was built": (
        replace(WARMED, steps=given_up("warm", "warned")), "ok", "Ready: students have b7e09931.",
    ),
    "the manifest is newer": (replace(READY, changed_at=250.0), "warn", "preload it again"),
    "it was changed while the preload ran": (
        replace(READY, changed_at=150.0), "warn", "preload it again",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", VERDICTS)
def test_the_verdict_answers_whether_it_is_ready(case: str) -> None:
    course, tone, said = VERDICTS[case]
    found = words.verdict(course)
    assert found[0] == tone
    assert said in found[1]


WHY_NOT = [
    (NEVER, "preload the course first"),
    (replace(BEHIND, task="preload"), "wait until it is over"),
    (READY, "Students have b7e09931 already"),
    (BEHIND, ""),
]


@pytest.mark.parametrize(("course", "said"), WHY_NOT)
def test_what_can_be_published(course: Course, said: str) -> None:
    found = words.why_not_published(course)
    assert said in found
    assert bool(found) == bool(said)


CHANGES = {
    "another image": (SAID, {**SAID, "image": "x"}, True),
    "another branch": (SAID, {**SAID, "source": {"git": "https://forge.example/cv.git"}}, True),
    "one more student": (SAID, {**SAID, "members": {"users": ["eve"]}}, False),
    "another session": (SAID, {**SAID, "timetable": {"timezone": "Europe/Berlin"}}, False),
    "a line that is no manifest": (None, {"is": "preload"}, False),
}


@pytest.mark.parametrize("case", CHANGES)
def test_only_what_a_preload_depends_on_makes_it_stale(case: str) -> None:
    before, after, is_stale = CHANGES[case]
    changed = replace(READY, changed_at=250.0)
    assert words.is_stale(changed, [(before, after)]) == is_stale
    assert not words.is_stale(READY, [(before, after)])


def test_whoever_needs_a_look_comes_first() -> None:
    known = [
        Student("ana", "s2", NEW, 1.0),
        Student("bo", "s1", OLD, 2.0),
        Student("gus", "s2", NEW, 3.0, "warn", "x", ("k",), {"a": "b"}),
        Student("zed", "s2", NEW, 4.0, "fail", "The disk is full."),
        Student("ida", "s2", NEW, 5.0),
    ]
    users = {"gus": ("vision",), "kim": ("other", "vision"), "ida": ("vision",)}
    expected = words.students_of(READY.manifest, users)
    assert expected == {"ana", "bo", "gus", "kim"}
    orders = [Order("1", "cv", "bo", "a.ipynb", "ida", 9.0)]
    rows = words.student_rows(READY, expected, known, orders)
    assert [(row["user"], row["state"], row["is_member"]) for row in rows] == [
        ("zed", "current", False),
        ("gus", "current", True),
        ("bo", "behind", True),
        ("ana", "current", True),
        ("ida", "current", False),
        ("kim", "never", True),
    ]
    assert rows[2]["orders"] == [{"id": "1", "path": "a.ipynb", "by": "ida", "at": 9.0}]
    assert words.counts(rows) == {
        "total": 6, "current": 4, "behind": 1, "never": 1, "conflicts": 1, "failed": 1,
    }  # fmt: skip


def test_a_copy_of_a_course_that_was_never_published_is_not_current() -> None:
    assert words.standing(Student("ana", "", ""), "") == "never"
    assert words.standing(Student("ana", "s1", OLD), "") == "behind"


def test_members_are_told_the_next_session_and_nothing_of_others() -> None:
    session = {"start": "2027-03-02T09:00:00", "end": "2027-03-02T11:00:00", "seats": 3}
    said = {**SAID, "timetable": {"timezone": "Europe/Berlin", "sessions": [session]}}
    told = words.for_members(replace(READY, manifest=parse_manifest(said)), 1.7e9)
    assert set(told) == {"name", "title", "folder", "next_session"}
    assert told["next_session"]["starts_at"] == 1803974400.0


@pytest.mark.parametrize(
    ("sessions", "seen", "said"),
    [
        ([{"seats": 8}], [], ""),
        (
            [{"seats": 9}],
            [],
            "The session of Tue 2 Mar 2027, 09:00 CET: it asks for 9 seats, and the lab keeps at "
            "most 8 of the 10 in the pool teaching for classes: the others queue. Ask an admin, "
            "who sets c.PyTorchSpawner.class_seats_share.",
        ),
        ([{}], [f"u{n}" for n in range(6)], ""),
        ([{}], [f"u{n}" for n in range(7)], "The session of Tue 2 Mar 2027, 09:00 CET: it asks"),
        ([{"weekly_until": "2027-05-04"}, {"seats": 90}], [], "The session of Tue 2 Mar 2027"),
        ([], [], ""),
    ],
    ids=[
        "as many as classes may have",
        "one more",
        "a seat for each student that is known",
        "a student too many",
        "any of the next ones",
        "no session",
    ],
)
def test_a_session_that_gets_fewer_seats_than_it_asks_for_is_told_beforehand(
    sessions: list[dict[str, Any]], seen: list[str], said: str
) -> None:
    times = {"start": "2027-03-02T09:00:00", "end": "2027-03-02T11:00:00"}
    planned = [{**times, **one} for one in sessions]
    timetable = {"timezone": "Europe/Berlin", "sessions": planned} if planned else {}
    wanted = {**SAID, "request": {"pool": "teaching"}, "timetable": timetable}
    sizes = {"teaching": 10, "research": 100}
    told = words.seats_note(parse_manifest(wanted), seen, 1.8e9, sizes, 0.8)
    assert told.startswith(said) if said else told == ""


# -- text ------------------------------------------------------------------------------------------

LINES = {
    "name: cv\ntitle: T\nsource:\n  git: x\n": [("source.git", 4)],
    "name: cv\ntitle: T\nsource: {git: 'https://x', colour: 1}\nb: 2\n": [
        ("source.colour", 3), ("b", 4),
    ],
    "name: cv\ntitle: T\nsource: {git: 'https://x'}\ntimetable:\n  sessions:\n"
    "    - {start: 2027-01-01T09:00, end: 2027-01-01T10:00}\n"
    "    - start: 2027-01-01T09:00\n      end: never\n": [("timetable.sessions.1.end", 8)],
    "name: cv\n title: [\n": [("course.yaml", 2)],
    "\x00": [("course.yaml", None)],
    "": [("course.yaml", None)],
}  # fmt: skip


@pytest.mark.parametrize("text", LINES)
def test_every_fault_has_its_line(text: str) -> None:
    with pytest.raises(BadRequest) as found:
        from_yaml(text)
    assert [(one.field, one.row) for one in found.value.problems] == LINES[text]


BAD = {
    "a name of the API's own": {"name": "schema"},
    "an override of direction": {"title": "a\u202eb"},
    "a zero byte": {"environment": {"A": "a\nb\tc\x00"}},
    "half a character": {"title": "\ud800"},
    "a number that JSON has no word for": {"warmup": {"a": [float("nan")]}},
    "a huge number": {"warmup": {"a": 10**400}},
    "a set": {"warmup": {"a": {1}}},
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_kept_or_shown_is_refused(case: str) -> None:
    with pytest.raises(BadRequest) as found:
        from_json({**SAID, **BAD[case]})
    assert found.value.problems[0].field == next(iter(BAD[case]))


TEXTS = st.text(st.characters(categories=("L", "N", "P", "S", "Zs"), max_codepoint=0x2FF)).filter(
    str.isprintable
)


@given(title=TEXTS.filter(bool), value=TEXTS, image=TEXTS.filter(bool))
def test_any_text_goes_round(title: str, value: str, image: str) -> None:
    said = {**SAID, "title": title[:120], "image": image, "environment": {"A": value}}
    manifest = from_json(said)
    assert from_yaml(to_yaml(manifest)) == manifest
    assert yaml.safe_load(to_yaml(manifest))["title"] == title[:120]
