"""From the request for a server until it answers through the proxy: stock DockerSpawner and ours.

One real hub for each arm, all running at the same time; the arms take turns, in the opposite order
each second time, and a fixed piece of work is timed beside each turn, because a machine that is
shared gives no two minutes the same. Users and homes of all arms are there before.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tornado.httpclient import AsyncHTTPClient, HTTPError

from tests.benchmarks.cpu_meter import CpuMeter, per_start
from tests.benchmarks.harness import RESULTS, Bench
from tests.benchmarks.real_hub import (
    Arm,
    NotStarted,
    RealHub,
    Started,
    calibrate,
    lab_network,
)
from tests.benchmarks.stock_image import lab_image, stock_image

STOCK = "stock"
STOCK_ON_OURS = "stock spawner, our image"
OURS = "ours, warm-up on"
QUIET = "ours, warm-up off"
_AT_ONCE = 8
# An image of ours names no home, so that any uid can have one; the stock spawner passes none.
_HOMELESS = {"DockerSpawner.environment": {"HOME": "/tmp"}}
_NO_GPU = {"gpus": 0}
# So many servers at once start for the first time, before anything is measured.
_HOMES_AT_ONCE = 8
_GIB_A_SERVER = 0.3


def arms() -> list[Arm]:
    """Those that are compared; ours as the demo sets it, and once without its warm-up."""
    return [
        Arm(STOCK, False, stock_image()),
        Arm(STOCK_ON_OURS, False, lab_image(), _HOMELESS),
        Arm(QUIET, True, lab_image(), {"PyTorchSpawner.warmup": False}, _NO_GPU),
        Arm(OURS, True, lab_image(), {}, _NO_GPU),
    ]


@dataclass(slots=True)
class Found:
    """What was measured of one arm; seconds.

    Attributes:
        starts: How it was started ("one at a time", "8 at once") -> each start.
        walls: How -> from the first request until the last server answered.
        cpu: How -> for each round what one start cost until then, by who spent it.
        failed: What the hub said of starts that failed.
    """

    starts: dict[str, list[Started]] = field(default_factory=dict)
    walls: dict[str, list[float]] = field(default_factory=dict)
    cpu: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)


class Spawns:
    """Hubs that take turns."""

    def __init__(self, hubs: Sequence[RealHub]) -> None:
        self.hubs = list(hubs)
        self.found = {hub.arm.name: Found() for hub in hubs}
        self.calibrations: list[float] = []
        self._clients: dict[str, AsyncHTTPClient] = {}

    async def open(self, users: Sequence[str]) -> None:
        """Wait for the hubs, make users, and let each arm's server start once: the homes."""
        for hub in self.hubs:
            self._clients[hub.arm.name] = hub.client()
            await hub.answers(self._client(hub))
            await hub.add_users(self._client(hub), users)
            await self.make_homes(hub, users[: _AT_ONCE + 1])

    def close(self) -> None:
        for client in self._clients.values():
            client.close()

    async def make_homes(self, hub: RealHub, users: Sequence[str]) -> None:
        """A first start each, in groups; stock keeps nothing, so one is enough of it."""
        if not hub.arm.is_ours:
            users = users[:1]
        for first in range(0, len(users), _HOMES_AT_ONCE):
            group = users[first : first + _HOMES_AT_ONCE]
            await asyncio.gather(*(hub.start(self._client(hub), user) for user in group))
            await self._stop(hub, group)

    async def round(
        self, number: int, how: str, users: Sequence[str], names: Iterable[str] = ()
    ) -> None:
        """All arms (or those named) once, forwards or backwards; users of one arm at once."""
        chosen = [hub for hub in self.hubs if not names or hub.arm.name in names]
        for hub in chosen if number % 2 == 0 else reversed(chosen):
            self.calibrations.append(calibrate())
            meter = CpuMeter(hub)
            before, began = meter.processes(), time.monotonic()
            tries = await asyncio.gather(*(self._try(hub, user) for user in users))
            wall = time.monotonic() - began
            after = {**meter.processes(), **meter.containers(users)}
            found = self.found[hub.arm.name]
            found.cpu.setdefault(how, []).append(per_start(before, after, len(users)))
            found.starts.setdefault(how, []).extend(
                one for one in tries if isinstance(one, Started)
            )
            failed = [str(one) for one in tries if isinstance(one, NotStarted)]
            found.failed += [f"{how}: {message}" for message in failed]
            if not failed:
                found.walls.setdefault(how, []).append(wall)
            say(f"{how}, round {number + 1}: {hub.arm.name} {wall:.2f} s")
            # Gone with its warm-up, before the next arm's turn.
            await self._stop(hub, users)

    async def _try(self, hub: RealHub, user: str) -> Started | NotStarted:
        try:
            return await hub.start(self._client(hub), user)
        except NotStarted as reason:
            return reason
        except HTTPError as error:  # the hub did not even answer
            return NotStarted(str(error))

    async def _stop(self, hub: RealHub, users: Sequence[str]) -> None:
        await asyncio.gather(*(hub.stop(self._client(hub), user) for user in users))

    def _client(self, hub: RealHub) -> AsyncHTTPClient:
        return self._clients[hub.arm.name]


def run(*, sequential: int = 10, rounds: int = 3, concurrent: int = 50) -> Bench:
    """Measure.

    Args:
        sequential: Starts of each arm, one at a time.
        rounds: Of eight starts at once.
        concurrent: So many at once, one round of two arms; 0 for none.
    """
    bench = Bench("spawn", unit="s")
    most = max(concurrent, _AT_ONCE)
    if concurrent and (short := _too_little_memory(concurrent)):
        bench.notes.append(short)
        concurrent, most = 0, _AT_ONCE
    users = [f"student{number:02d}" for number in range(most + 1)]
    with contextlib.ExitStack() as stack:
        stack.enter_context(lab_network())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-spawn-")))
        hubs = [
            stack.enter_context(RealHub(folder / str(number), arm).running())
            for number, arm in enumerate(arms())
        ]
        spawns = Spawns(hubs)
        asyncio.run(_measure(spawns, users, sequential, rounds, concurrent))
    report(bench, spawns.found, spawns.calibrations, concurrent)
    keep_raw(bench.name, spawns)
    return bench


async def _measure(
    spawns: Spawns, users: Sequence[str], sequential: int, rounds: int, concurrent: int
) -> None:
    try:
        await spawns.open(users)
        for number in range(sequential):
            await spawns.round(number, "one at a time", users[:1])
        for number in range(rounds):
            await spawns.round(number, f"{_AT_ONCE} at once", users[1 : _AT_ONCE + 1])
        if concurrent:
            # Without the warm-up: fifty of them would measure this machine's memory.
            pair = (STOCK, QUIET)
            for hub in spawns.hubs:
                if hub.arm.name in pair:
                    await spawns.make_homes(hub, users[_AT_ONCE + 1 :])
            await spawns.round(0, f"{concurrent} at once", users[1 : concurrent + 1], pair)
    finally:
        spawns.close()


def report(
    bench: Bench, found: dict[str, Found], calibrations: Sequence[float], concurrent: int
) -> None:
    """Rows, ratios of medians, and what failed."""
    for name, one in found.items():
        for how, starts in one.starts.items():
            if starts:
                bench.add(f"{name}, {how}: usable", [start.usable_s for start in starts])
                bench.add(f"{name}, {how}: hub says ready", [start.ready_s for start in starts])
            if how in one.walls and how != "one at a time":
                bench.add(f"{name}, {how}: all usable", one.walls[how])
        for how, rounds in one.cpu.items():
            for part in rounds[0]:
                bench.add(f"{name}, {how}: CPU of {part}, a start", [row[part] for row in rounds])
        bench.notes += [f"failed: {message.splitlines()[0]}" for message in one.failed]
    bench.add("a fixed piece of work beside each turn", calibrations)
    eight, many = f"{_AT_ONCE} at once", f"{concurrent} at once"
    for label, over, under, how in (
        ("ours/stock sequential", OURS, STOCK, "one at a time"),
        (f"ours/stock concurrent {_AT_ONCE}", OURS, STOCK, eight),
        (f"ours/stock concurrent {concurrent}, warm-up off", QUIET, STOCK, many),
        ("ours/stock spawner on our image sequential", OURS, STOCK_ON_OURS, "one at a time"),
        (f"ours/stock spawner on our image concurrent {_AT_ONCE}", OURS, STOCK_ON_OURS, eight),
        ("warm-up on/off sequential", OURS, QUIET, "one at a time"),
        (f"warm-up on/off concurrent {_AT_ONCE}", OURS, QUIET, eight),
    ):
        ours, theirs = (found.get(name, Found()).starts.get(how, []) for name in (over, under))
        if ours and theirs:
            bench.ratios[label] = _median(ours) / _median(theirs)
    bench.notes.append(
        "stock: DockerSpawner on the default bridge, its image without our trimming; the ratios "
        "are of medians of single starts until usable. No server has a GPU. Time-outs of all arms "
        "are 300 s and more, so that stock's starts of many at once do not end in an error."
    )


def keep_raw(name: str, spawns: Spawns, folder: Path | None = None) -> Path:
    """Every sample, in the order in which it was taken."""
    folder = (folder or RESULTS) / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    raw: dict[str, Any] = {"unit": "s", "calibrations": spawns.calibrations, "arms": {}}
    for arm, found in spawns.found.items():
        raw["arms"][arm] = {
            how: {
                "usable_s": [round(start.usable_s, 4) for start in starts],
                "ready_s": [round(start.ready_s, 4) for start in starts],
                "all_usable_s": [round(wall, 4) for wall in found.walls.get(how, [])],
                "cpu_s": [
                    {part: round(used_s, 3) for part, used_s in row.items()}
                    for row in found.cpu.get(how, [])
                ],
            }
            for how, starts in found.starts.items()
        } | {"failed": found.failed}
    path = folder / f"{name}.json"
    path.write_text(json.dumps(raw, indent=1) + "\n")
    return path


def say(text: str) -> None:
    """Progress, for who waits."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def _too_little_memory(servers: int) -> str:
    """Why so many at once are not tried; "" when they fit."""
    try:
        told = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free_gib = int(told["MemAvailable"].split()[0]) / 2**20
    except (OSError, ValueError, KeyError):
        return ""
    if free_gib > servers * _GIB_A_SERVER:
        return ""
    return f"{servers} at once were left out: {free_gib:.0f} GiB of memory are free"


def _median(starts: Sequence[Started]) -> float:
    return statistics.median(start.usable_s for start in starts)
