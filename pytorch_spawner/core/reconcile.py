"""Making the ledger agree with what runs: which leases to release, adopt, which containers to end.

Truth rule: labels on running containers say what is running; the ledger says what was decided.

Why no grace period is needed. The three views are read in the order ledger, engine, hub. A lease
or a container exists only while its server is active in the hub (from the moment the start began
until its stop ended), so one that was seen before, and whose server the hub does not know as active
afterwards, belongs to a start that is over. One that appeared in between is not in our view yet.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from pytorch_spawner.core.placement import Holding

Server = tuple[str, str]


@dataclass(frozen=True, slots=True)
class SeenLease:
    """A lease as the ledger has it; ``start_id`` names the start that took it.

    ``is_kept``: its server ended unexpectedly, and the time for which it is kept is not over.
    """

    id: str
    start_id: str
    server: Server
    gpus: tuple[str, ...]
    is_kept: bool = False


@dataclass(frozen=True, slots=True)
class SeenContainer:
    """A container as the engine has it, by its labels; ``holdings`` are ``gpus`` with slots."""

    id: str
    start_id: str
    lease_id: str
    server: Server
    gpus: tuple[str, ...]
    is_running: bool
    holdings: tuple[Holding, ...] = ()
    grant: str = ""
    until: float | None = None


@dataclass(frozen=True, slots=True)
class Corrections:
    """What to do, in this order: end containers, release leases, adopt what runs, close starts.

    Attributes:
        remove: Containers that belong to no active server.
        release: Leases that no active server holds.
        adopt: Running containers with GPUs whose lease the ledger lost.
        close: Starts that are open in the ledger and over in the hub.
    """

    remove: tuple[SeenContainer, ...] = ()
    release: tuple[SeenLease, ...] = ()
    adopt: tuple[SeenContainer, ...] = ()
    close: tuple[str, ...] = ()

    @property
    def is_nothing(self) -> bool:
        """Whether ledger, engine and hub agree."""
        return not (self.remove or self.release or self.adopt or self.close)


def reconcile(
    leases: Sequence[SeenLease],
    containers: Sequence[SeenContainer],
    open_starts: Sequence[tuple[str, Server]],
    active: Collection[Server],
) -> Corrections:
    """Compare the three views.

    Args:
        leases: Unreleased leases of this hub, read first.
        containers: Every container with this hub's label, read second, running or not.
        open_starts: (start id, server) of starts without an end, read with the leases.
        active: Servers that the hub says are running or pending, read last.

    Returns:
        What to correct; running it again after it was carried out gives nothing.
    """
    remove = tuple(seen for seen in containers if seen.server not in active)
    kept = [seen for seen in containers if seen.server in active and seen.is_running]
    removed_leases = {seen.lease_id for seen in remove}
    open_ids = {start for start, _ in open_starts}
    carried = {seen.lease_id for seen in kept}
    release = tuple(
        lease
        for lease in leases
        if not lease.is_kept
        and (
            lease.server not in active
            # Left over: its start has ended and no running container carries it. A start under way
            # has no container yet, and an older container of the same server says nothing about it.
            or (lease.start_id not in open_ids and lease.id not in carried)
        )
    )
    known = {lease.id for lease in leases} - {lease.id for lease in release}
    adopt = tuple(
        seen
        for seen in kept
        if seen.gpus and seen.lease_id not in known and seen.lease_id not in removed_leases
    )
    close = tuple(start for start, server in open_starts if server not in active)
    return Corrections(remove, release, adopt, close)
