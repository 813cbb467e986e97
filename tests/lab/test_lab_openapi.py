"""``api/openapi.json``: it names what there is, and every answer is one that it describes.

schemathesis asks each operation with data made from the document, half of it as the document
allows and half of it not, and compares every answer with the document. Same seed, same questions.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from lab_containers import KERNEL, put_containers
from lab_seed import (
    CALENDAR,
    COURSE,
    CURRENT,
    FAILED,
    FREE,
    GPUS,
    OTHER,
    QUEUED,
    SHARED,
    WHOLE,
    Prepared,
    add_roles,
    stops_servers,
)
from lab_site import Site, run_site
from test_lab_roles import methods_of, routes_of

from pytorch_spawner.lab import app, openapi
from pytorch_spawner.lab.answers import gpus as answers

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis needs Python 3.11")
checks = pytest.importorskip("schemathesis.specs.openapi.checks")
not_a_server_error = pytest.importorskip("schemathesis.checks").not_a_server_error

CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
CASES = 2_000
EACH = 100
# Without parameters there is one question only.
PLAIN = {
    "get_openapi_json",
    "get_me",
    "get_gpus",
    "get_gpus_history",
    "get_leases",
    "get_caches",
    "get_caches_choices",
    "get_courses",
    "get_courses_schema",
}
NAMES = [f"{one.method} {one.path}" for one in openapi.OPERATIONS if one.path != "live"]
KNOWN = {"uuid": FREE, "id": "cv", "name": "cv", "user": "ana", "server": "thesis"}
# Who waits, whose server can be stopped, and what can be taken back.
KNOWN_OF = {
    "patch queue/{user}": {"user": "eve"},
    "delete queue/{user}": {"user": "eve"},
    "post servers/{user}/stop": {"user": "bo"},
    "delete servers/{user}/kernels/{id}": {"id": KERNEL},
    "delete servers/{user}/{server}/kernels/{id}": {"id": KERNEL},
    "get caches/{id}": {"id": CURRENT},
    "post caches/{id}/promote": {"id": CURRENT},
    "post caches/{id}/rollback": {"id": CURRENT},
    "post caches/{id}/stop": {"id": QUEUED},
    "delete caches/{id}": {"id": CURRENT},
    "post courses/{name}/stop": {"name": "busy"},
}


class Running:
    """A seeded lab in a thread with a loop of its own; its requests come from this thread."""

    def __init__(self, prepared: Prepared, folder: Path) -> None:
        self._prepared, self._folder = prepared, folder
        self._ready, self._loop = threading.Event(), asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self.site: Site
        self.lines = prepared.lines
        self.session = requests.Session()

    def __enter__(self) -> Running:
        self._thread.start()
        assert self._ready.wait(20)
        return self

    def __exit__(self, *_: object) -> None:
        self.session.close()
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(20)

    def _serve(self) -> None:
        self._loop.run_until_complete(self._main())
        self._loop.close()

    async def _main(self) -> None:
        self._over = asyncio.Event()
        ledger = self._prepared.copy(self._folder)
        async for running in run_site(ledger):
            add_roles(running.hub)
            put_containers(running, stops_servers(running.app))
            self.site = running
            self._ready.set()
            await self._over.wait()
        ledger.close()

    def restore(self) -> None:
        """As it was in the beginning."""
        self._prepared.restore(self.site.ledger, self._folder)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return Prepared(tmp_path_factory.mktemp("seeded"))


@pytest.fixture(scope="module")
def lab(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with pytest.MonkeyPatch.context() as patch:
        # A thousand reports in a second are what this is about.
        patch.setattr(app, "EVENTS_A_SECOND", 1e6)
        patch.setattr(app, "EVENTS_BURST", 1e6)
        with Running(prepared, tmp_path_factory.mktemp("running")) as running:
            yield running


@pytest.fixture(scope="module")
def schema(lab: Running) -> Any:
    return schemathesis.openapi.from_url(f"{lab.site.url}api/openapi.json")


@pytest.fixture(scope="module")
def asked() -> Counter[str]:
    """How many questions were asked, by operation."""
    return Counter()


# Made up, these break HTTP itself: tornado refuses the request before any route is looked for.
FRAMING = ("content-length", "transfer-encoding", "expect", "connection", "upgrade")
# So does any of these in a header's value (RFC 9110, 5.5).
CONTROLS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


def operation(schema: Any, name: str) -> Any:
    method, path = name.split()
    return schema[f"/api/{path}"][method.upper()]


def ask(lab: Running, case: Any, *, may_fail: bool = False) -> Any:
    """Send one question and compare the answer with the document."""
    for name in [name for name in case.headers or () if name.lower() in FRAMING]:
        del case.headers[name]
    for name, value in (case.headers or {}).items():
        case.headers[name] = CONTROLS.sub("?", str(value))
    token = "admin"
    if _is_agents(case):
        token = "ana-thesis" if "server" in case.path_parameters else "ana-server"
    elif case.path.endswith("/restart"):
        token = "ana-page"
    answer = case.call(
        base_url=lab.site.url.rstrip("/"),
        session=lab.session,
        headers={"Authorization": f"token {token}"},
        timeout=20,
        allow_redirects=False,
    )
    case.validate_response(answer, checks=CHECKS[1:] if may_fail else CHECKS)
    return answer


def _is_agents(case: Any) -> bool:
    """Whether only a server itself may ask this."""
    is_report = case.method.upper() == "POST" and case.path.endswith("/events")
    return is_report or (case.path.startswith("/api/servers/") and case.path.endswith("/course"))


# -- the document itself --------------------------------------------------------------------


def test_the_document_is_valid_openapi(schema: Any) -> None:
    schema.validate()
    assert schema.raw_schema["openapi"].startswith("3.1.")


def test_it_names_what_the_app_has_and_nothing_else(lab: Running) -> None:
    prefix = lab.site.lab.settings.prefix
    routes = [
        (pattern, handler)
        for pattern, handler in routes_of(lab.site)
        if pattern.pattern.startswith(f"{prefix}api/")
    ]
    there = {
        (pattern.pattern, method.lower())
        for pattern, handler in routes
        for method in methods_of(handler)
    }
    named = []
    for one in openapi.OPERATIONS:
        path = one.path.replace("log/{id}", "log/1")
        path = f"{prefix}api/{re.sub(r'{[a-z]+}', 'x', path)}"
        named.append((next(it.pattern for it, _ in routes if it.fullmatch(path)), one.method))
    assert sorted(named) == sorted(there)


def test_the_document_has_every_operation_once(schema: Any) -> None:
    paths = schema.raw_schema["paths"]
    described = [f"{method} {path}" for path, item in paths.items() for method in item]
    assert sorted(described) == sorted(
        f"{one.method} /api/{one.path}" for one in openapi.OPERATIONS
    )
    ids = [item["operationId"] for methods in paths.values() for item in methods.values()]
    assert len(set(ids)) == len(ids)


METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")


@pytest.mark.parametrize("path", sorted({one.path for one in openapi.OPERATIONS}))
def test_other_methods_are_refused_with_those_that_there_are(lab: Running, path: str) -> None:
    allowed = {one.method.upper() for one in openapi.OPERATIONS if one.path == path}
    filled = path.replace("log/{id}", "log/1").format(**KNOWN)
    for method in set(METHODS) - allowed:
        answer = lab.session.request(
            method,
            f"{lab.site.url}api/{filled}",
            headers={"Authorization": "token admin"},
            timeout=20,
        )
        assert answer.status_code == 405, method
        assert set(answer.headers["Allow"].split(", ")) == allowed
        if method != "HEAD":
            assert answer.json()["code"] == "method-not-allowed"


# -- what works, worked ---------------------------------------------------------------------

SPEC = {"to": "user", "subject": "bob", "gpus": [SHARED], "valid_until": "2030-01-01"}
CSV = "id,to,subject,share\ncv2,group,cv,slot\n"
# What makes each operation succeed: path, query, body.
GOOD: dict[str, list[dict[str, Any]]] = {
    "get openapi.json": [{}],
    "get me": [{}],
    "get gpus": [{}],
    "get gpus/history": [{}],
    "patch gpus/{uuid}": [
        {"path": {"uuid": FREE}, "body": {"drained": ""}},
        {"path": {"uuid": SHARED}, "body": {"mode": "exclusive", "pool": None}},
        {"path": {"uuid": WHOLE}, "body": {"mode": "shared:48", "drained": "Its fan is loud."}},
        {"path": {"uuid": FREE}, "body": {}},
    ],
    "get grants": [{}, {"query": {"user": "ana"}}, {"query": {"format": "csv"}}],
    "post grants": [
        {"body": SPEC},
        {"body": {"to": "user", "subject": "nobody"}, "query": {"unknown_users": "allow"}},
        {"body": {"id": "mine", "weekly_gpu_hours": 2.5, "max_lease_s": 60, "valid_from": 5}},
    ],
    "put grants": [
        {"body": {"grants": [SPEC]}},
        {"body": {"grants": []}},
        {"body": CSV, "media_type": "text/csv"},
    ],
    "put grants/{id}": [{"path": {"id": "cv"}, "body": {"to": "group", "subject": "cv"}}],
    "delete grants/{id}": [{"path": {"id": "cv"}}],
    "post grants/preview": [
        {"body": {"grants": [SPEC], "user": "bob"}},
        {"body": {"put": [SPEC, {"id": "cv", "priority": -1}], "remove": ["old", "none"]}},
        {"body": {"grants": [{"count": 0}, 1, {"to": "user", "subject": "x"}]}},
        {"body": CSV, "media_type": "text/csv"},
        {"body": "id,to\n,,\n", "media_type": "text/csv"},
        {"body": {}},
    ],
    "get people": [
        {},
        {"query": {"kind": "user", "only": "granted", "search": "a", "offset": 0, "limit": 1}},
    ],
    "get queue": [{}, {"query": {"search": "ana/th", "limit": 200}}],
    "patch queue/{user}": [{"path": {"user": "eve"}, "body": {"boost": -100}}],
    "patch queue/{user}/{server}": [
        {"path": {"user": "ana", "server": "thesis"}, "body": {"boost": 100}}
    ],
    "delete queue/{user}": [{"path": {"user": "eve"}}],
    "delete queue/{user}/{server}": [{"path": {"user": "ana", "server": "thesis"}}],
    "get caches": [{}],
    "get caches/choices": [{}],
    "get caches/{id}": [{"path": {"id": CURRENT}}, {"path": {"id": FAILED}}],
    "post caches": [
        {"body": {"suite": "example", "image": "lab/base:1", "course": "cv", "pool": "research"}},
        {"body": {"suite": "example", "image": "lab/base:1", "gpus": 0}},
        {"body": {"again_of": FAILED}},
        {"body": {"again_of": FAILED, "course": "", "image": "lab/base:2"}},
    ],
    "post caches/{id}/promote": [{"path": {"id": CURRENT}}],
    "post caches/{id}/rollback": [{"path": {"id": CURRENT}}],
    "post caches/{id}/stop": [{"path": {"id": QUEUED}}],
    "delete caches/{id}": [{"path": {"id": CURRENT}}, {"path": {"id": FAILED}}],
    "get courses": [{}],
    "get courses/schema": [{}],
    "post courses": [
        {"body": {**COURSE, "name": "new"}},
        {"body": {"yaml": "name: dl\ntitle: T\nsource: {git: 'https://forge.example/dl'}\n"}},
    ],
    "get courses/{name}": [{"path": {"name": "cv"}}, {"path": {"name": "nlp"}}],
    "put courses/{name}": [
        {"path": {"name": "cv"}, "body": {**COURSE, "smoke": {"notebooks": ["a.ipynb"]}}},
        {"path": {"name": "nlp"}, "body": {**OTHER, "members": {}}},
    ],
    "delete courses/{name}": [{"path": {"name": "cv"}}],
    "get courses/{name}/manifest": [{"path": {"name": "cv"}}],
    "post courses/{name}/preload": [{"path": {"name": "cv"}}],
    "post courses/{name}/publish": [{"path": {"name": "cv"}}],
    "post courses/{name}/stop": [{"path": {"name": "busy"}}],
    "get courses/{name}/students": [{"path": {"name": "cv"}}, {"path": {"name": "nlp"}}],
    "post courses/{name}/reset": [{"path": {"name": "cv"}, "body": {"user": "ana", "path": "a"}}],
    "post courses/{name}/timetable": [
        {"path": {"name": "cv"}, "body": {"ics": CALENDAR, "seats": 5}},
        {"path": {"name": "cv"}, "body": {"ics": CALENDAR}},
    ],
    "get leases": [{}],
    "post servers/{user}/stop": [{"path": {"user": "bo"}, "body": {"message": "Sorry."}}],
    "post servers/{user}/{server}/stop": [
        {"path": {"user": "ana", "server": "thesis"}, "body": {}}
    ],
    "post servers/{user}/restart": [{"path": {"user": "ana"}, "body": {}}],
    "post servers/{user}/{server}/restart": [
        {"path": {"user": "ana", "server": "thesis"}, "body": {}}
    ],
    "get servers/{user}/restart": [{"path": {"user": "ana"}}],
    "get servers/{user}/{server}/restart": [{"path": {"user": "ana", "server": "thesis"}}],
    "get servers/{user}/course": [{"path": {"user": "ana"}}],
    "get servers/{user}/{server}/course": [{"path": {"user": "ana", "server": "thesis"}}],
    "get servers/{user}/events": [{"path": {"user": "ana"}, "query": {"format": "json"}}],
    "get servers/{user}/{server}/events": [
        {"path": {"user": "ana", "server": "thesis"}, "query": {"format": "json"}}
    ],
    "get servers/{user}/report": [{"path": {"user": "ana"}}],
    "get servers/{user}/memory": [{"path": {"user": "ana"}}],
    "get servers/{user}/{server}/memory": [{"path": {"user": "ana", "server": "thesis"}}],
    "delete servers/{user}/kernels/{id}": [{"path": {"user": "ana", "id": KERNEL}}],
    "delete servers/{user}/{server}/kernels/{id}": [
        {"path": {"user": "ana", "server": "thesis", "id": KERNEL}}
    ],
    "get servers/{user}/{server}/report": [{"path": {"user": "ana", "server": "thesis"}}],
    "post servers/{user}/events": [
        {"path": {"user": "ana"}, "body": {"v": 1, "events": []}},
        {
            "path": {"user": "ana"},
            "body": {"v": 1, "events": [{"kind": "done", "data": {}}]},
        },
    ],
    "post servers/{user}/{server}/events": [
        {"path": {"user": "ana", "server": "thesis"}, "body": {"v": 1, "events": []}}
    ],
    "get usage": [
        {},
        *({"query": {"by": by}} for by in ("user", "course", "gpu")),
        {"query": {"format": "csv"}},
        {"query": {"first": "2020-01-01", "last": "2020-04-01"}},
    ],
    "get log": [{}, {"query": {"limit": 1}}, {"query": {"before": 3, "search": "ROOT"}}],
    "post log/{id}/undo": [
        {"path": {"id": "drain"}},
        {"path": {"id": "grant"}},
        {"path": {"id": "boost"}},
    ],
}


@pytest.mark.parametrize("name", NAMES)
def test_a_success_of_every_operation_is_as_described(lab: Running, schema: Any, name: str) -> None:
    wanted = next(one for one in openapi.OPERATIONS if name == f"{one.method} {one.path}")
    for good in GOOD[name]:
        lab.restore()
        path = dict(good.get("path", {}))
        if "undo" in name:
            path["id"] = getattr(lab.lines, path["id"])
        case = operation(schema, name).Case(
            path_parameters=path,
            query=good.get("query", {}),
            headers={"If-Match": "*"} if wanted.needs_match else {},
            **{key: good[key] for key in ("body", "media_type") if key in good},
            **({"media_type": "application/json"} if _is_json(good) else {}),
        )
        answer = ask(lab, case)
        assert answer.status_code == wanted.status, answer.text


def _is_json(good: dict[str, Any]) -> bool:
    return "body" in good and "media_type" not in good


def test_the_first_message_of_the_live_stream_holds_rows_as_described(lab: Running) -> None:
    lab.restore()
    with lab.session.get(
        f"{lab.site.url}api/live",
        headers={"Authorization": "token viewer"},
        timeout=20,
        stream=True,
    ) as answer:
        lines = answer.iter_lines()
        while next(lines) != b"event: snapshot":
            pass
        data = json.loads(next(lines).removeprefix(b"data: "))
    assert len([answers.Gpu.model_validate(row) for row in data["gpus"]]) == len(GPUS)
    answers.Meter.model_validate(data["meter"])
    assert data["counts"] == {"gpus": 4, "in_use": 3, "waiting": 2, "needs_you": 1}


# These need no ledger.
ALWAYS = {"get openapi.json", "get gpus/history", "get courses/schema"}


def test_without_the_ledger_every_operation_says_so(
    prepared: Prepared, tmp_path: Path, schema: Any
) -> None:
    with Running(prepared, tmp_path) as lab:
        lab.site.ledger.close()
        for left in tmp_path.glob("ledger.sqlite*"):
            left.write_bytes(b"This was a ledger once." * 1000)
        for name in NAMES:
            good = GOOD[name][0]
            case = operation(schema, name).Case(
                path_parameters={**good.get("path", {}), **({"id": 1} if "undo" in name else {})},
                query=good.get("query", {}),
                headers={"If-Match": "*"},
                **({"body": good["body"]} if "body" in good else {}),
                **({"media_type": "application/json"} if _is_json(good) else {}),
            )
            answer = ask(lab, case, may_fail=True)
            if name not in ALWAYS:
                assert answer.status_code == 503, name
                assert answer.json()["code"] == "ledger-unavailable", name


def test_a_grant_names_nobody_whom_there_can_never_be(lab: Running, schema: Any) -> None:
    lab.restore()
    rows = [{"to": "user", "subject": "bob"}, {"to": "user", "subject": "a\0\u202eb"}]
    case = operation(schema, "put grants").Case(
        query={"unknown_users": "allow"},
        headers={"If-Match": "*"},
        media_type="application/json",
        body={"grants": rows},
    )
    answer = ask(lab, case)
    assert answer.status_code == 400
    assert answer.json()["problems"] == [
        {"row": 2, "field": "subject", "message": "only printable characters"}
    ]


@pytest.mark.parametrize("name", [name for name in NAMES if "{" in name])
def test_a_zero_byte_in_the_path_is_no_address(lab: Running, schema: Any, name: str) -> None:
    """PostgreSQL takes none, and an error of the database stops everybody for a while."""
    method, path = name.split()
    filled = path.replace("log/{id}", "log/1%00")
    for place in re.findall(r"{[a-z]+}", filled):
        filled = filled.replace(place, "ana%00")
    answer = lab.session.request(
        method,
        f"{lab.site.url}api/{filled}",
        headers={"Authorization": "token ana-server" if "events" in path else "token admin"},
        timeout=20,
    )
    assert (answer.status_code, answer.json()["code"]) == (404, "not-found")


# -- thousands of questions -----------------------------------------------------------------


ODD = {
    "half a character": "\\ud800",
    "a zero byte": "\\u0000",
    "a line break": "a\\r\\nb",
    "an override of direction": "\\u202eana",
    "a formula": "=1+1",
    "markup": "<img src=x onerror=alert(1)>",
    "255 characters of four bytes": "\\ud83d\\ude00" * 255,
    "not a number": None,
    "infinity": None,
    "a huge number": None,
}
NUMBERS = {"not a number": "NaN", "infinity": "-Infinity", "a huge number": "9" * 400}
_NEW = '"name": "n", "title": "T", "source": {"git": "https://f.example"}'
ODD_BODIES = [
    ("patch gpus/{uuid}", '{"drained": ODD}'),
    ("patch gpus/{uuid}", '{"pool": ODD}'),
    ("patch gpus/{uuid}", '{"mode": ODD}'),
    ("post grants", '{"to": "user", "subject": ODD}'),
    ("post grants", '{"id": ODD}'),
    ("post grants", '{"images": [ODD]}'),
    ("post grants", '{"valid_from": ODD}'),
    ("post grants", '{"weekly_gpu_hours": ODD}'),
    ("post grants", '{"count": ODD}'),
    ("post grants", "{ODD: 1}"),
    ("put grants", '{"grants": [{"to": "user", "subject": ODD}]}'),
    ("put grants/{id}", '{"to": "user", "subject": ODD}'),
    ("post grants/preview", '{"grants": [{"to": "user", "subject": ODD}]}'),
    ("post grants/preview", '{"put": [{"id": ODD}], "remove": [ODD]}'),
    ("post grants/preview", '{"user": ODD}'),
    ("patch queue/{user}", '{"boost": ODD}'),
    ("post caches", '{"suite": ODD}'),
    ("post caches", '{"again_of": ODD}'),
    ("post caches", '{"suite": "example", "image": ODD}'),
    ("post caches", '{"suite": "example", "image": "x", "course": ODD}'),
    ("post caches", '{"suite": "example", "image": "x", "pool": ODD}'),
    ("post caches", '{"suite": "example", "image": "x", "gpus": ODD}'),
    ("post courses", '{"yaml": ODD}'),
    ("post courses", '{"name": ODD, "title": "T", "source": {"git": "https://f.example"}}'),
    ("post courses", '{"name": "n", "title": ODD, "source": {"git": "https://f.example"}}'),
    ("post courses", '{"name": "n", "title": "T", "source": {"git": ODD}}'),
    ("put courses/{name}", '{"name": "cv", "title": "T", "source": {"directory": ODD}}'),
    ("post courses", f'{{{_NEW}, "warmup": {{"a": ODD}}}}'),
    ("post courses", f'{{{_NEW}, "warmup": {{ODD: 1}}}}'),
    ("post courses", f'{{{_NEW}, "environment": {{"A": ODD}}}}'),
    ("post courses", f'{{{_NEW}, "members": {{"users": [ODD]}}}}'),
    ("post courses", f'{{{_NEW}, "request": {{"gpus": ODD}}}}'),
    ("post courses/{name}/reset", '{"user": ODD, "path": "a"}'),
    ("post courses/{name}/reset", '{"user": "ana", "path": ODD}'),
    ("post courses/{name}/timetable", '{"ics": ODD}'),
    ("post courses/{name}/timetable", '{"ics": "BEGIN:VCALENDAR", "seats": ODD}'),
    ("post servers/{user}/stop", '{"message": ODD}'),
    ("post servers/{user}/events", '{"v": 1, "start": ODD, "events": []}'),
    ("post servers/{user}/events", '{"v": 1, "events": [{"kind": "done", "data": {"x": ODD}}]}'),
]


# A key of a JSON object is a text, so a number can only be a value.
ODD_QUESTIONS = [
    pytest.param(name, body, what, id=f"{name} {body} {what}")
    for name, body in ODD_BODIES
    for what in ODD
    if "{ODD" not in body or ODD[what] is not None
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "body", "what"), ODD_QUESTIONS)
def test_odd_values_are_refused_or_can_be_read_again(
    lab: Running, schema: Any, name: str, body: str, what: str
) -> None:
    value = f'"{ODD[what]}"' if ODD[what] is not None else NUMBERS[what]
    lab.restore()
    path = name.split()[1]
    named = {**KNOWN, **KNOWN_OF.get(name, {})}
    case = operation(schema, name).Case(
        path_parameters={key: named[key] for key in re.findall(r"{([a-z]+)}", path)},
        query={"unknown_users": "allow"} if "grants" in name else {},
        headers={"If-Match": "*", "Content-Type": "application/json"},
        media_type="application/json",
        body=body.replace("ODD", value).encode(),
    )
    answer = ask(lab, case)
    assert answer.status_code < 300 or 400 <= answer.status_code < 500, answer.text
    if answer.status_code < 300:
        read_all(lab, schema)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_answer_is_as_described(
    lab: Running, schema: Any, asked: Counter[str], name: str
) -> None:
    it = operation(schema, name)
    label = it.definition.raw["operationId"]
    wanted = next(one for one in openapi.OPERATIONS if name == f"{one.method} {one.path}")
    ways = [schemathesis.GenerationMode.POSITIVE]
    if label not in PLAIN:
        ways.append(schemathesis.GenerationMode.NEGATIVE)
    known = {**KNOWN, **KNOWN_OF.get(name, {})}
    if "undo" in name:
        known["id"] = lab.lines.drain

    for way in ways:

        @seed(4)
        @settings(
            max_examples=1 if label in PLAIN else EACH // len(ways),
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(it.as_strategy(generation_mode=way), st.booleans(), st.booleans())
        def question(case: Any, is_there: bool, is_current: bool) -> None:
            # Half of the questions are about something that is there.
            if is_there and case.path_parameters:
                case.path_parameters = {key: known[key] for key in case.path_parameters}
            if wanted.needs_match and is_current:
                case.headers["If-Match"] = "*"
            if name.startswith("get servers/"):
                # The stream would not end.
                case.query = {**(case.query or {}), "format": "json"}
            asked[label] += 1
            # ``ask`` compares it with the document; a 5xx is a breach even where one is described.
            answer = ask(lab, case)
            assert answer.status_code < 500, answer.text
            if wanted.method != "get" and answer.status_code < 300:
                read_all(lab, schema)
                if wanted.method == "delete" or "undo" in name:
                    lab.restore()

        lab.restore()
        question()
    assert asked[label] > 0, "no question was asked"


def read_all(lab: Running, schema: Any) -> None:
    """What was written can be read, whatever it was."""
    for path in ("gpus", "grants", "people", "queue", "log", "usage", "courses"):
        assert ask(lab, operation(schema, f"get {path}").Case()).status_code == 200
    table = operation(schema, "get grants").Case(query={"format": "csv"})
    assert ask(lab, table).status_code == 200


@pytest.mark.slow
def test_thousands_of_questions_were_asked(asked: Counter[str]) -> None:
    if len(asked) < len(NAMES):
        pytest.skip("only some of the operations were asked")
    assert sum(asked.values()) >= CASES, asked
