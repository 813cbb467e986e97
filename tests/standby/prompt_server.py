"""A real Jupyter Server with ``prompt``, three kernels, two connections each; prints what it saw.

Runs in a process of its own, as ``python prompt_server.py FOLDER``: Jupyter's application is one a
process.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

FOLDER = sys.argv[1]
os.environ.update(HOME=FOLDER, JUPYTER_RUNTIME_DIR=f"{FOLDER}/runtime", JUPYTER_PLATFORM_DIRS="1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "share/images/standby"))

import zmq  # noqa: E402
from jupyter_server.serverapp import ServerApp  # noqa: E402
from pytorch_spawner_standby import prompt  # noqa: E402
from tornado.httpclient import AsyncHTTPClient  # noqa: E402
from tornado.websocket import websocket_connect  # noqa: E402

_SETTING = "kernel_websocket_connection_class"
_TOKEN = "a-token"
SEEN: list[dict[str, Any]] = []
CHANNELS: list[Any] = []
TASKS: list[Any] = []
AGAIN_MS: list[int] = []


def watched(usual: Any) -> Any:
    """The class with notes of what it does; below ``prompt``, so that its parts are seen."""

    class Watched(usual):
        def connect(self) -> Any:
            began = time.monotonic()
            TASKS.append(asyncio.ensure_future(miss_the_first_status(self.kernel_manager)))
            self.kernel_manager.execution_state = "starting"
            connected = super().connect()
            seen: dict[str, Any] = {"asked": 0, "seconds": -1.0, "nodelay": None}
            SEEN.append(seen)
            stream = self.websocket_handler.ws_connection.stream.socket
            option = stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            seen["nodelay"] = bool(option)
            # From here on only prompt connects control channels and sends over them.
            connect, send = self.kernel_manager.connect_control, self.session.send
            mine: list[Any] = []

            def connect_control(*args: Any, **options: Any) -> Any:
                channel = connect(*args, **options)
                mine.append(channel)
                CHANNELS.append(channel)
                return channel

            def count(stream: Any, *args: Any, **options: Any) -> Any:
                seen["asked"] += stream in mine and args[0] == "kernel_info_request"
                return send(stream, *args, **options)

            def done(_: Any) -> None:
                seen["seconds"] = round(time.monotonic() - began, 3)
                self.kernel_manager.connect_control, self.session.send = connect, send

            self.kernel_manager.connect_control, self.session.send = connect_control, count
            connected.add_done_callback(done)
            return connected

    return Watched


async def miss_the_first_status(kernel_manager: Any) -> None:
    """As where the server's subscription arrives late: what it heard by now does not count."""
    ends_at = time.monotonic() + 0.06
    while time.monotonic() < ends_at:
        kernel_manager.execution_state = "starting"
        await asyncio.sleep(0.001)


async def visit(app: Any) -> None:
    base = f"127.0.0.1:{app.port}{app.base_url}api/kernels"
    for _ in range(3):
        made = await AsyncHTTPClient().fetch(
            f"http://{base}?token={_TOKEN}",
            method="POST",
            body="{}",
            headers={"Content-Type": "application/json"},
        )
        kernel = json.loads(made.body)["id"]
        socket_of_it = app.kernel_manager.get_kernel(kernel).connect_shell()
        AGAIN_MS.append(socket_of_it.getsockopt(zmq.RECONNECT_IVL))
        socket_of_it.close()
        for number in range(2):
            url = f"ws://{base}/{kernel}/channels?session_id=s{number}&token={_TOKEN}"
            opened = await websocket_connect(url)
            while not SEEN or SEEN[-1]["seconds"] < 0 or "is_over" in SEEN[-1]:
                await asyncio.sleep(0.01)
            SEEN[-1]["is_over"] = True
            opened.close()
            await asyncio.sleep(0.05)
        await app.kernel_manager.shutdown_kernel(kernel, now=True)
    is_open = sum(not channel.closed() for channel in CHANNELS)
    said = {"connections": SEEN, "open_channels": is_open, "again_ms": AGAIN_MS}
    print(json.dumps(said), flush=True)


def main() -> None:
    app = ServerApp()
    app.initialize(
        argv=[
            "--no-browser",
            "--port=0",
            f"--IdentityProvider.token={_TOKEN}",
            f"--ServerApp.root_dir={FOLDER}",
            "--ServerApp.log_level=ERROR",
            "--ServerApp.disable_check_xsrf=True",
            "--allow-root",
        ],
        find_extensions=False,
    )
    settings = app.web_app.settings
    settings[_SETTING] = watched(settings[_SETTING])
    assert prompt.make_prompt(settings)

    async def run() -> None:
        try:
            await asyncio.wait_for(visit(app), 80)
        finally:
            app.stop()

    app.io_loop.add_callback(lambda: asyncio.ensure_future(run()))
    app.start()


if __name__ == "__main__":
    main()
