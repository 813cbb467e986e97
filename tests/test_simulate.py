"""`pytorch-spawner simulate`: what is read, what is printed, and how wrong usage is answered."""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path

import pytest

from pytorch_spawner import simulate
from pytorch_spawner.core.trace import parse_trace

TRACE = "arrive_s,user,groups,gpus,hold_s\n0,ana,cv,1,100\n10,bob,cv,1,50\n20,cyd,ml,1,50\n"


def run(*words: str) -> int:
    parser = argparse.ArgumentParser(prog="pytorch-spawner")
    simulate.add_to(parser.add_subparsers(required=True, metavar="command"))
    options = parser.parse_args(["simulate", *words])
    return options.run(options)


@pytest.fixture
def trace(tmp_path: Path) -> str:
    file = tmp_path / "monday.csv"
    # As a spreadsheet saves it.
    file.write_text(TRACE, encoding="utf-8-sig", newline="\r\n")
    return str(file)


def test_policies_side_by_side(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--gpus", "1", "--policy", "pack", "--policy", "spread,max_lease_s=60,patience_s=9"]
    assert run(trace, *words, "--by-group") == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out.splitlines() == [
        "3 starts of 3 users on 1 GPU (1 slot), 1 grant.",
        "",
        "POLICY                              SERVED  MEDIAN    P95    MAX   USED   FAIR  CUT"
        "  REFUSED  UNSERVED",
        "pack                                     3    90 s  2 min  2 min  100 %  0.740    0"
        "        0         0",
        "spread,max_lease_s=60,patience_s=9       3    50 s   90 s   90 s  100 %  0.960    1"
        "        0         0",
        "",
        "GROUP  POLICY                              SERVED  MEDIAN    P95    MAX",
        "cv     pack                                     2    45 s   90 s   90 s",
        "cv     spread,max_lease_s=60,patience_s=9       2    25 s   50 s   50 s",
        "ml     pack                                     1   2 min  2 min  2 min",
        "ml     spread,max_lease_s=60,patience_s=9       1    90 s   90 s   90 s",
    ]


def test_json(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(trace, "--gpus", "1", "--policy", "pack", "--policy", "index", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert {key: said[key] for key in ("starts", "users", "gpus", "slots", "grants")} == {
        "starts": 3,
        "users": 3,
        "gpus": 1,
        "slots": 1,
        "grants": 1,
    }
    pack, index = said["policies"]
    assert (pack.pop("policy"), index.pop("policy")) == ("pack", "index")
    assert pack == index
    assert pack["waits"] == {"served": 3, "median_s": 90.0, "p95_s": 130.0, "max_s": 130.0}
    assert set(pack) == {
        "starts",
        "waits",
        "by_group",
        "utilisation",
        "fairness",
        "refused",
        "unserved",
        "cut_short",
    }


def test_json_of_common_options(capsys: pytest.CaptureFixture[str]) -> None:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true")
    parser = argparse.ArgumentParser()
    simulate.add_to(parser.add_subparsers(), [common])
    options = parser.parse_args(["simulate", "--generate", "class:2", "--json"])
    assert options.run(options) == 0
    assert json.loads(capsys.readouterr().out)["starts"] == 10


def test_standard_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(TRACE))
    assert run("-") == 0
    assert capsys.readouterr().out.startswith("3 starts of 3 users on 4 GPUs (4 slots), 1 grant.")


def test_a_made_up_demand_is_saved_once_and_read_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "made.csv"
    words = ["--generate", "school:30", "--days", "2", "--seed", "7"]
    assert run(*words, "--save", str(file), "--json") == 0
    made = json.loads(capsys.readouterr().out)
    assert len(parse_trace(file.read_text())) == made["starts"] > 10
    assert run(str(file), "--json") == 0
    assert json.loads(capsys.readouterr().out) == made
    was = file.read_bytes()
    assert run("--generate", "class:2", "--save", str(file)) == 2
    assert "is there already. Name another file with --save." in capsys.readouterr().err
    assert file.read_bytes() == was


@pytest.mark.parametrize(
    ("words", "gpus", "slots"),
    [
        ([], 4, 4),
        (["--gpus", "8xshared:4"], 8, 32),
        (["--gpus", "a100=2", "--gpus", "teaching=3xshared:2"], 5, 8),
        (["--gpus", "7xmig:1g.10gb"], 7, 7),
    ],
)
def test_the_lab(
    trace: str, capsys: pytest.CaptureFixture[str], words: list[str], gpus: int, slots: int
) -> None:
    assert run(trace, "--json", *words) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["gpus"], said["slots"]) == (gpus, slots)


def test_the_lab_as_the_gpus_command_lists_it(
    tmp_path: Path, trace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = {"uuid": "GPU-0001", "index": 0, "name": "G", "memory_mib": 40960, "pool": "a100"}
    listed |= {"slot_memory_mib": 10240, "mode": "shared:4", "mig_profile": "", "parent": ""}
    listed |= {"health": "", "drained": "Fans.", "slots": [None, None, None, None]}
    lab = tmp_path / "lab.json"
    lab.write_text(json.dumps([listed]))
    assert run(trace, "--json", "--inventory", str(lab)) == 0
    assert json.loads(capsys.readouterr().out)["slots"] == 4
    lab.write_text("- {uuid: GPU-0001}\n- {uuid: GPU-0002, mode: 'shared:2'}\n")
    assert run(trace, "--json", "--inventory", str(lab)) == 0
    assert json.loads(capsys.readouterr().out)["slots"] == 3


def test_grants_and_their_dates(
    tmp_path: Path, trace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    grants = tmp_path / "grants.yaml"
    grants.write_text("grants:\n- {to: group, subject: cv, valid_until: 2026-10-01}\n")
    words = [trace, "--grants", str(grants), "--json"]
    assert run(*words) == 2
    assert "--start 2026-09-07" in capsys.readouterr().err
    for day, refused in (("2026-09-30", 1), ("2026-10-01T00:00:00+00:00", 3)):
        assert run(*words, "--start", day) == 0
        assert json.loads(capsys.readouterr().out)["policies"][0]["refused"] == refused


def test_grants_for_certain_images_count_and_it_is_said(
    tmp_path: Path, trace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    grants = tmp_path / "grants.yaml"
    grants.write_text(
        "- {to: group, subject: cv, images: [lab:cuda]}\n- {to: user, subject: cyd}\n"
    )
    assert run(trace, "--grants", str(grants)) == 0
    first, said, empty, *_ = capsys.readouterr().out.splitlines()
    assert first.endswith("2 grants.")
    assert said == "A trace names no image: 1 grant for certain images counted for all."
    assert empty == ""
    assert run(trace, "--grants", str(grants), "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["grants_with_images"], told["policies"][0]["refused"]) == (1, 0)
    assert run(trace, "--json") == 0
    assert json.loads(capsys.readouterr().out)["grants_with_images"] == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "Say which demand: a trace, or one that is made up"),
        (["TRACE", "--generate", "class:4"], "Say which demand"),
        (["none.csv"], "none.csv cannot be read: No such file or directory. Check the name."),
        (["FOLDER"], "cannot be read: Is a directory."),
        (["--generate", "class"], '"class" is no demand. Write class or school, and how many'),
        (["--generate", "class:0"], "is no demand."),
        (["--generate", "class:²"], "is no demand."),
        (["--generate", "fair:9"], "is no demand."),
        (["--generate", "class:4", "--days", "0"], "--days 0 is out of range: 1 to 366"),
        (["--generate", "school:1", "--days", "1", "--seed", "5"], "Nobody of school:1 comes"),
        (["TRACE", "--policy", "fast"], 'There is no policy "fast"; there is pack, spread,'),
        (["TRACE", "--policy", "pack,patience=1"], 'A policy has no "patience"; it has patience_s'),
        (["TRACE", "--policy", "pack,patience_s=soon"], "patience_s is not a number of 0 or more"),
        (["TRACE", "--policy", "pack,max_lease_s=0"], "max_lease_s is not a number of 1 or more"),
        (["TRACE", "--policy", "pack,patience_s=nan"], "Such as: --policy pack,patience_s=3600"),
        (["TRACE", "--gpus", "many"], '"many" says no GPUs. Write a number'),
        (["TRACE", "--gpus", "2xshared:99"], "there is no such mode. Write exclusive, shared:N"),
        (["TRACE", "--gpus", "9999"], "9999 GPUs are more than the 4096"),
        (["TRACE", "--gpus", "1", "--inventory", "x"], "either --inventory or --gpus, not both"),
        (["TRACE", "--inventory", "TRACE"], "holds no list. Write one row for each of the devices"),
        (["TRACE", "--grants", "TRACE"], "holds no list. Write one row for each of the grants"),
        (["TRACE", "--start", "soon"], '"soon" is no date. Write --start 2026-09-07'),
        (["TRACE", "--save", "no/such/folder.csv"], "cannot be written: No such file or directory"),
        (["TRACE", "--policy", "\x1b[31m"], 'There is no policy "?[31m"'),
    ],
)
def test_wrong_usage_is_one_sentence_with_the_remedy(
    tmp_path: Path,
    trace: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    said_words = {"TRACE": trace, "FOLDER": str(tmp_path)}
    assert run(*(said_words.get(word, word) for word in words)) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("pytorch-spawner: ")
    assert said.err.count("\n") == 1
    assert says in said.err


@pytest.mark.parametrize(
    ("option", "text", "faults"),
    [
        (None, "arrive_s,user,hold_s\nx,ana,1\n0,bob,\n", ["line 2: ", "line 3: "]),
        ("--grants", "[{count: 0}, {pool: no}, 5]", ["grant 1: ", "grant 2: ", "grant 3: "]),
    ],
)
def test_every_fault_of_a_file_is_listed(
    tmp_path: Path,
    trace: str,
    capsys: pytest.CaptureFixture[str],
    option: str | None,
    text: str,
    faults: list[str],
) -> None:
    file = tmp_path / "bad"
    file.write_text(text)
    assert run(*([str(file)] if option is None else [trace, option, str(file)])) == 2
    first, *rest = capsys.readouterr().err.splitlines()
    assert first.endswith(f"bad has {len(faults)} faults. Correct it and run again:")
    assert len(rest) == len(faults)
    assert all(line.startswith(f"  {fault}") for line, fault in zip(rest, faults, strict=True))


def test_a_file_that_is_no_text_and_one_that_is_no_yaml(
    tmp_path: Path, trace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bad"
    file.write_bytes(b"\xff\xfe\x00")
    assert run(str(file)) == 2
    assert "is no text in UTF-8" in capsys.readouterr().err
    file.write_text("[{")
    assert run(trace, "--grants", str(file)) == 2
    assert "is neither JSON nor YAML" in capsys.readouterr().err
    file.write_text("[" * 5000)
    assert run(trace, "--grants", str(file)) == 2
    assert "is neither JSON nor YAML" in capsys.readouterr().err
    file.write_text("- {valid_until: 2026-09-31}")
    assert run(trace, "--grants", str(file)) == 2
    said = capsys.readouterr().err
    assert "bad holds a date or a number that does not exist: day is out of range" in said
    file.write_text("- {uuid: nonsense}")
    assert run(trace, "--inventory", str(file)) == 2
    assert "uuid 'nonsense' is not of the form GPU-... or MIG-..." in capsys.readouterr().err


def test_a_terminal_sees_how_far_it_is(
    trace: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    times = iter(range(1000))
    monkeypatch.setattr(simulate.time, "monotonic", lambda: float(next(times)))
    assert run(trace, "--gpus", "1") == 0
    said = capsys.readouterr()
    assert "\r\x1b[Kpack: 3 of 3 starts" in said.err
    assert said.err.endswith("\r\x1b[K")
    assert "pack: " not in said.out


def test_what_steers_a_terminal_is_not_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "trace.csv"
    file.write_text("arrive_s,user,groups,hold_s\n0,ana,\x1b[31mred,1\n")
    assert run(str(file), "--by-group") == 0
    out = capsys.readouterr().out
    assert "?[31mred" in out
    assert "\x1b" not in out
