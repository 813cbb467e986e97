"""A local stand-in for the lab's service, for the hub's API and for Lab."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from pytorch_spawner.agent.codes import CODES

# A module of this text, named torch, makes an image without PyTorch out of any Python.
MISSING = "raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')"


def processes_with(text: str) -> dict[int, str]:
    """Command lines, by process id, of running processes whose environment holds a text."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if text.encode() in (folder / "environ").read_bytes():
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                found[int(folder.name)] = line
        except OSError:
            continue
    return found


def write_shell(at: Path, profile: str = "") -> str:
    """A login shell that reads this profile and not the machine's."""
    at.write_text(f'#!/bin/sh\n[ "$1" = -l ] || exit 9\n{profile}\nshift\nexec /bin/sh "$@"\n')
    at.chmod(0o755)
    return str(at)


class Service:
    """Takes reports; answers with ``statuses`` one after another, then with 204.

    One that is away has its port, but nobody can connect to it until ``come_back``.
    """

    def __init__(self, host: str = "127.0.0.1", *, is_away: bool = False) -> None:
        self.statuses: list[int] = []
        self.headers: dict[str, str] = {}
        self.arrived: list[tuple[float, dict[str, Any]]] = []  # (Unix time, event)
        self.reports: list[dict[str, Any]] = []
        self.requests: list[tuple[str, str, dict[str, str]]] = []  # (method, path, headers)
        self.changed = threading.Condition()
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                with service.changed:
                    service.requests.append(("GET", self.path, dict(self.headers)))
                self._answer(200)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                with service.changed:
                    service.requests.append(("POST", self.path, dict(self.headers)))
                    status = service.statuses.pop(0) if service.statuses else 204
                    if status < 300:
                        report = json.loads(body)
                        service.reports.append(report)
                        service.arrived += [(time.time(), event) for event in report["events"]]
                    service.changed.notify_all()
                self._answer(status)

            def _answer(self, status: int) -> None:
                self.send_response(status)
                for name, value in service.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer((host, 0), Handler, bind_and_activate=False)
        self._server.daemon_threads = True
        self._server.server_bind()
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._is_away = is_away
        if not is_away:
            self.come_back()

    def come_back(self) -> None:
        self._is_away = False
        self._server.server_activate()
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def events(self) -> list[dict[str, Any]]:
        return [event for _, event in self.arrived]

    def wait_for(self, wanted: Callable[[Service], bool], timeout_s: float) -> bool:
        with self.changed:
            return self.changed.wait_for(lambda: wanted(self), timeout_s)

    def is_done(self, part: str) -> bool:
        return any(e["kind"] == "done" and e["data"]["part"] == part for e in self.events)

    def checks(self) -> dict[str, dict[str, Any]]:
        """Data of the finished checks, by code."""
        return {
            e["data"]["code"]: e["data"]
            for e in self.events
            if e["kind"] == "check" and e["data"]["phase"] == "done"
        }

    def begins_with_a_check(self) -> bool:
        """Whether the first check was over before another was begun, whatever the clock says."""
        said = [(e["kind"], e["data"]["phase"], e["data"]["code"]) for e in self.events[:3]]
        return said == [("check", "plan", ""), ("check", "running", CODES[0]),
                        ("check", "done", CODES[0])]  # fmt: skip

    def close(self) -> None:
        if not self._is_away:
            self._server.shutdown()
        self._server.server_close()
