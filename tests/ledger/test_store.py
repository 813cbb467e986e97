from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from queueing import ONE, first_come, give, take
from sqlalchemy.exc import IntegrityError

from pytorch_spawner.core.gpus import Gpu, GpuUuid, Inventory
from pytorch_spawner.core.grants import Grant
from pytorch_spawner.core.identity import Identity
from pytorch_spawner.core.journal import MAX_EVENTS_A_START
from pytorch_spawner.core.placement import DeviceSetting, Holding
from pytorch_spawner.errors import IdentityConflict, InvalidEvent, NoGpuAvailable, StartIsOver
from pytorch_spawner.ledger.store import Lease, Ledger

RANGE = (20000, 20002)


def test_a_uid_stays_and_is_never_anothers(ledger: Ledger) -> None:
    assert ledger.identity("ana", None, RANGE) == Identity(20000, 20000, "ledger")
    assert ledger.identity("bo", None, RANGE).uid == 20001
    assert ledger.identity("ana", None, RANGE).uid == 20000
    said = Identity(20000, 100, "auth_state")
    with pytest.raises(IdentityConflict, match="belongs to ana"):
        ledger.identity("eve", said, RANGE)
    with pytest.raises(IdentityConflict, match="had the uid 20000"):
        ledger.identity("ana", Identity(4000, 100, "auth_state"), RANGE)
    assert ledger.identity("ana", said, RANGE) == said


def test_uids_from_many_threads_are_all_different(ledger: Ledger) -> None:
    with ThreadPoolExecutor(8) as pool:
        uids = list(
            pool.map(lambda n: ledger.identity(f"u{n}", None, (20000, 30000)).uid, range(60))
        )
    assert len(set(uids)) == 60


def test_one_gpu_goes_to_one_of_many_threads(ledger: Ledger) -> None:
    def attempt(number: int) -> bool:
        try:
            take(ledger, f"u{number}")
        except NoGpuAvailable:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(40))) == 1
    assert len(ledger.leases("lab")) == 1


def test_release_undoes_take_and_a_second_release_does_nothing(ledger: Ledger) -> None:
    lease = take(ledger, "ana")
    with pytest.raises(NoGpuAvailable):
        take(ledger, "bo")
    assert ledger.release("lab", "ana", "", "stopped") == 1
    assert ledger.release("lab", "ana", "", "stopped") == 0
    assert not ledger.release_lease(lease.id, "again")
    assert take(ledger, "bo").gpus == (ONE.uuid,)


def test_a_new_start_of_the_same_server_replaces_its_lease(ledger: Ledger) -> None:
    first, second = take(ledger, "ana"), take(ledger, "ana")
    assert [held.id for held in ledger.leases("lab")] == [second.id]
    assert first.id != second.id


def test_two_hubs_do_not_see_each_other(ledger: Ledger) -> None:
    take(ledger, "ana")
    assert ledger.leases("other") == ()


def test_a_lease_is_adopted_once_and_never_over_another(ledger: Ledger) -> None:
    lease = take(ledger, "ana")
    ledger.release_lease(lease.id, "lost")
    assert ledger.adopt_lease(lease)
    other = Lease("l2", "lab", "s2", "bo", "", lease.holdings, {}, 0.0)
    assert not ledger.adopt_lease(other)
    assert [held.id for held in ledger.leases("lab")] == [lease.id]


def test_the_journal_numbers_events_and_is_bounded(ledger: Ledger) -> None:
    start = ledger.begin_start("lab", "ana", "", {})
    assert [
        e.seq for e in ledger.append_events(start.id, [("check", {"a": 1}), ("check", {})])
    ] == [1, 2]
    assert [e.seq for e in ledger.read_events(start.id, 1)] == [2]
    ledger.append_events(start.id, [("check", {})] * (MAX_EVENTS_A_START - 2))
    with pytest.raises(InvalidEvent):
        ledger.append_events(start.id, [("check", {})])
    assert ledger.end_start(start.id, "stopped")
    assert not ledger.end_start(start.id, "failed")
    assert ledger.forget_journals(ledger.now() + 1) == MAX_EVENTS_A_START


def test_the_queue_keeps_its_order_and_what_it_was_told(ledger: Ledger) -> None:
    take(ledger, "ana")
    bo, eve = (ledger.begin_start("lab", name, "", {"gpus": 1}) for name in ("bo", "eve"))
    for start in (bo, eve):
        ledger.join(start)
    decisions, leases = ledger.decide("lab", first_come)
    assert leases == {}
    told = [(row.ticket.username, row.place, row.of, row.reason) for row in ledger.queue("lab")]
    assert told == [
        ("bo", 1, 2, decisions.wait[0].reason),
        ("eve", 2, 2, decisions.wait[1].reason),
    ]
    assert ledger.leave(bo.id)
    assert not ledger.leave(bo.id)
    ledger.release("lab", "ana", "", "stopped")
    _, leases = ledger.decide("lab", first_come)
    assert [lease.username for lease in leases.values()] == ["eve"]
    assert ledger.queue("lab") == ()


def test_a_start_that_ended_while_it_queued_is_given_nothing(ledger: Ledger) -> None:
    start = ledger.begin_start("lab", "ana", "", {"gpus": 1})
    ledger.join(start)
    ledger.end_start(start.id, "cancelled")
    assert ledger.decide("lab", first_come)[1] == {}
    assert ledger.leases("lab") == ()
    assert ledger.queue("lab") == ()
    with pytest.raises(StartIsOver):
        ledger.join(start)


def test_a_start_that_was_cancelled_takes_nothing_and_releases_nothing(ledger: Ledger) -> None:
    """Its thread may still wait for the ledger when the student has already started again."""
    cancelled = ledger.begin_start("lab", "ana", "", {"gpus": 1})
    lease = take(ledger, "ana")
    with pytest.raises(StartIsOver):
        ledger.join(cancelled)
    assert [held.id for held in ledger.leases("lab")] == [lease.id]


def test_the_table_itself_refuses_a_second_holder(ledger: Ledger) -> None:
    """Whatever a scheduler answers, even one that ignores what is held."""
    lease = take(ledger, "ana")
    ledger.join(ledger.begin_start("lab", "bo", "", {"gpus": 1}))
    for cut in (Holding(ONE.uuid), Holding(ONE.uuid, 1, 4)):
        with pytest.raises(IntegrityError):
            ledger.decide("lab", lambda state, cut=cut: give(state.tickets[0], cut))
    assert [held.id for held in ledger.leases("lab")] == [lease.id]
    assert [row.ticket.username for row in ledger.queue("lab")] == ["bo"]


def test_what_was_held_counts_as_used(ledger_url: str) -> None:
    at = [1_767_225_600.0]
    ledger = Ledger.open(ledger_url, clock=lambda: at[0])
    take(ledger, "ana")
    at[0] += 3600
    assert ledger.week_hours("lab", "ana") == pytest.approx({"all": 1.0})
    ledger.release("lab", "ana", "", "stopped")
    at[0] += 3600
    assert ledger.week_hours("lab", "ana") == pytest.approx({"all": 1.0})
    ledger.close()


def test_grants_and_decisions_about_gpus_come_back_and_are_logged(ledger: Ledger) -> None:
    grant = Grant("cv", "group", "cv", gpus=(ONE.uuid,), weekly_gpu_hours=20.0, images=("i",))
    ledger.write_grants("lab", [grant], "root")
    ledger.write_grants("lab", [grant], "root")
    assert ledger.grants("lab") == (grant,)
    setting = DeviceSetting(ONE.uuid, mode="shared:4", drained="Its fan is loud. " * 40)
    ledger.change_setting("lab", setting.uuid, "root", lambda _: setting)
    (kept,) = ledger.settings("lab")
    assert (kept.mode, kept.pool, kept.drained) == ("shared:4", None, setting.drained[:255])
    ledger.write_grants("lab", [], "root")
    log = [(change.what, change.subject, change.after is None) for change in ledger.changes("lab")]
    assert log == [("grant", "cv", True), ("gpu", ONE.uuid, False), ("grant", "cv", False)]


def test_the_inventory_comes_back_as_it_was(ledger: Ledger) -> None:
    gpu = Gpu(GpuUuid("GPU-1"), 3, "H100", 81559, (9, 0), "580", "x/y=z", "big", is_simulated=True)
    ledger.write_inventory("lab", Inventory((gpu,)))
    assert ledger.read_inventory("lab").gpus == (gpu,)
    assert "did not look for GPUs yet" in ledger.read_inventory("other").reason


def test_why_a_hub_found_no_gpu_is_kept_until_it_finds_one(ledger: Ledger) -> None:
    reason = "The NVIDIA driver does not work: Driver/library version mismatch."
    ledger.write_inventory("lab", Inventory((ONE,)))
    for said in ("The driver is asleep.", reason):
        ledger.write_inventory("lab", Inventory(reason=said))
    assert ledger.read_inventory("lab") == Inventory(reason=reason)
    assert ledger.read_inventory("other").reason != reason
    ledger.write_inventory("lab", Inventory((ONE,)))
    assert ledger.read_inventory("lab") == Inventory((ONE,))


def test_what_was_written_is_there_after_opening_again(ledger_url: str) -> None:
    first = Ledger.open(ledger_url)
    take(first, "ana")
    first.close()
    again = Ledger.open(ledger_url)
    assert len(again.leases("lab")) == 1
    again.close()
