"""The audit log in words, and which of its lines can be taken back. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

UNDOABLE: Final = frozenset({"grant", "gpu"})


def can_undo(what: str, before: Any, after: Any) -> bool:
    """Whether changes of this kind can be taken back; one may be too late for it all the same.

    Of the queue that is a boost; who was taken out of it asks again.
    """
    if what == "queue":
        return isinstance(before, int) and isinstance(after, int)
    if what == "grant":
        # What the configuration or a group says is changed there.
        either = after or before
        return isinstance(either, Mapping) and either.get("source") == "ledger"
    if what == "cache":
        # What starts are given; a build that was asked for or removed is no such choice.
        return all(isinstance(one, Mapping) and "promoted_at" in one for one in (before, after))
    return what in UNDOABLE


def say_change(what: str, subject: str, before: Any, after: Any) -> str:
    """One line as a sentence; the names are people's own text, to be escaped where it is shown."""
    if what == "grant":
        return _say_grant(subject, before, after)
    if what == "gpu" and isinstance(before, Mapping) and isinstance(after, Mapping):
        return f"{subject}: " + "; ".join(_say_device(before, after)) + "."
    if what == "queue":
        who = subject.removesuffix("/")
        if after == "removed":
            return f"Took {who} out of the queue."
        return f"Priority of {who} in the queue: {_signed(after)} (was {_signed(before)})."
    if what == "cache":
        return _say_cache(subject, before, after)
    if what == "course":
        return _say_course(subject, before, after)
    if what == "image":
        return _say_image(subject, before, after)
    if what in ("server", "kernel"):
        return _say_server(what, subject.removesuffix("/"), after)
    if what == "refused":
        why = after.get("message", "") if isinstance(after, Mapping) else ""
        return f"Was refused {subject}: {why}"
    return f"{what} {subject}"


def _say_server(what: str, server: str, after: Any) -> str:
    said = after if isinstance(after, Mapping) else {}
    if what == "kernel":
        kernel = f"the kernel of {said.get('notebook', '')} in the server {server}"
        if said.get("is") == "failed":
            # An answer that came too late may have been a yes.
            # (Lines of earlier versions hold the reason as "message".)
            why = said.get("why") or said.get("message", "")
            return f"It is not known that {kernel} was shut down: {why}"
        return f"Asked to shut down {kernel}."
    if said.get("is") == "failed":
        return f"The hub did not confirm that it stops the server {server}: {said.get('why', '')}"
    why = said.get("message", "")
    return f"Asked to stop the server {server}" + (f', saying "{why}".' if why else ".")


def _say_grant(subject: str, before: Any, after: Any) -> str:
    either = after or before
    if not isinstance(either, Mapping):
        return f"Grant {subject}."
    whose = f"{either.get('to', '')} {either.get('subject', '')}".strip()
    if before is None:
        return f"Added the grant {subject} for {whose}."
    if after is None:
        return f"Removed the grant {subject} of {whose}."
    parts = [
        f"{key} {_plain(after.get(key))} (was {_plain(before.get(key))})"
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
    ]
    return f"Changed the grant {subject} of {whose}: {'; '.join(parts)}."


def _say_cache(subject: str, before: Any, after: Any) -> str:
    either = after or before
    if not isinstance(either, Mapping):
        return f"Warm cache {subject}."
    of = f"{either.get('suite', '')} ({subject})"
    if either.get("course"):
        of += f" for the course {either['course']}"
    if after is None:
        return f"Removed the warm cache {of}."
    if after.get("is") == "asked for":
        where = f"a GPU of {after.get('pool') or 'any pool'}" if after.get("gpus") else "the CPU"
        return f"Asked for a warm cache: {of}, with {after.get('image', '')} on {where}."
    if after.get("is") == "stopped":
        return f"Stopped the build of the warm cache {of}."
    if after.get("promoted_at") is None:
        return f"Rolled the warm cache {of} back: starts are not given it any more."
    return f"Promoted the warm cache {of}: starts that fit are given it."


def _say_image(subject: str, before: Any, after: Any) -> str:
    if after is None:
        return f"Forgot what was known of the image {subject}."
    if not isinstance(after, Mapping):
        return f"Scanned the image {subject}."
    if after.get("problem"):
        return f"Scanned the image {subject}, which failed: {after['problem']}"
    moved = isinstance(before, Mapping) and before.get("image_id") != after.get("image_id")
    now = f"; starts use {str(after.get('image_id', ''))[:19]} from now on" if moved else ""
    return f"Scanned the image {subject}: {after.get('name', '')}{now}."


def _say_course(subject: str, before: Any, after: Any) -> str:
    either = after or before
    if not isinstance(either, Mapping):
        return f"Course {subject}."
    of = f"{either.get('title', '')} ({subject})"
    said = either.get("is")
    if said == "preload":
        return f"Asked for a preload of the course {of}."
    if said == "publish":
        return f"Asked for the publication of the course {of}."
    if said == "stopped":
        return f"Stopped what was done for the course {of}."
    if said == "published":
        return f"Published {str(either.get('commit', ''))[:8]} of the course {of}."
    if said in ("publish failed", "preload failed"):
        what = "publication" if said.startswith("publish") else "preload"
        return f"The {what} of the course {of} failed: {either.get('message', '')}"
    if said == "reset":
        file = f"{either.get('path', '')} of {either.get('user', '')}"
        return f"Ordered {file} back to the version of the course {of}."
    if before is None:
        return f"Added the course {of}."
    if after is None:
        return f"Removed the course {of}."
    keys = [key for key in sorted({*before, *after}) if before.get(key) != after.get(key)]
    return f"Changed the course {of}: {', '.join(keys)}."


def _say_device(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    said = []
    if before.get("drained") != after.get("drained"):
        why = after.get("drained")
        said.append(f"drained ({why})" if why else "back in service")
    for key in ("mode", "pool"):
        if before.get(key) != after.get(key):
            now = after.get(key) or "as configured"
            said.append(f"{key} {now} (was {before.get(key) or 'as configured'})")
    return said or ["nothing differs"]


def _plain(value: Any) -> str:
    if value is None:
        return "unset"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _signed(value: Any) -> str:
    return f"{value:+d}" if isinstance(value, int) and value else str(value)
