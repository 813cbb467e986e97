"""A hub whose ledger is damaged, too new or locked: it runs, says so, and touches nothing."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from pytorch_spawner.ledger.store import Ledger
from tests.lab_driver import Lab, running_lab

pytestmark = [pytest.mark.docker, pytest.mark.slow]
Trouble = Callable[[Path], AbstractContextManager[None]]


@contextmanager
def truncated(file: Path) -> Iterator[None]:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    yield


@contextmanager
def of_a_newer_version(file: Path) -> Iterator[None]:
    with sqlite3.connect(file) as database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
    database.close()
    yield


@contextmanager
def locked(file: Path) -> Iterator[None]:
    database = sqlite3.connect(file, isolation_level=None)
    database.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        database.execute("ROLLBACK")
        database.close()


@pytest.mark.parametrize(
    ("trouble", "health"),
    # Whoever only reads does not mind a lock.
    [(truncated, 503), (of_a_newer_version, 503), (locked, 200)],
)
def test_the_hub_runs_and_says_so_and_only_starts_without_a_gpu_work(
    trouble: Trouble, health: int, tmp_path: Path
) -> None:
    file = tmp_path / "ledger.sqlite"
    Ledger.open(f"sqlite:///{file}").close()
    with trouble(file):
        before = file.read_bytes()
        with running_lab(tmp_path) as lab:
            lab.add_users("ana")
            answer = lab.spawn("ana", {"gpus": 1})
            assert answer.status_code == 503, answer.text
            assert "ledger" in answer.json()["message"]
            assert "Servers without a GPU still start" in answer.json()["message"]
            assert lab.containers() == []
            lab.start_server("ana", {"share": "none"})
            assert lab.exec("ana", "id", "-u") != "0"
            lab.stop_server("ana")
            assert answers(lab, "services/lab/health") == health
        assert file.read_bytes() == before


def test_a_ledger_that_was_put_right_is_used_without_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "ledger.sqlite"
    Ledger.open(f"sqlite:///{file}").close()
    whole = file.read_bytes()
    with truncated(file), running_lab(tmp_path) as lab:
        lab.add_users("ana")
        assert lab.spawn("ana", {"gpus": 1}).status_code == 503
        file.write_bytes(whole)
        lab.wait_until(
            lambda: lab.spawn("ana", {"gpus": 1}).status_code in (201, 202), 10, "never again"
        )
        lab.wait_ready("ana")
        assert [lease.username for lease in lab.leases()] == ["ana"]


def answers(lab: Lab, path: str) -> int:
    return lab.session.get(f"{lab.url}/{path}", timeout=10).status_code
