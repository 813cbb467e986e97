"""``api/queue``: who waits, for what, at which place; and changing that.

Thin: scope, parse, call, shape. The order is the scheduler's.
"""

from __future__ import annotations

import asyncio
from typing import Any

from pytorch_spawner.core.tickets import Place, Ticket
from pytorch_spawner.errors import ChangedMeanwhile
from pytorch_spawner.lab import auth, views
from pytorch_spawner.lab.handlers import ApiError, ApiHandler
from pytorch_spawner.lab.schemas import Boost


class Queue(ApiHandler):
    """``api/queue``."""

    async def get(self) -> None:
        """A student gets their own places; viewers get all."""
        model = await self.require_model()
        hub, ledger = self.lab.settings.hub_id, self.lab.ledger
        version = await asyncio.to_thread(ledger.shown_version, hub)
        queue = await asyncio.to_thread(ledger.queue, hub)
        sees_all = auth.is_viewer(model)
        search = self.get_query_argument("search", "")[:255].casefold()
        offset, limit = self.page()
        seen = [
            one
            for one in queue
            if (sees_all or one.ticket.username == auth.owner_name(model))
            and search in f"{one.ticket.username}/{one.ticket.servername}".casefold()
        ]
        self.send_json(
            {
                "length": len(queue),
                "version": str(version),
                "total": len(seen),
                "waiting": [views.describe_waiting(one) for one in seen[offset : offset + limit]],
            }
        )


class QueuePlace(ApiHandler):
    """``api/queue/<user>`` and ``api/queue/<user>/<server>``."""

    async def patch(self, username: str, servername: str = "") -> None:
        """Let somebody be served earlier or later."""
        model = await self.require_admin()
        said = self.body_as(Boost)
        check = self._check()
        hub, ledger = self.lab.settings.hub_id, self.lab.ledger
        try:
            change = await asyncio.to_thread(
                ledger.boost, hub, username, servername, said.boost, model["name"], check
            )
        except ChangedMeanwhile as error:
            raise await self._changed(username, servername, error) from None
        if change is None:
            raise _gone()
        row = await self._row(username, servername)
        self.send_json({"waiting": row, "change": change or None})

    async def delete(self, username: str, servername: str = "") -> None:
        """Take somebody out of the queue; the hub tells their page."""
        model = await self.require_admin()
        check = self._check()
        hub, ledger = self.lab.settings.hub_id, self.lab.ledger
        try:
            change = await asyncio.to_thread(
                ledger.remove_ticket, hub, username, servername, model["name"], check
            )
        except ChangedMeanwhile as error:
            raise await self._changed(username, servername, error) from None
        if change is None:
            raise _gone()
        self.send_json({"removed": f"{username}/{servername}", "change": change})

    def _check(self) -> Any:
        is_seen = self.require_match()

        def check(ticket: Ticket) -> None:
            if not is_seen(views.etag_of_ticket(ticket)):
                raise ChangedMeanwhile(
                    "", now={"boost": ticket.boost, "etag": views.etag_of_ticket(ticket)}
                )

        return check

    async def _changed(
        self, username: str, servername: str, error: ChangedMeanwhile
    ) -> ChangedMeanwhile:
        """The same error, which says who was faster."""
        hub, ledger = self.lab.settings.hub_id, self.lab.ledger
        subject = f"{username}/{servername}"
        latest = await asyncio.to_thread(ledger.latest_change, hub, "queue", subject)
        what = f"The place of {subject.removesuffix('/')} in the queue"
        return ChangedMeanwhile(views.changed_by(what, latest), now=error.now)

    async def _row(self, username: str, servername: str) -> dict[str, Any] | None:
        queue = await asyncio.to_thread(self.lab.ledger.queue, self.lab.settings.hub_id)
        found: Place | None = next(
            (one for one in queue if one.ticket.server == (username, servername)), None
        )
        return None if found is None else views.describe_waiting(found)


def _gone() -> ApiError:
    return ApiError(404, "not-waiting", "This server does not wait (any more).")
