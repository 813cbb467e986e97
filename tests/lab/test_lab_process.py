"""The service as a process: it listens where the hub says and never outlives it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.ports import free_port_block

pytestmark = pytest.mark.programs

pytest.importorskip("pytorch_spawner.ledger.store")

PARENT = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-m", "pytorch_spawner.lab"])
print(child.pid, flush=True)
time.sleep(600)
"""


def environment(tmp_path, port: int) -> dict[str, str]:
    return {
        **os.environ,
        "PYTORCH_SPAWNER_LEDGER": f"sqlite:///{tmp_path}/ledger.sqlite",
        "PYTORCH_SPAWNER_RECONCILE_S": "0",
        "JUPYTERHUB_API_TOKEN": "t",
        "JUPYTERHUB_API_URL": "http://127.0.0.1:9/hub/api",
        "JUPYTERHUB_CLIENT_ID": "service-lab",
        "JUPYTERHUB_SERVICE_NAME": "lab",
        "JUPYTERHUB_SERVICE_PREFIX": "/services/lab/",
        "JUPYTERHUB_SERVICE_URL": f"http://127.0.0.1:{port}",
    }


def wait_until_well(port: int, timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/services/lab/health") as answer:
                assert json.load(answer) == {"status": "ok"}
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def is_alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks the Linux kernel")
def test_a_hub_that_is_killed_takes_the_service_along_and_the_next_one_gets_the_port(tmp_path):
    port = free_port_block()
    env = environment(tmp_path, port)
    parents = []
    try:
        for _ in range(2):
            parent = subprocess.Popen(
                [sys.executable, "-c", PARENT], env=env, stdout=subprocess.PIPE, text=True
            )
            parents.append(parent)
            child = int(parent.stdout.readline())
            wait_until_well(port)
            parent.send_signal(signal.SIGKILL)
            parent.wait()
            deadline = time.monotonic() + 5
            while is_alive(child) and time.monotonic() < deadline:
                time.sleep(0.05)
            assert not is_alive(child)
    finally:
        for parent in parents:
            parent.kill()
            parent.stdout.close()


def test_a_missing_setting_is_one_sentence(tmp_path):
    env = environment(tmp_path, 1)
    del env["PYTORCH_SPAWNER_LEDGER"]
    ended = subprocess.run(
        [sys.executable, "-m", "pytorch_spawner.lab"], env=env, capture_output=True, text=True
    )
    assert ended.returncode == 2
    assert "PYTORCH_SPAWNER_LEDGER is not set" in ended.stderr
    assert "Traceback" not in ended.stderr
