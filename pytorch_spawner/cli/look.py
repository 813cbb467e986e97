"""`doctor`, `leases` and `journal`, which look, and `reset-clock`."""

from __future__ import annotations

import argparse
import asyncio
import json
import time

from pytorch_spawner.adapters import engine, nvml
from pytorch_spawner.adapters.one_at_a_time import OneAtATime
from pytorch_spawner.adapters.probe import DEADLINE_S as _DRIVER_S
from pytorch_spawner.cli.common import (
    Commands,
    Said,
    add_command,
    hub_of,
    moment,
    open_ledger,
    server_name,
    table,
)
from pytorch_spawner.errors import LabError

# A machine whose time is kept is never ahead by more.
_CLOCK_S = 600.0


def add_to(commands: Commands) -> None:
    """Add the commands."""
    text = "what works here, and what to do where it does not"
    add_command(commands, "doctor", _doctor, text)
    add_command(commands, "leases", _leases, "who holds which GPU, since when")
    text = "let the ledger's time begin anew at this machine's clock, while the hub is stopped"
    add_command(commands, "reset-clock", _reset_clock, text)
    text = "the events of a user's latest start"
    journal = add_command(commands, "journal", _journal, text)
    journal.add_argument("user")
    journal.add_argument("server", nargs="?", default="", help="name of a named server")


def _leases(options: argparse.Namespace) -> Said:
    leases = open_ledger(options).leases(hub_of(options))
    data = [
        {
            "id": lease.id,
            "username": lease.username,
            "servername": lease.servername,
            "gpus": [
                {"uuid": holding.gpu, "slot": holding.slot, "slots": holding.slots}
                for holding in lease.holdings
            ],
            "grant": lease.grant,
            "since": lease.since,
            "until": lease.until,
            "kept_until": lease.kept_until,
        }
        for lease in leases
    ]
    if not leases:
        return Said(data, ["Nobody holds a GPU."])
    now = time.time()
    heads = ("SERVER", "FOR", "UNTIL", "GRANT", "GPUS")
    return Said(
        data,
        table(
            heads,
            (
                (
                    server_name(lease.username, lease.servername),
                    f"{(now - lease.since) / 60:.0f} min",
                    f"kept until {moment(lease.kept_until)}"
                    if lease.kept_until
                    else moment(lease.until) or "no limit",
                    lease.grant or "(found on a container)",
                    ", ".join(
                        holding.gpu
                        + (f" slot {holding.slot + 1}/{holding.slots}" if holding.slots > 1 else "")
                        for holding in lease.holdings
                    ),
                )
                for lease in leases
            ),
        ),
    )


def _journal(options: argparse.Namespace) -> Said:
    ledger = open_ledger(options)
    start = ledger.latest_start(hub_of(options), options.user, options.server)
    if start is None:
        raise LabError(f"{options.user}/{options.server} never started.")
    events = ledger.read_events(start.id)
    lines = [
        f"{event.at - start.created_at:8.2f} s  {event.kind:<7} "
        # Hostile text: no control characters reach the terminal.
        + json.dumps(dict(event.data))[:200]
        for event in events
    ]
    return Said([event.as_json() for event in events], lines)


def _doctor(options: argparse.Namespace) -> Said:
    findings = [_ask_engine(), _ask_driver(), _ask_ledger(options)]
    lines = [f"{'ok  ' if fine else 'fail'}  {name}: {text}" for name, fine, text in findings]
    rows = [{"check": name, "ok": fine, "sentence": text} for name, fine, text in findings]
    return Said(rows, lines, all(fine for _, fine, _ in findings))


def _ask_engine() -> tuple[str, bool, str]:
    try:
        injection = engine.find_injection(engine.connect())
    except LabError as error:
        return "engine", False, error.public_message
    if injection.kind == "none":
        return "engine", True, f"answers. {injection.reason}"
    count = f", {len(injection.devices)} devices listed" if injection.devices else ""
    return "engine", True, f"answers, and gives GPUs by {injection.kind}{count}"


def _ask_driver() -> tuple[str, bool, str]:
    driver = OneAtATime(nvml.read_inventory, "gpu-driver")
    inventory = asyncio.run(driver.ask(_DRIVER_S))
    if inventory is None:
        return "driver", False, nvml.no_answer(_DRIVER_S).reason
    if not inventory.gpus:
        return "driver", True, f"{inventory.reason} Servers start without a GPU."
    names = ", ".join(f"{gpu.name} ({gpu.uuid})" for gpu in inventory.gpus)
    return "driver", True, f"{inventory.gpus[0].driver}: {names}"


def _ask_ledger(options: argparse.Namespace) -> tuple[str, bool, str]:
    try:
        ledger = open_ledger(options)
        leases = ledger.leases(hub_of(options))
        ahead_s = ledger.clock_ahead_s(hub_of(options))
    except LabError as error:
        return "ledger", False, f"{error.public_message} {error.detail}".strip()
    if ahead_s > _CLOCK_S:
        return (
            "ledger",
            False,
            f"its time is {ahead_s / 60:.0f} min ahead of this machine's clock, and stands still "
            "until then: no lease ends. Correct the clock, or, if it was ahead before and is right "
            "now, stop the hub, run `pytorch-spawner reset-clock`, and start the hub.",
        )
    return "ledger", True, f"readable; {len(leases)} leases held"


def _reset_clock(options: argparse.Namespace) -> Said:
    ledger, hub = open_ledger(options), hub_of(options)
    ahead_s = ledger.clock_ahead_s(hub)
    ledger.reset_clock(hub)
    text = (
        f"Set back by {ahead_s:.0f} s. A hub that runs sets it forward again: stop the hub "
        "before, and start it now."
    )
    return Said({"set_back_s": ahead_s}, [text])
