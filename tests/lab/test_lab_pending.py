"""The hub's pending page in Chromium, drawn from the hub's own progress stream.

Set LAB_TEST_SCREENSHOTS to a folder to keep a picture of each situation.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

import lab_journals as journals
import pytest
import pytest_asyncio
from lab_browser import MARKS, expect, new_page, shoot, tell, verdict
from lab_pending import pending_url, progress_of, render, run_pending
from lab_site import Site

pytestmark = MARKS


@pytest_asyncio.fixture(loop_scope="module")
async def page(browser: Any) -> AsyncIterator[Any]:
    async for tab in new_page(browser):
        yield tab


@pytest_asyncio.fixture(loop_scope="module")
async def pending() -> AsyncIterator[Site]:
    async for running in run_pending():
        yield running


async def test_the_pending_page_looks_like_the_landing_page(pending, page):
    pending.hub.progress += [{"progress": 0, "message": "Server requested"}]
    pending.hub.progress += progress_of(journals.hub_until("container"))
    await page.goto(pending_url(pending))
    await expect(verdict(page)).to_have_text("Your server is starting.")
    await expect(page.get_by_text("NVIDIA H100 80GB HBM3").first).to_be_visible()
    await expect(page.get_by_text("Container", exact=True)).to_be_visible()
    await shoot(page, "pending")


async def test_the_report_of_a_start_is_one_click_away(pending, page):
    pending.hub.progress += progress_of(journals.DIED)
    tell(pending, journals.DIED)
    await page.goto(pending_url(pending))
    async with page.context.expect_page() as opened:
        await page.get_by_role("button", name="Report…").click()
    report = await (await opened.value).get_by_role("textbox", name="Report").input_value()
    assert "Error code: container-died" in report
    assert "MemoryError" in report


async def test_ready_with_a_warm_up_under_way_goes_to_the_landing_page(pending, page):
    pending.hub.progress += progress_of([*journals.hub_until("container"), *journals.warmup(1)])
    tell(pending, journals.WARMING)
    await page.goto(pending_url(pending, "?next=%2Fhub%2Fuser%2Fana%2F"))
    await expect(
        page.get_by_text("warming up", exact=False).or_(verdict(page)).first
    ).to_be_visible()
    pending.hub.progress.append({"progress": 100, "ready": True, "message": "Server ready"})
    await page.wait_for_url(re.compile("/services/lab/servers/ana/$"))
    await expect(verdict(page)).to_have_text("Your GPU is ready.")


@pytest.mark.parametrize(
    ("story", "more"),
    [
        (journals.hub_until("container"), ""),
        (
            [*journals.hub_until("container"), *journals.warmup(1)],
            "?next=%2Fuser%2Fana%2Flab%2Ftree%2Fa.ipynb",
        ),
    ],
    ids=["no warm-up", "a notebook was wanted"],
)
async def test_ready_otherwise_goes_where_the_person_wanted(pending, page, story, more):
    pending.hub.progress += progress_of(story)
    await page.goto(pending_url(pending, more))
    await expect(verdict(page)).to_have_text("Your server is starting.")
    pending.hub.is_ready = True
    pending.hub.progress.append({"progress": 100, "ready": True, "message": "Server ready"})
    await expect(verdict(page)).to_have_text("JupyterLab")
    assert "spawn-pending" in page.url


async def test_who_waits_for_a_turn_reads_how_many_start_before_them(pending, page):
    said = [f"{ahead} servers are starting before yours." for ahead in (3, 2)]
    turns = [(0.5, "start", {"stage": "turn", "message": one}) for one in said]
    story = [*journals.hub_until("gpu"), *turns, *journals.hub_until("image")[2:]]
    progress = progress_of(story)
    pending.hub.progress += progress[:3]
    await page.goto(pending_url(pending))
    told = page.get_by_role("region", name="Your server is starting.")
    await expect(told.get_by_text(said[0])).to_be_visible()
    pending.hub.progress.append(progress[3])
    await expect(told.get_by_text(said[1])).to_be_visible()
    await shoot(page, "pending-turn")
    pending.hub.progress += progress[4:]
    await expect(told.get_by_text("Starting the container…")).to_be_visible()
    await expect(told.get_by_text("before yours")).to_have_count(0)


async def test_once_the_turn_has_come_nothing_is_before_it_and_the_wait_is_a_stage(pending, page):
    said = "3 servers are starting before yours."
    turns = [
        (0.5, "start", {"stage": "turn", "message": said, "ahead": 3}),
        (20.3, "start", {"stage": "turn", "message": "It starts.", "ahead": 0, "waited_s": 20.0}),
    ]
    home = (21.0, "start", {"stage": "home", "message": "Your home directory is ready."})
    late = (21.5, "start", {"stage": "turn", "message": said, "ahead": 1})
    progress = progress_of([*journals.hub_until("gpu"), *turns, home, late])
    pending.hub.progress += progress[:3]
    await page.goto(pending_url(pending))
    told = page.get_by_role("region", name="Your server is starting.")
    steps = page.get_by_role("list", name="Stages of the start").get_by_role("listitem")
    await expect(told.get_by_text(said)).to_be_visible()
    await expect(steps).to_contain_text(["GPU found", "Waiting for other starts"])
    pending.hub.progress.append(progress[3])
    await expect(told.get_by_text("Preparing your home directory…")).to_be_visible()
    await expect(told.get_by_text(said)).to_have_count(0)
    await shoot(page, "pending-turn-over")
    pending.hub.progress += progress[4:]
    await expect(told.get_by_text("Fetching the image…")).to_be_visible()
    await expect(told.get_by_text(said)).to_have_count(0)
    await expect(steps).to_contain_text(
        ["GPU found0.1 s", "Waiting for other starts20 s", "Home0.9 s", "Image"]
    )


@pytest.mark.parametrize(
    "odd", [{"ahead": "0", "waited_s": 9}, {"ahead": 0, "waited_s": "9"}, {"ahead": 0}, {}]
)
async def test_a_turn_of_odd_values_takes_no_seconds_from_any_stage(pending, page, odd):
    turn = (0.5, "start", {"stage": "turn", "message": journals.BAD, **odd})
    home = (9.1, "start", {"stage": "home", "message": "Your home directory is ready."})
    pending.hub.progress += progress_of([*journals.hub_until("gpu"), turn, home])
    await page.goto(pending_url(pending))
    steps = page.get_by_role("list", name="Stages of the start").get_by_role("listitem")
    await expect(steps).to_contain_text(["GPU found0.1 s", "Home9.0 s", "Image"])
    assert await page.evaluate("window.hacked") is None


async def test_a_start_that_fails_says_why_and_offers_another(pending, page):
    pending.hub.progress += progress_of(journals.DIED)
    pending.hub.progress.append({"progress": 100, "failed": True, "message": "Spawn failed: it"})
    pending.hub.is_over = True
    await page.goto(pending_url(pending))
    await expect(verdict(page)).to_contain_text("out of memory")
    again = page.get_by_role("button", name="Try again")
    await expect(again).to_have_attribute("href", "/hub/spawn/ana")
    await page.get_by_text("Last 5 lines").click()
    await expect(page.get_by_text("MemoryError")).to_be_visible()
    assert await page.evaluate("window.hacked") is None
    await shoot(page, "pending-failed")


async def test_cancel_stops_the_very_server(pending, page):
    pending.hub.progress += progress_of(journals.STARTING)
    await page.goto(pending_url(pending, "/thesis"))
    await page.get_by_role("button", name="Cancel the start").click()
    await expect(verdict(page)).to_have_text("The start was cancelled.")
    assert pending.hub.posted == [("ana/servers/thesis", "the-xsrf")]


async def test_without_the_service_the_plain_messages_are_shown(pending, page):
    await page.route("**/services/lab/static/*.js", lambda route: route.abort())
    pending.hub.progress += [{"progress": 5, "message": f"Choosing {journals.BAD}"}]
    await page.goto(pending_url(pending))
    await expect(page.get_by_text("Choosing <img")).to_be_visible()
    pending.hub.progress += [{"failed": True, "message": "No GPU is free."}]
    await expect(page.get_by_text("No GPU is free.")).to_be_visible()
    await expect(page.get_by_role("button", name="Try again")).to_be_visible()
    await shoot(page, "pending-plain")


# ---- failures for want of a GPU ------------------------------------------------------------------

CPU_LINK = "Start without a GPU"
FAILURES = [
    ("no-gpu-available", True),
    ("not-granted", True),
    ("ledger-unavailable", True),
    ("removed-from-queue", True),
    ("container-died", False),
    ("image-missing", False),
    ("", False),
]


def failed(code: str) -> journals.Story:
    facts = {"stage": "failed", "code": code, "message": "It did not work.", "remedy": ""}
    return [*journals.hub_until("requested"), (0.2, "start", facts)]


@pytest.mark.parametrize(("code", "offers_cpu"), FAILURES)
async def test_a_failure_about_gpus_offers_a_start_without_one(pending, page, code, offers_cpu):
    pending.hub.progress += progress_of(failed(code))
    pending.hub.progress.append({"progress": 100, "failed": True, "message": "Spawn failed: it"})
    pending.hub.is_over = True
    await page.goto(pending_url(pending, "/thesis"))
    await expect(verdict(page)).to_have_text("It did not work.")
    again = page.get_by_role("button", name="Try again")
    await expect(again).to_have_attribute("href", "/hub/spawn/ana/thesis")
    instead = page.get_by_role("button", name=CPU_LINK)
    await expect(instead).to_have_count(1 if offers_cpu else 0)
    if offers_cpu:
        await expect(instead).to_have_attribute("href", "/hub/spawn/ana/thesis?share=none")


async def test_a_failure_without_any_journal_is_the_ledgers(pending, page):
    """Where the ledger is in trouble nothing can be written down, the failure's code neither."""
    said = "The lab's ledger cannot be opened, so no GPU can be given out safely."
    pending.hub.progress.append({"progress": 100, "failed": True, "message": said})
    pending.hub.is_over = True
    await page.goto(pending_url(pending))
    await expect(verdict(page)).to_have_text(said)
    await expect(page.get_by_role("button", name=CPU_LINK)).to_be_visible()


@pytest.mark.parametrize("look", ["1280 light", "390 dark"])
async def test_two_ways_out_of_a_failure_fit_the_screen(pending, browser, look):
    width, theme = look.split()
    pending.hub.progress += progress_of(failed("no-gpu-available"))
    pending.hub.is_over = True
    async for page in new_page(browser, int(width), theme):
        await page.goto(pending_url(pending))
        await expect(page.get_by_role("button", name=CPU_LINK)).to_be_in_viewport()
        assert await page.evaluate("document.documentElement.scrollWidth") <= int(width)
        await shoot(page, f"pending-no-gpu-{width}-{theme}")


class Refused(Exception):
    """What the hub hands to its pages after a start that was refused."""

    jupyterhub_message = "All GPUs are in use."

    def __init__(self, code: str) -> None:
        self.code = code


@pytest.mark.parametrize(("code", "offers_cpu"), FAILURES)
async def test_the_hubs_own_pages_offer_it_too(code, offers_cpu):
    error = render(
        "error.html",
        exception=Refused(code),
        status_code=409,
        status_message="Conflict",
        message="All GPUs are in use.",
        message_html="<p>All GPUs are in use.</p>",
    )
    # The address of the page itself names the server.
    assert ('href="?share=none"' in error) == offers_cpu
    not_running = render(
        "not_running.html",
        failed=True,
        exception=Refused(code),
        server_name="thesis",
        spawn_url="/hub/spawn/ana/thesis",
        failed_html_message="<p>All GPUs are in use.</p>",
    )
    assert "Relaunch" in not_running
    assert ('href="/hub/spawn/ana/thesis?share=none"' in not_running) == offers_cpu


async def test_a_server_that_just_does_not_run_is_as_the_hub_shows_it():
    page = render("not_running.html", server_name="", spawn_url="/hub/spawn/ana")
    assert "Launch" in page
    assert "share=none" not in page


async def test_ready_while_the_courses_notebooks_are_copied_goes_to_the_landing_page(pending, page):
    begin = (0.8, "course", {"phase": "begin", "course": "cnn", "title": "CNNs"})
    pending.hub.progress += progress_of([*journals.hub_until("container"), begin])
    tell(pending, [*journals.hub_until("lab"), begin])
    await page.goto(pending_url(pending, "?next=%2Fhub%2Fuser%2Fana%2F"))
    await expect(page.get_by_text("Still copying the course's notebooks")).to_be_visible()
    pending.hub.progress.append({"progress": 100, "ready": True, "message": "Server ready"})
    await page.wait_for_url(re.compile("/services/lab/servers/ana/$"))
    await expect(page.get_by_text("Still copying the course's notebooks")).to_be_visible()


async def test_ready_without_the_courses_notebooks_goes_where_that_is_said(pending, page):
    said = "The notebooks of CNNs are not published yet. Ask whoever teaches the course."
    note = (0.2, "start", {"stage": "course", "message": said})
    story = journals.hub_until("container")
    pending.hub.progress += progress_of([*story[:2], note, *story[2:]])
    tell(pending, [*story[:2], note, *journals.hub_until("lab")[2:]])
    await page.goto(pending_url(pending, "?next=%2Fhub%2Fuser%2Fana%2F"))
    card = page.get_by_role("region", name="Course notebooks")
    await expect(card.get_by_text(said)).to_be_visible()
    pending.hub.progress.append({"progress": 100, "ready": True, "message": "Server ready"})
    await page.wait_for_url(re.compile("/services/lab/servers/ana/$"))
    await expect(card.get_by_text(said)).to_be_visible()
