"""Saying no: why a ticket is not served as things are, and what to do instead. Sentences only.

Each says what happened, why, and what to do, in that order; a student reads it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timezone

from pytorch_spawner.core.grants import Grant, count_of, covers, hours
from pytorch_spawner.core.placement import Device, Kind
from pytorch_spawner.core.tickets import Give, Held, Ticket

# How many of a person's grants a sentence goes into.
_SHOWN = 3


class Refused(Exception):
    """A ticket will never be served as things are.

    Attributes:
        code: "not-granted" or "bad-request", as ``tickets.Refuse`` has it.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def not_covered(ticket: Ticket, have: Sequence[Grant]) -> Refused:
    """No grant gives what is asked for.

    Args:
        ticket: What is asked for.
        have: The person's grants that are valid now; none of them covers the ticket.
    """
    if not have:
        return Refused(
            "not-granted",
            "No grant gives you a GPU. Start without one, or ask the lab's admin for a grant.",
        )
    wish = count_of(ticket.gpus, ticket.share)
    because = "; ".join(f"{grant.whose}: {_fault(ticket, grant)}" for grant in have[:_SHOWN])
    return Refused(
        "not-granted",
        f"No grant of yours covers this request ({wish}): {because}. Ask for less, or ask the "
        "lab's admin.",
    )


def _fault(ticket: Ticket, grant: Grant) -> str:
    fault = covers(
        grant, gpus=ticket.gpus, share=ticket.share, pool=ticket.pool, image=ticket.image
    )
    return fault or f"its GPUs are not in the pool {ticket.pool}"


def beyond_the_lab(ticket: Ticket, kind: Kind, most: int) -> Refused:
    """A grant covers it, but the lab has no such devices, or fewer.

    Args:
        ticket: What is asked for.
        kind: Of what kind it would be under the first grant.
        most: How many there are at most in one pool.
    """
    where = f"the pool {kind.pool}" if kind.pool else "this lab"
    has = f"has {most}" if most else "has none that you may use"
    return Refused(
        "bad-request",
        f"You asked for {count_of(ticket.gpus, kind.share)}, but {where} {has}. Ask for less, "
        "or start without a GPU.",
    )


def no_gpu_at_all(reason: str) -> Refused:
    """The inventory is empty, for this reason."""
    return Refused("bad-request", f"This lab has no GPU. {reason} Start without one.")


def hours_used_up(grant: Grant, *, are_shared: bool) -> Refused:
    """The week's GPU-hours of the first grant that would serve it are gone.

    Args:
        grant: That grant.
        are_shared: Other servers of the person still use some, until they end.
    """
    used_up, instead = "used up", ""
    if are_shared:
        used_up = "used up or needed by your other servers until their time ends"
        instead = "stop one of those or "
    return Refused(
        "not-granted",
        f"Your {hours(grant.weekly_gpu_hours or 0)} GPU-hours of this week are {used_up} "
        f"(grant of {grant.whose}). They start anew on Monday; until then {instead}start without "
        "a GPU.",
    )


def ends_too_soon(grant: Grant) -> Refused:
    """The first grant that would serve it ends before a server would be of any use."""
    ends_at = datetime.fromtimestamp(grant.valid_until or 0.0, timezone.utc)
    return Refused(
        "not-granted",
        f"Your grant (of {grant.whose}) ends at {ends_at:%Y-%m-%d %H:%M:%S} UTC, in less than a "
        "minute. Start without a GPU, or ask the lab's admin for a longer one.",
    )


def holds_all(
    ticket: Ticket, grant: Grant, held: int, leases: Iterable[Held], given: Iterable[Give]
) -> Refused:
    """The person's other servers hold what the grant gives.

    Args:
        ticket: Whose it is.
        grant: The first grant that would serve it.
        held: How many devices the person holds through it.
        leases: All leases, to name the servers.
        given: What was given in the same decision, which is in no lease yet.
    """
    mine = [
        (lease.servername, lease.grant)
        for lease in leases
        if lease.username == ticket.username
        # What is kept for this very server is not held beside it.
        and (lease.kept_until is None or lease.servername != ticket.servername)
    ]
    mine += [
        (give.ticket.servername, give.grant.id)
        for give in given
        if give.ticket.username == ticket.username
    ]
    servers = sorted({server or "default" for server, by in mine if by == grant.id})
    is_one = len(servers) == 1
    return Refused(
        "not-granted",
        f"You already hold {held} of the {count_of(grant.count, grant.share)} that you may have "
        f"(grant of {grant.whose}), in your server{'' if is_one else 's'} {', '.join(servers)}. "
        f"Stop {'that one' if is_one else 'one of them'} first, or start without a GPU.",
    )


# -- what those who wait are told instead of a time ------------------------------------------------


def out_of_service(members: Sequence[Device], most: int) -> str:
    """Why too few devices can be given to anybody.

    Args:
        members: The eligible devices, one at least of them out of service.
        most: How many of them, of one pool, are in service.
    """
    out = [device.gpu for device in members if not device.is_open]
    gpu = out[0]
    why = gpu.drained or gpu.health
    more = f" and {len(out) - 1} more" if len(out) > 1 else ""
    name = gpu.name or gpu.uuid
    if not most:
        return f"No GPU that you may use is in service: {name}{more}. {why}".strip()
    return f"Only {most} of the GPUs that you may use can be given: without {name}{more}. {why}"


def not_in_time(grant: Grant) -> str:
    """The only grant that serves it ends before a device is expected to be free."""
    return (
        f"No GPU is expected to be free before your grant ends (grant of {grant.whose}). One may "
        "be, when somebody stops their server. Wait for it, or start without a GPU."
    )
