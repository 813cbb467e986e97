"""The warm cache of a course: its suite, made of what was fetched, built like any other."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import yaml

from pytorch_spawner.adapters.git_source import Mirror
from pytorch_spawner.core.courses import Course
from pytorch_spawner.core.suites import MAX_BYTES, MAX_FILES, SUITE_FILE, digest, pack, read_suite
from pytorch_spawner.lab.course_progress import StepFailed
from pytorch_spawner.lab.smoke import GoOn, Smoked, Tells
from pytorch_spawner.ledger.store import Ledger

_LOOK_S: Final = 1.0
_CODE: Final = (".py", ".ipynb", ".json", ".yaml", ".txt")


def suite_files(course: Course, mirror: Mirror) -> dict[str, bytes]:
    """A course's suite: what the manifest says, and the code beside it; blocking.

    Files beyond a suite's size are left out, the largest first; a target that one of them is then
    misses it, and says so.
    """
    entries = [
        one
        for one in mirror.entries(course.manifest.source.path)
        if one.kind == "file" and one.path.endswith(_CODE) and one.path != SUITE_FILE
    ]
    said = {"name": course.name, **(course.manifest.warmup or {})}
    files = {SUITE_FILE: yaml.safe_dump(said).encode()}
    left = MAX_BYTES - len(files[SUITE_FILE])
    for entry in sorted(entries, key=lambda one: (one.size, one.path))[: MAX_FILES - 1]:
        if entry.size <= left:
            files[entry.path] = mirror.read(entry, left)
            left -= entry.size
    return files


async def warm_up(  # noqa: PLR0913  (a build has these fields)
    ledger: Ledger,
    hub: str,
    course: Course,
    mirror: Mirror,
    smoked: Smoked,
    progress: Tells,
    go_on: GoOn,
) -> None:
    """Ask for the cache and wait for it.

    Raises:
        BadRequest: The manifest's suite is not usable.
        StepFailed: It could not be built; or what ``go_on`` raised.
    """
    await go_on(course)
    files = await asyncio.to_thread(suite_files, course, mirror)
    suite = read_suite(files)

    def ask() -> Any:
        return ledger.request_cache(
            hub,
            by=course.task_by,
            scope=course.name,
            image=smoked.image,
            pool=course.manifest.request.pool if smoked.gpus else "",
            gpus=1 if smoked.gpus else 0,
            suite=suite.as_json(),
            suite_digest=digest(files),
            archive=pack(files),
        )

    asked = await asyncio.to_thread(ask)
    told = ""
    while True:
        now = await asyncio.to_thread(ledger.cache, hub, asked.id)
        if now is None or now.state in ("failed", "expired"):
            raise StepFailed(now.message if now else "The build is gone.")
        if now.state == "published":
            break
        if now.message != told:
            told = now.message
            await progress.set("warm", message=f"{asked.id}: {told}"[:300])
        try:
            await go_on(course)
        except StepFailed:
            # The warmer stops its server, whose lease then is everybody's.
            await asyncio.to_thread(ledger.cancel_cache, hub, asked.id, course.task_by)
            raise
        await asyncio.sleep(_LOOK_S)
    cold = sum(one.cold_s or 0.0 for one in now.targets)
    warm = sum(one.warm_s or 0.0 for one in now.targets if one.cold_s is not None)
    await progress.set(
        "warm", message=f"First steps take {warm:.1f} s together instead of {cold:.1f} s."
    )
