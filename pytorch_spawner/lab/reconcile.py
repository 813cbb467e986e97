"""Every 30 s, and at start: ledger, engine and hub are made to agree. Decides nothing itself."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Mapping
from typing import Any

from tornado.httpclient import HTTPClientError

from pytorch_spawner.adapters import engine, engine_events
from pytorch_spawner.core.gpus import Inventory
from pytorch_spawner.core.reconcile import (
    Corrections,
    SeenContainer,
    SeenLease,
    Server,
    reconcile,
)
from pytorch_spawner.core.scheduling import gpu_share
from pytorch_spawner.errors import LabError
from pytorch_spawner.lab import hub_api
from pytorch_spawner.lab.settings import LabSettings
from pytorch_spawner.ledger.store import Lease, Ledger

log = logging.getLogger("pytorch_spawner.reconcile")

_STOP_GRACE_S = 5
_SETTLE_S = 3.0
# How long a place in the queue is kept for somebody whose hub restarted meanwhile.
_REJOIN_S = 600.0
# How long the journal of a start that ended can be read.
_JOURNALS_S = 30 * 24 * 3600.0
_FORGET_EVERY_S = 3600.0
# A helper that does not run is left over by then: the longest is waited for five minutes, and one
# that only carries a course's files is never started at all.
_HELPERS_S = 1800.0


async def reconcile_forever(settings: LabSettings) -> None:
    """Reconcile now, every ``reconcile_s``, and soon after a container of ours ended.

    A round that fails is logged and tried again.
    """
    has_ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    engine_events.follow_in_background(
        settings.client_kwargs,
        settings.hub_id,
        lambda _name: _wake(loop, has_ended),
    )
    while True:
        has_ended.clear()
        try:
            done = await reconcile_once(settings)
            if not done.is_nothing:
                log.info(
                    "reconciled: removed=%d released=%d adopted=%d closed=%d",
                    len(done.remove),
                    len(done.release),
                    len(done.adopt),
                    len(done.close),
                )
        except (LabError, HTTPClientError, OSError, ValueError) as error:
            log.warning("not reconciled this time: %s", error)
        except Exception:  # a background loop: one odd answer must not end it for good
            log.exception("not reconciled this time")
        try:
            await asyncio.wait_for(has_ended.wait(), settings.reconcile_s)
            # A container ended. The hub hears of it too and tidies up; look when it has.
            await asyncio.sleep(min(_SETTLE_S, settings.reconcile_s))
        except (TimeoutError, asyncio.TimeoutError):
            continue


def _wake(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    loop.call_soon_threadsafe(event.set)


async def reconcile_once(settings: LabSettings) -> Corrections:
    """Read the three views in order (ledger, engine, hub), then carry out what differs."""
    ledger, client = await asyncio.to_thread(_open, settings)
    leases, starts = await asyncio.to_thread(
        lambda: (ledger.leases(settings.hub_id), ledger.open_starts(settings.hub_id))
    )
    containers = await asyncio.to_thread(engine.list_containers, client, settings.hub_id)
    seen_leases = [_seen_lease(lease, ledger.now()) for lease in leases]
    seen_containers = [_seen_container(container) for container in containers]
    open_starts = [(start.id, (start.username, start.servername)) for start in starts]
    active = await _active_servers(settings)
    corrections = reconcile(seen_leases, seen_containers, open_starts, active)
    # The list of active users comes in pages, and somebody who stops between two pages moves the
    # others up. So whoever is to lose something is asked about by name.
    doubtful = {seen.server for seen in corrections.remove}
    doubtful |= {seen.server for seen in corrections.release}
    doubtful |= {server for start, server in open_starts if start in corrections.close}
    confirmed = {server for server in doubtful if await _is_active(settings, server)}
    if confirmed:
        corrections = reconcile(seen_leases, seen_containers, open_starts, active | confirmed)
    kept_until = {lease.id: lease.kept_until for lease in leases}
    await asyncio.to_thread(_carry_out, settings, ledger, client, corrections, kept_until)
    await asyncio.to_thread(_remove_helpers, settings, client)
    await asyncio.to_thread(_forget, settings, ledger)
    return corrections


def _remove_helpers(settings: LabSettings, client: Any) -> None:
    """Helper containers whose hub or command was cut off; a volume of theirs cannot be removed."""
    for helper in engine.left_helpers(client, settings.hub_id, before=time.time() - _HELPERS_S):
        log.warning("removing a helper container that was left over: %s", helper[:12])
        try:
            engine.remove(client, helper)
        except LabError as error:
            log.warning("a container cannot be removed: %s", error)


_forgot_at = -1e9


def _forget(settings: LabSettings, ledger: Ledger) -> None:
    """Places that nobody came back to; once an hour also journals of long ago."""
    global _forgot_at
    ledger.forget_away(settings.hub_id, ledger.now() - _REJOIN_S)
    if time.monotonic() - _forgot_at > _FORGET_EVERY_S:
        _forgot_at = time.monotonic()
        ledger.forget_journals(ledger.now() - _JOURNALS_S)


_opened: dict[str, tuple[Ledger, Any]] = {}


def _open(settings: LabSettings) -> tuple[Ledger, Any]:
    if settings.ledger not in _opened:
        _opened[settings.ledger] = (
            Ledger(settings.ledger),
            engine.connect(settings.client_kwargs),
        )
    return _opened[settings.ledger]


def _seen_lease(lease: Lease, now: float) -> SeenLease:
    return SeenLease(
        id=lease.id,
        start_id=lease.start_id,
        server=(lease.username, lease.servername),
        gpus=lease.gpus,
        is_kept=lease.kept_until is not None and lease.kept_until > now,
    )


def _seen_container(container: engine.LabContainer) -> SeenContainer:
    return SeenContainer(
        id=container.id,
        start_id=container.label("start"),
        lease_id=container.label("lease"),
        server=container.server,
        gpus=container.gpus,
        is_running=container.is_running,
        holdings=container.holdings,
        grant=container.label("grant"),
        until=_moment(container.label("until")),
    )


def _moment(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _carry_out(
    settings: LabSettings,
    ledger: Ledger,
    client: Any,
    corrections: Corrections,
    kept_until: Mapping[str, float | None],
) -> None:
    wedged: set[str] = set()
    for container in corrections.remove:
        log.warning("removing a container of no server: server=%s/%s", *container.server)
        try:
            engine.remove(client, container.id, stop_grace_s=_STOP_GRACE_S)
        except LabError as error:
            # It may still use its GPU, so its lease stays; the others are not held up.
            wedged.add(container.lease_id)
            log.warning("a container cannot be removed: %s", error)
    for lease in corrections.release:
        if lease.id in wedged:
            continue
        log.warning("releasing a lease of no server: server=%s/%s", *lease.server)
        ledger.release_lease(lease.id, "reconciled", kept_until.get(lease.id))
    inventory = ledger.read_inventory(settings.hub_id) if corrections.adopt else Inventory()
    for container in corrections.adopt:
        username, servername = container.server
        if engine.ending(client, container.id) is not None:
            continue  # it ended since we looked
        adopted = ledger.adopt_lease(
            Lease(
                id=container.lease_id,
                hub=settings.hub_id,
                start_id=container.start_id,
                username=username,
                servername=servername,
                holdings=container.holdings,
                request={},
                since=ledger.now(),
                grant=container.grant,
                until=container.until,
                weight=sum(
                    1 / holding.slots if gpu is None else gpu_share(gpu)
                    for holding in container.holdings
                    for gpu in (inventory.get(holding.gpu),)
                ),
            )
        )
        log.warning(
            "lease of a running container: server=%s/%s adopted=%s", *container.server, adopted
        )
    for start_id in corrections.close:
        ledger.end_start(start_id, "stopped")


async def _is_active(settings: LabSettings, server: Server) -> bool:
    """Ask the hub about one server by name."""
    username, servername = server
    try:
        said = json.loads(await hub_api.ask(settings, hub_api.user_path(username)))
    except HTTPClientError as error:
        if error.code == 404:  # the user was deleted
            return False
        raise
    return servername in (said.get("servers") or {})


async def _active_servers(settings: LabSettings) -> frozenset[Server]:
    """Servers that the hub says run, start, stop or are being checked."""
    active: set[Server] = set()
    async for user in hub_api.pages(settings, "users", "state=active"):
        servers = user.get("servers")
        if servers is None:
            raise ValueError("the service may not read servers; it needs the scope read:servers")
        active |= {(user["name"], name) for name in servers}
        if user.get("pending") or user.get("server"):
            active.add((user["name"], ""))
    return frozenset(active)
