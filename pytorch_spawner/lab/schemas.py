"""What the API takes, as pydantic models: one schema for pages, programs and openapi.json."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    RootModel,
    field_validator,
    model_validator,
)

from pytorch_spawner.core.course_manifest import MAX_MANIFEST_BYTES, Manifest
from pytorch_spawner.core.gpus import MAX_SLOTS
from pytorch_spawner.core.grants import PRIORITIES


def _printable(value: Any) -> Any:
    if isinstance(value, str) and not all(one.isprintable() or one == "\n" for one in value):
        raise ValueError("only printable characters")
    return value


def _no_truth(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number, not true or false")  # noqa: TRY004 (pydantic collects it)
    return value


Printable = BeforeValidator(_printable)
Text = Annotated[str, Field(max_length=255), Printable]


class _Body(BaseModel):
    """Base of all bodies: what is not known is refused."""

    model_config = ConfigDict(extra="forbid")


class DeviceChange(_Body):
    """What an admin decides about a GPU; what is left out stays as it is."""

    drained: Annotated[str, Field(max_length=255), Printable] | None = None
    mode: Annotated[str, Field(max_length=16)] | None = None
    pool: Annotated[str, Field(min_length=1, max_length=255), Printable] | None = None

    @field_validator("drained")
    @classmethod
    def _text(cls, value: str | None) -> str:
        if value is None:
            raise ValueError('a reason, or "" to return it to service')
        return " ".join(value.split())

    @field_validator("mode")
    @classmethod
    def _known_mode(cls, value: str | None) -> str | None:
        if value is None or value == "exclusive":
            return value
        kind, _, count = value.partition(":")
        is_number = count.isascii() and count.isdecimal()
        if kind == "shared" and is_number and 2 <= int(count) <= MAX_SLOTS:
            return f"shared:{int(count)}"
        if value == "mig":
            raise ValueError("MIG is set on the host: see nvidia-smi mig there")
        raise ValueError(f'"exclusive", or "shared:N" with N from 2 to {MAX_SLOTS}')


class Boost(_Body):
    """What is added to the priority of somebody who waits."""

    boost: Annotated[int, BeforeValidator(_no_truth), Field(ge=PRIORITIES[0], le=PRIORITIES[1])]


class StopServer(_Body):
    """Why a server is stopped, for its student."""

    message: Annotated[str, Field(max_length=500), Printable] = ""
    # Id of the start that is meant; empty for whatever runs.
    start: Annotated[str, Field(max_length=64)] = ""


class RestartServer(_Body):
    """A student's own server that is to be started anew."""

    # Id of the start that is meant; empty for whatever runs.
    start: Annotated[str, Field(max_length=64)] = ""


class CacheBuild(_Body):
    """A warm cache that is asked for: of a suite of the lab's, or of an earlier build's.

    Built again, what is left out is as it was then.
    """

    suite: Text = ""
    again_of: Text = ""
    course: Text = ""
    image: Annotated[str, Field(max_length=512), Printable] = ""
    pool: Text = ""
    gpus: Annotated[int, BeforeValidator(_no_truth), Field(ge=0, le=1)] = 1

    @model_validator(mode="after")
    def _one_of_both(self) -> CacheBuild:
        if bool(self.suite) == bool(self.again_of):
            raise ValueError("name either a suite, or an earlier build in again_of")
        return self


class CourseText(_Body):
    """A course as the text of its course.yaml, or the lab's example; exactly one of both."""

    yaml: Annotated[str, Field(max_length=MAX_MANIFEST_BYTES)] | None = None
    example: bool = False

    @model_validator(mode="after")
    def _one_of_both(self) -> CourseText:
        if (self.yaml is None) != self.example:
            raise ValueError("send either a text in yaml, or example: true")
        return self


class CourseBody(RootModel[Manifest | CourseText]):
    """A course's manifest, or its text. For the document: the handler tells them apart itself."""


class Reset(_Body):
    """One file of one student that is brought back to the course's."""

    user: Text
    path: Annotated[str, Field(min_length=1, max_length=400), Printable]


class Calendar(_Body):
    """A calendar file, and the seats that each of its sessions keeps (null: one a student)."""

    ics: Annotated[str, Field(max_length=1024 * 1024)]
    seats: Annotated[int, BeforeValidator(_no_truth), Field(ge=0, le=2000)] | None = None


class GrantsBody(_Body):
    """All of the ledger's grants."""

    grants: Annotated[list[Any], Field(max_length=10_000)]


class PreviewBody(_Body):
    """All of the ledger's grants, or what changes of them; and whose view of it is wanted."""

    grants: Annotated[list[Any], Field(max_length=10_000)] | None = None
    put: Annotated[list[Any], Field(max_length=1_000)] = []
    remove: Annotated[list[Text], Field(max_length=1_000)] = []
    user: Text | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> PreviewBody:
        if self.grants is not None and (self.put or self.remove):
            raise ValueError("send either grants, or put and remove")
        return self
