"""What the scheduler takes and answers: tickets, leases, past use, decisions. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from pytorch_spawner.core.gpus import Gpu
from pytorch_spawner.core.grants import Grant
from pytorch_spawner.core.placement import PREFERENCES, Holding


@dataclass(frozen=True, slots=True)
class Ticket:
    """One start's place in the queue.

    Attributes:
        id: Id of the start.
        username: Whose server it is.
        servername: "" for the default server.
        groups: JupyterHub groups of the user when the start began.
        gpus: How many are asked for, >= 1.
        share: "any", "whole", "slot" or "mig:<profile>".
        pool: Name of a pool; "" for any.
        image: Image reference.
        seq: Order of arrival; a number of the ledger's, not a time.
        since: Unix time of arrival, for people and for the patience.
        boost: What an admin added to the priority.
        is_away: Nobody waits for it just now (the hub restarted); it keeps its place.
        course: Name of a course; "" for none.
    """

    id: str
    username: str
    servername: str = ""
    groups: tuple[str, ...] = ()
    gpus: int = 1
    share: str = "any"
    pool: str = ""
    image: str = ""
    seq: int = 0
    since: float = 0.0
    boost: int = 0
    is_away: bool = False
    course: str = ""

    @property
    def server(self) -> tuple[str, str]:
        """Whose server, and which."""
        return self.username, self.servername


@dataclass(frozen=True, slots=True)
class Held:
    """A lease, as the scheduler needs it.

    Attributes:
        id: Id of the lease; "" for a container whose lease is not in the ledger.
        username: Who holds it.
        servername: Which server.
        holdings: What it holds.
        grant: Id of the grant it was given through; "" where unknown.
        since: Unix time.
        until: When it ends at the latest; None for no limit.
        kept_until: The server ended unexpectedly, and the lease is kept for it until then; None
            while the server runs.
    """

    id: str
    username: str
    servername: str
    holdings: tuple[Holding, ...]
    grant: str = ""
    since: float = 0.0
    until: float | None = None
    kept_until: float | None = None

    @property
    def free_at(self) -> float | None:
        """When its devices are free at the latest; None where nobody knows."""
        if self.kept_until is None or self.until is None:
            return self.until if self.kept_until is None else self.kept_until
        return min(self.kept_until, self.until)

    def is_over(self, now: float) -> bool:
        """Whether it was kept, and there is nothing left to keep it for."""
        return self.kept_until is not None and self.free_at is not None and self.free_at <= now


@dataclass(frozen=True, slots=True)
class Usage:
    """What was used in the past.

    Attributes:
        decayed_h: GPU-hours by user, older ones counting less (see ``core.usage``).
        week_h: GPU-hours since Monday, by (user, grant id), running leases included.
    """

    decayed_h: Mapping[str, float] = field(default_factory=dict)
    week_h: Mapping[tuple[str, str], float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Policy:
    """How the queue is kept.

    Attributes:
        preference: Key of ``placement.PREFERENCES``.
        patience_s: After this long a ticket is overtaken by nobody any more.
        max_lease_s: Longest lease; None for no limit.
        usage_step_h: Past use counts in steps of this many GPU-hours, so that arrival decides
            among people who used about the same.
        class_early_s: So long before a class begins its seats are kept.
        class_late_s: So long after its beginning.
        class_seats_share: Of each pool that classes may have at most, 0 to 1.
    """

    preference: str = "pack"
    patience_s: float = 4 * 3600.0
    max_lease_s: int | None = None
    usage_step_h: float = 0.5
    class_early_s: float = 600.0
    class_late_s: float = 600.0
    class_seats_share: float = 0.8

    def __post_init__(self) -> None:
        if self.preference not in PREFERENCES:
            raise ValueError(f"preference is one of {', '.join(PREFERENCES)}")


@dataclass(frozen=True, slots=True)
class Give:
    """A ticket is served.

    Attributes:
        ticket: Whose turn it is.
        gpus: The devices, best first.
        holdings: The slots, in the same order.
        grant: The grant it is served through.
        until: When the lease ends at the latest; None for no limit.
        why: The grant as a sentence.
        resumes: Id of the kept lease that it takes over; "" for none.
    """

    ticket: Ticket
    gpus: tuple[Gpu, ...]
    holdings: tuple[Holding, ...]
    grant: Grant
    until: float | None
    why: str
    resumes: str = ""


@dataclass(frozen=True, slots=True)
class Wait:
    """A ticket waits.

    Attributes:
        ticket: Who waits.
        place: From 1, among those who wait for the same devices.
        of: How many wait for the same devices.
        expected_at: Unix time at which it should be served at the latest, unless a server comes
            back to what is kept for it; None where nobody knows.
        after: Who holds the device that is expected to be free next; "" where nobody knows.
        trouble: Why no eligible device is in service, or none is free in time, as a sentence; ""
            where one is.
        kept: What is kept for a class just now, as a sentence; "" for nothing. The expected time
            counts on nobody of the class coming for it.
    """

    ticket: Ticket
    place: int
    of: int
    expected_at: float | None = None
    after: str = ""
    trouble: str = ""
    kept: str = ""

    @property
    def reason(self) -> str:
        """What the student is told beside place and time."""
        if self.trouble:
            return self.trouble
        ahead = "Nobody is ahead of you" if self.place == 1 else f"{self.place - 1} ahead of you"
        if self.kept:
            return f"{ahead}; {self.kept}"
        if self.expected_at is None:
            return f"{ahead}; the next GPU is free when somebody stops their server."
        if self.place == 1 and self.after:
            return f"{ahead}; the next GPU is expected when {self.after}'s time ends."
        return f"{ahead}; a GPU is expected when the time of those who hold one ends."


class Place(Protocol):
    """A place in the queue, as decided (``Wait``) or as the ledger keeps it."""

    @property
    def ticket(self) -> Ticket:
        """Who waits."""

    @property
    def place(self) -> int:
        """From 1; 0 before the first decision."""

    @property
    def of(self) -> int:
        """How many wait for the same devices."""

    @property
    def expected_at(self) -> float | None:
        """Unix time; None where nobody knows."""

    @property
    def reason(self) -> str:
        """A sentence."""


def describe_place(place: Place) -> dict[str, Any]:
    """The data of an event of kind "queue": what somebody who waits is told."""
    return {
        "place": place.place,
        "of": place.of,
        "ahead": max(0, place.place - 1),
        "reason": place.reason,
        "expected_at": place.expected_at,
        "since": place.ticket.since,
        "can_start_cpu": True,
    }


@dataclass(frozen=True, slots=True)
class Refuse:
    """A ticket will never be served as things are.

    Attributes:
        ticket: Who is refused.
        code: "not-granted" or "bad-request".
        message: Why, and what to do.
    """

    ticket: Ticket
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Decisions:
    """What to do, and what to say.

    Attributes:
        give: Leases to write.
        wait: The queue, in order.
        refuse: Tickets to end.
        release: Ids of kept leases whose time is over, or that their server's new start left.
    """

    give: tuple[Give, ...] = ()
    wait: tuple[Wait, ...] = ()
    refuse: tuple[Refuse, ...] = ()
    release: tuple[str, ...] = ()
