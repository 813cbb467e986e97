"""Versions of what can be changed: a short digest of what somebody saw."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def etag_of(value: Any) -> str:
    """Return the version of a JSON value: 16 hex digits, without quotes."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def matches(header: str, etag: str) -> bool:
    """Whether an ``If-Match`` header names this version (RFC 9110, 13.1.1)."""
    named = {one.strip().removeprefix("W/").strip('"') for one in header.split(",")}
    return "*" in named or etag in named
