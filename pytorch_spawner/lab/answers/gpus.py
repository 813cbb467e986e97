"""What the API answers about GPUs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pytorch_spawner.lab.answers.common import Answer


class Meter(Answer):
    """Who measures."""

    source: Literal["driver", "reports", "none"]
    reason: str


class Sample(Answer):
    """One measurement; null is unknown."""

    at: float
    utilisation: float | None
    memory_used_mib: float | None
    temperature_c: float | None
    power_w: float | None


class Holder(Answer):
    """Who holds a slot."""

    user: str
    server: str
    slot: int | None
    since: float
    until: float | None
    kept_until: float | None
    lease: str
    start: str
    grant: str
    course: str
    image: str


class Process(Answer):
    """A process on a GPU; user is null for one that is nobody's here, or where is_told is false."""

    pid: int
    name: str
    used_mib: int | None
    user: str | None
    server: str | None
    is_told: bool


class Pin(Answer):
    """A grant that pins a GPU."""

    id: str
    to: str
    subject: str
    source: str
    gpus: int
    etag: str


class Setting(Answer):
    """What an admin decided about a GPU; null leaves it as configured."""

    pool: str | None
    mode: str | None
    drained: str


class Gpu(Answer):
    """A GPU; the fields from etag on are for viewers."""

    uuid: str
    index: int
    name: str
    memory_mib: int | None
    compute_capability: Annotated[list[int], Field(min_length=2, max_length=2)] | None
    driver: str
    pool: str
    is_simulated: bool
    mode: str
    slots: int
    slot_memory_mib: int | None
    mig_profile: str
    health: str
    drained: str
    leases: int
    mine: bool = False
    etag: str = ""
    setting: Setting | None = None
    pins: list[Pin] = Field([])
    holders: list[Holder] = Field([])
    processes: list[Process] = Field([])
    sample: Sample | None = None


class Gpus(Answer):
    """All GPUs."""

    gpus: list[Gpu]
    reason: str
    meter: Meter


class Series(Answer):
    """What one GPU did; null is unknown."""

    utilisation: list[float | None]
    memory_used_mib: list[float | None]
    temperature_c: list[float | None]
    power_w: list[float | None]


class History(Answer):
    """The last quarter of an hour."""

    step_s: float
    at: list[float]
    gpus: dict[str, Series]


class GpuChanged(Answer):
    """A GPU as it is now."""

    gpu: Gpu | None
    change: int | None
