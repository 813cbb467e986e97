"""Does a single-user server answer? A look at its port, made often, and one HTTP request."""

from __future__ import annotations

import asyncio
import socket
from urllib.parse import urlsplit

from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.simple_httpclient import SimpleAsyncHTTPClient

_REQUEST_TIMEOUT_S = 2.0
# Every start that waits polls through here; tornado's default of ten would queue the eleventh.
_MAX_AT_ONCE = 500


async def answers(url: str) -> bool:
    """Say whether anything but a server error answers at ``url`` within two seconds.

    A server that boots refuses connections for most of the time, and eight that boot at once are
    asked 160 times a second: a refused connection alone costs a tenth of what a request does.
    """
    if not await _is_open(url):
        return False
    client = SimpleAsyncHTTPClient(max_clients=_MAX_AT_ONCE)
    try:
        response = await client.fetch(
            HTTPRequest(
                url,
                connect_timeout=_REQUEST_TIMEOUT_S,
                request_timeout=_REQUEST_TIMEOUT_S,
                follow_redirects=False,
            ),
            raise_error=False,
        )
    except (HTTPClientError, OSError, ValueError):
        return False
    return 200 <= response.code < 500


async def _is_open(url: str) -> bool:
    """Whether a connection is taken; True where only the request can say it (a host's name)."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or 80
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        socket.inet_pton(family, host)
    except (OSError, ValueError):
        return True
    with socket.socket(family, socket.SOCK_STREAM) as trial:
        trial.setblocking(False)
        try:
            connecting = asyncio.get_running_loop().sock_connect(trial, (host, port))
            await asyncio.wait_for(connecting, _REQUEST_TIMEOUT_S)
        except (OSError, asyncio.TimeoutError):
            return False
    return True
