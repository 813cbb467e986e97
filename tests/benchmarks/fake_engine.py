"""A Docker Engine that only pretends: an HTTP API on a unix socket, in a process of its own.

It answers what docker-py, DockerSpawner and this package's adapters ask, with an engine's own
latencies and an engine's own refusals (names in use, unknown containers and devices), so that the
hub's side of many starts can be measured without containers. A container with an exposed port gets
a loopback address of its own (127.77.x.y); some time after its start an HTTP server answers there,
and until then connections are refused, as with a real one. Every other container is a short job
that ends by itself. What it was not taught is a 404 with a line in the log, and is counted.

    python -m tests.benchmarks.fake_engine --socket /tmp/engine.sock --gpus 8
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import io
import json
import logging
import secrets
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import requests
from aiohttp import web

log = logging.getLogger("fake_engine")

API_VERSION = "1.51"
VERSION = "28.5.2"
KIND = "bench.test/gpu"
NETWORK = "bench"
_FILES = {
    "/etc/passwd": "root:x:0:0:root:/root:/bin/sh\njovyan:x:1000:1000::/home/jovyan:/bin/sh\n",
    "/etc/group": "root:x:0:\njovyan:x:1000:\n",
}
_STARTED_AT = "2026-01-01T00:00:00.000000000Z"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def device_names(count: int) -> list[str]:
    """Identifiers of the GPUs that an engine with so many lists."""
    return [f"GPU-be4c0000-0000-0000-0000-{index:012d}" for index in range(count)]


@dataclass(frozen=True, slots=True)
class Latencies:
    """How long each call takes, in ms; what Engine 28 takes on a small machine.

    Attributes:
        boot: From a server's start until it answers: Python's imports, mostly.
        job: How long a container without a port runs.
    """

    create: float = 60
    start: float = 250
    stop: float = 150
    remove: float = 100
    archive: float = 10
    inspect: float = 2
    list: float = 5
    volume: float = 3
    boot: float = 2000
    job: float = 150


@dataclass(slots=True)
class Container:
    """One container, as much of it as anybody asks about."""

    id: str
    name: str
    config: Mapping[str, Any]
    address: str = ""
    status: str = "created"
    exit_code: int = 0
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    removed: asyncio.Event = field(default_factory=asyncio.Event)
    life: asyncio.Task[None] | None = None

    @property
    def host_config(self) -> Mapping[str, Any]:
        return self.config.get("HostConfig") or {}

    @property
    def port(self) -> int:
        """The port it serves; 0 for a job."""
        ports = self.config.get("ExposedPorts") or {}
        return int(next(iter(ports), "0/tcp").partition("/")[0])

    @property
    def devices(self) -> tuple[str, ...]:
        return tuple(
            device
            for asked in self.host_config.get("DeviceRequests") or ()
            for device in asked.get("DeviceIDs") or ()
        )

    def inspected(self) -> dict[str, Any]:
        is_running = self.status == "running"
        network = self.host_config.get("NetworkMode") or "bridge"
        return {
            "Id": self.id,
            "Name": f"/{self.name}",
            "Image": f"sha256:{'1' * 64}",
            "Config": {**self.config, "HostConfig": None, "Tty": False},
            "HostConfig": self.host_config,
            "State": {
                "Status": self.status,
                "Running": is_running,
                "Paused": False,
                "Restarting": False,
                "OOMKilled": False,
                "Dead": False,
                "Pid": 4711 if is_running else 0,
                "ExitCode": self.exit_code,
                "Error": "",
                "StartedAt": _STARTED_AT,
                "FinishedAt": _STARTED_AT,
            },
            "NetworkSettings": {
                "Networks": {network: {"IPAddress": self.address if is_running else ""}},
                "Ports": {},
            },
            "Mounts": [],
        }

    def listed(self) -> dict[str, Any]:
        return {
            "Id": self.id,
            "Names": [f"/{self.name}"],
            "Image": self.config.get("Image", ""),
            "Labels": self.config.get("Labels") or {},
            "State": self.status,
            "Status": self.status,
            "Created": 0,
            "Mounts": [],
        }


class Refused(Exception):
    """The engine's own no."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class FakeEngine:
    """The containers and volumes of one pretended engine, and its API."""

    def __init__(self, gpus: int, latencies: Latencies, serve: int = 0) -> None:
        self.latencies = latencies
        self._serve = serve
        self.devices = [f"{KIND}={name}" for name in device_names(gpus)]
        self.by_id: dict[str, Container] = {}
        self.by_name: dict[str, Container] = {}
        self.volumes: dict[str, dict[str, Any]] = {}
        self.calls: Counter[str] = Counter()
        self.unknown: Counter[str] = Counter()
        self.listeners: set[asyncio.Queue[dict[str, Any]]] = set()
        self.most_under_way = 0
        self._under_way = 0
        self._addresses = 0

    def app(self) -> web.Application:
        """The API; every route with and without the version in front."""
        app = web.Application(middlewares=[self._middleware], client_max_size=2**26)
        routes: list[tuple[str, str, Handler]] = [
            ("GET", "/_ping", self.ping),
            ("GET", "/version", self.version),
            ("GET", "/info", self.info),
            ("GET", "/events", self.events),
            ("GET", "/containers/json", self.list_containers),
            ("POST", "/containers/create", self.create),
            ("GET", "/containers/{id}/json", self.inspect),
            ("POST", "/containers/{id}/start", self.start),
            ("POST", "/containers/{id}/stop", self.stop),
            ("POST", "/containers/{id}/kill", self.stop),
            ("POST", "/containers/{id}/wait", self.wait),
            ("GET", "/containers/{id}/logs", self.logs),
            ("GET", "/containers/{id}/archive", self.get_archive),
            ("PUT", "/containers/{id}/archive", self.put_archive),
            ("DELETE", "/containers/{id}", self.remove),
            ("GET", "/images/json", self.list_images),
            ("GET", "/images/{image:.+}/json", self.inspect_image),
            ("POST", "/volumes/create", self.create_volume),
            ("GET", "/volumes", self.list_volumes),
            ("GET", "/volumes/{volume}", self.inspect_volume),
            ("DELETE", "/volumes/{volume}", self.remove_volume),
            ("GET", "/networks", self.list_networks),
            ("GET", "/networks/{network}", self.inspect_network),
            ("GET", "/_bench", self.bench),
        ]
        for prefix in ("", "/v{api:[0-9.]+}"):
            for method, path, handler in routes:
                app.router.add_route(method, prefix + path, handler)
        app.router.add_route("*", "/{anything:.*}", self.nothing)
        if self._serve:
            app.cleanup_ctx.append(self._always)
        return app

    async def _always(self, _: web.Application) -> AsyncIterator[None]:
        async with await asyncio.start_server(_answer, "127.0.0.1", self._serve, backlog=512):
            yield

    @web.middleware
    async def _middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self._under_way += 1
        self.most_under_way = max(self.most_under_way, self._under_way)
        self.calls[getattr(handler, "__name__", "?")] += 1
        try:
            return await handler(request)
        except Refused as no:
            return web.json_response({"message": str(no)}, status=no.status)
        finally:
            self._under_way -= 1

    async def _take(self, what: str) -> None:
        await asyncio.sleep(getattr(self.latencies, what) / 1000)

    def _find(self, request: web.Request) -> Container:
        key = request.match_info["id"]
        found = self.by_id.get(key) or self.by_name.get(key)
        if found is None and len(key) >= 12:
            found = next((one for id_, one in self.by_id.items() if id_.startswith(key)), None)
        if found is None:
            raise Refused(404, f"No such container: {key}")
        return found

    # -- the engine itself ------------------------------------------------------------------

    async def ping(self, _: web.Request) -> web.Response:
        return web.Response(text="OK", headers={"API-Version": API_VERSION})

    async def version(self, _: web.Request) -> web.Response:
        told = {"Version": VERSION, "ApiVersion": API_VERSION, "MinAPIVersion": "1.24"}
        return web.json_response({**told, "Os": "linux", "Arch": "amd64"})

    async def info(self, _: web.Request) -> web.Response:
        await self._take("list")
        return web.json_response(
            {
                "ID": "fake",
                "Name": "fake",
                "ServerVersion": VERSION,
                "OSType": "linux",
                "NCPU": 2,
                "MemTotal": 2**34,
                "Containers": len(self.by_id),
                "Runtimes": {"runc": {"path": "runc"}},
                "CDISpecDirs": ["/etc/cdi", "/var/run/cdi"],
                "DiscoveredDevices": [{"Source": "cdi", "ID": name} for name in self.devices],
                "SecurityOptions": [],
            }
        )

    async def events(self, request: web.Request) -> web.StreamResponse:
        """What happens from now on, a line of JSON each, until the client goes."""
        wanted = json.loads(request.query.get("filters", "{}"))
        self._note_filters(wanted, ("type", "event", "label"))
        stream = web.StreamResponse(headers={"Content-Type": "application/json"})
        await stream.prepare(request)
        heard: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.listeners.add(heard)
        try:
            while True:
                event = await heard.get()
                labels = event["Actor"]["Attributes"]
                if event["Action"] in wanted.get("event", [event["Action"]]) and _has_labels(
                    labels, wanted
                ):
                    await stream.write(json.dumps(event).encode() + b"\n")
        except ConnectionError:
            return stream
        finally:
            self.listeners.discard(heard)

    def _tell(self, container: Container, action: str) -> None:
        attributes = {**(container.config.get("Labels") or {}), "name": container.name}
        event = {
            "Type": "container",
            "Action": action,
            "Actor": {"ID": container.id, "Attributes": attributes},
        }
        for listener in self.listeners:
            listener.put_nowait(event)

    def _note_filters(self, wanted: Mapping[str, Any], known: tuple[str, ...]) -> None:
        for key in set(wanted) - set(known):
            log.warning("not taught: filter %s", key)
            self.unknown[f"filter {key}"] += 1

    async def bench(self, _: web.Request) -> web.Response:
        """What happened here so far; no engine has this route."""
        held = Counter(
            device
            for container in self.by_id.values()
            if container.status == "running"
            for device in container.devices
        )
        return web.json_response(
            {
                "calls": self.calls,
                "unknown": self.unknown,
                "most_under_way": self.most_under_way,
                "running": sum(one.status == "running" for one in self.by_id.values()),
                "containers": len(self.by_id),
                "devices_held": len(held),
                "devices_held_twice": [device for device, count in held.items() if count > 1],
            }
        )

    async def nothing(self, request: web.Request) -> web.Response:
        route = f"{request.method} {request.path}"
        log.warning("not taught: %s", route)
        self.unknown[route] += 1
        return web.json_response({"message": f"page not found: {route}"}, status=404)

    # -- containers -------------------------------------------------------------------------

    async def list_containers(self, request: web.Request) -> web.Response:
        await self._take("list")
        wanted = json.loads(request.query.get("filters", "{}"))
        self._note_filters(wanted, ("label", "id", "name", "status"))
        shows_all = request.query.get("all", "0") in ("1", "true", "True")
        return web.json_response(
            [
                container.listed()
                for container in self.by_id.values()
                if (shows_all or container.status == "running") and _matches(container, wanted)
            ]
        )

    async def create(self, request: web.Request) -> web.Response:
        config = await request.json()
        await self._take("create")
        identifier = secrets.token_hex(32)
        name = request.query.get("name") or f"job_{identifier[:12]}"
        if name in self.by_name:
            raise Refused(
                409,
                f'Conflict. The container name "/{name}" is already in use by container '
                f'"{self.by_name[name].id}". You have to remove (or rename) that container to be '
                "able to reuse that name.",
            )
        container = Container(identifier, name, config)
        self.by_id[identifier] = self.by_name[name] = container
        return web.json_response({"Id": identifier, "Warnings": []}, status=201)

    async def inspect(self, request: web.Request) -> web.Response:
        await self._take("inspect")
        return web.json_response(self._find(request).inspected())

    async def start(self, request: web.Request) -> web.Response:
        container = self._find(request)
        await self._take("start")
        if container.status == "running":
            return web.Response(status=304)
        if lost := [name for name in container.devices if name not in self.devices]:
            raise Refused(
                500,
                "failed to create task for container: CDI device injection failed: "
                f"unresolvable CDI devices {', '.join(lost)}",
            )
        self._addresses += 1
        container.address = f"127.77.{self._addresses // 250}.{self._addresses % 250 + 1}"
        container.status = "running"
        container.ended.clear()
        container.life = asyncio.create_task(self._live(container))
        return web.Response(status=204)

    async def _live(self, container: Container) -> None:
        if not container.port:
            await self._take("job")
            await self._end(container, 0)
            return
        await self._take("boot")
        server = await asyncio.start_server(_answer, container.address, container.port, backlog=32)
        async with server:
            await container.ended.wait()

    async def _end(self, container: Container, exit_code: int) -> None:
        if container.status != "running":
            return
        container.status, container.exit_code = "exited", exit_code
        container.ended.set()
        self._tell(container, "die")
        if container.host_config.get("AutoRemove"):
            await self._forget(container)

    async def _forget(self, container: Container) -> None:
        if container.removed.is_set() or container.status == "removing":
            return
        if container.status == "running":
            container.exit_code = 137
            container.ended.set()
            self._tell(container, "die")
        container.status = "removing"
        await self._take("remove")
        self.by_id.pop(container.id, None)
        self.by_name.pop(container.name, None)
        container.removed.set()
        self._tell(container, "destroy")

    async def stop(self, request: web.Request) -> web.Response:
        container = self._find(request)
        if container.status != "running":
            return web.Response(status=304)
        await self._take("stop")
        await self._end(container, 0)
        return web.Response(status=204)

    async def remove(self, request: web.Request) -> web.Response:
        container = self._find(request)
        if container.status == "removing":
            message = f"removal of container {container.id} is already in progress"
            raise Refused(409, message)
        if container.status == "running" and request.query.get("force", "0").lower() not in (
            "1",
            "true",
        ):
            raise Refused(409, f"cannot remove container {container.id}: container is running")
        await self._forget(container)
        return web.Response(status=204)

    async def wait(self, request: web.Request) -> web.Response:
        container = self._find(request)
        if request.query.get("condition") == "removed":
            await container.removed.wait()
        elif container.status in ("created", "running"):
            await container.ended.wait()
        return web.json_response({"StatusCode": container.exit_code})

    async def logs(self, request: web.Request) -> web.Response:
        self._find(request)
        return web.Response(body=b"", content_type="application/vnd.docker.raw-stream")

    async def get_archive(self, request: web.Request) -> web.Response:
        self._find(request)
        await self._take("archive")
        path = request.query["path"]
        if path not in _FILES:
            raise Refused(404, f"Could not find the file {path} in container")
        content = _FILES[path].encode()
        name = path.rpartition("/")[2]
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        stat = {"name": name, "size": len(content), "mode": 0o644, "mtime": _STARTED_AT}
        told = base64.b64encode(json.dumps({**stat, "linkTarget": ""}).encode()).decode()
        return web.Response(
            body=buffer.getvalue(),
            content_type="application/x-tar",
            headers={"X-Docker-Container-Path-Stat": told},
        )

    async def put_archive(self, request: web.Request) -> web.Response:
        self._find(request)
        await request.read()
        await self._take("archive")
        return web.Response(status=200)

    # -- images, volumes, networks ----------------------------------------------------------

    async def list_images(self, _: web.Request) -> web.Response:
        return web.json_response([])

    async def inspect_image(self, request: web.Request) -> web.Response:
        await self._take("inspect")
        name = request.match_info["image"]
        config = {"Cmd": ["jupyterhub-singleuser"], "Env": ["PATH=/usr/bin"], "Labels": {}}
        return web.json_response(
            {
                "Id": f"sha256:{'1' * 64}",
                "RepoTags": [name],
                "Config": {**config, "Entrypoint": None, "User": "", "WorkingDir": ""},
                "Os": "linux",
                "Architecture": "amd64",
                "Size": 2**30,
            }
        )

    async def create_volume(self, request: web.Request) -> web.Response:
        asked = await request.json()
        await self._take("volume")
        name = asked.get("Name") or secrets.token_hex(32)
        born = f"2026-01-01T00:00:00.{time.time_ns() % 10**9:09d}Z"
        volume = {
            "Name": name,
            "Driver": "local",
            "Mountpoint": f"/var/lib/docker/volumes/{name}/_data",
            "CreatedAt": born,
            "Labels": asked.get("Labels") or {},
            "Scope": "local",
            "Options": None,
        }
        return web.json_response(self.volumes.setdefault(name, volume), status=201)

    async def list_volumes(self, request: web.Request) -> web.Response:
        await self._take("list")
        wanted = json.loads(request.query.get("filters", "{}"))
        self._note_filters(wanted, ("label",))
        found = [one for one in self.volumes.values() if _has_labels(one["Labels"], wanted)]
        return web.json_response({"Volumes": found, "Warnings": None})

    async def inspect_volume(self, request: web.Request) -> web.Response:
        await self._take("volume")
        return web.json_response(self._volume(request))

    async def remove_volume(self, request: web.Request) -> web.Response:
        await self._take("volume")
        del self.volumes[self._volume(request)["Name"]]
        return web.Response(status=204)

    def _volume(self, request: web.Request) -> dict[str, Any]:
        name = request.match_info["volume"]
        if name not in self.volumes:
            raise Refused(404, f"get {name}: no such volume")
        return self.volumes[name]

    async def list_networks(self, _: web.Request) -> web.Response:
        return web.json_response([_network(NETWORK)])

    async def inspect_network(self, request: web.Request) -> web.Response:
        return web.json_response(_network(request.match_info["network"]))


def _network(name: str) -> dict[str, Any]:
    config = [{"Subnet": "127.77.0.0/16", "Gateway": "127.0.0.1"}]
    return {"Name": name, "Id": name, "Driver": "bridge", "IPAM": {"Config": config}, "Options": {}}


def _has_labels(labels: Mapping[str, str], wanted: Mapping[str, Any]) -> bool:
    rules = (rule.partition("=") for rule in wanted.get("label") or ())
    return all(
        key in labels and (not is_equal or labels[key] == value) for key, is_equal, value in rules
    )


def _matches(container: Container, wanted: Mapping[str, Any]) -> bool:
    if not _has_labels(container.config.get("Labels") or {}, wanted):
        return False
    if (ids := wanted.get("id")) and not any(container.id.startswith(one) for one in ids):
        return False
    if (names := wanted.get("name")) and not any(one in container.name for one in names):
        return False
    return not (states := wanted.get("status")) or container.status in states


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A single-user server's whole life: 200 to any one request."""
    try:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n"
            b"X-JupyterHub-Version: 0\r\nConnection: close\r\n\r\n{}"
        )
        await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError, asyncio.LimitOverrunError):
        pass
    finally:
        writer.close()


# -- as a process -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Engine:
    """A running fake engine, seen from outside."""

    host: str
    log: Path

    def told(self) -> dict[str, Any]:
        """What happened there so far."""
        import docker

        client = docker.APIClient(base_url=self.host, version=API_VERSION)
        try:
            answer = client.get(f"{client.base_url}/_bench", timeout=30)
            answer.raise_for_status()
            return dict(answer.json())
        finally:
            client.close()


@contextmanager
def running_engine(
    folder: Path, *, gpus: int = 0, latencies: Latencies | None = None, serve: int = 0
) -> Iterator[Engine]:
    """Start one in a process of its own; ``host`` is what DOCKER_HOST should say."""
    # A unix socket's path holds 107 bytes; a test's own folder may be longer.
    place = Path(tempfile.mkdtemp(prefix="engine-"))
    socket, log_file = place / "s", folder / "engine.log"
    command = [sys.executable, "-m", "tests.benchmarks.fake_engine", "--socket", str(socket)]
    command += ["--gpus", str(gpus), "--serve", str(serve)]
    for latency in fields(Latencies):
        value = getattr(latencies or Latencies(), latency.name)
        command += [f"--{latency.name}-ms", str(value)]
    with log_file.open("ab") as output:
        process = subprocess.Popen(
            command, cwd=Path(__file__).resolve().parents[2], stdout=output, stderr=output
        )
    engine = Engine(f"unix://{socket}", log_file)
    try:
        _wait_for(engine, socket, process)
        yield engine
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
        for left in (socket, place):
            with contextlib.suppress(OSError):
                left.unlink() if left is socket else left.rmdir()


def _wait_for(engine: Engine, socket: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        if socket.exists():
            try:
                engine.told()
                return
            except (requests.RequestException, OSError):
                pass
        time.sleep(0.05)
    raise RuntimeError(f"the fake engine did not start: {engine.log.read_text()[-2000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--socket", required=True, help="path of the unix socket to listen on")
    parser.add_argument("--serve", type=int, default=0, help="port on which one server always is")
    parser.add_argument("--gpus", type=int, default=0, help="CDI devices to list")
    for latency in fields(Latencies):
        parser.add_argument(f"--{latency.name}-ms", type=float, default=latency.default)
    options = parser.parse_args()
    latencies = Latencies(
        **{one.name: getattr(options, f"{one.name}_ms") for one in fields(Latencies)}
    )
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    engine = FakeEngine(options.gpus, latencies, options.serve)
    with contextlib.suppress(FileNotFoundError):
        Path(options.socket).unlink()
    web.run_app(
        engine.app(),
        path=options.socket,
        access_log=None,
        print=None,
        backlog=512,
        shutdown_timeout=0.5,
    )


if __name__ == "__main__":
    main()
