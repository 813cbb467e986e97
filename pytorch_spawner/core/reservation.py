"""Where a ticket that cannot be served yet waits, and what is kept for it meanwhile. Pure.

A ticket can wait in several places: each pool that each of its grants gives. It is told the
earliest time that is known of any of them.

* Within the patience it keeps what is free in that one place, so that a GPU that falls free
  elsewhere is of use to others.
* Past the patience it keeps what is free in all of its places, so that nobody overtakes it in any.

What is kept is lent only to leases that end before the ticket should be served: at the time that
it is told or, where it is told none, when the place itself should have enough. Where that is not
known either, nothing is lent.

Guarantee: consider the first ticket past the patience, and any one of its places, with enough
devices in service, all of whose leases end. From then on each of its devices that falls free is
kept for the ticket. So the ticket is served, at the latest, when the last of the leases on that
place has ended or, where it was told a time, at that time; whichever is the later. This holds
whatever its other places do, and as long as the grant, its hours and the devices stay as they are
and no server comes back to what is kept for it there. Who comes next is then the first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from pytorch_spawner.core.entitlement import Option
from pytorch_spawner.core.forecast import Expectation, Forecast
from pytorch_spawner.core.gpus import GpuUuid
from pytorch_spawner.core.placement import Board, Device
from pytorch_spawner.core.tickets import Ticket
from pytorch_spawner.core.weekly import SHORTEST_LEASE_S, WeeklyHours


class Place(NamedTuple):
    """Where a ticket may be served.

    Attributes:
        option: By which grant, with what.
        free: Its devices that could be kept, all of one pool, fewer than are asked for.
        expected: When the others should be free.
        told: The time of ``expected``, in Unix seconds; None where it is not known, where the grant
            or the person's hours will be at their end by then, or where another place is sooner.
    """

    option: Option
    free: Sequence[Device]
    expected: Expectation
    told: float | None

    @property
    def gpus(self) -> list[GpuUuid]:
        """The devices it should be served with, as far as they are known; each once."""
        return [device.gpu.uuid for device in self.free] + [
            event[3] for event in self.expected.events
        ]


class Reservations:
    """Keeps devices for those who wait, while one decision is made."""

    def __init__(self, board: Board, forecast: Forecast, hours: WeeklyHours, now: float) -> None:
        self._board, self._forecast, self._hours, self._now = board, forecast, hours, now

    def wait(self, ticket: Ticket, options: Sequence[Option], *, is_past: bool) -> Place:
        """Choose where a ticket for several GPUs waits, and keep for it what is free.

        Args:
            ticket: Who waits, and is not away.
            options: How it may be served, each with enough devices in service; >= 1.
            is_past: It has waited longer than the patience.

        Returns:
            The place with the earliest time that it can be told. Where there is none, or on a tie,
            the place with the most devices free; then the first grant's, then the pool's by name.
        """
        places = list(self._places(ticket, options, is_past=is_past))
        chosen = self._soonest(places)
        self._forecast.use(chosen.expected.events)
        if chosen.told is not None:
            self._promise(ticket, chosen.option, chosen.gpus, chosen.told)
        kept = places if is_past else [chosen]
        for place in kept:
            self._keep(place, chosen.told)
        if len(kept) > 1:
            self._keep_what_falls_free(ticket, kept, chosen)
        return chosen

    def wait_for_one(self, ticket: Ticket, options: Sequence[Option]) -> Place:
        """Choose what a ticket for one GPU waits for; it saw nothing free, so nothing is kept.

        Args:
            ticket: Who waits, and is not away.
            options: How it may be served, each with a device in service; >= 1.

        Returns:
            The place by the first option with a time that it can be told; where there is none, by
            the first option.
        """
        for option in options:
            expected = self._forecast.first(option.kind, self._now)
            at = expected.at
            if at is not None and self._can_be_told(ticket, option, at):
                self._forecast.use(expected.events)
                self._promise(ticket, option, (expected.events[0][3],), at)
                return Place(option, (), expected, at)
        expected = self._forecast.first(options[0].kind, self._now)
        self._forecast.use(expected.events)
        return Place(options[0], (), expected, None)

    def _places(
        self, ticket: Ticket, options: Sequence[Option], *, is_past: bool
    ) -> Iterator[Place]:
        best: float | None = None
        for option in options:
            for kind, free in self._board.gather(option.kind, ticket.gpus):
                if best is not None and not is_past:
                    # A place that is later for certain need not be looked at.
                    soonest = self._forecast.first(kind, self._now).at
                    if soonest is None or soonest > best:
                        continue
                beside = [device.gpu.uuid for device in free]
                missing = ticket.gpus - len(free)
                expected = self._forecast.look(kind, missing, self._now, beside)
                at, told = expected.at, None
                is_sooner = at is not None and (best is None or at <= best)
                if at is not None and is_sooner and self._can_be_told(ticket, option, at):
                    told = best = at
                yield Place(option, free, expected, told)

    @staticmethod
    def _soonest(places: Sequence[Place]) -> Place:
        return min(
            places, key=lambda place: (place.told is None, place.told or 0.0, -len(place.free))
        )

    def _can_be_told(self, ticket: Ticket, option: Option, at: float) -> bool:
        """Whether the grant and the person's hours still give something at that time."""
        grant = option.grant
        # Somebody may stop earlier, so it waits; but by then nothing gives it anything.
        if grant.valid_until is not None and at + SHORTEST_LEASE_S > grant.valid_until:
            return False
        return grant.weekly_gpu_hours is None or self._hours.suffice(
            ticket.username, grant, option.weight, at=at
        )

    def _weight(self, uuids: Collection[GpuUuid]) -> float:
        return sum(self._board.by_uuid[uuid].share for uuid in uuids)

    def _promise(
        self, ticket: Ticket, option: Option, gpus: Collection[GpuUuid], at: float
    ) -> None:
        """Those behind it wait until it is done in its turn, and its hours are used by then."""
        if option.longest_s is not None:
            for uuid in gpus:
                self._forecast.add(uuid, at + option.longest_s, ticket.username)
        if option.grant.weekly_gpu_hours is not None:
            self._hours.promise(ticket.username, option.grant.id, at, self._weight(gpus))

    def _keep(self, place: Place, told: float | None) -> None:
        until = place.expected.at if told is None else told
        until = self._now if until is None else until
        for device in place.free:
            # Two of its places may share a device: the stricter of the two counts.
            known = device.reserved_until
            device.reserved_until = until if known is None else min(known, until)

    def _keep_what_falls_free(self, ticket: Ticket, kept: Sequence[Place], chosen: Place) -> None:
        """In its other places those behind it wait until it is served."""
        told = chosen.told
        seen = set(chosen.gpus)
        for place in kept:
            ends = [
                event
                for event in place.expected.events
                if event[3] not in seen and (told is None or event[0] < told)
            ]
            self._forecast.use(ends)
            held_back = [device.gpu.uuid for device in place.free if device.gpu.uuid not in seen]
            held_back += [event[3] for event in ends]
            seen.update(held_back)
            for uuid in held_back:
                self._forecast.add(uuid, told, ticket.username)
