"""A restart: what the new start keeps of the old one, and how far the stop is. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal
from urllib.parse import urlencode

# What was chosen for the old start; the rest is the lab's to decide again.
KEPT: Final = ("image", "gpus", "share", "pool", "course")

Stand = Literal["stopped", "stopping", "starting", "running"]


def start_again(spawn_url: str, request: Mapping[str, Any]) -> str:
    """The hub's address that starts a server with what an earlier start asked for.

    Args:
        spawn_url: Where the hub starts that server, quoted, without a query.
        request: What the earlier start asked for.
    """
    kept = {name: request[name] for name in KEPT if request.get(name) not in (None, "")}
    return f"{spawn_url}?{urlencode(kept)}" if kept else spawn_url


def stand_of(servers: Any, servername: str, *, is_asked: bool) -> Stand:
    """How far the stop of a server is.

    Args:
        servers: What the hub says of the person's servers, by name; it names active ones only.
        servername: Which; "" is the default one.
        is_asked: Whether the hub was asked to stop it and has not answered yet.

    Returns:
        "starting" is a start that somebody else asked for meanwhile, "running" a stop that came
        to nothing.
    """
    known = servers if isinstance(servers, Mapping) else {}
    if servername not in known:
        return "stopped"
    server = known[servername]
    pending = server.get("pending") if isinstance(server, Mapping) else None
    if is_asked or pending == "stop":
        return "stopping"
    return "starting" if pending == "spawn" else "running"
