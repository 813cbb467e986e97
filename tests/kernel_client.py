"""A notebook's view of a server: kernels opened over REST, cells run over the websocket.

Everything goes the way a browser goes, through the proxy and the hub's OAuth with a token, in
Jupyter's wire messages as JSON. Needs tornado alone, which JupyterHub brings::

    async with Server(url, "ana", token) as server, server.open_kernel() as kernel:
        ran = await kernel.execute("1 + 1")
        assert (ran.text, ran.status) == ("2", "ok")
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any
from urllib.parse import quote

from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest, HTTPResponse
from tornado.websocket import WebSocketClientConnection, websocket_connect

OPENS_WITHIN_S = 120.0
_MOST_BYTES = 64 * 1024 * 1024


class KernelError(Exception):
    """A server or a kernel did not do what a notebook expects of it."""


@dataclass(slots=True)
class Output:
    """One message a cell wrote.

    Attributes:
        kind: "stream", "execute_result", "display_data", "error", ...
        content: As the kernel sent it.
        at: ``time.monotonic()`` when it came.
    """

    kind: str
    content: dict[str, Any]
    at: float


@dataclass(slots=True)
class Ran:
    """What became of one cell; times are ``time.monotonic()`` of this process.

    Attributes:
        began: When the request was sent.
        ended: When both the reply and the kernel's "idle" were here.
        status: "ok", "error" or "aborted".
        outputs: In the order they came.
        error: "ZeroDivisionError: division by zero"; "" without one.
    """

    began: float
    ended: float = 0.0
    status: str = ""
    outputs: list[Output] = field(default_factory=list)
    error: str = ""

    @property
    def seconds(self) -> float:
        return self.ended - self.began

    @property
    def stdout(self) -> str:
        return self._stream("stdout")

    @property
    def stderr(self) -> str:
        return self._stream("stderr")

    @property
    def text(self) -> str:
        """The value of the cell's last expression as text; "" without one."""
        for output in reversed(self.outputs):
            if output.kind == "execute_result":
                return str(output.content["data"].get("text/plain", ""))
        return ""

    def _stream(self, name: str) -> str:
        return "".join(
            output.content["text"]
            for output in self.outputs
            if output.kind == "stream" and output.content["name"] == name
        )


class Server:
    """One user's running server, reached through the proxy.

    Args:
        url: Of the proxy, "http://127.0.0.1:8000".
        user: Whose server.
        token: Of the hub, with access to that server.
        name: Of a named server; "" for the default one.
    """

    def __init__(self, url: str, user: str, token: str, name: str = "") -> None:
        path = "/".join(quote(part, safe="") for part in (user, name) if part)
        self.url = f"{url.rstrip('/')}/user/{path}"
        self._headers = {"Authorization": f"token {token}"}
        self._http = AsyncHTTPClient(force_instance=True, max_clients=64)

    async def __aenter__(self) -> Server:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._http.close()

    async def ask(
        self, method: str, path: str, body: Any = None, timeout_s: float = OPENS_WITHIN_S
    ) -> HTTPResponse:
        """One request of the server's own REST API, such as ``GET api/kernels``."""
        request = HTTPRequest(
            f"{self.url}/{path}",
            method=method,
            headers=self._headers,
            body=json.dumps(body if body is not None else {})
            if method in ("POST", "PUT")
            else None,
            request_timeout=timeout_s,
            follow_redirects=False,
        )
        try:
            return await self._http.fetch(request)
        except HTTPClientError as error:
            said = error.response.body.decode(errors="replace") if error.response else ""
            raise KernelError(
                f"{method} {path}: {error.code} {error.message} {said[:500]}"
            ) from error

    @asynccontextmanager
    async def open_kernel(
        self, name: str = "", timeout_s: float = OPENS_WITHIN_S
    ) -> AsyncIterator[Kernel]:
        """Ask for a kernel, wait until it answers, and end it with the block.

        Args:
            name: Of the kernel specification; "" for the server's default.
            timeout_s: For the request, and for the kernel's first answer.
        """
        asked = time.monotonic()
        answer = await self.ask("POST", "api/kernels", {"name": name} if name else {}, timeout_s)
        kernel = Kernel(self, json.loads(answer.body)["id"], asked)
        try:
            await kernel.connect(timeout_s)
            yield kernel
        finally:
            kernel.close()
            # Also when the server went with its kernels, as in a test of its end.
            with suppress(KernelError, OSError, asyncio.TimeoutError):
                await self.ask("DELETE", f"api/kernels/{kernel.id}", timeout_s=20)

    def websocket(self, kernel_id: str, session: str, timeout_s: float) -> Any:
        url = self.url.replace("http", "ws", 1)
        return websocket_connect(
            HTTPRequest(
                f"{url}/api/kernels/{kernel_id}/channels?session_id={session}",
                headers=self._headers,
                connect_timeout=timeout_s,
                request_timeout=timeout_s,
            ),
            max_message_size=_MOST_BYTES,
        )


class Kernel:
    """One kernel and its websocket; one cell at a time.

    Attributes:
        asked: ``time.monotonic()`` when it was asked for.
        ready: When its first answer was here.
    """

    def __init__(self, server: Server, kernel_id: str, asked: float) -> None:
        self.id = kernel_id
        self.asked = asked
        self.ready = 0.0
        self._server = server
        self._session = uuid.uuid4().hex
        self._socket: WebSocketClientConnection | None = None

    async def connect(self, timeout_s: float = OPENS_WITHIN_S) -> None:
        """Open the websocket and wait for the kernel's answer to the first question."""
        deadline = time.monotonic() + timeout_s
        self._socket = await self._server.websocket(self.id, self._session, timeout_s)
        await self.request("kernel_info_request", {}, deadline - time.monotonic())
        self.ready = time.monotonic()

    async def execute(self, code: str, timeout_s: float = 300) -> Ran:
        """Run a cell; an exception in it is an answer (``status``), not an error here."""
        ran = Ran(began=time.monotonic())
        sent = await self._send(
            "execute_request",
            {
                "code": code,
                "silent": False,
                "store_history": True,
                "user_expressions": {},
                "allow_stdin": False,
                "stop_on_error": True,
            },
        )
        is_idle = False
        deadline = ran.began + timeout_s
        while not (is_idle and ran.status):
            message = await self._answer(sent, deadline)
            kind, content = message["header"]["msg_type"], message["content"]
            if kind == "execute_reply":
                ran.status = content["status"]
                if ran.status == "error":
                    ran.error = f"{content.get('ename', '')}: {content.get('evalue', '')}"
            elif kind == "status":
                is_idle = is_idle or content["execution_state"] == "idle"
            elif message["channel"] == "iopub" and kind != "execute_input":
                ran.outputs.append(Output(kind, content, time.monotonic()))
        ran.ended = time.monotonic()
        return ran

    async def request(
        self, kind: str, content: dict[str, Any], timeout_s: float = 60
    ) -> dict[str, Any]:
        """Send any request on the shell channel; the content of its reply."""
        sent = await self._send(kind, content)
        deadline = time.monotonic() + timeout_s
        while True:
            message = await self._answer(sent, deadline)
            if message["header"]["msg_type"] == kind.replace("_request", "_reply"):
                return dict(message["content"])

    async def interrupt(self) -> None:
        """What the stop button does."""
        await self._server.ask("POST", f"api/kernels/{self.id}/interrupt")

    async def restart(self, timeout_s: float = OPENS_WITHIN_S) -> None:
        """What the restart button does; the websocket is opened anew, as Lab does."""
        await self._server.ask("POST", f"api/kernels/{self.id}/restart", timeout_s=timeout_s)
        self.close()
        await self.connect(timeout_s)

    def close(self) -> None:
        """Leave the kernel; it goes on."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def _send(self, kind: str, content: dict[str, Any]) -> str:
        if self._socket is None:
            raise KernelError("the kernel's websocket is closed")
        message_id = uuid.uuid4().hex
        message = {
            "header": {
                "msg_id": message_id,
                "msg_type": kind,
                "session": self._session,
                "username": "student",
                "date": datetime.now(timezone.utc).isoformat(),
                "version": "5.3",
            },
            "parent_header": {},
            "metadata": {},
            "content": content,
            "buffers": [],
            "channel": "shell",
        }
        await self._socket.write_message(json.dumps(message))
        return message_id

    async def _answer(self, to: str, deadline: float) -> dict[str, Any]:
        """The next message that answers one of ours; others are left out."""
        while True:
            if self._socket is None:
                raise KernelError("the kernel's websocket is closed")
            try:
                text = await asyncio.wait_for(
                    self._socket.read_message(), max(0.01, deadline - time.monotonic())
                )
            except asyncio.TimeoutError:
                raise KernelError("the kernel did not answer in time") from None
            if text is None:
                self._socket = None
                raise KernelError("the server closed the kernel's websocket")
            message: dict[str, Any] = json.loads(text)
            if message.get("parent_header", {}).get("msg_id") == to:
                return message
