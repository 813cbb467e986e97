"""Waiting for a GPU on the hub's pending page, in Chromium: the place, leaving, going without.

Set LAB_TEST_SCREENSHOTS to a folder to keep a picture of each situation.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncIterator
from typing import Any

import lab_journals as journals
import pytest
import pytest_asyncio
from lab_browser import MARKS, expect, new_page, shoot, verdict
from lab_pending import pending_url, progress_of, run_pending
from lab_site import Site

from pytorch_spawner.core.journal import Event

pytestmark = MARKS


@pytest_asyncio.fixture(loop_scope="module")
async def page(browser: Any) -> AsyncIterator[Any]:
    async for tab in new_page(browser):
        yield tab


@pytest_asyncio.fixture(loop_scope="module")
async def pending() -> AsyncIterator[Site]:
    async for running in run_pending():
        yield running


REASON = "2 ahead of you; a GPU is expected when a lease ends."
JOINED: journals.Story = [
    (0.0, "start", {"stage": "requested", "message": "Your server is being prepared."}),
    (0.1, "queue", {"place": 4, "reason": "3 ahead of you.", "expected_at": None}),
]
CPU_BUTTON = "Start now without a GPU"


def place(number: int, reason: str = REASON, **more: Any) -> dict[str, Any]:
    """The present state of the queue, as the hub tells it again and again: no entry, number 0."""
    now = time.time()
    data = {
        "place": number,
        "of": 7,
        "ahead": number - 1,
        "reason": reason,
        "expected_at": now + 3601,
        "since": now - 300,
        "can_start_cpu": True,
        **more,
    }
    event = Event(0, now, "queue", data)
    return {"progress": 5, "message": f"Place {number}", "lab": event.as_json()}


async def queue_up(site: Site, page: Any, more: str = "", **differs: Any) -> None:
    """Open the page of a start that is third in the queue, and was fourth when it joined."""
    name = more.strip("/")
    options = {"image": "lab/base:2", "course": "", "pool": "teaching", "gpus": "1"}
    site.hub.servers = {name: {"name": name, "pending": "spawn", "user_options": options}}
    site.hub.progress += [*progress_of(JOINED), place(3, **differs)]
    await page.goto(pending_url(site, more))
    await expect(verdict(page)).to_have_text("You are 3rd in the queue.")


def button(page: Any, name: str) -> Any:
    return page.get_by_role("button", name=name)


def methods(site: Site) -> list[str]:
    return [method for method, _, _ in site.hub.calls]


async def test_the_place_in_the_queue_is_told_and_kept_up_to_date(pending, page):
    await queue_up(pending, page)
    await expect(page.get_by_text(REASON)).to_be_visible()
    since = page.get_by_text("Waiting for 5 min")
    await expect(since).to_have_attribute("title", re.compile(r"\d\d:\d\d:\d\d"))
    at = time.strftime("%H:%M", time.localtime(time.time() + 3600))
    minute_later = time.strftime("%H:%M", time.localtime(time.time() + 3660))
    expected = page.get_by_text(re.compile(f"expected at ({at}|{minute_later}).*, in (60|61) min"))
    await expect(expected).to_have_attribute("title", re.compile(r"\d\d:\d\d:\d\d"))
    await expect(page).to_have_title("3rd in the queue · Lab")
    live = page.locator("[aria-live=polite]", has=verdict(page))
    await expect(live).not_to_contain_text("Waiting")
    stages = page.get_by_role("list", name="Stages")
    await expect(stages.get_by_text("Queue", exact=True)).to_be_visible()
    await expect(stages.get_by_text("5 min")).to_be_visible()

    pending.hub.progress.append(place(2, "1 ahead of you.", expected_at=None))
    await expect(verdict(page)).to_have_text("You are 2nd in the queue.")
    await expect(live.get_by_text("1 ahead of you.")).to_be_visible()
    await expect(page.get_by_text("expected time unknown")).to_be_visible()
    await expect(page).to_have_title("2nd in the queue · Lab")
    pending.hub.progress.append(place(1, expected_at=time.time() - 5))
    await expect(page.get_by_text("expected any moment")).to_be_visible()


@pytest.mark.parametrize("look", ["1280 light", "1280 dark", "390 light", "390 dark"])
async def test_the_queue_fits_the_screen(pending, browser, look):
    width, theme = look.split()
    async for page in new_page(browser, int(width), theme):
        await queue_up(pending, page)
        await expect(button(page, CPU_BUTTON)).to_be_in_viewport()
        await expect(button(page, "Leave the queue")).to_be_in_viewport()
        assert await page.evaluate("document.documentElement.scrollWidth") <= int(width)
        await shoot(page, f"queue-{width}-{theme}")
        pending.hub.refusals = {"POST": (503, json.dumps({"message": "The engine is away."}))}
        await button(page, CPU_BUTTON).click()
        await expect(page.get_by_text("The engine is away.")).to_be_visible()
        assert await page.evaluate("document.documentElement.scrollWidth") <= int(width)
        await shoot(page, f"queue-refused-{width}-{theme}")


async def test_when_the_gpu_comes_the_page_goes_on_by_itself(pending, page):
    await queue_up(pending, page)
    gpu = {**journals.hub_until("gpu")[1][2], "waited_s": 312.4}
    event = Event(3, time.time(), "start", gpu)
    pending.hub.progress.append({"progress": 15, "message": "gpu", "lab": event.as_json()})
    await expect(verdict(page)).to_have_text("Your server is starting.")
    await expect(page).to_have_title("Your server is starting.")
    stages = page.get_by_role("list", name="Stages")
    await expect(stages.get_by_text(re.compile("Queue.*5 min"))).to_be_visible()
    await expect(stages.get_by_text("GPU found")).to_be_visible()
    await expect(button(page, CPU_BUTTON)).to_be_hidden()
    await expect(page.get_by_text("Waiting for")).to_be_hidden()
    await expect(button(page, "Cancel the start")).to_be_visible()
    # News of the queue that come late change nothing any more.
    pending.hub.progress.append(place(1))
    await expect(page.get_by_text("Place 1")).to_be_attached()
    await expect(verdict(page)).to_have_text("Your server is starting.")


@pytest.mark.parametrize("server", ["", "thesis"])
async def test_start_now_without_a_gpu_leaves_waits_and_starts_what_was_chosen(
    pending, page, server
):
    await queue_up(pending, page, f"/{server}" if server else "")
    await button(page, CPU_BUTTON).click()
    await expect(verdict(page)).to_have_text("Your server is starting.")
    await expect(page.get_by_role("heading", name="No GPU")).to_be_visible()
    path = f"ana/servers/{server}" if server else "ana/server"
    assert pending.hub.calls == [
        ("GET", "ana", None),
        ("DELETE", path, None),
        ("GET", "ana", None),
        ("GET", "ana", None),
        ("POST", path, {"image": "lab/base:2", "course": "", "share": "none"}),
    ]


async def test_leave_the_queue_and_then_start_without_a_gpu_after_all(pending, page):
    await queue_up(pending, page)
    await button(page, "Leave the queue").click()
    await expect(verdict(page)).to_have_text("You left the queue.")
    assert pending.hub.calls[1:] == [("DELETE", "ana/server", None)]
    await expect(button(page, "Leave the queue")).to_be_hidden()
    again = button(page, "Try again")
    await expect(again).to_have_attribute("href", "/hub/spawn/ana")
    await expect(again).to_be_focused()
    await shoot(page, "queue-left")
    await button(page, CPU_BUTTON).click()
    await expect(page.get_by_role("heading", name="No GPU")).to_be_visible()
    assert methods(pending).count("DELETE") == 1
    assert pending.hub.calls[-1] == (
        "POST",
        "ana/server",
        {"image": "lab/base:2", "course": "", "share": "none"},
    )


async def test_where_no_cpu_start_is_offered_there_is_no_button_for_it(pending, page):
    await queue_up(pending, page, can_start_cpu=False)
    await expect(button(page, "Leave the queue")).to_be_visible()
    await expect(button(page, CPU_BUTTON)).to_be_hidden()
    await button(page, "Leave the queue").click()
    await expect(verdict(page)).to_have_text("You left the queue.")
    await expect(button(page, CPU_BUTTON)).to_be_hidden()
    assert methods(pending) == ["DELETE"]


@pytest.mark.parametrize(
    ("name", "method", "status", "sentence"),
    [
        (CPU_BUTTON, "GET", 500, "could not be asked just now, so you keep your place"),
        (CPU_BUTTON, "DELETE", 500, "could not cancel it just now. You keep your place"),
        (CPU_BUTTON, "DELETE", 403, "your login may have ended. You keep your place"),
        ("Leave the queue", "DELETE", 500, "could not cancel it just now. You keep your place"),
    ],
)
async def test_a_refusal_to_leave_says_so_and_the_place_stays(
    pending, page, name, method, status, sentence
):
    await queue_up(pending, page)
    pending.hub.refusals = {method: (status, "<h1>no JSON</h1>")}
    await button(page, name).click()
    await expect(page.get_by_text(sentence)).to_be_visible()
    await expect(button(page, name)).to_be_enabled()
    await expect(button(page, "Leave the queue")).to_be_visible()
    pending.hub.progress.append(place(2))
    await expect(verdict(page)).to_have_text("You are 2nd in the queue.")
    await expect(page.get_by_text(sentence)).to_be_visible()
    assert "POST" not in methods(pending)


async def test_a_hub_that_does_not_answer_at_all(pending, page):
    await queue_up(pending, page)
    await page.route("**/hub/api/users/ana/server?*", lambda route: route.abort())
    await button(page, "Leave the queue").click()
    lost = page.get_by_text("The hub could not be reached. You keep your place in the queue.")
    await expect(lost).to_be_visible()
    await expect(verdict(page)).to_have_text("You are 3rd in the queue.")


async def test_a_start_without_a_gpu_that_is_refused_says_why_and_can_be_tried_again(pending, page):
    await queue_up(pending, page)
    pending.hub.refusals = {"POST": (400, json.dumps({"message": f"No image {journals.BAD}"}))}
    await button(page, CPU_BUTTON).click()
    said = page.get_by_text("You left the queue, but your server did not start without a GPU")
    await expect(said).to_contain_text(f"No image {journals.BAD}.")
    assert await page.evaluate("window.hacked") is None
    await expect(verdict(page)).to_have_text("You left the queue.")
    await expect(button(page, CPU_BUTTON)).to_be_focused()
    pending.hub.refusals = {}
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", name="No GPU")).to_be_visible()
    assert methods(pending).count("DELETE") == 1
    assert methods(pending).count("POST") == 2


async def test_by_keyboard_alone_with_the_progress_said_and_one_press_counted(pending, page):
    await queue_up(pending, page)
    for _ in range(30):
        await page.keyboard.press("Tab")
        if await button(page, CPU_BUTTON).evaluate("it => it === document.activeElement"):
            break
    await expect(button(page, CPU_BUTTON)).to_be_focused()
    await page.keyboard.press("Tab")
    await expect(button(page, "Leave the queue")).to_be_focused()
    await page.keyboard.press("Shift+Tab")
    await page.keyboard.press("Enter")
    await expect(button(page, CPU_BUTTON)).to_be_disabled()
    await expect(button(page, "Leave the queue")).to_be_disabled()
    await expect(page.get_by_role("status").get_by_text("Leaving the queue…")).to_be_visible()
    await expect(button(page, CPU_BUTTON)).to_be_focused()
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", name="No GPU")).to_be_visible()
    assert methods(pending).count("POST") == 1
