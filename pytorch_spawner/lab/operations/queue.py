"""The operations on those who wait."""

from __future__ import annotations

from typing import Final

from pytorch_spawner.lab import schemas
from pytorch_spawner.lab.answers import common, queue
from pytorch_spawner.lab.auth import ADMIN
from pytorch_spawner.lab.operations.base import ENTER, PAGED, SERVER_PATHS, TEXT, Operation

OPERATIONS: Final = (
    Operation(
        "get",
        "queue",
        "Who waits (without the scope: one's own servers)",
        ENTER,
        queue.Queue,
        query={"search": TEXT, **PAGED},
        errors=(400,),
    ),
    *(
        Operation(
            "patch",
            f"queue/{path}",
            "Raise or lower somebody who waits",
            ADMIN,
            queue.WaitingChanged,
            body=schemas.Boost,
            errors=(400, 404),
            needs_match=True,
        )
        for path in SERVER_PATHS
    ),
    *(
        Operation(
            "delete",
            f"queue/{path}",
            "Take somebody out of the queue",
            ADMIN,
            common.Removed,
            errors=(404,),
            needs_match=True,
        )
        for path in SERVER_PATHS
    ),
)
