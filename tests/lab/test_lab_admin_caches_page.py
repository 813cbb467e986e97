"""The page "Warm caches" in a real browser: what is given, builds live, every button, in words."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

import lab_pages as pages
import pytest_asyncio
from lab_browser import MARKS, expect, new_page
from lab_fakes import HUB
from lab_pages import focused, messages, open_as, picture, tab_to
from lab_seed import CACHE_KEY, CURRENT, FAILED, QUEUED, ask_for_cache, seed_caches, seed_courses
from lab_site import Site

from pytorch_spawner.core.warmcache import Target, choose

pytestmark = MARKS
SIZES = [(1280, "light"), (390, "dark")]


@pytest_asyncio.fixture(loop_scope="module")
async def empty(tmp_path: Any) -> AsyncIterator[Site]:
    async for running in pages.run_lab(tmp_path):
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def lab(empty: Site) -> Site:
    seed_courses(empty.ledger)
    seed_caches(empty.ledger)
    return empty


@pytest_asyncio.fixture(loop_scope="module")
async def tab(browser: Any) -> AsyncIterator[Any]:
    async for page in new_page(browser):
        yield page


@pytest_asyncio.fixture(loop_scope="module", params=SIZES, ids=lambda size: f"{size[0]}-{size[1]}")
async def page(browser: Any, request: Any) -> AsyncIterator[Any]:
    width, theme = request.param
    async for one in new_page(browser, width, theme):
        one.size = f"{width}-{theme}"
        yield one


def line(page: Any, cache_id: str) -> Any:
    return page.get_by_role("row").filter(has_text=cache_id)


def build_of(page: Any, cache_id: str) -> Any:
    return page.get_by_role("article").filter(has_text=cache_id)


def button(place: Any, name: str) -> Any:
    return place.get_by_role("button", name=re.compile(f"^{name}"))


def publish_second(site: Site) -> str:
    """Another cache of the same key, promoted later."""
    one = ask_for_cache(site.ledger)
    site.ledger.cancel_cache(HUB, QUEUED, "root")
    site.ledger.next_cache(HUB)
    targets = (Target("gpt", 8, 40.0, 3.0, 4, 0),)
    site.ledger.note_cache(one.id, key=CACHE_KEY, state="published", size_bytes=5, targets=targets)
    site.ledger.promote_cache(HUB, one.id, "root")
    return str(one.id)


def given(site: Site) -> str | None:
    one = choose(site.ledger.offered_caches(HUB), CACHE_KEY)
    return None if one is None else one.id


async def test_an_empty_page_says_what_it_is_for(empty: Site, page: Any) -> None:
    await open_as(empty, page, "admin", "caches")
    await expect(page.get_by_text("There is no warm cache yet.")).to_be_visible()
    await expect(page.get_by_text("first compiled step takes seconds")).to_be_visible()
    await expect(page.get_by_role("button", name="Build a warm cache…")).to_be_visible()
    await picture(page, f"caches-empty-{page.size}")


async def test_what_starts_are_given_is_shown_with_its_figures(lab: Site, page: Any) -> None:
    await open_as(lab, page, "viewer", "caches")
    table = page.get_by_role("table", name="What starts are given")
    row = table.get_by_role("row").filter(has_text=CURRENT)
    for words in ("NVIDIA H100 80GB HBM3, driver 580", "lab/base:1", "all courses", "given to st"):
        await expect(row).to_contain_text(words)
    for words in ("41.0 s", "3.2 s", "12.3 MB", "8", "never"):
        await expect(row).to_contain_text(words)
    await expect(line(page, FAILED)).to_contain_text("gpt at size 8 raised ValueError.")
    await expect(build_of(page, QUEUED)).to_contain_text("waits for its turn")
    await expect(page.get_by_role("button", name=re.compile("Remove|Build|Stop"))).to_have_count(0)


async def test_a_log_is_shown_as_text_and_nothing_of_it_runs(lab: Site, page: Any) -> None:
    lab.ledger.note_cache(CURRENT, log='<img src=x onerror="document.title = 1"><b>bold</b>\nend')
    await open_as(lab, page, "admin", "caches")
    row = line(page, CURRENT)
    await button(row, "Details").click()
    log = page.get_by_role("region", name=re.compile("^Log of gpt"))
    await expect(log).to_contain_text('<img src=x onerror="document.title = 1"><b>bold</b>')
    await expect(log.locator("img, b")).to_have_count(0)
    targets = page.get_by_role("table", name="What gpt took")
    await expect(targets.get_by_role("row").nth(1)).to_contain_text(re.compile("gpt.*8.*41.0 s"))
    await expect(page.get_by_text("2.13.0, 3.7")).to_be_visible()
    await picture(page, f"caches-open-{page.size}")
    # It stays open when the page looks again.
    lab.ledger.use_cache(CURRENT)
    await page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    await expect(row).not_to_contain_text("never")
    await expect(log).to_be_visible()
    await button(row, "Details").click()
    await expect(log).to_have_count(0)


async def test_a_build_is_followed_live_to_its_end(lab: Site, page: Any) -> None:
    await open_as(lab, page, "admin", "caches")
    card = build_of(page, QUEUED)
    await expect(card.locator("[aria-current=step]")).to_have_text("waits for its turn")
    lab.ledger.next_cache(HUB)
    lab.ledger.note_cache(QUEUED, message="Compiling gpt at size 8.", log="first\n")
    await expect(card).to_contain_text("Compiling gpt at size 8.")
    await expect(card.locator("[aria-current=step]")).to_contain_text("compiles in a container")
    await button(card, "Details").click()
    await expect(card.get_by_role("region")).to_contain_text("first")
    lab.ledger.note_cache(QUEUED, log="first\nsecond\n", targets=(Target("gpt", 8, 41.04, None),))
    await expect(card.get_by_role("region")).to_contain_text("second")
    await expect(card.get_by_role("table", name="What gpt took so far")).to_contain_text("41.0 s")
    lab.ledger.note_cache(QUEUED, state="checking", message="Proving.", key=CACHE_KEY)
    await expect(card.locator("[aria-current=step]")).to_contain_text("is proved")
    await picture(page, f"caches-building-{page.size}")
    lab.ledger.note_cache(QUEUED, state="failed", message="gpt found nothing in the cache.")
    await expect(line(page, QUEUED)).to_contain_text("gpt found nothing in the cache.")
    await expect(card).to_have_count(0)


async def test_a_build_is_asked_for_with_its_faults_beside_the_fields(lab: Site, page: Any) -> None:
    await open_as(lab, page, "admin", "caches")
    await page.get_by_role("button", name="Build a warm cache…").click()
    panel = page.get_by_role("dialog", name="Build a warm cache")
    await panel.get_by_label("Suite").select_option("example")
    await expect(panel.get_by_label("Image")).to_have_value("lab/pytorch:2.13")
    await panel.get_by_label("Image").fill("two words")
    await panel.get_by_label("Course").fill("deep-learning")
    await panel.get_by_label("Where").select_option("a GPU of the pool research")
    await panel.get_by_role("button", name="Build").click()
    await expect(panel.get_by_label("Image")).to_have_accessible_description(
        re.compile("no image reference")
    )
    await picture(page, f"caches-build-{page.size}", is_whole=False)
    await panel.get_by_label("Image").fill("lab/pytorch:2.14")
    await panel.get_by_role("button", name="Build").click()
    await expect(messages(page)).to_contain_text("Asked for: example for a GPU of the pool resea")
    made = lab.ledger.caches(HUB)[0]
    assert (made.image, made.scope, made.pool, made.gpus, made.by) == (
        "lab/pytorch:2.14",
        "deep-learning",
        "research",
        1,
        "adam",
    )
    await expect(build_of(page, made.id)).to_be_visible()


async def test_a_build_is_repeated_on_the_cpu(lab: Site, tab: Any) -> None:
    await open_as(lab, tab, "instructor", "caches")
    await button(line(tab, FAILED), "Build again").click()
    panel = tab.get_by_role("dialog", name="Build gpt again")
    await expect(panel.get_by_label("Suite")).to_have_count(0)
    await expect(panel.get_by_label("Course")).to_have_value("cv")
    await panel.get_by_label("Where").select_option("the CPU")
    await panel.get_by_role("button", name="Build").click()
    await expect(messages(tab)).to_contain_text("Asked for: gpt for the CPU, course cv.")
    made = lab.ledger.caches(HUB)[0]
    assert (made.gpus, made.scope, made.by) == (0, "cv", "ida")


async def test_a_roll_back_and_a_promotion_are_taken_back(lab: Site, tab: Any) -> None:
    second = publish_second(lab)
    await open_as(lab, tab, "admin", "caches")
    current = tab.get_by_role("table", name="What starts are given")
    await button(current, "Roll back").click()
    await expect(messages(tab)).to_contain_text(f"Starts that fit are given {CURRENT} now.")
    await expect(current).to_contain_text(CURRENT)
    assert given(lab) == CURRENT
    await messages(tab).get_by_role("button", name="Undo").click()
    await expect(current).to_contain_text(second)
    assert given(lab) == second
    await button(line(tab, CURRENT), "Promote").click()
    await expect(current).to_contain_text(CURRENT)
    await expect(messages(tab).get_by_role("button", name="Undo")).to_have_count(1)
    await tab.keyboard.press("Control+z")
    await expect(current).to_contain_text(second)
    assert given(lab) == second


async def test_removing_and_stopping_are_asked_first(lab: Site, page: Any) -> None:
    await open_as(lab, page, "admin", "caches")
    await button(line(page, CURRENT), "Remove").click()
    question = page.get_by_role("alertdialog", name=re.compile("^Remove gpt for NVIDIA"))
    await expect(question.get_by_role("button", name="Cancel")).to_be_focused()
    await question.get_by_role("button", name="Cancel").click()
    assert given(lab) == CURRENT
    await button(line(page, CURRENT), "Remove").click()
    await question.get_by_role("button", name="Remove").click()
    await expect(messages(page)).to_contain_text("Removed: gpt for NVIDIA H100")
    await expect(line(page, CURRENT)).to_have_count(0)
    await page.get_by_text("1 whose files are gone").click()
    await expect(line(page, CURRENT)).to_contain_text("adam removed it.")
    await expect(page.get_by_text("Starts are given no warm cache now.")).to_be_visible()
    await button(build_of(page, QUEUED), "Stop").click()
    question = page.get_by_role("alertdialog", name=re.compile("^Stop the build of gpt"))
    await question.get_by_role("button", name="Stop it").click()
    await expect(line(page, QUEUED)).to_contain_text("adam stopped it before it began.")


async def test_what_somebody_else_changed_meanwhile_is_said(lab: Site, tab: Any) -> None:
    await open_as(lab, tab, "admin", "caches")
    await button(line(tab, CURRENT), "Remove").click()
    lab.ledger.retire_cache(HUB, CURRENT, "kim")
    await tab.get_by_role("alertdialog").get_by_role("button", name="Remove").click()
    alert = tab.get_by_role("alert")
    await expect(alert).to_contain_text("Nothing was changed.")
    await expect(alert).to_contain_text("changed meanwhile, by kim")
    await expect(button(line(tab, CURRENT), "Promote")).to_be_visible()


async def test_everything_is_reached_by_keyboard(lab: Site, tab: Any) -> None:
    await open_as(lab, tab, "admin", "caches")
    await expect(line(tab, CURRENT)).to_be_visible()
    name = f"gpt for NVIDIA H100 80GB HBM3, driver 580 ({CURRENT})"
    await tab_to(tab, "Build a warm cache…")
    await tab_to(tab, f"Details of {name}")
    await tab.keyboard.press("Enter")
    await expect(tab.get_by_role("region", name=re.compile("^Log of"))).to_be_visible()
    await tab_to(tab, f"Roll back {name}")
    await tab_to(tab, f"Remove… {name}")
    await tab.keyboard.press("Enter")
    await tab.keyboard.press("Escape")
    assert await focused(tab) == f"Remove… {name}"


async def test_an_instructor_has_this_page_and_that_of_courses(lab: Site, tab: Any) -> None:
    await open_as(lab, tab, "instructor", "caches")
    await expect(line(tab, CURRENT)).to_be_visible()
    tabs = tab.get_by_role("navigation", name="Lab", exact=True).get_by_role("link")
    await expect(tabs).to_have_text(["Courses", "Warm caches"])
    await tab.context.clear_cookies()
    await open_as(lab, tab, "ana-page", "caches")
    await expect(tab.get_by_text("This page is for the lab's admins.")).to_be_visible()
