"""The GPU card: time left, hours of the week, the next class; and what is not known is not shown.

Set LAB_TEST_SCREENSHOTS to a folder to keep pictures.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from typing import Any

import lab_journals as journals
import pytest_asyncio
from lab_browser import (
    MARKS,
    expect,
    go_on,
    new_page,
    open_page,
    shoot,
    tell,
    too_wide,
    verdict,
)
from lab_fakes import GPU, HUB, FakeLease, MemoryLedger
from lab_site import Site, run_site

from pytorch_spawner.core.course_manifest import Manifest
from pytorch_spawner.core.courses import Course
from pytorch_spawner.core.grants import Grant
from pytorch_spawner.core.placement import Holding
from pytorch_spawner.errors import LedgerUnavailable

pytestmark = MARKS


@dataclass
class StandingLedger(MemoryLedger):
    """Knows of weekly hours and courses."""

    all_grants: tuple[Grant, ...] = ()
    all_courses: tuple[Course, ...] = ()
    used_h: float = 0.0
    seen_courses: list[tuple[Course, ...]] = field(default_factory=list)
    reads: int = 0

    def grants(self, hub: str) -> tuple[Grant, ...]:
        return self.all_grants

    def courses(self, hub: str) -> tuple[Course, ...]:
        self.reads += 1
        return self.all_courses

    def courses_version(self, hub: str) -> int:
        if not self.seen_courses or self.seen_courses[-1] is not self.all_courses:
            self.seen_courses.append(self.all_courses)
        return len(self.seen_courses)

    def week_hours(self, hub: str, username: str) -> dict[str, float]:
        return {"cv": self.used_h}

    def groups_of(self, hub: str, username: str) -> tuple[str, ...]:
        return ("cv",)


@pytest_asyncio.fixture(loop_scope="module")
async def lab() -> AsyncIterator[Site]:
    async for running in run_site(StandingLedger()):
        running.hub.browser_user_token = "ana-page"
        yield running


UP = journals.hub_until("lab")


def course_that_meets(name: str, title: str, at: float, **members: Any) -> Course:
    """A course with one session of two hours."""
    begins = datetime.fromtimestamp(int(at), timezone.utc)
    session = {"start": begins, "end": begins + timedelta(hours=2)}
    manifest = Manifest.model_validate(
        {
            "name": name,
            "title": title,
            "source": {"git": "https://git.example/course"},
            "members": members,
            "timetable": {"sessions": (session,)},
        }
    )
    return Course(HUB, name, manifest)


def holds(lab: Site, start: Any, weekly_h: float | None = 20.0, weight: float = 0.25) -> None:
    """Let a start hold a slot through a grant."""
    lease = FakeLease("l1", HUB, start.id, "ana", "", (Holding(GPU["uuid"], 1, 4),), {}, 0.0)
    lab.ledger.all_leases = [replace(lease, grant="cv", weight=weight)]
    lab.ledger.all_grants = (Grant("cv", "group", "cv", weekly_gpu_hours=weekly_h),)


def gpu_card(page: Any) -> Any:
    return page.get_by_role("region", name="GPU", exact=True)


async def test_the_gpu_card_says_time_left_hours_used_and_the_next_class(lab, browser):
    now = time.time()
    soon = now + 2 * 86400
    lab.ledger.all_courses = (
        course_that_meets("cnn", "Deep learning", soon, groups=("cv",)),
        course_that_meets("nlp", "Not hers", now + 3600, groups=("nlp",)),
    )
    lab.ledger.used_h = 3.5
    for width, theme in ((1280, "light"), (390, "dark")):
        story = journals.hub_until(
            "lab", [{**GPU, "slots": 4, "slot": 1, "slot_memory_mib": 20480}]
        )
        story[1][2].update(share="slot", until=now + 7290, limit="soft")
        start = tell(lab, story)
        holds(lab, start)
        async for page in new_page(browser, width, theme):
            await open_page(lab, page)
            card = gpu_card(page)
            await expect(card.get_by_text("3.5 of 20 h this week")).to_be_visible()
            await expect(card.get_by_text(re.compile(r"yours until .*, 2 h left"))).to_be_visible()
            when = time.strftime("%a %H:%M", time.localtime(int(soon)))
            next_class = card.get_by_text(f"next class {when}")
            await expect(next_class).to_have_attribute("title", re.compile("^Deep learning: "))
            await expect(card.get_by_text("Not hers")).to_have_count(0)
            assert await too_wide(page) == []
            await shoot(page, f"standing-{width}-{theme}")


async def test_the_hours_run_on_while_the_page_is_open(lab, page):
    lab.ledger.used_h = 3.0
    start = tell(lab, UP)
    holds(lab, start, weight=1.0)
    await open_page(lab, page)
    await expect(gpu_card(page).get_by_text("3 of 20 h this week")).to_be_visible()
    await page.clock.install(time=time.time() + 2 * 3600 + 30)
    await page.clock.run_for(2000)
    await expect(gpu_card(page).get_by_text(re.compile(r"^5 of 20 h this week$"))).to_be_visible()


async def test_where_there_is_no_limit_and_no_class_nothing_is_shown(lab, page):
    start = tell(lab, UP)
    holds(lab, start, weekly_h=None)
    await open_page(lab, page)
    await expect(gpu_card(page).get_by_text("driver 580.159.04")).to_be_visible()
    for words in ("this week", "class", "yours", "until", "left"):
        await expect(gpu_card(page).get_by_text(words)).to_have_count(0)


async def test_a_class_that_meets_now_says_until_when_even_without_a_gpu(lab, page):
    at = time.time() - 600
    lab.ledger.all_courses = (course_that_meets("cnn", "Deep learning", at, users=("ana",)),)
    tell(lab, journals.CPU)
    await open_page(lab, page)
    until = time.strftime("%H:%M", time.localtime(int(at) + 7200))
    await expect(gpu_card(page).get_by_text(f"class now, until {until}")).to_be_visible()


async def test_the_hours_come_with_the_gpu_to_who_waited_for_it(lab, page):
    lab.ledger.used_h = 3.5
    start = tell(lab, journals.QUEUED)
    await open_page(lab, page)
    await expect(verdict(page)).to_have_text("You are 3rd in the queue.")
    holds(lab, start)
    go_on(lab, start, UP[1:])
    await expect(gpu_card(page).get_by_text("3.5 of 20 h this week")).to_be_visible()


async def test_a_ledger_that_cannot_say_the_hours_does_not_keep_the_journal_back(lab):
    def broken(hub: str) -> tuple[Any, ...]:
        raise LedgerUnavailable("No.")

    start = tell(lab, UP)
    holds(lab, start)
    lab.ledger.grants = broken
    async with lab.stream() as viewer:
        name, _, server = await viewer.next()
        assert (name, server["week"], server["next_class"]) == ("server", None, None)
        assert await viewer.numbers(1) == [1]


async def test_however_many_look_the_manifests_are_read_once_until_one_changes(lab):
    ledger, soon = lab.ledger, time.time() + 3600
    ledger.all_courses = (course_that_meets("cnn", "Deep learning", soon, groups=("cv",)),)
    tell(lab, UP)
    before = ledger.reads
    paths = [f"api/servers/ana//events?tab={number}" for number in range(8)]
    for title in ("Deep learning", "Vision"):
        ledger.all_courses = (course_that_meets("cnn", title, soon, groups=("cv",)),)
        async with AsyncExitStack() as tabs:
            viewers = [await tabs.enter_async_context(lab.stream(path)) for path in paths]
            said = [(await viewer.next())[2]["next_class"]["title"] for viewer in viewers]
        assert said == [title] * len(paths)
    assert ledger.reads - before == 2
