"""What a build's container says of itself, line by line; believed as far as it can be checked."""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final

from pytorch_spawner.agent import building
from pytorch_spawner.core.warmcache import Target

_LOG_LINES: Final = 200
_MAX_ROWS: Final = 1000


@dataclass(slots=True)
class Heard:
    """What one container of a build said so far."""

    names: frozenset[str] = frozenset()
    rows: list[dict[str, Any]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    failure: dict[str, Any] | None = None
    is_done: bool = False
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=_LOG_LINES))

    def take(self, line: bytes) -> None:
        """Read one line of the container's log."""
        text = line.decode("utf-8", "replace")
        if not text.startswith(building.PREFIX):
            self.lines.append(text[:400])
            return
        try:
            said = json.loads(text[len(building.PREFIX) :])
        except (ValueError, RecursionError):
            return
        if not isinstance(said, dict):
            return
        kind = said.get("kind")
        if kind == "target" and self._is_row(said):
            self.rows.append(said)
            self.lines.append(_line_of(said))
        elif kind == "versions":
            self.versions = {
                name: str(said.get(name, ""))[:40] for name in ("torch", "triton") if said.get(name)
            }
        elif kind == "failed" and self.failure is None:
            self.failure = said
            self.lines.extend(str(said.get("tail", "")).splitlines()[-40:])
        elif kind == "done":
            if said.get("ok") is not True and self.failure is None:
                self.failure = {"name": "", "message": "A target failed; see the log."}
            self.is_done = True

    def _is_row(self, said: dict[str, Any]) -> bool:
        name, size = said.get("name"), said.get("size")
        is_size = size is None or (isinstance(size, int) and not isinstance(size, bool))
        return (
            len(self.rows) < _MAX_ROWS and isinstance(name, str) and name in self.names and is_size
        )

    @property
    def text(self) -> str:
        """The log for people."""
        return "\n".join([*self.lines])[-12_000:]


def _line_of(row: dict[str, Any]) -> str:
    size = "" if row.get("size") is None else f" at size {row.get('size')}"
    return (
        f"{row.get('name')}{size}: {_number(row.get('seconds')):.2f} s, {_whole(row.get('hits'))} "
        f"graphs from the cache, {_whole(row.get('misses'))} compiled"
    )


def targets_of(cold: list[dict[str, Any]], warm: list[dict[str, Any]]) -> tuple[Target, ...]:
    """What was measured, one row for each target and size: its first run, and its check.

    Where a check runs a size twice, its seconds are the first run's, and neither may miss.
    """
    first: dict[tuple[str, int | None], dict[str, Any]] = {}
    usual: dict[str, int | None] = {}
    for row in cold:
        first.setdefault((str(row.get("name")), row.get("size")), row)
        usual.setdefault(str(row.get("name")), row.get("size"))
    checked: dict[tuple[str, int | None], dict[str, Any]] = {}
    for row in warm:
        seen = checked.setdefault((str(row.get("name")), row.get("size")), dict(row))
        seen["hits"] = min(_whole(seen.get("hits")), _whole(row.get("hits")))
        seen["misses"] = max(_whole(seen.get("misses")), _whole(row.get("misses")))
    return tuple(
        Target(
            name=name,
            size=size,
            # Only the first of a fresh process compares with the check's, which are all that.
            cold_s=_number(row.get("seconds")) if usual[name] == size else None,
            warm_s=_number(found.get("seconds")) if (found := checked.get((name, size))) else None,
            hits=found["hits"] if found else 0,
            misses=found["misses"] if found else 0,
        )
        for (name, size), row in first.items()
    )


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and 0 <= value < 1e6 else 0.0


def _whole(value: Any) -> int:
    return value if isinstance(value, int) and 0 <= value < 1e6 else 0
