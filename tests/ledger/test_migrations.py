"""What earlier versions wrote is there after an upgrade, on either database."""

from __future__ import annotations

import json

import alembic.command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from queueing import HUB, ONE, begin, first_come
from sqlalchemy import create_engine, text

from pytorch_spawner.core.placement import Holding
from pytorch_spawner.ledger import database
from pytorch_spawner.ledger.models import Base
from pytorch_spawner.ledger.store import Ledger


def test_the_migrations_give_the_tables_of_the_models(ledger_url: str) -> None:
    Ledger.open(ledger_url).close()
    with create_engine(ledger_url).connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


def test_a_ledger_of_the_first_version_keeps_what_it_holds(ledger_url: str) -> None:
    write_first_version(ledger_url)
    ledger = Ledger.open(ledger_url)
    (lease,) = ledger.leases(HUB)
    assert (lease.username, lease.holdings) == ("ana", (Holding(ONE.uuid),))
    assert (lease.until, lease.kept_until, lease.weight, lease.grant) == (None, None, 1.0, "")
    assert ledger.latest_start(HUB, "ana", "").groups == ()
    begin(ledger, "bo")
    assert ledger.decide(HUB, first_come)[1] == {}, "ana still holds the GPU"
    ledger.release(HUB, "ana", "", "stopped")
    assert len(ledger.decide(HUB, first_come)[1]) == 1
    ledger.close()


def write_first_version(url: str) -> None:
    """A ledger as version 0001 left it: one start of ana's, which holds a GPU."""
    rows = {
        "starts": {
            "id": "s1",
            "hub": HUB,
            "username": "ana",
            "servername": "",
            "image": "i",
            "request": json.dumps({"gpus": 1}),
            "created_at": 1.0,
            "ended_at": None,
            "outcome": "",
        },
        "leases": {
            "id": "l1",
            "hub": HUB,
            "start_id": "s1",
            "username": "ana",
            "servername": "",
            "gpus": json.dumps([ONE.uuid]),
            "request": json.dumps({"gpus": 1}),
            "since": 1.0,
            "released_at": None,
            "reason": "",
        },
        "holdings": {"hub": HUB, "gpu": ONE.uuid, "slot": 0, "lease_id": "l1"},
    }
    with create_engine(url).begin() as connection:
        alembic.command.upgrade(database._scripts(connection), "0001")
        for table, row in rows.items():
            places = ", ".join(f":{name}" for name in row)
            connection.execute(
                text(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({places})"), row
            )
