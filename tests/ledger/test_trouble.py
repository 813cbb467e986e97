"""A ledger in trouble is refused with a sentence, never overwritten, and tried again later."""

from __future__ import annotations

import os
import pwd
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest
from queueing import HUB, take
from sqlalchemy import create_engine, text

from pytorch_spawner.errors import LedgerUnavailable
from pytorch_spawner.ledger import database
from pytorch_spawner.ledger.store import Ledger

# Waits for locks, and for other processes.
pytestmark = pytest.mark.slow

# Twice the time after which the ledger is tried again, so that a busy machine passes, too.
T = TypeVar("T")
PATIENCE_S = 2 * database._RETRY_S + 2
STARTS_WITHOUT = "Servers without a GPU still start"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A whole ledger, closed, in which ana holds the GPU."""
    place = tmp_path / "ledger" / "ledger.sqlite"
    ledger = Ledger.open(f"sqlite:///{place}")
    take(ledger, "ana")
    ledger.close()
    return place


def empty(_: bytes) -> bytes:
    return b""


def first_half(whole: bytes) -> bytes:
    return whole[: len(whole) // 2]


def first_page_only(whole: bytes) -> bytes:
    return whole[:4096]


def half_a_header(whole: bytes) -> bytes:
    return whole[:50]


def no_database(_: bytes) -> bytes:
    return b"this is no database" * 500


def garbled_inside(whole: bytes) -> bytes:
    """The header is right, what it leads to is not."""
    return whole[:100] + b"\xff" * 3996 + whole[4096:]


DAMAGES = [empty, first_half, first_page_only, half_a_header, no_database, garbled_inside]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_and_stays_byte_for_byte(
    path: Path, damage: Callable[[bytes], bytes]
) -> None:
    path.write_bytes(damage(path.read_bytes()))
    before = files_in(path.parent)
    for _ in range(2):
        with pytest.raises(LedgerUnavailable, match=STARTS_WITHOUT) as caught:
            Ledger.open(f"sqlite:///{path}")
        assert str(path.parent) not in caught.value.public_message
    assert files_in(path.parent) == before


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_is_put_back_is_used_again_without_a_restart(
    path: Path, damage: Callable[[bytes], bytes]
) -> None:
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    ledger = Ledger(f"sqlite:///{path}")
    with pytest.raises(LedgerUnavailable):
        ledger.leases(HUB)
    put_back(path, whole)
    assert [lease.username for lease in wait_for(lambda: ledger.leases(HUB))] == ["ana"]
    ledger.begin_start(HUB, "bo", "", {})
    ledger.close()


@pytest.mark.parametrize("damage", [empty, no_database])
def test_a_file_that_is_damaged_while_in_use_is_found_out_and_put_back(
    path: Path, damage: Callable[[bytes], bytes]
) -> None:
    whole = path.read_bytes()
    ledger = Ledger.open(f"sqlite:///{path}")
    assert len(ledger.leases(HUB)) == 1
    path.write_bytes(damage(whole))
    with pytest.raises(LedgerUnavailable, match=STARTS_WITHOUT):
        ledger.begin_start(HUB, "bo", "", {})
    put_back(path, whole)
    wait_for(lambda: ledger.begin_start(HUB, "bo", "", {}))
    ledger.close()
    again = Ledger.open(f"sqlite:///{path}")
    assert again.latest_start(HUB, "bo", "") is not None, "it was written into the file put back"
    again.close()


@pytest.mark.timeout(60)
def test_a_ledger_that_another_process_locks_is_not_waited_for_long(ledger_url: str) -> None:
    ledger = Ledger.open(ledger_url)
    with locked_by_another_process(ledger_url):
        began = time.monotonic()
        with pytest.raises(LedgerUnavailable, match=STARTS_WITHOUT):
            ledger.begin_start(HUB, "ana", "", {})
        assert time.monotonic() - began < 15
        began = time.monotonic()
        with pytest.raises(LedgerUnavailable, match=STARTS_WITHOUT):
            ledger.leases(HUB)
        assert time.monotonic() - began < 1, "the next one is told at once"
    wait_for(lambda: ledger.begin_start(HUB, "ana", "", {}))
    ledger.close()


@pytest.mark.timeout(60)
def test_a_lock_does_not_hold_up_those_who_only_read(ledger_url: str) -> None:
    ledger = Ledger.open(ledger_url)
    take(ledger, "ana")
    with locked_by_another_process(ledger_url):
        began = time.monotonic()
        assert [lease.username for lease in ledger.leases(HUB)] == ["ana"]
        assert time.monotonic() - began < 3
    ledger.close()


def test_a_newer_version_is_refused_and_left_as_it_is(ledger_url: str, tmp_path: Path) -> None:
    Ledger.open(ledger_url).close()
    was = set_version(ledger_url, "9999")
    before = files_in(tmp_path)
    ledger = Ledger(ledger_url)
    with pytest.raises(LedgerUnavailable, match=rf"newer version.*{STARTS_WITHOUT}"):
        ledger.open_now()
    assert files_in(tmp_path) == before
    assert set_version(ledger_url, was) == "9999"
    wait_for(lambda: ledger.begin_start(HUB, "ana", "", {}))
    ledger.close()


def test_a_file_that_may_only_be_read_stays_as_it_is_and_is_used_again_when_it_may_be_written() -> (
    None
):
    with as_somebody_who_is_not_root() as folder:
        path = folder / "ledger.sqlite"
        Ledger.open(f"sqlite:///{path}").close()
        path.chmod(0o444)
        folder.chmod(0o555)
        before = files_in(folder)
        ledger = Ledger(f"sqlite:///{path}")
        with pytest.raises(LedgerUnavailable, match=STARTS_WITHOUT):
            ledger.begin_start(HUB, "ana", "", {})
        assert files_in(folder) == before
        folder.chmod(0o755)
        path.chmod(0o644)
        wait_for(lambda: ledger.begin_start(HUB, "ana", "", {}))
        ledger.close()


def test_a_folder_that_may_not_be_written_is_a_sentence_too() -> None:
    with as_somebody_who_is_not_root() as folder:
        folder.chmod(0o555)
        with pytest.raises(LedgerUnavailable, match=STARTS_WITHOUT):
            Ledger.open(f"sqlite:///{folder / 'ledger.sqlite'}")
        assert files_in(folder) == {}
        folder.chmod(0o755)


def test_a_database_server_that_does_not_answer_is_a_sentence_without_its_password() -> None:
    pytest.importorskip("psycopg", reason="psycopg is not installed (the extra postgresql)")
    with pytest.raises(LedgerUnavailable, match=STARTS_WITHOUT) as caught:
        Ledger.open("postgresql+psycopg://lab:secret@127.0.0.1:1/lab")
    assert "secret" not in str(caught.value)


def files_in(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def put_back(path: Path, whole: bytes) -> None:
    """Restore a backup as one does: the damaged file and what belongs to it go."""
    draft = path.with_name("backup")
    draft.write_bytes(whole)
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    draft.replace(path)


def wait_for(call: Callable[[], T]) -> T:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return call()
        except LedgerUnavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def set_version(url: str, version: str) -> str:
    """Write a schema version; returns the one before."""
    engine = create_engine(url)
    with engine.begin() as connection:
        was = connection.scalar(text("SELECT version_num FROM alembic_version"))
        connection.execute(text("UPDATE alembic_version SET version_num = :to"), {"to": version})
    engine.dispose()
    return str(was)


@contextmanager
def locked_by_another_process(url: str) -> Iterator[None]:
    """Another process writes, and does not come to an end."""
    begin = (
        f"SELECT pg_advisory_lock({database._ADVISORY_LOCK})"
        if url.startswith("postgresql")
        else "BEGIN IMMEDIATE"
    )
    script = (
        "import sys, sqlalchemy as sa\n"
        "engine = sa.create_engine(sys.argv[1], isolation_level='AUTOCOMMIT')\n"
        "with engine.connect() as connection:\n"
        "    connection.exec_driver_sql(sys.argv[2])\n"
        "    print('locked', flush=True)\n"
        "    sys.stdin.readline()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, url, begin],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        yield
    finally:
        holder.kill()
        holder.communicate()


@contextmanager
def as_somebody_who_is_not_root() -> Iterator[Path]:
    """Root may write whatever the mode says; yields a folder of somebody's own."""
    folder = Path(tempfile.mkdtemp(prefix="lab-ledger-"))
    if os.geteuid() != 0:
        with removing(folder):
            yield folder
        return
    who = pwd.getpwnam("nobody")
    os.chown(folder, who.pw_uid, -1)
    os.seteuid(who.pw_uid)
    try:
        if not os.access(database.__file__, os.R_OK, effective_ids=True):
            pytest.skip("only root may read this checkout, and root may write any file")
        yield folder
    finally:
        os.seteuid(0)
        with removing(folder):
            pass


@contextmanager
def removing(folder: Path) -> Iterator[None]:
    try:
        yield
    finally:
        folder.chmod(0o755)
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()


def test_what_a_removed_ledger_left_beside_it_does_not_come_back(path: Path) -> None:
    """Killed before a checkpoint: the -wal file holds everything, and stays when its file goes."""
    kill_while_open(path)
    wal = path.with_name(f"{path.name}-wal")
    assert wal.stat().st_size > 0
    path.unlink()
    ledger = Ledger.open(f"sqlite:///{path}")
    assert ledger.leases(HUB) == ()
    for number in range(50):
        ledger.begin_start(HUB, f"u{number}", "", {})
    ledger.close()
    with sqlite3.connect(path) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()
    (aside,) = path.parent.glob("*-wal.of-a-lost-ledger-*")
    assert aside.stat().st_size > 0, "nothing is thrown away"


def test_a_ledger_whose_checkpoint_was_cut_short_is_used(path: Path) -> None:
    """A checkpoint writes the first page, with the new number of pages, before the others."""
    kill_while_open(path)
    before, wal = path.read_bytes(), path.with_name(f"{path.name}-wal").read_bytes()
    Ledger.open(f"sqlite:///{path}").close()
    after = path.read_bytes()
    assert len(after) > len(before)
    path.write_bytes(after[:4096] + before[4096:])
    path.with_name(f"{path.name}-wal").write_bytes(wal)
    path.with_name(f"{path.name}-shm").unlink(missing_ok=True)
    ledger = Ledger.open(f"sqlite:///{path}")
    assert [lease.username for lease in ledger.leases(HUB)] == ["ana"]
    assert ledger.latest_start(HUB, "u39", "") is not None
    ledger.close()


def test_a_file_without_tables_is_no_new_ledger(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 1")
    database.close()
    before = path.read_bytes()
    with pytest.raises(LedgerUnavailable, match=STARTS_WITHOUT) as caught:
        Ledger.open(f"sqlite:///{path}")
    assert "no tables of a ledger" in caught.value.detail
    assert path.read_bytes() == before


def test_a_ledger_that_is_removed_under_a_running_hub_is_noticed_and_begun_anew(path: Path) -> None:
    ledger = Ledger.open(f"sqlite:///{path}")
    assert len(ledger.leases(HUB)) == 1
    path.unlink()
    with pytest.raises(LedgerUnavailable):
        ledger.begin_start(HUB, "bo", "", {})
    wait_for(lambda: ledger.begin_start(HUB, "bo", "", {}))
    assert ledger.leases(HUB) == ()
    ledger.close()
    again = Ledger.open(f"sqlite:///{path}")
    assert again.latest_start(HUB, "bo", "") is not None
    again.close()


def kill_while_open(path: Path) -> None:
    """Another process writes 40 starts, and is killed before SQLite moves them into the file."""
    code = (
        "import os, sys; from pytorch_spawner.ledger.store import Ledger\n"
        "ledger = Ledger.open(sys.argv[1])\n"
        "for number in range(40):\n"
        f"    ledger.begin_start({HUB!r}, f'u{{number}}', '', {{'filler': 'x' * 2000}})\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, f"sqlite:///{path}"], check=False)
    assert done.returncode == -9
