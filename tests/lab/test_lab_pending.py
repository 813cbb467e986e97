"""The hub's pending page in Chromium, drawn from the hub's own progress stream."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from typing import Any

import lab_journals as journals
import pytest
import pytest_asyncio
from jinja2 import ChoiceLoader, Environment, FileSystemLoader, PrefixLoader
from jupyterhub._data import DATA_FILES_PATH
from lab_browser import MARKS, expect, new_page, run_browser, shoot, tell, verdict
from lab_fakes import MemoryLedger
from lab_site import Site, run_site
from tornado.web import RequestHandler

from pytorch_spawner.core.journal import Event
from pytorch_spawner.lab.paths import hub_templates_dir

pytestmark = MARKS


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def browser() -> AsyncIterator[Any]:
    async for running in run_browser():
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def page(browser: Any) -> AsyncIterator[Any]:
    async for tab in new_page(browser):
        yield tab


class Pending(RequestHandler):
    """The pending page as the hub renders it, and the hub's progress stream, scripted."""

    def initialize(self, hub: Any) -> None:
        self.hub = hub

    def get(self, username: str, servername: str = "") -> None:
        if self.hub.is_ready:
            self.finish("<h1>JupyterLab</h1>")
            return
        self.set_header("Content-Security-Policy", "frame-ancestors 'none'")
        env = Environment(
            autoescape=True,
            loader=ChoiceLoader(
                [
                    PrefixLoader({"templates": FileSystemLoader(f"{DATA_FILES_PATH}/templates")}),
                    FileSystemLoader([hub_templates_dir(), f"{DATA_FILES_PATH}/templates"]),
                ]
            ),
        )
        self.finish(
            env.get_template("spawn_pending.html").render(
                user=_User(username),
                spawner=_Named(servername),
                no_spawner_check=True,
                progress_url="/hub/api/progress?_xsrf=x",
                base_url="/hub/",
                prefix="/",
                xsrf="the-xsrf",
                xsrf_token="the-xsrf",
                static_url=lambda path, include_version=True: f"/hub/static/{path}",
                parsed_scopes={},
                services=[],
                logout_url="/hub/logout",
            )
        )


class _Named:
    def __init__(self, name: str) -> None:
        self.name = name


class _User(_Named):
    json_escaped_name = "ana"

    def server_url(self, name: str) -> str:
        return f"/user/{self.name}/{name}"


class Progress(RequestHandler):
    def initialize(self, hub: Any) -> None:
        self.hub = hub

    async def get(self) -> None:
        self.set_header("Content-Type", "text/event-stream")
        sent = 0
        while sent < len(self.hub.progress) or not self.hub.is_over:
            for message in self.hub.progress[sent:]:
                sent += 1
                self.write(f"data: {json.dumps(message)}\n\n")
            await self.flush()
            await asyncio.sleep(0.05)


class Delete(RequestHandler):
    def initialize(self, hub: Any) -> None:
        self.hub = hub

    async def delete(self, path: str) -> None:
        # As JupyterHub 6.1.1 does: a start that is being cancelled is "ready" for a second.
        self.hub.progress.append({"progress": 100, "ready": True, "message": "Server ready"})
        await asyncio.sleep(0.5)
        self.hub.posted.append((path, self.get_query_argument("_xsrf")))
        self.set_status(204)


@pytest_asyncio.fixture(loop_scope="module")
async def pending() -> AsyncIterator[Site]:
    async for running in run_site(MemoryLedger()):
        hub = running.hub
        hub.browser_user_token = "ana-page"
        hub.progress, hub.is_over, hub.is_ready = [], False, False
        shared = {"hub": hub}
        running.app.add_handlers(
            r".*",
            [
                (r"/hub/spawn-pending/([^/]+)", Pending, shared),
                (r"/hub/spawn-pending/([^/]+)/([^/]+)", Pending, shared),
                (r"/hub/api/progress", Progress, shared),
                (r"/hub/api/users/(.*)", Delete, shared),
            ],
        )
        yield running
        hub.is_over = True


def progress_of(story: journals.Story) -> list[dict[str, Any]]:
    began = time.time() - story[-1][0]
    return [
        {
            "progress": 10,
            "message": data.get("message", kind),
            "lab": Event(place, began + after_s, kind, data).as_json(),
        }
        for place, (after_s, kind, data) in enumerate(story, 1)
    ]


def pending_url(site: Site, more: str = "") -> str:
    return site.url.replace("/services/lab/", f"/hub/spawn-pending/ana{more}")


async def test_the_pending_page_looks_like_the_landing_page(pending, page):
    pending.hub.progress += [{"progress": 0, "message": "Server requested"}]
    pending.hub.progress += progress_of(journals.hub_until("container"))
    await page.goto(pending_url(pending))
    await expect(verdict(page)).to_have_text("Your server is starting.")
    await expect(page.get_by_text("NVIDIA H100 80GB HBM3").first).to_be_visible()
    await expect(page.get_by_text("Container", exact=True)).to_be_visible()
    await shoot(page, "pending")


async def test_ready_with_a_warm_up_under_way_goes_to_the_landing_page(pending, page):
    pending.hub.progress += progress_of([*journals.hub_until("container"), *journals.warmup(1)])
    tell(pending, journals.WARMING)
    await page.goto(pending_url(pending, "?next=%2Fhub%2Fuser%2Fana%2F"))
    await expect(
        page.get_by_text("warming up", exact=False).or_(verdict(page)).first
    ).to_be_visible()
    pending.hub.progress.append({"progress": 100, "ready": True, "message": "Server ready"})
    await page.wait_for_url(re.compile("/services/lab/servers/ana/$"))
    await expect(verdict(page)).to_have_text("Your GPU is ready.")


@pytest.mark.parametrize(
    ("story", "more"),
    [
        (journals.hub_until("container"), ""),
        (
            [*journals.hub_until("container"), *journals.warmup(1)],
            "?next=%2Fuser%2Fana%2Flab%2Ftree%2Fa.ipynb",
        ),
    ],
    ids=["no warm-up", "a notebook was wanted"],
)
async def test_ready_otherwise_goes_where_the_person_wanted(pending, page, story, more):
    pending.hub.progress += progress_of(story)
    await page.goto(pending_url(pending, more))
    await expect(verdict(page)).to_have_text("Your server is starting.")
    pending.hub.is_ready = True
    pending.hub.progress.append({"progress": 100, "ready": True, "message": "Server ready"})
    await expect(verdict(page)).to_have_text("JupyterLab")
    assert "spawn-pending" in page.url


async def test_a_start_that_fails_says_why_and_offers_another(pending, page):
    pending.hub.progress += progress_of(journals.DIED)
    pending.hub.progress.append({"progress": 100, "failed": True, "message": "Spawn failed: it"})
    pending.hub.is_over = True
    await page.goto(pending_url(pending))
    await expect(verdict(page)).to_contain_text("out of memory")
    again = page.get_by_role("button", name="Try again")
    await expect(again).to_have_attribute("href", "/hub/spawn/ana")
    await page.get_by_text("Last 5 lines").click()
    await expect(page.get_by_text("MemoryError")).to_be_visible()
    assert await page.evaluate("window.hacked") is None
    await shoot(page, "pending-failed")


async def test_cancel_stops_the_very_server(pending, page):
    pending.hub.progress += progress_of(journals.STARTING)
    await page.goto(pending_url(pending, "/thesis"))
    await page.get_by_role("button", name="Cancel the start").click()
    await expect(verdict(page)).to_have_text("The start was cancelled.")
    assert pending.hub.posted == [("ana/servers/thesis", "the-xsrf")]


async def test_without_the_service_the_plain_messages_are_shown(pending, page):
    await page.route("**/services/lab/static/*.js", lambda route: route.abort())
    pending.hub.progress += [{"progress": 5, "message": f"Choosing {journals.BAD}"}]
    await page.goto(pending_url(pending))
    await expect(page.get_by_text("Choosing <img")).to_be_visible()
    pending.hub.progress += [{"failed": True, "message": "No GPU is free."}]
    await expect(page.get_by_text("No GPU is free.")).to_be_visible()
    await expect(page.get_by_role("button", name="Try again")).to_be_visible()
    await shoot(page, "pending-plain")
