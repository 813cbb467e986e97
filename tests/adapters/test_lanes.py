from __future__ import annotations

import threading
import time

import pytest

from pytorch_spawner.adapters.lanes import Lanes


def test_one_lane_runs_in_order_and_another_is_not_held_up() -> None:
    lanes, said, gate = Lanes(4), [], threading.Event()
    first = lanes.submit("ana", lambda: (gate.wait(5), said.append(1)))
    second = lanes.submit("ana", lambda: said.append(2))
    lanes.submit("bo", lambda: said.append("bo")).result(2)
    assert said == ["bo"]
    gate.set()
    first.result(2), second.result(2)
    assert said == ["bo", 1, 2]


def test_a_cancelled_wait_does_not_let_the_next_call_overtake() -> None:
    lanes, said = Lanes(4), []
    slow = lanes.submit("ana", lambda: (time.sleep(0.2), said.append("start")))
    time.sleep(0.05)
    assert not slow.cancel()  # it runs already, as a docker start does
    lanes.submit("ana", lambda: said.append("poll")).result(2)
    assert said == ["start", "poll"]


def test_a_call_that_was_cancelled_before_it_ran_does_not_block_the_lane() -> None:
    lanes, gate = Lanes(2), threading.Event()
    lanes.submit("ana", lambda: gate.wait(5))
    waiting = lanes.submit("ana", lambda: "never")
    assert waiting.cancel()
    gate.set()
    assert lanes.submit("ana", lambda: "next").result(2) == "next"


def test_an_error_goes_to_who_waits_and_the_lane_goes_on() -> None:
    lanes = Lanes(1)
    with pytest.raises(ZeroDivisionError):
        lanes.submit("ana", lambda: 1 / 0).result(2)
    assert lanes.submit("ana", lambda: "on").result(2) == "on"
