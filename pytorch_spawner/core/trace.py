"""A lab's demand over days: starts one after another, read from a file or made up. Pure.

``generate`` draws from a seed: the same arguments always give the same demand.
"""

from __future__ import annotations

import csv
import io
import math
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final

from pytorch_spawner.core.gpus import MIG_PROFILE
from pytorch_spawner.errors import BadRequest


@dataclass(frozen=True, slots=True)
class Job:
    """One start of a trace.

    Attributes:
        arrive_s: Seconds from the trace's beginning, >= 0.
        user: Who asks.
        hold_s: How long the server runs, > 0, unless its lease ends before.
        groups: The user's groups.
        gpus: How many, >= 1.
        share: "any", "whole", "slot" or "mig:<profile>".
        pool: Name of a pool; "" for any.
    """

    arrive_s: float
    user: str
    hold_s: float
    groups: tuple[str, ...] = ()
    gpus: int = 1
    share: str = "any"
    pool: str = ""


# -- reading a trace -----------------------------------------------------------------------------

COLUMNS: Final = ("arrive_s", "user", "groups", "gpus", "share", "pool", "hold_s")
REQUIRED: Final = ("arrive_s", "user", "hold_s")
_LONGEST_S: Final = 1e9


def parse_trace(text: str) -> tuple[Job, ...]:
    """Read a trace, or refuse it whole.

    Args:
        text: CSV with a header of ``arrive_s,user,groups,gpus,share,pool,hold_s``, in any order;
            the first, second and last are required. Several groups are separated by spaces or
            semicolons; empty cells are what ``Job`` has by default.

    Returns:
        The jobs in order of arrival; those that arrive together stay in the order of the file.

    Raises:
        BadRequest: Anything is wrong; the message lists every bad row with its line.
    """
    lines = csv.DictReader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    faults: list[str] = []
    jobs: list[Job] = []
    try:
        columns = [column.strip() for column in lines.fieldnames or ()]
        lines.fieldnames = columns
        faults += _bad_header(columns)
        for row in () if faults else lines:
            cells = {key: (value or "").strip() for key, value in row.items() if key is not None}
            found = [
                f"column {column}: {fault}"
                for column, (is_right, fault) in _RULES.items()
                if not is_right(cells.get(column, ""))
            ]
            if None in row:
                found.append("more cells than the header has columns")
            faults += [f"line {lines.line_num}: {fault}" for fault in found]
            if not found:
                jobs.append(_job(cells))
    except csv.Error as error:
        faults.append(f"line {lines.reader.line_num}: {error}")
    if not jobs and not faults:
        faults.append("it has no row")
    if faults:
        raise BadRequest("The trace is not usable: " + "; ".join(faults) + ".", faults=faults)
    return tuple(sorted(jobs, key=lambda job: job.arrive_s))


def write_trace(jobs: Iterable[Job]) -> str:
    """The CSV that ``parse_trace`` reads back equal."""
    out = io.StringIO(newline="")
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(COLUMNS)
    for job in jobs:
        cells = {**asdict(job), "groups": " ".join(job.groups)}
        rows.writerow([cells[column] for column in COLUMNS])
    return out.getvalue()


def _bad_header(columns: Sequence[str]) -> list[str]:
    faults = [f"there is no column {column}" for column in REQUIRED if column not in columns]
    faults += [f"unknown column {column[:40]!r}" for column in columns if column not in COLUMNS]
    if len(set(columns)) != len(columns):
        faults.append("one column is named twice")
    return faults


def _job(cells: Mapping[str, str]) -> Job:
    return Job(
        arrive_s=float(cells["arrive_s"]),
        user=cells["user"],
        hold_s=float(cells["hold_s"]),
        groups=tuple(cells.get("groups", "").replace(";", " ").split()),
        gpus=int(cells.get("gpus") or 1),
        share=cells.get("share") or "any",
        pool=cells.get("pool", ""),
    )


def _seconds(said: str) -> float:
    """A number of seconds; -1 where it is none."""
    try:
        value = float(said)
    except ValueError:
        return -1.0
    return value if math.isfinite(value) and value <= _LONGEST_S else -1.0


def _is_share(said: str) -> bool:
    is_mig = said.startswith("mig:") and MIG_PROFILE.fullmatch(said[4:]) is not None
    return said in ("", "any", "whole", "slot") or is_mig


_RULES: Final[Mapping[str, tuple[Callable[[str], bool], str]]] = {
    "arrive_s": (lambda said: _seconds(said) >= 0, "not a number of seconds, 0 or more"),
    "user": (lambda said: 0 < len(said) <= 255, "names nobody"),
    "gpus": (
        lambda said: not said or bool(re.fullmatch(r"[1-9][0-9]?", said)),
        "not a number of GPUs from 1 to 99",
    ),
    "share": (_is_share, 'not "any", "whole", "slot" or "mig:<profile>"'),
    "hold_s": (lambda said: _seconds(said) > 0, "not a number of seconds above 0"),
}


# -- making one up -------------------------------------------------------------------------------

_HOUR_S: Final = 3600.0
_CLASS_SIZE: Final = 30
# Hours at which classes begin, and how many of them: the first of the morning is the fullest.
_LESSONS: Final = ((9, 5), (11, 2), (14, 3))


def generate(demand: str, *, people: int, days: int, seed: int, most: int = 4) -> tuple[Job, ...]:
    """Make up a demand.

    Args:
        demand: Key of ``DEMANDS``.
        people: How many users, >= 1.
        days: How many days, >= 1; the first is a Monday.
        seed: The same seed gives the same demand.
        most: Most GPUs that one start asks for, >= 1.

    Returns:
        The jobs in order of arrival.
    """
    draw = random.Random(seed)  # noqa: S311  (a demand, no secret)
    jobs = DEMANDS[demand](draw, people, days, most)
    return tuple(sorted(jobs, key=lambda job: (job.arrive_s, job.user)))


def _class(draw: random.Random, people: int, days: int, _most: int) -> Iterable[Job]:
    """One class that meets at nine every working day; nobody else is there."""
    for day in range(days):
        if day % 7 < 5:
            yield from _lesson(draw, range(people), day, 9, "class", attend=1.0)


def _school(draw: random.Random, people: int, days: int, most: int) -> Iterable[Job]:
    """Classes by day, long jobs of a few by night.

    Of a hundred people fifteen are in "research", the others in classes of 30 ("class-1",
    "class-2", ...). A class meets on three days of the week at nine, eleven or two, mostly at nine,
    and four in five come. One in four works on in the afternoon or evening, for up to three hours.
    Researchers start jobs of four to twelve hours in the evening, two days in five, one in three of
    them on several GPUs.
    """
    researchers = people * 15 // 100
    students = people - researchers
    hours = [hour for hour, weight in _LESSONS for _ in range(weight)]
    for number in range(-(-students // _CLASS_SIZE)):
        first = number * _CLASS_SIZE
        members = range(first, min(students, first + _CLASS_SIZE))
        lessons = {day: draw.choice(hours) for day in draw.sample(range(5), 3)}
        for day in (day for day in range(days) if day % 7 < 5):
            group, hour = f"class-{number + 1}", lessons.get(day % 7)
            if hour is not None:
                yield from _lesson(draw, members, day, hour, group, attend=0.8)
            yield from _homework(
                draw, members, day, 13 if hour is None else max(13, hour + 2), group
            )
    for number in range(researchers):
        yield from _research(draw, f"researcher-{number + 1}", days, most)


def _lesson(
    draw: random.Random,
    members: Iterable[int],
    day: int,
    hour: int,
    group: str,
    *,
    attend: float,
) -> Iterable[Job]:
    """Come from five minutes before to ten after the hour, for 45 to 100 minutes."""
    for member in members:
        if draw.random() < attend:
            starts = (day * 24 + hour) * _HOUR_S + draw.uniform(-300, 600)
            hold_s = draw.uniform(45, 100) * 60
            yield Job(round(starts), f"student-{member + 1}", round(hold_s), (group,))


def _homework(
    draw: random.Random, members: Iterable[int], day: int, from_hour: int, group: str
) -> Iterable[Job]:
    for member in members:
        if draw.random() < 0.25:
            starts = (day * 24 + draw.uniform(from_hour, 22)) * _HOUR_S
            hold_s = draw.uniform(0.5, 3) * _HOUR_S
            yield Job(round(starts), f"student-{member + 1}", round(hold_s), (group,))


def _research(draw: random.Random, user: str, days: int, most: int) -> Iterable[Job]:
    for day in range(days):
        if draw.random() < 0.4:
            starts = (day * 24 + draw.triangular(17, 24, 19)) * _HOUR_S
            hold_s = draw.uniform(4, 12) * _HOUR_S
            gpus = min(most, draw.choice((1, 1, 1, 1, 2, 4)))
            yield Job(round(starts), user, round(hold_s), ("research",), gpus)


# Takes what is drawn from, people, days, and the most GPUs of a start; gives jobs in any order.
Demand = Callable[[random.Random, int, int, int], Iterable[Job]]
DEMANDS: Final[Mapping[str, Demand]] = {"class": _class, "school": _school}
