"""The course that comes with the lab, to begin with. Reads files; it must not write any."""

from __future__ import annotations

from collections.abc import Collection

import yaml

from pytorch_spawner.core.course_manifest import MANIFEST_FILE, Manifest
from pytorch_spawner.core.course_text import from_json
from pytorch_spawner.errors import BadRequest
from pytorch_spawner.lab.paths import courses_dir

_EXAMPLE = "example"
_MOST = 1000


def example_manifest(taken: Collection[str]) -> Manifest:
    """The example's manifest under a name that is free, with this machine's files as source.

    Args:
        taken: Names of the courses that there are.

    Raises:
        BadRequest: The example is not installed, or cannot be read.
    """
    folder = courses_dir() / _EXAMPLE
    try:
        said = yaml.safe_load((folder / MANIFEST_FILE).read_text("utf-8"))
        name = str(said["name"])
        path = str((said.get("source") or {}).get("path", ""))
    except (OSError, ValueError, yaml.YAMLError, TypeError, KeyError, AttributeError) as error:
        raise BadRequest(
            "The example course is not installed here. Install the package again, or add a course "
            "of your own.",
            detail=f"{folder}: {error}",
        ) from error
    names = [name, *(f"{name}-{count}" for count in range(2, _MOST))]
    said["name"] = next(one for one in names if one not in taken)
    if said["name"] != name:  # a student of both has two folders
        said.pop("target", None)
    said["source"] = {"directory": str(folder), **({"path": path} if path else {})}
    return from_json(said)
