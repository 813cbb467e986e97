"""The cheap checks, each with its fault provoked."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from agent_service import Service, write_shell

from pytorch_spawner.agent import diagnose
from pytorch_spawner.agent.codes import Outcome, outcome

STUDENT = 54321


def as_student(check: Callable[[], Outcome]) -> tuple[str, str]:
    """Level and sentence of a check that runs as somebody without privileges."""
    if os.getuid() != 0:
        found = check()
        return found.level, found.sentence
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(STUDENT)
            os.setuid(STUDENT)
            found = check()
            os.write(writing, json.dumps([found.level, found.sentence]).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    level, sentence = json.loads(said)
    return level, sentence


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home that a student can reach: pytest's own folders are private."""
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    made = tmp_path / "home"
    made.mkdir()
    return made


def test_a_home_of_ones_own_is_fine_and_left_as_it_was(home: Path) -> None:
    found = diagnose.home_writable(str(home), os.getuid())
    assert found.level == "ok"
    assert list(home.iterdir()) == []


def test_a_read_only_home_fails_with_a_remedy_for_the_admin(home: Path) -> None:
    home.chmod(0o555)
    said = as_student(lambda: diagnose.home_writable(str(home), STUDENT))
    assert said == ("fail", "Nothing can be saved in your home directory.")


def test_a_home_of_somebody_else_is_worth_a_note(home: Path) -> None:
    home.chmod(0o777)
    found = diagnose.home_writable(str(home), os.getuid() + 1)
    assert (found.level, found.remedy) == (
        "warn", "Tell your admin before you keep private files there.",
    )  # fmt: skip


@pytest.mark.parametrize("missing", [None, "", "/nonexistent"])
def test_no_home_at_all_fails(missing: str | None) -> None:
    assert diagnose.home_writable(missing, 1000).level == "fail"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_home_says_full(home: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def full(fd: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(diagnose.os, "fsync", full)
    found = diagnose.home_writable(str(home), os.getuid())
    assert found.sentence == "Your home directory is full, so nothing can be saved."
    assert "du -sh" in found.remedy


def test_shared_memory_smaller_than_promised_is_a_note_with_both_sizes(tmp_path: Path) -> None:
    found = diagnose.shared_memory(10**9, str(tmp_path))
    assert found.level == "warn"
    assert f"instead of {10**9} MiB" in found.sentence
    assert "num_workers=0" in found.remedy
    assert diagnose.shared_memory(1, str(tmp_path)).level == "ok"


def test_no_shared_memory_fails() -> None:
    assert diagnose.shared_memory(1, "/nonexistent").level == "fail"


def write_kernel(folder: Path, *argv: str) -> Path:
    spec = folder / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps({"argv": [*argv, "-m", "ipykernel_launcher"]}))
    return spec


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "HOME": str(tmp_path / "home"),
        "SHELL": write_shell(tmp_path / "shell"),
    }


def kernel_level(environ: dict[str, str], prefix: Path) -> tuple[str, dict[str, Any]]:
    found = diagnose.kernel_python(environ, str(prefix), sys.executable)
    return found.level, dict(found.facts)


@pytest.mark.parametrize("name", ["python", "python3", sys.executable])
def test_the_usual_kernel_runs_on_the_servers_python(
    tmp_path: Path, environ: dict[str, str], name: str
) -> None:
    spec = write_kernel(tmp_path / "share" / "jupyter", name)
    level, facts = kernel_level(environ, tmp_path)
    assert (level, facts["kernel"], facts["kernelspec"]) == ("ok", sys.executable, str(spec))


def test_without_a_description_the_kernel_is_the_servers_python(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    assert kernel_level(environ, tmp_path)[0] == "ok"


def test_a_kernel_of_another_environment_is_a_note(tmp_path: Path, environ: dict[str, str]) -> None:
    venv.create(tmp_path / "other", symlinks=True)
    write_kernel(tmp_path / "share" / "jupyter", str(tmp_path / "other" / "bin" / "python3"))
    assert kernel_level(environ, tmp_path)[0] == "warn"


def test_a_terminal_whose_profile_finds_another_python_is_a_note(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    venv.create(tmp_path / "other", symlinks=True)
    write_shell(tmp_path / "shell", f"PATH={tmp_path}/other/bin:$PATH; echo Welcome to the lab!")
    level, facts = kernel_level(environ, tmp_path)
    assert (level, facts["terminal"]) == ("warn", f"{tmp_path}/other/bin/python3")


@pytest.mark.parametrize(
    "profile",
    ["sleep 98765", "sleep 98765 & disown 2>/dev/null; sleep 98765", "exit 3", "kill -9 $$"],
)
def test_a_profile_that_hangs_or_ends_the_shell_ends_no_check(
    tmp_path: Path, environ: dict[str, str], profile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diagnose, "_SHELL_S", 0.2)
    write_shell(tmp_path / "shell", profile)
    assert kernel_level(environ, tmp_path)[0] == "ok"
    assert not [one for one in processes() if "sleep 98765" in one]


def test_what_a_profile_starts_in_a_session_of_its_own_ends_and_nothing_else_does(
    tmp_path: Path, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diagnose, "_SHELL_S", 60)
    started = tmp_path / "started"
    write_shell(
        tmp_path / "shell",
        f"setsid sh -c 'echo $$ > {started}.new; mv {started}.new {started}; exec sleep 98766' &\n"
        f"until [ -e {started} ]; do sleep 0.01; done",
    )
    other = subprocess.Popen(["sleep", "98767"], env=environ)
    try:
        assert kernel_level(environ, tmp_path)[0] == "ok"
        # Killed, it is there until it is scheduled once more.
        give_up_at = time.monotonic() + 60
        while left := [one for one in processes() if "sleep 98766" in one]:
            assert time.monotonic() < give_up_at, left
            time.sleep(0.02)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(started.read_text()), signal.SIGKILL)


def processes() -> list[str]:
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    return listed.stdout.splitlines()


def test_without_the_shell_it_is_the_python_on_the_path(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    environ["SHELL"] = str(tmp_path / "nothing")
    assert kernel_level(environ, tmp_path)[0] == "ok"


def test_a_kernel_whose_python_is_gone_fails(tmp_path: Path, environ: dict[str, str]) -> None:
    spec = write_kernel(tmp_path / "share" / "jupyter", "/gone/bin/python")
    found = diagnose.kernel_python(environ, str(tmp_path), sys.executable)
    assert found.level == "fail"
    assert str(spec) in found.remedy


def test_jupyter_path_comes_first_then_the_users_own_then_the_prefix(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    write_kernel(tmp_path / "share" / "jupyter", "/c")
    assert diagnose.find_kernel(environ, str(tmp_path), "/x")[1] == "/c"
    write_kernel(tmp_path / "home" / ".local" / "share" / "jupyter", "/b")
    assert diagnose.find_kernel(environ, str(tmp_path), "/x")[1] == "/b"
    write_kernel(tmp_path / "first", "/a")
    environ["JUPYTER_PATH"] = str(tmp_path / "first")
    assert diagnose.find_kernel(environ, str(tmp_path), "/x")[1] == "/a"


@pytest.mark.parametrize("text", ["{", "[]", '{"argv": []}', '{"argv": null}'])
def test_a_damaged_description_is_passed_over(
    tmp_path: Path, environ: dict[str, str], text: str
) -> None:
    write_kernel(tmp_path / "share" / "jupyter", "x").write_text(text)
    assert diagnose.find_kernel(environ, str(tmp_path), "/x") == (None, "/x")


def test_the_hub_is_reached_by_any_answer(service: Service) -> None:
    assert diagnose.hub_reachable(f"{service.url}/hub/api").level == "ok"
    service.headers = {"Location": "http://127.0.0.1:1/"}
    assert diagnose.hub_reachable(f"{service.url}/hub/api").level == "ok"


def test_a_hub_that_does_not_listen_fails_and_names_the_address_for_the_admin() -> None:
    found = diagnose.hub_reachable("http://127.0.0.1:1/hub/api")
    assert found.level == "fail"
    assert "http://127.0.0.1:1/hub/api must answer" in found.admin_remedy


def test_without_a_hub_nobody_is_asked() -> None:
    assert diagnose.hub_reachable(None).level == "unknown"


def collect(check: Callable[[], Outcome], deadline_s: float = 5.0) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []
    diagnose.run_check("shm", check, lambda kind, data: sent.append(dict(data)), deadline_s)
    return sent


def test_a_check_says_that_it_runs_then_what_it_found() -> None:
    first, last = collect(lambda: outcome("warn", "A.", "B.", "C.", size=3))
    assert first == {"code": "shm", "phase": "running"}
    assert last.pop("seconds") >= 0
    assert last == {
        "code": "shm", "phase": "done", "level": "warn", "sentence": "A.", "remedy": "B.",
        "admin_remedy": "C.", "facts": {"size": 3},
    }  # fmt: skip


def test_a_check_that_hangs_is_left_behind() -> None:
    over = threading.Event()

    def hang() -> Outcome:
        over.wait()
        return outcome("ok", "")

    last = collect(hang, 0.1)[-1]
    over.set()
    assert (last["level"], last["sentence"]) == (
        "fail", "This check did not answer within 0.1 s.",
    )  # fmt: skip


def test_a_check_for_which_no_thread_can_be_started_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(thread: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", full)
    last = collect(lambda: outcome("ok", ""))[-1]
    assert last["phase"] == "done"
    assert "may start no more processes" in last["sentence"]
    assert last["facts"] == {"error": "can't start new thread"}


@pytest.mark.parametrize("kind", ["a pipe", "a device", "nested"])
def test_a_kernel_description_that_is_no_such_file_is_passed_over_at_once(
    tmp_path: Path, kind: str
) -> None:
    spec = tmp_path / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    if kind == "a pipe":
        os.mkfifo(spec)
    elif kind == "a device":
        spec.symlink_to("/dev/zero")
    else:
        spec.write_text('{"argv": ' + "[" * 200_000)
    found = diagnose.find_kernel({"JUPYTER_DATA_DIR": str(tmp_path)}, "/nowhere", "/bin/py")
    assert found[0] != str(spec)


def test_a_faulty_check_is_unknown_and_stops_nothing() -> None:
    def broken() -> Outcome:
        raise RuntimeError("oops")

    last = collect(broken)[-1]
    assert (last["level"], last["facts"]) == ("unknown", {"error": "RuntimeError('oops')"})
