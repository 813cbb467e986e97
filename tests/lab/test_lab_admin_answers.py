"""What the admin's pages do with answers that are late, lost or refused, and with a second press.

In a real browser, on a real ledger; the network between them is what fails.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

import lab_pages as pages
import pytest
import pytest_asyncio
from lab_browser import MARKS, expect, new_page
from lab_fakes import HUB
from lab_pages import messages, open_as
from lab_seed import QUEUED, seed_caches, seed_courses
from lab_site import Site

pytestmark = MARKS
UNKNOWN = "It is not known whether this was done; look before you repeat it."
SILENCE = "The lab did not answer."


@pytest_asyncio.fixture(loop_scope="module")
async def lab(tmp_path: Any) -> AsyncIterator[Site]:
    async for running in pages.run_lab(tmp_path):
        seed_courses(running.ledger)
        seed_caches(running.ledger)
        running.ledger.next_cache(HUB)  # a build that runs has details
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def tab(browser: Any) -> AsyncIterator[Any]:
    async for page in new_page(browser):
        yield page


class Held:
    """Requests of a method that wait on their way until they are let go."""

    def __init__(self, page: Any, method: str) -> None:
        self.page = page
        self.method = method
        self.count = 0
        self.go_on = asyncio.Event()

    async def at(self, address: str) -> Held:
        await self.page.route(address, self._hold)
        return self

    async def _hold(self, route: Any) -> None:
        if route.request.method == self.method:
            self.count += 1
            await self.go_on.wait()
        await route.continue_()

    async def has_come(self) -> None:
        while not self.count:
            await asyncio.sleep(0.01)


def boost_of(site: Site, name: str) -> int:
    boosts = {one.ticket.username: one.ticket.boost for one in site.ledger.queue(HUB)}
    return boosts[name]


def card(page: Any) -> Any:
    return page.get_by_role("article", name="Computer vision", exact=True)


def button(place: Any, name: str) -> Any:
    return place.get_by_role("button", name=re.compile(f"^{name}"))


async def unfold(page: Any, name: str) -> None:
    """Open details that the page's timer reads again and again."""
    place = card(page) if name == "courses" else page.get_by_role("article").filter(has_text=QUEUED)
    await button(place, "Details").click()


async def look_again(page: Any) -> None:
    await page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")


# -- late and lost ---------------------------------------------------------------------------------


async def test_a_refusal_that_comes_after_its_panel_was_closed_is_a_message(
    lab: Site, tab: Any
) -> None:
    await open_as(lab, tab, "admin", "queue")
    await tab.get_by_role("button", name="Set… the boost of dan").click()
    panel = tab.get_by_role("dialog", name="Boost of dan")
    await panel.get_by_label("Boost").fill("5")
    lab.ledger.boost(HUB, "dan", "", 20, "kim")
    held = await Held(tab, "PATCH").at("**/api/queue/**")
    await panel.get_by_role("button", name="Save").click()
    await held.has_come()
    await tab.keyboard.press("Escape")
    await expect(panel).to_have_count(0)
    held.go_on.set()
    await expect(messages(tab)).to_contain_text("changed meanwhile, by kim")
    await expect(tab.locator(".lab-toast-bad")).to_have_count(1)
    assert boost_of(lab, "dan") == 20


@pytest.mark.parametrize("width", [390, 1280])
async def test_a_message_lies_above_the_panel_that_was_opened_meanwhile(
    lab: Site, tab: Any, width: int
) -> None:
    await tab.set_viewport_size({"width": width, "height": 800})
    await open_as(lab, tab, "admin", "queue")
    await tab.get_by_role("button", name="Set… the boost of dan").click()
    panel = tab.get_by_role("dialog", name="Boost of dan")
    await panel.get_by_label("Boost").fill("5")
    lab.ledger.boost(HUB, "dan", "", 20, "kim")
    held = await Held(tab, "PATCH").at("**/api/queue/**")
    await panel.get_by_role("button", name="Save").click()
    await held.has_come()
    await tab.keyboard.press("Escape")
    await tab.get_by_role("button", name="Set… the boost of fay").click()
    other = tab.get_by_role("dialog", name="Boost of fay")
    held.go_on.set()
    await expect(messages(other)).to_contain_text("changed meanwhile, by kim")
    await other.get_by_role("button", name="Cancel").click(trial=True)
    await other.get_by_role("button", name="Save").click(trial=True)
    await tab.keyboard.press("Escape")
    await expect(other).to_have_count(0)
    await expect(messages(tab)).to_contain_text("changed meanwhile, by kim")
    await messages(tab).get_by_role("button", name="Dismiss").click()
    await expect(tab.locator(".lab-toast")).to_have_count(0)


@pytest.mark.parametrize("status", [0, 500])
async def test_a_change_whose_answer_was_lost_is_to_be_looked_for_not_repeated(
    lab: Site, tab: Any, status: int
) -> None:
    async def lose(route: Any) -> None:
        if route.request.method != "POST":
            return await route.continue_()
        await route.fetch()
        return await (route.fulfill(status=status) if status else route.abort())

    await open_as(lab, tab, "admin", "caches")
    before = len(lab.ledger.caches(HUB))
    await tab.get_by_role("button", name="Build a warm cache…").click()
    panel = tab.get_by_role("dialog", name="Build a warm cache")
    await panel.get_by_label("Suite").select_option("example")
    await tab.route("**/api/caches", lose)
    await panel.get_by_role("button", name="Build").click()
    alert = panel.get_by_role("alert")
    await expect(alert).to_contain_text(UNKNOWN)
    await expect(alert).not_to_contain_text(re.compile("try again", re.IGNORECASE))
    assert len(lab.ledger.caches(HUB)) == before + 1


async def test_a_question_that_is_not_answered_changed_nothing(lab: Site, tab: Any) -> None:
    await open_as(lab, tab, "admin", "caches")
    await tab.route("**/api/caches/choices", lambda route: route.abort())
    await tab.get_by_role("button", name="Build a warm cache…").click()
    alert = tab.get_by_role("alert")
    await expect(alert).to_contain_text(f"Nothing was changed. {SILENCE}")
    await expect(alert).not_to_contain_text("not known")


@pytest.mark.parametrize("name", ["courses", "caches"])
async def test_unfolded_details_do_not_alarm_while_the_lab_is_away(
    lab: Site, tab: Any, name: str
) -> None:
    await open_as(lab, tab, "admin", name)
    async with tab.expect_response(re.compile(f"/api/{name}/")):
        await unfold(tab, name)
    # The list comes, so that only the details could complain.
    async with tab.expect_event("requestfailed"):
        await tab.route(f"**/api/{name}/**", lambda route: route.abort())
        await look_again(tab)
    await expect(tab.get_by_role("alert")).to_have_count(0)
    await tab.route(f"**/api/{name}", lambda route: route.abort())
    await look_again(tab)
    await expect(tab.get_by_role("alert")).to_have_count(1)
    await expect(tab.get_by_role("alert")).to_contain_text(SILENCE)
    await tab.unroute_all()
    await look_again(tab)
    await expect(tab.get_by_role("alert")).to_have_count(0)


@pytest.mark.parametrize("name", ["courses", "caches"])
async def test_details_that_do_not_come_when_unfolded_are_said(
    lab: Site, tab: Any, name: str
) -> None:
    await open_as(lab, tab, "admin", name)
    await tab.route(f"**/api/{name}/**", lambda route: route.abort())
    await unfold(tab, name)
    await expect(tab.get_by_role("alert")).to_have_text(re.compile(f"^{SILENCE}"))


# -- pressed twice ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "opener", "address"),
    [
        ("courses", "Edit manifest", "**/api/courses/cv"),
        ("courses", "Timetable", "**/api/courses/cv"),
        ("caches", "Build a warm cache", "**/api/caches/choices"),
    ],
)
async def test_a_double_click_opens_one_panel(
    lab: Site, tab: Any, name: str, opener: str, address: str
) -> None:
    await open_as(lab, tab, "admin", name)
    held = await Held(tab, "GET").at(address)
    await button(card(tab) if name == "courses" else tab, opener).dblclick()
    await held.has_come()
    held.go_on.set()
    await expect(tab.get_by_role("dialog").first).to_be_visible()
    assert held.count == 1
    await tab.keyboard.press("Escape")
    await expect(tab.get_by_role("dialog")).to_have_count(0)


async def test_two_presses_raise_somebody_twice(lab: Site, tab: Any) -> None:
    await open_as(lab, tab, "admin", "queue")
    held = await Held(tab, "PATCH").at("**/api/queue/**")
    await tab.get_by_role("button", name="Raise dan by 10").dblclick()
    await tab.get_by_role("button", name="Lower fay by 10").click()
    held.go_on.set()
    await expect(messages(tab)).to_contain_text("dan: boost +20 (was: +10).")
    await expect(messages(tab)).to_contain_text("fay: boost −10 (was: 0).")
    await expect(tab.get_by_role("alert")).to_have_count(0)
    assert (boost_of(lab, "dan"), boost_of(lab, "fay")) == (20, -10)


async def test_a_second_press_is_dropped_with_a_first_that_was_refused(lab: Site, tab: Any) -> None:
    await open_as(lab, tab, "admin", "queue")
    held = await Held(tab, "PATCH").at("**/api/queue/**")
    await tab.get_by_role("button", name="Raise dan by 10").dblclick()
    lab.ledger.boost(HUB, "dan", "", -30, "kim")
    held.go_on.set()
    await expect(tab.get_by_role("alert")).to_contain_text("changed meanwhile, by kim")
    await expect(tab.get_by_role("row").filter(has_text="dan")).to_contain_text("−30")
    assert (held.count, boost_of(lab, "dan")) == (1, -30)
