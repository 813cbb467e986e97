"""What the service reads from its environment, in one value; nothing else reads ``os.environ``.

It must not guess: a variable that the hub always sets and that is missing is an error that names
it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from pytorch_spawner.errors import LabError


class BadSettings(LabError):
    """The service was started without what the hub gives it."""

    code = "bad-settings"


@dataclass(frozen=True, slots=True)
class LabSettings:
    """How one service process is set up.

    Attributes:
        hub_id: Which hub's rows of the ledger are ours.
        ledger: SQLAlchemy URL of the ledger. May hold a password: never log it.
        hub_api_url: The hub's REST API, without a slash at the end.
        api_token: The service's own token for it. Never log it.
        reconcile_s: Seconds between two reconciles; 0 turns them off.
        client_kwargs: How to reach the engine, as the spawner's ``client_kwargs``.
        prefix: Where the service is mounted, with a slash at both ends.
        base_url: Where the whole JupyterHub is mounted, with a slash at both ends.
        host: Address to listen on.
        port: Port to listen on.
        warm_cache_gib: Most GiB of all published warm caches together.
        course_dir: Directory for the mirrors of courses' sources.
        course_roots: Directories below which courses may lie that do not come from git.
    """

    hub_id: str
    ledger: str
    hub_api_url: str
    api_token: str
    reconcile_s: float = 30.0
    client_kwargs: Mapping[str, Any] = field(default_factory=dict)
    prefix: str = "/services/lab/"
    base_url: str = "/"
    lifetime_s: float = 15.0
    warn_s: float = 600.0
    host: str = "127.0.0.1"
    port: int = 10110
    warm_cache_gib: float = 20.0
    course_dir: str = "courses"
    course_roots: tuple[str, ...] = ()

    @property
    def hub_prefix(self) -> str:
        """Path of the hub's own pages, with a slash at both ends."""
        return f"{self.base_url}hub/"


def read_settings(env: Mapping[str, str] | None = None) -> LabSettings:
    """Read the settings from the environment that the hub gives to its service.

    Args:
        env: Variables by name; None for the process's own.

    Returns:
        The settings.

    Raises:
        BadSettings: A variable is missing or not of its form; every fault is named.
    """
    env = os.environ if env is None else env
    needed = ("PYTORCH_SPAWNER_LEDGER", "JUPYTERHUB_API_TOKEN", "JUPYTERHUB_SERVICE_URL")
    faults = [f"{name} is not set" for name in needed if not env.get(name)]
    address = urlsplit(env.get("JUPYTERHUB_SERVICE_URL", ""))
    if address.netloc and (address.hostname is None or _port(env) is None):
        faults.append("JUPYTERHUB_SERVICE_URL is not of the form http://host:port")
    reconcile_s = _not_negative(env.get("PYTORCH_SPAWNER_RECONCILE_S", "30"))
    if reconcile_s is None:
        faults.append("PYTORCH_SPAWNER_RECONCILE_S is not a number of seconds, 0 or more")
    warn_s = _not_negative(env.get("PYTORCH_SPAWNER_WARN_S", "600"))
    if warn_s is None:
        faults.append("PYTORCH_SPAWNER_WARN_S is not a number of seconds, 0 or more")
    warm_cache_gib = _not_negative(env.get("PYTORCH_SPAWNER_WARM_CACHE_GIB", "20"))
    if warm_cache_gib is None:
        faults.append("PYTORCH_SPAWNER_WARM_CACHE_GIB is not a number of GiB, 0 or more")
    if faults:
        raise BadSettings(
            f"The lab service cannot start: {'; '.join(faults)}. The hub sets these when it starts "
            "the service itself."
        )
    return LabSettings(
        hub_id=env.get("PYTORCH_SPAWNER_HUB_ID") or "default",
        ledger=env["PYTORCH_SPAWNER_LEDGER"],
        hub_api_url=(env.get("JUPYTERHUB_API_URL") or "http://127.0.0.1:8081/hub/api").rstrip("/"),
        api_token=env["JUPYTERHUB_API_TOKEN"],
        reconcile_s=reconcile_s or 0.0,
        # Ends are looked for often enough to be announced and met within half a minute.
        lifetime_s=min(15.0, reconcile_s or 15.0),
        warn_s=warn_s or 0.0,
        client_kwargs=json.loads(env.get("PYTORCH_SPAWNER_CLIENT_KWARGS") or "{}"),
        prefix=_slashed(env.get("JUPYTERHUB_SERVICE_PREFIX") or "/services/lab/"),
        base_url=_slashed(env.get("JUPYTERHUB_BASE_URL") or "/"),
        host=address.hostname or "127.0.0.1",
        port=_port(env) or 80,
        warm_cache_gib=warm_cache_gib or 0.0,
        course_dir=env.get("PYTORCH_SPAWNER_COURSE_DIR") or "courses",
        course_roots=tuple(
            filter(None, env.get("PYTORCH_SPAWNER_COURSE_ROOTS", "").split(os.pathsep))
        ),
    )


def _port(env: Mapping[str, str]) -> int | None:
    try:
        return urlsplit(env.get("JUPYTERHUB_SERVICE_URL", "")).port
    except ValueError:
        return None


def _not_negative(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if 0 <= number < float("inf") else None


def _slashed(path: str) -> str:
    middle = path.strip("/")
    return f"/{middle}/" if middle else "/"
