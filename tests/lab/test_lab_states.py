"""What a student meets, in pictures: the states of the page at 1280 light and 390 dark pixels.

Each has one verdict, says it in its tone and in words, and nothing of it is wider than the screen.
Set LAB_TEST_SCREENSHOTS to a folder to keep the pictures.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

import lab_journals as journals
import pytest
from lab_browser import (
    MARKS,
    expect,
    go_on,
    new_page,
    open_page,
    shoot,
    tell,
    too_wide,
    verdict,
)
from lab_fakes import FakeWaiting
from lab_site import Site
from tornado.web import RequestHandler

from pytorch_spawner.core.tickets import Ticket

pytestmark = MARKS


LOST = journals.check(
    "driver",
    "fail",
    "Your server has lost its GPU: the host no longer lets this container use it.",
    remedy="Save your work, then stop and start your server: that brings the GPU back.",
    admin_remedy="systemd takes the devices of running containers away when it reloads. Give GPUs "
    "by CDI.",
    facts={"restart": True, "denied": ["/dev/nvidiactl"]},
)
WARM = [*journals.warmup(), *journals.samples(12, 30, 45, 62, 38)]
UP = journals.hub_until("lab")


@dataclass(frozen=True)
class State:
    """One state: its journal, and what has to be read in it.

    Attributes:
        story: The journal.
        verdict: The page's one sentence.
        tone: How it looks.
        said: Texts that are seen beside it.
        button: The first thing that one can do.
        unseen: Texts that are there for who asks, and folded.
    """

    story: journals.Story
    verdict: str
    tone: str
    said: tuple[str, ...]
    button: str
    unseen: tuple[str, ...] = ()


STATES = {
    "all-fine": State(
        [*UP, *journals.checks(), *WARM],
        "Your GPU is ready.", "ok",
        ("torch.compile is warm.", "NVIDIA H100 80GB HBM3", "15 fine"),
        "Open JupyterLab", ("PyTorch sees 1 GPU.",),
    ),
    "one-warning": State(
        [*UP, *journals.checks(shm=journals.SHM), *WARM],
        "Your GPU is ready.", "ok",
        ("1 note below; nothing that stops you.", "14 fine, 1 note",
         "Use num_workers=0 until it is larger.", "For your admin:"),
        "Open JupyterLab", ("PyTorch sees 1 GPU.",),
    ),
    "one-failure": State(
        [*UP, *journals.checks(driver=journals.DRIVER), *journals.samples(None)],
        "Your server is ready, but 1 check failed.", "warn",
        ("See below what to do.", "The driver 470.82 is too old for CUDA 12.8.",
         "Stop the server and start it with the image pytorch-2.1-cu118."),
        "Open JupyterLab", ("PyTorch sees 1 GPU.",),
    ),
    "cpu-only": State(
        [*journals.hub_until("lab", []), *journals.checks(), *journals.warmup(device="cpu")],
        "Your server is ready, without a GPU.", "ok",
        ("It computes on the CPU: fine for code and small models.", "No GPU",
         "To use a GPU, stop the server"),
        "Open JupyterLab",
    ),
    "queueing": State(
        journals.QUEUED,
        "You are 3rd in the queue.", "wait",
        ("All 8 GPUs are in use.", "Waiting for", "expected at"),
        "Leave, or start without a GPU…",
    ),
    "died": State(
        journals.DIED,
        "The container ran out of memory before JupyterLab answered.", "bad",
        ("Start it again; if it happens again, ask for more memory.", "Failed"),
        "Try again", ("MemoryError",),
    ),
    "gpu-lost": State(
        [*UP, *journals.checks(), *WARM, (300.0, *LOST)],
        "Your server has lost its GPU: the host no longer lets this container use it.", "bad",
        ("Files in the home directory are kept", "Save your work", "14 fine, 1 problem"),
        "Restart your server…",
    ),
}  # fmt: skip


@pytest.mark.parametrize("look", ["1280 light", "390 dark"])
@pytest.mark.parametrize("name", STATES)
async def test_each_state_has_its_verdict_and_its_button_and_fits(lab, browser, name, look):
    state = STATES[name]
    width, theme = look.split()
    start = tell(lab, state.story, time.time() - 20)
    if name == "queueing":
        ticket = Ticket(start.id, "ana", since=time.time() - 60)
        when = time.time() + 900
        lab.ledger.all_waiting = [FakeWaiting(ticket, 3, 4, when, "All 8 GPUs are in use.")]
    async for page in new_page(browser, int(width), theme):
        await open_page(lab, page)
        await expect(verdict(page)).to_have_text(state.verdict)
        await page.wait_for_timeout(300)
        assert await page.evaluate("document.querySelector('.lab-verdict').dataset.tone") == (
            state.tone
        )
        for words in state.said:
            await expect(page.get_by_text(words).first).to_be_visible()
        for words in state.unseen:
            await expect(page.get_by_text(words)).to_be_hidden()
        first = page.locator(".lab-primary").get_by_role("button").first
        await expect(first).to_have_text(re.compile(re.escape(state.button)))
        await expect(first).to_be_enabled()
        # Nothing was compiled yet, or ever: no log of it is offered.
        has_log = name not in ("queueing", "died")
        assert await page.get_by_role("button", name="Compile log").count() == has_log
        assert await too_wide(page) == []
        await shoot(page, f"state-{name}-{width}-{theme}")


# -- a restart --------------------------------------------------------------------------------


class HubServer(RequestHandler):
    """The hub's way to stop a server, which takes its time."""

    def initialize(self, told: list[str], left: list[int]) -> None:
        self.told, self.left = told, left

    def check_xsrf_cookie(self) -> None:
        return

    def delete(self, username: str) -> None:
        self.told.append(f"DELETE {username}")
        self.set_status(self.left[0] if self.left and self.left[0] >= 400 else 202)

    def get(self, username: str) -> None:
        self.told.append(f"GET {username}")
        waits = bool(self.left) and bool(self.left.pop())
        self.finish({"name": username, "servers": {"": {"pending": "stop"}} if waits else {}})


class Spawn(RequestHandler):
    """Where the hub starts a server."""

    def get(self) -> None:
        self.finish("<h1>The hub starts it</h1>")


def hub_of(lab: Site, *left: int) -> list[str]:
    """A hub that stops servers; returns what it was told."""
    told: list[str] = []
    shared = {"told": told, "left": [*left]}
    lab.app.add_handlers(
        r".*",
        [
            (r"/hub/api/users/([^/]+)/server", HubServer, shared),
            (r"/hub/api/users/([^/]+)", HubServer, shared),
            (r"/hub/spawn/.*", Spawn),
        ],
    )
    return told


async def test_a_restart_is_asked_for_once_stops_the_server_and_starts_it_as_it_was(lab, page):
    told = hub_of(lab, 1, 1)
    start = tell(lab, STATES["gpu-lost"].story)
    await open_page(lab, page)
    await page.get_by_role("button", name="Restart your server…").click()
    dialog = page.get_by_role("dialog", name="Restart your server?")
    await expect(dialog.get_by_text("Your files are kept.")).to_be_visible()
    await expect(dialog.get_by_role("button", name="Not now")).to_be_focused()
    await shoot(page, "restart-asked")
    await dialog.get_by_role("button", name="Not now").click()
    await expect(dialog).to_be_hidden()
    assert told == []
    await page.get_by_role("button", name="Restart your server…").click()
    await dialog.get_by_role("button", name="Restart now").click()
    await expect(dialog.get_by_role("button", name="Stopping your server…")).to_be_visible()
    lab.ledger.end_start(start.id, "stopped")
    await expect(page.get_by_role("heading", name="The hub starts it")).to_be_visible()
    assert told == ["DELETE ana", "GET ana", "GET ana", "GET ana"]
    assert page.url.endswith("/hub/spawn/ana?image=base&share=whole&course=")


async def test_the_page_asks_as_soon_as_its_stream_says_that_the_server_ended(lab, page):
    told = hub_of(lab, 0, 1)
    start = tell(lab, STATES["gpu-lost"].story)
    await open_page(lab, page)
    await page.get_by_role("button", name="Restart your server…").click()
    dialog = page.get_by_role("dialog", name="Restart your server?")
    await dialog.get_by_role("button", name="Restart now").click()
    # It shows that it goes on, and neither a second press nor Escape can disturb it.
    running = dialog.get_by_role("button", name=re.compile(r"Stopping your server… 1 s"))
    await expect(running).to_be_disabled()
    await expect(dialog.get_by_role("button", name="Not now")).to_be_disabled()
    await page.keyboard.press("Escape")
    await expect(dialog).to_be_visible()
    assert told == ["DELETE ana", "GET ana"], "nobody asks while the stream is there to say it"
    lab.ledger.end_start(start.id, "stopped")
    began = time.monotonic()
    await expect(page.get_by_role("heading", name="The hub starts it")).to_be_visible()
    assert time.monotonic() - began < 2.5
    assert told == ["DELETE ana", "GET ana", "GET ana"]


async def test_a_stop_that_takes_long_says_so_and_lets_one_go(lab, page):
    hub_of(lab, *[1] * 100)
    await page.clock.install()
    start = tell(lab, STATES["gpu-lost"].story)
    await open_page(lab, page)
    await page.get_by_role("button", name="Restart your server…").click()
    dialog = page.get_by_role("dialog", name="Restart your server?")
    await dialog.get_by_role("button", name="Restart now").click()
    for _ in range(16):
        await page.clock.run_for(5000)
        await page.wait_for_timeout(50)
    await expect(dialog.get_by_text("This takes longer than usual")).to_be_visible()
    await dialog.get_by_role("button", name="Close").click()
    await expect(dialog).to_be_hidden()
    # What was left behind goes on from the page, with the same choice.
    lab.ledger.end_start(start.id, "stopped")
    await page.clock.run_for(2000)
    await expect(verdict(page)).to_have_text("Your server is stopped.")
    again = page.get_by_role("button", name="Start it again")
    address = "/hub/spawn/ana?image=base&share=whole&course="
    await expect(again).to_have_attribute("href", address)
    anew = page.get_by_role("button", name="Choose anew…")
    await expect(anew).to_have_attribute("href", "/hub/spawn/ana")
    await again.click()
    await expect(page.get_by_role("heading", name="The hub starts it")).to_be_visible()


async def test_a_hub_that_refuses_is_a_sentence_and_one_can_try_again(lab, page):
    told = hub_of(lab, 503)
    tell(lab, STATES["gpu-lost"].story)
    await open_page(lab, page)
    await page.get_by_role("button", name="Restart your server…").click()
    dialog = page.get_by_role("dialog", name="Restart your server?")
    again = dialog.get_by_role("button", name="Restart now")
    await again.click()
    await expect(dialog.get_by_text("The hub does not stop it just now")).to_be_visible()
    await expect(again).to_be_enabled()
    assert told == ["DELETE ana"]
    await page.context.set_offline(True)
    await again.click()
    await expect(dialog.get_by_text("The lab service cannot be reached just now")).to_be_visible()


async def test_a_restart_of_what_another_tab_restarted_stops_nothing(lab):
    told = hub_of(lab)
    old = tell(lab, STATES["gpu-lost"].story)
    new = tell(lab, UP)
    for start, status in ((old.id, 409), ("", 202), (new.id, 202)):
        told.clear()
        answer = await lab.send("POST", "api/servers/ana//restart", {"start": start}, "ana-page")
        assert answer.status == status, answer.text
        assert ("DELETE ana" in told) == (status == 202)


async def test_somebody_elses_server_cannot_be_restarted_and_its_verdict_is_the_labs_own(lab, page):
    told = hub_of(lab)
    tell(lab, STATES["gpu-lost"].story)
    for token in ("kim-page", "bo-page", "ana-server", "admin-own"):
        answer = await lab.send("POST", "api/servers/ana//restart", {}, token)
        assert answer.status == 403, token
    assert told == []
    lab.hub.browser_user_token = "kim-page"
    await open_page(lab, page)
    await expect(verdict(page)).to_have_text("ana's server needs a restart.")
    await expect(page.get_by_role("button", name="Restart your server…")).to_have_count(0)


async def test_a_gpu_that_comes_back_takes_the_offer_back(lab, page):
    start = tell(lab, STATES["gpu-lost"].story)
    await open_page(lab, page)
    await expect(page.get_by_role("button", name="Restart your server…")).to_be_visible()
    go_on(lab, start, [(400.0, *journals.check("driver", sentence="The driver answers."))])
    await expect(verdict(page)).to_have_text("Your GPU is ready.")
    await expect(page.get_by_role("button", name="Restart your server…")).to_have_count(0)
