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
from typing import Any

import docker
import requests
from docker.errors import DockerException

from tests.lab_driver import Lab

_LABEL = "org.pytorch-spawner."
_AGAIN_S = 0.05


@dataclass
class Watch:
    """Follows the engine's own events, so that no container runs too briefly to be seen.

    Attributes:
        doubles: GPUs that two containers had at the same time.
        most: How many containers ran at the same time at most.
        count: How many were started.
    """

    lab: Lab
    doubles: set[str] = field(default_factory=set)
    most: int = 0
    count: int = 0
    _running: dict[str, tuple[str, ...]] = field(default_factory=dict)
    _heard_at: int = 0
    _over: threading.Event = field(default_factory=threading.Event)

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
            self._running = {row["Id"]: _gpus(row["Labels"]) for row in rows}
            self._look()
            # In pieces of a second, for a stream that says nothing cannot be told to end.
            while not self._over.is_set():
                until = time.time() + 1
                filters = {"type": "container", "label": ours, "event": ["start", "die"]}
                for line in client.events(f"{since:.9f}", f"{until:.9f}", filters):
                    self._hear(json.loads(line))
                since = until
        finally:
            client.close()

    def _hear(self, event: Mapping[str, Any]) -> None:
        if event["timeNano"] <= self._heard_at:
            return  # the end of one piece is the beginning of the next
        self._heard_at = event["timeNano"]
        if event["Action"] == "die":
            self._running.pop(event["Actor"]["ID"], None)
            return
        self.count += 1
        self._running[event["Actor"]["ID"]] = _gpus(event["Actor"]["Attributes"])
        self._look()

    def _look(self) -> None:
        self.most = max(self.most, len(self._running))
        gpus = Counter(gpu for held in self._running.values() for gpu in held)
        self.doubles |= {gpu for gpu, times in gpus.items() if times > 1}


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
