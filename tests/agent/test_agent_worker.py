"""The whole agent beside a local service, with PyTorchs that misbehave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from agent_service import MISSING, Service, processes_with

from pytorch_spawner.agent import launch, session, worker
from pytorch_spawner.agent.child import Ended
from pytorch_spawner.agent.codes import CODES, TORCH_CODES
from pytorch_spawner.agent.config import Config
from pytorch_spawner.agent.gpus import Driver
from pytorch_spawner.agent.session import Findings

pytestmark = pytest.mark.programs

Env = Callable[..., dict[str, str]]
Start = Callable[[dict[str, str]], "subprocess.Popen[bytes]"]
Fake = Callable[[str], Path]


def checks_of(service: Service, agent: Start, env: dict[str, str]) -> dict[str, dict[str, Any]]:
    agent(env)
    assert service.wait_for(lambda s: s.is_done("warmup"), 250), service.events
    return service.checks()


def config(tmp_path: Path, **more: Any) -> dict[str, Any]:
    return {"start": "s1", "gpus": [], "cache_dir": str(tmp_path), "shm_expected_mib": 1, **more}


# The least that finds anything out and says so: what it needs of Python, and one report.
BARE = """
import json, os, shutil, ssl, subprocess, tempfile, threading, time, urllib.request
request = urllib.request.Request(os.environ["PYTORCH_SPAWNER_EVENTS_URL"] + "?bare", method="GET")
with urllib.request.urlopen(request, timeout=60):
    print(time.time())
"""


def reports_at_once(env: dict[str, str]) -> Future[float]:
    """Start a program that only reports; the Unix time when it was heard."""
    command = [sys.executable, "-I", "-c", BARE]
    pool = ThreadPoolExecutor(1)
    heard = pool.submit(lambda: float(subprocess.check_output(command, env=env)))
    pool.shutdown(wait=False)
    return heard


def test_everything_is_reported_in_order_and_a_missing_pytorch_is_named(
    service: Service, agent: Start, container_env: Env, fake_torch: Fake, tmp_path: Path
) -> None:
    env = container_env(config(tmp_path), PYTHONPATH=str(fake_torch(MISSING)))
    began = time.time()
    bare = reports_at_once(env)
    checks = checks_of(service, agent, env)
    compared_s = bare.result(100) - began
    plan = service.events[0]["data"]
    assert plan == {"code": "", "phase": "plan", "codes": list(CODES)}
    assert tuple(checks) == CODES
    # Where pip installs is the business of the Python that runs the tests.
    cheap = {c: checks[c]["level"] for c in CODES if c not in (*TORCH_CODES, "pip-user")}
    assert set(cheap.values()) == {"ok"}, checks
    assert checks["torch"]["sentence"] == "This image has no PyTorch."
    assert {checks[code]["level"] for code in TORCH_CODES[1:]} == {"unknown"}
    ends = [event["data"] for event in service.events if event["kind"] == "done"]
    assert [(end["part"], end["level"]) for end in ends] == [
        ("checks", "warn"),
        ("warmup", "unknown"),
    ]
    skipped = [e["data"] for e in service.events if e["kind"] == "warmup"]
    assert [data["phase"] for data in skipped] == ["plan", "skipped", "skipped", "skipped"]
    assert [target["id"] for target in skipped[0]["targets"]] == [
        "mlp/default", "cnn/default", "transformer/default",
    ]  # fmt: skip
    first = next(at for at, event in service.arrived if event["data"].get("phase") == "done")
    # Two seconds after the container's start; on a machine that is too slow or busy for that, not
    # long after another program that begins at the same time and has nothing to find out.
    assert first - began < max(2, 4 * compared_s), compared_s
    assert service.begins_with_a_check(), service.events[:3]
    assert {report["start"] for report in service.reports} == {"s1"}


STUDENTS = ("kernel-python", "pip-user")
"""The checks that run what is the student's: a profile, a kernel's Python."""


class Told:
    """In the place of the reporter: the checks that ended, among all else that happens."""

    def __init__(self) -> None:
        self.order: list[str] = []

    def send(self, kind: str, data: Any) -> None:
        if kind == "check" and data["phase"] == "done":
            self.order.append(data["code"])

    def happens(self, what: str) -> None:
        self.order.append(what)

    def settle(self, timeout_s: float) -> bool:
        return True

    close = settle


def test_the_cheap_checks_are_told_before_lab_is_waited_for_and_before_a_student_can_be_slow(
    monkeypatch: pytest.MonkeyPatch, container_env: Env
) -> None:
    told = Told()

    class Started(subprocess.Popen[Any]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            told.happens("a process")
            super().__init__(*arguments, **options)

    for name, value in container_env().items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv(launch.FIRST_ENV, raising=False)
    monkeypatch.setattr(subprocess, "Popen", Started)
    monkeypatch.setattr(session.gpus, "probe", Driver)
    monkeypatch.setattr(session, "run_warmup", lambda *_: told.happens("warm-up"))
    monkeypatch.setattr(session, "_torch_checks", lambda *_: told.happens("PyTorch"))
    monkeypatch.setattr(worker, "wait_for_turn", lambda: told.happens("Lab"))
    monkeypatch.setattr(worker, "open_log", lambda _: None)
    monkeypatch.setattr(worker, "_reporter", lambda _: told)
    worker._agent()
    cheap = [code for code in CODES if code not in TORCH_CODES]
    ours = [code for code in cheap if code not in STUDENTS]
    begun = told.order.index("a process")
    assert told.order[:begun] == ours, "nothing but these is there to wait for"
    rest = [what for what in told.order[begun:] if what != "a process"]
    assert rest == [*STUDENTS, "Lab", "PyTorch", "warm-up"]


def test_a_pytorch_that_hangs_is_stopped_and_the_rest_is_not_checked(
    service: Service, agent: Start, container_env: Env, fake_torch: Fake, tmp_path: Path
) -> None:
    fake = fake_torch("import signal; signal.pause()")
    env = container_env(config(tmp_path, checks={"deadline_s": 1}), PYTHONPATH=str(fake))
    checks = checks_of(service, agent, env)
    assert checks["torch"]["level"] == "fail"
    assert checks["torch"]["sentence"] == "This check did not answer within 1 s."
    assert checks["torch"]["seconds"] > 0.9
    assert checks["compile"]["level"] == "unknown"
    assert not [line for line in processes_with(str(tmp_path)).values() if "torch-checks" in line]


@pytest.mark.parametrize("hanging", TORCH_CODES)
def test_compiling_may_take_three_times_as_long_as_another_check(
    monkeypatch: pytest.MonkeyPatch, hanging: str
) -> None:
    asked: dict[str, float] = {}

    def run(role: str, job: Any, receive: Any, *, idle_s: Callable[[], float]) -> Ended:
        for code in TORCH_CODES:
            receive("check", {"code": code, "phase": "running"})
            asked[code] = idle_s()
            if code == hanging:
                return Ended(None, "")
            receive("check", {"code": code, "phase": "done", "level": "ok"})
        raise AssertionError

    monkeypatch.setattr(session.child, "run", run)
    findings, ends = Findings(), {}

    def tell(kind: str, data: Any) -> None:
        findings.note(data)
        if data["phase"] == "done":
            ends[data["code"]] = data

    session._torch_checks(Config(check_deadline_s=0.5), Driver(), findings, tell)
    wanted_s = {code: 1.5 if code == "compile" else 0.5 for code in TORCH_CODES}
    assert asked == {code: wanted_s[code] for code in asked}
    sentence = f"This check did not answer within {wanted_s[hanging]:g} s."
    assert ends[hanging]["sentence"] == sentence
    assert tuple(ends) == TORCH_CODES


@pytest.mark.parametrize(
    ("source", "sentence", "fact"),
    [
        ("raise OSError('libcudnn.so.9: cannot open')", "importing it fails", "libcudnn.so.9"),
        ("import nothing_like_it", "importing it fails", "nothing_like_it"),
        ("import os; print('last words', flush=True); os.abort()", "with signal 6", "last words"),
        ("raise SystemExit(3)", "with exit status 3", ""),
        ("import os; os.close(int(os.listdir('/proc/self/fd')[-2]))", "", ""),
    ],
    ids=["a library is missing", "a dependency is missing", "it aborts", "it exits", "it closes"],
)
def test_a_pytorch_that_cannot_be_imported_fails_with_its_cause(
    service: Service, agent: Start, container_env: Env, fake_torch: Fake, tmp_path: Path,
    source: str, sentence: str, fact: str,
) -> None:  # fmt: skip
    env = container_env(config(tmp_path), PYTHONPATH=str(fake_torch(source)))
    checks = checks_of(service, agent, env)
    assert checks["torch"]["level"] == "fail"
    assert sentence in checks["torch"]["sentence"]
    assert fact in json.dumps(checks["torch"]["facts"])


def test_a_pytorch_that_prints_a_hundred_megabytes_does_no_harm(
    service: Service, agent: Start, container_env: Env, fake_torch: Fake, tmp_path: Path
) -> None:
    fake = fake_torch(
        "import sys\nfor _ in range(100): sys.stdout.write('x' * 1_000_000)\n"
        "sys.stderr.write('END'); raise ImportError('after all that')"
    )
    checks = checks_of(service, agent, container_env(config(tmp_path), PYTHONPATH=str(fake)))
    assert "after all that" in checks["torch"]["facts"]["error"]
    assert sum(f.stat().st_size for f in tmp_path.rglob("*.log")) < 10_000


def test_a_pytorch_that_forges_reports_is_not_believed_beyond_its_own_checks(
    service: Service, agent: Start, container_env: Env, fake_torch: Fake, tmp_path: Path
) -> None:
    forged = [
        {"kind": "done", "data": {"part": "warmup"}},
        {"kind": "check", "data": {"code": "gpu-visible", "phase": "done", "level": "fail"}},
        {"kind": "check", "data": [1]},
        7,
    ]
    source = (
        "import os, json\n"
        "for fd in range(3, 20):\n"
        "    try:\n"
        f"        for said in {forged!r}: os.write(fd, json.dumps(said).encode() + b'\\n')\n"
        "        os.write(fd, b'x' * 300_000 + b'\\n{\\n')\n"
        "    except OSError: pass\n" + MISSING
    )
    checks = checks_of(
        service, agent, container_env(config(tmp_path), PYTHONPATH=str(fake_torch(source)))
    )
    assert checks["gpu-visible"]["level"] == "ok"
    assert checks["torch"]["level"] == "warn"
    assert [e["data"]["part"] for e in service.events if e["kind"] == "done"] == [
        "checks",
        "warmup",
    ]


def test_a_students_own_modules_do_not_break_the_agent(
    service: Service, agent: Start, container_env: Env, fake_torch: Fake, tmp_path: Path
) -> None:
    fake = fake_torch(MISSING)
    for name in ("json", "ssl", "selectors", "pytorch_spawner"):
        (fake / f"{name}.py").write_text("raise RuntimeError('mine')")
    checks = checks_of(service, agent, container_env(config(tmp_path), PYTHONPATH=str(fake)))
    assert checks["hub-reachable"]["level"] == "ok"
    assert checks["torch"]["level"] == "fail"


def test_a_configuration_that_is_no_json_still_gets_checks(
    service: Service, agent: Start, container_env: Env, fake_torch: Fake, tmp_path: Path
) -> None:
    env = container_env("{oops", PYTHONPATH=str(fake_torch(MISSING)), TMPDIR=str(tmp_path))
    checks = checks_of(service, agent, env)
    assert checks["gpu-visible"]["level"] == "unknown"


def test_costly_checks_wait_for_lab_but_not_for_ever(
    service: Service, clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "time", clock)
    env = {"JUPYTERHUB_SERVICE_URL": f"http://0.0.0.0:{service.port}/user/ana/",
           "JUPYTERHUB_SERVICE_PREFIX": "/user/ana/"}  # fmt: skip
    assert worker.wait_for_lab(env, 5)
    assert [path for _, path, _ in service.requests] == ["/user/ana/api"]
    assert clock.now_s == 1000
    assert not worker.wait_for_lab({"JUPYTERHUB_SERVICE_URL": "http://0.0.0.0:1/"}, 0.5)
    assert 1000.3 <= clock.now_s <= 1000.5


def test_the_log_replaces_the_last_one_and_never_follows_a_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("keep")
    folder = tmp_path / "cache"
    folder.mkdir()
    name = f"pytorch-spawner-agent-{os.getuid()}.log"
    (folder / name).symlink_to(victim)
    other = tmp_path / "tmp"
    other.mkdir()
    (other / name).write_text("old")
    code = (
        "from pytorch_spawner.agent.worker import open_log, log\n"
        f"open_log({str(folder)!r}); log('new')"
    )
    env = {**os.environ, "TMPDIR": str(other), "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", code], env=env, check=True)
    assert victim.read_text() == "keep"
    assert (other / name).read_text().endswith(" new\n")


def test_a_pipe_in_the_logs_place_is_not_waited_for(tmp_path: Path) -> None:
    name = f"pytorch-spawner-agent-{os.getuid()}.log"
    for folder in ("cache", "read", "tmp"):
        (tmp_path / folder).mkdir()
    os.mkfifo(tmp_path / "cache" / name)
    os.mkfifo(tmp_path / "read" / name)
    reader = os.open(tmp_path / "read" / name, os.O_RDONLY | os.O_NONBLOCK)
    code = (
        "import sys; from pytorch_spawner.agent.worker import open_log, log\n"
        "open_log(sys.argv[1]); log('new')"
    )
    env = {**os.environ, "TMPDIR": str(tmp_path / "tmp"),
           "PYTHONPATH": str(Path(__file__).parents[2])}  # fmt: skip
    for folder in ("cache", "read"):
        place = str(tmp_path / folder)
        subprocess.run([sys.executable, "-c", code, place], env=env, check=True, timeout=100)
        assert (tmp_path / "tmp" / name).read_text().endswith(" new\n")
    os.close(reader)


def test_where_no_process_can_be_started_the_checks_and_the_warm_up_end_with_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(session.child.subprocess, "Popen", full)
    before = len([*Path("/proc/self/fd").iterdir()])
    findings, sent = Findings(), []

    def tell(kind: str, data: Any) -> None:
        findings.note(data)
        sent.append((kind, data))

    session._torch_checks(Config(), Driver(), findings, tell)
    assert tuple(data["code"] for _, data in sent) == TORCH_CODES
    assert "may start no more processes" in sent[0][1]["sentence"]
    assert "Resource temporarily unavailable" in sent[0][1]["facts"]["error"]
    sent.clear()
    fine = Findings({"torch": "ok", "compile": "ok"})
    session.run_warmup(Config(warmup_models=("mlp",)), fine, tell)
    assert [data.get("message") for _, data in sent[1:]] == [
        "No process could be started: Resource temporarily unavailable.", None,
    ]  # fmt: skip
    assert len([*Path("/proc/self/fd").iterdir()]) == before


def test_an_unknown_worker_is_refused(pyz: Path) -> None:
    done = subprocess.run([sys.executable, str(pyz), "--worker", "x"], check=False,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 2
    assert "no worker 'x'" in done.stderr


@pytest.mark.parametrize("as_json", [False, True])
def test_a_report_in_the_terminal_sends_nothing(
    pyz: Path, service: Service, container_env: Env, fake_torch: Fake, tmp_path: Path, as_json: bool
) -> None:
    fake = fake_torch(MISSING)
    env = container_env(config(tmp_path), PYTHONPATH=str(fake))
    command = [sys.executable, str(pyz), "--report", *(["--json"] if as_json else [])]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    if as_json:
        assert [check["code"] for check in json.loads(done.stdout)] == list(CODES)
    else:
        assert "NOTE  torch            This image has no PyTorch." in done.stdout
        assert "      you: Choose an image with PyTorch." in done.stdout
    assert service.events == []


def test_a_report_in_the_terminal_ends_with_1_when_a_check_failed(
    pyz: Path, container_env: Env, fake_torch: Fake, tmp_path: Path
) -> None:
    fake = fake_torch("raise OSError('\\x1b[31mred')")
    env = container_env(config(tmp_path), PYTHONPATH=str(fake))
    done = subprocess.run([sys.executable, str(pyz), "--report"], env=env, check=False,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 1
    assert "\x1b" not in done.stdout
