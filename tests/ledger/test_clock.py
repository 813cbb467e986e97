"""A machine's clock that jumps back an hour: nothing ends early, and no order turns round."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from queueing import HUB, begin, first_come, give, in_order

from pytorch_spawner.core.lifetime import Ending, due
from pytorch_spawner.core.tickets import Decisions
from pytorch_spawner.ledger.store import Ledger, QueueState

NINE = 1_767_258_000.0  # a Thursday
HOUR = 3600.0


class Clock:
    def __init__(self) -> None:
        self.time = NINE

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def at(ledger_url: str, clock: Clock) -> Iterator[Ledger]:
    ledger = Ledger.open(ledger_url, clock)
    yield ledger
    ledger.close()


def another_process(ledger_url: str, clock: Clock) -> Ledger:
    """A ledger that remembers nothing but what is written."""
    return Ledger.open(ledger_url, clock)


def lend(ledger: Ledger, user: str, until: float | None) -> None:
    begin(ledger, user)
    ledger.decide(HUB, lambda state: give(state.tickets[0], until=until))


def test_time_stands_still_while_the_clock_is_behind(at: Ledger, clock: Clock) -> None:
    begin(at, "ana")
    clock.time -= HOUR
    assert NINE <= at.now() < NINE + 1
    clock.time = NINE + 60
    assert at.now() == NINE + 60


def test_no_lease_ends_early(at: Ledger, clock: Clock, ledger_url: str) -> None:
    lend(at, "ana", until=NINE + 600)
    clock.time -= HOUR
    for ledger in (at, another_process(ledger_url, clock)):
        (lease,) = ledger.leases(HUB)
        ending = Ending(lease.id, lease.until or 0.0, is_warned=True)
        assert due([ending], ledger.now(), warn_s=60).stop == ()
        assert lease.until == NINE + 600
    clock.time = NINE + 601
    assert due([ending], at.now(), warn_s=60).stop == (lease.id,)


def test_what_is_kept_after_a_crash_is_kept_as_long_as_promised(at: Ledger, clock: Clock) -> None:
    lend(at, "ana", until=None)
    clock.time -= HOUR
    at.keep(HUB, "ana", "", 120.0)
    (lease,) = at.leases(HUB)
    assert lease.kept_until == pytest.approx(NINE + 120, abs=1)
    assert not lease.as_held().is_over(at.now())


def test_the_queue_keeps_its_order(at: Ledger, clock: Clock, ledger_url: str) -> None:
    begin(at, "ana")
    clock.time -= HOUR
    begin(at, "bo")
    other = another_process(ledger_url, clock)
    begin(other, "eve")
    assert [waiting.ticket.username for waiting in other.queue(HUB)] == ["ana", "bo", "eve"]
    since = [waiting.ticket.since for waiting in other.queue(HUB)]
    assert since == sorted(since)
    _, leases = other.decide(HUB, first_come)
    assert [lease.username for lease in leases.values()] == ["ana"]
    other.close()


def test_every_decision_is_later_than_the_one_before(
    at: Ledger, clock: Clock, ledger_url: str
) -> None:
    seen: list[float] = []

    def look(state: QueueState) -> Decisions:
        seen.append(state.now)
        return Decisions(wait=in_order(state.tickets))

    at.decide(HUB, look)
    clock.time -= HOUR
    at.decide(HUB, look)
    other = another_process(ledger_url, clock)
    for ledger in (other, at, other):
        ledger.decide(HUB, look)
    assert seen == sorted(set(seen))
    other.close()


def test_the_newest_start_is_the_one_that_began_last(
    at: Ledger, clock: Clock, ledger_url: str
) -> None:
    """The journal on a page is that of the newest start; two that began "at once" have an order."""
    at.begin_start(HUB, "ana", "", {})
    clock.time -= HOUR
    other = another_process(ledger_url, clock)
    for ledger in (at, other, at, other):
        newest = ledger.begin_start(HUB, "ana", "", {})
        assert ledger.latest_start(HUB, "ana", "").id == newest.id
    other.close()


def test_nobody_is_charged_for_time_that_did_not_pass(at: Ledger, clock: Clock) -> None:
    lend(at, "ana", until=None)
    clock.time -= HOUR
    at.release(HUB, "ana", "", "stopped")
    assert at.week_hours(HUB, "ana")["all"] == pytest.approx(0.0, abs=1e-3)


def test_a_clock_that_was_far_ahead_is_told_and_can_be_put_right(
    at: Ledger, clock: Clock, ledger_url: str
) -> None:
    clock.time += 1000 * HOUR
    begin(at, "ana")
    clock.time -= 1000 * HOUR
    other = another_process(ledger_url, clock)
    assert other.clock_ahead_s(HUB) == pytest.approx(1000 * HOUR, abs=1)
    other.reset_clock(HUB)
    assert other.clock_ahead_s(HUB) == 0
    begin(other, "bo")
    since = {one.ticket.username: one.ticket.since for one in other.queue(HUB)}
    assert since["bo"] == pytest.approx(clock.time, abs=1)
    other.close()
