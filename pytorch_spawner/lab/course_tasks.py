"""``api/courses/<name>/...``: preload, publish, who has what, a student's file, the timetable.

Thin: scope, parse, call, shape. The service's preloader does what is asked for here.
"""

from __future__ import annotations

import asyncio

from pytorch_spawner.core import course_words as words
from pytorch_spawner.core.course_manifest import why_outside
from pytorch_spawner.core.course_text import checked
from pytorch_spawner.errors import BadRequest, ChangedMeanwhile, Problem
from pytorch_spawner.lab.courses import CourseHandler, etag_of_content
from pytorch_spawner.lab.handlers import refused
from pytorch_spawner.lab.schemas import Calendar, Reset


class Preload(CourseHandler):
    """``api/courses/<name>/preload``."""

    async def post(self, name: str) -> None:
        """Fetch, check, pull, run and warm: whatever students need, without giving it to them."""
        model = await self.require_instructor()
        course = await self.find_course(model, name)
        await self.ask(model, course, "preload", "It is being preloaded.")


class Publish(CourseHandler):
    """``api/courses/<name>/publish``."""

    async def post(self, name: str) -> None:
        """Give students what was preloaded, where it is still what the asker saw."""
        model = await self.require_instructor()
        is_seen = self.require_match()
        course = await self.find_course(model, name)
        if not is_seen(etag_of_content(course)):
            error = ChangedMeanwhile("", now=await self.describe(course))
            raise await self.changed(course, error)
        if why := words.why_not_published(course):
            raise BadRequest(why)
        done = (
            f"{words.short(course.candidate)} goes out: running servers get it within seconds, "
            "all others at their next start."
        )
        await self.ask(model, course, "publish", done)


class StopTask(CourseHandler):
    """``api/courses/<name>/stop``."""

    async def post(self, name: str) -> None:
        """End what is done for it just now."""
        model = await self.require_instructor()
        course = await self.find_course(model, name)
        ledger = self.lab.ledger
        if not await asyncio.to_thread(ledger.stop_course, course.hub, name, model["name"]):
            raise BadRequest("Nothing is done for this course just now.")
        await self.answer(name, "It is asked to stop.")


class CourseStudents(CourseHandler):
    """``api/courses/<name>/students``."""

    async def get(self, name: str) -> None:
        """Who has which publication, and whose copy needs a look."""
        course = await self.find_course(await self.require_instructor(), name)
        users, note = await self.expected()
        rows = await self.student_rows(course, users)
        self.send_json({"students": rows, "published": course.commit, "note": note})


class ResetFile(CourseHandler):
    """``api/courses/<name>/reset``."""

    async def post(self, name: str) -> None:
        """Bring one file of one student back to the course's; a backup is kept beside it."""
        model = await self.require_instructor()
        course = await self.find_course(model, name)
        said = self.body_as(Reset)
        path = said.path.strip("/")
        if why := why_outside(said.path) or ("" if path else "name a file of the course"):
            raise refused([Problem(why, "path")])
        rows = await self.student_rows(course, (await self.expected())[0])
        row = next((one for one in rows if one["user"] == said.user), None)
        if row is None:
            raise refused([Problem("this is nobody of the course", "user")])
        if row["state"] == "never":
            why = f"{said.user} has no copy of the course yet, so there is nothing to reset"
            raise refused([Problem(why, "user")])
        order = await asyncio.to_thread(
            self.lab.ledger.ask_reset, course.hub, name, said.user, path, model["name"]
        )
        self.send_json(
            {
                "order": {"id": order.id, "path": order.path, "by": order.by, "at": order.at},
                "sentence": f"{path} of {said.user} is reset within seconds if the server runs, "
                "else at its next start. A backup is kept beside it.",
            },
            202,
        )


class ImportTimetable(CourseHandler):
    """``api/courses/<name>/timetable``."""

    async def post(self, name: str) -> None:
        """Take the sessions of a calendar (ICS) in place of those that are there."""
        from pytorch_spawner.core.ics import read_ics

        model = await self.require_instructor()
        self.require_match()
        course = await self.find_course(model, name)
        said = self.body_as(Calendar)
        was = course.manifest.timetable
        found = await asyncio.to_thread(
            read_ics, said.ics, said.seats, self.lab.ledger.now(), was.timezone
        )
        new = course.manifest.model_copy(update={"timetable": found.timetable})
        made = await self.save(model, course, await asyncio.to_thread(checked, new))
        count = len(made.manifest.timetable.sessions)
        sentence = f"The timetable has {count} session{'' if count == 1 else 's'} now."
        self.send_json(
            {
                "course": await self.describe(made),
                "sentence": sentence,
                "notes": list(found.notes)[:50],
            }
        )
