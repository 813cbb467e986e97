"""The hub is killed with kill -9 while three servers run, and started again: who waits how long?

Stock and ours in turn, each on a hub of its own. The clock begins with the new hub's process.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from tornado.httpclient import AsyncHTTPClient

from tests.benchmarks.bench_spawn import QUIET, STOCK, arms, say
from tests.benchmarks.harness import Bench
from tests.benchmarks.real_hub import NotStarted, RealHub, lab_network

_RUNNING = ("ana", "bo", "cleo")
_NEW = "dan"
_WITHIN_S = 150.0


def run(*, rounds: int = 3) -> Bench:
    """Measure both arms ``rounds`` times."""
    bench = Bench("recovery", unit="s")
    samples: dict[str, list[float]] = {}
    with contextlib.ExitStack() as stack:
        stack.enter_context(lab_network())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-recovery-")))
        chosen = [arm for arm in arms() if arm.name in (STOCK, QUIET)]
        for number in range(rounds):
            for arm in chosen if number % 2 == 0 else reversed(chosen):
                with RealHub(folder / f"{arm.name}-{number}", arm).running() as hub:
                    for what, seconds in asyncio.run(_measure(hub)).items():
                        who = "ours" if arm.is_ours else "stock"
                        samples.setdefault(f"{who}, {what}", []).append(seconds)
                        say(f"{who}, {what}: {seconds:.2f} s")
    for what, values in samples.items():
        bench.add(what, values)
        ours = samples.get(what.replace("stock, ", "ours, "), [])
        if what.startswith("stock, ") and ours:
            label = what.replace("stock, ", "ours/stock: ")
            bench.ratios[label] = sorted(ours)[len(ours) // 2] / sorted(values)[len(values) // 2]
    bench.notes.append(
        "seconds from the start of the hub's new process; the three servers' containers ran on"
    )
    return bench


async def _measure(hub: RealHub) -> dict[str, float]:
    client = hub.client()
    try:
        await hub.answers(client)
        await hub.add_users(client, [*_RUNNING, _NEW])
        for user in (*_RUNNING, _NEW):
            await hub.start(client, user)
        await hub.stop(client, _NEW)
        before = {user: hub.containers(user) for user in _RUNNING}
        hub.kill9()
        await asyncio.sleep(2)
        began = time.monotonic()
        hub.launch()
        await hub.answers(client, with_service=False)
        answered = time.monotonic() - began
        running, new = await asyncio.gather(
            asyncio.gather(
                *(_until(hub, lambda u=user: _works(hub, client, u)) for user in _RUNNING)
            ),
            _until(hub, lambda: _starts(hub, client)),
        )
        kept = sum(hub.containers(user) == before[user] for user in _RUNNING)
        if kept != len(_RUNNING):
            raise RuntimeError(f"{hub.arm.name}: {kept} of 3 containers are the same as before")
        return {
            "the hub answers": answered,
            "all running servers work through hub and proxy": max(running) - began,
            "a new server has started": new - began,
        }
    finally:
        client.close()


async def _until(hub: RealHub, works: Callable[[], Awaitable[bool]]) -> float:
    """``time.monotonic()`` when it works."""
    deadline = time.monotonic() + _WITHIN_S
    while time.monotonic() < deadline:
        if await works():
            return time.monotonic()
        await asyncio.sleep(0.05)
    raise RuntimeError(f"{hub.arm.name}: no recovery in {_WITHIN_S:g} s\n{hub.tail()}")


async def _works(hub: RealHub, client: AsyncHTTPClient, user: str) -> bool:
    server = await hub.server(client, user)
    if not server or not server["ready"]:
        return False
    # Not the open /api: this asks the hub whose the token is.
    return (await hub.ask(client, "GET", f"user/{user}/api/status", timeout_s=5)).code == 200


async def _starts(hub: RealHub, client: AsyncHTTPClient) -> bool:
    try:
        await hub.start(client, _NEW)
    except NotStarted:
        return False
    return True
