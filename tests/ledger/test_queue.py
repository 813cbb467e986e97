"""Tickets and leases that others changed, or that nobody waits for any more."""

from __future__ import annotations

from dataclasses import replace

import pytest
from queueing import HUB, ONE, REQUEST, begin, first_come, give, take

from pytorch_spawner.core.grants import Grant
from pytorch_spawner.errors import BadRequest
from pytorch_spawner.ledger.store import Ledger


def waiting(ledger: Ledger) -> list[str]:
    return [one.ticket.username for one in ledger.queue(HUB)]


def test_a_ticket_whose_start_is_over_holds_up_nobody(ledger: Ledger) -> None:
    """Its start failed while the engine was away, so nobody took the ticket back."""
    start = begin(ledger, "ana")
    begin(ledger, "bo")
    ledger.end_start(start.id, "failed")
    _, leases = ledger.decide(HUB, first_come)
    assert [lease.username for lease in leases.values()] == ["bo"]
    assert waiting(ledger) == []


def test_who_waited_when_the_hub_restarted_comes_back_to_the_old_place(ledger: Ledger) -> None:
    take(ledger, "eve")
    start = begin(ledger, "ana")
    begin(ledger, "bo")
    # What a hub does about a start that it finds half done: it ends it.
    ledger.end_start(start.id, "stopped")
    ledger.mark_server_away(HUB, "ana", "")
    ledger.decide(HUB, first_come)
    assert waiting(ledger) == ["ana", "bo"]
    again = ledger.begin_start(HUB, "ana", "", REQUEST)
    assert ledger.join(again).seq == 2
    assert [one.ticket.is_away for one in ledger.queue(HUB)] == [False, False]


def test_who_does_not_come_back_loses_the_place(ledger: Ledger) -> None:
    begin(ledger, "ana")
    ledger.mark_server_away(HUB, "ana", "")
    assert ledger.forget_away(HUB, ledger.now() - 60) == 0
    assert ledger.forget_away(HUB, ledger.now() + 60) == 1


def test_an_admin_who_removes_a_ticket_is_written_down(ledger: Ledger) -> None:
    begin(ledger, "ana")
    assert ledger.remove_ticket(HUB, "ana", "", "root")
    assert not ledger.remove_ticket(HUB, "ana", "", "root")
    assert [(one.by, one.subject) for one in ledger.changes(HUB)] == [("root", "ana/")]


def test_a_lease_that_is_kept_meanwhile_is_not_released_as_one_that_was_not(ledger: Ledger) -> None:
    lease = take(ledger, "ana")
    ledger.keep(HUB, "ana", "", 60)
    assert not ledger.release_lease(lease.id, "reconciled", lease.kept_until)
    (kept,) = ledger.leases(HUB)
    assert ledger.is_in_force(lease.id)
    assert ledger.release_lease(lease.id, "reconciled", kept.kept_until)
    assert not ledger.is_in_force(lease.id)


def test_a_grant_that_ends_earlier_ends_what_is_held_through_it(ledger: Ledger) -> None:
    start = begin(ledger, "ana")
    ledger.decide(HUB, lambda state: give(state.tickets[0]))
    assert ledger.leases(HUB)[0].start_id == start.id
    end = ledger.now() + 3600
    ledger.write_grants(HUB, [Grant("all", valid_until=end)], "root")
    assert [lease.until for lease in ledger.leases(HUB)] == [end]
    ledger.write_grants(HUB, [Grant("all", valid_until=end + 3600)], "root")
    assert [lease.until for lease in ledger.leases(HUB)] == [end], "a promise is not prolonged"


def test_grants_of_two_sources_do_not_share_an_id(ledger: Ledger) -> None:
    ledger.write_grants(HUB, [Grant("all", source="config")], "configuration", source="config")
    with pytest.raises(BadRequest, match="the config has a grant all"):
        ledger.write_grants(HUB, [Grant("all")], "root")
    assert [grant.source for grant in ledger.grants(HUB)] == ["config"]


def test_a_gpu_that_the_configuration_pins_to_one_is_not_pinned_to_another(ledger: Ledger) -> None:
    pinned = Grant("config:a", "user", "ana", gpus=(ONE.uuid,), source="config")
    ledger.write_grants(HUB, [pinned], "configuration", source="config")
    with pytest.raises(BadRequest, match=r"pinned to user ana \(config:a\) and to user bo"):
        ledger.write_grants(HUB, [Grant("b", "user", "bo", gpus=(ONE.uuid,))], "root")
    assert ledger.grants(HUB) == (pinned,)


def test_a_change_is_made_of_what_is_there(ledger: Ledger) -> None:
    ledger.write_grants(HUB, [Grant("one"), Grant("two")], "root")
    kept = ledger.change_grants(HUB, "root", lambda now: [replace(now[0], count=3)])
    assert [(grant.id, grant.count) for grant in kept] == [("one", 3)]
    assert {one.subject for one in ledger.changes(HUB)} == {"one", "two"}
