"""What a change of grants means for people, as sentences. Pure.

"ana: 1 whole GPU on pool a100 (was: nothing)"; "3 students of cv: priority 5 (was: 10)". People to
whom the same happens share one sentence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Final

from pytorch_spawner.core.gpus import Inventory
from pytorch_spawner.core.grants import Grant, GrantBook, count_of, hours

_NAMED: Final = 3
_MOMENTS: Final = 4
_LONGEST: Final = 40


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a GPU now: it stays theirs until their server ends, whatever is pinned."""

    gpu: str
    username: str


def effects(
    before: Sequence[Grant],
    after: Sequence[Grant],
    people: Mapping[str, Sequence[str]],
    inventory: Inventory,
    holders: Iterable[Holder],
    now: float,
) -> list[str]:
    """Say what would be different for whom.

    Args:
        before: All grants of the lab.
        after: All grants after the change.
        people: Groups by name of everybody the hub knows; users whom only a grant names are added.
        inventory: The devices with the admin's decisions.
        holders: Who holds which GPU now.
        now: Unix time in seconds.

    Returns:
        One sentence for all to whom the same happens, those with the most people first; then what
        happens to GPUs that are in use; at most 40. What begins or ends later is told with its
        time.
    """
    old, new = frozenset(before), frozenset(after)
    dates = {date for one in old ^ new for date in (one.valid_from, one.valid_until)}
    later = sorted(date for date in dates if date is not None and date > now)
    holders = tuple(holders)
    said: list[str] = []
    for moment in (now, *later[:_MOMENTS]):
        ahead = "" if moment == now else f"From {_day(moment)}: "
        lines = _at(before, after, people, inventory, moment)
        lines += _taken(before, after, people, inventory, holders, moment)
        said += [ahead + line for line in lines if line not in said]
    if len(later) > _MOMENTS:
        said.append(f"What changes on {len(later) - _MOMENTS} later dates is not told here.")
    if len(said) > _LONGEST:
        said = [*said[:_LONGEST], f"And {len(said) - _LONGEST} more changes like these."]
    return said


class _Side:
    """The grants before a change or after it, at one moment."""

    def __init__(self, grants: Sequence[Grant], inventory: Inventory, moment: float) -> None:
        self._book = GrantBook(grants)
        self._inventory = inventory
        self._moment = moment
        self._reserved = self._book.reserved(moment)
        self._reached: dict[tuple[Grant, ...], frozenset[str]] = {}

    def of(self, person: str, groups: Sequence[str]) -> tuple[Grant, ...]:
        """What somebody may use, the first first."""
        return self._book.for_person(person, groups, self._moment)

    def reached(self, grants: tuple[Grant, ...]) -> frozenset[str]:
        """The devices that these grants are served from, but for those that others reserve."""
        if grants not in self._reached:
            self._reached[grants] = frozenset(
                gpu.uuid
                for gpu in self._inventory.gpus
                if gpu.slots > 0
                for grant in grants
                if (not grant.gpus or gpu.uuid in grant.gpus)
                and (not grant.pool or gpu.pool == grant.pool)
                and grant.id in self._reserved.get(gpu.uuid, (grant.id,))
            )
        return self._reached[grants]


def _at(
    before: Sequence[Grant],
    after: Sequence[Grant],
    people: Mapping[str, Sequence[str]],
    inventory: Inventory,
    moment: float,
) -> list[str]:
    old, new = _Side(before, inventory, moment), _Side(after, inventory, moment)
    named: dict[str, Sequence[str]] = {
        one.subject: () for one in (*before, *after) if one.to == "user"
    }
    groups = {**named, **people}
    known: dict[tuple[tuple[Grant, ...], tuple[Grant, ...]], str] = {}
    by_sentence: dict[str, list[str]] = {}
    for person, theirs in groups.items():
        both = old.of(person, theirs), new.of(person, theirs)
        if both not in known:
            reached = old.reached(both[0]), new.reached(both[1])
            known[both] = _said(*both, *reached, inventory)
        if known[both]:
            by_sentence.setdefault(known[both], []).append(person)
    ordered = sorted(by_sentence.items(), key=lambda item: (-len(item[1]), item[1][0]))
    return [f"{_who(names, groups)}: {said}" for said, names in ordered]


def _said(
    was: tuple[Grant, ...],
    becomes: tuple[Grant, ...],
    reached: frozenset[str],
    reaches: frozenset[str],
    inventory: Inventory,
) -> str:
    """What is different for one person: in words, or in what is left; "" for nothing."""
    said = _difference(was, becomes, inventory)
    if becomes and reached and not reaches:
        # Whatever the grants say, others reserve all of it.
        lost = "no GPU is left for it" if said else "no GPU is left that they may use"
        return f"{said}, but {lost}" if said else f"{lost} (was: {_some(reached, inventory)})"
    if said or reached == reaches:
        return said
    return f"served from {_some(reaches, inventory)} (was: {_some(reached, inventory)})"


def _some(uuids: frozenset[str], inventory: Inventory) -> str:
    if len(uuids) > _NAMED:
        return f"{len(uuids)} GPUs"
    names = [_gpu(gpu.uuid, inventory) for gpu in inventory.gpus if gpu.uuid in uuids]
    return " and ".join(names) or "no GPU"


def _difference(was: Sequence[Grant], becomes: Sequence[Grant], inventory: Inventory) -> str:
    """Empty where nobody would notice: the same words under another id."""
    old, new = _gets(was, inventory), _gets(becomes, inventory)
    if old == new:
        return ""
    bare = [[_what(one, inventory) for one in grants] for grants in (was, becomes)]
    if bare[0] == bare[1] and len(was) == 1:
        # The same GPUs; only what is said of them differs.
        terms = [_terms(grants[0]) for grants in (was, becomes)]
        kept = [one for one in terms[1] if one not in terms[0]]
        lost = [one for one in terms[0] if one not in terms[1]]
        return f"{', '.join(kept) or 'no limit'} (was: {', '.join(lost) or 'no limit'})"
    return f"{new} (was: {old})"


def _gets(grants: Sequence[Grant], inventory: Inventory) -> str:
    parts = []
    for grant in grants:
        terms = [one for one in _terms(grant) if one != "priority 0"]
        parts.append(", ".join([_what(grant, inventory), *terms]))
    return "; else ".join(parts) or "nothing"


def _what(grant: Grant, inventory: Inventory) -> str:
    if grant.gpus:
        names = " and ".join(_gpu(uuid, inventory) for uuid in grant.gpus)
        part = "" if grant.count >= len(grant.gpus) else f"{grant.count} of "
        how = {"any": "", "whole": ", whole", "slot": ", a slot"}.get(
            grant.share, f", {grant.share}"
        )
        return f"{part}{names}{how}, reserved for them alone"
    what = count_of(grant.count, grant.share)
    if grant.share == "whole":
        what = what.replace(" GPU", " whole GPU")
    return what + (f" on pool {grant.pool}" if grant.pool else "")


def _gpu(uuid: str, inventory: Inventory) -> str:
    gpu = next((one for one in inventory.gpus if one.uuid == uuid), None)
    if gpu is None:
        return uuid
    return f"GPU {gpu.index} ({gpu.name})" if gpu.name else f"GPU {gpu.index}"


def _terms(grant: Grant) -> list[str]:
    terms = [f"priority {grant.priority}"]
    if grant.weekly_gpu_hours is not None:
        terms.append(f"{hours(grant.weekly_gpu_hours)} h a week")
    if grant.max_lease_s is not None:
        terms.append(f"at most {hours(grant.max_lease_s / 3600)} h at a time")
    if grant.valid_until is not None:
        terms.append(f"until {_day(grant.valid_until)}")
    if grant.images:
        terms.append(f"with {', '.join(grant.images)}")
    return terms


def _day(moment: float) -> str:
    return f"{datetime.fromtimestamp(moment, timezone.utc):%Y-%m-%d %H:%M} UTC"


def _who(names: Sequence[str], groups: Mapping[str, Sequence[str]]) -> str:
    if len(names) <= _NAMED:
        return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    if len(names) == len(groups):
        return f"all {len(names)} people"
    shared = set(groups[names[0]]).intersection(*(groups[name] for name in names[1:]))
    of = f" of {min(shared)}" if shared else ""
    return f"{len(names)} people{of}"


def _taken(
    before: Sequence[Grant],
    after: Sequence[Grant],
    people: Mapping[str, Sequence[str]],
    inventory: Inventory,
    holders: Sequence[Holder],
    moment: float,
) -> list[str]:
    """GPUs that get reserved while somebody holds them for whom they are not."""
    was = GrantBook(before).reserved(moment)
    becomes = GrantBook(after).reserved(moment)
    by_id = {grant.id: grant for grant in after}
    said = []
    for holder in holders:
        ids = becomes.get(holder.gpu)
        if not ids or ids == was.get(holder.gpu):
            continue
        subjects = {(by_id[one].to, by_id[one].subject) for one in ids}
        theirs = {("everyone", ""), ("user", holder.username)}
        theirs |= {("group", group) for group in people.get(holder.username, ())}
        if subjects.isdisjoint(theirs):
            gpu = _gpu(holder.gpu, inventory)
            said.append(f"{holder.username} holds {gpu} and keeps it until their server stops.")
    return said
