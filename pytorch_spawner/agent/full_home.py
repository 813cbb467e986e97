"""Where Jupyter puts its own files when the home takes none, so that a student can log in and tidy.

jupyter_core, jupyter_server and IPython write small files at their start and end with an error
where they cannot. Everything below is empty where the home can be written.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import Dict, Mapping, MutableMapping

PLACE = "/tmp/jupyter-home"  # noqa: S108 (nobody else is in the container)

# (variable, its usual place in the home). With another IPYTHONDIR, which is not there yet,
# jupyter_core has nothing to migrate, and writes no "migrated". Source: jupyter_core, application
# migrate_config; paths. The student's own settings are still read from where they are.
_PLACES = (
    ("IPYTHONDIR", ".ipython"),
    ("JUPYTER_DATA_DIR", ".local/share/jupyter"),
    ("JUPYTER_CONFIG_DIR", ".jupyter"),
)
_ONLY_IF_ABSENT = ("JUPYTER_CONFIG_DIR",)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


def move_jupyter(environ: MutableMapping[str, str]) -> None:
    """Change the variables before JupyterLab starts; a start never fails for it."""
    with contextlib.suppress(Exception):
        environ.update(elsewhere(environ))


def elsewhere(environ: Mapping[str, str], place: str = PLACE) -> Dict[str, str]:
    """Variables to set before JupyterLab starts; none where files can be written in the home.

    Args:
        environ: The container's environment.
        place: Folder outside the home.
    """
    home = environ.get("HOME", "")
    if not home or takes_files(home):
        return {}
    return {
        name: f"{place}/{usual.rpartition('/')[2].lstrip('.')}"
        for name, usual in _PLACES
        if name not in environ
        and not (name in _ONLY_IF_ABSENT and os.path.isdir(f"{home}/{usual}"))  # noqa: PTH112
    }


def takes_files(home: str) -> bool:
    """Whether a small file can be written there; it is removed again.

    Anything but "full", "over quota", "read-only" and "not yours" is no reason to leave the home.
    """
    path = f"{home}/.pytorch-spawner-{os.urandom(6).hex()}"
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            # More than an ext4 inode holds in itself, so that a block is needed. A network file
            # system may say at the end only that there is none.
            os.write(file, b"\0" * 4096)
            os.fsync(file)
        finally:
            os.close(file)
    except OSError as error:
        return error.errno not in _FULL
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)  # noqa: PTH108 (pathlib costs 5 ms here)
    return True
