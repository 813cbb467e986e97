"""What all spawners of one hub process share: the ledger, the engine's client, the inventory.

A spawner object lives from a login to a stop and is made anew after every failure, so nothing that
must outlive it is kept on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, Final, TypeVar

from pytorch_spawner.adapters import engine, engine_events
from pytorch_spawner.adapters.lanes import Lanes
from pytorch_spawner.agent import bundle
from pytorch_spawner.agent.machine import is_busy
from pytorch_spawner.core.catalog import Image
from pytorch_spawner.core.courses import Course
from pytorch_spawner.core.injection import Injection
from pytorch_spawner.core.journal import Event
from pytorch_spawner.core.request import Request
from pytorch_spawner.dispatch import Dispatcher
from pytorch_spawner.errors import LabError, LedgerUnavailable
from pytorch_spawner.gpu_source import GpuSource
from pytorch_spawner.homes import Homes
from pytorch_spawner.ledger.store import Ledger, Start
from pytorch_spawner.turns import StartingPlaces

T = TypeVar("T")
log = logging.getLogger("pytorch_spawner")

_THREADS = 32
_PULLS = 4
# How long the engine's answer is believed.
_INJECTION_S = 30
# A hub that starts has its own work to do first.
_SETTLE_S = 2.0


def _settle_memory_soon() -> None:
    """Leave what a hub has loaded by now out of every later garbage collection.

    That is most of its heap, and nearly nothing of it ever ends: with it, a full collection in the
    middle of a class's starts stops the hub for several times as long (docs: measurements).
    """

    def settle() -> None:
        gc.collect()
        gc.freeze()

    with contextlib.suppress(RuntimeError):  # no hub: a script, a test
        asyncio.get_running_loop().call_later(_SETTLE_S, settle)


class Lab:
    """One per hub process, ledger and hub id; see ``of``."""

    _labs: ClassVar[dict[tuple[str, str], Lab]] = {}
    _making = threading.Lock()  # protects _labs

    def __init__(self, ledger_url: str, hub: str, client_kwargs: Mapping[str, Any]) -> None:
        self.hub = hub
        self.lanes = Lanes(_THREADS)
        # A pull takes minutes: of their own, so that a class with a new image holds up nobody.
        self.pulls = Lanes(_PULLS)
        self._client_kwargs = dict(client_kwargs)
        self._ledger = Ledger(ledger_url)
        self._client: Any = None
        # Of their own, so that an engine that hangs holds up neither the journal nor what else uses
        # asyncio's default threads, such as the hub's own name look-ups.
        self._ledger_threads = ThreadPoolExecutor(8, thread_name_prefix="ledger")
        self._connecting = threading.Lock()  # protects _client
        self.queue = Dispatcher(self)
        self.gpus = GpuSource(self)
        self.homes = Homes(self)
        self.starting = StartingPlaces(is_busy)
        self._watched: dict[str, Callable[[], None]] = {}
        self._is_watching = False
        self._injection: tuple[float, Injection] | None = None
        self._names: dict[str, tuple[str, str]] = {}
        self._agent = b""
        self._images: tuple[int, tuple[Image, ...]] | None = None
        self._courses: tuple[int, tuple[Course, ...]] | None = None
        self._prepulled: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    def of(cls, ledger_url: str, hub: str, client_kwargs: Mapping[str, Any]) -> Lab:
        """Return the one Lab of this ledger and hub, making it on first use."""
        with cls._making:
            key = (ledger_url, hub)
            if key not in cls._labs:
                if not cls._labs:
                    _settle_memory_soon()
                cls._labs[key] = cls(ledger_url, hub, client_kwargs)
            return cls._labs[key]

    # -- the engine -----------------------------------------------------------------------------

    @property
    def client(self) -> Any:
        """docker-py's client, connected on first use and kept."""
        with self._connecting:
            if self._client is None:
                self._client = engine.connect(self._client_kwargs)
            return self._client

    def injection(self) -> Injection:
        """How the engine puts GPUs into containers; blocking, asked again every 30 s."""
        now = time.monotonic()
        if self._injection is None or now - self._injection[0] > _INJECTION_S:
            self._injection = (now, engine.find_injection(self.client))
        return self._injection[1]

    @property
    def is_engine_local(self) -> bool:
        """Whether the engine runs on this machine, so that its GPUs are ours."""
        where = str(self._client_kwargs.get("base_url") or os.environ.get("DOCKER_HOST") or "")
        return not where.startswith(("tcp:", "http:", "https:", "ssh:"))

    def watch(self, container: str, on_end: Callable[[], None]) -> None:
        """Call ``on_end`` in the event loop as soon as the engine says that a container ended."""
        self._watched[container] = on_end
        if not self._is_watching:
            self._is_watching = True
            loop = asyncio.get_running_loop()
            engine_events.follow_in_background(
                self._client_kwargs,
                self.hub,
                lambda name: _in_loop(loop, lambda: self._ended(name)),
            )

    def unwatch(self, container: str) -> None:
        """Forget a container."""
        self._watched.pop(container, None)

    def _ended(self, container: str) -> None:
        # "": the connection was lost, and any of them may have ended meanwhile.
        named = {container} if container else set(self._watched)
        for name in named & set(self._watched):
            self._watched[name]()

    async def image_names(self, container: str, image: str, lane: str) -> tuple[str, str]:
        """An image's /etc/passwd and /etc/group, read once per image id."""
        client = await self.in_lane(lane, lambda: self.client)
        image_id = str(
            (await self.in_lane(lane, lambda: client.inspect_container(container)))["Image"]
        )
        if image_id not in self._names:
            self._names[image_id] = await self.in_lane(
                lane,
                lambda: (
                    engine.read_file(client, container, "/etc/passwd"),
                    engine.read_file(client, container, "/etc/group"),
                ),
            )
        return self._names[image_id]

    async def in_lane(self, lane: str, call: Callable[[], T]) -> T:
        return await asyncio.wrap_future(self.lanes.submit(lane, call))

    @property
    def agent(self) -> bytes:
        """The agent's zipapp, built once per process."""
        if not self._agent:
            self._agent = bundle.build(None)
        return self._agent

    def prepull(self, images: Iterable[str], pull: Callable[[str], Awaitable[None]]) -> None:
        """Pull images in the background, one after the other; those named before are done."""
        new = [image for image in dict.fromkeys(images) if image not in self._prepulled]
        self._prepulled.update(new)

        async def run() -> None:
            for image in new:
                await pull(image)

        if new:
            task = asyncio.create_task(run(), name="prepull")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    # -- the ledger -----------------------------------------------------------------------------

    def ledger(self) -> Ledger:
        """The ledger; it opens itself at its first use, and again after a failure."""
        return self._ledger

    async def call(self, function: Callable[[Ledger], T]) -> T:
        """Run one of the ledger's transactions in a thread."""
        return await asyncio.get_running_loop().run_in_executor(
            self._ledger_threads, lambda: function(self.ledger())
        )

    async def courses(self) -> tuple[Course, ...]:
        """Every course; while the ledger cannot be read, as they were last.

        Raises:
            LedgerUnavailable: They were never read.
        """

        def read(ledger: Ledger) -> tuple[Course, ...]:
            # Not the ledger's own version: every ticket moves that, so each start of a class would
            # read all manifests. Asked for before they are read: a change meanwhile is read again.
            version = ledger.courses_version(self.hub)
            if self._courses is None or self._courses[0] != version:
                self._courses = version, ledger.courses(self.hub)
            return self._courses[1]

        try:
            return await self.call(read)
        except LedgerUnavailable:
            if self._courses is None:
                raise
            return self._courses[1]

    async def scanned_images(self) -> tuple[Image, ...]:
        """Every image that was scanned; read again as ``courses`` are."""

        def read(ledger: Ledger) -> tuple[Image, ...]:
            version = ledger.images_version(self.hub)
            if self._images is None or self._images[0] != version:
                self._images = version, ledger.images(self.hub)
            return self._images[1]

        return await self.call(read)

    async def begin_start(
        self, username: str, servername: str, wanted: Request, groups: Sequence[str], lane: str
    ) -> Start:
        """Write down that a server starts.

        In the server's lane: what a start that was cancelled left under way comes first, and does
        not end the one after it.
        """
        return await self.in_lane(
            lane,
            lambda: self.ledger().begin_start(
                self.hub, username, servername, wanted.as_json(), groups
            ),
        )

    async def end_start(self, start: Start, outcome: str) -> None:
        """Write down how a start ended."""
        try:
            await self.call(lambda ledger: ledger.end_start(start.id, outcome))
        except LabError as error:
            log.warning("the end of start %s was not written down: %s", start.id, error)

    async def finish(
        self, username: str, servername: str, start: Start | None, keep_s: float = 0.0
    ) -> bool:
        """Release what a server held and close its journal; after its container is gone.

        Args:
            username: Whose server it is.
            servername: Which.
            start: The start that ends; None for the server's latest.
            keep_s: Keep its GPUs for it that long: it ended unexpectedly.

        Returns:
            Whether GPUs are kept for it.
        """

        def close(ledger: Ledger) -> bool:
            # The end first: from then on a thread of this start that is still under way takes
            # nothing any more.
            last = start or ledger.latest_start(self.hub, username, servername)
            if last is not None:
                has_ended = ledger.end_start(last.id, "stopped")
                if start is not None:
                    ledger.leave(last.id)
                else:
                    # A start of the hub's life before this one: it may come back to its place.
                    ledger.mark_server_away(self.hub, username, servername)
                if has_ended:
                    said = _ENDED if keep_s else _STOPPED
                    ledger.append_events(
                        last.id, [("start", {"stage": "stopped", "message": said})]
                    )
            if keep_s:
                return ledger.keep(self.hub, username, servername, keep_s) > 0
            ledger.release(self.hub, username, servername, "stopped")
            return False

        is_kept = await self.call(close)
        self.queue.look()
        return is_kept

    async def tell(self, start: Start, stage: str, message: str, **facts: Any) -> None:
        """Add an event of the hub to a start's journal."""
        await self.note(start, "start", {"stage": stage, "message": message, **facts})

    async def note(self, start: Start, kind: str, data: Mapping[str, Any]) -> None:
        """Add any event to a start's journal; a journal that cannot be written stops nobody."""
        try:
            await self.call(lambda ledger: ledger.append_events(start.id, [(kind, data)]))
        except LabError as error:
            log.warning("the journal of start %s was not written: %s", start.id, error)

    async def read_events(self, start: Start, after_seq: int) -> tuple[Event, ...]:
        """The journal of a start from an entry on; empty while the ledger cannot be read."""
        try:
            return await self.call(lambda ledger: ledger.read_events(start.id, after_seq))
        except LabError:
            return ()


_STOPPED: Final = "Your server is stopped."
_ENDED: Final = "Your server ended by itself; its GPU is kept for you for a moment."


def _in_loop(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    try:
        loop.call_soon_threadsafe(call)
    except RuntimeError:  # the loop is closed: the hub ends
        return
