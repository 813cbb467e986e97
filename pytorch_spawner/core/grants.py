"""Who may have which GPU: grants, their precedence, and what a person is told of them.

Precedence, in one place (``GrantBook.for_person``):

1. Only grants that are valid now and name the person, one of the person's groups, or everyone.
2. A grant to the person comes before one to a group, and that before one to everyone.
3. Among those, the higher priority comes first, then the larger count, then the id.

A start is served through the first of these grants that covers what it asks for (``covers``) and
has room; a grant therefore never takes away what a later one gives. A GPU that a valid grant pins
is reserved: it is given through that grant alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any, Final

from pytorch_spawner.core.gpus import GpuUuid, Inventory

PRIORITIES: Final = (-100, 100)
# No server holds more; as a grant's count it sets no limit of its own.
MAX_COUNT: Final = 64
_ORDER: Final = {"user": 0, "group": 1, "everyone": 2}
_WEEK_S: Final = 7 * 24 * 3600
# 1970-01-01 was a Thursday, so the first Monday began four days later.
_FIRST_MONDAY_S: Final = 4 * 24 * 3600


@dataclass(frozen=True, slots=True)
class Grant:
    """An admin's word on who gets what.

    Attributes:
        id: Unique among a hub's grants.
        to: "user", "group" or "everyone".
        subject: Name of the user or group; "" for everyone.
        pool: Only GPUs of this pool; "" for any.
        gpus: Only these GPUs, which are then reserved for this grant; empty for any of the pool.
        count: Most GPUs (or slots, or MIG instances) that one person holds through it, 1 to
            ``MAX_COUNT``, which means any number.
        share: "any", "whole", "slot" or "mig:<profile>".
        priority: -100 to 100; the higher is served first.
        weekly_gpu_hours: GPU-hours a person may hold a week (Monday to Sunday, UTC); a slot of N
            counts 1/N. None for no limit.
        max_lease_s: Longest time one start may hold; None leaves it to the lab's own limit.
        valid_from: Unix time in seconds; None for always.
        valid_until: Unix time in seconds, exclusive; a lease ends then at the latest.
        images: Image references it may be used with, each exactly as it is started; empty for
            all.
        source: Where it was written: "ledger", "config" or "group" (a JupyterHub group's property).
    """

    id: str
    to: str = "everyone"
    subject: str = ""
    pool: str = ""
    gpus: tuple[GpuUuid, ...] = ()
    count: int = 1
    share: str = "any"
    priority: int = 0
    weekly_gpu_hours: float | None = None
    max_lease_s: int | None = None
    valid_from: float | None = None
    valid_until: float | None = None
    images: tuple[str, ...] = ()
    source: str = "ledger"

    def is_valid(self, now: float) -> bool:
        """Whether it is in force at this time."""
        return (self.valid_from is None or self.valid_from <= now) and (
            self.valid_until is None or now < self.valid_until
        )

    @property
    def whose(self) -> str:
        """Whom it names, for a sentence."""
        return f"{self.to} {self.subject}" if self.subject else "everyone"

    def as_json(self) -> dict[str, Any]:
        """The grant as files and the API hold it; what is not set is left out, but for the id."""
        said = asdict(self)
        kept = {
            key: value
            for key, value in said.items()
            if key in ("id", "to", "count", "share", "source")
            or (key.startswith("valid_") and value is not None)
            or value not in (None, "", (), 0)
        }
        for key in ("gpus", "images"):
            if key in kept:
                kept[key] = list(kept[key])
        for key in ("valid_from", "valid_until"):
            if key in kept:
                kept[key] = datetime.fromtimestamp(kept[key], timezone.utc).isoformat()
        return kept


# -- looking up ----------------------------------------------------------------------------------


class GrantBook:
    """All grants of a hub, ready to be asked about a person; immutable, made once per change."""

    def __init__(
        self, grants: Iterable[Grant], own: Mapping[str, Mapping[str, Grant]] | None = None
    ) -> None:
        """Make the book.

        Args:
            grants: All of them.
            own: What some of them are for one person alone, by user and id.
        """
        self.grants = tuple(grants)
        self._own = own or {}
        self.with_hours = frozenset(
            grant.id for grant in self.grants if grant.weekly_gpu_hours is not None
        )
        self._by_subject: dict[tuple[str, str], list[Grant]] = {}
        self._of_person: dict[tuple[str, tuple[str, ...]], tuple[tuple[Grant, ...], bool]] = {}
        for grant in sorted(self.grants, key=_precedence):
            self._by_subject.setdefault((grant.to, grant.subject), []).append(grant)

    def for_person(self, username: str, groups: Sequence[str], now: float) -> tuple[Grant, ...]:
        """The grants that a person has now, the first to be used first (see the module's text)."""
        # The same for all of the same groups whom no grant names; asked for in every decision.
        key = (username if self.has_personal(username) else "", tuple(groups))
        known = self._of_person.get(key)
        if known is None:
            mine = list(self._by_subject.get(("user", username), ()))
            ours = [one for group in groups for one in self._by_subject.get(("group", group), ())]
            if len(groups) > 1:
                ours.sort(key=_precedence)
            found = (*mine, *ours, *self._by_subject.get(("everyone", ""), ()))
            if (own := self._own.get(username)) is not None:
                found = tuple(sorted((own.get(one.id, one) for one in found), key=_precedence))
            is_dated = any(
                one.valid_from is not None or one.valid_until is not None for one in found
            )
            known = self._of_person[key] = (found, is_dated)
        found, is_dated = known
        return tuple(one for one in found if one.is_valid(now)) if is_dated else found

    def has_personal(self, username: str) -> bool:
        """Whether any grant names this very user, or is another for them than for everybody."""
        return ("user", username) in self._by_subject or username in self._own

    def reserved(self, now: float) -> dict[str, frozenset[str]]:
        """GPUs that valid grants pin: UUID -> ids of the grants through which alone it is given."""
        found: dict[str, set[str]] = {}
        for grant in self.grants:
            if grant.gpus and grant.is_valid(now):
                for uuid in grant.gpus:
                    found.setdefault(uuid, set()).add(grant.id)
        return {uuid: frozenset(ids) for uuid, ids in found.items()}


def _precedence(grant: Grant) -> tuple[int, int, int, str]:
    return _ORDER[grant.to], -grant.priority, -grant.count, grant.id


def covers(grant: Grant, *, gpus: int, share: str, pool: str, image: str) -> str:
    """Say why a grant does not serve a request, whatever is free; "" when it does.

    Args:
        grant: The grant.
        gpus: How many are asked for, >= 1.
        share: "any", "whole", "slot" or "mig:<profile>".
        pool: Name of a pool; "" for any.
        image: Reference of the image to be started.
    """
    if gpus > grant.count:
        return f"it gives {count_of(grant.count, grant.share)}, not {gpus}"
    if share not in ("any", grant.share) and grant.share != "any":
        return f"it gives {share_name(grant.share)}, not {share_name(share)}"
    if pool and grant.pool and pool != grant.pool:
        return f"it is for the pool {grant.pool}, not {pool}"
    if grant.images and image not in grant.images:
        return f"it is not for this image, but for {', '.join(grant.images)}"
    return ""


def share_name(share: str) -> str:
    """A share in words."""
    return {
        "any": "a GPU or slot",
        "whole": "a whole GPU",
        "slot": "a slot",
        "none": "no GPU",
    }.get(share, f"a MIG instance {share.removeprefix('mig:')}")


def count_of(count: int, share: str) -> str:
    """A number of GPUs, slots or instances in words: "1 GPU", "2 slots"."""
    if share.startswith("mig:"):
        return f"{count} MIG {share[4:]} instance" + ("" if count == 1 else "s")
    noun = "slot" if share == "slot" else "GPU"
    if count >= MAX_COUNT:
        return f"any number of {noun}s"
    return f"{count} {noun}" + ("" if count == 1 else "s")


# -- time and hours ------------------------------------------------------------------------------


def week_start(now: float) -> float:
    """Unix time of the last Monday, 00:00 UTC."""
    return now - (now - _FIRST_MONDAY_S) % _WEEK_S


def next_week(now: float) -> float:
    """Unix time of the next Monday, 00:00 UTC."""
    return week_start(now) + _WEEK_S


def hours(value: float) -> str:
    """Hours without needless zeros: "6.5", "20"."""
    return f"{value:.1f}".removesuffix(".0")


def explain(
    person: str, grants: Sequence[Grant], inventory: Inventory, used_h: Mapping[str, float]
) -> list[str]:
    """What a person has, one sentence a grant, the first to be used first.

    Args:
        person: Name for the sentence.
        grants: The person's grants as ``GrantBook.for_person`` orders them.
        inventory: For the memory of a slot.
        used_h: GPU-hours used this week, by grant id.

    Returns:
        Such as "ana gets 1 slot of 20 GiB on pool teaching, priority 5, because group cv; 6.5 of
        20 h left this week."; one sentence saying that there is none where there is none.
    """
    if not grants:
        return [
            f"{person} gets no GPU, because no grant names {person}, one of their groups, or "
            "everyone. An admin can add one."
        ]
    return [explain_one(person, grant, inventory, used_h.get(grant.id, 0.0)) for grant in grants]


def explain_one(person: str, grant: Grant, inventory: Inventory, used_h: float) -> str:
    """One grant as a sentence; see ``explain``."""
    what = count_of(grant.count, grant.share)
    if grant.share == "slot" and (size := _slot_size(grant, inventory)):
        what += f" of {size}"
    if grant.gpus:
        where = f" on {', '.join(grant.gpus)}"
    else:
        where = f" on pool {grant.pool}" if grant.pool else ""
    most = "at most " if 1 < grant.count < MAX_COUNT else ""
    why = "as everyone does" if grant.to == "everyone" else f"because {grant.whose}"
    text = f"{person} gets {most}{what}{where}, priority {grant.priority}, {why}"
    if grant.weekly_gpu_hours is not None:
        left = max(0.0, grant.weekly_gpu_hours - used_h)
        text += f"; {hours(left)} of {hours(grant.weekly_gpu_hours)} h left this week"
    if grant.max_lease_s is not None:
        text += f"; at most {hours(grant.max_lease_s / 3600)} h at a time"
    if grant.valid_until is not None:
        day = datetime.fromtimestamp(grant.valid_until, timezone.utc)
        text += f"; until {day:%Y-%m-%d %H:%M} UTC"
    if grant.images:
        text += f"; with {', '.join(grant.images)}"
    return text + "."


def _slot_size(grant: Grant, inventory: Inventory) -> str:
    sizes = {
        gpu.slot_memory_mib
        for gpu in inventory.gpus
        if gpu.slots > 1
        and (not grant.pool or gpu.pool == grant.pool)
        and (not grant.gpus or gpu.uuid in grant.gpus)
    } - {None}
    if not sizes:
        return ""
    low, high = min(filter(None, sizes)), max(filter(None, sizes))
    low, high = round(low / 1024), round(high / 1024)
    return f"{low} GiB" if low == high else f"{low} to {high} GiB"
