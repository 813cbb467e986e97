"""What one pass of the queue is decided on, and what those hear who would not wait.

All of it is made of what was read already, but for the timetables, which come from the ledger.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import replace

from pytorch_spawner.adapters import engine
from pytorch_spawner.core.gpus import Inventory
from pytorch_spawner.core.placement import with_settings
from pytorch_spawner.core.seats import Seats, Taken, open_seats, seats_of
from pytorch_spawner.core.tickets import Decisions, Held, Policy, Refuse, Ticket, Wait
from pytorch_spawner.errors import BadRequest, LabError, NoGpuAvailable, NotGranted
from pytorch_spawner.ledger.store import Ledger, QueueState


def lay_out(
    state: QueueState, inventory: Inventory, running: Sequence[engine.LabContainer]
) -> Inventory:
    """The inventory to decide on: the admin's settings laid over what there is."""
    in_force: dict[str, int] = {}
    for lease in state.leases:
        for holding in lease.holdings:
            in_force[holding.gpu] = holding.slots
    for container in running:
        for holding in container.holdings:
            in_force.setdefault(holding.gpu, holding.slots)
    return with_settings(inventory, state.settings, in_force)


def plan_seats(ledger: Ledger, hub: str, policy: Policy | None = None) -> tuple[Seats, ...]:
    """What the sessions of the next hours keep, of all courses that have a timetable.

    Raises:
        LedgerUnavailable: Nobody knows.
    """
    now = ledger.now()
    planned: list[Seats] = []
    for course in ledger.courses(hub):
        slots = course.manifest.timetable.sessions
        if slots:
            # Who is a student by a group is not known here: whoever had a copy once is.
            is_counted = any(slot.seats is None for slot in slots)
            seen = ledger.students(hub, course.name) if is_counted else ()
            planned += seats_of(course.manifest, [one.username for one in seen], now, policy)
    return tuple(planned)


def keeping_places(decided: Decisions) -> Decisions:
    """The same, where nobody is refused who is away: they wait as the last of all.

    After a hub's restart, what a person may have alone is known once they are back.
    """
    refused = tuple(one for one in decided.refuse if not one.ticket.is_away)
    last = len(decided.wait) + 1
    kept = tuple(
        Wait(one.ticket, last, last, trouble=one.message)
        for one in decided.refuse
        if one.ticket.is_away
    )
    return replace(decided, refuse=refused, wait=(*decided.wait, *kept))


def seats_now(planned: Sequence[Seats], state: QueueState) -> tuple[Seats, ...]:
    """What is still to be kept for classes as of a decision."""
    if not planned:
        return ()
    taken = (
        Taken(
            str(lease.request.get("course") or ""),
            lease.username,
            tuple(holding.gpu for holding in lease.holdings),
            lease.since,
        )
        for lease in state.leases
        if not lease.as_held().is_over(state.now)
    )
    return open_seats(planned, taken, state.now)


def all_held(state: QueueState, running: Iterable[engine.LabContainer]) -> list[Held]:
    """The leases, and what containers carry that no lease knows of: truth has two parts."""
    held = [lease.as_held() for lease in state.leases]
    known = {lease.id for lease in state.leases}
    return held + [
        Held("", *container.server, container.holdings)
        for container in running
        if container.holdings and container.label("lease") not in known
    ]


def without_impatient(
    decide: Callable[[Sequence[Ticket]], Decisions],
    tickets: Sequence[Ticket],
    impatient: Set[str],
) -> Decisions:
    """Decide, and refuse in the same transaction those who would not wait.

    What is kept for one of them who wants several GPUs is not kept from those behind: it is decided
    again without that ticket.
    """
    refused: list[Refuse] = []
    while True:
        decisions = decide(tickets)
        leave = [wait for wait in decisions.wait if wait.ticket.id in impatient]
        keeps = next((wait for wait in leave if wait.ticket.gpus > 1), None)
        if keeps is None:
            break
        refused.append(_refusal(keeps))
        tickets = [ticket for ticket in tickets if ticket.id != keeps.ticket.id]
    return replace(
        decisions,
        wait=tuple(wait for wait in decisions.wait if wait.ticket.id not in impatient),
        refuse=(*decisions.refuse, *refused, *map(_refusal, leave)),
    )


def _refusal(wait: Wait) -> Refuse:
    said = (
        wait.trouble
        or wait.kept
        or "All GPUs that you may use are in use or kept for those ahead of you."
    )
    return Refuse(
        wait.ticket,
        "no-gpu-available",
        f"{said} Try again in a while, start without a GPU, or ask the lab's admin who holds them.",
    )


def error_of(refuse: Refuse) -> LabError:
    """A refusal as what the start ends with."""
    if refuse.code == "no-gpu-available":
        return NoGpuAvailable(refuse.message, wanted=refuse.ticket.gpus, free=0)
    kind = BadRequest if refuse.code == "bad-request" else NotGranted
    return kind(refuse.message)
