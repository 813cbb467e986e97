"""Warns servers whose lease ends, and stops them when it is over. Decides nothing itself."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from tornado.httpclient import AsyncHTTPClient, HTTPClientError

from pytorch_spawner.core.lifetime import Due, Ending, due
from pytorch_spawner.errors import InvalidEvent, LabError
from pytorch_spawner.lab import hub_api
from pytorch_spawner.lab.settings import LabSettings
from pytorch_spawner.lab.stops import AT_ONCE
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
    """Warn and stop what is due; at most ``AT_ONCE`` stops wait for the hub's answer together."""
    leases = await asyncio.to_thread(ledger.leases, settings.hub_id)
    known = {lease.id: lease for lease in leases}
    what = _due(settings, ledger, leases)
    for lease_id in what.warn:
        await asyncio.to_thread(_warn, ledger, known[lease_id])
    if not what.stop:
        return
    # Its own: the hub answers a stop late, and the usual one sends ten requests at a time.
    client = AsyncHTTPClient(force_instance=True, max_clients=AT_ONCE)
    asked: set[asyncio.Task[None]] = set()
    try:
        for lease_id in what.stop:
            if len(asked) >= AT_ONCE:
                _, asked = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            # Right before each: a server of that name may be another one by now, without this GPU.
            if await asyncio.to_thread(_is_over, settings, ledger, lease_id):
                asked.add(asyncio.create_task(_stop(settings, known[lease_id], client)))
    finally:
        await asyncio.gather(*asked)
        client.close()


def _due(settings: LabSettings, ledger: Ledger, leases: Iterable[Lease]) -> Due:
    endings = [
        Ending(lease.id, lease.until, lease.warned_at is not None)
        for lease in leases
        if lease.until is not None and lease.kept_until is None
    ]
    return due(endings, ledger.now(), settings.warn_s)


def _is_over(settings: LabSettings, ledger: Ledger, lease_id: str) -> bool:
    """Whether a lease is still to be ended by stopping its server."""
    lease = ledger.lease(lease_id)
    return lease is not None and bool(_due(settings, ledger, [lease]).stop)


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


async def _stop(settings: LabSettings, lease: Lease, client: AsyncHTTPClient) -> None:
    """Ask the hub to stop the server; the lease is released when it did."""
    log.info("a lease is over, stopping: server=%s/%s", lease.username, lease.servername)
    path = hub_api.server_path(lease.username, lease.servername)
    try:
        await hub_api.ask(settings, path, "DELETE", client=client)
    except (HTTPClientError, OSError) as error:
        # 404: it is stopped already; 400: it is being stopped.
        if not isinstance(error, HTTPClientError) or error.code not in (400, 404):
            # The others do not wait for it; it is tried again in the next round.
            log.warning("not stopped: server=%s/%s %s", lease.username, lease.servername, error)
