"""A second Docker Engine for tests that end and restart one, and a small image in it.

Restarting the machine's own engine would end other people's containers. This one has its own data,
sockets, containerd namespace and addresses, and makes no firewall rule: its containers reach the
gateway of their network, where the hub listens, and nothing else. Needs root and dockerd.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import docker
from docker.errors import DockerException

IMAGE = "pytorch-spawner-test/python:tiny"
_BRIDGE_ADDRESS = "10.214.255.1/24"
# Python, tini and a shell, with what they load: all that the agent and a small server need.
_PACK = r"""
set -e
python=$(readlink -f "$(command -v python3)")
library=$(python3 -c 'import os; print(os.path.dirname(os.__file__))')
loads=$(ldd "$python" "$library"/lib-dynload/*.so "$(command -v tini)" /bin/sh |
    grep -o '/[^ :]*' | grep '\.so' | grep -v dynload | sort -u)
exec tar -C / -ch --exclude __pycache__ --exclude "${library#/}/test" \
    --exclude "${library#/}/config-*" --exclude "${library#/}/*-packages" \
    $(for path in $loads "${python%/*}/python3" "$library" "$(command -v tini)"; do
        echo "${path#/}"; done) bin/sh etc/passwd etc/group tmp
"""


def missing() -> str:
    """Why there can be no second engine here; "" when there can."""
    if os.geteuid():
        return "a second Docker Engine needs root"
    if not shutil.which("dockerd"):
        return "dockerd is not installed on this machine: the engine runs elsewhere"
    if not shutil.which("ip"):
        return "a second Docker Engine needs the command ip (package iproute2)"
    return ""


class PrivateEngine:
    """One dockerd with everything of its own; ``url`` is what DOCKER_HOST names."""

    def __init__(self) -> None:
        # Short, for the path of a socket has 107 characters at most, and without what mkdtemp puts
        # into names: containerd refuses some of that in a namespace.
        self.dir = Path(f"/tmp/private-engine-{secrets.token_hex(4)}")
        self.dir.mkdir(mode=0o700)
        self.url = f"unix://{self.dir}/docker.sock"
        self.log = self.dir / "dockerd.log"
        # An interface's name has 15 characters at most.
        self.bridge = f"pe-{self.dir.name.rpartition('-')[2]}"
        self._daemon: subprocess.Popen[bytes] | None = None

    def start(self, timeout_s: float = 30) -> float:
        """Start dockerd and wait until it answers; return the seconds that took."""
        began = time.monotonic()
        namespace = self.dir.name
        if not Path(f"/sys/class/net/{self.bridge}").exists():
            _ip("link", "add", self.bridge, "type", "bridge")
            _ip("address", "add", _BRIDGE_ADDRESS, "dev", self.bridge)
            _ip("link", "set", self.bridge, "up")
        words = [
            "dockerd",
            f"--host={self.url}",
            f"--data-root={self.dir}/data",
            f"--exec-root={self.dir}/exec",
            f"--pidfile={self.dir}/docker.pid",
            f"--containerd-namespace={namespace}",
            f"--containerd-plugins-namespace={namespace}-plugins",
            # Not "none", and no address pool of its own: at a start, or a restart, dockerd would
            # remove docker0, which belongs to the machine's own engine (daemon_unix.go,
            # removeDefaultBridgeInterface).
            f"--bridge={self.bridge}",
            "--iptables=false",
            "--ip6tables=false",
            "--ip-masq=false",
            "--ip-forward=false",
            "--userland-proxy=false",
            "--live-restore=false",
            "--shutdown-timeout=3",
            "--group=",
        ]
        with self.log.open("ab") as log:
            self._daemon = subprocess.Popen(words, stdout=log, stderr=log, start_new_session=True)
        while not self.answers():
            if self._daemon.poll() is not None:
                raise AssertionError(f"dockerd ended: {self.tail()}")
            if time.monotonic() - began > timeout_s:
                raise AssertionError(f"dockerd did not answer in {timeout_s} s: {self.tail()}")
            time.sleep(0.05)
        return time.monotonic() - began

    def answers(self) -> bool:
        try:
            client = docker.DockerClient(base_url=self.url, timeout=5)
        except DockerException:
            return False
        try:
            return bool(client.ping())
        except (DockerException, OSError):
            return False
        finally:
            client.close()

    def end(self, how: signal.Signals = signal.SIGKILL) -> None:
        """End dockerd; by SIGKILL its containers live on until it is started again."""
        if self._daemon is not None:
            self._daemon.send_signal(how)
            self._daemon.wait(30)
            self._daemon = None
            # Its containerd died with it. A first process that reaps late leaves that one a zombie,
            # which the next dockerd would take for a containerd that hangs, and wait 10 s.
            (self.dir / "exec" / "containerd" / "containerd.pid").unlink(missing_ok=True)

    def load_image(self, source: str) -> None:
        """Make ``IMAGE`` from Python as it is in an image of the machine's own engine."""
        run = ["docker", "run", "--rm", "--user=0", "--network=none", "--entrypoint=sh"]
        pack = subprocess.Popen([*run, source, "-c", _PACK], stdout=subprocess.PIPE)
        changes = ['ENTRYPOINT ["tini","-g","--"]', "USER 65534", "ENV LANG=C.UTF-8"]
        subprocess.run(
            [
                "docker",
                f"--host={self.url}",
                "import",
                *(f"--change={change}" for change in changes),
                "-",
                IMAGE,
            ],
            stdin=pack.stdout,
            stdout=subprocess.DEVNULL,
            check=True,
        )
        assert pack.wait(60) == 0, "the image's files could not be packed"

    def remove(self) -> None:
        """End it with everything that it made: containers, networks, mounts, files."""
        if self._daemon is None:
            self.start()
        client = docker.DockerClient(base_url=self.url)
        for container in client.containers.list(all=True):
            container.remove(force=True)
        client.networks.prune()
        client.close()
        self.end(signal.SIGTERM)
        for mount in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
            place = mount.split()[4]
            if place.startswith(f"{self.dir}/"):
                subprocess.run(["umount", "--lazy", place], check=False)
        _ip("link", "delete", self.bridge)
        shutil.rmtree(self.dir)

    def tail(self, lines: int = 20) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextmanager
def private_engine(source_image: str) -> Iterator[PrivateEngine]:
    """A running engine that holds ``IMAGE``; gone again afterwards."""
    engine = PrivateEngine()
    others = Path("/sys/class/net/docker0")
    was_there = others.exists()
    try:
        engine.start()
        engine.load_image(source_image)
        yield engine
    finally:
        engine.remove()
        assert others.exists() == was_there, "the machine's own engine lost its bridge"
