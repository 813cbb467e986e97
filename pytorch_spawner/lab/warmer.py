"""Builds warm caches, one at a time: what was asked for in the ledger becomes a published cache.

Each build is two servers of the account ``core.warmcache.WARMER``, one after the other: the first
compiles, the second proves in a fresh container that what it is given is found and used. This
module drives them through the hub's API and reads what they print; the spawner plans them, and
``core.warmcache`` decides whether the result is worth giving to students.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from tornado.httpclient import HTTPClientError

from pytorch_spawner.adapters import engine, warm_engine
from pytorch_spawner.agent import building
from pytorch_spawner.core import warmcache
from pytorch_spawner.core.warmcache import WARMER, Cache, Target
from pytorch_spawner.errors import LabError
from pytorch_spawner.lab import hub_api
from pytorch_spawner.lab.settings import LabSettings
from pytorch_spawner.ledger.store import Ledger

log = logging.getLogger("pytorch_spawner.warmer")

_LOOK_S: Final = 1.0
# A queue for a GPU may be long; a container that was given one must come up in minutes.
_STOP_S: Final = 120.0
# What a suite prints beside our lines is of no use beyond its end.
_MAX_LOG_BYTES: Final = 32 * 1024 * 1024
_LOG_LINES: Final = 200
_GRACE_S: Final = 60.0


class BuildFailed(Exception):
    """A build ends without a cache; the text says why, as a sentence."""


@dataclass(slots=True)
class Heard:
    """What one container of a build said so far."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    failure: dict[str, Any] | None = None
    is_done: bool = False
    lines: list[str] = field(default_factory=list)

    def take(self, line: bytes) -> None:
        """Read one line of the container's log."""
        text = line.decode("utf-8", "replace")
        if not text.startswith(building.PREFIX):
            self.lines = [*self.lines[-_LOG_LINES:], text[:400]]
            return
        try:
            said = json.loads(text[len(building.PREFIX) :])
        except (ValueError, RecursionError):
            return
        if not isinstance(said, dict):
            return
        kind = said.get("kind")
        if kind == "target" and len(self.rows) < 1000:
            self.rows.append(said)
            self.lines.append(_line_of(said))
        elif kind == "versions":
            self.versions = {
                name: str(said.get(name, ""))[:40] for name in ("torch", "triton") if said.get(name)
            }
        elif kind == "failed" and self.failure is None:
            self.failure = said
            self.lines += str(said.get("tail", "")).splitlines()[-40:]
        elif kind == "done":
            self.is_done = True

    @property
    def text(self) -> str:
        """The log for people."""
        return "\n".join(self.lines)[-12_000:]


def _line_of(row: dict[str, Any]) -> str:
    size = "" if row.get("size") is None else f" at size {row.get('size')}"
    return (
        f"{row.get('name')}{size}: {_number(row.get('seconds')):.2f} s, {_whole(row.get('hits'))} "
        f"graphs from the cache, {_whole(row.get('misses'))} compiled"
    )


class Warmer:
    """One in each service process; ``run`` never ends."""

    def __init__(self, settings: LabSettings, ledger: Ledger) -> None:
        self._settings = settings
        self._ledger = ledger
        self._hub = settings.hub_id
        self._client: Any = None
        self._expired_at = -1e9

    async def run(self) -> None:
        """Build what is asked for, for ever; what another process left half done is ended first."""
        is_first = True
        while True:
            try:
                if is_first:
                    await self._end_left_over()
                    is_first = False
                await self._expire_now_and_then()
                build = await self._call(lambda ledger: ledger.next_cache(self._hub))
                if build is not None:
                    await self._build(build)
                    self._expired_at = -1e9
            except (LabError, HTTPClientError, OSError) as error:
                log.warning("no warm caches are built at the moment: %s", error)
            except Exception:  # a background loop: one odd answer must not end it for good
                log.exception("the building of warm caches fell over")
            await asyncio.sleep(_LOOK_S)

    async def _end_left_over(self) -> None:
        build = await self._call(lambda ledger: ledger.cache_under_way(self._hub))
        if build is not None:
            # Raises where the hub does not answer yet, and is tried again.
            await self._stop_server()
            await self._fail(build, "The lab service restarted while it was being built.", "")
            await self._clean_up(build, is_published=False)

    # -- one build --------------------------------------------------------------------------------

    async def _build(self, build: Cache) -> None:
        log.info("building warm cache %s: suite=%s", build.id, build.suite.get("name"))
        is_published, heard = False, Heard()
        try:
            try:
                await self._ensure_account()
                heard = await self._round(build, "compiling", heard)
                # Before the second server starts: by it the spawner knows which container it plans,
                # and seals what the first one made.
                cold = heard.rows
                await self._note(
                    build,
                    state="checking",
                    message="Sealing what was compiled.",
                    targets=_targets(cold, []),
                    **heard.versions,
                )
                heard = await self._round(build, "checking", Heard(lines=heard.lines))
                await self._publish(build, _targets(cold, heard.rows), heard.text)
                is_published = True
            except BuildFailed as error:
                await self._fail(build, str(error), heard.text)
            except (LabError, HTTPClientError, OSError) as error:
                await self._fail(build, _reason(error), heard.text)
        finally:
            await self._clean_up(build, is_published=is_published)

    async def _publish(self, build: Cache, targets: tuple[Target, ...], text: str) -> None:
        await self._note(build, targets=targets, log=text)
        if why := warmcache.why_not_published(targets):
            raise BuildFailed(why)
        await self._note(build, state="published", message="")
        await self._call(lambda ledger: ledger.promote_cache(self._hub, build.id, build.by))
        log.info("published warm cache %s", build.id)

    async def _ensure_account(self) -> None:
        try:
            await hub_api.ask(self._settings, hub_api.user_path(WARMER), "POST", body=b"")
        except HTTPClientError as error:
            if error.code != 409:  # 409: it is there
                raise

    async def _round(self, build: Cache, doing: str, heard: Heard) -> Heard:
        """Start a server, read what it prints until it is done, stop it.

        Raises:
            BuildFailed: It did not start, something in it failed, it took too long, or somebody
                asked to stop.
        """
        await self._stop_server()
        options = {"image": build.image, "on_busy": "queue"}
        options |= {"gpus": "1"} if build.gpus else {"share": "none"}
        if build.gpus and build.pool:
            options["pool"] = build.pool
        began = time.time()
        body = json.dumps(options).encode()
        asking = asyncio.create_task(
            hub_api.ask(self._settings, hub_api.server_path(WARMER, ""), "POST", body=body)
        )
        asking.add_done_callback(lambda task: task.cancelled() or task.exception())
        over = threading.Event()
        try:
            container = await self._wait_for_container(build, asking, began)
            reading = asyncio.create_task(asyncio.to_thread(self._read, container, heard, over))
            await self._follow(build, doing, heard, reading)
        finally:
            asking.cancel()
            over.set()
            await self._stop_server()
        if heard.failure is not None:
            name = str(heard.failure.get("name", ""))[:60]
            said = str(heard.failure.get("message", ""))[:400]
            raise BuildFailed(f"{name}: {said}" if name else said)
        return heard

    async def _wait_for_container(
        self, build: Cache, asking: asyncio.Task[bytes], began: float
    ) -> str:
        """Wait while the start queues and is prepared; returns the running container's id."""
        while True:
            containers = await asyncio.to_thread(engine.list_containers, self._engine(), self._hub)
            for one in containers:
                if one.server == (WARMER, "") and one.is_running:
                    return one.id
            if why := await self._why_not_starting(build, asking, began):
                raise BuildFailed(why)
            await asyncio.sleep(_LOOK_S)

    async def _why_not_starting(
        self, build: Cache, asking: asyncio.Task[bytes], began: float
    ) -> str:
        if await self._is_stopped(build):
            return "Somebody stopped it."
        start = await self._call(lambda ledger: ledger.latest_start(self._hub, WARMER, ""))
        if start is not None and start.created_at >= began - 1:
            if start.ended_at is not None and start.outcome == "stopped":
                return "Its server was stopped."
            events = await self._call(lambda ledger: ledger.read_events(start.id, 0))
            for event in reversed(events):
                said = str(event.data.get("message") or event.data.get("reason") or "")
                if event.kind == "start" and event.data.get("stage") == "failed":
                    return said or "Its container did not start."
                if event.kind == "queue":
                    place = event.data.get("place")
                    await self._note(build, message=f"Number {place} in the queue. {said}")
                break
        if asking.done() and (error := asking.exception()) is not None:
            if not isinstance(error, HTTPClientError) or error.code != 599:
                return _reason(error)
            await asyncio.sleep(_LOOK_S)
        return ""

    def _read(self, container: str, heard: Heard, over: threading.Event) -> None:
        with contextlib.suppress(LabError):
            for line in warm_engine.log_lines(self._engine(), container, _MAX_LOG_BYTES):
                heard.take(line)
                if heard.is_done or over.is_set():
                    return

    async def _follow(
        self, build: Cache, doing: str, heard: Heard, reading: asyncio.Task[None]
    ) -> None:
        ends_at = time.monotonic() + float(build.suite["deadline_s"]) + _GRACE_S
        all_rows = sum(
            len(run.sizes)
            for run in building.plan(list(build.suite["targets"]), is_check=doing == "checking")
        )
        told = -1
        while not reading.done():
            if len(heard.rows) != told:
                told = len(heard.rows)
                await self._note(
                    build,
                    message=f"{doing.capitalize()}: {told} of {all_rows} done.",
                    log=heard.text,
                )
            if await self._is_stopped(build):
                raise BuildFailed("Somebody stopped it.")
            if time.monotonic() > ends_at:
                raise BuildFailed("The suite did not end before its deadline.")
            await asyncio.wait({reading}, timeout=_LOOK_S)
        if not heard.is_done and heard.failure is None:
            raise BuildFailed("Its container ended before it was done.")

    async def _stop_server(self) -> None:
        """Stop the account's server and wait until the hub has forgotten it, its GPU given back."""
        ends_at = time.monotonic() + _STOP_S
        while True:
            try:
                said = json.loads(await hub_api.ask(self._settings, hub_api.user_path(WARMER)))
            except HTTPClientError as error:
                if error.code == 404:
                    return
                raise
            server = (said.get("servers") or {}).get("")
            if server is None and not said.get("pending"):
                return
            if time.monotonic() > ends_at:
                raise BuildFailed(
                    "The server of the last build cannot be stopped; see the hub's log."
                )
            if server is None or server.get("pending") != "stop":
                with contextlib.suppress(HTTPClientError):
                    await hub_api.ask(self._settings, hub_api.server_path(WARMER, ""), "DELETE")
            await asyncio.sleep(_LOOK_S / 2)

    # -- the volume -------------------------------------------------------------------------------

    async def _clean_up(self, build: Cache, *, is_published: bool) -> None:
        with contextlib.suppress(LabError, HTTPClientError, OSError, BuildFailed):
            await self._stop_server()
        volumes = warmcache.volumes_of(self._hub, build.id)
        for name in (*volumes.passing, *(() if is_published else (volumes.cache,))):
            try:
                await asyncio.to_thread(warm_engine.remove_volume, self._engine(), name)
            except LabError as error:
                log.warning("a volume of a build stays: %s", error)

    async def _expire_now_and_then(self) -> None:
        if time.monotonic() - self._expired_at < self._settings.reconcile_s:
            return
        self._expired_at = time.monotonic()
        caches = await self._call(lambda ledger: ledger.caches(self._hub))
        cap = int(self._settings.warm_cache_gib * 2**30)
        gone = set(warmcache.to_expire(caches, self._ledger.now(), cap))
        for one in caches:
            # Also those that somebody removed while a server still had them mounted.
            is_left = one.state == "expired" and one.volume
            if (one.id in gone or is_left) and await asyncio.to_thread(
                warm_engine.remove_volume, self._engine(), one.volume
            ):
                why = "Its place was needed." if one.id in gone else one.message
                await self._call(partial(Ledger.expire_cache, cache_id=one.id, why=why))

    # -- small things -----------------------------------------------------------------------------

    async def _fail(self, build: Cache, why: str, text: str) -> None:
        log.warning("warm cache %s was not built: %s", build.id, why)
        await self._note(build, state="failed", message=why, log=text or None)

    async def _note(self, build: Cache, **facts: Any) -> None:
        await self._call(lambda ledger: ledger.note_cache(build.id, **facts))

    async def _is_stopped(self, build: Cache) -> bool:
        return bool(await self._call(lambda ledger: ledger.is_cache_stopped(build.id)))

    async def _call(self, function: Callable[[Ledger], Any]) -> Any:
        return await asyncio.to_thread(function, self._ledger)

    def _engine(self) -> Any:
        if self._client is None:
            self._client = engine.connect(self._settings.client_kwargs)
        return self._client


def _targets(cold: list[dict[str, Any]], warm: list[dict[str, Any]]) -> tuple[Target, ...]:
    """What was measured, one row for each target and size: its first run, and its check."""
    first: dict[tuple[str, int | None], dict[str, Any]] = {}
    usual: dict[str, int | None] = {}
    for row in cold:
        first.setdefault((str(row.get("name")), row.get("size")), row)
        usual.setdefault(str(row.get("name")), row.get("size"))
    checked = {(str(row.get("name")), row.get("size")): row for row in warm}
    return tuple(
        Target(
            name=name,
            size=size,
            # Only the first of a fresh process compares with the check's, which are all that.
            cold_s=_number(row.get("seconds")) if usual[name] == size else None,
            warm_s=_number(seen.get("seconds")) if (seen := checked.get((name, size))) else None,
            hits=_whole(seen.get("hits")) if seen else 0,
            misses=_whole(seen.get("misses")) if seen else 0,
        )
        for (name, size), row in first.items()
    )


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and 0 <= value < 1e6 else 0.0


def _whole(value: Any) -> int:
    return value if isinstance(value, int) and 0 <= value < 1e6 else 0


def _reason(error: BaseException) -> str:
    """What the hub or the engine said, as a sentence."""
    if isinstance(error, LabError):
        return error.public_message
    if isinstance(error, HTTPClientError):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            said = json.loads(error.response.body if error.response else b"")
            return str(said["message"])[:400]
        return f"The hub answered with {error.code}."
    return f"{type(error).__name__}: {error}"[:400]
