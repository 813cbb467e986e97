from __future__ import annotations

import json
from pathlib import Path

import pytest

from pytorch_spawner.cli import main
from pytorch_spawner.core.gpus import Gpu, GpuUuid, Inventory
from pytorch_spawner.ledger.store import Ledger


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    url = f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    ledger = Ledger.open(url)
    gpu = Gpu(GpuUuid("GPU-1234"), name="H100")
    ledger.write_inventory("lab", Inventory((gpu, Gpu(GpuUuid("GPU-5678"), 1))))
    start = ledger.begin_start("lab", "ana", "", {"image": "i"})
    ledger.take_lease(start, lambda held: (gpu,))
    ledger.append_events(start.id, [("start", {"stage": "gpu", "message": "\x1b[31mred"})])
    ledger.close()
    return ["--ledger", url, "--hub", "lab"]


def test_gpus_names_the_holder(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gpus", *flags, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["holder"] for row in rows] == ["ana/", None]
    assert main(["gpus", *flags]) == 0
    assert "free" in capsys.readouterr().out


def test_leases_and_journal(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["leases", *flags]) == 0
    assert "ana/" in capsys.readouterr().out
    assert main(["journal", "ana", *flags]) == 0
    out = capsys.readouterr().out
    assert "gpu" in out
    assert "\x1b" not in out, "a container's text must not steer the terminal"
    assert main(["journal", "nobody", *flags]) == 1


def test_looking_creates_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "none.sqlite"
    assert main(["leases", "--ledger", f"sqlite:///{missing}"]) == 1
    assert "no ledger" in capsys.readouterr().err
    assert not missing.exists()


def test_doctor_says_what_works(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor", *flags, "--json"])
    rows = {row["check"]: row for row in json.loads(capsys.readouterr().out)}
    assert set(rows) == {"engine", "driver", "ledger"}
    assert rows["ledger"]["ok"]


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ([], ["doctor"], ["gpus"], ["leases"], ["journal"]):
        with pytest.raises(SystemExit) as left:
            main([*command, "--help"])
        assert left.value.code == 0
    assert "--json" in capsys.readouterr().out
