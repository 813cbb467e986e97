"""Manifests as files: read, checked beyond what the schema says, and the schema itself."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

from pytorch_spawner.cli.common import clean
from pytorch_spawner.core.course_manifest import MAX_MANIFEST_BYTES, Manifest
from pytorch_spawner.core.course_text import from_yaml, read_manifest
from pytorch_spawner.core.suites import SUITE_FILE, TAG, read_suite
from pytorch_spawner.errors import BadRequest, LabError, Problem


def read_bytes(path: str, most: int) -> bytes:
    """Read a file, or the standard input ("-"); one byte more than the limit at most.

    Raises:
        LabError: It cannot be read.
    """
    try:
        if path == "-":
            return sys.stdin.buffer.read(most + 1)
        with Path(path).open("rb") as file:
            return file.read(most + 1)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise LabError(f"{clean(path)} cannot be read: {clean(why)}.") from error


def read(path: str) -> Manifest:
    """Read a manifest and check all of it that can be checked without its notebooks.

    Raises:
        BadRequest: Anything is wrong; each fault with its place, and its line where it is known.
        LabError: The file cannot be read.
    """
    content = read_bytes(path, MAX_MANIFEST_BYTES)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return read_manifest(content)  # which refuses it
    try:
        manifest = from_yaml(text)
    except BadRequest as error:
        raise _refused(error.problems) from None
    if faults := _of_warmup(manifest):
        raise _refused(faults)
    return manifest


def _refused(problems: tuple[Problem, ...]) -> BadRequest:
    faults = [clean(_say(one)) for one in problems]
    text = f"The course's manifest is not usable: {'; '.join(faults)}."
    return BadRequest(text, faults=faults, problems=problems)


def _say(problem: Problem) -> str:
    line = "" if problem.row is None else f"line {problem.row}: "
    return f"{line}{problem.field}: {problem.message}" if problem.field else line + problem.message


def _of_warmup(manifest: Manifest) -> tuple[Problem, ...]:
    """What is wrong with the warm-up, as if all files that it names were there."""
    if manifest.warmup is None:
        return ()
    files = {SUITE_FILE: yaml.safe_dump({"name": manifest.name, **manifest.warmup}).encode()}
    targets = manifest.warmup.get("targets")
    for target in targets if isinstance(targets, list) else ():
        if isinstance(target, dict):
            files.update(_stand_ins(target))
    try:
        read_suite(files)
    except BadRequest as error:
        return tuple(
            Problem(one.message, f"warmup.{one.field}".rstrip("."), one.row)
            for one in error.problems
        )
    return ()


def _stand_ins(target: dict[str, Any]) -> dict[str, bytes]:
    module = str(target.get("function") or "").partition(":")[0].replace(".", "/")
    tag = str(target.get("tag") or TAG)
    cell = {"cell_type": "code", "metadata": {"tags": [tag]}}
    notebook = json.dumps({"cells": [cell]})
    found = {f"{module}.py": b"", str(target.get("script") or ""): b""}
    found[str(target.get("notebook") or "")] = notebook.encode()
    return {path: content for path, content in found.items() if path not in ("", ".py")}


def schema() -> dict[str, Any]:
    """The JSON schema of a ``course.yaml``."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Manifest.model_json_schema(),
        "title": "course.yaml of pytorch_spawner",
    }
