"""The simplest scheduler, and starts that go through the whole of the ledger's queue with it."""

from __future__ import annotations

from collections.abc import Sequence

from pytorch_spawner.core.gpus import Gpu, GpuUuid
from pytorch_spawner.core.grants import Grant
from pytorch_spawner.core.placement import Holding
from pytorch_spawner.core.tickets import Decisions, Give, Ticket, Wait
from pytorch_spawner.errors import NoGpuAvailable
from pytorch_spawner.ledger.store import Lease, Ledger, QueueState, Start

HUB = "lab"
ONE = Gpu(GpuUuid("GPU-0001"))
REQUEST = {"image": "i", "gpus": 1, "share": "any"}


def begin(ledger: Ledger, user: str, server: str = "") -> Start:
    """Begin a start and take its place in the queue."""
    start = ledger.begin_start(HUB, user, server, REQUEST)
    ledger.join(start)
    return start


def take(ledger: Ledger, user: str) -> Lease:
    """Queue for the lab's one GPU and hold it, or leave again.

    Raises:
        NoGpuAvailable: Somebody else holds it.
    """
    start = begin(ledger, user)
    ledger.decide(HUB, first_come)
    # Another thread's decision may have served this ticket.
    if ledger.leave(start.id):
        raise NoGpuAvailable("It is in use.", wanted=1, free=0)
    return next(lease for lease in ledger.leases(HUB) if lease.start_id == start.id)


def first_come(state: QueueState) -> Decisions:
    """The first gets the GPU if it is free, the others wait."""
    waiting = list(state.tickets)
    if waiting and not state.leases:
        return give(waiting[0], waiting=waiting[1:])
    return Decisions(wait=in_order(waiting))


def blind(state: QueueState) -> Decisions:
    """A scheduler that ignores what is held: only the tables stand between it and a disaster."""
    return give(state.tickets[0], waiting=state.tickets[1:]) if state.tickets else Decisions()


def give(
    ticket: Ticket,
    held: Holding | None = None,
    waiting: Sequence[Ticket] = (),
    until: float | None = None,
) -> Decisions:
    """Give one ticket the GPU, or what ``held`` says, and let the others wait."""
    served = Give(
        ticket, (ONE,), (held or Holding(ONE.uuid),), Grant("all"), until, "as everyone does"
    )
    return Decisions(give=(served,), wait=in_order(waiting))


def in_order(tickets: Sequence[Ticket]) -> tuple[Wait, ...]:
    return tuple(Wait(ticket, place, len(tickets)) for place, ticket in enumerate(tickets, 1))
