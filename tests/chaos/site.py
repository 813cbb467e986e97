"""A lab on an engine of its own, the faults that befall it, and what is left afterwards."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import requests
from docker.errors import NotFound

from pytorch_spawner.core.grants import Grant
from pytorch_spawner.failpoints import POINTS, VARIABLE
from tests.lab_driver import Lab
from tests.private_engine import IMAGE, PrivateEngine

FAULTS = ("hub-kill", "engine-restart", "service-kill", "container-removed")
SERVER_RUNS = "server-runs"  # nothing is under way at this one
AT_STOP = POINTS[POINTS.index("stop-begun") :]
GRANTS = (Grant("class", count=2), Grant("thesis", to="user", subject="cleo", priority=5))
_RECONCILE_S = 1
_SLACK_S = 4
_REACHED_WITHIN_S = 20
_BACK_WITHIN_S = 20
# An attempt of JupyterHub at the address of a container that is gone takes 30 s.
_QUIET_WITHIN_S = 90
_ENGINE_AWAY_S = 1
_HTTP_S = 8
# It answers at once, and only under its own prefix: an address may soon be another container's.
_SERVER = """
import http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        is_ours = self.path.startswith(os.environ["JUPYTERHUB_SERVICE_PREFIX"])
        self.send_response(200 if is_ours else 404)
        self.end_headers()
    def log_message(self, *args): pass
http.server.ThreadingHTTPServer(("0.0.0.0", 8888), Handler).serve_forever()
"""


def quick_lab(
    directory: Path,
    engine: PrivateEngine,
    *,
    gpus: int,
    traits: dict[str, Any] | None = None,
    env: dict[str, str] | None = None,
) -> Lab:
    """A lab whose servers answer as soon as their containers run."""
    return Lab(
        directory,
        gpus=gpus,
        image=IMAGE,
        docker_host=engine.url,
        traits={
            "PyTorchSpawner.cmd": ["python3", "-c", _SERVER],
            # JupyterHub makes one attempt, and not two, at a server that went after it answered.
            "PyTorchSpawner.http_timeout": _HTTP_S,
            **(traits or {}),
        },
        env=env,
    )


@dataclass
class Site:
    """A hub that serves many cases; after a case that failed, a fresh one."""

    engine: PrivateEngine
    new_dir: Callable[[], Path]
    current: Lab | None = None
    is_clean: bool = False
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(4))
    numbers: Iterator[int] = field(default_factory=count)

    @property
    def lab(self) -> Lab:
        assert self.current is not None
        return self.current

    @property
    def failpoint(self) -> Path:
        return self.lab.dir / "failpoint"

    def fresh(self) -> Lab:
        if self.current is not None and self.is_clean:
            self.is_clean = False
            return self.current
        self.end()
        directory = self.new_dir()
        self.current = quick_lab(
            directory,
            self.engine,
            gpus=2,
            env={
                "LAB_RECONCILE_S": str(_RECONCILE_S),
                "LAB_CONFIG": str(Path(__file__).with_name("quick_service.py")),
                VARIABLE: f"@{directory / 'failpoint'}",
            },
        )
        self.current.start()
        write_grants(self.current)
        return self.current

    def end(self) -> None:
        if self.current is not None:
            self.current.stop()
            self.current = None

    # -- a point, and what happens there --------------------------------------------------------

    @contextmanager
    def held_at(self, point: str, act: Callable[[], Any]) -> Iterator[None]:
        """Run ``act`` until the hub reaches the point, and hold it there for the block."""
        number = next(self.numbers)
        reached, go = (self.lab.dir / f"{word}-{number}" for word in ("reached", "go"))
        self.failpoint.write_text(
            f"{point}=touch {reached}; for i in $(seq 500); do [ -e {go} ] && break; "
            "sleep 0.02; done\n"
        )
        self.pool.submit(_quietly, act)
        self.lab.wait_until(reached.exists, _REACHED_WITHIN_S, f"{point} was not reached")
        try:
            yield
        finally:
            go.touch()
            self.failpoint.write_text("")

    def kill_hub_at(self, point: str, act: Callable[[], Any]) -> None:
        """Let the hub end itself at the point, then start it again."""
        hub = self.lab.hub
        assert hub is not None
        if point == SERVER_RUNS:
            self.lab.kill9()
        else:
            self.failpoint.write_text(f"{point}\n")
            self.pool.submit(_quietly, act)
            hub.wait(_REACHED_WITHIN_S)
        assert hub.returncode == -signal.SIGKILL, f"{point} was not reached"
        self.failpoint.write_text("")
        self.lab.start()

    def harm(self, fault: str, user: str, neighbour: str) -> None:
        """Do what takes no hub: to the engine, the service, or a container.

        At a point at which the user has no container yet, or none any more, the neighbour's goes.
        """
        if fault == "engine-restart":
            self.engine.end(signal.SIGKILL)
        elif fault == "service-kill":
            self.lab.wait_until(self.lab.service_pid, 10, "no service")
            pid = self.lab.service_pid()
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
        else:
            container = self.lab.container(user) or self.lab.container(neighbour)
            assert container is not None, "there is nothing to remove"
            try:
                container.remove(force=True)
            except NotFound:
                pass  # the hub was faster

    def mend(self, fault: str) -> None:
        if fault == "engine-restart":
            time.sleep(_ENGINE_AWAY_S)
            self.engine.start()
        if fault == "service-kill":
            self.lab.wait_until(self.lab.service_pid, 10, "the service stayed away")


def _quietly(act: Callable[[], Any]) -> None:
    try:
        act()
    except requests.RequestException:
        pass  # the hub died while it answered, as it should


def write_grants(lab: Lab) -> None:
    ledger = lab.ledger()
    try:
        ledger.write_grants(lab.hub_id, GRANTS, by="tests")
    finally:
        ledger.close()


def lost_grants(lab: Lab) -> list[Grant]:
    ledger = lab.ledger()
    try:
        found = ledger.grants(lab.hub_id)
    finally:
        ledger.close()
    return [grant for grant in GRANTS if grant not in found]


def waiting(lab: Lab) -> list[str]:
    ledger = lab.ledger()
    try:
        return [row.ticket.username for row in ledger.queue(lab.hub_id)]
    finally:
        ledger.close()


# -- what a student does -------------------------------------------------------------------------


def _is_served(lab: Lab, user: str) -> bool:
    try:
        return lab.session.get(f"{lab.url}/user/{user}/api", timeout=2).status_code == 200
    except requests.RequestException:
        return False


def come_back(lab: Lab, user: str) -> float:
    """Ask again and again until the server answers; return the seconds it took."""
    began = time.monotonic()
    while time.monotonic() - began < _BACK_WITHIN_S:
        server = lab.server(user)
        if server and server["ready"] and _is_served(lab, user):
            return time.monotonic() - began
        if server is None or server["ready"]:  # what the hub takes for ready may be gone
            lab.spawn(user)
        time.sleep(0.1)
    raise AssertionError(f"{user} has no server after {_BACK_WITHIN_S} s\n{lab.tail(80)}")


# -- what is left ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Left:
    """What there is beside one lease and one running container for each server of the hub.

    Attributes:
        leaked: Users of leases that no server holds. One that is kept for a while for somebody
            whose server ended by itself is none.
        orphaned: Names of containers, running or not, that no server needs.
        missing: Users whose server has no lease, or no container that runs and carries it.
        leases: How many leases one user has, kept ones included.
        containers: How many containers one user has.
    """

    leaked: list[str]
    orphaned: list[str]
    missing: list[str]
    leases: int
    containers: int

    @property
    def is_exact(self) -> bool:
        return not (self.leaked or self.orphaned or self.missing)


def left_now(lab: Lab, users: tuple[str, str], kept_for: set[str]) -> Left:
    """Compare ledger and engine with the hub; ``kept_for``: whose lease may be kept."""
    active = [user for user in users if lab.server(user)]
    leases = lab.leases()
    containers = lab.docker.containers.list(all=True, ignore_removed=True)
    spare = Counter(lease.username for lease in leases if lease.kept_until is None)
    spare.subtract(active)
    kept = [lease.username for lease in leases if lease.kept_until is not None]
    carried = {lease.id for lease in leases if lease.username in active}
    labels = [container.labels.get("org.pytorch-spawner.lease", "") for container in containers]
    running = Counter(
        label
        for label, container in zip(labels, containers, strict=True)
        if container.status == "running"
    )
    served = [x.username for x in leases if x.kept_until is None and running[x.id] == 1]
    orphaned = [
        f"{container.name} ({container.status})"
        for label, container in zip(labels, containers, strict=True)
        if label not in carried
    ]
    return Left(
        leaked=[*(+spare).elements(), *(user for user in kept if user not in kept_for)],
        orphaned=orphaned,
        missing=sorted(set(active) - set(served)),
        leases=sum(lease.username == users[0] for lease in leases),
        containers=sum(
            container.labels.get("org.pytorch-spawner.server") == f"{users[0]}/"
            for container in containers
        ),
    )


def left_after_one_reconcile(
    lab: Lab, users: tuple[str, str], kept_for: set[str] | None = None
) -> Left:
    """Wait until no start or stop is under way, then at most for one reconcile."""

    def is_quiet() -> bool:
        servers = [lab.server(user) for user in users]
        return not any(server and server["pending"] for server in servers)

    lab.wait_until(is_quiet, _QUIET_WITHIN_S, "a start or a stop does not end")
    deadline = time.monotonic() + _RECONCILE_S + _SLACK_S
    left = left_now(lab, users, kept_for or set())
    while not left.is_exact and time.monotonic() < deadline:
        time.sleep(0.1)
        left = left_now(lab, users, kept_for or set())
    return left
