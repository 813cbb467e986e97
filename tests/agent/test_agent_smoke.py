"""A course's notebooks run as a fresh student would; what hangs, floods or multiplies is ended."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from course_lab import FOLDER, contents, notebook

from pytorch_spawner.agent import smoke
from pytorch_spawner.agent.config import Course, Smoke
from pytorch_spawner.core.journal import MAX_EVENT_BYTES

pytestmark = pytest.mark.programs


def run(home: Path, *names: str, deadline_s: float = 60) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    course = Course("cnn", "CNNs", "/b", "/n", "published", FOLDER, "", Smoke(names, deadline_s))
    smoke.after_sync(course, str(home), lambda: True, lambda _, data: events.append(dict(data)))
    assert all(len(json.dumps(event)) < MAX_EVENT_BYTES for event in events)
    assert [event["phase"] for event in events] == ["smoke"] * len(names) + ["smoke-done"]
    return events


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / FOLDER / "week 1").mkdir(parents=True)
    return tmp_path


def put(home: Path, name: str, content: str | bytes) -> None:
    raw = content.encode() if isinstance(content, str) else content
    (home / FOLDER / name).write_bytes(raw)


def test_a_notebook_runs_beside_its_files_in_a_copy_that_is_gone_afterwards(home: Path) -> None:
    put(home, "week 1/data.txt", "42")
    cells = ["text = open('data.txt').read()", "open('made.txt', 'w').write(text)", "print(text)"]
    put(home, "week 1/lab.ipynb", notebook(*cells))
    before = contents(home / FOLDER)
    ran, done = run(home, "week 1/lab.ipynb")
    assert (ran["level"], ran["notebook"]) == ("ok", "week 1/lab.ipynb"), ran
    assert ran["log"].startswith("42")
    assert "3 cells ran." in ran["log"]
    assert ran["message"].startswith("It ran to its end in ")
    assert (done["level"], done["message"]) == ("ok", "All 1 ran to the end.")
    assert contents(home / FOLDER) == before


def test_an_error_in_a_cell_is_the_sentence_and_the_next_notebook_still_runs(home: Path) -> None:
    put(home, "bad.ipynb", notebook("print('before')", "1 / 0"))
    put(home, "good.py", "print('fine')\n")
    bad, good, done = run(home, "bad.ipynb", "good.py")
    assert bad["level"] == "fail"
    assert bad["message"] == "It failed: ZeroDivisionError: division by zero"
    assert "before" in bad["log"]
    assert "\x1b" not in bad["log"]
    assert (good["level"], good["log"]) == ("ok", "fine")
    assert (done["level"], done["message"]) == ("fail", "1 of 2 did not run to the end.")


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("raise SystemExit(3)", "It failed: status 3"),
        ("raise ValueError('x' * 999)", "It failed: ValueError: xxx"),
        ("import os; os.abort()", "It was ended by signal 6."),
        ("import os; os.kill(os.getpid(), 9)", "signal 9, often because memory ran out."),
        ("import nothing_like_it", "ModuleNotFoundError: No module named 'nothing_like_it'"),
        ("def f(:", "SyntaxError"),
    ],
)
def test_a_program_that_fails_says_how(home: Path, source: str, sentence: str) -> None:
    put(home, "a.py", source)
    ran = run(home, "a.py")[0]
    assert ran["level"] == "fail"
    assert sentence in ran["message"]
    assert len(ran["message"]) < 400


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"{", "It failed: "),
        (b"\xff\xfe", "It failed: "),
        (None, "The course has no file a.ipynb."),
    ],
    ids=["no JSON", "no UTF-8", "not there"],
)
def test_a_notebook_that_is_none_says_so(home: Path, content: bytes | None, sentence: str) -> None:
    if content is not None:
        put(home, "a.ipynb", content)
    assert run(home, "a.ipynb")[0]["message"].startswith(sentence)


def test_a_kernel_that_dies_says_so(home: Path) -> None:
    put(home, "a.ipynb", notebook("import os; os._exit(1)"))
    ran = run(home, "a.ipynb")[0]
    assert ran["level"] == "fail"
    assert "kernel died" in ran["message"].lower()


# Each writes the file {sign} when it has done its worst.
HANG = "import signal; open({sign!r}, 'w'); signal.pause()"
FLOOD = (
    "import sys\nsys.stdout.write('flood ' * 20_000); open({sign!r}, 'w')\n"
    "while True: sys.stdout.write('flood ' * 10_000)"
)
AWAY = (
    "import signal, subprocess, sys\n"
    'subprocess.Popen([sys.executable, \'-c\', """' + HANG + '"""], start_new_session=True)\n'
    "signal.pause()"
)
# Bounded, since this machine is not a container; each starts the next and goes on. The eldest has
# waited for none of them, so the last of the line says that all are there.
BOMB = (
    "import os, signal\nborn = 0\nfor _ in range(7):\n"
    "    if os.fork() == 0: born += 1; os.setsid()\n"
    "if born == 7: open({sign!r}, 'w')\n"
    "while True: signal.pause()"
)


class Deadline:
    """In the place of the module ``time``: the deadline is over when a file is there."""

    def __init__(self, sign: Path) -> None:
        self._sign = sign

    def monotonic(self) -> float:
        return time.monotonic() + (100_000 if self._sign.exists() else 0)

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


@pytest.mark.parametrize(
    ("source", "kind"),
    [(HANG, "py"), (FLOOD, "py"), (AWAY, "py"), (BOMB, "py"), (AWAY, "ipynb")],
    ids=["hang", "flood", "away", "bomb", "a notebook"],
)
def test_what_does_not_end_is_ended_at_the_deadline_with_all_it_started(
    home: Path, source: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign = tmp_path / "sign"
    program = source.format(sign=str(sign))
    put(home, f"a.{kind}", program if kind == "py" else notebook(program))
    put(home, "next.py", "")
    monkeypatch.setattr(smoke, "time", Deadline(sign))
    ran, following, done = run(home, f"a.{kind}", "next.py", deadline_s=5000)
    assert ran["message"] == "It was stopped: the smoke test's 5000 s were over."
    assert following["message"] == "It did not begin: 5000 s were over before."
    assert done["level"] == "fail"
    assert len(ran["log"].encode()) <= smoke.MAX_LOG
    if source is FLOOD:
        assert ran["log"].count("flood") > 500
    assert not left_over(), "nothing is left"


def left_over() -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{smoke.MARK}=".encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_bytes().decode())
        except OSError:
            continue
    return found


def test_without_notebooks_nothing_runs_and_it_is_said(home: Path) -> None:
    events: list[dict[str, Any]] = []
    course = Course("cnn", "CNNs", "/b", "/n", "published", FOLDER, "", Smoke(("a.py",), 5))
    smoke.after_sync(course, str(home), lambda: False, lambda _, data: events.append(dict(data)))
    assert [(event["phase"], event["level"]) for event in events] == [("smoke-done", "fail")]
    none = Course("cnn", "CNNs", "/b", "/n", "published", FOLDER)
    smoke.after_sync(none, str(home), lambda: True, lambda _, data: events.append(dict(data)))
    assert len(events) == 1


@pytest.mark.parametrize(
    ("tail", "expected"),
    [
        (b"\x1b[31mred\x1b[0m\r\nnext\x07", "red\nnext"),
        (b"\xff" * 9, "\ufffd" * 9),
        ("ä".encode() * 9000, "ä" * 2000),
    ],
)
def test_output_is_cleaned_and_bounded(tail: bytes, expected: str) -> None:
    assert smoke.clean(tail) == expected
