"""What can run here runs; what cannot is skipped with its reason. No test needs the internet."""

from __future__ import annotations

import gc
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tests.examples  # noqa: F401  (before any test says how many examples it wants)

IMAGE = os.environ.get("LAB_IMAGE", "pytorch-spawner/lab:cpu")
ROOT = Path(__file__).resolve().parents[1]


def _docker_trouble() -> str:
    if reason := os.environ.get("LAB_SKIP_DOCKER"):
        return reason
    if not shutil.which("docker"):
        return "Docker is not installed"
    if subprocess.run(["docker", "info"], capture_output=True).returncode:
        return "no Docker Engine answers"
    if subprocess.run(["docker", "image", "inspect", IMAGE], capture_output=True).returncode:
        return f"the image {IMAGE} is not built (share/images/build)"
    if os.geteuid():
        return "not root: the simulated GPUs are described in /etc/cdi"
    ask = ["docker", "info", "--format", "{{json .CDISpecDirs}}"]
    if '"/etc/cdi"' not in subprocess.run(ask, capture_output=True, text=True).stdout:
        return "this Docker Engine has no CDI (28.2 or newer has)"
    return ""


def _browser_trouble() -> str:
    if reason := os.environ.get("LAB_SKIP_BROWSER"):
        return reason
    if not shutil.which("chromium"):
        return "Chromium is not installed"
    return ""


def _proxy_trouble() -> str:
    if not shutil.which("configurable-http-proxy", path=_path()):
        return "configurable-http-proxy is not installed (npm ci)"
    return ""


def _path() -> str:
    return f"{ROOT / 'node_modules' / '.bin'}{os.pathsep}{os.environ['PATH']}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    troubles: dict[str, str] = {}
    asks = {
        "docker": _docker_trouble,
        "browser": _browser_trouble,
        "gpu": lambda: "" if shutil.which("nvidia-smi") else "no NVIDIA GPU on this machine",
    }
    for item in items:
        for marker, ask in asks.items():
            if item.get_closest_marker(marker) is None:
                continue
            if marker not in troubles:
                troubles[marker] = ask()
            if troubles[marker]:
                item.add_marker(pytest.mark.skip(reason=troubles[marker]))


def pytest_collection_finish() -> None:
    """Thousands of tests stay until the end: no collection need look through them again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def lab_image() -> str:
    return IMAGE


@pytest.fixture(scope="session", autouse=True)
def new_ledgers_are_copies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nearly every test makes a ledger: the migrations make the first, and its schema the others.

    ``ledger/test_migrations.py`` holds what the migrations do; an older ledger always runs them.
    """
    database = sys.modules.get("pytorch_spawner.ledger.database")
    if database is None:  # no test that was collected has one
        yield
        return
    migrate, made = database._migrate, []

    def quick(connection: Any) -> None:
        if connection.dialect.name != "sqlite" or database._revision(connection) is not None:
            migrate(connection)
            return
        if not made:
            path = tmp_path_factory.mktemp("schema") / "ledger.sqlite"
            engine = database._create_engine(f"sqlite:///{path}", journal="DELETE", mode="rwc")
            with engine.begin() as first:
                migrate(first)
            engine.dispose()
            with sqlite3.connect(path) as opened:
                made.extend(line for line in opened.iterdump() if line not in _AROUND)
            opened.close()
        for statement in made:
            connection.exec_driver_sql(statement)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(database, "_migrate", quick)
        yield


@pytest.fixture(scope="session")
def ledgers_made() -> Iterator[list[Any]]:
    database = sys.modules.get("pytorch_spawner.ledger.database")
    made: list[Any] = []
    if database is None:
        yield made
        return
    make = database.Database.__init__

    def noted(self: Any, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        made.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(database.Database, "__init__", noted)
        yield made


@pytest.fixture(autouse=True)
def ledgers_are_closed(ledgers_made: list[Any]) -> Iterator[None]:
    """Three open files each, of thousands: they would wait for a rare collection of old garbage."""
    yield
    while ledgers_made:
        ledgers_made.pop().close()  # one that somebody still uses opens again


_AROUND = ("BEGIN TRANSACTION;", "COMMIT;")
