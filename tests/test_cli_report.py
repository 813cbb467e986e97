"""`pytorch-spawner report`: the page's report, read from the ledger in a terminal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytorch_spawner.cli import main
from pytorch_spawner.core.gpus import Gpu, GpuUuid, Inventory
from pytorch_spawner.core.report import report_of
from pytorch_spawner.core.tickets import Decisions, Wait
from pytorch_spawner.ledger.store import Ledger

Run = Callable[..., tuple[int, str]]
SECRET = "0123456789abcdef0123456789abcdef"
DIED = {
    "stage": "failed",
    "code": "container-died",
    "message": "The container ended.\x1b[2J",
    "log_tail": [f"JUPYTERHUB_API_TOKEN={SECRET}", "MemoryError"],
}


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    ledger = Ledger.open(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    ledger.write_inventory("lab", Inventory((Gpu(GpuUuid("GPU-1234"), name="H100"),)))
    return ledger


@pytest.fixture
def run(ledger: Ledger, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    flags = ["--ledger", f"sqlite:///{tmp_path / 'ledger.sqlite'}", "--hub", "lab"]

    def run(*words: str) -> tuple[int, str]:
        status = main(["report", *words, *flags])
        return status, "".join(capsys.readouterr())

    return run


def begin(ledger: Ledger, server: str = "", *events: tuple[str, Any]) -> Any:
    start = ledger.begin_start("lab", "ana", server, {"image": "lab/base:1", "gpus": 1})
    ledger.append_events(start.id, events)
    return start


def test_it_prints_the_page_s_text(run: Run, ledger: Ledger) -> None:
    start = begin(ledger, "", ("start", DIED))
    ledger.end_start(start.id, "failed")
    status, text = run("ana")
    ended = ledger.latest_start("lab", "ana", "")
    made_at = ledger.now()
    wanted = report_of(ended, ledger.read_events(start.id), made_at)
    assert status == 0
    assert without_time(text) == without_time(wanted)
    assert "  MemoryError" in text
    assert SECRET not in text
    assert "\x1b" not in text


def without_time(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith("Report made")]


def test_a_named_server_has_its_own(run: Run, ledger: Ledger) -> None:
    begin(ledger)
    begin(ledger, "thesis", ("start", DIED))
    assert "Server: ana/(default)\n" in run("ana")[1]
    assert "Server: ana/thesis\n" in run("ana", "--server", "thesis")[1]


def test_as_data_it_says_the_same_and_no_more(run: Run, ledger: Ledger) -> None:
    begin(ledger, "", ("start", DIED), ("check", {"code": "shm", "phase": "done", "level": "ok"}))
    status, text = run("ana", "--json")
    said = json.loads(text)
    assert (status, said["user"], said["image"]) == (0, "ana", "lab/base:1")
    assert said["failure"]["log"] == ["JUPYTERHUB_API_TOKEN=[…]", "MemoryError"]
    assert said["failure"]["message"] == "The container ended."
    assert [(one["code"], one["level"]) for one in said["checks"]] == [("shm", "ok")]
    assert (said["gpus"], said["warmup"], said["course"]) == (None, None, None)
    # The command reads the ledger: what the notebooks hold only the service knows.
    assert (said["compile_log"], said["memory"]) == ([], None)
    assert SECRET not in text


def test_who_waits_has_a_place(run: Run, ledger: Ledger) -> None:
    start = begin(ledger, "", ("queue", {"place": 9, "of": 9}))
    ledger.join(start)
    ledger.decide(
        "lab", lambda state: Decisions(wait=(Wait(state.tickets[0], 2, 3, None, "1 ahead."),))
    )
    assert "Queue: place 2 of 3" in run("ana")[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [(["bo"], "bo never started."), (["ana", "--server", "none"], "ana/none never started.")],
)
def test_nobody_s_report_is_refused(run: Run, ledger: Ledger, words: list[str], said: str) -> None:
    begin(ledger)
    status, text = run(*words)
    assert (status, text) == (1, f"pytorch-spawner: {said}\n")
