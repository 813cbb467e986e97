"""The operations that are about nothing in particular."""

from __future__ import annotations

from typing import Final

from pytorch_spawner.lab.answers import common, people
from pytorch_spawner.lab.operations.base import ANYBODY, ENTER, Operation

OPERATIONS: Final = (
    Operation("get", "openapi.json", "This description", ANYBODY, common.Anything),
    Operation("get", "me", "Who is asking, and what they may do", ENTER, people.Me),
)
