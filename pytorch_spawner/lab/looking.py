"""Looks into running servers: which notebook holds what; and ends a kernel.

Nothing is asked unless somebody looks. Then the container's agent is run for one answer, which is
good for a few seconds; one question at a time to each server, and few at once to the engine, of
which one person has half at most. It must not believe the answer: ``core.kernels`` reads it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from pytorch_spawner.adapters import engine, inside, processes
from pytorch_spawner.adapters.one_at_a_time import OneAtATime
from pytorch_spawner.core import kernels as core
from pytorch_spawner.core.gpus import GpuUuid
from pytorch_spawner.core.metering import GpuProcess, Sample
from pytorch_spawner.core.placement import Holding
from pytorch_spawner.errors import EngineUnavailable, LabError
from pytorch_spawner.lab.fair_turns import FairTurns, TooBusy
from pytorch_spawner.lab.ports import Ledger
from pytorch_spawner.lab.settings import LabSettings

log = logging.getLogger(__name__)

# For so long one answer is good: several pages, or an impatient person, cost no more than one.
FRESH_S: Final = 5.0
# The agent gives up by itself before: see agent/kernels.py.
LIST_PATIENCE_S: Final = 15.0
STOP_PATIENCE_S: Final = 30.0
# An exec costs the engine about 0.1 s of a core.
AT_ONCE: Final = 4
# An open page asks every 30 s, and only the one in front; more at once is a program.
MOST_OF_ONE: Final = 16
# So long somebody waits for a turn: less than the 15 s that one hanging server may hold it.
TURN_PATIENCE_S: Final = 10.0
_REMEMBERED: Final = 512
_LATE: Final = (
    "The server did not answer in time; it may be short of memory or very busy. Try again; if it "
    "happens again, stop and start the server."
)

# (username, servername, the agent's arguments) -> what it printed
Ask = Callable[[str, str, Sequence[str]], str]


class NoSuchKernel(LabError):
    """It is not, or not any more, among the server's kernels."""

    code = "no-such-kernel"


class Measured(Protocol):
    """What the meter knows."""

    @property
    def latest(self) -> Mapping[GpuUuid, Sample]:
        """The newest sample of each GPU."""

    @property
    def processes(self) -> Mapping[GpuUuid, tuple[GpuProcess, ...]]:
        """What runs on each GPU; one whose processes are unknown is missing."""


@dataclass(frozen=True, slots=True)
class Looked:
    """One look at one server.

    Attributes:
        at: Unix time in seconds.
        found: Kernels and processes, with their GPU memory.
        shares: What the server has of GPUs.
    """

    at: float
    found: core.Found
    shares: tuple[core.Share, ...]

    def as_json(self, your: str) -> dict[str, Any]:
        """As the API sends it; ``your`` as for ``core.say``."""
        return {
            "at": self.at,
            "sentence": core.say(self.found, self.shares, your),
            "trouble": self.found.trouble,
            "kernels": [one.as_json() for one in core.sorted_by_weight(self.found.kernels)],
            "others": [one.as_json() for one in core.sorted_by_weight(self.found.others)],
            "gpus": [
                {
                    "uuid": share.uuid,
                    "total_mib": share.total_mib,
                    "used_mib": share.used_mib,
                    "is_slot": share.is_slot,
                    "is_nearly_full": share.is_nearly_full,
                }
                for share in self.shares
            ],
        }


class Kernels:
    """Asks servers what their notebooks hold; everything runs on one loop.

    Attributes:
        ask: Runs a container's agent, blocking.
        turns: Whose turn it is to ask.
    """

    def __init__(
        self,
        settings: LabSettings,
        ledger: Ledger,
        meter: Measured,
        *,
        ask: Ask | None = None,
        pid_inside: Callable[[int], int | None] = processes.pid_inside,
    ) -> None:
        """Make it; nothing is asked before somebody looks.

        Args:
            settings: Whose servers, and how to reach the engine.
            ledger: Names the GPUs that a server holds.
            meter: Names the processes on them.
            ask: None for the engine of the settings.
            pid_inside: The number of a process in its own container.
        """
        self.ask = ask or _asker(settings)
        self._hub = settings.hub_id
        self._ledger = ledger
        self._meter = meter
        self._pid_inside = pid_inside
        self._looked: OrderedDict[tuple[str, str], tuple[float, Looked]] = OrderedDict()
        self._asking: dict[tuple[str, str], asyncio.Task[Looked]] = {}
        self.turns = FairTurns(AT_ONCE, MOST_OF_ONE, TURN_PATIENCE_S)
        self._hanging: dict[tuple[str, ...], OneAtATime[str]] = {}

    async def look(self, username: str, servername: str, by: str) -> Looked:
        """What the server's notebooks hold, at most ``FRESH_S`` old.

        Args:
            username: Whose server.
            servername: Its name; "" for the default one.
            by: Who looks.

        Raises:
            NotRunning: It does not run.
            NoAnswer, BadAnswer, EngineUnavailable: It cannot be asked.
            TooBusy: Too many others look.
            LedgerUnavailable: Nobody knows what it holds.
        """
        server = (username, servername)
        known = self._looked.get(server)
        if known is not None and 0 <= time.monotonic() - known[0] < FRESH_S:
            return known[1]
        task = self._asking.get(server)
        is_own = task is None
        if task is None:
            task = self._asking[server] = asyncio.create_task(self._look(username, servername, by))
            task.add_done_callback(lambda _: self._asking.pop(server, None))
        try:
            # One who goes away must not take the answer from the others who wait for it.
            return await asyncio.shield(task)
        except TooBusy:
            if is_own:
                raise
        # It waited among the looks of whoever asked first, who may have asked for too many.
        return await self.look(username, servername, by)

    def lately(self, username: str, servername: str, within_s: float) -> Looked | None:
        """The latest look of the last ``within_s`` seconds, if there was one; asks nobody."""
        known = self._looked.get((username, servername))
        if known is None or not 0 <= time.monotonic() - known[0] <= within_s:
            return None
        return known[1]

    async def stop(self, username: str, servername: str, kernel: str, by: str) -> None:
        """End one kernel; the next look sees the server without it.

        Args:
            username: Whose server.
            servername: Its name; "" for the default one.
            kernel: Its id.
            by: Who ends it.

        Raises:
            NoSuchKernel, NotRunning: It is not there.
            NoAnswer, EngineUnavailable: It cannot be ended.
            TooBusy: Too many others look.
        """
        said = await self._ask(username, servername, ("--stop", kernel), STOP_PATIENCE_S, by)
        self._looked.pop((username, servername), None)
        try:
            status = json.loads(said)["status"]
        except (ValueError, KeyError, TypeError, RecursionError):
            status = 0
        if status == 404:
            raise NoSuchKernel("This kernel is not there (any more).")
        if status != 204:
            raise inside.NoAnswer(
                "JupyterLab did not shut the kernel down. Try again; if that does not help, shut "
                "it down in JupyterLab or stop the server."
            )

    async def _look(self, username: str, servername: str, by: str) -> Looked:
        leases = await asyncio.to_thread(self._ledger.leases, self._hub)
        mine = [
            holding
            for lease in leases
            if (lease.username, lease.servername) == (username, servername)
            for holding in lease.holdings
        ]
        held = await self._on_gpus(username, servername, [holding.gpu for holding in mine])
        # Where the service sees the driver, the container need not wake it up once more.
        arguments = ("--gpu",) if mine and held is None else ()
        said = await self._ask(username, servername, arguments, LIST_PATIENCE_S, by)
        found = core.with_gpu(core.read_found(said), held)
        inventory = await asyncio.to_thread(self._ledger.read_inventory, self._hub)
        memory = {gpu.uuid: gpu.memory_mib for gpu in inventory.gpus if not gpu.is_simulated}
        shares = tuple(
            self._share(holding, memory[holding.gpu], found.gpu_mib if held is None else held)
            for holding in mine
            if holding.gpu in memory
        )
        looked = Looked(time.time(), found, shares)
        server = (username, servername)
        self._looked[server] = (time.monotonic(), looked)
        self._looked.move_to_end(server)
        while len(self._looked) > _REMEMBERED:
            self._looked.popitem(last=False)
        return looked

    async def _on_gpus(
        self, username: str, servername: str, gpus: Sequence[GpuUuid]
    ) -> dict[int, int | None] | None:
        """GPU memory of the server's processes by their number inside; None: nobody can say."""
        listed = self._meter.processes
        if not gpus or any(uuid not in listed for uuid in gpus):
            return None
        there = [process for uuid in dict.fromkeys(gpus) for process in listed[uuid]]
        if not all(process.is_told for process in there):
            return None
        pids = [process for process in there if process.server == (username, servername)]
        inside_of = await asyncio.to_thread(
            lambda: {process.pid: self._pid_inside(process.pid) for process in pids}
        )
        held: dict[int, int | None] = {}
        for process in pids:
            pid = inside_of[process.pid]
            if pid is not None:
                # One process may use several GPUs; what is unknown of one makes the sum unknown.
                before = held.get(pid, 0)
                is_known = before is not None and process.used_mib is not None
                held[pid] = (before or 0) + (process.used_mib or 0) if is_known else None
        return held

    def _share(
        self, holding: Holding, memory_mib: int | None, by_pid: Mapping[int, int | None] | None
    ) -> core.Share:
        if holding.slots <= 1:
            sample = self._meter.latest.get(holding.gpu)
            used_mib = None if sample is None else sample.memory_used_mib
            return core.Share(holding.gpu, memory_mib, used_mib, is_slot=False)
        used = list((by_pid or {}).values())
        known = [mib for mib in used if mib is not None]
        own_mib = sum(known) if by_pid is not None and len(known) == len(used) else None
        total_mib = None if memory_mib is None else memory_mib // holding.slots
        return core.Share(holding.gpu, total_mib, own_mib, is_slot=True)

    async def _ask(
        self, username: str, servername: str, arguments: Sequence[str], patience_s: float, by: str
    ) -> str:
        """Run the container's agent; one that hangs holds up nobody but who asked.

        Raises:
            NotRunning: The server does not run.
            NoAnswer, EngineUnavailable: It cannot be asked.
            TooBusy: There was no turn in time.
        """
        # What hangs is the server, whichever of its kernels was meant.
        key = (username, servername, *arguments[:1])
        if await self._still_hangs(key):
            raise inside.NoAnswer(_LATE)
        call = OneAtATime(lambda: self.ask(username, servername, arguments), "kernels")
        try:
            async with self.turns.turn(by):
                said = await call.ask(patience_s)
        except (inside.NotRunning, TooBusy):
            raise
        except LabError as error:
            log.warning("server=%s/%s: %s", username, servername, error)
            if isinstance(error, inside.NoAnswer):
                raise
            raise EngineUnavailable(
                "The Docker Engine does not answer, so nobody can look into the server just now. "
                "Try again in a minute; if it stays so, tell an admin.",
            ) from error
        if said is None:
            self._hanging[key] = call
            raise inside.NoAnswer(_LATE)
        return said

    async def _still_hangs(self, key: tuple[str, ...]) -> bool:
        """Whether the same question was asked before and waits for its answer still."""
        call = self._hanging.get(key)
        if call is None:
            return False
        try:
            if await call.ask(0) is None:
                return True
        except Exception as error:  # noqa: BLE001 (an old question's; a new one is asked now)
            log.info("server=%s/%s answered late: %s", key[0], key[1], error)
        self._hanging.pop(key, None)
        return False


def _asker(settings: LabSettings) -> Ask:
    """Ask through the engine; it may be away, now or at first."""
    clients: list[Any] = []

    def ask(username: str, servername: str, arguments: Sequence[str]) -> str:
        if not clients:
            clients.append(engine.connect(settings.client_kwargs))
        return inside.ask_agent(
            clients[0], settings.hub_id, username, servername, ["--kernels", *arguments]
        )

    return ask
