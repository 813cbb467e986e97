"""A directory of the lab's machine as a course's source. Blocking; writes nothing there.

An instructor may write to the directory while it is read. So it is walked by descriptors that
follow no link, and of a git repository in it only objects, branches and HEAD are copied: its
configuration and hooks, which could name programs, are never read, nor is a path to another
repository's objects.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pytorch_spawner.core.course_files import LEFT_BEHIND, Limits
from pytorch_spawner.core.course_notes import mib, shown
from pytorch_spawner.errors import SourceUnusable

_OPEN: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FOLDER: Final = _OPEN | os.O_DIRECTORY
_CHUNK_BYTES: Final = 2**20
_MAX_REF_BYTES: Final = 1000
_MAX_PACKED_REFS_BYTES: Final = 16 * 2**20
_MAX_DEPTH: Final = 100
# The parts of a repository that hold its commits, relative to it (gitrepository-layout(5)).
_OBJECT: Final = re.compile(
    r"objects/([0-9a-f]{2}/[0-9a-f]{38}|pack/pack-[0-9a-f]{40}\.(pack|idx))"
)
_REF: Final = re.compile(r"refs/heads/.+")
_SINGLE: Final = ("HEAD", "packed-refs", "shallow")


@dataclass(frozen=True, slots=True)
class _Found:
    """One thing below a directory; ``path`` is relative to it."""

    path: str
    name: str
    parent: int
    status: os.stat_result


@contextmanager
def opened_below(directory: str, roots: Sequence[Path]) -> Iterator[int]:
    """A directory that lies below one of ``roots``, as a descriptor.

    Raises:
        SourceUnusable: "not-allowed": it lies elsewhere, also by a link. "path-missing": there is
            none, or it may not be read.
    """
    name = shown(directory)
    if not roots:
        raise SourceUnusable(
            "This lab takes no course from a directory. An admin allows some with "
            "add_lab(course_roots=...); or name a git repository.",
            cause="not-allowed",
        )
    try:
        real = Path(directory).resolve(strict=True)
        allowed = [Path(root).resolve() for root in roots]
    except (OSError, RuntimeError, ValueError) as error:
        raise _unreadable(name, error) from error
    if not any(real.is_relative_to(root) for root in allowed):
        raise SourceUnusable(
            f"{name} does not lie below a directory that this lab takes courses from "
            f"({', '.join(shown(str(root)) for root in roots)}). Move it there, or ask an admin.",
            cause="not-allowed",
        )
    try:
        handle = _descend(real)
    except OSError as error:
        raise _unreadable(name, error) from error
    try:
        yield handle
    finally:
        os.close(handle)


def _descend(real: Path) -> int:
    """Open part by part: what was a directory above may be a link by now, and is then refused."""
    handle = os.open("/", _OPEN_FOLDER)
    for part in real.parts[1:]:
        try:
            below = os.open(part, _OPEN_FOLDER, dir_fd=handle)
        finally:
            os.close(handle)
        handle = below
    return handle


def _unreadable(name: str, error: Exception) -> SourceUnusable:
    why = error.strerror if isinstance(error, OSError) else ""
    return SourceUnusable(
        f"{name} cannot be read ({(why or 'no such directory').lower()}). Correct "
        "source.directory, or make it readable for the lab's account.",
        cause="path-missing",
        detail=str(error),
    )


def has_repository(handle: int) -> str:
    """Where in a directory its git repository is: ".git", "." for a bare one, "" for none."""
    for place in (".git", "."):
        names = [f"{place}/{name}" for name in ("objects", "refs", "HEAD")]
        if all(_is_there(handle, name) for name in names):
            return place
    return ""


def _is_there(handle: int, path: str) -> bool:
    try:
        os.stat(path, dir_fd=handle, follow_symlinks=False)
    except OSError:
        return False
    return True


def copy_repository(
    handle: int, place: str, into: Path, limits: Limits, look: Callable[[], None]
) -> None:
    """Copy what a repository has committed into an empty bare one.

    Args:
        handle: The directory.
        place: See ``has_repository``.
        into: An initialised bare repository.
        limits: ``max_bytes`` is the most that is copied.
        look: Called between pieces; what it raises ends it.

    Raises:
        SourceUnusable: "too-large".
    """
    left = limits.max_bytes
    try:
        repository = os.open(place, _OPEN_FOLDER, dir_fd=handle)
    except OSError as error:
        raise _unreadable(place, error) from error
    try:
        # Branches before objects: what a branch names is there before the branch names it.
        for wanted in (_is_ref, _is_object):
            for found in _walk(repository, wanted):
                most = _most_of(found.path, left)
                if most < found.status.st_size:
                    raise _too_large(limits)
                target = into / found.path
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("wb") as copy:
                    for piece in _pieces(found):
                        look()
                        left -= len(piece)
                        if left < 0:
                            raise _too_large(limits)
                        copy.write(piece)
    finally:
        os.close(repository)


def _is_ref(path: str, *, is_folder: bool) -> bool:
    if is_folder:
        return path == "refs" or path == "refs/heads" or bool(_REF.fullmatch(path))
    return path in _SINGLE or bool(_REF.fullmatch(path))


def _is_object(path: str, *, is_folder: bool) -> bool:
    if is_folder:
        return bool(re.fullmatch(r"objects(/[0-9a-f]{2}|/pack)?", path))
    return bool(_OBJECT.fullmatch(path))


def _most_of(path: str, left: int) -> int:
    if path == "packed-refs" or path == "shallow":
        return _MAX_PACKED_REFS_BYTES
    return left if path.startswith("objects/") else _MAX_REF_BYTES


def _too_large(limits: Limits) -> SourceUnusable:
    return SourceUnusable(
        f"The directory holds more than {mib(limits.max_bytes)}, which is the most of a course. "
        "Offer data as a data mount, or make the repository smaller (a clone with --depth 1).",
        cause="too-large",
    )


def as_commit(handle: int, ref: str, name: str, limits: Limits) -> Iterator[bytes]:
    """A plain directory's files as one commit, in the words of ``git fast-import``.

    Links are stored as links, wherever they lead; what is neither file nor link is left behind.

    Args:
        handle: The directory.
        ref: Where the commit is put.
        name: Of the directory, for the commit's message.
        limits: Of a course.

    Raises:
        SourceUnusable: "too-large"; "path-missing" when something in it may not be read.
    """
    found = []
    for one in _walk(handle, _is_course):
        found.append((one.path, int(one.status.st_mtime)))
        if len(found) > limits.max_files:
            raise SourceUnusable(
                f"The directory holds more than {limits.max_files} files, which is the most of a "
                "course. Name a smaller one, or offer data as a data mount.",
                cause="too-large",
            )
    # The same files give the same commit: its time is theirs.
    at = max((changed for _, changed in found), default=0)
    message = os.fsencode(f"Files of the directory {name}\n")
    yield b"commit %s\n" % ref.encode()
    yield b"committer The directory <> %d +0000\n" % max(at, 0)
    yield b"data %d\n%s\ndeleteall\n" % (len(message), message)
    size = 0
    for one in _walk(handle, _is_course):
        if stat.S_ISLNK(one.status.st_mode):
            mode, content = b"120000", os.fsencode(os.readlink(one.name, dir_fd=one.parent))
        elif one.status.st_size > min(limits.max_file_bytes, limits.max_bytes):
            raise SourceUnusable(
                f"{shown(one.path)} has {mib(one.status.st_size)}, and a file may have "
                f"{mib(limits.max_file_bytes)}: every student gets a copy. Offer it as a data "
                "mount.",
                cause="too-large",
            )
        else:
            mode = b"100755" if one.status.st_mode & stat.S_IXUSR else b"100644"
            content = b"".join(_pieces(one, limits.max_file_bytes))
        size += len(content)
        if size > limits.max_bytes:
            raise _too_large(limits)
        yield b"M %s inline %s\n" % (mode, _quoted(one.path))
        yield b"data %d\n" % len(content)
        yield content
        yield b"\n"
    yield b"done\n"


def _is_course(path: str, *, is_folder: bool) -> bool:
    del is_folder  # both alike
    return path.rpartition("/")[2].casefold() not in LEFT_BEHIND


def _quoted(path: str) -> bytes:
    raw = os.fsencode(path).replace(b"\\", b"\\\\").replace(b'"', b'\\"').replace(b"\n", b"\\n")
    return b'"%s"' % raw


def _walk(handle: int, wanted: Callable[..., bool], prefix: str = "") -> Iterator[_Found]:
    """Files and links below a directory, by name; what is ``wanted`` only."""
    if prefix.count("/") > _MAX_DEPTH:
        raise SourceUnusable(
            f"{shown(prefix)} lies more than {_MAX_DEPTH} directories deep. Correct "
            "source.directory.",
            cause="too-large",
        )
    for name in sorted(os.listdir(handle), key=os.fsencode):
        path = prefix + name
        try:
            status = os.stat(name, dir_fd=handle, follow_symlinks=False)
        except FileNotFoundError:
            continue  # taken away since it was listed
        is_folder = stat.S_ISDIR(status.st_mode)
        if not wanted(path, is_folder=is_folder):
            continue
        if is_folder:
            try:
                below = os.open(name, _OPEN_FOLDER, dir_fd=handle)
            except OSError as error:
                raise _unreadable(shown(path), error) from error
            try:
                yield from _walk(below, wanted, f"{path}/")
            finally:
                os.close(below)
        elif stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode):
            yield _Found(path, name, handle, status)


def _pieces(found: _Found, most: int | None = None) -> Iterator[bytes]:
    try:
        # Not waiting: a pipe may have taken the file's place.
        handle = os.open(found.name, _OPEN | os.O_NONBLOCK, dir_fd=found.parent)
    except OSError as error:
        raise _unreadable(shown(found.path), error) from error
    with open(handle, "rb") as file:  # noqa: PTH123 (a descriptor, not a path)
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise _unreadable(shown(found.path), OSError(0, "no file any more"))
        left = found.status.st_size if most is None else most
        # No more than it was seen to have: a file may grow for ever.
        while left > 0 and (piece := file.read(min(_CHUNK_BYTES, left))):
            left -= len(piece)
            yield piece
