"""Brings a source's newest commit into a course's mirror, as ``INCOMING``. Blocking."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from pytorch_spawner.adapters.git_directory import (
    as_commit,
    copy_repository,
    has_repository,
    opened_below,
)
from pytorch_spawner.adapters.git_errors import explained, shown_url
from pytorch_spawner.adapters.git_run import GitFailed, Guard, Run, check
from pytorch_spawner.adapters.git_store import Store
from pytorch_spawner.core.course_files import Limits
from pytorch_spawner.core.course_manifest import Source
from pytorch_spawner.core.course_notes import shown
from pytorch_spawner.errors import SourceUnusable

INCOMING: Final = "refs/course/incoming"
# A redirect stays on the transport, or goes from http to https.
_PROTOCOLS: Final = {
    "https": ("https",),
    "http": ("http", "https"),
    "ssh": ("ssh",),
    "git": ("git",),
}
_URL: Final = re.compile(r"(https?|ssh|git)://[^\s\x00-\x1f\x7f-]\S*")
# git-check-ref-format(1), and nothing that a refspec gives a meaning.
_BRANCH: Final = re.compile(r"(?!-)(?!.*(\.\.|//|@\{|/\.|\.lock$))[^\x00-\x20\x7f~^:?*\[\\]{1,200}")
_OID: Final = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Errand:
    """One fetch.

    Attributes:
        store: Where the commit goes.
        limits: Of a course.
        guard: What ends the fetch.
        have: The commit that is here already; "" for none.
    """

    store: Store
    limits: Limits
    guard: Guard
    have: str


def shown_source(source: Source) -> str:
    """A source, for people."""
    return shown_url(source.git) if source.git else shown(source.directory)


def fetch(errand: Errand, source: Source, roots: Sequence[Path]) -> None:
    """Bring the source's commit here.

    Raises:
        SourceUnusable: It cannot be had.
    """
    if source.directory:
        _fetch_directory(errand, source, roots)
        return
    if not _URL.fullmatch(source.git):
        raise SourceUnusable(
            "The URL of the repository is none that the lab may fetch from. Use one that begins "
            "with https://, http://, ssh:// or git://.",
            cause="protocol",
        )
    protocols = _PROTOCOLS[source.git.partition(":")[0]]
    _fetch_from(errand, source, source.git, protocols)


def _fetch_directory(errand: Errand, source: Source, roots: Sequence[Path]) -> None:
    store, where = errand.store, shown_source(source)
    with opened_below(source.directory, roots) as handle:
        place = has_repository(handle)
        if place:
            with tempfile.TemporaryDirectory(prefix="incoming-", dir=store.folder) as made:
                copy = Path(made)
                job = Run(("init", "--quiet", "--bare", "--template=", made))
                store.told(job, errand.guard, where)
                copy_repository(handle, place, copy, errand.limits, lambda: check(errand.guard))
                _fetch_from(errand, source, f"file://{copy}", ("file",))
            return
        if source.branch:
            raise SourceUnusable(
                f"{where} is no git repository, so it has no branch {shown(source.branch)}. "
                "Remove source.branch, or name a repository.",
                cause="branch-missing",
            )
        name = Path(source.directory).name
        words = ("fast-import", "--quiet", "--force", "--done")
        stream = as_commit(handle, INCOMING, name, errand.limits)
        # Always a pack: files by themselves would be as many again.
        job = Run(words, store.git_dir, stream, settings=("fastimport.unpackLimit=1",))
        store.told(job, errand.guard, where)


def _fetch_from(errand: Errand, source: Source, url: str, protocols: Sequence[str]) -> None:
    store, where = errand.store, shown_source(source)
    settings = (f"http.lowSpeedTime={max(1, round(errand.limits.silence_s))}",)
    seen = Run(
        ("ls-remote", "--quiet", "--", url, "HEAD", "refs/heads/*"),
        store.git_dir,
        settings=settings,
        protocols=protocols,
    )
    heads = _heads(errand, seen, where, url)
    ref = _wanted(heads, source.branch, where)
    if heads[ref] == errand.have:
        store.git("update-ref", INCOMING, errand.have)
        return
    words = ["fetch", "--quiet", "--depth=1", "--no-tags", "--no-write-fetch-head"]
    words += ["--no-recurse-submodules", "--", url, f"+{ref}:{INCOMING}"]
    store.told(replace(seen, words=words), errand.guard, where, url)


def _heads(errand: Errand, job: Run, where: str, url: str) -> dict[str, str]:
    """The source's branches and "HEAD" with their commits."""
    # Whoever says nothing at all for so long says nothing later either; curl gives up before.
    first = min(errand.guard.deadline, time.monotonic() + errand.limits.silence_s + 5)
    try:
        listed = errand.store.told(job, replace(errand.guard, deadline=first), where, url)
    except SourceUnusable as error:
        if error.cause != "too-slow":
            raise
        raise explained(GitFailed(0, "Connection timed out"), where) from error
    heads = {}
    for line in listed.decode("utf-8", "replace").splitlines():
        oid, _, ref = line.partition("\t")
        if _OID.fullmatch(oid) and (ref == "HEAD" or ref.startswith("refs/heads/")):
            heads[ref] = oid
    return heads


def _wanted(heads: dict[str, str], branch: str, where: str) -> str:
    """Which of the source's refs to fetch."""
    if not heads:
        raise SourceUnusable(
            f"{where} is empty: it has no commit yet. Commit the notebooks and push them.",
            cause="empty",
        )
    ref = f"refs/heads/{branch}" if branch else "HEAD"
    if ref in heads and (not branch or _BRANCH.fullmatch(branch)):
        return ref
    names = sorted(name.removeprefix("refs/heads/") for name in heads if name != "HEAD")
    said = ", ".join(shown(name, 60) for name in names[:8]) or "none"
    there = f"{said} and {len(names) - 8} more" if len(names) > 8 else said
    what = f"no branch {shown(branch)}" if branch else "no branch that it names as its own"
    raise SourceUnusable(
        f"{where} has {what}. Branches that are there: {there}. Correct source.branch.",
        cause="branch-missing",
    )
