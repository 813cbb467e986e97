"""An instructor, a student, a real hub, a real git server: from an empty page to a notebook."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import log_in, picture
from tests.git_server import GitServer, commit
from tests.lab_driver import Lab, running_lab

pytestmark = [pytest.mark.docker, pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(300)]

NOTEBOOK = json.dumps(
    {
        "cells": [
            {
                "cell_type": "code", "execution_count": None, "id": "a", "metadata": {},
                "outputs": [], "source": "print(6 * 7)",
            }
        ],
        "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
)  # fmt: skip
MANIFEST = """\
name: {name}
title: {title}
source: {{git: "{url}"}}
request: {{gpus: 0}}
members: {{users: [{student}]}}
smoke: {{notebooks: [week 1/lesson.ipynb], deadline_s: 60}}
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with running_lab(tmp_path_factory.mktemp("lab")) as running:
        yield running


@pytest.fixture(scope="module")
def forge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitServer]:
    with GitServer(tmp_path_factory.mktemp("forge")) as server:
        commit(server.make("cv.git"), {"week 1/lesson.ipynb": NOTEBOOK, "notes.md": "one\n"})
        yield server


@pytest.fixture
def student(chromium: Browser) -> Iterator[Page]:
    context = chromium.new_context(viewport={"width": 1280, "height": 844})
    context.set_default_timeout(60_000)
    yield context.new_page()
    context.close()


def test_from_an_empty_page_to_a_students_open_notebook(
    lab: Lab, forge: GitServer, page: Page, student: Page
) -> None:
    width = page.viewport_size["width"]
    name, title, ana = f"cv{width}", f"Computer vision {width}", f"ana{width}"
    log_in(page, lab, "instructor", "/services/lab/courses")
    page.get_by_role("button", name="Add a course…").first.click()
    panel = page.get_by_role("dialog")
    panel.get_by_label("Title").fill(title)
    panel.get_by_role("button", name="Go on in course.yaml…").click()
    said = MANIFEST.format(name=name, title=title, url=forge.url("cv.git"), student=ana)
    panel.get_by_label("course.yaml").fill(said)
    panel.get_by_role("button", name="Add", exact=True).click()

    card = page.get_by_role("article", name=title, exact=True)
    card.get_by_role("button", name=re.compile("^Preload")).click()
    steps = card.get_by_role("list", name="Steps of the preload").get_by_role("listitem")
    expect(steps.nth(3)).to_contain_text("1 of 1 run on the CPU", timeout=90_000)
    expect(card).to_contain_text("week 1/lesson.ipynb")
    picture(page, "course-preloaded")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    course = lab.ledger().course(lab.hub_id, name)
    lab.wait_until(lambda: lab.ledger().course(lab.hub_id, name).served, 20, "not published")

    # As a student: a server of its own, in a new tab.
    with page.context.expect_page() as opened:
        card.get_by_role("link", name=re.compile("^Try as a student")).click()
    tried = opened.value
    tried.wait_for_url(re.compile(rf"/user/instructor/try-{name}/|/services/lab/"), timeout=60_000)
    lab.wait_until(lambda: lab.server("instructor", f"try-{name}"), 30, "nothing to try")
    lab.wait_ready("instructor", f"try-{name}")
    inside = f"/home/lab/{name}"
    lab.wait_until(
        lambda: (
            lab.container("instructor", f"try-{name}").exec_run(["test", "-d", inside]).exit_code
            == 0
        ),
        30,
        "it has no notebooks",
    )
    tried.close()
    lab.stop_server("instructor", f"try-{name}")

    # The student follows the link that the instructor sent.
    link = f"/services/lab/go/{name}/week 1/lesson.ipynb"
    log_in(student, lab, ana, link)
    student.wait_for_url(re.compile(rf"/user/{ana}/lab/.*lesson\.ipynb"), timeout=90_000)
    expect(student.get_by_role("tab", name=re.compile("lesson.ipynb")).first).to_be_visible()
    picture(student, f"course-notebook-{width}")
    assert course is not None

    # And the instructor sees who has what.
    page.reload()
    card.get_by_role("button", name=re.compile("^Students")).first.click()
    row = page.get_by_role("table", name=f"Students of {title}").get_by_role("row", name=ana)
    expect(row).to_contain_text("current")
    picture(page, "course-students")
    lab.stop_server(ana)


def test_who_is_no_member_is_told_whom_to_ask(lab: Lab, page: Page) -> None:
    log_in(page, lab, "eve", f"/services/lab/go/cv{page.viewport_size['width']}/notes.md")
    expect(page.get_by_role("main")).to_contain_text("instructor")
    assert "/user/" not in page.url
