"""A GPU that the host takes away while a server runs, or gives back: who notices, who says so."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

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
    device_watch.remember(is_denied=False)
    assert not device_watch.has_changed(os.environ)
    with monkeypatch.context() as lost:
        deny(lost)
        assert device_watch.has_changed(os.environ)
        device_watch.remember(is_denied=True)
        assert not device_watch.has_changed(os.environ)
    assert device_watch.has_changed(os.environ)  # it came back


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
    assert worker._watch_gpu(config, is_denied=True) is watched
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


def test_a_probe_that_dies_does_not_make_it_ask_for_ever(
    node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus, "probe", lambda: 1 / 0)
    deny(monkeypatch)
    assert session.check_driver(WHOLE, lambda kind, data: None) is True


def test_with_a_course_the_process_that_waits_for_publications_has_it_said_once(
    node: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "told"
    write = f"import sys; open({str(told)!r}, 'a').write(' '.join(sys.argv[1:]) + chr(10))"
    monkeypatch.setattr(course_idle, "self_command", lambda **_: [sys.executable, "-c", write])
    device_watch.remember(is_denied=False)
    course_idle.tell_of_gpu()
    assert not told.exists()
    deny_only(monkeypatch, node)
    course_idle.tell_of_gpu()
    course_idle.tell_of_gpu()
    assert told.read_text() == "--worker gpu-turn\n"
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
    assert device_watch.os.environ[device_watch.STATE_ENV] == "fine", "so it is looked again"
