"""Reads a warm-up suite from a directory."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from pytorch_spawner.core.suites import MAX_BYTES, MAX_FILES
from pytorch_spawner.errors import BadRequest


def read_directory(path: str | Path) -> dict[str, bytes]:
    """The files below a directory by their relative paths, "/" between the parts.

    Caches of Python and whatever begins with a dot are left out.

    Raises:
        BadRequest: It cannot be read, holds a link or a device, or is beyond the limits of a suite.
    """
    root = Path(path)
    files: dict[str, bytes] = {}
    size = 0
    try:
        for name, entry in _walk(root, ""):
            if len(files) >= MAX_FILES:
                raise BadRequest(f"{root} holds more than {MAX_FILES} files: it is no suite.")
            # One byte more than may be, so that a large file is seen to be one and not read.
            files[name] = _read(entry, MAX_BYTES - size + 1)
            size += len(files[name])
            if size > MAX_BYTES:
                raise BadRequest(
                    f"{root} holds more than {MAX_BYTES // 2**20} MiB: a suite is code; what it "
                    "trains on, it makes itself."
                )
    except OSError as error:
        raise BadRequest(f"{root} cannot be read: {error.strerror or error}.") from error
    return files


def _walk(folder: Path, prefix: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    with os.scandir(folder) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    for entry in ordered:
        if entry.name.startswith(".") or entry.name == "__pycache__":
            continue
        name = prefix + entry.name
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path), f"{name}/")
        elif entry.is_file(follow_symlinks=False):
            yield name, entry
        else:
            raise BadRequest(f"{name} is a link or a device; a suite holds files and folders only.")


def _read(entry: os.DirEntry[str], most: int) -> bytes:
    # Opened as what it was seen to be: no link that has taken its place, no pipe that never ends.
    handle = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(handle, "rb") as file:  # noqa: PTH123 (a descriptor, not a path)
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise BadRequest(f"{entry.name} is no file any more.")
        return file.read(most)
