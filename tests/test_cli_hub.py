"""Which hub's rows a command reads: the one that is named, or the only one there is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pytorch_spawner.cli import main
from pytorch_spawner.core.gpus import Gpu, GpuUuid, Inventory
from pytorch_spawner.core.grants import Grant
from pytorch_spawner.ledger.store import Ledger

GPUS = (Gpu(GpuUuid("GPU-1234")),)
Run = Callable[..., tuple[int, str]]


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """A ledger of the hub "lab", which has one GPU."""
    ledger = Ledger.open(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    ledger.write_inventory("lab", Inventory(GPUS))
    return ledger


@pytest.fixture
def run(
    ledger: Ledger,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """Run a command on that ledger, with no hub named; returns its exit status and its text."""
    monkeypatch.setenv("PYTORCH_SPAWNER_LEDGER", f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    for name in ("PYTORCH_SPAWNER_HUB_ID", "LAB_PORT"):
        monkeypatch.delenv(name, raising=False)

    def run(*words: str) -> tuple[int, str]:
        status = main(words)
        return status, "".join(capsys.readouterr())

    return run


@pytest.mark.parametrize(
    "words", [["gpus"], ["leases"], ["queue"], ["grants", "add", "--everyone"]], ids=" ".join
)
def test_a_hub_that_the_ledger_does_not_know_is_refused(
    words: list[str], run: Run, ledger: Ledger
) -> None:
    says = "This ledger knows no hub 'lba'; it knows: lab. Name one with --hub."
    status, text = run(*words, "--hub", "lba")
    assert status == 1
    assert says in text
    assert ledger.grants("lba") == ()


def test_a_hub_named_by_the_environment_is_looked_for_too(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTORCH_SPAWNER_HUB_ID", "lba")
    assert "knows no hub 'lba'; it knows: lab." in run("leases")[1]


def test_the_only_hub_of_a_ledger_need_not_be_named(run: Run, ledger: Ledger) -> None:
    assert "GPU-1234" in run("gpus")[1]
    run("grants", "add", "--everyone")
    assert [grant.id for grant in ledger.grants("lab")] == ["everyone-1"]


def test_one_of_several_hubs_is_named(run: Run, ledger: Ledger) -> None:
    # A hub without a GPU is known by whatever else it wrote.
    ledger.write_grants("annex", [Grant("all")], "ana")
    status, text = run("leases")
    assert status == 1
    assert "knows no hub 'lab-8000'; it knows: annex, lab. Name one with --hub." in text
    assert run("leases", "--hub", "annex") == (0, "Nobody holds a GPU.\n")


def test_a_ledger_without_any_hub_is_nobodys_yet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{tmp_path / 'new.sqlite'}"
    Ledger.open(url).close()
    assert main(["leases", "--ledger", url, "--hub", "lab"]) == 0
    assert capsys.readouterr().out == "Nobody holds a GPU.\n"


def test_doctor_tells_of_a_hub_that_the_ledger_does_not_know(run: Run) -> None:
    status, text = run("doctor", "--hub", "lba", "--json")
    row = next(row for row in json.loads(text) if row["check"] == "ledger")
    assert (status, row["ok"]) == (1, False)
    assert row["sentence"].startswith("This ledger knows no hub 'lba'; it knows: lab.")
