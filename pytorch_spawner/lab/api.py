"""The API's reading routes: who am I, which GPUs, which leases, who waits, Prometheus's numbers.

Thin: scope, read, shape. It must not write.
"""

from __future__ import annotations

import asyncio

from pytorch_spawner.lab import auth, views
from pytorch_spawner.lab.handlers import ApiError, ApiHandler


class Me(ApiHandler):
    """``api/me``: the person, their rights here, and their servers."""

    async def get(self) -> None:
        """Answer for whoever asks."""
        model = await self.require_model()
        settings = self.lab.settings
        starts = await asyncio.to_thread(self.lab.ledger.starts, settings.hub_id, model["name"])
        self.send_json(views.describe_me(model, starts, settings))


class Gpus(ApiHandler):
    """``api/gpus``: the inventory and what of it is in use."""

    async def get(self) -> None:
        """Holders are named to viewers only."""
        model = await self.require_model()
        ledger, hub_id = self.lab.ledger, self.lab.settings.hub_id
        inventory = await asyncio.to_thread(ledger.read_inventory, hub_id)
        settings = await asyncio.to_thread(ledger.settings, hub_id)
        leases = await asyncio.to_thread(ledger.leases, hub_id)
        sees_all = auth.is_viewer(model)
        self.send_json(
            views.describe_gpus(inventory, settings, leases, model["name"], sees_all=sees_all)
        )


class Queue(ApiHandler):
    """``api/queue``: who waits, for what, at which place, and until when."""

    async def get(self) -> None:
        """A student gets their own places; viewers get all."""
        model = await self.require_model()
        queue = await asyncio.to_thread(self.lab.ledger.queue, self.lab.settings.hub_id)
        sees_all = auth.is_viewer(model)
        self.send_json(views.describe_queue(queue, model["name"], sees_all=sees_all))


class Leases(ApiHandler):
    """``api/leases``: who holds what."""

    async def get(self) -> None:
        """A student gets their own; viewers get all."""
        model = await self.require_model()
        leases = await asyncio.to_thread(self.lab.ledger.leases, self.lab.settings.hub_id)
        sees_all = auth.is_viewer(model)
        self.send_json({"leases": views.describe_leases(leases, model["name"], sees_all=sees_all)})


class MetricsRoute(ApiHandler):
    """``metrics``: for Prometheus, with a token that has ``read:metrics`` or may view all."""

    async def get(self) -> None:
        """Answer in Prometheus's text format."""
        model = await self.require_model(enter=False)
        if not (auth.is_viewer(model) or auth.METRICS in auth.scopes_of(model)):
            raise ApiError(403, "forbidden", f"This needs the scope {auth.METRICS} or {auth.VIEW}.")
        self.lab.metrics.viewers.set(self.lab.follower.viewers)
        self.set_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
        self.finish(self.lab.metrics.render())
