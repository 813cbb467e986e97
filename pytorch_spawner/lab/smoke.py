"""A course in a fresh student's server: it is started, watched by its journal, and thrown away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from tornado.httpclient import HTTPClientError

from pytorch_spawner.core.courses import SMOKER, Course
from pytorch_spawner.core.journal import Event
from pytorch_spawner.lab.accounts import Account, reason
from pytorch_spawner.lab.course_progress import MAX_NOTES, StepFailed
from pytorch_spawner.lab.settings import LabSettings
from pytorch_spawner.ledger.store import Ledger, Start

_LOOK_S: Final = 0.5
# Until the container's own word comes: a pull of a large image, or a queue for a GPU.
_START_S: Final = 3600.0
# Beside the notebooks' own time: sync, JupyterLab, kernels.
_GRACE_S: Final = 120.0
# So often the hub is asked about a server that it does not know before the start counts as lost.
_LOST_LOOKS: Final = 10
# Asked again and again: raises StepFailed where what is done for a course is to end.
GoOn = Callable[[Course], Awaitable[None]]


class Tells(Protocol):
    """What a step tells of itself."""

    async def set(self, name: str, **facts: Any) -> None:
        """Change what is known of a step."""

    def step(self, name: str) -> Any:
        """A context in which a step runs."""

    def before(self, name: str) -> Any:
        """A context in which something waits until a step may begin."""


@dataclass(slots=True)
class Smoked:
    """What the fresh student's server was.

    Attributes:
        image: Its image's reference.
        gpus: How many GPUs it held.
        is_simulated: They were simulated ones.
        notes: A sentence for each notebook.
        synced: What was said of the notebooks' arrival; "" before.
        is_done: The container said that it is through.
        failure: Why it failed; "" where it did not.
    """

    image: str = ""
    gpus: int = 0
    is_simulated: bool = False
    notes: list[str] = field(default_factory=list)
    synced: str = ""
    is_running: bool = False
    is_done: bool = False
    failure: str = ""
    waits: str = ""

    def take(self, event: Event) -> None:
        """Read one entry of the journal."""
        data = event.data
        if event.kind == "queue":
            self.waits = f"Number {data.get('place')} in the queue. {_said(data, 'reason')}"
        elif event.kind == "start":
            self._take_start(data)
        elif event.kind == "course":
            self._take_course(data)

    def _take_start(self, data: Mapping[str, Any]) -> None:
        stage = data.get("stage")
        if stage == "gpu":
            gpus = [one for one in data.get("gpus") or () if isinstance(one, Mapping)]
            self.gpus, self.waits = len(gpus), ""
            self.is_simulated = any(one.get("is_simulated") for one in gpus)
        elif stage == "image":
            self.image = str(data.get("image") or "")
        elif stage == "container":
            self.is_running = True
        elif stage in ("failed", "stopped") and not self.is_done:
            self.failure = _said(data, "message") or "Its server ended."
        elif stage == "course" and not self.synced:
            self.failure = _said(data, "message")

    def _take_course(self, data: Mapping[str, Any]) -> None:
        phase = data.get("phase")
        if phase == "done":
            self.synced = _said(data, "message")
        elif phase == "failed":
            self.failure = " ".join((_said(data, "message"), _said(data, "admin_remedy")))
        elif phase == "smoke":
            self.notes.append(_of_notebook(data))
            if data.get("level") == "fail" and not self.failure:
                self.failure = _said(data, "message")
        elif phase == "smoke-done":
            self.is_done = True
            if data.get("level") == "fail" and not self.failure:
                self.failure = _said(data, "message") or "It failed."


class SmokeTest:
    """Runs one at a time: they share an account, and it has one server."""

    def __init__(self, settings: LabSettings, ledger: Ledger) -> None:
        self._ledger = ledger
        self._hub = settings.hub_id
        self._account = Account(settings, SMOKER)
        self._turn = asyncio.Lock()

    async def run(self, course: Course, progress: Tells, go_on: GoOn) -> Smoked:
        """Start the server, wait for what it says, stop it.

        Args:
            course: Which.
            progress: Is told of the steps.
            go_on: Raises where it is to end.

        Raises:
            StepFailed: It did not start, the notebooks did not arrive, or one of them failed; or
                what ``go_on`` raised.
        """
        # No part of the step: a server is started for the course whose step "image" runs.
        async with progress.before("image"):
            await self._wait_for_turn(course, progress, go_on)
        try:
            smoked = Smoked()
            try:
                async with progress.step("image"):
                    await go_on(course)
                    await self._account.ensure()
                    await self._account.stop()
                    began = time.time()
                    asking = self._account.start({"course": course.name})
                    watch = _Watch(course, began, asking, smoked, go_on, _START_S)
                    await self._follow(
                        watch,
                        lambda: smoked.is_running,
                        lambda: progress.set("image", message=smoked.waits or smoked.image),
                    )
                    await progress.set("image", message=f"{smoked.image} is there and starts.")
                async with progress.step("smoke"):
                    smoke = course.manifest.smoke
                    watch.limit_s = (smoke.deadline_s if smoke else 60) + _GRACE_S
                    try:
                        await self._follow(
                            watch,
                            lambda: smoked.is_done or bool(smoke is None and smoked.synced),
                            lambda: progress.set("smoke", notes=tuple(smoked.notes[:MAX_NOTES])),
                        )
                    except StepFailed as error:
                        error.notes = tuple(smoked.notes)
                        raise
                    notes = tuple(smoked.notes[:MAX_NOTES])
                    message = _summary(course, smoked)
                    if course.manifest.request.gpus and not smoked.gpus:
                        # As a student without a grant would; it proves nothing about a GPU.
                        await progress.set("smoke", state="warned")
                        message += f" No grant gives {SMOKER} a GPU; an admin can add one."
                    await progress.set("smoke", message=message, notes=notes)
            finally:
                await self._account.stop()
            return smoked
        finally:
            self._turn.release()

    async def end_left_over(self) -> None:
        """Stop what an earlier service left running."""
        await self._account.stop()

    async def _wait_for_turn(self, course: Course, progress: Tells, go_on: GoOn) -> None:
        if self._turn.locked():
            await progress.set("image", message="Another course is being tried; this one waits.")
        while True:
            try:
                await asyncio.wait_for(self._turn.acquire(), _LOOK_S * 4)
                return
            except (TimeoutError, asyncio.TimeoutError):
                await go_on(course)

    async def _follow(
        self,
        watch: _Watch,
        is_there: Callable[[], bool],
        tell: Callable[[], Awaitable[None]],
    ) -> None:
        ends_at, lost, told = time.monotonic() + watch.limit_s, 0, -1
        while True:
            for event in await self._news(watch):
                watch.smoked.take(event)
            if watch.smoked.failure:
                raise StepFailed(watch.smoked.failure)
            if is_there():
                return
            if watch.seq != told:
                told = watch.seq
                await tell()
            await watch.go_on(watch.course)
            if why := watch.why_not_starting():
                raise StepFailed(why)
            is_lost = watch.asking.done() and not (await self._account.server())[0]
            lost = lost + 1 if is_lost else 0
            if lost > _LOST_LOOKS:
                raise StepFailed("Its server did not start, or was stopped; see the hub's log.")
            if time.monotonic() > ends_at:
                raise StepFailed(f"Nothing more was heard of it for {watch.limit_s:.0f} s.")
            await asyncio.sleep(_LOOK_S)

    async def _news(self, watch: _Watch) -> tuple[Event, ...]:
        def read(ledger: Ledger) -> tuple[Event, ...]:
            start: Start | None = ledger.latest_start(self._hub, SMOKER, "")
            if start is None or start.created_at < watch.began - 1:
                return ()
            return ledger.read_events(start.id, watch.seq)

        events = await asyncio.to_thread(read, self._ledger)
        if events:
            watch.seq = events[-1].seq
        return events


@dataclass(slots=True)
class _Watch:
    """One server that is waited for."""

    course: Course
    began: float
    asking: asyncio.Task[bytes]
    smoked: Smoked
    go_on: GoOn
    limit_s: float
    seq: int = 0

    def why_not_starting(self) -> str:
        """What the hub answered to the start, where that is a refusal."""
        error = self.asking.exception() if self.asking.done() else None
        # 599: the hub took longer than the request was waited for.
        is_slow = isinstance(error, HTTPClientError) and error.code == 599
        return "" if error is None or is_slow else reason(error)


def _summary(course: Course, smoked: Smoked) -> str:
    kind = "simulated GPU" if smoked.is_simulated else "GPU"
    where = f"on {smoked.gpus} {kind}{'s'[: smoked.gpus > 1]}" if smoked.gpus else "on the CPU"
    if course.manifest.smoke is None:
        return f"A fresh student's server starts {where} with the notebooks. {smoked.synced}"
    count = len(smoked.notes)
    return f"{count} of {len(course.manifest.smoke.notebooks)} run {where}."


def _of_notebook(data: Mapping[str, Any]) -> str:
    seconds = data.get("seconds")
    is_time = isinstance(seconds, (int, float)) and 0 <= seconds < 1e6
    took = f" {seconds:.1f} s" if is_time else ""
    said = _said(data, "message")
    return f"{_said(data, 'notebook')}: {data.get('level')},{took}. {said}"[:400]


def _said(data: Mapping[str, Any], key: str) -> str:
    """A text out of a container's report."""
    return str(data.get(key) or "")[:300]
