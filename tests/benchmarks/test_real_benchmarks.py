"""What the benchmarks on a real engine make of what they measured."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import distributions
from pathlib import Path

import pytest

from pytorch_spawner.adapters.suite_files import read_directory
from pytorch_spawner.core.suites import read_suite
from tests.benchmarks import bench_first_step as first
from tests.benchmarks import bench_spawn as spawn
from tests.benchmarks import stock_image
from tests.benchmarks.harness import Bench
from tests.benchmarks.real_hub import Started
from tests.gpu import first_step_run, host_run

LOADED = "pytorch_spawner_standby | extension was successfully loaded."


def step(arm: str, total_s: float, model: str = "gpt", size: int = 8) -> first.Step:
    seen = {"is_standby": arm == first.OURS, "hits": 2, "misses": 0}
    return first.Step(arm, model, size, total_s=total_s, from_import_s=total_s, seen=seen)


def test_changed_batch_sizes_reach_from_one_to_twice_the_usual() -> None:
    for usual in first.MODELS.values():
        sizes = first.other_sizes(usual)
        assert len({usual, *sizes}) == len(sizes) + 1
        assert (min(sizes), max(sizes)) == (1, 2 * usual)
        assert sum(size % 2 for size in sizes) == 2, "one, and an odd one"


def test_the_suite_is_one_and_its_usual_sizes_are_the_benchmark_s() -> None:
    suite = read_suite(read_directory(first.SUITE))
    assert {one.name: one.vary for one in suite.targets} == {
        name: ("batch_size", size) for name, size in first.MODELS.items()
    }
    assert {one.what for one in suite.targets} == {f"{name}:train_step" for name in first.MODELS}


def test_a_part_of_a_run_builds_its_part_of_the_suite(tmp_path: Path) -> None:
    suite = read_suite(read_directory(first.suite_of(["gpt"], tmp_path)))
    assert [one.what for one in suite.targets] == ["gpt:train_step"]


@pytest.mark.parametrize(
    ("log", "waiting"),
    [
        ("no word", None),
        (f"Standby kernels: off\n{LOADED}", None),
        (LOADED, 0),
        ("Standby kernels: 12 ready after 3.1 s, 400 MiB", 1),
        ("Standby kernels: 12 ready after 3 s\nStandby kernels: 12 handed over in 9 ms", 0),
        ("Standby kernels: 12 ready after 3 s\nStandby kernels: 12 ended: it ended", 0),
        ("Standby kernels: 12 ready after 3 s\nStandby kernels: ended, memory is short", 0),
    ],
)
def test_a_server_s_log_tells_how_many_standby_kernels_wait(log: str, waiting: int | None) -> None:
    assert first.standbys(log) == waiting


def test_first_steps_become_rows_and_ratios() -> None:
    steps = [step(first.COLD, 40), step(first.SECOND, 16), step(first.OURS, 4)]
    steps += [step(first.OURS, 6, size=16), first.Step(first.OURS, "mlp", 256, error="it broke")]
    bench = first.report(Bench("x", unit="s"), steps, ["a note", "a note"])
    assert bench.ratios == {
        "gpt: ours/stock, cold": 0.1,
        "gpt: ours/stock, second run": 0.25,
        "gpt: batch size 16/8": 1.5,
    }
    assert bench.rows[0].what == "gpt 8, stock, cold: new kernel to end of step"
    assert "gpt 8, ours: 1 of 1 from a standby kernel; graphs: 2 hits 0 misses" in bench.notes
    assert "failed: mlp 256, ours: it broke" in bench.notes
    assert bench.notes.count("a note") == 1


def test_measurements_of_several_calls_are_put_together(tmp_path: Path) -> None:
    measuring = first.Measuring(
        first.Plan(models=["gpt"]), lambda one: first.write_json(tmp_path / "r", first.as_json(one))
    )
    measuring.note("said once")
    measuring.add(step(first.COLD, 40))
    steps, notes = first.from_json(json.loads((tmp_path / "r").read_text()))
    assert (steps, notes) == (measuring.steps, ["said once"])


def test_an_unknown_model_is_named() -> None:
    with pytest.raises(SystemExit, match="unknown: bert; there is gpt, mlp, resnet"):
        first.Plan(models=["bert"])


def found(*usable_s: float, how: str = "one at a time") -> spawn.Found:
    return spawn.Found({how: [Started(seconds, seconds) for seconds in usable_s]})


def test_spawns_become_ratios_of_medians() -> None:
    bench = Bench("x", unit="s")
    names: Sequence[tuple[str, spawn.Found]] = [
        (spawn.STOCK, found(4, 4, 9)),
        (spawn.OURS, found(1, 2, 1)),
        (spawn.QUIET, found(1)),
    ]
    spawn.report(bench, dict(names), [0.1], 0)
    assert bench.ratios == {"ours/stock sequential": 0.25, "warm-up on/off sequential": 1.0}


def test_starts_that_failed_are_told_and_not_counted() -> None:
    bench = Bench("x", unit="s")
    one = found(4.0)
    one.failed.append("8 at once: stock: student01: 500 b''\nits log")
    spawn.report(bench, dict.fromkeys((spawn.STOCK, spawn.OURS, spawn.QUIET), one), [0.1], 0)
    assert "failed: 8 at once: stock: student01: 500 b''" in bench.notes


def test_the_stock_image_may_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_BENCH_STOCK_IMAGE", "theirs:latest")
    assert stock_image.stock_image() == "theirs:latest"


def test_pip_in_the_stock_image_s_build_uses_the_site_s_index(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "https://packages.example/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "file:///srv/wheels")
    said = stock_image._pip_settings(True)
    assert "index-url = https://packages.example/simple" in said
    assert "cert = /run/ca.pem" in said
    assert "file:" not in said


def test_on_a_gpu_host_the_standby_package_is_laid_out_as_installed(tmp_path: Path) -> None:
    folder = first_step_run.lay_out_standby(tmp_path / "standby")
    if folder is None:
        pytest.skip("this version has no standby kernels")
    (found,) = distributions(path=[str(folder)])
    (point,) = found.entry_points.select(group="jupyter_client.kernel_provisioners")
    assert (folder / f"{point.module.replace('.', '/')}.py").is_file()
    traits = {"environment": {"PYTHONPATH": "/site"}, "read_only_volumes": {"/usr": "/usr"}}
    given = first_step_run.with_standby(traits, folder)
    assert given["environment"]["PYTHONPATH"] == f"/site:{folder}"
    assert given["read_only_volumes"] == {
        "/usr": "/usr",
        str(folder): str(folder),
        str(folder / "etc/ipython"): "/etc/ipython",
    }
    assert list((folder / "etc" / "jupyter").rglob("*.json"))
    assert traits["environment"] == {"PYTHONPATH": "/site"}, "the stock arm's stay as they were"


def test_bytecode_of_before_is_what_a_process_sees_whatever_is_compiled_later(
    tmp_path: Path,
) -> None:
    package = tmp_path / "package"
    (package / "early").mkdir(parents=True)
    for name in ("__init__", "early/__init__", "late"):
        (package / f"{name}.py").touch()
    words = [sys.executable, "-m", "compileall", "-q"]
    subprocess.run([*words, str(package / "early")], check=True)
    host_run.keep_bytecode([package], tmp_path / "kept")
    subprocess.run([*words, str(package)], check=True)
    env = {"PYTHONPYCACHEPREFIX": str(tmp_path / "kept"), "PYTHONDONTWRITEBYTECODE": "1"}
    code = "import package.early, package.late"
    said = subprocess.run(
        [sys.executable, "-v", "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True
    ).stderr
    assert re.findall(r"code object from '.*/(\w+)/__init__", said) == ["early"]
    assert f"code object from {package}/late.py" in said
