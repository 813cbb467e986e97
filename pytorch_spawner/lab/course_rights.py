"""Which courses somebody looks after: what the routes of courses and of warm caches share.

An instructor reaches the courses that name them as staff. Others do not exist for them, so that
their names are not told: the answer is 404, never 403.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from pytorch_spawner.core.courses import Course
from pytorch_spawner.lab import auth
from pytorch_spawner.lab.handlers import ApiError, ApiHandler


def no_such_course() -> ApiError:
    """The same words for a course that is not there and for one that is somebody else's."""
    return ApiError(404, "no-such-course", "You look after no course of this name.")


class CourseRights(ApiHandler):
    """Finds courses for those who may look after them."""

    async def all_courses(self) -> Sequence[Course]:
        """Every course."""
        return await asyncio.to_thread(self.lab.ledger.courses, self.lab.settings.hub_id)

    async def own_courses(self, model: Mapping[str, Any]) -> list[Course]:
        """Those that somebody looks after."""
        return [one for one in await self.all_courses() if auth.looks_after(model, one.manifest)]

    async def find_course(self, model: Mapping[str, Any], name: str) -> Course:
        """One of them.

        Raises:
            ApiError: 404, there is none, or it is somebody else's.
        """
        hub = self.lab.settings.hub_id
        found = await asyncio.to_thread(self.lab.ledger.course, hub, name[:64])
        if found is None or not auth.looks_after(model, found.manifest):
            raise no_such_course()
        return found
