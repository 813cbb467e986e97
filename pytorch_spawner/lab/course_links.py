"""``go/<course>/<path>``: a link that opens a course's file on the person's own server.

It starts the server where it does not run, waits until the notebooks are there, and says so where
the server runs with something else. Every address that it sends to is of this very hub.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, urlencode

from pytorch_spawner.core.course_manifest import why_outside
from pytorch_spawner.core.courses import Course
from pytorch_spawner.core.journal import Event
from pytorch_spawner.core.report_facts import Start
from pytorch_spawner.lab import auth, views
from pytorch_spawner.lab.handlers import ApiError
from pytorch_spawner.lab.settings import LabSettings
from pytorch_spawner.lab.web import PageHandler

# For how long the notebooks are awaited once Lab answers, in seconds: while they are being copied,
# and where nobody says that they are (an image without Python has no agent).
PATIENCE_S: Final = 60.0
UNHEARD_S: Final = 15.0
# The hub sends people here as soon as Lab answers, at times before the journal says so.
_LOOK_S: Final = 2
_LOOKS: Final = 8


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the start of a course's server is, as its journal tells.

    Attributes:
        up_at: When Lab answered, Unix time in seconds; None before.
        is_begun: The notebooks are being copied, or were.
        is_synced: The notebooks are there, or cannot be.
    """

    up_at: float | None = None
    is_begun: bool = False
    is_synced: bool = False

    def is_worth_waiting(self, now: float) -> bool:
        """Whether the notebooks may still come."""
        patience_s = PATIENCE_S if self.is_begun else UNHEARD_S
        return not self.is_synced and now - (self.up_at or 0.0) <= patience_s


def progress_of(events: Iterable[Event], course: str) -> Progress:
    """Read a start's journal."""
    up_at, is_begun, is_synced = None, False, False
    for event in events:
        if event.kind == "start" and event.data.get("stage") == "lab":
            up_at = event.at
        if event.kind == "course" and event.data.get("course") == course:
            is_begun = True
            is_synced = is_synced or event.data.get("phase") in ("done", "failed")
    return Progress(up_at, is_begun, is_synced)


def lab_url(settings: LabSettings, username: str, course: Course, path: str) -> str:
    """Where a file of a course is on somebody's running server."""
    file = quote("/".join(part for part in (course.manifest.folder, path) if part))
    return f"{settings.base_url}user/{views.server_path(username, '')}lab/tree/{file}"


def go_url(settings: LabSettings, course: Course, path: str) -> str:
    """The deep link itself."""
    return f"{settings.prefix}go/{course.name}/{quote(path)}"


def spawn_url(settings: LabSettings, username: str, course: Course, then: str) -> str:
    """Where somebody's server is started for a course.

    JupyterHub 6 reads options that begin with ``opt-`` and ignores the others; 5.3 hands over all,
    of which the spawner takes those that it knows.
    """
    query = urlencode({"opt-course": course.name, "course": course.name, "next": then})
    where = views.server_path(username, "").rstrip("/")
    return f"{settings.hub_prefix}spawn/{where}?{query}"


class Go(PageHandler):
    """``go/<course>`` and ``go/<course>/<path>``."""

    async def get(self, name: str, path: str = "") -> None:
        """Redirect to the file, to the server's start, or say what stands between."""
        settings, ledger = self.lab.settings, self.lab.ledger
        course = await asyncio.to_thread(ledger.course, settings.hub_id, name[:64])
        if course is None:
            raise ApiError(404, "no-such-course", "There is no course of this name (any more).")
        if not auth.belongs_to(self.model, course.manifest):
            raise ApiError(403, "not-a-member", not_a_member(course))
        path = path.strip("/")
        if why := why_outside(path):
            raise ApiError(404, "not-found", f"This link leads nowhere: it needs {why}.")
        username = str(self.model["name"])
        start = await asyncio.to_thread(ledger.latest_start, settings.hub_id, username, "")
        if start is None or start.ended_at is not None:
            self.begin(course, username, path)
            return
        if start.request.get("course") != course.name:
            await self.tell_other(course, start, path)
            return
        events = await asyncio.to_thread(ledger.read_events, start.id)
        progress = progress_of(events, course.name)
        looks = self.looks()
        if progress.up_at is None and not progress.is_synced:
            if course.served and 1 <= looks <= _LOOKS:
                self.wait(course, username, path, looks + 1)
            else:
                self.begin(course, username, path)
        elif course.served and progress.is_worth_waiting(ledger.now()):
            self.wait(course, username, path)
        else:
            self.redirect(lab_url(settings, username, course, path))

    def looks(self) -> int:
        """How often it was looked here since the hub said that the server is up; 0 before."""
        said = self.get_query_argument("started", "")[:3]
        return int(said) if said.isdecimal() else 0

    def begin(self, course: Course, username: str, path: str) -> None:
        """Send the person to the hub, which starts the server, or shows how far its start is."""
        settings = self.lab.settings
        if self.looks():
            # It was just started, yet the ledger does not say so: do not go round in circles.
            self.redirect(lab_url(settings, username, course, path))
            return
        # Back to here: Lab answers before the notebooks are there.
        then = f"{go_url(settings, course, path)}?started=1"
        self.redirect(spawn_url(settings, username, course, then))

    def wait(self, course: Course, username: str, path: str, looks: int = 0) -> None:
        """A page that says that the notebooks are being copied, and looks again by itself."""
        again = f"; url={go_url(self.lab.settings, course, path)}?started={looks}" if looks else ""
        self.set_header("Refresh", f"{_LOOK_S}{again}")
        self.render_page(
            "go.html",
            course=course,
            is_waiting=True,
            runs="",
            lab_url=lab_url(self.lab.settings, username, course, path),
            home_url="",
        )

    async def tell_other(self, course: Course, start: Start, path: str) -> None:
        """A page that says what runs instead, and what can be done."""
        settings, ledger = self.lab.settings, self.lab.ledger
        running = str(start.request.get("course") or "")
        other = await asyncio.to_thread(ledger.course, settings.hub_id, running[:64])
        known = await asyncio.to_thread(ledger.students, settings.hub_id, course.name)
        # The home is the same whatever runs, so what was copied once can be opened anywhere.
        has_copy = any(one.username == start.username and one.served for one in known)
        title = other.manifest.title if other else running
        self.render_page(
            "go.html",
            course=course,
            is_waiting=False,
            runs=title,
            lab_url=lab_url(settings, start.username, course, path) if has_copy else "",
            home_url=f"{settings.hub_prefix}home",
        )

    def render_page(self, template: str, **values: Any) -> None:
        """Answer with a page."""
        page = self.lab.pages.render(template, user=self.model["name"], **values)
        self.finish(page)


def not_a_member(course: Course) -> str:
    """What somebody reads who does not belong to a course."""
    staff = course.manifest.members.staff
    who = f"{_listed(staff)} can add you" if staff else "An admin of the lab can add you"
    return f'You do not belong to the course "{course.manifest.title}". {who}.'


def _listed(names: tuple[str, ...]) -> str:
    shown = [*names[:5], *(["others"] if len(names) > 5 else [])]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} or {shown[-1]}"
