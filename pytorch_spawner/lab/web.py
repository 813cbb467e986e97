"""The service's pages: a person's servers, one server's landing page, login, static files.

Thin: scope, read, render. Everything alive on a page comes from the stream; the page itself only
carries addresses.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any, Final

from jupyterhub.services.auth import HubOAuthCallbackHandler
from tornado.web import HTTPError, StaticFileHandler

from pytorch_spawner.core.courses import courses_of
from pytorch_spawner.lab import auth, views
from pytorch_spawner.lab.handlers import Lab, LabHandler

TITLES: Final = {
    "gpus": "GPUs",
    "grants": "Who gets what",
    "queue": "Queue",
    "courses": "Courses",
    "caches": "Warm caches",
    "usage": "Usage",
    "log": "Log",
}
# What everybody sees, and what somebody sees who manages courses and looks after nothing else.
FOR_ALL: Final = {"courses": TITLES["courses"]}
FOR_INSTRUCTORS: Final = {**FOR_ALL, "caches": TITLES["caches"]}


class PageHandler(LabHandler):
    """Base of the pages: whoever is not logged in is sent to the hub and comes back."""

    async def prepare(self) -> None:
        """Find out who it is before the page begins."""
        model = await self.fetch_model()
        if model is None:
            # The callback has to find this browser again, and a page in a cache would not ask.
            self.redirect(self.get_login_url())
            return
        if not auth.may_enter(model, self.hub_auth.access_scopes):
            raise HTTPError(403, "Your account may not use this service.")

    @property
    def model(self) -> dict[str, Any]:
        """The hub's model of the person."""
        return dict(self.current_user)


class Home(PageHandler):
    """The service's first page: the GPUs for viewers; else the person's server, or a choice."""

    async def get(self) -> None:
        """Redirect, or list."""
        name = self.model["name"]
        settings = self.lab.settings
        if auth.is_viewer(self.model) and self.get_query_argument("mine", None) is None:
            self.redirect(f"{settings.prefix}gpus")
            return
        starts = await asyncio.to_thread(self.lab.ledger.starts, settings.hub_id, name)
        if all(not start.servername for start in starts):
            self.redirect(f"{settings.prefix}servers/{views.server_path(name, '')}")
            return
        courses = await asyncio.to_thread(self.lab.ledger.courses, settings.hub_id)
        self.finish(
            self.lab.pages.render(
                "servers.html",
                user=name,
                courses=courses_of(courses, name, auth.groups_of(self.model)),
                servers=views.describe_me(self.model, starts, settings)["servers"],
            )
        )


class Admin(PageHandler):
    """A page that the script fills from the API; most are of those who look after the lab."""

    async def get(self, name: str) -> None:
        """Render the frame."""
        is_viewer = auth.is_viewer(self.model)
        is_instructor = auth.is_instructor(self.model)
        pages = TITLES if is_viewer else FOR_INSTRUCTORS if is_instructor else FOR_ALL
        if name not in pages:
            raise HTTPError(403, "This page is for the lab's admins.")
        settings = self.lab.settings
        config = {
            "page": name,
            "apiUrl": f"{settings.prefix}api/",
            "labUrl": settings.prefix,
            "user": self.model["name"],
            "canView": is_viewer,
            "canAdmin": auth.is_admin(self.model),
            "canInstruct": is_instructor,
            "hubUrl": settings.hub_prefix,
            "xsrf": self.xsrf_token.decode("ascii"),
        }
        self.finish(
            self.lab.pages.render(
                "admin.html",
                user=self.model["name"],
                name=name,
                title=TITLES[name],
                pages=pages,
                config=json.dumps(config),
            )
        )


class Server(PageHandler):
    """The landing page of one server: what it got, whether that is healthy, and the way into it."""

    async def get(self, username: str, servername: str = "") -> None:
        """Render the frame; the script fills it from the stream."""
        model = self.model
        if not auth.may_watch(model, username, servername, self.hub_auth.access_scopes):
            raise HTTPError(403, "This is somebody else's server.")
        is_owner = model["name"] == username
        settings = self.lab.settings
        if not is_owner or servername:
            start = await asyncio.to_thread(
                self.lab.ledger.latest_start, settings.hub_id, username, servername
            )
            if start is None:
                raise HTTPError(404, "This server has never been started.")
        page = views.describe_page(
            settings,
            username,
            servername,
            is_owner=is_owner,
            can_open=is_owner or auth.may_open(model, username, servername),
        )
        page["xsrf"] = self.xsrf_token.decode("ascii")
        if not auth.may_use(model, username, servername, self.hub_auth.access_scopes):
            page["memoryUrl"] = ""
        self.finish(
            self.lab.pages.render(
                "landing.html", user=model["name"], page=page, config=json.dumps(page)
            )
        )


class Callback(HubOAuthCallbackHandler):  # type: ignore[misc]
    """Where the hub sends the browser back to after the login."""

    def initialize(self, lab: Lab) -> None:
        """Take what the handlers share; tornado calls it."""
        self.hub_auth = lab.hub_auth


class Static(StaticFileHandler):
    """Scripts and styles; public, and kept by browsers when the address names a version."""

    def set_extra_headers(self, path: str) -> None:
        """Say how long, and that a script is a script."""
        self.set_header("X-Content-Type-Options", "nosniff")
        if self.get_query_argument("v", ""):
            self.set_header("Cache-Control", "public, max-age=31536000, immutable")
        else:
            # Modules import each other without a version: ask each time, get 304 mostly.
            self.set_header("Cache-Control", "no-cache")
