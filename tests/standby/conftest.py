"""Standby kernels of this interpreter; what needs torch runs in the lab's image."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("ipykernel", reason="ipykernel is not installed")
PACKAGE = Path(__file__).resolve().parents[2] / "share/images/standby"
sys.path.insert(0, str(PACKAGE))

from standby_kernels import Site, site  # noqa: E402 - the package is not installed here


@pytest.fixture(scope="session", autouse=True)
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home of its own, and the package where a kernel's interpreter finds it."""
    home = tmp_path_factory.mktemp("home")
    before = dict(os.environ)
    os.environ.update(
        HOME=str(home),
        PYTHONPATH=str(PACKAGE),
        PYTHONDONTWRITEBYTECODE="1",
        PYTHONUSERBASE=str(home / ".local"),
        JUPYTER_RUNTIME_DIR=str(home / "runtime"),
    )
    yield home
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def lab() -> Iterator[Site]:
    """A pool of one standby, for a module's tests."""
    with site() as made:
        yield made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A notebook's directory."""
    made = tmp_path / "course"
    made.mkdir()
    return made
