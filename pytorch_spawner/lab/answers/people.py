"""What the API answers about people: who is asking, and who may have what."""

from __future__ import annotations

from typing import Literal

from pytorch_spawner.lab.answers.common import Answer
from pytorch_spawner.lab.answers.grants import Grant


class MyServer(Answer):
    """One of the person's servers."""

    server: str
    start: str
    image: str
    created_at: float
    outcome: str
    page: str


class Me(Answer):
    """Who is asking."""

    name: str
    kind: str
    can_view_all: bool
    can_admin: bool
    can_instruct: bool
    servers: list[MyServer]


class Held(Answer):
    """A GPU that somebody holds."""

    gpu: str
    name: str
    server: str
    slot: int | None
    since: float


class Person(Answer):
    """Everyone, a group, or a user."""

    kind: Literal["everyone", "group", "user"]
    name: str
    members: int | None
    groups: list[str]
    is_known: bool
    grants: list[Grant]
    sentences: list[str]
    holds: list[Held]


class Pool(Answer):
    """A pool."""

    name: str
    gpus: int


class Choice(Answer):
    """A GPU that can be pinned."""

    uuid: str
    index: int
    name: str
    pool: str
    pinned_to: str


class People(Answer):
    """One page of people."""

    total: int
    rows: list[Person]
    pools: list[Pool]
    gpus: list[Choice]
