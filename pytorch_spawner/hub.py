"""Putting the lab into a JupyterHub: one call in jupyterhub_config.py.

It sets what one would otherwise copy from the documentation: the spawner class, the service with
its least scopes, the role that lets users reach it, and the templates of the pending page.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from traitlets.config.loader import LazyConfigValue

from pytorch_spawner.adapters.git_run import NETWORK
from pytorch_spawner.core.courses import SMOKER
from pytorch_spawner.core.warmcache import WARMER
from pytorch_spawner.lab.paths import hub_templates_dir

T = TypeVar("T")
SERVICE = "lab"
# Where docker-py finds the engine.
_ENGINE = ("DOCKER_HOST", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH")
# What the service needs of the hub, and nothing more: whose servers are active (reconcile), which
# users and groups a grant may name, and stopping servers whose time is over.
_SCOPES = [
    "list:users",
    "read:users:name",
    "read:users:groups",
    "list:groups",
    "read:servers",
    "delete:servers",
    # Warm caches are built in servers of an account of the service's own.
    f"admin:users!user={WARMER}",
    f"servers!user={WARMER}",
    # So are smoke tests of courses run.
    f"admin:users!user={SMOKER}",
    f"servers!user={SMOKER}",
]


def add_lab(  # noqa: PLR0913  a keyword for each thing in which sites differ
    config: Any,
    *,
    address: str = "http://127.0.0.1:10110",
    ledger_url: str | None = None,
    hub_id: str | None = None,
    base_url: str = "/",
    reconcile_s: float = 30.0,
    warn_s: float = 600.0,
    warm_cache_gib: float = 20.0,
    course_dir: str | os.PathLike[str] | None = None,
    course_roots: Sequence[str | os.PathLike[str]] = (),
    client_kwargs: dict[str, Any] | None = None,
) -> None:
    """Add spawner, service, roles and templates to a hub's configuration.

    Args:
        config: The ``c`` of jupyterhub_config.py. Services, roles and template paths that are
            already there stay.
        address: Where the service listens. Containers report there, so on a Docker host it is the
            container network's gateway, for example ``http://172.17.0.1:10110``.
        ledger_url: SQLAlchemy URL; None means a SQLite file in the hub's working directory.
        hub_id: See ``PyTorchSpawner.hub_id``.
        base_url: The hub's own ``JupyterHub.base_url``.
        reconcile_s: Seconds between two reconciles; 0 switches off all that the service does by
            itself: reconciles, ends of leases, warm caches and preloads.
        warn_s: Seconds before a lease's end at which its student is warned.
        warm_cache_gib: Most GiB of published warm caches; beyond it those used longest ago go.
        course_dir: Where the service keeps mirrors of courses' sources; None means a directory
            ``courses`` in the hub's working directory. Each hub has one of its own.
        course_roots: Directories of this machine below which courses may lie that do not come from
            git. The example course is always allowed.
        client_kwargs: How hub and service reach the engine (docker-py's APIClient); None means as
            the environment says (DOCKER_HOST).

    Raises:
        ValueError: A course root is the directory of the mirrors, or lies in it.
    """
    mirrors = Path(course_dir or "courses").absolute()
    for root in course_roots:
        if Path(root).absolute().is_relative_to(mirrors):
            raise ValueError(
                f"{root} is a course root and {mirrors} holds the service's mirrors of courses: "
                "courses could be taken for mirrors. Give the mirrors a directory of their own, "
                'for example add_lab(course_dir="/var/lib/pytorch-spawner/courses").'
            )
    ledger_url = ledger_url or f"sqlite:///{Path.cwd() / 'pytorch-spawner.sqlite'}"
    hub_id = hub_id or "lab"
    base_url = f"/{base_url.strip('/')}/".replace("//", "/")
    config.JupyterHub.spawner_class = "pytorch_spawner.spawner.PyTorchSpawner"
    config.PyTorchSpawner.ledger_url = ledger_url
    config.PyTorchSpawner.hub_id = hub_id
    if client_kwargs:
        config.PyTorchSpawner.client_kwargs = client_kwargs
    config.PyTorchSpawner.lab_url = f"{address.rstrip('/')}{base_url}services/{SERVICE}/"
    _append(config.JupyterHub, "template_paths", hub_templates_dir())
    _append(
        config.JupyterHub,
        "services",
        {
            "name": SERVICE,
            "url": address,
            "command": [sys.executable, "-m", "pytorch_spawner.lab"],
            "display": True,
            "oauth_no_confirm": True,
            "oauth_client_allowed_scopes": [
                "identify",
                "access:servers!user",
                "custom:lab:view",
                "custom:lab:instruct",
                "custom:lab:admin",
                # How the service knows a JupyterHub admin: see lab/auth.py.
                "admin-ui",
            ],
            "environment": {
                "PYTORCH_SPAWNER_LEDGER": ledger_url,
                "PYTORCH_SPAWNER_HUB_ID": hub_id,
                "PYTORCH_SPAWNER_RECONCILE_S": str(reconcile_s),
                "PYTORCH_SPAWNER_WARN_S": str(warn_s),
                "PYTORCH_SPAWNER_WARM_CACHE_GIB": str(warm_cache_gib),
                "PYTORCH_SPAWNER_COURSE_DIR": str(mirrors),
                "PYTORCH_SPAWNER_COURSE_ROOTS": os.pathsep.join(map(str, course_roots)),
                "PYTORCH_SPAWNER_CLIENT_KWARGS": json.dumps(client_kwargs or {}),
                # JupyterHub gives a service hardly anything of its own environment. SSH_AUTH_SOCK
                # stays out: any instructor could fetch with the keys of whoever started the hub.
                **{name: os.environ[name] for name in (*_ENGINE, *NETWORK) if name in os.environ},
            },
        },
    )
    config.JupyterHub.custom_scopes = _said(config.JupyterHub, "custom_scopes", {})
    config.JupyterHub.custom_scopes.setdefault(
        "custom:lab:admin",
        {
            "description": "Administer the GPU lab",
            "subscopes": ["custom:lab:view", "custom:lab:instruct"],
        },
    )
    config.JupyterHub.custom_scopes.setdefault(
        "custom:lab:instruct", {"description": "Prepare courses of the GPU lab"}
    )
    config.JupyterHub.custom_scopes.setdefault(
        "custom:lab:view", {"description": "See everybody's GPUs and starts"}
    )
    _append(
        config.JupyterHub,
        "load_roles",
        {"name": "lab-service", "services": [SERVICE], "scopes": _SCOPES},
    )
    # Nobody is these accounts. Where a site sets blocked_users itself, later, somebody may log in,
    # and gets nothing by it: only what was asked for starts there, as it was asked for.
    config.Authenticator.blocked_users = {
        *_said(config.Authenticator, "blocked_users", set()),
        WARMER,
        SMOKER,
    }
    _let_users_in(config.JupyterHub, f"access:services!service={SERVICE}")
    # It counts starts that wait for a GPU, so a queue longer than it (default: 100) would refuse
    # students instead of letting them wait; PyTorchSpawner.starts_at_once does its work.
    config.JupyterHub.setdefault("concurrent_spawn_limit", 0)
    # A hub that restarts must not stop trainings.
    config.JupyterHub.setdefault("cleanup_servers", False)


def _let_users_in(hub: Any, scope: str) -> None:
    """Give the role "user" one scope more; a role that the site defined itself is extended.

    A role must not be defined twice, and one that is defined makes JupyterHub 6 ignore
    extra_user_scopes, so those move into it.
    """
    for role in hub.load_roles:
        if role["name"] == "user":
            role["scopes"] = [*role.get("scopes", ["self"]), scope]
            return
    own: list[str] = sorted(_said(hub, "extra_user_scopes", set()))
    _append(hub, "load_roles", {"name": "user", "scopes": ["self", *own, scope]})


def listen_address(config: Any) -> tuple[str, int]:
    """Return (host, port) on which the configured service listens."""
    service = next(entry for entry in config.JupyterHub.services if entry["name"] == SERVICE)
    parts = urlsplit(service["url"])
    return parts.hostname or "127.0.0.1", parts.port or 80


def _append(section: Any, name: str, *items: Any) -> None:
    setattr(section, name, [*_said(section, name, []), *items])


def _said(section: Any, name: str, default: T) -> T:
    """What the site's configuration says, assigned or added to the default; of ``default``'s type.

    Something that was only ever added to (``c.JupyterHub.services.append(...)``) is a
    ``LazyConfigValue``, which traitlets resolves once it knows the trait.
    """
    there = section.get(name)
    if isinstance(there, LazyConfigValue):
        return there.get_value(default)  # type: ignore[no-any-return]
    return default if there is None else type(default)(there)  # type: ignore[call-arg]
