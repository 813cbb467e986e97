"""The admin's page "GPUs" in a real browser: every action, two admins, an expired session, keys."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import lab_pages as pages
import pytest
import pytest_asyncio
from lab_browser import MARKS, expect, new_page
from lab_fakes import ENTER, HUB
from lab_pages import GPUS, choose_action, gpu_row, messages, newest_change, open_as
from lab_seed import add_roles
from lab_site import Site, run_site

from pytorch_spawner.core.gpus import Inventory
from pytorch_spawner.core.grants import Grant
from pytorch_spawner.core.metering import Sample
from pytorch_spawner.lab import feed, live
from pytorch_spawner.ledger.store import Ledger

pytestmark = MARKS
expect.set_options(timeout=6_000)
SIZES = [(1280, "light"), (390, "dark")]


@pytest_asyncio.fixture(loop_scope="module")
async def lab(tmp_path: Any) -> AsyncIterator[Site]:
    async for running in pages.run_lab(tmp_path):
        running.hub.add("second", "kim", ENTER, "custom:lab:admin")
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def tab(browser: Any) -> AsyncIterator[Any]:
    """A page of the usual size."""
    async for page in new_page(browser):
        yield page


@pytest_asyncio.fixture(loop_scope="module")
async def other(browser: Any) -> AsyncIterator[Any]:
    """Another person's browser."""
    async for page in new_page(browser):
        yield page


@pytest_asyncio.fixture(loop_scope="module", params=SIZES, ids=lambda size: f"{size[0]}-{size[1]}")
async def page(browser: Any, request: Any) -> AsyncIterator[Any]:
    """A page, once wide and light, once narrow and dark."""
    async for page in new_page(browser, *request.param):
        yield page


def setting_of(site: Site, number: int) -> Any:
    found = [one for one in site.ledger.settings(HUB) if one.uuid == GPUS[number].uuid]
    return found[0] if found else None


def actions_of(page: Any, number: int) -> Any:
    return page.get_by_role("button", name=f"Actions for GPU {number}", exact=True)


# -- out of service and back -----------------------------------------------------------------------


async def test_a_gpu_is_drained_with_a_reason_and_undo_takes_it_back(lab: Site, page: Any) -> None:
    await open_as(lab, page, "admin", "gpus")
    panel = await choose_action(page, 1, "Drain…")
    reason = panel.get_by_label("Reason")
    await expect(reason).to_be_focused()
    await reason.fill("   ")
    await panel.get_by_role("button", name="Drain", exact=True).click()
    await expect(reason).to_have_accessible_description(re.compile("Say why, in a few words"))
    await expect(reason).to_have_attribute("aria-invalid", "true")
    await expect(reason).to_be_focused()
    assert setting_of(lab, 1) is None

    await reason.fill("Fan is loud")
    await expect(reason).not_to_have_attribute("aria-invalid", "true")
    await panel.get_by_role("button", name="Drain", exact=True).click()
    await expect(panel).to_have_count(0)
    await expect(gpu_row(page, 1)).to_contain_text("Drained")
    await expect(gpu_row(page, 1)).to_contain_text("Fan is loud")
    await expect(page.get_by_role("region", name="Needs you")).to_contain_text("Fan is loud")
    await expect(actions_of(page, 1)).to_be_focused()
    assert setting_of(lab, 1).drained == "Fan is loud"
    assert newest_change(lab).by == "adam"

    await expect(messages(page)).to_contain_text("GPU 1 is drained.")
    await messages(page).get_by_role("button", name="Undo").click()
    await expect(messages(page)).to_contain_text("Undone: GPU 1 is drained.")
    await expect(gpu_row(page, 1)).to_contain_text("Free")
    await expect(gpu_row(page, 1)).not_to_contain_text("Fan is loud")
    assert setting_of(lab, 1).drained == ""


async def test_a_held_gpu_drains_until_its_holder_is_gone(lab: Site, tab: Any) -> None:
    await open_as(lab, tab, "admin", "gpus")
    panel = await choose_action(tab, 0, "Drain…")
    await expect(panel).to_contain_text("1 server holds it now.")
    await panel.get_by_label("Reason").fill("Moves to rack 2")
    await panel.get_by_role("button", name="Drain", exact=True).click()
    await expect(gpu_row(tab, 0)).to_contain_text("Draining")
    await expect(gpu_row(tab, 0)).to_contain_text("Moves to rack 2 1 server still on it.")
    lab.ledger.release(HUB, "bo", "", "stopped")
    await expect(gpu_row(tab, 0)).to_contain_text("Drained")
    await expect(gpu_row(tab, 0)).to_contain_text("nobody")


async def test_ctrl_z_takes_the_last_change_back(lab: Site, tab: Any) -> None:
    await open_as(lab, tab, "admin", "gpus")
    panel = await choose_action(tab, 1, "Drain…")
    await panel.get_by_label("Reason").fill("Fan")
    await panel.get_by_role("button", name="Drain", exact=True).click()
    await expect(messages(tab)).to_contain_text("GPU 1 is drained.")
    await expect(panel).to_have_count(0)
    await tab.keyboard.press("Control+z")
    await expect(gpu_row(tab, 1)).to_contain_text("Free")


async def test_a_change_taken_back_before_the_stream_saw_it_is_shown_so(
    lab: Site, tab: Any
) -> None:
    lab.lab.feed._look_s = 60.0
    await open_as(lab, tab, "admin", "gpus")
    panel = await choose_action(tab, 1, "Drain…")
    await panel.get_by_label("Reason").fill("Fan")
    await panel.get_by_role("button", name="Drain", exact=True).click()
    await expect(gpu_row(tab, 1)).to_contain_text("Drained")
    await messages(tab).get_by_role("button", name="Undo").click()
    await expect(gpu_row(tab, 1)).to_contain_text("Free")


async def test_an_undo_that_comes_too_late_says_whose_change_stands(lab: Site, tab: Any) -> None:
    await open_as(lab, tab, "admin", "gpus")
    panel = await choose_action(tab, 1, "Drain…")
    await panel.get_by_label("Reason").fill("Fan")
    await panel.get_by_role("button", name="Drain", exact=True).click()
    await expect(messages(tab)).to_contain_text("GPU 1 is drained.")
    path = f"api/gpus/{GPUS[1].uuid}"
    assert (await lab.send("PATCH", path, {"drained": "No fan"}, token="second")).status == 200
    await messages(tab).get_by_role("button", name="Undo").click()
    await expect(messages(tab)).to_contain_text("Not undone.")
    await expect(messages(tab)).to_contain_text("by kim")
    await expect(gpu_row(tab, 1)).to_contain_text("No fan")


async def test_a_gpu_is_returned_to_service(lab: Site, page: Any) -> None:
    await open_as(lab, page, "admin", "gpus")
    panel = await choose_action(page, 4, "Return to service…")
    await expect(panel).to_contain_text("It was drained: New fan on Friday")
    await panel.get_by_role("button", name="Return to service").click()
    await expect(messages(page)).to_contain_text("GPU 4 is back in service.")
    await expect(gpu_row(page, 4)).to_contain_text("Free")
    assert setting_of(lab, 4).drained == ""


async def test_what_needs_the_admin_is_shown_first_and_acted_on_there(lab: Site, tab: Any) -> None:
    await open_as(lab, tab, "admin", "gpus")
    needs = tab.get_by_role("region", name="Needs you")
    await expect(needs).to_contain_text("Xid 79: the GPU has fallen off the bus.")
    await expect(needs).to_contain_text("GPU 4 (NVIDIA A100-SXM4-80GB) is drained")
    await needs.get_by_role("button", name="Show (GPU 5)").click()
    opener = tab.get_by_role("button", name="Details of GPU 5", exact=True)
    await expect(opener).to_have_attribute("aria-expanded", "true")
    await expect(opener).to_be_focused()
    await needs.get_by_role("button", name="Return to service… (GPU 4)").click()
    panel = tab.get_by_role("dialog", name="Return GPU 4 to service")
    await panel.get_by_role("button", name="Return to service").click()
    await expect(needs).not_to_contain_text("GPU 4")
    await expect(needs).to_contain_text("GPU 5")


# -- mode and pool ---------------------------------------------------------------------------------


async def test_a_mode_waits_until_the_gpu_is_empty(lab: Site, page: Any) -> None:
    await open_as(lab, page, "admin", "gpus")
    panel = await choose_action(page, 0, "Change mode…")
    await expect(panel).to_contain_text("It is whole now. 1 server holds it now.")
    await expect(panel).to_contain_text("takes effect once nobody holds the GPU")
    await panel.get_by_label("Mode").select_option(label="4 slots of 20 GiB")
    await panel.get_by_role("button", name="Save").click()
    await expect(messages(page)).to_contain_text("GPU 0: mode 4 slots, once nobody holds it.")
    await expect(gpu_row(page, 0)).to_contain_text("4 slots once empty")
    lab.ledger.release(HUB, "bo", "", "stopped")
    await expect(gpu_row(page, 0)).not_to_contain_text("once empty")
    await expect(gpu_row(page, 0).get_by_role("cell").nth(1)).to_have_text("4 slots")


async def test_a_mode_is_set_and_reset_to_what_is_configured(lab: Site, tab: Any) -> None:
    await open_as(lab, tab, "admin", "gpus")
    panel = await choose_action(tab, 1, "Change mode…")
    await panel.get_by_label("Mode").select_option(label="2 slots of 40 GiB")
    await panel.get_by_role("button", name="Save").click()
    mode = gpu_row(tab, 1).get_by_role("cell").nth(1)
    await expect(mode).to_have_text("2 slots")
    panel = await choose_action(tab, 1, "Change mode…")
    await expect(panel.get_by_label("Mode")).to_have_value("shared:2")
    await panel.get_by_label("Mode").select_option(label="As configured")
    await panel.get_by_role("button", name="Save").click()
    await expect(mode).to_have_text("whole")
    await expect(messages(tab)).to_contain_text("GPU 1: mode as configured.")
    assert setting_of(lab, 1).mode is None


async def test_mig_is_explained_and_not_changed_here(lab: Site, tab: Any) -> None:
    cut = replace(GPUS[1], mode="mig")
    lab.ledger.write_inventory(HUB, Inventory((GPUS[0], cut)))
    await open_as(lab, tab, "admin", "gpus")
    await expect(gpu_row(tab, 1)).to_contain_text("MIG")
    panel = await choose_action(tab, 1, "Change mode…")
    await expect(panel).to_contain_text("That is set on the host (nvidia-smi mig)")
    await expect(panel.get_by_label("Mode")).to_have_count(0)
    await expect(panel.get_by_role("button", name="Save")).to_have_count(0)
    await panel.get_by_role("contentinfo").or_(panel).get_by_text("Close", exact=True).click()
    await expect(panel).to_have_count(0)


async def test_a_gpu_moves_to_a_pool_and_back_to_its_configured_one(lab: Site, page: Any) -> None:
    await open_as(lab, page, "admin", "gpus")
    panel = await choose_action(page, 1, "Move to pool…")
    await expect(panel).to_contain_text("It is in pool research now, as configured.")
    pool = panel.get_by_label("Pool")
    # What the schema refuses stands beside the field, too.
    await pool.fill("teach\u200bing")
    await panel.get_by_role("button", name="Move", exact=True).click()
    await expect(pool).to_have_attribute("aria-invalid", "true")
    await expect(pool).to_have_accessible_description(re.compile("only printable characters"))
    await pool.fill("teaching")
    await panel.get_by_role("button", name="Move", exact=True).click()
    await expect(messages(page)).to_contain_text("GPU 1 is in pool teaching.")
    cell = gpu_row(page, 1).get_by_role("cell").nth(0)
    await expect(cell).to_have_text("teaching")

    panel = await choose_action(page, 1, "Move to pool…")
    await expect(panel).to_contain_text("It is in pool teaching now, set here.")
    await panel.get_by_label("Pool").fill("")
    await panel.get_by_role("button", name="Move", exact=True).click()
    await expect(messages(page)).to_contain_text("GPU 1 is in its configured pool.")
    await expect(cell).to_have_text("research")
    assert setting_of(lab, 1).pool is None


# -- servers ---------------------------------------------------------------------------------------


async def test_a_server_is_stopped_and_its_student_is_told_why(lab: Site, page: Any) -> None:
    await open_as(lab, page, "admin", "gpus")
    panel = await choose_action(page, 2, "Stop eve's server…")
    await expect(panel).to_contain_text("what was not saved is lost")
    await panel.get_by_label("Message to eve").fill("The room closes at 18:00.")
    await panel.get_by_role("button", name="Stop server").click()
    await expect(messages(page)).to_contain_text("eve's server is being stopped.")
    assert lab.stopped == ["eve/"]  # type: ignore[attr-defined]
    journal = lab.ledger.read_events(lab.ledger.latest_start(HUB, "eve", "").id)
    assert journal[-1].data["stage"] == "ending"
    assert journal[-1].data["message"] == "An admin stops this server. The room closes at 18:00."
    line = newest_change(lab)
    assert (line.what, line.subject, line.by) == ("server", "eve/", "adam")
    lab.ledger.release(HUB, "eve", "", "stopped")
    await expect(gpu_row(page, 2)).not_to_contain_text("eve")


async def test_a_server_is_stopped_from_the_details_or_left_alone(lab: Site, tab: Any) -> None:
    await open_as(lab, tab, "admin", "gpus")
    await tab.get_by_role("button", name="Details of GPU 0", exact=True).click()
    await tab.get_by_role("button", name="Stop server… of bo").click()
    panel = tab.get_by_role("dialog", name="Stop bo's server")
    await panel.get_by_role("button", name="Cancel").click()
    await expect(panel).to_have_count(0)
    await expect(tab.get_by_role("button", name="Stop server… of bo")).to_be_focused()
    assert lab.stopped == []  # type: ignore[attr-defined]
    await tab.keyboard.press("Enter")
    await panel.get_by_role("button", name="Stop server").click()
    await expect(messages(tab)).to_contain_text("bo's server is being stopped.")
    assert lab.stopped == ["bo/"]  # type: ignore[attr-defined]


async def test_a_server_that_is_gone_already_is_said(lab: Site, tab: Any) -> None:
    await open_as(lab, tab, "admin", "gpus")
    panel = await choose_action(tab, 0, "Stop bo's server…")
    lab.ledger.end_start(lab.ledger.latest_start(HUB, "bo", "").id, "stopped")
    await panel.get_by_label("Message to bo").fill("Please save.")
    await panel.get_by_role("button", name="Stop server").click()
    await expect(panel.get_by_role("alert")).to_contain_text("does not run (any more)")
    await expect(panel.get_by_label("Message to bo")).to_have_value("Please save.")


# -- pins ------------------------------------------------------------------------------------------


async def test_a_gpu_is_pinned_to_somebody_who_never_logged_in(lab: Site, page: Any) -> None:
    await open_as(lab, page, "admin", "gpus")
    await page.get_by_role("button", name="Pin GPU 1…", exact=True).click()
    panel = page.get_by_role("dialog", name="Pin GPU 1 to a user")
    user = panel.get_by_label("User")
    await expect(user).to_be_focused()
    await panel.get_by_role("button", name="Save").click()
    await expect(user).to_have_accessible_description(re.compile("Whose is it to be"))
    await user.fill("zoe")
    preview = panel.get_by_role("region", name="If saved")
    await expect(preview).to_contain_text("zoe: GPU 1 (")
    await expect(preview).to_contain_text("JupyterHub does not know zoe yet")
    await panel.get_by_role("button", name="Save").click()
    await expect(messages(page)).to_contain_text("GPU 1 is pinned to zoe.")
    await expect(gpu_row(page, 1)).to_contain_text("pinned to zoe")
    await expect(page.get_by_role("button", name="Pin GPU 1…", exact=True)).to_be_focused()
    (grant,) = (one for one in lab.ledger.grants(HUB) if one.subject == "zoe")
    assert (grant.gpus, grant.share) == ((GPUS[1].uuid,), "whole")

    await messages(page).get_by_role("button", name="Undo").click()
    await expect(gpu_row(page, 1)).not_to_contain_text("pinned")
    assert not any(one.subject == "zoe" for one in lab.ledger.grants(HUB))


async def test_pinning_what_somebody_holds_names_them(lab: Site, tab: Any) -> None:
    await open_as(lab, tab, "admin", "gpus")
    await tab.get_by_role("button", name="Pin GPU 0…", exact=True).click()
    panel = tab.get_by_role("dialog", name="Pin GPU 0 to a user")
    await expect(panel).to_contain_text("bo holds it now, until that server stops.")
    await panel.get_by_label("User").fill("ana")
    await expect(panel.get_by_role("region", name="If saved")).to_contain_text("bo holds GPU 0")


async def test_the_name_of_a_pin_is_completed_from_those_whom_the_hub_knows(
    lab: Site, tab: Any
) -> None:
    await open_as(lab, tab, "admin", "gpus")
    await tab.get_by_role("button", name="Pin GPU 1…", exact=True).click()
    user = tab.get_by_role("dialog").get_by_label("User")
    await user.press_sequentially("ze")
    names = tab.locator(f"datalist#{await user.get_attribute('list')} option")
    await expect(names).to_have_count(1)
    await expect(names).to_have_attribute("value", "zed")


async def test_a_pin_that_is_there_is_told_and_taken_away(lab: Site, tab: Any) -> None:
    pin = Grant("pin-zed", "user", "zed", gpus=(GPUS[1].uuid,), share="whole")
    lab.ledger.edit_grants(HUB, "kim", lambda before: (*before, pin))
    await open_as(lab, tab, "admin", "gpus")
    await expect(gpu_row(tab, 1)).to_contain_text("pinned to zed")
    await tab.get_by_role("button", name="Pin GPU 1…", exact=True).click()
    panel = tab.get_by_role("dialog", name="Pin GPU 1 to a user")
    await expect(panel).to_contain_text("It is pinned to zed already.")
    # Two pins of one GPU to two people do not go together.
    await panel.get_by_label("User").fill("ana")
    await expect(panel.get_by_role("region", name="If saved")).to_contain_text("pin-zed")
    await panel.get_by_role("button", name="Save").click()
    await expect(panel.get_by_role("alert").first).to_contain_text("pin-zed")
    await panel.get_by_role("button", name="Unpin from zed").click()
    await expect(messages(tab)).to_contain_text("GPU 1 is not pinned to zed any more.")
    await expect(panel).not_to_contain_text("already")
    await panel.get_by_role("button", name="Save").click()
    await expect(gpu_row(tab, 1)).to_contain_text("pinned to ana")

    panel = await choose_action(tab, 1, "Unpin from ana…")
    await expect(panel).to_contain_text("for all whose grants cover pool research")
    await panel.get_by_role("button", name="Unpin", exact=True).click()
    await expect(gpu_row(tab, 1)).not_to_contain_text("pinned")
    assert [one.id for one in lab.ledger.grants(HUB)] == ["cv", "everyone", "thesis-bo"]


# -- finding ---------------------------------------------------------------------------------------


async def test_search_and_pool_find_gpus_and_stay_in_the_address(lab: Site, page: Any) -> None:
    await open_as(lab, page, "admin", "gpus")
    search, pool = page.get_by_label("Search"), page.get_by_label("Pool")
    openers = page.get_by_role("button", name="Details of GPU")
    await expect(openers).to_have_count(6)
    await search.fill("cyd")
    await expect(openers).to_have_count(1)
    await expect(page.get_by_text("1 of 6 GPUs")).to_be_visible()
    await expect(gpu_row(page, 3)).to_be_visible()
    await search.fill("")
    await pool.select_option("research")
    await expect(openers).to_have_count(2)
    await search.fill("deep-learning")
    await expect(openers).to_have_count(1)
    await page.reload()
    await expect(openers).to_have_count(1)
    await expect(search).to_have_value("deep-learning")
    await expect(pool).to_have_value("research")
    await search.fill("nobody of that name")
    await expect(page.get_by_text("No GPU matches.")).to_be_visible()
    await expect(openers).to_have_count(0)


async def test_details_say_whose_each_process_is(lab: Site, page: Any) -> None:
    await open_as(lab, page, "admin", "gpus")
    opener = page.get_by_role("button", name="Details of GPU 2", exact=True)
    await opener.click()
    table = page.get_by_role("table", name="Processes")
    await expect(table.get_by_role("row", name="4821 python3")).to_contain_text("ana")
    await expect(table.get_by_role("row", name="4822 python3")).to_contain_text("eve")
    await expect(table.get_by_role("row", name="991 Xorg")).to_contain_text("not of this lab")
    shown = page.get_by_role("term").filter(has_text="Compute capability")
    await expect(shown.locator("xpath=following-sibling::dd[1]")).to_have_text("8.0")
    await expect(page.get_by_text("slot 2 of 4 · course deep-learning")).to_be_visible()
    await expect(page.get_by_text(GPUS[2].uuid)).to_be_visible()
    await opener.click()
    await expect(table).to_have_count(0)
    await expect(opener).to_have_attribute("aria-expanded", "false")


# -- live ------------------------------------------------------------------------------------------


async def test_who_holds_a_gpu_changes_without_a_reload(lab: Site, page: Any) -> None:
    await open_as(lab, page, "admin", "gpus")
    await expect(gpu_row(page, 1)).to_contain_text("nobody")
    await page.evaluate("window.isSamePage = true")
    pages.lend(lab, "zed", GPUS[1], course="vision")
    await expect(gpu_row(page, 1)).to_contain_text("zed · vision")
    await expect(gpu_row(page, 1)).to_contain_text("In use")
    await expect(page.locator("#admin-counts")).to_contain_text("4 of 6 in use")
    lab.ledger.release(HUB, "zed", "", "stopped")
    await expect(gpu_row(page, 1)).to_contain_text("nobody")
    await expect(page.locator("#admin-counts")).to_contain_text("3 of 6 in use")
    assert await page.evaluate("window.isSamePage")


async def test_open_details_and_the_focus_stay_when_a_row_changes(lab: Site, tab: Any) -> None:
    await open_as(lab, tab, "admin", "gpus")
    opener = tab.get_by_role("button", name="Details of GPU 2", exact=True)
    await opener.focus()
    await tab.keyboard.press("Enter")
    await expect(tab.get_by_role("table", name="Processes")).to_be_visible()
    pages.lend(lab, "zed", GPUS[2], slot=3, slots=4)
    await expect(tab.get_by_text("slot 4 of 4")).to_be_visible()
    await expect(opener).to_be_focused()
    await expect(opener).to_have_attribute("aria-expanded", "true")


async def test_a_new_sample_is_shown_and_the_unknown_is_never_zero(lab: Site, tab: Any) -> None:
    await open_as(lab, tab, "admin", "gpus")
    row = gpu_row(tab, 1)
    # GPU 5 was never measured.
    await expect(gpu_row(tab, 5).get_by_text("unknown")).to_have_count(4)
    await expect(row).to_contain_text("0 %")
    now = lab.lab.meter._clock()
    pages.set_sample(lab, GPUS[1].uuid, Sample(now, 87.0, 40_960, 71.0, 333.0))
    for words in ("87 %", "40 / 80 GiB", "71 °C", "333 W"):
        await expect(row).to_contain_text(words)
    pages.set_sample(lab, GPUS[1].uuid, Sample(now, None, 0, None, 0.0))
    await expect(row).to_contain_text("0 W")
    await expect(row.get_by_text("unknown")).to_have_count(2)
    pages.set_sample(lab, GPUS[1].uuid, None)
    await expect(row.get_by_text("unknown")).to_have_count(4)
    await expect(row).not_to_contain_text(re.compile(r"\b0(\.0)? (%|W|/|°C)"))


async def test_without_a_gpu_the_page_says_why_and_goes_on_when_there_is_one(
    tab: Any, tmp_path: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(feed, "ANEW_S", 0.2)
    ledger = Ledger.open(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    ledger.write_inventory(HUB, Inventory(()))
    async for site in run_site(ledger):
        add_roles(site.hub)
        await open_as(site, tab, "admin", "gpus")
        await expect(tab.get_by_text("The lab sees no GPU.")).to_be_visible()
        await expect(tab.get_by_role("table")).to_have_count(0)
        await expect(tab.get_by_label("Search")).to_have_count(1)
        await expect(tab.get_by_label("Search")).to_be_hidden()
        ledger.write_inventory(HUB, Inventory(GPUS[:1]))
        await expect(gpu_row(tab, 0)).to_be_visible()
        await expect(gpu_row(tab, 0).get_by_text("unknown")).to_have_count(4)
        await expect(tab.get_by_text("Nothing is measured.")).to_be_visible()


# -- two admins ------------------------------------------------------------------------------------


async def test_two_admins_do_not_overwrite_each_other(lab: Site, tab: Any, other: Any) -> None:
    await open_as(lab, tab, "admin", "gpus")
    await expect(gpu_row(tab, 1)).to_be_visible()
    await open_as(lab, other, "second", "gpus")
    mine = await choose_action(tab, 1, "Drain…")
    theirs = await choose_action(other, 1, "Drain…")
    await theirs.get_by_label("Reason").fill("Kim's reason")
    await mine.get_by_label("Reason").fill("Adam's reason")
    await mine.get_by_role("button", name="Drain", exact=True).click()
    # The first one's change comes to the other's page by itself, behind the open panel.
    await expect(gpu_row(other, 1)).to_contain_text("Adam's reason")

    await theirs.get_by_role("button", name="Drain", exact=True).click()
    said = theirs.get_by_role("alert")
    await expect(said).to_contain_text("GPU 1 was changed meanwhile, by adam at")
    await expect(theirs.get_by_label("Reason")).to_have_value("Kim's reason")
    assert setting_of(lab, 1).drained == "Adam's reason"
    await said.get_by_role("button", name="Load what is there now").click()
    await expect(theirs).to_contain_text("It is drained already: Adam's reason")
    await theirs.get_by_label("Reason").fill("Adam's reason, and Kim's")
    await theirs.get_by_role("button", name="Drain", exact=True).click()
    await expect(theirs).to_have_count(0)
    await expect(gpu_row(tab, 1)).to_contain_text("Adam's reason, and Kim's")
    assert [one.by for one in lab.ledger.changes(HUB, 2)] == ["kim", "adam"]


async def test_two_admins_who_set_the_mode_see_what_the_first_chose(
    lab: Site, tab: Any, other: Any
) -> None:
    await open_as(lab, tab, "admin", "gpus")
    await expect(gpu_row(tab, 1)).to_be_visible()
    await open_as(lab, other, "second", "gpus")
    mine = await choose_action(tab, 1, "Change mode…")
    theirs = await choose_action(other, 1, "Change mode…")
    await mine.get_by_label("Mode").select_option("shared:2")
    await mine.get_by_role("button", name="Save").click()
    await expect(gpu_row(other, 1)).to_contain_text("2 slots")
    await theirs.get_by_label("Mode").select_option("shared:4")
    await theirs.get_by_role("button", name="Save").click()
    await expect(theirs.get_by_role("alert")).to_contain_text("by adam")
    await theirs.get_by_role("button", name="Load what is there now").click()
    await expect(theirs.get_by_label("Mode")).to_have_value("shared:2")
    await expect(theirs).to_contain_text("It is 2 slots now")
    await theirs.get_by_label("Mode").select_option("shared:4")
    await theirs.get_by_role("button", name="Save").click()
    await expect(gpu_row(tab, 1)).to_contain_text("4 slots")


# -- sessions and rights ---------------------------------------------------------------------------


async def test_a_session_that_ends_while_typing_loses_nothing(lab: Site, page: Any) -> None:
    await open_as(lab, page, "admin", "gpus")
    panel = await choose_action(page, 1, "Drain…")
    reason = panel.get_by_label("Reason")
    await reason.fill("A long story about a fan")
    model = pages.end_session(lab, "admin")
    await panel.get_by_role("button", name="Drain", exact=True).click()
    await expect(panel.get_by_role("alert")).to_contain_text("Your session has ended.")
    await expect(reason).to_have_value("A long story about a fan")
    assert setting_of(lab, 1) is None

    # The hub hands out a new token; with it comes a new XSRF token, which the page fetches.
    lab.hub.models["admin-anew"] = model
    lab.hub.browser_user_token = "admin-anew"
    async with page.context.expect_page() as opened:
        await panel.get_by_role("link", name="Log in again").click()
    login = await opened.value
    await expect(gpu_row(login, 1)).to_be_visible()
    await login.close()
    await page.bring_to_front()
    await panel.get_by_role("button", name="Drain", exact=True).click()
    # Not "gone": the browser tells of a closed dialog with the next frame only.
    await expect(page.locator("dialog[open]")).to_have_count(0)
    await expect(gpu_row(page, 1)).to_contain_text("A long story about a fan")
    assert setting_of(lab, 1).drained == "A long story about a fan"


async def test_a_pin_survives_the_end_of_a_session(lab: Site, tab: Any) -> None:
    await open_as(lab, tab, "admin", "gpus")
    await tab.get_by_role("button", name="Pin GPU 1…", exact=True).click()
    panel = tab.get_by_role("dialog")
    model = pages.end_session(lab, "admin")
    await panel.get_by_label("User").fill("zoe")
    preview = panel.get_by_role("region", name="If saved")
    await expect(preview).to_contain_text("Your session has ended")
    await panel.get_by_role("button", name="Save").click()
    await expect(panel.get_by_role("alert").first).to_contain_text("Your session has ended")
    await expect(panel.get_by_label("User")).to_have_value("zoe")
    lab.hub.models["admin-anew"] = model
    lab.hub.browser_user_token = "admin-anew"
    async with tab.context.expect_page() as opened:
        await panel.get_by_role("link", name="Log in again").click()
    await expect(gpu_row(await opened.value, 1)).to_be_visible()
    await panel.get_by_role("button", name="Save").click()
    await expect(gpu_row(tab, 1)).to_contain_text("pinned to zoe")


async def test_an_admin_who_is_none_any_more_is_told_so(lab: Site, tab: Any) -> None:
    await open_as(lab, tab, "admin", "gpus")
    panel = await choose_action(tab, 1, "Drain…")
    await panel.get_by_label("Reason").fill("Fan")
    lab.hub.models["admin"]["scopes"] = [ENTER, "custom:lab:view"]
    lab.lab.hub_auth.cache.clear()
    await panel.get_by_role("button", name="Drain", exact=True).click()
    await expect(panel.get_by_role("alert")).to_contain_text("custom:lab:admin")
    await expect(panel.get_by_label("Reason")).to_have_value("Fan")
    assert newest_change(lab).what == "refused"


async def test_a_viewer_sees_everything_and_no_action(lab: Site, page: Any) -> None:
    await open_as(lab, page, "viewer", "gpus")
    await expect(gpu_row(page, 0)).to_contain_text("bo · deep-learning")
    await expect(page.get_by_role("region", name="Needs you")).to_contain_text("GPU 4")
    await page.get_by_role("button", name="Details of GPU 2", exact=True).click()
    await expect(page.get_by_role("table", name="Processes")).to_contain_text("not of this lab")
    for name in ("Actions", "Pin", "Stop", "Drain", "Return"):
        await expect(page.get_by_role("button", name=re.compile(f"^{name}"))).to_have_count(0)
    pages.lend(lab, "zed", GPUS[1])
    await expect(gpu_row(page, 1)).to_contain_text("zed")


async def test_a_student_is_refused_in_a_sentence(lab: Site, page: Any) -> None:
    lab.hub.browser_user_token = "ana-page"
    answer = await page.goto(lab.url + "gpus")
    assert answer.status == 403
    await expect(page.get_by_role("heading", level=1)).to_have_text(
        "This page is for the lab's admins."
    )
    await expect(page.get_by_role("button", name="Your server")).to_be_visible()
    await expect(page.get_by_text("deep-learning")).to_have_count(0)


# -- keys ------------------------------------------------------------------------------------------


async def test_everything_goes_by_keyboard(lab: Site, tab: Any) -> None:
    await open_as(lab, tab, "admin", "gpus")
    await expect(gpu_row(tab, 1)).to_be_visible()
    keys = tab.keyboard
    # Pin GPU 1 to zoe.
    await pages.tab_to(tab, "Pin GPU 1…")
    await keys.press("Enter")
    panel = tab.get_by_role("dialog", name="Pin GPU 1 to a user")
    await expect(panel.get_by_label("User")).to_be_focused()
    await keys.type("zoe")
    await expect(panel.get_by_role("region", name="If saved")).to_contain_text("zoe: GPU 1 (")
    await keys.press("Enter")
    await expect(gpu_row(tab, 1)).to_contain_text("pinned to zoe")
    await expect(tab.get_by_role("button", name="Pin GPU 1…", exact=True)).to_be_focused()

    # Drain GPU 3: the menu by arrow keys; Escape leaves menu and panel where they came from.
    await pages.tab_to(tab, "Actions for GPU 3")
    await keys.press("ArrowDown")
    menu = tab.get_by_role("menu", name="Actions for GPU 3")
    await expect(menu.get_by_role("menuitem", name="Drain…")).to_be_focused()
    await keys.press("ArrowDown")
    await expect(menu.get_by_role("menuitem", name="Change mode…")).to_be_focused()
    await keys.press("ArrowUp")
    await keys.press("ArrowUp")
    await expect(menu.get_by_role("menuitem").last).to_be_focused()
    await keys.press("Home")
    await expect(menu.get_by_role("menuitem", name="Drain…")).to_be_focused()
    await keys.press("Escape")
    await expect(menu).to_have_count(0)
    await expect(actions_of(tab, 3)).to_be_focused()
    await keys.press("Enter")
    await keys.press("Enter")
    panel = tab.get_by_role("dialog", name="Drain GPU 3")
    await expect(panel.get_by_label("Reason")).to_be_focused()
    await keys.press("Escape")
    await expect(panel).to_have_count(0)
    await expect(actions_of(tab, 3)).to_be_focused()
    await keys.press("Enter")
    await keys.press("Enter")
    await keys.type("Fan")
    await pages.tab_to(tab, "Drain", most=5)
    await keys.press("Enter")
    await expect(gpu_row(tab, 3)).to_contain_text("Draining")
    await expect(actions_of(tab, 3)).to_be_focused()


# -- many ------------------------------------------------------------------------------------------


async def test_64_gpus_and_2000_users_stay_usable(lab: Site, tab: Any) -> None:
    many = [pages.gpu(n, pool="research" if n % 2 else "teaching") for n in range(64)]
    lab.ledger.write_inventory(HUB, Inventory(tuple(many)))
    lab.hub.people = {f"student-{n:04}": ["cv"] for n in range(2000)}
    lab.hub.page = 200
    pages.queue_up_at_once(lab, [f"student-{n:04}" for n in range(2000)])
    now = lab.lab.meter._clock()
    for one in many:
        pages.set_sample(lab, one.uuid, Sample(now, 50.0, 20_000, 50.0, 200.0))
    # The login is not part of it.
    await open_as(lab, tab, "admin", "usage")
    began = time.monotonic()
    await tab.goto(lab.url + "gpus")
    await expect(gpu_row(tab, 0)).to_be_visible()
    assert time.monotonic() - began < 3
    await expect(tab.locator("#admin-counts")).to_contain_text("2002 waiting")
    openers = tab.get_by_role("button", name="Details of GPU")
    await expect(openers).to_have_count(64)

    began = time.monotonic()
    await tab.get_by_label("Search").press_sequentially("GPU-0000003f")
    await expect(openers).to_have_count(1)
    await expect(gpu_row(tab, 63)).to_be_visible()
    assert time.monotonic() - began < 1

    await tab.get_by_role("button", name="Pin GPU 63…", exact=True).click()
    panel = tab.get_by_role("dialog")
    began = time.monotonic()
    await panel.get_by_label("User").fill("student-1999")
    await expect(panel.get_by_role("region", name="If saved")).to_contain_text(
        "student-1999: GPU 63"
    )
    assert time.monotonic() - began < 3
    names = tab.locator("datalist option")
    await expect(names).to_have_count(1)


async def test_a_page_that_only_looks_says_that_its_login_ended_and_goes_on_after_the_next(
    lab: Site, tab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "RECHECK_S", 0.2)
    monkeypatch.setattr(live, "KEEP_ALIVE_S", 0.2)
    await open_as(lab, tab, "admin", "gpus")
    await expect(gpu_row(tab, 1)).to_contain_text("Free")
    model = pages.end_session(lab, "admin")
    notice = tab.locator("#admin-notice")
    await expect(notice).to_contain_text("Your session has ended")
    lab.hub.models["admin-anew"] = model
    lab.hub.browser_user_token = "admin-anew"
    async with tab.context.expect_page() as opened:
        await notice.get_by_role("link", name="Log in again").click()
    await expect((await opened.value).get_by_role("table", name="GPUs")).to_be_visible()
    await tab.evaluate("dispatchEvent(new Event('online'))")
    await expect(notice).to_have_text("")
    await lab.send("PATCH", f"api/gpus/{GPUS[1].uuid}", {"drained": "Fan"}, token="second")
    await expect(gpu_row(tab, 1)).to_contain_text("Drained")


async def test_a_stream_that_says_nothing_for_half_a_minute_is_asked_for_anew(
    lab: Site, tab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "KEEP_ALIVE_S", 600.0)
    await tab.clock.install()
    await open_as(lab, tab, "admin", "gpus")
    await expect(gpu_row(tab, 1)).to_contain_text("Free")
    async with tab.expect_request("**/api/live*"):
        await tab.clock.fast_forward(40_000)
        await tab.clock.run_for(6_000)
