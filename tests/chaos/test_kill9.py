"""kill -9 of the hub at every point of a start and a stop; the engine and the proxy live on.

After the restart: no GPU held twice, no lease without a server, no container without one, and the
student can start again within 15 s.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from pytorch_spawner.failpoints import POINTS, VARIABLE
from tests.lab_driver import Lab

pytestmark = [pytest.mark.docker, pytest.mark.slow]

_AT_STOP = ("stop-begun", "container-removed", "lease-released")
_RECONCILE_S = 5


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    running = Lab(tmp_path, gpus=1, env={"LAB_RECONCILE_S": str(_RECONCILE_S)})
    yield running
    running.stop()


def _start_quietly(lab: Lab, user: str) -> None:
    try:
        lab.spawn(user)
    except requests.RequestException:
        pass  # the hub died while it answered, as it should


def _assert_student_can_start(lab: Lab, user: str, within_s: float) -> float:
    """Ask again and again, as a student at the pending page does; return the seconds it took."""
    began = time.monotonic()
    while time.monotonic() - began < within_s:
        server = lab.server(user)
        if server and server["ready"]:
            return time.monotonic() - began
        if server is None:
            lab.spawn(user)
        time.sleep(0.2)
    raise AssertionError(f"{user} has no server after {within_s} s\n{lab.tail(60)}")


def _assert_clean(lab: Lab) -> None:
    assert lab.gpus_held_twice() == []
    running = [c for c in lab.containers() if c.status == "running"]
    held = lab.leases()
    assert len(running) == 1, [c.name for c in running]
    assert len(held) == 1, held
    assert running[0].labels["org.pytorch-spawner.lease"] == held[0].id


@pytest.mark.parametrize("point", [p for p in POINTS if p not in _AT_STOP])
def test_hub_killed_during_a_start(lab: Lab, point: str, record_property) -> None:  # type: ignore[no-untyped-def]
    lab.env[VARIABLE] = point
    lab.start()
    lab.add_users("ana")
    _start_quietly(lab, "ana")
    assert lab.hub is not None
    lab.hub.wait(30)
    assert lab.hub.returncode == -9, "the failpoint was not reached"
    del lab.env[VARIABLE]
    lab.start()
    took_s = _assert_student_can_start(lab, "ana", 15)
    record_property("student_has_a_server_after_s", round(took_s, 1))
    _assert_clean(lab)
    lab.stop_server("ana")
    lab.wait_until(lambda: not lab.leases() and not lab.containers(), _RECONCILE_S + 10, "leaked")


@pytest.mark.parametrize("point", _AT_STOP)
def test_hub_killed_during_a_stop(lab: Lab, point: str) -> None:
    lab.env[VARIABLE] = point
    lab.start()
    lab.start_server("ana")
    try:
        lab.api("DELETE", "users/ana/server")
    except requests.RequestException:
        pass
    assert lab.hub is not None
    lab.hub.wait(30)
    assert lab.hub.returncode == -9, "the failpoint was not reached"
    del lab.env[VARIABLE]
    lab.start()
    lab.wait_until(
        lambda: not lab.leases() and not lab.containers(), _RECONCILE_S + 15, "leaked after a stop"
    )
    lab.start_server("ana", timeout_s=15)
    _assert_clean(lab)


def test_hub_killed_while_a_server_runs_adopts_it(lab: Lab) -> None:
    lab.start()
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
    lab.start()
    lab.start_server("ana")
    (lease,) = lab.leases()
    lab.kill9()
    for file in lab.dir.glob("ledger.sqlite*"):
        file.unlink()
    lab.start()
    lab.wait_ready("ana", timeout_s=15)
    lab.wait_until(
        lambda: [held.id for held in lab.leases()] == [lease.id], _RECONCILE_S + 10, "not adopted"
    )
    lab.add_users("bo")
    answer = lab.spawn("bo")
    assert answer.status_code == 409, answer.text
    assert "All GPUs are in use" in answer.json()["message"]
