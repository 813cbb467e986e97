"""What sealed caches have brought into a private one, so that it can be taken away again.

PyTorch reads every entry that it finds under a key, and writes generated code only where there is
none. So what a cache brought that was rolled back would go on being used.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Collection, Dict, FrozenSet, Iterable, Mapping, Optional, Tuple

# The driver's own: it finds its files by an index that it writes itself, and by the very code that
# they translate.
DRIVERS = "nv"
NAME = ".seeded.json"
_MOST_BYTES = 64 * 1024**2  # 20,000 files take 3 MB
_CHUNK = 1024 * 1024

Form = Tuple[int, str]
"""A file's size, and its SHA-256 in hex."""
Files = Dict[str, Form]


@dataclass(frozen=True)
class Record:
    """What a private cache remembers of the sealed ones.

    Attributes:
        whole: Ids of those of which all was copied.
        brought: By id, the files of each of which some may have been copied, as they were.
    """

    whole: FrozenSet[str] = frozenset()
    brought: Mapping[str, Files] = field(default_factory=dict)

    def without(self, ids: Collection[str]) -> Record:
        """Without these."""
        brought = {one: files for one, files in self.brought.items() if one not in ids}
        return Record(self.whole.difference(ids), brought)

    def with_files(self, cache_id: str, files: Files, *, is_whole: bool) -> Record:
        """With the files of a cache that is being copied, or was."""
        whole = self.whole | {cache_id} if is_whole else self.whole - {cache_id}
        return Record(whole, {**self.brought, cache_id: files})


def is_drivers(path: str) -> bool:
    """Whether it is one of the driver's files."""
    return path.startswith(f"{DRIVERS}/")


def read(target: Path) -> Record:
    """What is remembered; nothing where that is no record.

    Before there were digests it was a list of ids, the last one at its end. What the others brought
    is not known any more.
    """
    with contextlib.suppress(
        *(OSError, ValueError, TypeError, AttributeError, KeyError, ArithmeticError),
        RecursionError,
    ):
        fd = os.open(target / NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(fd, "rb") as file:
            said = json.loads(file.read(_MOST_BYTES))
        if isinstance(said, list):
            return Record(frozenset(map(str, said[-1:])))
        brought = {
            str(one): {path: (int(size), str(sha)) for path, (size, sha) in files.items()}
            for one, files in said["brought"].items()
        }
        return Record(frozenset(map(str, said["whole"])), brought)
    return Record()


def write(target: Path, record: Record) -> None:
    """Remember this from now on."""
    draft = target / f"{NAME}.new"
    discard(draft)
    draft.write_text(json.dumps({"v": 2, "whole": sorted(record.whole), "brought": record.brought}))
    draft.replace(target / NAME)


def note(target: Path, record: Record) -> None:
    """Remember that all is there; where that fails, the next start copies again."""
    with contextlib.suppress(OSError):
        write(target, record)


def take_away(target: Path, record: Record, gone: Iterable[str]) -> None:
    """Remove what caches brought, is still as it was brought, and no other cache has so.

    What a person's run compiled or changed stays, and so do the driver's files.

    Args:
        target: The private cache.
        record: What was brought.
        gone: Ids of the caches.
    """
    top = target.resolve()
    left = [files for one, files in record.without(set(gone)).brought.items()]
    is_inside: Dict[Path, bool] = {}
    for one in gone:
        for path, form in record.brought.get(one, {}).items():
            if is_drivers(path) or any(files.get(path) == form for files in left):
                continue
            # A person's programs write in the record's place, too: it may name anything, and a
            # directory may have become a link.
            folder = Path(path).parent
            if folder not in is_inside:
                is_inside[folder] = not folder.is_absolute() and (
                    os.path.realpath(top / folder) == str(top / folder)
                )
            if is_inside[folder] and _form(top / path, form[0]) == form:
                discard(top / path)


def _form(path: Path, size: int) -> Optional[Form]:
    """A file's size and digest; None where there is none, or of another size."""
    try:
        known = path.lstat()
        is_likely = stat.S_ISREG(known.st_mode) and known.st_size == size
        return digest(path) if is_likely else None
    except OSError:
        return None


def digest(path: Path) -> Form:
    """A file's size and SHA-256."""
    sha, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            sha.update(chunk)
            size += len(chunk)
    return size, sha.hexdigest()


def discard(path: Path) -> None:
    """Remove a file that may be gone already."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
