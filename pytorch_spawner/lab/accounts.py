"""The service's own accounts on the hub, and the one server that each of them runs at a time.

What the lab runs for itself (building caches, smoke tests) runs in servers like anybody's, so that
queue, lease, reconcile and the admin's pages hold for it, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Mapping
from typing import Any, Final

from tornado.httpclient import HTTPClientError

from pytorch_spawner.errors import LabError
from pytorch_spawner.lab import hub_api
from pytorch_spawner.lab.settings import LabSettings

_LOOK_S: Final = 0.5
_STOP_S: Final = 120.0


class NotStopped(LabError):
    """The hub does not get rid of a server of an account of the lab's."""

    code = "not-stopped"


class Account:
    """One account.

    Args:
        settings: How the hub is reached.
        name: The account's.
    """

    def __init__(self, settings: LabSettings, name: str) -> None:
        self._settings = settings
        self.name = name

    async def ensure(self) -> None:
        """Make the account where it is missing."""
        try:
            await hub_api.ask(self._settings, hub_api.user_path(self.name), "POST", body=b"")
        except HTTPClientError as error:
            if error.code != 409:  # 409: it is there
                raise

    def start(self, options: Mapping[str, Any]) -> asyncio.Task[bytes]:
        """Ask the hub for the account's server; its answer may come before or after it runs."""
        body = json.dumps(dict(options)).encode()
        path = hub_api.server_path(self.name, "")
        asking = asyncio.create_task(hub_api.ask(self._settings, path, "POST", body=body))
        # Nobody may look at it: an error that nobody asked for is no error.
        asking.add_done_callback(lambda task: task.cancelled() or task.exception())
        return asking

    async def server(self) -> tuple[bool, str]:
        """Whether the account has a server, and what is pending of it, as the hub says."""
        try:
            said = json.loads(await hub_api.ask(self._settings, hub_api.user_path(self.name)))
        except HTTPClientError as error:
            if error.code == 404:
                return False, ""
            raise
        server = (said.get("servers") or {}).get("")
        if server is None:
            return bool(said.get("pending")), str(said.get("pending") or "")
        return True, str(server.get("pending") or "")

    async def stop(self) -> None:
        """Stop the server and wait until the hub has forgotten it, its GPU given back.

        Raises:
            NotStopped: It is still there after two minutes.
        """
        ends_at = time.monotonic() + _STOP_S
        while True:
            is_there, pending = await self.server()
            if not is_there:
                return
            if time.monotonic() > ends_at:
                raise NotStopped("Its server cannot be stopped; see the hub's log.")
            if pending != "stop":
                with contextlib.suppress(HTTPClientError):
                    path = hub_api.server_path(self.name, "")
                    await hub_api.ask(self._settings, path, "DELETE")
            await asyncio.sleep(_LOOK_S)


def reason(error: BaseException) -> str:
    """What the hub or the engine said, as a sentence."""
    if isinstance(error, LabError):
        return error.public_message
    if isinstance(error, HTTPClientError):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            said = json.loads(error.response.body if error.response else b"")
            return str(said["message"])[:400]
        return f"The hub answered with {error.code}."
    return f"{type(error).__name__}: {error}"[:400]
