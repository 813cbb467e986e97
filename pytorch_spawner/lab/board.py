"""The GPUs as the admin's pages show them: what is decided, who holds them, what they do.

Reads the ledger and lays the measurements over it; it decides nothing and keeps nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pytorch_spawner.core.gpus import Gpu, GpuUuid, Inventory
from pytorch_spawner.core.grants import Grant
from pytorch_spawner.core.metering import GpuProcess, History, Sample
from pytorch_spawner.core.placement import DeviceSetting, Holding, with_settings
from pytorch_spawner.lab.etags import etag_of
from pytorch_spawner.lab.ports import Lease, Ledger


class Measurements(Protocol):
    """What is measured, as ``lab.measure.Meter`` keeps it."""

    history: History
    reason: str

    @property
    def source(self) -> str:
        """Who measures: "driver", "reports" or "none"."""

    @property
    def latest(self) -> Mapping[GpuUuid, Sample]:
        """The newest sample of each GPU; those that are old are missing."""

    @property
    def processes(self) -> Mapping[GpuUuid, tuple[GpuProcess, ...]]:
        """What runs on each GPU; one whose processes are unknown is missing."""


@dataclass(frozen=True, slots=True)
class State:
    """Everything of the ledger that a row shows, read at about the same time."""

    inventory: Inventory
    settings: tuple[DeviceSetting, ...]
    leases: tuple[Lease, ...]
    grants: tuple[Grant, ...]
    waiting: int
    version: int

    @property
    def laid(self) -> Inventory:
        """The devices with the admin's decisions, as the scheduler sees them."""
        in_force: dict[str, int] = {
            holding.gpu: holding.slots for lease in self.leases for holding in lease.holdings
        }
        return with_settings(self.inventory, self.settings, in_force)


class Board:
    """Makes rows out of ledger and measurements.

    Args:
        ledger: Where decisions and leases are.
        hub_id: Whose.
        meter: What is measured.
    """

    def __init__(self, ledger: Ledger, hub_id: str, meter: Measurements) -> None:
        self._ledger = ledger
        self._hub_id = hub_id
        self.meter = meter

    def read(self) -> State:
        """Read the ledger; blocks."""
        ledger, hub = self._ledger, self._hub_id
        # The version first: what changes while the rest is read is told once more, not lost.
        version = ledger.shown_version(hub)
        return State(
            inventory=ledger.read_inventory(hub),
            settings=tuple(ledger.settings(hub)),
            leases=tuple(ledger.leases(hub)),
            grants=tuple(ledger.grants(hub)),
            waiting=len(ledger.queue(hub)),
            version=version,
        )

    def version(self) -> int:
        """A number that grows when anything but the inventory changes; blocks."""
        return self._ledger.shown_version(self._hub_id)

    def sample_of(self, uuid: str) -> dict[str, Any] | None:
        """The latest measurement of a device."""
        return describe_sample(self.meter.latest.get(GpuUuid(uuid)))

    async def state(self) -> State:
        """Read the ledger in a thread."""
        return await asyncio.to_thread(self.read)

    def rows(self, state: State) -> list[dict[str, Any]]:
        """One row a device, without its sample."""
        settings = {setting.uuid: setting for setting in state.settings}
        by_gpu: dict[str, list[tuple[Lease, Holding]]] = {}
        for lease in state.leases:
            for holding in lease.holdings:
                by_gpu.setdefault(holding.gpu, []).append((lease, holding))
        pins: dict[str, list[Grant]] = {}
        now = self._ledger.now()
        for grant in state.grants:
            for uuid in grant.gpus:
                if grant.is_valid(now):
                    pins.setdefault(uuid, []).append(grant)
        return [
            {
                **describe_gpu(gpu, len(by_gpu.get(gpu.uuid, ()))),
                **describe_setting(settings.get(gpu.uuid, DeviceSetting(gpu.uuid))),
                "pins": [describe_pin(one) for one in pins.get(gpu.uuid, ())],
                "holders": [
                    describe_holder(lease, holding)
                    for lease, holding in sorted(
                        by_gpu.get(gpu.uuid, ()), key=lambda pair: pair[1].slot
                    )
                ],
                "processes": [
                    describe_process(one) for one in self.meter.processes.get(gpu.uuid, ())
                ],
            }
            for gpu in state.laid.gpus
        ]

    def full_rows(self, state: State) -> list[dict[str, Any]]:
        """One row a device, with its sample."""
        return [{**row, "sample": self.sample_of(row["uuid"])} for row in self.rows(state)]

    def meter_state(self) -> dict[str, str]:
        """Who measures, and where nobody does, why."""
        return {"source": self.meter.source, "reason": self.meter.reason}


def counts(rows: Sequence[Mapping[str, Any]], waiting: int) -> dict[str, int]:
    """The line above the pages; a GPU that is cut into instances counts as these."""
    usable = [row for row in rows if row["slots"] > 0]
    return {
        "gpus": len(usable),
        "in_use": sum(1 for row in usable if row["leases"]),
        "waiting": waiting,
        "needs_you": sum(1 for row in rows if row["health"]),
    }


def describe_gpu(gpu: Gpu, leases: int) -> dict[str, Any]:
    """One device, for anybody who may use the service."""
    return {
        "uuid": gpu.uuid,
        "index": gpu.index,
        "name": gpu.name,
        "memory_mib": gpu.memory_mib,
        "compute_capability": gpu.compute_capability,
        "driver": gpu.driver,
        "pool": gpu.pool,
        "is_simulated": gpu.is_simulated,
        "mode": gpu.mode,
        "slots": gpu.slots,
        "slot_memory_mib": gpu.slot_memory_mib,
        "mig_profile": gpu.mig_profile,
        "health": gpu.health,
        "drained": gpu.drained,
        "leases": leases,
    }


def describe_setting(setting: DeviceSetting) -> dict[str, Any]:
    """What an admin decided about a device, and its version."""
    said = {"pool": setting.pool, "mode": setting.mode, "drained": setting.drained}
    return {"setting": said, "etag": etag_of(said)}


def describe_pin(grant: Grant) -> dict[str, Any]:
    """A grant that pins a device, and how many it pins in all."""
    return {
        "id": grant.id,
        "to": grant.to,
        "subject": grant.subject,
        "source": grant.source,
        "gpus": len(grant.gpus),
        "etag": etag_of(grant.as_json()),
    }


def describe_holder(lease: Lease, holding: Holding) -> dict[str, Any]:
    """Who holds a slot of a device."""
    return {
        "user": lease.username,
        "server": lease.servername,
        "slot": holding.slot if holding.slots > 1 else None,
        "since": lease.since,
        "until": lease.until,
        "kept_until": lease.kept_until,
        "lease": lease.id,
        "start": lease.start_id,
        "grant": lease.grant,
        "course": str(lease.request.get("course") or ""),
        "image": str(lease.request.get("image") or ""),
    }


def describe_process(process: GpuProcess) -> dict[str, Any]:
    """One process on a device; ``user`` is None for one of nobody here, or where nobody knows."""
    return {
        "pid": process.pid,
        "name": process.name,
        "used_mib": process.used_mib,
        "user": process.username,
        "server": process.servername,
        "is_told": process.is_told,
    }


def describe_sample(sample: Sample | None) -> dict[str, Any] | None:
    """One measurement; None for none."""
    if sample is None:
        return None
    return {
        "at": sample.at,
        "utilisation": sample.utilisation,
        "memory_used_mib": sample.memory_used_mib,
        "temperature_c": sample.temperature_c,
        "power_w": sample.power_w,
    }
