"""What the API answers about servers: leases, journals, and what their agents report."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pytorch_spawner.lab.answers.common import Answer


class Lease(Answer):
    """What a running server holds."""

    id: str
    start: str
    user: str
    server: str
    gpus: list[str]
    slots: list[int | None]
    request: dict[str, Any]
    grant: str
    since: float
    until: float | None
    kept_until: float | None


class Leases(Answer):
    """All leases that one may see."""

    leases: list[Lease]


class Stopping(Answer):
    """The hub stops it."""

    stopping: bool
    change: int


class Restarting(Answer):
    """Once it is stopped, the address that starts it again; until then, what to ask (GET)."""

    start_url: str | None
    poll: str | None


class Event(Answer):
    """One entry of a journal."""

    v: int
    seq: int
    at: float
    kind: str
    data: dict[str, Any]


class Journal(BaseModel):
    """A journal as a list."""

    model_config = ConfigDict(json_schema_extra={"type": "array"})


class Report(BaseModel):
    """What an agent sends; see docs/reference/events.md."""

    v: Literal[1]
    start: str = ""
    events: Annotated[list[dict[str, Any]], Field(max_length=64)]


class Accepted(Answer):
    """How many events were written, and the number of the last."""

    accepted: int
    seq: int | None


class CourseOrder(Answer):
    """One file of a person's copy of a course that is to be as the course has it."""

    id: str
    path: str


class CourseOrders(Answer):
    """The open orders, the oldest first."""

    orders: list[CourseOrder]
