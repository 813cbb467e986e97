"""A course's mirror: what its source has, and the history of publications made of it. Blocking.

One bare repository holds both. The source's newest commit lies in it without its history, under
``FETCHED``; students get ``PUBLISHED``, a line of commits of our own of which each holds exactly
the files that were kept. So whatever happens to the source's history, a student's next step is
forward. Nothing of a source is ever checked out here: no hook, filter or attribute of it has a
place to run.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from pytorch_spawner.adapters.git_fetch import INCOMING, Errand, fetch, shown_source
from pytorch_spawner.adapters.git_run import Guard, Run, TooMuch
from pytorch_spawner.adapters.git_store import LOCAL_S, Store
from pytorch_spawner.core.course_files import Entry, Limits
from pytorch_spawner.core.course_manifest import Source
from pytorch_spawner.core.course_notes import mib, shown
from pytorch_spawner.core.courses import BRANCH, BUNDLE
from pytorch_spawner.errors import SourceUnusable

__all__ = ["Entry", "Fetched", "Limits", "Mirror", "Served"]

FETCHED: Final = "refs/course/fetched"
PUBLISHED: Final = f"refs/heads/{BRANCH}"
PREVIOUS: Final = "refs/course/previous"
DEFAULT_LIMITS: Final = Limits()
_OID: Final = re.compile(r"[0-9a-f]{40}")
# Git LFS's pointers are smaller than 1024 bytes and begin so (git-lfs/docs/spec.md).
_POINTER: Final = b"version https://git-lfs.github.com/spec/"
_MAX_POINTER_BYTES: Final = 1024
_MAX_TARGET_BYTES: Final = 4096
# Of an author; a date beyond it is a slip that would make every later publication's date a slip.
_YEAR_2100: Final = 4102444800


@dataclass(frozen=True, slots=True)
class Fetched:
    """A commit of the source.

    Attributes:
        commit: 40 hex digits.
        says: The first line of its message. Printable, hostile text; at most 200 characters.
        author: Name of its author, likewise.
        at: When it was committed, Unix time in seconds.
    """

    commit: str
    says: str
    author: str
    at: float


@dataclass(frozen=True, slots=True)
class Served:
    """One publication.

    Attributes:
        served: Its commit, 40 hex digits.
        bundle: Holds it and all before it as the one branch ``published``.
        files: How many files and links it has.
        size_bytes: Of the bundle.
    """

    served: str
    bundle: Path
    files: int
    size_bytes: int


class Mirror:
    """The mirror of one course.

    Every call may raise SourceUnusable: one sentence, and a ``cause``. One that fails leaves
    everything as it was before. Fetching, serving and removing wait for nobody: while one of them
    is under way, another raises with the cause "busy". Reading is always possible.

    Attributes:
        folder: What the mirror keeps, and nothing else.
        limits: How large the course may be.
        roots: Directories that a source's directory may lie below.
        owner: Id of the hub whose mirror it is; another's is never changed.
        bundle: What ``serve`` writes.
    """

    def __init__(
        self,
        folder: Path,
        limits: Limits = DEFAULT_LIMITS,
        roots: Sequence[Path] = (),
        owner: str = "",
    ) -> None:
        self.folder = folder
        self.limits = limits
        self.roots = tuple(roots)
        self.bundle = folder / BUNDLE
        self._store = Store(folder, owner)

    # -- the source --------------------------------------------------------------------------------

    def fetch(self, source: Source, is_stopped: Callable[[], bool] = lambda: False) -> Fetched:
        """Bring the source's newest commit here.

        Args:
            source: Where it is.
            is_stopped: Asked several times a second; True ends it.
        """
        deadline = time.monotonic() + self.limits.deadline_s
        with self._store.alone():
            before = self._store.size()

            def look() -> None:
                if self._store.size() - before > self.limits.max_bytes:
                    raise self._too_large()

            guard = Guard(deadline, is_stopped, look)
            errand = Errand(self._store, self.limits, guard, self._store.rev(FETCHED))
            try:
                fetch(errand, source, self.roots)
                look()
                return self._take(source)
            except SourceUnusable as error:
                self._drop_incoming(is_large=error.cause == "too-large")
                raise

    def _take(self, source: Source) -> Fetched:
        commit = self._store.rev(f"{INCOMING}^{{commit}}")
        if not commit:
            raise SourceUnusable(
                f"What {shown_source(source)} names is no commit. Name a branch.", cause="damaged"
            )
        self._folder_at(commit, source.path, shown_source(source))
        self._store.git("update-ref", FETCHED, commit)
        self._store.git("update-ref", "-d", INCOMING)
        self._store.tidy_packs()
        return self._facts(commit)

    def _drop_incoming(self, *, is_large: bool) -> None:
        try:
            self._store.git("update-ref", "-d", INCOMING)
            if is_large:
                self._store.put_together()
        except SourceUnusable:
            pass  # on top of the trouble that is told; the next fetch tidies

    def fetched(self) -> Fetched | None:
        """What was fetched last; None before the first time."""
        commit = self._store.rev(FETCHED)
        return self._facts(commit) if commit else None

    def entries(self, path: str) -> tuple[Entry, ...]:
        """What the fetched commit has below a directory, which ``path`` names; "" for all of it."""
        commit = self._store.rev(FETCHED)
        if not commit:
            raise SourceUnusable(
                "Nothing was fetched of this course yet. Preload it first.", cause="not-fetched"
            )
        tree = self._folder_at(commit, path, "the repository")
        # A tree of ten folders may name the same ten again and again: ls-tree would never end.
        most = max(1, self.limits.max_files) * 1024
        try:
            listed = self._store.git(
                "ls-tree", "-r", "-l", "-z", "--full-tree", tree, max_bytes=most
            )
        except TooMuch as error:
            raise SourceUnusable(
                f"The course has more than {self.limits.max_files} files, or names without end. "
                "Name a sub-directory with source.path, and offer data as a data mount.",
                cause="too-large",
            ) from error
        entries = [_entry(line) for line in listed.split(b"\0") if line]
        return tuple(self._looked_into(entries))

    def read(self, entry: Entry, limit: int) -> bytes:
        """The first ``limit`` bytes of a file, or what a link says."""
        if not _OID.fullmatch(entry.oid) or entry.kind == "submodule":
            raise SourceUnusable(f"{shown(entry.path)} has no content here.", cause="damaged")
        try:
            return self._store.git("cat-file", "blob", entry.oid, max_bytes=limit)
        except TooMuch as error:
            return error.printed

    # -- publications ------------------------------------------------------------------------------

    def serve(self, entries: Sequence[Entry], published: str, message: str) -> Served:
        """Make a publication of files of the fetched commit, and write the bundle.

        The same files give the same commit: ``published`` itself when it has just these.

        Args:
            entries: What students get, out of ``check_tree``.
            published: What they have now; "" for the first publication.
            message: Of the commit.
        """
        with self._store.alone():
            if published and not self._is_here(published):
                self._adopt(self.bundle)
            if published and not self._is_here(published):
                raise SourceUnusable(
                    "The history of this course's publications is not on the lab's machine any "
                    "more, and a new one would not fit what students have. Put the course's "
                    "directory back from a backup, or add the course under a new name.",
                    cause="history-missing",
                )
            served = self._commit(self._tree(entries), published, message)
            before = self._store.rev(PUBLISHED)
            if before not in ("", served):
                # One that was made just before may yet be the one that students get.
                self._store.git("update-ref", PREVIOUS, before)
            self._store.git("update-ref", PUBLISHED, served)
            self._store.tidy_packs()
            return Served(served, self.bundle, len(entries), self._write_bundle())

    def bundle_of(self, served: str) -> Path:
        """The bundle of one publication; written again where it holds another one by now."""
        if bundle_tip(self.bundle) != served:
            with self._store.alone():
                if not self._is_here(served):
                    raise SourceUnusable(
                        "This publication of the course is not on the lab's machine any more. "
                        "Preload the course again.",
                        cause="history-missing",
                    )
                self._store.git("update-ref", PUBLISHED, served)
                self._write_bundle()
        return self.bundle

    def adopt(self, bundle: Path) -> None:
        """Take the publications out of a bundle, such as the one that students have."""
        with self._store.alone():
            self._adopt(bundle)

    def remove(self) -> None:
        """Remove the mirror and the bundle; none there is fine."""
        if self.folder.exists():
            with self._store.alone():
                shutil.rmtree(self.folder)

    def _too_large(self) -> SourceUnusable:
        return SourceUnusable(
            f"The source holds more than {mib(self.limits.max_bytes)}, which is the most of a "
            "course; the fetch was ended. What was fetched before is still there. Offer data as a "
            "data mount, and keep it out of the repository.",
            cause="too-large",
        )

    def _folder_at(self, commit: str, path: str, where: str) -> str:
        """The tree of a directory in a commit."""
        # What follows the colon is a path to its end, so the object is peeled in a second look.
        found = self._store.rev(f"{commit}:{path}")
        tree = self._store.rev(f"{found}^{{tree}}") if found else ""
        if not tree:
            raise SourceUnusable(
                f"{where} has no directory {shown(path)} on this branch. Correct source.path.",
                cause="path-missing",
            )
        return tree

    def _facts(self, commit: str) -> Fetched:
        raw = self._store.git("cat-file", "commit", commit, max_bytes=2**20)
        head, _, body = raw.decode("utf-8", "replace").partition("\n\n")
        author = re.search(r"^author ([^<\n]*)", head, re.MULTILINE)
        said = re.search(r"^committer [^\n]*> (\d{1,12}) [+-]\d{4}$", head, re.MULTILINE)
        first = next((line for line in body.splitlines() if line.strip()), "")
        return Fetched(
            commit,
            shown(first.strip(), 200),
            shown(author[1].strip() if author else "", 200),
            float(said[1]) if said else 0.0,
        )

    def _looked_into(self, entries: Sequence[Entry]) -> Iterator[Entry]:
        """The entries with what their content says of them: links' targets, LFS's pointers."""
        small = [entry for entry in entries if _is_small(entry)]
        contents = self._contents([entry.oid for entry in small])
        for entry in entries:
            if not _is_small(entry):
                yield entry
                continue
            content = next(contents)
            if entry.kind == "link":
                yield replace(entry, link_target=os.fsdecode(content))
            else:
                yield replace(entry, is_lfs_pointer=content.startswith(_POINTER))

    def _contents(self, oids: Sequence[str]) -> Iterator[bytes]:
        """The contents of small blobs, in their order."""
        if not oids:
            return
        asked = "".join(f"{oid}\n" for oid in oids).encode()
        room = len(oids) * (_MAX_TARGET_BYTES + 100)
        answer = self._store.git("cat-file", "--batch", stdin=asked, max_bytes=room)
        at = 0
        for _ in oids:
            # "<object> blob <size>", the content, and one line break more.
            end = answer.index(b"\n", at)
            size = int(answer[at:end].split()[-1])
            at = end + 1 + size + 1
            yield answer[end + 1 : at - 1]

    # -- serving -----------------------------------------------------------------------------------

    def _tree(self, entries: Sequence[Entry]) -> str:
        lines = [
            b"%s %s\t%s\0" % (entry.mode.encode(), entry.oid.encode(), os.fsencode(entry.path))
            for entry in entries
        ]
        with tempfile.TemporaryDirectory(prefix="index-", dir=self.folder) as made:
            index = {"GIT_INDEX_FILE": f"{made}/index"}
            words = ("update-index", "-z", "--index-info")
            self._store.git(*words, stdin=b"".join(lines), environment=index)
            tree = self._store.git("write-tree", environment=index).decode().strip()
        most = sum(map(len, lines)) + 1
        has = self._store.git("ls-tree", "-r", "-z", "--full-tree", tree, max_bytes=2 * most + 1024)
        taken = has.count(b"\0")
        if taken != len(entries):
            # A path that git refuses, or one that takes another's place: not what was checked.
            raise SourceUnusable(
                "Git did not take every file of the course as it is. Ask an admin to look into "
                "the hub's log.",
                cause="damaged",
                detail=f"{taken} of {len(entries)} entries",
            )
        return tree

    def _commit(self, tree: str, published: str, message: str) -> str:
        parents: list[str] = []
        fetched = self.fetched()
        # Not the clock's time: the same files on top of the same publication give the same commit.
        at = min(fetched.at if fetched else 0.0, _YEAR_2100)
        if published:
            if self._store.rev(f"{published}^{{tree}}") == tree:
                return published
            parents = ["-p", published]
            at = max(at, self._facts(published).at)
        who = {"NAME": "Course", "EMAIL": "course@lab.invalid", "DATE": f"@{at:.0f} +0000"}
        environment = {
            f"GIT_{role}_{key}": value
            for role in ("AUTHOR", "COMMITTER")
            for key, value in who.items()
        }
        words = ("commit-tree", tree, *parents, "-F", "-")
        said = message.encode("utf-8", "replace").replace(b"\0", b"") + b"\n"
        return self._store.git(*words, stdin=said, environment=environment).decode().strip()

    def _write_bundle(self) -> int:
        with tempfile.TemporaryDirectory(prefix="bundle-", dir=self.folder) as made:
            new = Path(made) / BUNDLE
            self._store.git("bundle", "create", "--quiet", str(new), PUBLISHED)
            new.chmod(0o644)
            with new.open("rb") as written:
                os.fsync(written.fileno())
                size = os.fstat(written.fileno()).st_size
            new.replace(self.bundle)
        return size

    def _adopt(self, bundle: Path) -> None:
        if not bundle.is_file():
            return
        words = ("fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--", str(bundle))
        job = Run(
            (*words, f"+{PUBLISHED}:refs/course/adopted"), self._store.git_dir, protocols=("file",)
        )
        self._store.told(job, Guard.of_seconds(LOCAL_S), "the course's bundle")

    def _is_here(self, commit: str) -> bool:
        return bool(_OID.fullmatch(commit)) and bool(self._store.rev(f"{commit}^{{commit}}"))


def _entry(line: bytes) -> Entry:
    """One line of ``git ls-tree -r -l -z``: mode, type, object and size, a tab, the path."""
    facts, _, path = line.partition(b"\t")
    mode, kind, oid, size = facts.decode("ascii").split()
    name = os.fsdecode(path)
    if kind != "blob":
        return Entry(name, "160000", "submodule", 0, oid)
    if mode == "120000":
        return Entry(name, mode, "link", int(size), oid)
    is_program = int(mode, 8) & 0o100
    return Entry(name, "100755" if is_program else "100644", "file", int(size), oid)


def _is_small(entry: Entry) -> bool:
    """Whether the content of an entry says what it is, and is small enough to be looked at."""
    if entry.kind == "link":
        return entry.size <= _MAX_TARGET_BYTES
    return entry.kind == "file" and len(_POINTER) < entry.size < _MAX_POINTER_BYTES


def bundle_tip(bundle: Path) -> str:
    """The commit that a bundle's one branch stands at; "" without a bundle.

    Source: gitformat-bundle(5): text lines "<object> <ref>" until an empty one, then the pack.
    """
    try:
        with bundle.open("rb") as opened:
            head = opened.read(4096).partition(b"\n\n")[0]
    except OSError:
        return ""
    for line in head.split(b"\n"):
        commit, _, ref = line.partition(b" ")
        if ref == PUBLISHED.encode():
            return commit.decode("ascii", "replace")
    return ""
