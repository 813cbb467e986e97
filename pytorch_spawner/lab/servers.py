"""``api/servers/<user>/<server>/stop``: an admin stops a server and says why.

Thin: scope, parse, call, shape.
"""

from __future__ import annotations

import asyncio
import logging

from tornado.httpclient import HTTPClientError

from pytorch_spawner.errors import ChangedMeanwhile, InvalidEvent, LabError
from pytorch_spawner.lab import hub_api
from pytorch_spawner.lab.audit import Asked
from pytorch_spawner.lab.directory import HubUnavailable
from pytorch_spawner.lab.handlers import ApiError, ApiHandler
from pytorch_spawner.lab.schemas import StopServer

log = logging.getLogger(__name__)


class Stop(ApiHandler):
    """``api/servers/<user>/<server>/stop``."""

    async def post(self, username: str, servername: str = "") -> None:
        """Tell the student, then ask the hub to stop the server; its lease is given back then."""
        model = await self.require_admin()
        said = self.body_as(StopServer)
        settings, ledger = self.lab.settings, self.lab.ledger
        start = await asyncio.to_thread(ledger.latest_start, settings.hub_id, username, servername)
        if start is None or start.ended_at is not None:
            raise ApiError(404, "not-running", "This server does not run (any more).")
        if said.start not in ("", start.id):
            raise ChangedMeanwhile("This server was started anew meanwhile.", now=start.id)
        subject = f"{username}/{servername}"
        asked = Asked(self.lab, model["name"], "server", subject, {"message": said.message})
        change = await asked.note()
        message = f"An admin stops this server. {said.message}".strip()
        try:
            await self._tell_student(start.id, username, servername, message)
            await self._ask_hub(username, servername)
        except LabError as error:
            await asked.note_failure(error)
            raise
        self.send_json({"stopping": True, "change": change}, 202)

    async def _tell_student(
        self, start_id: str, username: str, servername: str, message: str
    ) -> None:
        ledger = self.lab.ledger
        event = {"stage": "ending", "message": message, "until": ledger.now()}
        try:
            await asyncio.to_thread(ledger.append_events, start_id, [("start", event)])
        except InvalidEvent as error:  # its journal is full; it is stopped all the same
            log.warning("not told: server=%s/%s %s", username, servername, error)

    async def _ask_hub(self, username: str, servername: str) -> None:
        path = hub_api.server_path(username, servername)
        try:
            await hub_api.ask(self.lab.settings, path, "DELETE")
        except HTTPClientError as error:
            if error.code == 404:
                raise ApiError(
                    404, "not-running", "This server does not run (any more)."
                ) from error
            raise HubUnavailable(
                f"The hub does not stop it just now (status {error.code}); try again."
            ) from error
        except OSError as error:
            raise HubUnavailable("The hub does not answer; try again.") from error
