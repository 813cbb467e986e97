"""What is known of a sync: the lab's notice, the record in the home, the event and its sentence."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List

from pytorch_spawner.agent import plain_files
from pytorch_spawner.agent.config import Course
from pytorch_spawner.agent.course_files import Settled
from pytorch_spawner.agent.course_git import shown

RECORD = "record.json"
MAX_NOTICE_BYTES = 64 * 1024
MAX_RECORD_BYTES = 64 * 1024**2  # a course may have very many files


@dataclass(frozen=True)
class Notice:
    """What the lab says that it has published.

    Attributes:
        served: The publication; "" when nobody says.
        commit: The source's commit of it, 40 hex digits; "" when nobody says.
        serial: Grows with every publication and every order.
    """

    served: str = ""
    commit: str = ""
    serial: int = 0


@dataclass(frozen=True)
class Synced:
    """What a sync did.

    Attributes:
        served: The publication that the directory has now.
        commit: The source's commit; "" when unknown.
        files: How many files the publication has.
        settled: What became of the student's edits.
    """

    served: str
    commit: str
    files: int
    settled: Settled


@dataclass
class Record:
    """What was given last, on disk in the home; losing it costs nobody an edit.

    Attributes:
        served: The publication.
        conflicts: Files that both sides changed -> where the course's version lies.
    """

    served: str = ""
    conflicts: Dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, state: Path) -> Record:
        """Read it; an unreadable one is an empty one."""
        with contextlib.suppress(
            OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError
        ):
            said = json.loads(plain_files.read(state / RECORD, MAX_RECORD_BYTES))
            conflicts = {str(k): str(v) for k, v in said["conflicts"].items()}
            return cls(str(said["served"]), conflicts)
        return cls()

    def write(self, state: Path) -> None:
        """Replace it in one step."""
        draft = state / f"{RECORD}.new"
        draft.write_text(json.dumps({"served": self.served, "conflicts": self.conflicts}))
        draft.replace(state / RECORD)


def read_notice(path: str) -> Notice:
    """Read ``published.json``; an unreadable one says nothing."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        with Path(path).open("rb") as file:
            said = json.loads(file.read(MAX_NOTICE_BYTES))
        if isinstance(said, dict):
            served, commit = said.get("served"), said.get("commit")
            serial = said.get("serial")
            return Notice(
                served if isinstance(served, str) else "",
                commit[:40] if isinstance(commit, str) else "",
                serial if isinstance(serial, int) else 0,
            )
    return Notice()


def told(course: Course, synced: Synced, seconds: float) -> Dict[str, Any]:
    """The event's data of a sync that is done."""
    settled = synced.settled
    kept, conflicts = sorted(settled.kept), sorted(settled.conflicts.items())
    return {
        "phase": "done",
        "course": course.name,
        "title": course.title,
        "served": synced.served,
        "commit": synced.commit,
        "level": "warn" if conflicts else "ok",
        "files": synced.files,
        "kept": _fitting([shown(path) for path in kept]),
        "conflicts": dict(_fitting([(shown(a), shown(b)) for a, b in conflicts])),
        "seconds": round(seconds, 3),
        "message": sentence(synced),
    }


def _fitting(items: List[Any], most: int = 50, room_bytes: int = 5000) -> List[Any]:
    """As many of them as an event has room for."""
    found: List[Any] = []
    for item in items[:most]:
        room_bytes -= len(json.dumps(item))
        if room_bytes < 0:
            break
        found.append(item)
    return found


def sentence(synced: Synced) -> str:
    """What happened, for the student."""
    settled = synced.settled
    parts = [f"The course's {_files(synced.files)} are up to date."]
    if settled.kept:
        parts.append(f"{_files(len(settled.kept))} that you changed stayed as you left them.")
    if settled.conflicts:
        parts.append(
            f"{_files(len(settled.conflicts))} that both you and the course changed stayed as you "
            "left them, and the course's version lies beside."
        )
    if settled.restored:
        parts.append(f"{_files(len(settled.restored))} that had been deleted came back.")
    return " ".join(parts)


def _files(count: int) -> str:
    return f"{count} file{'' if count == 1 else 's'}"
