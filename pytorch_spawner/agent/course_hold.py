"""Second names for a student's bytes: held while git works, kept as backups, never replaced."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path
from typing import Callable, Dict, Iterable, List, Optional

from pytorch_spawner.agent import plain_files
from pytorch_spawner.agent.course_store import MISSING, OTHER, content_id

MAX_NAME_BYTES = 255
HELD = "held.json"
_MOST_BYTES = 64 * 1024**2  # a course may have very many files


class Hold:
    """A second name, or a copy, of each file that must come out of a sync as it went in.

    It lies on disk, so what a killed container leaves is put right by the next start.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: Dict[str, str] = {}  # path -> name in the folder
        with contextlib.suppress(OSError, ValueError, AttributeError, RecursionError):
            said = json.loads(plain_files.read(folder / HELD, _MOST_BYTES))
            self.files = {str(path): str(name) for path, name in said.items()}

    @classmethod
    def take(cls, state: Path, root: Path, paths: Iterable[str]) -> Hold:
        """Hold files.

        Raises:
            OSError: There is no room for a copy, or it cannot be read; nothing was changed.
        """
        folder = Path(tempfile.mkdtemp(prefix="hold-", dir=state))
        hold = cls(folder)
        try:
            for number, path in enumerate(paths):
                keep_a_name(root / path, folder / str(number))
                hold.files[path] = str(number)
            (folder / HELD).write_text(json.dumps(hold.files), encoding="utf-8")
        except BaseException:
            hold.drop()
            raise
        return hold

    def of(self, path: str) -> Optional[Path]:
        """Where a path's content is held; ``None`` where it is not."""
        name = self.files.get(path)
        return self.folder / name if name else None

    def drop(self) -> None:
        """Let everything go."""
        shutil.rmtree(self.folder, ignore_errors=True)


def keep_a_name(path: Path, more: Path) -> None:
    """Give a file a second name, or where that cannot be, a copy; never over another file.

    Raises:
        OSError: It cannot be read, there is no room, or ``more`` exists.
    """
    if stat.S_ISLNK(os.lstat(path).st_mode):
        more.symlink_to(path.readlink())
    elif not link(path, more):
        reading = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(reading, "rb") as source, more.open("xb") as target:
            shutil.copyfileobj(source, target)


def link(path: Path, more: Path) -> bool:
    """Give a file a second name; False on a file system without them, or on another one."""
    try:
        os.link(path, more, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.ENOENT):
            raise
        return False
    return True


def recover(state: Path, root: Path, is_courses: Callable[[str, str], bool]) -> List[str]:
    """Put back what a sync that was killed had in hand.

    Args:
        state: Where holds lie.
        root: The student's directory.
        is_courses: Whether a content, by path, is one of the course's own.

    Returns:
        Names of the files that were put back.
    """
    back: List[str] = []
    for folder in sorted(state.glob("hold-*")):
        hold = Hold(folder)
        try:
            for path, name in hold.files.items():
                held, mine = content_id(folder / name), content_id(root / path)
                if held in (MISSING, OTHER, mine) or is_courses(path, held):
                    continue
                target = path if mine == MISSING else free_name(root, path, stamp("backup"))
                (root / target).parent.mkdir(parents=True, exist_ok=True)
                keep_a_name(folder / name, root / target)
                back.append(target)
        except OSError:  # no room, or something is in the way: the next sync tries again
            continue
        hold.drop()
    return back


def named(path: str, tag: str, number: int = 1) -> str:
    """``lab/cnn.ipynb`` with the tag "course-4f1c2a0": ``lab/cnn.course-4f1c2a0.ipynb``."""
    folder, _, name = path.rpartition("/")
    stem, extension = os.path.splitext(name)  # noqa: PTH122
    end = f".{tag}{'' if number == 1 else f'-{number}'}{extension}"
    room = MAX_NAME_BYTES - len(os.fsencode(end))
    while len(os.fsencode(stem)) > room and stem:
        stem = stem[:-1]
    return f"{folder}/{stem}{end}" if folder else f"{stem}{end}"


def free_name(root: Path, path: str, tag: str) -> str:
    """A name like ``named`` of which there is nothing yet."""
    for number in range(1, 1000):
        name = named(path, tag, number)
        if not os.path.lexists(root / name):
            return name
    raise FileExistsError(17, "too many files of this name", str(root / path))


def stamp(word: str) -> str:
    """A tag of this moment, such as "backup-20260901-091502"."""
    return f"{word}-{time.strftime('%Y%m%d-%H%M%S')}"


def stamped_backup(root: Path, path: str) -> str:
    """Give a student's file a second name that says "backup" and when; returns it."""
    backup = free_name(root, path, stamp("backup"))
    keep_a_name(root / path, root / backup)
    return backup
