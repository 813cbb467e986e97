"""`pytorch-spawner simulate`: what the scheduler would have done to a demand, policy by policy.

It needs no hub and no ledger, and changes nothing: files in, a table out.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

import yaml

from pytorch_spawner.core.gpus import Inventory, parse_inventory
from pytorch_spawner.core.grant_rows import Known, parse_grants
from pytorch_spawner.core.grants import Grant
from pytorch_spawner.core.placement import PREFERENCES
from pytorch_spawner.core.scheduling import Policy
from pytorch_spawner.core.simulation import A_MONDAY, Outcome, Waits, simulate
from pytorch_spawner.core.trace import (
    COLUMNS,
    DEMANDS,
    REQUIRED,
    Job,
    generate,
    parse_trace,
    write_trace,
)
from pytorch_spawner.errors import BadRequest

_BAD_USAGE: Final = 2
_MOST_GPUS: Final = 4096
_MOST_PEOPLE: Final = 100_000
_MOST_DAYS: Final = 366
_LONGEST_S: Final = 1e9
# What `pytorch-spawner gpus --json` says of a device beside what an inventory is made of.
_NOT_INVENTORY: Final = frozenset({"slot_memory_mib", "slots", "drained"})

_Read = TypeVar("_Read")

_EPILOG: Final = f"""\
A trace is a CSV file with the columns {", ".join(COLUMNS)},
in any order; {", ".join(REQUIRED)} are required. Seconds count from the trace's beginning; several
groups are separated by spaces; share is any, whole, slot or mig:<profile>.

    arrive_s,user,groups,gpus,share,pool,hold_s
    32400,ana,cv,1,any,,5400
    32460,bob,cv ml,2,whole,a100,14400

examples:
    pytorch-spawner simulate --generate class:40 --gpus 4 --gpus 2xshared:4
    pytorch-spawner simulate monday.csv --inventory lab.json --grants grants.yaml \\
        --policy pack --policy spread,patience_s=600,max_lease_s=7200

Waits are those of the starts that were served: the middle one, the one that 95 of a hundred did not
exceed, and the longest. USED is the share of the GPU time there was, from the first start to the
last end; FAIR is Jain's index over users (1: everybody fared alike). CUT are starts whose lease
ended before they were done; REFUSED and UNSERVED are those that no grant or no device was for.
"""


def add_to(commands: Any, parents: Sequence[argparse.ArgumentParser] = ()) -> None:
    """Add the command.

    Args:
        commands: What ``argparse.ArgumentParser.add_subparsers`` returned.
        parents: Parsers of common options, ``--json`` among them; without any it has its own.
    """
    text = "what a policy would have done to a demand: waits, utilisation, fairness"
    command = commands.add_parser(
        "simulate",
        help=text,
        description=f"{text}. The same scheduler, on a recorded or a made-up demand.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=list(parents),
    )
    command.set_defaults(run=run)
    add = command.add_argument
    add("trace", nargs="?", metavar="TRACE.csv", help="the recorded demand; - for standard input")
    add(
        "--generate",
        metavar="DEMAND:PEOPLE",
        help="make a demand up instead: class:40 (one class, at nine every working day) or "
        "school:300 (classes by day, researchers by night)",
    )
    add("--days", type=int, default=5, help="how many days to make up, from a Monday (default: 5)")
    add("--seed", type=int, default=1, help="another number, another demand (default: 1)")
    add("--save", metavar="FILE", help="write the demand to a new CSV file")
    add(
        "--gpus",
        action="append",
        default=[],
        metavar="[POOL=]N[xMODE]",
        help="the lab: 4, 8xshared:4, a100=2 or 7xmig:1g.10gb; may be given again (default: 4)",
    )
    add(
        "--inventory",
        metavar="FILE",
        help="the lab, as c.PyTorchSpawner.inventory has it, in JSON or YAML; what "
        "`pytorch-spawner gpus --json` prints will do",
    )
    add(
        "--grants",
        metavar="FILE",
        help="who gets what, as c.PyTorchSpawner.grants or `pytorch-spawner grants export` has it "
        "(default: everyone, as much as the lab has); their images do not count, for a trace names "
        "none",
    )
    add(
        "--policy",
        action="append",
        default=[],
        metavar="NAME[,KEY=VALUE...]",
        help=f"one of {', '.join(PREFERENCES)}, and patience_s, max_lease_s, usage_step_h; given "
        "again, they are compared (default: pack)",
    )
    add("--start", metavar="DATE", help="the day on which the trace begins, for grants with dates")
    add("--by-group", action="store_true", help="the waits of each group as well")
    if not parents:
        add("--json", action="store_true", help="print JSON")


@dataclass(frozen=True, slots=True)
class _Question:
    """What is to be simulated.

    Attributes:
        jobs: The demand, in order of arrival.
        inventory: The lab.
        grants: Who gets what.
        policies: By what people call them.
        start: Unix time in seconds of the trace's second 0.
    """

    jobs: tuple[Job, ...]
    inventory: Inventory
    grants: tuple[Grant, ...]
    policies: Mapping[str, Policy]
    start: float


def run(options: argparse.Namespace) -> int:
    """Simulate and print.

    Returns:
        The exit status: 0, or 2 where the question is not usable; every fault is then named.
    """
    try:
        question = _question(options)
        if options.save:
            _save(options.save, question.jobs)
    except BadRequest as error:
        print(f"pytorch-spawner: {error.public_message}", file=sys.stderr)
        for fault in error.faults:
            print(f"  {_clean(fault)}", file=sys.stderr)
        return _BAD_USAGE
    outcomes = {
        name: simulate(
            question.jobs,
            question.inventory,
            question.grants,
            policy,
            question.start,
            _progress(name, len(question.jobs)),
        )
        for name, policy in question.policies.items()
    }
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    if options.json:
        said = _as_json(question, outcomes)
    else:
        said = "\n".join(_told(question, outcomes, is_by_group=options.by_group))
    try:
        print(said, flush=True)
    except BrokenPipeError:  # `pytorch-spawner simulate ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


# -- reading the question --------------------------------------------------------------------------


def _question(options: argparse.Namespace) -> _Question:
    """Read all that is asked, or refuse it.

    Raises:
        BadRequest: A file cannot be read, or something in it or in the options is wrong.
    """
    policies = {said: _policy(said) for said in options.policy or ["pack"]}
    inventory = _inventory(options)
    board = [gpu.pool for gpu in inventory.gpus if gpu.slots]
    most = max(map(board.count, board), default=1)
    grants: tuple[Grant, ...] = (Grant("everyone", count=most),)
    if options.grants:
        rows, known = _rows(options.grants, "grants"), Known(inventory=inventory)
        grants = _in_file(options.grants, lambda: parse_grants(rows, known, source="config"))
    jobs = _jobs(options, most)
    return _Question(jobs, inventory, grants, policies, _start(options.start, grants))


def _policy(said: str) -> Policy:
    name, *settings = said.split(",")
    if name not in PREFERENCES:
        _refuse(
            f'There is no policy "{_clean(name)}"; there is {", ".join(PREFERENCES)}. Such as: '
            "--policy spread,patience_s=600"
        )
    values: dict[str, float] = {}
    for setting in settings:
        key, _, value = setting.partition("=")
        if key not in ("patience_s", "max_lease_s", "usage_step_h"):
            _refuse(
                f'A policy has no "{_clean(key)}"; it has patience_s, max_lease_s and '
                f"usage_step_h. Such as: --policy {name},patience_s=600"
            )
        least = 1.0 if key == "max_lease_s" else 0.0
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        if not least <= number <= _LONGEST_S:
            _refuse(
                f'In the policy "{_clean(said)}", {key} is not a number of {least:.0f} or more. '
                f"Such as: --policy {name},{key}=3600"
            )
        values[key] = number
    longest_s = values.get("max_lease_s")
    usual = Policy()
    return Policy(
        preference=name,
        patience_s=values.get("patience_s", usual.patience_s),
        max_lease_s=None if longest_s is None else int(longest_s),
        usage_step_h=values.get("usage_step_h", usual.usage_step_h),
    )


_GPUS: Final = re.compile(
    r"(?:(?P<pool>[^=]{1,255})=)?(?P<count>[1-9][0-9]{0,3})(?:x(?P<mode>[a-z].*))?"
)


def _inventory(options: argparse.Namespace) -> Inventory:
    if options.inventory and options.gpus:
        _refuse("The lab is given twice: either --inventory or --gpus, not both.")
    if options.inventory:
        rows = [
            {key: value for key, value in row.items() if key not in _NOT_INVENTORY}
            if isinstance(row, dict)
            else row
            for row in _rows(options.inventory, "devices")
        ]
        return _in_file(options.inventory, lambda: parse_inventory(rows))
    devices: list[dict[str, Any]] = []
    for said in options.gpus or ["4"]:
        match = _GPUS.fullmatch(said)
        if match is None:
            _refuse(
                f'"{_clean(said)}" says no GPUs. Write a number, with the mode and the pool if '
                "they matter: --gpus 4, --gpus 8xshared:4, --gpus a100=2"
            )
        mode = match["mode"] or "exclusive"
        facts = {"mig_profile": mode[4:]} if mode.startswith("mig:") else {"mode": mode}
        for _ in range(int(match["count"])):
            uuid = f"GPU-{len(devices):04d}"
            devices.append({"uuid": uuid, "pool": match["pool"] or "default", **facts})
    if len(devices) > _MOST_GPUS:
        _refuse(f"{len(devices)} GPUs are more than the {_MOST_GPUS} that one lab may have here.")
    try:
        return parse_inventory(devices)
    except BadRequest as error:
        _refuse(
            f"--gpus {' --gpus '.join(options.gpus)} is not usable: there is no such mode. Write "
            "exclusive, shared:N with N from 2 to 48, or mig:<profile>, such as --gpus "
            "8xshared:4",
            error,
        )


def _jobs(options: argparse.Namespace, most: int) -> tuple[Job, ...]:
    if bool(options.trace) == bool(options.generate):
        _refuse(
            "Say which demand: a trace, or one that is made up, not both. Such as: pytorch-spawner "
            "simulate TRACE.csv, or --generate class:40"
        )
    if options.trace:
        text = _text(options.trace)
        return _in_file(options.trace, lambda: parse_trace(text))
    demand, _, people = options.generate.partition(":")
    is_number = people.isascii() and people.isdigit() and 1 <= int(people[:9]) <= _MOST_PEOPLE
    if demand not in DEMANDS or not is_number:
        _refuse(
            f'"{_clean(options.generate)}" is no demand. Write {" or ".join(DEMANDS)}, and how '
            f"many people, 1 to {_MOST_PEOPLE}: --generate class:40"
        )
    if not 1 <= options.days <= _MOST_DAYS:
        _refuse(f"--days {options.days} is out of range: 1 to {_MOST_DAYS}, such as --days 5")
    jobs = generate(
        demand, people=int(people), days=options.days, seed=options.seed, most=min(4, most)
    )
    if not jobs:
        _refuse(
            f"Nobody of {options.generate} comes within {options.days} days; try more people, or "
            "another --seed."
        )
    return jobs


def _start(said: str | None, grants: Sequence[Grant]) -> float:
    if said is None:
        if any(grant.valid_from or grant.valid_until for grant in grants):
            _refuse("The grants have dates: say on which day the trace begins, --start 2026-09-07")
        return A_MONDAY
    try:
        day = datetime.fromisoformat(said)
    except ValueError:
        _refuse(f'"{_clean(said)}" is no date. Write --start 2026-09-07')
    return (day if day.tzinfo else day.replace(tzinfo=timezone.utc)).timestamp()


# -- files -----------------------------------------------------------------------------------------


def _text(name: str) -> str:
    try:
        if name == "-":
            return sys.stdin.read()
        # Spreadsheets begin their CSV files with a byte order mark.
        return Path(name).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        _refuse(
            f"{_clean(name)} is no text in UTF-8. Save it as CSV, JSON or YAML in UTF-8.", error
        )
    except OSError as error:
        why = error.strerror or type(error).__name__
        _refuse(f"{_clean(name)} cannot be read: {why}. Check the name.", error)


def _rows(name: str, key: str) -> list[Any]:
    try:
        said = yaml.safe_load(_text(name))
    except (yaml.YAMLError, RecursionError) as error:
        where = " ".join(str(error).split())
        _refuse(f"{_clean(name)} is neither JSON nor YAML: {_clean(where)}. Correct it.", error)
    except ValueError as error:  # 2026-09-31
        why = f"holds a date or a number that does not exist: {_clean(str(error))}"
        _refuse(f"{_clean(name)} {why}. Correct it.", error)
    if isinstance(said, dict) and list(said) == [key]:
        said = said[key]
    if not isinstance(said, list):
        _refuse(f"{_clean(name)} holds no list. Write one row for each of the {key}: [{{...}}]")
    return said


def _in_file(name: str, read: Callable[[], _Read]) -> _Read:
    """Read, and name the file where something in it is wrong."""
    try:
        return read()
    except BadRequest as error:
        if not error.faults:
            raise BadRequest(f"{_clean(name)}: {_clean(error.public_message)}") from error
        many = f"{len(error.faults)} faults" if len(error.faults) > 1 else "one fault"
        raise BadRequest(
            f"{_clean(name)} has {many}. Correct it and run again:", faults=error.faults
        ) from error


def _save(name: str, jobs: Sequence[Job]) -> None:
    try:
        with Path(name).open("x", encoding="utf-8", newline="") as file:
            file.write(write_trace(jobs))
    except FileExistsError as error:
        _refuse(f"{_clean(name)} is there already. Name another file with --save.", error)
    except OSError as error:
        why = error.strerror or type(error).__name__
        _refuse(f"{_clean(name)} cannot be written: {why}. Name another file with --save.", error)


def _refuse(sentence: str, cause: Exception | None = None) -> NoReturn:
    raise BadRequest(sentence) from cause


# -- saying ----------------------------------------------------------------------------------------


def _progress(name: str, jobs: int) -> Callable[[int], None] | None:
    """Tell a terminal how far it is, five times a second; None where nobody looks."""
    if not sys.stderr.isatty():
        return None
    told_at = time.monotonic()

    def tell(arrived: int) -> None:
        nonlocal told_at
        if time.monotonic() - told_at >= 0.2:
            told_at = time.monotonic()
            line = f"\r\033[K{_clean(name)}: {arrived} of {jobs} starts"
            print(line, end="", file=sys.stderr, flush=True)

    return tell


def _as_json(question: _Question, outcomes: Mapping[str, Outcome]) -> str:
    rows = [{"policy": name, **outcome.as_json()} for name, outcome in outcomes.items()]
    demand = {
        "starts": len(question.jobs),
        "users": len({job.user for job in question.jobs}),
        "gpus": len(question.inventory.gpus),
        "slots": sum(gpu.slots for gpu in question.inventory.gpus),
        "grants": len(question.grants),
        "grants_with_images": _with_images(question.grants),
    }
    return json.dumps({**demand, "policies": rows}, indent=1)


def _told(question: _Question, outcomes: Mapping[str, Outcome], *, is_by_group: bool) -> list[str]:
    users = {job.user for job in question.jobs}
    slots = sum(gpu.slots for gpu in question.inventory.gpus)
    lines = [
        f"{_many(len(question.jobs), 'start')} of {_many(len(users), 'user')} on "
        f"{_many(len(question.inventory.gpus), 'GPU')} ({_many(slots, 'slot')}), "
        f"{_many(len(question.grants), 'grant')}.",
    ]
    if count := _with_images(question.grants):
        lines.append(
            f"A trace names no image: {_many(count, 'grant')} for certain images counted for all."
        )
    lines.append("")
    heads = ("POLICY", *_HEADS, "USED", "FAIR", "CUT", "REFUSED", "UNSERVED")
    rows = [
        (
            name,
            *_waits(outcome.waits),
            "-" if outcome.utilisation is None else f"{outcome.utilisation * 100:.0f} %",
            "-" if outcome.fairness is None else f"{outcome.fairness:.3f}",
            str(outcome.cut_short),
            str(outcome.refused),
            str(outcome.unserved),
        )
        for name, outcome in outcomes.items()
    ]
    lines += _table(heads, rows)
    groups = sorted({group for outcome in outcomes.values() for group in outcome.by_group})
    if is_by_group:
        of_group = [
            (group or "(no group)", name, *_waits(outcome.by_group[group]))
            for group in groups
            for name, outcome in outcomes.items()
        ]
        lines += ["", *_table(("GROUP", "POLICY", *_HEADS), of_group, words=2)]
    return lines


def _with_images(grants: Sequence[Grant]) -> int:
    return sum(bool(grant.images) for grant in grants)


_HEADS: Final = ("SERVED", "MEDIAN", "P95", "MAX")


def _waits(waits: Waits) -> tuple[str, ...]:
    return (str(waits.served), *map(_duration, (waits.median_s, waits.p95_s, waits.max_s)))


def _duration(seconds: float | None) -> str:
    """Such as "45 s", "12 min", "3.5 h"; "-" for None."""
    if seconds is None:
        return "-"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, words: int = 1) -> list[str]:
    """Columns under their heads: the first ``words`` to the left, numbers to the right."""
    cells = [list(heads), *([_clean(cell) for cell in row] for row in rows)]
    widths = [max(len(row[place]) for row in cells) for place in range(len(heads))]
    return [
        "  ".join(
            cell.ljust(width) if place < words else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


def _clean(text: str) -> str:
    """Text that others wrote, without what would steer the terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)
