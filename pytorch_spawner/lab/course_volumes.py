"""What containers see of courses, made equal to what the ledger says of them."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeVar

from pytorch_spawner.adapters import course_engine, engine, warm_engine
from pytorch_spawner.adapters.git_source import Mirror, Served
from pytorch_spawner.adapters.git_store import owner_of
from pytorch_spawner.core import courses
from pytorch_spawner.core.courses import Course
from pytorch_spawner.errors import LabError, SourceUnusable
from pytorch_spawner.lab.paths import courses_dir
from pytorch_spawner.lab.settings import LabSettings
from pytorch_spawner.ledger.store import Ledger

T = TypeVar("T")
log = logging.getLogger("pytorch_spawner.preloader")


class CourseVolumes:
    """The volumes with publications, and the mirrors that they are made of."""

    def __init__(self, settings: LabSettings, ledger: Ledger) -> None:
        self._settings = settings
        self._ledger = ledger
        self._hub = settings.hub_id
        self._client: Any = None
        # What containers were last told of each course: (publication, serial).
        self._told: dict[str, tuple[str, int]] = {}

    def mirror(self, name: str) -> Mirror:
        """The mirror of a course's source."""
        folder = Path(self._settings.course_dir) / name
        roots = [*map(Path, self._settings.course_roots), courses_dir()]
        return Mirror(folder, roots=roots, owner=self._hub)

    async def fill_next(self, name: str, served: Served, commit: str) -> None:
        """Bring what is to be published next to those servers that try it."""
        await self._with_engine(
            course_engine.fill,
            courses.volumes_of(self._hub, name)[1],
            self._hub,
            served.bundle,
            _notice(served.served, commit, 0),
        )

    def adopt(self, name: str, mirror: Mirror, there: Path) -> None:
        """Take the history that students have back into a mirror that lost it; blocking.

        Args:
            name: Of the course.
            mirror: Its mirror.
            there: A file that may be written.
        """
        course_engine.read_bundle(self._engine(), self._volume_of(name), self._hub, there)
        mirror.adopt(there)

    async def bring_all(self, is_busy: Callable[[str], bool]) -> None:
        """Make what containers see equal to what the ledger says, whatever happened to it.

        After a publication, an order to one of them, a volume that was lost, a service that was
        killed in between; and throw away what no course owns any more.

        Args:
            is_busy: Whether something is done for a course of this name, whose mirror then stays.
        """
        known = await asyncio.to_thread(self._ledger.courses, self._hub)
        there = await self._with_engine(course_engine.course_volumes, self._hub)
        for one in known:
            if one.served:
                try:
                    await self._bring(one, is_there=self._volume_of(one.name) in there)
                except LabError as error:
                    log.warning("the course %s does not reach students: %s", one.name, error)
        await self._throw_away(there, is_busy)

    async def _throw_away(self, there: Collection[str], is_busy: Callable[[str], bool]) -> None:
        """What no course owns any more; where servers still have it, its name stays held.

        A course whose manifest cannot be read owns what it has: it is mended one day.
        """
        # In this order: what is removed from now on is looked at the next time.
        removed = await asyncio.to_thread(self._ledger.removed_courses, self._hub)
        names = await asyncio.to_thread(self._ledger.course_names, self._hub)
        owned = {volume for name in names for volume in courses.volumes_of(self._hub, name)}
        left = set()
        for volume in there:
            is_owned = volume in owned
            if is_owned or not await self._with_engine(warm_engine.remove_volume, volume):
                left.add(volume)
        for gone in await asyncio.to_thread(self._mirrors):
            if gone not in names and not is_busy(gone):
                self._told.pop(gone, None)
                try:
                    await asyncio.to_thread(self.mirror(gone).remove)
                except (SourceUnusable, OSError) as error:  # busy, or a sick disk: the next look
                    log.info("the mirror of the removed course %s stays: %s", gone, error)
        for name in removed - names:
            if left.isdisjoint(courses.volumes_of(self._hub, name)) and not is_busy(name):
                await self._release(name)

    async def _release(self, name: str) -> None:
        """Let anybody have the name; what its warm caches left with people is not loaded again."""
        for volume in await self._with_engine(course_engine.private_caches, self._hub, name):
            await self._with_engine(warm_engine.remove_volume, volume)
        await asyncio.to_thread(self._ledger.release_name, self._hub, name)

    async def _bring(self, course: Course, *, is_there: bool) -> None:
        volume, wanted = self._volume_of(course.name), (course.served, course.serial)
        if not is_there:
            self._told.pop(course.name, None)
        elif course.name not in self._told:
            said = await self._with_engine(course_engine.read_notice, volume, self._hub)
            self._told[course.name] = _told(said)
        told = self._told.get(course.name, ("", -1))
        if told == wanted:
            return
        bundle = None
        if told[0] != course.served:
            bundle = await asyncio.to_thread(self.mirror(course.name).bundle_of, course.served)
        notice = _notice(course.served, course.commit, course.serial)
        await self._with_engine(course_engine.fill, volume, self._hub, bundle, notice)
        self._told[course.name] = wanted

    def _volume_of(self, name: str) -> str:
        return courses.volumes_of(self._hub, name)[0]

    def _mirrors(self) -> list[str]:
        """Names of this hub's mirrors on disk; whatever else lies there is not ours to remove."""
        folder = Path(self._settings.course_dir)
        there = folder.iterdir() if folder.is_dir() else ()
        return [one.name for one in there if owner_of(one) == self._hub]

    async def _with_engine(self, ask: Callable[..., T], *args: Any) -> T:
        """Ask the engine in a thread: connecting to one that hangs takes a minute, too."""
        return await asyncio.to_thread(lambda: ask(self._engine(), *args))

    def _engine(self) -> Any:
        if self._client is None:
            self._client = engine.connect(self._settings.client_kwargs)
        return self._client


def _told(notice: str) -> tuple[str, int]:
    """(publication, serial) that a notice names; nothing that is, where it cannot be read."""
    try:
        said = json.loads(notice)
        return str(said["served"]), int(said["serial"])
    except (ValueError, KeyError, TypeError):
        return "", -1


def _notice(served: str, commit: str, serial: int) -> bytes:
    """What containers watch: a new serial is a publication, or an order to one of them."""
    return json.dumps({"v": 1, "served": served, "commit": commit, "serial": serial}).encode()
