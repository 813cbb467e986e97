"""What a restart keeps of the start before it, and how far the stop is."""

from __future__ import annotations

from typing import Any

import pytest

from pytorch_spawner.core.restart import stand_of, start_again

SPAWN = "/hub/spawn/ana/my%20thesis"


def test_the_choice_is_kept_and_nothing_else_of_the_request() -> None:
    request = {
        "image": "lab/base:1", "gpus": 2, "share": "mig:1g.10gb", "pool": "a&b", "course": "cv",
        "token": "secret", "uid": 0,
    }  # fmt: skip
    assert start_again(SPAWN, request) == (
        f"{SPAWN}?image=lab%2Fbase%3A1&gpus=2&share=mig%3A1g.10gb&pool=a%26b&course=cv"
    )


def test_no_gpu_is_a_choice_too_and_what_was_not_chosen_is_left_to_the_lab() -> None:
    request = {"gpus": 0, "share": "none", "pool": "", "course": None}
    assert start_again(SPAWN, request) == f"{SPAWN}?gpus=0&share=none"
    assert start_again(SPAWN, {}) == SPAWN


@pytest.mark.parametrize(
    ("servers", "is_asked", "stand"),
    [
        pytest.param({}, False, "stopped", id="it is gone"),
        pytest.param({"": {"pending": None}}, False, "stopped", id="another server runs"),
        pytest.param(None, False, "stopped", id="the hub names no server"),
        pytest.param({}, True, "stopped", id="it is gone before the hub has answered"),
        pytest.param({"cv": {"pending": "stop"}}, False, "stopping", id="the hub stops it"),
        pytest.param({"cv": {"pending": None}}, True, "stopping", id="the hub was asked just now"),
        pytest.param({"cv": {"pending": "spawn"}}, False, "starting", id="somebody was faster"),
        pytest.param({"cv": {"pending": None}}, False, "running", id="the stop came to nothing"),
        pytest.param({"cv": 1}, False, "running", id="the hub says nothing of it"),
    ],
)
def test_how_far_the_stop_is(servers: Any, is_asked: bool, stand: str) -> None:
    assert stand_of(servers, "cv", is_asked=is_asked) == stand
