"""``api/gpus``: the devices, what they did in the last quarter of an hour, and changing them.

Thin: scope, parse, call, shape.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, Final

from pytorch_spawner.core.gpus import Gpu
from pytorch_spawner.core.placement import DeviceSetting, is_cut
from pytorch_spawner.errors import BadRequest, ChangedMeanwhile, Problem
from pytorch_spawner.lab import auth, views
from pytorch_spawner.lab.board import describe_gpu, describe_setting
from pytorch_spawner.lab.handlers import ApiError, ApiHandler
from pytorch_spawner.lab.schemas import DeviceChange

MIG_IS_THE_HOSTS: Final = "It is cut by MIG, which is set on the host: see nvidia-smi mig there."


class Gpus(ApiHandler):
    """``api/gpus``."""

    async def get(self) -> None:
        """The devices; who holds them, and what they do, for viewers only."""
        model = await self.require_model()
        board = self.lab.board
        state = await board.state()
        if auth.is_viewer(model):
            rows = board.full_rows(state)
        else:
            held = [one.gpu for lease in state.leases for one in lease.holdings]
            rows = [describe_gpu(gpu, held.count(gpu.uuid)) for gpu in state.laid.gpus]
        mine = {
            holding.gpu
            for lease in state.leases
            if lease.username == auth.owner_name(model)
            for holding in lease.holdings
        }
        self.send_json(
            {
                "gpus": [{**row, "mine": row["uuid"] in mine} for row in rows],
                "reason": state.inventory.reason,
                "meter": board.meter_state(),
            }
        )


class GpuHistory(ApiHandler):
    """``api/gpus/history``: the last quarter of an hour."""

    async def get(self) -> None:
        """For viewers."""
        await self.require_viewer()
        self.send_json(self.lab.board.meter.history.as_json())


class GpuSettings(ApiHandler):
    """``api/gpus/<uuid>``."""

    async def patch(self, uuid: str) -> None:
        """Drain, return to service, cut another way, move to another pool."""
        model = await self.require_admin()
        change = self.body_as(DeviceChange)
        is_seen = self.require_match()
        gpu = await self._find(uuid)
        if change.mode is not None and is_cut(gpu):
            raise BadRequest(
                MIG_IS_THE_HOSTS,
                faults=[f"mode: {MIG_IS_THE_HOSTS}"],
                problems=[Problem(MIG_IS_THE_HOSTS, "mode")],
            )
        said = change.model_dump(exclude_unset=True)
        hub, ledger = self.lab.settings.hub_id, self.lab.ledger
        found: list[dict[str, Any]] = []

        def decide(was: DeviceSetting) -> DeviceSetting:
            there = describe_setting(was)
            if not is_seen(there["etag"]):
                found.append(there)
                raise ChangedMeanwhile("", now=None)
            return replace(was, **said)

        try:
            line = await asyncio.to_thread(
                ledger.change_setting, hub, gpu.uuid, model["name"], decide
            )
        except ChangedMeanwhile:
            if not found:
                raise
            latest = await asyncio.to_thread(ledger.latest_change, hub, "gpu", gpu.uuid)
            raise ChangedMeanwhile(
                views.changed_by(f"GPU {gpu.index}", latest), now=await self._row(gpu.uuid)
            ) from None
        await self.lab.feed.look()
        self.send_json({"gpu": await self._row(gpu.uuid), "change": line})

    async def _find(self, uuid: str) -> Gpu:
        state = await self.lab.board.state()
        gpu = next((one for one in state.inventory.gpus if one.uuid == uuid), None)
        if gpu is None:
            raise ApiError(404, "no-such-gpu", "The lab has no such GPU.")
        return gpu

    async def _row(self, uuid: str) -> dict[str, Any] | None:
        board = self.lab.board
        rows = board.full_rows(await board.state())
        return next((row for row in rows if row["uuid"] == uuid), None)
