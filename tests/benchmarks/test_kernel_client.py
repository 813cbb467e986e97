"""The kernel client against a small server that speaks Jupyter's messages."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import Application, RequestHandler
from tornado.websocket import WebSocketHandler

from tests.kernel_client import KernelError, Server

TOKEN = "secret"
ENDED: list[str] = []


class Kernels(RequestHandler):
    def post(self) -> None:
        if self.request.headers.get("Authorization") != f"token {TOKEN}":
            self.set_status(403)
            return
        self.set_status(201)
        self.write({"id": "k1"})


class OneKernel(RequestHandler):
    def delete(self) -> None:
        ENDED.append("k1")
        self.set_status(204)


class Channels(WebSocketHandler):
    def on_message(self, text: str | bytes) -> None:
        asked = json.loads(text)
        kind = asked["header"]["msg_type"]
        if kind == "kernel_info_request":
            self.answer(asked, "shell", "kernel_info_reply", {"status": "ok"})
            return
        code = asked["content"]["code"]
        if code == "leave":
            self.close()
            return
        if code == "hang":
            return
        other = {"header": {"msg_id": "another notebook's"}}
        self.answer(other, "iopub", "stream", {"name": "stdout", "text": "not ours"})
        self.answer(asked, "iopub", "status", {"execution_state": "busy"})
        self.answer(asked, "iopub", "execute_input", {"code": code})
        self.answer(asked, "iopub", "stream", {"name": "stdout", "text": "one "})
        # The reply may come before the outputs: both have to be waited for.
        status = {"status": "ok"}
        if code == "1/0":
            status = {"status": "error", "ename": "ZeroDivisionError", "evalue": "no"}
        self.answer(asked, "shell", "execute_reply", status)
        self.answer(asked, "iopub", "stream", {"name": "stdout", "text": "two"})
        self.answer(asked, "iopub", "execute_result", {"data": {"text/plain": "42"}})
        self.answer(asked, "iopub", "status", {"execution_state": "idle"})

    def answer(self, to: dict[str, Any], channel: str, kind: str, content: Any) -> None:
        message = {
            "header": {"msg_type": kind, "msg_id": "x"},
            "parent_header": to["header"],
            "content": content,
            "channel": channel,
        }
        self.write_message(json.dumps(message))


@pytest.fixture
async def server() -> AsyncIterator[str]:
    ENDED.clear()
    application = Application(
        [
            ("/user/ana/api/kernels", Kernels),
            ("/user/ana/api/kernels/k1", OneKernel),
            ("/user/ana/api/kernels/k1/channels", Channels),
        ]
    )
    socket, port = bind_unused_port("127.0.0.1")
    listening = HTTPServer(application)
    listening.add_socket(socket)
    yield f"http://127.0.0.1:{port}"
    listening.stop()


async def test_a_cell_has_outputs_value_and_times(server: str) -> None:
    async with Server(server, "ana", TOKEN) as notebook, notebook.open_kernel() as kernel:
        ran = await kernel.execute("6 * 7")
    assert (ran.status, ran.stdout, ran.text, ran.error) == ("ok", "one two", "42", "")
    assert kernel.asked <= kernel.ready <= ran.began <= ran.ended
    assert [output.kind for output in ran.outputs] == ["stream", "stream", "execute_result"]
    assert ENDED == ["k1"]


async def test_an_exception_in_a_cell_is_an_answer(server: str) -> None:
    async with Server(server, "ana", TOKEN) as notebook, notebook.open_kernel() as kernel:
        ran = await kernel.execute("1/0")
    assert (ran.status, ran.error) == ("error", "ZeroDivisionError: no")


@pytest.mark.parametrize(
    ("code", "says"), [("hang", "did not answer in time"), ("leave", "closed the kernel's")]
)
async def test_a_silent_or_absent_kernel_is_an_error(server: str, code: str, says: str) -> None:
    async with Server(server, "ana", TOKEN) as notebook, notebook.open_kernel() as kernel:
        with pytest.raises(KernelError, match=says):
            await kernel.execute(code, timeout_s=0.3)
    assert ENDED == ["k1"]


async def test_a_refused_request_says_why(server: str) -> None:
    async with Server(server, "ana", "wrong") as notebook:
        with pytest.raises(KernelError, match="POST api/kernels: 403"):
            async with notebook.open_kernel():
                await asyncio.sleep(0)
