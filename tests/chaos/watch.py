"""What the engine and the ledger saw: who held which GPU, and when."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import docker
import requests
from docker.errors import DockerException

from tests.lab_driver import Lab

_LABEL = "org.pytorch-spawner."
_AGAIN_S = 0.05
_OVERLAP_S = 2.0


class _Listed(NamedTuple):
    """What ran at one moment, as the engine listed it."""

    at_ns: int
    running: Mapping[str, tuple[str, ...]]


class _Event(NamedTuple):
    """One container started or died."""

    at_ns: int
    action: str
    container: str
    gpus: tuple[str, ...]


@dataclass(frozen=True)
class Seen:
    """What was seen from the first look to the last.

    Attributes:
        doubles: GPUs that two containers had at the same time.
        most: How many containers ran at the same time at most.
        count: How many were started.
    """

    doubles: frozenset[str]
    most: int
    count: int


@dataclass
class Watch:
    """Follows the engine's own events, so that no container runs too briefly to be seen."""

    lab: Lab
    _listings: list[_Listed] = field(default_factory=list)
    _events: set[_Event] = field(default_factory=set)
    _over: threading.Event = field(default_factory=threading.Event)

    def seen(self) -> Seen:
        """Replay it by the engine's own times, for it tells of two containers in any order."""
        running: dict[str, tuple[str, ...]] = {}
        doubles: set[str] = set()
        most = count = 0
        all_told: list[_Listed | _Event] = [*self._listings, *self._events]
        for told in sorted(all_told, key=lambda told: told.at_ns):
            if isinstance(told, _Listed):
                running = dict(told.running)
            elif told.action == "die":
                running.pop(told.container, None)
            else:
                count += 1
                running[told.container] = told.gpus
            most = max(most, len(running))
            times = Counter(gpu for held in running.values() for gpu in held)
            doubles.update(gpu for gpu, holders in times.items() if holders > 1)
        return Seen(frozenset(doubles), most, count)

    @contextmanager
    def following(self) -> Iterator[Watch]:
        thread = threading.Thread(target=self._follow)
        thread.start()
        try:
            yield self
        finally:
            self._over.set()
            thread.join(10)
            assert not thread.is_alive()

    def _follow(self) -> None:
        while not self._over.is_set():
            try:
                self._follow_until_it_breaks()
            except (DockerException, requests.RequestException, ValueError):
                time.sleep(_AGAIN_S)  # the engine is away; what ran is listed when it is back

    def _follow_until_it_breaks(self) -> None:
        client = docker.APIClient(base_url=self.lab.docker_host, version="1.44", timeout=5)
        ours = f"{_LABEL}hub={self.lab.hub_id}"
        since = time.time()
        try:
            rows = client.containers(filters={"label": ours, "status": "running"})
            listed = {row["Id"]: _gpus(row["Labels"]) for row in rows}
            self._listings.append(_Listed(int(since * 1e9), listed))
            # In pieces of a second, for a stream that says nothing cannot be told to end.
            while not self._over.is_set():
                until = time.time() + 1
                filters = {"type": "container", "label": ours, "event": ["start", "die"]}
                for line in client.events(f"{since:.9f}", f"{until:.9f}", filters):
                    self._events.add(_event(json.loads(line)))
                # The engine stamps an event before it tells it, so a piece's end may lack one.
                since = until - _OVERLAP_S
        finally:
            client.close()


def _event(told: Mapping[str, Any]) -> _Event:
    actor = told["Actor"]
    return _Event(told["timeNano"], told["Action"], actor["ID"], _gpus(actor["Attributes"]))


def _gpus(labels: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(gpu for gpu in labels.get(f"{_LABEL}gpus", "").split(",") if gpu)


@dataclass(frozen=True)
class Held:
    """A lease that is or was: who had which GPUs from when until when."""

    username: str
    gpus: tuple[str, ...]
    since: float
    until: float


def lease_history(lab: Lab) -> list[Held]:
    """Every lease that the ledger ever wrote, in the order in which they were given."""
    place = (lab.dir / "ledger.sqlite").as_uri()
    connection = sqlite3.connect(f"{place}?mode=ro", uri=True)
    try:
        rows = connection.execute(
            "SELECT username, gpus, since, coalesce(released_at, 9e18) FROM leases "
            "WHERE hub = ? ORDER BY since",
            (lab.hub_id,),
        ).fetchall()
    finally:
        connection.close()
    return [Held(name, tuple(json.loads(gpus)), since, until) for name, gpus, since, until in rows]


def leased_twice(history: list[Held]) -> set[str]:
    """GPUs that two leases held at the same time."""
    found: set[str] = set()
    until: dict[str, float] = {}
    for held in history:
        for gpu in held.gpus:
            if held.since < until.get(gpu, 0.0):
                found.add(gpu)
            until[gpu] = max(until.get(gpu, 0.0), held.until)
    return found


def most_at_once(history: list[Held]) -> int:
    """How many leases were held at the same time at most."""
    return max(
        sum(1 for other in history if other.since <= held.since < other.until) for held in history
    )
