"""The routes that every other one builds on: who asks, how errors and headers look; and the API.

Thin: scope, parse, call, shape. It must not decide rights (``auth`` does) and must not log bodies,
tokens or query strings.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import responses
from typing import Any, Final, NoReturn, TypeVar
from urllib.parse import urlsplit

from jupyterhub.services.auth import HubOAuth, HubOAuthenticated
from pydantic import BaseModel, ValidationError
from tornado.web import HTTPError, RequestHandler

from pytorch_spawner.adapters.inside import NoAnswer, NotRunning
from pytorch_spawner.core.grant_rows import problem_of
from pytorch_spawner.errors import (
    BadRequest,
    ChangedMeanwhile,
    EngineUnavailable,
    InvalidEvent,
    LabError,
    LedgerUnavailable,
    Problem,
)
from pytorch_spawner.lab import auth
from pytorch_spawner.lab.board import Board
from pytorch_spawner.lab.directory import Directory
from pytorch_spawner.lab.etags import matches
from pytorch_spawner.lab.events import Follower, TooManyViewers
from pytorch_spawner.lab.feed import Feed
from pytorch_spawner.lab.limits import TokenBuckets
from pytorch_spawner.lab.looking import Kernels, NoSuchKernel
from pytorch_spawner.lab.measure import Meter
from pytorch_spawner.lab.metrics import Metrics
from pytorch_spawner.lab.pages import POLICY, Pages
from pytorch_spawner.lab.ports import Ledger
from pytorch_spawner.lab.settings import LabSettings
from pytorch_spawner.lab.standing import KnownCourses
from pytorch_spawner.lab.stops import Stops

log = logging.getLogger(__name__)

STATUS: Final[Mapping[str, int]] = {
    BadRequest.code: 400,
    ChangedMeanwhile.code: 409,
    InvalidEvent.code: 400,
    TooManyViewers.code: 429,
    LedgerUnavailable.code: 503,
    NotRunning.code: 404,
    NoSuchKernel.code: 404,
    NoAnswer.code: 503,
    EngineUnavailable.code: 503,
}
_LENGTHS: Final = 4096
_CODES: Final[Mapping[int, str]] = {
    400: "bad-request",
    401: "not-logged-in",
    403: "forbidden",
    404: "not-found",
    405: "method-not-allowed",
    413: "too-large",
    415: "wrong-type",
    428: "version-needed",
    429: "too-many-requests",
    502: "hub-unavailable",
    503: "unavailable",
}


class ApiError(LabError):
    """An answer that is no success: a status with a code and a sentence.

    Attributes:
        status: HTTP status.
        retry_after: Value of the header of that name; "" for none.
    """

    def __init__(self, status: int, code: str, message: str, *, retry_after: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.retry_after = retry_after


@dataclass(slots=True)
class Length:
    """How long a start's journal is.

    Attributes:
        seq: Number of its last event; 0 before this process wrote one.
        reported_bytes: What its agent reported takes, as ``Report.stored_bytes`` counts it.
    """

    seq: int = 0
    reported_bytes: int = 0


@dataclass(frozen=True)
class Lab:
    """What the handlers share.

    Attributes:
        settings: How this process is set up.
        ledger: The ledger; its methods block.
        follower: Who watches what.
        hub_auth: Asks the hub whose a token is, and believes the answer for half a minute.
        pages: Renders HTML.
        metrics: Counters.
        reports: How many events each server may report.
        report_bytes: How many bytes the servers of each person may report.
        strangers: How often an address may come with a token that the hub does not know.
        meter: Measures the GPUs.
        directory: Whom the hub knows.
        board: The GPUs as the pages show them.
        feed: News of the board, for all who watch it.
        refusals: How often a person's refused writes are put into the audit log.
        kernels: Looks into running servers.
        stops: Has the hub stop servers.
        courses: The courses as they were last read.
        lengths: The journals of starts that reported lately.
    """

    settings: LabSettings
    ledger: Ledger
    follower: Follower
    hub_auth: HubOAuth
    pages: Pages
    metrics: Metrics
    reports: TokenBuckets
    report_bytes: TokenBuckets
    strangers: TokenBuckets
    meter: Meter
    directory: Directory
    board: Board
    feed: Feed
    refusals: TokenBuckets
    kernels: Kernels
    stops: Stops = field(default_factory=Stops)
    courses: KnownCourses = field(default_factory=KnownCourses)
    lengths: OrderedDict[str, Length] = field(default_factory=OrderedDict)

    async def length_of(self, start_id: str) -> Length:
        """How long a start's journal is, to be kept up to date; those of long ago are forgotten."""
        if start_id not in self.lengths:
            size = await asyncio.to_thread(self.ledger.reported_bytes, start_id)
            self.lengths.setdefault(start_id, Length(reported_bytes=size))
        self.lengths.move_to_end(start_id)
        length = self.lengths[start_id]
        while len(self.lengths) > _LENGTHS:
            self.lengths.popitem(last=False)
        return length


class LabHandler(HubOAuthenticated, RequestHandler):  # type: ignore[misc]
    """Base of all routes: headers, errors, and the person who asks."""

    lab: Lab
    is_api = False

    def initialize(self, lab: Lab) -> None:
        """Take what the handlers share; tornado calls it."""
        self.lab = lab
        self.hub_auth = lab.hub_auth

    def set_default_headers(self) -> None:
        self.clear_header("Server")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Referrer-Policy", "same-origin")
        self.set_header("Cache-Control", "no-store")
        self.set_header(
            "Content-Security-Policy",
            "default-src 'none'; frame-ancestors 'none'" if self.is_api else POLICY,
        )

    def methods(self) -> set[str]:
        """What the address takes."""
        return {
            name
            for name in self.SUPPORTED_METHODS
            if getattr(type(self), name.lower()) is not getattr(RequestHandler, name.lower())
        }

    def decode_argument(self, value: bytes, name: str | None = None) -> str:
        """Text of the address; tornado takes zero bytes out of the query, but not of the path."""
        text = str(super().decode_argument(value, name))
        if name is None and "\0" in text:
            raise HTTPError(404, "There is no such address.")
        return text

    async def fetch_model(self) -> dict[str, Any] | None:
        """Ask who this is, without blocking the loop as ``get_current_user`` would."""
        model = await self.hub_auth.get_user(self, sync=False)
        self._hub_auth_user_cache = self.current_user = model
        return dict(model) if model else None

    def send_json(self, value: Any, status: int = 200) -> None:
        """Answer with JSON."""
        self.set_status(status)
        self.set_header("Content-Type", "application/json; charset=utf-8")
        self.finish(json.dumps(value))

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Say what went wrong: JSON to programs, a page to people; never a traceback."""
        error = kwargs.get("exc_info", (None, None, None))[1]
        code, message = _explain(error, status_code)
        if isinstance(error, LabError):
            self.set_status(getattr(error, "status", STATUS.get(error.code, 500)))
            if retry_after := getattr(error, "retry_after", ""):
                self.set_header("Retry-After", retry_after)
        if self.get_status() == 405:
            self.set_header("Allow", ", ".join(sorted(self.methods())))
        if self.is_api:
            said = {"code": code, "message": message, **_more(error)}
            self.send_json(said, self.get_status())
            return
        model = getattr(self, "_cached_hub_user", None) or {}
        self.finish(
            self.lab.pages.render(
                "error.html",
                user=model.get("name", ""),
                status=self.get_status(),
                title=responses.get(self.get_status(), "Error"),
                message=message,
            )
        )

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        # A refusal is an answer, not an accident; only what nobody expected gets a traceback.
        if isinstance(value, (LabError, HTTPError)):
            log.debug("%s refused: %s", self.request.path, type(value).__name__)
            return
        log.error("%s %s failed", self.request.method, self.request.path, exc_info=(typ, value, tb))


def _explain(error: BaseException | None, status: int) -> tuple[str, str]:
    if isinstance(error, LabError):
        return error.code, error.public_message
    code = _CODES.get(status, "error")
    if isinstance(error, HTTPError) and status < 500 and error.log_message and not error.args:
        return code, error.log_message
    return code, {
        401: "Log in first.",
        403: "You may not see this.",
        404: "There is no such page.",
        405: "This address takes no such request.",
        # What JupyterHub's own client raises when the hub does not say whose a token is.
        502: "The hub does not answer just now; try again in a moment.",
    }.get(status, "Something went wrong here; the service's log says what.")


def _more(error: BaseException | None) -> dict[str, Any]:
    """What an answer says beside code and message."""
    if isinstance(error, BadRequest):
        return {
            "faults": list(error.faults),
            "problems": [
                {"row": one.row, "field": one.field, "message": one.message}
                for one in error.problems
            ],
        }
    return {"now": error.now} if isinstance(error, ChangedMeanwhile) else {}


_Model = TypeVar("_Model", bound=BaseModel)


class ApiHandler(LabHandler):
    """Base of the API's routes: JSON, and no redirect to a login page."""

    is_api = True

    async def require_model(self, *, enter: bool = True) -> dict[str, Any]:
        """Return the model of the person or program that asks.

        Args:
            enter: Whether the token has to admit to the service; routes that look at a narrower
                right themselves say False.

        Raises:
            ApiError: 401 for nobody, 403 for somebody without the right to use this service.
        """
        model = await self.fetch_model()
        if model is None:
            await self._refuse_forged()
            raise ApiError(401, "not-logged-in", "Log in first; your session may have ended.")
        if self._is_foreign():
            await self.refuse(model, "foreign-origin", "This came from a page of another site.")
        if enter and not auth.may_enter(model, self.hub_auth.access_scopes):
            await self.refuse(model, "forbidden", "Your account may not use this service.")
        return model

    async def require_viewer(self) -> dict[str, Any]:
        """The model of somebody who may see everybody's servers."""
        model = await self.require_model()
        if not auth.is_viewer(model):
            raise ApiError(403, "forbidden", f"This needs the scope {auth.VIEW}.")
        return model

    async def require_admin(self) -> dict[str, Any]:
        """The model of somebody who may change what admins decide; others go into the log."""
        model = await self.require_model()
        if not auth.is_admin(model):
            await self.refuse(model, "forbidden", f"This needs the scope {auth.ADMIN}.")
        return model

    async def require_instructor(self) -> dict[str, Any]:
        """The model of somebody who may manage courses; others go into the log."""
        model = await self.require_model()
        if not auth.is_instructor(model):
            await self.refuse(model, "forbidden", f"This needs the scope {auth.INSTRUCT}.")
        return model

    async def refuse(self, model: Mapping[str, Any], code: str, message: str) -> NoReturn:
        """Answer 403, and where somebody tried to change something, note who.

        Raises:
            ApiError: Always.
        """
        name = str(model["name"])
        # A script that tries a thousand times is one line a minute.
        if self._writes and not self.lab.refusals.take(name, 1, time.monotonic()):
            path = self.request.path.removeprefix(self.lab.settings.prefix)
            subject = f"{self.request.method} {path}"
            log.warning("refused: user=%s request=%r why=%s", name, subject[:200], code)
            with suppress(LedgerUnavailable):  # it is refused all the same
                await asyncio.to_thread(
                    self.lab.ledger.note,
                    self.lab.settings.hub_id,
                    name,
                    "refused",
                    subject,
                    {"code": code, "message": message},
                )
        raise ApiError(403, code, message)

    @property
    def _writes(self) -> bool:
        return self.request.method not in ("GET", "HEAD", "OPTIONS")

    def _is_foreign(self) -> bool:
        """Whether a browser says that another site's page sends this."""
        headers = self.request.headers
        if not self._writes or headers.get("Sec-Fetch-Site") in ("same-origin", "none"):
            return False
        origin = headers.get("Origin", "")
        said = [self.request.host, *headers.get("X-Forwarded-Host", "").split(",")]
        # Without the empty one: a sandboxed frame's Origin is "null", which has no host.
        hosts = {host.strip() for host in said} - {""}
        return bool(origin) and urlsplit(origin).netloc not in hosts

    async def _refuse_forged(self) -> None:
        """Tell a request without the page's XSRF token apart from one without a login.

        Reads need it like writes: with all servers below one address, a student's page has the
        same origin as ours, and must neither see what an admin sees nor find the token in it.
        """
        cookie = self.get_secure_cookie(self.hub_auth.cookie_name)
        if not cookie:
            return
        model = await self.hub_auth.user_for_token(cookie.decode("ascii", "replace"), sync=False)
        if model:
            why = "The request lacks the page's XSRF token; load the page again."
            await self.refuse(model, "foreign-origin" if self._is_foreign() else "xsrf", why)

    def hang_up(self) -> None:
        """End the connection of a client that takes nothing: what waits for it is dropped.

        Tornado would keep it, with all that was written, until the client reads it or goes.
        """
        if (stream := getattr(self.request.connection, "stream", None)) is not None:
            stream.close()

    async def still_may(self, is_allowed: Callable[[Mapping[str, Any]], bool]) -> bool:
        """Ask the hub again whose a long stream is (at most ``AUTH_CACHE_S`` old)."""
        with suppress(AttributeError):
            del self._cached_hub_user
        model = await self.fetch_model()
        return model is not None and is_allowed(model)

    def body_as(self, kind: type[_Model]) -> _Model:
        """Read the body.

        Raises:
            BadRequest: It is no JSON object of this form; every fault is listed with its field.
        """
        said = self.body_object()
        try:
            return kind.model_validate(said)
        except ValidationError as error:
            problems = [problem_of(one) for one in error.errors()]
            raise refused(problems) from error

    def body_object(self) -> dict[str, Any]:
        """The body as a JSON object.

        Raises:
            BadRequest: It is none.
        """
        try:
            said = json.loads(self.request.body)
        except (ValueError, RecursionError) as error:
            raise BadRequest("The body is no JSON.") from error
        if not isinstance(said, dict):
            raise BadRequest("The body is no JSON object.")
        return said

    def body_text(self) -> str:
        """The body as text.

        Raises:
            BadRequest: It is no UTF-8.
        """
        try:
            return self.request.body.decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadRequest("The body is no UTF-8 text.") from error

    @property
    def is_csv(self) -> bool:
        """Whether the body says that it is a table."""
        return self.request.headers.get("Content-Type", "").partition(";")[0] == "text/csv"

    def whole(self, name: str, low: int, high: int, default: int | None) -> int | None:
        """A whole number of the address.

        Raises:
            BadRequest: It is none, or out of its range.
        """
        said = self.get_query_argument(name, "")
        if not said:
            return default
        if not re.fullmatch(r"-?[0-9]{1,19}", said) or not low <= int(said) <= high:
            raise refused([Problem(f"a whole number from {low} to {high}", name)])
        return int(said)

    def page(self) -> tuple[int, int]:
        """``offset`` and ``limit`` of a long list."""
        return self.whole("offset", 0, 10**9, 0) or 0, self.whole("limit", 1, 200, 50) or 50

    def send_csv(self, name: str, text: str) -> None:
        """Answer with a table to be saved."""
        self.set_header("Content-Type", "text/csv; charset=utf-8")
        self.set_header("Content-Disposition", f'attachment; filename="{name}"')
        self.finish(text)

    def require_match(self) -> Callable[[str], bool]:
        """What tells whether an etag is one that the client has seen.

        Raises:
            ApiError: 428, the request names none.
        """
        said = self.request.headers.get("If-Match", "")
        if not said:
            raise ApiError(
                428, "version-needed", "Send If-Match with the etag that you saw (or *)."
            )
        return lambda etag: matches(said, etag)


def refused(problems: Sequence[Problem]) -> BadRequest:
    """Several faults of one request as one error."""
    faults = [f"{one.field}: {one.message}" if one.field else one.message for one in problems]
    text = "This is not usable: " + "; ".join(faults) + "."
    return BadRequest(text, faults=faults, problems=problems)


class NotFound(ApiHandler):
    """Every address that is none."""

    def prepare(self) -> None:
        """Refuse, whatever the method."""
        raise ApiError(404, "not-found", "There is no such address.")


class Health(ApiHandler):
    """Whether the service and its ledger answer; needs no login and says nothing else."""

    _checked: tuple[float, bool] = (-1e9, False)

    async def get(self) -> None:
        """Answer 200 or 503; the ledger is asked at most every two seconds."""
        at, is_well = Health._checked
        if time.monotonic() - at > 2.0:
            is_well = await self._is_ledger_well()
            Health._checked = (time.monotonic(), is_well)
        if is_well:
            self.send_json({"status": "ok"})
        else:
            self.send_json({"code": "ledger-unavailable", "message": "No ledger."}, 503)

    async def _is_ledger_well(self) -> bool:
        try:
            await asyncio.to_thread(self.lab.ledger.read_inventory, self.lab.settings.hub_id)
        except LabError:
            self.lab.metrics.ledger_errors.inc()
            return False
        return True
