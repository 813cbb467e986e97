"""The admin's pages "Queue", "Usage" and "Log" in a real browser: every action, live, in words."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import lab_pages as pages
import pytest
import pytest_asyncio
from lab_browser import MARKS, expect, new_page
from lab_fakes import ENTER, HUB
from lab_pages import GPUS, messages, open_as
from lab_site import Site

from pytorch_spawner.core.placement import Holding
from pytorch_spawner.ledger.leases import Lease

pytestmark = MARKS
SIZES = [(1280, "light"), (390, "dark")]


@pytest_asyncio.fixture(loop_scope="module")
async def lab(tmp_path: Any) -> AsyncIterator[Site]:
    async for running in pages.run_lab(tmp_path):
        running.hub.add("second", "kim", ENTER, "custom:lab:admin")
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def tab(browser: Any) -> AsyncIterator[Any]:
    async for page in new_page(browser):
        yield page


@pytest_asyncio.fixture(loop_scope="module", params=SIZES, ids=lambda size: f"{size[0]}-{size[1]}")
async def page(browser: Any, request: Any) -> AsyncIterator[Any]:
    async for page in new_page(browser, *request.param):
        yield page


def boosts(site: Site) -> dict[str, int]:
    return {one.ticket.username: one.ticket.boost for one in site.ledger.queue(HUB)}


def waiting(page: Any, name: str) -> Any:
    header = page.get_by_role("rowheader", name=name, exact=True)
    return page.get_by_role("row").filter(has=header)


# -- queue -----------------------------------------------------------------------------------------


async def test_somebody_who_waits_is_raised_lowered_and_set(lab: Site, page: Any) -> None:
    await open_as(lab, page, "admin", "queue")
    await expect(waiting(page, "dan")).to_contain_text("1 GPU, any pool")
    await expect(waiting(page, "dan")).to_contain_text("1 of 2")
    await page.get_by_role("button", name="Raise dan by 10").click()
    await expect(messages(page)).to_contain_text("dan: boost +10 (was: 0).")
    await expect(waiting(page, "dan")).to_contain_text("+10")
    assert boosts(lab)["dan"] == 10
    await messages(page).get_by_role("button", name="Undo").click()
    await expect(waiting(page, "dan")).not_to_contain_text("+10")
    assert boosts(lab)["dan"] == 0
    await page.get_by_role("button", name="Lower fay by 10").click()
    await expect(waiting(page, "fay")).to_contain_text("−10")

    await page.get_by_role("button", name="Set… the boost of fay").click()
    panel = page.get_by_role("dialog", name="Boost of fay")
    boost = panel.get_by_label("Boost")
    await expect(boost).to_have_value("-10")
    await boost.fill("101")
    await panel.get_by_role("button", name="Save").click()
    await expect(boost).to_have_accessible_description(re.compile("whole number from −100 to 100"))
    await boost.fill("35")
    await panel.get_by_role("button", name="Save").click()
    await expect(waiting(page, "fay")).to_contain_text("+35")
    assert boosts(lab)["fay"] == 35


async def test_somebody_is_removed_after_a_question(lab: Site, page: Any) -> None:
    await open_as(lab, page, "admin", "queue")
    button = page.get_by_role("button", name="Remove… dan from the queue")
    await button.click()
    question = page.get_by_role("alertdialog", name="Remove dan from the queue?")
    await expect(question.get_by_role("button", name="Cancel")).to_be_focused()
    await question.get_by_role("button", name="Cancel").click()
    await expect(button).to_be_focused()
    assert "dan" in boosts(lab)
    await button.click()
    await question.get_by_role("button", name="Remove").click()
    await expect(messages(page)).to_contain_text("dan was removed from the queue.")
    await expect(waiting(page, "dan")).to_have_count(0)
    assert set(boosts(lab)) == {"fay"}


async def test_the_queue_is_live_searched_and_empty_in_words(lab: Site, tab: Any) -> None:
    await open_as(lab, tab, "admin", "queue")
    await expect(tab.get_by_text("2 starts wait")).to_be_visible()
    pages.queue_up(lab, "zed")
    await expect(waiting(tab, "zed")).to_be_visible()
    await expect(tab.get_by_text("3 starts wait")).to_be_visible()
    await tab.get_by_label("Search the queue").fill("ze")
    await expect(waiting(tab, "dan")).to_have_count(0)
    await expect(waiting(tab, "zed")).to_be_visible()
    await tab.get_by_label("Search the queue").fill("nobody")
    await expect(tab.get_by_text("Nobody of that name waits; 3 in all.")).to_be_visible()
    await tab.get_by_label("Search the queue").fill("")
    await expect(waiting(tab, "dan")).to_be_visible()
    for name in ("dan", "fay", "zed"):
        lab.ledger.leave(lab.ledger.latest_start(HUB, name, "").id)
    await expect(tab.get_by_text("Nobody waits.")).to_be_visible()


async def test_a_boost_made_to_an_old_row_is_refused_and_shown_anew(lab: Site, tab: Any) -> None:
    await open_as(lab, tab, "admin", "queue")
    await tab.get_by_role("button", name="Set… the boost of dan").click()
    panel = tab.get_by_role("dialog", name="Boost of dan")
    lab.ledger.boost(HUB, "dan", "", 20, "kim")
    await panel.get_by_label("Boost").fill("5")
    await panel.get_by_role("button", name="Save").click()
    await expect(panel.get_by_role("alert")).to_contain_text("changed meanwhile, by kim")
    await panel.get_by_role("button", name="Load what is there now").click()
    await expect(panel.get_by_label("Boost")).to_have_value("20")
    await panel.get_by_label("Boost").fill("25")
    await panel.get_by_role("button", name="Save").click()
    await expect(waiting(tab, "dan")).to_contain_text("+25")


async def test_2000_who_wait_are_paged_and_searched(lab: Site, tab: Any) -> None:
    pages.queue_up_at_once(lab, [f"student-{n:04}" for n in range(2000)])
    await open_as(lab, tab, "admin", "usage")
    began = time.monotonic()
    await tab.goto(lab.url + "queue")
    await expect(waiting(tab, "dan")).to_be_visible()
    assert time.monotonic() - began < 3
    await expect(tab.get_by_text("1–50 of 2,002")).to_be_visible()
    await tab.get_by_role("button", name="Next").click()
    await expect(tab.get_by_text("51–100 of 2,002")).to_be_visible()
    began = time.monotonic()
    await tab.get_by_label("Search the queue").fill("1987")
    await expect(waiting(tab, "student-1987")).to_be_visible()
    assert time.monotonic() - began < 1.5


@pytest.mark.parametrize("name", ["queue", "usage", "log"])
async def test_viewers_see_no_action_and_students_nothing(lab: Site, tab: Any, name: str) -> None:
    await open_as(lab, tab, "viewer", name)
    await expect(tab.get_by_role("table").first).to_be_visible()
    for action in ("Raise", "Lower", "Set", "Remove", "Undo"):
        await expect(tab.get_by_role("button", name=re.compile(f"^{action}"))).to_have_count(0)
    await tab.context.clear_cookies()
    lab.hub.browser_user_token = "ana-page"
    assert (await tab.goto(lab.url + name)).status == 403
    await expect(tab.get_by_role("heading", level=1)).to_contain_text("for the lab's admins")


# -- usage -----------------------------------------------------------------------------------------


async def test_usage_is_shown_by_user_course_and_device_and_sorted(lab: Site, page: Any) -> None:
    # Held for two hours by somebody whom nobody measured.
    start = lab.ledger.begin_start(HUB, "gus", "", {"image": "x", "gpus": 1})
    held = (Holding(GPUS[1].uuid),)
    since = time.time() - 7200
    lab.ledger.adopt_lease(Lease("lease-gus", HUB, start.id, "gus", "", held, {}, since))
    await open_as(lab, page, "admin", "usage")
    table = page.get_by_role("table", name="GPU-hours by user")
    rows = table.get_by_role("row")
    await expect(table.get_by_role("row", name="gus")).to_contain_text("2.0")
    await expect(table.get_by_role("row", name="gus")).to_contain_text("not measured")
    await expect(rows.nth(1)).to_contain_text("gus")
    await table.get_by_role("button", name="User").click()
    await expect(rows.nth(1)).to_contain_text("ana")
    await expect(table.get_by_role("columnheader", name="User")).to_have_attribute(
        "aria-sort", "ascending"
    )
    await table.get_by_role("button", name="Busy, hours").click()
    await expect(rows.nth(1)).to_contain_text("dan")
    await expect(rows.last).to_contain_text("not measured")
    await page.get_by_label("Course").check()
    await expect(page.get_by_role("table", name="GPU-hours by course")).to_contain_text(
        "deep-learning"
    )
    await page.get_by_label("Device").check()
    await expect(page.get_by_role("table", name="GPU-hours by device")).to_contain_text("GPU 0")
    await page.get_by_role("button", name="Last 7 days").click()
    await expect(page.get_by_text("in 7 days (UTC)")).to_be_visible()
    await page.get_by_label("First day").fill("2020-01-01")
    await expect(page.get_by_label("Last day")).to_have_accessible_description(re.compile("days"))


async def test_usage_is_exported_as_csv(lab: Site, tab: Any) -> None:
    await open_as(lab, tab, "admin", "usage")
    link = tab.get_by_role("link", name="Export CSV")
    async with tab.expect_download() as started:
        await link.click()
    text = Path(await (await started.value).path()).read_text()
    assert text.startswith("day,user,held_h,busy_h\n")
    assert ",ana," in text
    answer = await lab.get(
        (await link.get_attribute("href")).removeprefix("/services/lab/"), token="admin"
    )
    assert answer.headers["Content-Type"].startswith("text/csv")


# -- log -------------------------------------------------------------------------------------------


async def test_a_change_is_read_and_undone_in_the_log(lab: Site, page: Any) -> None:
    await open_as(lab, page, "admin", "log")
    line = page.get_by_role("row").filter(has_text="drained (New fan on Friday)")
    await expect(line).to_contain_text("kim")
    await line.get_by_text("Before and after").click()
    await expect(line.get_by_role("table", name="What changed")).to_contain_text("out of service")
    await line.get_by_role("button", name="Undo").click()
    question = page.get_by_role("alertdialog", name="Undo this change?")
    await expect(question.get_by_role("table", name="What the undo does")).to_be_visible()
    await question.get_by_role("button", name="Undo it").click()
    await expect(messages(page)).to_contain_text("Undone:")
    await expect(line.get_by_text("undone", exact=True)).to_be_visible()
    assert lab.ledger.settings(HUB)[0].drained == ""


async def test_an_undo_that_is_too_late_says_whose_change_stands(lab: Site, tab: Any) -> None:
    await open_as(lab, tab, "admin", "log")
    line = tab.get_by_role("row").filter(has_text="drained (New fan on Friday)")
    await expect(line).to_be_visible()
    said = {"drained": "It burns"}
    assert (await lab.send("PATCH", f"api/gpus/{GPUS[4].uuid}", said)).status == 200
    await line.get_by_role("button", name="Undo").click()
    await tab.get_by_role("alertdialog").get_by_role("button", name="Undo it").click()
    alert = tab.get_by_role("alert")
    await expect(alert).to_contain_text("Nothing was changed.")
    await expect(alert).to_contain_text("changed again since by adam")


async def test_older_lines_come_on_demand_and_are_searched(lab: Site, tab: Any) -> None:
    for number in range(60):
        lab.ledger.note(HUB, "kim", "server", f"user{number:02}/", {"message": "Bye."})
    await open_as(lab, tab, "admin", "log")
    rows = tab.get_by_role("row").filter(has_text="Asked to stop the server")
    await expect(rows).to_have_count(50)
    await tab.get_by_role("button", name="Older").click()
    await expect(rows).to_have_count(60)
    await expect(tab.get_by_text("That is all there is.")).to_be_visible()
    await tab.get_by_label("Search the log").fill("user07")
    await expect(rows).to_have_count(1)
    await tab.get_by_label("Search the log").fill("no such words")
    await expect(tab.get_by_text("Nothing in the log has “no such words” in it.")).to_be_visible()
