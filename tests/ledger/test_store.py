from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pytorch_spawner.core.gpus import Gpu, GpuUuid, Inventory
from pytorch_spawner.core.identity import Identity
from pytorch_spawner.core.journal import MAX_EVENTS_A_START
from pytorch_spawner.core.request import Request
from pytorch_spawner.core.scheduling import choose
from pytorch_spawner.errors import (
    IdentityConflict,
    InvalidEvent,
    LedgerUnavailable,
    NoGpuAvailable,
)
from pytorch_spawner.ledger.store import Lease, Ledger

RANGE = (20000, 20002)
ONE = Gpu(GpuUuid("GPU-0001"))
INVENTORY = Inventory((ONE,))


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'ledger.sqlite'}"


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    opened = Ledger.open(url)
    yield opened
    opened.close()


def take(ledger: Ledger, user: str) -> Lease:
    start = ledger.begin_start("lab", user, "", {"image": "i"})
    return ledger.take_lease(start, lambda held: choose(INVENTORY, held, Request("i", 1, "whole")))


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
    other = Lease("l2", "lab", "s2", "bo", "", lease.gpus, {}, 0.0)
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


def test_the_inventory_comes_back_as_it_was(ledger: Ledger) -> None:
    gpu = Gpu(GpuUuid("GPU-1"), 3, "H100", 81559, (9, 0), "580", "x/y=z", "big", is_simulated=True)
    ledger.write_inventory("lab", Inventory((gpu,)))
    assert ledger.read_inventory("lab").gpus == (gpu,)
    assert ledger.read_inventory("other").reason


def test_what_was_written_is_there_after_opening_again(url: str) -> None:
    first = Ledger.open(url)
    take(first, "ana")
    first.close()
    again = Ledger.open(url)
    assert len(again.leases("lab")) == 1
    again.close()


def test_a_damaged_file_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(b"this is no database" * 100)
    before = path.read_bytes()
    with pytest.raises(LedgerUnavailable):
        Ledger.open(f"sqlite:///{path}")
    assert path.read_bytes() == before


def test_a_truncated_file_is_refused_or_read_but_never_emptied(url: str, tmp_path: Path) -> None:
    opened = Ledger.open(url)
    take(opened, "ana")
    opened.close()
    path = tmp_path / "ledger.sqlite"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LedgerUnavailable):
        Ledger.open(url).leases("lab")
    assert len(path.read_bytes()) > 0


def test_a_newer_version_is_refused_and_left_as_it_is(url: str, tmp_path: Path) -> None:
    Ledger.open(url).close()
    with sqlite3.connect(tmp_path / "ledger.sqlite") as database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(LedgerUnavailable, match="newer version"):
        Ledger.open(url)


def test_the_migrations_give_the_tables_of_the_models(url: str) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.runtime.migration import MigrationContext
    from sqlalchemy import create_engine

    from pytorch_spawner.ledger.models import Base

    Ledger.open(url).close()
    with create_engine(url).connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
