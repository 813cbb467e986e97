"""`pytorch-spawner cache`: asking, following, choosing what starts are given."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pytorch_spawner.cli import cache as module
from pytorch_spawner.cli import main
from pytorch_spawner.core.courses import SMOKER
from pytorch_spawner.core.gpus import Gpu, GpuUuid, Inventory
from pytorch_spawner.core.suites import read_suite, unpack
from pytorch_spawner.core.warmcache import WARMER, CacheKey, Target
from pytorch_spawner.ledger.store import Ledger

EXAMPLE = Path(__file__).parents[1] / "share" / "suites" / "example"
KEY = CacheKey("sha256:1", "NVIDIA H100", "9.0", "580")
Run = Callable[..., tuple[int, Any]]


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    ledger = Ledger.open(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    ledger.write_inventory("lab", Inventory((Gpu(GpuUuid("GPU-1234"), pool="teaching"),)))
    return ledger


@pytest.fixture
def run(
    ledger: Ledger,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    """Run an action; returns its exit status and, by ``--json``, what it says."""
    monkeypatch.delenv("PYTORCH_SPAWNER_IMAGE", raising=False)
    monkeypatch.setenv("LAB_IMAGE", "lab:usual")
    monkeypatch.setattr(module, "_POLL_S", 0.01)
    flags = ["--ledger", f"sqlite:///{tmp_path / 'ledger.sqlite'}", "--hub", "lab"]

    def run(*words: str, as_json: bool = True) -> tuple[int, Any]:
        status = main(["cache", *words, *flags, *(["--json"] if as_json else [])])
        out, err = capsys.readouterr()
        return status, json.loads(out) if as_json and out else out + err

    return run


def ask(run: Run, *words: str) -> str:
    status, said = run("build", "--suite", str(EXAMPLE), "--no-wait", *words)
    assert status == 0, said
    return str(said["id"])


def publish(ledger: Ledger, cache_id: str) -> None:
    assert ledger.next_cache("lab") is not None
    targets = (Target("mlp", 32, 41.04, 3.21, 4, 0), Target("mlp", 64, None, 3.0, 2, 0))
    ledger.note_cache(cache_id, state="checking", key=KEY, torch="2.13.0", targets=targets)
    ledger.note_cache(cache_id, state="published", size_bytes=12_345_678, files=99)


def test_the_example_is_a_suite_and_is_kept_whole(run: Run, ledger: Ledger) -> None:
    cache_id = ask(run, "--course", "ml", "--pool", "teaching", "--image", "lab:1")
    one = ledger.cache("lab", cache_id)
    assert (one.state, one.scope, one.pool, one.image, one.gpus) == (
        "queued",
        "ml",
        "teaching",
        "lab:1",
        1,
    )
    assert one.suite["name"] == "example"
    assert [target["name"] for target in one.suite["targets"]] == ["mlp", "cnn", "transformer"]
    files = unpack(ledger.suite_archive("lab", cache_id))
    assert read_suite(files).as_json() == one.suite


def test_the_image_is_the_one_that_servers_have_where_none_is_named(
    run: Run, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LAB_IMAGE")
    said = run("build", "--suite", str(EXAMPLE), "--cpu", as_json=False)
    assert (said[0], "--image; nobody started a server in the last week." in said[1]) == (1, True)
    ledger.begin_start("lab", "ana", "", {"image": "lab:cuda"})
    for whom, image in (("bo", "auto"), (WARMER, "lab:tried"), (SMOKER, "lab:tried")):
        ledger.begin_start("lab", whom, "", {"image": image})
    ledger.begin_start("lab", "eve", "", {"image": "lab:old"})
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as file, file:
        file.execute("UPDATE starts SET created_at = created_at - 8 * 86400 WHERE username = 'eve'")
    assert ledger.cache("lab", ask(run)).image == "lab:cuda"
    ledger.begin_start("lab", "bo", "", {"image": "lab:cpu"})
    said = run("build", "--suite", str(EXAMPLE), as_json=False)
    assert (said[0], "started with lab:cpu, lab:cuda in the" in said[1]) == (1, True)
    status, again = run("build", "--no-wait")
    assert (status, again["image"]) == (0, "lab:cuda"), "what is built again keeps its image"
    monkeypatch.setenv("LAB_IMAGE", "lab:2")
    assert ledger.cache("lab", ask(run, "--cpu")).image == "lab:2"
    monkeypatch.setenv("PYTORCH_SPAWNER_IMAGE", "lab:3")
    assert (ledger.cache("lab", ask(run, "--cpu")).image, ledger.caches("lab")[0].gpus) == (
        "lab:3",
        0,
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--suite", "/nowhere"], "/nowhere cannot be read: No such file"),
        (["--suite", str(EXAMPLE), "--pool", "no"], "pool: there is no pool 'no'; there is teachi"),
        (["--suite", str(EXAMPLE), "--image", "a b"], "image: no image reference"),
        (["--suite", str(EXAMPLE), "--course", "a\x1b"], "course: at most 255 printable"),
    ],
    ids=lambda value: str(value)[-20:],
)
def test_what_cannot_be_built_is_refused_before_anything_is_written(
    words: list[str], says: str, run: Run, ledger: Ledger
) -> None:
    status, text = run("build", *words, as_json=False)
    assert status == 1
    assert says in text
    assert ledger.caches("lab") == ()


def test_a_lab_without_gpus_builds_for_the_cpu(run: Run, ledger: Ledger) -> None:
    ledger.write_inventory("lab", Inventory())
    status, text = run("build", "--suite", str(EXAMPLE), "--no-wait", as_json=False)
    assert (
        status,
        "no GPU of this lab is known (it is once a server was started); build for the CPU" in text,
    ) == (1, True)
    ask(run, "--cpu")


def test_every_fault_of_a_suite_is_named(run: Run, tmp_path: Path) -> None:
    (tmp_path / "suite").mkdir()
    text = "name: A\ntargets: [{name: a, script: gone.py}, {name: b}]\n"
    (tmp_path / "suite" / "suite.yaml").write_text(text)
    status, said = run("build", "--suite", str(tmp_path / "suite"), as_json=False)
    assert status == 1
    for fault in (
        "3 faults, nothing was changed",
        "name: a to z, 0 to 9 and -",
        "targets[0].script: there is no file gone.py in the suite",
        "targets[1]: exactly one of function, script and notebook",
    ):
        assert fault in said


def test_nobody_who_builds_is_said_and_it_stays_queued(
    run: Run, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PATIENCE_S", 0.05)
    status, text = run("build", "--suite", str(EXAMPLE), "--cpu", as_json=False)
    assert status == 1
    assert "The lab service does not run on this ledger; start the hub." in text
    assert ledger.caches("lab")[0].state == "queued"


class Service(threading.Thread):
    """Takes the next build up and carries it through."""

    def __init__(self, url: str, last: dict[str, Any]) -> None:
        super().__init__(daemon=True)
        self._url, self._last = url, last

    def run(self) -> None:
        ledger = Ledger.open(self._url)
        while (begun := ledger.next_cache("lab")) is None:
            time.sleep(0.01)
        ledger.note_cache(begun.id, message="Compiling mlp at size 32.")
        time.sleep(0.05)
        targets = (Target("mlp", 32, 41.04, 3.21, 4, 0),)
        ledger.note_cache(begun.id, state="checking", key=KEY, targets=targets, message="Proving.")
        time.sleep(0.05)
        ledger.note_cache(begun.id, size_bytes=12_345_678, files=99, **self._last)
        ledger.close()


def test_a_build_is_followed_to_its_table(run: Run, tmp_path: Path) -> None:
    Service(f"sqlite:///{tmp_path / 'ledger.sqlite'}", {"state": "published"}).start()
    status, text = run("build", "--suite", str(EXAMPLE), as_json=False)
    assert status == 0
    lines = [line.split("s  ", 1)[-1] for line in text.splitlines()]
    assert "building: Compiling mlp at size 32." in lines
    assert "checking: Proving." in lines
    assert "TARGET  SIZE  COLD    WARM   HITS  MISSES" in text
    assert "mlp     32    41.0 s  3.2 s  4     0" in text
    assert "12.3 MB in 99 files." in text


def test_a_build_that_fails_says_why_with_the_end_of_its_log(run: Run, tmp_path: Path) -> None:
    last = {
        "state": "failed",
        "message": "mlp raised ValueError.",
        "log": "first\n" * 40 + "\x1b[31mlast",
    }
    Service(f"sqlite:///{tmp_path / 'ledger.sqlite'}", last).start()
    status, text = run("build", "--suite", str(EXAMPLE), as_json=False)
    assert status == 1
    assert "pytorch-spawner: mlp raised ValueError." in text
    assert text.count("first") == module._LOG_LINES - 1
    assert "?[31mlast" in text, "a container's text must not steer the terminal"


def test_with_json_only_the_result_is_on_the_standard_output(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Service(f"sqlite:///{tmp_path / 'ledger.sqlite'}", {"state": "published"}).start()
    status, said = run("build", "--suite", str(EXAMPLE))
    assert (status, said["state"], said["cold_s"], said["warm_s"]) == (0, "published", 41.04, 3.21)


def test_ctrl_c_leaves_it_running_and_says_how_to_stop_it(
    run: Run, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module.time, "sleep", interrupt)
    status, text = run("build", "--suite", str(EXAMPLE), as_json=False)
    (one,) = ledger.caches("lab")
    assert (status, one.state) == (130, "queued")
    assert f"The build goes on; `pytorch-spawner cache stop {one.id}` ends it." in text


def test_a_list_says_what_starts_are_given(run: Run, ledger: Ledger) -> None:
    assert (
        f"There is no warm cache. Build one with `cache build --suite {EXAMPLE}`."
        in (run("list", as_json=False)[1])
    )
    cache_id = ask(run)
    publish(ledger, cache_id)
    ledger.promote_cache("lab", cache_id, "root")
    ask(run, "--course", "ml", "--pool", "teaching")
    _, text = run(as_json=False)
    _, waits, current = text.splitlines()
    asked_for = "example ml a GPU of the pool teaching lab:usual waits"
    assert waits.split()[1:] == asked_for.split()
    for part in ("NVIDIA H100, driver 580", "current", "41.0 s -> 3.2 s", "12.3 MB", "6"):
        assert part in current
    _, rows = run("list")
    assert [row["is_current"] for row in rows] == [False, True]
    assert all("log" not in row for row in rows)


def test_one_is_shown_by_the_beginning_of_its_id(run: Run, ledger: Ledger) -> None:
    cache_id = ask(run)
    publish(ledger, cache_id)
    ledger.note_cache(cache_id, log="\x1b[31mred\nend")
    _, text = run("show", cache_id[:5], as_json=False)
    for part in (
        f"{cache_id}: example, kept.",
        "torch 2.13.0, Triton none",
        "never used",
        "?[31mr",
    ):
        assert part in text
    assert "\x1b" not in text
    assert run("show", cache_id)[1]["log"].endswith("end")


def test_promote_roll_back_and_remove_say_what_starts_get_then(run: Run, ledger: Ledger) -> None:
    first, second = ask(run), ask(run)
    publish(ledger, first)
    publish(ledger, second)
    assert f"are given {first} now" in run("promote", first, as_json=False)[1]
    assert f"are given {second} now" in run("promote", second, as_json=False)[1]
    status, text = run("rollback", second, as_json=False)
    assert (status, f"are given {first} now" in text) == (0, True)
    assert run("rollback", second, as_json=False) == (
        1,
        f"pytorch-spawner: Starts are not given {second} anyway.\n",
    )
    _, text = run("remove", first, as_json=False)
    assert "are given no warm cache now" in text
    assert "gone already" in run("remove", first, as_json=False)[1]
    assert run("promote", first)[0] == 1
    by = {change.by for change in ledger.changes("lab")}
    assert all("command line" in one for one in by)


def test_a_build_is_stopped(run: Run, ledger: Ledger) -> None:
    first, second = ask(run), ask(run)
    ledger.next_cache("lab")
    assert f"{first} is asked to stop." in run("stop", first, as_json=False)[1]
    assert f"{second} is stopped." in run("stop", second, as_json=False)[1]
    status, text = run("stop", second, as_json=False)
    assert (status, f"{second} is over: it is failed." in text) == (1, True)
    assert "compiling; stop it first" in run("remove", first, as_json=False)[1]


@pytest.mark.parametrize("said", ["zzz", ""])
def test_an_id_that_is_none_names_those_there_are(said: str, run: Run) -> None:
    cache_id = ask(run)
    status, text = run("show", said, as_json=False)
    assert (status, f"is no cache of this lab: {cache_id}" in text) == (1, True)


def test_without_a_suite_a_courses_last_one_is_built_again(run: Run, ledger: Ledger) -> None:
    status, text = run("build", "--course", "ml", "--no-wait", as_json=False)
    assert status == 1
    assert "No suite was built for the course ml before; name one with --suite." in text
    ask(run, "--course", "ml", "--cpu")
    status, said = run("build", "--course", "ml", "--cpu", "--no-wait")
    assert status == 0
    first, again = ledger.caches("lab")[1], ledger.cache("lab", said["id"])
    assert again is not None
    assert (again.suite_digest, again.scope) == (first.suite_digest, "ml")
    assert "every course" in run("build", "--no-wait", as_json=False)[1]
