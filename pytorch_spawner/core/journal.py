"""The journal of one start: what an event is, and what of a container's report is believed.

Everything that comes out of a container is hostile. ``parse_report`` is the only door: it bounds
size, depth and number, allows the kinds an agent may send, and never keeps what it does not know.
Texts stay texts; the pages insert them as text nodes, never as HTML.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pytorch_spawner.errors import InvalidEvent

VERSION: Final = 1
KINDS: Final = frozenset({"queue", "start", "check", "course", "warmup", "sample", "done"})
# "queue" and "start" are the hub's own words: a container that could say them could tell its
# student that somebody else's place in the queue changed.
AGENT_KINDS: Final = frozenset({"check", "course", "warmup", "sample", "done"})
MAX_EVENT_BYTES: Final = 16 * 1024
MAX_REPORT_BYTES: Final = 256 * 1024
MAX_EVENTS_A_REPORT: Final = 64
# A start of the largest suite writes about 120 events; samples replace each other on the page.
MAX_EVENTS_A_START: Final = 2000
# What an agent may report of one start, counted as ``Report.stored_bytes``. An honest start takes
# 8 KB; sixty networks that all fail at length beside eight GPUs take 820 KB.
MAX_REPORTED_BYTES: Final = 2 * 1024 * 1024
# What the ledger keeps of an event beside its data: SQLite's row and key, and the page's share.
EVENT_OVERHEAD_BYTES: Final = 128
_MAX_DEPTH: Final = 6


@dataclass(frozen=True, slots=True)
class Event:
    """One entry of a journal.

    Attributes:
        seq: Its place in the journal, from 1, without gaps.
        at: Unix time in seconds.
        kind: One of ``KINDS``.
        data: JSON object; its fields depend on the kind (see the event reference).
    """

    seq: int
    at: float
    kind: str
    data: Mapping[str, Any]

    def as_json(self) -> dict[str, Any]:
        """The event as the API sends it."""
        return {
            "v": VERSION,
            "seq": self.seq,
            "at": self.at,
            "kind": self.kind,
            "data": dict(self.data),
        }


@dataclass(frozen=True, slots=True)
class Report:
    """What an agent sent, checked.

    Attributes:
        start: Id of the start it speaks of; "" when the agent does not know it.
        events: (kind, data) in the order sent. Times are the receiver's: a container's clock is
            not evidence.
    """

    start: str
    events: tuple[tuple[str, Mapping[str, Any]], ...]

    @property
    def stored_bytes(self) -> int:
        """What the events take in the ledger, about."""
        data = sum(len(json.dumps(data)) for _, data in self.events)
        return data + EVENT_OVERHEAD_BYTES * len(self.events)


def parse_report(body: bytes) -> Report:
    """Read an agent's report.

    Args:
        body: The request's body: a JSON object ``{"v": 1, "start": str, "events": [...]}``, or one
            event object ``{"kind": str, "data": {...}}``, or a list of them. Each event at most
            ``MAX_EVENT_BYTES`` as JSON.

    Returns:
        The report, with at most ``MAX_EVENTS_A_REPORT`` events.

    Raises:
        InvalidEvent: Not JSON, too large, too many, too deep, an unknown or forbidden kind, a
            number that JSON has no word for, or a version from the future.
    """
    if len(body) > MAX_REPORT_BYTES:
        raise InvalidEvent(
            f"A report holds at most {MAX_REPORT_BYTES} bytes; this has {len(body)}."
        )
    try:
        said = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidEvent("A report is a JSON object.", detail=str(error)) from error
    start, events = _unwrap(said)
    if len(events) > MAX_EVENTS_A_REPORT:
        raise InvalidEvent(
            f"A report holds at most {MAX_EVENTS_A_REPORT} events; this has {len(events)}."
        )
    return Report(start, tuple(_parse_event(event) for event in events))


def _unwrap(said: Any) -> tuple[str, list[Any]]:
    if isinstance(said, list):
        return "", said
    if not isinstance(said, dict):
        raise InvalidEvent("A report is a JSON object.")
    if said.get("v", VERSION) != VERSION:
        raise InvalidEvent(f"This service speaks version {VERSION} of the event format.")
    if "events" not in said:
        return "", [said]
    start, events = said.get("start", ""), said["events"]
    if not isinstance(start, str) or len(start) > 64 or not isinstance(events, list):
        raise InvalidEvent('A report has "start", a short text, and "events", a list.')
    return start, events


def _parse_event(event: Any) -> tuple[str, Mapping[str, Any]]:
    if not isinstance(event, dict):
        raise InvalidEvent("An event is a JSON object.")
    kind, data = event.get("kind"), event.get("data", {})
    if kind not in AGENT_KINDS:
        raise InvalidEvent(f"An agent sends events of kind {', '.join(sorted(AGENT_KINDS))}.")
    if not isinstance(data, dict):
        raise InvalidEvent('An event\'s "data" is a JSON object.')
    if not _is_shallow(data, _MAX_DEPTH):
        raise InvalidEvent(f'An event\'s "data" is nested at most {_MAX_DEPTH} deep.')
    size = len(json.dumps(data).encode())
    if size > MAX_EVENT_BYTES:
        raise InvalidEvent(f"An event holds at most {MAX_EVENT_BYTES} bytes; this has {size}.")
    return kind, data


def _is_shallow(value: Any, depth: int) -> bool:
    if isinstance(value, float) and not math.isfinite(value):
        return False
    if isinstance(value, dict):
        return depth > 0 and all(_is_shallow(item, depth - 1) for item in value.values())
    if isinstance(value, list):
        return depth > 0 and all(_is_shallow(item, depth - 1) for item in value)
    return True


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
