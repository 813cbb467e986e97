"""Shapes what the API sends, out of the ledger's values. Pure; decides nothing about rights.

It must never pass on more than the page or the client needs: no environment, no token, no path.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from pytorch_spawner.core.gpus import Gpu, Inventory
from pytorch_spawner.core.journal import Event
from pytorch_spawner.core.placement import DeviceSetting, Holding, with_settings
from pytorch_spawner.core.tickets import Place, describe_place
from pytorch_spawner.lab.auth import ADMIN, is_viewer, scopes_of
from pytorch_spawner.lab.ports import Lease, Start
from pytorch_spawner.lab.settings import LabSettings


def server_path(username: str, servername: str) -> str:
    """A server inside a URL: ``ana/`` or ``ana/thesis``, each part quoted."""
    return f"{quote(username, safe='@')}/{quote(servername, safe='')}"


def describe_start(start: Start, now: float) -> dict[str, Any]:
    """One start as the stream's ``server`` message says it."""
    return {
        "start": start.id,
        "user": start.username,
        "server": start.servername,
        "image": start.image,
        "request": dict(start.request),
        "created_at": start.created_at,
        "ended_at": start.ended_at,
        "outcome": start.outcome,
        "now": now,
    }


def describe_event(event: Event) -> str:
    """One event as one message of the stream. JSON holds no line break, so it cannot forge one.

    Number 0 is no entry of the journal: it must not become a client's Last-Event-ID.
    """
    number = f"id: {event.seq}\n" if event.seq else ""
    return f"{number}data: {json.dumps(event.as_json())}\n\n"


def place_event(waiting: Place, now: float) -> Event:
    """A place in the queue as the stream says it: the present state, not an entry."""
    return Event(0, now, "queue", describe_place(waiting))


def describe_queue(queue: Sequence[Place], username: str, *, sees_all: bool) -> dict[str, Any]:
    """Who waits: the person's own servers, or all of them; how many there are is no secret."""
    return {
        "length": len(queue),
        "waiting": [
            {
                "user": waiting.ticket.username,
                "server": waiting.ticket.servername,
                "start": waiting.ticket.id,
                **describe_place(waiting),
                "gpus": waiting.ticket.gpus,
                "share": waiting.ticket.share,
                "pool": waiting.ticket.pool,
                "boost": waiting.ticket.boost,
                "is_away": waiting.ticket.is_away,
            }
            for waiting in queue
            if sees_all or waiting.ticket.username == username
        ],
    }


def describe_message(name: str, data: Mapping[str, Any]) -> str:
    """A named message of the stream; it has no number of its own."""
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


def describe_me(
    model: Mapping[str, Any], starts: Sequence[Start], settings: LabSettings
) -> dict[str, Any]:
    """Who is asking, what they may do, and their servers."""
    return {
        "name": model["name"],
        "kind": model.get("kind", "user"),
        "can_view_all": is_viewer(model),
        "can_admin": ADMIN in scopes_of(model),
        "servers": [
            {
                "server": start.servername,
                "start": start.id,
                "image": start.image,
                "created_at": start.created_at,
                "outcome": start.outcome,
                "page": f"{settings.prefix}servers/{server_path(start.username, start.servername)}",
            }
            for start in starts
        ],
    }


def describe_lease(lease: Lease) -> dict[str, Any]:
    """One lease, for its holder and for viewers."""
    return {
        "id": lease.id,
        "start": lease.start_id,
        "user": lease.username,
        "server": lease.servername,
        "gpus": list(lease.gpus),
        "slots": [_describe_slot(holding) for holding in lease.holdings],
        "request": dict(lease.request),
        "grant": lease.grant,
        "since": lease.since,
        "until": lease.until,
        "kept_until": lease.kept_until,
    }


def _describe_slot(holding: Holding) -> int | None:
    return holding.slot if holding.slots > 1 else None


def describe_leases(
    leases: Iterable[Lease], username: str, *, sees_all: bool
) -> list[dict[str, Any]]:
    """The leases that the person may see: their own, or all of them."""
    return [describe_lease(lease) for lease in leases if sees_all or lease.username == username]


def describe_gpus(
    inventory: Inventory,
    settings: Sequence[DeviceSetting],
    leases: Sequence[Lease],
    username: str,
    *,
    sees_all: bool,
) -> dict[str, Any]:
    """The GPUs as admins set them, and what is in use; by whom only where one may see it."""
    held = [holding for lease in leases for holding in lease.holdings]
    laid = with_settings(inventory, settings, {holding.gpu: holding.slots for holding in held})
    return {
        "gpus": [_describe_gpu(gpu, leases, username, sees_all=sees_all) for gpu in laid.gpus],
        "reason": inventory.reason,
    }


def _describe_gpu(
    gpu: Gpu, leases: Sequence[Lease], username: str, *, sees_all: bool
) -> dict[str, Any]:
    held = [
        (lease, holding)
        for lease in leases
        for holding in lease.holdings
        if holding.gpu == gpu.uuid
    ]
    described: dict[str, Any] = {
        "uuid": gpu.uuid,
        "index": gpu.index,
        "name": gpu.name,
        "memory_mib": gpu.memory_mib,
        "compute_capability": gpu.compute_capability,
        "driver": gpu.driver,
        "pool": gpu.pool,
        "is_simulated": gpu.is_simulated,
        "mode": gpu.mode,
        "slots": gpu.slots,
        "slot_memory_mib": gpu.slot_memory_mib,
        "mig_profile": gpu.mig_profile,
        "health": gpu.health,
        "drained": gpu.drained,
        "leases": len(held),
        "mine": any(lease.username == username for lease, _ in held),
    }
    if sees_all:
        described["holders"] = [
            {
                "user": lease.username,
                "server": lease.servername,
                "slot": _describe_slot(holding),
                "since": lease.since,
                "until": lease.until,
                "kept_until": lease.kept_until,
            }
            for lease, holding in sorted(held, key=lambda pair: pair[1].slot)
        ]
    return described


def describe_page(
    settings: LabSettings, username: str, servername: str, *, is_owner: bool, can_open: bool
) -> dict[str, Any]:
    """What the landing page's script has to know; it goes into a data attribute as JSON."""
    server = server_path(username, servername)
    return {
        "user": username,
        "server": servername,
        "isOwner": is_owner,
        "canOpen": can_open,
        "eventsUrl": f"{settings.prefix}api/servers/{server}/events",
        "labUrl": f"{settings.base_url}user/{server.rstrip('/')}/lab",
        "spawnUrl": f"{settings.hub_prefix}spawn/{server.rstrip('/')}",
        "homeUrl": f"{settings.hub_prefix}home",
    }
