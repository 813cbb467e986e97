"""The card "Memory" in Chromium: which notebook holds what, the question, what cannot be known.

Set LAB_TEST_SCREENSHOTS to a folder to keep a picture of each situation.
"""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import lab_journals as journals
import pytest
import pytest_asyncio
from lab_browser import MARKS, expect, go_on, new_page, open_page, shoot, tell
from lab_containers import IDLE, KERNEL, kernel, printed, put_containers
from lab_fakes import ENTER, GPU, HUB, FakeLease, MemoryLedger
from lab_pages import violations_of
from lab_site import Site, run_site

from pytorch_spawner.adapters.inside import NoAnswer
from pytorch_spawner.core.gpus import GpuUuid
from pytorch_spawner.core.metering import GpuProcess, Sample
from pytorch_spawner.core.placement import Holding

pytestmark = MARKS
UUID = GpuUuid(GPU["uuid"])
CV = kernel(KERNEL, "week-3/cv-03.ipynb", state="idle", idle_s=2400, pids=[82], uses_gpu=True)
NLP = kernel(IDLE, "nlp-01.ipynb", pids=[54, 60], uses_gpu=True)
TERMINAL = {"pid": 99, "name": "python3 train.py", "kind": "terminal", "path": "", "pids": [99],
            "memory_mib": 900, "uses_gpu": True}  # fmt: skip
LEFT = {"pid": 77, "name": "python3", "kind": "leftover", "path": "week-2/rnn.ipynb",
        "pids": [77], "memory_mib": 300, "uses_gpu": False}  # fmt: skip


@pytest_asyncio.fixture(loop_scope="module")
async def lab() -> AsyncIterator[Site]:
    async for running in run_site(MemoryLedger()):
        running.hub.browser_user_token = "ana-page"
        running.lab.kernels._pid_inside = lambda pid: pid - 1000
        running.lab.kernels._meter = measured(75_000)
        lease = FakeLease("l", HUB, "s", "ana", "", (Holding(UUID, 0, 1),), {}, 0.0)
        running.ledger.all_leases.append(lease)
        tell(running, journals.FINE, time.time() - 3600)
        yield running


def measured(used_mib: int) -> Any:
    """A meter that saw two notebooks and a program in a terminal on the GPU."""
    sizes = {1082: 61_440, 1054: 6000, 1060: 500, 1099: 2048}
    listed = tuple(GpuProcess(pid, "python3", mib, "ana", "") for pid, mib in sizes.items())
    return SimpleNamespace(latest={UUID: Sample(1.0, 5.0, used_mib)}, processes={UUID: listed})


def card_of(page: Any) -> Any:
    return page.get_by_role("region", name="Memory")


async def test_a_full_gpu_says_so_and_names_the_notebook_to_shut_down(lab, browser):
    containers = put_containers(lab)
    containers.said["ana/"] = printed(NLP, CV, others=[TERMINAL, LEFT])
    for width, theme in ((1280, "light"), (390, "dark")):
        async for page in new_page(browser, width, theme):
            await open_page(lab, page)
            card = card_of(page)
            await expect(card.get_by_role("status")).to_have_text(
                "Your GPU is nearly full: 73 GiB of 80 GiB in use. "
                "cv-03.ipynb holds 60 GiB of your GPU and has done nothing for 40 min."
            )
            rows = card.get_by_role("listitem")
            await expect(rows.nth(0)).to_contain_text("60 GiB of the GPU · 2.1 GiB of memory")
            await expect(rows.nth(0)).to_contain_text("idle for 40 min")
            await expect(rows.nth(1)).to_contain_text("6.3 GiB of the GPU")
            await expect(rows.nth(1)).to_contain_text("computing")
            await expect(rows.nth(2)).to_contain_text("in a terminal · process 99")
            await expect(rows.nth(2).get_by_text("kill 99")).to_be_visible()
            await expect(rows.nth(3)).to_contain_text("left over from week-2/rnn.ipynb")
            await expect(rows.nth(3)).to_contain_text("not on the GPU")
            # Above all that has not changed for an hour.
            gpu = page.get_by_role("region", name="GPU", exact=True)
            assert (await card.bounding_box())["y"] < (await gpu.bounding_box())["y"]
            assert await page.evaluate("document.documentElement.scrollWidth") <= width
            await shoot(page, f"memory-full-{width}-{theme}")
            assert await violations_of(page, "'.lab-memory-card'") == []


async def test_the_question_can_be_answered_no_by_key_and_the_focus_comes_back(lab, page):
    containers = put_containers(lab)
    containers.said["ana/"] = printed(NLP, CV)
    await open_page(lab, page)
    button = card_of(page).get_by_role("button", name="Shut down nlp-01.ipynb")
    await button.focus()
    await page.keyboard.press("Enter")
    question = page.get_by_role("dialog", name="Shut down nlp-01.ipynb?")
    await expect(question).to_contain_text("It is computing just now; that ends.")
    await expect(question.get_by_role("button", name="Keep it")).to_be_focused()
    await page.keyboard.press("Escape")
    await expect(question).to_have_count(0)
    await expect(button).to_be_focused()
    assert containers.stopped == []


async def test_what_cannot_be_shut_down_is_said_in_the_question(lab, page):
    put_containers(lab).said["ana/"] = printed(CV)
    await open_page(lab, page)
    await card_of(page).get_by_role("button", name="Shut down cv-03.ipynb").click()
    lab.lab.kernels.ask = lambda *_: '{"v": 1, "status": 500}'
    question = page.get_by_role("dialog")
    await question.get_by_role("button", name="Shut down", exact=True).click()
    await expect(question.get_by_role("alert")).to_contain_text("JupyterLab did not shut")
    await shoot(page, "memory-not-shut-down")
    await question.get_by_role("button", name="Keep it").click()
    await expect(question).to_have_count(0)


@pytest.mark.parametrize("presses", [1, 3])
async def test_a_refusal_is_read_however_often_escape_was_pressed_meanwhile(lab, page, presses):
    put_containers(lab).said["ana/"] = printed(CV)
    await open_page(lab, page)
    await card_of(page).get_by_role("button", name="Shut down cv-03.ipynb").click()
    is_pressed = threading.Event()

    def ask(*_: Any) -> str:
        assert is_pressed.wait(20)
        return '{"v": 1, "status": 500}'

    lab.lab.kernels.ask = ask
    question = page.get_by_role("dialog", name="Shut down cv-03.ipynb?")
    await question.get_by_role("button", name="Shut down", exact=True).click()
    await expect(question.get_by_role("button", name="Shutting down…")).to_be_disabled()
    for _ in range(presses):
        await page.keyboard.press("Escape")
    is_pressed.set()
    await expect(question.get_by_role("alert")).to_contain_text("JupyterLab did not shut")
    await question.get_by_role("button", name="Keep it").click()
    await expect(question).to_have_count(0)


async def test_the_question_stays_when_the_card_under_it_goes(lab, page):
    start = tell(lab, journals.FINE, time.time() - 3600)
    put_containers(lab).said["ana/"] = printed(CV)
    await open_page(lab, page)
    await card_of(page).get_by_role("button", name="Shut down cv-03.ipynb").click()
    question = page.get_by_role("dialog", name="Shut down cv-03.ipynb?")
    await expect(question).to_be_visible()
    go_on(lab, start, [(0.0, "start", {"stage": "stopped"})])
    await expect(card_of(page)).to_be_hidden()
    await expect(question).to_be_visible()
    await question.get_by_role("button", name="Keep it").click()
    await expect(question).to_have_count(0)


async def test_a_kernel_that_is_shut_down_leaves_the_list(lab, page):
    containers = put_containers(lab)
    containers.said["ana/"] = printed(NLP, CV)
    await open_page(lab, page)
    await card_of(page).get_by_role("button", name="Shut down cv-03.ipynb").click()

    def ask(user: str, server: str, arguments: Any) -> str:
        said = containers(user, server, arguments)
        if arguments:
            containers.said["ana/"] = printed(NLP)
        return said

    lab.lab.kernels.ask = ask
    await page.get_by_role("dialog").get_by_role("button", name="Shut down", exact=True).click()
    await expect(card_of(page).get_by_text("cv-03.ipynb")).to_have_count(0)
    await expect(card_of(page).get_by_role("button", name="Look again")).to_be_focused()
    assert containers.stopped == [f"ana/ {KERNEL}"]


async def test_nothing_open_and_nothing_known_are_two_sentences(lab, page):
    containers = put_containers(lab)
    containers.said["ana/"] = printed()
    lab.lab.kernels._meter = measured(900)
    await open_page(lab, page)
    said = card_of(page).get_by_role("status")
    await expect(said).to_have_text("No notebook is open.")
    containers.error = NoAnswer("The server did not answer in time. Try again.")
    lab.lab.kernels._looked.clear()
    await card_of(page).get_by_role("button", name="Look again").click()
    await expect(said).to_have_text("The server did not answer in time. Try again.")
    containers.error = None
    lab.lab.kernels._looked.clear()
    lab.lab.kernels._meter = SimpleNamespace(latest={}, processes={})
    containers.said["ana/"] = printed(CV)
    await card_of(page).get_by_role("button", name="Look again").click()
    await expect(said).to_contain_text("cv-03.ipynb uses your GPU (how much is unknown)")
    await expect(card_of(page).get_by_role("listitem")).to_contain_text("how much is unknown")
    await shoot(page, "memory-unknown")


async def test_a_page_that_nobody_looks_at_asks_nothing(lab, page):
    containers = put_containers(lab)
    containers.said["ana/"] = printed(CV)
    hide = (
        "Object.defineProperty(document, 'visibilityState', {get: () => window.seen ?? 'hidden'})"
    )
    await page.add_init_script(hide)
    await open_page(lab, page)
    await page.wait_for_timeout(2500)
    assert containers.asked == []
    await page.evaluate("window.seen = 'visible'")
    await expect(card_of(page).get_by_text("cv-03.ipynb").first).to_be_visible()
    assert len(containers.asked) == 1


async def test_whoever_may_only_look_at_the_lab_gets_no_card(lab, page):
    containers = put_containers(lab)
    lab.hub.browser_user_token = "kim-page"
    await open_page(lab, page)
    await expect(page.get_by_role("region", name="Checks")).to_be_visible()
    await page.wait_for_timeout(1500)
    await expect(card_of(page)).to_be_hidden()
    assert containers.asked == []


async def test_an_admin_reads_whose_notebook_it_is(lab, page):
    put_containers(lab).said["ana/"] = printed(CV)
    lab.hub.browser_user_token = lab.hub.add("admin", "adam", ENTER, "custom:lab:admin")
    await open_page(lab, page)
    await expect(card_of(page).get_by_role("status")).to_contain_text("of ana's GPU")


async def test_names_are_texts(lab, page):
    odd = "<img src=x onerror=window.hacked=1>.ipynb"
    left = {**LEFT, "name": odd, "path": odd}
    put_containers(lab).said["ana/"] = printed(kernel(path=odd), others=[left])
    await open_page(lab, page)
    await expect(card_of(page).get_by_text(odd).first).to_be_visible()
    assert await page.evaluate("window.hacked") is None
