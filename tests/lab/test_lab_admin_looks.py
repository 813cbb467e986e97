"""The admin's pages at 1280 and 390 pixels, light and dark: nothing sticks out, axe finds nothing.

Set LAB_TEST_SCREENSHOTS to a folder to keep the pictures.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from lab_browser import MARKS, expect, new_page
from lab_pages import AXE, faults_of, open_as, picture, run_lab
from lab_seed import seed_caches, seed_courses
from lab_site import Site

pytestmark = [
    *MARKS,
    pytest.mark.skipif(not AXE.exists(), reason="axe-core is not installed (npm ci)"),
]
SIZES = [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]
PAGES = {
    "gpus": "bo",
    "grants": "Everyone",
    "queue": "dan",
    "courses": "Computer vision",
    "caches": "raised ValueError",
    "usage": "GPU-hours",
    "log": "New fan on Friday",
}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def lab(tmp_path_factory: Any) -> AsyncIterator[Site]:
    async for running in run_lab(tmp_path_factory.mktemp("lab")):
        seed_courses(running.ledger)
        seed_caches(running.ledger)
        yield running


@pytest_asyncio.fixture(loop_scope="module", params=SIZES, ids=lambda size: f"{size[0]}-{size[1]}")
async def page(browser: Any, request: Any) -> AsyncIterator[Any]:
    width, theme = request.param
    async for tab in new_page(browser, width, theme):
        tab.size = f"{width}-{theme}"
        yield tab


async def width_of(page: Any) -> int:
    return int(await page.evaluate("document.documentElement.scrollWidth"))


@pytest.mark.parametrize("name", sorted(PAGES))
async def test_a_page_fits_and_has_no_serious_fault(lab: Site, page: Any, name: str) -> None:
    await open_as(lab, page, "admin", name)
    await expect(page.locator("#admin")).to_contain_text(PAGES[name])
    await expect(page.locator("#admin-counts")).to_contain_text("3 of 6 in use")
    await picture(page, f"{name}-{page.size}")
    assert await width_of(page) <= page.viewport_size["width"], "it scrolls sideways"
    assert await faults_of(page) == []


async def test_an_open_row_fits_and_has_no_serious_fault(lab: Site, page: Any) -> None:
    await open_as(lab, page, "admin", "gpus")
    await page.get_by_role("button", name="Details of GPU 2").click()
    await expect(page.get_by_text("4821")).to_be_visible()
    await expect(page.get_by_text("not of this lab")).to_be_visible()
    await picture(page, f"gpus-open-{page.size}")
    assert await width_of(page) <= page.viewport_size["width"], "it scrolls sideways"
    assert await faults_of(page) == []


async def test_an_open_cache_and_its_panel_fit_and_have_no_serious_fault(
    lab: Site, page: Any
) -> None:
    await open_as(lab, page, "admin", "caches")
    await page.get_by_role("button", name="Details of gpt for NVIDIA").click()
    await expect(page.get_by_role("region", name="Log of gpt")).to_be_visible()
    await picture(page, f"caches-open-{page.size}")
    assert await width_of(page) <= page.viewport_size["width"], "it scrolls sideways"
    assert await faults_of(page) == []
    await page.get_by_role("button", name="Build a warm cache…").click()
    await expect(page.get_by_role("dialog")).to_be_visible()
    await picture(page, f"caches-build-{page.size}", is_whole=False)
    assert await faults_of(page) == []


async def test_the_panels_fit_and_have_no_serious_fault(lab: Site, page: Any) -> None:
    await open_as(lab, page, "admin", "gpus")
    await page.get_by_role("button", name="Pin GPU 0").click()
    panel = page.get_by_role("dialog")
    await panel.get_by_label("User").fill("zoe")
    await expect(panel).to_contain_text("bo holds GPU 0")
    await picture(page, f"gpus-pin-{page.size}", is_whole=False)
    assert await faults_of(page) == []
    await open_as(lab, page, "admin", "grants")
    await page.get_by_role("button", name="Add a grant…", exact=True).click()
    panel = page.get_by_role("dialog")
    await expect(panel).to_be_visible()
    await panel.get_by_label("User", exact=True).last.fill("zed")
    await panel.get_by_label("Priority").fill("50")
    await expect(panel).to_contain_text("zed: 1 GPU, priority 50")
    await picture(page, f"grants-add-{page.size}", is_whole=False)
    assert await width_of(page) <= page.viewport_size["width"], "it scrolls sideways"
    assert await faults_of(page) == []
