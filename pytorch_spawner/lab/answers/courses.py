"""What the API answers about courses."""

from __future__ import annotations

from typing import Any, Literal

from pytorch_spawner.lab.answers.common import Answer


class CourseStep(Answer):
    """One step of a preload; its notes are whatever the notebooks gave rise to.

    is_given_up: it was ended because the class began, and nothing is known to be wrong.
    """

    name: Literal["fetch", "check", "image", "smoke", "warm"]
    label: str
    state: Literal["waiting", "running", "done", "warned", "failed", "skipped"]
    message: str
    seconds: float | None
    notes: list[str]
    is_given_up: bool


class CourseSession(Answer):
    """One meeting of the class; seats is null for one for each student."""

    course: str
    title: str
    starts_at: float
    ends_at: float
    seats: int | None


class Candidate(Answer):
    """What was fetched last; is_new: students do not have it yet."""

    commit: str
    says: str
    is_new: bool


class Published(Answer):
    """What students have."""

    commit: str
    at: float | None
    by: str


class StudentCounts(Answer):
    """How many students there are, and how their copies are."""

    total: int
    current: int
    behind: int
    never: int
    conflicts: int
    failed: int


class Course(Answer):
    """A course for whoever looks after it.

    etag is the version of its manifest, content_etag that of what would be published. seats_note
    says which session asks for more seats than classes may have.
    """

    name: str
    title: str
    folder: str
    source: str
    image: str
    staff: list[str]
    by: str
    changed_at: float
    verdict: Literal["ok", "wait", "warn", "bad"]
    sentence: str
    task: Literal["", "preload", "publish"]
    task_by: str
    is_running: bool
    steps: list[CourseStep]
    preloaded_at: float | None
    candidate: Candidate
    published: Published
    serial: int
    timezone: str
    sessions: list[CourseSession]
    students: StudentCounts
    seats_note: str
    link: str
    etag: str
    content_etag: str


class CourseChange(Answer):
    """One line of the audit log about a course."""

    at: float
    by: str
    sentence: str


class CourseInFull(Course):
    """A course with its manifest, as JSON and as text, and its latest changes."""

    manifest: dict[str, Any]
    yaml: str
    changes: list[CourseChange]


class MyCourse(Answer):
    """What somebody is told who belongs to a course."""

    name: str
    title: str
    folder: str
    next_session: CourseSession | None
    link: str
    is_staff: bool


class Courses(Answer):
    """The courses that one looks after, and those that one belongs to."""

    courses: list[Course]
    mine: list[MyCourse]
    note: str


class OneCourse(Answer):
    """One course."""

    course: CourseInFull


class CourseChanged(Answer):
    """A course as it is now, and what was done."""

    course: Course
    sentence: str


class CourseSaved(Answer):
    """A course as it is now; null for somebody who does not look after it any more."""

    course: Course | None
    sentence: str


class TimetableTaken(CourseChanged):
    """What of a calendar was left out or assumed."""

    notes: list[str]


class FileOrder(Answer):
    """A file that is to be brought back to the course's version."""

    id: str
    path: str
    by: str
    at: float


class CourseStudent(Answer):
    """One person's copy; at is null where nothing was heard of it. Texts are the container's."""

    user: str
    state: Literal["current", "behind", "never"]
    is_member: bool
    commit: str
    at: float | None
    level: Literal["ok", "warn", "fail"]
    message: str
    kept: list[str]
    conflicts: dict[str, str]
    orders: list[FileOrder]


class CourseStudents(Answer):
    """Everybody of a course; note says why somebody may be missing."""

    students: list[CourseStudent]
    published: str
    note: str


class ResetAsked(Answer):
    """What was ordered."""

    order: FileOrder
    sentence: str
