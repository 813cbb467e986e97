"""Standby kernels of the lab's image, behind its own Jupyter server, with torch."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.docker, pytest.mark.slow]
OPTIONS = (
    "--rm --network none --user 54321:54321 --cap-drop ALL --security-opt no-new-privileges"
    " --env HOME=/home/ana --env USER=ana --tmpfs /home/ana:uid=54321 --workdir /home/ana"
)


@pytest.fixture(scope="module")
def told(lab_image: str) -> dict[str, Any]:
    script = Path(__file__).with_name("inside_image.py")
    of_image = (lab_image, "python3", "/inside.py")
    done = subprocess.run(
        [*f"docker run {OPTIONS} --volume {script}:/inside.py:ro".split(), *of_image],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {row.pop("what"): row for row in rows}


def test_torch_is_there_at_once(told: dict[str, Any]) -> None:
    assert told["standby"]["loaded"] == [True] * 4
    assert told["ordinary"]["loaded"] == [False] * 4
    assert told["standby"]["import_s"] < 0.1 < told["ordinary"]["import_s"]


def test_a_notebook_cannot_tell_it_otherwise(told: dict[str, Any]) -> None:
    standby, ordinary = told["standby"]["state"], told["ordinary"]["state"]
    for state in (standby, ordinary):
        for name in ("JPY_PARENT_PID", "PYTORCH_SPAWNER_STANDBY"):
            state["environment"].pop(name)
    assert standby["cuda"] is False
    assert standby["counters"] == {}
    for name, value in ordinary.items():
        assert standby[name] == value, name


@pytest.mark.parametrize("kind", ["standby", "ordinary"])
def test_a_cell_is_a_file_of_its_own(kind: str, told: dict[str, Any]) -> None:
    source, mode, name = told[f"{kind} cell"]["file"]
    assert source == "\ndef of_a_cell(x):\n    return x + 1\n"
    assert mode == "0o700"
    assert name.startswith("/tmp/ipykernel_")


def test_the_server_itself_stays_light(told: dict[str, Any]) -> None:
    assert told["server"]["has_torch"] is False
    assert any("handed over" in line for line in told["server"]["heard"])
    assert any("Standby kernels: off" in line for line in told["server"]["off"])


def test_nothing_is_left(told: dict[str, Any]) -> None:
    assert told["end"]["processes"] == []
    assert [name for name in told["end"]["files"] if name.startswith("ipykernel")] == []
