"""`report`: what became of a user's latest start, as a text to pass on."""

from __future__ import annotations

import argparse
import time

from pytorch_spawner.cli.common import (
    Commands,
    Said,
    add_command,
    hub_of,
    open_ledger,
    server_name,
)
from pytorch_spawner.core.report import say, with_place
from pytorch_spawner.core.report_facts import gather
from pytorch_spawner.errors import LabError


def add_to(commands: Commands) -> None:
    """Add the command."""
    text = (
        "a report of a user's latest start for the helpdesk, without secrets: the same text as "
        'the page\'s "Copy report"'
    )
    report = add_command(commands, "report", _report, text)
    report.add_argument("user")
    report.add_argument("--server", metavar="NAME", default="", help="name of a named server")


def _report(options: argparse.Namespace) -> Said:
    ledger, hub, now = open_ledger(options), hub_of(options), time.time()
    start = ledger.latest_start(hub, options.user, options.server)
    if start is None:
        raise LabError(f"{server_name(options.user, options.server)} never started.")
    queue = ledger.queue(hub) if start.ended_at is None else ()
    facts = gather(start, with_place(start, ledger.read_events(start.id), queue, now), now)
    return Said(facts, say(facts).splitlines())
