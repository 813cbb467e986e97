"""What no row can hold is refused alone: it must not look as if the ledger were away."""

from __future__ import annotations

from contextlib import suppress

import pytest

from pytorch_spawner.core.journal import Event
from pytorch_spawner.errors import BadRequest
from pytorch_spawner.ledger.store import Ledger

HUB = "lab"


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000], ids=["a zero byte", "5,000 characters"])
def test_an_unfit_name_is_refused_and_nobody_else_waits(ledger: Ledger, name: str) -> None:
    start = ledger.begin_start(HUB, "ana", "", {"image": "i"})
    for call in (
        lambda: ledger.latest_start(HUB, "ana", name),
        lambda: ledger.begin_start(HUB, "ana", name, {"image": "i"}),
        lambda: ledger.remove_ticket(HUB, name, "", "root"),
        lambda: ledger.week_hours(HUB, name),
        lambda: ledger.note(HUB, "root", "refused", name, {"message": name}),
    ):
        with suppress(BadRequest):
            call()
        found = ledger.latest_start(HUB, "ana", "")
        assert found is not None
        assert found.id == start.id


def test_a_zero_byte_in_a_report_stops_no_journal(ledger: Ledger) -> None:
    start = ledger.begin_start(HUB, "ana", "", {"image": "i"})
    with suppress(BadRequest):
        ledger.append_events(start.id, [("done", {"x": "a\0b"})])
    ledger.append_events(start.id, [("done", {})])
    events: tuple[Event, ...] = tuple(ledger.read_events(start.id))
    assert events[-1].data == {}
