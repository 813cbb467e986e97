"""When a server counts as one that answers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import Application, RequestHandler

from pytorch_spawner.adapters.readiness import answers


class Says(RequestHandler):
    def get(self, status: str) -> None:
        self.set_status(int(status))


@pytest.fixture
async def address() -> AsyncIterator[str]:
    """A server that answers with the status that its path names."""
    listening, port = bind_unused_port()
    server = HTTPServer(Application([(r"/(\d+)", Says)]))
    server.add_socket(listening)
    yield f"127.0.0.1:{port}"
    server.stop()


@pytest.mark.parametrize(
    ("status", "is_ready"), [("200", True), ("302", True), ("403", True), ("500", False)]
)
async def test_anything_but_a_server_error_is_an_answer(
    address: str, status: str, is_ready: bool
) -> None:
    assert await answers(f"http://{address}/{status}") is is_ready


async def test_a_name_is_asked_like_an_address(address: str) -> None:
    assert await answers(f"http://localhost:{address.rpartition(':')[2]}/200")


async def test_a_port_that_nobody_opened_is_no_answer() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        assert not await answers(f"http://127.0.0.1:{nobody.getsockname()[1]}/api")


async def test_a_server_that_listens_and_says_nothing_yet_is_no_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pytorch_spawner.adapters.readiness._REQUEST_TIMEOUT_S", 0.2)
    with socket.socket() as booting:
        booting.bind(("127.0.0.1", 0))
        booting.listen()
        url = f"http://127.0.0.1:{booting.getsockname()[1]}/api"
        assert not await asyncio.wait_for(answers(url), 5)
