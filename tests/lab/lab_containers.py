"""Containers that say what their notebooks hold, for a service without an engine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pytorch_spawner.adapters.inside import NotRunning

if TYPE_CHECKING:
    from lab_site import Site

KERNEL = "0c5a1b4e-0000-4000-8000-000000000003"
IDLE = "0c5a1b4e-0000-4000-8000-000000000007"


def kernel(id: str = KERNEL, path: str = "week-1/cv-03.ipynb", **more: Any) -> dict[str, Any]:  # noqa: A002
    """A kernel as the agent prints it: busy, one process, not on a GPU."""
    said = {"id": id, "path": path, "name": "python3", "state": "busy", "idle_s": None}
    return {**said, "pids": [54], "memory_mib": 2150, "uses_gpu": False, **more}


def printed(*kernels: dict[str, Any], **more: Any) -> str:
    """What the agent prints."""
    said = {"v": 1, "kernels": list(kernels), "others": [], "gpu": None, "trouble": ""}
    return json.dumps({**said, **more}) + "\n"


class Containers:
    """Answers like the engine with the agents in its containers.

    Attributes:
        said: What each server's agent prints; "" for any other.
        asked: Every question.
        stopped: Kernels that were shut down, as "user/server kernel".
        error: Raised instead of an answer.
    """

    def __init__(self, stopped: list[str] | None = None, *, none: bool = False) -> None:
        self.said: dict[str, str] = {} if none else {"": printed(kernel())}
        self.asked: list[tuple[str, str, tuple[str, ...]]] = []
        self.stopped: list[str] = [] if stopped is None else stopped
        self.error: Exception | None = None

    def __call__(self, username: str, servername: str, arguments: Sequence[str]) -> str:
        self.asked.append((username, servername, tuple(arguments)))
        if self.error is not None:
            raise self.error
        server = f"{username}/{servername}"
        if arguments[:1] == ("--stop",):
            said = json.loads(self.said.get(server, self.said.get("", "{}")))
            if all(one["id"] != arguments[1] for one in said["kernels"]):
                return '{"v": 1, "status": 404}'
            self.stopped.append(f"{server} {arguments[1]}")
            return '{"v": 1, "status": 204}'
        if server not in self.said and "" not in self.said:
            raise NotRunning("This server does not run (any more).")
        return self.said.get(server, self.said.get("", ""))


def put_containers(site: Site, stopped: list[str] | None = None) -> Containers:
    """Give a site such containers."""
    containers = Containers(stopped)
    site.lab.kernels.ask = containers
    return containers
