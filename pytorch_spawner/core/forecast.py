"""What those who wait are told: their place, and when devices are expected to be free. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

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

    def told(self) -> Iterator[Wait]:
        """What each is told, in order."""
        totals = {
            kind: sum(self._counts[rival] for rival in rivals)
            for kind, rivals in self._rivals.items()
        }
        for ticket, kind, place, at, after, trouble in self._rows:
            yield Wait(ticket, place, totals[kind], at, after, trouble)


class Expectation(NamedTuple):
    """When a ticket should be served: at what time, after whom, with which devices."""

    at: float | None
    after: str = ""
    gpus: tuple[GpuUuid, ...] = ()


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
        self._heaps: dict[Kind, list[tuple[float, int, str, GpuUuid]]] = {}
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

    def _heap(self, kind: Kind) -> list[tuple[float, int, str, GpuUuid]]:
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

    def next(
        self, kind: Kind, count: int, now: float, beside: Collection[GpuUuid] = ()
    ) -> Expectation:
        """Use up the earliest events of ``count`` different devices; the last one's time counts.

        Args:
            kind: Of what kind the devices are.
            count: How many, >= 0.
            now: Unix time; nothing is expected before it.
            beside: Devices that are kept already, and are not counted again.
        """
        heap = self._heap(kind)
        if count == 1 and not beside:  # as most ask
            while heap:
                at_, number, who, gpu = heapq.heappop(heap)
                if number not in self._used:
                    self._used.add(number)
                    return Expectation(max(at_, now), who, (gpu,))
            return Expectation(None)
        at, after = now, ""
        gpus: list[GpuUuid] = []
        again = []
        is_known = True
        while len(gpus) < count:
            if not heap:
                is_known = False
                break
            event = heapq.heappop(heap)
            if event[1] in self._used:
                continue
            if (
                event[3] in gpus or event[3] in beside
            ):  # two slots of one device do not make two devices
                again.append(event)
                continue
            gpus.append(event[3])
            self._used.add(event[1])
            at, after = max(event[0], now), event[2]
        for event in again:
            heapq.heappush(heap, event)
        return Expectation(at if is_known else None, after if is_known else "", tuple(gpus))
