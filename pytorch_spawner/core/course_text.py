"""A course's manifest as text and back, with the line of every fault. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

import yaml
from pydantic import ValidationError

from pytorch_spawner.core import course_environment, yaml_text
from pytorch_spawner.core.course_manifest import MANIFEST_FILE, MAX_MANIFEST_BYTES, Manifest
from pytorch_spawner.errors import BadRequest, Problem

# Names that the API's own routes have.
_RESERVED_NAMES: Final = frozenset({"schema"})
# How deep a warm-up's description may be nested.
_MAX_DEPTH: Final = 12
# A text of keys that are all the same is refused in a few words.
_MOST_FAULTS: Final = 20


def to_yaml(manifest: Manifest) -> str:
    """A manifest as the text of a ``course.yaml``; comments of the original are not known."""
    return str(yaml.safe_dump(manifest.as_json(), sort_keys=False, allow_unicode=True, width=100))


def from_yaml(text: str) -> Manifest:
    """Read a ``course.yaml``.

    Raises:
        BadRequest: Anything is wrong; each problem says its line where that is known.
    """
    try:
        return checked(read_manifest(text.encode("utf-8", "surrogatepass")))
    except BadRequest as error:
        line_of = _lines_of(text)
        problems = [replace(one, row=one.row or line_of(one.field)) for one in error.problems]
        raise BadRequest(error.public_message, faults=error.faults, problems=problems) from None


def read_manifest(text: bytes) -> Manifest:
    """Read a ``course.yaml``, or refuse it whole.

    Raises:
        BadRequest: Anything is wrong; the message lists every fault with its place.
    """
    if len(text) > MAX_MANIFEST_BYTES:
        raise _refused([Problem(f"more than {MAX_MANIFEST_BYTES // 1024} KiB", MANIFEST_FILE)])
    try:
        said, twice = yaml_text.read(text.decode("utf-8"))
    except UnicodeDecodeError:
        raise _refused([Problem("it is no UTF-8 text", MANIFEST_FILE)]) from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        why = " ".join(str(error).split())[:200]
        raise _refused([Problem(f"it is no YAML: {_plain(why)}", MANIFEST_FILE)]) from None
    if twice:
        raise _refused(
            [replace(one, field=_plain(one.field)[:200]) for one in twice[:_MOST_FAULTS]]
        )
    return parse_manifest(said)


def parse_manifest(said: Any) -> Manifest:
    """Check a manifest that came as JSON.

    Raises:
        BadRequest: See ``read_manifest``.
    """
    if not isinstance(said, Mapping):
        raise _refused([Problem("it holds no keys, such as name and source", MANIFEST_FILE)])
    try:
        return Manifest.model_validate(said)
    except ValidationError as error:
        raise _refused([_problem(one) for one in error.errors(include_url=False)]) from None


def _refused(problems: list[Problem]) -> BadRequest:
    faults = [f"{one.field}: {one.message}" if one.field else one.message for one in problems]
    text = "The course's manifest is not usable: " + "; ".join(faults) + "."
    return BadRequest(text, faults=faults, problems=problems)


_MEANINGS: Final = {
    "name": "a to z, 0 to 9 and single hyphens, beginning with a letter, at most 25 characters",
    "target": "one directory's name: letters, digits, _ . - and spaces, at most 60 characters",
    "branch": "a name of a branch",
}


def _problem(error: Mapping[str, Any]) -> Problem:
    place = ".".join(_plain(str(part))[:60] for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return Problem("there is no such key", place)
    if error["type"] in ("string_pattern_mismatch", "string_too_long"):
        last = str(error["loc"][-1]) if error["loc"] else ""
        return Problem(_MEANINGS.get(last, "not of this form, or too long"), place)
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "missing":
        message = "this is needed"
    return Problem(_plain(message)[:300], place)


def _plain(text: str) -> str:
    """A manifest's text without what would steer a terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)


def from_json(said: Any) -> Manifest:
    """Check a manifest that came as JSON.

    Raises:
        BadRequest: Anything is wrong.
    """
    return checked(parse_manifest(said))


def checked(manifest: Manifest) -> Manifest:
    """The same manifest, which the ledger and the API can keep and show.

    Raises:
        BadRequest: They cannot, or it sets what a course may not (of one that is stored already,
            that is only left out of starts).
    """
    if manifest.name in _RESERVED_NAMES:
        raise refuse(f"{manifest.name!r} is a name of the lab's own; take another", "name")
    for variable in manifest.environment:
        if why := course_environment.why_not(variable):
            raise refuse(f"{variable[:60]} {why}", "environment")
    stack: list[tuple[str, Any, int]] = [("warmup", manifest.warmup, 0)]
    while stack:
        place, value, depth = stack.pop()
        if depth > _MAX_DEPTH or not _is_plain(value):
            raise refuse("only texts, finite numbers, lists and mappings, not too deep", place)
        stack += [(place, one, depth + 1) for one in _parts(value)]
    said = manifest.as_json()
    for field, value in said.items():
        if any(not _is_readable(text) for text in _texts(value)):
            raise refuse("only printable characters", field)
    return manifest


def _is_plain(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, int):
        return abs(value) < 2**63
    return value is None or isinstance(value, (str, list, dict))


def _parts(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    return value if isinstance(value, list) else []


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for one in _parts(value):
        yield from _texts(one)


def _is_readable(text: str) -> bool:
    return all(one.isprintable() or one in "\n\t" for one in text)


def refuse(message: str, field: str) -> BadRequest:
    """One fault of a course's manifest, or of what is asked for it."""
    fault = f"{field}: {message}"
    return BadRequest(
        f"This is not usable: {fault}.", faults=[fault], problems=[Problem(message, field)]
    )


def _lines_of(text: str) -> Callable[[str], int | None]:
    """What tells the line, from 1, of a place such as "timetable.sessions.0.start"."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        broken = None if mark is None else int(mark.line) + 1
        return lambda _: broken
    except (yaml.YAMLError, RecursionError, ValueError):
        return lambda _: None

    def line_of(place: str) -> int | None:
        node, line = root, None
        for part in place.split("."):
            found = _child(node, part)
            if found is None:
                break
            line, node = found
        return line

    return line_of


def _child(node: Any, part: str) -> tuple[int, Any] | None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if getattr(key, "value", None) == part:
                return key.start_mark.line + 1, value
    if isinstance(node, yaml.SequenceNode) and part.isdecimal() and int(part) < len(node.value):
        one = node.value[int(part)]
        return one.start_mark.line + 1, one
    return None
