"""Driver and visible GPUs, with a pretended nvidia-smi."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from agent_service import processes_with

from pytorch_spawner.agent import gpus
from pytorch_spawner.agent.config import Config, Gpu
from pytorch_spawner.agent.gpus import Driver

A, B = "GPU-aaaaaaaa-0000-0000-0000-000000000001", "GPU-bbbbbbbb-0000-0000-0000-000000000002"
MIG = "MIG-cccccccc-0000-0000-0000-000000000003"

WHOLE = Config(gpus=(Gpu(A, "H100", 81559),), share="whole")
NONE = Config(gpus=(), share="none")
SIMULATED = Config(gpus=(Gpu("GPU-sim", simulated=True),), share="whole")
FINE = Driver(version="580.159.04", cuda=(13, 0), uuids=(A,))


def test_a_list_of_gpus_is_read() -> None:
    text = f"GPU 0: NVIDIA H100 80GB HBM3 (UUID: {A})\nGPU 1: NVIDIA H100 (UUID: {B})\n"
    assert gpus.parse_list(text) == (A, B)


def test_a_gpu_split_into_instances_stands_for_its_instances() -> None:
    text = (
        f"GPU 0: NVIDIA A100 (UUID: {A})\n"
        f"  MIG 1g.10gb     Device  0: (UUID: {MIG})\n"
        f"  MIG 2g.20gb     Device  1: (UUID: MIG-2)\n"
        f"GPU 1: NVIDIA A100 (UUID: {B})\n"
    )
    assert gpus.parse_list(text) == (MIG, "MIG-2", B)


@pytest.mark.parametrize("text", ["", "No devices were found\n", "garbage (UUID"])
def test_no_list_is_no_gpu(text: str) -> None:
    assert gpus.parse_list(text) == ()


@pytest.mark.parametrize(
    ("config", "found", "level", "words"),
    [
        (NONE, Driver(), "ok", "No GPU was asked for, so no driver is needed."),
        (SIMULATED, Driver(), "ok", "simulated, so no driver is needed"),
        (WHOLE, FINE, "ok", "driver 580.159.04 answers and runs programs built for CUDA 13.0"),
        (WHOLE, Driver(), "fail", "does not answer in your container"),
        (WHOLE, Driver("580.1", (13, 0), (), "cuInit answers 999"), "fail", "CUDA does not start"),
        (Config(), Driver(), "unknown", "was not told"),
    ],
)
def test_what_is_said_of_the_driver(config: Config, found: Driver, level: str, words: str) -> None:
    said = gpus.driver(config, found)
    assert said.level == level
    assert words in said.sentence


@pytest.mark.parametrize(
    ("config", "uuids", "level", "sentence"),
    [
        (WHOLE, (A,), "ok", "Your server sees one GPU, exactly what it was given."),
        (WHOLE, (A.upper().replace("GPU", "MIG"),), "ok",
         "Your server sees one GPU, exactly what it was given."),
        (WHOLE, (), "fail", "Your server was given one GPU, but sees none."),
        (WHOLE, (A, B), "fail", "Your server sees one GPU more than it was given."),
        (WHOLE, (B,), "fail", "Your server sees one GPU more than it was given."),
        (NONE, (), "ok", "This server has no GPU: PyTorch computes on the CPU."),
        (NONE, (A, B), "fail", "Your server sees 2 GPUs more than it was given."),
        (SIMULATED, (), "warn", "This lab simulates its GPUs; PyTorch computes on the CPU."),
        (SIMULATED, (A,), "fail", "Your server sees one GPU more than it was given."),
        (Config(), (A, B), "unknown",
         "Your server sees 2 GPUs; how many it should see is not known here."),
    ],
)  # fmt: skip
def test_what_is_said_of_the_visible_gpus(
    config: Config, uuids: tuple[str, ...], level: str, sentence: str
) -> None:
    said = gpus.gpu_visible(config, Driver(uuids=uuids))
    assert (said.level, said.sentence) == (level, sentence)


def test_of_several_missing_gpus_the_sentence_says_how_many_are_there() -> None:
    config = Config(gpus=(Gpu(A), Gpu(B)), share="whole")
    assert gpus.gpu_visible(config, Driver(uuids=(A,))).sentence == (
        "Your server was given 2 GPUs, but sees 1."
    )


def test_unknown_values_of_a_sample_are_none_and_other_peoples_gpus_are_left_out() -> None:
    text = (
        f"{A}, 38, 3174, 81559, 41, 121.50\n{B}, 1, 2, 3, 4, 5\n{A}, [N/A], 10, 20, ERR!, [N/A]\n"
    )
    assert gpus.parse_sample(text, [A]) == [
        {"uuid": A, "utilisation_pct": 38.0, "memory_used_mib": 3174.0,
         "memory_total_mib": 81559.0, "temperature_c": 41.0, "power_w": 121.5},
        {"uuid": A, "utilisation_pct": None, "memory_used_mib": 10.0, "memory_total_mib": 20.0,
         "temperature_c": None, "power_w": None},
    ]  # fmt: skip


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    script = tmp_path / "nvidia-smi"
    script.touch(mode=0o755)
    script.write_text(f'#!/bin/sh\n[ "$1" = -L ] && echo "GPU 0: X (UUID: {A})" || echo 570.1\n')
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return script


def test_the_probe_asks_nvidia_smi(smi: Path) -> None:
    found = gpus.probe()
    assert found.uuids[:1] == (A,)
    assert found.version


def test_the_probe_asks_both_in_turn_where_no_thread_can_be_started(
    smi: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = gpus.probe()

    def full(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", full)
    assert gpus.probe() == usual


def test_the_probe_asks_both_at_once(smi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda_is_asked, smi_is_asked = threading.Event(), threading.Event()
    usual_answer, usual_ask = gpus.answer, gpus.ask

    def answer(command: Sequence[str], *rest: Any) -> str | None:
        if "--worker" in command:
            cuda_is_asked.set()
            assert smi_is_asked.wait(10)
        return usual_answer(command, *rest)

    def ask(command: Sequence[str], *rest: Any, **options: Any) -> Any:
        if command[-1] == "-L":
            smi_is_asked.set()
            assert cuda_is_asked.wait(10)
        return usual_ask(command, *rest, **options)

    monkeypatch.setattr(gpus, "answer", answer)
    monkeypatch.setattr(gpus, "ask", ask)
    assert gpus.probe().uuids


def test_a_hung_or_failing_nvidia_smi_is_no_answer(smi: Path) -> None:
    smi.write_text("#!/bin/sh\nexec sleep infinity\n")
    assert gpus.answer([str(smi), "-L"], 0.3) is None
    give_up_at = time.monotonic() + 60
    while processes_with(str(smi.parent)):  # it was killed, which nobody waits for
        assert time.monotonic() < give_up_at
        time.sleep(0.01)
    smi.write_text("#!/bin/sh\nexit 9\n")
    assert gpus.answer([str(smi), "-L"]) is None
    assert gpus.answer(["/nonexistent"]) is None
