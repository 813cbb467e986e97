"""Fifty students ask at the same time for four exclusive GPUs, and each stops once served."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from pathlib import Path

import pytest
import requests

from tests.chaos.site import left_after_one_reconcile, quick_lab
from tests.chaos.watch import Held, Watch, lease_history, leased_twice, most_at_once
from tests.lab_driver import Lab
from tests.private_engine import PrivateEngine

pytestmark = [pytest.mark.docker, pytest.mark.slow]

_STUDENTS = 50
_GPUS = 4
_WITHIN_S = 150


@pytest.fixture
def lab(engine: PrivateEngine, tmp_path: Path) -> Iterator[Lab]:
    running = quick_lab(
        tmp_path,
        engine,
        gpus=_GPUS,
        # Four GPUs are to be at work at the same time on however few cores there are.
        traits={"PyTorchSpawner.on_busy": "queue", "PyTorchSpawner.boots_at_once": 0},
        env={"LAB_RECONCILE_S": "1"},
    )
    try:
        yield running.start()
    finally:
        running.stop()


def _ready(lab: Lab) -> set[str]:
    return {user["name"] for user in lab.api("GET", "users?state=ready").json()}


def _arrivals(lab: Lab, into: dict[str, int]) -> None:
    """Note in which order those who wait now came."""
    ledger = lab.ledger()
    try:
        into.update({row.ticket.username: row.ticket.seq for row in ledger.queue(lab.hub_id)})
    finally:
        ledger.close()


def _is_in_order(history: list[Held], arrivals: dict[str, int]) -> bool:
    """Whether nobody was served before somebody who came earlier; one pass serves several."""
    latest = 0
    for _, given in groupby(history, key=lambda held: held.since):
        numbers = [arrivals[held.username] for held in given if held.username in arrivals]
        if numbers and min(numbers) < latest:
            return False
        latest = max([latest, *numbers])
    return True


def test_fifty_students_take_turns_on_four_gpus(lab: Lab) -> None:
    students = [f"student{number:02}" for number in range(_STUDENTS)]
    lab.add_users(*students)
    arrivals: dict[str, int] = {}
    leases_at_once: list[int] = []
    stops: dict[str, Future[requests.Response]] = {}
    watch = Watch(lab)
    with watch.following(), ThreadPoolExecutor(_STUDENTS + _GPUS) as pool:
        starts = [pool.submit(lab.spawn, student) for student in students]
        deadline = time.monotonic() + _WITHIN_S
        while len(stops) < _STUDENTS and time.monotonic() < deadline:
            for student in _ready(lab) - stops.keys():
                stops[student] = pool.submit(lab.api, "DELETE", f"users/{student}/server")
            _arrivals(lab, arrivals)
            leases_at_once.append(len(lab.leases()))
            time.sleep(0.1)
    assert {one.result().status_code for one in starts} <= {201, 202}
    assert {one.result().status_code for one in stops.values()} <= {202, 204}
    assert sorted(stops) == students, f"not served in {_WITHIN_S} s\n{lab.tail()}"
    history = lease_history(lab)
    assert sorted(held.username for held in history) == students, "each is served once"
    seen = watch.seen()
    assert seen.count == _STUDENTS
    assert seen.most == _GPUS, "four at a time, and never more"
    assert most_at_once(history) == max(leases_at_once) == _GPUS
    assert not seen.doubles | leased_twice(history)
    assert len(arrivals) >= _STUDENTS - _GPUS, "only those served at once need not wait"
    assert _is_in_order(history, arrivals)
    left = left_after_one_reconcile(lab, (students[0], students[-1]))
    assert left.is_exact, left
