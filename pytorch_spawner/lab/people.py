"""``api/people``: everyone, groups and users, with their grants and what they hold.

Thin: scope, read, shape. The list is searched and cut here, not on the page: a lab has thousands.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from pytorch_spawner.core.gpus import Inventory
from pytorch_spawner.core.grants import Grant, GrantBook, explain
from pytorch_spawner.errors import Problem
from pytorch_spawner.lab.board import State
from pytorch_spawner.lab.directory import People
from pytorch_spawner.lab.grants import GrantsHandler, describe_grant
from pytorch_spawner.lab.handlers import refused

KINDS: Final = ("all", "everyone", "group", "user")


class PeopleRoute(GrantsHandler):
    """``api/people``."""

    async def get(self) -> None:
        """For viewers."""
        await self.require_viewer()
        offset, limit = self.page()
        kind = self.get_query_argument("kind", "all")
        only = self.get_query_argument("only", "all")
        problems = [Problem(f"one of {', '.join(KINDS)}", "kind")] if kind not in KINDS else []
        if only not in ("all", "granted"):
            problems.append(Problem("all or granted", "only"))
        if problems:
            raise refused(problems)
        state = await self.lab.board.state()
        people = await self.lab.directory.people()
        named: dict[tuple[str, str], list[Grant]] = {}
        for grant in state.grants:
            named.setdefault((grant.to, grant.subject), []).append(grant)
        search = self.get_query_argument("search", "")[:255].casefold()
        found = [
            subject
            for subject in _subjects(people, named)
            if kind in ("all", subject[0])
            and search in (subject[1] or "everyone").casefold()
            and (only == "all" or subject in named)
        ]
        shown = found[offset : offset + limit]
        rows = await asyncio.to_thread(self._rows, shown, state, people, named)
        self.send_json(
            {
                "total": len(found),
                "rows": rows,
                "pools": _pools(state.laid),
                "gpus": _gpus(state, self.lab.ledger.now()),
            }
        )

    def _rows(
        self,
        subjects: Sequence[tuple[str, str]],
        state: State,
        people: People,
        named: Mapping[tuple[str, str], Sequence[Grant]],
    ) -> list[dict[str, Any]]:
        members: dict[str, int] = {}
        for groups in people.users.values():
            for group in groups:
                members[group] = members.get(group, 0) + 1
        counts = {"everyone": len(people.users)}
        book, laid = GrantBook(state.grants), state.laid
        return [
            {
                "kind": kind,
                "name": name,
                "members": counts.get(kind, members.get(name, 0)) if kind != "user" else None,
                "groups": list(people.users.get(name, ())) if kind == "user" else [],
                "is_known": kind == "everyone"
                or (name in people.users if kind == "user" else name in people.groups),
                "grants": [describe_grant(one) for one in named.get((kind, name), ())],
                "sentences": self._sentences(name, people.users.get(name, ()), book, laid)
                if kind == "user"
                else [],
                "holds": _holds(name, state) if kind == "user" else [],
            }
            for kind, name in subjects
        ]

    def _sentences(
        self, name: str, groups: Sequence[str], book: GrantBook, inventory: Inventory
    ) -> list[str]:
        ledger = self.lab.ledger
        mine = book.for_person(name, groups, ledger.now())
        is_counted = any(grant.id in book.with_hours for grant in mine)
        used_h = ledger.week_hours(self.lab.settings.hub_id, name) if is_counted else {}
        return explain(name, mine, inventory, used_h)


def _subjects(people: People, named: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Everyone, the groups, the users; also those whom only a grant knows."""
    named = list(named)
    groups = people.groups | {name for to, name in named if to == "group"}
    users = set(people.users) | {name for to, name in named if to == "user"}
    granted = {name for to, name in named if to == "user"}
    return [
        ("everyone", ""),
        *(("group", name) for name in sorted(groups, key=str.casefold)),
        # Those with grants of their own come first: they are what an admin looks for.
        *(("user", name) for name in sorted(users, key=lambda one: (one not in granted, one))),
    ]


def _holds(name: str, state: State) -> list[dict[str, Any]]:
    names = {gpu.uuid: gpu for gpu in state.inventory.gpus}
    return [
        {
            "gpu": holding.gpu,
            "name": names[holding.gpu].name if holding.gpu in names else holding.gpu,
            "server": lease.servername,
            "slot": holding.slot if holding.slots > 1 else None,
            "since": lease.since,
        }
        for lease in state.leases
        if lease.username == name
        for holding in lease.holdings
    ]


def _pools(inventory: Inventory) -> list[dict[str, Any]]:
    return [
        {"name": pool, "gpus": sum(1 for gpu in inventory.gpus if gpu.pool == pool)}
        for pool in inventory.pools
    ]


def _gpus(state: State, now: float) -> list[dict[str, Any]]:
    pinned = {
        uuid: grant.whose for grant in state.grants if grant.is_valid(now) for uuid in grant.gpus
    }
    return [
        {
            "uuid": gpu.uuid,
            "index": gpu.index,
            "name": gpu.name,
            "pool": gpu.pool,
            "pinned_to": pinned.get(gpu.uuid, ""),
        }
        for gpu in state.laid.gpus
        if gpu.slots > 0
    ]
