"""One real hub of a benchmark, with its proxy, on a real engine, and what it leaves is removed."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tornado.httpclient import AsyncHTTPClient, HTTPRequest, HTTPResponse

from tests.benchmarks.harness import ROOT
from tests.ports import free_port_block

OUR_LABEL = "org.pytorch-spawner.hub"
BENCH_LABEL = "org.pytorch-spawner.bench"
# Its own in each process, so that two runs do not take it from each other.
NETWORK = f"pytorch-spawner-bench-{os.getpid()}"
_HUB_S = 60.0
_START_S = 420.0


@dataclass(frozen=True)
class Arm:
    """One of those that are compared.

    Attributes:
        name: As the table says it.
        is_ours: The repository's own configuration; else a stock DockerSpawner.
        image: Of its servers.
        traits: More configuration, {"DockerSpawner.port": 8888}.
        options: A start asks for.
        network: Docker network of a stock arm; "" for the default bridge. Ours has always its own.
        user: "uid:gid" of a stock arm's servers; "" for the image's own.
        cdi_device: GPU of a stock arm's servers, "nvidia.com/gpu=0".
    """

    name: str
    is_ours: bool
    image: str
    traits: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    network: str = ""
    user: str = ""
    cdi_device: str = ""


@dataclass(frozen=True, slots=True)
class Started:
    """One start; seconds from the request.

    Attributes:
        ready_s: Until the hub said that it is ready.
        usable_s: Until the server itself answered through the proxy.
    """

    ready_s: float
    usable_s: float


class NotStarted(Exception):
    """A server did not start; the message is the hub's."""


class RealHub:
    """A hub with its own ports, state, containers and volumes.

    Args:
        folder: New folder for its state and log.
        arm: What it runs.
        proxy: Command of the proxy; the repository's by default.
        python_path: Folders before all others, for hub and service.
    """

    def __init__(
        self,
        folder: Path,
        arm: Arm,
        *,
        proxy: Sequence[str] = (),
        python_path: Sequence[Path] = (),
    ) -> None:
        self.arm = arm
        self.folder = folder
        self.port = free_port_block(5)
        self.url = f"http://127.0.0.1:{self.port}"
        self.token = secrets.token_hex(16)
        # The demo's configuration names it so.
        self.hub_id = f"lab-{self.port}"
        self.log = folder / "hub.log"
        self._proxy = list(proxy)
        before = [*map(str, (ROOT, *python_path)), os.environ.get("PYTHONPATH", "")]
        self.python_path = os.pathsep.join(filter(None, before))
        self._process: subprocess.Popen[bytes] | None = None

    # -- its life ------------------------------------------------------------------------------

    @contextmanager
    def running(self) -> Iterator[RealHub]:
        """Start it, and remove it with all it made."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self.launch()
            yield self
        finally:
            self.remove()

    def launch(self) -> None:
        """Start the process, and do not wait for it."""
        places = [ROOT / "node_modules" / ".bin", Path(sys.executable).parent, os.environ["PATH"]]
        path = os.pathsep.join(map(str, places))
        if not self._proxy and shutil.which("configurable-http-proxy", path=path) is None:
            raise RuntimeError("there is no configurable-http-proxy: run npm ci")
        env = {
            **os.environ,
            "PATH": path,
            "PYTHONPATH": self.python_path,
            "LAB_DIR": str(self.folder),
            "LAB_PORT": str(self.port),
            "LAB_NETWORK": NETWORK,
            "LAB_IMAGE": self.arm.image,
            "BENCH_HUB": json.dumps(self._settings()),
        }
        config = Path(__file__).with_name("real_hub_config.py")
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "jupyterhub", "-f", str(config)],
                cwd=self.folder,
                env=env,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _settings(self) -> dict[str, Any]:
        gateway = "" if self.arm.is_ours else gateway_of(self.arm.network or "bridge")
        traits = dict(self.arm.traits)
        if self.arm.network and not self.arm.is_ours:
            traits |= {
                "DockerSpawner.network_name": self.arm.network,
                "DockerSpawner.use_internal_ip": True,
            }
        return {
            "is_ours": self.arm.is_ours,
            "demo": str(ROOT / "jupyterhub_config.py"),
            "state": str(self.folder),
            "port": self.port,
            "hub_id": self.hub_id,
            "gateway": gateway,
            "token": self.token,
            "image": self.arm.image,
            "label": BENCH_LABEL,
            "cdi_device": self.arm.cdi_device,
            "user": self.arm.user,
            "proxy": self._proxy,
            "traits": traits,
        }

    @property
    def pid(self) -> int:
        """Of the hub's own process."""
        assert self._process is not None
        return self._process.pid

    def kill9(self) -> None:
        """End the hub as an outage does: its proxy and its containers live on."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(10)

    def remove(self) -> None:
        """End hub, service and proxy at once, then remove containers and volumes."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(10)
        with suppress(OSError, ValueError, IndexError):
            proxy = int((self.folder / "jupyterhub-proxy.pid").read_text().split()[0])
            os.kill(proxy, signal.SIGTERM)
        if containers := self.containers():
            docker("rm", "-f", "-v", *containers)
        mine = f"{self.hub_id}-"
        volumes = [name for name in docker("volume", "ls", "-q").split() if name.startswith(mine)]
        if volumes:
            docker("volume", "rm", "-f", *volumes)
        docker("network", "rm", f"{mine}warm")

    def containers(self, user: str = "") -> list[str]:
        """Ids of its containers, or of a user's server."""
        label = OUR_LABEL if self.arm.is_ours else BENCH_LABEL
        words = ["ps", "-aq", "--no-trunc", "--filter", f"label={label}={self.hub_id}"]
        if user and self.arm.is_ours:
            words += ["--filter", f"label=org.pytorch-spawner.server={user}/"]
        elif user:
            words += ["--filter", f"name=^/?{self.hub_id}-{user}$"]
        return docker(*words).split()

    def tail(self, lines: int = 30) -> str:
        """The log's last lines."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    # -- its API -------------------------------------------------------------------------------

    def client(self) -> AsyncHTTPClient:
        """Connections enough for everybody at once; to be closed."""
        return AsyncHTTPClient(force_instance=True, max_clients=512)

    async def ask(
        self,
        client: AsyncHTTPClient,
        method: str,
        path: str,
        body: Any = None,
        timeout_s: float = _START_S,
    ) -> HTTPResponse:
        """Any request through the proxy; whatever it answers, 599 for no answer at all."""
        request = HTTPRequest(
            f"{self.url}/{path}",
            method=method,
            headers={"Authorization": f"token {self.token}"},
            body=json.dumps(body or {}) if method in ("POST", "PUT", "PATCH") else None,
            # Fifty at once keep this machine from connecting for a while.
            connect_timeout=timeout_s,
            request_timeout=timeout_s,
            follow_redirects=False,
        )
        try:
            return await client.fetch(request, raise_error=False)
        except OSError as error:
            return HTTPResponse(request, 599, error=error)

    async def answers(self, client: AsyncHTTPClient, *, with_service: bool = True) -> None:
        """Wait until the hub's API answers; with ours until the lab service does as well."""
        paths = ["hub/api/"]
        if self.arm.is_ours and with_service:
            paths.append("services/lab/api/me")
        deadline = time.monotonic() + _HUB_S
        while paths and time.monotonic() < deadline:
            if self._process is None or self._process.poll() is not None:
                break
            # Until the hub answers, the proxy does: 404.
            if (await self.ask(client, "GET", paths[0], timeout_s=2)).code in (200, 401, 403):
                paths.pop(0)
                continue
            await asyncio.sleep(0.05)
        if paths:
            raise RuntimeError(f"{self.arm.name}: /{paths[0]} does not answer\n{self.tail()}")

    async def add_users(self, client: AsyncHTTPClient, names: Sequence[str]) -> None:
        answer = await self.ask(client, "POST", "hub/api/users", {"usernames": list(names)})
        if answer.code not in (201, 409):
            raise RuntimeError(f"{self.arm.name}: {answer.code} {answer.body!r}")

    async def start(self, client: AsyncHTTPClient, user: str) -> Started:
        """Start a user's server; from the request until the server answers through the proxy."""
        began = time.monotonic()
        path = f"hub/api/users/{user}/server"
        answer = await self.ask(client, "POST", path, dict(self.arm.options))
        if answer.code == 202:
            # It ends with the start, so that nobody has to ask again and again.
            told = (await self.ask(client, "GET", f"{path}/progress")).body.decode()
            if '"ready": true' not in told:
                raise NotStarted(f"{self.arm.name}: {user}: {told[-400:]}\n{self.tail()}")
        elif answer.code != 201:
            raise NotStarted(f"{self.arm.name}: {user}: {answer.code} {answer.body!r}")
        ready = time.monotonic()
        while (await self.ask(client, "GET", f"user/{user}/api", timeout_s=10)).code != 200:
            if time.monotonic() - ready > 30:
                raise NotStarted(f"{self.arm.name}: {user} is ready and does not answer")
            await asyncio.sleep(0.02)
        return Started(ready - began, time.monotonic() - began)

    async def server(self, client: AsyncHTTPClient, user: str) -> dict[str, Any] | None:
        """What the hub says of a user's server; None without one, or without an answer."""
        answer = await self.ask(client, "GET", f"hub/api/users/{user}", timeout_s=5)
        if answer.code != 200:
            return None
        found: dict[str, Any] | None = json.loads(answer.body).get("servers", {}).get("")
        return found

    async def stop(self, client: AsyncHTTPClient, user: str) -> None:
        """Stop a server, and wait until it and its container are gone."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            answer = await self.ask(client, "DELETE", f"hub/api/users/{user}/server")
            if answer.code in (204, 404) and await self.server(client, user) is None:
                return
            await asyncio.sleep(0.1)
        raise RuntimeError(f"{self.arm.name}: {user} does not stop\n{self.tail()}")


def docker(*words: str) -> str:
    """Output of a command of the engine; "" when it failed."""
    done = subprocess.run(["docker", *words], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def gateway_of(network: str) -> str:
    """Where containers of a network reach this machine."""
    shown = docker(
        "network", "inspect", network, "--format", "{{(index .IPAM.Config 0).Gateway}}"
    )  # fmt: skip
    if not shown:
        raise RuntimeError(f"there is no Docker network {network}")
    return shown


@contextmanager
def lab_network() -> Iterator[None]:
    """The network of our servers, as share/setup/network makes it, for a while."""
    docker("network", "create", "-o", "com.docker.network.bridge.enable_icc=false", NETWORK)
    try:
        gateway_of(NETWORK)
        yield
    finally:
        docker("network", "rm", NETWORK)


def calibrate() -> float:
    """Seconds of a fixed piece of work: how much of a core this machine gives just now."""
    began = time.monotonic()
    total = 0
    for number in range(2_000_000):
        total += number & 3
    return time.monotonic() - began
