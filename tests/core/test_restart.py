"""What a restart keeps of the start before it, and how far the stop is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs

import pytest

from pytorch_spawner.core.request import CourseChoice, Offer, parse
from pytorch_spawner.core.restart import stand_of, start_again

SPAWN = "/hub/spawn/ana/my%20thesis"


OFFER = Offer(
    images={"Base": "lab/base:1", "CUDA": "lab/cuda:1"},
    max_gpus=2,
    shares=("whole", "mig:1g.10gb"),
    pools=("a&b",),
    courses={
        "cv": CourseChoice("Vision", image="lab/cuda:1", gpus=1),
        "nlp": CourseChoice("Words"),
    },
    has_auto=True,
)


@pytest.mark.parametrize(
    ("said", "query"),
    [
        ({}, "course="),
        ({"image": "Base"}, "image=Base&course="),
        ({"image": "auto", "course": "cv"}, "image=auto&course=cv"),
        ({"course": "nlp", "on_busy": "fail"}, "course=nlp"),
        ({"share": "none"}, "share=none&course="),
        ({"gpus": ["2"], "share": "whole", "pool": ["a&b"], "image": [""]},
         "gpus=2&share=whole&pool=a%26b&course="),
        ({"share": "mig:1g.10gb", "gpus": 1}, "gpus=1&share=mig%3A1g.10gb&course="),
    ],
)  # fmt: skip
def test_a_restart_asks_for_what_was_said_and_leaves_the_rest_open_again(
    said: dict[str, Any], query: str
) -> None:
    before = parse(said, OFFER)
    address = start_again(SPAWN, before.as_json())
    assert address == f"{SPAWN}?{query}"
    options = parse_qs(address.partition("?")[2], keep_blank_values=True)
    after = parse(options, OFFER)
    assert replace(after, on_busy=before.on_busy) == before
    assert start_again(SPAWN, after.as_json()) == address


def test_what_a_course_asks_for_now_comes_with_the_next_start() -> None:
    before = parse({"course": "cv"}, OFFER)
    # The gate may have chosen another image for the GPU that it got.
    address = start_again(SPAWN, replace(before, image="lab/base:1").as_json())
    newer = {"cv": CourseChoice("Vision", image="lab/base:1", gpus=2)}
    after = parse(parse_qs(address.partition("?")[2]), replace(OFFER, courses=newer))
    assert (after.image, after.gpus, after.is_asked) == ("lab/base:1", 2, False)


def test_no_course_stays_none_for_who_belongs_to_one_alone() -> None:
    alone = replace(OFFER, courses={"cv": OFFER.courses["cv"]})
    assert parse({}, alone).course == "cv"
    address = start_again(SPAWN, parse({"course": ""}, alone).as_json())
    options = parse_qs(address.partition("?")[2], keep_blank_values=True)
    assert parse(options, alone).course == ""


def test_what_older_starts_wrote_and_what_is_no_choice_is_left_to_the_lab() -> None:
    request = {"image": "lab/base:1", "gpus": 0, "share": "none", "course": None, "token": "x"}
    assert start_again(SPAWN, request) == f"{SPAWN}?course="
    assert start_again(SPAWN, {"said": "share", "course": "cv"}) == f"{SPAWN}?course=cv"


@pytest.mark.parametrize(
    ("servers", "stand"),
    [
        pytest.param({}, "stopped", id="it is gone"),
        pytest.param({"": {"pending": None}}, "stopped", id="another server runs"),
        pytest.param(None, "stopped", id="the hub names no server"),
        pytest.param({"cv": {"pending": "stop"}}, "stopping", id="the hub stops it"),
        pytest.param({"cv": {"pending": "spawn"}}, "starting", id="somebody was faster"),
        pytest.param({"cv": {"pending": None}}, "running", id="the stop came to nothing"),
        pytest.param({"cv": 1}, "running", id="the hub says nothing of it"),
    ],
)
def test_how_far_the_stop_is(servers: Any, stand: str) -> None:
    assert stand_of(servers, "cv") == stand
