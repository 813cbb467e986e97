""" "Who gets what" in a real browser, on a real ledger: every action, with what bad input gets.

Everything is found by role and label, as somebody who cannot see the page finds it.
"""

from __future__ import annotations

import asyncio
import csv
import io
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest_asyncio
from lab_browser import MARKS, expect, new_page
from lab_fakes import ENTER, HUB
from lab_pages import GPUS, GRANTS, NAMES, open_as, picture, run_lab
from lab_site import Site

from pytorch_spawner.core.grants import Grant

pytestmark = MARKS
SIZES = [(1280, "light"), (390, "dark")]
PEOPLE = {**{name: ["cv"] for name in NAMES}, "kim": ["staff"], "zed": ["staff"]}
# A keyboard's way through the page is this long at most.
MOST_TABS = 80


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def running(tmp_path_factory: Any) -> AsyncIterator[Site]:
    async for site in run_lab(tmp_path_factory.mktemp("lab")):
        yield site


@pytest_asyncio.fixture(loop_scope="module")
async def lab(running: Site) -> Site:
    """The one service of this file, with the grants and people that each test begins with."""
    running.ledger.edit_grants(HUB, "admin", lambda _: GRANTS)
    for source in ("config", "group"):
        running.ledger.write_grants(HUB, [], source, source=source)
    running.hub.page, running.hub.is_down = 200, False
    knows(running, PEOPLE)
    return running


@pytest_asyncio.fixture(loop_scope="module", params=SIZES, ids=lambda size: f"{size[0]}-{size[1]}")
async def page(browser: Any, request: Any) -> AsyncIterator[Any]:
    async for tab in new_page(browser, *request.param):
        yield tab


@pytest_asyncio.fixture(loop_scope="module")
async def wide(browser: Any) -> AsyncIterator[Any]:
    async for tab in new_page(browser):
        yield tab


@pytest_asyncio.fixture(loop_scope="module")
async def second(browser: Any) -> AsyncIterator[Any]:
    """Another admin's browser."""
    async for tab in new_page(browser):
        yield tab


# -- what the tests share ------------------------------------------------------------------------


def knows(lab: Site, people: dict[str, list[str]]) -> None:
    """Tell the hub's people, and let the service ask for them anew."""
    lab.hub.people = dict(people)
    lab.lab.directory._asked_at = -1e9


def grants(lab: Site) -> dict[str, Grant]:
    return {grant.id: grant for grant in lab.ledger.grants(HUB)}


def set_grants(lab: Site, *after: Grant) -> None:
    lab.ledger.edit_grants(HUB, "root", lambda _: after)


async def open_grants(lab: Site, page: Any, token: str = "admin", query: str = "") -> None:
    await open_as(lab, page, token, f"grants{query}")
    await expect(page.get_by_role("table")).to_be_visible()


def size_of(page: Any) -> int:
    return int(page.viewport_size["width"])


def row(page: Any, name: str) -> Any:
    return page.get_by_role("row", name=re.compile(rf"^{re.escape(name)}\b"))


def chip(page: Any, to: str) -> Any:
    """The button that is a grant."""
    return page.get_by_role("button", name=re.compile(rf"grant to {re.escape(to)}, "))


def panel(page: Any) -> Any:
    return page.get_by_role("dialog")


def number(page: Any, name: str) -> Any:
    return panel(page).get_by_role("spinbutton", name=name)


def preview(page: Any, title: str = "If saved") -> Any:
    return page.get_by_role("region", name=title)


def messages(page: Any) -> Any:
    return page.get_by_role("status", name="Messages")


async def press(page: Any, name: str) -> None:
    """Press a button of the open panel."""
    await panel(page).get_by_role("button", name=name, exact=True).click()


async def undo(page: Any) -> None:
    await messages(page).get_by_role("button", name="Undo").click()
    await expect(messages(page)).to_contain_text("Undone:")


async def open_cell(page: Any, name: str, pool: str) -> None:
    """Open the form from a user's cell of a pool, or on a small screen from the user's card."""
    if size_of(page) > 600:
        await page.get_by_role("button", name=f"Add a grant for {name} on pool {pool}").click()
        return
    await page.get_by_role("button", name=f"Add a grant… for {name}", exact=True).click()
    await panel(page).get_by_role("combobox", name="Pool").select_option(pool)


# -- add, change, remove -------------------------------------------------------------------------


async def test_a_grant_is_added_in_a_cell_and_taken_back(lab: Site, page: Any) -> None:
    await open_grants(lab, page)
    await open_cell(page, "zed", "teaching")
    form = panel(page)
    await expect(form.get_by_role("combobox", name="User")).to_have_value("zed")
    await expect(form.get_by_role("combobox", name="Pool")).to_have_value("teaching")
    await expect(form.get_by_role("radio", name="A user")).to_be_checked()
    await expect(preview(page)).to_contain_text("zed: 1 GPU on pool teaching; else 1 slot")
    await number(page, "Priority").fill("50")
    await expect(preview(page)).to_contain_text("zed: 1 GPU on pool teaching, priority 50; else")
    assert grants(lab).keys() == {one.id for one in GRANTS}, "a preview writes nothing"
    await press(page, "Save")
    await expect(form).to_be_hidden()
    await expect(messages(page)).to_contain_text(
        "Saved: 1 GPU · priority 50, pool teaching, for zed."
    )
    await expect(chip(page, "zed")).to_contain_text("1 GPU · priority 50")
    saved = grants(lab)["user-zed"]
    assert (saved.to, saved.subject, saved.pool, saved.count, saved.priority) == (
        *("user", "zed", "teaching"),
        *(1, 50),
    )
    await undo(page)
    await expect(chip(page, "zed")).to_have_count(0)
    assert "user-zed" not in grants(lab)


async def test_a_priority_is_changed_and_who_gains_and_loses_is_named(lab: Site, page: Any) -> None:
    await open_grants(lab, page)
    await chip(page, "group cv").click()
    await expect(number(page, "Priority")).to_have_value("5")
    await expect(preview(page)).to_contain_text("Nothing would change for anybody.")
    await number(page, "Priority").fill("30")
    await expect(preview(page)).to_contain_text("5 people of cv: 2 GPUs on pool teaching")
    await expect(preview(page)).to_contain_text("priority 30")
    await expect(preview(page)).to_contain_text("was: 2 GPUs on pool teaching, priority 5")
    await expect(preview(page)).to_contain_text("bo: 1 whole GPU on pool research, priority 10")
    await number(page, "Priority").fill("-20")
    await expect(preview(page)).to_contain_text("priority -20")
    await press(page, "Save")
    await expect(messages(page)).to_contain_text("priority −20")
    await expect(chip(page, "group cv")).to_contain_text("priority −20")
    assert grants(lab)["cv"].priority == -20
    assert grants(lab)["cv"].weekly_gpu_hours == 20.0, "the other fields stay"
    await undo(page)
    await expect(chip(page, "group cv")).to_contain_text("priority 5")
    assert grants(lab)["cv"] == GRANTS[1]


async def test_one_persons_change_names_that_person(lab: Site, wide: Any) -> None:
    set_grants(lab, Grant("thesis-bo", "user", "bo", pool="research", priority=10))
    await open_grants(lab, wide)
    await chip(wide, "bo").click()
    await number(wide, "Priority").fill("3")
    await expect(preview(wide)).to_contain_text("bo: priority 3 (was: priority 10)")


async def test_a_grant_is_removed_after_a_question_and_comes_back(lab: Site, page: Any) -> None:
    await open_grants(lab, page)
    await chip(page, "bo").click()
    await press(page, "Remove…")
    question = page.get_by_role("alertdialog", name="Remove this grant?")
    await expect(question).to_contain_text("1 whole GPU · priority 10, pool research, for bo.")
    await expect(preview(page, "If removed")).to_contain_text("bo: 2 GPUs on pool teaching")
    await expect(preview(page, "If removed")).to_contain_text("was: 1 whole GPU on pool research")
    await expect(question.get_by_role("button", name="Cancel")).to_be_focused()
    await question.get_by_role("button", name="Cancel").click()
    await expect(panel(page)).to_be_visible()
    assert "thesis-bo" in grants(lab)
    await press(page, "Remove…")
    await question.get_by_role("button", name="Remove", exact=True).click()
    await expect(messages(page)).to_contain_text("Removed: 1 whole GPU · priority 10, for bo.")
    await expect(panel(page)).to_be_hidden()
    await expect(chip(page, "bo")).to_have_count(0)
    assert "thesis-bo" not in grants(lab)
    await undo(page)
    await expect(chip(page, "bo")).to_be_visible()
    assert grants(lab)["thesis-bo"] == GRANTS[2]


async def test_grants_of_configuration_and_groups_are_for_reading(lab: Site, wide: Any) -> None:
    lab.ledger.write_grants(
        HUB, [Grant("config:g1", priority=3, source="config")], "config", source="config"
    )
    group = Grant("group:cv", "group", "cv", share="slot", source="group")
    lab.ledger.write_grants(HUB, [group], "group", source="group")
    await open_grants(lab, wide)
    for mark, why in (
        ("from the configuration", "edit the configuration and restart JupyterHub"),
        ("from the group", "edit the group there"),
    ):
        await wide.get_by_role("button", name=re.compile(mark)).click()
        await expect(panel(wide)).to_contain_text(why)
        for role in ("textbox", "spinbutton", "combobox", "radio"):
            await expect(panel(wide).get_by_role(role)).to_have_count(0)
        await expect(panel(wide).get_by_role("button", name="Save")).to_have_count(0)
        await expect(panel(wide).get_by_role("button", name="Remove…")).to_have_count(0)
        await panel(wide).get_by_role("button", name="Close").last.click()
        await expect(panel(wide)).to_have_count(0)


# -- bad input -----------------------------------------------------------------------------------


async def refused(page: Any, *bad: tuple[Any, str]) -> None:
    """Save, which the service refuses; each field says why in words and to a reader."""
    for field, words in bad:
        await expect(field).to_have_attribute("aria-invalid", "true")
        await expect(field).to_have_accessible_description(re.compile(words))
    async with page.expect_response(
        lambda answer: answer.request.method == "POST" and "preview" not in answer.url
    ) as answer:
        await press(page, "Save")
    assert (await answer.value).status == 400
    for field, words in bad:
        await expect(field).to_have_attribute("aria-invalid", "true")
        await expect(field).to_have_accessible_description(re.compile(words))
    await expect(bad[0][0]).to_be_focused()
    await expect(panel(page)).to_be_visible()


async def test_each_fault_stands_beside_its_field_and_nothing_is_written(
    lab: Site, page: Any
) -> None:
    before = lab.ledger.grants(HUB)
    await open_grants(lab, page)
    await open_cell(page, "zed", "teaching")
    form = panel(page)
    count, priority = number(page, "How many at once"), number(page, "Priority")
    week, lease = number(page, "GPU-hours a week"), number(page, "Longest lease, hours")
    await form.get_by_role("combobox", name="What").select_option("A MIG instance")
    profile = form.get_by_role("textbox", name="MIG profile")
    for field, said in (
        (profile, "nonsense"),
        (count, "0"),
        (priority, "500"),
        (week, "-1"),
        (lease, "0.001"),
    ):
        await field.fill(said)
    await refused(
        page,
        (profile, "Not the name of a MIG profile"),
        (count, "at least 1"),
        (priority, "at most 100"),
        (week, "more than 0 "),
        (lease, "A number of hours, from 0.02"),
    )
    await picture(page, f"grants-faults-{size_of(page)}", is_whole=False)
    # A field that is put right is not wrong any more, the others are.
    await priority.fill("50")
    await expect(priority).not_to_have_attribute("aria-invalid", "true")
    await expect(count).to_have_attribute("aria-invalid", "true")
    assert lab.ledger.grants(HUB) == before


async def test_faults_of_dates_and_names_stand_beside_their_fields(lab: Site, wide: Any) -> None:
    before = lab.ledger.grants(HUB)
    await open_grants(lab, wide)
    await wide.get_by_role("button", name="Add a grant…", exact=True).click()
    form = panel(wide)
    # Without a name there is nothing to preview; saving says so beside the field.
    user = form.get_by_role("combobox", name="User")
    await expect(preview(wide)).to_contain_text("Name a user to see what would change.")
    await press(wide, "Save")
    await expect(user).to_have_attribute("aria-invalid", "true")
    await expect(user).to_have_accessible_description(re.compile("Name the user."))
    await user.fill("zed")
    begins, ends = form.get_by_label("Valid from"), form.get_by_label("Valid until")
    await begins.fill("2027-03-01T09:00")
    await ends.fill("2027-02-01T09:00")
    await refused(wide, (ends, "after “Valid from”"))
    await ends.fill("2027-04-01T09:00")
    await expect(preview(wide)).to_contain_text("From 2027-03-01")
    await form.get_by_role("radio", name="A group").check()
    group = form.get_by_role("combobox", name="Group")
    await expect(group).to_have_accessible_description("The name of a group that JupyterHub has.")
    await group.fill("nobody-has-it")
    await refused(wide, (group, "there is no group 'nobody-has-it'"))
    assert lab.ledger.grants(HUB) == before


async def test_somebody_unknown_may_be_named_with_a_note(lab: Site, wide: Any) -> None:
    await open_grants(lab, wide)
    await wide.get_by_role("button", name="Add a grant…", exact=True).click()
    await panel(wide).get_by_role("combobox", name="User").fill("newcomer")
    await expect(preview(wide)).to_contain_text("JupyterHub does not know newcomer yet")
    await expect(preview(wide)).to_contain_text("newcomer: 1 GPU")
    await press(wide, "Save")
    await expect(panel(wide)).to_be_hidden()
    await expect(row(wide, "newcomer")).to_contain_text("not seen yet")
    assert grants(lab)["user-newcomer"].subject == "newcomer"
    await expect(row(wide, "bo")).not_to_contain_text("not seen yet")


async def test_what_is_saved_is_what_was_typed_in_the_admins_own_time(lab: Site, wide: Any) -> None:
    zone = await wide.context.new_cdp_session(wide)
    await zone.send("Emulation.setTimezoneOverride", {"timezoneId": "America/New_York"})
    await open_grants(lab, wide)
    await open_cell(wide, "zed", "research")
    form = panel(wide)
    await form.get_by_role("combobox", name="What").select_option("A whole GPU")
    for name, said in (
        ("How many at once", "2"),
        ("Priority", "-7"),
        ("GPU-hours a week", "12.5"),
        ("Longest lease, hours", "1.5"),
    ):
        await number(wide, name).fill(said)
    await form.get_by_label("Valid from").fill("2027-01-10T09:00")
    await form.get_by_label("Valid until").fill("2027-07-10T09:00")
    await form.get_by_role("textbox", name="Images").fill("lab/base:1\n\n lab/pytorch:2 ")
    await expect(preview(wide)).to_contain_text("From 2027-01-10 14:00 UTC: zed: 2 whole GPUs")
    # Twice in one moment is once.
    await panel(wide).get_by_role("button", name="Save", exact=True).dblclick()
    await expect(messages(wide)).to_contain_text("Saved:")
    await expect(panel(wide)).to_have_count(0)
    assert [one for one in grants(lab).values() if one.subject == "zed"] == [
        Grant(
            *("user-zed", "user", "zed"),
            pool="research",
            count=2,
            share="whole",
            priority=-7,
            weekly_gpu_hours=12.5,
            max_lease_s=5400,
            valid_from=datetime(2027, 1, 10, 14, tzinfo=timezone.utc).timestamp(),
            valid_until=datetime(2027, 7, 10, 13, tzinfo=timezone.utc).timestamp(),
            images=("lab/base:1", "lab/pytorch:2"),
        )
    ]
    # To open it and save it untouched changes nothing.
    await chip(wide, "zed").click()
    await expect(preview(wide)).to_contain_text("Nothing would change for anybody.")
    await press(wide, "Save")
    await expect(panel(wide)).to_have_count(0)
    assert lab.ledger.changes(HUB, 1)[0].before is None, "its own adding is the last change"


async def test_a_name_is_a_text_whatever_is_in_it(lab: Site, wide: Any) -> None:
    name = "<img src=x onerror=alert(1)> O'Zoë@uni.example/a?b#c"
    await open_grants(lab, wide)
    await wide.get_by_role("searchbox").fill(name)
    await wide.get_by_role("button", name=f"Add a grant for {name}…").click()
    await expect(panel(wide).get_by_role("combobox", name="User")).to_have_value(name)
    await expect(preview(wide)).to_contain_text(f"{name}: 1 GPU")
    await press(wide, "Save")
    only = wide.get_by_role("rowheader").filter(has_text=name)
    await expect(only).to_contain_text("not seen yet")
    grant = wide.get_by_role("button", name=f"grant to {name}, any pool")
    await grant.click()
    await number(wide, "Priority").fill("9")
    await press(wide, "Save")
    await expect(grant).to_contain_text("priority 9")
    await expect(wide.get_by_role("img", name="x")).to_have_count(0)
    assert [one.priority for one in grants(lab).values() if one.subject == name] == [9]


async def test_a_service_that_does_not_answer_costs_nothing_that_was_typed(
    lab: Site, wide: Any
) -> None:
    await open_grants(lab, wide)
    await open_cell(wide, "zed", "teaching")
    await number(wide, "Priority").fill("8")
    await expect(preview(wide)).to_contain_text("priority 8")
    await wide.route("**/api/grants**", lambda route: route.abort())
    await press(wide, "Save")
    await expect(panel(wide).get_by_role("alert")).to_contain_text("The lab did not answer.")
    await expect(number(wide, "Priority")).to_have_value("8")
    await wide.unroute("**/api/grants**")
    await press(wide, "Save")
    await expect(messages(wide)).to_contain_text("priority 8")
    assert grants(lab)["user-zed"].priority == 8


async def test_a_hub_that_does_not_answer_is_said_and_asked_again(lab: Site, wide: Any) -> None:
    await open_grants(lab, wide)
    lab.hub.is_down = True
    lab.lab.directory._asked_at = -1e9
    await wide.get_by_role("searchbox").fill("zed")
    # It is asked who this is, too, whenever what it said before is half a minute old.
    silent = re.compile("The hub does not (say whom it knows|answer just now)")
    await expect(wide.get_by_role("alert")).to_contain_text(silent)
    lab.hub.is_down = False
    await wide.get_by_role("button", name="Try again").click()
    await expect(wide.get_by_role("alert")).to_have_count(0)
    await expect(wide.get_by_role("row")).to_have_count(2)


# -- pinning -------------------------------------------------------------------------------------


COUNTING = """
  window.clicked = 0;
  window.typed = 0;
  addEventListener("pointerdown", () => (window.clicked += 1), true);
  addEventListener("keydown", () => (window.typed += 1), true);
"""


async def test_a_gpu_is_pinned_in_three_clicks_without_typing(lab: Site, page: Any) -> None:
    await page.add_init_script(COUNTING)
    await open_grants(lab, page)
    await page.get_by_role("button", name="Pin a GPU… to ana", exact=True).click()
    await expect(preview(page)).to_contain_text("Choose a GPU to see what would change.")
    await panel(page).get_by_role("radio", name=re.compile("^GPU 1 ")).click()
    await expect(preview(page)).to_contain_text("ana: GPU 1 (NVIDIA A100-SXM4-80GB), reserved")
    await press(page, "Save")
    await expect(messages(page)).to_contain_text("GPU 1 is pinned to ana.")
    assert await page.evaluate("[clicked, typed]") == [3, 0]
    await expect(chip(page, "ana")).to_contain_text("GPU 1")
    assert grants(lab)["user-ana"].gpus == (GPUS[1].uuid,)
    await undo(page)
    await expect(chip(page, "ana")).to_have_count(0)


async def test_who_never_logged_in_gets_a_gpu_with_one_text(lab: Site, wide: Any) -> None:
    await wide.add_init_script(COUNTING)
    await open_grants(lab, wide)
    await wide.get_by_role("searchbox", name="Search users and groups").fill("newcomer")
    await wide.get_by_role("button", name="Pin a GPU to newcomer…").click()
    await panel(wide).get_by_role("radio", name=re.compile("^GPU 1 ")).click()
    await press(wide, "Save")
    await expect(messages(wide)).to_contain_text("GPU 1 is pinned to newcomer.")
    assert await wide.evaluate("clicked") <= 3
    await expect(row(wide, "newcomer")).to_contain_text("not seen yet")
    assert grants(lab)["user-newcomer"].gpus == (GPUS[1].uuid,)


async def test_a_gpu_that_is_somebody_elses_is_a_named_conflict(lab: Site, wide: Any) -> None:
    set_grants(lab, *GRANTS, Grant("pin", "user", "ana", gpus=(GPUS[0].uuid,)))
    before = lab.ledger.grants(HUB)
    await open_grants(lab, wide)
    await wide.get_by_role("button", name="Pin a GPU… to zed", exact=True).click()
    gpu = panel(wide).get_by_role("radio", name=re.compile("^GPU 0 "))
    await expect(panel(wide)).to_contain_text("pinned to user ana")
    await gpu.check()
    clash = "GPU 0 is pinned to user ana (pin) and to user zed (user-zed) at the same time"
    await expect(preview(wide)).to_contain_text("Cannot be saved so:")
    await expect(preview(wide)).to_contain_text(clash)
    await press(wide, "Save")
    refusal = panel(wide).get_by_role("alert")
    await expect(refusal).to_contain_text(clash)
    await expect(refusal).not_to_contain_text("GPU-0000")
    # The same in the form of all fields.
    await press(wide, "More settings…")
    await expect(panel(wide).get_by_role("checkbox", name=re.compile("^GPU 0 "))).to_be_checked()
    await expect(preview(wide)).to_contain_text(clash)
    await press(wide, "Save")
    await expect(refusal).to_contain_text(clash)
    await expect(refusal).not_to_contain_text("GPU-0000")
    assert lab.ledger.grants(HUB) == before


async def test_who_holds_the_pinned_gpu_now_is_named(lab: Site, wide: Any) -> None:
    await open_grants(lab, wide)
    await wide.get_by_role("button", name="Pin a GPU… to zed", exact=True).click()
    await press(wide, "Save")
    first = panel(wide).get_by_role("radio").first
    await expect(first).to_have_accessible_description("Choose a GPU.")
    await panel(wide).get_by_role("radio", name=re.compile("^GPU 0 ")).check()
    await expect(preview(wide)).to_contain_text("bo holds GPU 0")
    await expect(preview(wide)).to_contain_text("keeps it until their server stops")
    await press(wide, "Save")
    await expect(messages(wide)).to_contain_text("GPU 0 is pinned to zed.")


# -- many people ---------------------------------------------------------------------------------


def many() -> dict[str, list[str]]:
    return {f"student-{place:04}": ["cv" if place % 2 else "nlp"] for place in range(2_000)}


async def test_two_thousand_users_are_searched_and_paged_by_the_server(
    lab: Site, wide: Any
) -> None:
    knows(lab, many())
    answers: list[int] = []
    wide.on("request", lambda request: answers.append(1) if "api/people" in request.url else None)
    await open_grants(lab, wide)
    pages = wide.get_by_role("navigation", name="Pages of users and groups")
    # Everyone, three groups, and bo, whom only a grant names.
    await expect(pages).to_contain_text("1–50 of 2,005")
    await expect(wide.get_by_role("row")).to_have_count(51)
    await expect(pages.get_by_role("button", name="Previous")).to_be_disabled()
    await pages.get_by_role("button", name="Next").click()
    await expect(pages).to_contain_text("51–100 of 2,005")
    await expect(row(wide, "student-0045")).to_be_visible()
    await expect(row(wide, "student-0044")).to_have_count(0)
    await wide.reload()
    await expect(pages).to_contain_text("51–100 of 2,005")
    await pages.get_by_role("button", name="Previous").click()
    await expect(row(wide, "Everyone")).to_be_visible()

    search = wide.get_by_role("searchbox", name="Search users and groups")
    before = len(answers)
    await search.press_sequentially("STUDENT-1234")
    await expect(pages).to_contain_text("1–1 of 1")
    await expect(row(wide, "student-1234")).to_contain_text("in nlp")
    assert len(answers) - before <= 3, "not one question a letter"
    await wide.reload()
    await expect(search).to_have_value("STUDENT-1234")
    await expect(row(wide, "student-1234")).to_be_visible()
    await expect(wide.get_by_role("row")).to_have_count(2)


async def test_what_is_shown_can_be_chosen_and_stays_in_the_address(lab: Site, wide: Any) -> None:
    knows(lab, many())
    await open_grants(lab, wide)
    pages = wide.get_by_role("navigation", name="Pages of users and groups")
    await pages.get_by_role("button", name="Next").click()
    await expect(pages).to_contain_text("51–100")
    await wide.get_by_role("radio", name="Groups").check()
    await expect(wide.get_by_role("row")).to_have_count(4)
    for name in ("cv", "empty", "nlp"):
        await expect(row(wide, name)).to_be_visible()
    await expect(row(wide, "cv")).to_contain_text("1000 members")
    await wide.get_by_role("radio", name="Users").check()
    await expect(pages).to_contain_text("1–50 of 2,001")
    only = wide.get_by_role("checkbox", name="Only those with grants of their own")
    await only.check()
    await expect(wide.get_by_role("row")).to_have_count(2)
    await expect(row(wide, "bo")).to_be_visible()
    await wide.reload()
    await expect(only).to_be_checked()
    await expect(wide.get_by_role("radio", name="Users")).to_be_checked()
    await expect(wide.get_by_role("row")).to_have_count(2)
    await wide.get_by_role("radio", name="All").check()
    await expect(wide.get_by_role("row")).to_have_count(4)
    await only.uncheck()
    await expect(pages).to_contain_text("of 2,005")
    assert "?" not in wide.url


# -- files ---------------------------------------------------------------------------------------


async def export(page: Any, folder: Path) -> str:
    async with page.expect_download() as started:
        await page.get_by_role("link", name="Export CSV").click()
    download = await started.value
    assert download.suggested_filename == "grants.csv"
    await download.save_as(folder / "grants.csv")
    return (folder / "grants.csv").read_text()


def edited(text: str, change: Any) -> str:
    """The file as somebody's spreadsheet makes another of it."""
    rows = list(csv.DictReader(io.StringIO(text)))
    change(rows)
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def csv_file(page: Any) -> Any:
    return panel(page).get_by_label("CSV file")


async def choose_file(page: Any, content: str | bytes) -> None:
    """Choose a file as a person does, with the browser's own dialog."""
    if not await panel(page).is_visible():
        await page.get_by_role("button", name="Import CSV…").click()
    buffer = content.encode() if isinstance(content, str) else content
    async with page.expect_file_chooser() as chooser:
        await csv_file(page).click()
    await (await chooser.value).set_files(
        {"name": "grants.csv", "mimeType": "text/csv", "buffer": buffer}
    )


def save_file(page: Any) -> Any:
    return panel(page).get_by_role("button", name="Import", exact=True)


async def test_an_exported_file_comes_back_as_it_was_and_changed(
    lab: Site, page: Any, tmp_path: Path
) -> None:
    await open_grants(lab, page)
    text = await export(page, tmp_path)
    assert {one["id"] for one in csv.DictReader(io.StringIO(text))} == {one.id for one in GRANTS}
    await choose_file(page, text)
    said = preview(page, "If imported")
    await expect(said).to_contain_text("Nothing would change")
    await expect(save_file(page)).to_be_disabled()

    def change(rows: list[dict[str, str]]) -> None:
        by_id = {one["id"]: one for one in rows}
        by_id["cv"]["priority"] = "40"
        rows.remove(by_id["thesis-bo"])
        rows.append({**by_id["cv"], "id": "new", "to": "user", "subject": "zed", "count": "1"})

    await choose_file(page, edited(text, change))
    await expect(said).to_contain_text("1 added, 1 changed, 1 removed.")
    await expect(said).to_contain_text("new: zed, pool teaching, 1 GPU · priority 40")
    await expect(said).to_contain_text("thesis-bo: bo, pool research, 1 whole GPU")
    await expect(said).to_contain_text("5 people of cv: 2 GPUs on pool teaching, priority 40")
    await expect(said).to_contain_text("zed: 1 GPU on pool teaching, priority 40")
    assert grants(lab)["cv"].priority == 5
    await picture(page, f"grants-file-{size_of(page)}", is_whole=False)
    await save_file(page).click()
    await expect(messages(page)).to_contain_text("Imported: 3 grants changed.")
    await expect(chip(page, "zed")).to_be_visible()
    await expect(chip(page, "bo")).to_have_count(0)
    now = grants(lab)
    assert now.keys() == {"everyone", "cv", "new"}
    assert now["cv"].priority == now["new"].priority == 40
    assert now["everyone"] == GRANTS[0]


async def test_a_file_holds_everything_that_a_grant_may_say(
    lab: Site, wide: Any, tmp_path: Path
) -> None:
    set_grants(
        lab,
        Grant("pin", "user", "ana", gpus=(GPUS[0].uuid, GPUS[1].uuid), count=2),
        Grant("formula", "user", "=1+1", share="mig:1g.10gb", priority=-100, count=64),
        Grant("quoted", "user", 'a "b", c;d', valid_from=1.8e9 + 0.25, valid_until=1.9e9),
        Grant("hours", weekly_gpu_hours=0.1 + 0.2, max_lease_s=61, images=("a/b:1", "c@sha256:0")),
    )
    await open_grants(lab, wide)
    text = await export(wide, tmp_path)
    await choose_file(wide, text)
    said = preview(wide, "If imported")
    await expect(said).to_contain_text("2 faults")
    await panel(wide).get_by_role("checkbox").check()
    await expect(said).to_contain_text("Nothing would change")
    # As a spreadsheet of another country writes it.
    semicolons = io.StringIO()
    writer = csv.writer(semicolons, delimiter=";", lineterminator="\r\n")
    writer.writerows(csv.reader(io.StringIO(text)))
    await choose_file(wide, "\ufeff" + semicolons.getvalue())
    await expect(said).to_contain_text("Nothing would change")
    await expect(save_file(wide)).to_be_disabled()


async def test_every_bad_line_of_a_file_is_named_and_nothing_is_written(
    lab: Site, page: Any
) -> None:
    before = lab.ledger.grants(HUB)
    await open_grants(lab, page)
    await choose_file(
        page,
        "id,to,subject,pool,count,share,priority,weekly_gpu_hours,valid_from,valid_until\n"
        "a,user,ana,teaching,0,any,0,,,\n"
        "b,user,bo,teaching,1,any,500,,,\n"
        "c,user,stranger,teaching,1,any,0,,,\n"
        "d,group,nogroup,nopool,1,mig:x,0,,,\n"
        "e,group,cv,nopool,1,any,0,,,\n"
        "f,user,eve,,1,any,0,-1,,\n"
        "g,user,fay,,1,any,0,,2027-03-01,2027-02-01\n"
        "h,user,dan,,1,any,0,,soon,\n",
    )
    said = preview(page, "If imported")
    await expect(said).to_contain_text("Nothing can be imported: 8 faults.")
    for words in (
        "line 2: count: at least 1",
        "line 3: priority: at most 100",
        "line 4: subject: there is no user 'stranger'",
        "line 5: share: ",
        "line 6: there is no pool 'nopool'",
        "line 7: weekly_gpu_hours: more than 0",
        "line 8: valid_until is not after valid_from",
        "line 9: valid_from: not a date",
    ):
        await expect(said.get_by_role("listitem").filter(has_text=words)).to_have_count(1)
    await expect(save_file(page)).to_be_disabled()
    await picture(page, f"grants-bad-file-{size_of(page)}", is_whole=False)
    # The stranger may be right; the rest stays wrong.
    await (
        panel(page)
        .get_by_role("checkbox", name="Names that JupyterHub has not seen yet are right")
        .check()
    )
    await expect(said).to_contain_text("Nothing can be imported: 7 faults.")
    await expect(said).not_to_contain_text("stranger")
    await expect(save_file(page)).to_be_disabled()
    assert lab.ledger.grants(HUB) == before


async def test_a_file_that_is_no_list_of_grants_is_said_so(lab: Site, wide: Any) -> None:
    before = lab.ledger.grants(HUB)
    await open_grants(lab, wide)
    for text, words in (
        ("", "the file is empty"),
        ("name,mark\nana,1.0\n", "there is no column 'name'"),
        ('id,to\n"a,user', "it is no CSV"),
    ):
        await choose_file(wide, text)
        await expect(preview(wide, "If imported")).to_contain_text(words)
        await expect(save_file(wide)).to_be_disabled()
    good = "id,to,subject\na,user,zed\n"
    for content, words in (
        ("id,to,subject\na,user,Zoë\n".encode("latin-1"), "not in UTF-8"),
        (good + " " * 1024 * 1024, "larger than 1 MiB"),
    ):
        await choose_file(wide, good)
        await expect(save_file(wide)).to_be_enabled()
        await choose_file(wide, content)
        await expect(csv_file(wide)).to_have_attribute("aria-invalid", "true")
        await expect(csv_file(wide)).to_have_accessible_description(re.compile(words))
        await expect(preview(wide, "If imported")).to_contain_text("Choose a file")
        await expect(save_file(wide)).to_be_disabled()
    assert lab.ledger.grants(HUB) == before


async def test_a_file_made_before_anothers_change_does_not_undo_it_unseen(
    lab: Site, wide: Any, tmp_path: Path
) -> None:
    await open_grants(lab, wide)
    text = await export(wide, tmp_path)
    await choose_file(wide, edited(text, lambda rows: rows[0].update(count="3")))
    said = preview(wide, "If imported")
    await expect(said).to_contain_text("0 added, 1 changed, 0 removed.")
    others = Grant("others", "user", "zed", pool="research")
    set_grants(lab, *GRANTS, others)
    # The preview follows by itself: what the file would take away is seen before it is.
    await expect(said).to_contain_text("0 added, 1 changed, 1 removed.")
    await save_file(wide).click()
    refusal = panel(wide).get_by_role("alert")
    await expect(refusal).to_contain_text(re.compile("was changed meanwhile, by root at"))
    assert grants(lab)["others"] == others
    assert sorted(grants(lab)) == sorted([*(one.id for one in GRANTS), "others"])
    await press(wide, "Load what is there now")
    await expect(said).to_contain_text("others: zed, pool research, 1 GPU")
    await save_file(wide).click()
    await expect(messages(wide)).to_contain_text("Imported: 2 grants changed.")
    assert "others" not in grants(lab)


# -- two admins ----------------------------------------------------------------------------------


async def test_the_slower_of_two_admins_is_told_and_loses_nothing(
    lab: Site, wide: Any, second: Any
) -> None:
    await open_grants(lab, wide)
    await open_grants(lab, second, "hub-admin")
    for tab in (wide, second):
        await chip(tab, "group cv").click()
    await number(second, "GPU-hours a week").fill("33")
    await number(wide, "Priority").fill("20")
    await press(wide, "Save")
    await expect(messages(wide)).to_contain_text("priority 20")
    # It comes by the stream into the open panel, over what is being typed.
    form = panel(second)
    await expect(form).to_contain_text("Somebody else changed this grant meanwhile.")
    await expect(form).to_contain_text("2 GPUs · priority 20 · 20 h a week, pool teaching")
    await expect(number(second, "GPU-hours a week")).to_have_value("33")
    await expect(number(second, "Priority")).to_have_value("5")
    await press(second, "Save")
    await expect(form.get_by_role("alert")).to_contain_text(
        re.compile("The grant cv was changed meanwhile, by adam at")
    )
    await expect(form.get_by_role("alert")).to_contain_text(
        "It is now: 2 GPUs · priority 20 · 20 h"
    )
    await expect(number(second, "GPU-hours a week")).to_have_value("33")
    assert grants(lab)["cv"].priority == 20
    assert grants(lab)["cv"].weekly_gpu_hours == 20.0
    await picture(second, "grants-slower", is_whole=False)
    await press(second, "Load what is there now")
    await expect(number(second, "Priority")).to_have_value("20")
    await expect(number(second, "GPU-hours a week")).to_have_value("20")
    await number(second, "GPU-hours a week").fill("44")
    await press(second, "Save")
    await expect(messages(second)).to_contain_text("priority 20 · 44 h a week")
    # And the first one's table shows it without a reload.
    await expect(chip(wide, "group cv")).to_contain_text("priority 20 · 44 h a week")
    assert (grants(lab)["cv"].priority, grants(lab)["cv"].weekly_gpu_hours) == (20, 44.0)


async def test_a_grant_that_was_removed_meanwhile_can_be_saved_again(
    lab: Site, wide: Any, second: Any
) -> None:
    await open_grants(lab, wide)
    await open_grants(lab, second, "hub-admin")
    await chip(second, "bo").click()
    await number(second, "Priority").fill("77")
    await chip(wide, "bo").click()
    await press(wide, "Remove…")
    await wide.get_by_role("alertdialog").get_by_role("button", name="Remove", exact=True).click()
    await expect(messages(wide)).to_contain_text("Removed:")
    await expect(panel(second)).to_contain_text("Somebody else removed this grant meanwhile.")
    await expect(number(second, "Priority")).to_have_value("77")
    await press(second, "Save")
    await expect(messages(second)).to_contain_text("1 whole GPU · priority 77")
    await expect(chip(wide, "bo")).to_contain_text("priority 77")
    assert [one.priority for one in grants(lab).values() if one.subject == "bo"] == [77]


async def test_who_types_a_new_grant_is_not_disturbed_by_others(
    lab: Site, wide: Any, second: Any
) -> None:
    await open_grants(lab, wide)
    await open_grants(lab, second, "hub-admin")
    await open_cell(second, "zed", "teaching")
    priority, images = (
        number(second, "Priority"),
        panel(second).get_by_role("textbox", name="Images"),
    )
    await priority.fill("12")
    await images.focus()
    await second.keyboard.type("lab/ba")
    await open_cell(wide, "eve", "research")
    await press(wide, "Save")
    await expect(messages(wide)).to_contain_text("for eve.")
    # The table behind the panel has it; the panel has what was typed, and the focus.
    await expect(
        second.get_by_role("button", name=re.compile("grant to eve, "), include_hidden=True)
    ).to_have_count(1)
    await expect(images).to_be_focused()
    await second.keyboard.type("se:1")
    await expect(images).to_have_value("lab/base:1")
    await expect(priority).to_have_value("12")
    await press(second, "Save")
    await expect(messages(second)).to_contain_text("for zed.")
    assert grants(lab)["user-zed"].images == ("lab/base:1",)
    assert grants(lab)["user-zed"].priority == 12


async def test_two_admins_add_for_one_user_in_the_same_moment(
    lab: Site, wide: Any, second: Any
) -> None:
    await open_grants(lab, wide)
    await open_grants(lab, second, "hub-admin")
    for tab, pool in ((wide, "teaching"), (second, "research")):
        await open_cell(tab, "zed", pool)
    await asyncio.gather(press(wide, "Save"), press(second, "Save"))
    for tab in (wide, second):
        await expect(messages(tab)).to_contain_text("for zed.")
        await expect(chip(tab, "zed")).to_have_count(2)
    assert {one.pool for one in grants(lab).values() if one.subject == "zed"} == {
        "teaching",
        "research",
    }


async def test_an_undo_does_not_take_back_what_another_did_since(lab: Site, wide: Any) -> None:
    await open_grants(lab, wide)
    await chip(wide, "group cv").click()
    await number(wide, "Priority").fill("20")
    await press(wide, "Save")
    await expect(messages(wide)).to_contain_text("priority 20")
    theirs = replace(GRANTS[1], priority=99)
    set_grants(lab, GRANTS[0], theirs, GRANTS[2])
    await messages(wide).get_by_role("button", name="Undo").click()
    await expect(messages(wide)).to_contain_text(re.compile("Not undone.*by root"))
    await expect(chip(wide, "group cv")).to_contain_text("priority 99")
    assert grants(lab)["cv"] == theirs


# -- the session ---------------------------------------------------------------------------------


NEW_PROOF = """async () => {
  const { proof } = await import("/services/lab/static/admin/api.js");
  const first = JSON.parse(document.getElementById("admin").dataset.config).xsrf;
  while (proof() === first) await new Promise((done) => setTimeout(done, 50));
}"""


async def test_a_session_that_ends_while_typing_loses_nothing(
    lab: Site, wide: Any, tmp_path: Path
) -> None:
    lab.hub.add("short", "adam", ENTER, "custom:lab:admin")
    await open_grants(lab, wide, "short")
    await open_cell(wide, "zed", "teaching")
    await number(wide, "Priority").fill("41")
    await expect(preview(wide)).to_contain_text("priority 41")
    lab.hub.models.pop("short")
    lab.lab.hub_auth.cache.clear()
    await number(wide, "Priority").fill("42")
    await expect(preview(wide)).to_contain_text("Your session has ended")
    await press(wide, "Save")
    refusal = panel(wide).get_by_role("alert")
    await expect(refusal).to_contain_text("Your session has ended. What you typed stays here.")
    assert "user-zed" not in grants(lab)
    lab.hub.add("again", "adam", ENTER, "custom:lab:admin")
    lab.hub.browser_user_token = "again"
    async with wide.context.expect_page() as opened:
        await refusal.get_by_role("link", name="Log in again").click()
    other = await opened.value
    await expect(other.get_by_role("heading", name="Who gets what")).to_be_visible()
    # The first tab looks at the new one twice a second, in which time nobody closes it.
    await asyncio.wait_for(wide.evaluate(NEW_PROOF), 10)
    await other.close()
    await expect(number(wide, "Priority")).to_have_value("42")
    await expect(panel(wide).get_by_role("combobox", name="User")).to_have_value("zed")
    await press(wide, "Save")
    await expect(messages(wide)).to_contain_text("priority 42, pool teaching, for zed.")
    assert grants(lab)["user-zed"].priority == 42
    assert "user-zed" in await export(wide, tmp_path)


# -- who looks, and a new lab --------------------------------------------------------------------


async def test_a_viewer_sees_everything_and_can_change_nothing(lab: Site, page: Any) -> None:
    await open_grants(lab, page, "viewer")
    for name in ("everyone", "group cv", "bo"):
        await expect(chip(page, name)).to_be_visible()
    await expect(page.get_by_role("link", name="Export CSV")).to_be_visible()
    for words in ("Add a grant", "Pin a GPU", "Import", "Give everyone"):
        await expect(page.get_by_role("button", name=re.compile(words))).to_have_count(0)
    await chip(page, "group cv").click()
    await expect(panel(page)).to_contain_text("You may look, but not change it")
    await expect(panel(page)).to_contain_text("2 GPUs")
    await expect(panel(page).get_by_role("button", name=re.compile("Save|Remove"))).to_have_count(0)
    await page.keyboard.press("Escape")
    await expect(panel(page)).to_have_count(0)
    await page.get_by_role("searchbox").fill("nobody-at-all")
    await expect(page.get_by_text("No user and no group has")).to_be_visible()
    await expect(page.get_by_role("button", name=re.compile("nobody-at-all"))).to_have_count(0)


async def test_a_lab_without_grants_offers_the_first(lab: Site, page: Any) -> None:
    set_grants(lab)
    await open_grants(lab, page)
    note = page.get_by_role("note")
    await expect(note).to_contain_text("There is no grant yet: none of the 8 users")
    await note.get_by_role("button", name="Give everyone one GPU or slot…").click()
    await expect(panel(page).get_by_role("radio", name="Everyone")).to_be_checked()
    await expect(preview(page)).to_contain_text("all 8 people: 1 GPU (was: nothing)")
    await press(page, "Save")
    await expect(chip(page, "everyone")).to_be_visible()
    await expect(note).to_have_count(0)
    (only,) = grants(lab).values()
    assert (only.to, only.count, only.share) == ("everyone", 1, "any")


async def test_a_viewer_of_a_lab_without_grants_is_told_who_can(lab: Site, wide: Any) -> None:
    set_grants(lab)
    await open_grants(lab, wide, "viewer")
    await expect(wide.get_by_role("note")).to_contain_text("An admin of the lab can add the first.")
    await expect(wide.get_by_role("note").get_by_role("button")).to_have_count(0)


# -- the keyboard --------------------------------------------------------------------------------


async def tab_to(page: Any, target: Any) -> None:
    """Go on by Tab alone until it has the focus."""
    await expect(target).to_be_visible()
    for _ in range(MOST_TABS):
        if await target.evaluate("node => node === document.activeElement"):
            return
        await page.keyboard.press("Tab")
    raise AssertionError(f"Tab does not reach {target}")


async def test_a_grant_is_added_by_the_keyboard_alone(lab: Site, page: Any) -> None:
    await open_grants(lab, page)
    await tab_to(page, page.get_by_role("searchbox", name="Search users and groups"))
    await page.keyboard.type("zed")
    await expect(row(page, "bo")).to_have_count(0)
    is_wide = size_of(page) > 600
    label = "Add a grant for zed on pool teaching" if is_wide else "Add a grant… for zed"
    opener = page.get_by_role("button", name=label, exact=True)
    await tab_to(page, opener)

    await page.keyboard.press("Enter")
    await expect(panel(page)).to_be_visible()
    await page.keyboard.press("Escape")
    await expect(panel(page)).to_have_count(0)
    await expect(opener).to_be_focused()

    await page.keyboard.press("Enter")
    await expect(panel(page).get_by_role("radio", name="A user")).to_be_focused()
    if not is_wide:
        await tab_to(page, panel(page).get_by_role("combobox", name="Pool"))
        await page.keyboard.type("teaching")
    priority = number(page, "Priority")
    await tab_to(page, priority)
    await page.keyboard.press("ControlOrMeta+a")
    await page.keyboard.type("60")
    await expect(preview(page)).to_contain_text("zed: 1 GPU on pool teaching, priority 60")
    await page.keyboard.press("Enter")
    await expect(panel(page)).to_have_count(0)
    await expect(messages(page)).to_contain_text("for zed.")
    await expect(opener).to_be_focused()
    assert grants(lab)["user-zed"].priority == 60

    # Taken back by the keyboard, too.
    await page.keyboard.press("ControlOrMeta+z")
    await expect(messages(page)).to_contain_text("Undone:")
    assert "user-zed" not in grants(lab)


async def test_a_grant_is_removed_by_the_keyboard_alone(lab: Site, wide: Any) -> None:
    await open_grants(lab, wide, query="?search=bo")
    await tab_to(wide, chip(wide, "bo"))
    await wide.keyboard.press("Enter")
    await tab_to(wide, panel(wide).get_by_role("button", name="Remove…"))
    await wide.keyboard.press("Enter")
    question = wide.get_by_role("alertdialog")
    await expect(question.get_by_role("button", name="Cancel")).to_be_focused()
    await wide.keyboard.press("Escape")
    await expect(panel(wide).get_by_role("button", name="Remove…")).to_be_focused()
    await wide.keyboard.press("Enter")
    await wide.keyboard.press("Shift+Tab")
    await expect(question.get_by_role("button", name="Remove", exact=True)).to_be_focused()
    await wide.keyboard.press("Enter")
    await expect(messages(wide)).to_contain_text("Removed:")
    await expect(panel(wide)).to_have_count(0)
    await expect(chip(wide, "bo")).to_have_count(0)
    # The opener is gone; the keyboard goes on from its cell.
    near = wide.get_by_role("button", name="Add a grant for bo on pool research")
    await expect(near).to_be_focused()
    assert "thesis-bo" not in grants(lab)


async def test_the_focus_stays_in_the_table_when_a_row_ends(lab: Site, wide: Any) -> None:
    set_grants(lab, *GRANTS, Grant("new", "user", "newcomer"))
    await open_grants(lab, wide, query="?search=e")
    await tab_to(wide, chip(wide, "newcomer"))
    set_grants(lab, *GRANTS)
    await expect(row(wide, "newcomer")).to_have_count(0)
    await expect(wide.get_by_role("region", name="Who gets what")).to_be_focused()
