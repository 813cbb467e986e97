"""`cache`: compile caches that a trusted run builds and proves, and that starts are given."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from typing import Final

from pytorch_spawner.adapters.suite_files import read_directory
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
from pytorch_spawner.core import cache_words as words
from pytorch_spawner.core.suites import digest, pack, read_suite, unpack
from pytorch_spawner.core.warmcache import Cache, currents
from pytorch_spawner.errors import BadRequest, LabError
from pytorch_spawner.lab.paths import FilesMissing, suites_dir
from pytorch_spawner.ledger.store import Ledger

_WEEK_S: Final = 7 * 86400.0
_POLL_S: Final = 0.5
# The service looks for work every few seconds; nobody who takes it up by then does at all.
_PATIENCE_S: Final = 15.0
_LOG_LINES: Final = 30
_INTERRUPTED: Final = 130
_NOBODY: Final = "The lab service does not run on this ledger; start the hub."


def add_to(commands: Commands) -> None:
    """Add the command and its actions."""
    cache = add_command(commands, "cache", _list, "warm compile caches: what starts are given")
    actions = cache.add_subparsers(metavar="action")
    text = "compile what a suite names, prove it in a second container, and give it to starts"
    build = add_command(actions, "build", _build, text, is_action=True)
    build.add_argument(
        "--suite",
        metavar="DIR",
        help="directory with a suite.yaml (default: the suite that was built for this course last)",
    )
    build.add_argument("--course", default="", help="only for this course's starts")
    build.add_argument(
        "--image",
        help="default: $PYTORCH_SPAWNER_IMAGE, else $LAB_IMAGE, else that of the suite that is "
        "built again, else the one that every server of the last week was started with",
    )
    where = build.add_mutually_exclusive_group()
    where.add_argument("--pool", default="", help="on a GPU of this pool (default: any)")
    where.add_argument("--cpu", action="store_true", help="for starts without a GPU")
    build.add_argument("--no-wait", action="store_true", help="ask for it, and do not follow it")
    add_command(actions, "list", _list, "every cache and build, the newest first", is_action=True)
    for name, run, help_ in (
        ("show", _show, "one cache: what was measured, and its log"),
        ("promote", _promote, "give it to starts from now on"),
        ("rollback", _rollback, "give starts what was promoted before it"),
        ("remove", _remove, "give it up; its files go once no server uses them"),
        ("stop", _stop, "stop a build"),
    ):
        action = add_command(actions, name, run, help_, is_action=True)
        action.add_argument("id", help="id, or the beginning of one")


# -- looking -------------------------------------------------------------------------------------


def _list(options: argparse.Namespace) -> Said:
    caches = open_ledger(options).caches(hub_of(options))
    given = currents(caches)
    data = [words.as_json(one, given) for one in caches]
    if not caches:
        text = f"There is no warm cache. Build one with `cache build --suite {_example()}`."
        return Said(data, [text])
    heads = (
        "ID",
        "SUITE",
        "COURSE",
        "FOR",
        "IMAGE",
        "STATE",
        "FIRST STEPS",
        "SIZE",
        "HITS",
        "USED",
    )
    rows = (
        (
            one.id,
            one.suite.get("name", ""),
            one.scope or "all",
            words.where(one),
            one.image,
            words.standing(one, given),
            _steps(one),
            words.megabytes(one.size_bytes),
            words.hits(one) or "",
            moment(one.used_at),
        )
        for one in caches
    )
    return Said(data, table(heads, rows))


def _example() -> str:
    """The suite that came with the package, wherever pip put it."""
    try:
        folder = suites_dir() / "example"
    except FilesMissing:
        return "DIR"
    return shlex.quote(str(folder)) if folder.is_dir() else "DIR"


def _steps(cache: Cache) -> str:
    steps = words.first_steps(cache)
    return "" if steps is None else f"{steps[0]:.1f} s -> {steps[1]:.1f} s"


def _show(options: argparse.Namespace) -> Said:
    caches = open_ledger(options).caches(hub_of(options))
    one, given = _find(caches, options.id), currents(caches)
    lines = [
        f"{one.id}: {clean(one.suite.get('name', ''))}, {words.standing(one, given)}. "
        f"{clean(one.message)}".rstrip(),
        f"for {words.where(one)}, image {clean(one.image)}, course {clean(one.scope) or 'all'}",
        f"asked for by {clean(one.by)}, {moment(one.asked_at)}",
    ]
    if one.torch:
        lines.append(f"torch {clean(one.torch)}, Triton {clean(one.triton) or 'none'}")
    if one.size_bytes:
        lines.append(f"{one.files} files, {words.megabytes(one.size_bytes)}")
    lines.append(f"used {moment(one.used_at)}" if one.used_at else "never used")
    lines += ["", *_targets(one)] if one.targets else []
    lines += ["", "log:", *_log_of(one, None)] if one.log else []
    return Said(words.as_json(one, given, log=True), lines)


def _targets(cache: Cache) -> list[str]:
    heads = ("TARGET", "SIZE", "COLD", "WARM", "HITS", "MISSES")
    rows = (
        (
            one.name,
            "" if one.size is None else one.size,
            _seconds(one.cold_s),
            _seconds(one.warm_s),
            one.hits,
            one.misses,
        )
        for one in cache.targets
    )
    return table(heads, rows)


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} s"


def _log_of(cache: Cache, most: int | None) -> list[str]:
    lines = cache.log.splitlines()
    return [f"  {clean(line)}" for line in (lines if most is None else lines[-most:])]


def _find(caches: Sequence[Cache], said: str) -> Cache:
    found = [one for one in caches if said and one.id.startswith(said)]
    if len(found) == 1:
        return found[0]
    known = ", ".join(one.id for one in (found or caches)[:20]) or "none"
    how = "names more than one cache" if found else "is no cache of this lab"
    raise LabError(f"{said!r} {how}: {known}")


# -- building ------------------------------------------------------------------------------------


def _build(options: argparse.Namespace) -> Said | int:
    ledger, hub = open_ledger(options), hub_of(options)
    last = None if options.suite else _last(ledger, hub, options.course)
    files = unpack(ledger.suite_archive(hub, last.id)) if last else read_directory(options.suite)
    suite = read_suite(files)
    image = options.image or os.environ.get("PYTORCH_SPAWNER_IMAGE") or os.environ.get("LAB_IMAGE")
    image = image or (last.image if last else _only_image(ledger, hub))
    gpus = 0 if options.cpu else 1
    words.check_request(options.course, image, options.pool, gpus, devices(ledger, hub))
    asked = ledger.request_cache(
        hub,
        by=who(),
        scope=options.course,
        image=image,
        pool=options.pool,
        gpus=gpus,
        suite=suite.as_json(),
        suite_digest=digest(files),
        archive=pack(files),
    )
    if options.no_wait:
        text = f"{asked.id} waits to be built; `pytorch-spawner cache show {asked.id}` follows it."
        return Said(words.as_json(asked, ()), [text])
    # With --json the standard output is the result alone.
    news = sys.stderr if options.json else sys.stdout
    print(f"{asked.id}: {suite.name}, for {words.where(asked)} with {clean(image)}", file=news)
    try:
        return _follow(ledger, asked, as_json=bool(options.json))
    except KeyboardInterrupt:
        print(
            f"\nThe build goes on; `pytorch-spawner cache stop {asked.id}` ends it.",
            file=sys.stderr,
        )
        return _INTERRUPTED


def _last(ledger: Ledger, hub: str, course: str) -> Cache:
    """What was built last for a course, or for all of them.

    Raises:
        BadRequest: There was none.
    """
    for one in ledger.caches(hub):
        if one.scope == course:
            return one
    whom = f"the course {course[:60]}" if course else "every course"
    raise BadRequest(f"No suite was built for {whom} before; name one with --suite.")


def _only_image(ledger: Ledger, hub: str) -> str:
    """The image of all late starts: a cache serves no other than its own, so none is guessed at.

    Raises:
        BadRequest: There were several, or none.
    """
    images = sorted(ledger.started_images(hub, _WEEK_S))
    if len(images) == 1:
        return images[0]
    seen = f"servers were started with {', '.join(map(clean, images))}"
    raise BadRequest(
        f"image: name one with --image; {seen if images else 'nobody started a server'} in the "
        "last week."
    )


def _follow(ledger: Ledger, asked: Cache, *, as_json: bool) -> int:
    """Print what changes until it is over."""
    news = sys.stderr if as_json else sys.stdout
    began, told = time.monotonic(), ("queued", "")
    idle_since, is_published = began, False
    while True:
        now = ledger.cache(asked.hub, asked.id)
        if now is None:
            raise LabError(f"{asked.id} is gone from the ledger.")
        if (now.state, now.message) != told:
            told = (now.state, now.message)
            text = f"{now.state}: {clean(now.message)}".rstrip(": ")
            print(f"{time.monotonic() - began:7.1f} s  {text}", file=news, flush=True)
        if now.state in ("failed", "expired") or is_published:
            return _over(ledger, now, as_json=as_json)
        # It is promoted a moment later; one look more, so that what starts are given is said right.
        is_published = now.state == "published"
        if now.state != "queued" or ledger.cache_under_way(asked.hub) is not None:
            idle_since = time.monotonic()
        elif time.monotonic() - idle_since > _PATIENCE_S:
            raise LabError(f"{_NOBODY} {asked.id} stays queued until then.")
        time.sleep(_POLL_S)


def _over(ledger: Ledger, cache: Cache, *, as_json: bool) -> int:
    is_fine = cache.state == "published"
    if as_json:
        given = currents(ledger.caches(cache.hub))
        print(json.dumps(words.as_json(cache, given, log=True), indent=1))
    elif is_fine:
        print()
        print("\n".join(_targets(cache)))
        print(f"{words.megabytes(cache.size_bytes)} in {cache.files} files.")
        print(words.say_given(ledger.caches(cache.hub), cache))
    if not is_fine:
        print(f"pytorch-spawner: {clean(cache.message)}", file=sys.stderr)
        for line in [] if as_json else _log_of(cache, _LOG_LINES):
            print(line, file=sys.stderr)
    return 0 if is_fine else 1


# -- changing ------------------------------------------------------------------------------------


def _promote(options: argparse.Namespace) -> Said:
    ledger, one = _named(options)
    if not ledger.promote_cache(one.hub, one.id, who()):
        raise LabError(words.why_not_promoted(one))
    return _now(ledger, one)


def _rollback(options: argparse.Namespace) -> Said:
    ledger, one = _named(options)
    if not ledger.retire_cache(one.hub, one.id, who()):
        raise LabError(words.why_not_retired(one))
    return _now(ledger, one)


def _stop(options: argparse.Namespace) -> Said:
    ledger, one = _named(options)
    if not ledger.cancel_cache(one.hub, one.id, who()):
        raise LabError(words.why_not_stopped(one))
    is_over = one.state == "queued"
    text = f"{one.id} is stopped." if is_over else f"{one.id} is asked to stop."
    return Said(_json(ledger, one), [text])


def _remove(options: argparse.Namespace) -> Said:
    ledger, one = _named(options)
    if ledger.remove_cache(one.hub, one.id, who()) is None:
        raise LabError(words.why_not_removed(one))
    text = f"{one.id} is removed. {words.say_given(ledger.caches(one.hub), one)}"
    return Said(_json(ledger, one), [text])


def _named(options: argparse.Namespace) -> tuple[Ledger, Cache]:
    ledger = open_ledger(options)
    return ledger, _find(ledger.caches(hub_of(options)), options.id)


def _now(ledger: Ledger, cache: Cache) -> Said:
    return Said(_json(ledger, cache), [words.say_given(ledger.caches(cache.hub), cache)])


def _json(ledger: Ledger, cache: Cache) -> object:
    caches = ledger.caches(cache.hub)
    now = next(one for one in caches if one.id == cache.id)
    return words.as_json(now, currents(caches))
