"""The packed agent, and what a container's start gives it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from agent_service import MISSING, Service, processes_with, write_shell

from pytorch_spawner.agent.bundle import build


@pytest.fixture
def service() -> Iterator[Service]:
    running = Service()
    yield running
    running.close()


@pytest.fixture(scope="session")
def pyz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("agent") / "agent.pyz"
    build(target)
    return target


class Clock:
    """In the place of the module ``time``: it goes on when somebody sleeps, and only then.

    What is measured with it takes the same seconds on every machine.
    """

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0, "as the real one demands"
        self.now_s += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def fake_torch(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a module named torch; what it returns goes on PYTHONPATH."""

    def write(source: str) -> Path:
        folder = tmp_path / "fake"
        folder.mkdir()
        (folder / "torch.py").write_text(source)
        return folder

    return write


@pytest.fixture
def container_env(tmp_path: Path, service: Service) -> Iterator[Callable[..., dict[str, str]]]:
    """An environment as the spawner makes it, with every server it names being ``service``.

    Its image has no PyTorch. Detached workers that still run afterwards are ended.
    """
    without = tmp_path / "without"
    without.mkdir()
    (without / "torch.py").write_text(MISSING)

    def make(config: Mapping[str, Any] | str | None = None, **more: str) -> dict[str, str]:
        home = tmp_path / "home"
        home.mkdir(exist_ok=True)
        if config is None:
            config = {"start": "s1", "gpus": [], "share": "none", "cache_dir": str(tmp_path)}
        return {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(home),
            "SHELL": write_shell(tmp_path / "shell"),
            "PYTORCH_SPAWNER_AGENT": config if isinstance(config, str) else json.dumps(config),
            "PYTORCH_SPAWNER_EVENTS_URL": f"{service.url}/services/lab/api/events",
            "JUPYTERHUB_API_TOKEN": "secret",
            "JUPYTERHUB_API_URL": f"{service.url}/hub/api",
            "JUPYTERHUB_SERVICE_URL": f"http://0.0.0.0:{service.port}/user/ana/",
            "JUPYTERHUB_SERVICE_PREFIX": "/user/ana/",
            "PYTHONPATH": str(without),
            **more,
        }

    yield make
    for pid in processes_with(str(tmp_path)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def agent(pyz: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start the agent's worker as a child of the test, killed with everything it started."""
    started: list[subprocess.Popen[bytes]] = []

    def start(env: dict[str, str]) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-I", str(pyz), "--worker", "agent"]
        started.append(subprocess.Popen(command, env=env, start_new_session=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
