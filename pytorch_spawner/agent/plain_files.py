"""Read small files from places where a student's programs may put anything.

A name that should be a file may be a pipe that nobody writes to, or a link to ``/dev/zero``:
reading must neither wait for ever nor fill the memory.
"""

from __future__ import annotations

import errno
import os
import stat

MAX_BYTES = 1024 * 1024


def read(path: str | os.PathLike[str], limit: int = MAX_BYTES) -> bytes:
    """A file's content, at most ``limit`` bytes of it; links are followed.

    Raises:
        OSError: It cannot be read, or is no regular file.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", os.fspath(path))
        with os.fdopen(fd, "rb", closefd=False) as file:
            return file.read(limit)
    finally:
        os.close(fd)
