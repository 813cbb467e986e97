"""What courses need of PyTorch: with the real one where it is, in the lab image, and stand-ins."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace as Thing
from typing import Any

import pytest

from pytorch_spawner.agent import features
from pytorch_spawner.agent.child import Ended
from pytorch_spawner.agent.config import Config, Gpu
from pytorch_spawner.agent.torch_checks import CHECKS, Bench, _one

IMAGE = "pytorch-spawner/lab:cpu"
H100 = Config(gpus=(Gpu("GPU-1", "H100", 81559),), share="whole")
NONE = Config(gpus=(), share="none")
ON_GPU = ("convolution", "precision", "cuda-graph", "several-gpus")


def bench(torch: Any, device: str = "cpu", config: Config = H100) -> Bench:
    made = Bench(config, (13, 0))
    made.torch, made.device = torch, device
    return made


@pytest.fixture
def torch(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The real PyTorch. "cpu:0" is a name for the CPU that the checks take for a GPU's."""
    module = pytest.importorskip("torch", reason="torch is not installed")
    monkeypatch.setattr(module.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(module.backends.cudnn, "is_available", lambda: True)
    return module


@pytest.mark.parametrize("code", ON_GPU)
def test_a_server_without_a_gpu_is_told_so_and_nothing_is_computed(code: str) -> None:
    found = _one(bench(Thing(), config=NONE), CHECKS[code])
    assert (found.level, found.sentence) == ("ok", features.NO_GPU)


@pytest.mark.parametrize("code", ON_GPU)
def test_a_lost_gpu_is_not_replaced_by_the_cpu_without_a_word(code: str) -> None:
    found = _one(bench(Thing(), config=H100), CHECKS[code])
    assert found.level == "unknown"
    assert "does not find your GPU" in found.sentence


@pytest.mark.parametrize("code", [*ON_GPU, "data-loader", "export"])
def test_a_pytorch_that_lacks_everything_fails_with_a_remedy_and_no_more(code: str) -> None:
    found = _one(bench(Thing(__version__="0"), "cuda:0"), CHECKS[code])
    assert found.level in ("fail", "warn")
    assert found.sentence.endswith(".")


def test_a_convolution_is_compared_with_double_precision(torch: Any) -> None:
    assert features.convolution(bench(torch, "cpu:0")).level == "ok"


def test_a_convolution_that_is_wrong_fails(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.nn.functional.conv2d

    def wrong(x: Any, w: Any, padding: int) -> Any:
        there = real(x, w, padding=padding)
        return there if x.dtype == torch.float64 else there * float("nan")

    monkeypatch.setattr(torch.nn.functional, "conv2d", wrong)
    found = features.convolution(bench(torch, "cpu:0"))
    assert (found.level, "wrong numbers" in found.sentence) == ("fail", True)


def test_a_pytorch_without_cudnn_is_a_note(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: False)
    found = features.convolution(bench(torch, "cpu:0"))
    assert (found.level, "without cuDNN" in found.sentence) == ("warn", True)


@pytest.mark.parametrize(
    ("capability", "sentence"),
    [
        ((9, 0), "The GPU computes in float16, bfloat16 and TF32."),
        ((7, 5), "The GPU computes in float16; it is too old for bfloat16 and TF32."),
        ((5, 2), "The GPU is too old for float16, bfloat16 and TF32; use float32."),
    ],
)
def test_short_numbers_are_tried_where_the_gpu_has_them(
    torch: Any, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], sentence: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    found = features.precision(bench(torch, "cpu:0"))
    assert (found.level, found.sentence) == ("ok", sentence)


def test_data_arrives_from_workers_as_it_was_sent_and_the_alarm_is_as_before(torch: Any) -> None:
    handler, timer = signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)
    assert features.data_loader(bench(torch)).sentence == "Data can be loaded with several workers."
    assert signal.getsignal(signal.SIGALRM) is handler
    assert (signal.getitimer(signal.ITIMER_REAL)[0] > 0) is (timer[0] > 0)


def test_workers_that_hang_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    timers: list[tuple[float, ...]] = []

    def ring() -> None:
        signal.raise_signal(signal.SIGALRM)
        pytest.fail("the alarm did not end what hangs")

    def hang(torch: Any) -> list[float]:
        try:
            ring()
        finally:
            ring()  # a clean-up that hangs too
        return []

    def set_timer(which: int, *seconds: float) -> tuple[float, float]:
        timers.append(seconds)
        return 30.0, 0.0

    # The alarm goes off when the test says so; what the timer was set to is what counts.
    monkeypatch.setattr(features.signal, "setitimer", set_timer)
    monkeypatch.setattr(features, "_load", hang)
    found = features.data_loader(bench(Thing()))
    assert timers == [(features._LOADER_S + 1, 2.0), (30.0, 0.0)]
    assert (found.level, "do not answer" in found.sentence) == ("fail", True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("RuntimeError: DataLoader worker (pid 7) is killed by signal: Bus error. It is possible "
         "that dataloader's workers are out of shared memory.", "Shared memory is too small"),
        ("RuntimeError: unable to allocate shared memory(shm) for file </torch_1>: No space left "
         "on device (28)", "Shared memory is too small"),
        ("OSError: [Errno 28] No space left on device", "Shared memory is too small"),
        ("RuntimeError: unable to open shared memory object </torch_1> in read-write mode",
         "no usable shared memory"),
        ("FileNotFoundError: [Errno 2] No such file or directory", "no usable shared memory"),
        ("RuntimeError: Too many open files. Communication with the workers is no longer possible",
         "Too few files"),
        ("BlockingIOError: [Errno 11] Resource temporarily unavailable", "Too few processes"),
        ("RuntimeError: DataLoader worker (pid(s) 19) exited unexpectedly", "before they are done"),
        ("RuntimeError: DataLoader timed out after 15 seconds", "do not answer"),
        ("ValueError: strange.\nmore", "PyTorch says ValueError: strange."),
        ("", "PyTorch says nothing."),
    ],
)  # fmt: skip
def test_why_workers_fail_is_a_sentence_with_a_way_out(text: str, words: str) -> None:
    found = features._loader_trouble(text)
    assert (found.level, words in found.sentence) == ("fail", True), found
    assert "num_workers=0" in found.remedy


def test_an_exported_network_is_the_same_after_saving(torch: Any) -> None:
    assert features.export(bench(torch)).level == "ok"


def test_an_export_that_fails_is_a_note_with_its_cause(
    torch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("not yet.\nmore")

    monkeypatch.setattr(torch.export, "export", refuse)
    found = features.export(bench(torch))
    assert (found.level, found.sentence) == (
        "warn", "torch.export does not work here: AssertionError: not yet.",
    )  # fmt: skip


def graphs(*, replays: bool) -> Thing:
    """As much of torch as recording needs: numbers are lists, a graph copies on replay."""

    class Number:
        def __init__(self, value: float) -> None:
            self.value = value

        def __matmul__(self, other: Number) -> Number:
            made = Number(self.value * other.value)
            recorded.append((self, other, made))
            return made

        def copy_(self, other: Number) -> None:
            self.value = other.value

    class Context:
        def __init__(self, *_: Any) -> None: ...
        def __enter__(self) -> None: ...
        def __exit__(self, *_: Any) -> None: ...

    class Graph:
        def replay(self) -> None:
            a, b, made = recorded[-1]
            made.value = a.value * b.value if replays else made.value

    recorded: list[tuple[Number, Number, Number]] = []
    values = iter((2.0, 3.0, 5.0))
    stream = Thing(wait_stream=lambda other: None)
    return Thing(
        randn=lambda *size, device: Number(next(values)),
        no_grad=Context,
        allclose=lambda a, b, rtol, atol: a.value == b.value,
        cuda=Thing(
            Stream=lambda: stream, current_stream=lambda: stream, stream=Context,
            CUDAGraph=Graph, graph=Context, synchronize=lambda: None,
        ),
    )  # fmt: skip


def test_a_graph_is_replayed_with_other_numbers() -> None:
    # The last product is computed for the comparison; the recorded one has to follow it.
    assert features.cuda_graph(bench(graphs(replays=True), "cuda:0")).level == "ok"
    found = features.cuda_graph(bench(graphs(replays=False), "cuda:0"))
    assert (found.level, "other numbers" in found.sentence) == ("fail", True)


def test_one_gpu_alone_needs_no_nccl() -> None:
    alone = Thing(cuda=Thing(device_count=lambda: 1))
    found = features.several_gpus(bench(alone, "cuda:0"))
    assert (found.level, found.sentence) == ("ok", "This server has one GPU, which works alone.")


def test_several_gpus_without_nccl_are_a_note() -> None:
    without = Thing(
        cuda=Thing(device_count=lambda: 2), distributed=Thing(is_nccl_available=lambda: False)
    )
    assert features.several_gpus(bench(without, "cuda:0")).level == "warn"


WELL = {"right": True, "init_s": 0.4, "gigabytes_per_s": 187.25}
DIRECT = [[True, True], [True, True]]


@pytest.mark.parametrize(
    ("told", "status", "level", "words"),
    [
        ([{"rank": 0, **WELL, "direct": DIRECT, "nccl": "2.27.3"}, {"rank": 1, **WELL}], 0, "ok",
         "Your 2 GPUs compute together, at 187.2 GB/s."),
        ([{"rank": 1, **WELL}, {"rank": 0, **WELL, "direct": [[True, False], [True, True]]}], 0,
         "ok", "at 187.2 GB/s; not all reach each other directly."),
        ([{"rank": 0, **WELL, "right": False}, {"rank": 1, **WELL}], 0, "fail", "wrong numbers"),
        ([{"rank": 0, "error": "DistBackendError: NCCL error in: x.cpp:1\nmore"}], 0, "fail",
         "cannot train together: DistBackendError: NCCL error in: x.cpp:1."),
        ([{"rank": 0, **WELL}], None, "fail", "does not come to an end"),
        ([], None, "fail", "does not come to an end"),
        ([], -11, "fail", "does not come to an end"),
        ([{"rank": 0}, {"rank": 1}], 0, "fail", "wrong numbers"),
    ],
)  # fmt: skip
def test_what_is_said_of_several_gpus(
    told: list[dict[str, Any]], status: int | None, level: str, words: str
) -> None:
    found = features.judge_peers(2, told, Ended(status, "last words"))
    assert (found.level, words in found.sentence) == (level, True), found
    assert level == "ok" or (found.remedy and found.admin_remedy)


@pytest.fixture
def peers(torch: Any, pyz: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Really runs the processes, with Gloo on the CPU in NCCL's place."""
    monkeypatch.setattr(sys, "argv", [str(pyz)])
    return features.ask_peers


def test_processes_really_add_up_numbers_together(peers: Callable[..., Any]) -> None:
    told, ended = peers(2, "gloo", "cpu", 250)
    assert sorted(one["rank"] for one in told) == [0, 1]
    assert all(one["right"] and one["gigabytes_per_s"] > 0 for one in told)
    assert features.judge_peers(2, told, ended).level == "ok"


def test_processes_that_cannot_meet_fail_at_once(peers: Callable[..., Any]) -> None:
    began = time.monotonic()
    told, ended = peers(2, "nosuch", "cpu", 250)
    took_s, began = time.monotonic() - began, time.monotonic()
    subprocess.run([sys.executable, "-c", "import torch.distributed"], check=True)
    # A machine that is too slow for that takes its time to import torch as well.
    assert took_s < max(30, 10 * (time.monotonic() - began))
    assert features.judge_peers(2, told, ended).level == "fail"


def test_processes_that_do_not_end_are_killed(peers: Callable[..., Any]) -> None:
    told, ended = peers(2, "gloo", "cpu", 0.3)  # no torch is imported that fast
    assert ended.late
    assert features.judge_peers(2, told, ended).level == "fail"


@pytest.fixture
def report(pyz: Path) -> Iterator[Callable[..., dict[str, Any]]]:
    """Runs the checks in the lab image as somebody without a name, with options of the engine."""
    started: list[str] = []

    def docker(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)

    try:
        there = docker("image", "inspect", IMAGE).returncode == 0
    except OSError:
        there = False
    if not there:
        pytest.skip(f"no Docker Engine answers, or the image {IMAGE} is not built")

    def run(*options: str) -> dict[str, Any]:
        name = f"agent-features-{uuid.uuid4().hex[:10]}"
        started.append(name)
        config = {"gpus": [], "share": "none", "shm_expected_mib": 1}
        docker(
            "create", "--name", name, "--user", "54321:54321", "--cap-drop", "ALL",
            "--tmpfs", "/home/ana:exec,uid=54321,gid=54321,mode=700", "--env=HOME=/home/ana",
            f"--env=PYTORCH_SPAWNER_AGENT={json.dumps(config)}",
            "--env=TORCHDYNAMO_DISABLE=1",  # a compiler's minute is not at stake here
            *options, IMAGE, "python3", "/opt/agent.pyz", "--report", "--json",
        )  # fmt: skip
        docker("cp", str(pyz), f"{name}:/opt/agent.pyz")
        said = docker("start", "--attach", name)
        return {check["code"]: check for check in json.loads(said.stdout)}

    yield run
    for name in started:
        docker("rm", "-f", "-v", name)


@pytest.mark.docker
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--ipc", "none"], "There is no usable shared memory"),
        (["--shm-size", "1m"], "Shared memory is too small"),
    ],
    ids=["no /dev/shm", "a tiny /dev/shm"],
)
def test_a_fault_of_shared_memory_is_named_in_the_lab_image(
    report: Callable[..., dict[str, Any]], options: list[str], words: str
) -> None:
    checks = report(*options)
    assert words in checks["data-loader"]["sentence"], checks["data-loader"]
    assert checks["data-loader"]["level"] == "fail"
    assert checks["export"]["level"] == "ok"


@pytest.mark.docker
def test_settings_of_pip_that_lead_out_of_the_home_are_named_in_the_lab_image(
    report: Callable[..., dict[str, Any]],
) -> None:
    checks = report("--env=PIP_TARGET=/opt/packages", "--shm-size", "64m")
    assert checks["pip-user"]["level"] == "warn"
    assert "/opt/packages" in checks["pip-user"]["sentence"]
    assert checks["data-loader"]["level"] == "ok"
