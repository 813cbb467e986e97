"""What the browser tests share: Chromium, a page, stories told into a journal, pictures."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import lab_journals as journals
import pytest
from lab_site import Site

from pytorch_spawner.core.journal import Event
from tests.quiet_chromium import quiet

playwright_api = pytest.importorskip("playwright.async_api")
expect = playwright_api.expect
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
MARKS = [
    pytest.mark.browser,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed"),
]
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SHOTS = os.environ.get("LAB_TEST_SCREENSHOTS", "")


async def run_browser() -> AsyncIterator[Any]:
    with tempfile.TemporaryDirectory() as folder:
        executable = quiet(CHROMIUM, Path(folder))
        async with playwright_api.async_playwright() as playwright:
            running = await playwright.chromium.launch(executable_path=executable, args=FLAGS)
            yield running
            await running.close()


async def new_page(browser: Any, width: int = 1280, theme: str = "light") -> AsyncIterator[Any]:
    context = await browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=theme, locale="en-GB"
    )
    context.set_default_timeout(10_000)
    tab = await context.new_page()
    tab.troubles = []
    tab.on("pageerror", lambda error: tab.troubles.append(str(error)))
    tab.on(
        "console",
        lambda message: (
            tab.troubles.append(message.text) if "Content Security Policy" in message.text else None
        ),
    )
    yield tab
    await context.close()
    assert tab.troubles == [], tab.troubles


def tell(lab: Site, story: journals.Story, began: float | None = None) -> Any:
    """Write a story into the journal of a new start, with the story's own times."""
    start = lab.begin()
    go_on(lab, start, story, began)
    return start


def go_on(lab: Site, start: Any, story: journals.Story, began: float | None = None) -> None:
    began = time.time() - 20 if began is None else began
    journal = lab.ledger.journals[start.id]
    for after_s, kind, data in story:
        journal.append(Event(len(journal) + 1, began + after_s, kind, data))


async def open_page(lab: Site, page: Any, path: str = "servers/ana/") -> None:
    await page.goto(lab.url + path)


async def shoot(page: Any, name: str) -> None:
    if SHOTS:
        await page.screenshot(path=str(Path(SHOTS) / f"{name}.png"), full_page=True)


def verdict(page: Any) -> Any:
    return page.get_by_role("heading", level=1)


async def too_wide(page: Any) -> list[str]:
    """What sticks out of the window, or holds a text that is wider than itself."""
    return await page.evaluate(
        """() => [...document.querySelectorAll("body *")].filter((one) => {
          const box = one.getBoundingClientRect();
          if (!box.width || getComputedStyle(one).visibility === "hidden") return false;
          if (one.closest(".visually-hidden")) return false;
          const look = getComputedStyle(one);
          const holds = look.overflowX !== "visible" || look.display === "inline";
          const spills = !holds && one.clientWidth > 0 && one.scrollWidth > one.clientWidth + 1;
          return box.right > innerWidth + 1 || box.left < -1 || spills;
        }).map((one) => `${one.tagName}.${one.className}: ${one.textContent.slice(0, 60)}`)"""
    )
