"""A published warm cache: how it is sealed, and how it reaches a student's private cache.

The files hold code that PyTorch executes, so nothing is taken that is not, byte for byte, what the
lab sealed: the manifest's digest comes with the container's configuration, the files' digests with
the manifest. They are copied, not mounted: PyTorch locks and writes beside what it reads and fails
hard where it cannot (torch 2.13, "InductorError: PermissionError .../locks").
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Collection, Dict, Iterator, List, Optional

from pytorch_spawner.agent import seed_record
from pytorch_spawner.agent.seed_record import DRIVERS, Files, is_drivers

MANIFEST = "manifest.json"
MAX_FILES = 20_000
MAX_BYTES = 2 * 1024**3
# What a compile leaves that is worth carrying; logs, locks and half-written files are not. "nv" is
# the driver's own: cuDNN's attention hands it PTX, which takes 1.0 to 1.5 s to translate and 0.2 s
# to find (docs/explanation/measurements.md). The driver finds its files by one index, so a cache of
# the person's own is left as it is.
_KEPT = ("inductor", "triton", DRIVERS)
_LEFT_OUT = re.compile(r"(^|/)(locks(/|$)|[^/]*\.lock$|\.?tmp\.|[^/]*\.tmp$|__pycache__(/|$))")
_STAGING = ".seed-"
# A copy takes seconds. A server that was frozen in the middle of one must not hold up another.
_LOCK_S = 20.0


class SeedRefused(Exception):
    """The warm cache is not used; the text is a sentence for the student's page."""


@dataclass(frozen=True)
class Seeded:
    """What seeding did.

    Attributes:
        files: How many were copied; 0 when an earlier start of this cache had done it.
        size_bytes: Of the files.
        seconds: How long it took.
    """

    files: int
    size_bytes: int
    seconds: float


# -- in the student's container ---------------------------------------------------------------


def seed(
    source: Path,
    target: Path,
    cache_id: str,
    digest: str,
    offered: Optional[Collection[str]] = None,
) -> Seeded:
    """Copy a sealed cache into a private one, all of it or nothing.

    What caches brought that are not offered any more is removed, unless somebody has changed it:
    PyTorch reads every entry that it finds under a key, so a cache that was rolled back would go
    on being used.

    Args:
        source: Where the sealed cache is mounted, read-only.
        target: The private cache directory, at the path at which the cache was built.
        cache_id: Of the sealed cache; what is there whole is not copied again.
        digest: SHA-256 of the manifest, in hex, as the lab's ledger has it.
        offered: Ids of the caches that starts are given, on other GPUs as well; None for not known.

    Raises:
        SeedRefused: It is not what was sealed, there is no room, or another server of this person
            has been copying for ``_LOCK_S``; nothing was copied.
    """
    began = time.monotonic()
    files = _read_manifest(source, digest)
    try:
        with _alone(target):
            record = seed_record.read(target)
            gone = _not_of(record, offered, cache_id)
            if cache_id in record.whole and not gone and _is_whole(target, files):
                if cache_id not in record.brought:  # of an agent that wrote down the id alone
                    seed_record.note(target, record.with_files(cache_id, files, is_whole=True))
                return Seeded(0, 0, time.monotonic() - began)
            if os.path.lexists(target / DRIVERS):
                files = {path: one for path, one in files.items() if not is_drivers(path)}
            staging = Path(tempfile.mkdtemp(prefix=_STAGING, dir=target))
            try:
                total = _copy_all(source, staging, files)
                # Whoever is ended from here on leaves a note of all that may be there.
                record = record.with_files(cache_id, files, is_whole=False)
                seed_record.write(target, record)
                seed_record.take_away(target, record, gone)
                _move_in(staging, target, files)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
            record = record.without(gone).with_files(cache_id, files, is_whole=True)
            seed_record.note(target, record)
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise SeedRefused(
            f"The warm cache could not be copied ({why}), so the first compile takes its usual time"
        ) from error
    return Seeded(len(files), total, time.monotonic() - began)


def clear(target: Path, offered: Optional[Collection[str]]) -> None:
    """Take away what caches brought that are not offered any more, where a start is given none.

    Args:
        target: The private cache directory.
        offered: As ``seed`` has it.

    Raises:
        SeedRefused: Another server of this person has been copying for ``_LOCK_S``.
        OSError: The private cache cannot be written.
    """
    if not _not_of(seed_record.read(target), offered):
        return
    with _alone(target):
        record = seed_record.read(target)
        gone = _not_of(record, offered)
        seed_record.take_away(target, record, gone)
        seed_record.write(target, record.without(gone))


def _not_of(
    record: seed_record.Record, offered: Optional[Collection[str]], cache_id: str = ""
) -> List[str]:
    """Ids of the caches that brought something and are neither offered nor the one given."""
    there = {*record.brought, *record.whole}
    return [] if offered is None else sorted(there.difference(offered, {cache_id}))


@contextlib.contextmanager
def _alone(target: Path) -> Iterator[None]:
    """One at a time: a person's other server may share the private cache. Leftovers go first."""
    fd = os.open(target / ".seed.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        _lock(fd)
        for left in target.glob(f"{_STAGING}*"):
            shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        os.close(fd)


def _lock(fd: int) -> None:
    give_up_at = time.monotonic() + _LOCK_S
    while True:
        try:
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > give_up_at:
                raise SeedRefused(
                    "Another of your servers is copying the warm cache and does not end, so this "
                    "one does without; stop that one and restart this one"
                ) from None
            time.sleep(0.05)


def _is_whole(target: Path, files: Files) -> bool:
    """Whether every file is there still: people empty caches, and leave hidden files behind.

    A host that crashed may leave files without content. Sizes are not compared: PyTorch writes
    its profiles anew. What the driver removed it no longer wants (it bounds its cache by itself).
    """
    sizes = ((path, size) for path, (size, _) in files.items() if not is_drivers(path))
    return all(_is_there(target / path, is_empty=not size) for path, size in sizes)


def _is_there(path: Path, *, is_empty: bool) -> bool:
    """Whether it is a file, and has content unless it was sealed without."""
    try:
        known = path.stat()
    except OSError:
        return False
    return stat.S_ISREG(known.st_mode) and (is_empty or known.st_size > 0)


def _read_manifest(source: Path, digest: str) -> Files:
    try:
        text = _read(source / MANIFEST, 16 * 1024**2)
    except OSError as error:
        raise SeedRefused("The warm cache is not there; an admin can build it again") from error
    if hashlib.sha256(text).hexdigest() != digest:
        raise SeedRefused(
            "The warm cache is not what the lab sealed, so nothing of it is used; an admin should "
            "build it again"
        )
    said = json.loads(text)
    if said.get("cpu") not in ("", cpu_features()):
        raise SeedRefused("The warm cache was built for another kind of CPU, so it is not used")
    return {path: (int(size), str(sha)) for path, (size, sha) in said["files"].items()}


def _copy_all(source: Path, staging: Path, files: Files) -> int:
    total = 0
    made = set()
    for path, (size, sha) in files.items():
        copy = staging / path
        if copy.parent not in made:
            copy.parent.mkdir(parents=True, exist_ok=True)
            made.add(copy.parent)
        try:
            content = _read(source / path, size + 1)
        except FileNotFoundError as error:
            raise _altered() from error
        if len(content) != size or hashlib.sha256(content).hexdigest() != sha:
            raise _altered()
        copy.write_bytes(content)
        total += size
    return total


def _altered() -> SeedRefused:
    return SeedRefused(
        "A file of the warm cache was changed after it was sealed, so nothing of it is used; an "
        "admin should build it again"
    )


def _move_in(staging: Path, target: Path, files: Files) -> None:
    made = set()
    # Triton's "__grp__" files name the others of a kernel: whoever finds one finds them all.
    for path in sorted(files, key=lambda path: ("/__grp__" in path, path)):
        place = target / path
        if place.parent not in made:
            place.parent.mkdir(parents=True, exist_ok=True)
            made.add(place.parent)
        staging.joinpath(path).replace(place)


def _read(path: Path, limit: int) -> bytes:
    """A regular file's content, at most ``limit`` bytes of it; links are not followed."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise _altered()
        return file.read(limit)


# -- in the lab's helper container ------------------------------------------------------------


def seal(root: Path, keep_cpu: bool) -> Dict[str, Any]:
    """Turn what a warmer compiled into a read-only cache with a manifest.

    Args:
        root: The cache directory; belongs to this process's user.
        keep_cpu: Whether it holds code for this very kind of CPU.

    Returns:
        ``{"digest", "files", "size_bytes"}``.

    Raises:
        SeedRefused: It is empty or larger than ``MAX_FILES`` and ``MAX_BYTES`` allow.
    """
    files: Files = {}
    total = 0
    for path in sorted(_all(root)):
        relative = str(path.relative_to(root))
        if not relative.startswith(tuple(f"{name}/" for name in _KEPT)):
            seed_record.discard(path)
            continue
        if _LEFT_OUT.search(relative) or not stat.S_ISREG(path.lstat().st_mode):
            seed_record.discard(path)
            continue
        size, sha = seed_record.digest(path)
        total += size
        files[relative] = (size, sha)
        if len(files) > MAX_FILES or total > MAX_BYTES:
            raise SeedRefused(
                f"The cache has more than {MAX_FILES} files or {MAX_BYTES // 1024**3} GiB; compile "
                "fewer targets"
            )
    if not files:
        raise SeedRefused("Nothing was compiled: the cache is empty")
    text = json.dumps(
        {"v": 1, "cpu": cpu_features() if keep_cpu else "", "files": files}, sort_keys=True
    ).encode()
    (root / MANIFEST).write_bytes(text)
    _close(root)
    return {"digest": hashlib.sha256(text).hexdigest(), "files": len(files), "size_bytes": total}


def _all(root: Path) -> Iterator[Path]:
    """Everything below that is no directory; links to directories are not followed."""
    for folder, folders, names in os.walk(root):
        for name in folders:
            path = Path(folder, name)
            if path.is_symlink():
                yield path
            else:
                path.chmod(0o700)
        for name in names:
            yield Path(folder, name)


def _close(root: Path) -> None:
    """Files 0444, directories 0555, empty ones gone."""
    for folder, _, names in os.walk(root, topdown=False):
        place = Path(folder)
        for name in names:
            place.joinpath(name).chmod(0o444)
        if place != root and next(place.iterdir(), None) is None:
            place.rmdir()
        else:
            place.chmod(0o555)


def cpu_features() -> str:
    """A digest of what this CPU can do: inductor compiles C++ for it and nothing less.

    Source: /proc/cpuinfo, "flags" (x86) or "Features" (Arm); "unknown" where there is neither.
    """
    with contextlib.suppress(OSError):
        for line in (
            Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        ):
            name, _, said = line.partition(":")
            if name.strip() in ("flags", "Features"):
                return hashlib.sha256(" ".join(sorted(said.split())).encode()).hexdigest()[:16]
    return "unknown"


def main(arguments: List[str]) -> int:
    """``--seal DIRECTORY cpu|gpu``: seal, print the result as JSON, or a sentence and status 1."""
    try:
        print(json.dumps(seal(Path(arguments[0]), arguments[1] == "cpu")))
    except SeedRefused as error:
        print(json.dumps({"refused": str(error)}))
        return 1
    except OSError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0
