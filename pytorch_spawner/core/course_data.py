"""Data sets that a site offers to courses, and which course and whose start gets one. Pure.

A manifest is its instructor's: that it names a data set gives no right to it. Neither does a group
that it names under ``members``. So the site's own configuration says which courses may, and
JupyterHub says who is in a group.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pytorch_spawner.core.courses import SMOKER

_KEYS: Final = ("source", "courses", "groups")


@dataclass(frozen=True, slots=True)
class DataSet:
    """One data set of the site.

    Attributes:
        name: As manifests say it.
        source: Absolute path on the engine's host, or name of a volume.
        courses: Names of the courses that may mount it; None for all.
        groups: JupyterHub groups in whose members' servers it is mounted; None for everybody's.
    """

    name: str
    source: str
    courses: tuple[str, ...] | None = None
    groups: tuple[str, ...] | None = None


def parse(said: Mapping[str, Any]) -> dict[str, DataSet]:
    """Read what the configuration says: name -> source, or name -> mapping.

    Raises:
        ValueError: It is not of this form; the sentence names the data set and the key.
    """
    return {name: _one(name, one) for name, one in said.items()}


def _one(name: str, said: Any) -> DataSet:
    if isinstance(said, str):
        said = {"source": said}
    if not isinstance(said, Mapping):
        # Like the other faults of a setting: whoever reads it shows the sentence.
        raise ValueError(f"{name}: a path or a volume's name, or a mapping with source")  # noqa: TRY004
    for key in said:
        if key not in _KEYS:
            raise ValueError(f"{name}: there is no key {key!r}; there are {', '.join(_KEYS)}")
    source = said.get("source")
    if not isinstance(source, str) or not source:
        raise ValueError(f"{name}: source is the path or the volume's name, and is needed")
    return DataSet(name, source, _names(name, "courses", said), _names(name, "groups", said))


def _names(name: str, key: str, said: Mapping[str, Any]) -> tuple[str, ...] | None:
    names = said.get(key)
    if names is None:
        return None
    # A text is a sequence of texts, too: "cv" would be the courses c and v.
    is_list = isinstance(names, (list, tuple)) and all(isinstance(one, str) for one in names)
    if not is_list:
        raise ValueError(f"{name}: {key} is a list of names")
    return tuple(names)


def mounts(
    wanted: Mapping[str, str],
    offered: Mapping[str, DataSet],
    course: str,
    username: str,
    groups: Collection[str],
) -> tuple[dict[str, str], tuple[str, ...]]:
    """What of a course's data sets one start gets.

    Args:
        wanted: Of the manifest: name of a data set -> path in the container.
        offered: By name.
        course: Name of the course.
        username: Whose start it is.
        groups: The JupyterHub groups of that user.

    Returns:
        Source -> path in the container, and for each that is refused a sentence with the remedy.
    """
    found: dict[str, str] = {}
    refused: list[str] = []
    for name, path in wanted.items():
        one = offered.get(name)
        why = _why_not(name, one, course, username, groups)
        if one is None or why:
            refused.append(why)
        else:
            found[one.source] = path
    return found, tuple(refused)


def _why_not(
    name: str, one: DataSet | None, course: str, username: str, groups: Collection[str]
) -> str:
    """Why a start does not get a data set; "" where it does."""
    if one is None:
        return (
            f"The data set {name} is not here: the lab does not offer it. An admin adds it to "
            "c.PyTorchSpawner.course_data, or whoever teaches takes it out of the manifest's data."
        )
    if one.courses is not None and course not in one.courses:
        return (
            f"The data set {name} is not here: the lab does not give it to the course {course}. An "
            f"admin adds {course} to its courses in c.PyTorchSpawner.course_data."
        )
    if one.groups is None or not set(one.groups).isdisjoint(groups):
        return ""
    who = f"the account {SMOKER}, which tries courses," if username == SMOKER else username
    is_one = len(one.groups) == 1
    return (
        f"The data set {name} is not here: it is for members of the "
        f"group{'' if is_one else 's'} {', '.join(one.groups)} alone. An admin adds {who} to "
        f"{'the group' if is_one else 'one of them'} on the hub's admin page."
    )
