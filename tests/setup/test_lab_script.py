"""`make run` and `make stop`: whose servers are whose, and what a start that fails leaves alone."""

from __future__ import annotations

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "share/setup/lab"
# Its own preparations are real work, and other tests' matter.
_RUN = """
import importlib.machinery, importlib.util, sys
sys.dont_write_bytecode = True
loader = importlib.machinery.SourceFileLoader("lab", sys.argv[1])
lab = importlib.util.module_from_spec(importlib.util.spec_from_loader("lab", loader))
loader.exec_module(lab)
lab.prepare = lab.require_free_ports = lambda: None
sys.exit(lab.main(sys.argv[2:]))
"""


class Lab:
    """A lab whose engine has one server for every hub, and whose hub is a script."""

    def __init__(self, at: Path, port: int = 1) -> None:
        self.dir, self.asked, venv = at / "lab", at / "asked", at / "venv"
        for folder in (self.dir, venv / "bin", at / "bin"):
            folder.mkdir(parents=True)
        self.asked.touch()
        self.jupyterhub = venv / "bin" / "jupyterhub"
        self._program(at / "bin" / "docker", f'echo "$@" >>{self.asked}; echo its-server')
        self.env = {
            **os.environ,
            "PATH": f"{at / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "LAB_DIR": str(self.dir),
            "LAB_VENV": str(venv),
            "LAB_PORT": str(port),
        }

    def _program(self, path: Path, text: str) -> None:
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def ran_on(self, port: int) -> None:
        known = {"url": f"http://127.0.0.1:{port}", "admin": "admin", "password": "x"}
        (self.dir / "credentials.json").write_text(json.dumps(known))

    def hub_is(self, text: str) -> None:
        self._program(self.jupyterhub, text)

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", _RUN, str(SCRIPT), *words],
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def do(self, *words: str) -> tuple[int, str]:
        with self.start(*words) as process:
            out, err = process.communicate(timeout=30)
        return process.returncode, out + err

    def asks(self) -> Sequence[str]:
        return self.asked.read_text().splitlines()


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def test_stopping_ends_the_servers_of_the_lab_in_the_folder_whatever_the_port(lab: Lab) -> None:
    lab.ran_on(8123)
    assert lab.do("stop") == (0, "Stopped the hub (it did not run) and 1 server.\n")
    assert lab.asks() == [
        "ps -aq --filter label=org.pytorch-spawner.hub=lab-8123",
        "rm -f its-server",
    ]


def test_stopping_where_no_lab_ever_ran_touches_no_server(lab: Lab) -> None:
    assert lab.do("stop")[0] == 0
    assert lab.asks() == []


class Healthy(http.server.BaseHTTPRequestHandler):
    """A hub that answers."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_servers_of_another_labs_hub_on_the_same_port_are_left_alone(lab: Lab) -> None:
    lab.hub_is("exit 1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Healthy) as theirs:
        threading.Thread(target=theirs.serve_forever, daemon=True).start()
        lab.ran_on(theirs.server_port)
        status, said = lab.do("stop")
        assert (status, "is another lab's" in said) == (1, True), said
        assert not any(line.startswith("rm") for line in lab.asks())
        assert "the hub did not start" in lab.do("run")[1]
        theirs.shutdown()


def test_a_hub_that_does_not_start_ends_no_server(lab: Lab) -> None:
    lab.ran_on(1)
    lab.hub_is("echo a typo; exit 1")
    status, said = lab.do("run")
    assert status == 1
    assert "the hub did not start" in said
    assert "a typo" in said
    assert lab.asks() == []


def test_another_port_is_refused_while_servers_of_the_last_one_run(lab: Lab) -> None:
    lab.ran_on(8123)
    lab.hub_is("exit 1")
    status, said = lab.do("run")
    assert status == 1
    assert "ran on port 8123, and still has 1 server there" in said
    assert "LAB_PORT=8123 make run" in said


def test_an_interrupt_while_the_hub_comes_up_ends_the_hub(lab: Lab) -> None:
    lab.hub_is("echo $$ >$LAB_DIR/is-up; exec sleep 50")
    with lab.start("run") as process:
        deadline = time.monotonic() + 20
        while not (lab.dir / "is-up").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "Traceback" not in err
    hub = int((lab.dir / "is-up").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(hub, 0)
