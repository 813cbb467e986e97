"""A spawner that does nothing: what remains of a burst of starts is the hub's own work."""

from __future__ import annotations

import asyncio

from jupyterhub.spawner import Spawner
from traitlets import Float


class NullSpawner(Spawner):
    """Waits as long as a container takes and names a server that was there before."""

    wait_s = Float(2.5, config=True, help="Seconds from a start until the server answers.")

    async def start(self) -> str:
        self._runs = True
        await asyncio.sleep(self.wait_s)
        return f"http://127.0.0.1:{self.port}"

    async def poll(self) -> int | None:
        return None if self._runs else 0

    async def stop(self, now: bool = False) -> None:
        self._runs = False

    _runs = False
