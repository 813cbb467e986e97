"""The operations on GPUs."""

from __future__ import annotations

from typing import Final

from pytorch_spawner.lab import schemas
from pytorch_spawner.lab.answers import common, gpus
from pytorch_spawner.lab.auth import ADMIN, VIEW
from pytorch_spawner.lab.operations.base import ENTER, Operation

OPERATIONS: Final = (
    Operation("get", "gpus", "The GPUs", ENTER, gpus.Gpus),
    Operation("get", "gpus/history", "The last quarter of an hour", VIEW, gpus.History),
    Operation(
        "patch",
        "gpus/{uuid}",
        "Drain a GPU, return it to service, change its mode or pool",
        ADMIN,
        gpus.GpuChanged,
        body=schemas.DeviceChange,
        errors=(400, 404),
        needs_match=True,
    ),
    Operation(
        "get",
        "live",
        "Everything that moves, as server-sent events",
        VIEW,
        common.Stream,
        errors=(429,),
    ),
)
