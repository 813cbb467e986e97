"""``api/servers/<user>/<server>/restart``: a student's own server, stopped to be started anew.

POST has the hub stop it and answers at once, GET says how far that is. The start is the hub's own
address, which the browser opens as the student. Thin: scope, parse, call, shape.
"""

from __future__ import annotations

import asyncio
import json
from urllib.parse import urlencode

from tornado.httpclient import HTTPClientError

from pytorch_spawner.core.report_facts import Start
from pytorch_spawner.core.restart import stand_of
from pytorch_spawner.errors import ChangedMeanwhile, LabError
from pytorch_spawner.lab import auth, hub_api, views
from pytorch_spawner.lab.directory import HubUnavailable
from pytorch_spawner.lab.handlers import ApiError, ApiHandler
from pytorch_spawner.lab.schemas import RestartServer

_ANEW = "This server was started anew meanwhile."


class NotStopped(LabError):
    """The hub has answered, and the server runs on."""

    code = "not-stopped"
    status = 502


class Restart(ApiHandler):
    """``api/servers/<user>/<server>/restart``."""

    async def post(self, username: str, servername: str = "") -> None:
        """Ask the hub to stop it; answer with the address that starts it again, or what to poll."""
        await self._require_owner(username)
        start = await self._start_of(username, servername, self.body_as(RestartServer).start)
        await self.lab.stops.ask(self.lab.settings, username, servername)
        await self._say(start, 202)

    async def get(self, username: str, servername: str = "") -> None:
        """Whether it is stopped: the address that starts it again, or what to poll."""
        await self._require_owner(username)
        known = self.get_query_argument("start", "")[:64]
        await self._say(await self._start_of(username, servername, known), 200)

    async def _require_owner(self, username: str) -> None:
        model = await self.require_model()
        if auth.owner_name(model) != username:
            await self.refuse(model, "forbidden", "Only its owner restarts a server.")

    async def _start_of(self, username: str, servername: str, known: str) -> Start:
        """The start that is meant.

        Raises:
            ApiError: There is none.
            ChangedMeanwhile: Another tab was faster: the new server is not to be stopped in the
                middle of its work.
        """
        hub, ledger = self.lab.settings.hub_id, self.lab.ledger
        start = await asyncio.to_thread(ledger.latest_start, hub, username, servername)
        if start is None:
            raise ApiError(404, "no-such-server", "This server has never been started.")
        if known not in ("", start.id):
            raise ChangedMeanwhile(_ANEW, now=start.id)
        return start

    async def _say(self, start: Start, status: int) -> None:
        settings = self.lab.settings
        username, servername = start.username, start.servername
        # Until the hub has answered it need not be asked again by each page that waits.
        is_asked = self.lab.stops.is_asked(username, servername)
        stand = "stopping" if is_asked else stand_of(await self._servers(username), servername)
        if stand == "starting":
            raise ChangedMeanwhile(_ANEW, now=start.id)
        if stand == "running":
            raise NotStopped(
                "The hub did not get this server stopped. Try again; if it happens again, tell an "
                "admin: the hub's log says why."
            )
        is_stopped = stand == "stopped"
        server = views.server_path(username, servername)
        poll = f"{settings.prefix}api/servers/{server}/restart?{urlencode({'start': start.id})}"
        self.send_json(
            {
                "start_url": views.start_url(settings, start) if is_stopped else None,
                "poll": None if is_stopped else poll,
            },
            status,
        )

    async def _servers(self, username: str) -> object:
        try:
            said = json.loads(await hub_api.ask(self.lab.settings, hub_api.user_path(username)))
        except HTTPClientError as error:
            raise HubUnavailable(
                f"The hub does not say whether it is stopped (status {error.code}); try again."
            ) from error
        except OSError as error:
            raise HubUnavailable("The hub does not answer; try again.") from error
        return said.get("servers")
