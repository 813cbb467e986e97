"""What earlier versions wrote is there after an upgrade, on either database."""

from __future__ import annotations

import json
from typing import Any

import alembic.command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from queueing import HUB, ONE, begin, first_come
from sqlalchemy import Connection, create_engine, inspect, text

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


def test_a_ledger_of_the_sixth_version_keeps_its_courses_and_the_hubs_share(
    ledger_url: str,
) -> None:
    rows = {
        "counters": [
            {"hub": HUB, "name": "class_share", "value": 0.5},
            {"hub": HUB, "name": "version", "value": 7.0},
        ],
        "courses": [COURSE],
    }
    write_version(ledger_url, "0006", rows)
    ledger = Ledger.open(ledger_url)
    assert (ledger.class_share(HUB), ledger.class_share("another")) == (0.5, None)
    assert ledger.version(HUB) == 7
    (course,) = ledger.courses(HUB)
    assert (course.manifest.title, course.preloaded_at, course.stopped_at) == ("CV", 5.0, None)
    ledger.close()
    with create_engine(ledger_url).begin() as connection:
        assert counters(connection) == {"version": 7.0}
        alembic.command.downgrade(database._scripts(connection), "0006")
        assert counters(connection) == {"version": 7.0, "class_share": 0.5}
        assert inspect(connection).has_table("courses")
        assert not inspect(connection).has_table("hub_settings")
    ledger = Ledger.open(ledger_url)
    assert ledger.class_share(HUB) == 0.5
    ledger.close()


def test_a_ledger_whose_hub_never_said_its_share_has_none_after_an_upgrade(
    ledger_url: str,
) -> None:
    write_version(ledger_url, "0006", {"counters": [{"hub": HUB, "name": "shown", "value": 1.0}]})
    ledger = Ledger.open(ledger_url)
    assert ledger.class_share(HUB) is None
    assert ledger.shown_version(HUB) == 1
    ledger.close()


# A course as version 0006 kept it.
COURSE = {
    "hub": HUB,
    "name": "cv",
    "manifest": json.dumps(
        {"name": "cv", "title": "CV", "source": {"git": "https://forge.example/cv.git"}}
    ),
    "by": "bo",
    "changed_at": 1.0,
    "task": "",
    "task_by": "bo",
    "asked_at": 2.0,
    "is_running": False,
    "stop_asked": False,
    "steps": "[]",
    "preloaded_at": 5.0,
    "candidate": "",
    "candidate_served": "",
    "candidate_says": "",
    "commit_id": "",
    "served": "",
    "published_at": None,
    "published_by": "",
    "serial": 0,
}


def counters(connection: Connection) -> dict[str, float]:
    found = connection.execute(text("SELECT name, value FROM counters"))
    return {row.name: row.value for row in found}


def write_first_version(url: str) -> None:
    """A ledger as version 0001 left it: one start of ana's, which holds a GPU."""
    start = {
        "id": "s1",
        "hub": HUB,
        "username": "ana",
        "servername": "",
        "image": "i",
        "request": json.dumps({"gpus": 1}),
        "created_at": 1.0,
        "ended_at": None,
        "outcome": "",
    }
    lease = {
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
    }
    holding = {"hub": HUB, "gpu": ONE.uuid, "slot": 0, "lease_id": "l1"}
    write_version(url, "0001", {"starts": [start], "leases": [lease], "holdings": [holding]})


def write_version(url: str, version: str, rows: dict[str, list[dict[str, Any]]]) -> None:
    """A ledger as a version left it, with rows by table."""
    with create_engine(url).begin() as connection:
        alembic.command.upgrade(database._scripts(connection), version)
        for table, row in [(name, row) for name, all_rows in rows.items() for row in all_rows]:
            names = ", ".join(f'"{name}"' for name in row)
            places = ", ".join(f":{name}" for name in row)
            connection.execute(text(f"INSERT INTO {table} ({names}) VALUES ({places})"), row)
