"""A server that lost its GPU, restarted from its page: real hub, real proxy, real containers."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import log_in, picture
from tests.lab_driver import Lab, running_lab

pytestmark = [pytest.mark.docker, pytest.mark.browser, pytest.mark.slow]

LOST = {
    "code": "driver", "phase": "done", "level": "fail",
    "sentence": "Your server has lost its GPU: the host no longer lets this container use it.",
    "remedy": "Save your work.", "admin_remedy": "", "seconds": 0.1, "facts": {"restart": True},
}  # fmt: skip


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with running_lab(tmp_path_factory.mktemp("restart")) as running:
        yield running


def lose_gpu(lab: Lab, user: str) -> str:
    """Write into the journal what the agent says then; returns the id of the start."""
    ledger = lab.ledger()
    try:
        start = ledger.latest_start(lab.hub_id, user, "")
        assert start is not None
        ledger.append_events(start.id, [("check", LOST)])
        return start.id
    finally:
        ledger.close()


def is_checked(lab: Lab, user: str) -> bool:
    """Whether the agent has said what it found when the server started."""
    return any(event["data"].get("part") == "checks" for event in lab.events(user))


def test_one_press_and_a_yes_bring_the_same_server_back_with_a_gpu(lab: Lab, page: Page) -> None:
    user = f"eve{page.viewport_size['width']}"
    lab.start_server(user, {"gpus": 1, "share": "whole"})
    lab.exec(user, "sh", "-c", "echo kept > $HOME/kept.txt")
    log_in(page, lab, user, f"/services/lab/servers/{user}/")
    expect(page.get_by_role("button", name=re.compile("Open JupyterLab"))).to_be_visible()
    lab.wait_until(lambda: is_checked(lab, user), 120, "the agent's own checks are not over")
    old = lose_gpu(lab, user)
    page.get_by_role("button", name="Restart your server…").click()
    picture(page, "restart")
    page.get_by_role("button", name="Restart now").click()
    # The hub's pending page, then Lab: nothing else is asked.
    page.wait_for_url(re.compile(rf"/user/{user}/lab"), timeout=60_000)
    lab.wait_ready(user)
    ledger = lab.ledger()
    try:
        new = ledger.latest_start(lab.hub_id, user, "")
    finally:
        ledger.close()
    assert new is not None
    assert new.id != old
    assert (new.request["gpus"], new.request["share"]) == (1, "whole")
    held = [lease for lease in lab.leases() if lease.username == user]
    assert [(lease.start_id, len(lease.gpus)) for lease in held] == [(new.id, 1)]
    assert lab.exec(user, "sh", "-c", "cat $HOME/kept.txt") == "kept"
    lab.stop_server(user)
