"""What the service needs of the ledger, as types. It must not import the ledger itself.

Every method blocks; the service calls them in a thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from pytorch_spawner.core.gpus import Inventory
from pytorch_spawner.core.grants import Grant
from pytorch_spawner.core.journal import Event
from pytorch_spawner.core.placement import DeviceSetting, Holding
from pytorch_spawner.core.tickets import Place


class Start(Protocol):
    """One start of one server, as the ledger keeps it."""

    @property
    def id(self) -> str:
        """Unique in the ledger."""

    @property
    def username(self) -> str:
        """Whose server it is."""

    @property
    def servername(self) -> str:
        """Name of the server; "" is the default one."""

    @property
    def image(self) -> str:
        """Image reference."""

    @property
    def request(self) -> Mapping[str, Any]:
        """What was asked for, as JSON."""

    @property
    def created_at(self) -> float:
        """Unix time in seconds."""

    @property
    def ended_at(self) -> float | None:
        """Unix time in seconds; None while it lasts."""

    @property
    def outcome(self) -> str:
        """How it ended; "" while it lasts."""


class Lease(Protocol):
    """What a running server holds."""

    @property
    def id(self) -> str:
        """Unique in the ledger."""

    @property
    def start_id(self) -> str:
        """The start that holds it."""

    @property
    def username(self) -> str:
        """Whose server it is."""

    @property
    def servername(self) -> str:
        """Name of the server; "" is the default one."""

    @property
    def gpus(self) -> Sequence[str]:
        """UUIDs of the GPUs."""

    @property
    def request(self) -> Mapping[str, Any]:
        """What was asked for, as JSON."""

    @property
    def holdings(self) -> Sequence[Holding]:
        """The slots of the GPUs, in the same order."""

    @property
    def since(self) -> float:
        """Unix time in seconds."""

    @property
    def until(self) -> float | None:
        """When it ends at the latest; None for no limit."""

    @property
    def kept_until(self) -> float | None:
        """Its server ended unexpectedly and it is kept until then; None while it runs."""

    @property
    def grant(self) -> str:
        """Id of the grant it was given through; "" where unknown."""


class Ledger(Protocol):
    """The part of the ledger that the service reads, and what it writes."""

    def latest_start(self, hub: str, username: str, servername: str) -> Start | None:
        """The newest start of that server; None when it never started."""

    def starts(self, hub: str, username: str) -> Sequence[Start]:
        """The newest start of each of the user's servers."""

    def read_events(self, start_id: str, after_seq: int = 0) -> Sequence[Event]:
        """Events with a larger number, in order."""

    def append_events(
        self, start_id: str, events: Sequence[tuple[str, Mapping[str, Any]]]
    ) -> Sequence[Event]:
        """Write events; the ledger gives them number and time."""

    def leases(self, hub: str) -> Sequence[Lease]:
        """All leases in force."""

    def read_inventory(self, hub: str) -> Inventory:
        """The GPUs as the hub last wrote them."""

    def settings(self, hub: str) -> Sequence[DeviceSetting]:
        """What admins decided about the GPUs."""

    def queue(self, hub: str) -> Sequence[Place]:
        """Who waits, the next first."""

    def grants(self, hub: str) -> Sequence[Grant]:
        """All grants, wherever they were written."""

    def change_grants(
        self, hub: str, by: str, change: Callable[[tuple[Grant, ...]], Sequence[Grant]]
    ) -> Sequence[Grant]:
        """Change the ledger's own grants in one transaction; returns them as they are now."""

    def groups_of(self, hub: str, username: str) -> Sequence[str]:
        """The user's groups at their latest start."""

    def week_hours(self, hub: str, username: str) -> Mapping[str, float]:
        """GPU-hours that a user used this week, by grant id."""

    def now(self) -> float:
        """Unix time in seconds, which never runs backwards."""
