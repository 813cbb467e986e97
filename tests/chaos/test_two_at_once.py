"""Two students ask for the one exclusive GPU at the same instant, a hundred times."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.chaos.site import quick_lab
from tests.chaos.watch import Watch, lease_history, leased_twice
from tests.lab_driver import Lab
from tests.private_engine import PrivateEngine

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(900)]

ROUNDS = 100


@pytest.fixture
def lab(engine: PrivateEngine, tmp_path: Path) -> Iterator[Lab]:
    running = quick_lab(tmp_path, engine, gpus=1)
    try:
        yield running.start()
    finally:
        running.stop()


def test_never_both(lab: Lab) -> None:
    outcomes: list[tuple[bool, bool]] = []
    watch = Watch(lab)
    lab.add_users("ana", "bo")
    with watch.following(), ThreadPoolExecutor(2) as pool:
        for _ in range(ROUNDS):
            answers = list(pool.map(lab.spawn, ("ana", "bo")))
            got = tuple(answer.status_code in (201, 202) for answer in answers)
            outcomes.append((got[0], got[1]))
            for answer in answers:
                if answer.status_code >= 400:
                    assert answer.status_code == 409, answer.text
                    assert "All GPUs that you may use are in use" in answer.json()["message"]
            for user, has in zip(("ana", "bo"), got, strict=True):
                if has:
                    lab.stop_server(user)
            lab.wait_until(lambda: not lab.leases(), 10, "a lease stayed")
    assert not watch.seen().doubles | leased_twice(lease_history(lab))
    assert (True, True) not in outcomes
    assert (False, False) not in outcomes, "one of the two must get the GPU"
    assert len(outcomes) == ROUNDS
