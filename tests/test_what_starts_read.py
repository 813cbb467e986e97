"""What starts read of the ledger: courses and images only once they changed, in any process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, event

from pytorch_spawner.core.catalog import Image
from pytorch_spawner.core.course_manifest import Manifest
from pytorch_spawner.core.course_text import parse_manifest
from pytorch_spawner.core.courses import Step
from pytorch_spawner.ledger.store import Ledger
from pytorch_spawner.shared import Lab

HUB = "lab"
COURSES = 8
STARTS = 50
SHA = "4f1c2a" + "0" * 34


def manifest(name: str, title: str = "Computer vision") -> Manifest:
    source = {"git": "https://forge.example.org/cv.git"}
    return parse_manifest({"name": name, "title": title, "source": source})


def image(name: str) -> Image:
    return Image(reference=f"lab/{name}:1", image_id="sha256:0", scanned_at=1.0)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'ledger.sqlite'}"


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    """Another process's, which writes."""
    opened = Ledger.open(url)
    for number in range(COURSES):
        opened.save_course(HUB, manifest(f"c{number}"), "bo")
    opened.save_image(HUB, image("base"), "root")
    yield opened
    opened.close()


@pytest.fixture
def lab(url: str, ledger: Ledger) -> Iterator[Lab]:
    made = Lab(url, HUB, {})
    yield made
    made.ledger().close()


@pytest.fixture
def asked() -> Iterator[list[str]]:
    """Every SELECT of whole rows from now on: "courses" or "images"."""
    seen: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        words = statement.split()
        if words[0] == "SELECT" and "FROM" in words:
            table = words[words.index("FROM") + 1]
            if table in ("courses", "images"):
                seen.append(table)

    event.listen(Engine, "before_cursor_execute", note)
    yield seen
    event.remove(Engine, "before_cursor_execute", note)


async def test_fifty_starts_of_a_class_read_the_manifests_once(
    lab: Lab, ledger: Ledger, asked: list[str]
) -> None:
    for number in range(STARTS):
        # Each start moves what decisions and pages depend on.
        start = ledger.begin_start(HUB, f"u{number}", "", {"course": "c1", "gpus": 1})
        ledger.join(start)
        ledger.append_events(start.id, [("start", {"stage": "accepted", "message": "It starts."})])
        assert len(await lab.courses()) == COURSES
        assert [one.reference for one in await lab.scanned_images()] == ["lab/base:1"]
    assert asked == ["courses", "images"]


WRITES: dict[str, Callable[[Ledger], object]] = {
    "a manifest that changed": lambda led: led.save_course(HUB, manifest("c1", "Seeing"), "bo"),
    "a course more": lambda led: led.save_course(HUB, manifest("new"), "bo"),
    "a course less": lambda led: led.remove_course(HUB, "c1", "bo"),
    "a preload that is asked for": lambda led: led.ask_course(HUB, "c1", "preload", "bo"),
    "what was fetched": lambda led: led.note_course(HUB, "c1", candidate=(SHA, SHA, "Week 1")),
    "a step": lambda led: led.note_course(HUB, "c1", steps=[Step("fetch", "running")]),
    "a publication": lambda led: led.publish_course(HUB, "c1", (SHA, SHA), "bo"),
    "an order, for its serial": lambda led: led.ask_reset(HUB, "c1", "ana", "a.ipynb", "bo"),
}


@pytest.mark.parametrize("what", WRITES)
async def test_a_course_that_another_process_changed_is_read_again(
    what: str, lab: Lab, ledger: Ledger, asked: list[str]
) -> None:
    before = await lab.courses()
    WRITES[what](ledger)
    asked.clear()
    after = await lab.courses()
    assert after == ledger.courses(HUB)
    assert after != before
    asked.clear()
    assert await lab.courses() == after
    assert asked == []


async def test_a_task_that_is_taken_up_stopped_and_begun_again_is_read_again(
    lab: Lab, ledger: Ledger
) -> None:
    ledger.ask_course(HUB, "c1", "preload", "bo")
    for write in (
        lambda: ledger.next_course_task(HUB),
        lambda: ledger.requeue_courses(HUB),
        lambda: ledger.stop_course(HUB, "c1", "bo"),
    ):
        before = await lab.courses()
        write()
        after = await lab.courses()
        assert after == ledger.courses(HUB)
        assert after != before


async def test_what_a_students_container_says_of_its_copy_makes_nobody_read_manifests(
    lab: Lab, ledger: Ledger, asked: list[str]
) -> None:
    await lab.courses()
    said = {"phase": "done", "course": "c1", "level": "ok", "served": SHA, "commit": SHA}
    asked.clear()
    ledger.note_student(HUB, "c1", "ana", said)
    asked.clear()
    await lab.courses()
    assert asked == []


async def test_an_image_that_another_process_scanned_or_removed_is_known_at_the_next_start(
    lab: Lab, ledger: Ledger, asked: list[str]
) -> None:
    await lab.scanned_images()
    ledger.save_image(HUB, image("new"), "root")
    assert [one.reference for one in await lab.scanned_images()] == ["lab/base:1", "lab/new:1"]
    ledger.remove_image(HUB, "lab/base:1", "root")
    assert [one.reference for one in await lab.scanned_images()] == ["lab/new:1"]
    asked.clear()
    ledger.save_course(HUB, manifest("c1", "Seeing"), "bo")
    await lab.scanned_images()
    assert "images" not in asked, "a course is no image"


@pytest.mark.programs
async def test_a_change_of_a_process_that_is_really_another_one_is_seen(lab: Lab, url: str) -> None:
    await lab.courses()
    code = (
        "import sys\nfrom pytorch_spawner.ledger.store import Ledger\n"
        f"Ledger.open(sys.argv[1]).remove_course({HUB!r}, 'c1', 'bo')"
    )
    subprocess.run([sys.executable, "-c", code, url], check=True, timeout=60)
    assert "c1" not in {one.name for one in await lab.courses()}


async def test_another_hub_of_the_same_ledger_is_none_of_ours(
    lab: Lab, ledger: Ledger, asked: list[str]
) -> None:
    await lab.courses()
    ledger.save_course("another", manifest("c1", "Theirs"), "bo")
    asked.clear()
    assert {one.manifest.title for one in await lab.courses()} == {"Computer vision"}
    assert asked == []
