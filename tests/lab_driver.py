"""A whole lab on this machine for a test: real hub, real proxy, real engine, simulated GPUs."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docker
import requests

from pytorch_spawner.core.gpus import GpuUuid
from pytorch_spawner.ledger.store import Lease, Ledger
from tests.ports import free_port_block

ROOT = Path(__file__).resolve().parents[1]
SPEC = Path("/etc/cdi/pytorch-spawner-test.json")
KIND = "pytorch-spawner.test/gpu"
NETWORK = "pytorch-spawner-test"


def simulated_gpus(count: int) -> list[dict[str, Any]]:
    """Simulated GPUs, described to the engine through CDI like real ones (needs root)."""
    names = [f"GPU-7e570000-0000-0000-0000-{index:012d}" for index in range(count)]
    devices = [
        {
            "name": name,
            "containerEdits": {
                "env": [f"TEST_GPU_{index}=1"],
                "deviceNodes": [{"path": f"/dev/test-gpu{index}", "hostPath": "/dev/null"}],
            },
        }
        for index, name in enumerate(names)
    ]
    SPEC.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(SPEC.read_text()) if SPEC.exists() else {"devices": []}
    if len(known["devices"]) < count:
        SPEC.write_text(json.dumps({"cdiVersion": "0.5.0", "kind": KIND, "devices": devices}))
        time.sleep(1)  # the engine watches the folder
    return [
        {
            "uuid": name,
            "index": index,
            "name": "Test GPU",
            "cdi_name": f"{KIND}={name}",
            "is_simulated": True,
        }
        for index, name in enumerate(names)
    ]


def ensure_network(docker_host: str = "") -> None:
    subprocess.run(
        [
            "docker",
            "network",
            "create",
            "-o",
            "com.docker.network.bridge.enable_icc=false",
            NETWORK,
        ],
        env={**os.environ, **_reaching(docker_host)},
        capture_output=True,
        check=False,
    )


def _reaching(docker_host: str) -> dict[str, str]:
    """What the environment says for an engine; nothing for the machine's own."""
    return {"DOCKER_HOST": docker_host} if docker_host else {}


class Lab:
    """One hub with its own ports, state and containers."""

    def __init__(
        self,
        directory: Path,
        *,
        gpus: int = 2,
        traits: dict[str, Any] | None = None,
        image: str = "pytorch-spawner/lab:cpu",
        env: dict[str, str] | None = None,
        docker_host: str = "",
    ) -> None:
        self.dir = directory
        self.docker_host = docker_host
        self.port = free_port_block(4)  # proxy, hub, proxy's API, lab service
        self.hub_id = f"lab-{self.port}"
        self.url = f"http://127.0.0.1:{self.port}"
        self.token = secrets.token_hex(16)
        self.traits = {
            "PyTorchSpawner.inventory": simulated_gpus(gpus) if gpus else [],
            "PyTorchSpawner.warmup": False,
            "PyTorchSpawner.on_busy": "fail",
            "PyTorchSpawner.pull_policy": "never",
            **(traits or {}),
        }
        self.image = image
        self.env = env or {}
        self.hub: subprocess.Popen[bytes] | None = None
        self.log = directory / "hub.log"
        self.docker = (
            docker.DockerClient(base_url=docker_host) if docker_host else docker.from_env()
        )
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.headers["Authorization"] = f"token {self.token}"

    # -- the hub's life -----------------------------------------------------------------------

    def start(self, timeout_s: float = 40) -> Lab:
        ensure_network(self.docker_host)
        if self.hub is None:
            # Its ports are free, so whatever has its name is of a run that was killed.
            self._remove_all()
        path = f"{ROOT / 'node_modules' / '.bin'}{os.pathsep}{Path(sys.executable).parent}"
        env = {
            **os.environ,
            "PATH": f"{path}{os.pathsep}{os.environ['PATH']}",
            "LAB_DIR": str(self.dir),
            "LAB_PORT": str(self.port),
            "LAB_NETWORK": NETWORK,
            "LAB_IMAGE": self.image,
            "LAB_CONFIG": str(ROOT / "jupyterhub_config.py"),
            "LAB_TEST_TOKEN": self.token,
            "LAB_TEST_TRAITS": json.dumps(self.traits),
            **_reaching(self.docker_host),
            **self.env,
        }
        with self.log.open("ab") as log:
            self.hub = subprocess.Popen(
                [sys.executable, "-m", "jupyterhub", "-f", str(ROOT / "tests" / "hub_config.py")],
                cwd=self.dir,
                env=env,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.wait_for_hub(timeout_s)
        return self

    def wait_for_hub(self, timeout_s: float = 40) -> None:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self.hub is not None and self.hub.poll() is not None:
                raise AssertionError(f"the hub ended: {self.tail()}")
            try:
                if self.session.get(f"{self.url}/hub/api/", timeout=2).ok:
                    return
            except requests.RequestException:
                pass
            time.sleep(0.1)
        raise AssertionError(f"the hub did not answer in {timeout_s} s: {self.tail()}")

    def kill9(self) -> None:
        """End the hub as an outage does: at once, its proxy and containers live on."""
        assert self.hub is not None
        os.kill(self.hub.pid, signal.SIGKILL)
        self.hub.wait(10)

    def service_pid(self) -> int | None:
        """The hub's child that is the lab service, by its command line."""
        assert self.hub is not None
        for place in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
                words = (place / "cmdline").read_bytes().split(b"\0")
            except OSError:  # it ended meanwhile
                continue
            if parent == self.hub.pid and b"pytorch_spawner.lab" in words:
                return int(place.name)
        return None

    def stop(self) -> None:
        if self.hub is not None and self.hub.poll() is None:
            self.hub.terminate()
            try:
                self.hub.wait(20)
            except subprocess.TimeoutExpired:
                self.hub.kill()
        pid_file = self.dir / "jupyterhub-proxy.pid"
        if pid_file.exists():
            try:
                os.kill(int(pid_file.read_text().split()[0]), signal.SIGTERM)
            except (ProcessLookupError, ValueError):
                pass
        self._remove_all()

    def _remove_all(self) -> None:
        """Containers, volumes and networks with this lab's name."""
        for container in self.containers():
            container.remove(force=True)
        for volume in self.docker.volumes.list():
            if volume.name.startswith(f"{self.hub_id}-"):
                volume.remove(force=True)
        # An engine has addresses for some thirty networks.
        for network in self.docker.networks.list(names=[f"{self.hub_id}-"]):
            network.remove()

    def tail(self, lines: int = 40) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    # -- through the hub's API ------------------------------------------------------------------

    def api(self, method: str, path: str, **kwargs: Any) -> requests.Response:
        return self.session.request(method, f"{self.url}/hub/api/{path}", timeout=60, **kwargs)

    def add_users(self, *names: str) -> None:
        for name in names:
            answer = self.api("POST", f"users/{requests.utils.quote(name, safe='')}")
            assert answer.status_code in (201, 409), answer.text

    def spawn(
        self,
        user: str,
        options: dict[str, Any] | None = None,
        server: str = "",
    ) -> requests.Response:
        path = f"users/{requests.utils.quote(user, safe='')}/server" + (
            f"s/{server}" if server else ""
        )
        return self.api("POST", path, json=options or {})

    def start_server(
        self,
        user: str,
        options: dict[str, Any] | None = None,
        server: str = "",
        timeout_s: float = 90,
    ) -> None:
        self.add_users(user)
        answer = self.spawn(user, options, server)
        assert answer.status_code in (201, 202), f"{answer.text}\n{self.tail()}"
        self.wait_ready(user, server, timeout_s)

    def server(self, user: str, server: str = "") -> dict[str, Any] | None:
        answer = self.api(
            "GET", f"users/{requests.utils.quote(user, safe='')}?include_stopped_servers"
        )
        assert answer.ok, answer.text
        found = answer.json()["servers"].get(server)
        return found if found and (found["ready"] or found["pending"]) else None

    def wait_ready(self, user: str, server: str = "", timeout_s: float = 90) -> None:
        self.wait_until(
            lambda: (self.server(user, server) or {}).get("ready"),
            timeout_s,
            f"{user}/{server} is not ready",
        )

    def stop_server(self, user: str, server: str = "", timeout_s: float = 40) -> None:
        path = f"users/{requests.utils.quote(user, safe='')}/server" + (
            f"s/{server}" if server else ""
        )
        answer = self.api("DELETE", path)
        assert answer.status_code in (202, 204), answer.text
        self.wait_until(lambda: self.server(user, server) is None, timeout_s, f"{user} runs on")

    def wait_until(self, condition: Any, timeout_s: float, message: str) -> None:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if condition():
                return
            time.sleep(0.1)
        raise AssertionError(f"{message} after {timeout_s} s\n{self.tail()}")

    def user_token(self, user: str) -> str:
        answer = self.api("POST", f"users/{user}/tokens", json={})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["token"])

    # -- behind its back --------------------------------------------------------------------------

    def ledger(self) -> Ledger:
        return Ledger.open(f"sqlite:///{self.dir / 'ledger.sqlite'}")

    def leases(self) -> tuple[Lease, ...]:
        ledger = self.ledger()
        try:
            return ledger.leases(self.hub_id)
        finally:
            ledger.close()

    def events(self, user: str, server: str = "") -> list[dict[str, Any]]:
        ledger = self.ledger()
        try:
            start = ledger.latest_start(self.hub_id, user, server)
            return [event.as_json() for event in ledger.read_events(start.id)] if start else []
        finally:
            ledger.close()

    def containers(self) -> list[Any]:
        return self.docker.containers.list(
            all=True,
            filters={"label": f"org.pytorch-spawner.hub={self.hub_id}"},
            ignore_removed=True,
        )

    def container(self, user: str, server: str = "") -> Any:
        label = f"org.pytorch-spawner.server={user}/{server}"
        found = self.docker.containers.list(
            all=True,
            filters={"label": [f"org.pytorch-spawner.hub={self.hub_id}", label]},
            ignore_removed=True,
        )
        return found[0] if found else None

    def exec(self, user: str, *command: str, server: str = "") -> str:
        container = self.container(user, server)
        code, output = container.exec_run(list(command))
        text = output.decode(errors="replace").strip()
        assert code == 0, f"{command}: {code}: {text}"
        return text

    def gpus_held_twice(self) -> list[str]:
        """GPUs that two running containers carry; the one thing that must never be."""
        seen: list[GpuUuid] = []
        for container in self.containers():
            if container.status == "running":
                gpus = container.labels["org.pytorch-spawner.gpus"]
                seen += [GpuUuid(gpu) for gpu in gpus.split(",") if gpu]
        return [gpu for gpu in set(seen) if seen.count(gpu) > 1]


@contextmanager
def running_lab(directory: Path, **settings: Any) -> Iterator[Lab]:
    lab = Lab(directory, **settings)
    try:
        yield lab.start()
    finally:
        lab.stop()


def sh(*words: str) -> Sequence[str]:
    return ("sh", "-c", *words)
