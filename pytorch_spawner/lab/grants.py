"""``api/grants``: what a person may have and why; for admins all grants, their preview and change.

Thin: scope, parse, call, shape. Whether a grant is right is decided in ``core.grants``.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

from tornado.httpclient import HTTPClientError

from pytorch_spawner.core.gpus import Inventory
from pytorch_spawner.core.grant_rows import Known, parse_grants
from pytorch_spawner.core.grants import Grant, GrantBook, explain
from pytorch_spawner.errors import BadRequest
from pytorch_spawner.lab import auth, hub_api
from pytorch_spawner.lab.handlers import ApiError, ApiHandler
from pytorch_spawner.lab.settings import LabSettings


async def known_names(settings: LabSettings, inventory: Inventory) -> Known:
    """Everybody the hub knows, its groups, and the lab's devices."""
    users: set[str] = set()
    groups: set[str] = set()
    try:
        async for user in hub_api.pages(settings, "users"):
            users.add(str(user["name"]))
            groups.update(map(str, user.get("groups") or ()))
        async for group in hub_api.pages(settings, "groups"):
            groups.add(str(group["name"]))
    except (HTTPClientError, OSError) as error:
        raise ApiError(
            502, "hub-unavailable", "The hub does not say whom it knows; try again."
        ) from error
    return Known(frozenset(users), frozenset(groups), inventory)


class GrantsHandler(ApiHandler):
    """What the two routes share."""

    async def require_admin(self) -> dict[str, Any]:
        """The model of somebody who may change grants."""
        model = await self.require_model()
        if auth.ADMIN not in auth.scopes_of(model):
            raise ApiError(403, "forbidden", f"This needs the scope {auth.ADMIN}.")
        return model

    def body(self) -> dict[str, Any]:
        """The request's JSON object."""
        try:
            said = json.loads(self.request.body)
        except (ValueError, RecursionError) as error:
            raise ApiError(400, "bad-request", "The body is no JSON.") from error
        if not isinstance(said, dict) or not isinstance(said.get("grants"), list):
            raise ApiError(400, "bad-request", 'The body is {"grants": [...]}.')
        return said

    async def read(self) -> tuple[tuple[Grant, ...], Inventory]:
        """All grants, and the devices."""
        hub, ledger = self.lab.settings.hub_id, self.lab.ledger
        grants = await asyncio.to_thread(ledger.grants, hub)
        return tuple(grants), await asyncio.to_thread(ledger.read_inventory, hub)

    async def explained(
        self, grants: Sequence[Grant], inventory: Inventory, username: str, groups: Sequence[str]
    ) -> dict[str, Any]:
        """What a person would get through these grants."""
        used_h = await asyncio.to_thread(
            self.lab.ledger.week_hours, self.lab.settings.hub_id, username
        )
        mine = GrantBook(grants).for_person(username, groups, self.lab.ledger.now())
        return {
            "user": username,
            "grants": [
                {**grant.as_json(), "used_gpu_hours": round(used_h.get(grant.id, 0.0), 3)}
                for grant in mine
            ],
            "sentences": explain(username, mine, inventory, used_h),
        }


class Grants(GrantsHandler):
    """``api/grants``."""

    async def get(self) -> None:
        """The own grants and why; for viewers all of them, or with ``?user=ana`` that person's."""
        model = await self.require_model()
        grants, inventory = await self.read()
        asked = self.get_query_argument("user", "")
        if not auth.is_viewer(model):
            if asked not in ("", model["name"]):
                raise ApiError(403, "forbidden", "You may see your own grants only.")
            groups = model.get("groups") or ()
            self.send_json(await self.explained(grants, inventory, model["name"], groups))
            return
        if asked:
            groups = await asyncio.to_thread(
                self.lab.ledger.groups_of, self.lab.settings.hub_id, asked
            )
            self.send_json(await self.explained(grants, inventory, asked, groups))
            return
        self.send_json({"grants": [grant.as_json() for grant in grants]})

    async def put(self) -> None:
        """Replace the ledger's grants whole, or not at all; every fault is listed."""
        model = await self.require_admin()
        rows = self.body()["grants"]
        _, inventory = await self.read()
        known = await known_names(self.lab.settings, inventory)
        after = parse_grants(rows, known)
        kept = await asyncio.to_thread(
            self.lab.ledger.change_grants, self.lab.settings.hub_id, model["name"], lambda _: after
        )
        self.send_json({"grants": [grant.as_json() for grant in kept]})


class GrantsPreview(GrantsHandler):
    """``api/grants/preview``: what a change would do, without doing it."""

    async def post(self) -> None:
        """Faults and differences; with ``user`` also what that person would get."""
        await self.require_admin()
        body = self.body()
        before, inventory = await self.read()
        known = await known_names(self.lab.settings, inventory)
        try:
            after = parse_grants(body["grants"], known)
        except BadRequest as error:
            self.send_json({"faults": list(error.faults), "changes": []})
            return
        ours = {grant.id: grant for grant in before if grant.source == "ledger"}
        said: dict[str, Any] = {
            "faults": [],
            "changes": differences(ours, {grant.id: grant for grant in after}),
        }
        if isinstance(body.get("user"), str):
            others = [grant for grant in before if grant.source != "ledger"]
            groups = await asyncio.to_thread(
                self.lab.ledger.groups_of, self.lab.settings.hub_id, body["user"]
            )
            said["explained"] = await self.explained(
                [*others, *after], inventory, body["user"], groups
            )
        self.send_json(said)


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
