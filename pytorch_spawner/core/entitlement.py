"""What a ticket may have by the grants alone: through which, of what kind, for how long. Pure.

What the person holds and has used already is the scheduler's business (``scheduling``).
"""

from __future__ import annotations

from typing import NamedTuple

from pytorch_spawner.core.grants import Grant, GrantBook, covers
from pytorch_spawner.core.placement import Board, Kind
from pytorch_spawner.core.tickets import Ticket
from pytorch_spawner.core.weekly import SHORTEST_LEASE_S


class Option(NamedTuple):
    """One way in which a ticket may be served.

    Attributes:
        grant: Through which grant.
        kind: With which devices.
        longest_s: For how long at most, in seconds; None for no limit.
        most: How many such devices one pool has, in service or not.
        most_now: The same of those in service.
        weight: GPU-hours that it uses an hour at most: with the devices of its kind that count
            most. 0 where the grant does not limit them.
        is_ending: The grant ends before a lease that is worth giving would.
    """

    grant: Grant
    kind: Kind
    longest_s: float | None
    most: int
    most_now: int
    weight: float
    is_ending: bool


def kind_of(board: Board, grant: Grant, *, share: str, pool: str) -> Kind:
    """With what devices a grant serves a wish that it covers.

    Args:
        board: The devices.
        grant: The grant.
        share: Of the wish; see ``Ticket``.
        pool: Of the wish; "" for any.
    """
    return board.kind(
        grant.pool or pool,
        grant.gpus,
        grant.share if share == "any" else share,
        grant.id if grant.gpus else "",
    )


class Entitlements:
    """The options of every ticket while one decision is made.

    A queue of thousands asks for the same few things: grants are looked up once for each set of
    groups, and an option is made once for each wish and grant.
    """

    def __init__(
        self, grants: GrantBook, board: Board, max_lease_s: int | None, now: float
    ) -> None:
        """Begin without having looked up anything.

        Args:
            grants: All grants of the hub.
            board: The devices.
            max_lease_s: The lab's own limit; None for none.
            now: Unix time in seconds.
        """
        self._grants, self._board = grants, board
        self._max_lease_s, self._now = max_lease_s, now
        self._by_person: dict[tuple[str, tuple[str, ...]], tuple[Grant, ...]] = {}
        # By the count too: a grant may give one person more than everybody.
        self._by_wish: dict[tuple[int, str, str, str], dict[tuple[str, int], Option | None]] = {}
        self._by_ticket: dict[str, tuple[Option, ...]] = {}

    def grants_of(self, ticket: Ticket) -> tuple[Grant, ...]:
        """The grants that the person has now, the first to be used first."""
        # The same for all of the same groups whom no grant names.
        name = ticket.username if self._grants.has_personal(ticket.username) else ""
        key = (name, ticket.groups)
        found = self._by_person.get(key)
        if found is None:
            found = self._grants.for_person(ticket.username, ticket.groups, self._now)
            self._by_person[key] = found
        return found

    def of(self, ticket: Ticket) -> tuple[Option, ...]:
        """The options that cover what is asked for, the first to be used first."""
        found = self._by_ticket.get(ticket.id)
        if found is None:
            wish = (ticket.gpus, ticket.share, ticket.pool, ticket.image)
            options = self._by_wish.setdefault(wish, {})
            grants = self.grants_of(ticket)
            for grant in grants:
                if (grant.id, grant.count) not in options:
                    options[grant.id, grant.count] = self._option(grant, ticket)
            covering = (options[grant.id, grant.count] for grant in grants)
            found = tuple(option for option in covering if option is not None)
            self._by_ticket[ticket.id] = found
        return found

    def _option(self, grant: Grant, ticket: Ticket) -> Option | None:
        """How a grant serves a wish; None where it does not."""
        is_outside = covers(
            grant, gpus=ticket.gpus, share=ticket.share, pool=ticket.pool, image=ticket.image
        )
        if is_outside or not self._pins_fit(grant, ticket):
            return None
        kind = kind_of(self._board, grant, share=ticket.share, pool=ticket.pool)
        limits = [
            limit
            for limit in (
                self._max_lease_s,
                grant.max_lease_s,
                None if grant.valid_until is None else grant.valid_until - self._now,
            )
            if limit is not None
        ]
        ends_at = grant.valid_until
        return Option(
            grant,
            kind,
            min(limits, default=None),
            self._board.most_at_once(kind),
            self._board.most_at_once(kind, in_service=True),
            0.0 if grant.weekly_gpu_hours is None else ticket.gpus * self._board.heaviest(kind),
            ends_at is not None and ends_at - self._now < SHORTEST_LEASE_S,
        )

    def _pins_fit(self, grant: Grant, ticket: Ticket) -> bool:
        if not grant.gpus or not ticket.pool:
            return True
        pinned = (self._board.by_uuid.get(uuid) for uuid in grant.gpus)
        return any(device is not None and device.gpu.pool == ticket.pool for device in pinned)
