"""What is made of NVML's answers, on a fake that answers as real machines do."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytorch_spawner.adapters import nvml, nvml_facts
from pytorch_spawner.core.gpus import LINKS, Inventory, inventory_of

NOT_SUPPORTED, FUNCTION_NOT_FOUND, NOT_FOUND, DRIVER_NOT_LOADED, LOST = 3, 13, 6, 9, 15


class NVMLError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(f"code {value}")
        self.value = value


def fails(value: int) -> Callable[..., Any]:
    def answer(*_: Any) -> Any:
        raise NVMLError(value)

    return answer


def gpu(number: int, **answers: Any) -> dict[str, Any]:
    """One H100, by what each function answers for it; a callable is called."""
    return {
        "UUID": f"GPU-{number:08d}-0000-0000-0000-000000000000",
        "Name": "NVIDIA H100 80GB HBM3",
        "MemoryInfo": SimpleNamespace(total=81559 * 2**20),
        "CudaComputeCapability": (9, 0),
        "PciInfo": SimpleNamespace(busId=f"00000000:{number + 0x1B:02X}:00.0".encode()),
        "MigMode": [0, 0],
        "RemappedRows": (0, 0, 0, 0),
        "TotalEccErrors": 0,
        "RetiredPagesPendingStatus": fails(NOT_SUPPORTED),
        "NvLinkState": fails(NOT_SUPPORTED),
        **answers,
    }


class FakeNvml:
    """Handles are the GPUs' dictionaries; a function nobody gave an answer to is not there."""

    NVMLError = NVMLError

    def __init__(self, *gpus: Mapping[str, Any], **functions: Any) -> None:
        self.gpus = gpus
        self.functions = {
            "nvmlInit": lambda: None,
            "nvmlShutdown": lambda: None,
            "nvmlSystemGetDriverVersion": lambda: "580.159.04",
            "nvmlDeviceGetCount": lambda: len(gpus),
            "nvmlDeviceGetHandleByIndex": lambda index: gpus[index],
            "nvmlDeviceGetP2PStatus": lambda *_: 0,
            "nvmlDeviceGetTopologyCommonAncestor": lambda *_: 50,
            **functions,
        }

    def __getattr__(self, name: str) -> Any:
        if name in self.functions:
            if self.functions[name] is None:
                raise AttributeError(name)
            return self.functions[name]
        key = name.removeprefix("nvmlDeviceGet")

        def ask(handle: Mapping[str, Any], *arguments: Any) -> Any:
            if key not in handle:
                raise NVMLError(FUNCTION_NOT_FOUND)
            answer = handle[key]
            return answer(*arguments) if callable(answer) else answer

        if not name.startswith("nvmlDeviceGet"):
            raise AttributeError(name)
        return ask


def read(fake: FakeNvml, sys_root: Path | str = "/nowhere") -> Inventory:
    facts = nvml_facts.read_facts(fake, str(sys_root))
    return inventory_of(json.loads(json.dumps(facts)))


def links(inventory: Inventory) -> dict[tuple[int, int], tuple[str, bool | None]]:
    place = {gpu.uuid: number for number, gpu in enumerate(inventory.gpus)}
    return {
        (place[gpu.uuid], place[link.uuid]): (link.kind, link.has_p2p)
        for gpu in inventory.gpus
        for link in gpu.links
    }


def test_eight_gpus_on_an_nvswitch_are_all_linked() -> None:
    # The remote end of every link is a switch, as an HGX board has it.
    switch = SimpleNamespace(busId="00000000:05:00.0")
    ends = {"NvLinkState": lambda link: 1, "NvLinkRemotePciInfo": lambda link: switch}
    fake = FakeNvml(*(gpu(number, **ends) for number in range(8)))
    inventory = read(fake)
    assert len(inventory.gpus) == 8
    assert inventory.reason == ""
    assert len(links(inventory)) == 56
    assert set(links(inventory).values()) == {("nvlink", True)}
    first = inventory.gpus[0]
    assert first.name == "NVIDIA H100 80GB HBM3"
    assert (first.memory_mib, first.compute_capability) == (81559, (9, 0))
    assert (first.driver, first.pci, first.mode) == ("580.159.04", "0000:1b:00.0", "exclusive")
    assert (first.numa_node, first.health, first.index) == (None, "", 0)


def test_without_the_p2p_function_one_switch_or_a_direct_link_is_an_nvlink() -> None:
    def ends(*addresses: str) -> dict[str, Any]:
        return {
            "NvLinkState": lambda link: int(link < len(addresses)),
            "NvLinkRemotePciInfo": lambda link: SimpleNamespace(busId=addresses[link]),
        }

    # 0 and 1 share a switch, 2 reaches 3 directly, 4 reaches 3 too, but not 2.
    fake = FakeNvml(
        gpu(0, **ends("00000000:05:00.0")),
        gpu(1, **ends("00000000:05:00.0", "N/A")),
        gpu(2, **ends("00000000:1E:00.0")),
        gpu(3, **ends("00000000:1D:00.0", "00000000:1F:00.0")),
        gpu(4, **ends("00000000:1E:00.0")),
        nvmlDeviceGetP2PStatus=None,
    )
    found = links(read(fake))
    assert {pair for pair, said in found.items() if said == ("nvlink", None)} == {
        (0, 1), (1, 0), (2, 3), (3, 2), (3, 4), (4, 3),
    }  # fmt: skip
    assert found[2, 4] == ("system", None)


@pytest.mark.parametrize(
    ("end", "kind"),
    [(2, "nvlink"), (0xFF, "host-bridge"), (fails(NOT_SUPPORTED), "host-bridge")],
    ids=["a switch", "NVML does not know what", "NVML does not say what"],
)
def test_in_a_virtual_machine_the_nvswitch_has_no_address(end: Any, kind: str) -> None:
    ends = {
        "NvLinkState": lambda link: 1 if link < 18 else fails(2)(),
        "NvLinkRemotePciInfo": SimpleNamespace(busId=b"FFFFFFFF:FF:FF.0"),
        "NvLinkRemoteDeviceType": end,
    }
    fake = FakeNvml(
        gpu(0, **ends),
        gpu(1, **ends),
        nvmlDeviceGetP2PStatus=None,
        nvmlDeviceGetTopologyCommonAncestor=lambda *_: 30,
    )
    assert set(links(read(fake)).values()) == {(kind, None)}


def test_a_box_with_two_numa_nodes(tmp_path: Path) -> None:
    for number in range(4):
        place = tmp_path / f"bus/pci/devices/0000:{number + 0x1B:02x}:00.0"
        place.mkdir(parents=True)
        (place / "numa_node").write_text(f"{number // 2}\n")

    def ancestor(one: Mapping[str, Any], other: Mapping[str, Any]) -> int:
        numbers = {int(one["UUID"][4:12]), int(other["UUID"][4:12])}
        return {frozenset({0, 1}): 10, frozenset({2, 3}): 30}.get(frozenset(numbers), 50)

    fake = FakeNvml(
        *(gpu(number) for number in range(4)),
        # No NVLink; peer-to-peer is said to be off, except behind the switch.
        nvmlDeviceGetP2PStatus=lambda one, other, index: (
            0 if index == 0 and ancestor(one, other) == 10 else 5
        ),
        nvmlDeviceGetTopologyCommonAncestor=ancestor,
    )
    inventory = read(fake, tmp_path)
    assert [gpu.numa_node for gpu in inventory.gpus] == [0, 0, 1, 1]
    found = links(inventory)
    assert found[0, 1] == ("pcie-switch", True)
    assert found[3, 2] == ("host-bridge", False)
    assert found[0, 3] == ("system", False)


@pytest.mark.parametrize(
    ("said", "node"),
    [("-1\n", None), ("0\n", 0), ("N/A", None), ("", None)],
    ids=["the firmware does not say", "node 0 is a node", "no number", "an empty file"],
)
def test_the_numa_node_is_the_kernels(tmp_path: Path, said: str, node: int | None) -> None:
    place = tmp_path / "bus/pci/devices/0000:1b:00.0"
    place.mkdir(parents=True)
    (place / "numa_node").write_text(said)
    # NVML's own number is that of the GPU's memory, and must not be taken for it.
    assert read(FakeNvml(gpu(0, NumaNodeId=7)), tmp_path).gpus[0].numa_node == node


def test_every_level_of_the_topology_is_a_kind() -> None:
    kinds = [nvml_facts._KINDS[level] for level in sorted(nvml_facts._KINDS)]
    assert set(kinds) | {"nvlink"} == set(LINKS)
    assert kinds == sorted(kinds, key=LINKS.index)
    fake = FakeNvml(
        gpu(0),
        gpu(1),
        nvmlDeviceGetP2PStatus=lambda *_: 6,  # NVML_P2P_STATUS_UNKNOWN
        nvmlDeviceGetTopologyCommonAncestor=lambda *_: 99,
    )
    assert links(read(fake)) == {}


def mig_gpu(*instances: Mapping[str, Any]) -> dict[str, Any]:
    def instance(place: int) -> Mapping[str, Any]:
        if place >= len(instances):
            raise NVMLError(NOT_FOUND)
        return instances[place]

    return gpu(0, MigMode=[1, 1], MaxMigDeviceCount=7, MigDeviceHandleByIndex=instance)


def test_mig_instances_are_devices_and_follow_their_gpu() -> None:
    fake = FakeNvml(
        mig_gpu(
            {
                "UUID": "MIG-aaaaaaaa-0000-0000-0000-000000000000",
                "Name": "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
                "MemoryInfo": SimpleNamespace(total=9856 * 2**20),
            },
            {
                "UUID": "MIG-bbbbbbbb-0000-0000-0000-000000000000",
                "Name": "NVIDIA H100 80GB HBM3 MIG 1c.3g.40gb",
                "MemoryInfo": SimpleNamespace(total=40448 * 2**20),
            },
        ),
        gpu(1),
    )
    whole, small, middle, other = read(fake).gpus
    assert (whole.mode, whole.slots, whole.mig_profile) == ("mig", 0, "")
    assert (small.mode, small.slots, small.mig_profile) == ("exclusive", 1, "1g.10gb")
    assert (middle.mig_profile, middle.memory_mib) == ("1c.3g.40gb", 40448)
    assert small.memory_mib == 9856
    assert small.parent == middle.parent == whole.uuid
    assert (small.pci, small.index, small.compute_capability) == (whole.pci, 0, (9, 0))
    assert small.links == ()
    assert (other.mode, other.parent) == ("exclusive", "")


@pytest.mark.parametrize(
    ("slices", "compute", "memory_mib", "profile"),
    [
        (1, 1, 9856, "1g.10gb"),
        (3, 3, 40448, "3g.40gb"),
        (3, 1, 40448, "1c.3g.40gb"),
        (7, 7, 80896, "7g.80gb"),
        (1, 1, 20096, "1g.20gb"),
        (0, 0, 0, ""),
    ],
    ids=["an eighth", "half", "a part of a half", "all of it", "a quarter", "nothing said"],
)
def test_a_profile_that_the_name_does_not_tell_comes_from_the_size(
    slices: int, compute: int, memory_mib: int, profile: str
) -> None:
    size = SimpleNamespace(
        memorySizeMB=memory_mib,
        gpuInstanceSliceCount=slices,
        computeInstanceSliceCount=compute,
    )
    instance = {"UUID": "MIG-aaaaaaaa", "Name": "NVIDIA H100", "Attributes": size}
    assert read(FakeNvml(mig_gpu(instance))).gpus[1].mig_profile == profile


def test_a_gpu_in_mig_mode_without_instances_is_given_to_nobody() -> None:
    assert [gpu.slots for gpu in read(FakeNvml(mig_gpu())).gpus] == [0]


def test_what_an_old_binding_or_driver_lacks_is_unknown() -> None:
    bare = {"UUID": "GPU-00000001", "Name": "Tesla K80"}
    fake = FakeNvml(
        bare,
        {**bare, "UUID": "GPU-00000002"},
        nvmlSystemGetDriverVersion=None,
        nvmlDeviceGetP2PStatus=fails(FUNCTION_NOT_FOUND),
        nvmlDeviceGetTopologyCommonAncestor=None,
        nvmlDeviceGetNvLinkState=None,
        nvmlDeviceGetMigMode=None,
    )
    found = read(fake).gpus[0]
    assert (found.name, found.driver, found.mode) == ("Tesla K80", "", "exclusive")
    assert (found.memory_mib, found.compute_capability, found.numa_node) == (None, None, None)
    assert (found.pci, found.links, found.health) == ("", (), "")


@pytest.mark.parametrize("nothing", ["N/A", b"N/A", None, "", -1, fails(NOT_SUPPORTED)], ids=repr)
def test_an_answer_that_says_nothing_is_unknown_and_never_zero(nothing: Any) -> None:
    said = dict.fromkeys(
        ("Name", "MemoryInfo", "CudaComputeCapability", "PciInfo", "RemappedRows",
         "TotalEccErrors", "RetiredPagesPendingStatus", "NvLinkState"), nothing,
    )  # fmt: skip
    ask = nothing if callable(nothing) else lambda *_: nothing
    fake = FakeNvml(
        gpu(0, **said),
        gpu(1, **said, MigMode=fails(NOT_SUPPORTED)),
        nvmlSystemGetDriverVersion=ask,
        nvmlDeviceGetP2PStatus=ask,
        nvmlDeviceGetTopologyCommonAncestor=ask,
    )
    inventory = read(fake)
    assert [gpu.index for gpu in inventory.gpus] == [0, 1]
    for found in inventory.gpus:
        assert (found.name, found.driver, found.pci, found.health) == ("", "", "", "")
        assert (found.memory_mib, found.compute_capability) == (None, None)
        assert found.links == ()


def test_no_memory_is_unknown_memory() -> None:
    memory = SimpleNamespace(total=0)
    assert read(FakeNvml(gpu(0, MemoryInfo=memory))).gpus[0].memory_mib is None


@pytest.mark.parametrize(
    ("answers", "health"),
    [
        ({}, ""),
        ({"RemappedRows": (3, 1, 0, 0)}, ""),
        ({"RemappedRows": (0, 1, 1, 0)}, "waits for"),
        ({"RemappedRows": (0, 1, 1, 1)}, "exchanged"),
        ({"RetiredPagesPendingStatus": 1}, "waits for"),
        ({"TotalEccErrors": 1}, "1 memory error that"),
        ({"TotalEccErrors": 12}, "12 memory errors that"),
        ({"TotalEccErrors": fails(LOST), "RemappedRows": (0, 0, 0, 1)}, "fallen off"),
        ({"Name": fails(LOST)}, "fallen off"),
        ({"MemoryInfo": fails(16)}, "reset"),
    ],
    ids=[
        "a healthy GPU",
        "rows were remapped, and work",
        "a remapping waits for a reset",
        "a remapping failed",
        "pages wait to be retired",
        "one error that ECC could not correct",
        "twelve of them",
        "lost at the last question, which is the worst",
        "lost at the first question",
        "the driver asks for a reset",
    ],
)
def test_what_speaks_against_a_gpu(answers: dict[str, Any], health: str) -> None:
    unwell, well = read(FakeNvml(gpu(0, **answers), gpu(1))).gpus
    assert health in unwell.health
    assert bool(unwell.health) == bool(health)
    assert unwell.health.endswith("." if health else "")
    assert well.health == ""


def test_a_lost_neighbour_speaks_against_nobody_else() -> None:
    fake = FakeNvml(
        gpu(0),
        gpu(1, Name=fails(LOST)),
        nvmlDeviceGetP2PStatus=fails(LOST),
        nvmlDeviceGetTopologyCommonAncestor=fails(LOST),
    )
    assert [bool(gpu.health) for gpu in read(fake).gpus] == [False, True]


def test_a_sick_gpu_speaks_against_its_instances() -> None:
    instance = {"UUID": "MIG-aaaaaaaa", "Name": "NVIDIA H100 MIG 1g.10gb"}
    sick = {**mig_gpu(instance), "RemappedRows": (0, 0, 0, 1)}
    assert [bool(gpu.health) for gpu in read(FakeNvml(sick)).gpus] == [True, True]


@pytest.mark.parametrize(
    ("fake", "reason"),
    [
        (FakeNvml(nvmlInit=fails(DRIVER_NOT_LOADED)), "No NVIDIA driver answers (code 9)."),
        (FakeNvml(), "The NVIDIA driver is there, but it sees no GPU."),
        (FakeNvml(gpu(0), nvmlDeviceGetCount=fails(999)), "answers with an error (code 999)."),
        (FakeNvml(gpu(0), nvmlDeviceGetHandleByIndex=fails(LOST)), "1 of 1 GPUs"),
        (FakeNvml(gpu(0, UUID=fails(LOST))), "1 of 1 GPUs"),
        (FakeNvml(nvmlShutdown=fails(1)), "sees no GPU"),
    ],
    ids=[
        "no driver",
        "no GPU",
        "a driver that answers nothing",
        "the only GPU is lost",
        "the only GPU does not say who it is",
        "no GPU, and NVML does not shut down",
    ],
)
def test_no_gpu_is_a_value_with_a_reason(fake: FakeNvml, reason: str) -> None:
    inventory = read(fake)
    assert inventory.gpus == ()
    assert reason in inventory.reason


def test_one_gpu_of_two_that_is_lost_leaves_the_other() -> None:
    fake = FakeNvml(gpu(0), gpu(1, UUID=fails(LOST)))
    assert [gpu.index for gpu in read(fake).gpus] == [0]
    assert nvml_facts.read_facts(fake)["reason"].startswith("1 of 2 GPUs")


def test_nvml_is_shut_down_whatever_happened() -> None:
    shut: list[int] = []
    stop = {"nvmlShutdown": lambda: shut.append(1)}
    nvml_facts.read_facts(FakeNvml(gpu(0), **stop))
    nvml_facts.read_facts(FakeNvml(nvmlDeviceGetCount=fails(999), **stop))
    assert shut == [1, 1]


def test_the_hubs_own_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(gpu(0)))
    assert [gpu.name for gpu in nvml.read_inventory().gpus] == ["NVIDIA H100 80GB HBM3"]
    monkeypatch.setitem(sys.modules, "pynvml", None)  # as where it is not installed
    assert nvml.read_inventory().reason == "nvidia-ml-py is not installed beside the hub."


def test_the_file_prints_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(gpu(0)))
    nvml_facts.main()
    monkeypatch.setitem(sys.modules, "pynvml", None)
    nvml_facts.main()
    one, other = capsys.readouterr().out.splitlines()
    assert inventory_of(json.loads(one)).gpus[0].driver == "580.159.04"
    assert inventory_of(json.loads(other)).reason == "nvidia-ml-py cannot be loaded."


def test_the_file_travels_alone_to_python_3_9() -> None:
    source = Path(nvml_facts.__file__).read_text(encoding="utf-8")
    tree = ast.parse(source, feature_version=(3, 9))
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else
                     [alias.name for alias in node.names])
    }  # fmt: skip
    assert imported - set(sys.stdlib_module_names) == {"pynvml"}
