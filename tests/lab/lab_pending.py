"""The hub's side of the pending page: the page itself, its progress stream, the API it uses."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import lab_journals as journals
from jinja2 import ChoiceLoader, Environment, FileSystemLoader, PrefixLoader
from jupyterhub._data import DATA_FILES_PATH
from lab_fakes import MemoryLedger
from lab_site import Site, run_site
from tornado.web import RequestHandler

from pytorch_spawner.core.journal import Event
from pytorch_spawner.lab.paths import hub_templates_dir


class Pending(RequestHandler):
    """The pending page as the hub renders it, and the hub's progress stream, scripted."""

    def initialize(self, hub: Any) -> None:
        self.hub = hub

    def get(self, username: str, servername: str = "") -> None:
        if self.hub.is_ready:
            self.finish("<h1>JupyterLab</h1>")
            return
        self.set_header("Content-Security-Policy", "frame-ancestors 'none'")
        self.finish(
            render(
                "spawn_pending.html",
                user=_User(username),
                spawner=_Named(servername),
                no_spawner_check=True,
                progress_url="/hub/api/progress?_xsrf=x",
            )
        )


def render(template: str, **values: Any) -> str:
    """A page of the hub's, as the hub renders it with our templates."""
    env = Environment(
        autoescape=True,
        loader=ChoiceLoader(
            [
                PrefixLoader({"templates": FileSystemLoader(f"{DATA_FILES_PATH}/templates")}),
                FileSystemLoader([hub_templates_dir(), f"{DATA_FILES_PATH}/templates"]),
            ]
        ),
    )
    return env.get_template(template).render(
        base_url="/hub/",
        prefix="/",
        xsrf="the-xsrf",
        xsrf_token="the-xsrf",
        static_url=lambda path, include_version=True: f"/hub/static/{path}",
        parsed_scopes={},
        services=[],
        logout_url="/hub/logout",
        **values,
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


class Api(RequestHandler):
    """The hub's API for one user: what is asked is noted, and answered as a test says."""

    def initialize(self, hub: Any) -> None:
        self.hub = hub

    def prepare(self) -> None:
        body = json.loads(self.request.body) if self.request.body else None
        path = self.request.path.removeprefix("/hub/api/users/")
        assert self.get_query_argument("_xsrf") == "the-xsrf"
        self.hub.calls.append((self.request.method, path, body))
        status, answer = self.hub.refusals.get(self.request.method, (0, ""))
        if status:
            self.set_status(status)
            self.finish(answer)

    def get(self, _: str) -> None:
        self.finish({"name": "ana", "servers": self.hub.servers})
        # As after a 202: the next look finds the server gone.
        self.hub.servers = {
            name: model for name, model in self.hub.servers.items() if model["pending"] != "stop"
        }

    async def delete(self, path: str) -> None:
        # As JupyterHub 6.1.1 does: a start that is being cancelled is "ready" for a second.
        self.hub.progress.append({"progress": 100, "ready": True, "message": "Server ready"})
        await asyncio.sleep(0.5)
        self.hub.posted.append((path, self.get_query_argument("_xsrf")))
        for model in self.hub.servers.values():
            model["pending"] = "stop"
        self.set_status(202 if self.hub.servers else 204)

    def post(self, _: str) -> None:
        self.hub.progress[:] = progress_of(journals.hub_until("gpu", []))
        self.set_status(202)


async def run_pending() -> AsyncIterator[Site]:
    """The service, and beside it a hub whose progress stream and API follow a test's script."""
    async for running in run_site(MemoryLedger()):
        hub = running.hub
        hub.browser_user_token = "ana-page"
        hub.progress, hub.is_over, hub.is_ready = [], False, False
        hub.calls, hub.refusals, hub.servers = [], {}, {}
        shared = {"hub": hub}
        running.app.add_handlers(
            r".*",
            [
                (r"/hub/spawn-pending/([^/]+)", Pending, shared),
                (r"/hub/spawn-pending/([^/]+)/([^/]+)", Pending, shared),
                (r"/hub/api/progress", Progress, shared),
                (r"/hub/api/users/(.*)", Api, shared),
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
