"""``api/servers/<user>/<server>/events``: a journal as a stream of events, and the agent's reports.

Everything posted here is hostile. The order is: who (token), which server (scope), how much
(bucket), what (``core.journal.parse_report``), of which start; and only then is anything written.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Hashable, Mapping
from typing import Any, Final

from tornado.iostream import StreamClosedError

from pytorch_spawner.core.courses import SMOKER, TRY, tried_course
from pytorch_spawner.core.journal import (
    MAX_EVENTS_A_START,
    MAX_REPORTED_BYTES,
    Report,
    parse_report,
)
from pytorch_spawner.core.report_facts import Start
from pytorch_spawner.errors import LabError
from pytorch_spawner.lab import auth, views
from pytorch_spawner.lab.events import Batch, View, has_changed
from pytorch_spawner.lab.handlers import ApiError, ApiHandler
from pytorch_spawner.lab.limits import TokenBuckets, retry_after
from pytorch_spawner.lab.rights import RECHECK_S, STREAM_S
from pytorch_spawner.lab.standing import read_standing

KEEP_ALIVE_S: Final = 10.0
# A client that takes nothing for this long is gone or wedged.
FLUSH_S: Final = 10.0
# What an agent leaves free in a journal, so that the hub can always say how a start ended. More
# than one report holds: a fresh process learns a journal's length from the first it writes.
HUB_EVENTS: Final = 70
_TOKEN: Final = re.compile(r"(?:token|bearer)\s+(\S{1,256})\s*", re.IGNORECASE)
_SEQ: Final = re.compile(r"[0-9]{1,9}")


class AgentHandler(ApiHandler):
    """What the routes share that a server's own agent asks."""

    async def require_writer(self, username: str, servername: str) -> Mapping[str, Any]:
        """Resolve the token in the header; cookies and tokens in the address count for nothing."""
        match = _TOKEN.fullmatch(self.request.headers.get("Authorization", ""))
        if match is None:
            raise ApiError(401, "no-token", 'Send "Authorization: token ..." with the report.')
        now, address = time.monotonic(), self.request.remote_ip
        if wait_s := self.lab.strangers.wait_s(address, 1, now):
            raise ApiError(
                429,
                "too-many-strangers",
                "Too many reports with unknown tokens came from this address.",
                retry_after=retry_after(wait_s),
            )
        model = await self.hub_auth.user_for_token(match[1], sync=False)
        if not model:
            self.lab.strangers.take(address, 1, now)
            raise ApiError(401, "unknown-token", "The hub does not know this token.")
        if not auth.may_write(model, username, servername):
            await self.refuse(model, "forbidden", "This token is not that server's.")
        return dict(model)

    async def is_thrown_away(self, start: Start) -> bool:
        """Whether a start is the lab's own, or an instructor's look: it has nobody's copy."""
        if start.username == SMOKER:
            return True
        if not start.servername.startswith(TRY):
            return False
        known = await asyncio.to_thread(self.lab.ledger.courses, self.lab.settings.hub_id)
        return tried_course(known, start.username, start.servername) is not None


class Events(AgentHandler):
    """One server's journal: GET follows it, POST adds the agent's events."""

    _gone: asyncio.Event
    _watched: tuple[str, str]

    def prepare(self) -> None:
        """Make ready to notice that the client goes."""
        self._gone = asyncio.Event()

    def on_connection_close(self) -> None:
        """Tornado calls it when the client hangs up."""
        self._gone.set()

    # -- reading ----------------------------------------------------------------------------

    async def get(self, username: str, servername: str = "") -> None:
        """Stream the journal, or send it as one list with ``?format=json``."""
        model = await self.require_model(enter=False)
        self._watched = username, servername
        if not self._may_watch(model):
            raise ApiError(403, "forbidden", "This is somebody else's server.")
        async with self.lab.follower.view(username, servername) as view:
            batch = await view.replay(self.get_query_argument("start", "")[:64], self._after())
            if batch is None:
                raise ApiError(404, "no-such-server", "This server has never been started.")
            if self.get_query_argument("format", "") == "json":
                self.send_json([event.as_json() for event in batch.events])
                return
            self._open()
            try:
                await self._follow(view, batch)
            except (StreamClosedError, EOFError):
                return
            except (TimeoutError, asyncio.TimeoutError):
                self.hang_up()

    def _may_watch(self, model: Mapping[str, Any]) -> bool:
        return auth.may_watch(model, *self._watched, self.hub_auth.access_scopes)

    def _after(self) -> int:
        said = self.get_query_argument("after", "") or self.request.headers.get("Last-Event-ID", "")
        return int(said) if _SEQ.fullmatch(said) else 0

    def _open(self) -> None:
        self.set_header("Content-Type", "text/event-stream; charset=utf-8")
        # nginx would hold events back until its buffer is full.
        self.set_header("X-Accel-Buffering", "no")

    async def _follow(self, view: View, first: Batch) -> None:
        ends_at = time.monotonic() + STREAM_S
        known = self.get_query_argument("start", "")[:64]
        await self._write("retry: 2000\n\n")
        if known not in ("", first.start.id):
            await self._write(views.describe_message("restart", {"start": first.start.id}))
        await self._send(first, None)
        shown = first.start
        asked_at = time.monotonic()
        while time.monotonic() < ends_at and not self._gone.is_set():
            if time.monotonic() - asked_at > RECHECK_S:
                # Who may not watch any more comes back, and is told.
                if not await self.still_may(self._may_watch):
                    return
                asked_at = time.monotonic()
            batch = await self._next(view)
            if batch is None:
                await self._write(": still here\n\n")
                continue
            if batch.start.id != shown.id:
                await self._write(views.describe_message("restart", {"start": batch.start.id}))
            await self._send(batch, shown)
            shown = batch.start

    async def _next(self, view: View) -> Batch | None:
        """The next batch, or None after the keep-alive's time, or at once when the client goes."""
        gone = asyncio.create_task(self._gone.wait())
        news = asyncio.create_task(view.next(KEEP_ALIVE_S))
        try:
            await asyncio.wait({gone, news}, return_when=asyncio.FIRST_COMPLETED)
            return news.result() if news.done() else None
        finally:
            gone.cancel()
            news.cancel()

    async def _send(self, batch: Batch, shown: Start | None) -> None:
        """Send the start itself where it differs from what was shown, the events, the place."""
        is_new = shown is None or has_changed(shown, batch.start)
        if is_new:
            await self._send_start(batch.start)
        for event in batch.events:
            await self._write(views.describe_event(event))
        if not is_new and _brings_gpu(batch):
            await self._send_start(batch.start)
        if batch.place is not None:
            await self._write(views.describe_event(views.place_event(batch.place, time.time())))

    async def _send_start(self, start: Start) -> None:
        settings = self.lab.settings
        standing = await asyncio.to_thread(
            read_standing, self.lab.ledger, settings.hub_id, start, self.lab.courses
        )
        described = {**views.describe_start(settings, start, time.time()), **standing}
        await self._write(views.describe_message("server", described))

    async def _write(self, text: str) -> None:
        if self._gone.is_set():
            raise StreamClosedError
        data = text.encode()
        self.write(data)
        await asyncio.wait_for(self.flush(), FLUSH_S)
        self.lab.metrics.stream_bytes.inc(len(data))

    # -- writing ----------------------------------------------------------------------------

    async def post(self, username: str, servername: str = "") -> None:
        """Take an agent's report and answer with the numbers its events got."""
        try:
            await self.require_writer(username, servername)
            server = (username, servername)
            self._take(self.lab.reports, server, 1)
            report = parse_report(self.request.body)
            if len(report.events) > 1:
                self._take(self.lab.reports, server, len(report.events) - 1)
            seqs = await self._append(username, servername, report)
        except LabError as error:
            self.lab.metrics.refused.labels(error.code).inc()
            raise
        for kind, _ in report.events:
            self.lab.metrics.accepted.labels(kind).inc()
        self.lab.follower.wake(username, servername)
        self.send_json({"accepted": len(seqs), "seq": seqs[-1] if seqs else None})

    def _take(self, buckets: TokenBuckets, key: Hashable, cost: int) -> None:
        if wait_s := buckets.take(key, cost, time.monotonic()):
            raise ApiError(
                429,
                "too-many-events",
                "This server reports too much; it may go on later.",
                retry_after=retry_after(wait_s),
            )

    async def _append(self, username: str, servername: str, report: Report) -> list[int]:
        ledger, hub_id = self.lab.ledger, self.lab.settings.hub_id
        start = await asyncio.to_thread(ledger.latest_start, hub_id, username, servername)
        if start is None:
            raise ApiError(404, "no-such-server", "This server has never been started.")
        if report.start not in ("", start.id):
            raise ApiError(409, "stale-start", "This report is of an earlier start of the server.")
        if start.outcome:
            raise ApiError(409, "start-ended", "This start of the server is over.")
        if not report.events:
            return []
        length, size = await self.lab.length_of(start.id), report.stored_bytes
        has_said_all = length.seq > MAX_EVENTS_A_START - HUB_EVENTS
        if has_said_all or length.reported_bytes + size > MAX_REPORTED_BYTES:
            raise ApiError(409, "journal-full", "This start has reported all it may.")
        # Of all of the person's servers: a start is over as soon as its owner wants another.
        self._take(self.lab.report_bytes, username, size)
        # Before it is written: reports that come at once count each other.
        length.reported_bytes += size
        try:
            events = await asyncio.to_thread(ledger.append_events, start.id, report.events)
        except LabError:
            length.reported_bytes -= size  # nothing was written, and it may come again
            raise
        length.seq = events[-1].seq
        await self._note_course(start, report)
        samples = [data for kind, data in report.events if kind == "sample"]
        if samples:
            await self.lab.meter.take_report(username, servername, samples[-1])
        return [event.seq for event in events]

    async def _note_course(self, start: Start, report: Report) -> None:
        """Let an instructor see whose copy is where; a look as a student is nobody's copy."""
        course = str(start.request.get("course") or "")
        said = [data for kind, data in report.events if kind == "course"]
        if course and said and not await self.is_thrown_away(start):
            for data in said:
                await asyncio.to_thread(
                    self.lab.ledger.note_student,
                    self.lab.settings.hub_id,
                    course,
                    start.username,
                    data,
                )


def _brings_gpu(batch: Batch) -> bool:
    """Whether a lease begins with these events: its hours begin to run, too."""
    return any(one.kind == "start" and one.data.get("stage") == "gpu" for one in batch.events)
