"""A class for real, with its ten minutes shortened: a hub, containers, simulated GPUs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import datetime, timezone

import pytest

from pytorch_spawner.core.course_text import parse_manifest
from tests.lab_driver import Lab, running_lab

pytestmark = [pytest.mark.docker, pytest.mark.slow]

EARLY_S, LATE_S = 60.0, 20.0


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    traits = {
        "PyTorchSpawner.on_busy": "queue",
        "PyTorchSpawner.class_early_s": EARLY_S,
        "PyTorchSpawner.class_late_s": LATE_S,
    }
    with running_lab(tmp_path_factory.mktemp("lab"), gpus=2, traits=traits) as running:
        running.add_users("ana", "ben", "eve")
        yield running


def moment(at: float) -> str:
    return datetime.fromtimestamp(at, timezone.utc).isoformat(timespec="seconds")


def test_a_class_finds_its_seats_and_a_no_shows_is_everybodys_afterwards(lab: Lab) -> None:
    begins = time.time() + 25
    session = {"start": moment(begins), "end": moment(begins + 600), "seats": 2}
    lab.ledger().save_course(
        lab.hub_id,
        parse_manifest(
            {
                "name": "cv",
                "title": "Computer vision",
                "source": {"git": "https://forge.example/cv.git"},
                "members": {"users": ["ana", "ben"]},
                "timetable": {"sessions": [session]},
            }
        ),
        "root",
    )
    # Somebody else waits, though both GPUs are free, and reads why.
    assert lab.spawn("eve").status_code == 202
    lab.wait_until(
        lambda: "kept for the class Computer vision" in json.dumps(lab.events("eve")),
        15,
        "nobody told eve why",
    )
    assert lab.leases() == ()
    # A student of the class does not wait, and asks for nothing: it is the only course of ana's.
    lab.start_server("ana", timeout_s=20)
    (lease,) = lab.leases()
    assert (lease.username, lease.request["course"]) == ("ana", "cv")
    assert time.time() < begins + LATE_S
    assert lab.container("eve") is None
    # Ben does not come.
    lab.wait_ready("eve", timeout_s=begins + LATE_S - time.time() + 25)
    assert time.time() >= begins + LATE_S
    assert {one.username for one in lab.leases()} == {"ana", "eve"}
    assert lab.gpus_held_twice() == []
