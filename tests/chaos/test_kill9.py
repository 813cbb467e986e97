"""kill -9 of the hub while servers run: they are found again, even when the ledger is lost too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.site import quick_lab
from tests.lab_driver import Lab
from tests.private_engine import PrivateEngine

pytestmark = [pytest.mark.docker, pytest.mark.slow]


@pytest.fixture
def lab(engine: PrivateEngine, tmp_path: Path) -> Iterator[Lab]:
    running = quick_lab(tmp_path, engine, gpus=1, env={"LAB_RECONCILE_S": "1"})
    try:
        yield running.start()
    finally:
        running.stop()


def test_a_server_that_ran_keeps_its_container_and_its_lease(lab: Lab) -> None:
    lab.start_server("ana")
    container, (lease,) = lab.container("ana").id, lab.leases()
    lab.kill9()
    lab.start()
    lab.wait_ready("ana", timeout_s=15)
    assert lab.container("ana").id == container
    assert [held.id for held in lab.leases()] == [lease.id]
    answer = lab.session.get(f"{lab.url}/user/ana/api", timeout=10)
    assert answer.status_code == 200


def test_a_ledger_lost_while_servers_run_is_rebuilt_from_labels(lab: Lab) -> None:
    lab.start_server("ana")
    (lease,) = lab.leases()
    lab.kill9()
    for file in lab.dir.glob("ledger.sqlite*"):
        file.unlink()
    lab.start()
    lab.wait_ready("ana", timeout_s=15)
    lab.wait_until(lambda: [held.id for held in lab.leases()] == [lease.id], 10, "not adopted")
    lab.add_users("bo")
    answer = lab.spawn("bo")
    assert answer.status_code == 409, answer.text
    assert "All GPUs that you may use are in use" in answer.json()["message"]


def test_who_queues_when_the_hub_dies_comes_back_to_the_old_place(lab: Lab) -> None:
    lab.start_server("bo")
    for user in ("ana", "eve"):
        lab.add_users(user)
        assert lab.spawn(user, {"on_busy": "queue"}).status_code in (201, 202)
        lab.wait_until(lambda user=user: user in queue_of(lab), 10, f"{user} does not queue")
    assert queue_of(lab) == ["ana", "eve"]
    lab.kill9()
    lab.start()
    lab.wait_until(lambda: lab.server("ana") is None, 20, "the hub takes ana's start for alive")
    for user in ("eve", "ana"):  # the later one is back first
        lab.wait_until(
            lambda user=user: lab.spawn(user, {"on_busy": "queue"}).status_code in (201, 202),
            20,
            f"{user} cannot start",
        )
    lab.wait_until(
        lambda: not any(one.ticket.is_away for one in lab.ledger().queue(lab.hub_id)),
        10,
        "they are still away",
    )
    lab.stop_server("bo")
    lab.wait_ready("ana")
    assert queue_of(lab) == ["eve"]


def queue_of(lab: Lab) -> list[str]:
    return [one.ticket.username for one in lab.ledger().queue(lab.hub_id)]
