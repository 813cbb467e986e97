"""Every fault at every point of a start and a stop, on real containers of an engine of our own.

Ana's start or stop is held at the point and the fault happens, while Bo asks for the other GPU at
once and again and again, as at the pending page. Ana stays away until one reconcile is over, so
that nothing but the lab itself clears up after her: then each server of the hub has one lease and
one container, and there is nothing else. Ana comes back and gets a server. At no time does a GPU
belong to two containers or two leases, and the grants are what they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from pytorch_spawner.failpoints import POINTS
from tests.chaos.site import (
    AT_STOP,
    FAULTS,
    SERVER_RUNS,
    Left,
    Site,
    come_back,
    left_after_one_reconcile,
    lost_grants,
    waiting,
)
from tests.chaos.watch import Watch, lease_history, leased_twice
from tests.lab_driver import Lab
from tests.private_engine import PrivateEngine

pytestmark = [pytest.mark.docker, pytest.mark.slow]


@pytest.fixture(scope="module")
def site(engine: PrivateEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(engine, lambda: tmp_path_factory.mktemp("lab"))
    yield made
    made.end()
    made.pool.shutdown()


class Findings:
    """Counts for the table; each is written down before it is asserted."""

    def __init__(self, lab: Lab, record: Callable[[str, Any], None]) -> None:
        self._lab = lab
        self._record = record

    def assert_exact(self, left: Left) -> None:
        self._record("leaked leases", len(left.leaked))
        self._record("orphaned containers", len(left.orphaned))
        assert left.is_exact, f"{left}\n{self._lab.leases()}\n{self._lab.tail(80)}"

    def assert_none(self, name: str, found: Any) -> None:
        self._record(name, len(found))
        assert not found, f"{name}: {found}\n{self._lab.tail(80)}"


def test_each_fault_happens_at_twelve_points_or_more() -> None:
    # That the hub reaches each of them is asserted in each case.
    assert len(set(POINTS)) >= 12
    assert set(AT_STOP) < set(POINTS)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("point", POINTS)
def test_a_fault_leaves_nothing_behind_and_the_student_gets_a_server(
    site: Site, point: str, fault: str, record_property: Callable[[str, Any], None]
) -> None:
    record_property("point", point)
    record_property("fault", fault)
    lab = site.fresh()
    ana, bo = f"ana{next(site.numbers)}", "bo"
    lab.add_users(ana, bo)
    found = Findings(lab, record_property)
    watch = Watch(lab)
    act = lambda: lab.spawn(ana)  # noqa: E731
    with watch.following():
        if point in (SERVER_RUNS, *AT_STOP):
            lab.start_server(ana, timeout_s=20)
            act = lambda: lab.api("DELETE", f"users/{ana}/server")  # noqa: E731
        if fault == "container-removed":
            lab.start_server(bo, timeout_s=20)
        if fault == "hub-kill":
            site.kill_hub_at(point, act)
        elif point == SERVER_RUNS:
            site.harm(fault, ana, bo)
        else:
            with site.held_at(point, act):
                site.harm(fault, ana, bo)
        asked: Future[float] = site.pool.submit(come_back, lab, bo)
        site.mend(fault)
        asked.result()
        come_back(lab, bo)  # a container may have outlived its engine, and ended with the next
        left = left_after_one_reconcile(lab, (ana, bo), kept_for={ana})
        record_property("left", f"{left.leases}+{left.containers}")
        found.assert_exact(left)
        record_property("back_s", come_back(lab, ana))
        left = left_after_one_reconcile(lab, (ana, bo))
        found.assert_exact(left)
        assert (left.leases, left.containers) == (1, 1)
        for user in (ana, bo):
            lab.stop_server(user)
        left = left_after_one_reconcile(lab, (ana, bo))
        found.assert_exact(left)
        assert (left.leases, left.containers) == (0, 0)
    seen = watch.seen()
    assert seen.count >= 2, "the engine's events were not heard"
    found.assert_none("double leases", seen.doubles | leased_twice(lease_history(lab)))
    found.assert_none("lost grants", lost_grants(lab))
    assert waiting(lab) == []
    site.is_clean = True
