"""The ledger's two databases: every test that asks for ``ledger_url`` runs once on each.

PostgreSQL is a cluster of its own, in a temporary folder and reached by a socket in that folder
only: no TCP port, and nothing of a PostgreSQL that this machine may run for other ends.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytorch_spawner.ledger.store import Ledger

# A test database may lose everything in a crash, so it need not wait for disks.
_SETTINGS = "-c listen_addresses='' -c fsync=off -c synchronous_commit=off -c full_page_writes=off"
_START_S = 60


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.programs)])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database, as a SQLAlchemy URL."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    socket_dir: Path = request.getfixturevalue("postgresql_socket_dir")
    return _create_database(socket_dir)


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    opened = Ledger.open(ledger_url)
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def postgresql_socket_dir() -> Iterator[Path]:
    """A throw-away cluster for this test run: the folder that holds its socket."""
    if reason := _trouble():
        pytest.skip(reason)
    # Not below pytest's own temporary folder: only root may enter that, and a socket's path has
    # 107 bytes at most.
    home = Path(tempfile.mkdtemp(prefix="lab-pg-"))
    data = home / "data"
    try:
        if os.geteuid() == 0:
            shutil.chown(home, "postgres")
        _run("initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale")
        options = f"{_SETTINGS} -c unix_socket_directories={home}"
        log = home / "log"
        _run("pg_ctl", "start", "-w", "-t", _START_S, "-D", data, "-l", log, "-o", options)
        try:
            yield home
        finally:
            _run("pg_ctl", "stop", "-D", data, "-m", "immediate")
    finally:
        shutil.rmtree(home)


def _trouble() -> str:
    """Why there can be no PostgreSQL here; "" when there can."""
    if reason := os.environ.get("LAB_SKIP_POSTGRESQL"):
        return reason
    if _programs() is None:
        return "PostgreSQL's server is not installed (apt-get install postgresql)"
    if os.geteuid() == 0:
        # The server refuses to run as root.
        if not shutil.which("runuser"):
            return "as root, PostgreSQL needs runuser to become another user"
        if "postgres" not in {entry.pw_name for entry in pwd.getpwall()}:
            return "as root, PostgreSQL needs a user named postgres"
    pytest.importorskip("psycopg", reason="psycopg is not installed (the extra postgresql)")
    return ""


def _programs() -> Path | None:
    """The folder of the newest server's programs; Debian keeps them off PATH."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if found:
        return max(found, key=lambda path: int("0" + path.parent.name.partition(".")[0]))
    on_path = shutil.which("initdb")
    return Path(on_path).parent if on_path and shutil.which("pg_ctl") else None


def _run(program: str, *words: str | int | Path) -> None:
    programs = _programs()
    assert programs is not None
    become = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [*become, str(programs / program), *map(str, words)],
        # Where postgres may be, too: the checkout may be closed to it.
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=2 * _START_S,
    )
    if done.returncode:
        pytest.skip(f"PostgreSQL's {program} failed here: {done.stdout.strip()[-500:]}")


def _create_database(socket_dir: Path) -> str:
    import psycopg

    name = f"ledger_{uuid.uuid4().hex}"
    where = f"host={socket_dir} user=postgres dbname=postgres"
    with psycopg.connect(where, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    return f"postgresql+psycopg://postgres@/{name}?host={socket_dir}"
