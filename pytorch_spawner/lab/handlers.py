"""The routes that every other one builds on: who asks, how errors and headers look; and the API.

Thin: scope, parse, call, shape. It must not decide rights (``auth`` does) and must not log bodies,
tokens or query strings.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import responses
from typing import Any, Final

from jupyterhub.services.auth import HubOAuth, HubOAuthenticated
from tornado.web import HTTPError, RequestHandler

from pytorch_spawner.errors import BadRequest, InvalidEvent, LabError, LedgerUnavailable
from pytorch_spawner.lab import auth
from pytorch_spawner.lab.events import Follower, TooManyViewers
from pytorch_spawner.lab.limits import TokenBuckets
from pytorch_spawner.lab.metrics import Metrics
from pytorch_spawner.lab.pages import POLICY, Pages
from pytorch_spawner.lab.ports import Ledger
from pytorch_spawner.lab.settings import LabSettings

log = logging.getLogger(__name__)

STATUS: Final[Mapping[str, int]] = {
    BadRequest.code: 400,
    InvalidEvent.code: 400,
    TooManyViewers.code: 429,
    LedgerUnavailable.code: 503,
}
_LENGTHS: Final = 4096
_CODES: Final[Mapping[int, str]] = {
    400: "bad-request",
    401: "not-logged-in",
    403: "forbidden",
    404: "not-found",
    405: "method-not-allowed",
    413: "too-large",
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


@dataclass(frozen=True)
class Lab:
    """What the handlers share.

    Attributes:
        settings: How this process is set up.
        ledger: The ledger; its methods block.
        follower: Who watches what.
        hub_auth: Asks the hub whose a token is, and remembers the answer for a minute.
        pages: Renders HTML.
        metrics: Counters.
        reports: How much each server may report.
        strangers: How often an address may come with a token that the hub does not know.
        lengths: Number of the last event of starts that reported lately.
    """

    settings: LabSettings
    ledger: Ledger
    follower: Follower
    hub_auth: HubOAuth
    pages: Pages
    metrics: Metrics
    reports: TokenBuckets
    strangers: TokenBuckets
    lengths: OrderedDict[str, int] = field(default_factory=OrderedDict)

    def note_length(self, start_id: str, seq: int) -> None:
        """Remember how long a start's journal is; the starts of long ago are forgotten."""
        self.lengths[start_id] = seq
        self.lengths.move_to_end(start_id)
        while len(self.lengths) > _LENGTHS:
            self.lengths.popitem(last=False)


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
        if self.is_api:
            faults = {"faults": list(error.faults)} if isinstance(error, BadRequest) else {}
            self.send_json({"code": code, "message": message, **faults}, self.get_status())
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
    }.get(status, "Something went wrong here; the service's log says what.")


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
            raise ApiError(401, "not-logged-in", "Log in first; your session may have ended.")
        if enter and not auth.may_enter(model, self.hub_auth.access_scopes):
            raise ApiError(403, "forbidden", "Your account may not use this service.")
        return model


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
