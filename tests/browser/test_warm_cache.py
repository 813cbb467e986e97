"""What a student sees of a warm cache and of a standby kernel, through the real path."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import log_in, picture
from tests.kernel_client import Server
from tests.lab_driver import Lab, running_lab
from tests.spawner.test_warm_caches import build, model, suite

pytestmark = [pytest.mark.docker, pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(400)]

_STANDBY_WITHIN_S = 60.0


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    traits = {"PyTorchSpawner.warmup": True, "PyTorchSpawner.warmup_models": ["mlp"]}
    with running_lab(tmp_path_factory.mktemp("warm"), traits=traits) as running:
        cache = build(running, suite(model(16)))
        assert cache.state == "published", f"{cache.message}\n{cache.log}"
        yield running


def test_with_a_warm_cache_a_student_need_not_wait_for_a_warm_up(lab: Lab, page: Page) -> None:
    user = f"ana{page.viewport_size['width']}"
    log_in(page, lab, user)
    # Nothing is left to wait for, so the start ends in Lab and not on the landing page.
    page.wait_for_url(re.compile(rf"/user/{user}/lab"), timeout=60_000)
    page.goto(f"{lab.url}/services/lab/servers/{user}")
    card = page.get_by_role("region", name="Warm-up")
    expect(card.get_by_text("from the warm cache")).to_be_visible()
    expect(card.get_by_text(re.compile(r"Compiled by the lab beforehand"))).to_be_visible()
    picture(page, "warm-cache")
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
    lab.stop_server(user)


def test_import_torch_in_a_new_notebook_takes_a_tenth_of_a_second_at_most(lab: Lab) -> None:
    lab.start_server("kim")
    # An ordinary kernel has imported nothing of it.
    ask = "import sys; 'torch' in sys.modules"

    async def first_imports() -> list[float]:
        found: list[float] = []
        ends_at = time.monotonic() + _STANDBY_WITHIN_S
        async with Server(lab.url, "kim", lab.user_token("kim")) as server:
            while len(found) < 3:
                assert time.monotonic() < ends_at, f"only {found} from standby kernels"
                async with server.open_kernel() as kernel:
                    is_standby = (await kernel.execute(ask)).text.strip() == "True"
                    ran = await kernel.execute("import torch; print(torch.ones(2).sum())")
                    assert ran.status == "ok", ran.error
                    if is_standby:
                        found.append(ran.ended - ran.began)
                await asyncio.sleep(2)
        return found

    # In a thread: the browser's own event loop runs in this one.
    with ThreadPoolExecutor(1) as thread:
        seconds = thread.submit(lambda: asyncio.run(first_imports())).result()
    assert sorted(seconds)[1] <= 0.1, seconds
    lab.stop_server("kim")
