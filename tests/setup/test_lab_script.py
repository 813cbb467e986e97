"""`make run` and `make stop`: whose servers are whose, and what a start that fails leaves alone."""

from __future__ import annotations

import http.server
import importlib.machinery
import importlib.util
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pytorch_spawner.core.cuda_tables import FAMILY_DRIVERS

SCRIPT = Path(__file__).resolve().parents[2] / "share/setup/lab"
# Its own preparations are real work, and other tests' matter.
_RUN = """
import importlib.machinery, importlib.util, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background ignores it
sys.dont_write_bytecode = True
loader = importlib.machinery.SourceFileLoader("lab", sys.argv[1])
lab = importlib.util.module_from_spec(importlib.util.spec_from_loader("lab", loader))
loader.exec_module(lab)
lab.prepare = lab.require_free_ports = lambda *_: None
{before}
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

    def start(self, *words: str, before: str = "") -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", _RUN.format(before=before), str(SCRIPT), *words],
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


def test_a_lab_whose_hub_writes_no_password_down_is_stopped_as_well(lab: Lab) -> None:
    lab.hub_is("exit 1")
    assert lab.do("run")[0] == 1
    assert lab.asks() == []
    lab.do("stop")
    assert lab.asks() == [
        "ps -aq --filter label=org.pytorch-spawner.hub=lab-1",
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
    lab.hub_is("echo $$ >$LAB_DIR/pid; mv $LAB_DIR/pid $LAB_DIR/is-up; exec sleep 50")
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


_PRESSED_WHILE_IT_IS_MADE = """
make = lab.subprocess.Popen
def popen(*words, **settings):
    made = make(*words, **settings)
    signal.raise_signal(signal.SIGINT)
    return made
lab.subprocess.Popen = popen
"""


def test_an_interrupt_in_the_very_moment_of_the_start_ends_the_hub(lab: Lab) -> None:
    lab.hub_is("exec sleep 50")
    with lab.start("run", before=_PRESSED_WHILE_IT_IS_MADE) as process:
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
    with pytest.raises(ProcessLookupError):
        os.kill(int((lab.dir / "hub.pid").read_text()), 0)


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script, on a machine whose driver and nvidia-smi are what a test puts there."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    loader = importlib.machinery.SourceFileLoader("lab_script", str(SCRIPT))
    spec = importlib.util.spec_from_loader("lab_script", loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    monkeypatch.setattr(module, "DRIVER", tmp_path / "version")
    monkeypatch.setattr(module, "CUDA_MACHINE", platform.machine())
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("LAB_IMAGE", raising=False)
    return module


CLOSED = (
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  {}  Thu Oct 10 20:09:24 UTC 2025\nGCC 12.2"
)
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {}  Release Build  (dvs-builder)\n"


@pytest.mark.parametrize(
    ("driver", "gpus", "recipe"),
    [
        (CLOSED.format("580.95.05"), "9.0", "pytorch-2.13-cu130"),
        (OPEN.format("610.43.03"), "12.0\n9.0", "pytorch-2.13-cu130"),
        (OPEN.format("580.65.06"), "9.0\n7.0", "pytorch-2.8-cu128"),
        (CLOSED.format("550.54.14"), "8.0", "pytorch-2.8-cu128"),
        (CLOSED.format("535.54.03"), "6.1", "pytorch-2.6-cu124"),
        (CLOSED.format("580.95.05"), "9.0\n6.1", "pytorch-2.6-cu124"),
        # No image is for both.
        (CLOSED.format("580.95.05"), "6.1\n12.0", "pytorch-2.13-cu130"),
        (CLOSED.format("580.95.05"), "3.7", "cpu"),
        (CLOSED.format("470.42.01"), "8.0", "cpu"),
        (CLOSED.format("580.95.05"), "[N/A]", "pytorch-2.13-cu130"),
        (CLOSED.format("580.95.05"), None, "pytorch-2.13-cu130"),
    ],
)
def test_a_machine_with_a_gpu_gets_the_newest_image_that_driver_and_gpus_run(
    driver: str, gpus: str | None, recipe: str, script: Any, tmp_path: Path
) -> None:
    script.DRIVER.write_text(driver)
    if gpus is not None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\nprintf '{gpus}\\n'")
        (tmp_path / "nvidia-smi").chmod(0o755)
    name, why = script.choose_image()
    assert name == f"pytorch-spawner/lab:{recipe}"
    assert ("none of ours with CUDA" in why) == (recipe == "cpu")
    assert "LAB_IMAGE=" in why


@pytest.mark.parametrize("why", ["", "not root, so no simulated GPUs."])
def test_a_lab_that_simulates_no_gpus_says_why(why: str, script: Any, tmp_path: Path) -> None:
    setup = tmp_path / "share" / "setup"
    setup.mkdir(parents=True)
    (setup / "network").write_text("#!/bin/sh\n")
    said = f"echo 'demo-gpus: {why}' >&2" if why else ""
    (setup / "demo-gpus").write_text(f"#!/bin/sh\n{said}\n")
    for one in setup.iterdir():
        one.chmod(0o755)
    script.ROOT = tmp_path
    assert script.network() == (f"ready; {why}" if why else "ready")


def test_nothing_is_said_where_nothing_was_chosen(
    script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert script.choose_image() == ("pytorch-spawner/lab:cpu", "")
    script.DRIVER.write_text("something else")
    assert script.choose_image() == ("pytorch-spawner/lab:cpu", "")
    script.DRIVER.write_text(CLOSED.format("580.95.05"))
    monkeypatch.setenv("LAB_IMAGE", "ours:1")
    assert script.choose_image() == ("ours:1", "")


def test_locks_for_one_processor_are_not_taken_for_another(
    script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    script.DRIVER.write_text(OPEN.format("580.95.05").replace("x86_64", "aarch64"))
    monkeypatch.setattr(script.platform, "machine", lambda: "another")
    assert script.choose_image()[0] == "pytorch-spawner/lab:cpu"


def test_the_script_knows_the_drivers_that_the_tables_know(script: Any) -> None:
    for branch, _oldest, _newest, name in script.CUDA_RECIPES:
        assert (SCRIPT.parents[1] / f"images/recipes/{name}.lock").is_file()
        major = int(name.rpartition("-cu")[2][:-1])
        assert FAMILY_DRIVERS[major][0] == branch
