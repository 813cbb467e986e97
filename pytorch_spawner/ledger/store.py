"""Reading and writing the ledger: short transactions, one writer at a time.

Every method is one transaction and blocks for milliseconds; callers on an event loop use a thread.
The store keeps what was decided and refuses what breaks a table's rule; it decides nothing: a
function that chooses among GPUs is handed in by the caller and runs inside the transaction.
A ledger that is damaged, read-only or of a newer version is never overwritten.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import alembic.command
import alembic.config
import alembic.runtime.migration
import alembic.script
from sqlalchemy import Engine, create_engine, delete, event, func, select, text, update
from sqlalchemy.engine import make_url
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Session

from pytorch_spawner.core.gpus import Gpu, GpuUuid, Inventory
from pytorch_spawner.core.identity import Identity, next_uid
from pytorch_spawner.core.journal import MAX_EVENTS_A_START, Event
from pytorch_spawner.errors import (
    IdentityConflict,
    InvalidEvent,
    LedgerUnavailable,
    NoGpuAvailable,
    StartIsOver,
)
from pytorch_spawner.ledger.models import (
    DeviceRow,
    EventRow,
    HoldingRow,
    HomeRow,
    IdentityRow,
    LeaseRow,
    StartRow,
)

# Serialises schedulers on PostgreSQL; any constant does, as long as nobody else uses it.
_ADVISORY_LOCK = 0x70747370


@dataclass(frozen=True, slots=True)
class Start:
    """One start of one server; ``outcome`` is "" while it runs, else how it ended."""

    id: str
    hub: str
    username: str
    servername: str
    image: str
    request: Mapping[str, Any]
    created_at: float
    ended_at: float | None
    outcome: str


@dataclass(frozen=True, slots=True)
class Lease:
    """GPUs held by one start, since when (Unix seconds)."""

    id: str
    hub: str
    start_id: str
    username: str
    servername: str
    gpus: tuple[GpuUuid, ...]
    request: Mapping[str, Any]
    since: float


class Ledger:
    """The ledger of one database; safe to share between threads."""

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._clock = clock

    @classmethod
    def open(cls, url: str, clock: Callable[[], float] = time.time) -> Ledger:
        """Open the ledger at a SQLAlchemy URL, creating or migrating it where needed.

        Raises:
            LedgerUnavailable: It cannot be opened or written, is damaged, or was written by a newer
                version of this package. The file is left as it is.
        """
        try:
            engine = _create_engine(url)
            with engine.begin() as connection:
                _migrate(connection)
        except (SQLAlchemyError, OSError) as error:
            raise LedgerUnavailable(
                "The lab's ledger cannot be opened, so no GPU can be given out safely. Servers "
                "without a GPU still start. Ask an admin to run `pytorch-spawner doctor`.",
                detail=f"{make_url(url).render_as_string(hide_password=True)}: {error}",
            ) from error
        return cls(engine, clock)

    def now(self) -> float:
        """The ledger's clock: Unix time in seconds."""
        return self._clock()

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    @contextmanager
    def _transaction(self) -> Iterator[Session]:
        try:
            with Session(self._engine) as session, session.begin():
                if self._engine.dialect.name == "postgresql":
                    session.execute(
                        text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK}
                    )
                yield session
        except IntegrityError:
            raise
        except SQLAlchemyError as error:
            raise LedgerUnavailable(
                "The lab's ledger cannot be read or written just now. Try again in a minute; if it "
                "stays so, ask an admin to run `pytorch-spawner doctor`.",
                detail=str(error),
            ) from error

    # -- identities -------------------------------------------------------------------------

    def identity(
        self, username: str, said: Identity | None, uid_range: tuple[int, int]
    ) -> Identity:
        """Return a user's uid, giving out a new one where neither a source nor the ledger has one.

        Args:
            username: As JupyterHub knows it.
            said: What an outside source (auth_state, passwd) names; None when none does.
            uid_range: First and last uid to give out, inclusive.

        Raises:
            IdentityConflict: The uid belongs to somebody else, or the range is used up.
        """
        with self._transaction() as session:
            known = session.get(IdentityRow, username)
            if known is not None and (said is None or said.uid == known.uid):
                if said is not None:
                    known.gid, known.source = said.gid, said.source
                return Identity(known.uid, known.gid, known.source)
            uid = (
                said.uid if said else next_uid(session.scalars(select(IdentityRow.uid)), *uid_range)
            )
            owner = session.scalar(select(IdentityRow).where(IdentityRow.uid == uid))
            if owner is not None:
                raise IdentityConflict(
                    f"The uid {uid} that {said.source if said else 'the ledger'} names for "
                    f"{username} already belongs to {owner.username}. Two people never share a "
                    "uid; ask an admin to correct it."
                )
            identity = said or Identity(uid, uid, "ledger")
            if known is not None:
                # The source changed its mind; the home still belongs to the old uid.
                raise IdentityConflict(
                    f"{username} had the uid {known.uid}, but {identity.source} now says {uid}. "
                    "The home belongs to the old uid; ask an admin to move it."
                )
            session.add(
                IdentityRow(
                    username=username,
                    uid=uid,
                    gid=identity.gid,
                    source=identity.source,
                    at=self._clock(),
                )
            )
            return identity

    # -- homes ------------------------------------------------------------------------------

    def is_prepared(self, place: str, born: str, uid: int) -> bool:
        """Say whether the helper prepared this very volume or directory for this uid before."""
        with self._transaction() as session:
            row = session.get(HomeRow, place)
            return row is not None and (row.born, row.uid) == (born, uid)

    def mark_prepared(self, place: str, born: str, uid: int) -> None:
        """Remember that the helper prepared a volume or directory."""
        with self._transaction() as session:
            session.merge(HomeRow(place=place, born=born, uid=uid, at=self._clock()))

    # -- inventory --------------------------------------------------------------------------

    def write_inventory(self, hub: str, inventory: Inventory) -> None:
        """Replace what is known of a hub's GPUs."""
        with self._transaction() as session:
            session.execute(delete(DeviceRow).where(DeviceRow.hub == hub))
            for gpu in inventory.gpus:
                facts = {key: value for key, value in asdict(gpu).items() if key != "uuid"}
                session.add(DeviceRow(hub=hub, uuid=gpu.uuid, facts=facts, seen_at=self._clock()))

    def read_inventory(self, hub: str) -> Inventory:
        """Return a hub's GPUs as it saw them last, in index order."""
        with self._transaction() as session:
            rows = session.scalars(select(DeviceRow).where(DeviceRow.hub == hub)).all()
            gpus = []
            for row in rows:
                facts = dict(row.facts)
                capability = facts.get("compute_capability")
                facts["compute_capability"] = tuple(capability) if capability else None
                gpus.append(Gpu(uuid=GpuUuid(row.uuid), **facts))
        gpus.sort(key=lambda gpu: (gpu.index, gpu.uuid))
        return Inventory(tuple(gpus), "" if gpus else "The hub has seen no GPU.")

    # -- starts and leases ------------------------------------------------------------------

    def begin_start(
        self, hub: str, username: str, servername: str, request: Mapping[str, Any]
    ) -> Start:
        """Write down that a server starts; an earlier start of it that never ended ends now."""
        start = Start(
            id=uuid.uuid4().hex,
            hub=hub,
            username=username,
            servername=servername,
            image=str(request.get("image", "")),
            request=dict(request),
            created_at=self._clock(),
            ended_at=None,
            outcome="",
        )
        with self._transaction() as session:
            session.execute(
                update(StartRow)
                .where(StartRow.hub == hub, StartRow.username == username)
                .where(StartRow.servername == servername, StartRow.ended_at.is_(None))
                .values(ended_at=start.created_at, outcome="stopped")
            )
            session.add(StartRow(**asdict(start)))
        return start

    def end_start(self, start_id: str, outcome: str) -> bool:
        """Write down how a start ended; the first word stands. Returns whether this was it."""
        with self._transaction() as session:
            row = session.get(StartRow, start_id)
            if row is None or row.ended_at is not None:
                return False
            row.ended_at, row.outcome = self._clock(), outcome
            return True

    def latest_start(self, hub: str, username: str, servername: str) -> Start | None:
        """Return the newest start of a server, running or ended; None when it never started."""
        with self._transaction() as session:
            row = session.scalar(
                select(StartRow)
                .where(StartRow.hub == hub, StartRow.username == username)
                .where(StartRow.servername == servername)
                .order_by(StartRow.created_at.desc())
                .limit(1)
            )
            return _start(row) if row else None

    def starts(self, hub: str, username: str) -> tuple[Start, ...]:
        """Return the newest start of each of a user's servers, the newest first."""
        with self._transaction() as session:
            rows = session.scalars(
                select(StartRow)
                .where(StartRow.hub == hub, StartRow.username == username)
                .order_by(StartRow.created_at.desc())
                .limit(200)
            )
            newest: dict[str, Start] = {}
            for row in rows:
                newest.setdefault(row.servername, _start(row))
            return tuple(newest.values())

    def open_starts(self, hub: str) -> tuple[Start, ...]:
        """Return the starts that have not ended."""
        with self._transaction() as session:
            rows = session.scalars(
                select(StartRow).where(StartRow.hub == hub, StartRow.ended_at.is_(None))
            )
            return tuple(_start(row) for row in rows)

    def take_lease(
        self, start: Start, choose: Callable[[frozenset[GpuUuid]], tuple[Gpu, ...]]
    ) -> Lease:
        """Choose and hold GPUs in one transaction.

        Args:
            start: Who wants them. A lease that this server still held from an earlier start is
                released first, in the same transaction.
            choose: Called with the UUIDs that other servers hold; returns the GPUs to hold, or
                raises, in which case nothing changes.

        Raises:
            NoGpuAvailable: Another process took one of them first; nothing was written.
            StartIsOver: The start ended meanwhile; nothing was written.
            LedgerUnavailable: Nothing was written.
        """
        try:
            return self._take_lease(start, choose)
        except IntegrityError as error:
            raise NoGpuAvailable(
                "Somebody else took this GPU a moment ago. Try again, or start without a GPU.",
                wanted=int(start.request.get("gpus", 1)),
                free=0,
            ) from error

    def _take_lease(
        self, start: Start, choose: Callable[[frozenset[GpuUuid]], tuple[Gpu, ...]]
    ) -> Lease:
        with self._transaction() as session:
            # A start that was cancelled leaves its thread waiting for this transaction. It must not
            # take, nor release what the student's next start already holds.
            row = session.get(StartRow, start.id)
            if row is None or row.ended_at is not None:
                raise StartIsOver("This start was cancelled.")
            self._release(session, start.hub, start.username, start.servername, "superseded")
            held = frozenset(
                GpuUuid(gpu)
                for gpu in session.scalars(
                    select(HoldingRow.gpu).where(HoldingRow.hub == start.hub)
                )
            )
            gpus = choose(held)
            lease = Lease(
                id=uuid.uuid4().hex,
                hub=start.hub,
                start_id=start.id,
                username=start.username,
                servername=start.servername,
                gpus=tuple(gpu.uuid for gpu in gpus),
                request=start.request,
                since=self._clock(),
            )
            self._hold(session, lease)
        return lease

    def adopt_lease(self, lease: Lease) -> bool:
        """Hold what a running container's labels say; False when somebody else holds it."""
        try:
            with self._transaction() as session:
                self._hold(session, lease)
        except IntegrityError:
            return False
        return True

    def _hold(self, session: Session, lease: Lease) -> None:
        session.merge(
            LeaseRow(
                **{**asdict(lease), "gpus": list(lease.gpus), "request": dict(lease.request)},
                released_at=None,
                reason="",
            )
        )
        session.flush()
        for gpu in lease.gpus:
            session.add(HoldingRow(hub=lease.hub, gpu=gpu, slot=0, lease_id=lease.id))
        session.flush()

    def release(self, hub: str, username: str, servername: str, reason: str) -> int:
        """Give back whatever a server holds; returns how many leases that were."""
        with self._transaction() as session:
            return self._release(session, hub, username, servername, reason)

    def release_lease(self, lease_id: str, reason: str) -> bool:
        """Give back one lease; False when it was given back before."""
        with self._transaction() as session:
            row = session.get(LeaseRow, lease_id)
            if row is None or row.released_at is not None:
                return False
            self._give_back(session, [row], reason)
            return True

    def _release(
        self, session: Session, hub: str, username: str, servername: str, reason: str
    ) -> int:
        rows = session.scalars(
            select(LeaseRow)
            .where(LeaseRow.hub == hub, LeaseRow.username == username)
            .where(LeaseRow.servername == servername, LeaseRow.released_at.is_(None))
        ).all()
        self._give_back(session, rows, reason)
        return len(rows)

    def _give_back(self, session: Session, rows: Sequence[LeaseRow], reason: str) -> None:
        for row in rows:
            row.released_at, row.reason = self._clock(), reason[:255]
            session.execute(delete(HoldingRow).where(HoldingRow.lease_id == row.id))
        session.flush()

    def leases(self, hub: str) -> tuple[Lease, ...]:
        """Return what is held now, the oldest first."""
        with self._transaction() as session:
            rows = session.scalars(
                select(LeaseRow)
                .where(LeaseRow.hub == hub, LeaseRow.released_at.is_(None))
                .order_by(LeaseRow.since)
            )
            return tuple(
                Lease(
                    id=row.id,
                    hub=row.hub,
                    start_id=row.start_id,
                    username=row.username,
                    servername=row.servername,
                    gpus=tuple(GpuUuid(gpu) for gpu in row.gpus),
                    request=row.request,
                    since=row.since,
                )
                for row in rows
            )

    # -- journal ----------------------------------------------------------------------------

    def append_events(
        self, start_id: str, events: Sequence[tuple[str, Mapping[str, Any]]]
    ) -> tuple[Event, ...]:
        """Append to a start's journal; sequence numbers and times are given here.

        Raises:
            InvalidEvent: The journal is full (``MAX_EVENTS_A_START``); nothing was written.
        """
        with self._transaction() as session:
            last = session.scalar(
                select(func.max(EventRow.seq)).where(EventRow.start_id == start_id)
            )
            first = (last or 0) + 1
            if first + len(events) - 1 > MAX_EVENTS_A_START:
                raise InvalidEvent(f"A start's journal holds at most {MAX_EVENTS_A_START} events.")
            now = self._clock()
            written = tuple(
                Event(seq=first + place, at=now, kind=kind, data=data)
                for place, (kind, data) in enumerate(events)
            )
            for entry in written:
                session.add(
                    EventRow(
                        start_id=start_id,
                        seq=entry.seq,
                        at=entry.at,
                        kind=entry.kind,
                        data=json.dumps(entry.data),
                    )
                )
        return written

    def read_events(self, start_id: str, after_seq: int = 0) -> tuple[Event, ...]:
        """Return a start's journal from the entry after ``after_seq`` on, in order."""
        with self._transaction() as session:
            rows = session.scalars(
                select(EventRow)
                .where(EventRow.start_id == start_id, EventRow.seq > after_seq)
                .order_by(EventRow.seq)
            )
            return tuple(
                Event(seq=row.seq, at=row.at, kind=row.kind, data=json.loads(row.data))
                for row in rows
            )

    def forget_journals(self, before: float) -> int:
        """Drop the journals of starts that ended before a time; returns how many events went."""
        with self._transaction() as session:
            ended = select(StartRow.id).where(StartRow.ended_at < before)
            gone = session.execute(delete(EventRow).where(EventRow.start_id.in_(ended)))
            return int(getattr(gone, "rowcount", 0))


def _start(row: StartRow) -> Start:
    return Start(
        id=row.id,
        hub=row.hub,
        username=row.username,
        servername=row.servername,
        image=row.image,
        request=row.request,
        created_at=row.created_at,
        ended_at=row.ended_at,
        outcome=row.outcome,
    )


def _create_engine(url: str) -> Engine:
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return create_engine(parsed, pool_pre_ping=True)
    if parsed.database and parsed.database != ":memory:":
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(parsed, connect_args={"timeout": 10})

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        # pysqlite begins transactions late and on its own; we say BEGIN IMMEDIATE ourselves, so
        # that two writers queue at the start instead of failing at the end (SQLAlchemy docs,
        # "Serializable isolation / Savepoints / Transactional DDL").
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA foreign_keys=ON")

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _migrate(connection: Any) -> None:
    config = alembic.config.Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    known = {
        script.revision
        for script in alembic.script.ScriptDirectory.from_config(config).walk_revisions()
    }
    # alembic logs how it looks at the database at every open; only a real upgrade is news.
    logging.getLogger("alembic.runtime.migration").setLevel(logging.WARNING)
    current = alembic.runtime.migration.MigrationContext.configure(connection)
    revision = current.get_current_revision()
    if revision is not None and revision not in known:
        raise LedgerUnavailable(
            "The lab's ledger was written by a newer version of pytorch_spawner. Install that "
            "version again, or restore the ledger from a backup.",
            detail=f"revision {revision}",
        )
    if revision != alembic.script.ScriptDirectory.from_config(config).get_current_head():
        alembic.command.upgrade(config, "head")
