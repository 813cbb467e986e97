"""Whom the hub knows: users with their groups, asked for at most every half minute."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from tornado.httpclient import HTTPClientError

from pytorch_spawner.errors import LabError
from pytorch_spawner.lab import hub_api
from pytorch_spawner.lab.settings import LabSettings

FRESH_S: Final = 30.0
ANEW_S: Final = 5.0


class HubUnavailable(LabError):
    """The hub does not say whom it knows."""

    code = "hub-unavailable"
    status = 502


@dataclass(frozen=True, slots=True)
class People:
    """Everybody the hub knows.

    Attributes:
        users: Names of groups by name of user.
        groups: Names of all groups, also of those without a member.
    """

    users: Mapping[str, tuple[str, ...]]
    groups: frozenset[str]


class Directory:
    """Asks the hub, one question at a time for all who want to know.

    Args:
        settings: Where the hub is.
        fresh_s: For how many seconds an answer is good.
    """

    def __init__(self, settings: LabSettings, fresh_s: float = FRESH_S) -> None:
        self._settings = settings
        self._fresh_s = fresh_s
        self._asking = asyncio.Lock()  # protects _known and _asked_at
        self._known = People({}, frozenset())
        self._asked_at = -1e9

    async def people(self, *, fresh: bool = False) -> People:
        """Everybody the hub knows.

        Args:
            fresh: Ask now, or take an answer of the last seconds: a name that somebody just made
                must not be refused for long, and a wrong one must not cost the hub more.

        Raises:
            HubUnavailable: It does not answer.
        """
        async with self._asking:
            age_s = time.monotonic() - self._asked_at
            if age_s > (min(ANEW_S, self._fresh_s) if fresh else self._fresh_s):
                try:
                    self._known = await self._ask()
                except (HTTPClientError, OSError, ValueError, KeyError) as error:
                    raise HubUnavailable(
                        "The hub does not say whom it knows; try again."
                    ) from error
                self._asked_at = time.monotonic()
            return self._known

    async def _ask(self) -> People:
        users: dict[str, tuple[str, ...]] = {}
        groups: set[str] = set()
        async for user in hub_api.pages(self._settings, "users"):
            users[str(user["name"])] = tuple(map(str, user.get("groups") or ()))
            groups.update(users[str(user["name"])])
        async for group in hub_api.pages(self._settings, "groups"):
            groups.add(str(group["name"]))
        return People(users, frozenset(groups))
