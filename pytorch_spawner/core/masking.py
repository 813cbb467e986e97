"""Takes out of other people's texts what must not be passed on: control characters and secrets.

What a container says may hold anything: what a program printed, a header, an address with a
password. Rather one word too many is hidden than one too few.
"""

from __future__ import annotations

import re
from typing import Any, Final

HIDDEN: Final = "[…]"
_ANSI: Final = re.compile(
    r"\x1b\[[0-9;:?]{0,40}[ -/]{0,4}[@-~]|\x1b\][^\x07\x1b]{0,400}(?:\x07|\x1b\\)"
)
# "The token of this server is unknown": no secret begins with such a word.
_PROSE: Final = (
    "a|and|are|as|at|belongs|by|can|cannot|did|does|expired|for|from|had|has|in|invalid|is|may|"
    "missing|must|not|of|on|or|that|the|to|was|were|which|will|with|would"
)
# Each ends within a bounded number of steps a character, so that 16 KiB of anything take no time.
_SECRETS: Final = tuple(
    (re.compile(pattern, re.IGNORECASE), put)
    for pattern, put in (
        # a header: all that stands behind it
        (
            r"\b((?:proxy-)?authorization|(?:set-)?cookie(?=[\"'\\]{0,4}\s{0,4}[:=])).*",
            rf"\1 {HIDDEN}",
        ),
        # a setting, a variable, a field of JSON, a part of an address: NAME=..., "name": "..."
        (
            r"(token|bearer|passw(?:or)?d|passphrase|secret|api[_-]?key|access[_-]?key|credentials?)"
            r"([A-Z0-9_-]{0,24}[\"'\\]{0,4}\s{0,4}[=:]\s{0,4})"
            r"(?!\[…\])(?:\"(?:[^\"\\]|\\.)*(?:\"|$)|'(?:[^'\\]|\\.)*(?:'|$)|[\"'\\]{0,4}[^\s\"']+)",
            rf"\1\2{HIDDEN}",
        ),
        (
            rf"\b(token|bearer)(\s{{1,8}})(?!(?:{_PROSE})(?:[\s.,;:!?)]|$))[\"'\\]{{0,4}}[^\s\"']+",
            rf"\1\2{HIDDEN}",
        ),
        (r"://[^/\s@]{1,300}@", f"://{HIDDEN}@"),
        (r"\b(?:gh[opsur]_|github_pat_|glpat-|hf_|sk-|xox[abp]-)[A-Z0-9_-]{8,}", HIDDEN),
        (r"\bAKIA[A-Z0-9]{12,}", HIDDEN),
        (r"\beyJ[A-Z0-9_-]{8,}\.[A-Z0-9_.-]{8,}", HIDDEN),
        # a line of a key in a file of keys
        (r"^\s*[A-Z0-9+][A-Z0-9+/]{39,}={0,2}\s*$", HIDDEN),
    )
)
# More than any text that is kept, and little enough to search a thousand of them.
_LONGEST: Final = 2048
# An image's digest is no secret, and helps.
_HEX: Final = re.compile(r"(sha256:[0-9a-f]{64}(?![0-9a-fA-F]))|[0-9a-fA-F]{32,}")


def plain(value: Any, longest: int = 200) -> str:
    """A text on one line, without what would steer a terminal or turn the reading direction.

    Args:
        value: Anything; "" comes of what is no text.
        longest: Characters kept, at least 1; of a longer one the last kept is an ellipsis.
    """
    if not isinstance(value, str):
        return ""
    text = value
    if not value.isprintable():
        text = "".join(
            char if char.isprintable() else " " if char.isspace() else ""
            for char in _ANSI.sub("", value)
        )
    text = text.rstrip()
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def masked(value: Any, longest: int = 200) -> str:
    """The same, without anything that looks like a secret: ``[…]`` stands in its place.

    Args:
        value: Anything; "" comes of what is no text.
        longest: Characters kept.
    """
    if not isinstance(value, str):
        return ""
    if len(value) > _LONGEST:
        # Not in the middle of a word: half a secret looks like none.
        value = "".join(value[:_LONGEST].rsplit(None, 1)[:1])
    # First what hides a secret from the patterns, then the secret, and only then the last cut.
    text = plain(value, _LONGEST + 1)
    for pattern, put in _SECRETS:
        text = pattern.sub(put, text)
    text = _HEX.sub(lambda found: found[1] or HIDDEN, text)
    return plain(text, longest)
