"""The hub's REST API, asked with the service's own token. Translates, and decides nothing."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

from tornado.httpclient import AsyncHTTPClient, HTTPRequest

from pytorch_spawner.lab.settings import LabSettings

_TIMEOUT_S = 20.0
_PAGE = 200


async def ask(
    settings: LabSettings,
    path: str,
    method: str = "GET",
    accept: str = "",
    body: bytes | None = None,
    client: AsyncHTTPClient | None = None,
) -> bytes:
    """Send one request; ``path`` is below the API and quoted already, ``body`` is JSON.

    ``client`` is for requests that the hub answers late; the usual one, which all others share,
    sends ten at a time.

    Raises:
        HTTPClientError: The hub refused; ``code`` is its status, 599 where it did not answer.
    """
    headers = {"Authorization": f"token {settings.api_token}"}
    if accept:
        headers["Accept"] = accept
    response = await (client or AsyncHTTPClient()).fetch(
        HTTPRequest(
            f"{settings.hub_api_url}/{path}",
            method=method,
            headers=headers,
            body=body,
            request_timeout=_TIMEOUT_S,
        )
    )
    return bytes(response.body or b"")


async def pages(settings: LabSettings, path: str, query: str = "") -> AsyncIterator[dict[str, Any]]:
    """All items of a list, page by page.

    Raises:
        HTTPClientError: As ``ask``.
    """
    where = f"{path}?limit={_PAGE}{'&' + query if query else ''}"
    url: str | None = where
    while url:
        # Asks for pages; without it the hub answers with a bare list.
        said = json.loads(await ask(settings, url, accept="application/jupyterhub-pagination+json"))
        for item in said["items"]:
            yield item
        following = said["_pagination"]["next"]
        url = f"{where}&offset={quote(str(following['offset']))}" if following else None


def user_path(username: str) -> str:
    """Where a user is in the API."""
    return f"users/{quote(username, safe='')}"


def server_path(username: str, servername: str) -> str:
    """Where a server is in the API."""
    server = f"servers/{quote(servername, safe='')}" if servername else "server"
    return f"{user_path(username)}/{server}"
