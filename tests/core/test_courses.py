"""A course's manifest: what it says, what is refused, and whose course it is."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import date
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pytorch_spawner.core.course_manifest import MAX_MANIFEST_BYTES, Manifest, why_outside
from pytorch_spawner.core.course_text import parse_manifest, read_manifest
from pytorch_spawner.core.courses import (
    SMOKER,
    Course,
    Step,
    courses_of,
    is_member,
    is_staff,
    tried_course,
    try_name,
    volumes_of,
)
from pytorch_spawner.errors import BadRequest
from tests.examples import examples

LEAST = {"name": "cv", "title": "Computer vision", "source": {"git": "https://forge.org/cv.git"}}
FULL = """\
name: deep-learning-2026
title: Deep learning
source: {git: "ssh://git@forge.example.org:2222/dl/notebooks.git", branch: term/2026, path: en/}
target: Deep Learning
image: auto
request: {gpus: 1, share: "mig:1g.10gb", pool: teaching}
data: {cifar: /data/cifar}
members: {groups: [dl], users: [ana], staff: [zoe]}
warmup:
  targets: [{name: cnn, notebook: a.ipynb}]
smoke: {notebooks: [a.ipynb, scripts/b.py], deadline_s: 300}
environment: {WANDB_MODE: offline, OMP_NUM_THREADS: "4", WORLD_SIZE: "1", PYTHONHASHSEED: "0"}
timetable:
  timezone: Europe/Berlin
  sessions:
    - {start: 2026-10-12T09:00, end: 2026-10-12T10:30, weekly_until: 2027-02-08, seats: 30}
    - {start: "2026-12-01T09:00+01:00", end: "2026-12-01T12:00+01:00", title: Exam}
"""


def faults(said: Any) -> dict[str, str]:
    """What is wrong with a manifest, by place."""
    with pytest.raises(BadRequest) as refused:
        parse_manifest(said)
    assert len(refused.value.faults) == len(refused.value.problems)
    return {one.field: one.message for one in refused.value.problems}


def test_a_full_manifest_is_read_and_comes_back_the_same() -> None:
    one = read_manifest(FULL.encode())
    assert one.source.path == "en"
    assert one.folder == "Deep Learning"
    assert one.request.share == "mig:1g.10gb"
    assert one.timetable.sessions[0].weekly_until == date(2027, 2, 8)
    assert parse_manifest(one.as_json()) == one
    again = yaml.safe_dump(one.as_json(), sort_keys=False)
    assert read_manifest(again.encode()) == one


def test_the_least_manifest_has_its_defaults_and_says_no_more_than_it_was_told() -> None:
    one = parse_manifest(LEAST)
    assert (one.folder, one.image, one.request.gpus, one.smoke) == ("cv", "auto", None, None)
    assert one.timetable.sessions == ()
    assert one.as_json() == LEAST


@pytest.mark.parametrize("key", ["name", "title", "source"])
def test_what_is_needed_is_asked_for(key: str) -> None:
    said = {name: value for name, value in LEAST.items() if name != key}
    assert faults(said) == {key: "this is needed"}


@pytest.mark.parametrize(
    ("more", "place"),
    [
        ({"name": ""}, "name"),
        ({"name": "Cv"}, "name"),
        ({"name": "1cv"}, "name"),
        ({"name": "a--b"}, "name"),
        ({"name": "a-"}, "name"),
        ({"name": "a/b"}, "name"),
        ({"name": ".."}, "name"),
        ({"name": "cv\n"}, "name"),
        ({"name": "ä"}, "name"),
        ({"name": "a" * 26}, "name"),
        ({"name": 7}, "name"),
        ({"title": ""}, "title"),
        ({"title": "x" * 121}, "title"),
        ({"targer": "x"}, "targer"),
        ({"target": ".ssh"}, "target"),
        ({"target": "a/b"}, "target"),
        ({"target": ".."}, "target"),
        ({"target": "a\n"}, "target"),
        ({"target": "x" * 61}, "target"),
        ({"image": ""}, "image"),
        ({"request": {"gpus": -1}}, "request.gpus"),
        ({"request": {"gpus": 65}}, "request.gpus"),
        ({"request": {"share": "half"}}, "request.share"),
        ({"request": {"share": "mig:9"}}, "request.share"),
        ({"request": {"gpu": 1}}, "request.gpu"),
        ({"data": {"a": "data"}}, "data"),
        ({"data": {"a": "/data"}}, "data"),
        ({"data": {"a": "/"}}, "data"),
        ({"data": {"a": "/data/../etc"}}, "data"),
        ({"data": {"a": "/etc/ssl"}}, "data"),
        ({"data": {"a": "//etc/ssl"}}, "data"),
        ({"data": {"a": "/lib/x"}}, "data"),
        ({"data": {"a": "/data/x:y"}}, "data"),
        ({"data": {"a": "/data/x", "b": "/data/x"}}, "data"),
        ({"data": {"a": "/home/jovyan"}}, "data"),
        ({"data": {"a": "/opt/pytorch-spawner/course"}}, "data"),
        ({"data": {"a": "/data/{username}"}}, "data"),
        ({"data": {str(n): "/data/a" for n in range(21)}}, "data"),
        ({"members": {"groups": [""]}}, "members.groups.0"),
        ({"members": {"teachers": ["zoe"]}}, "members.teachers"),
        ({"members": {"users": "ana"}}, "members.users"),
        ({"members": {"users": ["x" * 256]}}, "members.users.0"),
        ({"smoke": {}}, "smoke.notebooks"),
        ({"smoke": {"notebooks": []}}, "smoke.notebooks"),
        ({"smoke": {"notebooks": ["../a.ipynb"]}}, "smoke.notebooks"),
        ({"smoke": {"notebooks": ["/a.ipynb"]}}, "smoke.notebooks"),
        ({"smoke": {"notebooks": ["a.sh"]}}, "smoke.notebooks"),
        ({"smoke": {"notebooks": ["a.ipynb"], "deadline_s": 9}}, "smoke.deadline_s"),
        ({"environment": {"PATH": "/x"}}, "environment"),
        ({"environment": {"LD_PRELOAD": "/x"}}, "environment"),
        ({"environment": {"NVIDIA_VISIBLE_DEVICES": "all"}}, "environment"),
        ({"environment": {"JUPYTERHUB_API_TOKEN": "x"}}, "environment"),
        ({"environment": {"JUPYTER_X": "x"}}, "environment"),
        ({"environment": {"PYTHONSTARTUP": "x"}}, "environment"),
        ({"environment": {"BASH_ENV": "x"}}, "environment"),
        ({"environment": {"IPYTHONDIR": "x"}}, "environment"),
        ({"environment": {"https_proxy": "x"}}, "environment"),
        ({"environment": {"GIT_CONFIG_COUNT": "1"}}, "environment"),
        ({"environment": {"PYTORCH_CUDA_ALLOC_CONF": "x"}}, "environment"),
        ({"environment": {"A B": "x"}}, "environment"),
        ({"environment": {"": "x"}}, "environment"),
        ({"environment": {"A\n": "x"}}, "environment"),
        ({"environment": {"A": "x" * 4097}}, "environment"),
        ({"environment": {"A": "x\0"}}, "environment"),
        ({"environment": {"A": 1}}, "environment.A"),
        ({"warmup": [1]}, "warmup"),
        ({"timetable": {"timezone": "Mars/Olympus"}}, "timetable.timezone"),
        ({"timetable": {"timezone": "../../etc/passwd"}}, "timetable.timezone"),
        ({"timetable": {"timezone": "/etc/localtime"}}, "timetable.timezone"),
        ({"timetable": {"timezone": ""}}, "timetable.timezone"),
        ({"timetable": {"timezone": "a\0b"}}, "timetable.timezone"),
    ],
    ids=str,
)
def test_what_a_manifest_may_not_say(more: dict[str, object], place: str) -> None:
    found = faults({**LEAST, **more})
    assert list(found) == [place]
    assert len(found[place]) < 320
    assert found[place].isprintable()


@pytest.mark.parametrize(
    ("source", "place"),
    [
        ({}, "source"),
        ({"git": "https://a.org/b", "directory": "/srv"}, "source"),
        ({"directory": "srv"}, "source"),
        ({"git": "a.org/b"}, "source.git"),
        ({"git": "file:///etc"}, "source.git"),
        ({"git": "/etc"}, "source.git"),
        ({"git": "git@a.org:b"}, "source.git"),
        ({"git": "ext::sh -c id"}, "source.git"),
        ({"git": "--upload-pack=id"}, "source.git"),
        ({"git": "https://zoe:secret@a.org/b"}, "source.git"),
        ({"git": "https://:secret@a.org/b"}, "source.git"),
        ({"git": "https://a.org/b c"}, "source.git"),
        ({"git": "https://a.org/b\n"}, "source.git"),
        ({"git": "https://" + "a" * 500}, "source.git"),
        ({"git": "https://a.org/b", "branch": "--force"}, "source.branch"),
        ({"git": "https://a.org/b", "branch": "a..b"}, "source.branch"),
        ({"git": "https://a.org/b", "branch": "a b"}, "source.branch"),
        ({"git": "https://a.org/b", "branch": "a\n"}, "source.branch"),
        ({"git": "https://a.org/b", "path": "../x"}, "source.path"),
        ({"git": "https://a.org/b", "path": "/x"}, "source.path"),
        ({"git": "https://a.org/b", "path": "a/../../b"}, "source.path"),
        ({"git": "https://a.org/b", "path": "a\\b"}, "source.path"),
        ({"git": "https://a.org/b", "path": "a\nb"}, "source.path"),
        ({"git": "https://a.org/b", "depth": 1}, "source.depth"),
    ],
    ids=str,
)
def test_what_a_source_may_not_be(source: dict[str, object], place: str) -> None:
    found = faults({**LEAST, "source": source})
    assert list(found) == [place]
    assert "secret" not in str(found)


@pytest.mark.parametrize(
    "url",
    [
        "https://forge.example.org/a/b.git",
        "http://127.0.0.1:8080/a",
        "ssh://git@forge.example.org/a/b",
        "ssh://git@forge.example.org:2222/a/b",
        "git://forge.example.org/a",
        "https://forge.example.org/a@b/c:d",
    ],
)
def test_what_a_source_may_be(url: str) -> None:
    assert parse_manifest({**LEAST, "source": {"git": url}}).source.git == url


@pytest.mark.parametrize(
    ("slot", "place"),
    [
        ({"start": "2026-10-12T09:00"}, "timetable.sessions.0.end"),
        ({"start": "soon", "end": "2026-10-12T10:00"}, "timetable.sessions.0.start"),
        ({"start": "2026-10-12T09:00", "end": "2026-10-12T09:00"}, "timetable.sessions.0"),
        ({"start": "2026-10-12T09:00", "end": "2026-10-14T09:00"}, "timetable.sessions.0"),
        ({"start": "2026-10-12T09:00", "end": "2026-10-12T10:00Z"}, "timetable.sessions.0"),
        (
            {"start": "2026-10-12T09:00", "end": "2026-10-12T10:00", "weekly_until": "2026-10-11"},
            "timetable.sessions.0",
        ),
        (
            {"start": "2026-10-12T09:00", "end": "2026-10-12T10:00", "weekly_until": "2028-10-11"},
            "timetable.sessions.0",
        ),
        (
            {"start": "2026-10-12T09:00", "end": "2026-10-12T10:00", "seats": -1},
            "timetable.sessions.0.seats",
        ),
        (
            {"start": "2026-10-12T09:00", "end": "2026-10-12T10:00", "title": "x" * 101},
            "timetable.sessions.0.title",
        ),
        (
            {"start": "2026-10-12T09:00", "end": "2026-10-12T10:00", "room": "A1"},
            "timetable.sessions.0.room",
        ),
    ],
    ids=str,
)
def test_what_a_session_may_not_be(slot: dict[str, object], place: str) -> None:
    assert list(faults({**LEAST, "timetable": {"sessions": [slot]}})) == [place]


def test_more_sessions_than_a_timetable_has_are_refused() -> None:
    slot = {"start": "2026-10-12T09:00", "end": "2026-10-12T10:00"}
    parse_manifest({**LEAST, "timetable": {"sessions": [slot] * 400}})
    assert list(faults({**LEAST, "timetable": {"sessions": [slot] * 401}})) == [
        "timetable.sessions"
    ]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"- a",
        b"name",
        b"\xff",
        b"a: [",
        b"a: !!python/object/apply:os.system [id]",
        b"a: &a [*a]\nb: *a",
        b"? {a: 1}\n: 2",
        b"a: \x00",
        b"{" * 5000,
        b"[" * 100_000,
        b"x" * (MAX_MANIFEST_BYTES + 1),
        # Each line ten times the one before: nothing is copied out.
        b"a: &a [x,x,x,x,x,x,x,x,x,x]\n"
        + b"".join(
            f"{chr(98 + n)}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 10)}]\n".encode()
            for n in range(9)
        ),
        b"name: cv\ntitle: T\nsource: {git: 2026-10-12}\n",
        b"name: cv\ntitle: T\nsource: {git: https://a.org}\n1: x\n",
        b"name: cv\ntitle: T\nsource: {git: https://a.org}\ntimetable: {sessions: {}}\n",
    ],
    ids=range(16),
)
def test_what_is_no_manifest_is_refused_in_a_sentence_and_soon(text: bytes) -> None:
    began = time.process_time()
    with pytest.raises(BadRequest) as refused:
        read_manifest(text)
    said = refused.value
    assert time.process_time() - began < 3
    assert said.public_message.startswith("The course's manifest is not usable: ")
    assert said.faults
    assert all(fault.isprintable() and len(fault) < 500 for fault in said.faults)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)
_KEYS = st.sampled_from(sorted(Manifest.model_fields))


@given(st.dictionaries(_KEYS, _JSON, max_size=6))
@settings(max_examples=examples(300), deadline=None)
def test_whatever_comes_is_a_manifest_or_refused_with_its_faults(said: dict[str, Any]) -> None:
    try:
        one = parse_manifest({**LEAST, **said})
    except BadRequest as error:
        refused = error
    else:
        assert parse_manifest(one.as_json()) == one
        return
    assert refused.faults
    assert refused.public_message.isprintable()


@pytest.mark.parametrize(
    ("path", "is_inside"),
    [
        ("a", True),
        ("a/b.ipynb", True),
        ("a b/ä.ipynb", True),
        ("..a/b..", True),
        ("", True),
        ("..", False),
        ("a/../b", False),
        ("./a", False),
        ("/a", False),
        ("~/a", False),
        ("~root", False),
        ("a\\..\\b", False),
        ("a\nb", False),
        ("a\0b", False),
        ("a\u202eb", False),
    ],
)
def test_a_path_inside_a_course(path: str, is_inside: bool) -> None:
    assert (why_outside(path) == "") is is_inside


# -- whose course it is --------------------------------------------------------------------------


def course(name: str = "cv", title: str = "T", **members: object) -> Course:
    return Course(
        "lab", name, parse_manifest({**LEAST, "name": name, "title": title, "members": members})
    )


@pytest.mark.parametrize(
    ("user", "groups", "belongs", "teaches"),
    [
        ("ana", (), True, False),
        ("bo", ("cv",), True, False),
        ("bo", ("cv2", "CV"), False, False),
        ("zoe", (), True, True),
        ("eve", (), False, False),
        ("", (), False, False),
        (SMOKER, (), True, False),
    ],
    ids=["by name", "by group", "by no group", "staff", "nobody", "no name", "the smoke test"],
)
def test_who_belongs_to_a_course(
    user: str, groups: tuple[str, ...], belongs: bool, teaches: bool
) -> None:
    one = course(users=["ana"], groups=["cv"], staff=["zoe"])
    assert is_member(one.manifest, user, groups) is belongs
    assert is_staff(one.manifest, user) is teaches


def test_a_course_of_nobody_is_nobodys() -> None:
    assert not is_member(course().manifest, "ana", ("cv",))


def test_somebodys_courses_are_told_by_title() -> None:
    every = [
        course("b", "zebras", users=["ana"]),
        course("a", "Ants", groups=["g"]),
        course("c", "Bees"),
    ]
    assert [one.name for one in courses_of(every, "ana", ("g",))] == ["a", "b"]


def test_a_look_as_a_student_is_staffs_alone() -> None:
    every = [course("cv", staff=["zoe"]), course("cv-2", staff=["zoe"], users=["ana"])]
    assert tried_course(every, "zoe", try_name("cv-2")) is every[1]
    assert tried_course(every, "ana", try_name("cv-2")) is None
    assert tried_course(every, "zoe", "cv-2") is None
    assert len(try_name("a" * 25)) <= 30, "what JupyterHub allows a server's name"


def test_volumes_of_two_courses_never_meet() -> None:
    names = ["cv", "cv-next", "cv-2"]
    every = [volume for name in names for volume in volumes_of("lab", name)]
    assert len(set(every)) == len(every)


def test_a_step_comes_back_as_it_was_kept() -> None:
    step = Step("check", "warned", "Two findings.", 1.5, ("a", "b"))
    assert Step.from_json(step.as_json()) == step
    assert Step.from_json({"name": "fetch"}) == Step("fetch")
    assert replace(step, notes=()).as_json()["notes"] == []
