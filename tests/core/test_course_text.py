"""A manifest's text: a key that is there twice is refused with both its lines."""

from __future__ import annotations

import time

import pytest

from pytorch_spawner.core.course_text import from_yaml, read_manifest
from pytorch_spawner.errors import BadRequest, Problem

LEAST = "name: cv\ntitle: Computer vision\nsource: {git: https://forge.org/cv.git}\n"


def refused(text: str) -> tuple[Problem, ...]:
    with pytest.raises(BadRequest) as error:
        from_yaml(text)
    return error.value.problems


def twice(field: str, earlier: int, line: int) -> Problem:
    where = f"in line {line}" if earlier == line else f"in lines {earlier} and {line}"
    return Problem(f"it is there twice, {where}; keep one of them", field, line)


@pytest.mark.parametrize(
    ("more", "problems"),
    [
        ("members: {users: [ana]}\nmembers: {users: [bo]}\n", [twice("members", 4, 5)]),
        ("members:\n  users: [ana]\n  users: [bo]\n", [twice("members.users", 5, 6)]),
        ("request: {gpus: 1, gpus: 2}\n", [twice("request.gpus", 4, 4)]),
        ('"title": Deep learning\n', [twice("title", 2, 4)]),
        ("title: A\ntitle: B\n", [twice("title", 2, 4), twice("title", 2, 5)]),
        (
            "timetable:\n  sessions:\n    - start: 2026-10-12T09:00\n      end: 2026-10-12T10:00\n"
            "      end: 2026-10-12T11:00\n",
            [twice("timetable.sessions.0.end", 7, 8)],
        ),
        ("warmup: {targets: [{name: a, name: b}]}\n", [twice("warmup.targets.0.name", 4, 4)]),
        (
            "environment: &e {A: x, A: y}\nwarmup: {e: *e}\n",
            [twice("environment.A", 4, 4)],
        ),
        ("? [a]\n: 1\n? [a]\n: 2\n", None),
    ],
    ids=[
        "a whole part",
        "a list below another one",
        "in one line",
        "with and without quotes",
        "three times",
        "inside a session",
        "inside the warm-up, of which no schema is known here",
        "what an alias repeats is told once",
        "a list as a key is no manifest anyway",
    ],
)
def test_a_key_that_is_there_twice_is_refused_with_its_lines(
    more: str, problems: list[Problem] | None
) -> None:
    found = refused(LEAST + more)
    if problems is None:
        assert found[0].message.startswith("it is no YAML")
    else:
        assert list(found) == problems


@pytest.mark.parametrize(
    "more",
    [
        "data: {a: /data/a, b: /data/b}\n",
        "environment: {A: x, a: x}\n",
        "members: {users: &u [ana], staff: *u}\n",
        "warmup: {base: &b {name: a, tag: t}, other: {<<: *b, tag: u}}\n",
    ],
    ids=[
        "keys of one mapping that differ",
        "in more than their case",
        "the same list in two places",
        "a merged key that is set anew",
    ],
)
def test_what_is_there_once_is_taken(more: str) -> None:
    assert from_yaml(LEAST + more).name == "cv"


def test_the_message_itself_says_the_lines_for_whoever_sees_no_places() -> None:
    with pytest.raises(BadRequest) as error:
        read_manifest(f"{LEAST}name: dl\n".encode())
    assert error.value.public_message == (
        "The course's manifest is not usable: name: it is there twice, in lines 1 and 4; keep one "
        "of them."
    )


def test_a_file_full_of_the_same_key_is_refused_in_a_few_words_and_soon() -> None:
    began = time.process_time()
    found = refused("a: 1\n" * 8_000)
    assert time.process_time() - began < 5
    assert 0 < len(found) <= 20


def test_a_key_that_would_steer_a_terminal_is_not_repeated() -> None:
    (found,) = refused(LEAST + 'warmup: {"\\e[31m": 1, "\\e[31m": 2}\n')
    assert found.field == "warmup.?[31m"
