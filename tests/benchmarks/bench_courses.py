"""A class that arrives within a minute: with a course's notebooks, and beside it without any.

The course comes from a git server of this machine. Users, homes and the publication are there
before; nobody's home has the notebooks yet, so each of them is a whole copy.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytorch_spawner.core.course_text import parse_manifest
from pytorch_spawner.core.courses import Course
from pytorch_spawner.ledger.store import Ledger
from tests.benchmarks.bench_spawn import say
from tests.benchmarks.harness import ROOT, Bench
from tests.benchmarks.real_hub import Arm, RealHub, Started, calibrate, docker, lab_network
from tests.benchmarks.stock_image import lab_image
from tests.git_server import GitServer, commit

WITH = "with the course"
WITHOUT = "without a course"
_COPIED_S = 60.0
_PRELOAD_S = 240.0
_TRAITS = {"PyTorchSpawner.warmup": False, "PyTorchSpawner.standby_kernels": 0}
# The example's notebooks and, as a real course has them, some megabytes of pictures.
_PICTURES = 12


def run(*, students: int = 30, within_s: float = 60.0, rounds: int = 2) -> Bench:
    """Measure.

    Args:
        students: Of each class.
        within_s: They arrive evenly within so many seconds.
        rounds: Classes of each kind; they take turns.
    """
    bench = Bench("courses", unit="s")
    with contextlib.ExitStack() as stack:
        stack.enter_context(lab_network())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-courses-")))
        forge = stack.enter_context(GitServer(folder / "forge"))
        head = commit(forge.make("course.git"), _files())
        arm = Arm("ours", True, lab_image(), _TRAITS, {"gpus": 0})
        hub = stack.enter_context(RealHub(folder / "hub", arm).running())
        asyncio.run(_measure(bench, hub, forge, head, (students, within_s, rounds)))
    return bench


def _files() -> dict[str, bytes]:
    example = ROOT / "share" / "courses" / "example"
    files = {
        str(path.relative_to(example)): path.read_bytes()
        for path in sorted(example.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    for number in range(_PICTURES):
        # Bytes that do not compress, and are the same in every run.
        seed = number.to_bytes(4, "big")
        files[f"pictures/{number:02d}.png"] = b"".join(
            (seed + index.to_bytes(4, "big")) * 32 for index in range(1024)
        )
    return files


async def _measure(
    bench: Bench, hub: RealHub, forge: GitServer, head: str, size: tuple[int, float, int]
) -> None:
    students, within_s, rounds = size
    taught = [f"student{number:02d}" for number in range(students * rounds)]
    others = [f"guest{number:02d}" for number in range(students * rounds)]
    client = hub.client()
    ledger = Ledger.open(f"sqlite:///{hub.folder / 'ledger.sqlite'}")
    found: dict[str, list[Started]] = {WITH: [], WITHOUT: []}
    copied: list[float] = []
    calibrations: list[float] = []
    try:
        await hub.answers(client)
        await hub.add_users(client, [*taught, *others])
        course = await _preload(ledger, hub, forge, taught)
        bench.add("preload, all steps", [sum(one.seconds or 0.0 for one in course.steps)])
        for number in range(rounds):
            mine = slice(number * students, (number + 1) * students)
            turns = [(WITH, taught[mine]), (WITHOUT, others[mine])]
            for name, users in turns if number % 2 == 0 else reversed(turns):
                calibrations.append(calibrate())
                say(f"round {number + 1}, {name}: {students} within {within_s:g} s")
                found[name] += await _arrive(hub, client, users, within_s)
                if name == WITH:
                    copied += await _see_copies(ledger, hub, users, course)
                await asyncio.gather(*(hub.stop(client, user) for user in users))
    finally:
        client.close()
        ledger.close()
    for name, starts in found.items():
        bench.add(f"{name}: usable", [one.usable_s for one in starts])
    bench.add("notebooks copied, after the container's start", copied)
    bench.add("a fixed piece of work beside each class", calibrations)
    ours, theirs = (
        statistics.median(one.usable_s for one in found[name]) for name in (WITH, WITHOUT)
    )
    bench.ratios["with/without a course"] = ours / theirs
    bench.notes += [
        f"{students * rounds} students had the notebooks of {head[:8]}; the forge was asked for "
        f"{forge.fetches} clone or fetch.",
        f"A course costs {ours - theirs:+.2f} s of the median until Lab is usable.",
    ]


async def _preload(ledger: Ledger, hub: RealHub, forge: GitServer, users: Sequence[str]) -> Course:
    said = {
        "name": "bench",
        "title": "Bench",
        "source": {"git": forge.url("course.git")},
        "members": {"users": list(users)},
        "request": {"gpus": 0},
    }
    ledger.save_course(hub.hub_id, parse_manifest(said), "bo")
    ledger.ask_course(hub.hub_id, "bench", "preload", "bo")
    ends_at = time.monotonic() + _PRELOAD_S
    while time.monotonic() < ends_at:
        course = ledger.course(hub.hub_id, "bench")
        if course is not None and not course.task:
            if not course.served:
                raise RuntimeError(f"the course was not published: {course.steps}")
            return course
        await asyncio.sleep(0.5)
    raise RuntimeError("the preload did not end")


async def _arrive(
    hub: RealHub, client: Any, users: Sequence[str], within_s: float
) -> list[Started]:
    async def one(place: int, user: str) -> Started:
        await asyncio.sleep(within_s * place / len(users))
        return await hub.start(client, user)

    return list(await asyncio.gather(*(one(place, user) for place, user in enumerate(users))))


async def _see_copies(
    ledger: Ledger, hub: RealHub, users: Sequence[str], course: Course
) -> list[float]:
    """Seconds from each container's start until its agent said that the notebooks are there.

    Raises:
        RuntimeError: Somebody has not got them, whole and at the published commit.
    """
    seconds = []
    for user in users:
        ends_at = time.monotonic() + _COPIED_S
        while (at := _copied_at(ledger, hub, user, course)) is None:
            if time.monotonic() > ends_at:
                raise RuntimeError(f"{user} has no notebooks")
            await asyncio.sleep(0.2)
        (container,) = hub.containers(user)
        home = "/home/lab/bench"
        head = docker("exec", container, "git", "-C", home, "rev-parse", "HEAD")
        changed = docker("exec", container, "git", "-C", home, "status", "--porcelain")
        if head != course.served or changed:
            raise RuntimeError(f"{user} has {head} instead of {course.served}; {changed}")
        began = docker("inspect", "--format", "{{.State.StartedAt}}", container)
        seconds.append(at - _unix(began))
    return seconds


def _copied_at(ledger: Ledger, hub: RealHub, user: str, course: Course) -> float | None:
    start = ledger.latest_start(hub.hub_id, user, "")
    for event in ledger.read_events(start.id) if start else ():
        if event.kind == "course" and event.data.get("served") == course.served:
            return event.at
    return None


def _unix(moment: str) -> float:
    """A time as the engine writes it, with nanoseconds, as Unix time in seconds."""
    said = subprocess.run(
        ["date", "-d", moment, "+%s.%N"], capture_output=True, text=True, check=True
    )
    return float(json.loads(said.stdout))
