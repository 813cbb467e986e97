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
    """One event as one message of the stream. JSON holds no line break, so it cannot forge one."""
    return f"id: {event.seq}\ndata: {json.dumps(event.as_json())}\n\n"


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
        "request": dict(lease.request),
        "since": lease.since,
    }


def describe_leases(
    leases: Iterable[Lease], username: str, *, sees_all: bool
) -> list[dict[str, Any]]:
    """The leases that the person may see: their own, or all of them."""
    return [describe_lease(lease) for lease in leases if sees_all or lease.username == username]


def describe_gpus(
    inventory: Inventory, leases: Sequence[Lease], username: str, *, sees_all: bool
) -> dict[str, Any]:
    """The GPUs, and which are in use; by whom only where the person may see it."""
    return {
        "gpus": [_describe_gpu(gpu, leases, username, sees_all=sees_all) for gpu in inventory.gpus],
        "reason": inventory.reason,
    }


def _describe_gpu(
    gpu: Gpu, leases: Sequence[Lease], username: str, *, sees_all: bool
) -> dict[str, Any]:
    held = [lease for lease in leases if gpu.uuid in lease.gpus]
    described: dict[str, Any] = {
        "uuid": gpu.uuid,
        "index": gpu.index,
        "name": gpu.name,
        "memory_mib": gpu.memory_mib,
        "compute_capability": gpu.compute_capability,
        "driver": gpu.driver,
        "pool": gpu.pool,
        "is_simulated": gpu.is_simulated,
        "leases": len(held),
        "mine": any(lease.username == username for lease in held),
    }
    if sees_all:
        described["holders"] = [
            {"user": lease.username, "server": lease.servername, "since": lease.since}
            for lease in held
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
