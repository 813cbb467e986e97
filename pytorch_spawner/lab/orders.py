"""``api/servers/<user>/<server>/course``: what an agent is to do with its course's files."""

from __future__ import annotations

import asyncio

from pytorch_spawner.lab.stream import AgentHandler


class CourseOrders(AgentHandler):
    """Asked by an agent after the course's notice changed, so hardly ever."""

    async def get(self, username: str, servername: str = "") -> None:
        """The open orders to this person's copy of the course that the server is for."""
        await self.require_writer(username, servername)
        ledger, hub = self.lab.ledger, self.lab.settings.hub_id
        start = await asyncio.to_thread(ledger.latest_start, hub, username, servername)
        course = "" if start is None else str(start.request.get("course") or "")
        if start is None or not course or await self.is_thrown_away(start):
            self.send_json({"orders": []})
            return
        orders = await asyncio.to_thread(ledger.orders, hub, course, username)
        self.send_json({"orders": [{"id": one.id, "path": one.path} for one in orders]})
