"""What a standby has ready before the first cell, beside what it imports."""

from __future__ import annotations

import _ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

STANDBY = Path(__file__).resolve().parents[2] / "share/images/standby"
# In a process of its own: a library stays loaded.
LOAD = """
import ctypes, sys
sys.path.insert(0, sys.argv[1])
from pytorch_spawner_standby import preload
if len(sys.argv) > 2:
    ctypes.CDLL(sys.argv[2])
preload._load_cudnn()
print(" ".join(sorted(path.name for path in preload._mapped("libcudnn"))))
"""


def loaded(*words: str | Path) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", LOAD, STANDBY, *words], capture_output=True, text=True, check=True
    )
    return done.stdout.split()


@pytest.fixture
def cudnn(tmp_path: Path) -> Path:
    """cuDNN's names, with this interpreter's own library for ctypes behind them."""
    names = ("libcudnn.so.9", "libcudnn_ops.so.9", "libcudnn_cnn.so.9", "libcudnn_old.so.8")
    for name in (*names, "libother_ops.so.9"):
        shutil.copy(_ctypes.__file__, tmp_path / name)
    (tmp_path / "libcudnn_broken.so.9").write_text("no library")
    return tmp_path / "libcudnn.so.9"


def test_parts_of_the_cudnn_that_torch_is_linked_with_are_loaded(cudnn: Path) -> None:
    names = ["libcudnn.so.9", "libcudnn_cnn.so.9", "libcudnn_ops.so.9"]
    assert loaded(cudnn) == names


def test_where_torch_has_no_cudnn_nothing_is_loaded(cudnn: Path) -> None:
    assert loaded() == []
