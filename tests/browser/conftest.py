"""Chromium, a page in two sizes, the login, pictures."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Error, Page, sync_playwright

from tests.lab_driver import Lab

PICTURES = Path(os.environ.get("LAB_PICTURES", "")) if os.environ.get("LAB_PICTURES") else None
_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-proxy-server",
]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=_FLAGS)
        yield browser
        browser.close()


@pytest.fixture(params=[(1280, "light"), (390, "dark")], ids=lambda p: f"{p[0]} px {p[1]}")
def page(chromium: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    width, scheme = request.param
    context = chromium.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
    context.set_default_timeout(30_000)
    yield new_page(context)
    context.close()


def new_page(context: BrowserContext) -> Page:
    """A page on which a container that starts or stops just then ends no navigation.

    A machine that runs containers gets and loses network interfaces with them, and Chromium drops
    what it is loading whenever an address comes or goes; a person presses "reload".
    """
    page = context.new_page()
    go = page.goto

    def goto(url: str, **options: Any) -> Any:
        for _ in range(3):
            try:
                return go(url, **options)
            except Error as error:
                if "ERR_NETWORK_CHANGED" not in error.message:
                    raise
        return go(url, **options)

    page.goto = goto  # type: ignore[method-assign]
    return page


def picture(page: Page, name: str) -> None:
    if PICTURES is not None:
        PICTURES.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=PICTURES / f"{name}-{page.viewport_size['width']}.png", full_page=True)


def log_in(page: Page, lab: Lab, user: str) -> None:
    password = json.loads((lab.dir / "credentials.json").read_text())["password"]
    page.goto(f"{lab.url}/hub/login")
    page.get_by_label("Username").fill(user)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Sign in").click()
