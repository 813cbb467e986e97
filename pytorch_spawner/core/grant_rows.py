"""Grants as somebody writes them, in a file, by the API or in the configuration.

They are read whole or refused whole; every fault is named, not only the first, so that a file is
right after one correction.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Annotated, Any, Final, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from pytorch_spawner.core.gpus import GPU_UUID, MIG_PROFILE, GpuUuid, Inventory
from pytorch_spawner.core.grants import MAX_COUNT, PRIORITIES, Grant
from pytorch_spawner.errors import BadRequest, Problem

# pydantic's kinds of error, for somebody who fills in a form.
_WORDS: Final[Mapping[str, str]] = {
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "finite_number": "a number",
    "string_type": "a text",
    "string_too_long": "at most {max_length} characters",
    "string_too_short": "not empty",
    "list_type": "a list",
    "too_long": "at most {max_length} of them",
    "missing": "it is missing",
}
# Their ids begin with the source, so that no admin's grant ever takes the place of one of these.
_PREFIXED: Final = ("config", "group")
_MOST_FAULTS: Final = 100
# Part of an address of the API, where ids stand, too.
_RESERVED_IDS: Final = frozenset({"preview"})


def _moment(said: Any) -> Any:
    """A date ("2026-10-01", midnight UTC), a time with its zone, or Unix seconds."""
    if isinstance(said, bool):
        raise ValueError("not a date")  # noqa: TRY004 (pydantic collects ValueError)
    if isinstance(said, str):
        try:
            moment = datetime.fromisoformat(said.strip().replace("Z", "+00:00"))
        except ValueError as error:
            raise ValueError("not a date: write 2026-10-01 or 2026-10-01T09:00:00+02:00") from error
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=timezone.utc)
        return moment.timestamp()
    if isinstance(said, datetime):
        return (said if said.tzinfo else said.replace(tzinfo=timezone.utc)).timestamp()
    if hasattr(said, "isoformat"):  # YAML reads 2026-10-01 as a date
        return _moment(said.isoformat())
    if isinstance(said, float) and not math.isfinite(said):
        raise ValueError("not a date")
    return said


_LATEST_S: Final = 1e11
Moment = Annotated[
    float,
    BeforeValidator(_moment),
    Field(ge=0, le=_LATEST_S),
    # What may be written; the validator makes Unix seconds of all of it.
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "format": "date"},
                {"type": "string", "format": "date-time"},
                {"type": "number", "minimum": 0, "maximum": _LATEST_S},
            ]
        }
    ),
]
_Name = Annotated[str, Field(max_length=255)]


class GrantSpec(BaseModel):
    """A grant as somebody writes it: file, API or configuration. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", strict=False)

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:-]{1,64}$")] | None = None
    to: Literal["user", "group", "everyone"] = "everyone"
    subject: _Name = ""
    pool: _Name = ""
    gpus: Annotated[list[str], Field(max_length=64)] = []
    count: Annotated[int, Field(ge=1, le=MAX_COUNT)] = 1
    share: str = "any"
    priority: Annotated[int, Field(ge=PRIORITIES[0], le=PRIORITIES[1])] = 0
    weekly_gpu_hours: Annotated[float, Field(gt=0, le=100_000, allow_inf_nan=False)] | None = None
    max_lease_s: Annotated[int, Field(ge=60, le=366 * 24 * 3600)] | None = None
    valid_from: Moment | None = None
    valid_until: Moment | None = None
    images: Annotated[list[_Name], Field(max_length=64)] = []
    # Written by us when grants are listed or exported; read back and forgotten.
    source: Literal["ledger", "config", "group"] | None = None

    @field_validator("subject", "pool")
    @classmethod
    def _plain(cls, value: str) -> str:
        value = value.strip()
        if not value.isprintable():
            raise ValueError("only printable characters")
        return value

    @field_validator("images")
    @classmethod
    def _references(cls, value: list[str]) -> list[str]:
        for image in value:
            if not image or not image.isprintable() or any(one in image for one in " ,\u00a0"):
                raise ValueError(f"{image[:60]!r} is no image reference")
        return value

    @field_validator("count", "priority", "max_lease_s", mode="before")
    @classmethod
    def _no_truth(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise ValueError("a number, not true or false")  # noqa: TRY004
        return value

    @field_validator("share")
    @classmethod
    def _known_share(cls, value: str) -> str:
        is_mig = value.startswith("mig:") and MIG_PROFILE.fullmatch(value[4:])
        if value not in ("any", "whole", "slot") and not is_mig:
            raise ValueError('"any", "whole", "slot" or "mig:<profile>", such as mig:1g.10gb')
        return value

    @field_validator("gpus")
    @classmethod
    def _uuids(cls, value: list[str]) -> list[str]:
        for uuid in value:
            if not GPU_UUID.fullmatch(uuid):
                raise ValueError(f"{uuid[:60]!r} is not of the form GPU-... or MIG-...")
        if len(set(value)) != len(value):
            raise ValueError("names one GPU twice")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> GrantSpec:
        if self.to == "everyone" and self.subject:
            raise ValueError('a grant to everyone has no subject; say to: "user" or "group"')
        if self.to != "everyone" and not self.subject:
            raise ValueError(f"a grant to a {self.to} names the {self.to} in subject")
        if self.gpus and self.pool:
            raise ValueError("either gpus or pool, not both")
        if self.gpus and self.count > len(self.gpus):
            raise ValueError(f"count is {self.count}, of {len(self.gpus)} pinned")
        if (
            self.valid_from is not None
            and self.valid_until is not None
            and self.valid_until <= self.valid_from
        ):
            raise ValueError("valid_until is not after valid_from")
        return self


@dataclass(frozen=True, slots=True)
class Known:
    """What names a grant may use; None means that names of that sort are not checked."""

    users: frozenset[str] | None = None
    groups: frozenset[str] | None = None
    inventory: Inventory | None = None


def parse_grants(
    rows: Sequence[Any],
    known: Known,
    *,
    source: str = "ledger",
    default_count: int = 1,
    lines: Sequence[int] = (),
) -> tuple[Grant, ...]:
    """Read a whole set of grants, or refuse it whole.

    Args:
        rows: One mapping a grant; see ``GrantSpec`` for the keys.
        known: Names to check against.
        source: Where they were written.
        default_count: ``count`` of a row that names none.
        lines: The rows' lines in the file they come from; empty where they come from none.

    Returns:
        The grants, in the order given; a row without an id gets "g<place>". Ids of the sources
        "config" and "group" get the source in front: "config:g1".

    Raises:
        BadRequest: Anything is wrong; the message lists every fault with its row.
    """
    faults: list[str] = []
    problems: list[Problem] = []
    grants: list[Grant] = []
    for place, row in enumerate(rows):
        number = lines[place] if lines else place + 1
        where = f"{'line' if lines else 'grant'} {number}"
        if isinstance(row, Mapping) and isinstance(row.get("id"), str):
            where += f" ({row['id'][:64]})"
        found: list[Problem] = []
        try:
            spec = GrantSpec.model_validate(row)
        except ValidationError as error:
            found = [problem_of(one, number) for one in error.errors()]
        else:
            grant = _grant(spec, place, source, default_count)
            grants.append(grant)
            found = [replace(one, row=number) for one in _unknown(grant, source, known)]
        problems += found
        faults += [f"{where}: {_said(one)}" for one in found]
    clashes = conflicts(grants)
    faults += clashes
    problems += [Problem(clash) for clash in clashes]
    if faults:
        text = "The grants are not usable: " + "; ".join(faults) + "."
        raise BadRequest(text, faults=faults, problems=problems)
    return tuple(grants)


def problem_of(error: Mapping[str, Any], row: int | None = None) -> Problem:
    """One of pydantic's errors as a problem with its field."""
    where = ".".join(str(part) for part in error["loc"])[:60]
    if error["type"] == "extra_forbidden":
        return Problem(f"unknown key {where}", where, row)
    words = _WORDS.get(error["type"])
    if words is not None:
        return Problem(words.format(**error.get("ctx", {})), where, row)
    return Problem(str(error["msg"]).removeprefix("Value error, "), where, row)


def _said(problem: Problem) -> str:
    if not problem.field or problem.field in problem.message:
        return problem.message
    return f"{problem.field}: {problem.message}"


def _grant(spec: GrantSpec, place: int, source: str, default_count: int) -> Grant:
    said_count = "count" in spec.model_fields_set
    return Grant(
        id=(f"{source}:" if source in _PREFIXED else "") + (spec.id or f"g{place + 1}"),
        to=spec.to,
        subject=spec.subject,
        pool=spec.pool,
        gpus=tuple(GpuUuid(uuid) for uuid in spec.gpus),
        count=spec.count if said_count else (len(spec.gpus) or default_count),
        share=spec.share,
        priority=spec.priority,
        weekly_gpu_hours=spec.weekly_gpu_hours,
        max_lease_s=spec.max_lease_s,
        valid_from=spec.valid_from,
        valid_until=spec.valid_until,
        images=tuple(spec.images),
        source=source,
    )


def _unknown(grant: Grant, source: str, known: Known) -> Iterable[Problem]:
    if source not in _PREFIXED and grant.id.startswith(tuple(f"{one}:" for one in _PREFIXED)):
        yield Problem("an id that begins so belongs to the configuration or a group", "id")
    if grant.id in _RESERVED_IDS:
        yield Problem("this id is taken by the API", "id")
    if grant.to == "user" and known.users is not None and grant.subject not in known.users:
        yield Problem(f"there is no user {grant.subject[:60]!r}", "subject")
    if grant.to == "group" and known.groups is not None and grant.subject not in known.groups:
        yield Problem(f"there is no group {grant.subject[:60]!r}", "subject")
    if known.inventory is None:
        return
    if grant.pool and grant.pool not in known.inventory.pools:
        pools = ", ".join(known.inventory.pools) or "none"
        yield Problem(f"there is no pool {grant.pool[:60]!r}; there is {pools}", "pool")
    for uuid in grant.gpus:
        if known.inventory.get(uuid) is None:
            yield Problem(f"there is no GPU {uuid}", "gpus")


def conflicts(grants: Sequence[Grant]) -> list[str]:
    """Ids used twice, and GPUs that two people are to have at the same time."""
    faults = []
    seen: set[str] = set()
    for grant in grants:
        if grant.id in seen:
            faults.append(f"two grants have the id {grant.id}")
        seen.add(grant.id)
    by_gpu: dict[GpuUuid, list[Grant]] = {}
    for grant in grants:
        for uuid in grant.gpus:
            by_gpu.setdefault(uuid, []).append(grant)
    for gpu, pinned in by_gpu.items():
        for one, other in _clashes(pinned):
            faults.append(
                f"{gpu} is pinned to {one.whose} ({one.id}) and to {other.whose} ({other.id}) "
                "at the same time"
            )
            if len(faults) >= _MOST_FAULTS:
                # One GPU filled down a table of thousands is a million pairs.
                return [*faults, "and more like these"]
    return faults


def _clashes(pinned: Sequence[Grant]) -> Iterable[tuple[Grant, Grant]]:
    """Pairs that name different people at the same time."""
    for place, one in enumerate(pinned):
        for other in pinned[place + 1 :]:
            if (one.to, one.subject) != (other.to, other.subject) and _overlap(one, other):
                yield one, other


def _overlap(one: Grant, other: Grant) -> bool:
    starts = max(one.valid_from or 0.0, other.valid_from or 0.0)
    ends = min(
        math.inf if one.valid_until is None else one.valid_until,
        math.inf if other.valid_until is None else other.valid_until,
    )
    return starts < ends
