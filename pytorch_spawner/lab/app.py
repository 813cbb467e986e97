"""Puts the service together: routes, limits, one server. It must not read the environment."""

from __future__ import annotations

import hashlib
import logging
from typing import Any, Final

from jupyterhub.services.auth import HubOAuth
from tornado.httpserver import HTTPServer
from tornado.web import Application, RequestHandler

from pytorch_spawner.lab import (
    api,
    caches,
    course_links,
    course_tasks,
    courses,
    devices,
    grants,
    handlers,
    history,
    kernels,
    live,
    openapi,
    orders,
    people,
    report,
    restart,
    servers,
    stream,
    waiting,
    web,
)
from pytorch_spawner.lab.board import Board
from pytorch_spawner.lab.directory import Directory
from pytorch_spawner.lab.events import POLL_S, Follower
from pytorch_spawner.lab.feed import Feed
from pytorch_spawner.lab.handlers import Lab
from pytorch_spawner.lab.limits import TokenBuckets
from pytorch_spawner.lab.looking import Kernels
from pytorch_spawner.lab.measure import Meter
from pytorch_spawner.lab.metrics import Metrics
from pytorch_spawner.lab.pages import Pages
from pytorch_spawner.lab.paths import static_dir
from pytorch_spawner.lab.ports import Ledger
from pytorch_spawner.lab.rights import AUTH_CACHE_S
from pytorch_spawner.lab.settings import LabSettings

log = logging.getLogger(__name__)

# The agent's largest suite sends about 120 events at once, then a sample every few seconds.
EVENTS_A_SECOND: Final = 10.0
EVENTS_BURST: Final = 200.0
# What all starts of a person may report at once, and as much again within a day: one start has a
# bound of its own (``MAX_REPORTED_BYTES``), but starts are free. Enough for 2000 honest ones.
REPORT_BYTES_A_DAY: Final = 16.0 * 1024 * 1024
STRANGERS_A_SECOND: Final = 1.0
STRANGERS_BURST: Final = 30.0
# Of a person's refused writes this many go into the audit log.
REFUSALS_A_SECOND: Final = 1 / 60
REFUSALS_BURST: Final = 5.0
# The largest body: a table of all grants of a large lab. Reports have a limit of their own.
MAX_BODY_BYTES: Final = 1024 * 1024
_USER: Final = r"([^/]+)"
_SERVER: Final = r"([^/]*)"


def build_lab(
    settings: LabSettings,
    ledger: Ledger,
    hub_auth: HubOAuth,
    *,
    poll_s: float = POLL_S,
    meter: Meter | None = None,
) -> Lab:
    """Make what the handlers share.

    Args:
        settings: How this process is set up.
        ledger: The open ledger.
        hub_auth: JupyterHub's client for tokens and OAuth; its cache is set to half a minute.
        poll_s: Seconds between two looks at a watched server, or at the GPUs.
        meter: What measures the GPUs; None makes the usual one.
    """
    hub_auth.cache_max_age = AUTH_CACHE_S
    meter = meter or Meter(settings, ledger)
    board = Board(ledger, settings.hub_id, meter)
    feed = Feed(board, 2 * poll_s)
    meter.on_change.append(feed.measured)
    return Lab(
        settings=settings,
        ledger=ledger,
        follower=Follower(ledger, settings.hub_id, poll_s),
        hub_auth=hub_auth,
        pages=Pages(settings),
        metrics=Metrics(),
        reports=TokenBuckets(EVENTS_A_SECOND, EVENTS_BURST),
        report_bytes=TokenBuckets(REPORT_BYTES_A_DAY / 86400, REPORT_BYTES_A_DAY),
        strangers=TokenBuckets(STRANGERS_A_SECOND, STRANGERS_BURST),
        meter=meter,
        directory=Directory(settings),
        board=board,
        feed=feed,
        refusals=TokenBuckets(REFUSALS_A_SECOND, REFUSALS_BURST),
        kernels=Kernels(settings, ledger, meter),
    )


def make_app(lab: Lab) -> Application:
    """The routes, below the service's prefix."""
    shared = {"lab": lab}
    routes: list[tuple[str, type[RequestHandler], dict[str, Any]]] = [
        (r"", web.Home, shared),
        (r"oauth_callback", web.Callback, shared),
        (r"static/(.*)", web.Static, {"path": static_dir()}),
        (r"health", handlers.Health, shared),
        (r"metrics", api.MetricsRoute, shared),
        (rf"servers/{_USER}", web.Server, shared),
        (rf"servers/{_USER}/{_SERVER}", web.Server, shared),
        (r"(gpus|grants|queue|courses|caches|usage|log)", web.Admin, shared),
        (r"go/([^/]+)", course_links.Go, shared),
        (r"go/([^/]+)/(.*)", course_links.Go, shared),
        (r"api/openapi.json", openapi.OpenApi, shared),
        (r"api/me", api.Me, shared),
        (r"api/live", live.Live, shared),
        (r"api/gpus", devices.Gpus, shared),
        (r"api/gpus/history", devices.GpuHistory, shared),
        (r"api/gpus/([^/]+)", devices.GpuSettings, shared),
        (r"api/grants", grants.Grants, shared),
        (r"api/grants/preview", grants.GrantsPreview, shared),
        (r"api/grants/([^/]+)", grants.OneGrant, shared),
        (r"api/people", people.PeopleRoute, shared),
        (r"api/queue", waiting.Queue, shared),
        (rf"api/queue/{_USER}", waiting.QueuePlace, shared),
        (rf"api/queue/{_USER}/{_SERVER}", waiting.QueuePlace, shared),
        (r"api/usage", history.Usage, shared),
        (r"api/log", history.Log, shared),
        (r"api/log/([0-9]{1,18})/undo", history.Undo, shared),
        (r"api/caches", caches.Caches, shared),
        (r"api/caches/choices", caches.CacheChoices, shared),
        (r"api/caches/([^/]+)", caches.OneCache, shared),
        (r"api/caches/([^/]+)/stop", caches.StopBuild, shared),
        (r"api/caches/([^/]+)/promote", caches.Promote, shared),
        (r"api/caches/([^/]+)/rollback", caches.RollBack, shared),
        (r"api/courses", courses.Courses, shared),
        (r"api/courses/schema", courses.CourseSchema, shared),
        (r"api/courses/([^/]+)", courses.OneCourse, shared),
        (r"api/courses/([^/]+)/manifest", courses.CourseManifest, shared),
        (r"api/courses/([^/]+)/preload", course_tasks.Preload, shared),
        (r"api/courses/([^/]+)/publish", course_tasks.Publish, shared),
        (r"api/courses/([^/]+)/stop", course_tasks.StopTask, shared),
        (r"api/courses/([^/]+)/students", course_tasks.CourseStudents, shared),
        (r"api/courses/([^/]+)/reset", course_tasks.ResetFile, shared),
        (r"api/courses/([^/]+)/timetable", course_tasks.ImportTimetable, shared),
        (r"api/leases", api.Leases, shared),
        (rf"api/servers/{_USER}/stop", servers.Stop, shared),
        (rf"api/servers/{_USER}/{_SERVER}/stop", servers.Stop, shared),
        (rf"api/servers/{_USER}/restart", restart.Restart, shared),
        (rf"api/servers/{_USER}/{_SERVER}/restart", restart.Restart, shared),
        (rf"api/servers/{_USER}/course", orders.CourseOrders, shared),
        (rf"api/servers/{_USER}/{_SERVER}/course", orders.CourseOrders, shared),
        (rf"api/servers/{_USER}/report", report.ReportRoute, shared),
        (rf"api/servers/{_USER}/{_SERVER}/report", report.ReportRoute, shared),
        (rf"api/servers/{_USER}/events", stream.Events, shared),
        (rf"api/servers/{_USER}/{_SERVER}/events", stream.Events, shared),
        (rf"api/servers/{_USER}/memory", kernels.Memory, shared),
        (rf"api/servers/{_USER}/{_SERVER}/memory", kernels.Memory, shared),
        (rf"api/servers/{_USER}/kernels/([^/]+)", kernels.OneKernel, shared),
        (rf"api/servers/{_USER}/{_SERVER}/kernels/([^/]+)", kernels.OneKernel, shared),
    ]
    return Application(
        [(lab.settings.prefix + path, handler, init) for path, handler, init in routes],
        default_handler_class=handlers.NotFound,
        default_handler_args=shared,
        # As long-lived as the service's token: a restart alone sends nobody through the login.
        cookie_secret=hashlib.sha256(b"cookie" + lab.settings.api_token.encode()).digest(),
        xsrf_cookies=False,
        log_function=log_request,
    )


def make_server(lab: Lab) -> HTTPServer:
    """The server; a body beyond the largest table is refused before it is read."""
    return HTTPServer(
        make_app(lab),
        max_body_size=MAX_BODY_BYTES,
        max_header_size=32 * 1024,
        idle_connection_timeout=120.0,
        body_timeout=20.0,
    )


def log_request(handler: RequestHandler) -> None:
    """Log a request without its query (it holds XSRF tokens) and without any header."""
    status = handler.get_status()
    level = logging.INFO if status < 400 else logging.WARNING
    if status < 400 and "/static/" in handler.request.path:
        level = logging.DEBUG
    took_ms = 1000 * handler.request.request_time()
    log.log(
        level, "%s %s %s %.0f ms", status, handler.request.method, handler.request.path, took_ms
    )
