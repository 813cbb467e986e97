"""The GPU-hours that a grant gives a person each week: how long they last. Pure.

A week is Monday to Sunday, UTC. Hours of one week are of no use in another, so a lease is counted
in each week by itself.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from pytorch_spawner.core.grants import Grant, next_week, week_start
from pytorch_spawner.core.tickets import Usage

# A lease shorter than this is of no use to anybody: it is refused rather than given.
SHORTEST_LEASE_S: Final = 60.0


class _Row(NamedTuple):
    """A lease that uses hours: from when until when (None: it has no end), and how many an hour."""

    id: str
    start: float
    until: float | None
    weight: float

    def in_s(self, start: float, end: float) -> float:
        """GPU-seconds that it uses between two times; 0 where the first is not before the second.

        Where it has no end, it is taken to run on.
        """
        until = end if self.until is None else min(self.until, end)
        return self.weight * max(0.0, until - max(self.start, start))


class WeeklyHours:
    """What is left of everybody's weekly hours while one decision is made."""

    def __init__(self, usage: Usage, now: float) -> None:
        """Begin with what was used.

        Args:
            usage: Past use; running leases are in it up to now.
            now: Unix time in seconds.
        """
        self._week_h, self._now = usage.week_h, now
        self._held: dict[tuple[str, str], list[_Row]] = {}
        # Kept apart: what somebody may be given later takes nothing from who is served now.
        self._promised: dict[tuple[str, str], list[_Row]] = {}

    def hold(
        self, username: str, grant: str, lease: str, until: float | None, weight: float
    ) -> None:
        """A lease is held from now on.

        Args:
            username: Whose it is.
            grant: Id of the grant it was given through.
            lease: Its id.
            until: Unix time at which it ends at the latest; None for no limit.
            weight: GPU-hours that it uses an hour, > 0 (``gpu_share``).
        """
        row = _Row(lease, self._now, until, weight)
        self._held.setdefault((username, grant), []).append(row)

    def forget(self, username: str, grant: str, lease: str) -> None:
        """A kept lease is not held any more."""
        key = (username, grant)
        if key in self._held:
            self._held[key] = [row for row in self._held[key] if row.id != lease]

    def promise(self, username: str, grant: str, at: float, weight: float) -> None:
        """Somebody who waits is told that time; what comes behind it counts with it."""
        row = _Row("", at, None, weight)
        self._promised.setdefault((username, grant), []).append(row)

    def are_shared(self, username: str, grant: str, own: str = "") -> bool:
        """Whether other leases of the person use them as well; ``own`` is not among the others."""
        return any(row.id != own for row in self._held.get((username, grant), ()))

    def suffice(
        self, username: str, grant: Grant, weight: float, *, own: str = "", at: float | None = None
    ) -> bool:
        """Whether they last for a lease that is worth giving; see ``last_s``."""
        if grant.weekly_gpu_hours is None:
            return True
        key = (username, grant.id)
        if key not in self._held and key not in self._promised:  # as for most people
            # In a later week there is more.
            left_s = (grant.weekly_gpu_hours - self._week_h.get(key, 0.0)) * 3600
            if left_s >= SHORTEST_LEASE_S * weight:
                return True
        last_s = self.last_s(username, grant, weight, own=own, at=at)
        return last_s is None or last_s >= SHORTEST_LEASE_S

    def last_s(
        self, username: str, grant: Grant, weight: float, *, own: str = "", at: float | None = None
    ) -> float | None:
        """How long a lease may hold its devices, so that no week's hours are overspent.

        What the person's other leases will use before they end is not there to be used twice.
        Where one has no end, the rest is shared by weight. Hours that last to the end of the week
        are followed by those of the next one; a lease never reaches into a third week's.

        Args:
            username: Whose lease it would be.
            grant: The grant it would be given through.
            weight: GPU-hours that it would use an hour, > 0.
            own: Id of a kept lease that it would take the place of; "" for none.
            at: Unix time at which it would begin, now or later; None for now. What is promised to
                those ahead counts at a later time only.

        Returns:
            Seconds, >= 0; None where the grant sets no such limit.
        """
        if grant.weekly_gpu_hours is None:
            return None
        key = (username, grant.id)
        rows = [row for row in self._held.get(key, ()) if row.id != own]
        if at is not None:
            rows += self._promised.get(key, ())
        at = self._now if at is None else at
        monday, end = week_start(at), next_week(at)
        budget_s = grant.weekly_gpu_hours * 3600
        used_s = self._week_h.get(key, 0.0) * 3600 if monday <= self._now else 0.0
        open_ended = [row for row in rows if row.until is None]
        used_s += sum(row.in_s(monday, at) for row in open_ended)
        ending = [row for row in rows if row.until is not None]
        left_s = budget_s - used_s - sum(row.in_s(monday, end) for row in ending)
        rate = weight + sum(row.weight for row in open_ended)
        last_s = max(0.0, left_s) / rate
        if at + last_s < end:
            return last_s
        left_s = budget_s - sum(row.in_s(end, next_week(end)) for row in ending)
        return min(end + max(0.0, left_s) / rate, next_week(end)) - at
