"""200 people look at the GPUs: what that costs the service, and what goes over the wire.

The service is a process of its own with a real ledger (``viewed_lab``); the hub that it asks whose
a token is, and the viewers, are this process. Bytes are counted as they come out of the socket,
HTTP's framing included; the snapshot with which a stream begins is told apart.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from aiohttp import web

from pytorch_spawner.core.grants import Grant
from pytorch_spawner.core.placement import Holding
from pytorch_spawner.core.tickets import Decisions, Give
from pytorch_spawner.ledger.store import Ledger, QueueState
from tests.benchmarks.harness import ROOT, Bench
from tests.benchmarks.viewed_lab import ENTER, HUB, devices, student
from tests.ports import free_port_block

GOAL_KB_S = 2.0
GPUS = 64
USERS = 2_000
_WINDOW_S = 30.0
_STEP_S = 5.0
_SNAPSHOT_S = 60.0
# A stream begins with a snapshot; what is measured begins after all of them came.
_SETTLE_S = 7.0


class Viewer:
    """One open page: a socket whose bytes are counted."""

    def __init__(self, number: int) -> None:
        self._token = f"viewer{number}"
        self.bytes = 0
        self.first_ms = 0.0
        self.snapshot_bytes = 0
        self.has_ended = False

    async def watch(self, port: int) -> None:
        """Follow the stream until cancelled."""
        began = time.monotonic()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            f"GET /services/lab/api/live HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
            f"Authorization: token {self._token}\r\n\r\n".encode()
        )
        try:
            head = await reader.readuntil(b"event: snapshot")
            if b" 200 " not in head.splitlines()[0]:
                raise RuntimeError(head.decode(errors="replace"))
            told = await reader.readuntil(b"\n\n")
            self.snapshot_bytes = len(head) + len(told)
            self.first_ms = (time.monotonic() - began) * 1000
            while data := await reader.read(65536):
                self.bytes += len(data)
            self.has_ended = True
        finally:
            writer.close()


@contextmanager
def running_service(folder: Path, ledger_url: str, hub_port: int) -> Iterator[tuple[int, int]]:
    """The service's (process id, port)."""
    port = free_port_block(1)
    said = {
        "ledger": ledger_url,
        "hub": f"http://127.0.0.1:{hub_port}/hub/api",
        "port": port,
        "gpus": GPUS,
    }
    with (folder / "service.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.viewed_lab", json.dumps(said)],
            cwd=ROOT,
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((folder / "service.log").read_text()[-2000:])
            time.sleep(0.1)
        yield process.pid, port
    finally:
        process.kill()
        process.wait(10)


@asynccontextmanager
async def running_hub() -> AsyncIterator[int]:
    """A hub that knows every viewer; its port."""

    async def user(request: web.Request) -> web.Response:
        token = request.headers["Authorization"].partition(" ")[2]
        model = {"name": token, "kind": "user", "scopes": [ENTER, "custom:lab:view"], "groups": []}
        return web.json_response(model)

    app = web.Application()
    app.router.add_get("/hub/api/user", user)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    port = free_port_block(1)
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield port
    finally:
        await runner.cleanup()


def seed(ledger: Ledger) -> None:
    """Every GPU is held, and 2,000 people have a grant each."""
    ledger.write_inventory(HUB, devices(GPUS))
    grants = [
        Grant(f"user-{student(one)}", to="user", subject=student(one), weekly_gpu_hours=20.0)
        for one in range(USERS)
    ]
    ledger.write_grants(HUB, grants, "bench")
    for number in range(GPUS):
        take(ledger, number)
    ledger.decide(HUB, give)


def take(ledger: Ledger, number: int) -> None:
    """A student starts a server."""
    request = {"image": "lab/base:1", "gpus": 1, "course": "cv"}
    ledger.join(ledger.begin_start(HUB, student(number), "", request, ("cv",)))


def give(state: QueueState) -> Decisions:
    """Everybody gets the GPU of their number."""
    inventory = devices(GPUS)
    gives = []
    for ticket in state.tickets:
        gpu = inventory.gpus[int(ticket.username.removeprefix("student"))]
        grant = Grant(f"user-{ticket.username}", to="user", subject=ticket.username)
        until = state.now + 3600
        gives.append(Give(ticket, (gpu,), (Holding(gpu.uuid),), grant, until, "their own grant"))
    return Decisions(give=tuple(gives))


async def change_leases(ledger: Ledger) -> None:
    """Once a second one server ends, or begins again."""
    number = 0
    while True:
        await asyncio.sleep(1)
        await asyncio.to_thread(ledger.release, HUB, student(number), "", "stopped")
        await asyncio.sleep(1)
        await asyncio.to_thread(take, ledger, number)
        await asyncio.to_thread(ledger.decide, HUB, give)
        number = (number + 1) % GPUS


def cpu_s(process: int) -> float:
    """CPU seconds of a process so far, of all its threads."""
    words = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


async def watch_cpu(process: int, window_s: float) -> list[float]:
    """Per cent of a core, one figure for every few seconds of the window."""
    found = []
    for _ in range(round(window_s / _STEP_S)):
        before, began = cpu_s(process), time.monotonic()
        await asyncio.sleep(_STEP_S)
        found.append(100 * (cpu_s(process) - before) / (time.monotonic() - began))
    return found


async def watch_all(
    viewers: list[Viewer], process: int, window_s: float
) -> tuple[list[float], list[float]]:
    """Per cent of a core, and KB/s of every viewer."""
    before, began = [viewer.bytes for viewer in viewers], time.monotonic()
    cpu = await watch_cpu(process, window_s)
    took_s = time.monotonic() - began
    told = [
        (viewer.bytes - was) / 1000 / took_s for viewer, was in zip(viewers, before, strict=True)
    ]
    return cpu, told


async def measure(bench: Bench, folder: Path, viewers: int, window_s: float) -> None:
    """Nobody watches; all watch; all watch and leases change."""
    url = f"sqlite:///{folder / 'ledger.sqlite'}"
    ledger = Ledger.open(url)
    await asyncio.to_thread(seed, ledger)
    async with running_hub() as hub_port:
        with running_service(folder, url, hub_port) as (process, port):
            await asyncio.sleep(_SETTLE_S)
            alone = await watch_cpu(process, window_s)

            pages = [Viewer(number) for number in range(viewers)]
            opening = cpu_s(process)
            tasks = [asyncio.create_task(page.watch(port)) for page in pages]
            deadline = time.monotonic() + _SNAPSHOT_S
            while any(not page.first_ms for page in pages):
                if time.monotonic() > deadline or any(task.done() for task in tasks):
                    await asyncio.gather(*(task for task in tasks if task.done()))
                    raise RuntimeError("not every viewer got its snapshot")
                await asyncio.sleep(0.05)
            opening = cpu_s(process) - opening
            await asyncio.sleep(_SETTLE_S)
            rest, rest_told = await watch_all(pages, process, window_s)

            changing = asyncio.create_task(change_leases(ledger))
            await asyncio.sleep(_SETTLE_S)
            busy, busy_told = await watch_all(pages, process, window_s)
            changing.cancel()
            if any(page.has_ended for page in pages):
                raise RuntimeError("a stream ended while it was measured")
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, changing, return_exceptions=True)
    ledger.close()

    bench.add(f"{viewers} at rest: KB/s a viewer", rest_told, goal=GOAL_KB_S)
    bench.add(f"{viewers}, a lease changes every second: KB/s a viewer", busy_told)
    bench.add("the first snapshot: KB", [page.snapshot_bytes / 1000 for page in pages])
    bench.add(f"{viewers} pages opened at once: ms to the snapshot", [p.first_ms for p in pages])
    bench.add("nobody watches: CPU of the service, % of a core", alone)
    bench.add(f"{viewers} at rest: CPU of the service, % of a core", rest)
    bench.add(f"{viewers}, a lease changes every second: CPU, % of a core", busy)
    bench.ratios["goal/at rest: KB/s a viewer"] = GOAL_KB_S / statistics.median(rest_told)
    bench.ratios[f"added by a viewer at rest: % of a core (n={viewers})"] = (
        statistics.mean(rest) - statistics.mean(alone)
    ) / viewers
    bench.notes.append(
        f"{GPUS} GPUs whose values all move every 5 s, {GPUS} leases, {USERS} users with a grant "
        f"each; windows of {window_s:g} s; CPU of {opening:.2f} s to open all pages at once"
    )


def run(*, viewers: int = 200, window_s: float = _WINDOW_S) -> Bench:
    """Measure; needs Linux, whose /proc tells a process's CPU time."""
    bench = Bench("viewers", unit="each row's own")
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        asyncio.run(measure(bench, Path(folder), viewers, window_s))
    return bench
