"""The bare repository of a course's mirror: its lock, its names, its packs. Blocking."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from pytorch_spawner.adapters.git_errors import explained
from pytorch_spawner.adapters.git_run import GitFailed, Guard, Run, TooMuch, run
from pytorch_spawner.errors import SourceUnusable

# What git does over objects that are here already takes seconds at most; this is for a sick disk.
LOCAL_S: Final = 120.0
# Each fetch and each publication adds a pack; so many are put together again.
MAX_PACKS: Final = 20
# Names the hub whose mirror a folder is.
_OWNER: Final = "hub-id"
_NEW_OWNER: Final = f"{_OWNER}.new"
# What a run that was killed may leave, below the repository and beside it.
_LEFT: Final = (
    *("*.lock", "refs/**/*.lock", "objects/pack/tmp_*", "objects/pack/.tmp-*"),
    *("objects/??/tmp_*", "fast_import_crash_*"),
)
_LEFT_BESIDE: Final = ("incoming-*", "index-*", "bundle-*")


def owner_of(folder: Path) -> str:
    """Id of the hub whose mirror a folder is; "" for a folder that is none of ours."""
    try:
        return (folder / _OWNER).read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _is_left(path: Path) -> bool:
    """Whether a run that was killed before there was a repository may have left it."""
    names = ("lock", _OWNER, _NEW_OWNER)
    return path.name in names or any(map(path.match, _LEFT_BESIDE))


class Store:
    """One bare repository in a folder of its own.

    Attributes:
        folder: The folder; also takes what is temporary.
        owner: Id of the hub whose it is; "" for nobody in particular.
        git_dir: The repository.
    """

    def __init__(self, folder: Path, owner: str = "") -> None:
        self.folder = folder
        self.owner = owner
        self.git_dir = folder / "mirror.git"

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else changes the repository meanwhile; what a killed run left is gone.

        Raises:
            SourceUnusable: "busy", or "not-ours".
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._own()
        with (self.folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise SourceUnusable(
                    "The course's files are being fetched or published just now. Wait until that "
                    "is done, or stop it.",
                    cause="busy",
                ) from error
            self._tidy()
            yield

    def _own(self) -> None:
        """Put the owner's name down; what is removed one day must be ours.

        Two hubs in one directory would take each other's courses for removed ones.
        """
        known = owner_of(self.folder)
        if not self.owner or known == self.owner:
            return
        if known:
            holds = f"a course of another hub, {known}"
        elif self.git_dir.exists() or all(map(_is_left, self.folder.iterdir())):
            new = self.folder / _NEW_OWNER
            new.write_text(self.owner)
            new.replace(self.folder / _OWNER)
            return
        else:
            holds = "something else"
        raise SourceUnusable(
            f"{self.folder} holds {holds}. Ask an admin to give this hub a directory of its own: "
            "add_lab(course_dir=...).",
            cause="not-ours",
        )

    def _tidy(self) -> None:
        for pattern in _LEFT_BESIDE:
            for left in self.folder.glob(pattern):
                shutil.rmtree(left, ignore_errors=True)
        for pattern in _LEFT:
            for left in self.git_dir.glob(pattern):
                left.unlink(missing_ok=True)
        if not (self.git_dir / "HEAD").exists():
            words = ("init", "--quiet", "--bare", "--template=", str(self.git_dir))
            self.told(Run(words), Guard.of_seconds(LOCAL_S), "the lab's own copy of the course")

    def told(self, job: Run, guard: Guard, where: str, url: str = "") -> bytes:
        """Run git over a source; what goes wrong gets its sentence.

        Args:
            job: What to run.
            guard: What ends it.
            where: The source, for people.
            url: The source, for git.
        """
        try:
            return run(job, guard)
        except GitFailed as error:
            raise explained(error, where, url) from error
        except TooMuch as error:
            raise SourceUnusable(
                f"{where} has more branches than the lab reads. Name a smaller repository.",
                cause="too-large",
            ) from error

    def git(self, *words: str, **more: object) -> bytes:
        """Run git over what is here already; that it fails is the machine's trouble.

        Args:
            words: The command.
            more: Other attributes of ``Run``.

        Raises:
            SourceUnusable: It failed.
            TooMuch: See ``git_run.run``.
        """
        try:
            return self._run(*words, **more)
        except GitFailed as error:
            raise explained(error, "the lab's own copy of the course") from error

    def _run(self, *words: str, **more: object) -> bytes:
        job = replace(Run(words, self.git_dir), **more)  # type: ignore[arg-type]
        return run(job, Guard.of_seconds(LOCAL_S))

    def rev(self, name: str) -> str:
        """The object that a name stands for, 40 hex digits; "" for none."""
        if not self.git_dir.is_dir():
            return ""
        words = ("rev-parse", "--verify", "--quiet", "--end-of-options", name)
        try:
            return self._run(*words).decode().strip()
        except GitFailed:
            return ""

    def put_together(self) -> None:
        """Make one pack of all that is named, and drop the rest."""
        self.git("repack", "-a", "-d", "--quiet")
        self.git("prune", "--expire=now")

    def tidy_packs(self) -> None:
        """Put the packs together when there are many."""
        if sum(1 for _ in self.git_dir.glob("objects/pack/*.pack")) > MAX_PACKS:
            self.put_together()

    def size(self) -> int:
        """Bytes of the repository; of one that is changing, about."""
        size = 0
        for _, _, names, handle in os.fwalk(self.git_dir):
            for name in names:
                try:
                    size += os.stat(name, dir_fd=handle, follow_symlinks=False).st_size
                except FileNotFoundError:
                    continue  # taken away since it was listed
        return size
