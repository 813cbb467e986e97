"""Warm caches: what is asked for, built, proved and given to starts; see ``core.warmcache``."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any, Final

from sqlalchemy import delete, or_, select
from sqlalchemy.orm import Session

from pytorch_spawner.core.warmcache import UNDER_WAY, Cache, CacheKey, Target
from pytorch_spawner.errors import BadRequest
from pytorch_spawner.ledger.log import Log
from pytorch_spawner.ledger.models import CacheRow, ChangeRow

# The end of a log is what explains a failure; what a build may write is not bounded elsewhere.
MAX_LOG_BYTES: Final = 16 * 1024
# A build holds a GPU for many minutes, so a longer queue is a mistake of whoever fills it.
MAX_QUEUED: Final = 20
# Builds that failed or expired are kept to be read and built again, each with its suite.
KEPT_ENDED: Final = 100
_USE_NOTED_S: Final = 60.0
_ENDED: Final = ("published", "failed", "expired")
_PLAIN: Final = tuple(
    one.name for one in fields(Cache) if one.name not in ("suite", "key", "targets")
)


class Caches(Log):
    """The part of the ledger about warm caches."""

    # -- builds -----------------------------------------------------------------------------

    def request_cache(  # noqa: PLR0913  (a build has these fields)
        self,
        hub: str,
        *,
        by: str,
        scope: str,
        image: str,
        pool: str,
        gpus: int,
        suite: Mapping[str, Any],
        suite_digest: str,
        archive: bytes,
    ) -> Cache:
        """Ask for a build.

        Args:
            hub: Id of the hub.
            by: Who asks.
            scope: Name of the course it is for; "" for all.
            image: Reference of the image.
            pool: Pool of the GPU; "" for any.
            gpus: 1, or 0 for the CPU.
            suite: What ``core.suites.Suite.as_json`` gives.
            suite_digest: Of the suite's files.
            archive: The files, packed.

        Raises:
            BadRequest: Too many builds wait already.
        """
        with self._transaction() as session:
            self._forget_old(session, hub)
            queued = session.scalars(_rows(hub).where(CacheRow.state == "queued")).all()
            if len(queued) >= MAX_QUEUED:
                raise BadRequest(f"{MAX_QUEUED} builds wait already; stop one of them first.")
            row = CacheRow(
                id=uuid.uuid4().hex[:12],
                hub=hub,
                scope=scope,
                image=image,
                pool=pool,
                gpus=gpus,
                suite=dict(suite),
                suite_digest=suite_digest,
                archive=archive,
                by=by[:255],
                asked_at=self._moment(session, hub),
            )
            session.add(row)
            after = {**_about(row), "image": image, "pool": pool, "gpus": gpus}
            self._put_down(session, row, by, None, {"is": "asked for", **after})
            session.flush()
            return _cache(row)

    def next_cache(self, hub: str) -> Cache | None:
        """Begin the oldest build that waits; None where none waits or one is under way."""
        waiting = (
            _rows(hub)
            .where(CacheRow.state == "queued")
            .order_by(CacheRow.asked_at, CacheRow.id)
            .limit(1)
        )
        # Asked every second: nobody is to wait for a writer that has nothing to write.
        with self._reading() as session:
            if session.scalar(waiting) is None:
                return None
        with self._transaction() as session:
            if session.scalar(_rows(hub).where(CacheRow.state.in_(UNDER_WAY)).limit(1)):
                return None
            row = session.scalar(waiting)
            if row is None:
                return None
            row.state, row.message = "building", "Its container is being started."
            self._count_up(session, hub, "shown")
            return _cache(row)

    def note_cache(  # noqa: PLR0913  (whatever is known by now)
        self,
        cache_id: str,
        *,
        state: str | None = None,
        message: str | None = None,
        key: CacheKey | None = None,
        torch: str | None = None,
        triton: str | None = None,
        volume: str | None = None,
        digest: str | None = None,
        size_bytes: int | None = None,
        files: int | None = None,
        targets: Sequence[Target] | None = None,
        log: str | None = None,
        ended_at: float | None = None,
    ) -> None:
        """Write down how far a build is; what is None stays as it is.

        A build that is over stays over. One that ends without ``ended_at`` ends now.
        """
        said: dict[str, Any] = {
            "state": state,
            "message": None if message is None else _storable(message)[:4096],
            "key": None if key is None else asdict(key),
            "torch": None if torch is None else _storable(torch)[:64],
            "triton": None if triton is None else _storable(triton)[:64],
            "volume": volume,
            "digest": digest,
            "size_bytes": size_bytes,
            "files": files,
            "targets": None if targets is None else [asdict(one) for one in targets],
            "log": None if log is None else _tail(log),
            "ended_at": ended_at,
        }
        with self._transaction() as session:
            row = session.get(CacheRow, cache_id)
            if row is None or (state is not None and row.state in ("failed", "expired")):
                return
            for name, value in said.items():
                if value is not None:
                    setattr(row, name, value)
            if row.state in _ENDED and row.ended_at is None:
                row.ended_at = self.now()
            self._count_up(session, row.hub, "shown")

    def cancel_cache(self, hub: str, cache_id: str, by: str) -> bool:
        """Stop a build: one that waits is over at once, one under way is asked to end.

        Returns:
            Whether there was something to stop.
        """
        with self._transaction() as session:
            row = _find(session, hub, cache_id)
            if row is None or row.state not in ("queued", *UNDER_WAY):
                return False
            if row.stop_asked:
                return True
            row.stop_asked = True
            if row.state == "queued":
                row.state, row.ended_at = "failed", self._moment(session, hub)
                row.message = f"{_storable(by)[:255]} stopped it before it began."
            else:
                row.message = "Asked to stop."
            self._put_down(session, row, by, None, {"is": "stopped", **_about(row)})
            return True

    def is_cache_stopped(self, cache_id: str) -> bool:
        """Whether somebody asked for a build's end; true for one that is gone, too."""
        with self._reading() as session:
            row = session.get(CacheRow, cache_id)
            return row is None or row.stop_asked

    def _forget_old(self, session: Session, hub: str) -> None:
        over = (
            select(CacheRow.id)
            .where(CacheRow.hub == hub, CacheRow.state.in_(("failed", "expired")))
            # One that was removed while a server used it: its volume has still to go.
            .where(or_(CacheRow.state == "failed", CacheRow.volume == ""))
            .order_by(CacheRow.asked_at.desc(), CacheRow.id)
            .offset(KEPT_ENDED)
            # SQLite takes no OFFSET without a LIMIT.
            .limit(10_000)
        )
        old = session.scalars(over).all()
        if old:
            session.execute(delete(CacheRow).where(CacheRow.id.in_(old)))

    # -- looking ----------------------------------------------------------------------------

    def caches(self, hub: str) -> tuple[Cache, ...]:
        """Every build and what came of it, the newest first."""
        with self._reading() as session:
            found = _rows(hub).order_by(CacheRow.asked_at.desc(), CacheRow.id)
            return tuple(map(_cache, session.scalars(found)))

    def cache(self, hub: str, cache_id: str) -> Cache | None:
        """One build; None where there is none of this id."""
        with self._reading() as session:
            row = _find(session, hub, cache_id)
            return None if row is None else _cache(row)

    def suite_archive(self, hub: str, cache_id: str) -> bytes:
        """The files of a build's suite, packed.

        Raises:
            BadRequest: There is no such build.
        """
        with self._reading() as session:
            archive = session.scalar(
                select(CacheRow.archive).where(CacheRow.hub == hub, CacheRow.id == cache_id)
            )
        if archive is None:
            raise BadRequest("There is no such build any more.")
        return bytes(archive)

    def cache_under_way(self, hub: str) -> Cache | None:
        """The build that runs now; None where none does."""
        with self._reading() as session:
            found = _rows(hub).where(CacheRow.state.in_(UNDER_WAY)).limit(1)
            row = session.scalar(found)
            return None if row is None else _cache(row)

    def offered_caches(self, hub: str) -> tuple[Cache, ...]:
        """What starts may be given."""
        with self._reading() as session:
            found = _rows(hub).where(
                CacheRow.state == "published", CacheRow.promoted_at.is_not(None)
            )
            return tuple(map(_cache, session.scalars(found)))

    # -- giving out -------------------------------------------------------------------------

    def promote_cache(
        self,
        hub: str,
        cache_id: str,
        by: str,
        check: Callable[[Cache], None] = lambda _: None,
    ) -> bool:
        """Give a published cache to starts from now on, before any other of its key.

        Args:
            hub: Id of the hub.
            cache_id: Which.
            by: Who does.
            check: Raises where it is not as it was seen; nothing is written then.

        Returns:
            False where it is not published.
        """
        with self._transaction() as session:
            row = _find(session, hub, cache_id)
            if row is not None:
                check(_cache(row))
            if row is None or row.state != "published":
                return False
            self._set_promoted(session, row, by, self._moment(session, hub))
            return True

    def publish_cache(self, hub: str, cache_id: str, by: str) -> bool:
        """Give a build that was proved to starts, in one step.

        Returns:
            False where it is not being checked any more, or somebody asked to stop it.
        """
        with self._transaction() as session:
            row = _find(session, hub, cache_id)
            if row is None or row.state != "checking" or row.stop_asked:
                return False
            row.state, row.message, row.ended_at = "published", "", self.now()
            self._set_promoted(session, row, by, self._moment(session, hub))
            return True

    def retire_cache(
        self,
        hub: str,
        cache_id: str,
        by: str,
        check: Callable[[Cache], None] = lambda _: None,
    ) -> bool:
        """Roll back: starts get what was promoted before it.

        Returns:
            False where starts did not get it anyway.
        """
        with self._transaction() as session:
            row = _find(session, hub, cache_id)
            if row is not None:
                check(_cache(row))
            if row is None or row.state != "published" or row.promoted_at is None:
                return False
            self._set_promoted(session, row, by, None)
            # It is kept for a while from now on, however long ago it was built.
            row.ended_at = self._moment(session, hub)
            return True

    def _set_promoted(
        self,
        session: Session,
        row: CacheRow,
        by: str,
        at: float | None,
        undoes: int | None = None,
    ) -> int:
        before = {"promoted_at": row.promoted_at, **_about(row)}
        row.promoted_at = at
        return self._put_down(session, row, by, before, {**before, "promoted_at": at}, undoes)

    def _undo_promotion(self, session: Session, line: ChangeRow, by: str) -> tuple[int | None, Any]:
        """Take a promotion or a roll-back back.

        Returns:
            Id of the log's new line, and what is there now; None as the id where it was changed
            again since.
        """
        row = _find(session, line.hub, line.subject)
        if row is None or row.state != "published":
            return None, None if row is None else {"state": row.state}
        if row.promoted_at != line.after["promoted_at"]:
            return None, {"promoted_at": row.promoted_at}
        return self._set_promoted(session, row, by, line.before["promoted_at"], line.id), None

    def use_cache(self, cache_id: str) -> None:
        """Write down that a start was given it, once a minute at most."""
        with self._reading() as session:
            row = session.get(CacheRow, cache_id)
            if row is None or self.now() - (row.used_at or 0.0) < _USE_NOTED_S:
                return
        with self._transaction() as session:
            row = session.get(CacheRow, cache_id)
            if row is not None:
                row.used_at = self.now()
                self._count_up(session, row.hub, "shown")

    def expire_cache(self, cache_id: str, why: str) -> None:
        """Write down that a cache's files are gone.

        Args:
            cache_id: Which.
            why: A sentence.
        """
        with self._transaction() as session:
            row = session.get(CacheRow, cache_id)
            if row is not None:
                row.state, row.volume, row.message = "expired", "", _storable(why)[:4096]
                self._count_up(session, row.hub, "shown")

    def remove_cache(
        self,
        hub: str,
        cache_id: str,
        by: str,
        check: Callable[[Cache], None] = lambda _: None,
    ) -> Cache | None:
        """Give a cache up, or a build that failed.

        Its volume stays in the row until the service has removed it, and says so by
        ``expire_cache``: a running server may have it mounted.

        Returns:
            What it was; None where there is none, it is gone already, or it is not over yet.
        """
        with self._transaction() as session:
            row = _find(session, hub, cache_id)
            if row is not None:
                check(_cache(row))
            if row is None or row.state not in ("published", "failed"):
                return None
            was = _cache(row)
            before = {"is": row.state, **_about(row)}
            row.state, row.message = "expired", f"{_storable(by)[:255]} removed it."
            self._put_down(session, row, by, before, None)
            return was

    def _give_up_caches_of(self, session: Session, hub: str, scope: str, by: str) -> None:
        """Give up all caches of a course that is removed: another of its name must not get them.

        As with ``remove_cache``, volumes stay in the rows until the service has removed them.
        """
        for row in session.scalars(_rows(hub).where(CacheRow.scope == scope)).all():
            said = _storable(f"{by[:255]} removed the course {scope}.")
            stopped = {"is": "stopped", **_about(row)}
            if row.state in UNDER_WAY:
                row.stop_asked, row.message = True, "Asked to stop."
                self._put_down(session, row, by, None, stopped)
            elif row.state == "queued":
                row.state, row.message = "failed", said
                row.ended_at = self._moment(session, hub)
                self._put_down(session, row, by, None, stopped)
            elif row.state == "published":
                before = {"is": row.state, **_about(row)}
                row.state, row.message = "expired", said
                self._put_down(session, row, by, before, None)

    def _put_down(
        self,
        session: Session,
        row: CacheRow,
        by: str,
        before: Any,
        after: Any,
        undoes: int | None = None,
    ) -> int:
        """Write a line into the audit log and let pages show what changed; no scheduler wakes."""
        self._count_up(session, row.hub, "shown")
        return self._note(
            session, row.hub, by, "cache", row.id, before, after, undoes=undoes, is_decision=False
        )


def _rows(hub: str) -> Any:
    return select(CacheRow).where(CacheRow.hub == hub)


def _find(session: Session, hub: str, cache_id: str) -> CacheRow | None:
    row = session.get(CacheRow, cache_id)
    return row if row is not None and row.hub == hub else None


def _about(row: CacheRow) -> dict[str, Any]:
    """What the log says of a cache beside what was done: its row may be gone one day."""
    return {"suite": row.suite.get("name", ""), "course": row.scope}


def _cache(row: CacheRow) -> Cache:
    return Cache(
        **{name: getattr(row, name) for name in _PLAIN},
        suite=row.suite,
        key=None if row.key is None else CacheKey(**row.key),
        targets=tuple(Target(**one) for one in row.targets),
    )


def _storable(text: str) -> str:
    """Text of a container as any database takes it: no zero byte, no half of a character."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()


def _tail(text: str) -> str:
    return _storable(text).encode()[-MAX_LOG_BYTES:].decode("utf-8", "ignore")
