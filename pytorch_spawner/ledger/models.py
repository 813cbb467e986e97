"""Tables of the ledger. Times are Unix seconds (UTC); ids are UUID4 in hex.

The rule that no GPU is held twice is the primary key of ``holdings``, so it holds whatever process
writes, and after any crash.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, Float, ForeignKey, Index, Integer, String, Text
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


class HoldingRow(Base):
    """One GPU (or one slot of it) that is held now; the row goes when the lease is released."""

    __tablename__ = "holdings"
    hub: Mapped[str] = mapped_column(String(64), primary_key=True)
    gpu: Mapped[str] = mapped_column(String(160), primary_key=True)
    slot: Mapped[int] = mapped_column(Integer, primary_key=True, default=0)
    lease_id: Mapped[str] = mapped_column(ForeignKey("leases.id"), index=True)


class EventRow(Base):
    """One entry of a start's journal."""

    __tablename__ = "journal"
    start_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    seq: Mapped[int] = mapped_column(Integer, primary_key=True)
    at: Mapped[float] = mapped_column(Float)
    kind: Mapped[str] = mapped_column(String(16))
    data: Mapped[str] = mapped_column(Text)
