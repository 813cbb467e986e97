"""The lab service as a process of its own, with 64 GPUs that are not there: what viewers look at.

``python -m tests.benchmarks.viewed_lab '<json>'``. Everything is the service's own, except that the
driver's and the engine's answers are made up: each GPU runs one process of whoever holds it, and
every value of every GPU moves from one look to the next.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import Sequence
from typing import Any

from jupyterhub.services.auth import HubOAuth
from tornado.netutil import bind_sockets

from pytorch_spawner.adapters.engine import LabContainer
from pytorch_spawner.adapters.nvml_meter import Process, Reading
from pytorch_spawner.core.gpus import Gpu, GpuUuid, Inventory
from pytorch_spawner.core.metering import Sample
from pytorch_spawner.core.plan import LABEL
from pytorch_spawner.lab.app import build_lab, make_server
from pytorch_spawner.lab.measure import Meter
from pytorch_spawner.lab.settings import LabSettings
from pytorch_spawner.ledger.store import Ledger

HUB = "bench"
MEMORY_MIB = 81_559
ENTER = "access:services!service=lab"


def devices(count: int) -> Inventory:
    """So many GPUs with UUIDs as long as real ones."""
    return Inventory(
        tuple(
            Gpu(
                GpuUuid(f"GPU-{number:08x}-1111-2222-3333-444444444444"),
                number,
                "NVIDIA H100 80GB HBM3",
                MEMORY_MIB,
                (9, 0),
                "580.159.04",
                pool=("teaching", "research")[number % 2],
            )
            for number in range(count)
        )
    )


def student(number: int) -> str:
    """Who holds that GPU."""
    return f"student{number:04d}"


class Driver:
    """What a driver with busy GPUs would say."""

    def __init__(self, inventory: Inventory) -> None:
        self._gpus = inventory.gpus
        self._random = random.Random(4)

    def read(self) -> Reading:
        """Everything moves; a process's memory does too, as an allocator's does."""
        now, roll = time.time(), self._random
        samples = {
            gpu.uuid: Sample(
                now,
                float(roll.randint(0, 100)),
                roll.randint(0, MEMORY_MIB),
                float(roll.randint(30, 85)),
                round(roll.uniform(60, 700), 1),
            )
            for gpu in self._gpus
        }
        processes: dict[GpuUuid, list[Process]] = {
            gpu.uuid: [(10_000 + gpu.index, "python3", 20_000 + roll.randint(0, 64))]
            for gpu in self._gpus
        }
        return Reading(samples, processes)

    def containers(self) -> Sequence[LabContainer]:
        """One a GPU."""
        return [
            LabContainer(
                f"{gpu.index:064x}",
                f"lab-{student(gpu.index)}",
                True,
                {f"{LABEL}hub": HUB, f"{LABEL}server": f"{student(gpu.index)}/"},
            )
            for gpu in self._gpus
        ]

    @staticmethod
    def containers_of(pid: int) -> Sequence[str]:
        """The container whose process it is."""
        return [f"{pid - 10_000:064x}"]


async def serve(said: dict[str, Any]) -> None:
    """Serve until killed."""
    settings = LabSettings(
        hub_id=HUB,
        ledger=said["ledger"],
        hub_api_url=said["hub"],
        api_token="service",
        port=said["port"],
    )
    ledger = Ledger.open(settings.ledger)
    hub_auth = HubOAuth(
        api_token="service",
        api_url=settings.hub_api_url,
        base_url=settings.prefix,
        hub_prefix="/hub/",
        oauth_client_id="service-lab",
        oauth_redirect_uri=f"{settings.prefix}oauth_callback",
        access_scopes={ENTER},
    )
    driver = Driver(devices(said["gpus"]))
    meter = Meter(
        settings,
        ledger,
        read=driver.read,
        containers=driver.containers,
        containers_of=driver.containers_of,
    )
    lab = build_lab(settings, ledger, hub_auth, meter=meter)
    make_server(lab).add_sockets(bind_sockets(settings.port, settings.host))
    await lab.meter.run()


if __name__ == "__main__":
    asyncio.run(serve(json.loads(sys.argv[1])))
