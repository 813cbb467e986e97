"""Tables of the ledger. Times are Unix seconds (UTC); ids are UUID4 in hex.

The rule that no GPU is held twice is the primary key of ``holdings``, so it holds whatever process
writes, and after any crash.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """All tables of the ledger."""


class IdentityRow(Base):
    """A uid given to a user, for ever: rows are never deleted, uids never given again."""

    __tablename__ = "identities"
    username: Mapped[str] = mapped_column(String(255), primary_key=True)
    uid: Mapped[int] = mapped_column(BigInteger, unique=True)
    gid: Mapped[int] = mapped_column(BigInteger)
    source: Mapped[str] = mapped_column(String(32))
    at: Mapped[float] = mapped_column(Float)


class HomeRow(Base):
    """A directory or volume that the helper container prepared for a uid."""

    __tablename__ = "homes"
    place: Mapped[str] = mapped_column(String(512), primary_key=True)
    # The volume's own creation time: a volume removed and made again is another volume.
    born: Mapped[str] = mapped_column(String(64))
    uid: Mapped[int] = mapped_column(BigInteger)
    at: Mapped[float] = mapped_column(Float)


class DeviceRow(Base):
    """A GPU as the hub saw it last."""

    __tablename__ = "devices"
    hub: Mapped[str] = mapped_column(String(64), primary_key=True)
    uuid: Mapped[str] = mapped_column(String(160), primary_key=True)
    facts: Mapped[dict[str, Any]] = mapped_column(JSON)
    seen_at: Mapped[float] = mapped_column(Float)


class InventoryRow(Base):
    """How a hub's last look at its GPUs went."""

    __tablename__ = "inventories"
    hub: Mapped[str] = mapped_column(String(64), primary_key=True)
    # Why there are none; empty where there are.
    reason: Mapped[str] = mapped_column(Text)


class StartRow(Base):
    """One start of one server, from the request until it ended."""

    __tablename__ = "starts"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    hub: Mapped[str] = mapped_column(String(64))
    username: Mapped[str] = mapped_column(String(255))
    servername: Mapped[str] = mapped_column(String(255))
    image: Mapped[str] = mapped_column(String(512))
    request: Mapped[dict[str, Any]] = mapped_column(JSON)
    created_at: Mapped[float] = mapped_column(Float)
    ended_at: Mapped[float | None] = mapped_column(Float, nullable=True)
    outcome: Mapped[str] = mapped_column(String(16), default="")
    # JupyterHub groups of the user when it began, for `grants explain` and the admin's preview.
    groups: Mapped[list[str]] = mapped_column(JSON, default=list)
    __table_args__ = (Index("starts_by_server", "hub", "username", "servername", "created_at"),)


class LeaseRow(Base):
    """GPUs held by one start; ``released_at`` is null while they are."""

    __tablename__ = "leases"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    hub: Mapped[str] = mapped_column(String(64), index=True)
    start_id: Mapped[str] = mapped_column(String(32))
    username: Mapped[str] = mapped_column(String(255))
    servername: Mapped[str] = mapped_column(String(255))
    gpus: Mapped[list[str]] = mapped_column(JSON)
    request: Mapped[dict[str, Any]] = mapped_column(JSON)
    since: Mapped[float] = mapped_column(Float)
    released_at: Mapped[float | None] = mapped_column(Float, nullable=True)
    reason: Mapped[str] = mapped_column(String(255), default="")
    # [[slot, slots], ...] beside gpus; see core.placement.Holding.
    slots: Mapped[list[list[int]]] = mapped_column(JSON, default=list)
    # What holding it counts in GPU-hours an hour: 1 for a whole GPU, 1/N for a slot.
    weight: Mapped[float] = mapped_column(Float, default=1.0)
    grant_id: Mapped[str] = mapped_column(String(96), default="")
    until: Mapped[float | None] = mapped_column(Float, nullable=True)
    kept_until: Mapped[float | None] = mapped_column(Float, nullable=True)
    warned_at: Mapped[float | None] = mapped_column(Float, nullable=True)
    __table_args__ = (Index("leases_in_force", "hub", "released_at"),)


class HoldingRow(Base):
    """One GPU (or one slot of it) that is held now; the row goes when the lease is released."""

    __tablename__ = "holdings"
    hub: Mapped[str] = mapped_column(String(64), primary_key=True)
    gpu: Mapped[str] = mapped_column(String(160), primary_key=True)
    slot: Mapped[int] = mapped_column(Integer, primary_key=True, default=0)
    # Into how many slots the GPU was cut when it was given; 1 for a whole one.
    slots: Mapped[int] = mapped_column(Integer, default=1)
    lease_id: Mapped[str] = mapped_column(ForeignKey("leases.id"), index=True)


class TicketRow(Base):
    """A start that waits for GPUs; the row goes when it gets them, is refused or leaves."""

    __tablename__ = "tickets"
    hub: Mapped[str] = mapped_column(String(64), primary_key=True)
    username: Mapped[str] = mapped_column(String(255), primary_key=True)
    servername: Mapped[str] = mapped_column(String(255), primary_key=True)
    start_id: Mapped[str] = mapped_column(String(32))
    groups: Mapped[list[str]] = mapped_column(JSON)
    request: Mapped[dict[str, Any]] = mapped_column(JSON)
    # Order of arrival: a number, not a time, so that no clock can turn it round.
    seq: Mapped[int] = mapped_column(BigInteger)
    since: Mapped[float] = mapped_column(Float)
    boost: Mapped[int] = mapped_column(Integer, default=0)
    # Since when nobody waits for it (the hub restarted); null while somebody does.
    away_since: Mapped[float | None] = mapped_column(Float, nullable=True)
    # What the last decision told it: [place, of, expected_at, reason]; null before the first.
    told: Mapped[list[Any] | None] = mapped_column(JSON(none_as_null=True), nullable=True)


class GrantRow(Base):
    """One grant; ``spec`` holds the fields of ``core.grants.Grant``."""

    __tablename__ = "grants"
    hub: Mapped[str] = mapped_column(String(64), primary_key=True)
    id: Mapped[str] = mapped_column(String(96), primary_key=True)
    spec: Mapped[dict[str, Any]] = mapped_column(JSON)
    at: Mapped[float] = mapped_column(Float)


class DeviceSettingRow(Base):
    """What an admin decided about a device; see ``core.placement.DeviceSetting``."""

    __tablename__ = "device_settings"
    hub: Mapped[str] = mapped_column(String(64), primary_key=True)
    uuid: Mapped[str] = mapped_column(String(160), primary_key=True)
    pool: Mapped[str | None] = mapped_column(String(255), nullable=True)
    mode: Mapped[str | None] = mapped_column(String(16), nullable=True)
    drained: Mapped[str] = mapped_column(String(255), default="")
    at: Mapped[float] = mapped_column(Float)


class UsageRow(Base):
    """Decayed GPU-seconds of a user's ended leases, as of ``at``."""

    __tablename__ = "usage"
    hub: Mapped[str] = mapped_column(String(64), primary_key=True)
    username: Mapped[str] = mapped_column(String(255), primary_key=True)
    gpu_s: Mapped[float] = mapped_column(Float)
    at: Mapped[float] = mapped_column(Float)


class WeekUsageRow(Base):
    """GPU-seconds of a user's ended leases through one grant in one week, named by its Monday."""

    __tablename__ = "week_usage"
    hub: Mapped[str] = mapped_column(String(64), primary_key=True)
    username: Mapped[str] = mapped_column(String(255), primary_key=True)
    grant_id: Mapped[str] = mapped_column(String(96), primary_key=True)
    week: Mapped[float] = mapped_column(Float, primary_key=True)
    gpu_s: Mapped[float] = mapped_column(Float)


class BusyRow(Base):
    """Seconds in which a GPU computed for somebody, as measured, on one day (UTC midnight)."""

    __tablename__ = "busy"
    hub: Mapped[str] = mapped_column(String(64), primary_key=True)
    day: Mapped[float] = mapped_column(Float, primary_key=True)
    username: Mapped[str] = mapped_column(String(255), primary_key=True)
    course: Mapped[str] = mapped_column(String(255), primary_key=True)
    gpu: Mapped[str] = mapped_column(String(160), primary_key=True)
    busy_s: Mapped[float] = mapped_column(Float)


class ChangeRow(Base):
    """The audit log: who changed what, before and after; rows are never changed."""

    __tablename__ = "changes"
    id: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True
    )
    hub: Mapped[str] = mapped_column(String(64), index=True)
    at: Mapped[float] = mapped_column(Float)
    by: Mapped[str] = mapped_column(String(255))
    what: Mapped[str] = mapped_column(String(64))
    subject: Mapped[str] = mapped_column(String(255))
    before: Mapped[Any] = mapped_column(JSON, nullable=True)
    after: Mapped[Any] = mapped_column(JSON, nullable=True)
    # Id of the change that this one takes back.
    undoes: Mapped[int | None] = mapped_column(BigInteger, nullable=True)
    __table_args__ = (
        Index("changes_by_subject", "hub", "what", "subject", "id"),
        Index("changes_by_undoes", "undoes"),
    )


class CacheRow(Base):
    """One build of a warm cache and what came of it; see ``core.warmcache.Cache``."""

    __tablename__ = "caches"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    hub: Mapped[str] = mapped_column(String(64))
    scope: Mapped[str] = mapped_column(String(255), default="")
    image: Mapped[str] = mapped_column(String(512))
    pool: Mapped[str] = mapped_column(String(255), default="")
    gpus: Mapped[int] = mapped_column(Integer)
    suite: Mapped[dict[str, Any]] = mapped_column(JSON)
    suite_digest: Mapped[str] = mapped_column(String(64))
    # The suite's files as a tar, up to a megabyte: read only where it is asked for.
    archive: Mapped[bytes] = mapped_column(LargeBinary, deferred=True)
    by: Mapped[str] = mapped_column(String(255))
    asked_at: Mapped[float] = mapped_column(Float)
    state: Mapped[str] = mapped_column(String(16), default="queued")
    stop_asked: Mapped[bool] = mapped_column(Boolean, default=False)
    message: Mapped[str] = mapped_column(Text, default="")
    ended_at: Mapped[float | None] = mapped_column(Float, nullable=True)
    # The fields of ``core.warmcache.CacheKey``; null before the container was planned.
    key: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True), nullable=True)
    torch: Mapped[str] = mapped_column(String(64), default="")
    triton: Mapped[str] = mapped_column(String(64), default="")
    volume: Mapped[str] = mapped_column(String(255), default="")
    digest: Mapped[str] = mapped_column(String(64), default="")
    size_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    files: Mapped[int] = mapped_column(Integer, default=0)
    targets: Mapped[list[dict[str, Any]]] = mapped_column(JSON, default=list)
    # The end of the warmer's log. Hostile text.
    log: Mapped[str] = mapped_column(Text, default="")
    promoted_at: Mapped[float | None] = mapped_column(Float, nullable=True)
    used_at: Mapped[float | None] = mapped_column(Float, nullable=True)
    __table_args__ = (Index("caches_by_state", "hub", "state", "asked_at"),)


class CourseRow(Base):
    """A course and how far it is; see ``core.courses.Course``."""

    __tablename__ = "courses"
    hub: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    manifest: Mapped[dict[str, Any]] = mapped_column(JSON)
    by: Mapped[str] = mapped_column(String(255))
    changed_at: Mapped[float] = mapped_column(Float)
    task: Mapped[str] = mapped_column(String(16), default="")
    task_by: Mapped[str] = mapped_column(String(255), default="")
    asked_at: Mapped[float] = mapped_column(Float, default=0.0)
    is_running: Mapped[bool] = mapped_column(Boolean, default=False)
    stop_asked: Mapped[bool] = mapped_column(Boolean, default=False)
    steps: Mapped[list[dict[str, Any]]] = mapped_column(JSON, default=list)
    tried_at: Mapped[float | None] = mapped_column(Float, nullable=True)
    preloaded_at: Mapped[float | None] = mapped_column(Float, nullable=True)
    stopped_at: Mapped[float | None] = mapped_column(Float, nullable=True)
    candidate: Mapped[str] = mapped_column(String(64), default="")
    candidate_served: Mapped[str] = mapped_column(String(64), default="")
    candidate_says: Mapped[str] = mapped_column(Text, default="")
    # COMMIT is a word of SQL.
    commit: Mapped[str] = mapped_column("commit_id", String(64), default="")
    served: Mapped[str] = mapped_column(String(64), default="")
    published_at: Mapped[float | None] = mapped_column(Float, nullable=True)
    published_by: Mapped[str] = mapped_column(String(255), default="")
    serial: Mapped[int] = mapped_column(Integer, default=0)


class RemovedCourseRow(Base):
    """A course that was removed while servers may still have its files; its name is held."""

    __tablename__ = "removed_courses"
    hub: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    staff: Mapped[list[str]] = mapped_column(JSON, default=list)
    by: Mapped[str] = mapped_column(String(255))
    removed_at: Mapped[float] = mapped_column(Float)


class CourseStudentRow(Base):
    """What one person's container said of its copy of a course; see ``core.courses.Student``."""

    __tablename__ = "course_students"
    hub: Mapped[str] = mapped_column(String(64), primary_key=True)
    course: Mapped[str] = mapped_column(String(64), primary_key=True)
    username: Mapped[str] = mapped_column(String(255), primary_key=True)
    served: Mapped[str] = mapped_column(String(64), default="")
    commit: Mapped[str] = mapped_column("commit_id", String(64), default="")
    at: Mapped[float] = mapped_column(Float)
    level: Mapped[str] = mapped_column(String(16))
    # Hostile text, as all that a container says.
    message: Mapped[str] = mapped_column(Text)
    kept: Mapped[list[str]] = mapped_column(JSON, default=list)
    conflicts: Mapped[dict[str, str]] = mapped_column(JSON, default=dict)


class CourseOrderRow(Base):
    """An instructor's order to one person's copy; see ``core.courses.Order``."""

    __tablename__ = "course_orders"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    hub: Mapped[str] = mapped_column(String(64))
    course: Mapped[str] = mapped_column(String(64))
    username: Mapped[str] = mapped_column(String(255))
    path: Mapped[str] = mapped_column(Text)
    by: Mapped[str] = mapped_column(String(255))
    at: Mapped[float] = mapped_column(Float)
    done_at: Mapped[float | None] = mapped_column(Float, nullable=True)
    message: Mapped[str] = mapped_column(Text, default="")
    __table_args__ = (Index("course_orders_by_person", "hub", "course", "username"),)


class CounterRow(Base):
    """Numbers of a hub that only grow: arrivals, changes, what pages show, time."""

    __tablename__ = "counters"
    hub: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(16), primary_key=True)
    value: Mapped[float] = mapped_column(Float)


class HubSettingsRow(Base):
    """What a hub says of its own settings, for pages and commands: they do not read them."""

    __tablename__ = "hub_settings"
    hub: Mapped[str] = mapped_column(String(64), primary_key=True)
    # The policy's ``class_seats_share``, 0 to 1.
    class_share: Mapped[float] = mapped_column(Float)


class EventRow(Base):
    """One entry of a start's journal."""

    __tablename__ = "journal"
    start_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    seq: Mapped[int] = mapped_column(Integer, primary_key=True)
    at: Mapped[float] = mapped_column(Float)
    kind: Mapped[str] = mapped_column(String(16))
    data: Mapped[str] = mapped_column(Text)


class ImageRow(Base):
    """An image as it was scanned; see ``core.catalog.Image``."""

    __tablename__ = "images"
    hub: Mapped[str] = mapped_column(String(64), primary_key=True)
    reference: Mapped[str] = mapped_column(String(512), primary_key=True)
    # The engine's id of it: a reference may come to mean another image.
    image_id: Mapped[str] = mapped_column(String(128))
    facts: Mapped[dict[str, Any]] = mapped_column(JSON)
    scanned_at: Mapped[float] = mapped_column(Float)
    by: Mapped[str] = mapped_column(String(255))
