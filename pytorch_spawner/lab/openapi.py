"""``api/openapi.json``: the API described for programs (OpenAPI 3.1), out of the same schemas.

``tests/lab/test_lab_openapi.py`` compares it with the routes, and asks every one of them thousands
of questions.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any, Final

from pydantic import BaseModel

from pytorch_spawner.lab import answers
from pytorch_spawner.lab.answers import common
from pytorch_spawner.lab.handlers import ApiHandler
from pytorch_spawner.lab.operations import (
    caches,
    courses,
    general,
    gpus,
    grants,
    kernels,
    queue,
    records,
    servers,
)
from pytorch_spawner.lab.operations.base import ANYBODY, TEXT, Operation

# The order is the document's.
OPERATIONS: Final[tuple[Operation, ...]] = (
    *general.OPERATIONS,
    *gpus.OPERATIONS,
    *grants.OPERATIONS,
    *queue.OPERATIONS,
    *caches.OPERATIONS,
    *courses.OPERATIONS,
    *servers.OPERATIONS,
    *kernels.OPERATIONS,
    *records.OPERATIONS,
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
        match = {"name": "If-Match", "in": "header", "required": True, "schema": TEXT}
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
                    "content": {"application/json": {"schema": _ref(common.Error, components)}},
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
    if model is common.Yaml:
        return {"application/yaml": {"schema": {"type": "object"}}}
    if model is common.Text:
        return {"text/plain": {"schema": TEXT}}
    if model is common.Stream:
        return {"text/event-stream": {"schema": TEXT}}
    content: dict[str, Any] = {"application/json": {"schema": _ref(model, components)}}
    # A table is what a GET may answer and what a write may send; events only what a GET answers.
    is_answer = model is operation.answer
    if operation.other and (
        operation.method == "get" if is_answer else operation.other == "text/csv"
    ):
        content[operation.other] = {"schema": TEXT}
    return content


def _ref(model: type[BaseModel], components: dict[str, Any]) -> dict[str, str]:
    if model.__name__ not in components:
        is_answer = model.__module__.startswith(f"{answers.__name__}.")
        mode = "serialization" if is_answer else "validation"
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
