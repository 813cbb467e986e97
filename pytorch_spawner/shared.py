"""What all spawners of one hub process share: the ledger, the engine's client, the inventory.

A spawner object lives from a login to a stop and is made anew after every failure, so nothing that
must outlive it is kept on it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, TypeVar

from pytorch_spawner.adapters import engine, nvml, passwd
from pytorch_spawner.adapters.lanes import Lanes
from pytorch_spawner.agent import bundle
from pytorch_spawner.core import identity, plan
from pytorch_spawner.core.gpus import GpuUuid, Inventory, parse_inventory
from pytorch_spawner.core.journal import Event
from pytorch_spawner.core.request import Request
from pytorch_spawner.errors import LabError
from pytorch_spawner.ledger.store import Ledger, Start

T = TypeVar("T")
log = logging.getLogger("pytorch_spawner")

_THREADS = 32
# How long an answer of the driver or the engine is believed; a new GPU shows within this time.
_INVENTORY_S = 30
_INJECTION_S = 30


class Lab:
    """One per hub process, ledger and hub id; see ``of``."""

    _labs: ClassVar[dict[tuple[str, str], Lab]] = {}
    _making = threading.Lock()  # protects _labs

    def __init__(self, ledger_url: str, hub: str, client_kwargs: Mapping[str, Any]) -> None:
        self.hub = hub
        self.lanes = Lanes(_THREADS)
        self._ledger_url = ledger_url
        self._client_kwargs = dict(client_kwargs)
        self._ledger: Ledger | None = None
        self._client: Any = None
        # Of their own, so that an engine that hangs holds up neither the journal nor what else uses
        # asyncio's default threads, such as the hub's own name look-ups.
        self._ledger_threads = ThreadPoolExecutor(8, thread_name_prefix="ledger")
        self._opening_ledger = threading.Lock()  # protects _ledger
        self._connecting = threading.Lock()  # protects _client
        self._inventory: tuple[float, Any, Inventory] | None = None
        self._injection: tuple[float, plan.Injection] | None = None
        self._names: dict[str, tuple[str, str]] = {}
        self._agent = b""

    @classmethod
    def of(cls, ledger_url: str, hub: str, client_kwargs: Mapping[str, Any]) -> Lab:
        """Return the one Lab of this ledger and hub, making it on first use."""
        with cls._making:
            key = (ledger_url, hub)
            if key not in cls._labs:
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

    def injection(self) -> plan.Injection:
        """How the engine puts GPUs into containers; blocking, asked again every 30 s."""
        now = time.monotonic()
        if self._injection is None or now - self._injection[0] > _INJECTION_S:
            self._injection = (now, engine.find_injection(self.client))
        return self._injection[1]

    def occupied_by_others(self, username: str, servername: str) -> frozenset[GpuUuid]:
        """UUIDs that running containers of other servers carry; blocking."""
        return frozenset(
            GpuUuid(gpu)
            for container in engine.list_containers(self.client, self.hub)
            if container.is_running and container.server != (username, servername)
            for gpu in container.gpus
        )

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

    # -- inventory ------------------------------------------------------------------------------

    async def inventory(self, static: tuple[tuple[tuple[str, Any], ...], ...]) -> Inventory:
        """The GPUs: the static list where there is one, else the driver's, asked every 30 s."""
        now = time.monotonic()
        known = self._inventory
        if known is None or known[1] != static or now - known[0] > _INVENTORY_S:
            inventory = (
                parse_inventory([dict(device) for device in static])
                if static
                else await asyncio.to_thread(nvml.read_inventory)
            )
            if known is None or known[2] != inventory:
                try:
                    await self.call(lambda ledger: ledger.write_inventory(self.hub, inventory))
                except LabError as error:
                    log.warning("the inventory was not written down: %s", error)
            self._inventory = known = (now, static, inventory)
        return known[2]

    # -- the ledger -----------------------------------------------------------------------------

    def ledger(self) -> Ledger:
        """The ledger, opened on first use; blocking.

        Raises:
            LedgerUnavailable: It cannot be opened; tried again at the next call.
        """
        with self._opening_ledger:
            if self._ledger is None:
                self._ledger = Ledger.open(self._ledger_url)
            return self._ledger

    async def call(self, function: Callable[[Ledger], T]) -> T:
        """Run one of the ledger's transactions in a thread."""
        return await asyncio.get_running_loop().run_in_executor(
            self._ledger_threads, lambda: function(self.ledger())
        )

    async def begin_start(self, username: str, servername: str, wanted: Request) -> Start:
        """Write down that a server starts."""
        return await self.call(
            lambda ledger: ledger.begin_start(self.hub, username, servername, wanted.as_json())
        )

    async def end_start(self, start: Start, outcome: str) -> None:
        """Write down how a start ended."""
        try:
            await self.call(lambda ledger: ledger.end_start(start.id, outcome))
        except LabError as error:
            log.warning("the end of start %s was not written down: %s", start.id, error)

    async def finish(self, username: str, servername: str, start: Start | None) -> None:
        """Release what a server held and close its journal; after its container is gone."""

        def close(ledger: Ledger) -> None:
            # The end first: from then on a thread of this start that is still under way takes
            # nothing any more.
            last = start or ledger.latest_start(self.hub, username, servername)
            if last is not None and ledger.end_start(last.id, "stopped"):
                ledger.append_events(
                    last.id,
                    [("start", {"stage": "stopped", "message": "Your server is stopped."})],
                )
            ledger.release(self.hub, username, servername, "stopped")

        await self.call(close)

    async def tell(self, start: Start, stage: str, message: str, **facts: Any) -> None:
        """Add an event of the hub to a start's journal."""
        data = {"stage": stage, "message": message, **facts}
        try:
            await self.call(lambda ledger: ledger.append_events(start.id, [("start", data)]))
        except LabError as error:
            log.warning("the journal of start %s was not written: %s", start.id, error)

    async def read_events(self, start: Start, after_seq: int) -> tuple[Event, ...]:
        """The journal of a start from an entry on; empty while the ledger cannot be read."""
        try:
            return await self.call(lambda ledger: ledger.read_events(start.id, after_seq))
        except LabError:
            return ()

    # -- people ---------------------------------------------------------------------------------

    async def passwd_identity(self, username: str) -> identity.Identity | None:
        """The uid of the user of that name on the hub's machine."""
        said = await asyncio.to_thread(passwd.read_uid, username)
        return identity.identity_from_mapping(said, "passwd", username)

    async def prepare(
        self,
        places: Sequence[engine.Place],
        who: identity.Identity,
        image: str,
        lane: str,
        *,
        pull: Callable[[], Awaitable[None]],
    ) -> bool:
        """Make homes and caches that were not made before; returns whether there was any."""
        # The first connection may wait for an engine that hangs: never on the event loop.
        client = await self.in_lane(lane, lambda: self.client)
        labels = {plan.LABEL + "hub": self.hub + "-helper"}

        def missing() -> list[tuple[engine.Place, str]]:
            found = []
            for place in places:
                born = (
                    engine.volume_birth(client, place.volume, {plan.LABEL + "owner": str(who.uid)})
                    if place.volume
                    else "bind"
                )
                if not self.ledger().is_prepared(place.source, born, who.uid):
                    found.append((place, born))
            return found

        todo = await self.in_lane(lane, missing)
        if not todo:
            return False
        await pull()
        await self.in_lane(
            lane,
            lambda: engine.prepare_places(
                client, image, [place for place, _ in todo], who.uid, who.gid, labels
            ),
        )
        for place, born in todo:
            source = place.source
            await self.call(
                lambda ledger, source=source, born=born: ledger.mark_prepared(  # type: ignore[misc]
                    source, born, who.uid
                )
            )
        return True
