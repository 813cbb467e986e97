from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytorch_spawner.core.gpus import Gpu, GpuUuid, Inventory, parse_inventory
from pytorch_spawner.core.request import Request
from pytorch_spawner.core.scheduling import choose
from pytorch_spawner.errors import BadRequest, NoGpuAvailable


def gpu(number: int, pool: str = "default", memory_mib: int = 1000) -> Gpu:
    return Gpu(GpuUuid(f"GPU-{number:04d}"), index=number, pool=pool, memory_mib=memory_mib)


FOUR = Inventory((gpu(0), gpu(1), gpu(2, memory_mib=500), gpu(3, "big", 80000)))


@pytest.mark.parametrize(
    ("occupied", "request_", "expected"),
    [
        ((), Request("i", 0), ()),
        ((), Request("i", 1, "whole"), ("GPU-0002",)),
        (("GPU-0002",), Request("i", 1, "whole"), ("GPU-0000",)),
        ((), Request("i", 1, "whole", "big"), ("GPU-0003",)),
        ((), Request("i", 3, "whole"), ("GPU-0002", "GPU-0000", "GPU-0001")),
        (("GPU-9999",), Request("i", 1, "whole"), ("GPU-0002",)),
    ],
    ids=[
        "none asked",
        "smallest first",
        "next when held",
        "named pool",
        "three of one pool",
        "an unknown holder does not matter",
    ],
)
def test_which_gpus(
    occupied: tuple[str, ...], request_: Request, expected: tuple[str, ...]
) -> None:
    held = {GpuUuid(uuid) for uuid in occupied}
    assert tuple(found.uuid for found in choose(FOUR, held, request_)) == expected


def test_a_busy_lab_says_what_is_free_and_whom_to_ask() -> None:
    with pytest.raises(NoGpuAvailable) as busy:
        choose(FOUR, {GpuUuid("GPU-0003")}, Request("i", 1, "whole", "big"))
    assert (busy.value.wanted, busy.value.free) == (1, 0)
    assert "ask the lab's admin" in busy.value.public_message


def test_what_no_pool_could_ever_serve_is_a_bad_request() -> None:
    with pytest.raises(BadRequest, match="4 GPUs, but this lab has 3"):
        choose(FOUR, set(), Request("i", 4, "whole"))


@given(st.integers(0, 6), st.sets(st.integers(0, 5)), st.integers(0, 6))
def test_never_one_that_is_occupied_and_never_one_twice(
    count: int, held: set[int], wanted: int
) -> None:
    inventory = Inventory(tuple(gpu(number) for number in range(count)))
    occupied = {GpuUuid(f"GPU-{number:04d}") for number in held}
    try:
        got = choose(inventory, occupied, Request("i", wanted, "whole" if wanted else "none"))
    except (BadRequest, NoGpuAvailable):
        free = [g for g in inventory.gpus if g.uuid not in occupied]
        assert len(free) < wanted
        return
    assert len(got) == len({g.uuid for g in got}) == wanted
    assert not occupied & {g.uuid for g in got}


def test_a_static_list_names_every_fault() -> None:
    with pytest.raises(BadRequest) as refused:
        parse_inventory([{"uuid": "x"}, {"uuid": "GPU-1234", "memory_mib": -1, "colour": "red"}])
    for fault in ("device 0: uuid", "device 1: unknown key colour", "memory_mib -1"):
        assert fault in refused.value.public_message
    with pytest.raises(BadRequest, match="twice"):
        parse_inventory([{"uuid": "GPU-1234"}, {"uuid": "GPU-1234"}])


def test_a_static_list_is_read() -> None:
    inventory = parse_inventory([{"uuid": "GPU-1234", "compute_capability": "9.0"}])
    assert inventory.gpus[0].compute_capability == (9, 0)
    assert inventory.gpus[0].qualified_cdi_name == "nvidia.com/gpu=GPU-1234"
    assert parse_inventory([]).reason
