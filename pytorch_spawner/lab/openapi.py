"""``api/openapi.json``: the API described for programs (OpenAPI 3.1), out of the same schemas.

``tests/lab/test_lab_openapi.py`` compares it with the routes, and asks every one of them thousands
of questions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Final

from pydantic import BaseModel

from pytorch_spawner.core.grant_rows import GrantSpec
from pytorch_spawner.core.usage_report import BY
from pytorch_spawner.lab import answers, schemas
from pytorch_spawner.lab.auth import ADMIN, INSTRUCT, VIEW
from pytorch_spawner.lab.handlers import ApiHandler
from pytorch_spawner.lab.people import KINDS

ANYBODY: Final = "anybody, without a login"
ENTER: Final = "whoever may use the service"
OWNER: Final = f"the server's owner, or {VIEW}"
CACHES: Final = f"{VIEW} or {INSTRUCT}"
COURSE: Final = f"{INSTRUCT}, for the courses that one looks after; {ADMIN} for all"
SERVER: Final = "the server itself, by its own token"

_TEXT: Final = {"type": "string"}
_WHOLE: Final = {"type": "integer"}
_PAGED: Final = {
    "offset": {"type": "integer", "minimum": 0, "maximum": 10**9},
    "limit": {"type": "integer", "minimum": 1, "maximum": 200},
}
_UNKNOWN: Final = {"unknown_users": {"type": "string", "enum": ["allow", ""]}}
_DAY: Final = {"type": "string", "format": "date"}


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


_SERVER_PATHS: Final = ("{user}", "{user}/{server}")
OPERATIONS: Final = (
    Operation("get", "openapi.json", "This description", ANYBODY, answers.Anything),
    Operation("get", "me", "Who is asking, and what they may do", ENTER, answers.Me),
    Operation("get", "gpus", "The GPUs", ENTER, answers.Gpus),
    Operation("get", "gpus/history", "The last quarter of an hour", VIEW, answers.History),
    Operation(
        "patch",
        "gpus/{uuid}",
        "Drain a GPU, return it to service, change its mode or pool",
        ADMIN,
        answers.GpuChanged,
        body=schemas.DeviceChange,
        errors=(400, 404),
        needs_match=True,
    ),
    Operation(
        "get",
        "live",
        "Everything that moves, as server-sent events",
        VIEW,
        answers.Stream,
        errors=(429,),
    ),
    Operation(
        "get",
        "grants",
        "All grants (without the scope: one's own, and why)",
        ENTER,
        answers.Grants,
        query={"user": _TEXT, "format": {"type": "string", "enum": ["json", "csv"]}},
        other="text/csv",
    ),
    Operation(
        "post",
        "grants",
        "Add a grant",
        ADMIN,
        answers.GrantChanged,
        status=201,
        body=GrantSpec,
        query=_UNKNOWN,
        errors=(400, 502),
    ),
    Operation(
        "put",
        "grants",
        "Replace the ledger's grants whole",
        ADMIN,
        answers.GrantsReplaced,
        body=schemas.GrantsBody,
        query=_UNKNOWN,
        errors=(400, 502),
        needs_match=True,
        other="text/csv",
    ),
    Operation(
        "put",
        "grants/{id}",
        "Change a grant",
        ADMIN,
        answers.GrantChanged,
        body=GrantSpec,
        query=_UNKNOWN,
        errors=(400, 404, 502),
        needs_match=True,
    ),
    Operation(
        "delete",
        "grants/{id}",
        "Remove a grant",
        ADMIN,
        answers.Removed,
        errors=(404,),
        needs_match=True,
    ),
    Operation(
        "post",
        "grants/preview",
        "What a change would mean, without doing it",
        ADMIN,
        answers.Preview,
        body=schemas.PreviewBody,
        query=_UNKNOWN,
        errors=(400, 502),
        other="text/csv",
    ),
    Operation(
        "get",
        "people",
        "Everyone, groups and users with their grants",
        VIEW,
        answers.People,
        query={
            "search": _TEXT,
            "kind": {"type": "string", "enum": list(KINDS)},
            "only": {"type": "string", "enum": ["all", "granted"]},
            **_PAGED,
        },
        errors=(400, 502),
    ),
    Operation(
        "get",
        "queue",
        "Who waits (without the scope: one's own servers)",
        ENTER,
        answers.Queue,
        query={"search": _TEXT, **_PAGED},
        errors=(400,),
    ),
    *(
        Operation(
            "patch",
            f"queue/{path}",
            "Raise or lower somebody who waits",
            ADMIN,
            answers.WaitingChanged,
            body=schemas.Boost,
            errors=(400, 404),
            needs_match=True,
        )
        for path in _SERVER_PATHS
    ),
    *(
        Operation(
            "delete",
            f"queue/{path}",
            "Take somebody out of the queue",
            ADMIN,
            answers.Removed,
            errors=(404,),
            needs_match=True,
        )
        for path in _SERVER_PATHS
    ),
    Operation(
        "get",
        "caches",
        "The warm caches and their builds, the newest first",
        CACHES,
        answers.Caches,
    ),
    Operation(
        "get",
        "caches/choices",
        "What a warm cache can be built of, with and for",
        CACHES,
        answers.CacheChoices,
    ),
    Operation(
        "get",
        "caches/{id}",
        "A warm cache with the end of its build's log",
        CACHES,
        answers.OneCache,
    ),
    Operation(
        "post",
        "caches",
        "Ask for a warm cache to be built",
        INSTRUCT,
        answers.CacheChanged,
        status=201,
        body=schemas.CacheBuild,
        errors=(400,),
    ),
    Operation(
        "post",
        "caches/{id}/promote",
        "Give a warm cache to starts from now on",
        INSTRUCT,
        answers.CacheChanged,
        needs_match=True,
    ),
    Operation(
        "post",
        "caches/{id}/rollback",
        "Give starts what was promoted before it",
        INSTRUCT,
        answers.CacheChanged,
        needs_match=True,
    ),
    Operation(
        "post",
        "caches/{id}/stop",
        "Stop a build",
        INSTRUCT,
        answers.CacheChanged,
    ),
    Operation(
        "delete",
        "caches/{id}",
        "Give a warm cache up",
        INSTRUCT,
        answers.Removed,
        needs_match=True,
    ),
    Operation(
        "get",
        "courses",
        "The courses that one looks after, and those that one belongs to",
        ENTER,
        answers.Courses,
    ),
    Operation(
        "get", "courses/schema", "JSON schema of a course's manifest", ENTER, answers.Anything
    ),
    Operation(
        "post",
        "courses",
        "Add a course; whoever does looks after it",
        INSTRUCT,
        answers.CourseChanged,
        status=201,
        body=schemas.CourseBody,
        errors=(400,),
    ),
    Operation("get", "courses/{name}", "A course with its manifest", COURSE, answers.OneCourse),
    Operation(
        "put",
        "courses/{name}",
        "Change a course's manifest",
        COURSE,
        answers.CourseSaved,
        body=schemas.CourseBody,
        needs_match=True,
    ),
    Operation(
        "delete", "courses/{name}", "Remove a course", COURSE, answers.Removed, needs_match=True
    ),
    Operation(
        "get",
        "courses/{name}/manifest",
        "The manifest as the text of a course.yaml",
        COURSE,
        answers.Yaml,
    ),
    Operation(
        "post",
        "courses/{name}/preload",
        "Preload a course: fetch, check, image, smoke test, warm cache",
        COURSE,
        answers.CourseChanged,
    ),
    Operation(
        "post",
        "courses/{name}/publish",
        "Give students what was preloaded; the version is content_etag",
        COURSE,
        answers.CourseChanged,
        needs_match=True,
    ),
    Operation(
        "post",
        "courses/{name}/stop",
        "Stop what is done for a course",
        COURSE,
        answers.CourseChanged,
    ),
    Operation(
        "get",
        "courses/{name}/students",
        "Who has which publication of a course",
        COURSE,
        answers.CourseStudents,
    ),
    Operation(
        "post",
        "courses/{name}/reset",
        "Bring one file of one student back to the course's version; a backup is kept",
        COURSE,
        answers.ResetAsked,
        status=202,
        body=schemas.Reset,
    ),
    Operation(
        "post",
        "courses/{name}/timetable",
        "Take a course's sessions out of a calendar (ICS)",
        COURSE,
        answers.TimetableTaken,
        body=schemas.Calendar,
        needs_match=True,
    ),
    Operation("get", "leases", "Who holds what (or what one holds)", ENTER, answers.Leases),
    *(
        Operation(
            "post",
            f"servers/{path}/stop",
            "Stop a server and tell its student why",
            ADMIN,
            answers.Stopping,
            status=202,
            body=schemas.StopServer,
            errors=(400, 404, 409, 502),
        )
        for path in _SERVER_PATHS
    ),
    *(
        Operation(
            "get",
            f"servers/{path}/events",
            "A server's journal: server-sent events, or with format=json a list",
            OWNER,
            answers.Journal,
            query={
                "start": _TEXT,
                "after": _WHOLE,
                "format": {"type": "string", "enum": ["sse", "json"]},
            },
            errors=(404, 429),
            other="text/event-stream",
        )
        for path in _SERVER_PATHS
    ),
    *(
        Operation(
            "get",
            f"servers/{path}/report",
            "What became of a server's latest start, as a text for the helpdesk, without secrets",
            OWNER,
            answers.Text,
            errors=(404,),
        )
        for path in _SERVER_PATHS
    ),
    *(
        Operation(
            "post",
            f"servers/{path}/events",
            "The agent's report",
            SERVER,
            answers.Accepted,
            body=answers.Report,
            errors=(400, 404, 409, 429),
        )
        for path in _SERVER_PATHS
    ),
    *(
        Operation(
            "get",
            f"servers/{path}/course",
            "What the agent is to do with its course's files",
            SERVER,
            answers.CourseOrders,
            errors=(404, 429),
        )
        for path in _SERVER_PATHS
    ),
    Operation(
        "get",
        "usage",
        "GPU-hours held and busy by user, course or GPU, by day",
        VIEW,
        answers.Usage,
        query={
            "first": _DAY,
            "last": _DAY,
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
        answers.Log,
        query={
            "before": {"type": "integer", "minimum": 0},
            "limit": _PAGED["limit"],
            "search": _TEXT,
        },
        errors=(400,),
    ),
    Operation(
        "post",
        "log/{id}/undo",
        "Take a change back",
        ADMIN,
        answers.Undone,
        errors=(400, 404, 409),
    ),
)
_SAID: Final = {
    400: "What was sent is not usable; every fault is listed",
    401: "Nobody is logged in",
    403: "The scope is missing, or the request does not come from our own page",
    404: "There is no such thing",
    409: "Somebody changed it meanwhile; `now` is what is there",
    428: "If-Match is missing",
    429: "Too many requests",
    502: "The hub does not answer",
    503: "The ledger cannot be read or written",
}


def describe(prefix: str) -> dict[str, Any]:
    """Return the description; ``prefix`` is where the service is mounted."""
    components: dict[str, Any] = {}
    paths: dict[str, Any] = {}
    for operation in OPERATIONS:
        item = paths.setdefault(f"/api/{operation.path}", {})
        item[operation.method] = _describe(operation, components)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "PyTorch lab",
            "version": version("pytorch_spawner"),
            "description": "The lab service: GPUs, grants, queue, usage.",
        },
        "servers": [{"url": prefix.rstrip("/")}],
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "token": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "Authorization",
                    "description": 'A JupyterHub token: "token ...".',
                }
            },
        },
    }


def _describe(operation: Operation, components: dict[str, Any]) -> dict[str, Any]:
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": _path_schema(name)}
        for name in ("uuid", "id", "name", "user", "server")
        if f"{{{name}}}" in operation.path
    ]
    if operation.path.startswith("log/"):
        parameters[0]["schema"] = {"type": "integer", "minimum": 1, "maximum": 10**15}
    parameters += [
        {"name": name, "in": "query", "required": False, "schema": dict(schema)}
        for name, schema in operation.query.items()
    ]
    statuses = {503, *operation.errors}
    if operation.who != ANYBODY:
        statuses |= {401, 403}
    if "{" in operation.path:
        statuses |= {400, 404}
    if operation.needs_match:
        statuses |= {400, 409, 428}
        match = {"name": "If-Match", "in": "header", "required": True, "schema": _TEXT}
        parameters.append(match)
    described: dict[str, Any] = {
        "operationId": _name(operation),
        "summary": operation.summary,
        "description": f"Needs: {operation.who}.",
        "parameters": parameters,
        "responses": {
            str(operation.status): {
                "description": "It worked",
                "content": _content(operation, operation.answer, components),
            },
            **{
                str(status): {
                    "description": _SAID[status],
                    "content": {"application/json": {"schema": _ref(answers.Error, components)}},
                }
                for status in sorted(statuses)
            },
        },
    }
    if operation.who == ANYBODY:
        described["security"] = []
    if operation.body is not None:
        described["requestBody"] = {
            "required": True,
            "content": _content(operation, operation.body, components),
        }
    return described


def _content(
    operation: Operation, model: type[BaseModel], components: dict[str, Any]
) -> dict[str, Any]:
    if model is answers.Yaml:
        return {"application/yaml": {"schema": {"type": "object"}}}
    if model is answers.Text:
        return {"text/plain": {"schema": _TEXT}}
    if model is answers.Stream:
        return {"text/event-stream": {"schema": _TEXT}}
    content: dict[str, Any] = {"application/json": {"schema": _ref(model, components)}}
    # A table is what a GET may answer and what a write may send; events only what a GET answers.
    is_answer = model is operation.answer
    if operation.other and (
        operation.method == "get" if is_answer else operation.other == "text/csv"
    ):
        content[operation.other] = {"schema": _TEXT}
    return content


def _ref(model: type[BaseModel], components: dict[str, Any]) -> dict[str, str]:
    if model.__name__ not in components:
        mode = "validation" if model.__module__ != answers.__name__ else "serialization"
        schema = model.model_json_schema(
            ref_template="#/components/schemas/{model}",
            mode=mode,  # type: ignore[arg-type]
        )
        components.update(schema.pop("$defs", {}))
        components[model.__name__] = schema
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def _path_schema(name: str) -> dict[str, Any]:
    return {"type": "string", "minLength": 1, "maxLength": 64 if name in ("id", "name") else 255}


def _name(operation: Operation) -> str:
    words = operation.path.replace("{", "").replace("}", "").replace("/", "_").replace(".", "_")
    return f"{operation.method}_{words}"


class OpenApi(ApiHandler):
    """``api/openapi.json``."""

    async def get(self) -> None:
        """The description, for anybody: it says nothing about this lab."""
        self.send_json(describe(self.lab.settings.prefix))
