"""The wrapper around the container's command."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pytorch_spawner.agent import launch


def run(pyz: Path, *command: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(pyz), "--", *command], capture_output=True, text=True, env=env,
        timeout=30, check=False,
    )  # fmt: skip


def test_the_exit_status_and_output_are_the_commands(pyz: Path) -> None:
    done = run(pyz, "sh", "-c", "echo out; echo err >&2; exit 42")
    assert (done.returncode, done.stdout, done.stderr) == (42, "out\n", "err\n")


def test_arguments_and_environment_reach_the_command_unchanged(pyz: Path) -> None:
    done = run(pyz, "sh", "-c", 'echo "$1|$2|$X"', "sh", "a b", "--", env={**os.environ, "X": "ü"})
    assert done.stdout == "a b|--|ü\n"


def test_the_command_keeps_the_process_id_and_receives_sigterm(pyz: Path) -> None:
    script = "trap 'echo caught; exit 7' TERM; echo $$; while :; do sleep 0.05; done"
    process = subprocess.Popen(
        [sys.executable, str(pyz), "--", "sh", "-c", script], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert int(process.stdout.readline()) == process.pid
    process.send_signal(signal.SIGTERM)
    assert process.stdout.read() == "caught\n"
    assert process.wait(10) == 7


def test_signals_that_python_ignores_are_back_to_normal_for_the_command(pyz: Path) -> None:
    assert run(pyz, "sh", "-c", "kill -PIPE $$; echo survived").returncode == -signal.SIGPIPE


def test_a_command_that_does_not_exist_is_named_and_gives_127(pyz: Path) -> None:
    done = run(pyz, "jupyterhub-singeluser")
    assert done.returncode == 127
    assert "'jupyterhub-singeluser' was not found in this image" in done.stderr


def test_a_command_that_cannot_be_executed_is_named_and_gives_126(
    pyz: Path, tmp_path: Path
) -> None:
    script = tmp_path / "start.sh"
    script.write_text("echo no")
    script.chmod(0o644)
    done = run(pyz, str(script))
    assert done.returncode == 126
    assert "cannot be started: [Errno 13] Permission denied" in done.stderr


def test_without_a_command_it_says_how_to_use_it(pyz: Path) -> None:
    done = run(pyz)
    assert done.returncode == 2
    assert "usage: python3 agent.pyz -- COMMAND" in done.stderr


@pytest.mark.parametrize(
    "broken",
    [
        {"PYTORCH_SPAWNER_AGENT": "{not json"},
        {"PYTORCH_SPAWNER_AGENT": "[]"},
        {"PYTORCH_SPAWNER_AGENT": '{"gpus": 3, "warmup": [], "checks": {"deadline_s": "x"}}'},
        {"PYTORCH_SPAWNER_EVENTS_URL": "nonsense"},
        {"PYTORCH_SPAWNER_EVENTS_URL": "http://127.0.0.1:1/"},
        {"PYTORCH_SPAWNER_AGENT": '{"cache_dir": "/proc/none"}', "TMPDIR": "/proc/none"},
        {"HOME": "/nonexistent"},
    ],
    ids=lambda broken: " ".join(broken.values())[:40],
)
def test_no_trouble_of_the_agent_stops_the_command(
    pyz: Path, container_env: Callable[..., dict[str, str]], broken: dict[str, str]
) -> None:
    done = run(pyz, "echo", "fine", env={**container_env(), **broken})
    assert (done.returncode, done.stdout, done.stderr) == (0, "fine\n", "")


def test_no_room_for_another_process_does_not_stop_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setenv(launch.CONFIG_ENV, "{}")
    monkeypatch.setattr(launch.os, "fork", full)
    launch.start_worker()
    assert "no checks, because Resource temporarily unavailable" in capsys.readouterr().err


def test_the_worker_is_no_child_of_the_command_and_holds_none_of_its_files(
    pyz: Path, container_env: Callable[..., dict[str, str]]
) -> None:
    # The pipes end when the command does: a worker that kept them would make this hang.
    began = time.monotonic()
    done = run(
        pyz,
        "sh",
        "-c",
        "read -r line </proc/$$/task/$$/children; echo [$line] end",
        env=container_env(),
    )
    assert done.stdout == "[] end\n"
    assert time.monotonic() - began < 5


def test_without_its_environment_there_is_no_worker(pyz: Path, tmp_path: Path) -> None:
    env = {"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path)}
    assert run(pyz, "true", env=env).returncode == 0
    time.sleep(0.3)
    assert list(tmp_path.iterdir()) == []


LISTENING = "   0: 00000000:22B8 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 7 1\n"
CONNECTED = "   1: 0100007F:22B8 0100007F:D3F2 01 00000000:00000000 00:00000000 00000000 0 0 8 1\n"


def proc(root: Path, rows: str, name: str = "tcp") -> str:
    """A directory with a socket table, as proc(5) shows it."""
    (root / "proc/net").mkdir(parents=True, exist_ok=True)
    (root / "proc/net" / name).write_text("  sl  local_address rem_address   st\n" + rows)
    return f"{root}/"


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], float]:
    """Wait for a turn on a busy machine, where the server's port is 8888; seconds it took."""
    quiet: list[float] = []
    monkeypatch.setenv("JUPYTERHUB_SERVICE_URL", "http://0.0.0.0:8888/user/ana/")
    monkeypatch.setenv(launch.CONFIG_ENV, '{"v": 1}')
    monkeypatch.setattr("pytorch_spawner.agent.machine.is_busy", lambda *_: True)
    monkeypatch.setattr("pytorch_spawner.agent.machine.wait_for_quiet", quiet.append)

    def wait(root: str) -> float:
        began = time.monotonic()
        launch.wait_for_turn(root, patience_s=0.7)
        assert all(0 <= longest_s <= 2 for longest_s in quiet)
        return time.monotonic() - began

    return wait


@pytest.mark.parametrize("name", ["tcp", "tcp6"])
def test_the_worker_begins_when_the_server_has_opened_its_port(
    waits: Callable[[str], float], tmp_path: Path, name: str
) -> None:
    assert waits(proc(tmp_path, CONNECTED + LISTENING, name)) < 0.6


def test_a_connection_at_that_port_is_no_open_port(
    waits: Callable[[str], float], tmp_path: Path
) -> None:
    assert waits(proc(tmp_path, CONNECTED)) >= 0.7


def test_the_worker_waits_no_longer_than_its_patience_for_a_server_that_does_not_come_up(
    waits: Callable[[str], float], tmp_path: Path
) -> None:
    assert 0.7 <= waits(f"{tmp_path}/no-proc/") < 3


def test_without_a_hub_the_worker_does_not_wait(
    waits: Callable[[str], float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JUPYTERHUB_SERVICE_URL")
    assert waits(proc(tmp_path, CONNECTED)) < 0.1


def test_before_the_command_nothing_slow_is_imported(pyz: Path) -> None:
    code = (
        "import sys; before = set(sys.modules); sys.path.insert(0, sys.argv[1]);"
        "import pytorch_spawner.agent.launch; print(*sorted(set(sys.modules) - before))"
    )
    said = subprocess.run(
        [sys.executable, "-S", "-c", code, str(pyz)], capture_output=True, text=True, check=True
    ).stdout.split()
    slow = {"json", "urllib", "urllib.request", "ssl", "subprocess", "threading", "pathlib"}
    assert slow.isdisjoint(said)


def test_the_command_starts_within_fifty_milliseconds(
    pyz: Path, container_env: Callable[..., dict[str, str]]
) -> None:
    def fastest(command: list[str], env: dict[str, str]) -> float:
        times = []
        for _ in range(8):
            began = time.perf_counter()
            subprocess.run(command, env=env, check=True)
            times.append(time.perf_counter() - began)
        return min(times)

    env = container_env()
    plain = fastest(["/bin/true"], env)
    assert fastest([sys.executable, str(pyz), "--", "/bin/true"], env) - plain < 0.05


def test_every_module_is_python_3_9_and_imports_only_the_standard_library() -> None:
    known = sys.stdlib_module_names | {"pytorch_spawner"}
    for path in Path(launch.__file__).parent.glob("*.py"):
        tree = ast.parse(path.read_text(), feature_version=(3, 9))
        for node in tree.body:  # torch is imported inside the functions of the workers
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert {name.split(".")[0] for name in names} <= known, path.name
