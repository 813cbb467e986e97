"""What the service needs of the ledger, as types. It must not import the ledger itself.

Every method blocks; the service calls them in a thread.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

from pytorch_spawner.core.course_manifest import Manifest
from pytorch_spawner.core.courses import Course, Order, Student
from pytorch_spawner.core.gpus import GpuUuid, Inventory
from pytorch_spawner.core.grants import Grant
from pytorch_spawner.core.journal import Event
from pytorch_spawner.core.placement import DeviceSetting, Holding
from pytorch_spawner.core.report_facts import Start
from pytorch_spawner.core.tickets import Place, Ticket
from pytorch_spawner.core.usage_report import Busy, Used
from pytorch_spawner.core.warmcache import Cache


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

    @property
    def weight(self) -> float:
        """What it counts in GPU-hours an hour."""


class Change(Protocol):
    """One line of the audit log."""

    @property
    def id(self) -> int:
        """Grows with every line."""

    @property
    def at(self) -> float:
        """Unix time in seconds."""

    @property
    def by(self) -> str:
        """Who did it."""

    @property
    def what(self) -> str:
        """Kind: "grant", "gpu", "queue", "server", "cache", "course" or "refused"."""

    @property
    def subject(self) -> str:
        """Id of the grant or cache, UUID, name of the course, or user and server."""

    @property
    def before(self) -> Any:
        """As it was, as JSON; None where there was nothing."""

    @property
    def after(self) -> Any:
        """As it is since, as JSON; None where there is nothing."""

    @property
    def undoes(self) -> int | None:
        """The line that this one takes back."""

    @property
    def undone_by(self) -> int | None:
        """The line that took this one back."""

    @property
    def together(self) -> int:
        """How many lines were written at once, of which this is one."""


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

    def reported_bytes(self, start_id: str) -> int:
        """What a start's agent reported so far takes, as ``Report.stored_bytes`` counts it."""

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

    def edit_grants(
        self, hub: str, by: str, change: Callable[[tuple[Grant, ...]], Sequence[Grant]]
    ) -> tuple[Sequence[Grant], Sequence[int]]:
        """Change the ledger's own grants in one transaction.

        Returns:
            The grants as they are now, and the ids of the log's new lines.
        """

    def change_setting(
        self, hub: str, uuid: GpuUuid, by: str, change: Callable[[DeviceSetting], DeviceSetting]
    ) -> int | None:
        """Change what is decided about a device; returns the id of the log's line, if any."""

    def boost(
        self,
        hub: str,
        username: str,
        servername: str,
        boost: int,
        by: str,
        check: Callable[[Ticket], None],
    ) -> int | None:
        """Set what is added to a ticket's priority; 0: it was that, None: no such ticket."""

    def remove_ticket(
        self, hub: str, username: str, servername: str, by: str, check: Callable[[Ticket], None]
    ) -> int | None:
        """Take a start out of the queue; None when there is no such ticket."""

    def note(self, hub: str, by: str, what: str, subject: str, after: Any) -> int:
        """Write a line of the log that changes no decision."""

    def changes(
        self, hub: str, limit: int = 100, *, before: int | None = None, search: str = ""
    ) -> Sequence[Change]:
        """The audit log, the newest first."""

    def latest_change(self, hub: str, what: str, subject: str) -> Change | None:
        """The newest line about one thing."""

    def undo(self, hub: str, change_id: int, by: str) -> int:
        """Take a change back."""

    def shown_version(self, hub: str) -> int:
        """A number that grows whenever anything changes that pages show, but for the inventory."""

    def used(self, hub: str, first: float, last: float) -> tuple[Sequence[Used], Sequence[Busy]]:
        """What was held and what was busy, from day to day."""

    def add_busy(self, hub: str, rows: Iterable[tuple[float, str, str, str, float]]) -> None:
        """Add measured time: day, user, course, GPU, seconds."""

    def groups_of(self, hub: str, username: str) -> Sequence[str]:
        """The user's groups at their latest start."""

    def week_hours(self, hub: str, username: str) -> Mapping[str, float]:
        """GPU-hours that a user used this week, by grant id."""

    def now(self) -> float:
        """Unix time in seconds, which never runs backwards."""

    def caches(self, hub: str) -> Sequence[Cache]:
        """Every warm cache and build, the newest first."""

    def cache(self, hub: str, cache_id: str) -> Cache | None:
        """One of them."""

    def suite_archive(self, hub: str, cache_id: str) -> bytes:
        """The files of its suite, packed."""

    def request_cache(  # noqa: PLR0913  (a build has these fields)
        self,
        hub: str,
        *,
        by: str,
        scope: str,
        image: str,
        pool: str,
        gpus: int,
        suite: Mapping[str, Any],
        suite_digest: str,
        archive: bytes,
    ) -> Cache:
        """Ask for a build."""

    def promote_cache(
        self, hub: str, cache_id: str, by: str, check: Callable[[Cache], None]
    ) -> bool:
        """Give it to starts; False where it is not published."""

    def retire_cache(
        self, hub: str, cache_id: str, by: str, check: Callable[[Cache], None]
    ) -> bool:
        """Give it to no start; False where starts did not get it."""

    def cancel_cache(self, hub: str, cache_id: str, by: str) -> bool:
        """Stop a build; False where it is over."""

    def remove_cache(
        self, hub: str, cache_id: str, by: str, check: Callable[[Cache], None]
    ) -> Cache | None:
        """Give it up; None where it is gone or not over."""

    def class_share(self, hub: str) -> float | None:
        """The share of each pool that classes may have, 0 to 1; None before the hub said it."""

    def courses(self, hub: str) -> Sequence[Course]:
        """Every course, by name."""

    def course_names(self, hub: str) -> Collection[str]:
        """Names of all courses, also of those whose manifest cannot be read any more."""

    def removed_courses(self, hub: str) -> Collection[str]:
        """Names of removed courses whose files servers may still have."""

    def courses_version(self, hub: str) -> int:
        """A number that grows whenever anything changes that ``courses`` gives."""

    def course(self, hub: str, name: str) -> Course | None:
        """One of them."""

    def save_course(
        self,
        hub: str,
        manifest: Manifest,
        by: str,
        check: Callable[[Course | None], None],
        may_follow: Callable[[Collection[str]], bool],
    ) -> Course:
        """Add a course, or change its manifest."""

    def remove_course(
        self, hub: str, name: str, by: str, check: Callable[[Course], None]
    ) -> Course | None:
        """Remove a course; None where there is none."""

    def ask_course(self, hub: str, name: str, task: str, by: str) -> bool:
        """Ask for a "preload" or "publish"; False where one is under way or nothing is there."""

    def stop_course(self, hub: str, name: str, by: str) -> bool:
        """Ask for the end of what is done for a course; False where nothing is."""

    def students(self, hub: str, course: str) -> Sequence[Student]:
        """Everybody whose container reported about a course."""

    def note_student(self, hub: str, course: str, username: str, data: Mapping[str, Any]) -> None:
        """Take in what somebody's container says of its copy."""

    def ask_reset(self, hub: str, course: str, username: str, path: str, by: str) -> Order:
        """Order one person's copy of one file back to the course's version."""

    def orders(
        self, hub: str, course: str, username: str = "", *, open_only: bool = True
    ) -> Sequence[Order]:
        """Orders to one person's copy, or to everybody's (""), the oldest first."""
