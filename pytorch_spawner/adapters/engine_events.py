"""What the engine says of its own accord: containers of ours that ended. Blocking."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from pytorch_spawner.adapters.engine import connect, translated
from pytorch_spawner.core.plan import LABEL
from pytorch_spawner.errors import LabError

log = logging.getLogger("pytorch_spawner.engine")

_AGAIN_S: Final = 2.0
# "destroy" too: a container that was removed by force may be gone before "die" is read.
_EVENTS: Final = ("die", "destroy")


def follow(
    client_kwargs: Mapping[str, Any],
    hub: str,
    on_end: Callable[[str], None],
    *,
    is_over: Callable[[], bool] = lambda: False,
) -> None:
    """Call ``on_end`` with the name of each container of a hub that ends, for ever.

    A connection that breaks (the engine restarts) is made anew; ``on_end`` is then called with ""
    once, because what ended meanwhile was not told.

    Args:
        client_kwargs: How to reach the engine, see ``engine.connect``.
        hub: Id of the hub.
        on_end: Called in this thread.
        is_over: Asked between events and attempts; True ends it.
    """
    has_missed = False
    while not is_over():
        try:
            client = connect({**client_kwargs, "max_pool_size": 1})
            filters = {"type": "container", "event": list(_EVENTS), "label": f"{LABEL}hub={hub}"}
            with translated():
                stream = client.events(filters=filters)
                if has_missed:
                    on_end("")
                for line in stream:
                    on_end(_name(line))
                    if is_over():
                        return
        except LabError as error:
            log.debug("the engine's events: %s", error)
        has_missed = True
        time.sleep(_AGAIN_S)


def follow_in_background(
    client_kwargs: Mapping[str, Any], hub: str, on_end: Callable[[str], None]
) -> None:
    """Run ``follow`` in a thread that ends with the process."""
    threading.Thread(
        target=follow, args=(client_kwargs, hub, on_end), name="engine-events", daemon=True
    ).start()


def _name(line: bytes | str) -> str:
    try:
        return str(json.loads(line)["Actor"]["Attributes"].get("name", ""))
    except (ValueError, KeyError, TypeError, AttributeError):
        return ""
