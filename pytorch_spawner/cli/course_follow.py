"""Asking the service to do something for a course, and following it to its end."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from typing import Final

from pytorch_spawner.cli.common import Said, clean, hub_of, open_ledger, table, who
from pytorch_spawner.core import course_words as words
from pytorch_spawner.core.courses import Course, Step
from pytorch_spawner.errors import LabError
from pytorch_spawner.ledger.store import Ledger

_POLL_S: Final = 0.5
# The service looks for work every few seconds; nobody who takes it up by then does at all.
_PATIENCE_S: Final = 15.0
_INTERRUPTED: Final = 130
_NOBODY: Final = "The lab service does not run on this ledger; start the hub."
_UNDER_WAY: Final = ("waiting", "running")


def named(options: argparse.Namespace) -> tuple[Ledger, Course]:
    """The ledger, and the course that is meant.

    Raises:
        LabError: There is none of that name.
    """
    ledger, hub = open_ledger(options), hub_of(options)
    course = ledger.course(hub, options.name)
    if course is None:
        known = ", ".join(one.name for one in ledger.courses(hub)[:20]) or "none"
        raise LabError(f"{clean(options.name)!r} is no course of this lab: {known}")
    return ledger, course


def steps(course: Course) -> list[str]:
    """What a preload did, a line each, with what was found below."""
    rows = (
        (step.name, step.state, _seconds(step), step.message) for step in words.all_steps(course)
    )
    lines = table(("STEP", "STATE", "TOOK", ""), rows)
    notes = [f"  {clean(step.name)}: {clean(note)}" for step in course.steps for note in step.notes]
    return [*lines, *([""] if notes else []), *notes]


def _seconds(step: Step) -> str:
    return "" if step.seconds is None else f"{step.seconds:.1f} s"


def preload(options: argparse.Namespace) -> Said | int:
    """Ask for a preload, and follow it."""
    return _ask(options, "preload")


def publish(options: argparse.Namespace) -> Said | int:
    """Ask for a publication, and follow it."""
    _, course = named(options)
    if why := words.why_not_published(course):
        raise LabError(why)
    return _ask(options, "publish")


def _ask(options: argparse.Namespace, task: str) -> Said | int:
    ledger, course = named(options)
    if not ledger.ask_course(course.hub, course.name, task, who()):
        raise LabError(
            f"Something is done for {course.name} already; follow it with `courses show "
            f"{course.name}`, or end it with `courses stop {course.name}`."
        )
    if options.no_wait:
        said = f"{course.name}: the {task} waits for the service; `courses show {course.name}`."
        return Said({"name": course.name, "task": task}, [said])
    try:
        return _follow(ledger, course, task, as_json=bool(options.json))
    except KeyboardInterrupt:
        said = f"The {task} goes on; `pytorch-spawner courses stop {course.name}` ends it."
        print(f"\n{said}", file=sys.stderr)
        return _INTERRUPTED


def _follow(ledger: Ledger, asked: Course, task: str, *, as_json: bool) -> int:
    """Print what changes until it is over."""
    # With --json the standard output is the result alone.
    news = sys.stderr if as_json else sys.stdout
    began = idle_since = time.monotonic()
    told: dict[str, tuple[str, str]] = {}
    has_begun = False
    while True:
        now = ledger.course(asked.hub, asked.name)
        if now is None:
            raise LabError(f"{asked.name} was removed meanwhile.")
        has_begun = has_begun or now.is_running or not now.task
        if task == "preload" and has_begun:
            for line in _news(now.steps, told):
                print(f"{time.monotonic() - began:7.1f} s  {line}", file=news, flush=True)
        if not now.task:
            return _over(asked, now, task, as_json=as_json)
        if has_begun or any(one.is_running for one in ledger.courses(asked.hub)):
            idle_since = time.monotonic()
        elif time.monotonic() - idle_since > _PATIENCE_S:
            raise LabError(f"{_NOBODY} The {task} of {asked.name} waits until then.")
        time.sleep(_POLL_S)


def _news(known: Sequence[Step], told: dict[str, tuple[str, str]]) -> list[str]:
    """What is new since it was told last, a line a step; what only waits is not worth one."""
    lines = []
    for step in known:
        is_new = told.get(step.name) != (step.state, step.message)
        told[step.name] = (step.state, step.message)
        if is_new and step.state != "waiting":
            took = f" ({_seconds(step)})" if step.seconds is not None else ""
            lines.append(f"{step.name}: {step.state}{took} {clean(step.message)}".rstrip())
            lines += [f"  {clean(note)}" for note in step.notes]
    return lines


def _over(asked: Course, now: Course, task: str, *, as_json: bool) -> int:
    if task == "publish":
        is_fine = now.serial > asked.serial and now.served == asked.candidate_served
        text = f"{now.name}: students are given {words.short(now.commit)} now."
        why = "It was stopped, or could not be given out; the lab service's log says why."
    else:
        failed = [one for one in now.steps if one.state == "failed"]
        is_given_up = bool(words.not_done(now))
        is_fine = not is_given_up and not any(one.state in _UNDER_WAY for one in now.steps)
        is_fine = is_fine and not failed
        is_fine = is_fine and bool(now.steps) and now.preloaded_at != asked.preloaded_at
        text = f"{now.name}: {words.verdict(now)[1]}"
        why = f"{failed[0].name}: {failed[0].message}" if failed else "It was stopped."
        why = words.verdict(now)[1] if is_given_up else why
    if as_json:
        print(json.dumps({"ok": is_fine, **_facts(now)}, indent=1))
    elif is_fine:
        print(clean(text))
    if not is_fine:
        print(f"pytorch-spawner: {clean(why)}", file=sys.stderr)
    return 0 if is_fine else 1


def _facts(course: Course) -> dict[str, object]:
    return {
        "name": course.name,
        "commit": course.commit,
        "candidate": course.candidate,
        "serial": course.serial,
        "steps": [one.as_json() for one in course.steps],
    }
