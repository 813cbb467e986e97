"""``api/servers/<user>/<server>/restart``: a student's own server, stopped to be started anew.

The service stops it and waits until the hub is done; the start is the hub's own address, which the
browser opens as the student. Thin: scope, parse, call, shape.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlencode

from tornado.httpclient import HTTPClientError

from pytorch_spawner.errors import ChangedMeanwhile
from pytorch_spawner.lab import auth, hub_api, views
from pytorch_spawner.lab.directory import HubUnavailable
from pytorch_spawner.lab.handlers import ApiError, ApiHandler
from pytorch_spawner.lab.schemas import RestartServer

# JupyterHub answers a stop after 10 s at the latest, done or not.
PATIENCE_S: Final = 60.0
LOOK_S: Final = 1.0
# What was chosen for the old start; the rest is the lab's to decide again.
KEPT: Final = ("image", "gpus", "share", "pool", "course")


class Restart(ApiHandler):
    """``api/servers/<user>/<server>/restart``."""

    async def post(self, username: str, servername: str = "") -> None:
        """Stop it, and answer with the address that starts it again with the same choice."""
        model = await self.require_model()
        if auth.owner_name(model) != username:
            await self.refuse(model, "forbidden", "Only its owner restarts a server.")
        said = self.body_as(RestartServer)
        settings, ledger = self.lab.settings, self.lab.ledger
        start = await asyncio.to_thread(ledger.latest_start, settings.hub_id, username, servername)
        if start is None:
            raise ApiError(404, "no-such-server", "This server has never been started.")
        if said.start not in ("", start.id):
            # Another tab was faster: the new server is not to be stopped in the middle of its work.
            raise ChangedMeanwhile("This server was started anew meanwhile.", now=start.id)
        try:
            await self._stop(username, servername)
        except HTTPClientError as error:
            raise HubUnavailable(
                f"The hub does not stop it just now (status {error.code}); try again."
            ) from error
        except OSError as error:
            raise HubUnavailable("The hub does not answer; try again.") from error
        self.send_json({"start_url": start_url(settings.hub_prefix, start, username, servername)})

    async def _stop(self, username: str, servername: str) -> None:
        path = hub_api.server_path(username, servername)
        try:
            await hub_api.ask(self.lab.settings, path, "DELETE")
        except HTTPClientError as error:
            if error.code != 404:  # it is stopped already
                raise
        give_up_at = time.monotonic() + PATIENCE_S
        while await self._is_there(username, servername):
            if time.monotonic() > give_up_at:
                raise HubUnavailable("The hub has not stopped it yet; try again in a minute.")
            await asyncio.sleep(LOOK_S)

    async def _is_there(self, username: str, servername: str) -> bool:
        said = await hub_api.ask(self.lab.settings, hub_api.user_path(username))
        return servername in (json.loads(said).get("servers") or {})


def start_url(hub_prefix: str, start: Any, username: str, servername: str) -> str:
    """The hub's address that starts a server with what an earlier start asked for."""
    request: Mapping[str, Any] = start.request
    kept = {name: request[name] for name in KEPT if request.get(name) not in (None, "")}
    path = views.server_path(username, servername).rstrip("/")
    return f"{hub_prefix}spawn/{path}{'?' if kept else ''}{urlencode(kept)}"
