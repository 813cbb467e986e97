"""`grants`: who may have what. A change is checked whole before anything is written."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from pytorch_spawner.cli.common import (
    Commands,
    Said,
    add_command,
    clean,
    devices,
    hub_of,
    moment,
    open_ledger,
    table,
    who,
)
from pytorch_spawner.core.grant_rows import Known, parse_grants
from pytorch_spawner.core.grants import Grant, GrantBook, explain
from pytorch_spawner.errors import BadRequest, LabError
from pytorch_spawner.ledger.store import Change, Ledger

# What the hub writes by itself at its starts; nobody wants to undo that.
_BY_THE_HUB = ("configuration", "JupyterHub")
_FLAGS = ("pool", "count", "share", "priority", "weekly_gpu_hours", "max_lease_s")
_NEWCOMERS = "people who have never started a server here are accepted with --allow-unknown"
# What can be done here about a fault that ``grant_rows`` names.
_HINTS = {
    "there is no user": _NEWCOMERS,
    "there is no group": _NEWCOMERS,
    "there is no pool": "`pytorch-spawner gpus pool GPU NAME` makes a pool",
}


def add_to(commands: Commands) -> None:
    """Add the command and its actions."""
    grants = add_command(commands, "grants", _list, "who may have which GPUs, and why")
    actions = grants.add_subparsers(metavar="action")
    text = "what a user gets, through which grant, and what is left this week"
    action = add_command(actions, "explain", _explain, text, is_action=True)
    action.add_argument("user")
    action.add_argument(
        "--group", action="append", help="a group of the user's; default: those at the last start"
    )
    text = "add one grant"
    action = add_command(actions, "add", _add, text, is_action=True)
    whom = action.add_mutually_exclusive_group(required=True)
    whom.add_argument("--user", help="for this person; one of --user, --group, --everyone")
    whom.add_argument("--group", help="for each person of this JupyterHub group")
    whom.add_argument("--everyone", action="store_true", help="for each person")
    action.add_argument("--id", help="name of the grant (default: made from whom it is for)")
    action.add_argument("--pool", help="only GPUs of this pool")
    action.add_argument("--gpu", action="append", help="only this GPU, reserved for it; repeatable")
    action.add_argument("--count", type=int, help="most GPUs a person holds through it (1)")
    action.add_argument("--share", help="any, whole, slot or mig:<profile> (any)")
    action.add_argument("--priority", type=int, help="-100 to 100, the higher is served first (0)")
    action.add_argument("--weekly-gpu-hours", type=float, help="GPU-hours a person has a week")
    action.add_argument("--max-lease-s", type=int, help="longest time of one start, in seconds")
    action.add_argument("--from", dest="valid_from", help="2026-10-01, or with a time and zone")
    action.add_argument("--until", dest="valid_until", help="the same; exclusive")
    action.add_argument("--image", action="append", help="only with this image; repeatable")
    _may_be_unknown(action)
    action = add_command(actions, "remove", _remove, "remove grants by their id", is_action=True)
    action.add_argument("id", nargs="+")
    text = "print the grants as a file for `import`"
    add_command(actions, "export", _export, text, is_action=True)
    text = "replace all grants by those of a YAML or JSON file"
    action = add_command(actions, "import", _import, text, is_action=True)
    action.add_argument("file", help="a list of grants, or - for the standard input")
    action.add_argument("--dry-run", action="store_true", help="say what would change, and stop")
    _may_be_unknown(action)
    text = "who changed what, the newest first"
    action = add_command(actions, "log", _log, text, is_action=True)
    action.add_argument("--limit", type=int, default=40, help="most changes that are shown (40)")
    add_command(actions, "undo", _undo, "take the latest change back", is_action=True)


def _may_be_unknown(action: argparse.ArgumentParser) -> None:
    action.add_argument(
        "--allow-unknown",
        action="store_true",
        help="accept users and groups that have not started a server here yet",
    )


# -- looking -------------------------------------------------------------------------------------


def _list(options: argparse.Namespace) -> Said:
    grants = open_ledger(options).grants(hub_of(options))
    data = [grant.as_json() for grant in grants]
    if not grants:
        return Said(data, ["There is no grant: nobody gets a GPU. Add one with `grants add`."])
    heads = ("ID", "FOR", "GETS", "OF", "PRIORITY", "HOURS A WEEK", "VALID", "FROM")
    return Said(data, table(heads, map(_row, grants)))


def _row(grant: Grant) -> Sequence[object]:
    where = ", ".join(grant.gpus) or (f"pool {grant.pool}" if grant.pool else "any pool")
    bounds = (moment(grant.valid_from), moment(grant.valid_until))
    return (
        grant.id,
        grant.whose,
        f"{grant.count} {grant.share}",
        where,
        grant.priority,
        "" if grant.weekly_gpu_hours is None else f"{grant.weekly_gpu_hours:g}",
        " to ".join(bounds).strip() if any(bounds) else "always",
        grant.source,
    )


def _explain(options: argparse.Namespace) -> Said:
    ledger, user = open_ledger(options), options.user
    groups = tuple(options.group or ledger.groups_of(hub_of(options), user))
    book = GrantBook(ledger.grants(hub_of(options)))
    mine = book.for_person(user, groups, ledger.now())
    used_h = ledger.week_hours(hub_of(options), user)
    lines = explain(user, mine, devices(ledger, hub_of(options)), used_h)
    data = {
        "user": user,
        "groups": list(groups),
        "grants": [
            {**grant.as_json(), "used_gpu_hours": round(used_h.get(grant.id, 0.0), 3)}
            for grant in mine
        ],
        "sentences": lines,
    }
    if len(mine) > 1:
        lines = [f"{place}. {line}" for place, line in enumerate(lines, 1)]
        lines.append("The first of these that covers a start and has room is used.")
    return Said(data, lines)


def _export(options: argparse.Namespace) -> Said:
    grants = open_ledger(options).grants(hub_of(options))
    rows = [_writable(grant) for grant in grants if grant.source == "ledger"]
    return Said(rows, [yaml.safe_dump(rows, sort_keys=False, allow_unicode=True).rstrip()])


def _writable(grant: Grant) -> dict[str, Any]:
    return {key: value for key, value in grant.as_json().items() if key != "source"}


def _log(options: argparse.Namespace) -> Said:
    changes = open_ledger(options).changes(hub_of(options), options.limit)
    data = [
        {
            "at": change.at,
            "by": change.by,
            "what": change.what,
            "subject": change.subject,
            "before": change.before,
            "after": change.after,
        }
        for change in changes
    ]
    lines = [
        f"{moment(change.at)}  {clean(change.by)}: {change.what} {clean(change.subject)} "
        + _difference(change.before, change.after)
        for change in changes
    ]
    return Said(data, lines or ["Nothing was changed yet."])


# -- changing ------------------------------------------------------------------------------------


def _known(ledger: Ledger, options: argparse.Namespace) -> Known:
    """Names a grant may use: those who started a server here, their groups, and the devices."""
    inventory = devices(ledger, hub_of(options))
    if options.allow_unknown:
        return Known(inventory=inventory)
    return Known(ledger.usernames(), ledger.known_groups(hub_of(options)), inventory)


def _parse(rows: Sequence[Any], ledger: Ledger, options: argparse.Namespace) -> tuple[Grant, ...]:
    try:
        return parse_grants(rows, _known(ledger, options))
    except BadRequest as error:
        hints = dict.fromkeys(
            hint for words, hint in _HINTS.items() if any(words in one for one in error.faults)
        )
        if not hints:
            raise
        raise BadRequest(
            f"{error.public_message} ({'; '.join(hints)})", faults=(*error.faults, *hints)
        ) from error


def _add(options: argparse.Namespace) -> Said:
    # An empty name is a name that a script failed to fill in, not everyone; the spec refuses it.
    to = "everyone" if options.everyone else "group" if options.user is None else "user"
    subject = options.group if options.user is None else options.user
    if options.pool is not None and not options.pool.strip():
        raise BadRequest("--pool names no pool. Name one, or leave --pool out for any pool.")
    row: dict[str, Any] = {"to": to, "subject": subject or ""}
    for key in (*_FLAGS, "valid_from", "valid_until", "id"):
        if getattr(options, key) is not None:
            row[key] = getattr(options, key)
    row["gpus"], row["images"] = options.gpu or [], options.image or []
    ledger = open_ledger(options)
    _parse([row], ledger, options)
    added: list[Grant] = []

    def change(before: tuple[Grant, ...]) -> Sequence[Grant]:
        row.setdefault("id", _free_id(to, {grant.id for grant in before}))
        # Together with the others, so that a GPU is not pinned to two people.
        others = [_writable(grant) for grant in before]
        after = parse_grants([*others, row], Known())
        added.append(after[-1])
        return after

    ledger.change_grants(hub_of(options), who(), change)
    return Said(added[-1].as_json(), [f"Added: {_sentence(added[-1])}"])


def _free_id(to: str, taken: set[str]) -> str:
    number = 1
    while f"{to}-{number}" in taken:
        number += 1
    return f"{to}-{number}"


def _remove(options: argparse.Namespace) -> Said:
    wanted = set(options.id)

    def change(before: tuple[Grant, ...]) -> Sequence[Grant]:
        known = {grant.id for grant in before}
        if missing := sorted(wanted - known):
            faults = [f"there is no grant {one} in the ledger" for one in missing]
            there = ", ".join(sorted(known)) or "none"
            raise BadRequest(f"{'; '.join(faults)}; there is {there}.", faults=faults)
        return [grant for grant in before if grant.id not in wanted]

    open_ledger(options).change_grants(hub_of(options), who(), change)
    text = f"Removed {', '.join(sorted(wanted))}. Servers that run keep their GPUs."
    return Said(sorted(wanted), [text])


def _import(options: argparse.Namespace) -> Said:
    rows = _read(options.file)
    ledger = open_ledger(options)
    after = _parse(rows, ledger, options)
    differences: list[dict[str, Any]] = []

    def change(before: tuple[Grant, ...]) -> Sequence[Grant]:
        old = {grant.id: grant for grant in before}
        new = {grant.id: grant for grant in after}
        differences.extend(
            {"id": one, "before": _shown(old.get(one)), "after": _shown(new.get(one))}
            for one in sorted({*old, *new})
            if old.get(one) != new.get(one)
        )
        return after

    if options.dry_run:
        ledger.try_grants(hub_of(options), change)
    else:
        ledger.change_grants(hub_of(options), who(), change)
    lines = [f"{one['id']}: {_difference(one['before'], one['after'])}" for one in differences] or [
        "Nothing differs."
    ]
    if options.dry_run:
        lines.append("Nothing was written (--dry-run).")
    elif differences:
        lines.append(f"{len(after)} grants. `grants undo` takes this back.")
    return Said({"changed": differences, "is_written": not options.dry_run}, lines)


def _read(name: str) -> list[Any]:
    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LabError(f"{name} cannot be read: {error}") from error
    try:
        said = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise BadRequest(f"{name} is neither YAML nor JSON: {' '.join(str(error).split())}") from (
            error
        )
    except ValueError as error:  # 2026-09-31
        raise BadRequest(
            f"{name} holds a date or a number that does not exist: {error}. Correct it."
        ) from error
    if isinstance(said, dict) and list(said) == ["grants"]:
        said = said["grants"]
    if not isinstance(said, list):
        raise BadRequest(f"{name} holds no list of grants. `grants export` shows the form.")
    return said


def _undo(options: argparse.Namespace) -> Said:
    ledger = open_ledger(options)
    latest = _latest(ledger.changes(hub_of(options), 10_000))
    if not latest:
        return Said([], ["There is nothing to take back."])

    def change(before: tuple[Grant, ...]) -> Sequence[Grant]:
        grants = {grant.id: grant for grant in before}
        for one in latest:
            if _shown(grants.pop(one.subject, None)) != one.after:
                raise BadRequest(f"The grant {one.subject} was changed again since.")
            if one.before is not None:
                (grants[one.subject],) = parse_grants([one.before], Known())
        return list(grants.values())

    ledger.change_grants(hub_of(options), who(), change)
    lines = [f"{one.subject}: {_difference(one.after, one.before)}" for one in latest]
    return Said([one.subject for one in latest], lines)


def _latest(changes: Sequence[Change]) -> list[Change]:
    """The newest change of grants by a person, whole: an import writes many lines at once."""
    ours = [one for one in changes if one.what == "grant" and one.by not in _BY_THE_HUB]
    return [one for one in ours if (one.at, one.by) == (ours[0].at, ours[0].by)]


# -- saying --------------------------------------------------------------------------------------


def _shown(grant: Grant | None) -> dict[str, Any] | None:
    return None if grant is None else grant.as_json()


def _sentence(grant: Grant) -> str:
    where = ", ".join(grant.gpus) or (f"pool {grant.pool}" if grant.pool else "any pool")
    return f"{grant.id}: {grant.whose} gets {grant.count} {grant.share} of {where}."


def _difference(before: Any, after: Any) -> str:
    if before is None:
        return f"added {clean(json.dumps(after))}"
    if after is None:
        return f"removed (was {clean(json.dumps(before))})"
    if not (isinstance(before, dict) and isinstance(after, dict)):
        return clean(f"{before} -> {after}")
    return ", ".join(
        clean(f"{key} {json.dumps(before.get(key))} -> {json.dumps(after.get(key))}")
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
    )
