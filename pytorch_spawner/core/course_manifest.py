"""What an instructor writes once about a course: the fields of ``course.yaml``; pure.

``course_text`` reads and writes the file.
"""

from __future__ import annotations

import re
from datetime import date, datetime
from typing import Annotated, Any, Final
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pytorch_spawner.core.course_environment import is_the_labs
from pytorch_spawner.core.gpus import MIG_PROFILE
from pytorch_spawner.core.identity import DATA_PLACES

MANIFEST_FILE: Final = "course.yaml"
MAX_MANIFEST_BYTES: Final = 256 * 1024
MAX_SESSIONS: Final = 400
# JupyterHub names a server with at most 30 characters, and ``TRY`` takes four.
_NAME: Final = r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$"
_FOLDER: Final = r"^[A-Za-z0-9][A-Za-z0-9_. -]{0,59}$"
_VARIABLE: Final = r"^[A-Za-z_][A-Za-z0-9_]{0,99}$"

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
            if place not in DATA_PLACES or not is_plain:
                raise ValueError(
                    f"{name[:60]}: a path below {', '.join(DATA_PLACES)}, such as /data/cifar"
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
            if is_the_labs(name):
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
