"""What a hub believes about its GPUs while drivers and engines come and go."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from pytorch_spawner import gpu_source
from pytorch_spawner.core.gpus import Gpu, GpuUuid, Inventory
from pytorch_spawner.gpu_source import GpuSource, Spec

TWO = Inventory((Gpu(GpuUuid("GPU-0000")), Gpu(GpuUuid("GPU-0001"), 1)))
NONE = Inventory(reason="The driver does not answer.")


class Source(GpuSource):
    """Answers that a test gives, in order; the last one again and again."""

    def __init__(self, *answers: Inventory, known: Inventory = NONE) -> None:
        self.written: list[Inventory] = []
        ledger = SimpleNamespace(
            write_inventory=lambda _hub, said: self.written.append(said),
            read_inventory=lambda _hub: known,
        )

        async def call(function: Any) -> Any:
            return function(ledger)

        super().__init__(SimpleNamespace(hub="lab", call=call))  # type: ignore[arg-type]
        self.answers = list(answers)
        self.asked = 0

    async def _raw(self, spec: Spec) -> tuple[Inventory, float]:
        self.asked += 1
        await asyncio.sleep(0.01)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0], 0.0


async def look(source: Source, spec: Spec | None = None) -> Inventory:
    """Ask twice, let the answer to the second in the background arrive, ask again."""
    await source.read(spec or Spec())
    await source.read(spec or Spec())
    await asyncio.sleep(0.05)
    return await source.read(spec or Spec())


async def test_gpus_that_do_not_answer_for_a_moment_send_nobody_away() -> None:
    source = Source(TWO, NONE)
    assert await look(source) == TWO
    assert await look(source) == TWO
    assert source.written == [TWO]


async def test_gpus_that_stay_away_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_source, "_LOST_S", 0.0)
    source = Source(TWO, NONE)
    await look(source)
    assert await look(source) == NONE


async def test_a_gpu_fewer_is_believed_at_once() -> None:
    one = Inventory(TWO.gpus[:1])
    assert await look(Source(TWO, one)) == one


async def test_a_hub_that_is_up_before_the_driver_knows_the_gpus_of_before() -> None:
    source = Source(NONE, TWO, known=TWO)
    assert await source.read(Spec()) == TWO
    assert source.written == [], "nothing is forgotten either"
    assert await look(source) == TWO


async def test_a_lab_without_gpus_says_why_at_once() -> None:
    assert await Source(NONE).read(Spec()) == NONE


async def test_a_class_that_comes_at_once_asks_the_driver_once() -> None:
    source = Source(TWO)
    found = await asyncio.gather(*(source.read(Spec()) for _ in range(30)))
    assert set(found) == {TWO}
    assert source.asked == 1


async def test_another_helper_image_is_no_other_lab() -> None:
    source = Source(TWO)
    await source.read(Spec(helper_image="one"))
    source._good_until = 1e18
    assert await source.read(Spec(helper_image="two")) == TWO
    assert source.asked == 1


class Driver:
    """A driver that answers once it is released."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self.reads = 0

    def read(self) -> Inventory:
        self.reads += 1
        self.released.wait(10)
        return TWO


@pytest.fixture
def hung(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    driver = Driver()
    monkeypatch.setattr(gpu_source.nvml, "read_inventory", driver.read)
    monkeypatch.setattr(gpu_source, "_DEADLINE_S", 0.3)
    monkeypatch.setattr(gpu_source, "_SOON_S", 0.0)
    yield driver
    driver.released.set()


def here(known: Inventory = NONE) -> GpuSource:
    ledger = SimpleNamespace(write_inventory=lambda *_: None, read_inventory=lambda _hub: known)

    async def call(function: Callable[[Any], Any]) -> Any:
        return function(ledger)

    lab = SimpleNamespace(hub="lab", call=call, is_engine_local=True)
    return GpuSource(lab)  # type: ignore[arg-type]


async def test_a_driver_that_hangs_is_waited_for_once_and_never_joined(hung: Driver) -> None:
    source = here()
    first = await asyncio.wait_for(source.read(Spec(helper_image="one")), 5)
    assert first.gpus == ()
    assert first.reason.startswith("The NVIDIA driver did not answer within 0.3 s. Run nvidia-smi")
    began = time.monotonic()
    pools = Spec(pools={"GPU-0000": "big"})  # another question: it would be asked anew
    assert (await source.read(pools)).reason == first.reason
    assert time.monotonic() - began < 0.2
    (reading,) = [one for one in threading.enumerate() if one.name == "gpu-driver"]
    assert reading.daemon, "the hub could not end"
    assert hung.reads == 1


async def test_what_a_driver_says_late_counts(hung: Driver) -> None:
    source = here()
    assert (await source.read(Spec())).gpus == ()
    hung.released.set()
    deadline = time.monotonic() + 5
    while (await source.read(Spec())).gpus != TWO.gpus:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    assert hung.reads == 1


async def test_while_a_driver_hangs_the_gpus_of_before_are_believed(hung: Driver) -> None:
    source = here(known=TWO)
    assert await asyncio.wait_for(source.read(Spec()), 5) == TWO
    assert hung.reads == 1
