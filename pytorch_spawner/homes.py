"""Whose uid a server runs as, and that its home and cache are there and belong to it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

from pytorch_spawner.adapters import home_engine, passwd
from pytorch_spawner.core import identity, plan
from pytorch_spawner.errors import IdentityConflict, LedgerUnavailable
from pytorch_spawner.ledger.store import Ledger

if TYPE_CHECKING:
    from pytorch_spawner.shared import Lab

# What the ledger writes down of a bind root beside its homes: that there are any.
_ROOT: Final[tuple[str, int]] = ("root", 0)

log = logging.getLogger("pytorch_spawner")


class Homes:
    """One per hub process, ledger and hub id."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        # By volume: uids given out while the ledger was away. A start that fails may make no
        # volume, and so no label; and while one is on its way, the engine does not list it yet.
        self._handed_out: dict[str, int] = {}

    async def passwd_identity(self, username: str) -> identity.Identity | None:
        """The uid of the user of that name on the hub's machine."""
        said = await asyncio.to_thread(passwd.read_uid, username)
        return identity.identity_from_mapping(said, "passwd", username)

    async def identity_of(
        self,
        username: str,
        said: identity.Identity | None,
        uid_range: tuple[int, int],
        home: home_engine.Place,
        lane: str,
    ) -> identity.Identity:
        """A user's uid: an outside source's, the ledger's, else the one the user's home has.

        The homes' labels matter when the ledger was lost or cannot be read: a uid that a home
        belongs to is never given to somebody else.

        Raises:
            IdentityConflict: Two sources disagree, or there is no uid to be had.
            LedgerUnavailable: It cannot be read, and no other source knows the user.
        """
        try:
            known = await self._lab.call(lambda ledger: ledger.known_identity(username))
            if known is not None and said in (None, known):
                return known
        except LedgerUnavailable as error:
            return said or await self._identity_of_home(home, uid_range, lane, error)
        owners = await self._owners(lane)
        if said is None and known is None and home.volume in owners:
            said = identity.Identity(owners[home.volume], owners[home.volume], "home")
        near = _near_end(uid_range, set(owners.values()))
        try:
            return await self._lab.call(
                lambda ledger: ledger.identity(username, said, near, set(owners.values()))
            )
        except LedgerUnavailable as error:  # it can be read, but not written
            return said or known or await self._identity_of_home(home, uid_range, lane, error)

    async def _identity_of_home(
        self,
        home: home_engine.Place,
        uid_range: tuple[int, int],
        lane: str,
        error: LedgerUnavailable,
    ) -> identity.Identity:
        """Without a ledger: the home's own uid, or for a new home one from the range's far end."""
        if not home.volume:
            raise error  # a directory's owner is not known here
        owners = await self._owners(lane)
        # Nothing is awaited from here until the uid is remembered: two get two.
        uid = owners.get(home.volume)
        if uid is None:
            # The ledger gives from the near end, so that both meet only in a full range.
            free = (one for one in range(uid_range[1], uid_range[0] - 1, -1))
            taken = set(owners.values())
            uid = next((one for one in free if one not in taken), None)
        if uid is None:
            raise IdentityConflict("All uids of the range are given out. Ask an admin for more.")
        self._handed_out[home.volume] = uid
        return identity.Identity(uid, uid, "home")

    async def _owners(self, lane: str) -> dict[str, int]:
        """The uid of each volume, also of those that have no label yet."""
        client = await self._lab.in_lane(lane, lambda: self._lab.client)
        labelled = await self._lab.in_lane(
            lane, lambda: home_engine.volume_owners(client, self._lab.hub)
        )
        return {**self._handed_out, **labelled}

    async def prepare(
        self,
        places: Sequence[home_engine.Place],
        who: identity.Identity,
        image: str,
        lane: str,
        *,
        pull: Callable[[], Awaitable[None]],
    ) -> bool:
        """Make homes and caches that were not made before; returns whether there was any."""
        # The first connection may wait for an engine that hangs: never on the event loop.
        client = await self._lab.in_lane(lane, lambda: self._lab.client)
        labels = {plan.LABEL + "hub": self._lab.hub + "-helper"}

        def missing() -> list[tuple[home_engine.Place, str]]:
            found = []
            for place in places:
                born = (
                    home_engine.volume_birth(
                        client, place.volume, {plan.LABEL + "owner": str(who.uid)}
                    )
                    if place.volume
                    else "bind"
                )
                # Where the ledger does not know: to prepare it again changes nothing.
                if not was_prepared(place.source, born, who.uid, unknown=False):
                    found.append((place, born))
            return found

        def was_prepared(source: str, born: str, uid: int, *, unknown: bool) -> bool:
            try:
                return self._lab.ledger().is_prepared(source, born, uid)
            except LedgerUnavailable:
                return unknown

        todo = await self._lab.in_lane(lane, missing)
        if not todo:
            return False
        await pull()
        roots = {place.root for place, _ in todo if place.root}

        def make() -> None:
            used = {root for root in roots if was_prepared(root, *_ROOT, unknown=True)}
            asked = [replace(place, has_neighbours=place.root in used) for place, _ in todo]
            home_engine.prepare_places(client, image, asked, who.uid, who.gid, labels)

        await self._lab.in_lane(lane, make)
        made = [(place.source, born, who.uid) for place, born in todo]
        for source, born, uid in (*made, *((root, *_ROOT) for root in roots)):
            mark = partial(Ledger.mark_prepared, place=source, born=born, uid=uid)
            try:
                await self._lab.call(mark)
            except LedgerUnavailable as error:
                log.warning("that a home is prepared was not written down: %s", error)
        return True


def _near_end(uid_range: tuple[int, int], taken: Collection[int]) -> tuple[int, int]:
    """The range less what was given from its far end: the ledger goes on above the highest uid."""
    first, last = uid_range
    while last > first and last in taken:
        last -= 1
    return first, last
