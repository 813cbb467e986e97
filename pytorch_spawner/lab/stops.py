"""Asks the hub to stop servers, and does not wait for it: the hub answers after 10 s at the latest.

A stop goes on when whoever asked for it is gone. Everything runs on one loop.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from tornado.httpclient import AsyncHTTPClient, HTTPClientError

from pytorch_spawner.lab import hub_api
from pytorch_spawner.lab.directory import HubUnavailable
from pytorch_spawner.lab.settings import LabSettings

log = logging.getLogger(__name__)

# Most hubs say within this time that they do not; a stop itself takes longer.
ANSWER_S: Final = 1.0
# A class whose GPUs are lost restarts together; each request waits up to 10 s for its answer.
AT_ONCE: Final = 200


class Stops:
    """The stops that the hub was asked for and has not answered yet."""

    def __init__(self) -> None:
        self._client: AsyncHTTPClient | None = None
        self._asked: dict[tuple[str, str], asyncio.Task[None]] = {}

    async def ask(self, settings: LabSettings, username: str, servername: str) -> None:
        """Ask the hub to stop a server; one that is stopped already is fine.

        Returns when the hub has answered, or after ``ANSWER_S``: then it goes on.

        Raises:
            HubUnavailable: The hub said no in that time, or is not there.
        """
        server = (username, servername)
        task = self._asked.get(server)
        if task is None:
            if self._client is None:  # it belongs to the running loop
                self._client = AsyncHTTPClient(force_instance=True, max_clients=AT_ONCE)
            task = self._asked[server] = asyncio.create_task(_stop(settings, self._client, *server))
            task.add_done_callback(lambda done: self._note(server, done))
        done, _ = await asyncio.wait({task}, timeout=ANSWER_S)
        if done:
            task.result()

    def is_asked(self, username: str, servername: str) -> bool:
        """Whether the hub was asked to stop it and has not answered yet."""
        return (username, servername) in self._asked

    def _note(self, server: tuple[str, str], task: asyncio.Task[None]) -> None:
        self._asked.pop(server, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("not stopped: server=%s/%s %s", *server, error)


async def _stop(
    settings: LabSettings, client: AsyncHTTPClient, username: str, servername: str
) -> None:
    path = hub_api.server_path(username, servername)
    try:
        await hub_api.ask(settings, path, "DELETE", client=client)
    except HTTPClientError as error:
        if error.code != 404:  # it is stopped already
            raise HubUnavailable(
                f"The hub does not stop it just now (status {error.code}); try again."
            ) from error
    except OSError as error:
        raise HubUnavailable("The hub does not answer; try again.") from error
