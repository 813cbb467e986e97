"""How a list of GPUs is read: as an admin writes it, and as a driver's answer comes in."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest

from pytorch_spawner.core.gpus import (
    MIG_PROFILE,
    Gpu,
    GpuUuid,
    Link,
    build_gpu,
    gpu_share,
    inventory_of,
    parse_inventory,
)
from pytorch_spawner.errors import BadRequest

FULL: dict[str, Any] = {
    "uuid": "GPU-0001",
    "index": 3,
    "name": "NVIDIA H100 80GB HBM3",
    "memory_mib": 81559,
    "compute_capability": [9, 0],
    "driver": "580.159.04",
    "mode": "shared:4",
    "mig_profile": "",
    "parent": "",
    "pci": "0000:1b:00.0",
    "numa_node": 1,
    "links": [{"uuid": "GPU-0002", "kind": "nvlink", "has_p2p": True}],
    "health": "It had 2 memory errors.",
}
OTHER: dict[str, Any] = {"uuid": "GPU-0002"}
GPU = Gpu(
    GpuUuid("GPU-0001"), 3, "NVIDIA H100 80GB HBM3", 81559, (9, 0), "580.159.04",
    mode="shared:4", pci="0000:1b:00.0", numa_node=1,
    links=(Link(GpuUuid("GPU-0002"), "nvlink", has_p2p=True),), health="It had 2 memory errors.",
)  # fmt: skip


def test_every_key_is_read_the_same_way_from_a_list_and_from_a_driver() -> None:
    assert parse_inventory([FULL, OTHER]).gpus == (GPU, Gpu(GpuUuid("GPU-0002"), 1))
    assert inventory_of({"devices": [FULL, OTHER]}).gpus[0] == GPU
    assert parse_inventory([{**FULL, "links": tuple(FULL["links"])}, OTHER]).gpus[0] == GPU


def test_a_mig_instance_is_read() -> None:
    inventory = parse_inventory(
        [
            {"uuid": "GPU-0001", "mode": "mig"},
            {"uuid": "MIG-0002", "mig_profile": "1g.10gb", "parent": "GPU-0001"},
        ]
    )
    assert [gpu.slots for gpu in inventory.gpus] == [0, 1]
    assert inventory.gpus[1].parent == inventory.gpus[0].uuid


@pytest.mark.parametrize(
    "profile",
    [
        "1g.5gb",
        "7g.80gb",
        "1c.3g.40gb",
        "1g.10gb+me",
        "1g.24gb+me.all",
        "4g.96gb+gfx",
        "1g.24gb-me",
    ],
)
def test_profiles_as_nvidia_writes_them(profile: str) -> None:
    gpus = parse_inventory([{"uuid": "MIG-0002", "mig_profile": profile}]).gpus
    assert gpus[0].mig_profile == profile


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [
        ({"mode": "shared:1"}, "mode 'shared:1' is not"),
        ({"mode": 7}, "mode 7 is not"),
        ({"mig_profile": "small"}, "mig_profile 'small' is not of the form 1g.10gb"),
        ({"mig_profile": None}, "mig_profile None"),
        ({"parent": "0"}, "parent '0' is not of the form GPU-..."),
        ({"pci": "1b:00"}, "pci '1b:00' is not of the form 0000:1b:00.0"),
        ({"numa_node": -1}, "numa_node -1 is not a whole number"),
        ({"numa_node": True}, "numa_node True is not"),
        ({"index": "first"}, "index 'first' is not a whole number"),
        ({"memory_mib": 0}, "memory_mib 0 is not a positive whole number"),
        ({"memory_mib": True}, "memory_mib True is not"),
        ({"compute_capability": "nine"}, "compute_capability 'nine' is not of the form 9.0"),
        ({"compute_capability": [9, 0, 1]}, "compute_capability [9, 0, 1] is not"),
        ({"name": None}, "name None is not a line"),
        ({"name": "two\nlines"}, "name 'two\\nlines' is not a line"),
        ({"health": "x" * 301}, "is not a line of at most 300 characters"),
        ({"is_simulated": "no"}, "is_simulated 'no' is not True or False"),
        ({"drained": "broken"}, "unknown key colour, drained"),
        ({"links": "GPU-0002"}, "links 'GPU-0002' is no list"),
        ({"links": ["GPU-0002"]}, "link 'GPU-0002' has not the keys"),
        ({"links": [{"uuid": "GPU-0002"}]}, "has not the keys uuid, kind and has_p2p"),
        ({"links": [{"uuid": "GPU-9", "kind": "nvlink"}]}, "'GPU-9', which is not in the list"),
        ({"links": [{"uuid": [], "kind": "nvlink"}]}, "link to [], which is not in the list"),
        ({"links": [{"uuid": "GPU-0001", "kind": "nvlink"}]}, "which is itself"),
        ({"links": [{"uuid": "GPU-0002", "kind": "nvlink"}] * 2}, "or named before"),
        (
            {"links": [{"uuid": "GPU-0002", "kind": "rope"}]},
            "link kind 'rope' is not one of nvlink",
        ),
        ({"links": [{"uuid": "GPU-0002", "kind": [], "has_p2p": 1}]}, "has_p2p 1 is not"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_fault_of_a_device_is_named(wrong: dict[str, Any], fault: str) -> None:
    with pytest.raises(BadRequest) as refused:
        parse_inventory([{"uuid": "GPU-0001", **wrong, "colour": "red"}, OTHER, {"uuid": 1}])
    said = refused.value.public_message
    assert fault in said
    assert "device 0: unknown key colour" in said
    assert "device 2: uuid 1 is not of the form" in said


def test_a_device_that_is_no_mapping_or_has_no_uuid_is_named() -> None:
    with pytest.raises(BadRequest) as refused:
        parse_inventory(["GPU-0001", {}])  # type: ignore[list-item]
    assert "device 0: 'GPU-0001' is no mapping" in refused.value.public_message
    assert "device 1: uuid None is not of the form" in refused.value.public_message


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        (None, "not readable"),
        ([], "not readable"),
        ({"devices": {}}, "not readable"),
        ({}, "not readable"),
        ({"devices": [], "reason": "It sees no GPU."}, "It sees no GPU."),
        ({"devices": []}, "lists no GPU"),
        ({"devices": [], "reason": ["x"]}, "lists no GPU"),
        ({"devices": [], "reason": "x" * 10_000}, "lists no GPU"),
        ({"devices": [], "reason": "\x1b[2J"}, "lists no GPU"),
        ({"devices": [1, None, []]}, "device 2: [] is no mapping"),
        ({"devices": [OTHER, OTHER]}, "twice"),
        ({"devices": [{**OTHER, "pool": "theirs"}]}, "unknown key pool"),
        ({"devices": [{**OTHER, "cdi_name": "x/y=z"}]}, "unknown key cdi_name"),
        ({"devices": [{**OTHER, "is_simulated": True}]}, "unknown key is_simulated"),
        ({"devices": [{"uuid": ["GPU-0001"]}]}, "uuid ['GPU-0001'] is not"),
        ({"devices": [{**OTHER, "x" * 999: 1}]}, "unknown key xxx"),
    ],
    ids=[
        "nothing",
        "a list",
        "devices that are no list",
        "no devices at all",
        "no GPU, with a reason",
        "no GPU, without a reason",
        "a reason that is no text",
        "a reason that is too long",
        "a reason that would clear a terminal",
        "devices that are no devices",
        "one GPU twice",
        "a pool, which only an admin gives",
        "a CDI name, which only an admin gives",
        "a simulated GPU, which only an admin has",
        "a UUID that is a list",
        "a key without end",
    ],
)
def test_what_a_driver_is_said_to_say_is_never_an_error(facts: object, reason: str) -> None:
    inventory = inventory_of(facts)
    assert inventory.gpus == ()
    assert reason in inventory.reason
    assert len(inventory.reason) <= 300


def test_a_device_comes_back_from_its_own_json() -> None:
    drained = Gpu(GpuUuid("GPU-0003"), drained="The fan is loud.", cdi_name="x/y=z", pool="big")
    for gpu in (GPU, drained):
        assert build_gpu(9, json.loads(json.dumps(asdict(gpu)))) == gpu


@pytest.mark.parametrize(
    ("profile", "mode", "expected"),
    [
        ("", "exclusive", 1.0),
        ("", "shared:4", 1 / 4),
        ("1g.10gb", "exclusive", 1 / 7),
        ("3g.40gb", "exclusive", 3 / 7),
        ("1c.3g.40gb", "exclusive", 1 / 7),
        ("2c.4g.40gb", "shared:2", 1 / 7),
        ("1g.24gb+me.all", "exclusive", 1 / 7),
        ("9g.80gb", "exclusive", 1.0),
    ],
)
def test_every_mig_profile_there_may_be_has_a_share(
    profile: str, mode: str, expected: float
) -> None:
    assert not profile or MIG_PROFILE.fullmatch(profile)
    assert gpu_share(Gpu(GpuUuid("MIG-1"), mig_profile=profile, mode=mode)) == expected


def test_a_gpu_is_not_given_beside_its_own_instances() -> None:
    whole = {"uuid": "GPU-1234", "mode": "mig"}
    parts = [
        {"uuid": f"MIG-{number:04d}", "mig_profile": "1g.10gb", "parent": "GPU-1234"}
        for number in range(2)
    ]
    assert len(parse_inventory([whole, *parts]).gpus) == 3
    assert len(parse_inventory(parts).gpus) == 2, "a parent that is not listed is given to nobody"
    for mode in ("exclusive", "shared:2"):
        with pytest.raises(BadRequest) as refused:
            parse_inventory([{**whole, "mode": mode}, *parts])
        for place in (1, 2):
            fault = f"device {place}: parent 'GPU-1234' is listed without the mode \"mig\""
            assert fault in refused.value.public_message
    with pytest.raises(BadRequest, match="without the mode"):
        parse_inventory([{"uuid": "GPU-1234"}, parts[0]])
