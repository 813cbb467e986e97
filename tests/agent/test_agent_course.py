"""A course while a server runs: events, publications, orders, and what goes wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from agent_service import Service, processes_with
from course_lab import FOLDER, ONE, TWO, Publisher, contents, git, lab

from pytorch_spawner.agent import course as courses
from pytorch_spawner.agent import course_git, course_idle, course_store, course_watch
from pytorch_spawner.agent.config import Smoke, parse
from pytorch_spawner.agent.course_files import decide
from pytorch_spawner.agent.course_git import Refused
from pytorch_spawner.agent.course_hold import HELD, Hold, free_name, named
from pytorch_spawner.agent.course_store import MISSING, OTHER
from pytorch_spawner.agent.course_told import RECORD, Record, read_notice, told
from pytorch_spawner.agent.report import fit
from pytorch_spawner.core.journal import MAX_EVENT_BYTES, parse_report

pytestmark = pytest.mark.programs

MINE = lab(last="print('mine')")


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    made = Publisher(tmp_path / "lab")
    made.publish(ONE)
    return made


@pytest.fixture
def home(tmp_path: Path) -> Path:
    made = tmp_path / "home"
    made.mkdir()
    return made


class Orders:
    """The service's answer about orders."""

    def __init__(self) -> None:
        self.said: Any = {"orders": []}
        self.status = 200
        self.asked: list[str] = []
        orders = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                orders.asked.append(self.headers["Authorization"])
                body = orders.said if isinstance(orders.said, bytes) else json.dumps(orders.said)
                self.send_response(orders.status)
                self.end_headers()
                self.wfile.write(body if isinstance(body, bytes) else body.encode())

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/course"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def orders() -> Iterator[Orders]:
    running = Orders()
    yield running
    running.close()


class Over(Exception):
    """Ends a watch that would run for ever."""


class Watched:
    """A watch whose sleeps do what the test says, one after the other."""

    def __init__(self, publisher: Publisher, home: Path, orders_url: str = "") -> None:
        self.events: list[dict[str, Any]] = []
        self.log: list[str] = []
        course = publisher.course(orders_url=orders_url)
        self.watch = course_watch.Watch(
            course, str(home), "secret", lambda _, data: self.events.append(dict(data)),
            self.log.append,
        )  # fmt: skip

    def run(self, *steps: Callable[[], object]) -> list[str]:
        left = list(steps)

        def sleep(seconds: float) -> None:
            if seconds == course_watch.LOOK_S:
                if not left:
                    raise Over
                left.pop(0)()

        with pytest.raises(Over):
            self.watch.run(sleep)
        return [event["phase"] for event in self.events]


# -- what is told ----------------------------------------------------------------------------------


def test_the_first_sync_says_what_the_contract_says(publisher: Publisher, home: Path) -> None:
    publisher.tell(publisher.served[-1], "4" * 40)
    watched = Watched(publisher, home)
    assert watched.run() == ["begin", "done"]
    assert watched.events[0] == {"phase": "begin", "course": "cnn", "title": "CNNs"}
    done = watched.events[1]
    assert 0 < done.pop("seconds") < 10
    assert done == {
        "phase": "done", "course": "cnn", "title": "CNNs", "served": publisher.served[-1],
        "commit": "4" * 40, "level": "ok", "files": len(ONE), "kept": [], "conflicts": {},
        "message": f"The course's {len(ONE)} files are up to date.",
    }  # fmt: skip
    assert contents(home / FOLDER) == ONE
    assert watched.watch.first.is_set()


def test_a_commit_of_another_publication_is_not_told(publisher: Publisher, home: Path) -> None:
    publisher.tell("0" * 40, "4" * 40)
    watched = Watched(publisher, home)
    watched.run()
    assert watched.events[1]["commit"] == ""


def test_a_thousand_edits_with_long_names_fit_into_an_event(publisher: Publisher) -> None:
    many = {f"{'ä' * 90}/{number:04}/{'x' * 100}": b"x" for number in range(1000)}
    settled = courses.Settled(list(many), {path: f"{path}.beside" for path in many})
    said = told(publisher.course(), courses.Synced("a", "b", 2000, settled), 1.0)
    event = fit({"kind": "course", "at": 1.0, "data": said})
    assert "truncated" not in event["data"]
    assert next(iter(event["data"]["conflicts"])) == sorted(many)[0]
    assert len(json.dumps(event)) < MAX_EVENT_BYTES
    assert parse_report(json.dumps(event).encode()).events[0][0] == "course"
    assert "1000 files that both you and the course changed" in said["message"]


def test_a_log_of_a_smoke_test_is_told_whole() -> None:
    data = {"phase": "smoke", "log": "x" * 4000}
    assert fit({"kind": "course", "at": 1.0, "data": data})["data"] == data


# -- publications and orders -----------------------------------------------------------------------


def test_a_publication_reaches_a_running_server(publisher: Publisher, home: Path) -> None:
    watched = Watched(publisher, home)
    phases = watched.run(lambda: None, lambda: publisher.publish(TWO), lambda: None)
    assert phases == ["begin", "done", "done"]
    assert contents(home / FOLDER) == TWO
    assert watched.events[-1]["served"] == publisher.served[-1]


def test_a_notice_of_the_same_serial_is_no_news(publisher: Publisher, home: Path) -> None:
    watched = Watched(publisher, home)

    def touch() -> None:
        publisher.notice.write_bytes(publisher.notice.read_bytes())

    assert watched.run(touch, touch) == ["begin", "done"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"serial": "x"}', b"[" * 50_000, b"\xff"])
def test_a_broken_notice_stops_nothing(publisher: Publisher, home: Path, content: bytes) -> None:
    publisher.notice.write_bytes(content)
    assert read_notice(str(publisher.notice)).serial == 0
    watched = Watched(publisher, home)
    assert watched.run(publisher.notice.unlink)[:2] == ["begin", "done"]


def test_an_order_resets_one_file_and_keeps_a_backup(
    publisher: Publisher, home: Path, orders: Orders
) -> None:
    watched = Watched(publisher, home, orders.url)
    root = home / FOLDER

    def ask() -> None:
        (root / "lab.ipynb").write_bytes(MINE)
        (root / "data/train.csv").write_bytes(b"mine\n")
        orders.said = {"orders": [{"id": "o1", "path": "lab.ipynb"}]}
        publisher.tell(publisher.served[-1])

    # The service may name an order again until it has heard that it is done.
    assert watched.run(ask, lambda: publisher.tell(publisher.served[-1]))[2:4] == ["done", "reset"]
    resets = [event for event in watched.events if event["phase"] == "reset"]
    assert len(resets) == 1
    assert resets[0]["order"] == "o1"
    assert resets[0]["level"] == "ok"
    assert (root / "lab.ipynb").read_bytes() == ONE["lab.ipynb"]
    assert (root / resets[0]["backup"]).read_bytes() == MINE
    assert resets[0]["backup"].startswith("lab.backup-20")
    assert (root / "data/train.csv").read_bytes() == b"mine\n"
    assert set(orders.asked) == {"token secret"}


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("../outside.txt", "no file ../outside.txt"),
        ("/etc/passwd", "no file /etc/passwd"),
        (".git/config", "no file .git/config"),
        ("lab", "no file lab"),
        ("", "no file"),
        ("a\0b", "no file"),
        ("link.ipynb", "no file link.ipynb"),
        ("data/train.csv", "in-the-way"),
        ("lab.ipynb", "is no file there"),
    ],
)
def test_an_order_about_anything_but_a_file_of_the_course_changes_nothing(
    publisher: Publisher, home: Path, orders: Orders, path: str, sentence: str
) -> None:
    watched = Watched(publisher, home, orders.url)
    watched.run()
    root = home / FOLDER
    (home / "outside").mkdir()
    (home / "outside.txt").write_bytes(b"outside\n")
    (home / "outside" / "train.csv").write_bytes(b"outside\n")
    for name in ("train.csv", "test.csv"):
        (root / "data" / name).unlink()
    (root / "data").rmdir()
    (root / "data").symlink_to(home / "outside")
    (root / "lab.ipynb").unlink()
    (root / "lab.ipynb").symlink_to(home / "outside.txt")
    before = contents(home)
    orders.said = {"orders": [{"id": "o1", "path": path}, {"id": 7}, "x", {"path": "lab.ipynb"}]}
    assert watched.watch.take_orders()
    assert watched.events[-1]["phase"] == "reset"
    assert watched.events[-1]["level"] == "warn"
    assert sentence in watched.events[-1]["message"] or sentence == "in-the-way"
    assert contents(home) == before


@pytest.mark.parametrize("said", [b"<html>", {"orders": 7}, [], {"orders": {}}, b"x" * 400_000])
def test_a_service_that_answers_nonsense_about_orders_stops_nothing(
    publisher: Publisher, home: Path, orders: Orders, said: Any
) -> None:
    orders.said = said
    assert Watched(publisher, home, orders.url).run(lambda: None) == ["begin", "done"]


# -- what goes wrong -------------------------------------------------------------------------------


def test_what_fails_is_told_once_and_tried_again(
    publisher: Publisher, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (course_watch, course_idle):
        monkeypatch.setattr(module, "AGAIN_S", 0.0)
    (home / FOLDER).write_text("a file")
    watched = Watched(publisher, home)
    steps = [lambda: None, lambda: None, (home / FOLDER).unlink, lambda: None]
    assert watched.run(*steps) == ["begin", "failed", "done"]
    failed = watched.events[1]
    assert failed["code"] == "in-the-way"
    assert failed["level"] == "fail"
    assert "cnn.mine" in failed["remedy"]
    assert contents(home / FOLDER) == ONE


def test_complaints_come_at_most_once_a_minute(publisher: Publisher, home: Path) -> None:
    watched = Watched(publisher, home)
    for number in range(5):
        watched.watch._complain(Refused("x", f"Trouble {number}."), 0.0)
    assert [event["message"] for event in watched.events] == ["Trouble 0."]


@pytest.mark.parametrize(
    ("content", "code"),
    [(None, "no-bundle"), (b"", "bundle-damaged"), (b"x" * 99, "bundle-damaged")],
)
def test_a_bundle_that_is_none_fails_with_a_sentence(
    publisher: Publisher, home: Path, content: bytes | None, code: str
) -> None:
    publisher.bundle.unlink()
    if content is not None:
        publisher.bundle.write_bytes(content)
    with pytest.raises(Refused) as why:
        courses.sync(publisher.course(), home, print)
    assert why.value.code == code
    assert not (home / FOLDER).exists()


def test_a_bundle_cut_off_in_the_middle_leaves_the_students_files(
    publisher: Publisher, home: Path
) -> None:
    courses.sync(publisher.course(), home, print)
    (home / FOLDER / "lab.ipynb").write_bytes(MINE)
    before = contents(home / FOLDER)
    publisher.publish(TWO)
    publisher.bundle.write_bytes(publisher.bundle.read_bytes()[:-300])
    with pytest.raises(Refused) as why:
        courses.sync(publisher.course(), home, print)
    assert why.value.code == "sync-failed"
    assert contents(home / FOLDER) == before


def test_an_image_without_git_or_nbgitpuller_is_named(
    publisher: Publisher, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(Refused) as why:
        courses.sync(publisher.course(), home, print)
    assert why.value.code == "no-git"
    (tmp_path / "bin" / "git").symlink_to("/usr/bin/git")
    monkeypatch.setattr(course_git, "_PULL", "import sys; sys.exit(87)")
    with pytest.raises(Refused) as why:
        courses.sync(publisher.course(), home, print)
    assert why.value.code == "no-nbgitpuller"
    assert "nbgitpuller" in why.value.admin_remedy
    assert not (home / FOLDER).exists()


def test_a_git_that_hangs_is_ended(
    publisher: Publisher, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pulling = tmp_path / "pulling"
    hang = f"import pathlib, signal; pathlib.Path({str(pulling)!r}).touch(); signal.pause()"
    monkeypatch.setattr(course_git, "_PULL", hang)
    really = subprocess.Popen.communicate
    deadlines: list[float] = []

    def communicate(process: Any, *args: Any, timeout: float | None = None) -> Any:
        if timeout is None or hang not in process.args:
            return really(process, *args, timeout=timeout)
        while not pulling.exists():
            time.sleep(0.01)
        deadlines.append(timeout)
        raise subprocess.TimeoutExpired(process.args, timeout)

    monkeypatch.setattr(subprocess.Popen, "communicate", communicate)
    with pytest.raises(Refused) as why:
        courses.sync(publisher.course(), home, print)
    assert why.value.code == "too-slow"
    assert deadlines == [course_git.DEADLINE_S]
    assert not [line for line in processes_with("").values() if str(pulling) in line]


def test_an_nbgitpuller_that_always_fails_does_not_keep_the_update_away(
    publisher: Publisher, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    courses.sync(publisher.course(), home, print)
    (home / FOLDER / "lab.ipynb").write_bytes(MINE)
    publisher.publish(TWO)
    monkeypatch.setattr(course_git, "_PULL", "import sys; sys.exit('oops')")
    log: list[str] = []
    synced = courses.sync(publisher.course(), home, log.append)
    assert "oops" in log[0]
    beside = synced.settled.conflicts["lab.ipynb"]
    assert contents(home / FOLDER) == {**TWO, "lab.ipynb": MINE, beside: TWO["lab.ipynb"]}


def test_a_sync_that_is_killed_in_the_middle_gives_every_byte_back_at_the_next(
    publisher: Publisher, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    courses.sync(publisher.course(), home, print)
    root = home / FOLDER
    (root / "lab.ipynb").write_bytes(MINE)
    (root / "new.ipynb").write_bytes(MINE + b"\n")
    publisher.publish(TWO)
    program = (
        "import os, sys; from pathlib import Path\n"
        "from pytorch_spawner.agent import course, course_git, config\n"
        "course_git.pull = lambda *a: os._exit(9)\n"
        f"course.sync(config.Course('cnn', 'x', {str(publisher.bundle)!r}, "
        f"{str(publisher.notice)!r}, 'published', 'cnn'), Path({str(home)!r}), print)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], check=False)
    assert ended.returncode == 9
    assert not (root / "new.ipynb").exists(), "killed at the worst moment"
    courses.sync(publisher.course(), home, print)
    assert (root / "lab.ipynb").read_bytes() == MINE
    assert (root / "new.ipynb").read_bytes() == MINE + b"\n"
    assert not list((home / courses.STATE / "cnn").glob("hold-*"))


def test_a_file_saved_while_nbgitpuller_works_is_the_students(
    publisher: Publisher, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    courses.sync(publisher.course(), home, print)
    root = home / FOLDER
    publisher.publish(TWO)
    real = course_git.pull

    def slow(bundle: Path, branch: str, target: Path, home: Path) -> None:
        real(bundle, branch, target, home)
        (root / "lab.ipynb").write_bytes(MINE)
        (root / "same.ipynb").write_bytes(MINE)

    monkeypatch.setattr(course_git, "pull", slow)
    synced = courses.sync(publisher.course(), home, print)
    assert (root / "lab.ipynb").read_bytes() == MINE
    assert (root / "same.ipynb").read_bytes() == MINE
    assert synced.settled.kept == ["same.ipynb"]
    assert (root / synced.settled.conflicts["lab.ipynb"]).read_bytes() == TWO["lab.ipynb"]


def test_a_publication_in_the_middle_of_a_sync_is_taken_whole(
    publisher: Publisher, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    courses.sync(publisher.course(), home, print)
    root = home / FOLDER
    (root / "lab.ipynb").write_bytes(MINE)
    (root / "new.ipynb").write_bytes(MINE)
    publisher.publish(TWO)
    third = {**TWO, "untouched.ipynb": lab("third"), "third.ipynb": lab("3"), "lab.ipynb": lab("3")}
    real = course_git.pull

    def late(bundle: Path, branch: str, target: Path, home: Path) -> None:
        publisher.publish(third)
        real(bundle, branch, target, home)

    monkeypatch.setattr(course_git, "pull", late)
    synced = courses.sync(publisher.course(), home, print)
    assert synced.served == publisher.served[-1]
    assert set(synced.settled.conflicts) == {"lab.ipynb", "new.ipynb"}
    beside = {place: third[path] for path, place in synced.settled.conflicts.items()}
    assert contents(root) == {**third, "lab.ipynb": MINE, "new.ipynb": MINE, **beside}


def test_a_conflict_is_told_until_it_is_resolved_and_its_file_replaced_by_the_next(
    publisher: Publisher, home: Path
) -> None:
    course, root = publisher.course(), home / FOLDER
    courses.sync(course, home, print)
    (root / "lab.ipynb").write_bytes(MINE)
    publisher.publish(TWO)
    first = courses.sync(course, home, print).settled.conflicts["lab.ipynb"]
    publisher.publish({**TWO, "lab.ipynb": lab("third")})
    second = courses.sync(course, home, print).settled.conflicts["lab.ipynb"]
    assert (root / second).read_bytes() == lab("third")
    assert not (root / first).exists(), "nobody had edited it"
    (root / second).write_bytes(b"notes on it\n")
    publisher.publish({**TWO, "lab.ipynb": lab("fourth")})
    third = courses.sync(course, home, print).settled.conflicts["lab.ipynb"]
    assert (root / second).read_bytes() == b"notes on it\n"
    (root / "lab.ipynb").write_bytes((root / third).read_bytes())
    assert courses.sync(course, home, print).settled.conflicts == {}


def test_a_record_that_is_lost_costs_no_edit(publisher: Publisher, home: Path) -> None:
    course, root = publisher.course(), home / FOLDER
    courses.sync(course, home, print)
    (root / "lab.ipynb").write_bytes(MINE)
    publisher.publish(TWO)
    (home / courses.STATE / "cnn" / "record.json").write_text("{oops")
    git(root, "checkout", "-q", "-b", "mine")
    synced = courses.sync(course, home, print)
    beside = synced.settled.conflicts["lab.ipynb"]
    assert contents(root) == {**TWO, "lab.ipynb": MINE, beside: TWO["lab.ipynb"]}
    assert Record.read(home / courses.STATE / "cnn").served == publisher.served[-1]


def test_a_history_that_began_anew_is_no_obstacle(
    publisher: Publisher, home: Path, tmp_path: Path
) -> None:
    courses.sync(publisher.course(), home, print)
    (home / FOLDER / "lab.ipynb").write_bytes(MINE)
    other = Publisher(tmp_path / "other")
    other.publish(TWO)
    publisher.bundle.write_bytes(other.bundle.read_bytes())
    publisher.tell(other.served[-1])
    for _ in range(2):
        synced = courses.sync(publisher.course(), home, print)
        beside = synced.settled.conflicts["lab.ipynb"]
        assert contents(home / FOLDER) == {**TWO, "lab.ipynb": MINE, beside: TWO["lab.ipynb"]}


def test_a_home_that_is_a_repository_itself_is_not_touched(
    publisher: Publisher, home: Path
) -> None:
    git(home, "init", "-q", "-b", "main")
    git(home, "commit", "-q", "--allow-empty", "-m", "mine")
    (home / FOLDER).mkdir()
    (home / FOLDER / "notes.txt").write_bytes(b"mine\n")
    before = git(home, "rev-parse", "HEAD")
    courses.sync(publisher.course(), home, print)
    assert git(home, "rev-parse", "HEAD") == before
    assert contents(home / FOLDER) == {**ONE, "notes.txt": b"mine\n"}


def test_two_servers_with_one_home_take_turns(publisher: Publisher, home: Path) -> None:
    course, gave = publisher.course(), []
    threads = [
        threading.Thread(target=lambda: gave.append(courses.sync(course, home, print).files))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert gave == [len(ONE)] * 4
    assert contents(home / FOLDER) == ONE


@pytest.mark.parametrize("folder", ["../away", "/etc", "a/../b", "."])
def test_a_folder_outside_of_the_home_is_refused(
    publisher: Publisher, home: Path, folder: str
) -> None:
    with pytest.raises(Refused) as why:
        courses.sync(publisher.course(folder=folder), home, print)
    assert why.value.code == "bad-folder"


def test_nobody_without_a_home_gets_an_error(publisher: Publisher) -> None:
    for said in (None, "", "/", "/nowhere/at/all"):
        with pytest.raises(Refused) as why:
            courses.home(said)
        assert why.value.code == "no-home"


# -- the parts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "new", "mine", "expected"),
    [
        ("a", "a", "a", "same"), ("a", "b", "a", "write"), ("a", "", "a", "remove"),
        ("a", "a", "x", "keep"), ("a", "b", "x", "conflict"), ("a", "", "x", "keep"),
        ("", "b", "x", "conflict"), ("", "b", "b", "same"), ("a", "b", "b", "same"),
        ("", "b", MISSING, "write"), ("a", "b", MISSING, "write"), ("a", "a", MISSING, "write"),
        ("a", "", MISSING, "same"), ("a", "a", OTHER, "keep"), ("a", "b", OTHER, "conflict"),
        ("", "b", OTHER, "conflict"), ("a", "", OTHER, "keep"),
    ],
)  # fmt: skip
def test_whose_a_file_is(base: str, new: str, mine: str, expected: str) -> None:
    assert decide(base, new, mine) == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("lab.ipynb", "lab.t.ipynb"), ("a.b/c", "a.b/c.t"), (".profile", ".profile.t"),
        ("a.tar.gz", "a.tar.t.gz"), ("d/.x.y", "d/.x.t.y"),
    ],
)  # fmt: skip
def test_names_of_versions_keep_their_extension(path: str, expected: str) -> None:
    assert named(path, "t") == expected
    assert len(os.fsencode(named("ä" * 127 + ".x", "course-4f1c2a0", 12))) <= 255


def test_a_free_name_is_never_one_that_is_taken(tmp_path: Path) -> None:
    (tmp_path / "a.t.x").write_text("mine")
    (tmp_path / "a.t-2.x").symlink_to("nowhere")
    assert free_name(tmp_path, "a.x", "t") == "a.t-3.x"


def test_a_hold_without_links_is_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    (tmp_path / "a").write_bytes(b"mine")
    hold = Hold.take(tmp_path, tmp_path, ["a"])
    (tmp_path / "a").write_bytes(b"other")
    held = hold.of("a")
    assert held is not None
    assert held.read_bytes() == b"mine"
    assert course_store.content_id(held) == git(tmp_path, "hash-object", str(held))


def test_the_configuration_is_read_forgivingly() -> None:
    said = {"name": "cnn", "title": "T", "bundle": "/b", "notice": "/n", "branch": "published",
            "folder": "cnn", "orders_url": "u",
            "smoke": {"notebooks": ["a.ipynb"], "deadline_s": 5}}  # fmt: skip
    course = parse(json.dumps({"course": said}))[0].course
    assert course is not None
    assert (course.folder, course.orders_url) == ("cnn", "u")
    assert course.smoke == Smoke(("a.ipynb",), 5)
    for wrong in (
        None,
        7,
        {},
        {**said, "name": "../x"},
        {**said, "bundle": ""},
        {**said, "branch": "-x"},
    ):
        assert parse(json.dumps({"course": wrong}))[0].course is None
    assert (
        parse(json.dumps({"course": {**said, "smoke": {"notebooks": "x"}}}))[0].course.smoke is None
    )  # type: ignore[union-attr]


# -- the whole agent -------------------------------------------------------------------------------


def test_the_agent_syncs_first_goes_on_with_its_checks_and_stays_small(
    service: Service, agent: Any, container_env: Any, publisher: Publisher, tmp_path: Path
) -> None:
    course = {"name": "cnn", "title": "CNNs", "bundle": str(publisher.bundle),
              "notice": str(publisher.notice), "branch": "published", "folder": FOLDER,
              "orders_url": "", "smoke": None}  # fmt: skip
    env = container_env({"start": "s1", "gpus": [], "cache_dir": str(tmp_path), "course": course})
    process = agent(env)
    assert service.wait_for(lambda s: s.is_done("warmup"), 120), service.events
    kinds = [(event["kind"], event["data"].get("phase")) for event in service.events]
    assert kinds[:3] == [("course", "begin"), ("course", "done"), ("check", "plan")]
    assert contents(Path(env["HOME"]) / FOLDER) == ONE
    deadline = time.monotonic() + 120
    while b"course-idle" not in Path(f"/proc/{process.pid}/cmdline").read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.5)
    status = Path(f"/proc/{process.pid}/status").read_text()
    rss_kib = int(next(line.split()[1] for line in status.splitlines() if "VmRSS" in line))
    print(rss_kib, "KiB")
    assert rss_kib < 25 * 1024
    publisher.publish(TWO)
    wanted = publisher.served[-1]
    assert service.wait_for(
        lambda s: any(event["data"].get("served") == wanted for event in s.events), 120
    ), service.events[-1]
    assert contents(Path(env["HOME"]) / FOLDER) == TWO
    assert process.poll() is None
    assert {report["start"] for report in service.reports} == {"s1"}


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "{}", '{"served": "x"}', '{"conflicts": {}}', '{"conflicts": 3}',
     "[" * 200_000, "\x00"],
    ids=lambda text: repr(text[:20]),
)  # fmt: skip
def test_a_record_that_is_none_is_an_empty_one(tmp_path: Path, text: str) -> None:
    (tmp_path / RECORD).write_text(text)
    assert Record.read(tmp_path) == Record()


def test_a_record_that_is_a_pipe_or_endless_is_an_empty_one(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / RECORD)
    assert Record.read(tmp_path) == Record()
    (tmp_path / RECORD).unlink()
    (tmp_path / RECORD).symlink_to("/dev/zero")
    assert Record.read(tmp_path) == Record()


@pytest.mark.parametrize("text", ["[]", "3", "{", "[" * 200_000], ids=lambda text: text[:9])
def test_what_a_hold_does_not_name_holds_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / HELD).write_text(text)
    assert Hold(tmp_path).files == {}


def test_what_is_remembered_survives_from_turn_to_turn() -> None:
    seen = course_idle.Seen((1, 2, 3), 4, True, True, "Trouble.", 5.0, ["o1"])
    assert course_idle.Seen.read(seen.as_text()) == seen


def test_a_turn_that_cannot_begin_is_tried_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(course_idle, "self_command", lambda **_: ["false"])
    seen = course_idle.take_turn(course_idle.Seen(serial=3), (1, 2, 3))
    assert (seen.failed, seen.stamp, seen.serial) == (True, (1, 2, 3), 3)
