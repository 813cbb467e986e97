from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytorch_spawner.adapters import nvml
from pytorch_spawner.cli import look, main
from pytorch_spawner.core.gpus import Gpu, GpuUuid, Inventory
from pytorch_spawner.core.grants import Grant, GrantBook
from pytorch_spawner.core.scheduling import schedule
from pytorch_spawner.core.tickets import Decisions, Policy
from pytorch_spawner.ledger.store import Ledger, QueueState

GPUS = (
    Gpu(GpuUuid("GPU-1234"), name="H100", memory_mib=81_920),
    Gpu(GpuUuid("GPU-5678"), 1, memory_mib=40_960, pool="teaching", mode="shared:2"),
)


def serve(state: QueueState) -> Decisions:
    return schedule(
        Inventory(GPUS),
        [lease.as_held() for lease in state.leases],
        state.tickets,
        GrantBook([Grant("config:all", source="config")]),
        state.usage,
        state.now,
        Policy(),
    )


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """ana holds the whole GPU, bo a slot; cyd waits for a whole one."""
    ledger = Ledger.open(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    ledger.write_inventory("lab", Inventory(GPUS))
    for user, share in (("ana", "whole"), ("bo", "slot"), ("cyd", "whole")):
        ledger.identity(user, None, (2000, 3000))
        request = {"image": "i", "gpus": 1, "share": share}
        start = ledger.begin_start("lab", user, "", request, groups=("cv",))
        ledger.join(start)
        ledger.decide("lab", serve)
        ledger.append_events(start.id, [("start", {"stage": "gpu", "message": "\x1b[31mred"})])
    return ledger


@pytest.fixture
def run(
    ledger: Ledger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, Any]]:
    """Run a command; returns its exit status and, by ``--json``, what it says."""
    flags = ["--ledger", f"sqlite:///{tmp_path / 'ledger.sqlite'}", "--hub", "lab"]

    def run(*words: str, as_json: bool = True) -> tuple[int, Any]:
        status = main([*words, *flags, *(["--json"] if as_json else [])])
        out, err = capsys.readouterr()
        return status, json.loads(out) if as_json and out else out + err

    return run


Run = Callable[..., tuple[int, Any]]


def test_gpus_names_the_holder_of_every_slot(run: Run) -> None:
    _, gpus = run("gpus")
    holders = [[slot and slot["username"] for slot in gpu["slots"]] for gpu in gpus]
    assert holders == [["ana"], ["bo", None]]
    _, text = run("gpus", as_json=False)
    assert "free" in text
    assert "40 GiB/2" in text


def test_a_drained_gpu_says_who_is_still_on_it_and_comes_back(run: Run, ledger: Ledger) -> None:
    _, text = run("gpus", "drain", "0", "--reason", "The fan is loud.", as_json=False)
    assert "The fan is loud." in text
    assert "ana" in text
    _, gpus = run("gpus")
    assert gpus[0]["drained"] == "The fan is loud."
    run("gpus", "undrain", "GPU-1")
    assert run("gpus")[1][0]["drained"] == ""
    assert [change.subject for change in ledger.changes("lab")] == ["GPU-1234", "GPU-1234"]


def test_a_device_in_use_changes_its_mode_when_it_is_empty(run: Run) -> None:
    _, gpu = run("gpus", "mode", "GPU-1234", "shared:4")
    assert gpu["mode"] == "exclusive"
    assert "becomes shared:4 once nobody" in gpu["drained"]
    _, gpu = run("gpus", "pool", "GPU-1234", "research")
    assert gpu["pool"] == "research"


def test_a_grant_may_name_a_pool_that_an_admin_made(run: Run) -> None:
    status, said = run("grants", "add", "--user", "ana", "--pool", "research", as_json=False)
    assert status == 1
    assert "no pool 'research'; there is default, teaching" in said
    assert "`pytorch-spawner gpus pool GPU NAME` makes a pool" in said
    run("gpus", "pool", "0", "research")
    assert run("grants", "add", "--user", "ana", "--pool", "research")[0] == 0
    (line,) = run("grants", "explain", "ana", "--group", "cv")[1]["sentences"][:1]
    assert "pool research" in line


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["gpus", "drain", "GPU-9"], "is no GPU of this lab: GPU-1234, GPU-5678"),
        (["gpus", "drain", "GPU-"], "names more than one GPU"),
        (["gpus", "mode", "0", "shared:99"], '"shared:N" with N from 2 to 48'),
        (["gpus", "mode", "0", "mig"], "set on the host"),
        (["gpus", "pool", "0", ""], "1 to 255"),
        (["queue", "remove", "ana"], "In the queue: cyd."),
        (["queue", "boost", "cyd", "1000"], "-100 to 100"),
        (["grants", "remove", "nothing"], "no grant nothing in the ledger; there is none"),
        (["grants", "add", "--user", "zoe"], "no user 'zoe'"),
        (["grants", "add", "--user", "ana", "--count", "0"], "count: at least 1"),
        (["grants", "add", "--user", "ana", "--gpu", "GPU-77777"], "no GPU GPU-77777"),
        (["grants", "add", "--user", ""], "a grant to a user names the user in subject"),
        (["grants", "add", "--group", ""], "a grant to a group names the group in subject"),
        (["grants", "add", "--everyone", "--pool", ""], "leave --pool out for any pool"),
        (["grants", "import", "/nowhere.yaml"], "cannot be read"),
        (["journal", "nobody"], "never started"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_done_is_refused_with_a_sentence(
    words: list[str], says: str, run: Run, ledger: Ledger
) -> None:
    status, text = run(*words, as_json=False)
    assert status == 1
    assert says in text
    assert ledger.changes("lab") == ()


def test_grants_are_added_explained_exported_and_removed(run: Run) -> None:
    flags = ["--share", "slot", "--pool", "teaching", "--priority", "5", "--weekly-gpu-hours", "20"]
    _, grant = run("grants", "add", "--group", "cv", *flags, "--until", "2099-01-01")
    assert grant["id"] == "group-1"
    _, said = run("grants", "explain", "ana")
    assert said["sentences"] == [
        "ana gets 1 slot of 20 GiB on pool teaching, priority 5, because group cv; 20 of 20 h left "
        "this week; until 2099-01-01 00:00 UTC."
    ]
    assert run("grants", "explain", "ana", "--group", "nlp")[1]["grants"] == []
    _, exported = run("grants", "export")
    assert [row["subject"] for row in exported] == ["cv"]
    assert run("grants", "remove", "group-1") == (0, ["group-1"])
    assert run("grants")[1] == []


def test_a_file_of_grants_replaces_all_or_nothing(run: Run, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.json"
    good.write_text("- {to: user, subject: ana, count: 2, valid_from: 2026-10-01}\n- {id: all}\n")
    bad.write_text(
        json.dumps(
            [
                {"to": "user", "subject": "zoe"},
                {"colour": "red"},
                {"valid_from": "2026-10-02", "valid_until": "2026-10-01"},
                {"count": 0},
                {"to": "user", "subject": "ana", "gpus": ["GPU-1234"]},
                {"to": "user", "subject": "bo", "gpus": ["GPU-1234"]},
            ]
        )
    )
    assert run("grants", "import", str(good), "--dry-run")[1]["is_written"] is False
    assert run("grants")[1] == []
    assert len(run("grants", "import", str(good))[1]["changed"]) == 2
    before = run("grants")[1]
    status, text = run("grants", "import", str(bad), as_json=False)
    assert status == 1
    for fault in (
        "no user 'zoe'",
        "unknown key colour",
        "valid_until is not after",
        "count",
        "is pinned to user ana (g5) and to user bo (g6)",
        "--allow-unknown",
    ):
        assert fault in text
    assert run("grants")[1] == before
    _, exported = run("grants", "export")
    (tmp_path / "again.json").write_text(json.dumps(exported))
    _, text = run("grants", "import", str(tmp_path / "again.json"), as_json=False)
    assert text.strip() == "Nothing differs."


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "- {valid_until: 2026-09-31}",
            "date or a number that does not exist: day is out of range",
        ),
        ("- {priority: 0b_}", "date or a number that does not exist"),
        ("[" * 5000, "is neither YAML nor JSON"),
        ("[{", "is neither YAML nor JSON"),
    ],
    ids=["a day that no month has", "a number without digits", "too deep", "cut off"],
)
def test_a_file_that_is_no_yaml_is_refused_with_a_sentence(
    run: Run, tmp_path: Path, text: str, says: str
) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    status, said = run("grants", "import", str(file), as_json=False)
    assert status == 1
    assert f"{file} " in said
    assert says in " ".join(said.split())


def test_a_dry_run_judges_what_would_be_written(run: Run, ledger: Ledger, tmp_path: Path) -> None:
    pinned = Grant("config:g1", "user", "bo", gpus=(GPUS[0].uuid,), source="config")
    ledger.write_grants("lab", [pinned], "configuration", source="config")
    file = tmp_path / "new.json"
    file.write_text('[{"id": "a", "to": "user", "subject": "ana", "gpus": ["GPU-1234"]}]')
    for words in ([], ["--dry-run"]):
        status, text = run("grants", "import", str(file), *words, as_json=False)
        assert status == 1
        assert "is pinned to user bo (config:g1) and to user ana (a)" in text
    assert [row["id"] for row in run("grants")[1]] == ["config:g1"]


def test_a_dry_run_passes_where_the_import_puts_a_contradiction_right(
    run: Run, ledger: Ledger, tmp_path: Path
) -> None:
    gpus = (GPUS[0].uuid,)
    ledger.write_grants("lab", [Grant("a", "user", "ana", gpus=gpus)], "ana")
    pinned = Grant("config:g1", "user", "bo", gpus=gpus, source="config")
    ledger.write_grants("lab", [pinned], "configuration", source="config")
    file = tmp_path / "new.json"
    file.write_text('[{"id": "a", "to": "user", "subject": "ana"}]')
    before = (ledger.grants("lab"), ledger.changes("lab"), ledger.version("lab"))
    status, said = run("grants", "import", str(file), "--dry-run")
    assert (status, [one["id"] for one in said["changed"]]) == (0, ["a"])
    assert (ledger.grants("lab"), ledger.changes("lab"), ledger.version("lab")) == before
    assert run("grants", "import", str(file))[0] == 0


def test_an_unknown_user_is_accepted_when_told_so(run: Run) -> None:
    assert run("grants", "add", "--user", "zoe", "--allow-unknown")[0] == 0


def test_undo_takes_a_whole_import_back_and_can_itself_be_undone(run: Run, tmp_path: Path) -> None:
    run("grants", "add", "--everyone", "--id", "all")
    one = run("grants")[1]
    file = tmp_path / "new.json"
    file.write_text('[{"id": "cv", "to": "group", "subject": "cv"}, {"id": "all", "count": 3}]')
    run("grants", "import", str(file))
    two = run("grants")[1]
    assert run("grants", "undo")[0] == 0
    assert run("grants")[1] == one
    run("grants", "undo")
    assert run("grants")[1] == two
    _, log = run("grants", "log")
    assert len(log) == 7
    assert log[-1]["before"] is None


def test_there_is_nothing_to_take_back_of_what_the_hub_wrote(run: Run, ledger: Ledger) -> None:
    written = [Grant("config:g1", source="config")]
    ledger.write_grants("lab", written, "configuration", source="config")
    assert run("grants", "undo") == (0, [])
    assert [row["id"] for row in run("grants")[1]] == ["config:g1"]


def test_the_queue_says_who_waits_and_obeys(run: Run, ledger: Ledger) -> None:
    _, (waiting,) = run("queue")
    assert (waiting["username"], waiting["place"], waiting["of"]) == ("cyd", 1, 1)
    assert waiting["reason"]
    run("queue", "boost", "cyd", "7")
    assert "boosted by 7" in run("queue", as_json=False)[1]
    assert run("queue", "remove", "cyd")[0] == 0
    assert run("queue", as_json=False) == (0, "Nobody waits.\n")


def test_leases_and_journal(run: Run) -> None:
    _, leases = run("leases")
    assert [lease["username"] for lease in leases] == ["ana", "bo"]
    assert leases[1]["gpus"] == [{"uuid": "GPU-5678", "slot": 0, "slots": 2}]
    assert "slot 1/2" in run("leases", as_json=False)[1]
    _, text = run("journal", "ana", as_json=False)
    assert "gpu" in text
    assert "\x1b" not in text, "a container's text must not steer the terminal"


@pytest.mark.parametrize("command", ["leases", "gpus", "grants", "queue"])
def test_looking_creates_nothing(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "none.sqlite"
    assert main([command, "--ledger", f"sqlite:///{missing}"]) == 1
    assert "no ledger" in capsys.readouterr().err
    assert not missing.exists()


def test_doctor_tells_of_missing_certificates_and_of_a_ledger_that_is_no_url(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
    monkeypatch.setenv("DOCKER_CERT_PATH", str(tmp_path))
    path = tmp_path / "ledger.sqlite"
    assert main(["doctor", "--ledger", str(path), "--json"]) == 1
    rows = {row["check"]: row for row in json.loads(capsys.readouterr().out)}
    assert not rows["engine"]["ok"]
    assert "DOCKER_CERT_PATH" in rows["engine"]["sentence"]
    assert not rows["ledger"]["ok"]
    assert f"'{path}' is no SQLAlchemy URL, such as sqlite:///" in rows["ledger"]["sentence"]


def test_doctor_says_what_works(run: Run) -> None:
    rows = {row["check"]: row for row in run("doctor")[1]}
    assert set(rows) == {"engine", "driver", "ledger"}
    assert rows["ledger"]["ok"]


def test_doctor_tells_of_a_driver_that_hangs_and_ends(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_over = threading.Event()
    monkeypatch.setattr(nvml, "read_inventory", is_over.wait)
    monkeypatch.setattr(look, "_DRIVER_S", 0.2)
    status, rows = run("doctor")
    is_over.set()
    driver = next(row for row in rows if row["check"] == "driver")
    assert (status, driver["ok"]) == (1, False)
    assert "did not answer within 0.2 s" in driver["sentence"]


def test_options_may_stand_before_and_after_an_action(
    tmp_path: Path, ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    assert main(["gpus", "--ledger", url, "--json", "drain", "--hub", "lab", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["drained"] == "An admin drained it."


def test_every_command_has_help() -> None:
    help_ = subprocess.run(
        [sys.executable, "-m", "pytorch_spawner.cli", "grants", "add", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--weekly-gpu-hours" in help_.stdout
    assert "--json" in help_.stdout
