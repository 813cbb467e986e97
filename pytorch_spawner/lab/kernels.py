"""``api/servers/<user>/<server>/memory`` and ``.../kernels/<id>``: which notebook holds what.

Thin: scope, look (``looking``), say (``core.kernels``).
"""

from __future__ import annotations

import asyncio
from typing import Any

from pytorch_spawner.errors import LabError
from pytorch_spawner.lab import auth
from pytorch_spawner.lab.audit import Asked
from pytorch_spawner.lab.handlers import ApiError, ApiHandler
from pytorch_spawner.lab.looking import NoSuchKernel


class _OfServer(ApiHandler):
    async def require_user_of(self, username: str, servername: str) -> dict[str, Any]:
        """Whoever works in the server, or an admin: names of notebooks are nobody else's."""
        model = await self.require_model(enter=False)
        if not auth.may_use(model, username, servername, self.hub_auth.access_scopes):
            await self.refuse(model, "forbidden", "This is somebody else's server.")
        return model

    async def require_running(self, username: str, servername: str) -> None:
        """That the ledger knows of a start that lasts.

        Raises:
            ApiError: It knows of none.
        """
        settings, ledger = self.lab.settings, self.lab.ledger
        start = await asyncio.to_thread(ledger.latest_start, settings.hub_id, username, servername)
        if start is None or start.ended_at is not None:
            raise ApiError(404, "not-running", "This server does not run (any more).")


class Memory(_OfServer):
    """``api/servers/<user>/<server>/memory``."""

    async def get(self, username: str, servername: str = "") -> None:
        """What each notebook, terminal and left-over process holds."""
        model = await self.require_user_of(username, servername)
        is_own, by = auth.owner_name(model) == username, str(model["name"])
        with self.lab.kernels.turns.request(by):
            await self.require_running(username, servername)
            looked = await self.lab.kernels.look(username, servername, by)
        self.send_json(looked.as_json("your" if is_own else f"{username}'s"))


class OneKernel(_OfServer):
    """``api/servers/<user>/<server>/kernels/<id>``."""

    async def delete(self, username: str, servername: str, kernel: str = "") -> None:
        """Shut a kernel down: its variables are lost, its notebook's file is not touched."""
        if not kernel:  # the default server's address has no name in it
            servername, kernel = "", servername
        model = await self.require_user_of(username, servername)
        with self.lab.kernels.turns.request(str(model["name"])):
            await self.require_running(username, servername)
            self.send_json(await self._shut_down(model, username, servername, kernel))

    async def _shut_down(
        self, model: dict[str, Any], username: str, servername: str, kernel: str
    ) -> dict[str, Any]:
        by = str(model["name"])
        looked = await self.lab.kernels.look(username, servername, by)
        known = next((one for one in looked.found.kernels if one.id == kernel), None)
        if known is None:
            raise NoSuchKernel("This kernel is not there (any more).")
        line = asked = None
        if auth.owner_name(model) != username:
            said = {"notebook": known.notebook, "kernel": kernel}
            asked = Asked(self.lab, by, "kernel", f"{username}/{servername}", said)
            line = await asked.note()
        try:
            await self.lab.kernels.stop(username, servername, kernel, by)
        except LabError as error:
            if asked is not None:
                await asked.note_failure(error)
            raise
        return {"stopped": kernel, "notebook": known.notebook, "change": line}
