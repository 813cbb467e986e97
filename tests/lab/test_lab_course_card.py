"""The card "Course notebooks" in Chromium: what a student reads of a sync.

Set LAB_TEST_SCREENSHOTS to a folder to keep a picture of each situation.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import lab_journals as journals
import pytest
import pytest_asyncio
from lab_browser import MARKS, expect, go_on, new_page, open_page, shoot, tell, verdict

pytestmark = MARKS


@pytest_asyncio.fixture(loop_scope="module")
async def page(browser: Any) -> AsyncIterator[Any]:
    async for tab in new_page(browser):
        yield tab


NAMES = {"course": "cnn", "title": "Convolutional networks"}
COMMIT = "4f1c2a0d9be7a5f2c3d4e5f60718293a4b5c6d7e"
BEGIN = (0.8, "course", {"phase": "begin", **NAMES})


def done(**more: Any) -> tuple[float, str, dict[str, Any]]:
    said = {"phase": "done", **NAMES, "served": "0" * 40, "commit": COMMIT, "level": "ok"}
    facts = {"files": 12, "kept": [], "conflicts": {}, "seconds": 0.4, "message": "Up to date."}
    return (1.2, "course", {**said, **facts, **more})


CONFLICT = done(
    level="warn",
    kept=["01 tensors/exercise.ipynb", "notes.md"],
    conflicts={"02 cnn/lab.ipynb": "02 cnn/lab.course-4f1c2a0.ipynb"},
)
FAILED = (
    1.2,
    "course",
    {
        "phase": "failed", **NAMES, "served": "", "commit": COMMIT, "level": "fail",
        "code": "disk-full", "seconds": 0.3,
        "message": "There is no room left in your home directory, so the course's notebooks could "
        "not be updated. Your files are as they were.",
        "remedy": "Delete what you do not need, then restart your server.",
        "admin_remedy": "Give this home more room.",
    },
)  # fmt: skip
RESET = (
    9.0,
    "course",
    {"phase": "reset", **NAMES, "order": "o1", "path": "lab.ipynb", "level": "ok", "backup": "b",
     "message": "Your instructor brought lab.ipynb back to the course's version; what you had is "
     "kept as lab.backup-20260901-091502.ipynb."},
)  # fmt: skip
UP = [*journals.hub_until("lab"), *journals.checks()]
HOSTILE = [
    (1.1, "course", {"phase": "done", "title": journals.BAD, "commit": journals.BAD, "kept": "no",
                     "conflicts": [journals.BAD], "files": "many"}),
    (1.2, "course", {"phase": "reset", "message": journals.BAD, "level": {}}),
    (1.3, "course", {"phase": journals.BAD}),
    (1.4, "course", {"phase": "done", "title": journals.BAD, "kept": [journals.BAD, 7, None],
                     "conflicts": {journals.BAD: journals.BAD, "x" * 900: 7}}),
    (1.5, "course", {"phase": "failed", "message": journals.BAD, "remedy": journals.BAD}),
    (1.6, "course", {"phase": "done", "title": journals.BAD, "kept": ["y" * 900],
                     "conflicts": {journals.BAD: journals.BAD}}),
]  # fmt: skip
NOT_TAUGHT = "The notebooks of CNNs are not published yet. Ask whoever teaches the course."


def not_taught(said: Any = NOT_TAUGHT) -> journals.Story:
    """The hub tells it while it plans the container."""
    note = (0.3, "start", {"stage": "course", "message": said})
    return [*UP[:2], note, *UP[2:]]


STORIES = {
    "copying": ([*UP, BEGIN], "Your GPU is ready."),
    "fine": ([*UP, *journals.warmup(), BEGIN, done()], "Your GPU is ready."),
    "conflict": ([*UP, *journals.warmup(1), BEGIN, CONFLICT, RESET], "Your GPU is ready."),
    "failed": (
        [*UP, BEGIN, FAILED],
        "Your server is ready, but the course's notebooks are not up to date.",
    ),
    "hostile": ([*UP, *HOSTILE], "Your GPU is ready."),
    "missing": (not_taught(), "Your GPU is ready."),
}


@pytest.mark.parametrize("look", ["1280 light", "390 light", "1280 dark", "390 dark"])
@pytest.mark.parametrize("name", STORIES)
async def test_every_situation_of_a_course_fits_the_screen(lab, browser, name, look):
    story, sentence = STORIES[name]
    width, theme = look.split()
    tell(lab, story, time.time() - 20)
    async for page in new_page(browser, int(width), theme):
        await open_page(lab, page)
        await expect(verdict(page)).to_have_text(sentence)
        await expect(card_of(page)).to_be_visible()
        link = page.get_by_role("button", name="Open JupyterLab")
        await expect(link).to_have_attribute("href", "/user/ana/lab")
        assert await page.evaluate("document.documentElement.scrollWidth") <= int(width)
        assert await page.evaluate("window.hacked") is None
        assert await page.locator("#lab-server :is(img, script, b, style)").count() == 0
        await shoot(page, f"course-{name}-{width}-{theme}")


def card_of(page: Any) -> Any:
    return page.get_by_role("region", name="Course notebooks")


async def test_without_a_course_there_is_no_card(lab, page):
    tell(lab, journals.FINE)
    await open_page(lab, page)
    await expect(verdict(page)).to_have_text("Your GPU is ready.")
    await expect(card_of(page)).to_be_hidden()


async def test_what_a_start_could_not_bring_of_its_course_is_read_and_is_no_stage(lab, page):
    start = tell(lab, not_taught())
    await open_page(lab, page)
    await expect(card_of(page).get_by_text(NOT_TAUGHT)).to_be_visible()
    await expect(card_of(page)).not_to_contain_text("copied")
    steps = page.get_by_role("list", name="Stages of the start").get_by_role("listitem")
    took = round(UP[2][0] - UP[1][0], 1)
    await expect(steps.nth(1)).to_contain_text(f"Home{took} s")
    # The sync of what is there does not wipe what is not.
    go_on(lab, start, [BEGIN, done()])
    await expect(card_of(page).get_by_text("up to date, commit 4f1c2a0")).to_be_visible()
    await expect(card_of(page).get_by_text(NOT_TAUGHT)).to_be_visible()


@pytest.mark.parametrize("said", [journals.BAD, "x " * 2000, 7, None, {}])
async def test_an_odd_note_of_a_course_is_a_text_of_bounded_length_or_none(lab, page, said):
    tell(lab, not_taught(said))
    await open_page(lab, page)
    await expect(verdict(page)).to_have_text("Your GPU is ready.")
    if isinstance(said, str):
        await expect(card_of(page)).to_contain_text(said[:600].strip())
        assert len(await card_of(page).inner_text()) < 700
    else:
        await expect(card_of(page)).to_be_hidden()
    assert await page.evaluate("window.hacked") is None


async def test_the_card_says_still_copying_until_the_notebooks_are_there(lab, page):
    start = tell(lab, [*UP, BEGIN])
    await open_page(lab, page)
    await expect(card_of(page).get_by_text("Still copying the course's notebooks")).to_be_visible()
    await expect(page.get_by_text("still being copied; you can start")).to_be_visible()
    go_on(lab, start, [done()])
    said = card_of(page).get_by_text("up to date, commit 4f1c2a0, 12 files", exact=True)
    await expect(said).to_be_visible()
    await expect(card_of(page).get_by_text("Still copying")).to_be_hidden()
    go_on(lab, start, [done(files=13, commit="5" * 40)])
    await expect(card_of(page).get_by_text("commit 5555555, 13 files")).to_be_visible()


async def test_a_conflict_says_where_the_courses_version_lies_and_kept_edits_are_folded(lab, page):
    tell(lab, [*UP, BEGIN, CONFLICT, RESET])
    await open_page(lab, page)
    card = card_of(page)
    await expect(card.get_by_text("1 conflict: you and the course both changed")).to_be_visible()
    await expect(card.get_by_text("02 cnn/lab.course-4f1c2a0.ipynb")).to_be_visible()
    await expect(card.get_by_text("notes.md")).to_be_hidden()
    await card.get_by_text("2 edits of yours kept").click()
    await expect(card.get_by_text("notes.md")).to_be_visible()
    await expect(card.get_by_text("kept as lab.backup-20260901-091502.ipynb")).to_be_visible()


async def test_a_failure_says_what_to_do_and_is_in_the_report(lab, page):
    tell(lab, [*UP, BEGIN, FAILED])
    await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await open_page(lab, page)
    await expect(card_of(page).get_by_text("Delete what you do not need")).to_be_visible()
    await expect(card_of(page).get_by_text("For your instructor or admin:")).to_be_visible()
    await page.get_by_role("button", name="Copy report").click()
    await expect(page.get_by_text("Copied.")).to_be_visible()
    report = await page.evaluate("navigator.clipboard.readText()")
    assert "Course: Convolutional networks: There is no room left" in report
    assert "  what to do: Delete what you do not need" in report


async def test_a_server_that_ended_copies_nothing_any_more(lab, page):
    tell(lab, [*journals.hub_until("container"), BEGIN, journals.DIED[-1]])
    await open_page(lab, page)
    await expect(card_of(page).get_by_text("still being copied when the server")).to_be_visible()
