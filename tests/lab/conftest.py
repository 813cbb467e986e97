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
