"""Shapes what the API sends, out of the ledger's values. Pure; decides nothing about rights.

It must never pass on more than the page or the client needs: no environment, no token, no path.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, Final
from urllib.parse import quote

from pytorch_spawner.core.changes import can_undo, say_change
from pytorch_spawner.core.gpus import Inventory
from pytorch_spawner.core.journal import Event
from pytorch_spawner.core.placement import Holding
from pytorch_spawner.core.report_facts import Start
from pytorch_spawner.core.restart import start_again
from pytorch_spawner.core.tickets import Place, Ticket, describe_place
from pytorch_spawner.lab.auth import is_admin, is_instructor, is_viewer
from pytorch_spawner.lab.etags import etag_of
from pytorch_spawner.lab.ports import Change, Lease
from pytorch_spawner.lab.settings import LabSettings

GPU_UUID_IN_TEXT: Final = re.compile(r"(?:GPU|MIG)-[0-9A-Fa-f][0-9A-Za-z-]*")


def server_path(username: str, servername: str) -> str:
    """A server inside a URL: ``ana/`` or ``ana/thesis``, each part quoted."""
    return f"{quote(username, safe='@')}/{quote(servername, safe='')}"


def spawn_url(settings: LabSettings, username: str, servername: str) -> str:
    """Where the hub starts a server, and asks what is wanted."""
    return f"{settings.hub_prefix}spawn/{server_path(username, servername).rstrip('/')}"


def start_url(settings: LabSettings, start: Start) -> str:
    """Where the hub starts a server with what an earlier start asked for."""
    return start_again(spawn_url(settings, start.username, start.servername), start.request)


def describe_start(settings: LabSettings, start: Start, now: float) -> dict[str, Any]:
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
        "start_url": start_url(settings, start),
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


def describe_waiting(waiting: Place) -> dict[str, Any]:
    """One who waits, and the version of what an admin can change of it."""
    return {
        "user": waiting.ticket.username,
        "server": waiting.ticket.servername,
        "start": waiting.ticket.id,
        **describe_place(waiting),
        "gpus": waiting.ticket.gpus,
        "share": waiting.ticket.share,
        "pool": waiting.ticket.pool,
        "boost": waiting.ticket.boost,
        "is_away": waiting.ticket.is_away,
        "etag": etag_of_ticket(waiting.ticket),
    }


def etag_of_ticket(ticket: Ticket) -> str:
    """Version of what an admin can change of a ticket."""
    return etag_of([ticket.id, ticket.boost])


def changed_by(what: str, latest: Change | None) -> str:
    """That somebody was faster, and who."""
    if latest is None:
        return f"{what} was changed meanwhile."
    at = datetime.fromtimestamp(latest.at, timezone.utc)
    return f"{what} was changed meanwhile, by {latest.by} at {at:%H:%M:%S} UTC."


def uuid_of(text: str, inventory: Inventory) -> str:
    """What somebody searches for, with the UUID where they say "GPU 3"."""
    said = re.fullmatch(r"\s*gpu\s*([0-9]{1,4})\s*", text, re.IGNORECASE)
    if said is None:
        return text
    return next((one.uuid for one in inventory.gpus if one.index == int(said[1])), text)


def name_gpus(text: str, inventory: Inventory) -> str:
    """A sentence with "GPU 3" where it says a UUID that the lab knows."""
    names: dict[str, str] = {one.uuid: f"GPU {one.index}" for one in inventory.gpus}
    return GPU_UUID_IN_TEXT.sub(lambda found: names.get(found[0], found[0]), text)


def describe_change(change: Change, inventory: Inventory) -> dict[str, Any]:
    """One line of the audit log.

    Args:
        change: The line.
        inventory: For what people call the GPUs.
    """
    said = say_change(change.what, change.subject, change.before, change.after)
    sentence = name_gpus(said, inventory)
    if change.together > 1:
        sentence += f" (One of {change.together} made together; they are taken back together.)"
    return {
        "id": change.id,
        "at": change.at,
        "by": change.by,
        "what": change.what,
        "subject": change.subject,
        "before": change.before,
        "after": change.after,
        "sentence": sentence,
        "can_undo": change.undone_by is None and can_undo(change.what, change.before, change.after),
        "undone_by": change.undone_by,
        "undoes": change.undoes,
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
        "can_admin": is_admin(model),
        "can_instruct": is_instructor(model),
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
        "reportUrl": f"{settings.prefix}api/servers/{server}/report",
        "restartUrl": f"{settings.prefix}api/servers/{server}/restart",
        "memoryUrl": f"{settings.prefix}api/servers/{server}/memory",
        "labUrl": f"{settings.base_url}user/{server.rstrip('/')}/lab",
        "spawnUrl": spawn_url(settings, username, servername),
        "homeUrl": f"{settings.hub_prefix}home",
    }
