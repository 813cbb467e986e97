"""The operations on warm caches."""

from __future__ import annotations

from typing import Final

from pytorch_spawner.lab import schemas
from pytorch_spawner.lab.answers import caches, common
from pytorch_spawner.lab.auth import INSTRUCT
from pytorch_spawner.lab.operations.base import CACHES, Operation

OPERATIONS: Final = (
    Operation(
        "get",
        "caches",
        "The warm caches and their builds, the newest first",
        CACHES,
        caches.Caches,
    ),
    Operation(
        "get",
        "caches/choices",
        "What a warm cache can be built of, with and for",
        CACHES,
        caches.CacheChoices,
    ),
    Operation(
        "get",
        "caches/{id}",
        "A warm cache with the end of its build's log",
        CACHES,
        caches.OneCache,
    ),
    Operation(
        "post",
        "caches",
        "Ask for a warm cache to be built",
        INSTRUCT,
        caches.CacheChanged,
        status=201,
        body=schemas.CacheBuild,
        errors=(400,),
    ),
    Operation(
        "post",
        "caches/{id}/promote",
        "Give a warm cache to starts from now on",
        INSTRUCT,
        caches.CacheChanged,
        needs_match=True,
    ),
    Operation(
        "post",
        "caches/{id}/rollback",
        "Give starts what was promoted before it",
        INSTRUCT,
        caches.CacheChanged,
        needs_match=True,
    ),
    Operation(
        "post",
        "caches/{id}/stop",
        "Stop a build",
        INSTRUCT,
        caches.CacheChanged,
    ),
    Operation(
        "delete",
        "caches/{id}",
        "Give a warm cache up",
        INSTRUCT,
        common.Removed,
        needs_match=True,
    ),
)
