"""The warm-up: its bounds with pretended PyTorchs, and the real one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from pytorch_spawner.agent import evidence, session, warmup
from pytorch_spawner.agent.config import Config
from pytorch_spawner.agent.session import Findings

FINE = {"torch": "ok", "compile": "ok"}


def warm(config: Config, findings: Findings) -> list[tuple[str, dict[str, Any]]]:
    sent: list[tuple[str, dict[str, Any]]] = []

    def send(kind: str, data: Mapping[str, Any]) -> None:
        sent.append((kind, dict(data)))

    session.run_warmup(config, findings, send)
    return sent


def test_when_it_is_switched_off_the_page_still_learns_that_it_is_over() -> None:
    (_, plan), (kind, end) = warm(Config(warmup_enabled=False), Findings(FINE))
    assert plan["targets"] == []
    assert (kind, end["part"], end["level"]) == ("done", "warmup", "ok")


def test_when_compiling_does_not_work_every_target_is_skipped_with_the_reason() -> None:
    sent = warm(Config(warmup_models=("mlp",)), Findings({"torch": "ok", "compile": "fail"}))
    assert sent[1][1] == {
        "phase": "skipped", "id": "mlp/default", "model": "mlp", "mode": "default",
        "message": "torch.compile does not work here; see the checks.",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("source", "deadline_s", "message"),
    [
        ("import signal; signal.pause()", 1, "The warm-up was stopped after 1 s."),
        ("import os; os._exit(5)", 250, "The warm-up ended unexpectedly, with status 5."),
    ],
)
def test_a_warm_up_that_hangs_or_dies_is_ended_with_a_sentence(
    pyz: Path, fake_torch: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch,
    source: str, deadline_s: float, message: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(sys, "argv", [str(pyz)])
    monkeypatch.setenv("PYTHONPATH", str(fake_torch(source)))
    sent = warm(Config(warmup_models=("mlp",), warmup_deadline_s=deadline_s), Findings(FINE))
    assert [(kind, data.get("message")) for kind, data in sent[1:]] == [
        ("warmup", message), ("done", None),
    ]  # fmt: skip


def test_the_last_that_a_dying_warm_up_printed_is_in_the_log_of_what_was_under_way(
    pyz: Path, fake_torch: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [str(pyz)])
    source = "import os; print('g++: internal compiler error', flush=True); os._exit(5)"
    monkeypatch.setenv("PYTHONPATH", str(fake_torch(source)))
    sent = warm(Config(warmup_models=("mlp", "cnn")), Findings(FINE))
    first, second = (data for kind, data in sent if data.get("phase") == "skipped")
    assert first["log"] == {"error": "g++: internal compiler error"}
    assert "log" not in second


def test_a_cache_that_keeps_nothing_is_told() -> None:
    compiled, again = (evidence.Evidence(1, 1, 1, (), 0, 2) for _ in range(2))
    assert "did not keep it" in warmup._note(compiled, again)
    assert warmup._note(compiled, evidence.Evidence(1, 1, 1, (), 2, 0)) == ""
    broken = evidence.Evidence(2, 2, 2, ("call to print",), 0, 2)
    assert warmup._note(broken, again) == "Not compiled as a whole: call to print"


def test_it_runs_only_when_nobody_else_wants_the_cpu() -> None:
    code = (
        "import os; from pytorch_spawner.agent.warmup import step_back; step_back();"
        "print(os.nice(0), os.sched_getscheduler(0) == os.SCHED_IDLE)"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    before = os.nice(0)
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout.split() == [str(min(19, before + 15)), "True"], done.stderr


def test_at_least_one_cpu_is_counted() -> None:
    assert 1 <= warmup.cpus() <= (os.cpu_count() or 1)


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch", reason="torch is not installed")


@pytest.mark.parametrize("name", ["mlp", "cnn", "transformer"])
def test_a_models_shapes_are_as_documented_and_a_step_learns(torch: Any, name: str) -> None:
    from pytorch_spawner.agent.models import BUILDERS, CLASSES, train_step

    shapes = {"mlp": (32, 64), "cnn": (8, 3, 16, 16), "transformer": (4, 16, 32)}
    torch.manual_seed(0)
    work = BUILDERS[name](torch, "cpu")
    assert (tuple(work.x.shape), work.x.dtype) == (shapes[name], torch.float32)
    assert (tuple(work.y.shape), work.y.dtype) == (shapes[name][:1], torch.int64)
    assert tuple(work.model(work.x).shape) == (shapes[name][0], CLASSES)
    optimizer = torch.optim.SGD(work.model.parameters(), lr=0.1)
    losses = [train_step(torch, work.model, work, optimizer) for _ in range(20)]
    assert losses[-1] < losses[0]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_real_pytorch_is_checked_and_warmed_and_the_second_start_hits_the_cache(
    torch: Any, pyz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [str(pyz)])
    for name in ("INDUCTOR", "TRITON"):
        monkeypatch.setenv(
            f"{'TORCH' * (name == 'INDUCTOR')}{name}_CACHE_DIR", str(tmp_path / name)
        )
    config = Config(gpus=(), share="none", shm_expected_mib=1, warmup_models=("mlp", "nosuch"))
    checks: dict[str, Any] = {}
    findings = session.run_checks(
        config, lambda kind, data: checks.update({data.get("code"): dict(data)}), lambda: None
    )
    assert {code: findings.levels[code] for code in session.TORCH_CODES} == dict.fromkeys(
        session.TORCH_CODES, "ok"
    ), json.dumps(checks)
    assert checks["compile"]["facts"]["graphs"] > 0
    first, second = ({d["id"]: d for k, d in warm(config, findings) if "id" in d} for _ in range(2))
    assert first["mlp/default"]["phase"] == "done"
    assert first["nosuch/default"]["phase"] == "failed"
    assert not first["mlp/default"]["from_cache"]
    assert first["mlp/default"]["log"]["first"]["fx_miss"] > 0
    assert first["mlp/default"]["log"]["second"]["fx_hit"] > 0
    assert first["nosuch/default"]["log"]["error"] == "KeyError: 'nosuch'"
    assert first["mlp/default"]["warm_s"] < first["mlp/default"]["cold_s"]
    assert second["mlp/default"]["from_cache"]
    assert second["mlp/default"]["counters"]["fx_miss"] == 0


@pytest.mark.slow
def test_errors_that_torch_hides_are_found(torch: Any, pyz: Path, tmp_path: Path) -> None:
    env = {
        **os.environ, "TORCHDYNAMO_SUPPRESS_ERRORS": "0", "CXX": "/nonexistent",
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "PYTORCH_SPAWNER_AGENT": '{"gpus": []}',
        "HOME": str(tmp_path),
    }  # fmt: skip
    done = subprocess.run([sys.executable, str(pyz), "--report", "--json"], env=env, check=False,
                          capture_output=True, text=True)  # fmt: skip
    compile_check = json.loads(done.stdout)[-1]
    assert compile_check["code"] == "compile"
    assert compile_check["level"] == "fail", compile_check
