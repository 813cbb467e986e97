"""Which files of a course's source reach its students, and why others do not; pure.

The source is somebody else's repository and may hold anything that git can store. What is kept here
is what an ordinary ``git checkout`` puts below one directory on Linux, and nothing beside it. What
is said about each notebook is in ``core.course_notebooks``.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from pytorch_spawner.core.course_notebooks import check_notebook
from pytorch_spawner.core.course_notes import Level, Note, mib, shown

__all__ = ["Checked", "Entry", "Limits", "Note", "check_notebook", "check_tree"]

MAX_PATH_CHARS: Final = 200
# A conflict's copy lies beside the file with a time in its name; ext4 takes 255 bytes in all.
MAX_NAME_BYTES: Final = 220
# Linux follows 40 links at most (path_resolution(7)).
MAX_HOPS: Final = 40
# Up through every part of a longest path, and down another one.
MAX_TARGET_CHARS: Final = 3 * MAX_PATH_CHARS
# So many notes of one kind by themselves; the rest of the kind shares one.
_EACH: Final = 5
# What git on NTFS takes for .git (read-cache.c, is_ntfs_dotgit); git refuses it on Linux, too.
_GIT_FOLDER: Final = re.compile(r"(\.git|git~1)[ .]*(:.*)?", re.IGNORECASE)
# Joins two signs to one, in Indian scripts and emoji; every other format character only hides.
_JOINERS: Final = "\u200c\u200d"
# What a directory without git holds beside the course; in a repository its author decides that.
LEFT_BEHIND: Final = frozenset({".git", ".ipynb_checkpoints", "__pycache__", ".ds_store"})
_STEERS: Final = frozenset({".gitattributes", ".gitmodules"})


@dataclass(frozen=True, slots=True)
class Limits:
    """How large a course may be.

    Attributes:
        max_bytes: Of all files together, and of what one fetch brings.
        max_files: Files and links.
        max_file_bytes: Of one file.
        deadline_s: Most seconds of one fetch.
        silence_s: A server that sends nothing for so many seconds is given up.
    """

    max_bytes: int = 2 * 1024**3
    max_files: int = 20_000
    max_file_bytes: int = 100 * 1024**2
    deadline_s: float = 600
    silence_s: float = 60


@dataclass(frozen=True, slots=True)
class Entry:
    """One file, link or submodule of the source's commit.

    Attributes:
        path: Relative to the course's directory, "/" between the parts. Bytes that are no UTF-8 are
            lone surrogates, as ``os.fsdecode`` makes them. Hostile text.
        mode: "100644", "100755" for a program, "120000" for a link, "160000" for a submodule.
        kind: "file", "link" or "submodule".
        size: In bytes; 0 for a submodule.
        oid: The object's name, 40 hex digits.
        link_target: What a link says, as ``path``; "" for everything else.
        is_lfs_pointer: The file's content is Git LFS's note of where the real content lies.
    """

    path: str
    mode: str
    kind: Literal["file", "link", "submodule"]
    size: int
    oid: str
    link_target: str = ""
    is_lfs_pointer: bool = False


@dataclass(frozen=True, slots=True)
class Checked:
    """What comes of a tree.

    Attributes:
        kept: What students get, by path; none of it below another's path, none outside.
        notes: What is left out or wrong, what is wrong first. Any "fail" stops a publication.
    """

    kept: tuple[Entry, ...]
    notes: tuple[Note, ...]


@dataclass(frozen=True, slots=True)
class _Fault:
    """Why an entry is left out; ``many`` is how the rest of many is said."""

    level: Level
    why: str
    many: str


def check_tree(entries: Iterable[Entry], limits: Limits) -> Checked:
    """Decide what students get of a source's tree.

    Args:
        entries: All of the tree, any order; also what git itself would refuse.
        limits: How large it may be.
    """
    found: list[tuple[str, _Fault]] = []
    kept: list[Entry] = []
    for entry in entries:
        if fault := _fault(entry, limits):
            found.append((entry.path, fault))
        else:
            kept.append(entry)
    for step in (_without_clashes, _without_lost_links):
        kept, faults = step(kept)
        found += faults
    kept.sort(key=lambda entry: entry.path)
    notes = (*_notes(found), *_about_all(kept, limits), *_look_alikes(kept))
    return Checked(tuple(kept), tuple(sorted(notes, key=lambda note: note.level != "fail")))


# -- one entry by itself ---------------------------------------------------------------------------


def _fault(entry: Entry, limits: Limits) -> _Fault | None:
    parts = entry.path.split("/")
    return (
        _fault_of_place(parts)
        or _fault_of_name(entry.path, parts)
        or _fault_of_what(entry, parts[-1], limits)
    )


def _fault_of_place(parts: Sequence[str]) -> _Fault | None:
    for part in parts:
        if part in ("", ".", "..") or _GIT_FOLDER.fullmatch(_without_hidden(part)):
            return _Fault(
                "fail",
                f'its path has the part "{shown(part)}", which no git makes: somebody built this '
                "repository to write outside of the course's directory. Do not use it",
                "paths with such a part",
            )
    return None


def _without_hidden(part: str) -> str:
    """A name without what HFS+ does not see (git: is_hfs_dotgit)."""
    return "".join(char for char in part if unicodedata.category(char) != "Cf")


def _fault_of_name(path: str, parts: Sequence[str]) -> _Fault | None:
    kinds = {unicodedata.category(char) for char in path if char not in _JOINERS}
    if "Cs" in kinds:
        why = "its name is no UTF-8, so JupyterLab cannot show it. Rename it"
    elif not kinds.isdisjoint({"Cc", "Cf", "Zl", "Zp"}):
        why = "its name holds control characters. Rename it"
    elif "\\" in path:
        why = "its name holds a backslash. Rename it"
    elif len(path) > MAX_PATH_CHARS or max(len(one.encode()) for one in parts) > MAX_NAME_BYTES:
        why = (
            f"its path is longer than {MAX_PATH_CHARS} characters, or one name in it longer than "
            f"{MAX_NAME_BYTES} bytes. Shorten it"
        )
    else:
        return None
    return _Fault("warn", f"it is left out: {why}", "files left out for their names")


def _fault_of_what(entry: Entry, name: str, limits: Limits) -> _Fault | None:
    if entry.kind == "submodule":
        return _Fault(
            "warn",
            "it is a submodule and is left out: only this one repository is fetched. Copy its "
            "files into the repository, or make a course of its own of it",
            "submodules left out",
        )
    if name in _STEERS:
        return _Fault(
            "warn",
            "it is left out: it tells git how to merge and convert files, and in a student's copy "
            "the student's edits have to win. Files reach students as the repository stores them",
            "such files left out",
        )
    if entry.is_lfs_pointer:
        return _Fault(
            "fail",
            "it is a Git LFS pointer: students would get a note of three lines and not the "
            "content. Commit the file itself (git lfs migrate export), or offer it to the course "
            "as a data mount",
            "Git LFS pointers",
        )
    if entry.size > limits.max_file_bytes:
        return _Fault(
            "fail",
            f"it has {mib(entry.size)}, and a file may have {mib(limits.max_file_bytes)}: every "
            "student gets a copy of it. Offer it as a data mount, or let the notebook download it",
            "files that are too large",
        )
    return None


# -- all of them together --------------------------------------------------------------------------

_Sieved = tuple[list[Entry], list[tuple[str, _Fault]]]


def _without_clashes(entries: list[Entry]) -> _Sieved:
    """Leave out a path that stands twice, and a file that is a folder, too."""
    times = Counter(entry.path for entry in entries)
    folders = {folder for path in times for folder in _folders(path)}
    fault = _Fault(
        "fail",
        "the repository names it twice, or both as a file and as a folder: it is damaged. Clone "
        "it, run git fsck, and commit the tree anew",
        "paths that stand twice",
    )
    kept, found = [], []
    for entry in entries:
        if times[entry.path] > 1 or entry.path in folders:
            found.append((entry.path, fault))
        else:
            kept.append(entry)
    return kept, list(dict(found).items())


def _without_lost_links(entries: list[Entry]) -> _Sieved:
    """Leave out links that lead out of the course, or to what students do not get."""
    links = {entry.path: entry.link_target for entry in entries if entry.kind == "link"}
    files = {entry.path for entry in entries if entry.kind == "file"}
    places = files | {folder for path in files for folder in _folders(path)} | {""}
    kept: list[Entry] = []
    found: list[tuple[str, _Fault]] = []
    for entry in entries:
        why = "" if entry.kind == "file" else _lost(entry.path, links, places)
        if why:
            text = f"it is a symbolic link that {why}; it is left out. Put the file itself there"
            found.append((entry.path, _Fault("warn", text, "links left out")))
        else:
            kept.append(entry)
    return kept, found


def _lost(link: str, links: Mapping[str, str], places: Collection[str]) -> str:
    """Why a link is no use to a student, as the rest of "a link that ..."; "" when it is.

    It is followed as the kernel does it (path_resolution(7)): ``..`` is the folder above wherever
    the walk stands by then, not the part before it in the text.
    """
    outside = "leads out of the course, where each student's container has something else"
    missing = "leads to what the course does not hold"
    here, hops = link.split("/"), 0
    todo = [here.pop()]
    while todo:
        part = todo.pop()
        if part in ("", "."):
            continue
        if part == "..":
            if not here:
                return outside
            here.pop()
            continue
        place = "/".join((*here, part))
        target = links.get(place)
        if target is None:
            if place not in places:
                return missing
            here.append(part)
            continue
        hops += 1
        if target.startswith("/"):
            return outside
        # "" is no path at all: symlink(2) refuses it.
        if hops > MAX_HOPS or not 0 < len(target) <= MAX_TARGET_CHARS:
            return missing
        todo.extend(reversed(target.split("/")))
    return "" if "/".join(here) in places else missing


def _folders(path: str) -> Iterator[str]:
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path


def _about_all(kept: Sequence[Entry], limits: Limits) -> Iterator[Note]:
    size = sum(entry.size for entry in kept)
    if not kept:
        yield Note(
            "fail",
            "",
            "The course would hold no file at all. Commit its notebooks, or correct source.path "
            "in course.yaml.",
        )
    if len(kept) > limits.max_files:
        yield Note(
            "fail",
            "",
            f"The course has {len(kept)} files, and {limits.max_files} are allowed: every student "
            "gets a copy. Offer data as a data mount, or name a sub-directory with source.path.",
        )
    if size > limits.max_bytes:
        yield Note(
            "fail",
            "",
            f"The course has {mib(size)}, and {mib(limits.max_bytes)} are allowed: every student "
            "gets a copy. Offer data as a data mount.",
        )


def _look_alikes(kept: Sequence[Entry]) -> Iterator[Note]:
    """Warn of names that differ in case, or in how an accent is stored, only.

    Both are kept: students work on Linux, where they are two files. Whoever takes the course home
    to macOS or Windows gets one of them.
    """
    alike: defaultdict[str, dict[str, None]] = defaultdict(dict)
    for entry in kept:
        for path in (entry.path, *_folders(entry.path)):
            alike[unicodedata.normalize("NFC", path).casefold()][path] = None
    # Of two such folders with the same files in them the folders alone are told.
    twins = [
        tuple(paths)
        for paths in alike.values()
        if len({path.rpartition("/")[2] for path in paths}) > 1
    ]
    for paths in twins[:_EACH]:
        names = " and ".join(shown(path) for path in paths[:3])
        yield Note(
            "warn",
            paths[0],
            f"{names} differ in upper and lower case only. Both are kept; on macOS and Windows "
            "there is room for one. Rename one of them.",
        )
    if len(twins) > _EACH:
        more = len(twins) - _EACH
        yield Note("warn", "", f"There are {more} more names that differ in case only.")


def _notes(found: Iterable[tuple[str, _Fault]]) -> Iterator[Note]:
    kinds: defaultdict[tuple[Level, str], list[tuple[str, _Fault]]] = defaultdict(list)
    for path, fault in found:
        kinds[fault.level, fault.many].append((path, fault))
    for (level, many), ones in kinds.items():
        ones.sort(key=lambda one: one[0])
        for path, fault in ones[:_EACH]:
            yield Note(level, path, f"{shown(path) or 'A file without a name'}: {fault.why}.")
        if len(ones) > _EACH:
            path = ones[_EACH][0]
            yield Note(level, path, f"There are {len(ones) - _EACH} more {many}.")
