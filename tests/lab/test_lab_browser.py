"""The landing page in Chromium: what a person reads, at 1280 and 390 pixels, light and dark.

Set LAB_TEST_SCREENSHOTS to a folder to keep a picture of each situation.
"""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any

import lab_journals as journals
import pytest
from lab_browser import (
    MARKS,
    expect,
    go_on,
    new_page,
    open_page,
    shoot,
    tell,
    verdict,
)
from lab_fakes import ENTER, FakeWaiting
from lab_site import Site

from pytorch_spawner.core.tickets import Ticket

pytestmark = MARKS


SLOT = {**journals.GPU, "slots": 4, "slot": 1, "slot_memory_mib": 20480}
WHY = "because group cv; 6.5 of 20 h left this week"


def lease_story(until: float | None, **more: Any) -> journals.Story:
    """A server on a slot whose lease ends."""
    story = journals.hub_until("lab", [SLOT])
    facts = {**story[1][2], "share": "slot", "until": until, "limit": "soft", "why": WHY, **more}
    return [story[0], (0.1, "start", facts), *story[2:], *journals.checks()]


ENDING = {"stage": "ending", "message": "Your GPU time ends at 16:30. Save your work."}
STORIES = {
    "slot": (lease_story(time.time() + 7200), "Your GPU is ready."),
    "ending": (
        [
            *lease_story(time.time() + 900),
            (9.0, "start", {**ENDING, "until": time.time() + 900}),
        ],
        "Your GPU is ready.",
    ),
    "fine": (journals.FINE, "Your GPU is ready."),
    "warming": (journals.WARMING, "Your GPU is ready."),
    "failing": (journals.FAILING, "Your server is ready, but 1 check failed."),
    "cpu": (journals.CPU, "Your server is ready, without a GPU."),
    "simulation": (journals.SIMULATION, "Your server is ready, with a simulated GPU."),
    "starting": (journals.STARTING, "Your server is starting."),
    "queued": (journals.QUEUED, "You are 3rd in the queue."),
    "died": (journals.DIED, "The container ran out of memory before JupyterLab answered."),
    "hostile": (journals.HOSTILE, "Your server is ready, but 1 check failed."),
}


@pytest.mark.parametrize("look", ["1280 light", "390 light", "1280 dark", "390 dark"])
@pytest.mark.parametrize("name", STORIES)
async def test_every_situation_has_its_sentence_and_fits_the_screen(lab, browser, name, look):
    story, sentence = STORIES[name]
    width, theme = look.split()
    began = time.time() - (4 if name == "starting" else 20)
    tell(lab, story, began)
    async for page in new_page(browser, int(width), theme):
        await open_page(lab, page)
        await expect(verdict(page)).to_have_text(sentence)
        await page.wait_for_timeout(300)
        assert await page.evaluate("document.documentElement.scrollWidth") <= int(width)
        assert await page.evaluate("window.hacked") is None
        assert await page.locator("#lab-server :is(img, script, b, style)").count() == 0
        await shoot(page, f"{name}-{width}-{theme}")


async def test_who_waits_for_a_turn_reads_how_many_start_before_them(lab, page):
    said = "12 servers are starting before yours."
    turn = (1.2, "start", {"stage": "turn", "message": said, "ahead": 12})
    start = tell(lab, [*journals.hub_until("gpu"), turn])
    await open_page(lab, page)
    await expect(page.get_by_text(said)).to_be_visible()
    go_on(lab, start, journals.hub_until("home")[2:])
    await expect(page.get_by_text("Fetching the image…")).to_be_visible()
    await expect(page.get_by_text(said)).to_have_count(0)


async def test_the_button_opens_lab_as_soon_as_it_answers_and_stays(lab, page):
    start = tell(lab, journals.STARTING)
    await open_page(lab, page)
    await expect(page.get_by_role("button", name="Open JupyterLab")).to_be_disabled()
    go_on(lab, start, journals.hub_until("lab")[4:])
    link = page.get_by_role("button", name="Open JupyterLab")
    await expect(link).to_have_attribute("href", "/user/ana/lab")
    go_on(lab, start, journals.checks(driver=journals.DRIVER))
    card = page.get_by_role("region", name="Checks")
    await expect(card.get_by_text("too old for CUDA")).to_be_visible()
    await expect(link).to_have_attribute("href", "/user/ana/lab")


async def test_notes_are_open_with_what_to_do_and_the_fine_ones_are_folded(lab, page):
    tell(lab, journals.WARMING)
    await open_page(lab, page)
    card = page.get_by_role("region", name="Checks")
    await expect(card.get_by_text("14 fine, 1 note")).to_be_visible()
    await expect(card.get_by_text("Use num_workers=0 until it is larger.")).to_be_visible()
    first = card.get_by_text("PyTorch sees 1 GPU.")
    await expect(first).to_be_hidden()
    fold = card.get_by_text("14 fine", exact=True)
    await fold.focus()
    await page.keyboard.press("Enter")
    await expect(first).to_be_visible()


async def test_a_fold_stays_as_the_person_left_it_when_news_come(lab, page):
    start = tell(lab, journals.WARMING)
    await open_page(lab, page)
    card = page.get_by_role("region", name="Checks")
    note = card.get_by_text("/dev/shm is 64 MB")
    await note.click()
    await expect(card.get_by_text("Use num_workers=0")).to_be_hidden()
    go_on(lab, start, [(9.0, *journals.check("extra", "warn", "One more thing."))])
    await expect(card.get_by_text("One more thing.")).to_be_visible()
    await expect(card.get_by_text("Use num_workers=0")).to_be_hidden()


async def test_the_warm_up_says_seconds_and_where_from(lab, page):
    tell(lab, journals.WARMING)
    await open_page(lab, page)
    card = page.get_by_role("region", name="Warm-up")
    await expect(card.get_by_text("cold 8.0 s")).to_be_visible()
    await expect(card.get_by_text("now 1.1 s")).to_be_visible()
    await expect(card.get_by_text("compiling…")).to_be_visible()
    await expect(page.get_by_text("warming up in the background (2 of 3)")).to_be_visible()


async def test_what_was_not_measured_is_unknown_and_never_zero(lab, page):
    tell(lab, [*journals.hub_until("lab"), *journals.samples(None)])
    await open_page(lab, page)
    card = page.get_by_role("region", name="GPU", exact=True)
    await expect(card.get_by_text("power unknown")).to_be_visible()
    assert "0 %" not in await card.inner_text()


async def test_hostile_texts_are_texts(lab, page):
    tell(lab, journals.HOSTILE)
    await open_page(lab, page)
    await expect(page.get_by_text(journals.BAD).first).to_be_visible()
    assert await page.evaluate("window.hacked") is None


async def test_the_report_is_plain_text_without_tokens(lab, page):
    tell(lab, journals.DIED)
    await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await open_page(lab, page)
    await expect(verdict(page)).to_contain_text("out of memory")
    await page.get_by_role("button", name="Copy report").click()
    await expect(page.get_by_text("Copied.")).to_be_visible()
    report = await page.evaluate("navigator.clipboard.readText()")
    assert "ran out of memory" in report
    assert "MemoryError" in report
    assert "container-died" in report
    assert "0123456789abcdef" not in report
    assert report == (await lab.get("api/servers/ana//report")).text


async def test_without_the_clipboard_the_report_is_in_a_box_to_copy_from(lab, page):
    tell(lab, journals.DIED)
    await open_page(lab, page)
    await expect(verdict(page)).to_contain_text("out of memory")
    refuse = "navigator.clipboard.writeText = () => Promise.reject(new Error('no'))"
    await page.evaluate(f"() => {{ {refuse} }}")
    await page.get_by_role("button", name="Copy report").click()
    await expect(page.get_by_text("Press Ctrl+C to copy.")).to_be_visible()
    box = page.get_by_role("textbox", name="Report")
    await expect(box).to_be_focused()
    assert "Error code: container-died" in await box.input_value()


async def test_a_report_that_cannot_be_fetched_is_a_sentence(lab, page):
    tell(lab, journals.FINE)
    await open_page(lab, page)
    await expect(verdict(page)).to_have_text("Your GPU is ready.")
    button = page.get_by_role("button", name="Copy report")
    lab.ledger.is_broken = True
    await button.click()
    said = page.get_by_text("There is no report: The lab's ledger cannot be read just now.")
    await expect(said).to_be_visible()
    await page.context.set_offline(True)
    await button.click()
    await expect(page.get_by_text("The lab service cannot be reached just now")).to_be_visible()
    lab.ledger.is_broken = False
    await page.context.set_offline(False)
    await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await button.click()
    await expect(page.get_by_text("Copied.")).to_be_visible()


async def test_the_log_of_a_dead_container_is_folded_and_try_again_is_offered(lab, page):
    tell(lab, journals.DIED)
    await open_page(lab, page)
    again = page.get_by_role("button", name="Try again")
    await expect(again).to_have_attribute("href", "/hub/spawn/ana")
    await expect(page.get_by_text("MemoryError")).to_be_hidden()
    await page.get_by_text("Last 5 lines").click()
    await expect(page.get_by_text("MemoryError")).to_be_visible()


async def test_a_server_that_never_started_and_then_does(lab, page):
    await open_page(lab, page)
    await expect(verdict(page)).to_have_text("Your server has never been started.")
    await shoot(page, "never")
    await expect(page.get_by_role("button", name="Start it")).to_be_visible()
    tell(lab, journals.FINE)
    await expect(verdict(page)).to_have_text("Your GPU is ready.", timeout=10_000)


async def test_stop_and_a_new_start_while_the_page_is_open(lab, page):
    old = tell(lab, journals.FINE)
    await open_page(lab, page)
    await expect(verdict(page)).to_have_text("Your GPU is ready.")
    lab.ledger.end_start(old.id, "stopped")
    await expect(verdict(page)).to_have_text("Your server is stopped.")
    await shoot(page, "stopped")
    await expect(page.get_by_role("button", name="Start it")).to_be_visible()
    tell(lab, journals.STARTING)
    await expect(verdict(page)).to_have_text("Your server is starting.")
    await expect(page.get_by_text("No such")).to_have_count(0)


async def test_a_lost_connection_says_so_and_comes_back_without_doubling(lab, page):
    start = tell(lab, journals.FINE)
    await open_page(lab, page)
    await expect(verdict(page)).to_have_text("Your GPU is ready.")
    await page.context.set_offline(True)
    await drop_streams(lab)
    await expect(page.get_by_text("Connection lost.")).to_be_visible(timeout=15_000)
    await shoot(page, "lost")
    go_on(lab, start, [(30.0, *journals.check("late", "warn", "News after the gap."))])
    await page.context.set_offline(False)
    await expect(page.get_by_text("News after the gap.")).to_be_visible(timeout=15_000)
    await expect(page.get_by_text("Connection lost.")).to_be_hidden()


async def test_a_session_that_ended_leads_to_the_login(lab, page):
    tell(lab, journals.FINE)
    await open_page(lab, page)
    await expect(verdict(page)).to_have_text("Your GPU is ready.")
    await page.context.clear_cookies()
    await drop_streams(lab)
    await expect(page.get_by_role("link", name="Log in again")).to_be_visible()
    await shoot(page, "session")


async def test_a_login_in_another_tab_is_no_lost_right(lab, page):
    tell(lab, journals.FINE)
    await open_page(lab, page, "servers/ana/#memory")
    await expect(verdict(page)).to_have_text("Your GPU is ready.")
    await page.context.clear_cookies()
    lab.hub.browser_user_token = lab.hub.add("ana-again", "ana", ENTER)
    other = await page.context.new_page()
    await open_page(lab, other)
    await drop_streams(lab)
    await page.get_by_role("link", name="Load it again").click()
    await expect(page.get_by_role("link", name="Load it again")).to_have_count(0)
    await expect(verdict(page)).to_have_text("Your GPU is ready.")


async def drop_streams(lab: Site) -> None:
    """Send every viewer off, as a service that restarts does."""
    for watch in lab.lab.follower._watches.values():
        for queue in watch.queues:
            queue.put_nowait(None)
    await asyncio.sleep(0.1)


async def test_a_viewer_reads_whose_server_it_is(lab, page):
    tell(lab, journals.FINE)
    lab.hub.browser_user_token = "kim-page"
    await open_page(lab, page)
    await expect(verdict(page)).to_have_text("ana's GPU is ready.")
    await expect(page.get_by_role("button", name="Open JupyterLab")).to_have_count(0)


async def test_only_the_owner_is_led_to_the_button_that_stops_their_own_server(lab, page):
    tell(lab, journals.FINE)
    await open_page(lab, page)
    await expect(page.get_by_role("link", name="Stop server…")).to_be_visible()
    lab.hub.browser_user_token = "kim-page"
    await page.context.clear_cookies()
    await open_page(lab, page)
    await expect(verdict(page)).to_have_text("ana's GPU is ready.")
    await expect(page.get_by_role("link", name="Stop server…")).to_be_hidden()


async def test_the_theme_switch_is_the_hubs(lab, page):
    tell(lab, journals.FINE)
    await open_page(lab, page)
    await page.get_by_role("button", name="Toggle dark mode").click()
    assert await page.locator("html").get_attribute("data-bs-theme") == "dark"


async def test_the_gpu_card_says_which_slot_until_when_and_why(lab, page):
    until = time.time() + 3600
    tell(lab, lease_story(until))
    await open_page(lab, page)
    card = page.get_by_role("region", name="GPU", exact=True)
    await expect(card.get_by_text("slot 2 of 4 · 20 GiB")).to_be_visible()
    day = "" if time.localtime(until)[:3] == time.localtime()[:3] else " on "
    said = card.get_by_text(f"yours until {time.strftime('%H:%M', time.localtime(until))}{day}")
    await expect(said).to_have_attribute("title", re.compile(r"\d\d:\d\d:\d\d"))
    await expect(card.get_by_text("memory limit: soft")).to_be_visible()
    await expect(card.get_by_text(WHY)).to_be_visible()


async def test_what_the_hub_did_not_say_about_a_lease_is_not_shown(lab, page):
    tell(lab, lease_story(None, limit=None, why="", gpus=[{**SLOT, "slot": None}]))
    await open_page(lab, page)
    card = page.get_by_role("region", name="GPU", exact=True)
    await expect(card.get_by_text("one of 4 slots · 20 GiB")).to_be_visible()
    for words in ("until", "memory limit", "because"):
        await expect(card.get_by_text(words)).to_have_count(0)


async def test_a_lease_that_ends_is_a_warning_with_the_time_left(lab, page):
    start = tell(lab, lease_story(time.time() + 7200))
    await open_page(lab, page)
    await expect(verdict(page)).to_have_text("Your GPU is ready.")
    warning = page.get_by_role("status").get_by_text("Your GPU time ends at 16:30. Save your work.")
    await expect(warning).to_be_hidden()
    now = time.time()
    go_on(lab, start, [(0.0, "start", {**ENDING, "until": now + 720})], now)
    await expect(warning).to_be_visible()
    await expect(page.get_by_text(re.compile(r"^1[12] min left\.$"))).to_be_visible()
    go_on(lab, start, [(0.0, "start", {**ENDING, "until": now + 3})], now)
    await expect(page.get_by_text("The time is over.")).to_be_visible()
    go_on(lab, start, [(0.0, "start", {"stage": "stopped", "message": "Stopped."})])
    await expect(verdict(page)).to_have_text("Your server is stopped.")
    await expect(warning).to_be_hidden()


def put(lab: Site, start: Any, place: int, since: float) -> None:
    """Say at which place a server waits."""
    ticket = Ticket(start.id, "ana", since=since)
    lab.ledger.all_waiting = [FakeWaiting(ticket, place, 4, None, f"{place - 1} ahead of you.")]


async def test_a_server_that_queues_shows_its_place_and_where_to_leave(lab, page):
    start = tell(lab, journals.QUEUED)
    put(lab, start, 2, time.time() - 60)
    await open_page(lab, page)
    await expect(verdict(page)).to_have_text("You are 2nd in the queue.")
    await expect(page.get_by_text("1 ahead of you.")).to_be_visible()
    await expect(page.get_by_text(re.compile(r"Waiting for 6\d s"))).to_be_visible()
    await expect(page).to_have_title("2nd in the queue · Lab")
    leave = page.get_by_role("button", name="Leave, or start without a GPU…")
    await expect(leave).to_have_attribute("href", "/hub/spawn-pending/ana")
    await expect(page.get_by_role("link", name="Stop server…")).to_be_hidden()
    put(lab, start, 1, time.time() - 60)
    await expect(verdict(page)).to_have_text("You are 1st in the queue.")
    go_on(lab, start, journals.hub_until("lab")[1:])
    await expect(verdict(page)).to_have_text("Your GPU is ready.")


async def test_the_place_told_last_counts_though_the_clock_jumped_back(lab, page):
    """The journal's times never run back; the present is told by a clock that may."""
    start = tell(lab, journals.QUEUED, time.time() + 3600)
    put(lab, start, 2, time.time())
    await open_page(lab, page)
    await expect(verdict(page)).to_have_text("You are 2nd in the queue.")


async def test_a_start_that_failed_for_want_of_a_gpu_can_go_without_one(lab, page):
    said = {"stage": "failed", "code": "not-granted", "message": "No grant gives you a GPU."}
    tell(lab, [*journals.hub_until("requested"), (0.2, "start", said)])
    await open_page(lab, page)
    await expect(verdict(page)).to_have_text("No grant gives you a GPU.")
    instead = page.get_by_role("button", name="Start without a GPU")
    await expect(instead).to_have_attribute("href", "/hub/spawn/ana?share=none")


@pytest.mark.parametrize(
    ("profile", "words"), [(None, "whole GPU"), ("1g.10gb", "MIG 1g.10gb")], ids=["whole", "mig"]
)
async def test_what_is_not_cut_into_slots_is_no_slot(lab, page, profile, words):
    alone = {"slots": 1, "slot": None, "slot_memory_mib": 81559, "mig_profile": profile}
    tell(lab, journals.hub_until("lab", [{**journals.GPU, **alone}]))
    await open_page(lab, page)
    card = page.get_by_role("region", name="GPU", exact=True)
    await expect(card.get_by_text(words)).to_be_visible()
    await expect(card.get_by_text("slot")).to_have_count(0)
