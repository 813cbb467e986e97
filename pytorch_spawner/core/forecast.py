"""What those who wait are told: their place, and when devices are expected to be free. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from pytorch_spawner.core.gpus import GpuUuid
from pytorch_spawner.core.placement import Board, Kind
from pytorch_spawner.core.tickets import Held, Ticket, Wait


class Line:
    """The tickets that wait, and who waits for the same devices as whom."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._rows: list[tuple[Ticket, Kind, int, float | None, str, str]] = []
        self._counts: dict[Kind, int] = {}
        self._rivals: dict[Kind, list[Kind]] = {}

    def join(self, ticket: Ticket, kind: Kind, at: float | None, after: str, trouble: str) -> None:
        """Add the next in order, and what is known of its time."""
        if kind not in self._counts:
            self._meet(kind)
        ahead = sum(map(self._counts.__getitem__, self._rivals[kind]))
        self._counts[kind] += 1
        self._rows.append((ticket, kind, ahead + 1, at, after, trouble))

    def _meet(self, kind: Kind) -> None:
        own = {device.gpu.uuid for device in self._board.of_kind(kind)}
        self._rivals[kind] = [kind]
        for other in self._counts:
            if any(device.gpu.uuid in own for device in self._board.of_kind(other)):
                self._rivals[kind].append(other)
                self._rivals[other].append(kind)
        self._counts[kind] = 0

    def told(self, kept: Callable[[Kind], str] | None = None) -> Iterator[Wait]:
        """What each is told, in order.

        Args:
            kept: What of a kind of devices is kept for classes, as a sentence; None for nothing.
        """
        totals = {
            kind: sum(self._counts[rival] for rival in rivals)
            for kind, rivals in self._rivals.items()
        }
        for ticket, kind, place, at, after, trouble in self._rows:
            said = "" if kept is None else kept(kind)
            yield Wait(ticket, place, totals[kind], at, after, trouble, said)


# A slot in use falls free: at what Unix time, its number, who holds it until then, of which device.
Event = tuple[float, int, str, GpuUuid]


class Expectation(NamedTuple):
    """When enough devices should be free; None where nobody knows.

    ``after`` is who holds the last of them, ``events`` are what is waited for: where the time is
    not known, those of them that are.
    """

    at: float | None
    after: str = ""
    events: tuple[Event, ...] = ()


_UNKNOWN: Final = Expectation(None)


class Forecast:
    """When devices are expected to be free: an event for each slot in use whose end is known.

    An event is used up by the first ticket in order that waits for it, so that the second one
    waits for the next.
    """

    def __init__(self, board: Board, leases: Sequence[Held]) -> None:
        self._board = board
        self._ends: dict[GpuUuid, list[tuple[float, int, str]]] = {}
        self._number = 0
        self._used: set[int] = set()
        self._heaps: dict[Kind, list[Event]] = {}
        self._kinds_of: dict[GpuUuid, list[Kind]] = {}
        self._numbers: dict[str, range] = {}
        for held in leases:
            first = self._number + 1
            for holding in held.holdings:
                self.add(holding.gpu, held.free_at, held.username)
            self._numbers[held.id] = range(first, self._number + 1)

    def add(self, gpu: GpuUuid, at: float | None, who: str) -> None:
        """A slot of a device is held by somebody until ``at``; None says nothing."""
        if at is None:
            return
        self._number += 1
        self._ends.setdefault(gpu, []).append((at, self._number, who))
        for kind in self._kinds_of.get(gpu, ()):
            heapq.heappush(self._heaps[kind], (at, self._number, who, gpu))

    def forget(self, lease: str) -> None:
        """A kept lease is taken up again: it does not end when it would have been released."""
        self._used.update(self._numbers.get(lease, ()))

    def _heap(self, kind: Kind) -> list[Event]:
        heap = self._heaps.get(kind)
        if heap is None:
            heap = []
            for device in self._board.of_kind(kind):
                uuid = device.gpu.uuid
                self._kinds_of.setdefault(uuid, []).append(kind)
                if device.is_open:
                    heap += [(at, number, who, uuid) for at, number, who in self._of(uuid)]
            heapq.heapify(heap)
            self._heaps[kind] = heap
        return heap

    def _of(self, gpu: GpuUuid) -> list[tuple[float, int, str]]:
        return self._ends.get(gpu, [])

    def first(self, kind: Kind, now: float) -> Expectation:
        """Find the earliest event of a kind, as most ask; see ``look``."""
        heap = self._heaps.get(kind)
        if heap is None:
            heap = self._heap(kind)
        used = self._used
        while heap:
            event = heap[0]
            if event[1] not in used:
                at = event[0]
                return Expectation(at if at > now else now, event[2], (event,))
            heapq.heappop(heap)
        return _UNKNOWN

    def look(
        self, kind: Kind, count: int, now: float, beside: Collection[GpuUuid] = ()
    ) -> Expectation:
        """Find the earliest events of ``count`` different devices; the last one's time counts.

        Args:
            kind: Of what kind the devices are.
            count: How many, >= 0.
            now: Unix time; nothing is expected before it.
            beside: Devices that are kept already, and are not counted again.
        """
        if count == 1 and not beside:
            return self.first(kind, now)
        heap, used = self._heap(kind), self._used
        events: list[Event] = []
        again: list[Event] = []
        # Two slots of one device do not make two devices.
        seen = set(beside)
        while heap and len(events) < count:
            event = heapq.heappop(heap)
            if event[1] in used:
                continue
            again.append(event)
            if event[3] not in seen:
                seen.add(event[3])
                events.append(event)
        for event in again:
            heapq.heappush(heap, event)
        if len(events) < count:
            return Expectation(None, "", tuple(events))
        if not events:
            return Expectation(now)
        return Expectation(max(events[-1][0], now), events[-1][2], tuple(events))

    def use(self, events: Iterable[Event]) -> None:
        """Somebody waits for these: nobody else does."""
        for event in events:
            self._used.add(event[1])
