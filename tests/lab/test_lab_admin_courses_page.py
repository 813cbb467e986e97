"""The page "Courses" in a real browser: is it ready, every button, in words and live."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import lab_pages as pages
import pytest
import pytest_asyncio
from lab_browser import MARKS, expect, new_page
from lab_fakes import ENTER, HUB
from lab_pages import AXE, faults_of, focused, messages, open_as, picture, tab_to
from lab_seed import CALENDAR, COURSE, NEW, OLD, preload, report, seed_courses
from lab_site import Site

from pytorch_spawner.core.course_manifest import Manifest
from pytorch_spawner.core.course_text import parse_manifest
from pytorch_spawner.core.courses import Step

pytestmark = MARKS
SIZES = [(1280, "light"), (390, "dark")]
ALL_SIZES = [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]


@pytest_asyncio.fixture(loop_scope="module")
async def empty(tmp_path: Any) -> AsyncIterator[Site]:
    async for running in pages.run_lab(tmp_path):
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def lab(empty: Site) -> Site:
    seed_courses(empty.ledger)
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


@pytest_asyncio.fixture(
    loop_scope="module", params=ALL_SIZES, ids=lambda size: f"{size[0]}-{size[1]}"
)
async def sized(browser: Any, request: Any) -> AsyncIterator[Any]:
    width, theme = request.param
    async for one in new_page(browser, width, theme):
        one.size = f"{width}-{theme}"
        yield one


def card(page: Any, title: str = "Computer vision") -> Any:
    return page.get_by_role("article", name=title, exact=True)


def button(place: Any, name: str) -> Any:
    return place.get_by_role("button", name=re.compile(f"^{name}"))


def panel(page: Any, name: str) -> Any:
    return page.get_by_role("dialog", name=name)


def manifest(site: Site, name: str = "cv") -> Manifest:
    return site.ledger.course(HUB, name).manifest


async def look_again(page: Any) -> None:
    await page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")


async def hold_posts(page: Any, address: str) -> list[Any]:
    """Let them take a while: a second press comes before an answer; returns those that come."""
    held = []

    async def hold(route: Any) -> None:
        if route.request.method == "POST":
            held.append(route)
            await asyncio.sleep(0.5)
        await route.continue_()

    await page.route(address, hold)
    return held


async def width_of(page: Any) -> int:
    return int(await page.evaluate("document.documentElement.scrollWidth"))


# ---- looking -------------------------------------------------------------------------------------


async def test_the_card_answers_whether_the_course_is_ready(lab: Site, page: Any) -> None:
    await open_as(lab, page, "instructor", "courses")
    one = card(page)
    await expect(one).to_contain_text("4f1c2a7d; b7e09931 is preloaded and waits to be published")
    await expect(one).to_contain_text("no session planned")
    steps = one.get_by_role("list", name="Steps of the preload").get_by_role("listitem")
    await expect(steps).to_have_count(5)
    await expect(steps.nth(0)).to_contain_text("Notebooks, done 1.5 s")
    await expect(one).to_contain_text("2 students · 1 current · 1 never started")
    await expect(card(page, "Language")).to_have_count(0)
    await expect(page.get_by_text("Courses you take part in")).to_have_count(0)


async def test_a_preload_is_followed_live_to_its_end(lab: Site, page: Any) -> None:
    await open_as(lab, page, "instructor", "courses")
    await button(card(page), "Preload").click()
    await expect(messages(page)).to_contain_text("It is being preloaded.")
    await expect(card(page)).to_contain_text("The preload waits for its turn.")
    await expect(button(card(page), "Publish")).to_have_count(0)
    lab.ledger.next_course_task(HUB)
    steps = [Step("fetch", "done", "12 files.", 0.4), Step("check", "running", "", 2.0)]
    lab.ledger.note_course(HUB, "cv", steps=steps)
    await expect(card(page)).to_contain_text("Preloading: checks.")
    await expect(card(page).locator("[aria-current=step]")).to_contain_text("Checks, running 2.0 s")
    await picture(page, f"courses-preloading-{page.size}")
    bad = Step(
        "check", "failed", "Two notebooks cannot be read.", 3.0, ("a.ipynb: <b>no JSON</b>",)
    )
    lab.ledger.note_course(HUB, "cv", steps=[steps[0], bad], preloaded_at=1.0, is_over=True)
    await expect(card(page)).to_contain_text("but the last preload failed at checks.")
    await card(page).get_by_text("1 finding").click()
    await expect(card(page)).to_contain_text("a.ipynb: <b>no JSON</b>")
    await expect(card(page).locator("b")).to_have_count(0)
    await look_again(page)
    await expect(card(page).get_by_text("a.ipynb")).to_be_visible()


async def test_publishing_says_which_commit_goes_out_and_asks_first(lab: Site, tab: Any) -> None:
    await open_as(lab, tab, "instructor", "courses")
    await button(card(tab), "Publish").click()
    question = tab.get_by_role("alertdialog", name="Publish b7e09931 to 2 students?")
    await expect(question).to_contain_text("“Week 3: attention” goes out in the place of 4f1c2a7d")
    await question.get_by_role("button", name="Cancel").click()
    assert lab.ledger.course(HUB, "cv").task == ""
    await button(card(tab), "Publish").click()
    preload(lab.ledger, "c" * 40)  # somebody else preloads meanwhile
    await question.get_by_role("button", name="Publish").click()
    await expect(tab.get_by_role("alert")).to_contain_text("changed meanwhile")
    assert lab.ledger.course(HUB, "cv").task == ""
    await button(card(tab), "Publish").click()
    await tab.get_by_role("alertdialog").get_by_role("button", name="Publish").click()
    await expect(messages(tab)).to_contain_text("cccccccc goes out")
    assert lab.ledger.course(HUB, "cv").task == "publish"
    await button(card(tab), "Stop").click()
    question = tab.get_by_role("alertdialog", name="Stop the publication of Computer vision?")
    await question.get_by_role("button", name="Stop it").click()
    await expect(messages(tab)).to_contain_text("It is asked to stop.")
    assert lab.ledger.course(HUB, "cv").task == ""


async def test_what_was_given_up_for_the_class_is_a_warning_and_goes_out_only_knowingly(
    lab: Site, page: Any
) -> None:
    why = "Given up at 08:45: the class begins at 09:00 UTC."
    steps = [
        *(Step(name, "done") for name in ("fetch", "check", "image")),
        Step("smoke", "warned", why, 4.0, is_given_up=True),
        Step("warm", "skipped", "There was no time left before the class."),
    ]
    lab.ledger.note_course(HUB, "cv", steps=steps)
    await open_as(lab, page, "instructor", "courses")
    verdict = card(page).locator(".lab-course-warn")
    await expect(verdict).to_contain_text(
        "Students have 4f1c2a7d and keep it; b7e09931 was fetched"
    )
    await expect(verdict).to_contain_text(why)
    await expect(card(page).locator(".lab-course-step-warned")).to_contain_text(
        "Smoke test, given up"
    )
    await expect(button(card(page), "Preload")).to_have_class(re.compile("btn-primary"))
    await expect(button(card(page), "Publish")).not_to_have_class(re.compile("btn-primary"))
    await picture(page, f"courses-given-up-{page.size}")
    await button(card(page), "Publish").click()
    question = page.get_by_role("alertdialog", name="Publish b7e09931 to 2 students?")
    await expect(question).to_contain_text("It was not tried to the end: the last preload was")
    await expect(question).to_contain_text(why)


async def test_trying_as_a_student_opens_a_throw_away_server(lab: Site, tab: Any) -> None:
    await open_as(lab, tab, "instructor", "courses")
    link = card(tab).get_by_role("link", name=re.compile("^Try as a student Computer vision"))
    await expect(link).to_have_attribute("href", "/hub/spawn/ida/try-cv?opt-course=cv&course=cv")
    await expect(link).to_have_attribute("target", "_blank")
    await expect(link).to_have_accessible_description(re.compile("throw-away.*empty home.*deleted"))
    await tab.context.clear_cookies()
    await open_as(lab, tab, "admin", "courses")  # sees it, but has no such server
    await expect(card(tab, "Language")).to_be_visible()
    await expect(tab.get_by_role("link", name=re.compile("^Try"))).to_have_count(0)


async def test_students_are_shown_with_whoever_needs_a_look_first(lab: Site, page: Any) -> None:
    report(
        lab.ledger,
        "eve",
        OLD,
        level="warn",
        message="1 file in conflict. <i>x</i>",
        kept=["a.ipynb", "b.ipynb"],
        conflicts={"week-1/cnn.ipynb": "week-1/cnn (course).ipynb"},
    )
    lab.ledger.publish_course(HUB, "cv", (NEW, f"served{NEW}"[:40]), "ida")
    report(lab.ledger, "dan", NEW)
    await open_as(lab, page, "instructor", "courses")
    await button(card(page), "Students").click()
    table = page.get_by_role("table", name="Students of Computer vision")
    rows = table.get_by_role("row").filter(has=page.get_by_role("rowheader"))
    await expect(rows).to_have_count(3)
    await expect(rows.nth(0)).to_contain_text("eve")
    for words in ("behind", "4f1c2a7d", "2 files", "week-1/cnn.ipynb", "(course)", "<i>x</i>"):
        await expect(rows.nth(0)).to_contain_text(words)
    await expect(rows.nth(1)).to_contain_text(re.compile("ana.*behind"))
    await expect(rows.nth(2)).to_contain_text(re.compile("dan.*not a member any more.*current"))
    await picture(page, f"courses-students-{page.size}")
    assert await width_of(page) <= page.viewport_size["width"], "it scrolls sideways"
    report(lab.ledger, "ana", NEW)
    await look_again(page)
    await expect(rows.filter(has_text="ana")).to_contain_text("current")


async def test_one_file_of_one_student_is_reset(lab: Site, page: Any) -> None:
    report(lab.ledger, "ana", OLD, conflicts={"a b.ipynb": "a b (course).ipynb"}, level="warn")
    await open_as(lab, page, "instructor", "courses")
    await button(card(page), "Students").click()
    await button(page, "Reset a file… of ana").click()
    one = panel(page, "Reset a file of ana")
    await expect(one).to_contain_text("What ana wrote is kept beside it, as a backup")
    await expect(one.get_by_label("File")).to_have_value("a b.ipynb")
    await one.get_by_label("File").fill("../secret")
    await one.get_by_role("button", name="Reset it").click()
    await expect(one.get_by_label("File")).to_have_accessible_description(
        re.compile("a path inside the course")
    )
    await one.get_by_label("File").fill("a b.ipynb")
    await one.get_by_role("button", name="Reset it").click()
    await expect(messages(page)).to_contain_text("a b.ipynb of ana is reset within seconds")
    await expect(page.get_by_text("a b.ipynb: reset asked for by ida")).to_be_visible()
    (order,) = lab.ledger.orders(HUB, "cv")
    assert (order.username, order.path, order.by) == ("ana", "a b.ipynb", "ida")


async def test_details_tell_what_was_done_lately(lab: Site, tab: Any) -> None:
    await open_as(lab, tab, "instructor", "courses")
    await button(card(tab), "Details").click()
    await expect(card(tab)).to_contain_text("https://forge.example/cv.git, branch main")
    await expect(card(tab)).to_contain_text("Published 4f1c2a7d of the course")
    await expect(card(tab)).to_contain_text("Added the course")
    async with tab.expect_download() as coming:
        await card(tab).get_by_role("link", name="Download course.yaml").click()
    text = Path(await (await coming.value).path()).read_text()
    assert "title: Computer vision" in text


# ---- changing ------------------------------------------------------------------------------------


async def test_the_empty_page_offers_an_example(
    empty: Site, page: Any, example: dict[str, Any]
) -> None:
    await open_as(empty, page, "instructor", "courses")
    await expect(page.get_by_text("You look after no course yet.")).to_be_visible()
    await picture(page, f"courses-empty-{page.size}")
    await page.get_by_role("button", name="Add the example course").click()
    await expect(messages(page)).to_contain_text(f"Added: {example['title']}. Preload it now.")
    await expect(card(page, example["title"])).to_contain_text("it was never preloaded")
    assert manifest(empty, example["name"]).members.staff == ("ida",)


async def test_a_double_click_adds_one_example(
    empty: Site, tab: Any, example: dict[str, Any]
) -> None:
    await open_as(empty, tab, "instructor", "courses")
    posted = await hold_posts(tab, "**/api/courses")
    await tab.get_by_role("button", name="Add the example course").dblclick()
    await expect(card(tab, example["title"])).to_be_visible()
    await expect(messages(tab)).to_contain_text("Added:")
    assert len(posted) == 1


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The example course, whatever comes with the lab."""
    folder = tmp_path / "courses" / "example"
    folder.mkdir(parents=True)
    (folder / "course.yaml").write_text("name: example\ntitle: An example\nsource: {}\n")
    monkeypatch.setattr(
        "pytorch_spawner.lab.course_example.courses_dir", lambda: tmp_path / "courses"
    )
    return {"name": "example", "title": "An example"}


async def test_a_course_is_added_by_form_with_its_faults_beside_the_fields(
    lab: Site, page: Any
) -> None:
    await open_as(lab, page, "instructor", "courses")
    await page.get_by_role("button", name="Add a course…").click()
    one = panel(page, "Add a course")
    await one.get_by_label("Title").fill("Über Deep Learning, 2nd part")
    await expect(one.get_by_label("Short name")).to_have_value("uber-deep-learning-2nd-pa")
    await one.get_by_label("Short name").fill("cv")
    await one.get_by_label("Git repository").fill("git@forge:dl.git")
    await one.get_by_label("Groups of students").fill("dl, dl-2")
    await one.get_by_label("GPUs of each student").select_option("1")
    await one.get_by_role("button", name="Add", exact=True).click()
    await expect(one.get_by_label("Git repository")).to_have_accessible_description(
        re.compile("a URL that begins with https://")
    )
    await picture(page, f"courses-add-{page.size}", is_whole=False)
    await one.get_by_label("Git repository").fill("https://forge.example/dl.git")
    await one.get_by_role("button", name="Add", exact=True).click()
    await expect(one.get_by_label("Short name")).to_have_accessible_description(
        re.compile("there is a course of this name already")
    )
    await one.get_by_label("Short name").fill("dl")
    # What was typed survives a closed panel and a reload.
    await page.keyboard.press("Escape")
    await page.reload()
    await page.get_by_role("button", name="Add a course…").click()
    await expect(one.get_by_label("Groups of students")).to_have_value("dl, dl-2")
    await one.get_by_role("button", name="Add", exact=True).click()
    await expect(messages(page)).to_contain_text("Added: Über Deep Learning, 2nd part.")
    made = manifest(lab, "dl")
    assert made.members.groups == ("dl", "dl-2")
    assert (made.members.staff, made.request.gpus) == (("ida",), 1)


async def test_a_form_goes_on_as_text(lab: Site, tab: Any) -> None:
    await open_as(lab, tab, "instructor", "courses")
    await tab.get_by_role("button", name="Add a course…").click()
    one = panel(tab, "Add a course")
    await one.get_by_label("Title").fill('No: "quotes" #here')
    await one.get_by_label("Git repository").fill("https://forge.example/dl.git")
    await one.get_by_role("button", name="Go on in course.yaml…").click()
    await expect(one.get_by_label("course.yaml")).to_have_value(re.compile("git: .*dl.git"))
    await one.get_by_role("button", name="Add", exact=True).click()
    await expect(messages(tab)).to_contain_text("Added")
    assert manifest(lab, "no-quotes-here").title == 'No: "quotes" #here'


async def test_faults_of_a_manifest_are_told_by_line_and_nothing_typed_is_lost(
    lab: Site, page: Any
) -> None:
    await open_as(lab, page, "instructor", "courses")
    await button(card(page), "Edit manifest").click()
    one = panel(page, "Manifest of Computer vision")
    text = one.get_by_label("course.yaml")
    await expect(text).to_have_value(re.compile("title: Computer vision"))
    typed = "name: cv\ntitle: Vision\nsource:\n  git: nothing\ncolour: red\n"
    await text.fill(typed)
    await one.get_by_role("button", name="Save", exact=True).click()
    faults = one.get_by_role("list", name="Faults by line")
    await expect(faults).to_contain_text("source.git: a URL that begins with")
    await expect(faults).to_contain_text("colour: there is no such key")
    await picture(page, f"courses-edit-{page.size}", is_whole=False)
    await one.get_by_role("button", name="Go to line 4").click()
    await expect(text).to_be_focused()
    chosen = await text.evaluate("a => a.value.slice(a.selectionStart, a.selectionEnd)")
    assert chosen == "  git: nothing"
    await page.keyboard.press("Escape")
    await page.reload()
    await button(card(page), "Edit manifest").click()
    await expect(text).to_have_value(typed)
    await one.get_by_role("button", name="Show what is saved").click()
    await expect(text).to_have_value(re.compile("title: Computer vision"))
    await one.get_by_role("button", name="Show what I typed").click()
    await text.fill(
        typed.replace("nothing", "https://forge.example/v.git").replace(
            "colour: red", "members: {staff: [ida]}"
        )
    )
    await one.get_by_role("button", name="Save", exact=True).click()
    await expect(messages(page)).to_contain_text("Saved.")
    await expect(card(page, "Vision")).to_be_visible()
    await messages(page).get_by_role("button", name="Dismiss").click()
    await button(card(page, "Vision"), "Edit manifest").click()
    await expect(panel(page, "Manifest of Vision")).not_to_contain_text("did not save")


async def test_a_manifest_that_somebody_else_changed_is_not_overwritten(
    lab: Site, tab: Any
) -> None:
    await open_as(lab, tab, "instructor", "courses")
    await button(card(tab), "Edit manifest").click()
    one = panel(tab, "Manifest of Computer vision")
    text = one.get_by_label("course.yaml")
    mine = (await text.input_value()).replace("Computer vision", "Mine")
    await text.fill(mine)
    lab.ledger.save_course(HUB, parse_manifest({**COURSE, "title": "Theirs"}), "zoe")
    await one.get_by_role("button", name="Save", exact=True).click()
    await expect(one.get_by_role("alert")).to_contain_text("changed meanwhile, by zoe")
    await one.get_by_role("button", name="Load what is there now").click()
    await expect(one.get_by_label("What is saved now")).to_have_value(re.compile("title: Theirs"))
    await expect(text).to_have_value(mine)
    assert manifest(lab).title == "Theirs"
    await one.get_by_role("button", name="Save", exact=True).click()
    await expect(messages(tab)).to_contain_text("Saved.")
    assert manifest(lab).title == "Mine"


async def test_a_session_is_added_by_form_and_removed(lab: Site, page: Any) -> None:
    await open_as(lab, page, "instructor", "courses")
    await button(card(page), "Timetable").click()
    one = panel(page, "Timetable of Computer vision")
    await expect(one).to_contain_text("No session is planned yet.")
    await one.get_by_label("Day").fill("2027-03-02")
    await one.get_by_label("Every week until").fill("2027-03-20")
    await one.get_by_label("Seats", exact=True).fill("30")
    await one.get_by_label("Title").fill("Laboratory")
    await one.get_by_label("Time zone").fill("Mars/Base")
    await one.get_by_role("button", name="Add the session").click()
    await expect(one.get_by_label("Time zone")).to_have_accessible_description(
        re.compile("a time zone, such as")
    )
    await one.get_by_label("Time zone").fill("Europe/Berlin")
    await one.get_by_role("button", name="Add the session").click()
    await expect(messages(page)).to_contain_text("The session is added.")
    slot = one.get_by_role("listitem").filter(has_text="every week until")
    await expect(slot).to_contain_text(re.compile("Tue,? 2 Mar 2027.*09:00–11:00"))
    await expect(slot).to_contain_text("Laboratory · 30 seats")
    await picture(page, f"courses-timetable-{page.size}", is_whole=False)
    table = manifest(lab).timetable
    assert (table.timezone, len(table.sessions), table.sessions[0].seats) == (
        "Europe/Berlin",
        1,
        30,
    )
    await one.get_by_role("button", name=re.compile("^Remove Tue")).click()
    await expect(one).to_contain_text("No session is planned yet.")
    assert manifest(lab).timetable.sessions == ()


async def test_a_session_in_another_time_zone_does_not_move_those_that_are_there(
    lab: Site, tab: Any
) -> None:
    times = {"start": "2099-03-03T09:00", "end": "2099-03-03T11:00"}
    there = {"timezone": "Europe/Berlin", "sessions": [times]}
    lab.ledger.save_course(HUB, parse_manifest({**COURSE, "timetable": there}), "ida")
    await open_as(lab, tab, "instructor", "courses")
    await button(card(tab), "Timetable").click()
    one = panel(tab, "Timetable of Computer vision")
    zone = one.get_by_label("Time zone")
    await zone.fill("Asia/Tokyo")
    await one.get_by_role("button", name="Add the session").click()
    await expect(zone).to_have_accessible_description(
        re.compile("there are in Europe/Berlin; this would move them all.*in the manifest")
    )
    await expect(zone).to_be_focused()
    assert manifest(lab).timetable.timezone == "Europe/Berlin"
    await zone.fill("Europe/Berlin")
    await one.get_by_role("button", name="Add the session").click()
    await expect(messages(tab)).to_contain_text("The session is added.")
    assert len(manifest(lab).timetable.sessions) == 2


async def test_sessions_with_an_offset_stay_where_they_are_in_any_time_zone(
    lab: Site, tab: Any
) -> None:
    times = {"start": "2099-03-03T09:00+01:00", "end": "2099-03-03T11:00+01:00"}
    lab.ledger.save_course(HUB, parse_manifest({**COURSE, "timetable": {"sessions": [times]}}), "i")
    await open_as(lab, tab, "instructor", "courses")
    await button(card(tab), "Timetable").click()
    one = panel(tab, "Timetable of Computer vision")
    await one.get_by_label("Time zone").fill("Asia/Tokyo")
    await one.get_by_role("button", name="Add the session").click()
    await expect(messages(tab)).to_contain_text("The session is added.")
    assert manifest(lab).timetable.timezone == "Asia/Tokyo"


async def test_sessions_of_every_week_follow_the_timetables_clocks(lab: Site, tab: Any) -> None:
    times = {"start": "2099-03-03T09:00+01:00", "end": "2099-03-03T11:00+01:00"}
    weekly = {**times, "weekly_until": "2099-06-02"}
    timetable = {"timezone": "Europe/Berlin", "sessions": [weekly]}
    lab.ledger.save_course(HUB, parse_manifest({**COURSE, "timetable": timetable}), "i")
    await open_as(lab, tab, "instructor", "courses")
    await button(card(tab), "Timetable").click()
    one = panel(tab, "Timetable of Computer vision")
    await one.get_by_label("Time zone").fill("Asia/Tokyo")
    await one.get_by_role("button", name="Add the session").click()
    await expect(one).to_contain_text("this would move them all")
    assert manifest(lab).timetable.timezone == "Europe/Berlin"


async def test_enter_in_the_seats_of_a_calendar_imports_it(lab: Site, tab: Any) -> None:
    await open_as(lab, tab, "instructor", "courses")
    await button(card(tab), "Timetable").click()
    one = panel(tab, "Timetable of Computer vision")
    await one.get_by_text("Import a calendar").click()
    files = [{"name": "c.ics", "mimeType": "text/calendar", "buffer": CALENDAR.encode()}]
    await one.get_by_label("Calendar file").set_input_files(files=files)
    await one.get_by_label("Seats of each session").fill("12")
    await tab.keyboard.press("Enter")
    await expect(messages(tab)).to_contain_text("The timetable has 1 session now.")
    (session,) = manifest(lab).timetable.sessions
    assert (session.title, session.seats) == ("Laboratory", 12)
    # What is added next is meant by the clocks that the calendar's sessions have now.
    await expect(one.get_by_label("Time zone")).to_have_value(manifest(lab).timetable.timezone)


async def test_a_calendar_is_imported(lab: Site, tab: Any) -> None:
    await open_as(lab, tab, "instructor", "courses")
    await button(card(tab), "Timetable").click()
    one = panel(tab, "Timetable of Computer vision")
    await one.get_by_text("Import a calendar").click()
    files = [{"name": "c.ics", "mimeType": "text/calendar", "buffer": b"no calendar"}]
    await one.get_by_label("Calendar file").set_input_files(files=files)
    await one.get_by_role("button", name="Import it").click()
    await expect(one.get_by_role("alert")).to_contain_text("The calendar cannot be used")
    files[0]["buffer"] = CALENDAR.encode()
    await one.get_by_label("Calendar file").set_input_files(files=files)
    await one.get_by_label("Seats of each session").fill("12")
    await one.get_by_role("button", name="Import it").click()
    await expect(messages(tab)).to_contain_text("The timetable has 1 session now.")
    await expect(one).to_contain_text("Laboratory · 12 seats")
    await one.get_by_role("button", name="Done").click()
    await expect(card(tab)).to_contain_text("next session")
    await expect(card(tab)).to_contain_text("Laboratory · 12 seats")


async def test_seats_that_classes_may_not_have_are_told_where_they_are_asked_for(
    lab: Site, page: Any
) -> None:
    lab.ledger.note_class_share(HUB, 0.5)
    times = {"start": "2099-03-03T09:00", "end": "2099-03-03T11:00"}
    said = {**COURSE, "timetable": {"sessions": [{**times, "seats": 30}]}}
    lab.ledger.save_course(HUB, parse_manifest(said), "ida")
    await open_as(lab, page, "instructor", "courses")
    note = re.compile("The session of Tue 3 Mar 2099, 09:00 UTC: it asks for 30 seats, and the lab")
    await expect(card(page)).to_contain_text(note)
    await picture(page, f"courses-seats-{page.size}", is_whole=False)
    await button(card(page), "Timetable").click()
    await expect(panel(page, "Timetable of Computer vision")).to_contain_text(note)
    await picture(page, f"courses-seats-timetable-{page.size}", is_whole=False)


async def test_a_link_for_students_names_a_file(lab: Site, tab: Any) -> None:
    await open_as(lab, tab, "instructor", "courses")
    await button(card(tab), "Link for students").click()
    one = panel(tab, "Link for students of Computer vision")
    await one.get_by_label("File to open").fill("week 1/cnn#2.ipynb")
    await expect(one.get_by_label("Link", exact=True)).to_have_value(
        f"{lab.url}go/cv/week%201/cnn%232.ipynb"
    )
    await tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await one.get_by_role("button", name="Copy").click()
    await expect(one.locator(".lab-quiet[role=status]")).to_contain_text("Copied.")


async def test_removing_is_asked_first(lab: Site, tab: Any) -> None:
    await open_as(lab, tab, "instructor", "courses")
    await button(card(tab), "Remove").click()
    question = tab.get_by_role("alertdialog", name="Remove Computer vision?")
    await expect(question.get_by_role("button", name="Cancel")).to_be_focused()
    await question.get_by_role("button", name="Cancel").click()
    assert lab.ledger.course(HUB, "cv") is not None
    await button(card(tab), "Remove").click()
    await question.get_by_role("button", name="Remove").click()
    await expect(tab.get_by_text("You look after no course yet.")).to_be_visible()
    assert lab.ledger.course(HUB, "cv") is None


# ---- who sees what -------------------------------------------------------------------------------


async def test_a_student_sees_the_own_courses_and_one_button(lab: Site, page: Any) -> None:
    await open_as(lab, page, "ana-page", "courses")
    one = card(page)
    link = one.get_by_role("link", name="Open Computer vision")
    await expect(link).to_have_attribute("href", "/services/lab/go/cv/")
    await expect(one).to_contain_text("in the folder cv of your home")
    await expect(page.locator("#admin").get_by_role("button")).to_have_count(0)
    await expect(page.get_by_role("article")).to_have_count(1)
    tabs = page.get_by_role("navigation", name="Lab", exact=True).get_by_role("link")
    await expect(tabs).to_have_text(["Courses"])
    await picture(page, f"courses-student-{page.size}")


async def test_who_belongs_to_no_course_is_told_who_can_change_that(lab: Site, tab: Any) -> None:
    lab.hub.add("gus-page", "gus", ENTER)
    await open_as(lab, tab, "gus-page", "courses")
    await expect(tab.get_by_text("You belong to no course yet.")).to_be_visible()
    await expect(tab.get_by_text("Whoever teaches it can add you")).to_be_visible()


async def test_staff_without_the_right_are_told_what_they_lack(lab: Site, tab: Any) -> None:
    lab.hub.add("ida-page", "ida", ENTER)
    await open_as(lab, tab, "ida-page", "courses")
    await expect(card(tab)).to_contain_text("your account may not manage courses")


async def test_everything_is_reached_by_keyboard(lab: Site, tab: Any) -> None:
    await open_as(lab, tab, "instructor", "courses")
    await expect(card(tab)).to_be_visible()
    name = "Computer vision (cv)"
    for text in ("Add a course…", f"Preload {name}", f"Publish… {name}"):
        await tab_to(tab, text)
    await tab_to(tab, f"Students of {name}")
    await tab.keyboard.press("Enter")
    await expect(tab.get_by_role("table", name="Students of Computer vision")).to_be_visible()
    assert await focused(tab) == f"Students of {name}"
    await tab_to(tab, "Reset a file… of ana")
    await tab_to(tab, f"Edit manifest… {name}")
    await tab.keyboard.press("Enter")
    await expect(panel(tab, "Manifest of Computer vision")).to_be_visible()
    await tab.keyboard.press("Escape")
    await tab_to(tab, f"Remove… {name}")
    await tab.keyboard.press("Enter")
    await tab.keyboard.press("Escape")
    assert await focused(tab) == f"Remove… {name}"


@pytest.mark.skipif(not AXE.exists(), reason="axe-core is not installed (npm ci)")
async def test_the_page_and_its_panels_fit_and_have_no_serious_fault(lab: Site, sized: Any) -> None:
    notes = ("week-2/attention.ipynb: its kernel python2 is none of the image's.",)
    steps = [
        Step("fetch", "done", "12 files of b7e09931.", 0.6),
        Step("check", "warned", "1 notebook has a finding.", 0.4, notes),
        Step("image", "done", "On the engine.", 12.0),
        Step("smoke", "done", "2 notebooks ran.", 41.0),
        Step("warm", "failed", "The GPU pool is drained.", 3.0),
    ]
    lab.ledger.note_course(HUB, "cv", steps=steps)
    report(lab.ledger, "eve", OLD, conflicts={"a.ipynb": "a (course).ipynb"}, kept=["b.ipynb"])
    await open_as(lab, sized, "instructor", "courses")
    await card(sized).get_by_text("1 finding").click()
    await button(card(sized), "Students").click()
    await button(card(sized), "Details").click()
    await expect(card(sized)).to_contain_text("Added the course")
    await expect(sized.get_by_role("table")).to_contain_text("eve")
    await picture(sized, f"courses-{sized.size}")
    assert await width_of(sized) <= sized.viewport_size["width"], "it scrolls sideways"
    assert await faults_of(sized) == []
    for action, name in (("Edit manifest", "Manifest of"), ("Timetable", "Timetable of")):
        await button(card(sized), action).click()
        await expect(sized.get_by_role("dialog", name=re.compile(f"^{name}"))).to_be_visible()
        assert await width_of(sized) <= sized.viewport_size["width"], "it scrolls sideways"
        assert await faults_of(sized) == []
        await sized.keyboard.press("Escape")


@pytest.mark.skipif(not AXE.exists(), reason="axe-core is not installed (npm ci)")
async def test_a_deep_link_that_cannot_go_on_says_what_to_do(lab: Site, sized: Any) -> None:
    """Ana's server runs with another course; her copy of this one is in her home."""
    await open_as(lab, sized, "ana-page", "go/cv/week-1/cnn.ipynb")
    heading = sized.get_by_role("heading", level=1)
    await expect(heading).to_have_text("Your server runs with another course, deep-learning.")
    await expect(
        sized.get_by_role("link", name="Stop it to start Computer vision…")
    ).to_be_visible()
    there = sized.get_by_role("link", name="Open it there anyway")
    await expect(there).to_have_attribute("href", "/user/ana/lab/tree/cv/week-1/cnn.ipynb")
    await picture(sized, f"go-other-{sized.size}")
    assert await width_of(sized) <= sized.viewport_size["width"], "it scrolls sideways"
    assert await faults_of(sized) == []
