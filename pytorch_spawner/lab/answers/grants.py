"""What the API answers about grants."""

from __future__ import annotations

from pydantic import Field

from pytorch_spawner.lab.answers.common import Answer, Fault


class Grant(Answer):
    """A grant; what is not set is left out."""

    id: str
    to: str
    subject: str = ""
    pool: str = ""
    gpus: list[str] = Field([])
    count: int
    share: str
    priority: int = 0
    weekly_gpu_hours: float | None = None
    max_lease_s: int | None = None
    valid_from: str | None = None
    valid_until: str | None = None
    images: list[str] = Field([])
    source: str
    etag: str = ""
    used_gpu_hours: float = 0.0


class Grants(Answer):
    """All grants with their version; or one person's, and why."""

    grants: list[Grant]
    etag: str = ""
    user: str = ""
    sentences: list[str] = Field([])


class GrantChanged(Answer):
    """A grant as it is now."""

    grant: Grant
    change: int | None


class GrantsReplaced(Answer):
    """The ledger's grants as they are now."""

    grants: list[Grant]
    etag: str
    changes: list[int]


class Difference(Answer):
    """One grant before and after."""

    id: str
    before: Grant | None
    after: Grant | None


class Preview(Answer):
    """What a change would mean."""

    faults: list[str]
    problems: list[Fault]
    warnings: list[str]
    changes: list[Difference]
    effects: list[str]
    explained: Grants | None = None
