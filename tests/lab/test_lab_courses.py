"""``api/courses`` and ``go/...``: whose, manifests, versions, tasks, students, deep links."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import pytest_asyncio
import yaml
from lab_fakes import ENTER, HUB
from lab_seed import (
    CALENDAR,
    COURSE,
    NEW,
    OLD,
    OTHER,
    Prepared,
    add_roles,
    preload,
    report,
)
from lab_site import Answer, Site, run_site
from yarl import URL

from pytorch_spawner.core.course_text import parse_manifest
from pytorch_spawner.lab.answers import courses as answers

BASE = "api/courses/cv"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return Prepared(tmp_path_factory.mktemp("seeded"))


@pytest_asyncio.fixture
async def site(prepared: Prepared, tmp_path: Path) -> AsyncIterator[Site]:
    ledger = prepared.copy(tmp_path)
    async for running in run_site(ledger):
        add_roles(running.hub)
        running.hub.people = {"ana": ["vision"], "bo": [], "gus": ["vision"], "ida": ["vision"]}
        yield running
    ledger.close()


async def course(site: Site, name: str = "cv", token: str = "admin") -> dict[str, Any]:
    return dict((await site.get(f"api/courses/{name}", token=token)).json["course"])


async def add(site: Site, said: Any, token: str = "instructor") -> Answer:
    return await site.send("POST", "api/courses", said, token=token)


# -- whose -----------------------------------------------------------------------------------------


async def test_everybody_is_told_of_their_own_courses_alone(site: Site) -> None:
    said = (await site.get("api/courses", token="instructor")).json
    assert [one["name"] for one in said["courses"]] == ["cv"]
    said = (await site.get("api/courses", token="admin")).json
    assert [one["name"] for one in said["courses"]] == ["busy", "cv", "nlp"]
    assert said["mine"] == []
    said = (await site.get("api/courses", token="ana-page")).json
    assert said["courses"] == []
    assert said["mine"] == [
        {
            "name": "cv",
            "title": "Computer vision",
            "folder": "cv",
            "next_session": None,
            "link": "/services/lab/go/cv/",
            "is_staff": False,
        }
    ]
    answers.Courses.model_validate(said)


async def test_a_group_of_the_hub_makes_somebody_a_member(site: Site) -> None:
    site.hub.add("gus-page", "gus", ENTER)
    assert (await site.get("api/courses", token="gus-page")).json["mine"] == []
    site.hub.add("gus-now", "gus", ENTER)
    site.hub.models["gus-now"]["groups"] = ["vision"]
    said = (await site.get("api/courses", token="gus-now")).json
    assert [one["name"] for one in said["mine"]] == ["cv"]


async def test_a_service_that_is_named_like_staff_looks_after_nothing(site: Site) -> None:
    site.hub.add("bot", "ida", ENTER, "custom:lab:instruct", kind="service")
    said = (await site.get("api/courses", token="bot")).json
    assert (said["courses"], said["mine"]) == ([], [])
    assert (await site.get(BASE, token="bot")).status == 404


@pytest.mark.parametrize(
    "write",
    [
        "GET",
        "PUT",
        "DELETE",
        "GET manifest",
        "GET students",
        "POST preload",
        "POST publish",
        "POST stop",
        "POST reset",
        "POST timetable",
    ],
)
async def test_anothers_course_is_answered_like_one_that_is_not_there(
    site: Site, write: str
) -> None:
    method, _, action = write.partition(" ")
    before = site.ledger.courses(HUB)
    body = {"": OTHER, "reset": {"user": "bo", "path": "a"}, "timetable": {"ics": CALENDAR}}
    texts = []
    for name in ("nlp", "none"):
        path = f"api/courses/{name}/{action}".rstrip("/")
        said = None if method == "GET" else body.get(action, {})
        answer = await (
            site.get(path, token="instructor")
            if said is None
            else site.send(method, path, said, token="instructor")
        )
        assert (answer.status, answer.code) == (404, "no-such-course")
        texts.append(answer.text)
    assert texts[0] == texts[1]
    assert site.ledger.courses(HUB) == before


# -- manifests -------------------------------------------------------------------------------------


async def test_who_adds_a_course_looks_after_it(site: Site) -> None:
    said = {**COURSE, "name": "dl", "members": {"users": ["ana"]}}
    answer = await add(site, said)
    assert answer.status == 201, answer.text
    made = answers.CourseChanged.model_validate(answer.json).course
    assert (made.staff, made.by, made.verdict) == (["ida"], "ida", "bad")
    assert made.sentence.startswith("Not ready: it was never preloaded.")
    assert [step.state for step in made.steps] == ["waiting"] * 5
    answer = await add(site, {**said, "name": "dl-2"}, token="admin")
    assert answer.json["course"]["staff"] == []
    assert site.ledger.changes(HUB, 1)[0].what == "course"


async def test_a_course_of_a_name_that_is_taken_changes_nothing(site: Site) -> None:
    answer = await add(site, {**OTHER, "title": "Mine now"})
    assert (answer.status, answer.json["problems"][0]["field"]) == (400, "name")
    assert site.ledger.course(HUB, "nlp").manifest.title == "Language"


async def test_the_text_goes_round_without_a_loss(site: Site) -> None:
    said = {
        **COURSE,
        "name": "dl",
        "title": "Tiefes Lernen — ü",
        "environment": {"HF_HOME": "/data/hf: #1", "YES": "yes"},
        "timetable": {
            "timezone": "Europe/Berlin",
            "sessions": [
                {"start": "2027-03-02T09:00:00", "end": "2027-03-02T11:00:00", "seats": 30}
            ],
        },
        "smoke": {"notebooks": ["week 1/cnn.ipynb"]},
    }
    answer = await add(site, {"yaml": yaml.safe_dump(said, allow_unicode=True)})
    assert answer.status == 201, answer.text
    text = await site.get("api/courses/dl/manifest", token="instructor")
    assert text.headers["Content-Type"] == "application/yaml; charset=utf-8"
    kept = site.ledger.course(HUB, "dl").manifest
    assert kept == parse_manifest(said)
    etag = text.headers["Etag"]
    answer = await site.send(
        "PUT", "api/courses/dl", {"yaml": text.text}, token="instructor", If_Match=etag
    )
    assert answer.status == 200, answer.text
    assert site.ledger.course(HUB, "dl").manifest == kept


FAULTS = [
    ("name: Dl\ntitle: T\nsource: {git: 'https://f.example/x'}\n", "name", 1),
    ("name: dl\nsource:\n  git: https://f.example/x\n", "title", None),
    ("name: dl\ntitle: T\nsource:\n  git: file:///etc\n", "source.git", 4),
    ("name: dl\ntitle: T\nsource:\n  git: https://me:pw@f.example/x\n", "source.git", 4),
    ("name: dl\ntitle: T\nsource: {git: 'https://f.example/x', path: ../..}\n", "source.path", 3),
    ("name: dl\ntitle: T\ncolour: red\nsource: {git: 'https://f.example/x'}\n", "colour", 3),
    ("name: dl\ntitle: 'T\n", "course.yaml", 3),
    ("- a\n- b\n", "course.yaml", None),
    ("name: schema\ntitle: T\nsource: {git: 'https://f.example/x'}\n", "name", 1),
    ("name: dl\ntitle: \"a\\u202eb\"\nsource: {git: 'https://f.example/x'}\n", "title", 2),
    ("name: dl\ntitle: T\nsource: {git: 'https://f.example/x'}\nwarmup: {a: .nan}", "warmup", 4),
    (
        "name: dl\ntitle: T\nsource: {git: 'https://f.example/x'}\nwarmup: {a: 2020-01-01}",
        "warmup",
        4,
    ),
]


@pytest.mark.parametrize(("text", "field", "row"), FAULTS, ids=[repr(one[0]) for one in FAULTS])
async def test_a_fault_of_a_manifest_is_told_with_its_field_and_line(
    site: Site, text: str, field: str, row: int | None
) -> None:
    before = site.ledger.courses(HUB)
    answer = await add(site, {"yaml": text})
    assert (answer.status, answer.code) == (400, "bad-request"), answer.text
    (problem,) = answer.json["problems"]
    assert (problem["field"].partition(".warm")[0], problem["row"]) == (field, row)
    assert problem["message"]
    assert site.ledger.courses(HUB) == before


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"[]",
        b'{"yaml": 5}',
        b'{"yaml": "name: a", "example": true}',
        b'{"example": false}',
        b'{"yaml": "a: &a [*a]"}',
        b'{"name": "a\\u0000b"}',
        b'{"yaml": "\\ud800"}',
        b'{"warmup": ' + b'{"a": ' * 200 + b"1" + b"}" * 201,
        json.dumps({"yaml": "x" * 300_000}).encode(),
    ],
    ids=lambda said: repr(said[:30]),
)
async def test_a_body_that_is_no_course_is_refused(site: Site, said: bytes) -> None:
    answer = await add(site, said)
    assert (answer.status, answer.code) == (400, "bad-request"), answer.text


async def test_a_deep_warm_up_is_refused(site: Site) -> None:
    warmup: dict[str, Any] = {}
    for _ in range(50):
        warmup = {"a": warmup}
    answer = await add(site, {**COURSE, "name": "deep", "warmup": warmup})
    assert (answer.status, answer.json["problems"][0]["field"]) == (400, "warmup")


async def test_the_name_stays(site: Site) -> None:
    answer = await site.send("PUT", BASE, {**COURSE, "name": "nlp"}, token="admin")
    assert answer.json["problems"][0]["field"] == "name"
    answer = await site.send("PUT", BASE, {"example": True}, token="admin")
    assert answer.status == 400
    assert site.ledger.course(HUB, "nlp").manifest.title == "Language"


async def test_a_course_is_never_left_without_staff_by_its_staff(site: Site) -> None:
    alone = {**COURSE, "members": {"users": ["ana"]}}
    answer = await site.send("PUT", BASE, alone, token="instructor")
    assert (answer.status, answer.json["problems"][0]["field"]) == (400, "members.staff")
    given_away = {**COURSE, "members": {"staff": ["zoe"]}}
    answer = await site.send("PUT", BASE, given_away, token="instructor")
    assert (answer.status, answer.json["course"]) == (200, None)
    assert (await site.get(BASE, token="instructor")).status == 404
    assert (await site.send("PUT", BASE, alone, token="admin")).status == 200


@pytest.mark.parametrize("write", ["PUT", "DELETE", "POST timetable"])
async def test_a_change_to_a_manifest_that_was_not_seen_is_refused(site: Site, write: str) -> None:
    method, _, action = write.partition(" ")
    path = f"{BASE}/{action}".rstrip("/")
    body = {"ics": CALENDAR} if action else {**COURSE, "title": "Mine"}
    seen = (await course(site))["etag"]
    answer = await site.send(method, path, body, If_Match="")
    assert (answer.status, answer.code) == (428, "version-needed")
    site.ledger.save_course(HUB, parse_manifest({**COURSE, "title": "Theirs"}), "kim")
    answer = await site.send(method, path, body, If_Match=f'"{seen}"')
    assert (answer.status, answer.code) == (409, "changed-meanwhile")
    assert "changed meanwhile, by kim" in answer.json["message"]
    assert "title: Theirs" in answer.json["now"]["yaml"]
    assert site.ledger.course(HUB, "cv").manifest.title == "Theirs"
    fresh = answer.json["now"]["etag"]
    assert (await site.send(method, path, body, If_Match=f'"{fresh}"')).status == 200


async def test_how_far_a_preload_is_makes_no_new_version_of_the_manifest(site: Site) -> None:
    seen = (await course(site))["etag"]
    preload(site.ledger, "d" * 40)
    assert (await course(site))["etag"] == seen


async def test_only_what_a_preload_depends_on_asks_for_another(site: Site) -> None:
    harmless = {**COURSE, "title": "Vision", "members": {"staff": ["ida"], "users": ["bo"]}}
    site.ledger.save_course(HUB, parse_manifest(harmless), "ida")
    assert (await course(site))["sentence"].startswith("Students have 4f1c2a7d; b7e09931")
    site.ledger.save_course(HUB, parse_manifest({**harmless, "image": "lab/other:1"}), "ida")
    site.ledger.save_course(HUB, parse_manifest({**harmless, "image": "lab/third:1"}), "ida")
    assert "preload it again" in (await course(site))["sentence"]
    preload(site.ledger, NEW)
    assert "preload it again" not in (await course(site))["sentence"]


async def test_a_removed_course_is_gone_and_its_log_stays(site: Site) -> None:
    answer = await site.send("DELETE", BASE, token="instructor")
    assert answer.json["removed"] == "cv"
    assert answer.json["change"] == site.ledger.changes(HUB, 1)[0].id
    assert (await site.send("DELETE", BASE)).status == 404
    assert site.ledger.students(HUB, "cv") == ()


async def test_a_removed_courses_name_is_not_anothers_while_servers_have_its_files(
    site: Site,
) -> None:
    await site.send("DELETE", BASE, token="instructor")
    site.hub.add("eve-page", "eve", ENTER, "custom:lab:instruct")
    answer = await add(site, COURSE, "eve-page")
    assert (answer.status, "Take another name, or wait." in answer.text) == (400, True)
    assert site.ledger.course(HUB, "cv") is None
    answer = await add(site, COURSE)
    assert (answer.status, answer.json["course"]["name"]) == (201, "cv")


async def test_the_example_is_added_with_whoever_asks_as_staff(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = "pytorch_spawner.lab.course_example.courses_dir"
    monkeypatch.setattr(where, lambda: tmp_path)
    answer = await add(site, {"example": True})
    assert (answer.status, "is not installed here" in answer.json["message"]) == (400, True)
    (tmp_path / "example").mkdir()
    text = "name: example\ntitle: An example\nsource: {git: 'https://f.example/x', path: nb}\n"
    (tmp_path / "example" / "course.yaml").write_text(text)
    assert (await add(site, {"example": True})).json["course"]["staff"] == ["ida"]
    answer = await add(site, {"example": True}, token="admin")
    assert (answer.json["course"]["name"], answer.json["course"]["staff"]) == (
        "example-2",
        ["adam"],
    )
    source = site.ledger.course(HUB, "example").manifest.source
    assert (source.git, source.directory, source.path) == ("", f"{tmp_path}/example", "nb")


async def test_the_schema_is_that_of_the_manifest(site: Site) -> None:
    said = (await site.get("api/courses/schema", token="ana-page")).json
    assert said["required"] == ["name", "title", "source"]


# -- preload and publish ---------------------------------------------------------------------------


async def test_a_preload_is_asked_for_once_and_stopped(site: Site) -> None:
    answer = await site.send("POST", f"{BASE}/preload", token="instructor")
    assert (answer.json["course"]["task"], answer.json["course"]["task_by"]) == ("preload", "ida")
    assert answer.json["course"]["verdict"] == "wait"
    answer = await site.send("POST", f"{BASE}/preload", token="instructor")
    assert (answer.status, "done for this course already" in answer.text) == (400, True)
    answer = await site.send("POST", f"{BASE}/publish", token="instructor")
    assert (answer.status, "wait until it is over" in answer.text) == (400, True)
    assert (await site.send("POST", f"{BASE}/stop", token="instructor")).status == 200
    answer = await site.send("POST", f"{BASE}/stop", token="instructor")
    assert (answer.status, "Nothing is done" in answer.text) == (400, True)


async def test_only_the_commit_that_was_seen_is_published(site: Site) -> None:
    seen = (await course(site))["content_etag"]
    answer = await site.send("POST", f"{BASE}/publish", If_Match="")
    assert answer.status == 428
    preload(site.ledger, "d" * 40)
    answer = await site.send("POST", f"{BASE}/publish", If_Match=f'"{seen}"')
    assert (answer.status, answer.code) == (409, "changed-meanwhile")
    assert answer.json["now"]["candidate"]["commit"] == "d" * 40
    fresh = answer.json["now"]["content_etag"]
    answer = await site.send("POST", f"{BASE}/publish", If_Match=f'"{fresh}"')
    assert answer.json["sentence"].startswith("dddddddd goes out: running servers get it within")
    assert site.ledger.course(HUB, "cv").task == "publish"


async def test_nothing_is_published_twice_or_before_a_preload(site: Site) -> None:
    answer = await site.send("POST", "api/courses/nlp/publish")
    assert (answer.status, "preload the course first" in answer.text) == (400, True)
    site.ledger.publish_course(HUB, "cv", (NEW, f"served{NEW}"[:40]), "ida")
    answer = await site.send("POST", f"{BASE}/publish")
    assert (answer.status, "Students have b7e09931 already" in answer.text) == (400, True)


# -- students --------------------------------------------------------------------------------------


async def test_students_are_those_of_the_manifest_and_those_who_reported(site: Site) -> None:
    report(site.ledger, "eve", NEW, conflicts={"a": "b"}, level="warn")
    report(site.ledger, "old", "e" * 40)
    site.ledger.publish_course(HUB, "cv", (NEW, f"served{NEW}"[:40]), "ida")
    answer = await site.get(f"{BASE}/students", token="instructor")
    said = answers.CourseStudents.model_validate(answer.json)
    rows = [(one.user, one.state, one.is_member) for one in said.students]
    assert rows == [
        ("eve", "current", True),
        ("ana", "behind", True),
        ("old", "behind", False),
        ("gus", "never", True),
    ]
    counts = (await course(site))["students"]
    assert counts == {
        "total": 4, "current": 1, "behind": 2, "never": 1, "conflicts": 1, "failed": 0,
    }  # fmt: skip


async def test_without_the_hub_the_known_students_are_listed_and_it_is_said(site: Site) -> None:
    site.lab.directory._fresh_s = 0.0
    assert (await site.get(BASE, token="admin")).status == 200
    site.hub.people = {}
    site.hub.handlers()
    site.lab.directory._ask = lambda: (_ for _ in ()).throw(OSError("no route"))
    said = (await site.get(f"{BASE}/students", token="admin")).json
    assert [one["user"] for one in said["students"]] == ["ana", "eve"]
    assert "The hub does not say" in said["note"]


@pytest.mark.parametrize(
    ("said", "field"),
    [
        ({"user": "ana", "path": "../x"}, "path"),
        ({"user": "ana", "path": "/etc/passwd"}, "path"),
        ({"user": "ana", "path": "a\\b"}, "path"),
        ({"user": "ana", "path": "//"}, "path"),
        ({"user": "ana", "path": ""}, "path"),
        ({"user": "ana", "path": "a\u202eb"}, "path"),
        ({"user": "bo", "path": "a.ipynb"}, "user"),
        ({"user": "eve", "path": "a.ipynb"}, "user"),
        ({"user": "ana"}, "path"),
        ({"user": "ana", "path": "a", "how": "hard"}, "how"),
    ],
    ids=str,
)
async def test_a_reset_that_cannot_be_is_refused_with_its_field(
    site: Site, said: dict[str, Any], field: str
) -> None:
    answer = await site.send("POST", f"{BASE}/reset", said, token="instructor")
    assert (answer.status, answer.json["problems"][0]["field"]) == (400, field), answer.text
    assert site.ledger.orders(HUB, "cv") == ()


async def test_a_reset_is_an_order_that_the_list_shows(site: Site) -> None:
    said = {"user": "ana", "path": "week-1/cnn.ipynb"}
    answer = await site.send("POST", f"{BASE}/reset", said, token="instructor")
    assert (answer.status, answer.json["order"]["by"]) == (202, "ida")
    assert "A backup is kept" in answer.json["sentence"]
    rows = (await site.get(f"{BASE}/students", token="instructor")).json["students"]
    (ana,) = [row for row in rows if row["user"] == "ana"]
    assert [order["path"] for order in ana["orders"]] == ["week-1/cnn.ipynb"]


# -- the timetable ---------------------------------------------------------------------------------


async def test_a_calendar_takes_the_place_of_the_timetable(site: Site) -> None:
    said = {"ics": CALENDAR, "seats": 20}
    answer = await site.send("POST", f"{BASE}/timetable", said, token="instructor")
    assert answer.status == 200, answer.text
    taken = answers.TimetableTaken.model_validate(answer.json)
    assert taken.sentence == "The timetable has 1 session now."
    (session,) = taken.course.sessions
    assert (session.title, session.seats) == ("Laboratory", 20)
    assert session.ends_at - session.starts_at == 7200
    mine = (await site.get("api/courses", token="ana-page")).json["mine"][0]
    assert mine["next_session"]["title"] == "Laboratory"
    answer = await site.send("POST", f"{BASE}/timetable", {"ics": "BEGIN:NOTHING"})
    assert (answer.status, "The calendar cannot be used" in answer.text) == (400, True)
    assert len(site.ledger.course(HUB, "cv").manifest.timetable.sessions) == 1


async def test_a_timetable_that_asks_for_more_than_classes_may_have_says_so(site: Site) -> None:
    async def note(seats: int) -> str:
        said = {"ics": CALENDAR, "seats": seats}
        answer = await site.send("POST", f"{BASE}/timetable", said, token="instructor")
        taken = answers.TimetableTaken.model_validate(answer.json)
        assert (await course(site))["seats_note"] == taken.course.seats_note
        return taken.course.seats_note

    # The pool teaching has a whole GPU and four slots, the pool research one instance in service.
    assert await note(90) == "", "the hub has not said yet what classes may have"
    site.ledger.note_class_share(HUB, 0.5)
    assert await note(4) == ""
    said = await note(5)
    assert said.startswith("The session of ")
    assert said.endswith(
        ": it asks for 5 seats, and the lab keeps at most 4 of the 6 that there are for "
        "classes: the others queue. Ask an admin, who sets c.PyTorchSpawner.class_seats_share."
    )


# -- deep links ------------------------------------------------------------------------------------


def start(site: Site, user: str, name: str, *events: tuple[str, dict[str, Any]]) -> Any:
    request = {"image": "lab/base:1", "gpus": 0, "course": name}
    one = site.ledger.begin_start(HUB, user, "", request, ())
    site.ledger.append_events(one.id, list(events))
    return one


UP = ("start", {"stage": "lab", "message": "Ready."})
DONE = ("course", {"phase": "done", "course": "cv"})


async def test_a_link_to_a_running_server_opens_the_file(site: Site) -> None:
    start(site, "ana", "cv", UP, DONE)
    answer = await site.get("go/cv/week%201/cnn%23%3F.ipynb", token="ana-page")
    assert answer.status == 302
    assert answer.headers["Location"] == "/user/ana/lab/tree/cv/week%201/cnn%23%3F.ipynb"
    for path in ("go/cv", "go/cv/"):
        answer = await site.get(path, token="ana-page")
        assert answer.headers["Location"] == "/user/ana/lab/tree/cv"


@pytest.mark.parametrize("events", [(), (("start", {"stage": "queued"}),)])
async def test_a_link_starts_the_server_and_comes_back(site: Site, events: Any) -> None:
    if events:
        start(site, "ana", "cv", *events)
    else:
        site.ledger.end_start(site.ledger.latest_start(HUB, "ana", "").id, "stopped")
    answer = await site.get("go/cv/a%26b.ipynb", token="ana-page")
    assert answer.status == 302
    where = urlsplit(answer.headers["Location"])
    assert (where.netloc, where.path) == ("", "/hub/spawn/ana")
    assert parse_qs(where.query) == {
        "opt-course": ["cv"],
        "course": ["cv"],
        "next": ["/services/lab/go/cv/a%26b.ipynb?started=1"],
    }
    # Where the ledger does not know of the start: no circle.
    looks = 9 if events else 1
    answer = await site.get(f"go/cv/a%26b.ipynb?started={looks}", token="ana-page")
    assert answer.headers["Location"] == "/user/ana/lab/tree/cv/a%26b.ipynb"


async def test_a_link_waits_where_the_hub_is_ahead_of_the_journal(site: Site) -> None:
    """Sent on at once, JupyterLab says that there is no such file, and forgets the address."""
    start(site, "ana", "cv", ("start", {"stage": "container"}))
    for looks in range(1, 9):
        answer = await site.get(f"go/cv/a%26b.ipynb?started={looks}", token="ana-page")
        assert (answer.status, answer.headers["Refresh"]) == (
            200,
            f"2; url=/services/lab/go/cv/a%26b.ipynb?started={looks + 1}",
        )
    begun = site.ledger.latest_start(HUB, "ana", "")
    site.ledger.append_events(begun.id, [UP, DONE])
    answer = await site.get("go/cv/a%26b.ipynb?started=9", token="ana-page")
    assert answer.headers["Location"] == "/user/ana/lab/tree/cv/a%26b.ipynb"


BEGIN = ("course", {"phase": "begin", "course": "cv"})
FAILED = ("course", {"phase": "failed", "course": "cv"})
OTHERS = ("course", {"phase": "done", "course": "nlp"})


@pytest.mark.parametrize(
    ("events", "after_s", "is_waiting"),
    [
        ((UP, BEGIN), 50, True),
        ((UP, BEGIN), 61, False),
        ((UP,), 10, True),
        ((UP,), 16, False),
        ((UP, BEGIN, OTHERS), 10, True),
        ((UP, BEGIN, FAILED), 0, False),
        ((BEGIN, DONE), 0, False),
    ],
    ids=str,
)
async def test_a_link_waits_for_the_notebooks_but_not_for_ever(
    site: Site, monkeypatch: pytest.MonkeyPatch, events: Any, after_s: float, is_waiting: bool
) -> None:
    start(site, "ana", "cv", *events)
    now = site.ledger.now() + after_s
    monkeypatch.setattr(site.ledger, "now", lambda: now)
    answer = await site.get("go/cv/a.ipynb?started=1", token="ana-page")
    if is_waiting:
        assert (answer.status, answer.headers["Refresh"]) == (200, "2")
        assert "are being copied" in answer.text
    else:
        assert answer.headers["Location"] == "/user/ana/lab/tree/cv/a.ipynb"


async def test_nobody_waits_for_a_course_that_was_never_published(site: Site) -> None:
    site.hub.add("zoe-page", "zoe", ENTER)
    start(site, "zoe", "nlp", UP)
    answer = await site.get("go/nlp", token="zoe-page")
    assert answer.headers["Location"] == "/user/zoe/lab/tree/nlp"


@pytest.mark.parametrize(("name", "words"), [("", "without a course"), ("nlp", "Language")])
async def test_a_link_says_what_runs_instead(site: Site, name: str, words: str) -> None:
    start(site, "ana", name, UP)
    answer = await site.get("go/cv/a.ipynb", token="ana-page")
    assert answer.status == 200
    assert words in answer.text
    assert 'href="/hub/home"' in answer.text
    # Ana's copy of the course is in her home whatever runs.
    assert 'href="/user/ana/lab/tree/cv/a.ipynb"' in answer.text
    start(site, "ida", name, UP)
    answer = await site.get("go/cv/a.ipynb", token="instructor")
    assert "Open it there anyway" not in answer.text


async def test_who_is_no_member_is_told_who_can_add_them(site: Site) -> None:
    answer = await site.get("go/cv/a.ipynb", token="bo-page")
    assert answer.status == 403
    assert "You do not belong to the course &#34;Computer vision&#34;. ida can add" in answer.text
    members = {"users": ["ana"], "staff": ["ida", "<b>", "zoe"]}
    site.ledger.save_course(HUB, parse_manifest({**COURSE, "members": members}), "adam")
    answer = await site.get("go/cv", token="bo-page")
    assert "ida, &lt;b&gt; or zoe can add you." in answer.text
    assert (await site.get("go/none/a", token="bo-page")).status == 404


@pytest.mark.parametrize(
    "path",
    [
        "..%2F..%2Fetc",
        "%2e%2e/x",
        "a/../../b",
        "./a",
        "~/x",
        "a%5Cb",
        "a%0d%0aLocation:%20https:%2f%2fevil",
        "a%00b",
        "%E2%80%AEa",
    ],
)
async def test_a_path_out_of_the_course_leads_nowhere(site: Site, path: str) -> None:
    start(site, "ana", "cv", UP, DONE)
    # The client would shorten dots itself.
    async with site.http.get(
        URL(f"{site.url}go/cv/{path}", encoded=True),
        headers={"Authorization": "token ana-page"},
        allow_redirects=False,
    ) as answer:
        assert answer.status == 404, await answer.text()
        assert "Location" not in answer.headers


@pytest.mark.parametrize("path", ["/evil.example/x", "//evil.example", "https:%2F%2Fevil.example"])
async def test_a_link_never_leads_to_another_host(site: Site, path: str) -> None:
    start(site, "ana", "cv", UP, DONE)
    answer = await site.get(f"go/cv/{path}", token="ana-page")
    assert answer.status == 302
    where = urlsplit(answer.headers["Location"])
    assert (where.scheme, where.netloc) == ("", "")
    assert where.path.startswith("/user/ana/lab/tree/cv/")


async def test_who_is_not_logged_in_comes_back_to_the_link(site: Site) -> None:
    answer = await site.get("go/cv/a.ipynb", token="")
    assert answer.status == 302
    assert "oauth2/authorize" in answer.headers["Location"]


async def test_a_person_with_named_servers_finds_the_own_courses_at_home(site: Site) -> None:
    site.ledger.begin_start(HUB, "ana", "big", {"image": "lab/base:1"}, ())
    answer = await site.get("", token="ana-page")
    assert answer.status == 200
    assert '<a href="/services/lab/go/cv/">Computer vision</a>' in answer.text


async def test_the_commits_of_a_course_are_in_what_is_told(site: Site) -> None:
    said = answers.CourseInFull.model_validate(await course(site))
    assert (said.published.commit, said.candidate.commit) == (OLD, NEW)
    assert (said.candidate.is_new, said.candidate.says) == (True, "Week 3: attention")
    assert said.manifest["title"] == "Computer vision"
    assert [one.sentence for one in said.changes][-1] == "Added the course Computer vision (cv)."
