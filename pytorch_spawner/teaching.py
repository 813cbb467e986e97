"""What a start has to do with courses: whose it may be, what it brings, and throw-away servers.

A server is thrown away when it is an instructor's look at a course as a student (``try-<course>``),
or the smoke test of one: its home begins empty and ends with it, and it gets what is to be
published next instead of what students have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final
from urllib.parse import quote

from pytorch_spawner.adapters import engine, home_engine, warm_engine
from pytorch_spawner.core import course_data, course_environment, courses, identity, request
from pytorch_spawner.core.courses import Course
from pytorch_spawner.errors import HomeUnusable, LabError, NotGranted
from pytorch_spawner.warming import Warm, WarmingSpawner

_NOT_PUBLISHED: Final = (
    "The notebooks of {} are not published yet; they come with a later start. Ask whoever teaches "
    "the course."
)


@dataclass(frozen=True, slots=True)
class Taught:
    """What a start's course adds to its plan.

    Attributes:
        agent: For the agent's configuration.
        read_only: Volume or host path -> path in the container.
        environment: Variables.
    """

    agent: Mapping[str, Any] = field(default_factory=dict)
    read_only: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)


class TeachingSpawner(WarmingSpawner):
    """A container that may belong to a course."""

    # The course whose throw-away server this start is; None for a real one.
    _tried: Course | None = None

    async def _all_courses(self) -> Sequence[Course]:
        try:
            return await self.lab.courses()
        except LabError as error:
            self.log.warning("%s: the courses are not known: %s", self._log_name, error)
            return ()

    async def course_choices(self) -> dict[str, request.CourseChoice]:
        """What this person's starts may name, by the course's name."""
        groups = [group.name for group in self.user.groups]
        mine = courses.courses_of(await self._all_courses(), self.user.name, groups)
        return {
            one.name: request.CourseChoice(
                title=one.manifest.title,
                image=one.manifest.image,
                gpus=one.manifest.request.gpus,
                share=one.manifest.request.share,
                pool=one.manifest.request.pool,
                # A smoke test is to find out.
                is_strict=self.user.name == courses.SMOKER,
            )
            for one in mine
        }

    async def take_task(self) -> Mapping[str, Any] | None:
        """Find out whether this start is one of the lab's own: a build, a smoke test, a try.

        Returns:
            The options of its start, whatever the start said; None for everybody else's.

        Raises:
            NotGranted: It is an account of the lab's, and nothing of it is wanted.
        """
        self._tried, self._throw_away = None, ""
        if self.user.name == courses.SMOKER:
            self._tried = None if self.name else await self._smoked()
            if self._tried is None:
                raise NotGranted(
                    "This account only runs smoke tests of courses, and none is asked for. "
                    "Preload a course with `pytorch-spawner courses preload`."
                )
            self._name_throw_away()
            return {"course": self._tried.name, "on_busy": "queue"}
        if self.name.startswith(courses.TRY):
            known = await self._all_courses()
            self._tried = courses.tried_course(known, self.user.name, self.name)
            if self._tried is not None:
                self._name_throw_away()
                return {**self._said_without_course(), "course": self._tried.name}
        return await self.take_build()

    def _said_without_course(self) -> dict[str, Any]:
        said = dict(self.user_options or {})
        return {key: value for key, value in said.items() if key in request.OPTIONS}

    async def _smoked(self) -> Course | None:
        return await self.lab.call(lambda ledger: ledger.smoke_course(self.lab.hub))

    async def choose_course(self, name: str) -> tuple[Taught, str]:
        """What the course of a start brings with it; it never fails a start.

        Args:
            name: Of the request; "" for none.

        Returns:
            What is added to the plan, and a sentence for the student ("" for nothing to say).
        """
        course = next((one for one in await self._all_courses() if one.name == name), None)
        if course is None:
            return Taught(), ""
        manifest = course.manifest
        groups = [group.name for group in self.user.groups]
        data, refused = course_data.mounts(
            manifest.data, course_data.parse(self.course_data), name, self.user.name, groups
        )
        environment, not_set = course_environment.allowed(manifest.environment)
        # A smoke test fails by what is told; an old manifest does not, by a rule that is newer.
        for why in (*refused, *not_set):
            self.log.warning("%s: course %s: %s", self._log_name, name, why)
        taught = Taught(read_only=data, environment=environment)
        volume = courses.volumes_of(self.lab.hub, name)[self._tried is not None]
        if not await self._call(warm_engine.has_volume, volume):
            return taught, " ".join((_NOT_PUBLISHED.format(manifest.title), *refused))
        told = {
            "name": name,
            "title": manifest.title,
            "bundle": f"{courses.COURSE_DIR}/{courses.BUNDLE}",
            "notice": f"{courses.COURSE_DIR}/{courses.NOTICE}",
            "branch": courses.BRANCH,
            "folder": manifest.folder,
            "orders_url": self._orders_url(),
            "smoke": self._smoke_of(course),
        }
        read_only = {**taught.read_only, volume: courses.COURSE_DIR}
        return replace(taught, agent={"course": told}, read_only=read_only), " ".join(refused)

    def _smoke_of(self, course: Course) -> dict[str, Any] | None:
        smoke = course.manifest.smoke
        if self.user.name != courses.SMOKER or smoke is None:
            return None
        return {"notebooks": list(smoke.notebooks), "deadline_s": smoke.deadline_s}

    def _orders_url(self) -> str:
        if not self.lab_url:
            return ""
        server = f"{self.user.escaped_name}/{quote(self.name, safe='')}"
        return f"{self.lab_url.rstrip('/')}/api/servers/{server}/course"

    # -- throw-away servers ---------------------------------------------------------------------

    # The name of a throw-away server's home; "" for a real one's. Kept over the hub's restarts.
    _throw_away: str = ""

    @property
    def is_passing(self) -> bool:
        """Whether the server is the lab's own or a try, so that nobody comes back to it."""
        return self.is_warmer or bool(self._throw_away)

    def _name_throw_away(self) -> None:
        server = identity.server_slug(self.user.name, self.name)
        self._throw_away = f"{self.hub_id}-try-{server}"

    def home_place(self) -> home_engine.Place:
        """The home; a throw-away server's own is empty."""
        return (
            home_engine.Place(volume=self._throw_away) if self._throw_away else super().home_place()
        )

    def cache_place(self, warm: Warm) -> home_engine.Place:
        """The private compile cache, which is thrown away with the home."""
        if self._throw_away:
            return home_engine.Place(volume=f"{self._throw_away}--cache")
        return super().cache_place(warm)

    async def clear_throw_away(self) -> None:
        """Remove what an earlier throw-away server of this name left, or this one.

        Raises:
            HomeUnusable: It is still in use, so the home would not be empty.
        """
        if not (name := self._throw_away):
            return
        await self._call(engine.remove, self.object_name)
        for volume in (name, f"{name}--cache"):
            if not await self._call(warm_engine.free_volume, volume, self.lab.hub):
                raise HomeUnusable(
                    "An earlier server of this name is still using its throw-away home. Try again "
                    "in a moment."
                )
