"""What every command needs: the ledger, an answer, times and tables."""

from __future__ import annotations

import argparse
import getpass
import os
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from pytorch_spawner.core.gpus import Inventory
from pytorch_spawner.core.placement import with_settings
from pytorch_spawner.errors import LabError
from pytorch_spawner.ledger.store import Ledger

_DEMO_LEDGER = Path(".lab/ledger.sqlite")


class Said(NamedTuple):
    """What a command answers: for ``--json``, for people, and whether all is fine."""

    data: Any
    lines: Sequence[str]
    is_fine: bool = True


class Commands(Protocol):
    """Where a command is added: what ``argparse.ArgumentParser.add_subparsers`` returns."""

    def add_parser(self, name: str, **kwargs: Any) -> argparse.ArgumentParser:
        """Add one command."""


def add_command(
    commands: Commands,
    name: str,
    run: Callable[[argparse.Namespace], Said | int],
    text: str,
    *,
    is_action: bool = False,
) -> argparse.ArgumentParser:
    """Add a command, or an action of one, with the common options.

    Args:
        commands: Where to add it.
        name: The word for it.
        run: What it does.
        text: Its line in the help.
        is_action: It is an action of another command, whose options may stand before it.
    """
    command = commands.add_parser(
        name, help=text, description=text, parents=[_common(is_action=is_action)]
    )
    command.set_defaults(run=run)
    return command


def _common(*, is_action: bool) -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(
        add_help=False,
        # An action's default would take the place of what was said before the action's name.
        argument_default=argparse.SUPPRESS if is_action else None,
    )
    common.add_argument("--json", action="store_const", const=True, help="print JSON")
    common.add_argument(
        "--ledger",
        help="SQLAlchemy URL of the ledger (default: $PYTORCH_SPAWNER_LEDGER, else the demo's)",
    )
    common.add_argument(
        "--hub",
        help="id of the hub (default: $PYTORCH_SPAWNER_HUB_ID, else the only one in the ledger, "
        "else the demo's)",
    )
    return common


def hub_of(options: argparse.Namespace) -> str:
    """The id of the hub that is meant; ``open_ledger`` has seen to it that the ledger knows it."""
    return _named(options) or f"lab-{os.environ.get('LAB_PORT', '8000')}"


def _named(options: argparse.Namespace) -> str | None:
    return options.hub or os.environ.get("PYTORCH_SPAWNER_HUB_ID")


def open_ledger(options: argparse.Namespace) -> Ledger:
    """Open the ledger that the options name.

    Raises:
        LabError: There is none (looking must not create it), or it is of other hubs.
        LedgerUnavailable: It cannot be read.
    """
    url = options.ledger or os.environ.get("PYTORCH_SPAWNER_LEDGER")
    url = url or f"sqlite:///{_DEMO_LEDGER.resolve()}"
    path = url.removeprefix("sqlite:///")
    if url.startswith("sqlite") and not Path(path).exists():
        raise LabError(f"There is no ledger at {path}. Name it with --ledger.")
    ledger = Ledger.open(url)
    options.hub = _known_hub(ledger, options)
    return ledger


def devices(ledger: Ledger, hub: str) -> Inventory:
    """The hub's GPUs in the pools and modes that an admin decided on, whoever holds them now."""
    return with_settings(ledger.read_inventory(hub), ledger.settings(hub), {})


def _known_hub(ledger: Ledger, options: argparse.Namespace) -> str:
    """The hub that is meant: under a mistyped id nobody would hold a GPU, and a grant do nothing.

    Raises:
        LabError: The ledger holds other hubs, and not this one.
    """
    hub, known = hub_of(options), ledger.hubs()
    if not known or hub in known:
        return hub
    if len(known) == 1 and not _named(options):
        return known[0]
    there = ", ".join(map(clean, known))
    raise LabError(
        f"This ledger knows no hub '{clean(hub)}'; it knows: {there}. Name one with --hub."
    )


def who() -> str:
    """Who decides, for the log of changes."""
    try:
        return f"{getpass.getuser()} (command line)"
    except (KeyError, OSError):  # a uid without a name, in a container
        return "command line"


def clean(text: object) -> str:
    """Text that others wrote, without what would steer the terminal."""
    return "".join(char if char.isprintable() else "?" for char in str(text))


def server_name(username: str, servername: str) -> str:
    """A server as people write it: "ana", "ana/second"."""
    return f"{username}/{servername}" if servername else username


def split_server(said: str) -> tuple[str, str]:
    """The user and server of "ana" or "ana/second"."""
    username, _, servername = said.partition("/")
    return username, servername


def moment(at: float | None) -> str:
    """A time in the terminal's own zone; "" for None."""
    if at is None:
        return ""
    return datetime.fromtimestamp(at, timezone.utc).astimezone().strftime("%Y-%m-%d %H:%M")


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Columns under their heads, as wide as needed, the last one ragged."""
    cells = [list(heads), *([clean(cell) for cell in row] for row in rows)]
    widths = [max(len(row[place]) for row in cells) for place in range(len(heads))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
