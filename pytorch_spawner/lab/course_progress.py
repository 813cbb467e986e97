"""The steps of a course's preload as they go: what runs, what failed and why, what was given up."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Final

from tornado.httpclient import HTTPClientError

from pytorch_spawner.core.class_preload import given_up
from pytorch_spawner.core.courses import STEPS, Step
from pytorch_spawner.errors import LabError
from pytorch_spawner.lab.accounts import reason

log = logging.getLogger("pytorch_spawner.preloader")

MAX_NOTES: Final = 50


class StepFailed(LabError):
    """A step of a preload failed; the text says why, for an instructor."""

    code = "step-failed"

    def __init__(self, public_message: str, *, notes: tuple[str, ...] = ()) -> None:
        super().__init__(public_message)
        self.notes = notes


class GivenUp(StepFailed):
    """A step was ended because the class begins; nothing is known to be wrong."""


class Progress:
    """The steps of one preload, written into the ledger as they go."""

    def __init__(self, note: Callable[[tuple[Step, ...]], Any], *, is_served: bool) -> None:
        """Begin with every step waiting.

        Args:
            note: Writes the steps down.
            is_served: Students have the course already.
        """
        self._note = note
        self._is_served = is_served
        self._steps = {name: Step(name) for name in STEPS}

    async def set(self, name: str, **facts: Any) -> None:
        """Change what is known of a step."""
        self._steps[name] = replace(self._steps[name], **facts)
        await self._note(tuple(self._steps.values()))

    @asynccontextmanager
    async def step(self, name: str) -> AsyncIterator[None]:
        """Run a step: it is done at the end, unless it says something else, or fails by raising.

        Raises:
            StepFailed: It failed; that is written down, and those after it are skipped.
            GivenUp: The class begins; see ``core.class_preload.given_up``.
        """
        began = time.monotonic()
        await self.set(name, state="running")
        async with self._failures_told(name, began):
            yield
        is_over = self._steps[name].state != "running"
        await self.set(
            name,
            seconds=round(time.monotonic() - began, 2),
            **({} if is_over else {"state": "done"}),
        )

    @asynccontextmanager
    async def before(self, name: str) -> AsyncIterator[None]:
        """Wait until a step may begin: what ends the wait ends the step, as in ``step``."""
        async with self._failures_told(name, time.monotonic()):
            yield

    @asynccontextmanager
    async def _failures_told(self, name: str, began: float) -> AsyncIterator[None]:
        try:
            yield
        except asyncio.CancelledError:
            raise  # the service ends; the next one begins the task again
        except Exception as error:
            if not isinstance(error, (LabError, HTTPClientError, OSError)):
                log.exception("the step %s fell over", name)
            notes = error.notes if isinstance(error, StepFailed) else ()
            ended = replace(
                self._steps[name],
                state="failed",
                message=reason(error),
                notes=notes[:MAX_NOTES],
                seconds=round(time.monotonic() - began, 2),
            )
            is_given_up = isinstance(error, GivenUp)
            self._steps[name] = given_up(ended, is_served=self._is_served) if is_given_up else ended
            await self._note(tuple(self._steps.values()))
            if is_given_up:
                raise
            raise StepFailed(reason(error)) from error

    async def skip_rest(self, why: str) -> None:
        """What has not begun will not begin."""
        for name, step in self._steps.items():
            if step.state == "waiting":
                self._steps[name] = replace(step, state="skipped", message=why)
        await self._note(tuple(self._steps.values()))
