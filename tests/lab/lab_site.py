"""The service on loopback, a fake hub beside it under one address, as the proxy shows them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
from jupyterhub.services.auth import HubOAuth
from lab_containers import Containers
from lab_fakes import ENTER, HUB, FakeHub, server_scope
from tornado.netutil import bind_sockets

from pytorch_spawner.lab.app import build_lab, make_server
from pytorch_spawner.lab.handlers import Health, Lab
from pytorch_spawner.lab.settings import LabSettings

try:
    # It keeps one session for each event loop, for ever: four open files for each test.
    from jupyterhub.httpclient import JupyterHubHTTPClient
except ImportError:  # before JupyterHub 6
    JupyterHubHTTPClient = None


@dataclass
class Site:
    """The running service and what a test needs to talk to it."""

    url: str
    lab: Lab
    ledger: Any
    hub: FakeHub
    http: aiohttp.ClientSession
    app: Any = None

    async def get(self, path: str, token: str = "ana-page", **headers: str) -> Answer:
        head = {"Authorization": f"token {token}"} if token else {}
        async with self.http.get(
            self.url + path, headers={**head, **headers}, allow_redirects=False
        ) as answer:
            return Answer(answer.status, dict(answer.headers), await answer.text())

    async def post(
        self,
        events: Any,
        *,
        token: str = "ana-server",
        path: str = "api/servers/ana//events",
        start: str = "",
        raw: bytes | None = None,
        **headers: str,
    ) -> Answer:
        body = raw or json.dumps({"v": 1, "start": start, "events": events}).encode()
        head = {"Authorization": f"token {token}"} if token else {}
        async with self.http.post(
            self.url + path, data=body, headers={**head, **headers}
        ) as answer:
            return Answer(answer.status, dict(answer.headers), await answer.text())

    async def send(
        self, method: str, path: str, value: Any = b"", token: str = "admin", **headers: str
    ) -> Answer:
        """Send a write; it changes whatever is there, unless ``If_Match`` says what was seen."""
        headers = {"If-Match": "*", **{key.replace("_", "-"): it for key, it in headers.items()}}
        head = {"Authorization": f"token {token}"} if token else {}
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        async with self.http.request(
            method, self.url + path, data=body, headers={**head, **headers}
        ) as answer:
            return Answer(answer.status, dict(answer.headers), await answer.text())

    def stream(
        self, path: str = "api/servers/ana//events", token: str = "ana-page", **kw: Any
    ) -> Stream:
        return Stream(self, path, token, kw)

    def begin(self, username: str = "ana", servername: str = "") -> Any:
        return self.ledger.begin_start(
            HUB,
            username,
            servername,
            {
                "image": "lab/base:1",
                "gpus": 1,
                "share": "whole",
                "said": {"image": "base", "share": "whole"},
            },
        )


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def code(self) -> str:
        return str(self.json["code"])


class Stream:
    """An open event stream; ``next`` gives (name, id, data)."""

    def __init__(self, site: Site, path: str, token: str, headers: dict[str, str]) -> None:
        self._site, self._path, self._token, self._headers = site, path, token, headers

    async def __aenter__(self) -> Stream:
        head = {"Authorization": f"token {self._token}", **self._headers}
        self._answer = await self._site.http.get(self._site.url + self._path, headers=head)
        self.status = self._answer.status
        return self

    async def __aexit__(self, *_: Any) -> None:
        self._answer.close()

    async def next(self, timeout_s: float = 5.0) -> tuple[str, str, Any]:
        """The next message, but for those that only say that the stream lives."""
        return await asyncio.wait_for(self._next_news(), timeout_s)

    async def _next_news(self) -> tuple[str, str, Any]:
        name, number, data = await self._next()
        while name == "alive":
            name, number, data = await self._next()
        return name, number, data

    async def _next(self) -> tuple[str, str, Any]:
        name, number, data = "message", "", None
        while True:
            line = (await self._answer.content.readline()).decode()
            if not line:
                raise EOFError
            line = line.rstrip("\n")
            key, _, value = line.partition(": ")
            if key == "event":
                name = value
            elif key == "id":
                number = value
            elif key == "data":
                data = json.loads(value)
            elif not line and data is not None:
                return name, number, data

    async def numbers(self, count: int) -> list[int]:
        """Numbers of the next journal events; named messages are passed over."""
        found: list[int] = []
        while len(found) < count:
            name, number, _ = await self.next()
            if name == "message":
                found.append(int(number))
        return found


async def run_site(ledger: Any, meter: Any = None) -> AsyncIterator[Site]:
    Health._checked = (-1e9, False)
    hub = FakeHub()
    (socket,) = bind_sockets(0, "127.0.0.1")
    port = socket.getsockname()[1]
    root = f"http://127.0.0.1:{port}"
    settings = LabSettings(
        hub_id=HUB, ledger="", hub_api_url=f"{root}/hub/api", api_token="service", port=port
    )
    hub_auth = HubOAuth(
        api_token="service",
        api_url=settings.hub_api_url,
        base_url=settings.prefix,
        hub_prefix="/hub/",
        oauth_client_id="service-lab",
        oauth_redirect_uri=f"{settings.prefix}oauth_callback",
        access_scopes={ENTER},
    )
    hub.add("ana-page", "ana", ENTER)
    hub.add("bo-page", "bo", ENTER)
    hub.add("kim-page", "kim", ENTER, "custom:lab:view")
    hub.add("ana-server", "ana", server_scope("ana"), "users:activity!user=ana")
    hub.add("ana-thesis", "ana", server_scope("ana", "thesis"))
    hub.add("bo-server", "bo", server_scope("bo"))
    hub.add("ana-own", "ana", "access:servers!user=ana", "read:users!user=ana")
    hub.add("admin-own", "root", "access:servers", "admin:users")
    lab = build_lab(settings, ledger, hub_auth, poll_s=0.05, meter=meter)
    lab.kernels.ask = Containers(none=True)  # no test asks this machine's own engine
    server = make_server(lab)
    server.request_callback.add_handlers(r".*", hub.handlers())  # type: ignore[attr-defined]
    server.add_sockets([socket])
    async with aiohttp.ClientSession() as http:
        yield Site(f"{root}{settings.prefix}", lab, ledger, hub, http, server.request_callback)
    server.stop()
    await server.close_all_connections()
    if JupyterHubHTTPClient is not None:
        await JupyterHubHTTPClient.loop_instance().close()
