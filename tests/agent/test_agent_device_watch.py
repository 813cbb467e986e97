"""A GPU that the host takes away while a server runs, or gives back: who notices, who says so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path

import pytest
from agent_service import Service

from pytorch_spawner.agent import course_idle, device_watch, gpus, launch, session, worker
from pytorch_spawner.agent.config import Config, Gpu
from pytorch_spawner.agent.gpus import Driver

A = "GPU-11111111-2222-3333-4444-555555555555"
WHOLE = Config(gpus=(Gpu(A),), share="whole")


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A device file of the driver, and nothing told yet."""
    path = tmp_path / "nvidiactl"
    path.touch()
    monkeypatch.setattr(device_watch, "NODES", (str(path),))
    monkeypatch.setattr(device_watch.denied, "__defaults__", ((str(path),),))
    monkeypatch.delenv(device_watch.STATE_ENV, raising=False)
    return path


def deny(monkeypatch: pytest.MonkeyPatch) -> None:
    def no(path: str, flags: int) -> int:
        raise PermissionError(1, os.strerror(1))

    monkeypatch.setattr(device_watch.os, "open", no)


def deny_only(monkeypatch: pytest.MonkeyPatch, node: Path) -> None:
    """Refuse to open one file, and no other."""
    really = os.open

    def some(path: str, flags: int, *more: int) -> int:
        if path == str(node):
            raise PermissionError(1, os.strerror(1))
        return really(path, flags, *more)

    monkeypatch.setattr(device_watch.os, "open", some)


def test_each_change_is_noticed_once(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device_watch.remember(is_denied=False, is_delivered=True)
    assert not device_watch.has_changed(os.environ)
    with monkeypatch.context() as lost:
        deny(lost)
        assert device_watch.has_changed(os.environ)
        device_watch.remember(is_denied=True, is_delivered=True)
        assert not device_watch.has_changed(os.environ)
    assert device_watch.has_changed(os.environ)  # it came back
    monkeypatch.delenv(device_watch.STATE_ENV)


def test_what_the_service_may_have_heard_is_told_again_whatever_is_so_by_then(
    node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device_watch.remember(is_denied=True, is_delivered=False)
    assert device_watch.has_changed(os.environ), "the GPU is back, and the page may say it is lost"
    deny(monkeypatch)
    assert device_watch.has_changed(os.environ)
    device_watch.remember(is_denied=True, is_delivered=True)
    assert not device_watch.has_changed(os.environ)
    monkeypatch.delenv(device_watch.STATE_ENV)


def test_tries_that_fail_come_at_growing_distances_and_never_end(
    node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device_watch.remember(is_denied=False, is_delivered=True)
    pauses = [device_watch.pause_s(os.environ)]
    for _ in range(6):
        device_watch.remember(is_denied=True, is_delivered=False)
        pauses.append(device_watch.pause_s(os.environ))
    assert pauses == [20, 60, 120, 240, 300, 300, 300]
    device_watch.remember(is_denied=True, is_delivered=True)
    assert device_watch.pause_s(os.environ) == 20
    monkeypatch.delenv(device_watch.STATE_ENV)


@pytest.mark.parametrize("state", ["", "lost", "-1", "1.5", "fine\n", "inf", "fi\0ne"])
def test_what_no_process_remembers_is_not_taken_over(
    state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(device_watch.STATE_ENV, "fine")
    with pytest.raises(ValueError, match="no state"):
        device_watch.take_over(state)
    assert os.environ[device_watch.STATE_ENV] == "fine"


def test_where_nobody_watches_nothing_is_noticed(
    node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deny(monkeypatch)
    assert not device_watch.has_changed(os.environ)


@pytest.mark.parametrize(
    ("config", "is_there", "watched"),
    [
        (WHOLE, True, True),
        (WHOLE, False, False),
        (Config(gpus=(), share="none"), True, False),
        (Config(gpus=(Gpu(A, simulated=True),), share="whole"), True, False),
        (Config(), True, False),
    ],
    ids=["a GPU", "no device file (WSL)", "no GPU", "a simulated one", "nobody told"],
)
def test_only_a_server_with_a_real_gpu_keeps_a_process_for_it(
    node: Path, config: Config, is_there: bool, watched: bool
) -> None:
    if not is_there:
        node.unlink()
    assert worker._watch_gpu(config, is_denied=True, is_delivered=True) is watched
    assert os.environ.pop(device_watch.STATE_ENV, "") == ("denied" if watched else "")


@pytest.mark.parametrize("lost", [True, False], ids=["lost", "back"])
def test_the_drivers_check_is_sent_again_and_says_what_a_page_can_offer(
    monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    found = Driver("580.1", (13, 0), (A,), "", "", ("/dev/nvidiactl",) if lost else ())
    monkeypatch.setattr(gpus, "probe", lambda: found)
    sent: list[dict[str, object]] = []
    assert session.check_driver(WHOLE, lambda kind, data: sent.append(dict(data))) is lost
    assert [said["phase"] for said in sent] == ["running", "done"]
    assert sent[1]["level"] == ("fail" if lost else "ok")
    assert sent[1]["facts"].get("restart") is (True if lost else None)  # type: ignore[attr-defined]


@pytest.mark.parametrize("how", ["it dies", "it hangs"])
def test_a_probe_that_finds_nothing_out_is_no_answer_whatever_the_device_file_says(
    node: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    over = threading.Event()
    monkeypatch.setattr(gpus, "probe", over.wait if how == "it hangs" else lambda: 1 / 0)
    monkeypatch.setattr(session, "_DRIVER_S", 0.05 if how == "it hangs" else 60)
    deny_only(monkeypatch, node)
    assert session.check_driver(WHOLE, lambda kind, data: None) is None
    over.set()


class Waits(Exception):
    """In the place of the process that a turn becomes."""


@pytest.fixture
def turn(
    node: Path, service: Service, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], str]]:
    """One turn of a container whose GPU was lost; returns what is remembered after it."""

    def become_idle() -> None:
        raise Waits

    def one() -> str:
        with pytest.raises(Waits):
            worker._gpu_turn()
        return os.environ[device_watch.STATE_ENV]

    config = {"start": "s1", "gpus": [{"uuid": A}], "share": "whole"}
    monkeypatch.setenv(launch.CONFIG_ENV, json.dumps(config))
    monkeypatch.setenv(launch.URL_ENV, f"{service.url}/events")
    monkeypatch.setattr(device_watch, "become_idle", become_idle)
    lost = Driver("580.1", (13, 0), (A,), "", "", ("/dev/nvidiactl",))
    monkeypatch.setattr(gpus, "probe", lambda: lost)
    monkeypatch.setattr(worker, "_GPU_PATIENCE_S", 0.0)
    monkeypatch.setenv(device_watch.STATE_ENV, "fine")
    yield one
    monkeypatch.delenv(device_watch.STATE_ENV)


def test_a_driver_that_did_not_answer_is_asked_again_until_a_restart_can_be_offered(
    turn: Callable[[], str], service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as sick:
        sick.setattr(gpus, "probe", lambda: 1 / 0)
        assert [turn(), turn()] == ["60", "120"]
    assert "restart" not in service.checks()["driver"]["facts"]
    assert turn() == "denied"
    assert service.checks()["driver"]["facts"]["restart"] is True


@pytest.mark.parametrize(
    ("status", "remembered"), [(409, "denied"), (403, "denied"), (503, "60"), (302, "60")]
)
def test_a_start_that_may_report_no_more_is_not_told_again_and_a_service_that_is_away_is(
    turn: Callable[[], str], service: Service, status: int, remembered: str
) -> None:
    service.statuses = [status] * 10
    assert turn() == remembered


def test_with_a_course_the_process_that_waits_for_publications_has_it_said_once(
    node: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "told"
    write = (
        f"import sys; open({str(told)!r}, 'a').write(' '.join(sys.argv[1:]) + chr(10));"
        "print('denied', end='')"
    )
    monkeypatch.setattr(course_idle, "self_command", lambda **_: [sys.executable, "-c", write])
    device_watch.remember(is_denied=False, is_delivered=True)
    course_idle.tell_of_gpu()
    assert not told.exists()
    deny_only(monkeypatch, node)
    course_idle.tell_of_gpu()
    course_idle.tell_of_gpu()
    assert told.read_text() == "--worker gpu-turn\n"
    monkeypatch.delenv(device_watch.STATE_ENV)


@pytest.mark.parametrize(
    "program",
    ["raise SystemExit(1)", "print('denied', end=''); raise SystemExit(1)", "pass", "print(b'x')"],
    ids=["it fails", "it fails late", "it says nothing", "it says something else"],
)
def test_with_a_course_a_process_that_falls_over_has_told_nothing(
    node: Path, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    monkeypatch.setattr(course_idle, "self_command", lambda **_: [sys.executable, "-c", program])
    device_watch.remember(is_denied=False, is_delivered=True)
    deny_only(monkeypatch, node)
    course_idle.tell_of_gpu()
    assert device_watch.has_changed(os.environ)
    assert device_watch.pause_s(os.environ) == device_watch.AGAIN_S
    monkeypatch.delenv(device_watch.STATE_ENV)


def test_what_the_checks_found_is_what_was_told() -> None:
    findings = session.Findings()
    done = {"code": "driver", "phase": "done", "level": "fail"}
    findings.note({**done, "facts": {"denied": ["/dev/nvidiactl"]}})
    assert findings.denied
    findings.note({**done, "facts": {"denied": []}})
    assert not findings.denied


def test_a_check_that_falls_over_does_not_end_the_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    class Waits(Exception):
        """In the place of the process that it becomes."""

    def become_idle() -> None:
        raise Waits

    monkeypatch.setattr(session, "check_driver", lambda *_: 1 / 0)
    monkeypatch.setattr(device_watch, "become_idle", become_idle)
    monkeypatch.setenv(launch.CONFIG_ENV, '{"v": 1}')
    monkeypatch.setenv(device_watch.STATE_ENV, "fine")
    monkeypatch.delenv(launch.URL_ENV, raising=False)
    with pytest.raises(Waits):
        worker._gpu_turn()
    assert device_watch.has_changed(os.environ), "so it is looked again"
    assert device_watch.pause_s(os.environ) == device_watch.AGAIN_S, "and not at once"


def test_where_no_thread_can_be_started_the_watch_goes_on(
    node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Waits(Exception):
        """In the place of the process that it becomes."""

    def become_idle() -> None:
        raise Waits

    def full(thread: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", full)
    monkeypatch.setattr(device_watch, "become_idle", become_idle)
    monkeypatch.setenv(launch.CONFIG_ENV, '{"v": 1}')
    monkeypatch.setenv(launch.URL_ENV, "http://127.0.0.1:1/")
    monkeypatch.setenv(device_watch.STATE_ENV, "denied")
    with pytest.raises(Waits):
        worker._gpu_turn()
    assert device_watch.has_changed(os.environ), "nothing was told"


# The agent's program as it is, but for the device file, the driver, and how long it waits.
PROGRAM = """
import os, sys
sys.path.insert(0, {root!r})
from pytorch_spawner.agent import device_watch, launch

device_watch.LOOK_S, device_watch.AGAIN_S, device_watch.LONGEST_S = 0.05, 1, 1
device_watch.denied = lambda: ("/dev/nvidiactl",) if os.path.exists({lost!r}) else ()
if sys.argv[2] == "course-idle":
    from pytorch_spawner.agent import course_idle
    course_idle.LOOK_S = 0.05
elif sys.argv[2] == "gpu-turn":
    from pytorch_spawner.agent import gpus, worker
    worker._GPU_PATIENCE_S = 0.2
    def probe():
        with open({tries!r}, "a") as file:
            file.write("x")
        return gpus.Driver("580.1", (13, 0), ({uuid!r},), "", "", device_watch.denied())
    gpus.probe = probe
sys.exit(launch.main(sys.argv[1:]))
"""


class Watched:
    """A container whose GPU can be lost, with the process that watches it."""

    def __init__(self, folder: Path, service: Service, role: str) -> None:
        self.lost, self._tries = folder / "lost", folder / "tries"
        program = folder / "agent.py"
        program.write_text(
            PROGRAM.format(
                root=str(Path(device_watch.__file__).parents[2]), lost=str(self.lost),
                tries=str(self._tries), uuid=A,
            )
        )  # fmt: skip
        config: dict[str, object] = {"start": "s1", "gpus": [{"uuid": A}], "share": "whole"}
        if role == "course-idle":
            names = ("name", "bundle", "notice", "branch", "folder")
            config["course"] = {name: str(folder / "none") for name in names} | {"name": "cnn"}
        env = {
            "PATH": os.environ["PATH"],
            launch.CONFIG_ENV: json.dumps(config),
            launch.URL_ENV: f"{service.url}/events",
            device_watch.STATE_ENV: "fine",
            course_idle.STATE_ENV: course_idle.Seen().as_text(),
        }
        command = [sys.executable, "-I", str(program), "--worker", role]
        self._process = subprocess.Popen(command, env=env, start_new_session=True)

    def wait_for_tries(self, count: int) -> None:
        """Wait until it has tried so often to say something."""
        give_up_at = time.monotonic() + 60
        while not self._tries.exists() or self._tries.stat().st_size < count:
            assert self._process.poll() is None
            assert time.monotonic() < give_up_at
            time.sleep(0.02)

    def end(self) -> None:
        os.killpg(self._process.pid, 9)
        self._process.wait()


@pytest.fixture
def away() -> Iterator[Service]:
    """A service that nobody reaches yet."""
    running = Service(is_away=True)
    yield running
    running.close()


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Callable[[Service, str], Watched]]:
    begun: list[Watched] = []

    def begin(service: Service, role: str) -> Watched:
        begun.append(Watched(tmp_path, service, role))
        return begun[-1]

    yield begin
    for one in begun:
        one.end()


def levels(service: Service) -> list[str]:
    """What the driver's check said, without what it repeated."""
    ends = [e["data"] for e in service.events if e["data"].get("phase") == "done"]
    assert {end["code"] for end in ends} <= {"driver"}
    return [level for level, _ in groupby(end["level"] for end in ends)]


@pytest.mark.programs
@pytest.mark.parametrize("role", ["gpu-idle", "course-idle"])
def test_a_gpu_lost_while_the_service_is_away_is_told_when_it_is_back(
    away: Service, watch: Callable[[Service, str], Watched], role: str
) -> None:
    container = watch(away, role)
    container.lost.touch()
    container.wait_for_tries(3)
    away.come_back()
    assert away.wait_for(lambda s: levels(s) == ["fail"], 60), away.events
    assert away.checks()["driver"]["facts"]["restart"] is True
    container.lost.unlink()
    assert away.wait_for(lambda s: levels(s) == ["fail", "ok"], 60), away.events


def test_the_process_that_waits_for_a_lost_gpu_imports_next_to_nothing(pyz: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]);"
        "import pytorch_spawner.agent.launch; before = set(sys.modules);"
        "import pytorch_spawner.agent.device_watch; print(*sorted(set(sys.modules) - before))"
    )
    said = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(pyz)],
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert set(said) <= {"errno", "pytorch_spawner.agent.device_watch"}
