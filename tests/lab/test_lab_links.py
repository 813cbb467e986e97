"""Where the pages' links lead: which server, course and page they keep."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import lab_journals as journals
import lab_pending
import pytest
import pytest_asyncio
from lab_browser import MARKS, expect, open_page
from lab_fakes import HUB
from lab_pending import pending_url, progress_of, render, run_pending
from lab_site import Site

from pytorch_spawner.core.journal import Event

pytestmark = MARKS
CPU_LINK = "Start without a GPU"
BUSY = {"stage": "failed", "code": "no-gpu-available", "message": "All GPUs are in use."}
NO_GPU: journals.Story = [*journals.hub_until("requested"), (0.2, "start", BUSY)]
# What a start was asked with, and what of it the next one is asked with.
ASKED = [
    ({}, ""),
    ({"share": "whole"}, ""),
    ({"course": "cnn"}, "&course=cnn"),
    ({"course": ["c&n"]}, "&course=c%26n"),
    ({"course": ""}, "&course="),
    ({"course": [""], "gpus": ["1"]}, "&course="),
    ({"course": []}, ""),
    ({"course": 7}, ""),
    (None, ""),
]


class BusyLab(Exception):
    """What the hub hands to its pages after a start that found no GPU."""

    jupyterhub_message = "All GPUs are in use."
    code = "no-gpu-available"


@pytest_asyncio.fixture(loop_scope="module")
async def pending() -> AsyncIterator[Site]:
    async for running in run_pending():
        yield running


def error_page() -> str:
    return render("error.html", exception=BusyLab(), message_html="<p>All GPUs are in use.</p>")


@pytest.mark.parametrize(("options", "course"), ASKED)
async def test_without_a_gpu_the_course_of_the_start_stays_also_none(
    pending, page, monkeypatch, options, course
):
    monkeypatch.setattr(lab_pending._Named, "user_options", options, raising=False)
    pending.hub.progress += progress_of(NO_GPU)
    pending.hub.is_over = True
    await page.goto(pending_url(pending))
    instead = page.get_by_role("button", name=CPU_LINK)
    await expect(instead).to_have_attribute("href", f"/hub/spawn/ana?share=none{course}")
    # Loaded again, it is the hub's page of a start that failed.
    spawner = SimpleNamespace(user_options=options)
    said = render(
        "not_running.html",
        no_spawner_check=True,
        failed=True,
        exception=BusyLab(),
        server_name="",
        spawn_url="/hub/spawn/ana",
        user=SimpleNamespace(name="ana", spawners={"": spawner}),
    )
    assert f'href="/hub/spawn/ana?share=none{course.replace("&", "&amp;")}"' in said


async def test_a_start_that_failed_still_leads_where_the_person_wanted(pending, page, monkeypatch):
    monkeypatch.setattr(lab_pending._Named, "user_options", {"course": ["cnn"]}, raising=False)
    pending.hub.progress += progress_of(NO_GPU)
    pending.hub.is_over = True
    await page.goto(pending_url(pending, "/thesis?next=%2Fservices%2Flab%2Fgo%2Fcnn%2Fa.ipynb"))
    await expect(page.get_by_role("button", name=CPU_LINK)).to_have_attribute(
        "href",
        "/hub/spawn/ana/thesis?share=none&course=cnn&next=%2Fservices%2Flab%2Fgo%2Fcnn%2Fa.ipynb",
    )
    await expect(page.get_by_role("button", name="Try again")).to_have_attribute(
        "href", "/hub/spawn/ana/thesis?next=%2Fservices%2Flab%2Fgo%2Fcnn%2Fa.ipynb"
    )


@pytest.mark.parametrize("course", ["", "cnn"])
async def test_the_servers_own_page_keeps_the_course_too(lab, page, course):
    request = {"image": "lab/base:1", "gpus": 1, "share": "whole", "course": course}
    start = lab.ledger.begin_start(HUB, "ana", "", request)
    for place, (at, kind, data) in enumerate(NO_GPU, 1):
        lab.ledger.journals[start.id].append(Event(place, at, kind, data))
    await open_page(lab, page)
    instead = page.get_by_role("button", name=CPU_LINK)
    address = f"/hub/spawn/ana?share=none&course={course}"
    await expect(instead).to_have_attribute("href", address)


@pytest.mark.parametrize(
    ("asked", "instead", "again"),
    [
        ("ana/thesis?share=whole", "ana/thesis?share=none", "ana/thesis?"),
        (
            "bo?gpus=1&course=cnn&next=%2Fuser%2Fbo%2Flab%2Ftree%2Fa.ipynb",
            "bo?share=none&course=cnn&next=%2Fuser%2Fbo%2Flab%2Ftree%2Fa.ipynb",
            "bo?next=%2Fuser%2Fbo%2Flab%2Ftree%2Fa.ipynb",
        ),
        ("ana?course=", "ana?share=none&course=", "ana?"),
    ],
)
async def test_a_refused_start_is_tried_again_for_the_server_it_was_for(
    lab, page, asked, instead, again
):
    root = lab.url.replace("/services/lab/", "/hub/spawn/")
    html = error_page()
    await page.route(
        "**/hub/spawn/**", lambda route: route.fulfill(body=html, content_type="text/html")
    )
    await page.goto(root + asked)
    for name, address in ((CPU_LINK, instead), ("Try again", again)):
        link = page.get_by_role("link", name=name)
        assert await link.evaluate("link => link.href") == root + address


async def test_my_server_is_mine_also_for_who_looks_after_the_lab(lab, page):
    owner: Any = SimpleNamespace(name="kim", all_spawners=lambda **_: [])
    default = SimpleNamespace(active=False)
    home = render("home.html", no_spawner_check=True, user=owner, default_server=default, url="/x")
    assert 'href="/services/lab/?mine">GPU, checks and warm-up of my server' in home
    lab.hub.browser_user_token = "kim-page"
    await open_page(lab, page, "servers/nobody/thesis")
    await page.get_by_role("button", name="Your server").click()
    await page.wait_for_url("**/services/lab/servers/kim/")
