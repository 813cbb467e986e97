"""Who may see and who may write what: pure rules over the hub's user models.

It must not ask the hub (handlers do) and must not know about requests. A model is the hub's answer
to ``GET /hub/api/user`` for a token: ``name``, ``kind`` and ``scopes``, already expanded.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from pytorch_spawner.core.course_manifest import Manifest
from pytorch_spawner.core.courses import is_member, is_staff

VIEW: Final = "custom:lab:view"
INSTRUCT: Final = "custom:lab:instruct"
ADMIN: Final = "custom:lab:admin"
# What JupyterHub's own role "admin" holds; a hub does not let its configuration extend that role.
HUB_ADMIN: Final = "admin-ui"
METRICS: Final = "read:metrics"


def scopes_of(model: Mapping[str, Any]) -> frozenset[str]:
    """The scopes of the token that the model was fetched with, with those that they imply.

    A JupyterHub admin administers the lab. Both have to be true: the person is an admin, and the
    token was made for what an admin may do; so neither an admin's narrow token nor a helper who
    may only look at the hub's admin page is one.
    """
    scopes = frozenset(model.get("scopes") or ())
    if model.get("admin") is True and HUB_ADMIN in scopes:
        return scopes | {ADMIN, INSTRUCT, VIEW}
    return scopes


def may_enter(model: Mapping[str, Any], access_scopes: Collection[str]) -> bool:
    """Whether the token may talk to this service at all (what the hub checks at OAuth, too)."""
    return not scopes_of(model).isdisjoint(access_scopes)


def is_viewer(model: Mapping[str, Any]) -> bool:
    """Whether the token may see everybody's servers and leases."""
    return not scopes_of(model).isdisjoint({VIEW, ADMIN})


def is_admin(model: Mapping[str, Any]) -> bool:
    """Whether the token may change what admins decide."""
    return ADMIN in scopes_of(model)


def is_instructor(model: Mapping[str, Any]) -> bool:
    """Whether the token may manage courses."""
    return not scopes_of(model).isdisjoint({INSTRUCT, ADMIN})


def looks_after(model: Mapping[str, Any], manifest: Manifest) -> bool:
    """Whether the token may see and change a course: its staff, and admins."""
    return is_admin(model) or (is_instructor(model) and is_staff(manifest, owner_name(model)))


def belongs_to(model: Mapping[str, Any], manifest: Manifest) -> bool:
    """Whether the person's servers may be started for a course."""
    name = owner_name(model)
    return bool(name) and is_member(manifest, name, groups_of(model))


def groups_of(model: Mapping[str, Any]) -> tuple[str, ...]:
    """The person's groups, as the hub says them of every token's owner."""
    return tuple(map(str, model.get("groups") or ()))


def may_see_caches(model: Mapping[str, Any]) -> bool:
    """Whether the token may see the warm caches."""
    return is_viewer(model) or is_instructor(model)


def owner_name(model: Mapping[str, Any]) -> str:
    """Whose servers, leases and places are the token's own; "" for a service, which has none.

    A service may be named like a student; that makes it nobody's.
    """
    return str(model["name"]) if model.get("kind", "user") == "user" else ""


def may_open(model: Mapping[str, Any], username: str, servername: str) -> bool:
    """Whether the token may reach the server itself, so that a link to Lab makes sense."""
    return "access:servers" in scopes_of(model) or may_write(model, username, servername)


def may_use(
    model: Mapping[str, Any], username: str, servername: str, access_scopes: Collection[str]
) -> bool:
    """Whether the token may see what runs in a server, and end it: narrower than ``may_watch``.

    True for the user himself and for admins, both through a token that admits to the service, and
    for a token that reaches the server itself.
    """
    if may_open(model, username, servername):
        return True
    if not may_enter(model, access_scopes):
        return False
    return owner_name(model) == username or is_admin(model)


def may_watch(
    model: Mapping[str, Any], username: str, servername: str, access_scopes: Collection[str]
) -> bool:
    """Whether the token may read a server's journal.

    Args:
        model: The hub's model of the token's owner.
        username: Whose server it is.
        servername: The server's name; "" is the default one.
        access_scopes: Scopes that admit to the service, any of them.

    Returns:
        True for the user himself and for viewers, both through a token that admits to the service,
        and for a token with access to that very server.
    """
    if may_open(model, username, servername):
        return True
    if not may_enter(model, access_scopes):
        return False
    is_owner = model.get("kind", "user") == "user" and model.get("name") == username
    return is_owner or is_viewer(model)


def may_write(model: Mapping[str, Any], username: str, servername: str) -> bool:
    """Whether the token is that server's (or its owner's), so that it may report.

    An admin's ``access:servers`` over all servers is not enough: what a journal says is to come
    out of the server that it is about.

    Source: JupyterHub 6.1.1 and 5.3, roles.py: the role ``server`` holds ``access:servers!server``,
    which scopes.py expands to ``access:servers!server=<user>/<server>``.
    """
    return not scopes_of(model).isdisjoint(
        {f"access:servers!server={username}/{servername}", f"access:servers!user={username}"}
    )
