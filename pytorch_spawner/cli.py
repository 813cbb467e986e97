"""`pytorch-spawner`: look at a lab from a terminal. Parse, call, print; it changes nothing."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pytorch_spawner.adapters import engine, nvml
from pytorch_spawner.errors import LabError
from pytorch_spawner.ledger.store import Ledger

_DEMO_LEDGER = Path(".lab/ledger.sqlite")


def main(words: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 fine, 1 something is wrong, 2 wrong usage."""
    options = _parser().parse_args(words)
    run: Callable[[argparse.Namespace], tuple[Any, list[str], bool]] = options.run
    try:
        said, lines, is_fine = run(options)
    except LabError as error:
        print(f"pytorch-spawner: {error.public_message}", file=sys.stderr)
        if error.detail:
            print(f"  {error.detail}", file=sys.stderr)
        return 1
    print(json.dumps(said, indent=1) if options.json else "\n".join(lines))
    return 0 if is_fine else 1


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print JSON")
    common.add_argument(
        "--ledger",
        default=os.environ.get("PYTORCH_SPAWNER_LEDGER") or f"sqlite:///{_DEMO_LEDGER.resolve()}",
        help="SQLAlchemy URL of the ledger (default: $PYTORCH_SPAWNER_LEDGER, else the demo's)",
    )
    common.add_argument(
        "--hub",
        default=os.environ.get("PYTORCH_SPAWNER_HUB_ID")
        or f"lab-{os.environ.get('LAB_PORT', '8000')}",
        help="id of the hub (default: $PYTORCH_SPAWNER_HUB_ID, else the demo's)",
    )
    parser = argparse.ArgumentParser(prog="pytorch-spawner", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    for name, run, text in (
        ("doctor", _doctor, "what works here, and what to do where it does not"),
        ("gpus", _gpus, "the lab's GPUs and who holds them"),
        ("leases", _leases, "who holds which GPU, since when"),
        ("journal", _journal, "the events of a user's latest start"),
    ):
        command = commands.add_parser(name, help=text, description=text, parents=[common])
        command.set_defaults(run=run)
        if name == "journal":
            command.add_argument("user")
            command.add_argument("server", nargs="?", default="")
    return parser


def _open(options: argparse.Namespace) -> Ledger:
    path = options.ledger.removeprefix("sqlite:///")
    if options.ledger.startswith("sqlite") and not Path(path).exists():
        # Looking must not create what is not there.
        raise LabError(f"There is no ledger at {path}. Name it with --ledger.")
    return Ledger.open(options.ledger)


def _gpus(options: argparse.Namespace) -> tuple[Any, list[str], bool]:
    ledger = _open(options)
    inventory = ledger.read_inventory(options.hub)
    holders = {gpu: lease for lease in ledger.leases(options.hub) for gpu in lease.gpus}
    rows = []
    for gpu in inventory.gpus:
        lease = holders.get(gpu.uuid)
        rows.append(
            {
                "uuid": gpu.uuid,
                "index": gpu.index,
                "name": gpu.name,
                "memory_mib": gpu.memory_mib,
                "pool": gpu.pool,
                "holder": f"{lease.username}/{lease.servername}" if lease else None,
                "since": lease.since if lease else None,
            }
        )
    lines = [
        f"{row['index']:>3}  {row['name'] or 'unknown':<28} {row['pool']:<10} "
        f"{row['holder'] or 'free':<24} {row['uuid']}"
        for row in rows
    ] or [inventory.reason]
    return rows, lines, True


def _leases(options: argparse.Namespace) -> tuple[Any, list[str], bool]:
    leases = _open(options).leases(options.hub)
    rows = [
        {
            "id": lease.id,
            "server": f"{lease.username}/{lease.servername}",
            "gpus": list(lease.gpus),
            "since": lease.since,
        }
        for lease in leases
    ]
    now = time.time()
    lines = [
        f"{row['server']:<24} {(now - lease.since) / 60:>6.0f} min  {', '.join(lease.gpus)}"
        for row, lease in zip(rows, leases, strict=True)
    ] or ["Nobody holds a GPU."]
    return rows, lines, True


def _journal(options: argparse.Namespace) -> tuple[Any, list[str], bool]:
    ledger = _open(options)
    start = ledger.latest_start(options.hub, options.user, options.server)
    if start is None:
        raise LabError(f"{options.user}/{options.server} never started.")
    events = ledger.read_events(start.id)
    lines = [
        f"{event.at - start.created_at:8.2f} s  {event.kind:<7} "
        # Hostile text: no control characters reach the terminal.
        + json.dumps(dict(event.data))[:200]
        for event in events
    ]
    return [event.as_json() for event in events], lines, True


def _doctor(options: argparse.Namespace) -> tuple[Any, list[str], bool]:
    findings = [_ask_engine(), _ask_driver(), _ask_ledger(options)]
    lines = [f"{'ok  ' if fine else 'fail'}  {name}: {text}" for name, fine, text in findings]
    rows = [{"check": name, "ok": fine, "sentence": text} for name, fine, text in findings]
    return rows, lines, all(fine for _, fine, _ in findings)


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
    inventory = nvml.read_inventory()
    if not inventory.gpus:
        return "driver", True, f"{inventory.reason} Servers start without a GPU."
    names = ", ".join(f"{gpu.name} ({gpu.uuid})" for gpu in inventory.gpus)
    return "driver", True, f"{inventory.gpus[0].driver}: {names}"


def _ask_ledger(options: argparse.Namespace) -> tuple[str, bool, str]:
    try:
        leases = _open(options).leases(options.hub)
    except LabError as error:
        return "ledger", False, f"{error.public_message} {error.detail}".strip()
    return "ledger", True, f"readable; {len(leases)} leases held"


if __name__ == "__main__":
    sys.exit(main())
