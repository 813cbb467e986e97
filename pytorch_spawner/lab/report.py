"""``api/servers/<user>/<server>/report``: a start's report for the helpdesk, as plain text.

Thin: scope, read, say (``core.report``).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any, Final

from pytorch_spawner.core.report import report_of, with_place
from pytorch_spawner.lab import auth
from pytorch_spawner.lab.handlers import ApiError, ApiHandler

# Older than this, what the notebooks held says nothing of what goes wrong now.
LOOKED_S: Final = 60.0


class ReportRoute(ApiHandler):
    """Whoever may read the journal may have its report."""

    async def get(self, username: str, servername: str = "") -> None:
        """The report of the server's latest start."""
        model = await self.require_model(enter=False)
        if not auth.may_watch(model, username, servername, self.hub_auth.access_scopes):
            raise ApiError(403, "forbidden", "This is somebody else's server.")
        memory = None
        # Names of notebooks are for fewer than the journal is.
        if auth.may_use(model, username, servername, self.hub_auth.access_scopes):
            looked = self.lab.kernels.lately(username, servername, LOOKED_S)
            memory = None if looked is None else looked.as_json(f"{username}'s")
        text = await asyncio.to_thread(self._report, username, servername, memory)
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(text)

    def _report(self, username: str, servername: str, memory: Mapping[str, Any] | None) -> str:
        ledger, hub, now = self.lab.ledger, self.lab.settings.hub_id, time.time()
        start = ledger.latest_start(hub, username, servername)
        if start is None:
            raise ApiError(404, "no-such-server", "This server has never been started.")
        queue = ledger.queue(hub) if start.ended_at is None else ()
        events = with_place(start, ledger.read_events(start.id, 0), queue, now)
        return report_of(start, events, now, memory)
