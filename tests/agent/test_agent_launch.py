"""The wrapper around the container's command."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from agent_service import Service, processes_with

from pytorch_spawner.agent import launch


def run(pyz: Path, *command: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(pyz), "--", *command], capture_output=True, text=True, env=env,
        timeout=100, check=False,
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


@pytest.fixture
def away() -> Iterator[Service]:
    """A service that nobody reaches: a worker tries for two minutes to report to it."""
    running = Service(is_away=True)
    yield running
    running.close()


def test_the_worker_is_no_child_of_the_command_and_holds_none_of_its_files(
    pyz: Path, container_env: Callable[..., dict[str, str]], away: Service, tmp_path: Path
) -> None:
    env = container_env(PYTORCH_SPAWNER_EVENTS_URL=f"{away.url}/events")
    # The pipes end when the command does: a worker that kept them would make this hang.
    script = "read -r line </proc/$$/task/$$/children; echo [$line] end"
    done = run(pyz, "sh", "-c", script, env=env)
    assert done.stdout == "[] end\n"
    assert [line for line in processes_with(str(tmp_path)).values() if str(pyz) in line]


def test_without_its_environment_there_is_no_worker(
    pyz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = {"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path)}
    assert run(pyz, "true", env=env).returncode == 0
    # The command begins after a worker has begun, and a worker outlives this one.
    assert processes_with(str(tmp_path)) == {}
    assert list(tmp_path.iterdir()) == []
    monkeypatch.delenv(launch.CONFIG_ENV, raising=False)
    monkeypatch.delenv(launch.URL_ENV, raising=False)
    monkeypatch.setattr(launch.os, "fork", lambda: pytest.fail("it started another process"))
    launch.start_worker()


LISTENING = "   0: 00000000:22B8 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 7 1\n"
CONNECTED = "   1: 0100007F:22B8 0100007F:D3F2 01 00000000:00000000 00:00000000 00000000 0 0 8 1\n"


def proc(root: Path, rows: str, name: str = "tcp") -> str:
    """A directory with a socket table, as proc(5) shows it."""
    (root / "proc/net").mkdir(parents=True, exist_ok=True)
    (root / "proc/net" / name).write_text("  sl  local_address rem_address   st\n" + rows)
    return f"{root}/"


@pytest.fixture
def waits(clock: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., float]:
    """Wait for a turn on a busy machine, where the server's port is 8888; seconds it took."""
    quiet: list[float] = []
    monkeypatch.setattr(launch, "time", clock)
    monkeypatch.setenv("JUPYTERHUB_SERVICE_URL", "http://0.0.0.0:8888/user/ana/")
    monkeypatch.setenv(launch.CONFIG_ENV, '{"v": 1}')
    monkeypatch.setattr("pytorch_spawner.agent.machine.is_busy", lambda *_: True)
    monkeypatch.setattr("pytorch_spawner.agent.machine.wait_for_quiet", quiet.append)

    def wait(root: str, patience_s: float = 0.7) -> float:
        began = clock.monotonic()
        launch.wait_for_turn(root, patience_s)
        assert all(0 <= longest_s <= 2 for longest_s in quiet)
        return clock.monotonic() - began

    return wait


# What a look at the table takes is not on the clock; what is between two looks is.
A_LOOK = pytest.approx(0, abs=launch._LOOK_S)


@pytest.mark.parametrize("name", ["tcp", "tcp6"])
def test_the_worker_begins_when_the_server_has_opened_its_port(
    waits: Callable[..., float], tmp_path: Path, name: str
) -> None:
    assert waits(proc(tmp_path, CONNECTED + LISTENING, name)) == launch._SETTLE_S


def test_a_connection_at_that_port_is_no_open_port(
    waits: Callable[..., float], tmp_path: Path
) -> None:
    assert waits(proc(tmp_path, CONNECTED)) - 0.7 == A_LOOK


def test_the_worker_waits_no_longer_than_its_patience_for_a_server_that_does_not_come_up(
    waits: Callable[..., float], tmp_path: Path
) -> None:
    assert waits(f"{tmp_path}/no-proc/") - 0.7 == A_LOOK
    assert waits(f"{tmp_path}/no-proc/", 8.0) - 8.0 == A_LOOK


def test_on_a_machine_with_a_core_to_spare_the_worker_waits_a_second_at_most(
    waits: Callable[..., float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytorch_spawner.agent.machine.is_busy", lambda *_: False)
    assert waits(proc(tmp_path, CONNECTED), 8.0) - 1.2 == A_LOOK


def test_without_a_hub_the_worker_does_not_wait(
    waits: Callable[..., float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JUPYTERHUB_SERVICE_URL")
    assert waits(proc(tmp_path, CONNECTED)) == 0


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


def test_before_the_command_nothing_waits(
    monkeypatch: pytest.MonkeyPatch, clock: Any, tmp_path: Path
) -> None:
    begun: list[list[str]] = []
    monkeypatch.setenv(launch.CONFIG_ENV, "{}")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(launch, "time", clock)
    monkeypatch.setattr(launch.os, "fork", lambda: 7)
    monkeypatch.setattr(launch.os, "waitpid", lambda *_: (7, 0))
    monkeypatch.setattr(launch.os, "execvp", lambda _, command: begun.append(command))
    monkeypatch.setattr(launch.signal, "signal", lambda *_: None)
    launch.main(["--", "jupyterhub-singleuser", "--debug"])
    assert begun == [["jupyterhub-singleuser", "--debug"]]
    assert clock.now_s == 1000


def test_the_command_starts_for_twice_what_a_bare_interpreter_costs(
    pyz: Path, container_env: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    """Where that interpreter takes 20 ms, the agent takes 30.

    Seconds of a core, not of the day, and side by side: on any machine, however busy, both grow.
    """

    def cost_s(*command: str) -> float:
        pid = os.posix_spawn(command[0], command, env)
        _, status, used = os.wait4(pid, 0)
        assert status == 0
        return used.ru_utime + used.ru_stime

    bare = tmp_path / "bare.pyz"
    with zipfile.ZipFile(bare, "w") as archive:
        archive.writestr("__main__.py", "import os, sys\nos.execv(sys.argv[1], sys.argv[1:])\n")
    # No server comes up at this port, so the workers wait, and do not disturb the measurement.
    env = container_env(JUPYTERHUB_SERVICE_URL="http://0.0.0.0:1/")
    rounds = [
        (
            cost_s(sys.executable, str(bare), "/bin/true"),
            cost_s(sys.executable, str(pyz), "--", "/bin/true"),
        )
        for _ in range(12)
    ]
    interpreter_s, agent_s = (min(column) for column in zip(*rounds, strict=True))
    print(f"interpreter {interpreter_s:.4f} s, agent {agent_s:.4f} s")
    assert agent_s < 2 * interpreter_s


def test_every_module_is_python_3_9_and_imports_only_the_standard_library() -> None:
    known = sys.stdlib_module_names | {"pytorch_spawner"}
    for path in Path(launch.__file__).parent.glob("*.py"):
        tree = ast.parse(path.read_text(), feature_version=(3, 9))
        for node in tree.body:  # torch is imported inside the functions of the workers
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert {name.split(".")[0] for name in names} <= known, path.name
