"""Warns servers whose lease ends, and stops them when it is over. Decides nothing itself."""

from __future__ import annotations

import asyncio
import logging
from urllib.parse import quote

from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest

from pytorch_spawner.core.lifetime import Ending, due
from pytorch_spawner.errors import LabError
from pytorch_spawner.lab.settings import LabSettings
from pytorch_spawner.ledger.store import Lease, Ledger

log = logging.getLogger("pytorch_spawner.lifetime")

_REQUEST_TIMEOUT_S = 30.0


async def watch_forever(settings: LabSettings, ledger: Ledger) -> None:
    """Look every ``lifetime_s``; a round that fails is logged and tried again."""
    while True:
        try:
            await watch_once(settings, ledger)
        except (LabError, HTTPClientError, OSError) as error:
            log.warning("ends of leases were not looked at: %s", error)
        except Exception:  # a background loop: one odd answer must not end it for good
            log.exception("ends of leases were not looked at")
        await asyncio.sleep(settings.lifetime_s)


async def watch_once(settings: LabSettings, ledger: Ledger) -> None:
    """Warn and stop what is due."""
    leases = await asyncio.to_thread(ledger.leases, settings.hub_id)
    ending = {
        lease.id: lease for lease in leases if lease.until is not None and lease.kept_until is None
    }
    what = due(
        [
            Ending(lease.id, lease.until or 0.0, lease.warned_at is not None)
            for lease in ending.values()
        ],
        ledger.now(),
        settings.warn_s,
    )
    for lease_id in what.warn:
        await asyncio.to_thread(_warn, ledger, ending[lease_id])
    for lease_id in what.stop:
        await _stop(settings, ending[lease_id])


def _warn(ledger: Ledger, lease: Lease) -> None:
    if not ledger.warn(lease.id):
        return
    message = "Your GPU time ends soon, and the server stops with it. Save your work."
    ledger.append_events(
        lease.start_id,
        [("start", {"stage": "ending", "message": message, "until": lease.until})],
    )
    log.info("warned of the end of a lease: server=%s/%s", lease.username, lease.servername)


async def _stop(settings: LabSettings, lease: Lease) -> None:
    """Ask the hub to stop the server; the lease is released when it did."""
    user = quote(lease.username, safe="")
    server = f"servers/{quote(lease.servername, safe='')}" if lease.servername else "server"
    log.info("a lease is over, stopping: server=%s/%s", lease.username, lease.servername)
    try:
        await AsyncHTTPClient().fetch(
            HTTPRequest(
                f"{settings.hub_api_url}/users/{user}/{server}",
                method="DELETE",
                headers={"Authorization": f"token {settings.api_token}"},
                request_timeout=_REQUEST_TIMEOUT_S,
            )
        )
    except HTTPClientError as error:
        # 404: it is stopped already; 400: it is being stopped.
        if error.code not in (400, 404):
            raise
