"""What the API answers, as pydantic models: for openapi.json, and for the tests that hold it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Answer(BaseModel):
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


class Fault(_Answer):
    """One fault and its place."""

    row: int | None
    field: str
    message: str


class Error(_Answer):
    """Why not: a stable code and a sentence."""

    code: str
    message: str
    faults: list[str] = []
    problems: list[Fault] = []
    now: Any = None


class MyServer(_Answer):
    """One of the person's servers."""

    server: str
    start: str
    image: str
    created_at: float
    outcome: str
    page: str


class Me(_Answer):
    """Who is asking."""

    name: str
    kind: str
    can_view_all: bool
    can_admin: bool
    can_instruct: bool
    servers: list[MyServer]


class Meter(_Answer):
    """Who measures."""

    source: Literal["driver", "reports", "none"]
    reason: str


class Sample(_Answer):
    """One measurement; null is unknown."""

    at: float
    utilisation: float | None
    memory_used_mib: float | None
    temperature_c: float | None
    power_w: float | None


class Holder(_Answer):
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


class Process(_Answer):
    """A process on a GPU; user is null for one that is nobody's here, or where is_told is false."""

    pid: int
    name: str
    used_mib: int | None
    user: str | None
    server: str | None
    is_told: bool


class Pin(_Answer):
    """A grant that pins a GPU."""

    id: str
    to: str
    subject: str
    source: str
    gpus: int
    etag: str


class Setting(_Answer):
    """What an admin decided about a GPU; null leaves it as configured."""

    pool: str | None
    mode: str | None
    drained: str


class Gpu(_Answer):
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
    pins: list[Pin] = []
    holders: list[Holder] = []
    processes: list[Process] = []
    sample: Sample | None = None


class Gpus(_Answer):
    """All GPUs."""

    gpus: list[Gpu]
    reason: str
    meter: Meter


class Series(_Answer):
    """What one GPU did; null is unknown."""

    utilisation: list[float | None]
    memory_used_mib: list[float | None]
    temperature_c: list[float | None]
    power_w: list[float | None]


class History(_Answer):
    """The last quarter of an hour."""

    step_s: float
    at: list[float]
    gpus: dict[str, Series]


class GpuChanged(_Answer):
    """A GPU as it is now."""

    gpu: Gpu | None
    change: int | None


class Grant(_Answer):
    """A grant; what is not set is left out."""

    id: str
    to: str
    subject: str = ""
    pool: str = ""
    gpus: list[str] = []
    count: int
    share: str
    priority: int = 0
    weekly_gpu_hours: float | None = None
    max_lease_s: int | None = None
    valid_from: str | None = None
    valid_until: str | None = None
    images: list[str] = []
    source: str
    etag: str = ""
    used_gpu_hours: float = 0.0


class Grants(_Answer):
    """All grants with their version; or one person's, and why."""

    grants: list[Grant]
    etag: str = ""
    user: str = ""
    sentences: list[str] = []


class GrantChanged(_Answer):
    """A grant as it is now."""

    grant: Grant
    change: int | None


class GrantsReplaced(_Answer):
    """The ledger's grants as they are now."""

    grants: list[Grant]
    etag: str
    changes: list[int]


class Removed(_Answer):
    """What is gone."""

    removed: str
    change: int


class Difference(_Answer):
    """One grant before and after."""

    id: str
    before: Grant | None
    after: Grant | None


class Preview(_Answer):
    """What a change would mean."""

    faults: list[str]
    problems: list[Fault]
    warnings: list[str]
    changes: list[Difference]
    effects: list[str]
    explained: Grants | None = None


class Held(_Answer):
    """A GPU that somebody holds."""

    gpu: str
    name: str
    server: str
    slot: int | None
    since: float


class Person(_Answer):
    """Everyone, a group, or a user."""

    kind: Literal["everyone", "group", "user"]
    name: str
    members: int | None
    groups: list[str]
    is_known: bool
    grants: list[Grant]
    sentences: list[str]
    holds: list[Held]


class Pool(_Answer):
    """A pool."""

    name: str
    gpus: int


class Choice(_Answer):
    """A GPU that can be pinned."""

    uuid: str
    index: int
    name: str
    pool: str
    pinned_to: str


class People(_Answer):
    """One page of people."""

    total: int
    rows: list[Person]
    pools: list[Pool]
    gpus: list[Choice]


class Waiting(_Answer):
    """One who waits."""

    user: str
    server: str
    start: str
    place: int
    of: int
    ahead: int
    since: float
    expected_at: float | None
    reason: str
    can_start_cpu: bool
    gpus: int
    share: str
    pool: str
    boost: int
    is_away: bool
    etag: str


class Queue(_Answer):
    """One page of the queue."""

    length: int
    version: str
    total: int
    waiting: list[Waiting]


class WaitingChanged(_Answer):
    """One who waits, as it is now; null when served meanwhile."""

    waiting: Waiting | None
    change: int | None


class Lease(_Answer):
    """What a running server holds."""

    id: str
    start: str
    user: str
    server: str
    gpus: list[str]
    slots: list[int | None]
    request: dict[str, Any]
    grant: str
    since: float
    until: float | None
    kept_until: float | None


class Leases(_Answer):
    """All leases that one may see."""

    leases: list[Lease]


class Stopping(_Answer):
    """The hub stops it."""

    stopping: bool
    change: int


class Event(_Answer):
    """One entry of a journal."""

    v: int
    seq: int
    at: float
    kind: str
    data: dict[str, Any]


class Journal(BaseModel):
    """A journal as a list."""

    model_config = ConfigDict(json_schema_extra={"type": "array"})


class Report(BaseModel):
    """What an agent sends; see docs/reference/events.md."""

    v: Literal[1]
    start: str = ""
    events: Annotated[list[dict[str, Any]], Field(max_length=64)]


class Accepted(_Answer):
    """How many events were written, and the number of the last."""

    accepted: int
    seq: int | None


class CourseOrder(_Answer):
    """One file of a person's copy of a course that is to be as the course has it."""

    id: str
    path: str


class CourseOrders(_Answer):
    """The open orders, the oldest first."""

    orders: list[CourseOrder]


class DayUse(_Answer):
    """GPU-hours on one day; busy is null where nobody measured."""

    held_h: float
    busy_h: float | None


class UsageRow(_Answer):
    """One user, course or GPU."""

    key: str
    label: str
    held_h: float
    busy_h: float | None
    days: list[DayUse]


class Usage(_Answer):
    """GPU-hours by day."""

    first: str
    last: str
    by: str
    days: list[str]
    rows: list[UsageRow]
    sums: list[DayUse]
    total: DayUse
    note: str


class Change(_Answer):
    """One line of the audit log."""

    id: int
    at: float
    by: str
    what: str
    subject: str
    before: Any
    after: Any
    sentence: str
    can_undo: bool
    undone_by: int | None
    undoes: int | None


class Log(_Answer):
    """One page of the audit log."""

    rows: list[Change]
    next: int | None


class Undone(_Answer):
    """Id of the line that took it back."""

    change: int


class SuiteTarget(_Answer):
    """What a suite runs."""

    name: str
    kind: Literal["function", "script", "notebook"]
    what: str
    tag: str
    vary: Annotated[list[str | int], Field(min_length=2, max_length=2)] | None


class Suite(_Answer):
    """What a build compiles."""

    name: str
    targets: list[SuiteTarget]
    imports: list[str]
    network: bool
    deadline_s: int


class CacheKey(_Answer):
    """What a start must have in common with a warm cache; empty texts for the CPU."""

    image_id: str
    gpu: str
    capability: str
    driver_branch: str
    scope: str


class CacheTarget(_Answer):
    """What one first step took; cold is null for a size whose graph was there already."""

    name: str
    size: int | None
    cold_s: float | None
    warm_s: float | None
    hits: int
    misses: int


class Cache(_Answer):
    """A warm cache, or a build of one; cold_s and warm_s are of all first steps together."""

    id: str
    course: str
    image: str
    pool: str
    gpus: int
    suite: Suite
    suite_digest: str
    by: str
    asked_at: float
    state: Literal["queued", "building", "checking", "published", "failed", "expired"]
    standing: str
    is_current: bool
    message: str
    ended_at: float | None
    where: str
    key: CacheKey | None
    torch: str
    triton: str
    digest: str
    size_bytes: int
    files: int
    targets: list[CacheTarget]
    cold_s: float | None
    warm_s: float | None
    hits: int
    promoted_at: float | None
    used_at: float | None
    etag: str


class CacheWithLog(Cache):
    """A warm cache with the end of its build's log, which is whatever its code wrote."""

    log: str


class Caches(_Answer):
    """All warm caches and builds, the newest first."""

    caches: list[Cache]


class KnownSuite(_Answer):
    """A suite that the lab has; a fault tells why it cannot be built."""

    name: str
    targets: list[str]
    fault: str


class CacheChoices(_Answer):
    """What a build can be asked for with."""

    suites: list[KnownSuite]
    images: list[str]
    courses: list[str]
    pools: list[str]
    gpus: int


class OneCache(_Answer):
    """One warm cache."""

    cache: CacheWithLog


class CacheChanged(_Answer):
    """A warm cache as it is now, and what starts with its key are given."""

    cache: Cache
    change: int | None
    sentence: str


class CourseStep(_Answer):
    """One step of a preload; its notes are whatever the notebooks gave rise to."""

    name: Literal["fetch", "check", "image", "smoke", "warm"]
    label: str
    state: Literal["waiting", "running", "done", "warned", "failed", "skipped"]
    message: str
    seconds: float | None
    notes: list[str]


class CourseSession(_Answer):
    """One meeting of the class; seats is null for one for each student."""

    course: str
    title: str
    starts_at: float
    ends_at: float
    seats: int | None


class Candidate(_Answer):
    """What was fetched last; is_new: students do not have it yet."""

    commit: str
    says: str
    is_new: bool


class Published(_Answer):
    """What students have."""

    commit: str
    at: float | None
    by: str


class StudentCounts(_Answer):
    """How many students there are, and how their copies are."""

    total: int
    current: int
    behind: int
    never: int
    conflicts: int
    failed: int


class Course(_Answer):
    """A course for whoever looks after it.

    etag is the version of its manifest, content_etag that of what would be published.
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
    link: str
    etag: str
    content_etag: str


class CourseChange(_Answer):
    """One line of the audit log about a course."""

    at: float
    by: str
    sentence: str


class CourseInFull(Course):
    """A course with its manifest, as JSON and as text, and its latest changes."""

    manifest: dict[str, Any]
    yaml: str
    changes: list[CourseChange]


class MyCourse(_Answer):
    """What somebody is told who belongs to a course."""

    name: str
    title: str
    folder: str
    next_session: CourseSession | None
    link: str
    is_staff: bool


class Courses(_Answer):
    """The courses that one looks after, and those that one belongs to."""

    courses: list[Course]
    mine: list[MyCourse]
    note: str


class OneCourse(_Answer):
    """One course."""

    course: CourseInFull


class CourseChanged(_Answer):
    """A course as it is now, and what was done."""

    course: Course
    sentence: str


class CourseSaved(_Answer):
    """A course as it is now; null for somebody who does not look after it any more."""

    course: Course | None
    sentence: str


class TimetableTaken(CourseChanged):
    """What of a calendar was left out or assumed."""

    notes: list[str]


class FileOrder(_Answer):
    """A file that is to be brought back to the course's version."""

    id: str
    path: str
    by: str
    at: float


class CourseStudent(_Answer):
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


class CourseStudents(_Answer):
    """Everybody of a course; note says why somebody may be missing."""

    students: list[CourseStudent]
    published: str
    note: str


class ResetAsked(_Answer):
    """What was ordered."""

    order: FileOrder
    sentence: str
