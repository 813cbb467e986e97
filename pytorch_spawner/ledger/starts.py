"""Starts and their journals."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import delete, func, select, update

from pytorch_spawner.core.courses import SMOKER
from pytorch_spawner.core.journal import (
    AGENT_KINDS,
    EVENT_OVERHEAD_BYTES,
    MAX_EVENTS_A_START,
    Event,
)
from pytorch_spawner.core.request import AUTO
from pytorch_spawner.core.warmcache import WARMER
from pytorch_spawner.errors import InvalidEvent
from pytorch_spawner.ledger.database import Database
from pytorch_spawner.ledger.models import EventRow, StartRow


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
    groups: tuple[str, ...] = ()


class Starts(Database):
    """The part of the ledger about starts."""

    def begin_start(
        self,
        hub: str,
        username: str,
        servername: str,
        request: Mapping[str, Any],
        groups: Sequence[str] = (),
    ) -> Start:
        """Write down that a server starts; an earlier start of it that never ended ends now."""
        with self._transaction() as session:
            start = Start(
                id=uuid.uuid4().hex,
                hub=hub,
                username=username,
                servername=servername,
                image=str(request.get("image", "")),
                request=dict(request),
                created_at=self._moment(session, hub),
                ended_at=None,
                outcome="",
                groups=tuple(groups),
            )
            session.execute(
                update(StartRow)
                .where(StartRow.hub == hub, StartRow.username == username)
                .where(StartRow.servername == servername, StartRow.ended_at.is_(None))
                .values(ended_at=start.created_at, outcome="stopped")
            )
            session.add(StartRow(**{**asdict(start), "groups": list(start.groups)}))
        return start

    def end_start(self, start_id: str, outcome: str) -> bool:
        """Write down how a start ended; the first word stands. Returns whether this was it."""
        with self._transaction() as session:
            row = session.get(StartRow, start_id)
            if row is None or row.ended_at is not None:
                return False
            row.ended_at, row.outcome = self.now(), outcome
            return True

    def latest_start(self, hub: str, username: str, servername: str) -> Start | None:
        """Return the newest start of a server, running or ended; None when it never started."""
        with self._reading() as session:
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
        with self._reading() as session:
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
        with self._reading() as session:
            rows = session.scalars(
                select(StartRow).where(StartRow.hub == hub, StartRow.ended_at.is_(None))
            )
            return tuple(_start(row) for row in rows)

    def groups_of(self, hub: str, username: str) -> tuple[str, ...]:
        """The user's groups at their latest start."""
        newest = self.starts(hub, username)
        return newest[0].groups if newest else ()

    def known_groups(self, hub: str) -> frozenset[str]:
        """The groups of everybody who started a server lately."""
        with self._reading() as session:
            rows = session.scalars(
                select(StartRow.groups)
                .where(StartRow.hub == hub)
                .order_by(StartRow.created_at.desc())
                .limit(20_000)
            )
            return frozenset(group for groups in rows for group in groups or ())

    def started_images(self, hub: str, within_s: float) -> frozenset[str]:
        """References of the images that people's servers were started with lately."""
        with self._reading() as session:
            rows = session.scalars(
                select(StartRow.image)
                .distinct()
                .where(StartRow.hub == hub, StartRow.created_at > self.now() - within_s)
                .where(StartRow.username.not_in((WARMER, SMOKER)))
                .where(StartRow.image.not_in(("", AUTO)))
            )
            return frozenset(rows)

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
            now = self.now()
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
        with self._reading() as session:
            rows = session.scalars(
                select(EventRow)
                .where(EventRow.start_id == start_id, EventRow.seq > after_seq)
                .order_by(EventRow.seq)
            )
            return tuple(
                Event(seq=row.seq, at=row.at, kind=row.kind, data=json.loads(row.data))
                for row in rows
            )

    def reported_bytes(self, start_id: str) -> int:
        """What a start's agent reported so far takes, as ``Report.stored_bytes`` counts it."""
        with self._reading() as session:
            # JSON is written in ASCII: a character is a byte.
            size, count = session.execute(
                select(func.sum(func.length(EventRow.data)), func.count()).where(
                    EventRow.start_id == start_id, EventRow.kind.in_(AGENT_KINDS)
                )
            ).one()
            return int(size or 0) + EVENT_OVERHEAD_BYTES * int(count)

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
        groups=tuple(row.groups or ()),
    )
