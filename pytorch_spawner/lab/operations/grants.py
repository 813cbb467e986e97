"""The operations on grants and on the people who have them."""

from __future__ import annotations

from typing import Final

from pytorch_spawner.core.grant_rows import GrantSpec
from pytorch_spawner.lab import schemas
from pytorch_spawner.lab.answers import common, grants, people
from pytorch_spawner.lab.auth import ADMIN, VIEW
from pytorch_spawner.lab.operations.base import ENTER, PAGED, TEXT, UNKNOWN, Operation
from pytorch_spawner.lab.people import KINDS

OPERATIONS: Final = (
    Operation(
        "get",
        "grants",
        "All grants (without the scope: one's own, and why)",
        ENTER,
        grants.Grants,
        query={"user": TEXT, "format": {"type": "string", "enum": ["json", "csv"]}},
        other="text/csv",
    ),
    Operation(
        "post",
        "grants",
        "Add a grant",
        ADMIN,
        grants.GrantChanged,
        status=201,
        body=GrantSpec,
        query=UNKNOWN,
        errors=(400, 502),
    ),
    Operation(
        "put",
        "grants",
        "Replace the ledger's grants whole",
        ADMIN,
        grants.GrantsReplaced,
        body=schemas.GrantsBody,
        query=UNKNOWN,
        errors=(400, 502),
        needs_match=True,
        other="text/csv",
    ),
    Operation(
        "put",
        "grants/{id}",
        "Change a grant",
        ADMIN,
        grants.GrantChanged,
        body=GrantSpec,
        query=UNKNOWN,
        errors=(400, 404, 502),
        needs_match=True,
    ),
    Operation(
        "delete",
        "grants/{id}",
        "Remove a grant",
        ADMIN,
        common.Removed,
        errors=(404,),
        needs_match=True,
    ),
    Operation(
        "post",
        "grants/preview",
        "What a change would mean, without doing it",
        ADMIN,
        grants.Preview,
        body=schemas.PreviewBody,
        query=UNKNOWN,
        errors=(400, 502),
        other="text/csv",
    ),
    Operation(
        "get",
        "people",
        "Everyone, groups and users with their grants",
        VIEW,
        people.People,
        query={
            "search": TEXT,
            "kind": {"type": "string", "enum": list(KINDS)},
            "only": {"type": "string", "enum": ["all", "granted"]},
            **PAGED,
        },
        errors=(400, 502),
    ),
)
