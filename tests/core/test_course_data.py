"""Which course, and whose start, gets a data set of the site."""

from __future__ import annotations

from typing import Any

import pytest

from pytorch_spawner.core.course_data import DataSet, mounts, parse
from pytorch_spawner.core.courses import SMOKER

OFFERED = parse(
    {
        "cifar": "/srv/cifar",
        "scans": {"source": "/srv/scans", "courses": ["radiology"]},
        "letters": {"source": "letters-volume", "groups": ["ethics", "archive"]},
        "faces": {"source": "/srv/faces", "courses": ["cv"], "groups": ["ethics"]},
        "sealed": {"source": "/srv/sealed", "courses": []},
    }
)


def test_a_path_alone_is_for_every_course_and_a_mapping_says_who_may() -> None:
    assert OFFERED["cifar"] == DataSet("cifar", "/srv/cifar")
    assert OFFERED["scans"] == DataSet("scans", "/srv/scans", courses=("radiology",))
    assert OFFERED["faces"] == DataSet("faces", "/srv/faces", ("cv",), ("ethics",))
    assert parse({"a": {"source": "/a"}}) == parse({"a": "/a"})


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"a": 7}, "a: a path or a volume's name, or a mapping with source"),
        ({"a": ""}, "a: source is the path or the volume's name, and is needed"),
        ({"a": {}}, "a: source is the path or the volume's name, and is needed"),
        ({"a": {"source": "/a", "course": ["cv"]}}, "a: there is no key 'course'; there are"),
        ({"a": {"source": "/a", "courses": "cv"}}, "a: courses is a list of names"),
        ({"a": {"source": "/a", "groups": [1]}}, "a: groups is a list of names"),
    ],
    ids=[
        "a number",
        "an empty path",
        "a mapping without a source",
        "a typo, which would open it to everybody",
        "a text, which would be the courses c and v",
        "a group that is no name",
    ],
)
def test_a_setting_that_is_not_of_its_form_is_refused(said: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=r"^a: ") as refused:
        parse(said)
    assert str(refused.value).startswith(why)


@pytest.mark.parametrize(
    ("name", "course", "username", "groups", "source"),
    [
        ("cifar", "any", "ana", [], "/srv/cifar"),
        ("scans", "radiology", "ana", [], "/srv/scans"),
        ("scans", "cv", "ana", [], ""),
        ("letters", "any", "ana", ["archive", "cv"], "letters-volume"),
        ("letters", "any", "ana", ["cv"], ""),
        ("letters", "any", SMOKER, [], ""),
        ("letters", "any", SMOKER, ["ethics"], "letters-volume"),
        ("faces", "cv", "ana", ["ethics"], "/srv/faces"),
        ("faces", "cv", "ana", ["cv"], ""),
        ("faces", "nlp", "ana", ["ethics"], ""),
        ("sealed", "cv", "ana", ["ethics"], ""),
        ("nothing", "cv", "ana", [], ""),
    ],
    ids=[
        "for all courses",
        "for this one",
        "for another one",
        "in one of the groups",
        "in another group, whatever the manifest calls its members",
        "a smoke test is in no group by itself",
        "but an admin may put it into one",
        "both the course and the group",
        "the course alone",
        "the group alone",
        "for no course at all",
        "which the lab does not have",
    ],
)
def test_who_gets_a_data_set(
    name: str, course: str, username: str, groups: list[str], source: str
) -> None:
    found, refused = mounts({name: "/data/x"}, OFFERED, course, username, groups)
    assert found == ({source: "/data/x"} if source else {})
    assert len(refused) == (0 if source else 1)
    assert all(name in one and one.endswith(".") for one in refused)


@pytest.mark.parametrize(
    ("name", "username", "sentence"),
    [
        (
            "nothing",
            "ana",
            "The data set nothing is not here: the lab does not offer it. An admin adds it to "
            "c.PyTorchSpawner.course_data, or whoever teaches takes it out of the manifest's data.",
        ),
        (
            "scans",
            "ana",
            "The data set scans is not here: the lab does not give it to the course cv. An admin "
            "adds cv to its courses in c.PyTorchSpawner.course_data.",
        ),
        (
            "letters",
            "ana",
            "The data set letters is not here: it is for members of the groups ethics, archive "
            "alone. An admin adds ana to one of them on the hub's admin page.",
        ),
        (
            "faces",
            SMOKER,
            "The data set faces is not here: it is for members of the group ethics alone. An admin "
            "adds the account pytorch-smoke-test, which tries courses, to the group on the hub's "
            "admin page.",
        ),
    ],
)
def test_a_refusal_names_the_remedy(name: str, username: str, sentence: str) -> None:
    _, (said,) = mounts({name: "/data/x"}, OFFERED, "cv", username, [])
    assert said == sentence


def test_what_one_may_have_is_mounted_beside_what_is_refused() -> None:
    wanted = {"cifar": "/data/cifar", "scans": "/data/scans", "faces": "/data/faces"}
    found, refused = mounts(wanted, OFFERED, "cv", "ana", ["ethics"])
    assert found == {"/srv/cifar": "/data/cifar", "/srv/faces": "/data/faces"}
    assert [one.split()[3] for one in refused] == ["scans"]
