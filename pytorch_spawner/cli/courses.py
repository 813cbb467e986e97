"""`courses`: what an instructor writes once, and what is done for it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

from pytorch_spawner.cli import course_files, course_follow
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
from pytorch_spawner.core import course_words as words
from pytorch_spawner.core.course_manifest import Manifest, why_outside
from pytorch_spawner.core.course_text import checked, from_json, to_yaml
from pytorch_spawner.core.courses import Course
from pytorch_spawner.core.ics import MAX_BYTES, read_ics
from pytorch_spawner.core.seat_room import sizes_of
from pytorch_spawner.core.timetable import AHEAD_S, local, next_session, sessions_of, zone_of
from pytorch_spawner.errors import BadRequest, LabError
from pytorch_spawner.lab.course_example import example_manifest
from pytorch_spawner.ledger import course_lines
from pytorch_spawner.ledger.store import Ledger

_SHOWN: Final = 12
_NONE: Final = (
    "There is no course. Add the example with `courses example`, or one with `courses add`."
)


def add_to(commands: Commands) -> None:
    """Add the command and its actions."""
    courses = add_command(commands, "courses", _list, "courses: notebooks, image, GPU and warm-up")
    actions = courses.add_subparsers(metavar="action")

    def action(
        name: str, run: Callable[[argparse.Namespace], Said | int], text: str, *names: str
    ) -> argparse.ArgumentParser:
        made = add_command(actions, name, run, text, is_action=True)
        for one in names:
            made.add_argument(one, metavar=one.upper(), help=_HELP[one])
        return made

    action("list", _list, "every course, and whether it is ready")
    action("show", _show, "one course: its steps, its publication, its people", "name")
    action("validate", _validate, "check a manifest without a lab; names every fault", "file")
    action("schema", _schema, "the manifest's JSON schema, for an editor")
    action("manifest", _manifest, "a course's manifest as YAML", "name")
    for made in (
        action("add", _add, "add a course", "file"),
        action("edit", _edit, "put another manifest in the place of a course's", "name", "file"),
    ):
        made.add_argument("--by", help="who does, for the log (default: you, on the command line)")
    text = "fetch, check, pull, smoke-test and warm up; only the first one is published at once"
    for made in (
        action("preload", course_follow.preload, text, "name"),
        action("publish", course_follow.publish, "give students what was preloaded", "name"),
    ):
        made.add_argument("--no-wait", action="store_true", help="ask, and do not follow it")
    action("stop", _stop, "end what is done for a course just now", "name")
    action("students", _students, "who has which publication, and whose copy needs a look", "name")
    text = "bring one file of one student back to the course's; a backup is kept"
    action("reset", _reset, text, "name", "user", "path")
    action("sessions", _sessions, "when the class meets next, and what is kept for it", "name")
    made = action(
        "import-ics",
        _import,
        "take a calendar's sessions in place of those there are",
        "name",
        "file",
    )
    text = "GPUs or slots kept for each session (default: one for each student that is known)"
    made.add_argument("--seats", type=int, metavar="N", help=text)
    action("remove", _remove, "remove a course; nobody's notebooks are touched", "name")
    made = action("example", _example, "add the course that comes with the lab")
    text = "who looks after it, besides admins; may be said more than once"
    made.add_argument("--staff", action="append", default=[], metavar="USER", help=text)


_HELP: Final = {
    "name": "name of the course",
    "file": "the file; - for the standard input",
    "user": "name of the student",
    "path": "the file, relative to the course",
}


# -- looking -------------------------------------------------------------------------------------


def _list(options: argparse.Namespace) -> Said:
    ledger = open_ledger(options)
    courses, now = ledger.courses(hub_of(options)), ledger.now()
    data = [_json(ledger, one) for one in courses]
    if not courses:
        return Said(data, [_NONE])
    rows = (
        (
            one.name,
            one.manifest.title,
            words.short(one.commit),
            moment(one.published_at),
            _when(one.manifest, now),
            _verdict(ledger, one),
        )
        for one in courses
    )
    return Said(data, table(("NAME", "TITLE", "COMMIT", "PUBLISHED", "MEETS", "STATE"), rows))


def _when(manifest: Manifest, now: float) -> str:
    session = next_session(manifest, now)
    return (
        "" if session is None else f"{local(session.starts_at, zone_of(manifest)):%Y-%m-%d %H:%M}"
    )


def _show(options: argparse.Namespace) -> Said:
    ledger, course = course_follow.named(options)
    manifest = course.manifest
    members = manifest.members
    staff = clean(", ".join(members.staff)) or "none but admins"
    groups = clean(", ".join(members.groups)) or "none"
    lines = [
        f"{course.name}: {clean(manifest.title)}. {clean(_verdict(ledger, course))}",
        f"notebooks from {clean(words.source_words(manifest.source))}, into ~/{manifest.folder}",
        f"image {clean(manifest.image)}, staff {staff}",
        f"groups {groups}, {len(members.users)} students by name",
        f"added by {clean(course.by)}, changed {moment(course.changed_at)}",
    ]
    if course.served:
        said = f"published {words.short(course.commit)}, {moment(course.published_at)}"
        lines.append(f"{said}, by {clean(course.published_by)}")
    if words.has_news(course):
        said = f"{words.short(course.candidate)} {clean(course.candidate_says)}".rstrip()
        lines.append(f"preloaded, not yet given to students: {said}")
    lines += ["", *course_follow.steps(course)] if course.steps else []
    return Said(_json(ledger, course), lines)


def _manifest(options: argparse.Namespace) -> Said:
    _, course = course_follow.named(options)
    return Said(course.manifest.as_json(), to_yaml(course.manifest).rstrip("\n").split("\n"))


def _schema(_: argparse.Namespace) -> Said:
    data = course_files.schema()
    return Said(data, [json.dumps(data, indent=1)])


def _validate(options: argparse.Namespace) -> Said:
    try:
        manifest = course_files.read(options.file)
    except BadRequest as error:
        problems = [
            {"line": one.row, "place": one.field, "message": one.message} for one in error.problems
        ]
        lines = [f"{clean(options.file)}: {fault}" for fault in error.faults]
        return Said({"ok": False, "problems": problems}, lines, is_fine=False)
    text = f"{clean(options.file)} is usable: {manifest.name}, {clean(manifest.title)}."
    return Said({"ok": True, "name": manifest.name, "problems": []}, [text])


def _students(options: argparse.Namespace) -> Said:
    ledger, course = course_follow.named(options)
    rows = _rows(ledger, course)
    lines = table(
        ("STUDENT", "COPY", "COMMIT", "SINCE", "CHANGED", "CONFLICTS", "SAYS"),
        (
            (
                row["user"],
                row["state"],
                words.short(row["commit"]),
                moment(row["at"]),
                len(row["kept"]) or "",
                ", ".join(row["conflicts"]),
                row["message"],
            )
            for row in rows
        ),
    )
    if not rows:
        lines = ["Nobody is named in the manifest, and nobody has started the course yet."]
    elif course.manifest.members.groups:
        lines.append("Members of its groups are listed once they have started it.")
    return Said(rows, lines)


def _sessions(options: argparse.Namespace) -> Said:
    ledger, course = course_follow.named(options)
    now, zone = ledger.now(), zone_of(course.manifest)
    every = sessions_of(course.manifest, now, now + AHEAD_S)
    data = [one._asdict() for one in every[:_SHOWN]]
    if not every:
        return Said(data, ["No session is to come. Add a timetable, or import a calendar."])

    def clock(at: float) -> datetime:
        return local(at, zone)

    rows = (
        (
            f"{clock(one.starts_at):%a %Y-%m-%d %H:%M}",
            f"{clock(one.ends_at):%H:%M %Z}",
            "known students" if one.seats is None else one.seats,
            one.title,
        )
        for one in every[:_SHOWN]
    )
    lines = table(("BEGINS", "ENDS", "SEATS", "TITLE"), rows)
    if len(every) > _SHOWN:
        lines.append(f"and {len(every) - _SHOWN} more")
    lines.append("Seats are kept from ten minutes before the beginning until ten minutes after it.")
    if note := _seats_note(ledger, course, now):
        lines.append(note)
    return Said(data, lines)


def _seats_note(ledger: Ledger, course: Course, now: float) -> str:
    share = ledger.class_share(course.hub)
    if share is None:
        return ""
    seen = [one.username for one in ledger.students(course.hub, course.name)]
    sizes = sizes_of(devices(ledger, course.hub))
    return words.seats_note(course.manifest, seen, now, sizes, share)


# -- changing ------------------------------------------------------------------------------------


def _add(options: argparse.Namespace) -> Said:
    return _added(open_ledger(options), options, course_files.read(options.file))


def _added(ledger: Ledger, options: argparse.Namespace, manifest: Manifest) -> Said:
    def is_new(known: Course | None) -> None:
        if known is not None:
            raise LabError(
                f"There is a course {manifest.name} already; change it with `courses edit "
                f"{manifest.name} FILE`."
            )

    by = getattr(options, "by", None) or who()
    made = ledger.save_course(hub_of(options), manifest, by, is_new)
    text = f"{made.name} is added. `pytorch-spawner courses preload {made.name}` makes it ready."
    return Said(_json(ledger, made), [text])


def _edit(options: argparse.Namespace) -> Said:
    ledger, course = course_follow.named(options)
    manifest = course_files.read(options.file)
    if manifest.name != course.name:
        raise LabError(
            f"The file is of the course {manifest.name}. A course keeps its name; add another one."
        )
    return _saved(ledger, course, manifest, options.by or who(), f"{course.name} is changed.")


def _saved(ledger: Ledger, course: Course, manifest: Manifest, by: str, text: str) -> Said:
    def is_there(known: Course | None) -> None:
        # Between our look and this transaction somebody else may have written.
        if known is None or known.manifest != course.manifest:
            raise LabError("Somebody else changed the course meanwhile; look at it and try again.")

    made = ledger.save_course(course.hub, manifest, by, is_there)
    if made.preloaded_at is not None and words.is_stale(made, [_both(course, made)]):
        text += " Preload it again."
    return Said(_json(ledger, made), [text])


def _both(before: Course, after: Course) -> tuple[Any, Any]:
    return before.manifest.as_json(), after.manifest.as_json()


def _import(options: argparse.Namespace) -> Said:
    ledger, course = course_follow.named(options)
    if options.seats is not None and not 0 <= options.seats <= 2000:
        raise LabError("--seats is a number from 0 to 2000.")
    was = course.manifest.timetable
    # A zone that nobody chose says nothing about the calendar.
    zone = was.timezone if was.sessions else ""
    text = course_files.read_bytes(options.file, MAX_BYTES)
    found = read_ics(text, options.seats, ledger.now(), zone)
    new = checked(course.manifest.model_copy(update={"timetable": found.timetable}))
    count, before = len(found.timetable.sessions), len(was.sessions)
    said = f"The timetable of {course.name} has {count} session{'' if count == 1 else 's'} now"
    said += f", in the place of {before}." if before else "."
    saved = _saved(ledger, course, new, who(), said)
    return Said(
        {"course": saved.data, "notes": list(found.notes)},
        [*saved.lines, *map(clean, found.notes)],
    )


def _stop(options: argparse.Namespace) -> Said:
    ledger, course = course_follow.named(options)
    if not ledger.stop_course(course.hub, course.name, who()):
        raise LabError(f"Nothing is done for {course.name} just now.")
    return Said(_json(ledger, course), [f"{course.name}: the {course.task} is asked to stop."])


def _reset(options: argparse.Namespace) -> Said:
    ledger, course = course_follow.named(options)
    path = options.path.strip("/")
    if why := why_outside(options.path) or ("" if path else "name a file of the course"):
        raise LabError(f"{clean(options.path)}: {why}.")
    if options.user not in {one.username for one in ledger.students(course.hub, course.name)}:
        raise LabError(f"{clean(options.user)} has no copy of {course.name}; nothing to reset.")
    order = ledger.ask_reset(course.hub, course.name, options.user, path, who())
    text = (
        f"{clean(path)} of {clean(options.user)} is reset within seconds if the server runs, else "
        "at its next start. A backup is kept beside it."
    )
    return Said({"id": order.id, "path": order.path, "user": order.username}, [text])


def _remove(options: argparse.Namespace) -> Said:
    ledger, course = course_follow.named(options)
    data = _json(ledger, course)
    if ledger.remove_course(course.hub, course.name, who()) is None:
        raise LabError("Somebody else removed it already.")
    return Said(data, [f"{course.name} is removed. Everybody keeps what is in their home."])


def _example(options: argparse.Namespace) -> Said:
    ledger = open_ledger(options)
    hub = hub_of(options)
    manifest = example_manifest(ledger.course_names(hub) | ledger.removed_courses(hub))
    if options.staff:
        said = manifest.as_json()
        said["members"] = {**said.get("members", {}), "staff": list(dict.fromkeys(options.staff))}
        manifest = from_json(said)
    return _added(ledger, options, manifest)


def _rows(ledger: Ledger, course: Course) -> list[dict[str, Any]]:
    # Who is in which group is the hub's knowledge; nobody asks it from here.
    expected = words.students_of(course.manifest, {})
    known = ledger.students(course.hub, course.name)
    return words.student_rows(course, expected, known, ledger.orders(course.hub, course.name))


def _json(ledger: Ledger, course: Course) -> dict[str, Any]:
    stale = course_lines.is_stale(ledger, course)
    return words.as_json(course, _rows(ledger, course), ledger.now(), stale=stale)


def _verdict(ledger: Ledger, course: Course) -> str:
    return words.verdict(course, stale=course_lines.is_stale(ledger, course))[1]
