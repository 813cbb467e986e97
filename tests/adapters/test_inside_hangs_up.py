"""The stream of an answer is closed however it ends: docker-py with an engine that is played."""

from __future__ import annotations

import json
import socketserver
import struct
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import docker
import pytest

from pytorch_spawner.adapters import inside
from pytorch_spawner.adapters.inside import NoAnswer, ask_agent
from pytorch_spawner.errors import EngineUnavailable


class Engine(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Runs one program in one container.

    Attributes:
        chunks: What the program says.
        is_endless: Whether it says the last of it again and again.
        has_hung_up: Set when whoever asked has closed the connection.
        is_sick: Whether it refuses to say how the program ended.
    """

    daemon_threads = True

    def __init__(self, path: str) -> None:
        super().__init__(path, Handler)
        self.chunks: list[bytes] = [b"fine"]
        self.is_endless = self.is_sick = False
        self.has_hung_up = threading.Event()


class Handler(BaseHTTPRequestHandler):
    """The few addresses of the engine that are asked."""

    protocol_version = "HTTP/1.1"
    server: Engine

    def log_message(self, *args: Any) -> None:
        return

    def address_string(self) -> str:
        return ""

    def _say(self, value: Any, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if "/containers/" in self.path:
            self._say([{"Id": "c1"}])
        elif self.server.is_sick:
            self._say({"message": "It is sick."}, 500)
        else:
            self._say({"ExitCode": 0})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not self.path.endswith("/start"):
            self._say({"Id": "e1"}, 201)
            return
        self.close_connection = True
        self.wfile.write(
            b"HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.raw-stream\r\n"
            b"Connection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
        )
        # A program takes its time; docker-py loses what comes together with the head.
        time.sleep(0.2)
        self.connection.settimeout(10)
        try:
            for chunk in self.server.chunks:
                self._frame(chunk)
            while self.server.is_endless:
                self._frame(self.server.chunks[-1])
            self.connection.shutdown(1)  # nothing more comes
            if self.connection.recv(1) == b"":
                self.server.has_hung_up.set()
        except (BrokenPipeError, ConnectionResetError):
            self.server.has_hung_up.set()

    def _frame(self, chunk: bytes) -> None:
        self.wfile.write(struct.pack(">BxxxL", 1, len(chunk)) + chunk)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with Engine(str(tmp_path / "engine.sock")) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def client(engine: Engine) -> Iterator[Any]:
    connected = docker.APIClient(f"unix://{engine.server_address}", version="1.41", timeout=20)
    yield connected
    connected.close()


def test_an_answer_is_read_and_the_connection_closed(engine: Engine, client: Any) -> None:
    engine.chunks = [b"one ", b"two"]
    assert ask_agent(client, "lab", "ana", "", []) == "one two"
    assert engine.has_hung_up.wait(5)


@pytest.mark.parametrize("chunk", [b"x" * 65_536, b"x"], ids=["too much", "too often"])
def test_a_program_that_never_stops_talking_is_hung_up_on(
    engine: Engine, client: Any, chunk: bytes
) -> None:
    engine.chunks, engine.is_endless = [chunk], True
    with pytest.raises(NoAnswer, match="more about its processes") as kept:
        ask_agent(client, "lab", "ana", "", [])
    # While the error, and with it everything that it went through, is still there.
    assert engine.has_hung_up.wait(5)
    assert kept.value.code == "no-answer"


def test_an_engine_that_fails_afterwards_holds_no_connection(engine: Engine, client: Any) -> None:
    engine.is_sick = True
    with pytest.raises(NoAnswer, match="cannot be asked") as kept:
        ask_agent(client, "lab", "ana", "", [])
    assert engine.has_hung_up.wait(5)
    assert kept.value.code == "no-answer"


class Broken:
    """An engine whose stream breaks, and which cannot be hung up on."""

    def __init__(self) -> None:
        self.was_closed = False

    def containers(self, **_: Any) -> list[Any]:
        return [{"Id": "c1"}]

    def exec_create(self, *_: Any, **__: Any) -> dict[str, str]:
        return {"Id": "e1"}

    def exec_start(self, *_: Any, **__: Any) -> Broken:
        return self

    def __iter__(self) -> Iterator[bytes]:
        raise ConnectionResetError

    def close(self) -> None:
        self.was_closed = True
        raise docker.errors.DockerException("Cancellable streams not supported for SSH")


def test_a_stream_that_breaks_is_closed_and_its_own_error_is_told() -> None:
    engine = Broken()
    with pytest.raises(EngineUnavailable) as kept:
        inside.ask_agent(engine, "lab", "ana", "", [])
    assert isinstance(kept.value.__cause__, ConnectionResetError)
    assert engine.was_closed
