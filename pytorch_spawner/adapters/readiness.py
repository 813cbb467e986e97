"""Does a single-user server answer? One cheap HTTP request, made often."""

from __future__ import annotations

from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.simple_httpclient import SimpleAsyncHTTPClient

_REQUEST_TIMEOUT_S = 2.0
# Every start that waits polls through here; tornado's default of ten would queue the eleventh.
_MAX_AT_ONCE = 500


async def answers(url: str) -> bool:
    """Say whether anything but a server error answers at ``url`` within two seconds."""
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
