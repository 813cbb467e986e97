"""A student's directory and a publication, file by file: the student's bytes always win.

Nothing here merges: a file is the student's as a whole or the course's as a whole, and where both
changed it the student's stays and the course's is put beside. It must NOT follow a link, replace
a content that it has not just seen, or overwrite a file to put another one beside.
"""

from __future__ import annotations

import os
import stat
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Callable, Dict, List, Mapping, Optional, Set

from pytorch_spawner.agent.course_hold import Hold, free_name, keep_a_name, link, named, stamp
from pytorch_spawner.agent.course_store import MISSING, OTHER, Entry, content_id

Copy = Callable[[str, IO[bytes]], None]


def decide(base: str, new: str, mine: str) -> str:
    """What happens to one file; a pure table over contents.

    Args:
        base: What the student was given last; "" for nothing.
        new: What the course has now; "" for nothing.
        mine: What is there; ``MISSING`` or ``OTHER`` where that is no file.

    Returns:
        "same", "write" (the course's goes there), "remove", "keep" (the student's edit stays, and
        the course has no news) or "conflict" (it stays, and the course's is put beside).
    """
    if mine == MISSING:
        return "write" if new else "same"
    if mine == new:
        return "same"
    if mine == base:
        return "write" if new else "remove"
    return "keep" if new in ("", base) else "conflict"


@dataclass
class View:
    """What was given, what the course has, and what is there; contents by path.

    Attributes:
        root: The student's directory.
        base: Of the publication given last; ``None`` where nobody knows which one that was.
        new: Of the publication that the course has now.
        known: Every content that any publication had; asked for only where ``base`` is ``None``.
    """

    root: Path
    base: Optional[Mapping[str, Entry]]
    new: Mapping[str, Entry]
    known: Mapping[str, Set[str]] = field(default_factory=dict)

    @property
    def paths(self) -> List[str]:
        """Every file that the course has or had."""
        return sorted({*(self.known if self.base is None else self.base), *self.new})

    def base_of(self, path: str, mine: str) -> str:
        """What the student was given; where nobody knows: what is there, if it is the course's."""
        if self.base is not None:
            return self.base[path].oid if path in self.base else ""
        return mine if mine in self.known.get(path, ()) else ""

    def look(self) -> Dict[str, str]:
        """What is there now, by path."""
        folders: Dict[str, str] = {"": "folder"}
        return {path: self._mine(path, folders) for path in self.paths}

    def _mine(self, path: str, folders: Dict[str, str]) -> str:
        parent = _kind(self.root, os.path.dirname(path), folders)  # noqa: PTH120 (no Path: bytes)
        if parent == "folder":
            return content_id(self.root / path)
        return MISSING if parent == "missing" else OTHER

    def decisions(self, mine: Mapping[str, str]) -> Dict[str, str]:
        """``decide`` for every path."""
        return {
            path: decide(
                self.base_of(path, there), self.new[path].oid if path in self.new else "", there
            )
            for path, there in mine.items()
        }


def _kind(root: Path, folder: str, seen: Dict[str, str]) -> str:
    """Whether a directory below ``root`` is a "folder", "missing" or something "other"."""
    if folder not in seen:
        parent = _kind(root, os.path.dirname(folder), seen)  # noqa: PTH120
        seen[folder] = parent
        if parent == "folder":
            try:
                is_folder = stat.S_ISDIR(os.lstat(root / folder).st_mode)
                seen[folder] = "folder" if is_folder else "other"
            except FileNotFoundError:
                seen[folder] = "missing"
            except OSError:
                seen[folder] = "other"
    return seen[folder]


@dataclass
class Settled:
    """What became of a directory.

    Attributes:
        kept: Files that the student changed and the course did not, or no longer has.
        conflicts: Files that both changed -> where the course's version lies.
        restored: Files that had been deleted and are there again.
        troubles: What could not be written, with the error.
    """

    kept: List[str] = field(default_factory=list)
    conflicts: Dict[str, str] = field(default_factory=dict)
    restored: List[str] = field(default_factory=list)
    troubles: List[OSError] = field(default_factory=list)


class Placer:
    """Makes a directory what ``decide`` says, whatever was done to it meanwhile.

    Attributes:
        view: See ``View``.
        before: What was there before anything was done, by path.
        hold: The student's bytes.
        copy: Copies a content of the course into a file.
        tag: Ends the names of the course's versions, such as "course-4f1c2a0".
        earlier: Conflicts of earlier syncs that stay until they are resolved.
    """

    def __init__(
        self, view: View, before: Mapping[str, str], hold: Hold, copy: Copy, tag: str,
        earlier: Mapping[str, str],
    ) -> None:  # fmt: skip
        self.view, self.before, self.hold, self.copy = view, before, hold, copy
        self.tag, self.earlier = tag, earlier

    def settle(self) -> Settled:
        """Go through all files; one that cannot be written does not keep the others."""
        settled, now = Settled(), self.view.look()
        for path in self.view.paths:
            try:
                self._settle(path, now[path], settled)
            except OSError as error:
                error.filename = path
                settled.troubles.append(error)
        return settled

    def _settle(self, path: str, now: str, settled: Settled) -> None:
        before = self.before[path]
        base = self.view.base_of(path, before)
        entry = self.view.new.get(path)
        new = entry.oid if entry else ""
        held = self.hold.of(path)
        if held is not None:
            now = self._give_back(path, held, now, {base, new})
        elif now not in (MISSING, OTHER, base, new) and before in (MISSING, base):
            before = now  # saved while the sync was under way: an edit like any other
        elif now == base and now != MISSING and before == MISSING:
            before = base  # nbgitpuller brought a deleted file back
        what = decide(base, new, before if before not in (MISSING, base) else now)
        if what == "write" and entry is not None:
            put(self.view.root, path, entry, self.copy, expected=now)
        elif what == "remove":
            remove(self.view.root, path, base)
        elif what == "keep":
            self._keep(path, settled)
        elif what == "conflict" and entry is not None:
            settled.conflicts[path] = beside = self._beside(path, entry)
            older = self.earlier.get(path)
            if older and older != beside and base:
                remove(self.view.root, older, base)
        if base and new and self.before[path] == MISSING:
            settled.restored.append(path)

    def _give_back(self, path: str, held: Path, now: str, courses: Set[str]) -> str:
        """The student's bytes are there again, exactly; what else was there is kept beside."""
        root, mine = self.view.root, content_id(held)
        if now == mine:
            return now
        if now not in (MISSING, *courses):
            # A save of this moment, or a mixture that somebody's own merge driver made.
            keep_a_name(root / path, root / free_name(root, path, stamp("backup")))
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".course-", dir=(root / path).parent) as folder:
            keep_a_name(held, Path(folder, "file"))
            os.replace(Path(folder, "file"), root / path)  # noqa: PTH105
        return mine

    def _keep(self, path: str, settled: Settled) -> None:
        beside = self.earlier.get(path)
        if beside and (self.view.root / beside).is_file():
            settled.conflicts[path] = beside
        else:
            settled.kept.append(path)

    def _beside(self, path: str, entry: Entry) -> str:
        """Put the course's version beside the student's.

        Returns:
            Where it lies; below the first part of the path that is no directory, if there is one.
        """
        root = self.view.root
        folders: Dict[str, str] = {"": "folder"}
        parts = path.split("/")
        stem = path
        for index in range(1, len(parts)):
            if _kind(root, "/".join(parts[:index]), folders) == "other":
                stem = "/".join(parts[:index])
                break
        rest = path[len(stem) :]
        for number in range(1, 100):
            name = named(stem, self.tag, number) + rest
            there = content_id(root / name)
            if there == entry.oid:
                return name
            if there == MISSING and _kind(root, os.path.dirname(name), {"": "folder"}) != "other":  # noqa: PTH120
                put(root, name, entry, self.copy, expected=MISSING)
                return name
        raise FileExistsError(17, "too many files of this name", str(root / path))


def put(root: Path, path: str, entry: Entry, copy: Copy, *, expected: str) -> None:
    """Write a file of the course in one step, if there is still what was there.

    Args:
        root: The student's directory.
        path: Below it.
        entry: What to write.
        copy: Copies the content.
        expected: What the place holds; ``MISSING`` for nothing.

    Raises:
        OSError: It cannot be written, or something else is there now; nothing was replaced.
    """
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(prefix=".course-", dir=target.parent)
    draft = Path(name)
    try:
        with os.fdopen(fd, "wb") as file:
            copy(entry.oid, file)
        if entry.mode == "120000":
            goal = os.fsdecode(draft.read_bytes())
            draft.unlink()
            draft.symlink_to(goal)
        else:
            draft.chmod(0o755 if entry.mode == "100755" else 0o644)
        if content_id(target) != expected:
            raise FileExistsError(17, "it was changed this moment", str(target))
        if expected == MISSING and link(draft, target):
            return
        os.replace(draft, target)  # noqa: PTH105
    finally:
        draft.unlink(missing_ok=True)


def remove(root: Path, path: str, expected: str) -> None:
    """Remove a file that the course no longer has, and the directories that are empty without it.

    Raises:
        OSError: It cannot be removed.
    """
    target = root / path
    if content_id(target) == expected:
        target.unlink()
        for parent in target.parents:
            if parent == root:
                break
            try:
                parent.rmdir()
            except OSError:  # something is left in it
                break
