"""Findings about a course's files, a sentence each; pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["warn", "fail"]


@dataclass(frozen=True, slots=True)
class Note:
    """One finding.

    Attributes:
        level: "warn" (students get the course without it, or with it), "fail" (it stops a
            publication).
        path: The file; "" for the whole course. Hostile text.
        message: What it is, why it matters, what to do. Printable; names the path itself.
    """

    level: Level
    path: str
    message: str


def shown(text: str, most: int = 120) -> str:
    """A hostile text for a sentence: printable, and not longer than ``most`` characters."""
    short = text if len(text) <= most else f"{text[: most - 1]}\u2026"
    return "".join(char if char.isprintable() else "?" for char in short)


def mib(size: int) -> str:
    """Bytes for people."""
    return f"{size / 2**20:.0f} MiB" if size >= 10 * 2**20 else f"{size / 2**20:.1f} MiB"
