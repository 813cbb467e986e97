"""The operations on what runs inside a server."""

from __future__ import annotations

from typing import Final

from pytorch_spawner.lab.answers import kernels
from pytorch_spawner.lab.auth import ADMIN
from pytorch_spawner.lab.operations.base import SERVER_PATHS, Operation

USER_OF: Final = f"the server's owner, or {ADMIN}"

OPERATIONS: Final = (
    *(
        Operation(
            "get",
            f"servers/{path}/memory",
            "What each notebook of a running server holds; looked up when it is asked for",
            USER_OF,
            kernels.HeldMemory,
            errors=(404, 429),
        )
        for path in SERVER_PATHS
    ),
    *(
        Operation(
            "delete",
            f"servers/{path}/kernels/{{id}}",
            "Shut a notebook's kernel down: its variables are lost, its file is not touched",
            USER_OF,
            kernels.KernelStopped,
            errors=(404, 429),
        )
        for path in SERVER_PATHS
    ),
)
