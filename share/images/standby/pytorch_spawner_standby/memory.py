"""How much memory is left to this container: cgroup v2, cgroup v1, and the host."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_MIB = 2**20


def available_mib(root: Path = Path("/")) -> int | None:
    """Return what may still be used before something has to be killed; None where unknown.

    Args:
        root: Where proc and sys are; tests give a directory of their own.
    """
    left = [*_cgroups(root), *_host(root)]
    return min(left) // _MIB if left else None


def resident_mib(pid: int) -> int:
    """Return the resident memory of a process, pages shared with others included."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) // 1024
    except (OSError, ValueError):
        pass
    return 0


def _host(root: Path) -> Iterator[int]:
    for line in _text(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024


def _cgroups(root: Path) -> Iterator[int]:
    mounted = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            names = ("memory.max", "memory.current", "inactive_file", "active_file")
            yield from _levels(mounted, path, names)
        elif "memory" in controllers.split(","):
            names = (
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file",
                "total_active_file",
            )
            yield from _levels(mounted / "memory", path, names)


def _levels(mounted: Path, path: str, names: tuple[str, ...]) -> Iterator[int]:
    """Every limit from this group up: the smallest remainder is what counts."""
    group = mounted / path.lstrip("/")
    if not group.is_relative_to(mounted) or not group.is_dir():
        group = mounted  # a container may see itself as the root and still be told the host's path
    while True:
        left = _left(group, *names)
        if left is not None:
            yield left
        if group == mounted:
            return
        group = group.parent


def _left(group: Path, limit: str, used: str, *page_cache: str) -> int | None:
    try:
        most, now = int(_text(group / limit)), int(_text(group / used))
    except ValueError:  # "max", or no such file
        return None
    stat = dict(line.split()[:2] for line in _text(group / "memory.stat").splitlines() if line)
    # What files left in the page cache is given back before anything is killed.
    return most - now + sum(int(stat.get(name, 0)) for name in page_cache)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
