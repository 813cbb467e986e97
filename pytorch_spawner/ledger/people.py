"""Uids for ever, and which homes were prepared for them."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import select

from pytorch_spawner.core.identity import Identity, next_uid
from pytorch_spawner.errors import IdentityConflict
from pytorch_spawner.ledger.database import Database
from pytorch_spawner.ledger.models import HomeRow, IdentityRow


class People(Database):
    """The part of the ledger about users."""

    def known_identity(self, username: str) -> Identity | None:
        """The uid that a user was given; None for one who never started."""
        with self._reading() as session:
            known = session.get(IdentityRow, username)
            return Identity(known.uid, known.gid, known.source) if known else None

    def usernames(self) -> frozenset[str]:
        """Everybody who ever started a server."""
        with self._reading() as session:
            return frozenset(session.scalars(select(IdentityRow.username)))

    def identity(
        self,
        username: str,
        said: Identity | None,
        uid_range: tuple[int, int],
        taken: Collection[int] = (),
    ) -> Identity:
        """Return a user's uid, giving out a new one where neither a source nor the ledger has one.

        Args:
            username: As JupyterHub knows it.
            said: What an outside source (auth_state, passwd, the label of the user's own home)
                names; None when none does.
            uid_range: First and last uid to give out, inclusive.
            taken: Uids that homes on the engine belong to; they are not given out, also when the
                ledger that gave them was lost.

        Raises:
            IdentityConflict: The uid belongs to somebody else, or the range is used up.
        """
        with self._transaction() as session:
            known = session.get(IdentityRow, username)
            if known is not None and (said is None or said.uid == known.uid):
                if said is not None:
                    known.gid, known.source = said.gid, said.source
                return Identity(known.uid, known.gid, known.source)
            given = {*session.scalars(select(IdentityRow.uid)), *taken}
            uid = said.uid if said else next_uid(given, *uid_range)
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
                    at=self.now(),
                )
            )
            return identity

    def is_prepared(self, place: str, born: str, uid: int) -> bool:
        """Say whether the helper prepared this very volume or directory for this uid before."""
        with self._reading() as session:
            row = session.get(HomeRow, place)
            return row is not None and (row.born, row.uid) == (born, uid)

    def mark_prepared(self, place: str, born: str, uid: int) -> None:
        """Remember that the helper prepared a volume or directory."""
        with self._transaction() as session:
            session.merge(HomeRow(place=place, born=born, uid=uid, at=self.now()))
