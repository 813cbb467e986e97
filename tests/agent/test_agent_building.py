"""The warmer's container: which processes it runs, and what it says of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from pytorch_spawner.agent import build_disk, build_runs, building
from pytorch_spawner.agent.config import Config, build_job, parse


def target(vary: Any = None) -> dict[str, Any]:
    return {"name": "gpt", "kind": "function", "what": "m:f", "tag": "", "vary": vary}


@pytest.mark.parametrize(
    ("vary", "sizes"),
    [
        (None, (None,)),
        (["batch_size", 8], (8, 9, 1, 16)),
        (["batch_size", 1], (1, 2)),
        (["n", 2], (2, 3, 1, 4)),
    ],
)
def test_a_target_is_compiled_for_its_size_another_one_and_twice_it(vary, sizes) -> None:
    assert build_runs.sizes_of(target(vary)) == sizes


def test_a_build_begins_with_the_usual_sizes_and_then_changes_them() -> None:
    gpt, mlp = target(["batch_size", 8]), target(["n", 1])
    runs = build_runs.plan([gpt, mlp], is_check=False)
    first, later = {"is_first": True}, {"is_later": True}
    assert runs == [
        build_runs.Run(gpt, (8,), **first),
        build_runs.Run(mlp, (1,), **first),
        build_runs.Run(gpt, (8, 9)),
        build_runs.Run(gpt, (16, 1)),
        build_runs.Run(gpt, (8,), **later),
        build_runs.Run(mlp, (1, 2)),
        build_runs.Run(mlp, (1,), **later),
    ]


def test_in_a_check_every_size_has_a_process_of_its_own() -> None:
    runs = build_runs.plan([target(["batch_size", 8]), target()], is_check=True)
    assert [run.sizes for run in runs] == [(8,), (9,), (1,), (16,), (8,), (None,)]
    assert [run.is_later for run in runs] == [False, False, False, False, True, False]


def test_a_target_that_does_not_vary_runs_again_only_where_another_may_share_its_code() -> None:
    assert [run.sizes for run in build_runs.plan([target()], is_check=False)] == [(None,)]
    assert [run.sizes for run in build_runs.plan([target()] * 2, is_check=False)] == [(None,)] * 4


@pytest.mark.parametrize("is_check", [False, True])
def test_every_process_begins_with_what_the_usual_sizes_taught(
    is_check, tmp_path, monkeypatch
) -> None:
    """PyTorch's profile is a file that each process reads at its start and writes at its end."""
    profile = tmp_path / "inductor" / "dynamo" / "code_state_job.pkl"
    begun: list[tuple[Any, str]] = []
    if is_check:  # what the seeding has brought
        profile.parent.mkdir(parents=True)
        profile.write_text("8 ")

    def outcome(role: str, job: Any, receive: Any, **_: Any) -> Any:
        before = profile.read_text() if profile.exists() else ""
        begun.append((tuple(job["sizes"]), before))
        profile.parent.mkdir(parents=True, exist_ok=True)
        profile.write_text(before + "".join(f"{size} " for size in job["sizes"]))
        for size in job["sizes"]:
            receive("target", {"name": "gpt", "size": size})
        return ended(0)

    monkeypatch.setattr(building, "_LINGER_S", 0)
    monkeypatch.setattr(building, "answer_the_hub", lambda _: None)
    monkeypatch.setattr(building, "_size", lambda _: 0)
    monkeypatch.setattr(building.child, "run", outcome)
    suite = {"name": "s", "targets": [target(["batch_size", 8])], "deadline_s": 5}
    building.main(Config(cache_dir=str(tmp_path)), {"suite": suite, "check": is_check}, {})
    if is_check:
        assert begun == [*(((size,), "8 ") for size in (8, 9, 1, 16)), ((8,), "8 16 ")]
    else:
        assert begun == [((8,), ""), ((8, 9), "8 "), ((16, 1), "8 "), ((8,), "8 16 1 ")]
    assert profile.read_text() == "8 "


def a_pipe(place: Path) -> None:
    place.mkdir()
    os.mkfifo(place / "code_state_x.pkl")


def a_link_to_the_profile(place: Path) -> None:
    place.mkdir()
    (place / "code_state_x.pkl").symlink_to("/dev/zero")


def a_link_in_its_place(place: Path) -> None:
    place.symlink_to("/dev")


def a_file_in_its_place(place: Path) -> None:
    place.write_text("no directory")


@pytest.mark.parametrize(
    "put", [a_pipe, a_link_to_the_profile, a_link_in_its_place, a_file_in_its_place]
)
def test_what_a_suite_puts_in_the_profiles_place_is_taken_away(put, tmp_path: Path) -> None:
    place = tmp_path / "dynamo"
    put(place)
    learnt = build_runs.Learnt(place)
    learnt.put_back()
    assert not os.path.lexists(place)
    assert Path("/dev/null").exists()


def test_a_file_that_is_no_profile_by_its_size_fails_the_build(
    tmp_path, monkeypatch, capsys
) -> None:
    place = tmp_path / "inductor" / "dynamo"
    place.mkdir(parents=True)
    with (place / "code_state_x.pkl").open("wb") as file:
        file.truncate(300 * 1024**2)  # without a block on the disk
    monkeypatch.setattr(building, "_LINGER_S", 0)
    monkeypatch.setattr(building, "answer_the_hub", lambda _: None)
    monkeypatch.setattr(building, "_size", lambda _: 0)
    building.main(Config(cache_dir=str(tmp_path)), JOB, {})
    first, last = said(capsys)
    assert "profile cannot be kept: it is larger than 16 MiB" in first["message"]
    assert last == {"kind": "done", "ok": False}


@pytest.mark.parametrize(
    ("folder", "kind", "what", "place"),
    [
        ("", "function", "m:f", "."),
        ("", "notebook", "lab.ipynb", "."),
        ("cv", "function", "models.cnn:f", "cv"),
        ("cv", "script", "train/run.py", "cv"),
        ("cv", "notebook", "week1/lab.ipynb", "cv/week1"),
        ("", "notebook", "week1/lab.ipynb", "week1"),
    ],
)
def test_code_runs_in_the_folder_where_a_students_kernel_will(folder, kind, what, place) -> None:
    assert build_runs.folder_of(folder, {"kind": kind, "what": what}) == place


# Enough of PyTorch for a target that compiles nothing, and one that says that it did.
TORCH = {
    "torch/__init__.py": "__version__ = '2'\nfrom . import cuda, _dynamo",
    "torch/cuda.py": "is_initialized = bool",
    "torch/_dynamo/__init__.py": "",
    "torch/_dynamo/utils.py": "import collections\n"
    "counters = collections.defaultdict(collections.Counter)\n"
    "compile_times = lambda *_, **__: ''",
}
SUITE = {
    "helpers.py": "where = 'the suite'",
    "week1/helpers.py": "where = 'week 1'",
    "shared.py": "where = 'the suite'",
    # IPython imports Python's own.
    "week1/code.py": "raise RuntimeError",
}
SAYS = "import helpers, shared; print('imported', helpers.where, 'and', shared.where)"
TARGET = """
import json, sys
from pytorch_spawner.agent import building
building.SUITE_DIR = sys.argv[1]
building.run_target(json.loads(sys.argv[2]), lambda kind, data: print(kind, json.dumps(data)))
"""


@pytest.mark.programs
@pytest.mark.parametrize(
    ("kind", "what", "where"),
    [
        ("script", "week1/train.py", "week 1"),
        ("script", "train.py", "the suite"),
        ("notebook", "week1/lesson.ipynb", "week 1"),
        ("function", "week1.made:say", "the suite"),
    ],
)
def test_a_target_imports_the_modules_beside_it(kind, what, where, tmp_path: Path) -> None:
    cell = {"cell_type": "code", "source": [SAYS], "metadata": {"tags": ["warm-up"]}}
    files = {
        **{f"suite/{name}": text for name, text in SUITE.items()},
        "suite/train.py": SAYS,
        "suite/week1/train.py": SAYS,
        "suite/week1/lesson.ipynb": json.dumps({"cells": [cell]}),
        "suite/week1/made.py": f"def say():\n    {SAYS}\n",
        **TORCH,
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    home = tmp_path / "home"
    home.mkdir()
    job = {
        "target": {**target(), "kind": kind, "what": what},
        "sizes": [None],
        "folder": "course/week1",
    }
    root = Path(__file__).parents[2]
    given = {**os.environ, "HOME": str(home), "PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"}
    done = subprocess.run(
        [sys.executable, "-c", TARGET, str(tmp_path / "suite"), json.dumps(job)],
        env=given, cwd=home, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert f"imported {where} and the suite" in done.stdout, done.stdout + done.stderr
    assert (home / "course/week1").is_dir()


JOB = {"suite": {"name": "s", "targets": [target()], "deadline_s": 5}, "check": False}


def said(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith(building.PREFIX) for line in lines)
    return [json.loads(line[len(building.PREFIX) :]) for line in lines]


def run(monkeypatch: pytest.MonkeyPatch, outcome: Any, job: Any = None) -> None:
    monkeypatch.setattr(building, "_LINGER_S", 0)
    monkeypatch.setattr(building, "answer_the_hub", lambda _: None)
    monkeypatch.setattr(building, "_size", lambda _: 0)
    monkeypatch.setattr(building.child, "run", outcome)
    building.main(Config(cache_dir="/nowhere"), job or JOB, {})


def ended(status: int | None, tail: str = "") -> Any:
    return building.child.Ended(status, tail)


def test_what_a_target_took_is_passed_on(monkeypatch, capsys) -> None:
    def outcome(role: str, job: Any, receive: Any, **_: Any) -> Any:
        receive("versions", {"torch": "2.13", "triton": ""})
        receive("target", {"name": "gpt", "size": None, "seconds": 1.5, "hits": 0, "misses": 2})
        return ended(0)

    run(monkeypatch, outcome)
    assert [one["kind"] for one in said(capsys)] == ["versions", "target", "done"]


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        (lambda *_, **__: ended(None, "stuck"), "deadline"),
        (lambda *_, **__: ended(-9), "signal 9 (often: memory ran out)"),
        (lambda *_, **__: ended(3), "exit status 3"),
        (lambda *_, **__: ended(0), "exit status 0"),
        (lambda *_, **__: building.child.Ended(126, "", "No memory"), "No memory."),
        (
            lambda role, job, receive, **__: receive("failed", {"message": "No data."}) or ended(0),
            "No data.",
        ),
    ],
)
def test_a_target_that_failed_is_named_and_the_rest_is_left(
    outcome, words, monkeypatch, capsys
) -> None:
    run(monkeypatch, outcome)
    first, last = said(capsys)
    assert (first["kind"], first["name"]) == ("failed", "gpt")
    assert words in first["message"]
    assert last == {"kind": "done", "ok": False}


def test_colours_of_a_terminal_are_no_part_of_the_log(monkeypatch, capsys) -> None:
    run(monkeypatch, lambda *_, **__: ended(1, "\x1b[31mred\x1b[0m"))
    assert said(capsys)[0]["tail"] == "red"


def test_a_target_that_fills_the_disk_is_not_waited_for(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(building, "MAX_DISK_BYTES", 100_000)
    monkeypatch.setattr(building, "_LOOK_S", -1)
    disk = building._Disk((str(tmp_path),))
    assert disk.patience_s() == float("inf")
    (tmp_path / "big").write_bytes(b"x" * 300_000)
    assert disk.patience_s() == 0
    assert disk.is_full


def test_a_file_without_a_name_fills_the_disk_as_well(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(building, "MAX_DISK_BYTES", 5_000_000)
    monkeypatch.setattr(building, "_LOOK_S", -1)
    disk = building._Disk((str(tmp_path),))
    with tempfile.TemporaryFile(dir=tmp_path) as file:
        file.write(b"x" * 9_000_000)
        file.flush()
        again = os.dup(file.fileno())  # the same file is counted once
        assert 9_000_000 <= build_disk.nameless_size() - disk._began < 18_000_000
        assert disk.patience_s() == 0
        os.close(again)
    assert disk.patience_s() == float("inf")


def test_memory_without_a_name_is_not_on_the_disk() -> None:
    before = build_disk.nameless_size()
    memory = os.memfd_create("tensor")
    os.write(memory, b"x" * 9_000_000)
    assert build_disk.nameless_size() - before < 9_000_000
    os.close(memory)


# Each runs as the target's process does.
RUNS = """
import json, sys
from pytorch_spawner.agent import building
building.SUITE_DIR, building.MAX_DISK_BYTES = sys.argv[1], 1_000_000
job = {"target": json.loads(sys.argv[2]), "sizes": [None], "folder": "course"}
building.run_target(job, lambda kind, data: print(kind, json.dumps(data)))
"""


def told_by(source: str, tmp_path: Path) -> dict[str, Any]:
    """What a target of this source reports, by kind, in a process of its own."""
    for name, text in {**TORCH, "suite/m.py": source}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    root = Path(__file__).parents[2]
    given = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"}
    done = subprocess.run(
        [sys.executable, "-c", RUNS, str(tmp_path / "suite"), json.dumps(target())],
        env=given, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    lines = (line.split(" ", 1) for line in done.stdout.splitlines())
    return {kind: json.loads(data) for kind, data in lines}


@pytest.mark.programs
@pytest.mark.parametrize("open_it", ["tempfile.TemporaryFile()", "open('large', 'wb')"])
def test_no_file_of_a_target_becomes_larger_than_all_may_be(open_it: str, tmp_path: Path) -> None:
    source = f"import tempfile\ndef f():\n    {open_it}.write(b'x' * 3_000_000)\n"
    failed = told_by(source, tmp_path)["failed"]
    assert failed == {"message": "It wrote more than 4 GiB to the disk."}


@pytest.mark.programs
def test_a_graph_that_pytorch_cannot_cache_fails_the_build_and_is_named(tmp_path: Path) -> None:
    source = """
from torch._dynamo.utils import counters
def f():
    counters["stats"]["unique_graphs"] = 3
    counters["inductor"].update(fxgraph_cache_hit=2, fxgraph_cache_bypass=1)
"""
    told = told_by(source, tmp_path)
    assert (told["target"]["hits"], told["target"]["misses"]) == (2, 1)
    assert "cannot keep 1 graph in its cache" in told["failed"]["message"]


def test_only_a_warmers_configuration_holds_a_job() -> None:
    assert build_job(json.dumps({"v": 1, "build": JOB})) == JOB
    for text in (None, "", "{", "[]", "{}", '{"build": 3}', '{"build": {"suite": 3}}'):
        assert build_job(text) is None


def test_a_warm_cache_that_is_not_whole_is_none() -> None:
    whole = {"id": "a", "digest": "b", "path": "/c", "name": "n", "targets": [["gpt", 2.0, None]]}
    config, trouble = parse(json.dumps({"warm_cache": whole}))
    assert not trouble
    assert config.warm_cache is not None
    assert config.warm_cache.targets == (("gpt", 2.0, None),)
    for broken in ({}, {"id": "a"}, 3, {**whole, "digest": 3}):
        assert parse(json.dumps({"warm_cache": broken}))[0].warm_cache is None
    odd = {**whole, "targets": [["gpt", "x", -1], 3, ["a"]]}
    config, _ = parse(json.dumps({"warm_cache": odd}))
    assert config.warm_cache is not None
    assert config.warm_cache.targets == (("gpt", None, None),)


def test_a_long_tail_of_odd_characters_never_breaks_the_line(monkeypatch, capsys) -> None:
    run(monkeypatch, lambda *_, **__: ended(1, "█" * 2000))
    first, last = said(capsys)
    assert first["kind"] == "failed"
    assert set(first["tail"]) == {"█"}
    assert last["ok"] is False
