"""``api/log`` and ``api/usage``: who changed what, taking it back, and who used how much.

Thin: scope, parse, call, shape.
"""

from __future__ import annotations

import asyncio
import csv
import io
from collections.abc import Iterable
from datetime import date, datetime, timedelta, timezone
from typing import Final

from pytorch_spawner.core.usage_report import BY, MAX_DAYS, Row, days_between, summarise
from pytorch_spawner.errors import ChangedMeanwhile, Problem
from pytorch_spawner.lab import views
from pytorch_spawner.lab.handlers import ApiHandler, refused

# A page with more says no more; the table has all of them.
MAX_ROWS: Final = 200


class Log(ApiHandler):
    """``api/log``."""

    async def get(self) -> None:
        """The newest lines, or those before a given one; for viewers."""
        await self.require_viewer()
        _, limit = self.page()
        hub, ledger = self.lab.settings.hub_id, self.lab.ledger
        inventory = await asyncio.to_thread(ledger.read_inventory, hub)
        rows = await asyncio.to_thread(
            ledger.changes,
            hub,
            limit + 1,
            before=self.whole("before", 0, 2**62, None),
            search=views.uuid_of(self.get_query_argument("search", "")[:255], inventory),
        )
        following = rows[limit - 1].id if len(rows) > limit else None
        said = [views.describe_change(one, inventory) for one in rows[:limit]]
        self.send_json({"rows": said, "next": following})


class Undo(ApiHandler):
    """``api/log/<id>/undo``."""

    async def post(self, number: str) -> None:
        """Take one change back, where nothing changed it again since."""
        model = await self.require_admin()
        hub, ledger = self.lab.settings.hub_id, self.lab.ledger
        try:
            change = await asyncio.to_thread(ledger.undo, hub, int(number), model["name"])
        except ChangedMeanwhile as error:
            inventory = await asyncio.to_thread(ledger.read_inventory, hub)
            said = views.name_gpus(error.public_message, inventory)
            raise ChangedMeanwhile(said, now=error.now) from None
        await self.lab.feed.look()
        self.send_json({"change": change})


class Usage(ApiHandler):
    """``api/usage``: GPU-hours held and busy, by day."""

    async def get(self) -> None:
        """For viewers; ``?format=csv`` for a spreadsheet."""
        await self.require_viewer()
        first, last, by = self._asked()
        days = days_between(first, last)
        used = await asyncio.to_thread(
            self.lab.ledger.used, self.lab.settings.hub_id, days[0], days[-1]
        )
        rows = await asyncio.to_thread(summarise, *used, days, by)
        if self.get_query_argument("format", "") == "csv":
            self.send_csv(f"usage-{by}-{first}-{last}.csv", _as_csv(rows, days, by))
            return
        state = await self.lab.board.state()
        names: dict[str, str] = {
            one.uuid: f"GPU {one.index} {one.name}" for one in state.inventory.gpus
        }
        more = len(rows) - MAX_ROWS
        busy = [row.all_busy_s for row in rows if row.all_busy_s is not None]
        self.send_json(
            {
                "first": str(first),
                "last": str(last),
                "by": by,
                "days": [_day(day) for day in days],
                "rows": [
                    {
                        "key": row.key,
                        "label": names.get(row.key, row.key) or "no course",
                        "held_h": _hours(row.all_held_s),
                        "busy_h": _hours(row.all_busy_s),
                        "days": [
                            {"held_h": _hours(held), "busy_h": _hours(one)}
                            for held, one in zip(row.held_s, row.busy_s, strict=True)
                        ],
                    }
                    for row in rows[:MAX_ROWS]
                ],
                "sums": [
                    {
                        "held_h": _hours(sum(row.held_s[place] for row in rows)),
                        "busy_h": _hours(_sum_known(row.busy_s[place] for row in rows)),
                    }
                    for place in range(len(days))
                ],
                "total": {
                    "held_h": _hours(sum(row.all_held_s for row in rows)),
                    "busy_h": _hours(sum(busy)) if busy else None,
                },
                "note": (
                    "Days are UTC. A slot of a GPU shared by N counts 1/N. Busy is what the GPU "
                    "itself reports, split among those who compute on it; who computes alone on a "
                    "shared GPU can be busy for longer than the slot counts."
                    + (f" {more} more are in the CSV and in the total." if more > 0 else "")
                ),
            }
        )

    def _asked(self) -> tuple[date, date, str]:
        today = datetime.fromtimestamp(self.lab.ledger.now(), timezone.utc).date()
        problems: list[Problem] = []

        def day(name: str, default: date) -> date:
            said = self.get_query_argument(name, "")
            try:
                return date.fromisoformat(said) if said else default
            except ValueError:
                problems.append(Problem("not a day: write 2026-11-01", name))
                return default

        last = day("last", today)
        # A day in the year 1 has no day before it.
        first = day("first", last - timedelta(13) if last.toordinal() > MAX_DAYS else last)
        by = self.get_query_argument("by", "user")
        if by not in BY:
            problems.append(Problem(f"one of {', '.join(BY)}", "by"))
        if not problems and not 0 <= (last - first).days < MAX_DAYS:
            problems.append(Problem(f"first to last is 1 to {MAX_DAYS} days", "last"))
        if not problems and not 1970 <= first.year <= last.year < 9999:
            problems.append(Problem("a day from 1970 on", "first"))
        if problems:
            raise refused(problems)
        return first, last, by


def _sum_known(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _day(day: float) -> str:
    return datetime.fromtimestamp(day, timezone.utc).date().isoformat()


def _hours(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds / 3600, 3)


def _as_csv(rows: list[Row], days: list[float], by: str) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["day", by, "held_h", "busy_h"])
    for row in rows:
        # A name that a spreadsheet would take for a formula.
        key = f"'{row.key}" if row.key.startswith(("=", "+", "-", "@", "\t", "\r")) else row.key
        for day, held, busy in zip(days, row.held_s, row.busy_s, strict=True):
            if held or busy:
                writer.writerow([_day(day), key, _hours(held), _hours(busy)])
    return text.getvalue()
