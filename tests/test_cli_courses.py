"""`pytorch-spawner courses`: manifests as files, asking and following, who has what."""

from __future__ import annotations

import io
import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
import yaml

from pytorch_spawner.cli import course_follow as module
from pytorch_spawner.cli import main
from pytorch_spawner.core.course_text import parse_manifest
from pytorch_spawner.core.courses import STEPS, Step
from pytorch_spawner.core.gpus import Gpu, GpuUuid, Inventory
from pytorch_spawner.lab.paths import courses_dir
from pytorch_spawner.ledger.store import Ledger

Run = Callable[..., tuple[int, Any]]
MANIFEST = """\
name: cv
title: Computer vision
source:
  git: https://forge.example.org/cv.git
  path: notebooks
members:
  groups: [cv]
  users: [ana, bo]
  staff: [zoe]
smoke: {notebooks: [week1.ipynb]}
timetable:
  timezone: Europe/Berlin
  sessions:
    - {start: 2099-10-19T09:00, end: 2099-10-19T10:30, weekly_until: 2099-11-02, seats: 8}
"""
CALENDAR = """\
BEGIN:VCALENDAR
VERSION:2.0
PRODID:test
BEGIN:VEVENT
UID:1
SUMMARY:Lecture
DTSTART;TZID=Europe/Berlin:{day}T090000
DTEND;TZID=Europe/Berlin:{day}T103000
RRULE:FREQ=WEEKLY;COUNT=3
END:VEVENT
BEGIN:VEVENT
UID:2
SUMMARY:Holiday
DTSTART;VALUE=DATE:{day}
END:VEVENT
END:VCALENDAR
"""


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    ledger = Ledger.open(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    ledger.open_now()
    return ledger


@pytest.fixture
def run(
    ledger: Ledger,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    """Run an action; returns its exit status and, by ``--json``, what it says."""
    monkeypatch.setattr(module, "_POLL_S", 0.01)
    flags = ["--ledger", f"sqlite:///{tmp_path / 'ledger.sqlite'}", "--hub", "lab"]

    def run(*words: str, as_json: bool = False) -> tuple[int, Any]:
        status = main(["courses", *words, *flags, *(["--json"] if as_json else [])])
        out, err = capsys.readouterr()
        return status, json.loads(out) if as_json and out else out + err

    return run


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "course.yaml"
    path.write_text(MANIFEST)
    return path


@pytest.fixture
def added(run: Run, manifest: Path) -> str:
    assert run("add", str(manifest))[0] == 0
    return "cv"


# -- manifests -----------------------------------------------------------------------------------


def test_a_good_manifest_is_said_to_be_so_without_any_lab(
    manifest: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    nowhere = ["--ledger", f"sqlite:///{tmp_path}/none.sqlite"]
    assert main(["courses", "validate", str(manifest), *nowhere]) == 0
    assert capsys.readouterr().out == f"{manifest} is usable: cv, Computer vision.\n"
    assert main(["courses", "validate", str(manifest), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == {"ok": True, "name": "cv", "problems": []}


def test_the_example_is_usable_as_it_stands(run: Run) -> None:
    status, text = run("validate", str(courses_dir() / "example" / "course.yaml"))
    assert status == 0, text


BAD = """\
name: Computer Vision
titel: x
source:
  git: https://zoe:secret@forge.example.org/cv.git
request: {gpus: -1}
timetable:
  timezone: Mars/Olympus
  sessions:
    - {start: 2026-10-19T09:00, end: 2026-10-19T08:00}
environment: {PATH: /tmp}
"""


def test_every_fault_is_named_with_its_line_and_place(run: Run, manifest: Path) -> None:
    manifest.write_text(BAD)
    status, text = run("validate", str(manifest))
    assert status == 1
    lines = [line.removeprefix(f"{manifest}: ") for line in text.splitlines()]
    for fault in (
        "line 1: name: a to z, 0 to 9 and single hyphens, beginning with a letter",
        "line 2: titel: there is no such key",
        "line 4: source.git: no user or password in the URL",
        "line 5: request.gpus: ",
        "line 7: timetable.timezone: a time zone, such as Europe/Berlin",
        "line 9: timetable.sessions.0: end is 1 minute to 24 hours after start",
        "line 10: environment: PATH is set by the lab",
        "title: this is needed",
    ):
        assert any(line.startswith(fault) for line in lines), (fault, lines)
    assert len(lines) == 8
    status, said = run("validate", str(manifest), as_json=True)
    assert (status, said["ok"], len(said["problems"])) == (1, False, 8)
    assert {"line": 2, "place": "titel", "message": "there is no such key"} in said["problems"]
    assert "secret" not in text


@pytest.mark.parametrize(
    ("warmup", "fault"),
    [
        ("{targets: [{name: a, script: a.py}]}", ""),
        ("{targets: [{name: a, notebook: a.ipynb, tag: mine, vary: {batch: 8}}]}", ""),
        ("{targets: [{name: a, function: 'm.n:step'}], imports: [numpy]}", ""),
        ("{targets: []}", "warmup.targets: at least one"),
        ("{}", "warmup.targets: "),
        (
            "{targets: [{name: a}]}",
            "warmup.targets[0]: exactly one of function, script and notebook",
        ),
        ("{targets: [{name: a, script: a.sh}]}", "warmup.targets[0].script: a file that ends"),
        ("{targets: [{name: a, script: a.py, vary: {1a: 8}}]}", "1a is no name of a variable"),
        ("{targets: [7]}", "warmup.targets[0]: a list of keys and values"),
        ("{targets: [{name: a, script: a.py}], speed: 9}", "warmup.speed: there is no such key"),
    ],
)
def test_the_warm_up_is_checked_as_well(run: Run, manifest: Path, warmup: str, fault: str) -> None:
    manifest.write_text(f"{MANIFEST}warmup: {warmup}\n")
    status, text = run("validate", str(manifest))
    assert status == bool(fault), text
    assert fault in text


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "it holds no keys"),
        (b"\xff\xfe", "it is no UTF-8 text"),
        (b"a: [", "line 1: course.yaml: it is no YAML"),
        (b"- a", "it holds no keys"),
        (b"a: &a [*a]\nname: *a", "name"),
        (b"x" * 300_000, "more than 256 KiB"),
        (b'name: "a\\u001b[31m"\n', "name: a to z"),
    ],
    ids=range(7),
)
def test_what_is_no_manifest_is_refused_in_a_sentence(
    run: Run, manifest: Path, content: bytes, says: str
) -> None:
    manifest.write_bytes(content)
    for action in ("validate", "add"):
        status, text = run(action, str(manifest))
        assert status == 1
        assert says in text
        assert "\x1b" not in text
    assert run("list", as_json=True) == (0, [])


def test_a_file_that_is_not_there_and_the_standard_input(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("validate", "/nowhere/course.yaml") == (
        1,
        "pytorch-spawner: /nowhere/course.yaml cannot be read: No such file or directory.\n",
    )
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(MANIFEST.encode())))
    assert run("validate", "-") == (0, "- is usable: cv, Computer vision.\n")


def test_the_schema_knows_every_key_and_no_other(run: Run) -> None:
    status, schema = run("schema", as_json=True)
    assert status == 0
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) >= set(yaml.safe_load(MANIFEST))
    assert json.loads(run("schema")[1]) == schema
    validator = jsonschema.Draft202012Validator(schema)
    # As an editor sees it: dates are texts.
    good = yaml.load(MANIFEST, yaml.BaseLoader)
    good["timetable"]["sessions"][0]["seats"] = 8
    assert list(validator.iter_errors(good)) == []
    assert [one.message for one in validator.iter_errors({**good, "titel": 1})] == [
        "Additional properties are not allowed ('titel' was unexpected)"
    ]


def test_a_course_is_added_once_shown_and_written_down(
    run: Run, added: str, manifest: Path
) -> None:
    status, text = run("add", str(manifest))
    assert (status, "There is a course cv already" in text) == (1, True)
    status, text = run("manifest", added)
    assert yaml.safe_load(text)["source"] == {
        "git": "https://forge.example.org/cv.git",
        "path": "notebooks",
    }
    manifest.write_text(text)
    assert run("validate", str(manifest))[0] == 0
    status, text = run("show", added)
    assert status == 0
    for part in (
        "cv: Computer vision. Not ready: it was never preloaded.",
        "notebooks from https://forge.example.org/cv.git, directory notebooks, into ~/cv",
        "image auto, staff zoe",
        "groups cv, 2 students by name",
        "(command line)",
    ):
        assert part in text
    assert "2099-10-19 09:00" in run("list")[1]


def test_a_manifest_is_put_in_the_place_of_another(
    run: Run, added: str, manifest: Path, ledger: Ledger
) -> None:
    manifest.write_text(MANIFEST.replace("Computer vision", "Seeing machines"))
    assert run("edit", added, str(manifest), "--by", "zoe") == (0, "cv is changed.\n")
    assert ledger.course("lab", "cv").manifest.title == "Seeing machines"
    assert ledger.changes("lab")[0].by == "zoe"
    ledger.note_course("lab", "cv", preloaded_at=ledger.now())
    manifest.write_text(MANIFEST.replace("path: notebooks", "path: lessons"))
    assert run("edit", added, str(manifest)) == (0, "cv is changed. Preload it again.\n")
    manifest.write_text(MANIFEST.replace("name: cv", "name: ml"))
    status, text = run("edit", added, str(manifest))
    assert (status, "A course keeps its name" in text) == (1, True)


def test_who_was_slower_overwrites_nothing(
    run: Run, added: str, manifest: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pytorch_spawner.cli import course_files

    read = course_files.read

    def somebody_else_first(path: str) -> Any:
        mine = read(path)
        ledger.save_course("lab", mine.model_copy(update={"title": "Theirs"}), "somebody")
        return mine

    monkeypatch.setattr(course_files, "read", somebody_else_first)
    status, text = run("edit", added, str(manifest))
    assert (status, "Somebody else changed the course meanwhile" in text) == (1, True)
    assert ledger.course("lab", "cv").manifest.title == "Theirs"


def test_a_course_that_is_none_names_those_there_are(run: Run, added: str) -> None:
    assert run("show", "no\x1b") == (
        1,
        "pytorch-spawner: 'no?' is no course of this lab: cv\n",
    )
    assert run("remove", added) == (
        0,
        "cv is removed. Everybody keeps what is in their home.\n",
    )
    assert "There is no course. Add the example" in run("list")[1]


def test_the_example_is_added_with_its_own_directory(run: Run, ledger: Ledger) -> None:
    status, text = run("example", "--staff", "zoe", "--staff", "max")
    assert (status, text.splitlines()[0].startswith("example is added.")) == (0, True)
    one = ledger.course("lab", "example")
    assert one.manifest.source.directory == str(courses_dir() / "example")
    assert one.manifest.members.staff == ("zoe", "max")
    assert run("example", as_json=True)[1]["name"] == "example-2"


# -- preload and publish -------------------------------------------------------------------------


class Service(threading.Thread):
    """Takes the next task up and carries it through, as the lab service does."""

    def __init__(self, url: str, last: str = "done", commit: str = "a" * 40) -> None:
        super().__init__(daemon=True)
        self._url, self._last, self._commit = url, last, commit
        self.start()

    def run(self) -> None:
        ledger = Ledger.open(self._url)
        while (begun := ledger.next_course_task("lab")) is None:
            time.sleep(0.01)
        if begun.task == "publish":
            if self._last == "done":
                candidate = (begun.candidate, begun.candidate_served)
                ledger.publish_course("lab", begun.name, candidate, begun.task_by)
        else:
            self._preload(ledger, begun.name)
        ledger.note_course("lab", begun.name, is_over=True)
        ledger.close()

    def _preload(self, ledger: Ledger, name: str) -> None:
        known = {step: Step(step) for step in STEPS}
        for step in STEPS:
            known[step] = Step(step, "running")
            ledger.note_course("lab", name, steps=tuple(known.values()))
            time.sleep(0.04)
            if step == "smoke" and self._last == "given up":
                known[step] = Step(step, "warned", "Given up at 08:45.", 2.5, is_given_up=True)
                known["warm"] = Step("warm", "skipped")
                break
            if step == "smoke" and self._last != "done":
                known[step] = Step(step, "failed", "week1.ipynb raised \x1b[31mValueError.", 2.5)
                known["warm"] = Step("warm", "skipped", "A step before it failed.")
                break
            notes = ("week2.ipynb has outputs.",) if step == "check" else ()
            known[step] = Step(step, "warned" if notes else "done", f"{step} it is.", 1.25, notes)
        served = self._commit[:-1] + "0"
        ledger.note_course(
            "lab", name, steps=tuple(known.values()), preloaded_at=ledger.now(),
            candidate=(self._commit, served, "Week 1"),
        )  # fmt: skip


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'ledger.sqlite'}"


def test_a_preload_is_followed_step_by_step_with_seconds(run: Run, added: str, url: str) -> None:
    Service(url)
    status, text = run("preload", added)
    assert status == 0, text
    lines = [line.split("s  ", 1)[-1] for line in text.splitlines()]
    for line in (
        "fetch: running",
        "fetch: done (1.2 s) fetch it is.",
        "check: warned (1.2 s) check it is.",
        "  week2.ipynb has outputs.",
        "warm: done (1.2 s) warm it is.",
    ):
        assert line in lines, text
    assert "cv: Preloaded, but students have nothing yet: publish it." in text
    shown = run("show", added)[1]
    assert "STEP   STATE   TOOK" in shown
    assert "preloaded, not yet given to students: aaaaaaaa Week 1" in shown
    assert "check: week2.ipynb has outputs." in shown


def test_a_preload_that_fails_says_where_and_why(run: Run, added: str, url: str) -> None:
    Service(url, "failed")
    status, text = run("preload", added)
    assert status == 1
    assert "pytorch-spawner: smoke: week1.ipynb raised ?[31mValueError." in text
    assert "\x1b" not in text
    assert "warm: skipped A step before it failed." in text


def test_a_preload_that_ends_for_the_class_is_no_success_though_students_keep_what_they_have(
    run: Run, added: str, url: str, ledger: Ledger
) -> None:
    ledger.publish_course("lab", added, ("b" * 40, "c" * 40), "bo")
    Service(url, "given up")
    status, text = run("preload", added)
    assert status == 1
    assert "Students have bbbbbbbb and keep it; aaaaaaaa was fetched, but smoke test" in text
    assert "Given up at 08:45." in text


def test_with_json_only_the_result_is_on_the_standard_output(
    run: Run, added: str, url: str
) -> None:
    Service(url)
    status, said = run("preload", added, as_json=True)
    assert (status, said["ok"], [one["state"] for one in said["steps"]]) == (
        0,
        True,
        ["done", "warned", "done", "done", "done"],
    )


def test_what_was_preloaded_is_published(run: Run, added: str, url: str) -> None:
    status, text = run("publish", added)
    assert (status, "Nothing is preloaded yet that could be published" in text) == (1, True)
    Service(url)
    run("preload", added)
    Service(url)
    assert run("publish", added) == (0, "cv: students are given aaaaaaaa now.\n")
    status, text = run("publish", added)
    assert (status, "Students have aaaaaaaa already" in text) == (1, True)
    assert "published aaaaaaaa" in run("show", added)[1]


def test_a_publication_that_does_not_come_about_is_no_success(
    run: Run, added: str, url: str
) -> None:
    Service(url)
    run("preload", added)
    Service(url, "failed")
    status, text = run("publish", added)
    assert (status, "could not be given out" in text) == (1, True)


def test_nobody_who_does_it_is_said(
    run: Run, added: str, monkeypatch: pytest.MonkeyPatch, ledger: Ledger
) -> None:
    monkeypatch.setattr(module, "_PATIENCE_S", 0.05)
    status, text = run("preload", added)
    assert status == 1
    assert "The lab service does not run on this ledger; start the hub." in text
    assert ledger.course("lab", "cv").task == "preload"
    status, text = run("preload", added)
    assert (status, "Something is done for cv already" in text) == (1, True)


def test_asking_without_waiting_and_stopping(run: Run, added: str, ledger: Ledger) -> None:
    assert run("preload", added, "--no-wait")[0] == 0
    assert ledger.course("lab", "cv").task == "preload"
    assert run("stop", added) == (0, "cv: the preload is asked to stop.\n")
    status, text = run("stop", added)
    assert (status, "Nothing is done for cv just now." in text) == (1, True)


def test_ctrl_c_leaves_it_running_and_says_how_to_stop_it(
    run: Run, added: str, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=interrupt, monotonic=time.monotonic))
    status, text = run("preload", added)
    assert status == 130
    assert "The preload goes on; `pytorch-spawner courses stop cv` ends it." in text
    assert ledger.course("lab", "cv").task == "preload"


def test_a_course_that_is_removed_meanwhile_ends_the_following(
    run: Run, added: str, url: str, ledger: Ledger
) -> None:
    def remove() -> None:
        other = Ledger.open(url)
        while not other.course("lab", "cv").task:
            time.sleep(0.02)
        other.remove_course("lab", "cv", "root")
        other.close()

    threading.Thread(target=remove, daemon=True).start()
    status, text = run("preload", added)
    assert (status, "cv was removed meanwhile." in text) == (1, True)


# -- people and times ----------------------------------------------------------------------------


def done(served: str, **more: object) -> dict[str, object]:
    said = {"phase": "done", "course": "cv", "level": "ok", "served": served, "commit": "b" * 40}
    return {**said, **more}


def test_who_has_what_and_whose_copy_needs_a_look(run: Run, added: str, ledger: Ledger) -> None:
    ledger.publish_course("lab", "cv", ("b" * 40, "c" * 40), "zoe")
    ledger.note_student("lab", "cv", "bo", done("c" * 40, kept=["a.ipynb"]))
    conflicts = {"week1.ipynb": "week1_theirs.ipynb"}
    ledger.note_student("lab", "cv", "cyd", done("d" * 40, level="warn", conflicts=conflicts))
    status, text = run("students", added)
    assert status == 0
    lines = text.splitlines()
    assert lines[1].split()[:3] == ["cyd", "behind", "bbbbbbbb"]
    assert "week1.ipynb" in lines[1]
    assert lines[2].split()[:3] == ["bo", "current", "bbbbbbbb"]
    assert lines[3].split() == ["ana", "never"]
    assert lines[4] == "Members of its groups are listed once they have started it."
    assert [row["user"] for row in run("students", added, as_json=True)[1]] == ["cyd", "bo", "ana"]


@pytest.mark.parametrize(
    ("user", "path", "says"),
    [
        ("ana", "week1.ipynb", "ana has no copy of cv; nothing to reset."),
        ("bo", "../.ssh/id", "a path inside the course, without .."),
        ("bo", "/etc/passwd", "a path inside the course, without .."),
        ("bo", "a\x1b", "only printable characters"),
        ("bo", "", "name a file of the course"),
    ],
)
def test_a_reset_that_makes_no_sense_is_refused(
    run: Run, added: str, ledger: Ledger, user: str, path: str, says: str
) -> None:
    ledger.note_student("lab", "cv", "bo", done("c" * 40))
    status, text = run("reset", added, user, path)
    assert (status, says in text) == (1, True)
    assert ledger.orders("lab", "cv") == ()


def test_a_reset_is_an_order_to_that_students_container(
    run: Run, added: str, ledger: Ledger
) -> None:
    ledger.note_student("lab", "cv", "bo", done("c" * 40))
    status, text = run("reset", added, "bo", "week1.ipynb")
    assert (status, "week1.ipynb of bo is reset within seconds" in text) == (0, True)
    (order,) = ledger.orders("lab", "cv", "bo")
    assert order.path == "week1.ipynb"
    assert "command line" in order.by


def test_the_next_sessions_are_told_on_the_courses_clocks(run: Run, added: str) -> None:
    _, text = run("sessions", added)
    assert text.splitlines()[1:4] == [
        "Mon 2099-10-19 09:00  10:30 CEST  8",
        "Mon 2099-10-26 09:00  10:30 CET   8",
        "Mon 2099-11-02 09:00  10:30 CET   8",
    ]
    assert "Seats are kept from ten minutes before the beginning" in text
    assert len(run("sessions", added, as_json=True)[1]) == 3


def test_a_session_that_asks_for_more_seats_than_classes_may_have_is_named(
    run: Run, added: str, ledger: Ledger
) -> None:
    gpus = tuple(Gpu(GpuUuid(f"GPU-{n}"), n, f"G{n}", pool="teaching") for n in range(2))
    ledger.write_inventory("lab", Inventory(gpus))
    assert "c.PyTorchSpawner.class_seats_share" not in run("sessions", added)[1]
    ledger.note_class_share("lab", 0.0)
    assert "keeps at most 0 of the 2 that there are" in run("sessions", added)[1]


def test_a_calendar_takes_the_place_of_the_timetable(
    run: Run, added: str, tmp_path: Path, ledger: Ledger
) -> None:
    day = time.strftime("%Y%m%d", time.gmtime(ledger.now() + 7 * 86400))
    file = tmp_path / "term.ics"
    file.write_text(CALENDAR.format(day=day))
    status, text = run("import-ics", added, str(file), "--seats", "12")
    assert status == 0
    assert text.splitlines() == [
        "The timetable of cv has 3 sessions now, in the place of 1.",
        "Left out: Holiday, because it lasts all day.",
    ]
    slots = ledger.course("lab", "cv").manifest.timetable.sessions
    assert [(one.seats, one.title) for one in slots] == [(12, "Lecture")] * 3
    assert run("sessions", added)[1].count("Lecture") == 3


def test_only_what_a_preload_reads_asks_for_another(
    run: Run, added: str, tmp_path: Path, ledger: Ledger
) -> None:
    ledger.ask_course("lab", added, "preload", "bo")
    ledger.next_course_task("lab")
    ledger.note_course("lab", added, preloaded_at=ledger.now(), is_over=True)
    before = run("show", added)[1]
    day = time.strftime("%Y%m%d", time.gmtime(ledger.now() + 7 * 86400))
    (tmp_path / "term.ics").write_text(CALENDAR.format(day=day))
    assert run("import-ics", added, str(tmp_path / "term.ics"))[0] == 0
    assert "preload it again" not in run("show", added)[1]
    assert "preload it again" not in run()[1]
    changed = MANIFEST.replace("path: notebooks", "path: other")
    ledger.save_course("lab", parse_manifest(yaml.safe_load(changed)), "bo")
    assert "preload it again" not in before
    assert "preload it again" in run("show", added)[1]
    assert "preload it again" in run()[1]


@pytest.mark.parametrize(
    ("content", "words", "says"),
    [
        ("hello", [], "The calendar cannot be used: it is no ICS file"),
        ("BEGIN:VCALENDAR\n" + "A" * 2_000_000, [], "it has more than 1024 KiB"),
        (CALENDAR.format(day="20000101"), [], "it began more than ten years from now"),
        ("hello", ["--seats", "-1"], "--seats is a number from 0 to 2000."),
    ],
    ids=range(4),
)
def test_a_calendar_that_cannot_be_used_changes_nothing(
    run: Run, added: str, tmp_path: Path, ledger: Ledger, content: str, words: list[str], says: str
) -> None:
    (tmp_path / "term.ics").write_text(content)
    status, text = run("import-ics", added, str(tmp_path / "term.ics"), *words)
    assert (status, says in text) == (1, True), text
    assert len(ledger.course("lab", "cv").manifest.timetable.sessions) == 1
