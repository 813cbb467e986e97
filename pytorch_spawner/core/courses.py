"""Courses: what an instructor writes once, and what is known of its notebooks and people; pure.

A course is one manifest, ``course.yaml``. What students get is not the source's own history but a
history of publications that the lab makes of it: each publication is one commit on top of the last
one. So a force-push, a deleted branch or a submodule upstream never reaches a student's directory,
and every student's merge is a step forward.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import date, datetime
from typing import Annotated, Any, Final
from zoneinfo import ZoneInfo

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pytorch_spawner.core.gpus import MIG_PROFILE
from pytorch_spawner.errors import BadRequest, Problem

MANIFEST_FILE: Final = "course.yaml"
# Where a container finds its course, read-only.
COURSE_DIR: Final = "/opt/pytorch-spawner/course"
BUNDLE: Final = "course.bundle"
NOTICE: Final = "published.json"
BRANCH: Final = "published"
# The account whose servers run smoke tests, as a fresh student's.
SMOKER: Final = "pytorch-smoke-test"
# A server of this name is an instructor's look at a course as a student: see ``try_name``.
TRY: Final = "try-"
MAX_MANIFEST_BYTES: Final = 256 * 1024
MAX_SESSIONS: Final = 400
# What a preload does, in this order.
STEPS: Final = ("fetch", "check", "image", "smoke", "warm")
# JupyterHub names a server with at most 30 characters, and ``TRY`` takes four.
_NAME: Final = r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$"
_FOLDER: Final = r"^[A-Za-z0-9][A-Za-z0-9_. -]{0,59}$"
_VARIABLE: Final = r"^[A-Za-z_][A-Za-z0-9_]{0,99}$"
# Variables that decide who a container is, what it reaches, which GPU and how much of it it sees,
# or what runs in everybody's shell, Python or git before a person's own code does.
_RESERVED: Final = re.compile(
    r"(JUPYTER|JPY_|PYTORCH_SPAWNER|PYTORCH_CUDA_ALLOC_CONF|PYTORCH_ALLOC_CONF|NVIDIA_|CUDA_MPS_"
    r"|TORCHINDUCTOR_CACHE|TORCH_COMPILE_JOB|TRITON_CACHE|LD_|GIT_|IPYTHON|PIP_|XDG_|SSL_|BASH_"
    r"|PYTHON(?!HASHSEED\Z|UNBUFFERED\Z)"
    r"|(PATH|HOME|USER|LOGNAME|SHELL|ENV|TMPDIR|NB_USER|NB_UID|CUDA_VISIBLE_DEVICES"
    r"|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE|NODE_EXTRA_CA_CERTS|[A-Z]+_PROXY)\Z)"
)

# Where nothing of an image or of the lab lies.
_DATA_PLACES: Final = ("/data", "/datasets", "/mnt", "/srv")

_Person = Annotated[str, Field(min_length=1, max_length=255)]
_Relative = Annotated[str, Field(max_length=200)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(_Strict):
    """Where the notebooks come from: a git repository, or a directory of the lab's own machine.

    Attributes:
        git: URL of a repository; "" for none.
        branch: Its branch; "" for the one that the repository names as its own.
        directory: A directory below one that the site allows (``add_lab(course_roots=...)``).
        path: Sub-directory that holds the course; "" for all.
    """

    git: Annotated[str, Field(max_length=500)] = ""
    branch: Annotated[str, Field(max_length=200, pattern=r"^[A-Za-z0-9._/-]*$")] = ""
    directory: Annotated[str, Field(max_length=500)] = ""
    path: _Relative = ""

    @field_validator("git")
    @classmethod
    def _is_url(cls, said: str) -> str:
        if said and not re.fullmatch(r"(https?|ssh|git)://[^\s\x00-\x1f]+", said):
            raise ValueError("a URL that begins with https://, http://, ssh:// or git://")
        # A user alone may be a token, too; ssh needs one, and no password goes with it.
        if re.match(r"^(https?|git)://[^/]*@|^[a-z]+://[^/]*:[^/@]*@", said):
            raise ValueError("no user or password in the URL: whoever sees the course would see it")
        return said

    @field_validator("branch")
    @classmethod
    def _is_branch(cls, said: str) -> str:
        if said.startswith("-") or ".." in said:
            raise ValueError("a name of a branch")
        return said

    @field_validator("path")
    @classmethod
    def _is_inside(cls, said: str) -> str:
        if why := why_outside(said):
            raise ValueError(why)
        return said.strip("/")

    @model_validator(mode="after")
    def _is_one(self) -> Source:
        if bool(self.git) == bool(self.directory):
            raise ValueError("exactly one of git and directory")
        if self.directory and not self.directory.startswith("/"):
            raise ValueError("directory is an absolute path")
        return self


class Wanted(_Strict):
    """What a start of the course asks for when it does not say itself.

    Attributes:
        gpus: How many GPUs; 0 for the CPU; None leaves it to the lab.
        share: "any", "whole", "slot", "mig:<profile>".
        pool: "" for any.
    """

    gpus: Annotated[int, Field(ge=0, le=64)] | None = None
    share: str = "any"
    pool: Annotated[str, Field(max_length=255)] = ""

    @field_validator("share")
    @classmethod
    def _is_share(cls, said: str) -> str:
        is_mig = said.startswith("mig:") and MIG_PROFILE.fullmatch(said[4:])
        if said not in ("any", "whole", "slot") and not is_mig:
            raise ValueError("any, whole, slot or mig:<profile>, such as mig:1g.10gb")
        return said


class Members(_Strict):
    """Who belongs to a course.

    Attributes:
        groups: JupyterHub groups whose members are students of it.
        users: Students by name.
        staff: Names of those who look after it; they belong to it, too.
    """

    groups: Annotated[tuple[_Person, ...], Field(max_length=100)] = ()
    users: Annotated[tuple[_Person, ...], Field(max_length=5000)] = ()
    staff: Annotated[tuple[_Person, ...], Field(max_length=100)] = ()


class Smoke(_Strict):
    """What has to run without an error in a fresh student's server.

    Attributes:
        notebooks: Paths in the course, executed one after the other.
        deadline_s: Most seconds of all of them together.
    """

    notebooks: Annotated[tuple[_Relative, ...], Field(min_length=1, max_length=20)]
    deadline_s: Annotated[int, Field(ge=10, le=7200)] = 600

    @field_validator("notebooks")
    @classmethod
    def _are_inside(cls, said: tuple[str, ...]) -> tuple[str, ...]:
        for path in said:
            if why := why_outside(path):
                raise ValueError(f"{path[:60]}: {why}")
            if not path.endswith((".ipynb", ".py")):
                raise ValueError(f"{path[:60]}: a notebook or a Python file")
        return said


class Slot(_Strict):
    """One session of the timetable, once or every week.

    Attributes:
        start: Local time, in the timetable's zone.
        end: Local time, after ``start``.
        weekly_until: Repeated every week until this day, inclusive; None for once.
        seats: GPUs, slots or instances that are kept; None for one for each student that is known.
        title: For people.
    """

    start: datetime
    end: datetime
    weekly_until: date | None = None
    seats: Annotated[int, Field(ge=0, le=2000)] | None = None
    title: Annotated[str, Field(max_length=100)] = ""

    @model_validator(mode="after")
    def _is_in_order(self) -> Slot:
        if (self.start.tzinfo is None) != (self.end.tzinfo is None):
            raise ValueError("start and end both with an offset, or both without")
        seconds = (self.end - self.start).total_seconds()
        if not 60 <= seconds <= 24 * 3600:
            raise ValueError("end is 1 minute to 24 hours after start")
        if self.weekly_until and not 0 <= (self.weekly_until - self.start.date()).days <= 400:
            raise ValueError("weekly_until is at most 400 days after start")
        return self


class Timetable(_Strict):
    """When the class meets.

    Attributes:
        timezone: IANA name, such as "Europe/Berlin"; for times without an offset.
        sessions: At most ``MAX_SESSIONS``.
    """

    timezone: str = "UTC"
    sessions: Annotated[tuple[Slot, ...], Field(max_length=MAX_SESSIONS)] = ()

    @field_validator("timezone")
    @classmethod
    def _is_zone(cls, said: str) -> str:
        try:
            ZoneInfo(said)
        except (KeyError, ValueError, OSError) as error:
            raise ValueError("a time zone, such as Europe/Berlin") from error
        return said


class Manifest(_Strict):
    """One course, as ``course.yaml`` says it; docs/reference/course.md holds the JSON schema.

    Attributes:
        name: Its name in addresses; also the default of ``target``.
        title: For people.
        source: Where the notebooks come from.
        target: Directory in each student's home.
        image: A name or reference of one of the lab's images, or "auto".
        request: What a start asks for.
        data: Name of a data set that the site offers -> absolute path in the container, read-only.
        members: Whose course it is.
        warmup: What is compiled beforehand: the content of a suite.yaml without its name.
        smoke: What has to run in a fresh student's server; None for nothing.
        environment: Variables of every start.
        timetable: When the class meets.
    """

    name: Annotated[str, Field(pattern=_NAME, max_length=25)]
    title: Annotated[str, Field(min_length=1, max_length=120)]
    source: Source
    target: Annotated[str, Field(pattern=_FOLDER)] = ""
    image: Annotated[str, Field(min_length=1, max_length=512)] = "auto"
    request: Wanted = Wanted()
    data: Annotated[dict[str, str], Field(max_length=20)] = Field(default_factory=dict)
    members: Members = Members()
    warmup: dict[str, Any] | None = None
    smoke: Smoke | None = None
    environment: Annotated[dict[str, str], Field(max_length=100)] = Field(default_factory=dict)
    timetable: Timetable = Timetable()

    @field_validator("data")
    @classmethod
    def _are_places(cls, said: dict[str, str]) -> dict[str, str]:
        for name, path in said.items():
            place = f"/{path.split('/')[1]}" if path.count("/") >= 2 else ""
            parts = path.split("/")[1:]
            is_plain = all(re.match(r"^[A-Za-z0-9][A-Za-z0-9._-]*\Z", part) for part in parts)
            if place not in _DATA_PLACES or not is_plain:
                raise ValueError(
                    f"{name[:60]}: a path below {', '.join(_DATA_PLACES)}, such as /data/cifar"
                )
        if len(set(said.values())) < len(said):
            raise ValueError("each at a place of its own")
        return said

    @field_validator("environment")
    @classmethod
    def _are_free(cls, said: dict[str, str]) -> dict[str, str]:
        for name, value in said.items():
            if not re.fullmatch(_VARIABLE, name):
                raise ValueError(f"{name[:60]!r} is no name of a variable")
            if _RESERVED.match(name.upper()):
                raise ValueError(f"{name[:60]} is set by the lab")
            if len(value) > 4096 or "\0" in value:
                raise ValueError(f"{name[:60]}: at most 4096 characters")
        return said

    @property
    def folder(self) -> str:
        """Directory in each student's home."""
        return self.target or self.name

    def as_json(self) -> dict[str, Any]:
        """As the ledger keeps it and the API shows it; what is not set is left out."""
        return self.model_dump(mode="json", exclude_defaults=True)


def why_outside(path: str) -> str:
    """Why a path is none inside a course; "" when it is."""
    if path.startswith(("/", "~")) or not {".", ".."}.isdisjoint(path.split("/")):
        return "a path inside the course, without .."
    if not path.isprintable() or "\\" in path:
        return "only printable characters, and no backslash"
    return ""


def read_manifest(text: bytes) -> Manifest:
    """Read a ``course.yaml``, or refuse it whole.

    Raises:
        BadRequest: Anything is wrong; the message lists every fault with its place.
    """
    if len(text) > MAX_MANIFEST_BYTES:
        raise _refused([Problem(f"more than {MAX_MANIFEST_BYTES // 1024} KiB", MANIFEST_FILE)])
    try:
        said = yaml.safe_load(text.decode("utf-8"))
    except UnicodeDecodeError:
        raise _refused([Problem("it is no UTF-8 text", MANIFEST_FILE)]) from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        why = " ".join(str(error).split())[:200]
        raise _refused([Problem(f"it is no YAML: {_plain(why)}", MANIFEST_FILE)]) from None
    return parse_manifest(said)


def parse_manifest(said: Any) -> Manifest:
    """Check a manifest that came as JSON.

    Raises:
        BadRequest: See ``read_manifest``.
    """
    if not isinstance(said, Mapping):
        raise _refused([Problem("it holds no keys, such as name and source", MANIFEST_FILE)])
    try:
        return Manifest.model_validate(said)
    except ValidationError as error:
        raise _refused([_problem(one) for one in error.errors(include_url=False)]) from None


def _refused(problems: list[Problem]) -> BadRequest:
    faults = [f"{one.field}: {one.message}" if one.field else one.message for one in problems]
    text = "The course's manifest is not usable: " + "; ".join(faults) + "."
    return BadRequest(text, faults=faults, problems=problems)


_MEANINGS: Final = {
    "name": "a to z, 0 to 9 and single hyphens, beginning with a letter, at most 25 characters",
    "target": "one directory's name: letters, digits, _ . - and spaces, at most 60 characters",
    "branch": "a name of a branch",
}


def _problem(error: Mapping[str, Any]) -> Problem:
    place = ".".join(_plain(str(part))[:60] for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return Problem("there is no such key", place)
    if error["type"] in ("string_pattern_mismatch", "string_too_long"):
        last = str(error["loc"][-1]) if error["loc"] else ""
        return Problem(_MEANINGS.get(last, "not of this form, or too long"), place)
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "missing":
        message = "this is needed"
    return Problem(_plain(message)[:300], place)


def _plain(text: str) -> str:
    """A manifest's text without what would steer a terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)


# -- what is known of a course ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a preload.

    Attributes:
        name: One of ``STEPS``.
        state: "waiting", "running", "done", "warned", "failed" or "skipped".
        message: One sentence.
        seconds: How long it took, or takes until now.
        notes: Findings, a sentence each; at most 50.
    """

    name: str
    state: str = "waiting"
    message: str = ""
    seconds: float | None = None
    notes: tuple[str, ...] = ()

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
        is_running: The service works at the task.
        steps: Of the latest preload; empty before the first.
        preloaded_at: When the latest preload ended; None before.
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
    is_running: bool = False
    steps: tuple[Step, ...] = ()
    preloaded_at: float | None = None
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
