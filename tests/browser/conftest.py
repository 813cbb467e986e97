"""Chromium, a page in two sizes, the login, pictures."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest
from playwright.sync_api import Browser, Error, Page, sync_playwright

from tests.lab_driver import Lab
from tests.quiet_chromium import quiet

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


_LOST = pytest.StashKey[list[str]]()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    executable = quiet(str(shutil.which("chromium")), tmp_path_factory.mktemp("chromium"))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=_FLAGS)
        yield browser
        browser.close()


@pytest.fixture(params=[(1280, "light"), (390, "dark")], ids=lambda p: f"{p[0]} px {p[1]}")
def page(chromium: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    width, scheme = request.param
    context = chromium.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
    context.set_default_timeout(30_000)
    page = context.new_page()
    lost = request.node.stash[_LOST] = []
    page.on("requestfailed", lambda asked: lost.append(f"{asked.url}: {asked.failure}"))
    page.on("console", lambda said: lost.append(said.text) if said.type == "error" else None)
    yield page
    context.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """A failed test tells what the browser did not get, and which question stands in the way."""
    report = yield
    page = getattr(item, "funcargs", {}).get("page")
    if report.failed and _LOST in item.stash and isinstance(page, Page):
        said = [*item.stash[_LOST][-20:], page.url]
        with contextlib.suppress(Error):  # the page may be what has failed
            said += page.locator("dialog").all_inner_texts()
        report.sections.append(("the browser", "\n".join(said)))
    return report


def picture(page: Page, name: str) -> None:
    if PICTURES is not None:
        PICTURES.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=PICTURES / f"{name}-{page.viewport_size['width']}.png", full_page=True)


def log_in(page: Page, lab: Lab, user: str, then: str = "") -> None:
    """Log in as a person does, and be there.

    Args:
        page: The browser's.
        lab: Where.
        user: Who.
        then: Path of the page that the person came for, which the hub leads to; "" for the person's
            server, which the hub then starts. To go elsewhere while that starts is a race: its page
            opens JupyterLab by itself.
    """
    password = json.loads((lab.dir / "credentials.json").read_text())["password"]
    page.goto(f"{lab.url}/hub/login" + (f"?{urlencode({'next': then})}" if then else ""))
    page.get_by_label("Username").fill(user)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(lambda url: urlsplit(url).path != "/hub/login", wait_until="commit")
