"""Fixtures: a service for each test, once on the fake ledger and once on the real one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from lab_fakes import MemoryLedger
from lab_site import Site, run_site


@pytest.fixture(params=["memory", "sqlite"])
def ledger(request: pytest.FixtureRequest, tmp_path: Any) -> Any:
    if request.param == "memory":
        return MemoryLedger()
    store = pytest.importorskip("pytorch_spawner.ledger.store")
    return store.Ledger.open(f"sqlite:///{tmp_path}/ledger.sqlite")


@pytest_asyncio.fixture
async def site(ledger: Any) -> AsyncIterator[Site]:
    async for running in run_site(ledger):
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def lab() -> AsyncIterator[Site]:
    """A service whose browser is ana's, a student."""
    async for running in run_site(MemoryLedger()):
        running.hub.browser_user_token = "ana-page"
        yield running


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def browser() -> AsyncIterator[Any]:
    """Chromium, one for each file."""
    from lab_browser import run_browser  # skips where there is no Playwright

    async for running in run_browser():
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def page(browser: Any) -> AsyncIterator[Any]:
    """A tab at 1280 pixels, light."""
    from lab_browser import new_page

    async for tab in new_page(browser):
        yield tab
