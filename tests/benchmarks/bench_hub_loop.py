"""Many students press "start" at once: does the hub's loop keep turning, and when are all ready?

A real hub with a real proxy, our spawner and the stock DockerSpawner in turn, against the same fake
engine, which takes an engine's time for every call. The loop's lateness is measured on the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from tests.benchmarks import fake_engine, loop_meter
from tests.benchmarks.harness import ROOT, Bench
from tests.ports import free_port_block

GOAL_MS = 50.0
_IDLE_S = 3.0
_HUB_S = 60.0
_BURST_S = 200.0


@dataclass(frozen=True, slots=True)
class Burst:
    """What one burst of starts looked like.

    Attributes:
        all_ready_ms: From the first request until the last server is ready.
        starts_ms: Each start, from its request until it is ready.
        loop: What the meter saw meanwhile.
    """

    all_ready_ms: float
    starts_ms: tuple[float, ...]
    loop: loop_meter.Reading


class BenchHub:
    """One hub with its own ports and state, driven through its REST API."""

    def __init__(self, folder: Path, spawner: str, *, gpus: int, profile: bool) -> None:
        self.folder = folder
        self.meter = folder / "loop.txt"
        self._port = free_port_block(5)
        self.server_port = self._port + 4
        self._token = secrets.token_hex(16)
        self._process: subprocess.Popen[bytes] | None = None
        self._settings = {
            "spawner": spawner,
            "state": str(folder),
            "port": self._port,
            "server_port": self.server_port,
            "hub_id": "bench",
            "network": fake_engine.NETWORK,
            "token": self._token,
            "meter": str(self.meter),
            "profile": profile,
            "inventory": [
                {
                    "uuid": name,
                    "index": index,
                    "name": "Bench GPU",
                    "memory_mib": 81920,
                    "cdi_name": f"{fake_engine.KIND}={name}",
                    "is_simulated": True,
                }
                for index, name in enumerate(fake_engine.device_names(gpus))
            ],
        }

    @contextmanager
    def running(self, engine: fake_engine.Engine) -> Iterator[BenchHub]:
        """Start it, and end it with its proxy."""
        places = [ROOT / "node_modules" / ".bin", Path(sys.executable).parent, os.environ["PATH"]]
        path = os.pathsep.join(map(str, places))
        if shutil.which("configurable-http-proxy", path=path) is None:
            raise RuntimeError("there is no configurable-http-proxy: run npm ci")
        env = {
            **os.environ,
            "PATH": path,
            "PYTHONPATH": os.pathsep.join(
                [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
            ),
            "DOCKER_HOST": engine.host,
            "BENCH_HUB": json.dumps(self._settings),
        }
        config = Path(__file__).with_name("hub_config.py")
        with (self.folder / "hub.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "jupyterhub", "-f", str(config)],
                cwd=self.folder,
                env=env,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            yield self
        finally:
            self._stop()

    def _stop(self) -> None:
        # Not asked to end by itself: it would stop every server first, a minute for the stock one.
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(10)
        with contextlib.suppress(OSError, ValueError, IndexError):
            proxy = int((self.folder / "proxy.pid").read_text().split()[0])
            os.kill(proxy, signal.SIGTERM)

    def tail(self) -> str:
        """The log's last lines."""
        text = (self.folder / "hub.log").read_text(errors="replace")
        return "\n".join(text.splitlines()[-30:])

    def session(self) -> aiohttp.ClientSession:
        """A client of the hub's API with as many connections as it takes."""
        return aiohttp.ClientSession(
            f"http://127.0.0.1:{self._port}",
            headers={"Authorization": f"token {self._token}"},
            # The proxy closes what was idle for five seconds.
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=2),
            timeout=aiohttp.ClientTimeout(total=_BURST_S),
        )

    async def ready(self, client: aiohttp.ClientSession) -> None:
        """Wait until the hub answers."""
        deadline = time.monotonic() + _HUB_S
        while time.monotonic() < deadline:
            if self._process is None or self._process.poll() is not None:
                break
            try:
                async with client.get("/hub/api/") as answer:
                    if answer.ok:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.1)
        raise RuntimeError(f"the hub does not answer\n{self.tail()}")

    async def add_users(self, client: aiohttp.ClientSession, names: Sequence[str]) -> None:
        """Make users exist."""
        async with client.post("/hub/api/users", json={"usernames": list(names)}) as answer:
            if answer.status != 201:
                raise RuntimeError(f"{answer.status} {await answer.text()}")

    async def start(self, client: aiohttp.ClientSession, name: str) -> float:
        """Start a server and wait until it is ready; how many ms that took."""
        began = time.monotonic()
        async with client.post(f"/hub/api/users/{name}/server", json={}) as answer:
            said = await answer.text()
            if answer.status != 201:
                raise RuntimeError(f"{name}: {answer.status} {said[:500]}\n{self.tail()}")
        return (time.monotonic() - began) * 1000

    async def stop_all(self, client: aiohttp.ClientSession, names: Sequence[str]) -> None:
        """Stop servers and wait until they are gone."""

        async def stop(name: str) -> None:
            while True:
                async with client.delete(f"/hub/api/users/{name}/server") as answer:
                    if answer.status in (204, 404):
                        return
                await asyncio.sleep(1)

        await asyncio.wait_for(asyncio.gather(*map(stop, names)), _BURST_S)

    async def burst(
        self, client: aiohttp.ClientSession, names: Sequence[str], over_s: float = 0
    ) -> Burst:
        """Start all within ``over_s`` seconds, and measure until the last is ready."""

        async def one(number: int, name: str) -> float:
            await asyncio.sleep(over_s * number / len(names))
            return await self.start(client, name)

        began = time.monotonic()
        took = await asyncio.gather(*(one(*each) for each in enumerate(names)))
        ended = time.monotonic()
        await asyncio.sleep(2 * 0.5)  # the meter writes every half a second
        return Burst((ended - began) * 1000, tuple(took), self.read(began, ended))

    async def idle(self) -> loop_meter.Reading:
        """What the meter sees while nobody starts anything."""
        began = time.monotonic()
        await asyncio.sleep(_IDLE_S)
        ended = time.monotonic()
        await asyncio.sleep(2 * 0.5)
        return self.read(began, ended)

    def read(self, began: float, ended: float) -> loop_meter.Reading:
        """What the meter saw in a stretch of time."""
        return loop_meter.read(self.meter, began, ended)


async def measure(
    folder: Path, spawner: str, starts: int, spreads_s: Sequence[float], *, profile: bool
) -> tuple[list[Burst], loop_meter.Reading]:
    """One hub: two starts to warm it up, then a burst for each spread; all stop in between."""
    folder.mkdir(parents=True)
    names = [f"student{number:04d}" for number in range(starts)]
    warm = ["warm1", "warm2"]
    hub = BenchHub(folder, spawner, gpus=starts + len(warm), profile=profile)
    running_engine = fake_engine.running_engine(
        folder, gpus=starts + len(warm), serve=hub.server_port if spawner == "none" else 0
    )
    with running_engine as engine, hub.running(engine):
        async with hub.session() as client:
            await hub.ready(client)
            await hub.add_users(client, [*names, *warm])
            for name in warm:
                await hub.start(client, name)
            idle = await hub.idle()
            found = []
            for number, over_s in enumerate(spreads_s):
                if number:
                    await hub.stop_all(client, names)
                found.append(await hub.burst(client, names, over_s))
            told = engine.told()
    if told["devices_held_twice"] or told["unknown"]:
        raise RuntimeError(f"the engine saw what must not be: {told}")
    return found, idle


def run(
    *, starts: int = 200, rounds: int = 1, over_s: float = 10, profile: bool = False, keep: str = ""
) -> Bench:
    """Each spawner in turn on a hub of its own, ``rounds`` times.

    "nothing" is a spawner that only waits, so its figures are JupyterHub's own. Stock takes over a
    minute for each burst, because it calls the engine for one server after the other.
    """
    bench = Bench("hub-loop")
    at_once, again, spread = "at once", "at once, homes there", f"within {over_s:g} s"
    plan = {
        "stock": {at_once: 0.0},
        "nothing": {at_once: 0.0, spread: over_s},
        "ours": {at_once: 0.0, again: 0.0, spread: over_s},
    }
    bursts: dict[tuple[str, str], list[Burst]] = {}
    idle: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as temporary:
        folder = Path(keep or temporary)
        for number in range(rounds):
            for who, spreads in plan.items():
                spawner = "none" if who == "nothing" else who
                place = folder / f"{spawner}{number}"
                found, resting = asyncio.run(
                    measure(place, spawner, starts, list(spreads.values()), profile=profile)
                )
                for how, burst in zip(spreads, found, strict=True):
                    bursts.setdefault((who, how), []).append(burst)
                idle.setdefault(who, []).extend(resting.late)
    for (who, how), seen in bursts.items():
        _report(bench, f"{who}, {starts} {how}", seen)
    for who, late in idle.items():
        bench.add(f"{who}, nobody starts: loop late (5 ms probe)", late, with_p99=True)
    for base in ("stock", "nothing"):
        ours, theirs = bursts["ours", at_once], bursts[base, at_once]
        bench.ratios[f"ours/{base}: all ready"] = _median(ours, _ready) / _median(theirs, _ready)
        bench.ratios[f"ours/{base}: latest wake-up"] = _median(ours, _latest) / _median(
            theirs, _latest
        )
    return bench


def _report(bench: Bench, who: str, seen: Sequence[Burst]) -> None:
    bench.add(f"{who}: all ready", map(_ready, seen))
    bench.add(f"{who}: one start", [ms for one in seen for ms in one.starts_ms], with_p99=True)
    late = [ms for one in seen for ms in loop_meter.blocked(one.loop.late)]
    bench.add(f"{who}: loop late (5 ms probe)", late, with_p99=True)
    bench.add(f"{who}: loop late, the worst", map(_latest, seen), goal=GOAL_MS)
    bench.add(f"{who}: longest step in the spawner", map(_longest_step, seen), goal=GOAL_MS)
    bench.add(f"{who}: all steps in the spawner", [_steps(one) for one in seen])
    bench.add(f"{who}: longest garbage collection", map(_pause, seen))
    over = [sum(ms > GOAL_MS for ms in one.loop.late) for one in seen]
    steps = [
        [f"{step[2]} {step[0]:.0f} (CPU {step[1]:.0f})" for step in one.loop.steps[:3]]
        for one in seen
    ]
    bench.notes.append(
        f"{who}: more than {GOAL_MS:g} ms late {over} times; CPU time of the loop's thread in "
        f"the worst: {[round(one.loop.worst_cpu) for one in seen]} ms; longest steps: {steps}"
    )


def _ready(burst: Burst) -> float:
    return burst.all_ready_ms


def _latest(burst: Burst) -> float:
    return max(burst.loop.late)


def _longest_step(burst: Burst) -> float:
    return burst.loop.steps[0][0] if burst.loop.steps else 0.0


def _steps(burst: Burst) -> float:
    return sum(step[0] for step in burst.loop.steps)


def _pause(burst: Burst) -> float:
    return max(burst.loop.gc, default=0.0)


def _median(bursts: Sequence[Burst], figure: Callable[[Burst], float]) -> float:
    return statistics.median(map(figure, bursts))
