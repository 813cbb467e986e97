"""A restart: what the new start keeps of the old one, and how far the stop is. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal
from urllib.parse import urlencode

# What a start may choose; what it did not say is the lab's to decide again, or its course's.
KEPT: Final = ("image", "gpus", "share", "pool")

Stand = Literal["stopped", "stopping", "starting", "running"]


def start_again(spawn_url: str, request: Mapping[str, Any]) -> str:
    """The hub's address that starts a server with what an earlier start chose.

    The course is always part of it, also none: a start that does not name one may get the person's
    only one. And the hub shows its form for an address that names nothing.

    Args:
        spawn_url: Where the hub starts that server, quoted, without a query.
        request: What the earlier start asked for (``core.request.Request.as_json``).
    """
    said = request.get("said")
    known = said if isinstance(said, Mapping) else {}
    kept = {name: known[name] for name in KEPT if known.get(name) not in (None, "")}
    return f"{spawn_url}?{urlencode({**kept, 'course': request.get('course') or ''})}"


def stand_of(servers: Any, servername: str) -> Stand:
    """How far the stop of a server is that the hub was asked for, and has answered.

    Args:
        servers: What the hub says of the person's servers, by name; it names active ones only.
        servername: Which; "" is the default one.

    Returns:
        "starting" is a start that somebody else asked for meanwhile, "running" a stop that came
        to nothing.
    """
    known = servers if isinstance(servers, Mapping) else {}
    if servername not in known:
        return "stopped"
    server = known[servername]
    pending = server.get("pending") if isinstance(server, Mapping) else None
    if pending == "stop":
        return "stopping"
    return "starting" if pending == "spawn" else "running"
