"""Every 5 s: how busy the GPUs are, what runs on them and whose it is. Decides nothing itself.

The driver is asked where the service runs; where it is not there, what running servers report of
their own GPUs is shown instead. Driver, engine and ledger may hang or fail; each is asked in a
thread of its own, one call at a time, and the loop goes on with what it has.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Literal, Protocol, TypeVar

from pytorch_spawner.adapters import engine, processes
from pytorch_spawner.adapters.nvml_meter import NvmlMeter, Process, Reading
from pytorch_spawner.adapters.one_at_a_time import OneAtATime
from pytorch_spawner.core.gpus import GpuUuid, Inventory
from pytorch_spawner.core.metering import (
    GpuProcess,
    History,
    Sample,
    Server,
    busy_seconds,
    from_report,
)
from pytorch_spawner.errors import LabError
from pytorch_spawner.lab.ports import Lease
from pytorch_spawner.lab.settings import LabSettings

log = logging.getLogger("pytorch_spawner.measure")

PERIOD_S: Final = 5.0

# A value older than this is not shown any more.
STALE_S: Final = 30.0
# A sample stands for the time since the one before it, but not for a gap.
_GAP_S: Final = 15.0
_LEASES_S: Final = 5.0
# Use is not booked on leases that nobody could look at for so long.
_OLD_LEASES_S: Final = 60.0
_WRITE_S: Final = 60.0
_LIST_S: Final = 5.0
_LIST_AFTER_ERROR_S: Final = 15.0
_TELL_AGAIN_S: Final = 3600.0
# What is kept for a ledger that cannot be written; about a day of a large lab.
_MAX_UNWRITTEN: Final = 5000
_DAY_S: Final = 86400
# Holds the memory and does the work of others, whose own processes an old driver does not list.
_MPS: Final = "nvidia-cuda-mps"

# (begin of the day as Unix time, username, course, GPU, seconds)
BusyRow = tuple[int, str, str, str, float]
T = TypeVar("T")


class MeterLedger(Protocol):
    """What is needed of the ledger; every method blocks."""

    def leases(self, hub: str) -> Sequence[Lease]:
        """All leases in force."""

    def read_inventory(self, hub: str) -> Inventory:
        """The GPUs as the hub last wrote them."""

    def add_busy(self, hub: str, rows: Sequence[BusyRow]) -> Any:
        """Add to the seconds that each user kept each GPU busy on a day."""


class Meter:
    """What is known about the use of the GPUs now and lately; everything runs on one loop.

    Attributes:
        history: The last quarter of an hour.
        source: "driver", "reports" (of running servers), or "none".
        reason: For admins: why there is nothing, or not everything, and what to do.
        on_change: Called on the loop after a round that changed any of this.
    """

    def __init__(
        self,
        settings: LabSettings,
        ledger: MeterLedger,
        *,
        read: Callable[[], Reading] | None = None,
        containers: Callable[[], Sequence[engine.LabContainer]] | None = None,
        containers_of: Callable[[int], Sequence[str] | None] = processes.containers_of,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Make a meter; nothing is asked before ``run`` or ``step``.

        Args:
            settings: Whose GPUs, and how to reach the engine.
            ledger: Names the GPUs and who holds them; takes what was used.
            read: Asks the driver; None for NVML.
            containers: Lists the hub's containers; None for the engine of the settings.
            containers_of: Ids of the containers that a process is in; None for "cannot be said".
            clock: Unix time in seconds; the same as that of the samples.
        """
        self.history = History()
        self.source: Literal["driver", "reports", "none"] = "none"
        self.reason = "The GPUs were not looked at yet."
        self.on_change: list[Callable[[], None]] = []
        self._hub = settings.hub_id
        self._ledger = ledger
        self._clock = clock
        self._read = read or NvmlMeter(clock=clock).read
        self._containers_of = containers_of
        self._looking = OneAtATime(self._look, "meter-driver")
        self._listing = OneAtATime(containers or _lister(settings), "meter-engine")
        self._fetching = OneAtATime(self._fetch, "meter-ledger")
        self._writing = OneAtATime(self._write, "meter-busy")
        self._samples: dict[GpuUuid, Sample] = {}
        self._processes: dict[GpuUuid, tuple[GpuProcess, ...]] = {}
        # What the last answer of the driver was worth.
        self._driver_at = self._processes_at = -1e18
        self._read_at: float | None = None
        self._driver_reason = ""
        self._inventory: Inventory | None = None
        self._real: frozenset[str] = frozenset()
        self._leases: Sequence[Lease] = ()
        self._fetched_at = -1e18
        self._servers: dict[str, Server] = {}
        self._strangers: frozenset[str] = frozenset()
        self._listed_ids: frozenset[str] = frozenset()
        self._list_again_at = -1e18
        self._list_began_at = -1e18
        self._busy: dict[tuple[int, str, str, str], float] = {}
        self._unwritten: dict[tuple[int, str, str, str], float] = {}
        self._wrote_at: float | None = None
        self._told: dict[str, float] = {}
        self._shown: object = None

    @property
    def latest(self) -> Mapping[GpuUuid, Sample]:
        """The newest sample of each GPU; one that is older than ``STALE_S`` is missing."""
        now = self._clock()
        return {uuid: it for uuid, it in self._samples.items() if _is_new(it.at, now, STALE_S)}

    @property
    def processes(self) -> Mapping[GpuUuid, tuple[GpuProcess, ...]]:
        """What runs on each GPU; one whose processes are unknown is missing."""
        is_new = _is_new(self._processes_at, self._clock(), STALE_S)
        return dict(self._processes) if is_new else {}

    async def run(self) -> None:
        """Measure for ever; no error ends it."""
        while True:
            began = time.monotonic()
            try:
                await self.step()
            except Exception as error:  # noqa: BLE001 (a background loop; logged once a kind)
                self._tell(f"step {type(error).__name__}", "the GPUs were not measured", error)
            await asyncio.sleep(max(0.1, PERIOD_S - (time.monotonic() - began)))

    async def step(self) -> None:
        """One round."""
        await self._refresh()
        try:
            looked = await self._looking.ask()
        except Exception as error:  # noqa: BLE001 (a binding may raise anything)
            self._driver_reason = "The NVIDIA driver answers with an error; see the service's log."
            self._tell("driver", "the driver could not be read", error)
            looked = None
        if looked is not None:
            await self._take(*looked)
        self._forget()
        self._explain()
        await self._write_busy()
        self._notify()

    async def take_report(self, username: str, servername: str, data: Mapping[str, Any]) -> None:
        """Take the data of an agent's ``sample`` event, where the driver cannot be asked.

        Believed only of GPUs that this server holds. Nothing of it is booked as use: a container
        may report what it likes. Shown with the next round.
        """
        if self.source == "driver":
            return
        await self._refresh()
        server = (username, servername)
        held = {
            uuid
            for lease in self._leases
            if (lease.username, lease.servername) == server
            for uuid in lease.gpus
        }
        samples = from_report(data, held & self._real, self._clock())
        if samples:
            self._samples.update(samples)
            self.history.add(self._clock(), samples)

    # -- the ledger ---------------------------------------------------------------------------

    async def _refresh(self) -> None:
        """GPUs and leases, not older than ``_LEASES_S`` where the ledger answers."""
        # A little less, so that a round never takes what the one before it read.
        if _is_new(self._fetched_at, self._clock(), _LEASES_S - 0.5):
            return
        try:
            fetched = await self._fetching.ask()
        except Exception as error:  # noqa: BLE001 (the old answer goes on counting)
            self._tell("ledger", "leases could not be read", error)
            return
        if fetched is not None:
            self._inventory, self._leases = fetched
            self._real = frozenset(gpu.uuid for gpu in self._inventory.gpus if not gpu.is_simulated)
            self._fetched_at = self._clock()

    def _fetch(self) -> tuple[Inventory, Sequence[Lease]]:
        return self._ledger.read_inventory(self._hub), self._ledger.leases(self._hub)

    # -- the driver ---------------------------------------------------------------------------

    def _look(self) -> tuple[Reading, dict[int, Sequence[str] | None]]:
        reading = self._read()
        pids = {pid for listed in reading.processes.values() for pid, _, _ in listed}
        return reading, {pid: self._containers_of(pid) for pid in pids}

    async def _take(self, reading: Reading, places: Mapping[int, Sequence[str] | None]) -> None:
        samples = {uuid: it for uuid, it in reading.samples.items() if uuid in self._real}
        self._driver_reason = reading.reason
        if not samples:
            if reading.samples:
                self._driver_reason = (
                    "The driver beside the lab service knows none of the lab's GPUs: they are in "
                    "another machine. Run the hub there to see how busy they are."
                )
            return
        await self._find_servers({one for ids in places.values() for one in ids or ()})
        at = max(sample.at for sample in samples.values())
        self._samples.update(samples)
        self._processes = {
            uuid: tuple(self._whose(process, places) for process in listed)
            for uuid, listed in reading.processes.items()
            if uuid in self._real
        }
        self._driver_at = self._processes_at = at
        self.history.add(at, samples)
        self._book(samples, at)

    def _whose(self, process: Process, places: Mapping[int, Sequence[str] | None]) -> GpuProcess:
        pid, name, used_mib = process
        ids = places.get(pid)
        # The outermost first: what a student runs inside a container is that container's.
        for container in ids or ():
            if (server := self._servers.get(container)) is not None:
                return GpuProcess(pid, name, used_mib, *server)
        is_told = ids is not None and all(one in self._strangers for one in ids)
        return GpuProcess(pid, name, used_mib, is_told=is_told and not name.startswith(_MPS))

    async def _find_servers(self, ids: Iterable[str]) -> None:
        """Ask the engine, but only where there is a container that was not looked up before."""
        seen = frozenset(ids)
        if not seen - self._servers.keys() - self._strangers:
            return
        now = self._clock()
        if not self._listing.is_pending:
            if self._list_began_at <= now < self._list_again_at:
                return
            self._listed_ids, self._list_began_at = seen, now
            self._list_again_at = now + _LIST_S
        try:
            listed = await self._listing.ask()
        except Exception as error:  # noqa: BLE001 (whose a process is stays unknown for a while)
            self._list_again_at = now + _LIST_AFTER_ERROR_S
            self._tell("engine", "containers could not be listed", error)
            return
        if listed is not None:
            self._servers = {
                container.id: container.server
                for container in listed
                if container.label("hub") == self._hub and container.label("server")
            }
            # Only those that were there when the engine was asked.
            self._strangers = self._listed_ids - self._servers.keys()

    # -- what was used --------------------------------------------------------------------------

    def _book(self, samples: Mapping[GpuUuid, Sample], at: float) -> None:
        before, self._read_at = self._read_at, at
        if before is None or not _is_new(self._fetched_at, self._clock(), _OLD_LEASES_S):
            return
        running = [lease for lease in self._leases if lease.kept_until is None]
        courses = {lease.id: str(lease.request.get("course") or "") for lease in running}
        used = busy_seconds(samples, self._processes, running, min(max(0.0, at - before), _GAP_S))
        day = int(at // _DAY_S) * _DAY_S
        for (username, _, lease, gpu), busy_s in used.items():
            _add(self._busy, (day, username, courses[lease], gpu), busy_s)

    async def _write_busy(self) -> None:
        now = self._clock()
        if self._wrote_at is None:
            self._wrote_at = now
        if not self._writing.is_pending:
            if not self._busy or _is_new(self._wrote_at, now, _WRITE_S - 0.5):
                return
            self._wrote_at = now
            self._unwritten, self._busy = self._busy, {}
        try:
            if await self._writing.ask() is None:
                return
        except Exception as error:  # noqa: BLE001 (kept, and written with the next minute's)
            self._tell("busy", "what was used could not be written down", error)
            for key, busy_s in self._unwritten.items():
                _add(self._busy, key, busy_s)
            newest = sorted(self._busy, reverse=True)[:_MAX_UNWRITTEN]
            self._busy = {key: self._busy[key] for key in newest}
        self._unwritten = {}

    def _write(self) -> bool:
        rows = [(*key, busy_s) for key, busy_s in self._unwritten.items()]
        self._ledger.add_busy(self._hub, rows)
        return True

    # -- what is shown ----------------------------------------------------------------------------

    def _forget(self) -> None:
        """Drop what is stale or of no GPU any more, and let the history move on."""
        self._samples = {uuid: sample for uuid, sample in self.latest.items() if uuid in self._real}
        self._processes = dict(self.processes)
        self.history.add(self._clock(), {})

    def _explain(self) -> None:
        """Set the source and the reason."""
        if _is_new(self._driver_at, self._clock(), STALE_S):
            self.source, reason = "driver", self._driver_reason
        elif self._samples:
            self.source = "reports"
            reason = (
                f"{self._why_not()} Shown is what running servers say of their own GPUs, which "
                "they do while they warm up."
            )
        else:
            self.source, reason = "none", self._why_not()
        if reason != self.reason:
            log.info("source=%s %s", self.source, reason)
        self.reason = reason

    def _why_not(self) -> str:
        if self._inventory is None:
            return "The ledger cannot be read, so nobody knows which GPUs to look at."
        if not self._inventory.gpus:
            return self._inventory.reason or "The hub has seen no GPU."
        if not self._real:
            return "The GPUs of this lab are simulated; there is nothing to measure."
        if self._looking.is_pending:
            return (
                "The NVIDIA driver does not answer. Run nvidia-smi on the host and see dmesg; if "
                "that hangs too, restart the host."
            )
        return self._driver_reason or "The GPUs were not looked at yet."

    def _notify(self) -> None:
        shown = (dict(self._samples), dict(self._processes), self.source, self.reason)
        if shown == self._shown:
            return
        self._shown = shown
        for call in list(self.on_change):
            try:
                call()
            except Exception as error:  # noqa: BLE001 (one listener must not stop the others)
                self._tell("listener", "a listener failed", error)

    def _tell(self, kind: str, what: str, error: Exception) -> None:
        """Log an error, once an hour for each kind."""
        now = time.monotonic()
        if now - self._told.get(kind, -1e9) < _TELL_AGAIN_S:
            return
        self._told[kind] = now
        # What we raise on purpose is a sentence; anything else needs its traceback.
        unforeseen = None if isinstance(error, LabError) else error
        log.warning("%s: %s", what, error, exc_info=unforeseen)


def _lister(settings: LabSettings) -> Callable[[], Sequence[engine.LabContainer]]:
    """List the hub's containers; the engine may be away, now or at first."""
    clients: list[Any] = []

    def containers() -> Sequence[engine.LabContainer]:
        if not clients:
            clients.append(engine.connect(settings.client_kwargs))
        return engine.list_containers(clients[0], settings.hub_id)

    return containers


def _is_new(at: float, now: float, for_s: float) -> bool:
    """Whether it was within the last ``for_s`` seconds; not so of a moment yet to come."""
    return 0 <= now - at <= for_s


def _add(
    to: dict[tuple[int, str, str, str], float], key: tuple[int, str, str, str], seconds: float
) -> None:
    to[key] = to.get(key, 0.0) + seconds
