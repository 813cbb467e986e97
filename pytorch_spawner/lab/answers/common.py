"""What the API answers everywhere: errors, and bodies that are no JSON object."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class Answer(BaseModel):
    """Base of all answers: what is not described is not said."""

    model_config = ConfigDict(extra="forbid")


class Anything(BaseModel):
    """A JSON object."""

    model_config = ConfigDict(extra="allow")


class Stream(BaseModel):
    """Server-sent events."""


class Text(BaseModel):
    """Plain text."""


class Yaml(BaseModel):
    """Text of a YAML file."""


class Fault(Answer):
    """One fault and its place."""

    row: int | None
    field: str
    message: str


class Error(Answer):
    """Why not: a stable code and a sentence."""

    code: str
    message: str
    faults: list[str] = []
    problems: list[Fault] = []
    now: Any = None


class Removed(Answer):
    """What is gone."""

    removed: str
    change: int
