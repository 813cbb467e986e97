"""``api/grants``: what a person may have and why; for admins all grants, their preview and change.

Thin: scope, parse, call, shape. Whether a grant is right is decided in ``core.grant_rows``, what a
change means for people in ``core.effects``.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pytorch_spawner.core.effects import Holder, effects
from pytorch_spawner.core.gpus import Inventory
from pytorch_spawner.core.grant_csv import read_csv, write_csv
from pytorch_spawner.core.grant_rows import Known, conflicts, parse_grants
from pytorch_spawner.core.grants import Grant, GrantBook, explain
from pytorch_spawner.errors import BadRequest, ChangedMeanwhile, Problem
from pytorch_spawner.lab import auth, views
from pytorch_spawner.lab.board import State
from pytorch_spawner.lab.etags import etag_of
from pytorch_spawner.lab.feed import grants_etag
from pytorch_spawner.lab.handlers import ApiError, ApiHandler, refused
from pytorch_spawner.lab.schemas import GrantsBody, PreviewBody


def describe_grant(grant: Grant) -> dict[str, Any]:
    """One grant with its version."""
    said = grant.as_json()
    return {**said, "etag": etag_of(said)}


def _bare(row: Any) -> Any:
    """A row as it was shown, without what is not written: its version."""
    if isinstance(row, Mapping):
        return {key: value for key, value in row.items() if key != "etag"}
    return row


class GrantsHandler(ApiHandler):
    """What the routes share."""

    async def explained(
        self, grants: Sequence[Grant], inventory: Inventory, username: str, groups: Sequence[str]
    ) -> dict[str, Any]:
        """What a person would get through these grants."""
        return await asyncio.to_thread(self.explain_now, grants, inventory, username, groups)

    def explain_now(
        self, grants: Sequence[Grant], inventory: Inventory, username: str, groups: Sequence[str]
    ) -> dict[str, Any]:
        """The same; blocks."""
        used_h = self.lab.ledger.week_hours(self.lab.settings.hub_id, username)
        mine = GrantBook(grants).for_person(username, groups, self.lab.ledger.now())
        return {
            "user": username,
            "grants": [
                {**grant.as_json(), "used_gpu_hours": round(used_h.get(grant.id, 0.0), 3)}
                for grant in mine
            ],
            "sentences": explain(username, mine, inventory, used_h),
        }

    async def parse(
        self, rows: Sequence[Any], inventory: Inventory, lines: Sequence[int] = ()
    ) -> tuple[tuple[Grant, ...], list[str]]:
        """Read a whole set of grants; users whom the hub never saw are warnings where allowed.

        Raises:
            BadRequest: Anything is wrong.
        """
        known = await self.known(rows, inventory)
        is_allowed = self.get_query_argument("unknown_users", "") == "allow"
        users = None if is_allowed else known.users
        # Of a table of thousands it takes its time.
        grants = await asyncio.to_thread(
            parse_grants,
            [_bare(row) for row in rows],
            Known(users, known.groups, inventory),
            lines=lines,
        )
        strangers = {
            grant.subject
            for grant in grants
            if grant.to == "user" and known.users is not None and grant.subject not in known.users
        }
        # It is one person to whoever types it, and another one to the hub.
        lower = {name.lower(): name for name in known.users or ()}
        meant = [
            Problem(
                f"there is no user {grant.subject!r}, but {lower[grant.subject.lower()]!r}",
                "subject",
                lines[place] if lines else place + 1,
            )
            for place, grant in enumerate(grants)
            if grant.subject in strangers and grant.subject.lower() in lower
        ]
        if meant:
            raise refused(meant)
        return grants, sorted(strangers)

    async def known(self, rows: Sequence[Any], inventory: Inventory) -> Known:
        """The names that grants may use, asked for anew where one is not among those of before."""
        people = await self.lab.directory.people()
        named = {
            str(row.get("subject"))
            for row in rows
            if isinstance(row, Mapping) and row.get("to") in ("user", "group")
        }
        if named - set(people.users) - people.groups:
            people = await self.lab.directory.people(fresh=True)
        return Known(frozenset(people.users), people.groups, inventory)

    async def edit(
        self, by: str, change: Any, latest_of: str = ""
    ) -> tuple[Sequence[Grant], Sequence[int]]:
        """Change the ledger's grants; a conflict says who was faster."""
        hub, ledger = self.lab.settings.hub_id, self.lab.ledger
        try:
            return await asyncio.to_thread(ledger.edit_grants, hub, by, change)
        except ChangedMeanwhile as error:
            what = f"The grant {latest_of}" if latest_of else "A grant"
            latest = await asyncio.to_thread(self._latest, latest_of)
            raise ChangedMeanwhile(views.changed_by(what, latest), now=error.now) from None

    def _latest(self, grant_id: str) -> Any:
        hub, ledger = self.lab.settings.hub_id, self.lab.ledger
        if grant_id:
            return ledger.latest_change(hub, "grant", grant_id)
        return next((one for one in ledger.changes(hub, 200) if one.what == "grant"), None)


class Grants(GrantsHandler):
    """``api/grants``."""

    async def get(self) -> None:
        """The own grants and why; for viewers all of them, or with ``?user=ana`` that person's."""
        model = await self.require_model()
        state = await self.lab.board.state()
        asked = self.get_query_argument("user", "")
        if not auth.is_viewer(model):
            name = auth.owner_name(model)
            if not name or asked not in ("", name):
                raise ApiError(403, "forbidden", "You may see your own grants only.")
            groups = model.get("groups") or ()
            said = await self.explained(state.grants, state.laid, name, groups)
            self.send_json(said)
            return
        if asked:
            groups = (await self.lab.directory.people()).users.get(asked, ())
            self.send_json(await self.explained(state.grants, state.laid, asked, groups))
            return
        etag = grants_etag(state.grants)
        self.set_header("ETag", f'"{etag}"')
        if self.get_query_argument("format", "") == "csv":
            ours = [grant for grant in state.grants if grant.source == "ledger"]
            self.send_csv("grants.csv", write_csv(ours))
            return
        self.send_json({"grants": [describe_grant(one) for one in state.grants], "etag": etag})

    async def post(self) -> None:
        """Add one grant."""
        model = await self.require_admin()
        state = await self.lab.board.state()
        row = dict(self.body_object())
        is_named = bool(row.get("id"))
        if not is_named:
            row["id"] = _free_id(row, state.grants)
        (grant,), _ = await self.parse([row], state.laid)

        def add(before: tuple[Grant, ...]) -> Sequence[Grant]:
            nonlocal grant
            if not is_named:
                # Another admin may have taken it a moment ago.
                grant = replace(grant, id=_free_id(row, [*state.grants, *before]))
            if any(one.id == grant.id for one in before):
                raise BadRequest(f"There is a grant {grant.id} already.")
            return [*before, grant]

        _, (line, *_) = await self.edit(model["name"], add)
        self.send_json({"grant": describe_grant(grant), "change": line}, 201)

    async def put(self) -> None:
        """Replace the ledger's grants whole, or not at all; every fault is listed."""
        model = await self.require_admin()
        is_seen = self.require_match()
        rows, lines = self._rows()
        state = await self.lab.board.state()
        after, _ = await self.parse(rows, state.laid, lines)

        def replace(before: tuple[Grant, ...]) -> Sequence[Grant]:
            if not is_seen(grants_etag(before)):
                raise ChangedMeanwhile("", now={"etag": grants_etag(before)})
            return after

        kept, changes = await self.edit(model["name"], replace)
        self.send_json(
            {
                "grants": [describe_grant(grant) for grant in kept],
                "etag": grants_etag(kept),
                "changes": list(changes),
            }
        )

    def _rows(self) -> tuple[Sequence[Any], Sequence[int]]:
        if self.is_csv:
            return read_csv(self.body_text())
        return self.body_as(GrantsBody).grants, ()


class OneGrant(GrantsHandler):
    """``api/grants/<id>``."""

    async def put(self, grant_id: str) -> None:
        """Change one grant."""
        model = await self.require_admin()
        is_seen = self.require_match()
        state = await self._require_ours(grant_id)
        row = {**self.body_object(), "id": grant_id}
        (grant,), _ = await self.parse([row], state.laid)

        def change(before: tuple[Grant, ...]) -> Sequence[Grant]:
            self._require_seen(before, grant_id, is_seen)
            return [grant if one.id == grant_id else one for one in before]

        _, lines = await self.edit(model["name"], change, grant_id)
        line = lines[0] if lines else None
        self.send_json({"grant": describe_grant(grant), "change": line})

    async def delete(self, grant_id: str) -> None:
        """Remove one grant."""
        model = await self.require_admin()
        is_seen = self.require_match()
        await self._require_ours(grant_id)

        def remove(before: tuple[Grant, ...]) -> Sequence[Grant]:
            self._require_seen(before, grant_id, is_seen)
            return [one for one in before if one.id != grant_id]

        _, (line, *_) = await self.edit(model["name"], remove, grant_id)
        self.send_json({"removed": grant_id, "change": line})

    async def _require_ours(self, grant_id: str) -> State:
        """Refuse what is changed elsewhere, and what never was."""
        state = await self.lab.board.state()
        there = next((one for one in state.grants if one.id == grant_id), None)
        if there is not None and there.source != "ledger":
            place = {"config": "the configuration", "group": "a JupyterHub group's property"}
            raise BadRequest(
                f"This grant is written in {place[there.source]}; it is changed there."
            )
        if there is None:
            hub, ledger = self.lab.settings.hub_id, self.lab.ledger
            if await asyncio.to_thread(ledger.latest_change, hub, "grant", grant_id) is None:
                raise ApiError(404, "no-such-grant", "There is no such grant.")
        return state

    @staticmethod
    def _require_seen(before: Sequence[Grant], grant_id: str, is_seen: Any) -> None:
        there = next((one for one in before if one.id == grant_id), None)
        if there is None:
            raise ChangedMeanwhile("", now=None)
        if not is_seen(describe_grant(there)["etag"]):
            raise ChangedMeanwhile("", now=describe_grant(there))


class GrantsPreview(GrantsHandler):
    """``api/grants/preview``: what a change would do, without doing it."""

    async def post(self) -> None:
        """Faults, differences, and what they mean for whom; writes nothing."""
        await self.require_admin()
        state = await self.lab.board.state()
        user: str | None = None
        try:
            if self.is_csv:
                rows, lines = await asyncio.to_thread(read_csv, self.body_text())
                after, strangers = await self._whole(state, rows, lines)
            else:
                body = self.body_as(PreviewBody)
                user = body.user
                if body.grants is not None:
                    after, strangers = await self._whole(state, body.grants)
                else:
                    after, strangers = await self._edited(state, body.put, body.remove)
        except BadRequest as error:
            if not error.faults:
                raise
            self.send_json(
                {
                    "faults": list(error.faults),
                    "problems": [
                        {"row": one.row, "field": one.field, "message": one.message}
                        for one in error.problems
                    ],
                    "warnings": [],
                    "changes": [],
                    "effects": [],
                }
            )
            return
        self.send_json(await self._shown(state, after, strangers, user))

    async def _whole(
        self, state: State, rows: Sequence[Any], lines: Sequence[int] = ()
    ) -> tuple[tuple[Grant, ...], list[str]]:
        return await self.parse(rows, state.laid, lines)

    async def _edited(
        self, state: State, put: Sequence[Any], remove: Sequence[str]
    ) -> tuple[tuple[Grant, ...], list[str]]:
        """The grants with some of them changed, added and removed."""
        ours = {one.id: one for one in state.grants if one.source == "ledger"}
        taken = list(state.grants)
        rows: list[Any] = []
        for row in put:
            if isinstance(row, Mapping) and not row.get("id"):
                row = {**row, "id": _free_id(row, taken)}
                taken.append(Grant(row["id"]))
            rows.append(row)
        changed, strangers = await self.parse(rows, state.laid)
        for grant_id in remove:
            ours.pop(grant_id, None)
        for grant in changed:
            ours[grant.id] = grant
        return tuple(ours.values()), strangers

    async def _shown(
        self, state: State, after: tuple[Grant, ...], strangers: Sequence[str], user: str | None
    ) -> dict[str, Any]:
        ours = {one.id: one for one in state.grants if one.source == "ledger"}
        others = [one for one in state.grants if one.source != "ledger"]
        people = await self.lab.directory.people()
        holders = [
            Holder(holding.gpu, lease.username)
            for lease in state.leases
            for holding in lease.holdings
        ]
        said: dict[str, Any] = {
            "faults": [],
            "problems": [],
            "warnings": [
                f"JupyterHub does not know {name} yet; the grant counts from their first login."
                + ("" if name == name.lower() else " Most hubs write names in lower case.")
                for name in strangers
            ],
            "changes": differences(ours, {grant.id: grant for grant in after}),
            "effects": await asyncio.to_thread(
                effects,
                state.grants,
                [*others, *after],
                people.users,
                state.laid,
                holders,
                self.lab.ledger.now(),
            ),
        }
        clashes = conflicts([*others, *after])
        said["faults"] += clashes
        said["problems"] += [{"row": None, "field": "", "message": one} for one in clashes]
        if user is not None:
            groups = people.users.get(user, ())
            said["explained"] = await self.explained([*others, *after], state.laid, user, groups)
        return said


def differences(before: Mapping[str, Grant], after: Mapping[str, Grant]) -> list[dict[str, Any]]:
    """What is added, removed or changed, by id."""
    return [
        {
            "id": one,
            "before": before[one].as_json() if one in before else None,
            "after": after[one].as_json() if one in after else None,
        }
        for one in sorted({*before, *after})
        if before.get(one) != after.get(one)
    ]


def _free_id(row: Mapping[str, Any], grants: Sequence[Grant]) -> str:
    """A readable id that is not taken: "user-ana", "user-ana-2"."""
    to, subject = str(row.get("to", "everyone")), str(row.get("subject", ""))
    base = re.sub(r"[^A-Za-z0-9_.-]", "-", f"{to}-{subject}" if subject else to)[:56] or "grant"
    taken = {one.id for one in grants}
    number = 1
    name = base
    while name in taken:
        number += 1
        name = f"{base}-{number}"
    return name
