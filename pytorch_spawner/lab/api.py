"""The API's small reading routes: who am I, which leases, Prometheus's numbers.

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
        name = auth.owner_name(model)
        starts = await asyncio.to_thread(self.lab.ledger.starts, settings.hub_id, name)
        self.send_json(views.describe_me(model, starts, settings))


class Leases(ApiHandler):
    """``api/leases``: who holds what."""

    async def get(self) -> None:
        """A student gets their own; viewers get all."""
        model = await self.require_model()
        leases = await asyncio.to_thread(self.lab.ledger.leases, self.lab.settings.hub_id)
        sees_all = auth.is_viewer(model)
        name = auth.owner_name(model)
        self.send_json({"leases": views.describe_leases(leases, name, sees_all=sees_all)})


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
