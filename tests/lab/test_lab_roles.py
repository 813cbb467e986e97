"""Who may do what: every route and method of the app, asked by every kind of person and program.

The table below is the statement; a route that has no row in it fails
``test_every_route_and_method_has_a_row``.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from lab_containers import KERNEL, put_containers
from lab_fakes import ENTER, HUB
from lab_seed import (
    CALENDAR,
    COURSE,
    FREE,
    OTHER,
    ROLES,
    Prepared,
    add_roles,
    contents,
    stops_servers,
)
from lab_site import Answer, Site, run_site
from tornado.web import RequestHandler

from pytorch_spawner.lab import app, live, rights, stream
from pytorch_spawner.lab.answers.common import Error

# One line a route and method; columns in the order of ROLES. Paths are below /services/lab/.
TABLE = """
                               nobody ana  bo inst view admin hubad narrow serv anas-server
GET    /                          302 200 302  302  302   302   302    302  302  403
GET    oauth_callback             400 400 400  400  400   400   400    400  400  400
GET    static/lab.css             200 200 200  200  200   200   200    200  200  200
HEAD   static/lab.css             200 200 200  200  200   200   200    200  200  200
GET    health                     200 200 200  200  200   200   200    200  200  200
GET    metrics                    401 403 403  403  200   200   200    403  200  403
GET    servers/ana                302 200 403  403  200   200   200    403  200  403
GET    servers/ana/thesis         302 200 403  403  200   200   200    403  200  403
GET    gpus                       302 403 403  403  200   200   200    403  200  403
GET    grants                     302 403 403  403  200   200   200    403  200  403
GET    queue                      302 403 403  403  200   200   200    403  200  403
GET    caches                     302 403 403  200  200   200   200    403  200  403
GET    courses                    302 200 200  200  200   200   200    200  200  403
GET    go/cv                      302 200 403  302  403   403   403    403  403  403
GET    go/cv/week-1/cnn.ipynb     302 200 403  302  403   403   403    403  403  403
GET    go/none                    302 404 404  404  404   404   404    404  404  403
GET    usage                      302 403 403  403  200   200   200    403  200  403
GET    log                        302 403 403  403  200   200   200    403  200  403
GET    api/openapi.json           200 200 200  200  200   200   200    200  200  200
GET    api/me                     401 200 200  200  200   200   200    200  200  403
GET    api/live                   401 403 403  403  200   200   200    403  200  403
GET    api/gpus                   401 200 200  200  200   200   200    200  200  403
GET    api/gpus/history           401 403 403  403  200   200   200    403  200  403
PATCH  api/gpus/{free}            401 403 403  403  403   200   200    403  200  403
GET    api/grants                 401 200 200  200  200   200   200    200  200  403
POST   api/grants                 401 403 403  403  403   201   201    403  201  403
PUT    api/grants                 401 403 403  403  403   200   200    403  200  403
POST   api/grants/preview         401 403 403  403  403   200   200    403  200  403
PUT    api/grants/cv              401 403 403  403  403   200   200    403  200  403
DELETE api/grants/cv              401 403 403  403  403   200   200    403  200  403
GET    api/people                 401 403 403  403  200   200   200    403  200  403
GET    api/queue                  401 200 200  200  200   200   200    200  200  403
PATCH  api/queue/eve              401 403 403  403  403   200   200    403  200  403
DELETE api/queue/eve              401 403 403  403  403   200   200    403  200  403
PATCH  api/queue/ana/thesis       401 403 403  403  403   200   200    403  200  403
DELETE api/queue/ana/thesis       401 403 403  403  403   200   200    403  200  403
GET    api/usage                  401 403 403  403  200   200   200    403  200  403
GET    api/log                    401 403 403  403  200   200   200    403  200  403
POST   api/log/{drain}/undo       401 403 403  403  403   200   200    403  200  403
GET    api/caches                 401 403 403  200  200   200   200    403  200  403
GET    api/caches/choices         401 403 403  200  200   200   200    403  200  403
GET    api/caches/c0ffee000001    401 403 403  200  200   200   200    403  200  403
POST   api/caches                 401 403 403  403  403   201   201    403  201  403
POST   api/caches/c0ffee000001/promote  401 403 403 403 403 200 200    403  200  403
POST   api/caches/c0ffee000001/rollback 401 403 403 403 403 200 200    403  200  403
POST   api/caches/c0ffee000002/stop     401 403 403 200 403 200 200    403  200  403
DELETE api/caches/c0ffee000001    401 403 403  403  403   200   200    403  200  403
GET    api/courses                401 200 200  200  200   200   200    200  200  403
GET    api/courses/schema         401 200 200  200  200   200   200    200  200  403
POST   api/courses                401 403 403  201  403   201   201    403  201  403
GET    api/courses/cv             401 403 403  200  403   200   200    403  200  403
GET    api/courses/nlp            401 403 403  404  403   200   200    403  200  403
PUT    api/courses/cv             401 403 403  200  403   200   200    403  200  403
PUT    api/courses/nlp            401 403 403  404  403   200   200    403  200  403
DELETE api/courses/cv             401 403 403  200  403   200   200    403  200  403
DELETE api/courses/nlp            401 403 403  404  403   200   200    403  200  403
GET    api/courses/cv/manifest    401 403 403  200  403   200   200    403  200  403
GET    api/courses/nlp/manifest   401 403 403  404  403   200   200    403  200  403
GET    api/courses/cv/students    401 403 403  200  403   200   200    403  200  403
GET    api/courses/nlp/students   401 403 403  404  403   200   200    403  200  403
POST   api/courses/cv/preload     401 403 403  200  403   200   200    403  200  403
POST   api/courses/nlp/preload    401 403 403  404  403   200   200    403  200  403
POST   api/courses/cv/publish     401 403 403  200  403   200   200    403  200  403
POST   api/courses/nlp/publish    401 403 403  404  403   400   400    403  400  403
POST   api/courses/cv/stop        401 403 403  400  403   400   400    403  400  403
POST   api/courses/nlp/stop       401 403 403  404  403   400   400    403  400  403
POST   api/courses/cv/reset       401 403 403  202  403   202   202    403  202  403
POST   api/courses/nlp/reset      401 403 403  404  403   400   400    403  400  403
POST   api/courses/cv/timetable   401 403 403  200  403   200   200    403  200  403
POST   api/courses/nlp/timetable  401 403 403  404  403   200   200    403  200  403
POST   api/caches/c0ffee000004/stop 401 403 403 404 403   400   400    403  400  403
GET    api/caches/c0ffee000004    401 403 403  404  200   200   200    403  200  403
GET    api/leases                 401 200 200  200  200   200   200    200  200  403
POST   api/servers/bo/stop        401 403 403  403  403   202   202    403  202  403
POST   api/servers/ana/thesis/stop 401 403 403 403  403   202   202    403  202  403
POST   api/servers/ana/restart    401 202 403  403  403   403   403    403  403  403
POST   api/servers/ana/thesis/restart 401 202 403 403 403 403   403    403  403  403
GET    api/servers/ana/restart    401 200 403  403  403   403   403    403  403  403
GET    api/servers/ana/thesis/restart 401 200 403 403 403 403   403    403  403  403
GET    api/servers/ana/events     401 200 403  403  200   200   200    403  200  200
POST   api/servers/ana/events     401 403 403  403  403   403   403    403  403  200
GET    api/servers/ana/thesis/events 401 200 403 403 200  200   200    403  200  403
POST   api/servers/ana/thesis/events 401 403 403 403 403  403   403    403  403  403
GET    api/servers/ana/report     401 200 403  403  200   200   200    403  200  200
GET    api/servers/ana/thesis/report 401 200 403 403 200  200   200    403  200  403
GET    api/servers/ana/course     401 403 403  403  403   403   403    403  403  200
GET    api/servers/ana/thesis/course 401 403 403 403 403  403   403    403  403  403
GET    api/servers/ana/memory     401 200 403  403  403   200   200    403  200  200
GET    api/servers/ana/thesis/memory 401 200 403 403 403  200   200    403  200  403
DELETE api/servers/ana/kernels/{kernel} 401 200 403 403 403 200 200    403  200  200
DELETE api/servers/ana/thesis/kernels/{kernel} 401 200 403 403 403 200 200 403 200 403
GET    api/nothing                404 404 404  404  404   404   404    404  404  404
"""
BODIES: dict[str, Any] = {
    "PATCH api/gpus/{free}": {"drained": "It smells."},
    "POST api/grants": {"to": "user", "subject": "bob"},
    "PUT api/grants": {"grants": []},
    "POST api/grants/preview": {"grants": []},
    "PUT api/grants/cv": {"to": "group", "subject": "cv", "priority": 7},
    "PATCH api/queue/eve": {"boost": 9},
    "PATCH api/queue/ana/thesis": {"boost": 9},
    "POST api/caches": {"suite": "example", "image": "lab/base:1"},
    "POST api/courses": {**COURSE, "name": "new"},
    "PUT api/courses/cv": {**COURSE, "title": "Vision"},
    "PUT api/courses/nlp": {**OTHER, "title": "Words"},
    "POST api/courses/cv/reset": {"user": "ana", "path": "week-1/cnn.ipynb"},
    "POST api/courses/nlp/reset": {"user": "bo", "path": "week-1/cnn.ipynb"},
    "POST api/courses/cv/timetable": {"ics": CALENDAR, "seats": 20},
    "POST api/courses/nlp/timetable": {"ics": CALENDAR},
    "POST api/servers/bo/stop": {"message": "Maintenance."},
    "POST api/servers/ana/thesis/stop": {},
    "POST api/servers/ana/restart": {},
    "POST api/servers/ana/thesis/restart": {},
    "POST api/servers/ana/events": {"v": 1, "events": []},
    "POST api/servers/ana/thesis/events": {"v": 1, "events": []},
}
# What a success of these writes does not change: the first only looks, the others say nothing.
CHANGES_NOTHING = ("POST api/grants/preview", "POST api/servers/ana/events")
WRITES = ("POST", "PUT", "PATCH", "DELETE")


@dataclass(frozen=True)
class Cell:
    """One request of one role, and the status that it gets."""

    method: str
    path: str
    role: str
    status: int

    @property
    def row(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def is_write(self) -> bool:
        return self.method in WRITES

    def __str__(self) -> str:
        return f"{self.role}: {self.row} is answered {self.status}"


def cells() -> list[Cell]:
    found = []
    for line in TABLE.strip().splitlines()[1:]:
        method, path, *statuses = line.split()
        found += [
            Cell(method, path, role, int(status))
            for role, status in zip(ROLES, statuses, strict=True)
        ]
    return found


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return Prepared(tmp_path_factory.mktemp("seeded"))


@pytest_asyncio.fixture
async def site(prepared: Prepared, tmp_path: Path) -> AsyncIterator[Site]:
    ledger = prepared.copy(tmp_path)
    async for running in run_site(ledger):
        add_roles(running.hub)
        yield running
    ledger.close()


async def ask(site: Site, cell: Cell, lines: Any) -> Answer:
    """Send the cell's request; of a stream only its head is read."""
    path = "" if cell.path == "/" else cell.path.format(kernel=KERNEL, free=FREE, drain=lines.drain)
    if path.endswith("/events"):
        path += "?format=json"
    headers = {"If-Match": "*"}
    if token := ROLES[cell.role]:
        headers["Authorization"] = f"token {token}"
    body = json.dumps(BODIES[cell.row]).encode() if cell.row in BODIES else None
    async with site.http.request(
        cell.method, site.url + path, data=body, headers=headers, allow_redirects=False
    ) as answer:
        is_stream = answer.content_type == "text/event-stream"
        return Answer(answer.status, dict(answer.headers), "" if is_stream else await answer.text())


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared(
    prepared: Prepared, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Site, Path, list[str]]]:
    """One service for all cells: most of them change nothing, and that is asserted."""
    folder = tmp_path_factory.mktemp("shared")
    ledger = prepared.copy(folder)
    async for running in run_site(ledger):
        add_roles(running.hub)
        stopped = stops_servers(running.app)
        put_containers(running, stopped)
        yield running, folder, stopped
    ledger.close()


@pytest.mark.slow
@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("cell", cells(), ids=str)
async def test_cell(shared: tuple[Site, Path, list[str]], prepared: Prepared, cell: Cell) -> None:
    site, folder, stopped = shared
    site.lab.refusals._buckets.clear()
    before = contents(folder)
    log_before = site.ledger.changes(HUB)

    answer = await ask(site, cell, prepared.lines)

    assert answer.status == cell.status, answer.text
    after, log = contents(folder), site.ledger.changes(HUB)
    if cell.status < 400 and cell.is_write:
        assert (after != before or bool(stopped)) == (cell.row not in CHANGES_NOTHING)
        assert [line for line in log if line.what == "refused"] == [
            line for line in log_before if line.what == "refused"
        ]
        stopped.clear()
        prepared.restore(site.ledger, folder)
        return
    new = log[: len(log) - len(log_before)]
    if new:
        prepared.restore(site.ledger, folder)
    assert {**after, "changes": before["changes"]} == before
    assert stopped == []
    if cell.status == 403 and cell.is_write:
        (line,) = new
        name = site.hub.models[ROLES[cell.role]]["name"]
        path = cell.path.format(kernel=KERNEL, free=FREE, drain=prepared.lines.drain)
        assert (line.by, line.what, line.subject) == (name, "refused", f"{cell.method} {path}")
        assert line.after["code"] == "forbidden"
    else:
        assert new == ()
    if cell.status >= 400 and (cell.path.startswith("api/") or cell.path == "metrics"):
        error = Error.model_validate(answer.json)
        known = {403: ("forbidden",), 404: ("not-found", "no-such-course", "no-such-cache")}
        assert error.code in {400: ("bad-request",), **known}.get(cell.status, (error.code,))
        assert error.message.endswith(".")


def routes_of(site: Site) -> list[tuple[re.Pattern[str], type[RequestHandler]]]:
    """The app's own routes, without those of the fake hub beside it."""
    rules = app.make_app(site.lab).wildcard_router.rules
    return [(rule.matcher.regex, rule.target) for rule in rules]


def methods_of(handler: type[RequestHandler]) -> set[str]:
    return {
        name
        for name in RequestHandler.SUPPORTED_METHODS
        if getattr(handler, name.lower()) is not getattr(RequestHandler, name.lower())
    }


async def test_every_route_and_method_has_a_row(site: Site) -> None:
    rows = set()
    for cell in cells():
        path = "" if cell.path == "/" else cell.path.format(kernel=KERNEL, free=FREE, drain=1)
        matching = [
            pattern.pattern
            for pattern, _ in routes_of(site)
            if pattern.fullmatch(f"{site.lab.settings.prefix}{path}")
        ]
        rows.add((next(iter(matching), "none"), cell.method))
    wanted = {
        (pattern.pattern, method)
        for pattern, handler in routes_of(site)
        for method in methods_of(handler)
    }
    assert rows == wanted | {("none", "GET")}
    assert len({pattern for pattern, _ in wanted}) > 25, "the app's routes were not found"


async def test_everybody_is_sent_where_they_can_go(site: Site) -> None:
    for role, end in (
        ("other student", "servers/bo/"),
        ("instructor", "servers/ida/"),
        ("viewer", "gpus"),
        ("admin", "gpus"),
        ("JupyterHub admin", "gpus"),
        ("JupyterHub admin's narrow token", "servers/root/"),
    ):
        answer = await site.get("", token=ROLES[role])
        assert answer.headers["Location"] == f"/services/lab/{end}", role


async def test_what_one_student_sees_names_no_other(site: Site) -> None:
    for path in ("api/me", "api/gpus", "api/queue", "api/leases", "api/grants"):
        text = (await site.get(path, token="bo-page")).text
        for name in ('"ana"', '"cyd"', '"eve"', "ana ", "thesis"):
            assert name not in text, (path, name)
    assert (await site.get("api/grants?user=ana", token="bo-page")).status == 403
    narrowed = (await site.get("api/queue?search=ana", token="bo-page")).json
    assert (narrowed["total"], narrowed["waiting"]) == (0, [])


async def test_who_may_only_open_the_hubs_admin_page_is_no_admin(site: Site) -> None:
    site.hub.add("helper", "hal", ENTER, "admin-ui", "list:users")
    assert (await site.get("api/people", token="helper")).status == 403
    answer = await site.send("POST", "api/grants", {"to": "everyone"}, token="helper")
    assert (answer.status, answer.code) == (403, "forbidden")


async def test_a_script_that_is_refused_a_thousand_times_is_a_few_lines(site: Site) -> None:
    before = len(site.ledger.changes(HUB, 1000))
    for _ in range(40):
        answer = await site.send("PUT", "api/grants", {"grants": []}, token="ana-page")
        assert answer.status == 403
    assert len(site.ledger.changes(HUB, 1000)) - before == app.REFUSALS_BURST
    # Another's first is written all the same.
    await site.send("PUT", "api/grants", {"grants": []}, token="bo-page")
    assert site.ledger.changes(HUB, 1)[0].by == "bo"


# -- browsers -------------------------------------------------------------------------------

SAME = {"Sec-Fetch-Mode": "cors", "Sec-Fetch-Site": "same-origin"}


class Browser:
    """A browser with a login: the cookie of the service, and what its page was told."""

    def __init__(self, site: Site, session: aiohttp.ClientSession) -> None:
        self._site, self._session = site, session
        self.xsrf = ""

    async def log_in(self, token: str) -> None:
        self._site.hub.browser_user_token = token
        async with self._session.get(f"{self._site.url}servers/ana/", max_redirects=5) as page:
            text = await page.text()
        self.xsrf = re.search(r"&#34;xsrf&#34;: &#34;([^&]+)&#34;", text)[1]

    async def send(self, method: str, path: str, value: Any = None, **headers: str) -> Answer:
        named = {key.replace("_", "-"): it for key, it in headers.items()}
        async with self._session.request(
            method,
            self._site.url + path,
            data=None if value is None else json.dumps(value),
            headers={"If-Match": "*", **SAME, **named},
            allow_redirects=False,
        ) as answer:
            return Answer(answer.status, dict(answer.headers), await answer.text())

    def open(self, path: str) -> Any:
        return self._session.get(self._site.url + path, headers={**SAME, "X-XSRFToken": self.xsrf})


@pytest_asyncio.fixture
async def browser(site: Site) -> AsyncIterator[Browser]:
    # yarl's jar keeps cookies of an address only when told that it may
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        running = Browser(site, session)
        await running.log_in("admin")
        yield running


GRANT = {"to": "user", "subject": "bob"}


async def test_an_admins_page_writes_by_cookie_with_its_xsrf_token(
    site: Site, browser: Browser
) -> None:
    answer = await browser.send("POST", "api/grants", GRANT, X_XSRFToken=browser.xsrf)
    assert answer.status == 201, answer.text
    assert site.ledger.changes(HUB, 1)[0].by == "adam"


async def test_a_page_of_a_students_server_reads_nothing_and_finds_no_token(
    site: Site, browser: Browser
) -> None:
    """With all servers below one address it has the same origin, and the admin's cookie."""
    before = site.ledger.changes(HUB)
    # The last two take no cookie at all.
    open_to_all = (
        "api/openapi.json",
        "api/nothing",
        "api/servers/ana/course",
        "api/servers/ana/thesis/course",
    )
    paths = {one.path for one in cells() if one.method == "GET" and one.path.startswith("api/")}
    for path in sorted(paths - set(open_to_all)):
        answer = await browser.send("GET", path, Referer=f"{site.url}user/mallory/evil.html")
        assert (answer.status, answer.code) == (403, "xsrf"), path
        assert browser.xsrf not in answer.text
    assert site.ledger.changes(HUB) == before


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "xsrf"),
        ({"X_XSRFToken": ""}, "xsrf"),
        ({"X_XSRFToken": "2|guessed|guessed|1"}, "xsrf"),
        ({"X_XSRFToken": "of another browser"}, "xsrf"),
        ({"Sec_Fetch_Site": "cross-site", "Origin": "https://evil.example"}, "foreign-origin"),
        (
            {"X_XSRFToken": "ours", "Sec_Fetch_Site": "cross-site", "Origin": "https://a.example"},
            "foreign-origin",
        ),
        ({"X_XSRFToken": "ours", "Sec_Fetch_Site": "", "Origin": "null"}, "foreign-origin"),
        (
            {"X_XSRFToken": "ours", "Sec_Fetch_Site": "same-site", "Origin": "http://127.0.0.1:1"},
            "foreign-origin",
        ),
    ],
    ids=[
        "no token",
        "an empty token",
        "a guessed token",
        "a token of another login",
        "another site without a token",
        "another site with a token",
        "a sandboxed frame or an old browser",
        "another port of the same machine",
    ],
)
@pytest.mark.parametrize("write", ["POST api/grants", "DELETE api/grants/cv"])
async def test_what_another_site_makes_a_browser_send_is_refused_and_written_down(
    site: Site, browser: Browser, tmp_path: Path, write: str, headers: dict[str, str], code: str
) -> None:
    if headers.get("X_XSRFToken") == "ours":
        headers = {**headers, "X_XSRFToken": browser.xsrf}
    if headers.get("X_XSRFToken") == "of another browser":
        jar = aiohttp.CookieJar(unsafe=True)
        async with aiohttp.ClientSession(cookie_jar=jar) as session:
            other = Browser(site, session)
            await other.log_in("ana-page")
        headers = {"X_XSRFToken": other.xsrf}
    method, path = write.split()
    before, lines = contents(tmp_path), len(site.ledger.changes(HUB))

    answer = await browser.send(method, path, GRANT if method == "POST" else None, **headers)

    assert (answer.status, answer.code) == (403, code)
    Error.model_validate(answer.json)
    line, *rest = site.ledger.changes(HUB)
    assert (line.by, line.what, line.subject) == ("adam", "refused", write)
    assert (line.after["code"], len(rest)) == (code, lines)
    assert {**contents(tmp_path), "changes": before["changes"]} == before


async def test_a_foreign_origin_is_refused_also_with_a_token_in_the_header(site: Site) -> None:
    answer = await site.send("POST", "api/grants", GRANT, Origin="https://evil.example")
    assert (answer.status, answer.code) == (403, "foreign-origin")
    assert site.ledger.changes(HUB, 1)[0].after["code"] == "foreign-origin"


@pytest.mark.parametrize("xsrf", [True, False], ids=["with its token", "without a token"])
async def test_an_expired_login_is_told_as_such_and_leaves_no_line(
    site: Site, browser: Browser, tmp_path: Path, xsrf: bool
) -> None:
    del site.hub.models["admin"]
    site.lab.hub_auth.cache.clear()
    before = contents(tmp_path)
    for method, path in (("POST", "api/grants"), ("GET", "api/people"), ("GET", "api/live")):
        headers = {"X_XSRFToken": browser.xsrf} if xsrf else {}
        answer = await browser.send(method, path, GRANT if method == "POST" else None, **headers)
        assert (answer.status, answer.code) == (401, "not-logged-in"), path
    assert contents(tmp_path) == before
    assert (await browser.send("GET", "gpus")).status == 302


# -- rights that are taken away -------------------------------------------------------------


def test_a_right_that_was_taken_away_ends_within_a_minute() -> None:
    """The worst case: the hub was asked just before, and a stream just before that ran out.

    What the hub said is believed for AUTH_CACHE_S. A stream that asks just within that asks again
    after RECHECK_S; and it looks at the time at least every KEEP_ALIVE_S. Five seconds are for the
    hub's answer and for what is on its way.
    """
    for module in (live, stream):
        assert module.RECHECK_S == rights.RECHECK_S
        slowest_s = rights.AUTH_CACHE_S + rights.RECHECK_S + module.KEEP_ALIVE_S
        assert slowest_s + 5 <= 60, module.__name__


async def test_the_service_believes_the_hub_for_so_long_and_no_longer(site: Site) -> None:
    assert site.lab.hub_auth.cache.max_age == rights.AUTH_CACHE_S


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> float:
    """The same with small numbers; returns their sum. The hub's cache knows whole seconds only."""
    monkeypatch.setattr(app, "AUTH_CACHE_S", 1)
    monkeypatch.setattr(live, "RECHECK_S", 0.3)
    monkeypatch.setattr(live, "KEEP_ALIVE_S", 0.2)
    return 1 + 0.3 + 0.2


@pytest.mark.parametrize("left", [[ENTER], [], None], ids=["view", "everything", "the login"])
async def test_who_loses_the_right_to_view_loses_the_stream_and_the_requests(
    quick: float, prepared: Prepared, tmp_path: Path, left: list[str] | None
) -> None:
    async for site in run_site(prepared.copy(tmp_path)):
        add_roles(site.hub)
        async with site.stream("api/live", token="admin") as events:
            assert (await events.next())[0] == "snapshot"
            # The hub is asked just now, so that its answer is believed for the whole time.
            site.lab.hub_auth.cache.clear()
            assert (await site.get("api/people", token="admin")).status == 200
            if left is None:
                del site.hub.models["admin"]
            else:
                site.hub.models["admin"]["scopes"] = left
            began = time.monotonic()
            if left is not None:
                name, _, data = await events.next(timeout_s=10.0)
                assert (name, data["code"]) == ("over", "forbidden")
                assert data["message"]
            # Whose login ended is not told that a right is gone: the page comes back and gets 401.
            with pytest.raises(EOFError):
                await events.next(timeout_s=10.0)
            assert time.monotonic() - began < quick + 1.0
        status = 401 if left is None else 403
        for path in ("api/people", "api/live", "api/log", "api/usage", "api/gpus/history"):
            assert (await site.get(path, token="admin")).status == status
        answer = await site.send("POST", "api/grants", GRANT)
        assert answer.status == status
        assert [grant.id for grant in site.ledger.grants(HUB) if grant.subject == "bob"] == []


async def test_who_keeps_the_right_keeps_the_stream(
    quick: float, prepared: Prepared, tmp_path: Path
) -> None:
    async for site in run_site(prepared.copy(tmp_path)):
        add_roles(site.hub)
        async with site.stream("api/live", token="viewer") as events:
            assert (await events.next())[0] == "snapshot"
            await asyncio.sleep(quick + 0.5)
            site.ledger.boost(HUB, "eve", "", 1, "root")
            assert (await events.next())[0] == "queue"
        assert len(site.hub.asked) > 1, "the hub was asked again"


async def test_a_hub_that_is_away_ends_the_stream_without_a_traceback(
    quick: float, prepared: Prepared, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Who may view is not known then, so nothing more is shown; the page comes back by itself."""
    async for site in run_site(prepared.copy(tmp_path)):
        add_roles(site.hub)
        async with site.stream("api/live", token="viewer") as events:
            assert (await events.next())[0] == "snapshot"
            site.hub.is_down = True
            began = time.monotonic()
            with suppress(EOFError, aiohttp.ClientError):
                while time.monotonic() - began < quick + 1.0:
                    await events.next(timeout_s=quick + 1.0)
            assert time.monotonic() - began < quick + 1.0, "the stream goes on"
    assert not [record for record in caplog.records if record.exc_info]
