"""Standby kernels: a new notebook takes over a process that has imported PyTorch already.

``extension`` keeps a pool of such processes in the Jupyter server, ``provisioner`` hands them over,
``kernel`` is what runs in them, ``rules`` says when an ordinary kernel is started instead, and
``cells`` is a hook for every kernel of the image. Nothing here imports torch into the server.
"""

from __future__ import annotations

from typing import Any


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    return [{"module": "pytorch_spawner_standby"}]


def _load_jupyter_server_extension(server: Any) -> None:
    from .extension import load

    load(server)
