"""What students who wait cost the hub: CPU of its process while pages are open on pending servers.

The servers' command never answers, so that they stay pending; each has one page open, whose stream
is held as a browser holds it. Ours has a second kind of page, the landing page of a server with its
journal, which the lab service serves.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import tempfile
from pathlib import Path

from tornado.httpclient import AsyncHTTPClient, HTTPRequest

from tests.benchmarks.bench_spawn import QUIET, STOCK, arms, say
from tests.benchmarks.harness import Bench
from tests.benchmarks.real_hub import Arm, RealHub, lab_network

_PENDING_S = 60.0
_SETTLE_S = 12.0
_WINDOW_S = 10.0
_TICKS = os.sysconf("SC_CLK_TCK")


def run(*, pages: int = 10, windows: int = 3) -> Bench:
    """Measure stock's and our pages in turn, each arm on a hub of its own."""
    bench = Bench("landing", unit="ms of CPU a second")
    with contextlib.ExitStack() as stack:
        stack.enter_context(lab_network())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-landing-")))
        for arm in (arm for arm in arms() if arm.name in (STOCK, QUIET)):
            with RealHub(folder / str(arm.is_ours), never_ready(arm)).running() as hub:
                found = asyncio.run(_Pages(hub, pages, windows).measure())
            for what, values in found.items():
                bench.add(f"{'ours' if arm.is_ours else 'stock'}, {what}", values)
                say(f"{arm.name}, {what}: {values}")
    rows = {row.what: row.median for row in bench.rows}
    waiting = f"{pages} pending servers with a page each: hub"
    if rows.get(f"stock, {waiting}"):
        bench.ratios["ours/stock: hub"] = rows[f"ours, {waiting}"] / rows[f"stock, {waiting}"]
    return bench


def never_ready(arm: Arm) -> Arm:
    """The arm with servers whose command does not answer."""
    section = "PyTorchSpawner" if arm.is_ours else "DockerSpawner"
    return dataclasses.replace(arm, traits={**arm.traits, f"{section}.cmd": ["sleep", "900"]})


class _Pages:
    """Open pages of one hub."""

    def __init__(self, hub: RealHub, pages: int, windows: int) -> None:
        self._hub = hub
        self._users = [f"student{number:02d}" for number in range(pages)]
        self._windows = windows
        self._client: AsyncHTTPClient = hub.client()
        self._tasks: list[asyncio.Task[None]] = []

    async def measure(self) -> dict[str, list[float]]:
        """What -> milliseconds of CPU a second, for each window."""
        try:
            await self._hub.answers(self._client)
            await self._hub.add_users(self._client, self._users)
            await asyncio.sleep(_SETTLE_S)
            found = await self._cpu("nobody waits")
            for user in self._users:
                # Answered after ten seconds with "pending", and not waited for.
                self._do(self._start(user))
            await self._are_pending()
            await asyncio.sleep(_SETTLE_S)
            count = len(self._users)
            found |= await self._cpu(f"{count} pending servers, no page")
            for user in self._users:
                self._do(self._follow(f"hub/api/users/{user}/server/progress"))
            await asyncio.sleep(3)
            found |= await self._cpu(f"{count} pending servers with a page each")
            if self._hub.arm.is_ours:
                for user in self._users:
                    self._do(self._follow(f"services/lab/api/servers/{user}//events"))
                await asyncio.sleep(3)
                found |= await self._cpu(
                    f"{count} pending servers with a landing page each as well"
                )
            return found
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._client.close()

    def _do(self, what: object) -> None:
        self._tasks.append(asyncio.ensure_future(what))  # type: ignore[call-overload]

    async def _start(self, user: str) -> None:
        options = dict(self._hub.arm.options)
        await self._hub.ask(self._client, "POST", f"hub/api/users/{user}/server", options)

    async def _follow(self, path: str) -> None:
        """Hold a stream open, as a page does."""
        request = HTTPRequest(
            f"{self._hub.url}/{path}",
            headers={
                "Authorization": f"token {self._hub.token}",
                "Accept": "text/event-stream",
            },
            request_timeout=600,
            streaming_callback=lambda _: None,
        )
        answer = await self._client.fetch(request, raise_error=False)
        if answer.code >= 400:
            say(f"{self._hub.arm.name}: /{path}: {answer.code}")

    async def _are_pending(self) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _PENDING_S
        while loop.time() < deadline:
            servers = [await self._hub.server(self._client, user) for user in self._users]
            if len(self._hub.containers()) >= len(self._users) and all(
                server and server["pending"] for server in servers
            ):
                return
            await asyncio.sleep(0.5)
        raise RuntimeError(f"{self._hub.arm.name}: not all are pending\n{self._hub.tail()}")

    async def _cpu(self, what: str) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {}
        for _ in range(self._windows):
            before = self._spent_ms()
            await asyncio.sleep(_WINDOW_S)
            for who, spent in self._spent_ms().items():
                found.setdefault(f"{what}: {who}", []).append((spent - before[who]) / _WINDOW_S)
        return found

    def _spent_ms(self) -> dict[str, float]:
        hub = self._hub.pid
        spent = {"hub": cpu_ms(hub)}
        if self._hub.arm.is_ours and (service := child_running(hub, b"pytorch_spawner.lab")):
            spent["lab service"] = cpu_ms(service)
        return spent


def cpu_ms(pid: int) -> float:
    """CPU time of a process so far.

    Source: proc_pid_stat(5): utime and stime, in clock ticks, are fields 14 and 15.
    """
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * 1000 / _TICKS


def child_running(parent: int, word: bytes) -> int | None:
    """A process's child with a word on its command line."""
    for place in Path("/proc").glob("[0-9]*"):
        try:
            above = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            words = (place / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it ended meanwhile
            continue
        if above == parent and word in words:
            return int(place.name)
    return None
