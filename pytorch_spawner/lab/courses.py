"""``api/courses``: which courses there are, and their manifests.

Thin: scope, parse, call, shape. What is done for a course is in ``course_tasks``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final

from pytorch_spawner.core import course_text as texts
from pytorch_spawner.core import course_words as words
from pytorch_spawner.core.changes import say_change
from pytorch_spawner.core.course_manifest import Manifest, Members
from pytorch_spawner.core.courses import Course, is_staff
from pytorch_spawner.core.seat_room import sizes_of
from pytorch_spawner.errors import BadRequest, ChangedMeanwhile, Problem
from pytorch_spawner.lab import auth, views
from pytorch_spawner.lab.course_example import example_manifest
from pytorch_spawner.lab.course_rights import CourseRights, no_such_course
from pytorch_spawner.lab.directory import HubUnavailable
from pytorch_spawner.lab.etags import etag_of
from pytorch_spawner.lab.handlers import refused
from pytorch_spawner.lab.schemas import CourseText
from pytorch_spawner.ledger import course_lines

# How many changes of a course are shown.
_CHANGES: Final = 8
_NO_HUB: Final = (
    "The hub does not say just now who is in which group, so only those are listed who are named "
    "or have started the course already."
)


class CourseHandler(CourseRights):
    """What the routes of courses share."""

    # How many devices each pool has, and the share of them that classes may have; read once.
    _bound: tuple[dict[str, int], float] | None = None

    async def expected(self) -> tuple[Mapping[str, Sequence[str]], str]:
        """Groups of everybody that the hub knows, and why it is not known; "" when it is."""
        try:
            return (await self.lab.directory.people()).users, ""
        except HubUnavailable:
            return {}, _NO_HUB

    async def student_rows(
        self, course: Course, users: Mapping[str, Sequence[str]]
    ) -> list[dict[str, Any]]:
        """A course's students with the state of their copies."""
        hub, ledger = course.hub, self.lab.ledger
        known = await asyncio.to_thread(ledger.students, hub, course.name)
        orders = await asyncio.to_thread(ledger.orders, hub, course.name)
        return words.student_rows(course, words.students_of(course.manifest, users), known, orders)

    async def describe(
        self, course: Course, users: Mapping[str, Sequence[str]] | None = None
    ) -> dict[str, Any]:
        """A course for whoever looks after it, with its versions."""
        users = (await self.expected())[0] if users is None else users
        rows = await self.student_rows(course, users)
        stale = await asyncio.to_thread(course_lines.is_stale, self.lab.ledger, course)
        return {
            **words.as_json(course, rows, self.lab.ledger.now(), stale=stale),
            "seats_note": await self.seats_note(course, rows),
            "link": self.link(course),
            "etag": etag_of_manifest(course.manifest),
            "content_etag": etag_of_content(course),
        }

    async def seats_note(self, course: Course, rows: Iterable[Mapping[str, Any]]) -> str:
        """Which session asks for more seats than the lab keeps for classes; "" for none."""
        if not course.manifest.timetable.sessions:
            return ""
        if self._bound is None:
            hub, ledger = self.lab.settings.hub_id, self.lab.ledger
            share = await asyncio.to_thread(ledger.class_share, hub)
            known = {} if share is None else sizes_of((await self.lab.board.state()).laid)
            self._bound = known, 1.0 if share is None else share
        seen = [row["user"] for row in rows if row["at"] is not None]
        return words.seats_note(course.manifest, seen, self.lab.ledger.now(), *self._bound)

    def link(self, course: Course) -> str:
        """The address that students follow, on this host."""
        return f"{self.lab.settings.prefix}go/{course.name}/"

    async def answer(self, name: str, sentence: str, status: int = 200) -> None:
        """Answer with a course as it is after a change."""
        hub = self.lab.settings.hub_id
        now = await asyncio.to_thread(self.lab.ledger.course, hub, name)
        if now is None:
            raise no_such_course()
        self.send_json({"course": await self.describe(now), "sentence": sentence}, status)

    async def ask(self, model: Mapping[str, Any], course: Course, task: str, done: str) -> None:
        """Ask the service to preload or publish."""
        ledger = self.lab.ledger
        if not await asyncio.to_thread(
            ledger.ask_course, course.hub, course.name, task, model["name"]
        ):
            raise BadRequest(
                "Something is done for this course already, or it is gone; look at it again."
            )
        await self.answer(course.name, done)

    async def save(self, model: Mapping[str, Any], course: Course, new: Manifest) -> Course:
        """Change a manifest, where it is still as it was seen, by somebody who may.

        Raises:
            ChangedMeanwhile: It is not.
            ApiError: 404, the course is gone or somebody else's by now; 428.
            BadRequest: The manifest cannot be kept.
        """
        if new.name != course.name:
            said = f"it is {course.name} and stays so; add another course instead"
            raise texts.refuse(said, "name")
        if not auth.is_admin(model) and not new.members.staff:
            said = "somebody has to look after the course; name another one before you leave"
            raise texts.refuse(said, "members.staff")
        check = self.check_manifest(model)
        try:
            return await asyncio.to_thread(
                self.lab.ledger.save_course,
                course.hub,
                new,
                model["name"],
                check,
                self.may_follow(model),
            )
        except ChangedMeanwhile as error:
            raise await self.changed(course, error) from None

    def may_follow(self, model: Mapping[str, Any]) -> Callable[[Collection[str]], bool]:
        """Whether somebody may go on with a course that given staff looked after."""
        return lambda staff: auth.is_admin(model) or auth.owner_name(model) in staff

    def check_manifest(self, model: Mapping[str, Any]) -> Callable[[Course | None], None]:
        """What refuses a change to a manifest that the client has not seen.

        Raises:
            ApiError: 428, the request names no version.
        """
        is_seen = self.require_match()

        def check(course: Course | None) -> None:
            if course is None or not auth.looks_after(model, course.manifest):
                raise no_such_course()
            if not is_seen(etag_of_manifest(course.manifest)):
                raise ChangedMeanwhile("", now=describe_manifest(course.manifest))

        return check

    async def changed(self, course: Course, error: ChangedMeanwhile) -> ChangedMeanwhile:
        """The same error, which says who was faster."""
        latest = await asyncio.to_thread(
            self.lab.ledger.latest_change, course.hub, "course", course.name
        )
        said = views.changed_by(f"The course {course.name}", latest)
        return ChangedMeanwhile(said, now=error.now)

    def text_of(self) -> CourseText | None:
        """The body where it is no manifest itself."""
        is_text = not {"yaml", "example"}.isdisjoint(self.body_object())
        return self.body_as(CourseText) if is_text else None

    async def manifest_of(self, said: CourseText | None) -> Manifest:
        """The manifest that the body holds, as JSON or as text."""
        if said is None:
            return await asyncio.to_thread(texts.from_json, self.body_object())
        if said.yaml is None:
            raise refused([Problem("the example is added, not put in the place of another", "")])
        return await asyncio.to_thread(texts.from_yaml, said.yaml)


class Courses(CourseHandler):
    """``api/courses``."""

    async def get(self) -> None:
        """Those that one looks after, and in a few words those that one belongs to."""
        model = await self.require_model()
        courses, now = await self.all_courses(), self.lab.ledger.now()
        own = [one for one in courses if auth.looks_after(model, one.manifest)]
        users, note = (await self.expected()) if own else ({}, "")
        self.send_json(
            {
                "courses": [await self.describe(one, users) for one in own],
                "mine": [
                    {
                        **words.for_members(one, now),
                        "link": self.link(one),
                        "is_staff": is_staff(one.manifest, auth.owner_name(model)),
                    }
                    for one in courses
                    if auth.belongs_to(model, one.manifest)
                ],
                "note": note,
            }
        )

    async def post(self) -> None:
        """Add a course; whoever does looks after it."""
        model = await self.require_instructor()
        said, name = self.text_of(), str(model["name"])
        if said is not None and said.example:
            hub, ledger = self.lab.settings.hub_id, self.lab.ledger
            taken = {
                *await asyncio.to_thread(ledger.course_names, hub),
                *await asyncio.to_thread(ledger.removed_courses, hub),
            }
            manifest = await asyncio.to_thread(example_manifest, taken)
            manifest = with_staff(manifest, auth.owner_name(model))
        else:
            manifest = await self.manifest_of(said)
            if not auth.is_admin(model):
                manifest = with_staff(manifest, name)

        def check(there: Course | None) -> None:
            if there is not None:
                raise texts.refuse("there is a course of this name already", "name")

        made = await asyncio.to_thread(
            self.lab.ledger.save_course,
            self.lab.settings.hub_id,
            manifest,
            name,
            check,
            self.may_follow(model),
        )
        await self.answer(made.name, f"Added: {made.manifest.title}. Preload it now.", 201)


class CourseSchema(CourseHandler):
    """``api/courses/schema``."""

    async def get(self) -> None:
        """The JSON schema of a manifest, for editors and programs."""
        await self.require_model()
        self.send_json(Manifest.model_json_schema())


class OneCourse(CourseHandler):
    """``api/courses/<name>``."""

    async def get(self, name: str) -> None:
        """One of them, with its manifest and what was done for it lately."""
        model = await self.require_instructor()
        course = await self.find_course(model, name)
        lines, _ = await asyncio.to_thread(course_lines.lines_of, self.lab.ledger, course)
        changes = [
            {
                "at": one.at,
                "by": one.by,
                "sentence": say_change(one.what, one.subject, one.before, one.after),
            }
            for one in lines[:_CHANGES]
        ]
        said = await self.describe(course)
        self.send_json(
            {"course": {**said, **describe_manifest(course.manifest), "changes": changes}}
        )

    async def put(self, name: str) -> None:
        """Change its manifest; its name stays."""
        model = await self.require_instructor()
        self.require_match()
        course = await self.find_course(model, name)
        made = await self.save(model, course, await self.manifest_of(self.text_of()))
        if not auth.looks_after(model, made.manifest):
            said = {"course": None, "sentence": "Saved. You do not look after it any more."}
            self.send_json(said)
            return
        await self.answer(name, "Saved. What it changes comes with the next preload and start.")

    async def delete(self, name: str) -> None:
        """Remove it; nobody's copy of the notebooks is touched."""
        model = await self.require_instructor()
        check = self.check_manifest(model)
        course = await self.find_course(model, name)
        hub, ledger = course.hub, self.lab.ledger
        try:
            was = await asyncio.to_thread(ledger.remove_course, hub, name, model["name"], check)
        except ChangedMeanwhile as error:
            raise await self.changed(course, error) from None
        if was is None:
            raise no_such_course()
        line = await asyncio.to_thread(ledger.latest_change, hub, "course", name)
        self.send_json({"removed": name, "change": 0 if line is None else line.id})


class CourseManifest(CourseHandler):
    """``api/courses/<name>/manifest``."""

    async def get(self, name: str) -> None:
        """The manifest as the text of a course.yaml."""
        course = await self.find_course(await self.require_instructor(), name)
        self.set_header("Content-Type", "application/yaml; charset=utf-8")
        self.set_header("ETag", f'"{etag_of_manifest(course.manifest)}"')
        self.set_header("Content-Disposition", 'attachment; filename="course.yaml"')
        self.finish(texts.to_yaml(course.manifest))


def with_staff(manifest: Manifest, name: str) -> Manifest:
    """The same manifest, looked after by somebody too; "" adds nobody."""
    if not name or is_staff(manifest, name):
        return manifest
    was = manifest.members
    members = Members(groups=was.groups, users=was.users, staff=(*was.staff, name))
    return manifest.model_copy(update={"members": members})


def describe_manifest(manifest: Manifest) -> dict[str, Any]:
    """A manifest with its version, as JSON and as text."""
    return {
        "manifest": manifest.as_json(),
        "yaml": texts.to_yaml(manifest),
        "etag": etag_of_manifest(manifest),
    }


def etag_of_manifest(manifest: Manifest) -> str:
    """Version of what is written down about a course; how far a preload is, is no part of it."""
    return etag_of(manifest.as_json())


def etag_of_content(course: Course) -> str:
    """Version of what would be published, and of what students have."""
    return etag_of([course.name, course.candidate_served, course.served])
