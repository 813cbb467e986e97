"""The ledger's database: opening, migrating, short transactions, a clock that never runs back.

A ledger that is locked, read-only, damaged, of a newer version or cut off is never overwritten:
every use of it raises ``LedgerUnavailable``, and it is tried again a moment later, so a hub starts
without it and goes on by itself once it is repaired.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final

import alembic.command
import alembic.config
import alembic.runtime.migration
import alembic.script
from sqlalchemy import Connection, Engine, create_engine, event, select, text, union
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DataError, IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Session

from pytorch_spawner.errors import BadRequest, LedgerUnavailable
from pytorch_spawner.ledger.models import CounterRow, DeviceRow

log = logging.getLogger("pytorch_spawner.ledger")

# Serialises writers on PostgreSQL; any constant does, as long as nobody else uses it.
_ADVISORY_LOCK: Final = 0x70747370
_BUSY_S: Final = 5
# After a failure the database is left alone for this long, so that a start that reads it five times
# does not wait five times for the same lock.
_RETRY_S: Final = 2.0
# A float holds today's Unix time to a quarter of this.
_TICK_S: Final = 1e-6
# ``_create_whole`` links whole ledgers only, so a file without this table lost what it held.
_IS_OURS: Final = (
    "SELECT CASE count(*) WHEN 0 THEN 'it has no tables of a ledger' ELSE 'ok' END "
    "FROM sqlite_master WHERE name = 'alembic_version'"
)
_UNOPENED: Final = (
    "The lab's ledger cannot be opened, so no GPU can be given out safely. Servers without a GPU "
    "still start. Ask an admin to run `pytorch-spawner doctor`."
)
_BUSY: Final = (
    "The lab's ledger cannot be read or written just now, so no GPU can be given out safely. "
    "Servers without a GPU still start. Try again in a minute; if it stays so, ask an admin to run "
    "`pytorch-spawner doctor`."
)
_UNFIT: Final = "What was sent holds a character or a length that the ledger cannot store."


class Database:
    """One database, safe to share between threads; opened at its first use."""

    def __init__(self, url: str, clock: Callable[[], float] = time.time) -> None:
        """Remember where it is.

        Args:
            url: SQLAlchemy URL.
            clock: Unix time in seconds.
        """
        self._url = url
        self._clock = clock
        self._engine: Engine | None = None
        self._opening = threading.Lock()  # protects _engine and _failure
        self._failure: tuple[float, LedgerUnavailable] | None = None
        self._file: tuple[int, int] | None = None
        self._latest = 0.0

    def open_now(self) -> None:
        """Open, create or migrate it.

        Raises:
            LedgerUnavailable: It cannot be used; the file is left as it is.
        """
        self._connected()

    def close(self) -> None:
        """Close every connection; the next use opens it again."""
        with self._opening:
            if self._engine is not None:
                self._engine.dispose()
            self._engine = None

    def now(self) -> float:
        """Unix time in seconds that never runs backwards.

        While the machine's clock is behind the latest time that the ledger knows, time stands
        still: leases end late rather than early, and no order turns round.
        """
        self._latest = max(self._latest, self._clock())
        return self._latest

    def hubs(self) -> tuple[str, ...]:
        """Ids of the hubs that have written here, in order."""
        # Whatever else a hub writes, it counts as well; but for its devices.
        found = union(select(CounterRow.hub), select(DeviceRow.hub))
        with self._reading() as session:
            return tuple(sorted(session.scalars(found)))

    def clock_ahead_s(self, hub: str) -> float:
        """How far the ledger's time is ahead of this machine's clock, >= 0: for so long it stands.

        More than a little means that the clock was ahead once, and was put right.
        """
        with self._reading() as session:
            row = session.get(CounterRow, (hub, "clock"))
            return max(0.0, row.value - self._clock()) if row is not None else 0.0

    def reset_clock(self, hub: str) -> None:
        """Let time begin anew at this machine's clock; hub and service have to be restarted after.

        What was written while the clock was ahead keeps its times.
        """
        with self._transaction() as session:
            row = session.get(CounterRow, (hub, "clock"))
            self._latest = self._clock()
            if row is not None:
                row.value = self._latest

    def _moment(self, session: Session, hub: str) -> float:
        """The time of this transaction: later than that of any earlier one of any process."""
        row = session.get(CounterRow, (hub, "clock"))
        known = row.value if row is not None else 0.0
        # Where the clock is behind, a little later still: what is sorted by time keeps its order.
        self._latest = max(self._latest, known + _TICK_S)
        now = self.now()
        if row is None:
            session.add(CounterRow(hub=hub, name="clock", value=now))
        elif now > known:
            row.value = now
        return now

    @staticmethod
    def _count_up(session: Session, hub: str, name: str) -> int:
        """The next number of a counter, from 1."""
        row = session.get(CounterRow, (hub, name))
        if row is None:
            row = CounterRow(hub=hub, name=name, value=0.0)
            session.add(row)
        row.value += 1
        return int(row.value)

    # -- transactions -----------------------------------------------------------------------

    @contextmanager
    def _transaction(self) -> Iterator[Session]:
        """A transaction that may write; writers queue at its start."""
        engine = self._connected()
        with self._translated(), Session(engine) as session, session.begin():
            _queue_writers(session.connection())
            yield session

    @contextmanager
    def _reading(self) -> Iterator[Session]:
        """A transaction that only reads, and waits for no writer."""
        engine = self._connected().execution_options(ledger_reads=True)
        with self._translated(), Session(engine) as session, session.begin():
            yield session

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError:
            raise
        except DataError as error:
            # A zero byte, a text that is too long: the ledger is well, nobody else has to wait.
            raise BadRequest(_UNFIT, detail=str(error)) from error
        except SQLAlchemyError as error:
            failure = LedgerUnavailable(_BUSY, detail=str(error))
            with self._opening:
                self._failure = (time.monotonic(), failure)
                # A file that is put back in the damaged one's place is another file: open it anew.
                if self._engine is not None:
                    self._engine.dispose()
                self._engine = None
            raise failure from error

    def _connected(self) -> Engine:
        with self._opening:
            if self._failure is not None:
                at, failure = self._failure
                if time.monotonic() - at < _RETRY_S:
                    raise LedgerUnavailable(failure.public_message, detail=failure.detail)
                self._failure = None
            if self._engine is not None and _identity(self._url) != self._file:
                # Removed or replaced behind our back: what is written to it is lost.
                self._engine.dispose()
                self._engine = None
                lost = LedgerUnavailable(_BUSY, detail="the ledger's file is gone, or is another")
                self._failure = (time.monotonic(), lost)
                raise lost
            if self._engine is None:
                try:
                    self._engine = _open(self._url)
                    self._file = _identity(self._url)
                except LedgerUnavailable as failure:
                    self._failure = (time.monotonic(), failure)
                    raise
            return self._engine


def _open(url: str) -> Engine:
    try:
        # A password may stand among the options, too.
        shown = make_url(url).set(query={}).render_as_string(hide_password=True)
    except (ArgumentError, ValueError):
        # Not the error's own words, nor the error itself: they may hold the password.
        said = "the ledger's address" if "@" in url or "?" in url else repr(url)
        raise LedgerUnavailable(
            _UNOPENED,
            detail=f"{said} is no SQLAlchemy URL, such as sqlite:////srv/lab/ledger.sqlite or "
            "postgresql+psycopg://lab@db/lab",
        ) from None
    try:
        _create_whole(url)
        _check_whole(url)
        engine = _create_engine(url)
        try:
            _check(engine)
        except BaseException:
            engine.dispose()
            raise
    except ImportError as error:
        raise LedgerUnavailable(
            _UNOPENED,
            detail=f"{shown} needs a driver that cannot be loaded: {error}. Name a ledger in "
            "SQLite (sqlite:////srv/lab/ledger.sqlite), or one in PostgreSQL "
            "(postgresql+psycopg://lab@db/lab) and install pytorch_spawner[postgresql].",
        ) from error
    except (SQLAlchemyError, OSError) as error:
        raise LedgerUnavailable(_UNOPENED, detail=f"{shown}: {error}") from error
    return engine


def _sqlite_file(url: str) -> Path | None:
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite" or not parsed.database:
        return None
    return None if parsed.database == ":memory:" else Path(parsed.database)


def _identity(url: str) -> tuple[int, int] | None:
    """Which file a SQLite ledger is; None for another database, or a file that is not there."""
    path = _sqlite_file(url)
    if path is None:
        return None
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _create_whole(url: str) -> None:
    """Create a SQLite ledger beside its place and link it there in one step.

    So a file that is there is a whole ledger: one that is empty or cut off lost what it held, and
    is not mistaken for a new one. Two processes that create it at once agree on the first.
    """
    path = _sqlite_file(url)
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size:
        return
    with _locked(path.parent):
        if path.exists():
            if path.stat().st_size == 0:
                raise LedgerUnavailable(
                    _UNOPENED,
                    detail=f"{path} is empty: it was cut off. Stop the hub, then restore it, or "
                    f"remove it with {path.name}-wal and {path.name}-shm to begin anew; running "
                    "servers are then found by their labels.",
                )
            return
        _put_aside(path)
        draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        engine = _create_engine(f"sqlite:///{draft}", journal="DELETE", mode="rwc")
        try:
            with engine.begin() as connection:
                _migrate(connection)
            engine.dispose()
            os.link(draft, path)
        finally:
            engine.dispose()
            draft.unlink(missing_ok=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time creates a ledger in a folder.

    Raises:
        OSError: Another one does not get done, or the file system knows no locks.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        deadline = time.monotonic() + _BUSY_S
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        yield
    finally:
        os.close(handle)


def _put_aside(path: Path) -> None:
    """Move what a ledger that is gone left beside it.

    SQLite would replay the old file's -wal into the new one. Source: "How To Corrupt An SQLite
    Database File", 1.4.
    """
    for suffix in ("-wal", "-shm", "-journal"):
        left = path.with_name(path.name + suffix)
        if left.exists():
            aside = left.with_name(f"{left.name}.of-a-lost-ledger-{uuid.uuid4().hex[:8]}")
            left.rename(aside)
            log.warning("%s has no ledger any more; it is now %s", left, aside.name)


def _check_whole(url: str) -> None:
    """See that a SQLite file has all the pages that its header counts, before anything is written.

    SQLite itself looks, and writes nothing: "immutable" keeps it from the -wal file. The file must
    not be opened in any other way: closing it would drop every lock that this process holds on it
    (fcntl's rule), another process would take itself for the last one and remove the -wal file, and
    the ledger would be damaged. Source: "How To Corrupt An SQLite Database File", 2.2.
    """
    path = _sqlite_file(url)
    if path is None:
        return
    where = path.absolute().as_uri()
    if not (trouble := _look(f"{where}?mode=ro&immutable=1", _IS_OURS)):
        return
    wal = path.with_name(path.name + "-wal")
    if wal.exists() and wal.stat().st_size:
        # The file may be in the middle of a checkpoint, by a process that was killed or is at it:
        # what is missing in it is in the -wal file.
        trouble = _look(f"{where}?mode=ro", "PRAGMA quick_check(1)")
    if trouble:
        raise LedgerUnavailable(
            _UNOPENED,
            detail=f"{path} was cut off, or is no ledger: {trouble}. Stop the hub, then restore "
            f"it, or remove it with {path.name}-wal and {path.name}-shm to begin anew.",
        )


def _look(uri: str, question: str) -> str:
    """What is wrong with a SQLite database, by SQLite's own word; "" for nothing."""
    try:
        connection = sqlite3.connect(uri, uri=True, timeout=_BUSY_S)
    except sqlite3.Error as error:
        return str(error)
    try:
        (answer,) = connection.execute(question).fetchone()
    except sqlite3.DatabaseError as error:
        if "locked" in str(error):  # SQLITE_BUSY, SQLITE_LOCKED: no damage, somebody is at it
            raise LedgerUnavailable(_BUSY, detail=str(error)) from error
        return str(error)
    finally:
        connection.close()
    return "" if answer == "ok" else str(answer)


def _create_engine(url: str, journal: str = "WAL", mode: str = "rw") -> Engine:
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        # Whatever the server's default is: writers queue by the lock of ``_queue_writers``, and
        # each must see what the one before it wrote.
        return create_engine(parsed, pool_pre_ping=True, isolation_level="READ COMMITTED")
    file = _sqlite_file(url)
    if file is not None:
        # Opened only if it is there (rw), so that nobody but ``_create_whole`` ever makes one.
        parsed = parsed.set(database=file.absolute().as_uri(), query={"mode": mode, "uri": "true"})
    engine = create_engine(parsed, connect_args={"timeout": _BUSY_S})

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        # pysqlite begins transactions late and on its own; we say BEGIN ourselves, so that two
        # writers queue at the start instead of failing at the end (SQLAlchemy docs, "Serializable
        # isolation / Savepoints / Transactional DDL").
        connection.isolation_level = None
        connection.execute(f"PRAGMA journal_mode={journal}")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA foreign_keys=ON")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        reads = connection.get_execution_options().get("ledger_reads")
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    return engine


def _check(engine: Engine) -> None:
    """See that the ledger is ours and of this version; migrate an older one."""
    with engine.execution_options(ledger_reads=True).begin() as connection:
        if _revision(connection) == _head():
            return
    with engine.begin() as connection:
        _queue_writers(connection)
        _migrate(connection)


def _queue_writers(connection: Connection) -> None:
    """On PostgreSQL: wait until no other writer is at work, as long as SQLite would, not for ever.

    SQLite's BEGIN IMMEDIATE does the same by itself.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SET LOCAL lock_timeout = '{_BUSY_S}s'"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})


def _scripts(connection: Connection | None = None) -> alembic.config.Config:
    config = alembic.config.Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    if connection is not None:
        config.attributes["connection"] = connection
    return config


def _head() -> str | None:
    return _revisions()[0]


@cache
def _revisions() -> tuple[str | None, frozenset[str]]:
    """The newest version of a ledger, and all versions: alembic loads every file to say so."""
    directory = alembic.script.ScriptDirectory.from_config(_scripts())
    return directory.get_current_head(), frozenset(
        one.revision for one in directory.walk_revisions()
    )


def _revision(connection: Connection) -> str | None:
    """The version of the ledger; None for an empty database.

    Raises:
        LedgerUnavailable: It was written by a newer version.
    """
    # alembic logs how it looks at the database at every open; only a real upgrade is news.
    logging.getLogger("alembic.runtime.migration").setLevel(logging.WARNING)
    found = alembic.runtime.migration.MigrationContext.configure(connection).get_current_revision()
    if found is not None and found not in _revisions()[1]:
        raise LedgerUnavailable(
            "The lab's ledger was written by a newer version of pytorch_spawner, so no GPU can be "
            "given out safely. Servers without a GPU still start. Ask an admin to install that "
            "version again, or to restore the ledger from a backup.",
            detail=f"revision {found}",
        )
    return found


def _migrate(connection: Connection) -> None:
    if _revision(connection) != _head():
        alembic.command.upgrade(_scripts(connection), "head")
