"""`queue`: who waits, in which place and why; put somebody first, or take them out."""

from __future__ import annotations

import argparse
import time

from pytorch_spawner.cli.common import (
    Commands,
    Said,
    add_command,
    hub_of,
    moment,
    open_ledger,
    server_name,
    split_server,
    table,
    who,
)
from pytorch_spawner.core.grants import PRIORITIES, count_of
from pytorch_spawner.errors import BadRequest, LabError
from pytorch_spawner.ledger.store import Ledger, Waiting


def add_to(commands: Commands) -> None:
    """Add the command and its actions."""
    queue = add_command(commands, "queue", _list, "who waits for a GPU, and for how long")
    actions = queue.add_subparsers(metavar="action")
    text = "add to the priority of a start in the queue"
    boost = add_command(actions, "boost", _boost, text, is_action=True)
    text = "take a start out of the queue; the user is told"
    remove = add_command(actions, "remove", _remove, text, is_action=True)
    for action in (boost, remove):
        action.add_argument("server", help="ana, or ana/second for a named server")
    boost.add_argument("by", type=int, help="-100 to 100; 0 takes it back")


def _list(options: argparse.Namespace) -> Said:
    waiting = open_ledger(options).queue(hub_of(options))
    data = [
        {
            "username": one.ticket.username,
            "servername": one.ticket.servername,
            "place": one.place,
            "of": one.of,
            "gpus": one.ticket.gpus,
            "share": one.ticket.share,
            "pool": one.ticket.pool,
            "since": one.ticket.since,
            "expected_at": one.expected_at,
            "reason": one.reason,
            "boost": one.ticket.boost,
            "is_away": one.ticket.is_away,
        }
        for one in waiting
    ]
    if not waiting:
        return Said(data, ["Nobody waits."])
    now = time.time()
    heads = ("PLACE", "SERVER", "WAITS", "FOR", "EXPECTED", "WHY")
    rows = [
        (
            f"{one.place}/{one.of}" if one.place else "new",
            server_name(one.ticket.username, one.ticket.servername),
            f"{max(0.0, now - one.ticket.since) / 60:.0f} min",
            count_of(one.ticket.gpus, one.ticket.share),
            moment(one.expected_at) or "unknown",
            _why(one),
        )
        for one in waiting
    ]
    return Said(data, table(heads, rows))


def _why(waiting: Waiting) -> str:
    parts = [waiting.reason] if waiting.reason else []
    if waiting.ticket.boost:
        parts.append(f"boosted by {waiting.ticket.boost}.")
    if waiting.ticket.is_away:
        parts.append("The hub restarted, and they have not come back yet.")
    return " ".join(parts)


def _boost(options: argparse.Namespace) -> Said:
    low, high = PRIORITIES
    if not low <= options.by <= high:
        raise BadRequest(f"A boost is {low} to {high}.")
    username, servername = split_server(options.server)
    ledger = open_ledger(options)
    if ledger.boost(hub_of(options), username, servername, options.by, who()) is None:
        raise _nobody(ledger, options)
    return Said({"boost": options.by}, [f"{options.server} is boosted by {options.by}."])


def _remove(options: argparse.Namespace) -> Said:
    ledger = open_ledger(options)
    if ledger.remove_ticket(hub_of(options), *split_server(options.server), who()) is None:
        raise _nobody(ledger, options)
    text = f"{options.server} is out of the queue, and told so."
    return Said({"removed": options.server}, [text])


def _nobody(ledger: Ledger, options: argparse.Namespace) -> LabError:
    waiting = ", ".join(
        server_name(one.ticket.username, one.ticket.servername)
        for one in ledger.queue(hub_of(options))
    )
    return LabError(f"{options.server} does not wait. In the queue: {waiting or 'nobody'}.")
