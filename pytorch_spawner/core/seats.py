"""Seats: what is kept for a class around the beginning of its session. Pure.

From ten minutes before a session until ten minutes after its beginning, seats of its course are
kept: a start for the course takes one before anybody else is served, and what is not taken is
withheld from all others. A no-show's seat is everybody's after that, and so is everything outside
that time. No lease ever ends for a seat: one that is not free takes the next device that becomes.

``schedule`` asks ``ClassSeats``; nobody asks it outside those minutes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from pytorch_spawner.core.course_manifest import Manifest
from pytorch_spawner.core.courses import SMOKER
from pytorch_spawner.core.entitlement import kind_of
from pytorch_spawner.core.forecast import Forecast
from pytorch_spawner.core.grants import GrantBook, covers
from pytorch_spawner.core.placement import Board, Device, Kind
from pytorch_spawner.core.seat_room import SeatRoom
from pytorch_spawner.core.tickets import Give, Policy, Ticket
from pytorch_spawner.core.timetable import Session, local, sessions_of, zone_of
from pytorch_spawner.core.warmcache import WARMER

# Sessions of one course within a day for which seats are kept: no timetable takes the lab from
# everybody else.
MAX_A_DAY: Final = 6
# Accounts of the service's own: what they try for a course takes no student's seat.
_NOBODYS: Final = (SMOKER, WARMER)


@dataclass(frozen=True, slots=True)
class Seats:
    """What is kept for one class.

    Attributes:
        course: Its name.
        title: For people.
        count: How many GPUs, slots or instances.
        since: Unix time from which on they are kept.
        until: Unix time until which they are kept, exclusive.
        clock: ``until`` on the course's clocks, for a sentence.
        each: How many of them one start may take.
        share: "any", "whole", "slot" or "mig:<profile>".
        pool: "" for any.
        groups: JupyterHub groups of the students.
        users: Students by name.
        staff: Who looks after the course: before the class begins they take no student's seat.
        begins_at: Unix time at which the class begins.
        taken: UUIDs of what students hold as seats; a device once for each slot.
    """

    course: str
    title: str
    count: int
    since: float
    until: float
    clock: str = ""
    each: int = 1
    share: str = "any"
    pool: str = ""
    groups: tuple[str, ...] = ()
    users: tuple[str, ...] = ()
    staff: tuple[str, ...] = ()
    begins_at: float = 0.0
    taken: tuple[str, ...] = ()


class Taken(NamedTuple):
    """A lease, for whether it is somebody's seat.

    Attributes:
        course: Of its start; "" for none.
        username: Whose.
        gpus: UUIDs of what it holds; a device once for each slot.
        since: Unix time in seconds.
    """

    course: str
    username: str
    gpus: tuple[str, ...]
    since: float = 0.0


def seats_of(
    manifest: Manifest, seen: Collection[str], now: float, policy: Policy | None = None
) -> tuple[Seats, ...]:
    """What a course's sessions of these hours keep, by time.

    Args:
        manifest: Of the course.
        seen: Names of all who ever had a copy of it.
        now: Unix time in seconds.
        policy: How long before and after the beginning.

    Returns:
        With all their seats; a day's, so that it need not be asked for at every decision.
    """
    policy = policy or Policy()
    members, wanted = manifest.members, manifest.request
    each = 1 if wanted.gpus is None else wanted.gpus
    if not each:
        return ()
    students = ({*members.users, *seen}).difference(members.staff, _NOBODYS)
    everybody = Seats(
        course=manifest.name,
        title=manifest.title,
        count=len(students) * each,
        since=0.0,
        until=0.0,
        each=each,
        share=wanted.share,
        pool=wanted.pool,
        groups=members.groups,
        users=members.users,
        staff=members.staff,
    )
    day_s = 24 * 3600.0
    meets = sessions_of(manifest, now, now + day_s)
    found = (_around(one, everybody, manifest, policy) for one in meets[:MAX_A_DAY])
    return tuple(one for one in found if one.count and now < one.until)


def _around(session: Session, everybody: Seats, manifest: Manifest, policy: Policy) -> Seats:
    until = min(session.starts_at + policy.class_late_s, session.ends_at)
    return replace(
        everybody,
        count=everybody.count if session.seats is None else session.seats,
        since=session.starts_at - policy.class_early_s,
        begins_at=session.starts_at,
        until=until,
        clock=f"{local(until, zone_of(manifest)):%H:%M %Z}",
    )


def open_seats(planned: Iterable[Seats], leases: Iterable[Taken], now: float) -> tuple[Seats, ...]:
    """What is still to be kept now, and what students hold of it.

    Args:
        planned: Of all courses, any order.
        leases: All that are in force.
        now: Unix time in seconds.

    Returns:
        One of each course at most, in order of their times; with a count of 0 where all seats are
        taken, for they count in what classes may have.
    """
    current: dict[str, Seats] = {}
    for one in planned:
        if one.since <= now < one.until:
            other = current.get(one.course)
            if other is None or (one.count, one.until) > (other.count, other.until):
                current[one.course] = one
    if not current:
        return ()
    taken: dict[str, list[str]] = {name: [] for name in current}
    for lease in leases:
        seats = current.get(lease.course)
        if seats is not None and _is_seat(lease, seats):
            taken[lease.course] += lease.gpus[: seats.each]
    left = (
        replace(one, count=max(0, one.count - len(taken[name])), taken=tuple(taken[name]))
        for name, one in current.items()
    )
    return tuple(sorted(left, key=lambda one: (one.since, one.course)))


def _is_seat(lease: Taken, seats: Seats) -> bool:
    if lease.username in _NOBODYS:
        return False
    # What staff held before the class began was given to them as to anybody else.
    return lease.username not in seats.staff or lease.since >= seats.begins_at


class ClassSeats:
    """The seats while one decision is made."""

    def __init__(
        self, seats: Iterable[Seats], grants: GrantBook, now: float, board: Board, share: float
    ) -> None:
        """Begin with all that is still to be kept.

        Args:
            seats: One of each course at most.
            grants: All grants of the hub.
            now: Unix time in seconds.
            board: All devices.
            share: Of each pool that classes may have, 0 to 1; see ``SeatRoom``.
        """
        self._seats = {one.course: one for one in seats}
        self._left = {one.course: one.count for one in seats}
        self._grants, self._now = grants, now
        taken = (uuid for one in self._seats.values() for uuid in one.taken)
        self._room = SeatRoom(board, share, taken)
        # A device for each slot that is withheld, by course.
        self._kept: dict[str, list[Device]] = {}
        self._said: dict[Kind, str] = {}

    def has_seat(self, ticket: Ticket) -> bool:
        """Whether a start takes a seat of its course, before all others."""
        seats = self._seats.get(ticket.course)
        return (
            seats is not None
            and not ticket.is_away
            and ticket.username not in _NOBODYS
            # Whoever teaches comes early, and would else sit where a student is to sit.
            and (ticket.username not in seats.staff or self._now >= seats.begins_at)
            and ticket.gpus <= min(seats.each, self._left[ticket.course])
            # Who wants something else than the class queues like everybody else.
            and ("any" in (seats.share, ticket.share) or ticket.share == seats.share)
            and ("" in (seats.pool, ticket.pool) or ticket.pool == seats.pool)
            and self._room.has(ticket.pool or seats.pool, ticket.gpus)
        )

    def take(self, ticket: Ticket, given: Sequence[Give]) -> None:
        """A start was given its seat, or takes the next device that becomes free (none given)."""
        self._left[ticket.course] -= ticket.gpus
        named = ticket.pool or self._seats[ticket.course].pool
        pool = given[0].gpus[0].pool if given else named
        self._room.take(pool, ticket.gpus)

    def withhold(self, board: Board, forecast: Forecast) -> None:
        """Keep what nobody took: to all others it is in use until the seats' time is over.

        Classes that meet at the same time take turns, so that the first by name does not get all.
        """
        waiting = [
            (one, self._kinds(one, board))
            for one in self._seats.values()
            if self._left[one.course] > 0
        ]
        while waiting:
            waiting = [
                (one, kinds)
                for one, kinds in waiting
                if self._keep_one(one, kinds, board, forecast)
            ]

    def _keep_one(
        self, seats: Seats, kinds: Sequence[Kind], board: Board, forecast: Forecast
    ) -> bool:
        """Keep one device more; whether there may be another one to keep."""
        who = f"the class {seats.title}"
        kinds = [kind for kind in kinds if self._room.has(kind.pool)]
        for kind in kinds:
            found = board.find(kind, 1)
            if found is not None:
                board.take(found[0])
                forecast.add(found[0].gpu.uuid, seats.until, who)
                self._kept.setdefault(seats.course, []).append(found[0])
                return self._count_down(seats.course, found[0].gpu.pool)
        # Nothing is free: the next that becomes free is not theirs who wait, either.
        expected = [forecast.first(kind, self._now) for kind in kinds]
        known = [(one.at, one.events) for one in expected if one.at is not None]
        at, events = min(known, default=(seats.until, ()))
        if at >= seats.until:
            return False
        forecast.use(events)
        forecast.add(events[0][3], seats.until, who)
        return self._count_down(seats.course, board.by_uuid[events[0][3]].gpu.pool)

    def _count_down(self, course: str, pool: str) -> bool:
        self._room.take(pool)
        self._left[course] -= 1
        return self._left[course] > 0

    def _kinds(self, seats: Seats, board: Board) -> list[Kind]:
        """What the students' grants would let them be given: nothing else is of use to them."""
        own = [name for name in seats.users if self._grants.has_personal(name)]
        people = [("", seats.groups), *((name, ()) for name in own)]
        found: dict[Kind, None] = {}
        for name, groups in people:
            for grant in self._grants.for_person(name, groups, self._now):
                image = grant.images[0] if grant.images else ""
                if not covers(
                    grant, gpus=seats.each, share=seats.share, pool=seats.pool, image=image
                ):
                    found[kind_of(board, grant, share=seats.share, pool=seats.pool)] = None
        # Their grants may come by groups that the course does not name.
        kinds = list(found) or [board.kind(seats.pool, (), seats.share, "")]
        return [
            board.kind(pool, kind.pins, kind.share, kind.grant)
            for kind in kinds
            for pool in self._room.pools(kind.pool)
        ]

    def say(self, kind: Kind, board: Board) -> str:
        """What of a kind of devices is withheld, as a sentence; "" for nothing."""
        if kind not in self._said:
            own = {device.gpu.uuid for device in board.of_kind(kind)}
            kept = {
                course: [device for device in devices if device.gpu.uuid in own]
                for course, devices in self._kept.items()
            }
            parts = [
                f"{_count_of(devices)} kept for the class {self._seats[course].title} until "
                f"{self._seats[course].clock}"
                for course, devices in kept.items()
                if devices
            ]
            self._said[kind] = f"{'; '.join(parts)}." if parts else ""
        return self._said[kind]


def _count_of(devices: Sequence[Device]) -> str:
    word = "GPU"
    if all(device.gpu.mig_profile for device in devices):
        word = "MIG instance"
    elif all(device.slots > 1 for device in devices):
        word = "slot"
    return f"1 {word} is" if len(devices) == 1 else f"{len(devices)} {word}s are"
