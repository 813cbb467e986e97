"""Pages one of whose scripts did not arrive."""

from __future__ import annotations

from typing import Any

import lab_pages as pages
import pytest
from lab_browser import MARKS, expect, new_page, open_page, shoot, tell, too_wide, verdict
from lab_fakes import ENTER
from lab_journals import FINE
from lab_pages import open_as, violations_of

pytestmark = MARKS
LOOKS = ["1280 light", "390 light", "1280 dark", "390 dark"]


@pytest.mark.parametrize("look", LOOKS)
async def test_a_student_whose_script_did_not_arrive_can_load_it_again_or_go_on(lab, browser, look):
    width, theme = look.split()
    tell(lab, FINE)
    async for page in new_page(browser, int(width), theme):
        await page.route("**/server-view.js*", lambda route: route.abort())
        await page.goto(lab.url + "servers/ana/", wait_until="commit")
        again = page.get_by_role("link", name="Load it again")
        await expect(again).to_be_hidden()  # most scripts are only a moment behind
        await expect(again).to_be_visible()
        on = page.get_by_role("link", name="open JupyterLab")
        await expect(on).to_have_attribute("href", "/user/ana/lab")
        await shoot(page, f"late-script-{width}-{theme}")
        assert await too_wide(page) == []
        assert await violations_of(page) == []
        await page.unroute("**/server-view.js*")
        await again.click()
        await expect(verdict(page)).to_be_visible()
        await expect(again).to_have_count(0)


async def test_an_admin_whose_script_did_not_arrive_can_load_it_again(browser, tmp_path):
    async for lab in pages.run_lab(tmp_path):
        lab.hub.add("second", "kim", ENTER, "custom:lab:admin")
        async for page in new_page(browser):
            await page.route("**/admin/gpu-row.js*", lambda route: route.abort())
            await open_as(lab, page, "admin", "gpus")
            again = page.get_by_role("link", name="Load it again")
            await expect(again).to_be_visible()
            await page.unroute("**/admin/gpu-row.js*")
            await again.click()
            await expect(page.get_by_role("table", name="GPUs")).to_be_visible()
            await expect(again).to_be_hidden()


async def test_a_page_that_is_drawn_never_says_that_it_did_not_arrive(lab, page: Any):
    tell(lab, FINE)
    await open_page(lab, page)
    await expect(verdict(page)).to_be_visible()
    await page.wait_for_timeout(3500)
    await expect(page.get_by_text("has not arrived")).to_have_count(0)
