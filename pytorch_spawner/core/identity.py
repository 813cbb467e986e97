"""Names and uids: never one home, container or uid for two people.

Argument for the names. ``slug`` maps a username to ``[a-z0-9-]`` of at most 41 characters. A name
that is already of the plain form (letters and digits, first a letter, at most 30) stays as it is
and holds no "-". Every other name becomes ``<up to 24 readable characters>-<16 hex digits>``, which
always holds a "-". So a plain name never meets a hashed one, two plain names differ as they stand,
and two hashed ones meet only where 64 bits of SHA-256 meet. The server's name is joined with "--",
which no slug contains, so ("a", "b-c") and ("a-b", "c") stay apart.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pytorch_spawner.errors import IdentityConflict

MIN_UID: Final = 1000
_PLAIN = re.compile(r"[a-z][a-z0-9]{0,29}")
# Where courses may mount data, because nothing of an image or of the lab lies there; nor a home.
DATA_PLACES: Final = ("/data", "/datasets", "/mnt", "/srv")
# A home in one of these would hide what every container needs, or be hidden itself.
_SYSTEM: Final = frozenset(
    {
        *("bin", "boot", "dev", "etc", "lib", "lib32", "lib64", "libx32", "opt"),
        *("proc", "root", "run", "sbin", "sys", "tmp", "usr", "var"),
    }
)


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a container runs as.

    Attributes:
        uid: MIN_UID <= uid <= 2**31 - 1, of this user alone.
        gid: The user's primary group; >= MIN_UID unless an explicit source says otherwise, never 0.
        source: "auth_state", "passwd" or "ledger".
    """

    uid: int
    gid: int
    source: str


def slug(name: str) -> str:
    """Return a name for containers, volumes and directories that no other user's name maps to.

    Args:
        name: A username as JupyterHub knows it (already normalised by the authenticator), any text.

    Returns:
        1 to 41 characters of ``[a-z0-9-]``, starting with a letter, without "--".
    """
    if _PLAIN.fullmatch(name):
        return name
    readable = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:24].strip("-")
    if not readable or not readable[0].isalpha():
        readable = f"u-{readable}".strip("-")
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"{readable}-{digest}"


def server_slug(username: str, servername: str) -> str:
    """Return the name of one server of one user; the default server has only the user's."""
    return f"{slug(username)}--{slug(servername)}" if servername else slug(username)


def login_name(username: str) -> str:
    """Return what ``whoami`` says in the container: useradd's form, at most 32 characters.

    Source: useradd(8), "usernames must start with a lower case letter or an underscore ... may
    only be up to 32 characters long". It names the uid in that container only, so it need not be
    unique on the host.
    """
    if re.fullmatch(r"[a-z_][a-z0-9_-]{0,31}", username):
        return username
    readable = re.sub(r"[^a-z0-9_-]+", "-", username.lower()).strip("-")[:32].strip("-")
    return readable if readable and readable[0].isalpha() else "student"


def home_path(template: str, login: str) -> str:
    """Where a home is in its container.

    Args:
        template: An absolute path; ``{login}`` stands for the login name.
        login: As ``login_name`` gives it.

    Raises:
        ValueError: It is no place for a home; the text says why.
    """
    path = template.replace("{login}", login)
    parts = path.split("/")[1:]
    is_plain = all(re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", part) for part in parts)
    if not path.startswith("/") or not is_plain:
        raise ValueError(
            "an absolute path of letters, digits, '.', '_', '-' and {login}, such as /home/lab"
        )
    if "{" in template.split("/")[1] or len(parts) < 2:
        raise ValueError("a directory below another, such as /home/lab")
    if parts[0] in _SYSTEM:
        raise ValueError(f"/{parts[0]} belongs to the image; a path such as /home/lab")
    if f"/{parts[0]}" in DATA_PLACES:
        raise ValueError(f"/{parts[0]} is for the data of courses; a path such as /home/lab")
    return path


def passwd_with(passwd: str, identity: Identity, name: str, home: str) -> str:
    """Return an image's /etc/passwd with this user in it, and no other entry of that uid or name.

    Args:
        passwd: The file as the image has it; lines that are no entries are kept.
        identity: Whose uid and gid to name.
        name: As ``login_name`` gives it.
        home: Absolute path of the home in the container, without ":".
    """
    return _entries_with(
        passwd, str(identity.uid), f"{name}:x:{identity.uid}:{identity.gid}::{home}:/bin/bash"
    )


def group_with(group: str, identity: Identity, name: str) -> str:
    """Return an image's /etc/group with the user's primary group in it, once."""
    return _entries_with(group, str(identity.gid), f"{name}:x:{identity.gid}:")


def _entries_with(text: str, numeric_id: str, entry: str) -> str:
    name = entry.split(":", 1)[0]
    kept = []
    for line in text.splitlines():
        fields = line.split(":")
        if fields[0] == name or (len(fields) > 2 and fields[2] == numeric_id):
            continue
        kept.append(line)
    return "\n".join([*kept, entry]) + "\n"


def identity_from_mapping(said: Any, source: str, username: str) -> Identity | None:
    """Read a uid that an outside source names, such as a key of ``auth_state``.

    Args:
        said: None (the source does not know the user), a whole number, or a mapping with ``uid``
            and optionally ``gid``.
        source: Name of the source, for the message.
        username: Whose it is, for the message.

    Raises:
        IdentityConflict: The uid is no number, below MIN_UID, or the gid is 0.
    """
    if said is None:
        return None
    uid, gid = (said.get("uid"), said.get("gid")) if isinstance(said, Mapping) else (said, None)
    if uid is None:
        return None
    try:
        uid, gid = int(uid), int(uid if gid is None else gid)
    except (TypeError, ValueError) as error:
        raise IdentityConflict(f"The uid that {source} gives {username} is no number.") from error
    if not MIN_UID <= uid < 2**31:
        raise IdentityConflict(
            f"{source} gives {username} the uid {uid}. Servers never run as root or as a uid below "
            f"{MIN_UID}, which belong to the system. Ask an admin for another uid."
        )
    if not 0 < gid < 2**31:
        raise IdentityConflict(f"{source} gives {username} the group {gid}, which is not allowed.")
    return Identity(uid, gid, source)


def next_uid(taken: Iterable[int], first: int, last: int) -> int:
    """Return the lowest uid of a range that was never given to anybody.

    Args:
        taken: Every uid ever given, also to users who left.
        first: First of the range, >= MIN_UID.
        last: Last of the range, inclusive.

    Raises:
        IdentityConflict: The range is used up or starts below MIN_UID.
    """
    if first < MIN_UID:
        raise IdentityConflict(f"The range of uids starts at {first}, below {MIN_UID}.")
    ever = set(taken)
    # Above the highest ever given, not the lowest gap: the files of somebody whose row was removed
    # by hand must not fall to a newcomer.
    uid = max((used for used in ever if first <= used <= last), default=first - 1) + 1
    if uid > last:
        raise IdentityConflict(
            f"Every uid from {first} to {last} has been given. Ask an admin to widen the range."
        )
    return uid
