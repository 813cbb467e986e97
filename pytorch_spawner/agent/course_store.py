"""Publications: what they hold, and what is at a path of a student's directory; read only."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Callable, Dict, Iterator, Optional, Set

from pytorch_spawner.agent.course_git import TAIL, GitTrouble, environment, run

REF = "refs/pytorch-spawner/published"
# What is at a path of a student's directory, where it is no file: nothing, or something else.
MISSING, OTHER = "", "!"
_CHUNK = 1024 * 1024


@dataclass(frozen=True)
class Entry:
    """One file of a publication.

    Attributes:
        mode: As git writes it: "100644", "100755", or "120000" for a link.
        oid: Of its content, 40 hex digits.
        size: In bytes.
    """

    mode: str
    oid: str
    size: int


class Store:
    """A repository as a place of publications; its work tree and its HEAD do not matter."""

    def __init__(self, git_dir: Path, home: Path) -> None:
        self.git_dir = git_dir
        self._env = environment(home)

    def git(self, *arguments: str) -> bytes:
        """What a git command prints.

        Raises:
            GitTrouble: It failed.
        """
        command = ["git", f"--git-dir={self.git_dir}", *arguments]
        status, printed, complained = run(command, env=self._env)
        if status:
            raise GitTrouble(complained.decode("utf-8", "replace")[-TAIL:])
        return printed

    def try_git(self, *arguments: str) -> Optional[str]:
        """What a git command prints, stripped; ``None`` when it fails."""
        try:
            return self.git(*arguments).decode("utf-8", "replace").strip()
        except GitTrouble:
            return None

    def fetch(self, bundle: Path, branch: str) -> str:
        """Take the publications in, under a name of our own; returns the latest."""
        self.git("fetch", "-q", "--no-tags", str(bundle), f"+refs/heads/{branch}:{REF}")
        return self.git("rev-parse", REF).decode("ascii").strip()

    def tree(self, commit: str) -> Dict[str, Entry]:
        """The files of a publication, by path; names that are no UTF-8 as ``os.fsdecode`` gives."""
        found: Dict[str, Entry] = {}
        for line in self.git("ls-tree", "-r", "-z", "-l", "--full-tree", commit).split(b"\0"):
            facts, _, name = line.partition(b"\t")
            if name:
                mode, kind, oid, size = facts.decode("ascii").split()
                if kind == "blob":
                    found[os.fsdecode(name)] = Entry(mode, oid, int(size))
        return found

    def index(self) -> Dict[str, str]:
        """What git's index holds: contents by path."""
        found: Dict[str, str] = {}
        for line in self.git("ls-files", "-s", "-z").split(b"\0"):
            facts, _, name = line.partition(b"\t")
            if name:
                found[os.fsdecode(name)] = facts.split()[1].decode("ascii")
        return found

    def has_hidden(self) -> bool:
        """Whether git was told not to look at some files (assume-unchanged, skip-worktree)."""
        lines = self.git("ls-files", "-v", "-z").split(b"\0")
        return any(line[:1].islower() or line[:1] == b"S" for line in lines)

    def known(self) -> Dict[str, Set[str]]:
        """Every content that any publication had, by path."""
        found: Dict[str, Set[str]] = {}
        arguments = ("--format=", "--raw", "-z", "--no-abbrev", "--no-renames", "-m", "--root")
        parts = self.git("log", *arguments, REF).split(b"\0")
        for index in range(len(parts) - 1):
            if parts[index].lstrip(b"\n").startswith(b":"):
                _, _, _, oid, _ = parts[index].decode("ascii").split()
                found.setdefault(os.fsdecode(parts[index + 1]), set()).add(oid)
        return found

    @contextlib.contextmanager
    def reader(self) -> Iterator[Callable[[str, IO[bytes]], None]]:
        """A function that copies the content of an object id into a file."""
        process = subprocess.Popen(
            ["git", f"--git-dir={self.git_dir}", "cat-file", "--batch"],
            env=self._env, cwd="/", stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        asked, said = process.stdin, process.stdout

        def copy(oid: str, target: IO[bytes]) -> None:
            with contextlib.suppress(BrokenPipeError):
                asked.write(oid.encode("ascii") + b"\n")
                asked.flush()
            words = said.readline().split()
            if len(words) != 3:
                raise GitTrouble(f"there is no object {oid}")
            left = int(words[2])
            while left:
                chunk = said.read(min(left, _CHUNK))
                if not chunk:
                    raise GitTrouble(f"object {oid} is damaged")
                target.write(chunk)
                left -= len(chunk)
            said.read(1)

        try:
            yield copy
        finally:
            process.kill()
            with contextlib.suppress(BrokenPipeError), asked, said:
                pass
            process.wait()


def content_id(path: Path) -> str:
    """What git calls the content of a file, with no filter; links are not followed.

    Returns:
        40 hex digits; ``MISSING``; or ``OTHER`` for what is no file or cannot be read.
    """
    try:
        found = os.lstat(path)
        if stat.S_ISLNK(found.st_mode):
            return _blob_id(os.fsencode(path.readlink()))
        if not stat.S_ISREG(found.st_mode):
            return OTHER
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            sha = hashlib.sha1(b"blob %d\0" % size)  # noqa: S324 (git's own name for a content)
            left = size
            while left:
                chunk = file.read(min(left, _CHUNK))
                if not chunk:
                    return OTHER
                sha.update(chunk)
                left -= len(chunk)
            return sha.hexdigest()
    except (FileNotFoundError, NotADirectoryError):
        return MISSING
    except OSError:
        return OTHER


def _blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()  # noqa: S324
