"""What a standby has ready before the first cell, beside what it imports."""

from __future__ import annotations

import _ctypes
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

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


# Enough of torch for what is compared; none of what the standby only tries.
TORCH = """
from . import cuda
_dtype, _threads, _precision, _seed = "float32", 2, "highest", 0
compile = lambda function: function
get_rng_state = lambda: __import__("numpy").array([_seed])
get_default_dtype = lambda: _dtype
is_grad_enabled = lambda: True
get_num_threads = lambda: _threads
get_float32_matmul_precision = lambda: _precision
are_deterministic_algorithms_enabled = lambda: False
def _set(name, value):
    globals()[name] = value
manual_seed = lambda value: _set("_seed", value)
set_default_dtype = lambda value: _set("_dtype", value)
set_num_threads = lambda value: _set("_threads", value)
set_float32_matmul_precision = lambda value: _set("_precision", value)
"""
# It reads the variable once, as the real one does.
MATPLOTLIB = "import os\nbackend = os.environ.get('MPLBACKEND') or 'agg'\n"
PRELOAD = """
import json, os, sys
sys.path[:0] = sys.argv[1:3]
from pytorch_spawner_standby import preload
preload.exercise = lambda: None
try:
    said = preload.preload("of_course")
except preload.Spoilt as error:
    said = str(error)
matplotlib = sys.modules.get("matplotlib")
print(json.dumps([said, os.environ.get("MPLBACKEND"), matplotlib and matplotlib.backend]))
"""
INLINE = "module://matplotlib_inline.backend_inline"


@pytest.fixture
def preloaded(tmp_path: Path) -> Any:
    """What a standby says whose course imports this, its MPLBACKEND and matplotlib's backend."""
    stand_ins = {
        "torch/__init__.py": TORCH,
        "torch/cuda.py": "is_initialized = bool",
        "torch/nn.py": "",
        "matplotlib/__init__.py": MATPLOTLIB,
        "matplotlib_inline/__init__.py": "",
        "matplotlib_inline/backend_inline.py": "",
    }

    def run(source: str, **environ: str) -> list[Any]:
        for name, text in {**stand_ins, "of_course.py": source}.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(text)
        given = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
        done = subprocess.run(
            [sys.executable, "-c", PRELOAD, STANDBY, tmp_path],
            env={**given, **environ}, cwd=tmp_path, capture_output=True, text=True, check=True,
        )  # fmt: skip
        said: list[Any] = json.loads(done.stdout)
        return said

    return run


def test_plots_are_shown_where_an_import_of_the_course_brings_matplotlib(preloaded: Any) -> None:
    assert preloaded("import matplotlib")[1:] == [INLINE, INLINE]
    assert preloaded("import matplotlib", MPLBACKEND="")[1:] == [INLINE, INLINE]


def test_a_backend_that_the_environment_names_is_the_one(preloaded: Any) -> None:
    assert preloaded("import matplotlib", MPLBACKEND="svg")[1:] == ["svg", "svg"]
    assert preloaded("", MPLBACKEND="svg")[1:] == ["svg", None]


def test_a_backend_may_still_be_named_where_nothing_has_read_it(preloaded: Any) -> None:
    assert preloaded("")[1:] == [None, None]
    assert preloaded("", MPLBACKEND="")[1:] == ["", None]


def test_plots_that_were_set_up_without_a_notebook_are_not_handed_over(preloaded: Any) -> None:
    said = preloaded("import matplotlib, matplotlib_inline.backend_inline")[0]
    assert "set up matplotlib's backend" in said


@pytest.mark.parametrize(
    ("source", "changed"),
    [
        ("import torch; torch.manual_seed(7)", "torch's random state"),
        ("import torch; torch.set_default_dtype('float64')", "torch's default dtype"),
        ("import torch; torch.set_num_threads(1)", "torch's thread count"),
        ("import torch; torch.set_float32_matmul_precision('high')", "torch's float32 precision"),
        ("import random; random.seed(0)", "Python's random state"),
        ("import random; random.random()", "Python's random state"),
        ("import numpy; numpy.random.seed(0)", "numpy's random state"),
        ("import numpy; numpy.random.rand()", "numpy's random state"),
    ],
)
def test_a_standby_is_not_used_whose_imports_set_what_all_notebooks_share(
    source: str, changed: str, preloaded: Any
) -> None:
    assert preloaded(source)[0] == f"{changed} changed"


def test_imports_that_set_nothing_are_used(preloaded: Any) -> None:
    modules = "torch.nn, numpy.testing, numpy.fft, numpy.ma, random, tempfile, multiprocessing.pool"
    assert preloaded(f"import {modules}\nrandom.Random(0).random()")[0]["absent"] == []
