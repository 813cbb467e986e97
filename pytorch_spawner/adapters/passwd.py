"""The host's user database, as one possible source of uids."""

from __future__ import annotations

import pwd


def read_uid(username: str) -> dict[str, int] | None:
    """Return {"uid", "gid"} of a user of this machine, or None when there is none of that name."""
    try:
        entry = pwd.getpwnam(username)
    except (KeyError, ValueError):
        return None
    return {"uid": entry.pw_uid, "gid": entry.pw_gid}
