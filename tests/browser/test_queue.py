"""Two people and one GPU, in a real browser, with a real hub: waiting, or going without."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.conftest import log_in, picture
from tests.lab_driver import Lab, running_lab

pytestmark = [pytest.mark.docker, pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    traits = {"PyTorchSpawner.on_busy": "queue"}
    with running_lab(tmp_path_factory.mktemp("queue"), gpus=1, traits=traits) as lab:
        yield lab


@pytest.fixture
def lab(running: Lab) -> Iterator[Lab]:
    """A lab with one GPU, which bo holds."""
    running.add_users("bo")
    if running.server("bo") is None:
        running.start_server("bo")
    yield running
    for user in running.api("GET", "users").json():
        if user["name"] != "bo" and running.server(user["name"]) is not None:
            running.stop_server(user["name"])


def verdict(page: Page) -> Locator:
    return page.get_by_role("heading", level=1)


def test_a_student_waits_goes_without_a_gpu_and_another_is_served(lab: Lab, page: Page) -> None:
    width = page.viewport_size["width"]
    ana, eve = f"ana{width}", f"eve{width}"
    lab.add_users(eve)
    log_in(page, lab, ana)
    expect(verdict(page)).to_have_text("You are 1st in the queue.")
    expect(page.locator(".lab-detail", has_text="Nobody is ahead of you")).to_be_visible()
    lab.spawn(eve)
    lab.wait_until(lambda: len(lab.ledger().queue(lab.hub_id)) == 2, 20, "eve does not wait")
    picture(page, "6-queue")
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "it scrolls sideways"

    # The service's page of the same server knows the place, too.
    page.goto(f"{lab.url}/services/lab/servers/{ana}/")
    expect(verdict(page)).to_have_text("You are 1st in the queue.")
    page.get_by_role("button", name="Leave, or start without a GPU…").click()

    page.get_by_role("button", name="Start now without a GPU").click()
    # The page itself leaves, waits and starts: it must not be left before it has.
    page.wait_for_url(re.compile(rf"/user/{ana}/"), timeout=60_000)
    assert [lease.username for lease in lab.leases()] == ["bo"]
    page.goto(f"{lab.url}/services/lab/servers/{ana}/")
    expect(verdict(page)).to_have_text("Your server is ready, without a GPU.")

    lab.stop_server("bo")
    lab.wait_ready(eve, timeout_s=60)
    assert [lease.username for lease in lab.leases()] == [eve]


def test_who_left_the_queue_can_still_go_without_a_gpu(lab: Lab, page: Page) -> None:
    user = f"kim{page.viewport_size['width']}"
    log_in(page, lab, user)
    expect(verdict(page)).to_have_text("You are 1st in the queue.")
    page.get_by_role("button", name="Leave the queue").click()
    expect(verdict(page)).to_have_text("You left the queue.")
    assert lab.ledger().queue(lab.hub_id) == ()
    picture(page, "7-left")
    page.get_by_role("button", name="Start now without a GPU").click()
    page.wait_for_url(re.compile(rf"/user/{user}/"), timeout=60_000)
    assert [lease.username for lease in lab.leases()] == ["bo"]
