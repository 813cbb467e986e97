"""The main job in a real browser: log in, watch the start, open JupyterLab, run a cell."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import log_in, picture
from tests.lab_driver import Lab, running_lab

pytestmark = [pytest.mark.docker, pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    traits = {"PyTorchSpawner.warmup": True, "PyTorchSpawner.warmup_models": ["mlp"]}
    with running_lab(tmp_path_factory.mktemp("browser"), traits=traits) as running:
        yield running


def test_a_student_logs_in_and_runs_a_cell(lab: Lab, page: Page) -> None:
    width = page.viewport_size["width"]
    user = f"ana{width}"
    troubles: list[str] = []
    page.on("pageerror", lambda error: troubles.append(str(error)))
    log_in(page, lab, user)
    # Pending and landing are one page to the eye; a fast machine may be past the first already.
    page.wait_for_url(re.compile(r"/hub/spawn-pending/|/services/lab/servers/|/user/"))
    picture(page, "1-pending")
    # The warm-up has not run yet, so the start ends on the landing page and not in Lab.
    page.wait_for_url(re.compile(r"/services/lab/servers/"), timeout=60_000)
    open_lab = page.get_by_role("button", name=re.compile("Open JupyterLab"))
    expect(open_lab).to_be_visible()
    expect(open_lab).to_have_attribute("href", re.compile(rf"/user/{user}/lab"))
    picture(page, "2-landing")
    page.reload()
    expect(page.get_by_text("Test GPU").first).to_be_visible()
    # The agent lets JupyterLab begin first.
    lab.wait_until(lambda: len(lab.events(user)) > 10, 30, "the journal is not written")
    lab.wait_until(
        lambda: any(
            e["kind"] == "done" and e["data"].get("part") == "warmup" for e in lab.events(user)
        ),
        240,
        "the warm-up did not end",
    )
    page.reload()  # a page opened late shows the whole journal
    expect(open_lab).to_be_visible()
    expect(page.get_by_text(re.compile(r"cold", re.IGNORECASE)).first).to_be_visible()
    picture(page, "3-landing-done")
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "it scrolls sideways"
    open_lab.click()
    page.wait_for_url(re.compile(rf"/user/{user}/lab"))
    page.goto(f"{lab.url}/user/{user}/lab?reset")
    lab.exec(user, "python3", "-c", _NOTEBOOK)
    page.goto(f"{lab.url}/user/{user}/lab/tree/cell.ipynb")
    cell = page.locator(".jp-CodeCell").first
    expect(cell).to_be_visible(timeout=60_000)
    prompt = page.locator(".jp-InputPrompt").first
    for _ in range(30):
        # The kernel's indicator says idle before cells are accepted; the first press may be lost.
        cell.click()
        page.keyboard.press("Shift+Enter")
        page.wait_for_timeout(1000)
        if re.search(r"\[\d+\]", prompt.inner_text()):
            break
    expect(page.get_by_text("CELL-RAN 6.0")).to_be_visible(timeout=60_000)
    picture(page, "4-cell")
    assert troubles == []
    lab.stop_server(user)


_NOTEBOOK = """
import json, pathlib
cell = {"cell_type": "code", "id": "a", "execution_count": None, "metadata": {}, "outputs": [],
        "source": "import torch\\nprint('CELL-RAN', float(torch.ones(2, 3).sum()))"}
pathlib.Path.home().joinpath("cell.ipynb").write_text(json.dumps({
    "nbformat": 4, "nbformat_minor": 5, "cells": [cell],
    "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3"}}}))
"""


def test_a_busy_lab_tells_the_student_at_once(lab: Lab, page: Page) -> None:
    lab.start_server("bo")
    lab.start_server("eve")
    log_in(page, lab, f"late{page.viewport_size['width']}")
    expect(
        page.get_by_text(re.compile("All GPUs that you may use are in use")).first
    ).to_be_visible()
    picture(page, "5-busy")
    page.get_by_role("link", name="Start without a GPU").click()
    late = f"late{page.viewport_size['width']}"
    lab.wait_ready(late, timeout_s=30)
    assert all(lease.username != late for lease in lab.leases())
    lab.stop_server(late)
    lab.stop_server("bo")
    lab.stop_server("eve")
