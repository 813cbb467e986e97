"""How an operation of the API is described, and the words that more than one of them needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import BaseModel

from pytorch_spawner.lab.auth import ADMIN, INSTRUCT, VIEW

ANYBODY: Final = "anybody, without a login"
ENTER: Final = "whoever may use the service"
OWNER: Final = f"the server's owner, or {VIEW}"
OWN: Final = "the server's owner"
CACHES: Final = f"{VIEW} or {INSTRUCT}"
COURSE: Final = f"{INSTRUCT}, for the courses that one looks after; {ADMIN} for all"
SERVER: Final = "the server itself, by its own token"

TEXT: Final = {"type": "string"}
WHOLE: Final = {"type": "integer"}
PAGED: Final = {
    "offset": {"type": "integer", "minimum": 0, "maximum": 10**9},
    "limit": {"type": "integer", "minimum": 1, "maximum": 200},
}
UNKNOWN: Final = {"unknown_users": {"type": "string", "enum": ["allow", ""]}}
DAY: Final = {"type": "string", "format": "date"}


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one route.

    Attributes:
        method: HTTP method, lower-case.
        path: Below ``api/``, with ``{names}``.
        summary: One sentence.
        who: Which scope it needs.
        answer: Model of the body of a success.
        status: Status of a success.
        body: Model of the request's body; None for none.
        query: Schemas of the query's fields.
        errors: Statuses that say why not, beside 401 and 403.
        needs_match: Whether ``If-Match`` is asked for.
        other: Another content type of the answer, and of the body where there is one.
    """

    method: str
    path: str
    summary: str
    who: str
    answer: type[BaseModel]
    status: int = 200
    body: type[BaseModel] | None = None
    query: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    errors: tuple[int, ...] = ()
    needs_match: bool = False
    other: str = ""


SERVER_PATHS: Final = ("{user}", "{user}/{server}")
