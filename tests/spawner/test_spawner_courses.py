"""Courses through a real hub: a real git server, real containers, nbgitpuller in them."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pytorch_spawner.core.course_text import parse_manifest
from pytorch_spawner.core.courses import SMOKER, Course, volumes_of
from tests.git_server import GitServer
from tests.lab_driver import Lab, running_lab

pytestmark = [pytest.mark.docker, pytest.mark.slow]

LESSON = "cv/01-lesson.ipynb"


def notebook(*lines: str) -> str:
    cell = {
        "cell_type": "code", "execution_count": None, "id": "a", "metadata": {}, "outputs": [],
        "source": "\n".join(lines),
    }  # fmt: skip
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return json.dumps({"cells": [cell], "metadata": kernel, "nbformat": 4, "nbformat_minor": 5})


class Forge:
    """A repository on a git server, and somebody who pushes to it."""

    def __init__(self, folder: Path, server: GitServer) -> None:
        self.server = server
        self.bare = folder / "cv.git"
        self.work = folder / "author"
        self.git("init", "-q", "--bare", "-b", "main", str(self.bare), cwd=folder)
        self.git("clone", "-q", str(self.bare), str(self.work), cwd=folder)
        self.git("checkout", "-q", "-B", "main")

    def git(self, *words: str, cwd: Path | None = None) -> str:
        who = ["-c", "user.name=Bo", "-c", "user.email=bo@school.example"]
        done = subprocess.run(
            ["git", *who, *words], cwd=cwd or self.work, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    def push(self, message: str, **files: str) -> str:
        for name, content in files.items():
            path = self.work / name.replace("__", "/").replace("_ipynb", ".ipynb")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        self.git("add", "-A")
        self.git("commit", "-q", "-m", message)
        self.git("push", "-q", "origin", "main")
        return self.git("rev-parse", "HEAD")

    @property
    def url(self) -> str:
        return self.server.url("cv.git")


@pytest.fixture(scope="module")
def forge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forge]:
    folder = tmp_path_factory.mktemp("forge")
    with GitServer(folder) as server:
        made = Forge(folder, server)
        made.push(
            "First lesson",
            nb__lesson_ipynb=notebook("answer = 6 * 7", "print(answer)"),
            nb__notes=("one\ntwo\nthree\n"),
            solutions=("not below the course's path\n"),
        )
        yield made


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    data = tmp_path_factory.mktemp("data")
    (data / "pixels.txt").write_text("0 1 2\n")
    data.chmod(0o755)
    scans = {"source": str(data), "courses": ["radiology"]}
    traits = {"PyTorchSpawner.course_data": {"pixels": str(data), "scans": scans}}
    with running_lab(tmp_path_factory.mktemp("lab"), traits=traits) as running:
        running.add_users("ana", "ben", "bo", "eve")
        yield running


def manifest(forge: Forge, **more: Any) -> Any:
    return parse_manifest(
        {
            "name": "cv",
            "title": "Computer vision",
            "source": {"git": forge.url, "path": "nb"},
            "members": {"users": ["ana", "ben"], "staff": ["bo"]},
            "request": {"gpus": 0},
            "data": {"pixels": "/data/pixels"},
            "environment": {"COURSE_SEED": "17"},
            "smoke": {"notebooks": ["lesson.ipynb"], "deadline_s": 60},
            **more,
        }
    )


def preload(lab: Lab, name: str = "cv", timeout_s: float = 90) -> Course:
    return do(lab, "preload", name, timeout_s)


def do(lab: Lab, task: str, name: str = "cv", timeout_s: float = 90) -> Course:
    assert lab.ledger().ask_course(lab.hub_id, name, task, "bo")
    lab.wait_until(lambda: not known(lab, name).task, timeout_s, f"the {task} of {name} goes on")
    return known(lab, name)


def known(lab: Lab, name: str = "cv") -> Course:
    course = lab.ledger().course(lab.hub_id, name)
    assert course is not None
    return course


def steps(course: Course) -> dict[str, str]:
    return {one.name: one.state for one in course.steps}


@pytest.fixture(scope="module")
def course(lab: Lab, forge: Forge) -> Course:
    lab.ledger().save_course(lab.hub_id, manifest(forge), "bo")
    return preload(lab)


@pytest.fixture(autouse=True)
def nothing_left(lab: Lab) -> Iterator[None]:
    yield
    for user in lab.api("GET", "users?state=active").json():
        for name in user["servers"]:
            lab.stop_server(user["name"], name)
    lab.wait_until(lambda: not lab.leases(), 35, "a lease was left over")


def read(lab: Lab, user: str, path: str, server: str = "") -> str:
    return lab.exec(user, "cat", f"/home/lab/{path}", server=server)


def synced(lab: Lab, user: str, server: str = "", after: int = 0) -> dict[str, Any]:
    """The newest word of that server's agent on its notebooks."""

    def found() -> list[dict[str, Any]]:
        return [
            event["data"]
            for event in lab.events(user, server)
            if event["kind"] == "course" and event["data"]["phase"] in ("done", "failed")
        ]

    lab.wait_until(lambda: len(found()) > after, 40, f"nothing was said of {user}'s notebooks")
    return found()[-1]


def test_a_preload_makes_a_course_ready_and_publishes_it_the_first_time(
    lab: Lab, forge: Forge, course: Course
) -> None:
    head = forge.git("rev-parse", "HEAD")
    assert steps(course) == {
        "fetch": "done", "check": "done", "image": "done", "smoke": "done", "warm": "skipped",
    }, course.steps  # fmt: skip
    assert (course.commit, course.candidate) == (head, head)
    assert course.served not in ("", head)
    assert course.published_by == "bo"
    assert all(one.seconds is not None for one in course.steps[:4])
    smoke = course.steps[3]
    assert "lesson.ipynb: ok" in smoke.notes[0]
    # What a fresh student's server left is gone, and it holds nothing.
    assert lab.server(SMOKER) is None
    left = {one.name for one in lab.docker.volumes.list() if f"{lab.hub_id}-try" in one.name}
    assert not left
    assert forge.server.fetches == 1


def test_a_member_starts_with_the_notebooks_the_data_and_the_settings_of_the_course(
    lab: Lab, course: Course
) -> None:
    lab.start_server("ana")  # of one course alone, so nothing has to be said
    said = synced(lab, "ana")
    assert (said["level"], said["served"], said["commit"]) == ("ok", course.served, course.commit)
    assert json.loads(read(lab, "ana", "cv/lesson.ipynb"))["nbformat"] == 4
    names = lab.exec("ana", "ls", "-A", "/home/lab/cv").split()
    assert sorted(names) == [".git", "lesson.ipynb", "notes"]
    uid = lab.exec("ana", "id", "-u")
    assert lab.exec("ana", "stat", "-c", "%u", "/home/lab/cv/notes") == uid
    assert lab.exec("ana", "printenv", "COURSE_SEED") == "17"
    assert lab.exec("ana", "cat", "/data/pixels/pixels.txt") == "0 1 2"
    for place in ("/data/pixels/x", "/opt/pytorch-spawner/course/course.bundle"):
        code, _ = lab.container("ana").exec_run(["sh", "-c", f"echo > {place}"])
        assert code != 0, place
    students = {one.username: one for one in lab.ledger().students(lab.hub_id, "cv")}
    assert students["ana"].served == course.served


def test_a_data_set_that_is_for_another_course_is_refused_to_students_and_the_smoke_test(
    lab: Lab, forge: Forge, course: Course
) -> None:
    lab.ledger().save_course(
        lab.hub_id, manifest(forge, data={"scans": "/data/scans"}, name="theirs"), "bo"
    )
    why = "The data set scans is not here: the lab does not give it to the course theirs."
    try:
        tried = preload(lab, "theirs")
        failed = next(one for one in tried.steps if one.state == "failed")
        assert failed.message.startswith(why), tried.steps
        lab.start_server("ana", {"course": "theirs"})
        assert why in json.dumps(lab.events("ana"))
        code, _ = lab.container("ana").exec_run(["test", "-e", "/data/scans"])
        assert code == 1
    finally:
        lab.ledger().remove_course(lab.hub_id, "theirs", "bo")


def test_who_does_not_belong_to_it_cannot_name_it(lab: Lab, course: Course) -> None:
    answer = lab.spawn("eve", {"course": "cv"})
    assert answer.status_code >= 400
    assert "There is no course" in answer.text
    lab.start_server("eve")
    assert "cv" not in lab.exec("eve", "ls", "-A", "/home/lab").split()


def test_a_new_publication_reaches_a_running_server_and_edits_stay(
    lab: Lab, forge: Forge, course: Course
) -> None:
    lab.start_server("ben")
    synced(lab, "ben")
    lab.exec("ben", "sh", "-c", "echo 'my own words' > /home/lab/cv/notes")
    forge.push(
        "Second lesson",
        nb__notes="one\ntwo\nthree and four\n",
        nb__second_ipynb=notebook("print('second')"),
    )
    fetches = forge.server.fetches
    assert steps(preload(lab))["smoke"] == "done"
    assert known(lab).candidate != known(lab).commit
    assert "second.ipynb" not in lab.exec("ben", "ls", "/home/lab/cv")
    published = do(lab, "publish")
    assert published.commit == published.candidate != course.commit
    said = synced(lab, "ben", after=1)
    assert said["served"] == published.served
    assert read(lab, "ben", "cv/notes") == "my own words"
    beside = said["conflicts"]["notes"]
    assert read(lab, "ben", f"cv/{beside}") == "one\ntwo\nthree and four"
    assert "second.ipynb" in lab.exec("ben", "ls", "/home/lab/cv")
    (ben,) = [one for one in lab.ledger().students(lab.hub_id, "cv") if one.username == "ben"]
    assert (ben.level, dict(ben.conflicts)) == ("warn", {"notes": beside})
    # Two students, two publications, and the forge was asked once for each preload.
    assert forge.server.fetches == fetches + 1


def test_one_file_of_one_student_is_brought_back_and_a_backup_kept(
    lab: Lab, course: Course
) -> None:
    lab.start_server("ana")
    synced(lab, "ana")
    lab.exec("ana", "sh", "-c", "echo broken > /home/lab/cv/notes")
    order = lab.ledger().ask_reset(lab.hub_id, "cv", "ana", "notes", "bo")
    lab.wait_until(
        lambda: not lab.ledger().orders(lab.hub_id, "cv", "ana"), 40, "the order still waits"
    )
    assert read(lab, "ana", "cv/notes").startswith("one")
    done = [event["data"] for event in lab.events("ana") if event["data"].get("order") == order.id]
    assert done[0]["level"] == "ok"
    assert read(lab, "ana", f"cv/{done[0]['backup']}") == "broken"


def test_an_instructor_tries_it_in_a_server_that_is_thrown_away(
    lab: Lab, forge: Forge, course: Course
) -> None:
    forge.push("Not yet for students", nb__draft="for instructors\n")
    assert preload(lab).candidate != known(lab).commit
    lab.start_server("bo", {"course": "cv"}, "try-cv")
    assert synced(lab, "bo", "try-cv")["level"] == "ok"
    assert read(lab, "bo", "cv/draft", "try-cv") == "for instructors"
    home = next(
        mount["Name"]
        for mount in lab.container("bo", "try-cv").attrs["Mounts"]
        if mount["Destination"] == "/home/lab"
    )
    lab.stop_server("bo", "try-cv")
    lab.wait_until(
        lambda: home not in {one.name for one in lab.docker.volumes.list()}, 10, "its home stayed"
    )
    # What is tried is no student's copy, and nobody's real home saw it.
    assert "bo" not in {one.username for one in lab.ledger().students(lab.hub_id, "cv")}
    lab.start_server("bo", {"course": "cv"})
    synced(lab, "bo")
    assert "draft" not in lab.exec("bo", "ls", "/home/lab/cv").split()


def test_a_server_of_that_name_is_an_ordinary_one_for_whoever_does_not_teach(
    lab: Lab, course: Course
) -> None:
    lab.start_server("ana", {"course": "cv"}, "try-cv")
    mounts = {
        one["Destination"]: one.get("Name", "")
        for one in lab.container("ana", "try-cv").attrs["Mounts"]
    }
    assert mounts["/home/lab"] == f"{lab.hub_id}-home-ana"
    assert mounts["/opt/pytorch-spawner/course"] == volumes_of(lab.hub_id, "cv")[0]


def test_whoever_logs_in_as_the_smoke_tests_account_gets_nothing(lab: Lab, course: Course) -> None:
    lab.add_users(SMOKER)
    answer = lab.spawn(SMOKER, {"course": "cv"})
    assert answer.status_code >= 400
    assert "none is asked for" in answer.text
    assert lab.container(SMOKER) is None


@pytest.mark.parametrize(
    ("more", "step", "sentence"),
    [
        pytest.param(
            {"smoke": {"notebooks": ["gone.ipynb"]}}, "check", "gone.ipynb", id="a missing notebook"
        ),
        pytest.param(
            {"source": {"git": "http://127.0.0.1:9/none.git"}}, "fetch", "", id="no forge there"
        ),
        pytest.param(
            {"image": "no-such-image:1"}, "image", "no image", id="an image that is not on offer"
        ),
    ],
)
def test_a_preload_that_fails_says_at_which_step_and_why(
    lab: Lab, forge: Forge, course: Course, more: dict[str, Any], step: str, sentence: str
) -> None:
    said = manifest(forge).as_json()
    lab.ledger().save_course(lab.hub_id, parse_manifest({**said, "name": "bad", **more}), "bo")
    ended = preload(lab, "bad")
    states = steps(ended)
    assert states[step] == "failed", ended.steps
    assert set(list(states.values())[list(states).index(step) + 1 :]) == {"skipped"}
    message = next(one.message for one in ended.steps if one.name == step)
    assert sentence in message
    assert message.endswith(".")
    assert ended.commit == ""


def test_a_notebook_that_fails_is_named_with_its_error(
    lab: Lab, forge: Forge, course: Course
) -> None:
    forge.push("Broken", nb__broken_ipynb=notebook("raise ValueError('the data is gone')"))
    said = manifest(forge, smoke={"notebooks": ["lesson.ipynb", "broken.ipynb"]}).as_json()
    lab.ledger().save_course(lab.hub_id, parse_manifest({**said, "name": "bad"}), "bo")
    ended = preload(lab, "bad")
    smoke = next(one for one in ended.steps if one.name == "smoke")
    assert smoke.state == "failed"
    assert "the data is gone" in smoke.message
    assert [note.split(":")[0] for note in smoke.notes] == ["lesson.ipynb", "broken.ipynb"]


def test_without_its_forge_a_course_starts_as_before(
    lab: Lab, forge: Forge, course: Course
) -> None:
    forge.server.off()
    try:
        lab.start_server("ana", {"course": "cv"})
        assert synced(lab, "ana")["level"] in ("ok", "warn")
        assert steps(preload(lab))["fetch"] == "failed"
        assert known(lab).served != ""
    finally:
        forge.server.on()


def test_a_course_that_is_removed_takes_its_volumes_and_nobodys_files(
    lab: Lab, forge: Forge, course: Course
) -> None:
    said = manifest(forge).as_json()
    lab.ledger().save_course(lab.hub_id, parse_manifest({**said, "name": "short"}), "bo")
    preload(lab, "short")
    volumes = set(volumes_of(lab.hub_id, "short"))
    assert volumes <= {one.name for one in lab.docker.volumes.list()}
    lab.start_server("ana", {"course": "short"})
    synced(lab, "ana")
    lab.stop_server("ana")
    lab.ledger().remove_course(lab.hub_id, "short", "bo")
    lab.wait_until(
        lambda: not volumes & {one.name for one in lab.docker.volumes.list()}, 15, "they stayed"
    )
    lab.start_server("ana", {"course": "cv"})
    assert "short" in lab.exec("ana", "ls", "/home/lab").split()


def test_a_lab_whose_mirror_was_lost_goes_on_from_what_students_have(
    lab: Lab, forge: Forge, course: Course
) -> None:
    lab.start_server("ana", {"course": "cv"})
    synced(lab, "ana")
    shutil.rmtree(lab.dir / "courses" / "cv")
    forge.push("After the loss", nb__after="still here\n")
    ended = preload(lab)
    assert steps(ended)["check"] in ("done", "warned"), ended.steps
    do(lab, "publish")
    assert synced(lab, "ana", after=1)["served"] == known(lab).served
    assert read(lab, "ana", "cv/after") == "still here"


def test_a_volume_that_was_lost_comes_back(lab: Lab, course: Course) -> None:
    volume = lab.docker.volumes.get(volumes_of(lab.hub_id, "cv")[0])
    volume.remove()
    lab.wait_until(
        lambda: any(one.name == volume.name for one in lab.docker.volumes.list()), 45, "it stayed"
    )
    lab.start_server("ana", {"course": "cv"})
    assert synced(lab, "ana")["served"] == known(lab).served


def test_a_publication_whose_commit_is_nowhere_any_more_is_told_and_changes_nothing(
    lab: Lab, course: Course
) -> None:
    before = known(lab)
    gone = ("a" * 40, "b" * 40, "Gone")
    lab.ledger().note_course(lab.hub_id, "cv", candidate=gone)
    do(lab, "publish")
    now = known(lab)
    assert (now.served, now.commit, now.serial) == (before.served, before.commit, before.serial)
    (line, *_) = lab.ledger().changes(lab.hub_id)
    assert line.after["is"] == "publish failed"
    assert "Preload the course again" in line.after["message"]


def test_a_service_that_is_ended_in_the_middle_leaves_the_preload_to_the_next(
    lab: Lab, forge: Forge, course: Course
) -> None:
    lab.ledger().ask_course(lab.hub_id, "cv", "preload", "bo")
    lab.wait_until(
        lambda: steps(known(lab)).get("smoke") == "running", 30, "it did not come that far"
    )
    service = lab.service_pid()
    assert service is not None
    subprocess.run(["kill", "-TERM", str(service)], check=True)
    lab.wait_until(lambda: not known(lab).task, 90, "the preload was forgotten")
    assert steps(known(lab))["smoke"] == "done", known(lab).steps


def test_a_service_that_is_killed_in_the_middle_begins_the_preload_again(
    lab: Lab, forge: Forge, course: Course
) -> None:
    lab.ledger().ask_course(lab.hub_id, "cv", "preload", "bo")
    lab.wait_until(
        lambda: steps(known(lab)).get("image") == "running", 30, "it did not come that far"
    )
    service = lab.service_pid()
    assert service is not None
    subprocess.run(["kill", "-9", str(service)], check=True)
    began = time.monotonic()
    lab.wait_until(lambda: not known(lab).task, 90, "the preload was forgotten")
    assert steps(known(lab))["smoke"] == "done", known(lab).steps
    assert time.monotonic() - began < 80
