"""The rules by which an ordinary kernel is started instead, and the memory that is left."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from pytorch_spawner_standby import extension, memory, rules
from pytorch_spawner_standby import machine as busy_machine

COMMAND = [sys.executable, "-m", "ipykernel_launcher", "-f", "k.json"]
START = rules.Start(sys.executable, (), {"A": "1"})


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (COMMAND, ""),
        ([*COMMAND, "--debug"], ""),
        ([sys.executable, "-X", "dev", *COMMAND[1:]], "not ipykernel's"),
        ([sys.executable, "-O", *COMMAND[1:]], "other options"),
        (["/usr/bin/env", "-m", "ipykernel_launcher", "-f", "k.json"], "another interpreter"),
        ([sys.executable, "-m", "my_kernel", "-f", "k.json"], "not ipykernel's"),
        ([sys.executable, "-m", "ipykernel_launcher"], "not ipykernel's"),
        (["julia", "kernel.jl", "k.json"], "not ipykernel's"),
        ([], "not ipykernel's"),
    ],
)
def test_only_ipykernel_in_the_same_interpreter(command: list[str], why: str) -> None:
    said = rules.command_trouble(command, START)
    assert said == "" if not why else why in said


def test_a_virtual_environment_is_another_interpreter_though_it_is_the_same_file(
    tmp_path: Path,
) -> None:
    other = tmp_path / "python"
    other.symlink_to(os.path.realpath(sys.executable))
    assert "another" in rules.command_trouble([str(other), *COMMAND[1:]], START)


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        ({"A": "1"}, ""),
        ({"A": "1", "JPY_SESSION_NAME": "a.ipynb", "CUDA_VISIBLE_DEVICES": "1", "PWD": "/x"}, ""),
        ({"A": "1", "MPLBACKEND": "agg"}, ""),
        ({"A": "2"}, "differs: A"),
        ({}, "differs: A"),
        ({"A": "1", "OMP_NUM_THREADS": "1"}, "OMP_NUM_THREADS"),
    ],
)
def test_the_environment(wanted: dict[str, str], why: str) -> None:
    said = rules.environment_trouble(wanted, START)
    assert said == "" if not why else why in said


def test_a_backend_of_matplotlib_only_before_it_is_loaded() -> None:
    wanted = {"A": "1", "MPLBACKEND": "agg"}
    assert "MPLBACKEND" in rules.environment_trouble(wanted, START, ["matplotlib"])


def test_a_relative_python_path_means_another_place_in_every_directory() -> None:
    given = {"PYTHONPATH": "lib"}
    start = rules.Start(sys.executable, (), given)
    assert "relative" in rules.environment_trouble(given, start)


@pytest.mark.parametrize(
    ("name", "shadows"),
    [
        ("numpy.py", True),
        ("numpy.cpython-311-x86_64-linux-gnu.so", True),
        ("numpy/__init__.py", True),
        ("numpy/readme.txt", False),  # a namespace package comes after every other
        ("ipykernel_launcher.py", True),
        ("numpy.ipynb", False),
        ("mine.py", False),
        ("matplotlibrc", True),
    ],
)
def test_what_shadows(name: str, shadows: bool, folder: Path) -> None:
    place = folder / name
    place.parent.mkdir(exist_ok=True)
    place.write_text("")
    said = rules.shadow_trouble(str(folder), ["numpy", "matplotlib"])
    assert bool(said) is shadows
    assert not shadows or name.partition("/")[0] in said


def test_options_of_popen() -> None:
    assert rules.options_trouble({"env": {}, "cwd": "/", "stdin": None}) == ""
    assert "stdout" in rules.options_trouble({"stdout": 1})
    assert "independent" in rules.options_trouble({"independent": True})


@pytest.mark.parametrize(
    ("said", "kernels"), [("1", 1), ("0", 0), ("3", 3), ("99", 8), ("", 0), ("yes", 0), ("-1", 0)]
)
def test_the_number_of_kernels(said: str, kernels: int) -> None:
    assert extension.wanted(said) == kernels


MIB = 2**20


def group(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name.replace("__", ".")).write_text(f"{value}\n")


@pytest.mark.parametrize(
    ("said", "is_busy"),
    [
        ("0.20 0.18 0.12 1/80 11206\n", False),
        ("9.00 9.00 9.00 2/80 11206\n", False),
        ("0.20 0.18 0.12 3/80 11206\n", True),
        ("0.20 0.18 0.12 30/800 11206\n", True),
        ("0.20 0.18\n", False),
        ("a b c d/e f\n", False),
        ("", False),
    ],
)
def test_a_machine_is_busy_when_more_want_to_run_than_it_has_cores(
    tmp_path: Path, said: str, is_busy: bool
) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/loadavg").write_text(said)
    assert busy_machine.is_busy(tmp_path, cores=2) == is_busy


def machine(root: Path, cgroup: str, available_mib: int = 9000) -> None:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemAvailable: {available_mib * 1024} kB\n")
    (root / "proc/self/cgroup").write_text(cgroup)


def test_cgroup_v2_counts_what_the_page_cache_gives_back(tmp_path: Path) -> None:
    machine(tmp_path, "0::/\n")
    stat = f"anon {500 * MIB}\nactive_file {100 * MIB}\ninactive_file {200 * MIB}"
    top = tmp_path / "sys/fs/cgroup"
    group(top, memory__max=2000 * MIB, memory__current=800 * MIB, memory__stat=stat)
    assert memory.available_mib(tmp_path) == 1500


def test_cgroup_v2_takes_the_tightest_of_all_levels(tmp_path: Path) -> None:
    machine(tmp_path, "0::/a/b\n")
    top = tmp_path / "sys/fs/cgroup"
    group(top / "a", memory__max=1000 * MIB, memory__current=100 * MIB)
    group(top / "a/b", memory__max="max", memory__current=50 * MIB)
    assert memory.available_mib(tmp_path) == 900


@pytest.mark.parametrize("path", ["/docker/123", "/"])
def test_cgroup_v1(tmp_path: Path, path: str) -> None:
    machine(tmp_path, f"5:cpu,cpuacct:{path}\n4:memory:{path}\n")
    top = tmp_path / "sys/fs/cgroup/memory"
    group(
        top,
        memory__limit_in_bytes=3000 * MIB,
        memory__usage_in_bytes=1000 * MIB,
        memory__stat=f"total_inactive_file {100 * MIB}\ntotal_active_file {50 * MIB}",
    )
    assert memory.available_mib(tmp_path) == 2150


def test_no_limit_leaves_the_hosts_own_memory(tmp_path: Path) -> None:
    machine(tmp_path, "0::/\n", available_mib=1200)
    group(tmp_path / "sys/fs/cgroup", memory__max="max", memory__current=5)
    assert memory.available_mib(tmp_path) == 1200


def test_where_nothing_is_known_nothing_is_promised(tmp_path: Path) -> None:
    assert memory.available_mib(tmp_path) is None
