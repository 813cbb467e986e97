"""``api/caches``: asking, choosing, versions, and who may."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from lab_fakes import ENTER, HUB
from lab_seed import (
    CACHE_KEY,
    CURRENT,
    FAILED,
    FOREIGN,
    QUEUED,
    SUITE,
    Prepared,
    add_roles,
    ask_for_cache,
)
from lab_site import Site, run_site

from pytorch_spawner.core.suites import digest
from pytorch_spawner.core.warmcache import choose
from pytorch_spawner.lab import caches, paths
from pytorch_spawner.lab.answers import caches as answers
from pytorch_spawner.lab.courses import with_staff


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return Prepared(tmp_path_factory.mktemp("seeded"))


@pytest_asyncio.fixture
async def site(prepared: Prepared, tmp_path: Path) -> AsyncIterator[Site]:
    ledger = prepared.copy(tmp_path)
    async for running in run_site(ledger):
        add_roles(running.hub)
        running.hub.add("second", "kim", ENTER, "custom:lab:admin")
        yield running
    ledger.close()


async def rows(site: Site, token: str = "viewer") -> dict[str, Any]:
    answer = await site.get("api/caches", token=token)
    return {row["id"]: row for row in answer.json["caches"]}


def publish_second(site: Site) -> str:
    """Another cache of the same key, promoted later."""
    one = ask_for_cache(site.ledger)
    site.ledger.cancel_cache(HUB, QUEUED, "root")
    site.ledger.next_cache(HUB)
    site.ledger.note_cache(one.id, key=CACHE_KEY, state="published", size_bytes=5)
    site.ledger.promote_cache(HUB, one.id, "root")
    return str(one.id)


async def test_the_list_says_what_starts_are_given_and_holds_no_log(site: Site) -> None:
    found = await rows(site)
    assert list(found) == [QUEUED, FAILED, CURRENT, FOREIGN]
    one = found[CURRENT]
    assert (one["standing"], one["is_current"], one["where"]) == (
        "current",
        True,
        "NVIDIA H100 80GB HBM3, driver 580",
    )
    assert (one["cold_s"], one["warm_s"], one["hits"], one["size_bytes"]) == (
        41.04,
        3.21,
        8,
        12_345_678,
    )
    assert "log" not in one
    assert (found[QUEUED]["standing"], found[QUEUED]["where"]) == (
        "waits",
        "a GPU of the pool teaching",
    )
    assert found[FAILED]["message"] == "gpt at size 8 raised ValueError."
    answer = await site.get(f"api/caches/{CURRENT}", token="instructor")
    assert answer.json["cache"]["log"] == "compiled <b>gpt</b>\n"
    assert (await site.get("api/caches/nothing", token="viewer")).code == "no-such-cache"


async def test_a_suite_of_the_labs_is_asked_for_and_kept_whole(site: Site) -> None:
    said = {"suite": "example", "image": "lab/base:2", "course": "cv", "pool": "research"}
    answer = await site.send("POST", "api/caches", said, token="instructor")
    assert answer.status == 201, answer.text
    made = answers.CacheChanged.model_validate(answer.json).cache
    assert (made.state, made.by, made.course, made.pool, made.gpus) == (
        "queued",
        "ida",
        "cv",
        "research",
        1,
    )
    assert [target.name for target in made.suite.targets] == ["mlp", "cnn", "transformer"]
    assert site.ledger.changes(HUB, 1)[0].what == "cache"
    assert answer.json["change"] == site.ledger.changes(HUB, 1)[0].id


async def test_a_build_is_asked_for_again_as_it_was_or_with_another_image(site: Site) -> None:
    answer = await site.send("POST", "api/caches", {"again_of": FAILED})
    made = answer.json["cache"]
    assert (made["course"], made["image"], made["pool"]) == ("cv", "lab/base:1", "teaching")
    assert made["suite_digest"] == digest(SUITE)
    answer = await site.send(
        "POST", "api/caches", {"again_of": FAILED, "image": "lab/base:2", "gpus": 0, "pool": ""}
    )
    made = answer.json["cache"]
    assert (made["course"], made["image"], made["pool"], made["gpus"]) == (
        "cv",
        "lab/base:2",
        "",
        0,
    )


@pytest.mark.parametrize(
    ("said", "field", "words"),
    [
        ({"suite": "no", "image": "x"}, "suite", "the lab has no suite 'no'; it has "),
        ({"suite": "../setup", "image": "x"}, "suite", "the lab has no suite"),
        ({"again_of": "0" * 12}, "again_of", "there is no such build"),
        ({"suite": "example"}, "image", "no image reference"),
        ({"suite": "example", "image": "a b"}, "image", "no image reference"),
        ({"suite": "example", "image": "x", "pool": "y"}, "pool", "there is no pool 'y'"),
        ({"suite": "example", "image": "x", "pool": "research", "gpus": 0}, "pool", "in no pool"),
        ({"suite": "example", "image": "x", "gpus": 2}, "gpus", "at most 1"),
        ({"image": "x"}, "", "name either a suite"),
        ({"suite": "example", "again_of": FAILED}, "", "name either a suite"),
        ({"suite": "example", "image": "x", "colour": 1}, "colour", "unknown key"),
    ],
    ids=str,
)
async def test_what_cannot_be_built_is_said_with_its_field(
    site: Site, said: dict[str, Any], field: str, words: str
) -> None:
    before = len(await rows(site))
    answer = await site.send("POST", "api/caches", said)
    assert (answer.status, answer.code) == (400, "bad-request")
    problem = answer.json["problems"][0]
    assert problem["field"] == field
    assert words in problem["message"]
    assert len(await rows(site)) == before


async def test_promote_and_roll_back_say_what_starts_get_then(site: Site) -> None:
    second = publish_second(site)
    answer = await site.send("POST", f"api/caches/{second}/rollback", token="admin")
    assert answer.json["sentence"] == f"Starts that fit are given {CURRENT} now."
    assert choose(site.ledger.offered_caches(HUB), CACHE_KEY).id == CURRENT
    answer = await site.send("POST", f"api/caches/{second}/rollback")
    assert (answer.status, answer.json["message"]) == (
        400,
        f"Starts are not given {second} anyway.",
    )
    answer = await site.send("POST", f"api/caches/{second}/promote")
    assert answer.json["cache"]["is_current"]
    assert site.ledger.changes(HUB, 1)[0].by == "adam"
    undone = await site.send("POST", f"api/log/{answer.json['change']}/undo")
    assert undone.status == 200
    assert choose(site.ledger.offered_caches(HUB), CACHE_KEY).id == CURRENT
    answer = await site.send("POST", f"api/caches/{FAILED}/promote")
    assert "Only what was built and proved can be promoted" in answer.json["message"]


@pytest.mark.parametrize("write", ["POST promote", "POST rollback", "DELETE"])
async def test_a_change_to_what_was_not_seen_is_refused(site: Site, write: str) -> None:
    method, _, action = write.partition(" ")
    path = f"api/caches/{CURRENT}/{action}".rstrip("/")
    seen = (await rows(site))[CURRENT]["etag"]
    answer = await site.send(method, path, If_Match="")
    assert (answer.status, answer.code) == (428, "version-needed")
    site.ledger.promote_cache(HUB, CURRENT, "kim")
    answer = await site.send(method, path, If_Match=f'"{seen}"')
    assert (answer.status, answer.code) == (409, "changed-meanwhile")
    assert "changed meanwhile, by kim" in answer.json["message"]
    assert answer.json["now"]["is_current"]
    assert site.ledger.changes(HUB, 1)[0].by == "kim"
    fresh = (await rows(site))[CURRENT]["etag"]
    assert (await site.send(method, path, If_Match=f'"{fresh}"')).status == 200


async def test_how_far_a_build_is_makes_no_new_version(site: Site) -> None:
    seen = (await rows(site))[CURRENT]["etag"]
    site.ledger.use_cache(CURRENT)
    assert (await rows(site))[CURRENT]["etag"] == seen


async def test_a_build_is_stopped_and_one_that_is_over_is_not(site: Site) -> None:
    answer = await site.send("POST", f"api/caches/{QUEUED}/stop", token="instructor")
    assert (answer.json["cache"]["state"], answer.json["cache"]["message"]) == (
        "failed",
        "ida stopped it before it began.",
    )
    answer = await site.send("POST", f"api/caches/{QUEUED}/stop")
    assert (answer.status, answer.json["message"]) == (400, f"{QUEUED} is over: it is failed.")


async def test_removing_is_refused_while_it_runs_and_done_once(site: Site) -> None:
    answer = await site.send("DELETE", f"api/caches/{QUEUED}")
    assert (answer.status, "stop it first" in answer.json["message"]) == (400, True)
    answer = await site.send("DELETE", f"api/caches/{CURRENT}")
    assert answer.json["removed"] == CURRENT
    assert site.ledger.offered_caches(HUB) == ()
    answer = await site.send("DELETE", f"api/caches/{CURRENT}")
    assert (answer.status, "gone already" in answer.json["message"]) == (400, True)


async def test_the_choices_are_what_the_lab_has(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = tmp_path / "suites" / "bad"
    bad.mkdir(parents=True)
    (bad / "suite.yaml").write_text("name: bad")
    good = tmp_path / "suites" / "good"
    good.mkdir()
    for path, content in SUITE.items():
        (good / path).write_bytes(content)
    monkeypatch.setattr(caches, "suites_dir", lambda: tmp_path / "suites")
    answer = await site.get("api/caches/choices", token="instructor")
    said = answers.CacheChoices.model_validate(answer.json)
    assert [(one.name, one.targets) for one in said.suites] == [("bad", []), ("good", ["gpt"])]
    assert "targets: it is missing" in said.suites[0].fault
    assert (said.images, said.courses) == (["lab/base:1"], ["cv"])
    answer = await site.get("api/caches/choices", token="admin")
    assert answer.json["courses"] == ["busy", "cv", "nlp"]
    assert (said.pools, said.gpus) == (["teaching", "research"], 5)
    answer = await site.send("POST", "api/caches", {"suite": "bad", "image": "x"})
    assert (answer.status, answer.json["problems"][0]["field"]) == (400, "targets")


def test_the_example_suite_is_found() -> None:
    assert (paths.suites_dir() / "example" / "suite.yaml").is_file()


async def test_an_instructor_sees_the_caches_of_their_courses_and_of_all(site: Site) -> None:
    assert list(await rows(site, "instructor")) == [QUEUED, FAILED, CURRENT]
    assert (await site.get(f"api/caches/{FOREIGN}", token="instructor")).code == "no-such-cache"
    site.ledger.save_course(HUB, with_staff(site.ledger.course(HUB, "nlp").manifest, "ida"), "adam")
    assert list(await rows(site, "instructor")) == [QUEUED, FAILED, CURRENT, FOREIGN]
    # Who is named, but is no instructor (any more), sees nothing.
    site.hub.add("was", "ida", ENTER)
    assert (await site.get("api/caches", token="was")).status == 403


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "api/caches", {"suite": "example", "image": "x", "course": "nlp"}, 403),
        ("POST", "api/caches", {"suite": "example", "image": "x", "course": "none"}, 403),
        ("POST", "api/caches", {"again_of": QUEUED, "course": "nlp"}, 403),
        ("POST", "api/caches", {"again_of": FOREIGN, "course": "cv"}, 400),
        ("POST", f"api/caches/{FOREIGN}/promote", None, 404),
        ("POST", f"api/caches/{FOREIGN}/rollback", None, 404),
        ("POST", f"api/caches/{FOREIGN}/stop", None, 404),
        ("DELETE", f"api/caches/{FOREIGN}", None, 404),
    ],
    ids=str,
)
async def test_what_another_course_is_given_is_not_an_instructors_to_decide(
    site: Site, method: str, path: str, body: dict[str, str] | None, status: int
) -> None:
    before = site.lab.ledger.caches(HUB)
    answer = await site.send(method, path, body, token="instructor")
    assert answer.status == status, answer.text
    assert "zoe" not in answer.text
    assert site.lab.ledger.caches(HUB) == before


async def test_an_instructor_sees_this_page_and_that_of_courses_alone(site: Site) -> None:
    page = await site.get("caches", token="instructor")
    assert page.status == 200
    assert "Warm caches" in page.text
    assert "Courses" in page.text
    assert "Who gets what" not in page.text
    assert (await site.get("gpus", token="instructor")).status == 403
    page = await site.get("caches", token="viewer")
    assert "Who gets what" in page.text


async def test_what_is_said_in_the_log_is_a_sentence(site: Site) -> None:
    site.ledger.retire_cache(HUB, CURRENT, "ida")
    site.ledger.remove_cache(HUB, FAILED, "ida")
    site.ledger.cancel_cache(HUB, QUEUED, "ida")
    log = (await site.get("api/log?search=cache", token="viewer")).json["rows"]
    said = [(row["sentence"], row["can_undo"]) for row in log]
    assert said == [
        (f"Stopped the build of the warm cache gpt ({QUEUED}) for the course cv.", False),
        (f"Removed the warm cache gpt ({FAILED}) for the course cv.", False),
        (f"Rolled the warm cache gpt ({CURRENT}) back: starts are not given it any more.", True),
        (
            f"Asked for a warm cache: gpt ({QUEUED}) for the course cv, with lab/base:1 on a GPU "
            "of teaching.",
            False,
        ),
        (
            f"Asked for a warm cache: gpt ({FAILED}) for the course cv, with lab/base:1 on a GPU "
            "of teaching.",
            False,
        ),
        (f"Promoted the warm cache gpt ({CURRENT}): starts that fit are given it.", True),
        (
            f"Asked for a warm cache: gpt ({CURRENT}), with lab/base:1 on a GPU of teaching.",
            False,
        ),
        (
            f"Asked for a warm cache: gpt ({FOREIGN}) for the course nlp, with lab/base:1 on a GPU "
            "of teaching.",
            False,
        ),
    ]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "api/caches", {"suite": "example", "image": "lab/base:1"}),
        ("POST", "api/caches", {"again_of": CURRENT}),
        ("POST", f"api/caches/{CURRENT}/rollback", None),
        ("DELETE", f"api/caches/{CURRENT}", None),
    ],
)
async def test_what_every_course_is_given_is_not_an_instructors_to_decide(
    site: Site, method: str, path: str, body: dict[str, str] | None
) -> None:
    before = site.lab.ledger.caches("test")
    answer = await site.send(method, path, body, token="instructor")
    assert answer.status in (403, 428), answer.text
    if body is not None:
        assert "an admin's to decide" in answer.json["message"]
    assert site.lab.ledger.caches("test") == before
