"""One tree of errors. Each has a stable ``code`` and a sentence that may be shown to anyone.

What is secret or only of use to an admin goes into the exception's own message, which is logged;
``public_message`` says what happened, why, and what to do, in that order. Pages and the API branch
on ``code``, never on a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


class LabError(Exception):
    """Base of everything this package raises on purpose.

    Attributes:
        code: Stable, lower-case, one per kind of trouble; documented in the error reference.
        public_message: A sentence or two for the person concerned; no paths, tokens or tracebacks.
        log_tail: Last lines a container wrote, oldest first; empty where there was none. Hostile
            text: escape it wherever it is shown.
    """

    code = "error"

    def __init__(
        self, public_message: str, *, detail: str = "", log_tail: tuple[str, ...] = ()
    ) -> None:
        super().__init__(f"{public_message} [{detail}]" if detail else public_message)
        self.public_message = public_message
        self.detail = detail
        self.log_tail = log_tail


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault of what somebody wrote, so that a form can say it beside the field.

    Attributes:
        message: The fault itself.
        field: Name of the field; "" where it is about several.
        row: Its place among several rows, from 1, or its line in a file; None where there is none.
    """

    message: str
    field: str = ""
    row: int | None = None


class BadRequest(LabError):
    """What was asked for cannot be asked: the message names the option and what is allowed.

    Attributes:
        faults: Every single fault, where there may be several (a file of grants).
        problems: The same with their places, where those are known.
    """

    code = "bad-request"

    def __init__(
        self,
        public_message: str,
        *,
        faults: Sequence[str] = (),
        problems: Sequence[Problem] = (),
        detail: str = "",
    ) -> None:
        super().__init__(public_message, detail=detail)
        self.faults = tuple(faults)
        self.problems = tuple(problems)


class ChangedMeanwhile(LabError):
    """Somebody else changed it after it was looked at; nothing was written.

    Attributes:
        now: What is there now, as the API shows it; None when it is gone.
    """

    code = "changed-meanwhile"

    def __init__(self, public_message: str, *, now: Any = None) -> None:
        super().__init__(public_message)
        self.now = now


class NotGranted(LabError):
    """No grant gives this person what was asked for, or the weekly hours are used up."""

    code = "not-granted"


class NoGpuAvailable(LabError):
    """Every eligible GPU is in use.

    Attributes:
        wanted: How many GPUs the request asked for.
        free: How many eligible ones are free.
    """

    code = "no-gpu-available"

    def __init__(self, public_message: str, *, wanted: int, free: int) -> None:
        super().__init__(public_message)
        self.wanted = wanted
        self.free = free


class RemovedFromQueue(LabError):
    """An admin took the start out of the queue."""

    code = "removed-from-queue"


class StartIsOver(LabError):
    """The start ended, by a cancel or a newer start, before it got what it asked for."""

    code = "start-is-over"


class NoGpuInjection(LabError):
    """The engine has no way to put a GPU into a container (neither CDI nor NVIDIA's runtime)."""

    code = "no-gpu-injection"


class EngineUnavailable(LabError):
    """The Docker Engine does not answer."""

    code = "engine-unavailable"


class EngineRefused(LabError):
    """The Docker Engine answered with an error that is not the student's doing."""

    code = "engine-refused"


class ImageMissing(LabError):
    """The image is not on the engine and could not be pulled."""

    code = "image-missing"


class ImageDoesNotFit(LabError):
    """The image's PyTorch does not run on any GPU that the start could get."""

    code = "image-does-not-fit"


class CacheNotSealed(LabError):
    """What a warm cache's build compiled cannot be published."""

    code = "cache-not-sealed"


class SourceUnusable(LabError):
    """A course's source cannot be fetched, or is nothing that students could be given.

    Attributes:
        cause: Which trouble it was, one word or two with a hyphen; stable, as the code is.
    """

    code = "source-unusable"

    def __init__(self, public_message: str, *, cause: str, detail: str = "") -> None:
        super().__init__(public_message, detail=detail)
        self.cause = cause


class ContainerDied(LabError):
    """The container exited before its server answered."""

    code = "container-died"


class NotReadyInTime(LabError):
    """The container runs, but its server did not answer in time."""

    code = "not-ready"


class IdentityConflict(LabError):
    """No uid can be given to this user without sharing it or going below 1000."""

    code = "identity-conflict"


class HomeUnusable(LabError):
    """The home directory exists but is not the user's, or could not be created."""

    code = "home-unusable"


class LedgerUnavailable(LabError):
    """The ledger cannot be read or written: locked, read-only, damaged, or of a newer version."""

    code = "ledger-unavailable"


class InvalidEvent(LabError):
    """An event that came out of a container breaks the journal's schema or its limits."""

    code = "invalid-event"
