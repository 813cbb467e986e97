"""What can run here runs; what cannot is skipped with its reason. No test needs the internet."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

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


@pytest.fixture(scope="session")
def lab_image() -> str:
    return IMAGE
