"""The checks with torch, against small stand-ins for it."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace as Thing
from typing import Any

import pytest

from pytorch_spawner.agent import evidence, torch_checks
from pytorch_spawner.agent.config import Config, Gpu
from pytorch_spawner.agent.torch_checks import Bench, runs_on

MIB = 1024 * 1024
H100 = Config(gpus=(Gpu("GPU-1", "H100", 81559),), share="whole")
NONE = Config(gpus=(), share="none")
PYPI_CU130 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]


@pytest.mark.parametrize(
    ("gpu", "capability", "built_for", "fits"),
    [
        ("V100 on CUDA 13 wheels", (7, 0), PYPI_CU130, False),
        ("T4", (7, 5), PYPI_CU130, True),
        ("L4 runs code for sm_86", (8, 9), PYPI_CU130, True),
        ("B300 runs code for sm_100", (10, 3), PYPI_CU130, True),
        ("H100 on 2.1", (9, 0), ["sm_80", "sm_86", "sm_90"], True),
        ("B200 on 2.6", (10, 0), ["sm_50", "sm_90"], False),
        ("B200 by PTX", (10, 0), ["sm_90", "compute_90"], True),
        ("older than the PTX", (7, 0), ["compute_75"], False),
        ("sm_90a is for 9.0 alone", (9, 0), ["sm_90a"], True),
        ("sm_100a is not for 10.3", (10, 3), ["sm_100a"], False),
        ("nonsense", (9, 0), ["gfx90a", ""], False),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_which_gpus_code_runs_on(
    gpu: str, capability: tuple[int, int], built_for: list[str], fits: bool
) -> None:
    assert runs_on(capability, built_for) is fits


def bench(config: Config, device: str, driver: Any = (13, 0), **torch: Any) -> Bench:
    made = Bench(config, driver)
    made.torch = Thing(**{"version": Thing(cuda="13.0"), **torch})
    made.device = device
    return made


def refuse() -> None:
    raise RuntimeError("CUDA unknown error")


@pytest.mark.parametrize(
    ("made", "level", "words"),
    [
        (bench(NONE, "cpu"), "ok", "no GPU: PyTorch computes on the CPU"),
        (bench(H100, "cuda:0"), "ok", "runs the CUDA 13.0"),
        (bench(H100, "cpu", version=Thing(cuda=None)), "fail", "built without CUDA"),
        (bench(H100, "cpu", (12, 4)), "fail", "needs CUDA 13.0, and the driver runs no newer than"),
        (bench(H100, "cuda:0", (12, 4), version=Thing(cuda="12.8")), "ok", "CUDA 12.8"),
        (bench(H100, "cpu", None, cuda=Thing(init=refuse)), "fail", "finds no GPU"),
    ],
)
def test_whether_the_driver_fits(made: Bench, level: str, words: str) -> None:
    found = torch_checks._driver_fits(made)
    assert found.level == level
    assert words in found.sentence


def test_a_driver_that_is_too_old_names_the_oldest_that_would_do() -> None:
    found = torch_checks._driver_fits(bench(H100, "cpu", (12, 4)))
    assert found.remedy == "Choose an image for CUDA 12 or older."
    assert "580.65.06" in found.admin_remedy


def cuda(total_mib: int = 81559, free_mib: int = 81000, arch: Any = PYPI_CU130) -> Thing:
    properties = Thing(name="NVIDIA H100", major=9, minor=0, multi_processor_count=132)
    return Thing(
        device_count=lambda: 1,
        get_arch_list=lambda: arch,
        get_device_properties=lambda index: properties,
        mem_get_info=lambda index: (free_mib * MIB, total_mib * MIB),
    )


@pytest.mark.parametrize(
    ("made", "level", "words"),
    [
        (bench(H100, "cuda:0", cuda=cuda()), "ok", "NVIDIA H100 with 80 GiB."),
        (bench(H100, "cuda:0", cuda=cuda(arch=["sm_70"])), "fail", "no code for the NVIDIA H100"),
        (bench(H100, "cuda:0", cuda=cuda(40000, 39000)), "warn", "40000 MiB instead of the 81559"),
        (bench(H100, "cuda:0", cuda=cuda(free_mib=40000)), "warn", "are in use before you started"),
        (bench(H100, "cpu"), "fail", "PyTorch finds no GPU"),
    ],
)
def test_what_is_said_of_the_gpu(made: Bench, level: str, words: str) -> None:
    found = torch_checks._gpu_name_memory(made)
    assert found.level == level
    assert words in found.sentence


def add_process(proc: Path, pid: int, parent: int, *files: str) -> None:
    (proc / str(pid) / "fd").mkdir(parents=True)
    (proc / str(pid) / "stat").write_text(f"{pid} (python3) S {parent} {pid} {pid} 0 -1")
    (proc / str(pid) / "cmdline").write_bytes(b"python3\0")
    for number, target in enumerate(files):
        (proc / str(pid) / "fd" / str(number)).symlink_to(target)


def test_memory_of_the_students_own_processes_was_not_in_use_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = torch_checks._is_used_here
    monkeypatch.setattr(torch_checks, "_is_used_here", lambda: used(str(tmp_path)))
    made = bench(H100, "cuda:0", cuda=cuda(free_mib=40000))
    me, child, kernel = os.getpid(), 2**22 + 1, 2**22 + 2
    add_process(tmp_path, me, 1, "/dev/nvidia-uvm")
    add_process(tmp_path, child, me, "/dev/nvidia-uvm")
    add_process(tmp_path, kernel, 1, "/dev/null")
    assert torch_checks._gpu_name_memory(made).level == "warn", "nobody but this very check"
    (tmp_path / str(kernel) / "fd" / "1").symlink_to("/dev/nvidia-uvm")
    found = torch_checks._gpu_name_memory(made)
    assert (found.level, found.sentence) == ("ok", "NVIDIA H100 with 80 GiB.")


def test_neighbours_on_a_shared_gpu_are_no_trouble() -> None:
    slot = Config(gpus=(Gpu("GPU-1", "H100", 20480),), share="slot")
    found = torch_checks._gpu_name_memory(bench(slot, "cuda:0", cuda=cuda(free_mib=100)))
    assert found.level == "ok"


@pytest.mark.parametrize("check", [torch_checks._tensor, torch_checks._compile])
def test_a_lost_gpu_is_not_replaced_by_the_cpu_without_a_word(check: Any) -> None:
    found = torch_checks._one(bench(H100, "cpu"), check)
    assert found.level == "unknown"


def test_a_full_gpu_is_said_once_and_the_other_checks_do_not_repeat_it() -> None:
    def full(index: int) -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    made = bench(H100, "cuda:0", cuda=cuda())
    made.torch.cuda.get_device_properties = full
    found = torch_checks._one(made, torch_checks._gpu_name_memory)
    assert (found.level, found.sentence) == ("fail", "The GPU's memory is full.")
    assert "Shut down notebooks" in found.remedy
    for check in (torch_checks._tensor, torch_checks._compile):
        then = torch_checks._one(made, check)
        assert (then.level, then.sentence) == (
            "unknown", "Not checked, because the GPU's memory is full.",
        )  # fmt: skip


def test_an_old_pytorch_has_no_compile() -> None:
    found = torch_checks._compile(bench(NONE, "cpu", __version__="1.13.1"))
    assert (found.level, found.sentence) == (
        "warn", "PyTorch 1.13.1 is too old to have torch.compile.",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("InvalidCxxCompiler: No working C++ compiler found", "no C++ compiler"),
        ("Failed to find C compiler. Please specify via CC", "no C compiler"),
        ("fatal error: Python.h: No such file", "header files"),
        ("Cannot find a working triton installation", "Triton"),
        ("CUDA out of memory. Tried to allocate", "memory is full"),
        ("CUDA error: no kernel image is available", "no code for this GPU"),
        ("[Errno 13] Permission denied: 'g++'", "compiler may not be run"),
        ("[Errno 30] Read-only file system: '/x'", "cache cannot be written"),
        ("strange\nmore", "PyTorch says RuntimeError: strange"),
        ("", "PyTorch says RuntimeError"),
    ],
)
def test_the_cause_of_a_failure_is_a_sentence(text: str, words: str) -> None:
    sentence, _ = evidence.cause(RuntimeError(text))
    assert words in sentence
    assert "\n" not in sentence
    assert len(sentence) <= 200


def test_only_counters_prove_that_something_was_compiled() -> None:
    seen = evidence.Evidence(1, 1, 1, (), 0, 1)
    assert seen.compiled
    assert not seen.from_cache
    assert not evidence.Evidence(0, 0, 0, (), 0, 0).compiled
    assert not evidence.Evidence(1, 2, 1, (), 0, 1).compiled
    assert evidence.Evidence(2, 1, 1, (), 2, 0).from_cache
    assert not evidence.Evidence(2, 1, 1, (), 1, 1).from_cache
    assert not evidence.Evidence(2, 1, 1, (), 1, 0, fx_bypass=1).from_cache
