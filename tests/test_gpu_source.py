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
from pytorch_spawner.errors import BadRequest, LedgerUnavailable
from pytorch_spawner.gpu_source import GpuSource, Spec

TWO = Inventory((Gpu(GpuUuid("GPU-0000")), Gpu(GpuUuid("GPU-0001"), 1)))
NONE = Inventory(reason="The driver does not answer.")


class Source(GpuSource):
    """Answers that a test gives, in order; the last one again and again."""

    def __init__(
        self,
        *answers: Inventory,
        known: Inventory = NONE,
        good_s: float = 0.0,
        takes_s: float = 0.01,
    ) -> None:
        self.written: list[Inventory] = []
        self.good_s, self.takes_s = good_s, takes_s
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
        await asyncio.sleep(self.takes_s)
        found = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return found, self.good_s


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


async def test_a_hub_looks_at_its_gpus_before_anybody_starts_a_server() -> None:
    source = Source(TWO)
    for _ in range(3):  # three people log in
        source.look_ahead(Spec())
    await asyncio.sleep(0.05)
    assert (source.written, source.asked) == ([TWO], 1)
    source.look_ahead(Spec())
    await asyncio.sleep(0.05)
    assert source.asked == 1


async def test_what_an_early_look_did_not_find_is_looked_for_again_before_the_first_start() -> None:
    source = Source(NONE, TWO, good_s=30.0)
    source.look_ahead(Spec())
    await asyncio.sleep(0.05)
    found = await asyncio.gather(*(source.read(Spec()) for _ in range(30)))
    assert (set(found), source.asked) == ({TWO}, 2)


async def test_a_lab_without_gpus_is_looked_at_no_more_often_for_it() -> None:
    source = Source(NONE, good_s=30.0)
    source.look_ahead(Spec())
    await asyncio.sleep(0.05)
    for _ in range(3):
        assert await source.read(Spec()) == NONE
    assert source.asked == 2


async def test_nobody_waits_long_for_a_look_where_none_was_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gpu_source, "_PATIENCE_S", 0.05)
    source = Source(NONE, TWO)
    assert await source.read(Spec()) == NONE
    source.takes_s = 0.5
    began = time.monotonic()
    assert await source.read(Spec()) == NONE
    assert time.monotonic() - began < 0.4
    await asyncio.sleep(0.6)
    assert await source.read(Spec()) == TWO


async def test_what_could_not_be_written_down_is_written_at_the_next_look() -> None:
    source = Source(TWO)
    call = source._lab.call
    source._lab.call = down  # type: ignore[method-assign]
    await source.read(Spec())
    source._lab.call = call  # type: ignore[method-assign]
    assert source.written == []
    await look(source)
    assert source.written == [TWO]


async def test_a_ledger_that_comes_late_is_not_told_that_there_are_none() -> None:
    source = Source(NONE, NONE, TWO, known=TWO)
    call = source._lab.call
    source._lab.call = down  # type: ignore[method-assign]
    assert await source.read(Spec()) == NONE
    source._lab.call = call  # type: ignore[method-assign]
    assert await source.read(Spec()) == TWO, "as the ledger remembers them"
    assert source.written == []


async def test_a_wrong_setting_that_shows_late_is_told_to_everybody() -> None:
    source = Source(NONE, TWO)
    wrong = Spec(modes={"*": "nonsense"})
    assert await source.read(wrong) == NONE
    for _ in range(3):
        with pytest.raises(BadRequest):
            await source.read(wrong)


async def test_two_early_looks_are_believed_no_more_than_one() -> None:
    source = Source(NONE, NONE, TWO)
    for source.good_s in (0.0, 30.0):
        source.look_ahead(Spec())
        await asyncio.sleep(0.05)
    assert source.asked == 2
    assert await source.read(Spec()) == TWO


async def down(_function: Any) -> None:
    raise LedgerUnavailable("The ledger does not answer.")


@pytest.mark.parametrize(("known", "told"), [(NONE, 1), (TWO, 0)])
async def test_a_wrong_setting_is_told_where_no_gpu_is_known(known: Inventory, told: int) -> None:
    source = Source(TWO, known=known)
    for _ in range(2):
        with pytest.raises(BadRequest):
            await source.read(Spec(modes={"*": "nonsense"}))
    assert ["nonsense" in one.reason for one in source.written] == [True] * told


async def test_whoever_comes_later_makes_the_hub_look_again_where_it_found_none() -> None:
    source = Source(NONE, TWO)
    for _ in range(2):
        source.look_ahead(Spec())
        await asyncio.sleep(0.05)
    assert source.written[-1] == TWO


async def test_a_wrong_setting_is_not_looked_at_for_everybody_who_comes() -> None:
    source = Source(TWO)
    for _ in range(3):
        source.look_ahead(Spec(modes={"*": "nonsense"}))
        await asyncio.sleep(0.05)
    assert source.asked == 1


def test_a_spawner_that_is_looked_at_without_a_hub_asks_for_no_gpus() -> None:
    source = Source(TWO)
    source.look_ahead(Spec())
    assert source.asked == 0


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
