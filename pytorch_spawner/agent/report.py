"""Send events to the lab's service: in the background, bounded, and without ever raising.

It must NOT block a check, grow without bound, follow a redirect (the token would travel along) or
use a proxy from the environment (the hub is next door).
"""

from __future__ import annotations

import json
import math
import os
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from typing import Any, Callable, Deque, Dict, List, Mapping, Optional, Tuple

Send = Callable[[str, Mapping[str, Any]], None]
Log = Callable[[str], None]

MAX_EVENT_BYTES = 16 * 1024
MAX_QUEUE = 512
MAX_BATCH_EVENTS = 32
MAX_BATCH_BYTES = 128 * 1024
MAX_DEPTH = 5  # the service takes 6, and "data" itself is one
# How long one report is tried to be delivered.
PATIENCE_S = 120.0
_TIMEOUT_S = 10.0


class Reporter:
    """A queue of events and the thread that empties it.

    Attributes:
        dropped: How many events were given up, for whatever reason.
        refused: How many of those the service will not take, however often they are sent (4xx).
    """

    def __init__(
        self,
        url: str,
        token: str,
        start: str,
        *,
        log: Log,
        patience_s: float = PATIENCE_S,
        first_pause_s: float = 0.25,
    ) -> None:
        self.dropped = 0
        self.refused = 0
        self._url = url
        self._token = token
        self._start = start
        self._log = log
        self._patience_s = patience_s
        self._first_pause_s = first_pause_s
        self._queue: Deque[Dict[str, Any]] = deque()
        self._busy = False
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._refusals: set[int] = set()
        if url:
            threading.Thread(target=self._work, name="report", daemon=True).start()

    def send(self, kind: str, data: Mapping[str, Any]) -> None:
        """Queue an event, at once. A full queue loses its oldest sample, else its oldest event."""
        event = fit({"kind": kind, "at": round(time.time(), 3), "data": dict(data)})
        if not self._url:
            return
        with self._changed:
            if len(self._queue) >= MAX_QUEUE:
                self._make_room()
            self._queue.append(event)
            self._changed.notify_all()

    def close(self, timeout_s: float) -> bool:
        """Wait until everything is sent or given up.

        Returns:
            Whether that happened within ``timeout_s`` seconds.
        """
        with self._changed:
            return self._changed.wait_for(lambda: not self._queue and not self._busy, timeout_s)

    def settle(self, timeout_s: float) -> bool:
        """Wait as ``close`` does.

        Returns:
            Whether the service has taken or refused everything: nothing is left to try again.
        """
        return self.close(timeout_s) and self.dropped == self.refused

    def stop(self) -> None:
        """Give up retries that are under way."""
        self._closing.set()

    def _make_room(self) -> None:
        oldest = next((event for event in self._queue if event["kind"] == "sample"), self._queue[0])
        self._queue.remove(oldest)
        self.dropped += 1

    def _work(self) -> None:
        opener = make_opener()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._queue))
                batch = self._take()
                self._busy = True
            if not self._deliver(opener, batch):
                self.dropped += len(batch)
            with self._changed:
                self._busy = False
                self._changed.notify_all()

    def _take(self) -> List[Dict[str, Any]]:
        batch: List[Dict[str, Any]] = []
        size = 0
        while self._queue and len(batch) < MAX_BATCH_EVENTS:
            size += len(json.dumps(self._queue[0]))
            if batch and size > MAX_BATCH_BYTES:
                break
            batch.append(self._queue.popleft())
        return batch

    def _deliver(self, opener: urllib.request.OpenerDirector, batch: List[Dict[str, Any]]) -> bool:
        body = json.dumps({"v": 1, "start": self._start, "events": batch}).encode()
        give_up_at = time.monotonic() + self._patience_s
        pause_s = self._first_pause_s
        while True:
            status, asked_s = self._post(opener, body)
            if status is not None and not (status >= 500 or status == 429):
                return self._accepted(status, len(batch))
            wait_s = pause_s if asked_s is None else asked_s
            if time.monotonic() + wait_s > give_up_at or self._closing.wait(wait_s):
                self._log(f"gave up on {len(batch)} events: the service does not answer.")
                return False
            pause_s = min(pause_s * 2, 10.0)

    def _accepted(self, status: int, events: int) -> bool:
        if status < 300:
            return True
        if status >= 400:  # a redirect is somebody else's answer
            self.refused += events
        if status not in self._refusals:
            self._refusals.add(status)
            self._log(f"the service refused a report with status {status}; it was dropped.")
        return False

    def _post(
        self, opener: urllib.request.OpenerDirector, body: bytes
    ) -> Tuple[Optional[int], Optional[float]]:
        """POST once.

        Returns:
            The status, ``None`` when nobody answered; and the seconds the answer asks to wait,
            ``None`` when it does not.
        """
        try:
            request = urllib.request.Request(  # noqa: S310 (the hub's own URL)
                self._url,
                data=body,
                headers={
                    "Authorization": f"token {self._token}",
                    "Content-Type": "application/json",
                    "User-Agent": "pytorch-spawner-agent",
                },
            )
            with opener.open(request, timeout=_TIMEOUT_S) as answer:
                return answer.status, None
        except urllib.error.HTTPError as error:
            with error:
                return error.code, _retry_after(error.headers.get("Retry-After"))
        except Exception as error:  # noqa: BLE001 (http.client, ssl and socket errors share no base)
            self._log(f"could not reach the service: {error!r}")
            return None, None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def make_opener() -> urllib.request.OpenerDirector:
    """An opener without proxies and redirects that trusts what the container trusts.

    With the hub's internal TLS it presents the server's own certificate, as the single-user
    server does. ``SSL_CERT_FILE`` and ``SSL_CERT_DIR`` work as everywhere.
    """
    handlers: List[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({}), _NoRedirect()]
    authority = os.environ.get("JUPYTERHUB_SSL_CLIENT_CA")
    certificate, key = (os.environ.get(f"JUPYTERHUB_SSL_{x}") for x in ("CERTFILE", "KEYFILE"))
    try:
        context = ssl.create_default_context()
        if authority:
            context.load_verify_locations(cafile=authority)
        if certificate and key:
            context.load_cert_chain(certificate, key)
        handlers.append(urllib.request.HTTPSHandler(context=context))
    except (OSError, ssl.SSLError):
        pass  # unreadable files: urllib's defaults then say what is wrong at the first request
    return urllib.request.build_opener(*handlers)


def _retry_after(value: Optional[str]) -> Optional[float]:
    try:
        seconds = float(value or "")
    except ValueError:  # absent, or a date: our own back-off will do
        return None
    return min(max(seconds, 0.0), 60.0) if math.isfinite(seconds) else None


def fit(event: Dict[str, Any]) -> Dict[str, Any]:
    """The event within the service's limits: at most 16 KiB, shallow, only real numbers.

    Args:
        event: ``{"kind", "at", "data"}``; ``data`` may hold anything.
    """
    data: Dict[str, Any] = {}
    for longest in (4100, 2000, 200, 40):
        data = _plain(event["data"], longest, MAX_DEPTH)
        if len(json.dumps({**event, "data": data})) <= MAX_EVENT_BYTES:
            return {**event, "data": data}
    kept = {k: v for k, v in data.items() if not isinstance(v, (dict, list))}
    kept = dict(list(kept.items())[:32])
    return {**event, "data": {**kept, "truncated": True}}


def _plain(value: Any, longest: int, depth: int) -> Any:
    if isinstance(value, (bool, int)) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping) and depth > 0:
        return {str(k)[:512]: _plain(v, longest, depth - 1) for k, v in value.items()}
    if isinstance(value, (list, tuple)) and depth > 0:
        return [_plain(item, longest, depth - 1) for item in value]
    text = str(value)
    return text if len(text) <= longest else text[: longest - 1] + "…"
