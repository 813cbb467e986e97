"""Who would not wait is refused, and keeps nothing from those who come after."""

from __future__ import annotations

from collections.abc import Sequence

from pytorch_spawner.core.gpus import Gpu, GpuUuid, Inventory
from pytorch_spawner.core.grants import Grant, GrantBook
from pytorch_spawner.core.placement import Holding
from pytorch_spawner.core.scheduling import schedule
from pytorch_spawner.core.tickets import Decisions, Held, Ticket, Usage
from pytorch_spawner.queue_pass import without_impatient

NOW = 1_790_000_000.0
TWO = Inventory((Gpu(GpuUuid("GPU-0000")), Gpu(GpuUuid("GPU-0001"), 1)))
# One of the two is in use, with no end.
HELD = [Held("l", "eve", "", (Holding(GpuUuid("GPU-0000")),))]


def decide(tickets: Sequence[Ticket]) -> Decisions:
    return schedule(TWO, HELD, tickets, GrantBook([Grant("all", count=2)]), Usage(), NOW)


def wants(name: str, seq: int, gpus: int = 1) -> Ticket:
    return Ticket(name, name, gpus=gpus, seq=seq, since=NOW)


def test_who_would_not_wait_for_two_keeps_none_from_who_wants_one() -> None:
    said = without_impatient(decide, [wants("ana", 1, 2), wants("bo", 2)], {"ana"})
    assert [give.ticket.id for give in said.give] == ["bo"]
    assert [refuse.ticket.id for refuse in said.refuse] == ["ana"]
    assert said.wait == ()


def test_who_waits_for_two_keeps_what_is_free() -> None:
    said = without_impatient(decide, [wants("ana", 1, 2), wants("bo", 2)], {"bo"})
    assert [wait.ticket.id for wait in said.wait] == ["ana"]
    assert "kept for those ahead" in said.refuse[0].message
    assert said.refuse[0].code == "no-gpu-available"


def test_everybody_who_would_not_wait_is_refused_at_once() -> None:
    tickets = [wants(name, seq) for seq, name in enumerate(("ana", "bo", "cyd"), 1)]
    said = without_impatient(decide, tickets, {"bo", "cyd"})
    assert [give.ticket.id for give in said.give] == ["ana"]
    assert [refuse.ticket.id for refuse in said.refuse] == ["bo", "cyd"]
