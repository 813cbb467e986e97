"""Courses: what is known of one beside its manifest, and whose it is; pure.

What students get is not the source's own history but a history of publications that the lab makes
of it: each publication is one commit on top of the last one. So a force-push, a deleted branch or a
submodule upstream never reaches a student's directory, and every student's merge is a step forward.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from pytorch_spawner.core.course_manifest import Manifest

# Where a container finds its course, read-only.
COURSE_DIR: Final = "/opt/pytorch-spawner/course"
BUNDLE: Final = "course.bundle"
NOTICE: Final = "published.json"
BRANCH: Final = "published"
# The account whose servers run smoke tests, as a fresh student's.
SMOKER: Final = "pytorch-smoke-test"
# A server of this name is an instructor's look at a course as a student: see ``try_name``.
TRY: Final = "try-"
# What a preload does, in this order.
STEPS: Final = ("fetch", "check", "image", "smoke", "warm")


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a preload.

    Attributes:
        name: One of ``STEPS``.
        state: "waiting", "running", "done", "warned", "failed" or "skipped".
        message: One sentence.
        seconds: How long it took, or takes until now.
        notes: Findings, a sentence each; at most 50.
        is_given_up: It was ended because the class begins; nothing is known to be wrong.
    """

    name: str
    state: str = "waiting"
    message: str = ""
    seconds: float | None = None
    notes: tuple[str, ...] = ()
    is_given_up: bool = False

    def as_json(self) -> dict[str, Any]:
        """For the ledger and the API."""
        return {**asdict(self), "notes": list(self.notes)}

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> Step:
        """What ``as_json`` gave."""
        return cls(**{**said, "notes": tuple(said.get("notes") or ())})


@dataclass(frozen=True, slots=True)
class Course:
    """A course as the ledger knows it.

    Attributes:
        hub: Id of the hub.
        name: Of the manifest.
        manifest: See ``Manifest``.
        by: Who added it.
        changed_at: When the manifest was changed last, Unix time in seconds.
        task: "preload" or "publish" while one is asked for or under way, else "".
        task_by: Who asked for it.
        asked_at: When the latest task was asked for, Unix time in seconds; 0 before the first.
        is_running: The service works at the task.
        steps: Of the latest preload; empty before the first.
        tried_at: When the service read the manifest that the latest preload tries, or tried; None
            before the first.
        preloaded_at: When the latest preload ended; None before.
        stopped_at: When somebody stopped the latest preload that was asked for, Unix time in
            seconds; None where nobody did.
        candidate: What was fetched last: the source's commit, 40 hex digits; "" before.
        candidate_served: The publication that was made of it, not yet given to students.
        candidate_says: First line of that commit's message.
        commit: What students have: the source's commit; "" before the first publication.
        served: The publication that students have.
        published_at: When; None before.
        published_by: Who.
        serial: Grows with every publication and every order.
    """

    hub: str
    name: str
    manifest: Manifest
    by: str = ""
    changed_at: float = 0.0
    task: str = ""
    task_by: str = ""
    asked_at: float = 0.0
    is_running: bool = False
    steps: tuple[Step, ...] = ()
    tried_at: float | None = None
    preloaded_at: float | None = None
    stopped_at: float | None = None
    candidate: str = ""
    candidate_served: str = ""
    candidate_says: str = ""
    commit: str = ""
    served: str = ""
    published_at: float | None = None
    published_by: str = ""
    serial: int = 0


@dataclass(frozen=True, slots=True)
class Student:
    """What is known of one person's copy of a course; out of reports of that person's container.

    Attributes:
        username: Whose.
        served: The publication that was synced last; "" before the first.
        commit: The source's commit of it.
        at: When that was said, Unix time in seconds.
        level: "ok", "warn" (a conflict) or "fail" (it could not be synced).
        message: One sentence. Hostile text.
        kept: Files that the student changed, relative to the course; at most 50.
        conflicts: Files that both sides changed -> where the course's version lies; at most 50.
    """

    username: str
    served: str = ""
    commit: str = ""
    at: float = 0.0
    level: str = "ok"
    message: str = ""
    kept: tuple[str, ...] = ()
    conflicts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Order:
    """An instructor's order to one student's container: bring one file back to the course's.

    Attributes:
        id: Of the order.
        course: Name.
        username: Whose copy.
        path: The file, relative to the course.
        by: Who asked.
        at: When, Unix time in seconds.
        done_at: When the container said that it is done; None before.
        message: What it said. Hostile text.
    """

    id: str
    course: str
    username: str
    path: str
    by: str
    at: float
    done_at: float | None = None
    message: str = ""


def is_staff(manifest: Manifest, username: str) -> bool:
    """Whether somebody looks after a course."""
    return username in manifest.members.staff


def is_member(manifest: Manifest, username: str, groups: Collection[str]) -> bool:
    """Whether a start of somebody may name the course."""
    members = manifest.members
    return (
        username in members.users
        or username in members.staff
        or not set(groups).isdisjoint(members.groups)
        or username == SMOKER
    )


def courses_of(
    courses: Iterable[Course], username: str, groups: Collection[str]
) -> tuple[Course, ...]:
    """The courses that somebody's starts may name, by title."""
    mine = (one for one in courses if is_member(one.manifest, username, groups))
    return tuple(sorted(mine, key=lambda one: (one.manifest.title.casefold(), one.name)))


def try_name(course: str) -> str:
    """Name of the server in which an instructor sees a course as a fresh student does."""
    return f"{TRY}{course}"


def tried_course(courses: Iterable[Course], username: str, servername: str) -> Course | None:
    """The course that a server is a throw-away look at; None for a real server.

    Only whoever looks after a course has such a server; anybody else's of that name is real.
    """
    for one in courses:
        if servername == try_name(one.name) and is_staff(one.manifest, username):
            return one
    return None


def volumes_of(hub: str, course: str) -> tuple[str, str]:
    """Names of the volumes with what students get, and with what is to be published next."""
    return f"{hub}-course-{course}", f"{hub}-course-{course}--next"
