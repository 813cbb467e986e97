"""Builds warm caches, one at a time: what was asked for in the ledger becomes a published cache.

Each build is two servers of the account ``core.warmcache.WARMER``, one after the other: the first
compiles, the second proves in a fresh container that what it is given is found and used. This
module drives them through the hub's API and reads what they print; the spawner plans them, and
``core.warmcache`` decides whether the result is worth giving to students.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeVar

from tornado.httpclient import HTTPClientError

from pytorch_spawner.adapters import engine, warm_engine
from pytorch_spawner.agent import build_runs
from pytorch_spawner.core import warmcache
from pytorch_spawner.core.warmcache import WARMER, Cache, Target
from pytorch_spawner.errors import LabError
from pytorch_spawner.lab.accounts import Account, reason
from pytorch_spawner.lab.heard import Heard, targets_of
from pytorch_spawner.lab.settings import LabSettings
from pytorch_spawner.ledger.store import Ledger, Start

T = TypeVar("T")
log = logging.getLogger("pytorch_spawner.warmer")

_LOOK_S: Final = 1.0
# What a suite prints beside our lines is of no use beyond its end.
_MAX_LOG_BYTES: Final = 32 * 1024 * 1024
# So often the hub is asked about a server that it does not know before the start counts as lost.
_LOST_LOOKS: Final = 5
_GRACE_S: Final = 60.0


class BuildFailed(Exception):
    """A build ends without a cache; the text says why, as a sentence."""


class Warmer:
    """One in each service process; ``run`` never ends."""

    def __init__(self, settings: LabSettings, ledger: Ledger) -> None:
        self._settings = settings
        self._ledger = ledger
        self._hub = settings.hub_id
        self._client: Any = None
        self._expired_at = -1e9
        self._account = Account(settings, WARMER)

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
                is_first = True
                log.warning("no warm caches are built at the moment: %s", error)
            except Exception:  # a background loop: one odd answer must not end it for good
                is_first = True
                log.exception("the building of warm caches fell over")
            await asyncio.sleep(_LOOK_S)

    async def _end_left_over(self) -> None:
        build = await self._call(lambda ledger: ledger.cache_under_way(self._hub))
        if build is not None:
            # Raises where the hub does not answer yet, and is tried again.
            await self._account.stop()
            await self._fail(build, "The lab service restarted while it was being built.", "")
            await self._clean_up(build, is_published=False)

    # -- one build --------------------------------------------------------------------------------

    async def _build(self, build: Cache) -> None:
        log.info("building warm cache %s: suite=%s", build.id, build.suite.get("name"))
        names = frozenset(str(one["name"]) for one in build.suite["targets"])
        is_published, heard = False, Heard(names)
        try:
            try:
                await self._account.ensure()
                heard = await self._round(build, "compiling", heard)
                # Before the second server starts: by it the spawner knows which container it plans,
                # and seals what the first one made.
                cold = heard.rows
                await self._note(
                    build,
                    state="checking",
                    message="Sealing what was compiled.",
                    targets=targets_of(cold, []),
                    **heard.versions,
                )
                heard = await self._round(build, "checking", Heard(names, lines=heard.lines))
                await self._publish(build, targets_of(cold, heard.rows), heard.text)
                is_published = True
            except BuildFailed as error:
                await self._fail(build, str(error), heard.text)
            except (LabError, HTTPClientError, OSError) as error:
                await self._fail(build, reason(error), heard.text)
        except asyncio.CancelledError:
            raise  # the service ends at once; the next one tidies up
        except Exception:
            await self._clean_up(build, is_published=False)
            raise
        await self._clean_up(build, is_published=is_published)

    async def _publish(self, build: Cache, targets: tuple[Target, ...], text: str) -> None:
        await self._note(build, targets=targets, log=text)
        expected = [
            (str(run.target["name"]), size)
            for run in build_runs.plan(list(build.suite["targets"]), is_check=True)
            for size in run.sizes
        ]
        if why := warmcache.why_not_published(targets, expected):
            raise BuildFailed(why)
        if not await self._call(lambda ledger: ledger.publish_cache(self._hub, build.id, build.by)):
            raise BuildFailed("Somebody stopped it.")
        log.info("published warm cache %s", build.id)

    async def _round(self, build: Cache, doing: str, heard: Heard) -> Heard:
        """Start a server, read what it prints until it is done, stop it.

        Raises:
            BuildFailed: It did not start, something in it failed, it took too long, or somebody
                asked to stop.
        """
        await self._account.stop()
        began = time.time()
        asking = self._account.start(warmcache.options_of(build))
        over = threading.Event()
        try:
            container = await self._wait_for_container(build, asking, began)
            await self._follow(build, doing, heard, self._begin_reading(container, heard, over))
        except asyncio.CancelledError:
            raise  # the service ends; the next one stops the server
        except BaseException:
            await self._account.stop()
            raise
        finally:
            asking.cancel()
            over.set()
        await self._account.stop()
        if heard.failure is not None:
            name = str(heard.failure.get("name", ""))[:60]
            said = str(heard.failure.get("message", ""))[:400]
            raise BuildFailed(f"{name}: {said}" if name else said)
        return heard

    async def _wait_for_container(
        self, build: Cache, asking: asyncio.Task[bytes], began: float
    ) -> str:
        """Wait while the start queues and is prepared; returns the running container's id."""
        lost = 0
        while True:
            start = await self._call(lambda ledger: ledger.latest_start(self._hub, WARMER, ""))
            is_ours = start is not None and start.created_at >= began - 1
            if is_ours:
                containers = await self._with_engine(engine.list_containers, self._hub)
                for one in containers:
                    if one.label("start") == start.id and one.is_running:
                        return one.id
            if why := await self._why_not_starting(build, asking, start if is_ours else None):
                raise BuildFailed(why)
            lost = lost + 1 if asking.done() and not (await self._account.server())[0] else 0
            if lost > _LOST_LOOKS:
                raise BuildFailed("Its server did not start; see the hub's log.")
            await asyncio.sleep(_LOOK_S)

    async def _why_not_starting(
        self, build: Cache, asking: asyncio.Task[bytes], start: Start | None
    ) -> str:
        if await self._is_stopped(build):
            return "Somebody stopped it."
        if start is not None:
            events = await self._call(lambda ledger: ledger.read_events(start.id, 0))
            last = events[-1] if events else None
            said = str(last.data.get("message") or last.data.get("reason") or "") if last else ""
            if last and last.kind == "start" and last.data.get("stage") == "failed":
                return said or "Its container did not start."
            if start.ended_at is not None:
                return "Its server was stopped."
            if last and last.kind == "queue":
                place = last.data.get("place")
                await self._note(build, message=f"Number {place} in the queue. {said}")
        error = asking.exception() if asking.done() else None
        # 599: the hub took longer than the request was waited for.
        is_slow = isinstance(error, HTTPClientError) and error.code == 599
        return "" if error is None or is_slow else reason(error)

    def _begin_reading(
        self, container: str, heard: Heard, over: threading.Event
    ) -> asyncio.Future[None]:
        """Read the log in a thread that keeps no process alive."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def finish() -> None:
            if not done.done():
                done.set_result(None)

        def read() -> None:
            try:
                self._read(container, heard, over)
            finally:
                with contextlib.suppress(RuntimeError):  # the loop is closed: the service ended
                    loop.call_soon_threadsafe(finish)

        threading.Thread(target=read, daemon=True, name="warmer-log").start()
        return done

    def _read(self, container: str, heard: Heard, over: threading.Event) -> None:
        with contextlib.suppress(LabError):
            for line in warm_engine.log_lines(self._engine(), container, _MAX_LOG_BYTES):
                heard.take(line)
                if heard.is_done or over.is_set():
                    return

    async def _follow(
        self, build: Cache, doing: str, heard: Heard, reading: asyncio.Future[None]
    ) -> None:
        ends_at = time.monotonic() + float(build.suite["deadline_s"]) + _GRACE_S
        all_rows = sum(
            len(run.sizes)
            for run in build_runs.plan(list(build.suite["targets"]), is_check=doing == "checking")
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

    # -- the volume -------------------------------------------------------------------------------

    async def _clean_up(self, build: Cache, *, is_published: bool) -> None:
        """Throw away what a build leaves; what cannot go yet, the next sweep takes."""
        volumes = warmcache.volumes_of(self._hub, build.id)
        with contextlib.suppress(LabError, HTTPClientError, OSError, BuildFailed):
            await self._account.stop()
            for name in (*volumes.passing, *(() if is_published else (volumes.cache,))):
                await self._with_engine(warm_engine.remove_volume, name)
        self._expired_at = -1e9

    async def _expire_now_and_then(self) -> None:
        """Caches whose time is over, and volumes that no build and no cache owns any more."""
        if time.monotonic() - self._expired_at < self._settings.reconcile_s:
            return
        self._expired_at = time.monotonic()
        names = await self._with_engine(warm_engine.volumes_named, f"{self._hub}-warm-")
        there = {name for name in names if warmcache.is_volume_of(self._hub, name)}
        caches = await self._call(lambda ledger: ledger.caches(self._hub))
        cap = int(self._settings.warm_cache_gib * 2**30)
        for cache_id in warmcache.to_expire(caches, self._ledger.now(), cap):
            # Before its files: a start that is planned meanwhile does not find it any more.
            await self._expire(cache_id, "Its place was needed.")
        for one in caches:
            if one.volume and one.volume not in there and one.state in ("published", "expired"):
                gone = "Its volume is gone." if one.state == "published" else one.message
                await self._expire(one.id, gone)
        caches = await self._call(lambda ledger: ledger.caches(self._hub))
        owned = {one.volume for one in caches if one.state == "published"}
        for one in caches:
            if one.state in warmcache.UNDER_WAY:
                owned |= set(warmcache.volumes_of(self._hub, one.id).all)
        for name in there - owned:
            await self._with_engine(warm_engine.remove_volume, name)

    async def _expire(self, cache_id: str, why: str) -> None:
        await self._call(partial(Ledger.expire_cache, cache_id=cache_id, why=why))

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

    async def _with_engine(self, ask: Callable[..., T], *args: Any) -> T:
        """Ask the engine in a thread: connecting to one that hangs takes a minute, too."""
        return await asyncio.to_thread(lambda: ask(self._engine(), *args))

    def _engine(self) -> Any:
        if self._client is None:
            self._client = engine.connect(self._settings.client_kwargs)
        return self._client
