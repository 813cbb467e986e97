"""An admin, a student who never logged in, and a real hub: a GPU is pinned, used and taken back."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import log_in, picture
from tests.lab_driver import Lab, running_lab

pytestmark = [pytest.mark.docker, pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    traits = {"PyTorchSpawner.on_busy": "queue"}
    with running_lab(tmp_path_factory.mktemp("admin"), gpus=2, traits=traits) as running:
        yield running


@pytest.fixture
def admin(lab: Lab, page: Page) -> Page:
    """The admin's browser, on the front page of the lab; its GPUs are known without any server."""
    log_in(page, lab, "admin", "/hub/home")
    page.goto(f"{lab.url}/services/lab/")
    expect(page.get_by_role("table", name="GPUs")).to_be_visible()
    return page


@pytest.fixture
def student(chromium: Browser) -> Iterator[Page]:
    context = chromium.new_context(viewport={"width": 1280, "height": 844})
    context.set_default_timeout(30_000)
    yield context.new_page()
    context.close()


def count_clicks(page: Page) -> None:
    """Count what the hands do: pointer clicks, and fields that are typed into."""
    page.evaluate("""() => {
      window.did = {clicks: 0, fields: new Set()};
      addEventListener("pointerdown", () => (window.did.clicks += 1), true);
      addEventListener("input", (event) => window.did.fields.add(event.target), true);
    }""")


def test_from_the_front_page_to_a_gpu_of_ones_own(lab: Lab, admin: Page, student: Page) -> None:
    width = admin.viewport_size["width"]
    zoe = f"zoe{width}"
    for user in [row["name"] for row in lab.api("GET", "users").json()]:
        if lab.server(user) is not None:
            lab.stop_server(user)
    count_clicks(admin)
    began = time.monotonic()
    admin.get_by_role("button", name="Pin GPU 0").click()
    panel = admin.get_by_role("dialog")
    panel.get_by_role("combobox").or_(panel.get_by_role("textbox")).first.fill(zoe)
    expect(panel).to_contain_text(f"{zoe}: GPU 0")
    expect(panel).to_contain_text(f"does not know {zoe} yet")
    picture(admin, "8-pin")
    panel.get_by_role("button", name="Save").click()
    expect(panel).to_be_hidden()
    took_s = time.monotonic() - began
    did = admin.evaluate("({clicks: did.clicks, fields: did.fields.size})")
    # Clicks on Pin and on Save, and one field (typing it may click into it).
    assert (did["clicks"], did["fields"]) == (2, 1), f"{did} in {took_s:.1f} s"
    assert took_s < 15
    (grant,) = [one for one in lab.ledger().grants(lab.hub_id) if one.subject == zoe]
    expect(admin.get_by_role("table", name="GPUs")).to_contain_text(zoe)

    # Nobody else gets it, though it would be the first to be given; zoe does at the first login.
    other = f"bo{width}"
    lab.add_users(other)
    lab.start_server(other)
    log_in(student, lab, zoe)
    student.wait_for_url(re.compile(rf"/(user|servers)/{zoe}/"), timeout=60_000)
    held = {lease.username: lease.gpus for lease in lab.leases()}
    assert held[zoe] == grant.gpus
    assert held[other] != grant.gpus
    row = admin.get_by_role("row").filter(has_text="GPU 0")
    expect(row.get_by_role("link", name=zoe)).to_be_visible()
    picture(admin, "9-gpus-in-use")

    # The admin takes it back, with a word to the student.
    student.goto(f"{lab.url}/services/lab/servers/{zoe}/")
    row.get_by_role("button", name="Actions for GPU 0").click()
    admin.get_by_role("menuitem", name=re.compile("Stop")).first.click()
    panel = admin.get_by_role("dialog")
    panel.get_by_role("textbox").first.fill("Maintenance at noon.")
    panel.get_by_role("button", name=re.compile("Stop")).click()
    expect(student.get_by_role("heading", level=1)).to_have_text("Your server is stopped.")
    lab.wait_until(lambda: lab.server(zoe) is None, 20, "zoe's server runs on")
    expect(row.get_by_role("link", name=zoe)).to_be_hidden()
    journal = lab.ledger().read_events(lab.ledger().latest_start(lab.hub_id, zoe, "").id)
    said = [event.data.get("message", "") for event in journal]
    assert "An admin stops this server. Maintenance at noon." in said

    # What was decided can be taken back, line by line.
    admin.goto(f"{lab.url}/services/lab/log")
    line = admin.get_by_role("row").filter(has_text=f"Added the grant {grant.id}")
    line.get_by_role("button", name=re.compile("Undo")).click()
    admin.get_by_role("alertdialog").get_by_role("button", name="Undo it").click()
    lab.wait_until(
        lambda: grant.id not in [one.id for one in lab.ledger().grants(lab.hub_id)],
        10,
        "the grant is still there",
    )
    lab.stop_server(other)


def test_a_student_is_shown_the_door_and_no_admins_page(lab: Lab, student: Page) -> None:
    log_in(student, lab, "eve", "/services/lab/gpus")
    for page in ("gpus", "grants", "queue", "usage", "log"):
        answer = student.goto(f"{lab.url}/services/lab/{page}")
        assert answer is not None
        assert answer.status == 403
        expect(student.get_by_text("This page is for the lab's admins.")).to_be_visible()
    answer = student.request.get(f"{lab.url}/services/lab/api/people")
    assert answer.status == 403
