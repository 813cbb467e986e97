"""A manifest may name anybody: what that does to the servers of whom it names."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest

from pytorch_spawner.core.course_text import parse_manifest
from pytorch_spawner.core.request import Offer, Request, parse
from pytorch_spawner.errors import LedgerUnavailable
from pytorch_spawner.ledger.store import Ledger
from pytorch_spawner.teaching import TeachingSpawner
from tests.clocked import Clock, ledger_at

HUB = "lab"
DONE = {"phase": "done", "level": "ok"}
T = TypeVar("T")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with ledger_at(tmp_path, Clock(1795510800.0)) as opened:
        add(opened, "cv", "bo")
        yield opened


def add(ledger: Ledger, name: str, teacher: str) -> None:
    """A course that names ana, alone and by her group, and would change her server."""
    manifest = {
        "name": name,
        "title": name.upper(),
        "source": {"git": "https://forge.example/cv.git"},
        "image": "other",
        "request": {"gpus": 0},
        "members": {"users": ["ana", "root"], "groups": ["all"], "staff": [teacher]},
        "environment": {"CUDA_INJECTION64_PATH": "/home/ana/cv/theirs.so"},
    }
    ledger.save_course(HUB, parse_manifest(manifest), teacher)


class FakeSpawner:
    """A spawner's methods about courses, with a real ledger and nothing else."""

    course_choices = TeachingSpawner.course_choices
    chosen_courses = TeachingSpawner.chosen_courses
    _log_name = "ana"
    log = logging.getLogger("test")

    def __init__(self, ledger: Ledger, name: str = "ana", *, is_admin: bool = False) -> None:
        groups = [SimpleNamespace(name="all")]
        self.user = SimpleNamespace(name=name, admin=is_admin, groups=groups)
        self.lab = SimpleNamespace(hub=HUB, call=self._call)
        self._ledger = ledger

    async def _call(self, function: Callable[[Ledger], T]) -> T:
        return await asyncio.to_thread(function, self._ledger)

    async def _all_courses(self) -> Any:
        return self._ledger.courses(HUB)


async def started(ledger: Ledger, said: dict[str, Any] | None = None, **who: Any) -> Request:
    """What a start is for, by default one that says nothing."""
    spawner: Any = FakeSpawner(ledger, **who)
    courses = await spawner.course_choices()
    chosen = await spawner.chosen_courses(courses)
    images = {"usual": "lab:usual", "other": "lab:other"}
    return parse(said or {}, Offer(images, 2, courses=courses, chosen=chosen))


async def test_whom_a_strangers_course_names_starts_as_before(ledger: Ledger) -> None:
    plain = Request("lab:usual", 1, "any")
    assert await started(ledger) == plain
    asked = await started(ledger, {"course": "cv"})
    assert (asked.course, asked.image, asked.gpus) == ("cv", "lab:other", 0)


async def test_a_course_that_was_chosen_once_comes_without_a_word(ledger: Ledger) -> None:
    ledger.note_student(HUB, "cv", "ana", {**DONE, "course": "cv"})
    assert (await started(ledger)).course == "cv"
    assert (await started(ledger, name="ben")).course == ""
    assert (await started(ledger, {"course": ""})).course == ""


async def test_a_stranger_takes_nobody_out_of_the_course_that_they_chose(ledger: Ledger) -> None:
    ledger.note_student(HUB, "cv", "ana", {**DONE, "course": "cv"})
    add(ledger, "a-trap", "eve")
    assert (await started(ledger)).course == "cv"


async def test_a_course_in_the_place_of_one_that_was_removed_is_not_chosen(
    ledger: Ledger,
) -> None:
    ledger.note_student(HUB, "cv", "ana", {**DONE, "course": "cv"})
    ledger.remove_course(HUB, "cv", "bo")
    add(ledger, "cv", "eve")
    assert (await started(ledger)).course == ""


async def test_an_admin_is_in_a_course_only_on_request(ledger: Ledger) -> None:
    ledger.note_student(HUB, "cv", "root", {**DONE, "course": "cv"})
    assert (await started(ledger, name="root", is_admin=True)).course == ""
    assert (await started(ledger, {"course": "cv"}, name="root", is_admin=True)).course == "cv"


async def test_while_the_ledger_cannot_be_read_nobody_is_put_into_a_course(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.note_student(HUB, "cv", "ana", {**DONE, "course": "cv"})

    def fail(*_: Any) -> None:
        raise LedgerUnavailable("It cannot be read just now.")

    monkeypatch.setattr(ledger, "copies_of", fail)
    assert (await started(ledger)).course == ""
