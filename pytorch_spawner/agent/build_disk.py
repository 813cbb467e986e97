"""Files that a build's processes hold open and that nobody finds by a name any more."""

from __future__ import annotations

import resource
import stat
from pathlib import Path
from typing import Dict, Tuple

# What has no name and is in memory, which the container's own limit bounds.
_IN_MEMORY = ("/memfd:", "/dev/shm/", "/dev/zero", "/SYSV")  # noqa: S108


def bound_files(most_bytes: int) -> None:
    """In the process that writes: let no single file of it and its children become larger."""
    most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    limit = most_bytes if most == resource.RLIM_INFINITY else min(most, most_bytes)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def nameless_size() -> int:
    """Bytes on the disk of files that were removed and that this user's processes have open.

    They take their place until they are closed, and a walk through the directories misses them.
    """
    sizes: Dict[Tuple[int, int], int] = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            fds = list((process / "fd").iterdir())
        except OSError:  # it has ended, or is another user's
            continue
        for fd in fds:
            try:
                known = fd.stat()
                is_file = stat.S_ISREG(known.st_mode) and not known.st_nlink
                if is_file and not str(fd.readlink()).startswith(_IN_MEMORY):
                    sizes[known.st_dev, known.st_ino] = known.st_blocks * 512
            except OSError:
                continue
    return sum(sizes.values())
