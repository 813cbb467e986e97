"""The operations on what was used and what was changed."""

from __future__ import annotations

from typing import Final

from pytorch_spawner.core.usage_report import BY
from pytorch_spawner.lab.answers import records
from pytorch_spawner.lab.auth import ADMIN, VIEW
from pytorch_spawner.lab.operations.base import DAY, PAGED, TEXT, Operation

OPERATIONS: Final = (
    Operation(
        "get",
        "usage",
        "GPU-hours held and busy by user, course or GPU, by day",
        VIEW,
        records.Usage,
        query={
            "first": DAY,
            "last": DAY,
            "by": {"type": "string", "enum": list(BY)},
            "format": {"type": "string", "enum": ["json", "csv"]},
        },
        errors=(400,),
        other="text/csv",
    ),
    Operation(
        "get",
        "log",
        "Who changed what, the newest first",
        VIEW,
        records.Log,
        query={
            "before": {"type": "integer", "minimum": 0},
            "limit": PAGED["limit"],
            "search": TEXT,
        },
        errors=(400,),
    ),
    Operation(
        "post",
        "log/{id}/undo",
        "Take a change back",
        ADMIN,
        records.Undone,
        errors=(400, 404, 409),
    ),
)
