"""Warns servers whose lease ends, and stops them when it is over. Decides nothing itself."""

from __future__ import annotations

import asyncio
import logging

from tornado.httpclient import HTTPClientError

from pytorch_spawner.core.lifetime import Ending, due
from pytorch_spawner.errors import InvalidEvent, LabError
from pytorch_spawner.lab import hub_api
from pytorch_spawner.lab.settings import LabSettings
from pytorch_spawner.ledger.store import Lease, Ledger

log = logging.getLogger("pytorch_spawner.lifetime")


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
        lease = ending[lease_id]
        try:
            await _stop(settings, lease)
        except (HTTPClientError, OSError) as error:
            # The others do not wait for it; it is tried again in the next round.
            log.warning("not stopped: server=%s/%s %s", lease.username, lease.servername, error)


def _warn(ledger: Ledger, lease: Lease) -> None:
    message = "Your GPU time ends soon, and the server stops with it. Save your work."
    try:
        ledger.append_events(
            lease.start_id,
            [("start", {"stage": "ending", "message": message, "until": lease.until})],
        )
    except InvalidEvent as error:  # its journal is full; it ends all the same
        log.warning("no warning: server=%s/%s %s", lease.username, lease.servername, error)
    # Said first and noted after: twice is better than never.
    ledger.warn(lease.id)
    log.info("warned of the end of a lease: server=%s/%s", lease.username, lease.servername)


async def _stop(settings: LabSettings, lease: Lease) -> None:
    """Ask the hub to stop the server; the lease is released when it did."""
    log.info("a lease is over, stopping: server=%s/%s", lease.username, lease.servername)
    path = hub_api.server_path(lease.username, lease.servername)
    try:
        await hub_api.ask(settings, path, "DELETE")
    except HTTPClientError as error:
        # 404: it is stopped already; 400: it is being stopped.
        if error.code not in (400, 404):
            raise
