"""A course's notebooks in a student's home: nbgitpuller brings them, the student's edits win.

``sync`` brings one directory up to date. nbgitpuller merges line by line; so that a notebook is
never half of each, every file that the student changed is held before it is called and is there
byte for byte afterwards. Where the directory's git is the student's own business (another branch,
a merge under way, no ``.git`` at all), it is left alone and only files are brought up to date. It
must NOT follow a link out of the home or touch what the course never had.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, Iterator, Optional, Set, Tuple

from pytorch_spawner.agent import course_git as git
from pytorch_spawner.agent.config import Course
from pytorch_spawner.agent.course_files import Placer, Settled, View, put, remove
from pytorch_spawner.agent.course_git import GitTrouble, Refused
from pytorch_spawner.agent.course_hold import Hold, recover, stamped_backup
from pytorch_spawner.agent.course_store import MISSING, OTHER, Store, content_id
from pytorch_spawner.agent.course_told import Record, Synced, read_notice

Log = Callable[[str], None]

STATE = ".local/share/pytorch-spawner/courses"
_LOCK_S = 120.0
# Younger, a lock may be a running git's; nbgitpuller removes older ones.
_STALE_LOCK_S = 600.0
_UNDER_WAY = (
    "MERGE_HEAD", "CHERRY_PICK_HEAD", "REVERT_HEAD", "BISECT_LOG", "rebase-merge", "rebase-apply",
    "sequencer",
)  # fmt: skip
_ATTEMPTS = 3


def home(said: Optional[str]) -> Path:
    """The student's home directory, without links.

    Raises:
        Refused: There is none.
    """
    if said and said != "/":
        with contextlib.suppress(OSError):
            return Path(said).resolve(strict=True)
    raise Refused(
        "no-home",
        "There is no home directory, so the course's notebooks have no place.",
        "Tell your instructor.",
        "Set HOME in the image or in the spawner.",
    )


def sync(course: Course, home: Path, log: Log) -> Synced:
    """Bring the student's directory to what the course has published.

    Args:
        course: What the agent was told.
        home: See the function ``home``.
        log: Takes what git said, where that may help somebody.

    Raises:
        Refused: It could not be done; the text is a sentence, and no edit was lost.
    """
    try:
        with open_copy(course, home) as copy:
            return copy.sync(log)
    except OSError as error:
        raise git.refusal(error, "updated") from error


@contextlib.contextmanager
def open_copy(course: Course, home: Path) -> Iterator[Copy]:
    """The student's copy of a course, for one process at a time: a home may have two servers."""
    state = home / STATE / course.name
    root = _root(home, course.folder)
    if os.path.lexists(root) and not _is_open(root):
        raise git.refusal(PermissionError(13, "", str(root)), "")
    state.mkdir(parents=True, exist_ok=True)
    fd = os.open(state / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        _lock(fd)
        yield Copy(course, home, root, state)
    finally:
        os.close(fd)


def _is_open(root: Path) -> bool:
    return os.access(root, os.R_OK | os.W_OK | os.X_OK, effective_ids=True)


def _lock(fd: int) -> None:
    give_up_at = time.monotonic() + _LOCK_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > give_up_at:
                raise Refused(
                    "busy",
                    "Another of your servers is copying the course's notebooks and does not end.",
                    "Stop your other server, then restart this one.",
                ) from None
            time.sleep(0.1)


def _root(home: Path, folder: str) -> Path:
    """The course's directory, none of whose parts is a link or a file."""
    place = home
    for part in folder.split("/"):
        if part in ("", ".", ".."):
            raise Refused(
                "bad-folder", "The course names no directory of your home.",
                "Tell your instructor.", "Change the course's target directory.",
            )  # fmt: skip
        place = place / part
        if os.path.lexists(place) and not stat.S_ISDIR(os.lstat(place).st_mode):
            what = "a link" if place.is_symlink() else "a file"
            raise Refused(
                "in-the-way",
                f"The course's notebooks belong into the directory {git.shown(folder)} of your "
                f"home, but {git.shown(part)} is {what} there; it was not touched.",
                f"Give it another name, in a terminal: mv {git.shown(part)} {git.shown(part)}.mine"
                " - the notebooks come within a minute.",
            )
    return place


@dataclass
class Copy:
    """One student's copy of a course.

    Attributes:
        course: What the agent was told.
        home: The student's home directory, without links.
        root: The course's directory.
        state: Where the lab remembers what it gave.
    """

    course: Course
    home: Path
    root: Path
    state: Path

    def sync(self, log: Log) -> Synced:
        """See the function ``sync``."""
        git.head(Path(self.course.bundle), self.course.branch, self.home)
        notice = read_notice(self.course.notice)
        with contextlib.ExitStack() as stack:
            is_new = not os.path.lexists(self.root) or not any(self.root.iterdir())
            try:
                store, fresh, served = self._store(stack, is_new=is_new)
                tag = notice.commit if notice.served == served and notice.commit else served
                if fresh is not None and is_new:
                    files, settled = len(store.tree(served)), self._begin(fresh)
                else:
                    served, files, settled = self._update(store, fresh, served, tag, log)
            except GitTrouble as error:
                log(f"git: {error}")
                raise _trouble(error) from error
        Record(served, settled.conflicts).write(self.state)
        commit = notice.commit if notice.served in ("", served) else ""
        return Synced(served, commit, files, settled)

    def _begin(self, fresh: Path) -> Settled:
        """The first time: what nbgitpuller made becomes the directory, in one step."""
        fresh.rename(self.root)
        return Settled()

    def _store(
        self, stack: contextlib.ExitStack, *, is_new: bool
    ) -> Tuple[Store, Optional[Path], str]:
        """Where publications are read from: the directory's own git, or a clone beside it."""
        own, bundle, branch = self.root / ".git", Path(self.course.bundle), self.course.branch
        if not is_new and own.is_dir() and not own.is_symlink():
            store = Store(own, self.home)
            with contextlib.suppress(GitTrouble):
                served = store.fetch(bundle, branch)
                store.tree(served)
                return store, None, served
        self.root.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.mkdtemp(prefix=f".{self.course.name}-", dir=self.root.parent)
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        fresh = Path(folder, "course")
        git.pull(bundle, branch, fresh, self.home)
        store = Store(fresh / ".git", self.home)
        return store, fresh, store.fetch(bundle, branch)

    def _update(
        self, store: Store, fresh: Optional[Path], served: str, tag: str, log: Log
    ) -> Tuple[str, int, Settled]:
        record = Record.read(self.state)
        is_plain = fresh is None and self._is_plain(store)
        view = self._view(store, record, served, is_plain=is_plain)
        courses = view.known or store.known() if any(self.state.glob("hold-*")) else view.known
        for name in recover(self.state, self.root, lambda p, oid: oid in courses.get(p, ())):
            log(f"put back after a sync that was cut short: {name!r}")
        before = view.look()
        news = view.decisions(before)
        # Merges of a link with a file, or of the former with a directory, have no side to take.
        is_plain = is_plain and not any(
            there == OTHER or (there and self.root.joinpath(path).is_symlink())
            for path, there in before.items()
        )
        has_all = is_plain and store.try_git("merge-base", "--is-ancestor", served, "HEAD") == ""
        is_done = has_all and set(news.values()) <= {"same", "keep"}
        is_called = is_plain and not is_done
        # What is done here replaces nothing that it has not just seen; only git has to be watched.
        changed = [path for path, there in before.items() if self._is_edit(view, path, there)]
        hold = Hold.take(self.state, self.root, changed if is_called else ())
        try:
            if is_called:
                served = self._let_nbgitpuller(store, view, before, served, log)
            settled = self._settle(store, view, before, hold, f"course-{tag[:7]}", record)
            hold.drop()
        finally:
            recover(self.state, self.root, lambda p, oid: oid in courses.get(p, ()))
        if fresh is not None and not os.path.lexists(self.root / ".git"):
            (fresh / ".git").rename(self.root / ".git")
        return served, len(view.new), settled

    def _view(self, store: Store, record: Record, served: str, *, is_plain: bool) -> View:
        base = record.served
        if not base or store.try_git("cat-file", "-e", f"{base}^{{commit}}") is None:
            # Publications are one line, so what HEAD has of it is what was merged last.
            base = (is_plain and store.try_git("merge-base", "HEAD", served)) or ""
        known: Dict[str, Set[str]] = {} if base else store.known()
        return View(self.root, store.tree(base) if base else None, store.tree(served), known)

    @staticmethod
    def _is_edit(view: View, path: str, there: str) -> bool:
        new = view.new[path].oid if path in view.new else ""
        return there not in (MISSING, OTHER, new, view.base_of(path, there))

    def _is_plain(self, store: Store) -> bool:
        """Whether the directory's git is as nbgitpuller left it, or has commits on top."""
        own, branch = store.git_dir, self.course.branch
        try:
            if (own / "HEAD").read_bytes() != f"ref: refs/heads/{branch}\n".encode():
                return False
            # Another merge driver, or a filter, would mix what nobody has touched.
            if (own / "info" / "attributes").read_bytes() != git.ATTRIBUTES.encode():
                return False
        except OSError:
            return False
        with contextlib.suppress(FileNotFoundError):
            age_s = time.time() - (own / "index.lock").stat().st_mtime
            if age_s < _STALE_LOCK_S:
                return False
        if any(os.path.lexists(own / name) for name in _UNDER_WAY):
            return False
        said = store.try_git("config", "--local", "--list", "-z") or ""
        facts = dict(line.partition("\n")[::2] for line in said.split("\0"))
        expected = {
            "remote.origin.url": self.course.bundle,
            f"branch.{branch}.remote": "origin",
            f"branch.{branch}.merge": f"refs/heads/{branch}",
            "remote.origin.fetch": "+refs/heads/*:refs/remotes/origin/*",
        }
        has_more = {"core.worktree", "core.sparsecheckout"} & set(facts) or store.has_hidden()
        return not has_more and all(facts.get(name) == value for name, value in expected.items())

    def _let_nbgitpuller(
        self, store: Store, view: View, before: Dict[str, str], served: str, log: Log
    ) -> str:
        """Call it; what it cannot do is done file by file afterwards.

        Returns:
            The publication that it found: the lab may have published another one meanwhile.
        """
        tracked = store.index()
        for path in view.new:
            # It would give the student's file another name; held, it comes back under its own.
            if before[path] not in (MISSING, OTHER) and path not in tracked:
                self.root.joinpath(path).unlink()
        absent = [path for path in tracked if not os.path.lexists(self.root / path)]
        pulled = served
        try:
            git.pull(Path(self.course.bundle), self.course.branch, self.root, self.home)
            pulled = store.git("rev-parse", f"origin/{self.course.branch}").decode().strip()
        except GitTrouble as error:
            log(f"nbgitpuller gave up: {error}")
            if os.path.lexists(self.root / ".git" / "MERGE_HEAD"):
                command = ["git", "-C", str(self.root), "merge", "--abort"]
                git.run(command, env=git.environment(self.home))
        # It brings deleted files back before it merges them away, or finds that it cannot.
        for path in set(absent) - set(view.new):
            remove(self.root, path, tracked[path])
        if pulled != served:
            view.new = store.tree(pulled)
            now = view.look()
            for path in set(now) - set(before):
                before[path] = MISSING if now[path] == view.new[path].oid else now[path]
        return pulled

    def _settle(
        self, store: Store, view: View, before: Dict[str, str], hold: Hold, tag: str, record: Record
    ) -> Settled:  # fmt: skip
        for attempt in range(_ATTEMPTS):
            with store.reader() as copy:
                placer = Placer(view, before, hold, copy, tag, record.conflicts)
                settled = placer.settle()
            # Somebody saved a file at this very moment: look again.
            if attempt + 1 == _ATTEMPTS or not any(
                isinstance(error, FileExistsError) for error in settled.troubles
            ):
                break
        if settled.troubles:
            raise git.refusal(settled.troubles[0], "updated")
        return settled

    def reset(self, path: str, log: Log) -> str:
        """Bring one file back to the course's version; the student's becomes a backup.

        Args:
            path: Relative to the course.
            log: See ``sync``.

        Returns:
            Where the backup lies; "" when there was nothing to keep.

        Raises:
            Refused: The course has no such file, or a link is in the way.
        """
        git.head(Path(self.course.bundle), self.course.branch, self.home)
        with contextlib.ExitStack() as stack:
            try:
                store, _, served = self._store(stack, is_new=False)
                return self._reset(store, served, path)
            except GitTrouble as error:
                log(f"git: {error}")
                raise _trouble(error) from error

    def _reset(self, store: Store, served: str, path: str) -> str:
        entry = store.tree(served).get(path)
        if entry is None or {"", ".", ".."} & set(path.split("/")):
            raise Refused("no-such-file", f"The course has no file {git.shown(path)[:200]}.")
        if "/" in path:
            _root(self.root, path.rpartition("/")[0])
        place = self.root / path
        if place.is_symlink() or (os.path.lexists(place) and not place.is_file()):
            raise Refused("in-the-way", f"{git.shown(path)} is no file there; it was not touched.")
        backup, mine = "", content_id(place)
        if mine == OTHER:
            raise git.refusal(PermissionError(13, "", path), "")
        if mine == entry.oid:
            return ""
        if mine != MISSING:
            backup = stamped_backup(self.root, path)
        with store.reader() as copy:
            put(self.root, path, entry, copy, expected=mine)
        record = Record.read(self.state)
        record.conflicts.pop(path, None)
        record.write(self.state)
        return backup


def _trouble(error: GitTrouble) -> Refused:
    last = str(error).strip().splitlines()[-1:] or [""]
    return Refused(
        "sync-failed",
        f"The course's notebooks could not be copied: git said “{last[0][:200]}”. Your files are "
        "kept.",
        "Restart your server; if it happens again, show this to your instructor.",
        "See the agent's log in the container's cache directory; preload the course again.",
    )
