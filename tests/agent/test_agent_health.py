"""The state of GPUs, from what nvidia-smi prints: as documented, and when something is sick."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytorch_spawner.agent import device_watch, gpus, health, limits
from pytorch_spawner.agent.config import Config, Gpu
from pytorch_spawner.agent.gpus import Driver
from pytorch_spawner.agent.health import Reading

A, B = "GPU-aaaaaaaa-0000-0000-0000-000000000001", "GPU-bbbbbbbb-0000-0000-0000-000000000002"
MIG = "MIG-cccccccc-0000-0000-0000-000000000003"
WHOLE = Config(gpus=(Gpu(A, "H100", 81559),), share="whole")
INSTANCE = Config(gpus=(Gpu(MIG, "H100 1g.10gb", 9856),), share="slot")
SLOT = Config(gpus=(Gpu(A, "H100", 20480),), share="slot")
NONE = Config(gpus=(), share="none")
SIMULATED = Config(gpus=(Gpu("GPU-sim", simulated=True),), share="whole")
NAMES = [name for name, _, _ in health._FIELDS]

# uuid, bus, pstate, utilisation, temperature, of the memory, reasons, ecc, pending, link, memory
H100 = (f"{A}, 00000000:3B:00.0, P0, 0, 31, 42, 0x0000000000000001, 0, [N/A], 5, 5, 16, 16, "
        "80994, 81559")  # fmt: skip
RTX = (f"{A}, 00000000:01:00.0, P8, 3, 44, N/A, 0x0000000000000001, [N/A], [N/A], 1, 4, 16, 16, "
       "23028, 24564")  # fmt: skip
T4 = f"{A}, 00000000:00:1E.0, P8, 0, 35, N/A, 0x0000000000000001, 0, No, 1, 3, 16, 16, 14913, 15360"
MIG_PARENT = (f"{A}, 00000000:3B:00.0, P0, [N/A], 34, 45, 0x0000000000000000, 0, [N/A], 5, 5, 16, "
              "16, 71000, 81559")  # fmt: skip
VM = f"{A}, 00000000:00:05.0, P0, 7{', [N/A]' * 9}, 4000, 4096"
NOTHING = f"{A}{', [Not Supported]' * 14}"
UNKNOWN_ERROR = f"{A}{', [Unknown Error]' * 14}"
LOST = f"{A}, 00000000:3B:00.0{', [GPU is lost]' * 13}"
RESET = f"{A}, 00000000:3B:00.0, P0{', [GPU requires reset]' * 12}"


def but(row: str, **changes: str) -> str:
    cells = row.split(", ")
    for name, value in changes.items():
        cells[NAMES.index(name)] = value
    return ", ".join(cells)


def read(row: str, config: Config = WHOLE) -> tuple[Reading, ...]:
    return health.mine(health.parse(row, NAMES), config)


@pytest.mark.parametrize(
    ("row", "level", "words"),
    [
        (H100, "ok", "The GPU is well: 31 °C, not slowed down, no memory errors."),
        (RTX, "ok", "The GPU is well: 44 °C, not slowed down."),
        (T4, "ok", "no memory errors"),
        (MIG_PARENT, "ok", "34 °C"),
        (VM, "unknown", "does not say how this GPU is"),
        (NOTHING, "unknown", "does not say how this GPU is"),
        (UNKNOWN_ERROR, "unknown", "does not say how this GPU is"),
        (LOST, "fail", "has stopped answering (GPU is lost)"),
        (RESET, "fail", "has stopped answering (GPU requires reset)"),
        ("", "unknown", "says nothing about this server's GPUs"),
        ("No devices were found", "unknown", "says nothing"),
        (H100.replace(A, B), "unknown", "says nothing"),
        ("a, b\n\n" + H100, "ok", "31 °C"),
        (but(H100, temperature_c="-3"), "ok", "The GPU is well: not slowed down"),
        (but(H100, temperature_c="nan"), "ok", "The GPU is well: not slowed down"),
        (but(H100, temperature_c="1e999"), "ok", "The GPU is well: not slowed down"),
        (but(H100, temperature_c="93"), "warn", "The GPU is hot: 93 °C."),
        (but(H100, temperature_c="93", reasons="0x0000000000000040"), "warn",
         "runs slower than it could: it is much too hot."),
        (but(H100, reasons="0x0000000000000004"), "ok", "not slowed down"),
        (but(H100, reasons="0x0000000000000003"), "ok", "not slowed down"),
        (but(H100, reasons="0x0000000000000008"), "warn", "the hardware slows it down"),
        (but(H100, reasons="0x0000000000000088"), "warn",
         "the hardware slows it down and its power supply asks it to"),
        (but(H100, reasons="Not Active"), "ok", "The GPU is well: 31 °C, no memory errors."),
        (but(H100, ecc_uncorrected="2"), "fail", "2 errors that could not be corrected"),
        (but(T4, repair_pending="Yes"), "warn", "bad memory, which is taken out of use"),
        (but(T4, repair_pending="Yes", ecc_uncorrected="1"), "fail", "1 error that could not"),
    ],
)  # fmt: skip
def test_what_is_said_of_a_gpus_health(row: str, level: str, words: str) -> None:
    found = health.gpu_health(WHOLE, read(row), None)
    assert (found.level, words in found.sentence) == (level, True), found
    assert found.level not in ("warn", "fail") or (found.remedy and found.admin_remedy)


@pytest.mark.parametrize("row", [NOTHING, UNKNOWN_ERROR, VM, LOST])
def test_what_the_driver_does_not_say_is_unknown_and_never_zero(row: str) -> None:
    (reading,) = read(row)
    values = [value for name, value in vars(reading).items() if name not in ("uuid", "bus", "gone")]
    assert 0 not in values
    assert False not in values
    assert reading.temperature_c is None


def test_the_utilisation_of_a_mig_instance_is_unknown_and_its_gpu_is_the_parent() -> None:
    (reading,) = read(MIG_PARENT, INSTANCE)
    assert (reading.uuid, reading.utilisation_pct) == (A, None)
    assert health.gpu_link(INSTANCE, (reading,)).level == "ok"


def test_of_two_gpus_the_worse_is_told() -> None:
    two = Config(gpus=(Gpu(A), Gpu(B)), share="whole")
    rows = read(f"{H100}\n{but(H100, uuid=B, ecc_uncorrected='7')}", two)
    assert health.gpu_health(two, rows, None).level == "fail"


@pytest.mark.parametrize(
    ("row", "level", "words"),
    [
        (H100, "ok", "by all of its 16 lanes"),
        (RTX, "ok", "by all of its 16 lanes"),
        (but(RTX, pstate="P2", utilisation_pct="97"), "warn", "link runs at PCIe 1 instead of 4"),
        (but(RTX, utilisation_pct="[N/A]"), "ok", "16 lanes"),
        (but(H100, link_width="8"), "warn", "connected by 8 lanes instead of 16"),
        (but(H100, link_width="[N/A]"), "unknown", "does not say how the GPU is connected"),
        (VM, "unknown", "does not say"),
        (NOTHING, "unknown", "does not say"),
        ("", "unknown", "says nothing"),
    ],
)
def test_a_link_is_judged_by_its_width_and_by_its_speed_only_under_load(
    row: str, level: str, words: str
) -> None:
    found = health.gpu_link(WHOLE, read(row))
    assert (found.level, words in found.sentence) == (level, True), found


@pytest.mark.parametrize("config", [NONE, SIMULATED])
def test_without_a_gpu_nothing_is_the_matter_with_it(config: Config) -> None:
    said = [health.gpu_health(config, None, None), health.gpu_link(config, None),
            limits.gpu_limit(config, {})]  # fmt: skip
    assert {found.level for found in said} == {"ok"}


def test_without_nvidia_smi_the_admin_reads_what_the_container_lacks() -> None:
    found = health.gpu_health(WHOLE, None, None)
    assert found.level == "unknown"
    assert "utility" in found.admin_remedy


@pytest.mark.parametrize(
    ("text", "pending", "failed"),
    [
        (f"{A}, 0, 0\n", False, False),
        (f"{A}, Yes, No\n", True, False),
        (f"{A}, 1, 1\n", True, True),
        (f"{A}, [N/A], [N/A]\n", None, None),
        (f"{B}, 1, 1\n", None, None),
        ("", None, None),
        ("Remapped rows are not supported", None, None),
    ],
)
def test_remapped_rows_are_read_in_either_writing(
    text: str, pending: bool | None, failed: bool | None
) -> None:
    (row,) = health.with_remapped(read(H100), text)
    assert (row.repair_pending, row.repair_failed) == (pending, failed)
    level = "fail" if failed else "warn" if pending else "ok"
    assert health.gpu_health(WHOLE, (row,), None).level == level


def test_what_retired_pages_said_stays_where_there_are_no_rows_to_remap() -> None:
    (row,) = health.with_remapped(read(but(T4, repair_pending="Yes")), f"{A}, [N/A], [N/A]\n")
    assert row.repair_pending is True


KMSG = """\
6,339,5140900,-;NVRM: Xid (PCI:0000:3b:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off
6,340,5140901,-;NVRM: Xid (PCI:0000:3b:00): 31, pid=77, name=python, Ch 00000008, MMU Fault
6,341,5140902,-;NVRM: Xid (PCI:0000:3b:00): 31, pid=78, name=python, Ch 00000008, MMU Fault
6,342,5140903,-;NVRM: Xid (PCI:0000:86:00): 48, pid=78, name=python, double bit
6,343,5140904,-;something else
"""


def test_xids_are_counted_for_ones_own_gpus_without_anybodys_program(tmp_path: Path) -> None:
    log = tmp_path / "kmsg"
    log.write_text(KMSG)
    errors = health.xids(["00000000:3B:00.0"], str(log))
    assert errors == {"79": 1, "31": 2}
    found = health.gpu_health(WHOLE, read(H100), errors)
    assert (found.level, "(Xid 79)" in found.sentence) == ("warn", True)
    assert "python" not in str(found)


def test_a_programs_own_mistakes_are_no_trouble_of_the_gpu() -> None:
    assert health.gpu_health(WHOLE, read(H100), {"31": 2, "13": 1, "43": 4}).level == "ok"


def test_kernel_messages_that_cannot_be_read_are_unknown(tmp_path: Path) -> None:
    assert health.xids(["00000000:3B:00.0"], str(tmp_path / "none")) is None
    found = health.gpu_health(WHOLE, read(H100), None)
    assert dict(found.facts)["xids"] is None


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    script = tmp_path / "nvidia-smi"
    script.touch(mode=0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return script


REFUSES = """#!/bin/sh
echo "$1" >> {log}
case "$1" in
  --query-remapped-rows=*) echo "{rows}"; exit 0;;
  *clocks_event_reasons*) echo 'Field "clocks_event_reasons.active" is not a valid field to query.'
    echo; exit 2;;
  *temperature.memory*) echo 'Field "temperature.memory" is not a valid field to query.'; exit 2;;
esac
echo "{row}"
"""


def test_fields_that_an_older_nvidia_smi_refuses_are_renamed_or_left_out(
    smi: Path, tmp_path: Path
) -> None:
    cells = H100.split(", ")
    del cells[NAMES.index("memory_temperature_c")]
    log = tmp_path / "log"
    smi.write_text(REFUSES.format(log=log, rows=f"{A}, 0, 0", row=", ".join(cells)))
    (reading,) = health.look(WHOLE) or ()
    assert (reading.temperature_c, reading.memory_temperature_c, reading.reasons) == (31, None, 1)
    assert reading.repair_failed is False
    asked = log.read_text().splitlines()
    assert len(asked) == 4
    assert "clocks_throttle_reasons.active" in asked[1]


@pytest.mark.parametrize(
    "script",
    [
        "exit 9",
        "echo 'Failed to initialize NVML: Unknown Error'; exit 255",
        "echo 'Field \"uuid\" is not a valid field to query.'; exit 2",
        "echo 'Field \"what\" is not a valid field to query.'; exit 2",
        "head -c 3000000 /dev/zero | tr '\\0' ','",
        "printf '\\377\\376,\\n\"'",
    ],
)
def test_a_sick_nvidia_smi_is_no_reading(smi: Path, script: str) -> None:
    smi.write_text(f"#!/bin/sh\n{script}\n")
    assert health.look(WHOLE) == ()


def test_one_lost_gpu_does_not_hide_the_other(smi: Path) -> None:
    smi.write_text(
        f"#!/bin/sh\necho '{H100}'\n"
        "echo 'Unable to determine the device handle for GPU0000:86:00.0: Unknown Error'\nexit 15\n"
    )
    assert [row.uuid for row in health.look(WHOLE) or ()] == [A]


def test_the_checks_of_a_container_share_what_nvidia_smi_said(
    smi: Path, tmp_path: Path, pyz: Path, container_env: Callable[..., dict[str, str]]
) -> None:
    log = tmp_path / "log"
    smi.write_text(
        f"""#!/bin/sh
echo "$1" >> {log}
case "$1" in
  -L) echo 'GPU 0: NVIDIA H100 (UUID: {A})';;
  --query-gpu=driver_version) echo 580.1;;
  --query-gpu=*) echo '{but(H100, link_width="8")}';;
  *) echo '{A}, 1, 0';;
esac
"""
    )
    env = container_env({"gpus": [{"uuid": A}], "share": "whole", "cache_dir": str(tmp_path)})
    env["PATH"] = f"{tmp_path}:{env['PATH']}"
    done = subprocess.run(
        [sys.executable, str(pyz), "--report", "--json"],
        env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    checks = {check["code"]: check for check in json.loads(done.stdout)}
    assert {code: checks[code]["level"] for code in ("gpu-health", "gpu-link", "gpu-limit")} == {
        "gpu-health": "warn", "gpu-link": "warn", "gpu-limit": "ok",
    }, checks  # fmt: skip
    assert "8 lanes instead of 16" in checks["gpu-link"]["sentence"]
    asked = [line for line in log.read_text().splitlines() if "uuid" in line]
    assert len(asked) == 2


# (what nvidia-smi says and its exit status, words of the sentence, words for the admin)
REFUSALS = [
    ("Failed to initialize NVML: Unknown Error", 255, "has lost its GPU", "cgroupfs"),
    ("Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 550.120",
     18, "was updated under your server", "regenerate the CDI"),
    ("Unable to determine the device handle for GPU0000:3B:00.0: GPU is lost.  Reboot the system "
     "to recover this GPU", 15, "has stopped answering", "Xid"),
    ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure "
     "that the latest NVIDIA driver is installed and running.", 9, "not running on the host",
     "modprobe"),
    ("Failed to initialize NVML: Insufficient Permissions", 4, "must not ask", "modes"),
    ("NVIDIA-SMI couldn't find libnvidia-ml.so library in your system.", 12, "libraries",
     "NVIDIA_DRIVER_CAPABILITIES"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "status", "words", "admin"), REFUSALS)
def test_a_driver_that_refuses_says_why(
    smi: Path, text: str, status: int, words: str, admin: str
) -> None:
    smi.write_text(f'#!/bin/sh\necho "{text}"\nexit {status}\n')
    found = gpus.driver(WHOLE, gpus.probe())
    assert (found.level, words in found.sentence) == ("fail", True), found
    assert admin in found.admin_remedy
    assert found.remedy


def test_a_lost_gpu_is_told_though_the_kernels_driver_and_cuda_still_have_a_version() -> None:
    """CUDA then finds no device, which alone is an answer and no trouble."""
    found = Driver("570.133.20", (12, 8), (), "", "Failed to initialize NVML: Unknown Error")
    said = gpus.driver(WHOLE, found)
    assert "has lost its GPU" in said.sentence
    assert "stop and start your server" in said.remedy
    assert dict(said.facts)["restart"] is True


def test_an_nvidia_smi_without_its_library_is_no_trouble_while_cuda_works() -> None:
    found = Driver("580.1", (13, 0), (A,), "", "couldn't find libnvidia-ml.so library")
    assert gpus.driver(WHOLE, found).level == "ok"


def test_a_device_that_the_cgroup_denies_is_a_lost_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = tmp_path / "nvidiactl"
    node.touch()
    assert device_watch.denied([str(node), str(tmp_path / "none")]) == ()

    def deny(path: str, flags: int) -> int:
        raise PermissionError(1, os.strerror(1))

    def refuse(path: str, flags: int) -> int:
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr(device_watch.os, "open", refuse)
    assert device_watch.denied([str(node)]) == ()
    monkeypatch.setattr(device_watch.os, "open", deny)
    assert device_watch.denied([str(node)]) == (str(node),)
    found = Driver("580.1", (13, 0), (), "", "", (str(node),))
    assert "has lost its GPU" in gpus.driver(WHOLE, found).sentence
    assert gpus.driver(NONE, found).level == "ok"


@pytest.fixture
def mps(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "control").touch()
    return {
        "CUDA_MPS_PIPE_DIRECTORY": str(tmp_path),
        "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": "0=20480M",
    }


FRACTION = "expandable_segments:True,per_process_memory_fraction:0.2417"


@pytest.mark.parametrize(
    ("config", "environ", "level", "words", "hard"),
    [
        (WHOLE, {}, "ok", "The whole GPU is yours.", None),
        (INSTANCE, {}, "ok", "Your part of the GPU has 9856 MiB, and the hardware", True),
        (SLOT, {"PYTORCH_CUDA_ALLOC_CONF": FRACTION}, "ok", "20 GiB; PyTorch stops there", False),
        (SLOT, {"PYTORCH_ALLOC_CONF": FRACTION}, "ok", "PyTorch stops there", False),
        (SLOT, {"PYTORCH_ALLOC_CONF": "backend:native", "PYTORCH_CUDA_ALLOC_CONF": FRACTION},
         "warn", "nothing keeps your programs within that", False),
        (SLOT, {}, "warn", "nothing keeps your programs within that", False),
        (SLOT, {"PYTORCH_CUDA_ALLOC_CONF": "per_process_memory_fraction:..."}, "warn", "", False),
        (SLOT, {"PYTORCH_CUDA_ALLOC_CONF": "per_process_memory_fraction:7"}, "warn", "", False),
        (SLOT, {"CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": "0=1G"}, "warn", "nothing keeps", False),
        (SLOT, {"CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": "0=1G", "CUDA_MPS_PIPE_DIRECTORY": "/none"},
         "warn", "nothing keeps", False),
        (Config(gpus=(Gpu(A),), share="slot"), {}, "warn", "may use its part", False),
    ],
)  # fmt: skip
def test_what_is_said_of_the_limit(
    config: Config, environ: dict[str, str], level: str, words: str, hard: Any
) -> None:
    found = limits.gpu_limit(config, environ)
    assert (found.level, words in found.sentence) == (level, True), found
    assert dict(found.facts)["hard"] is hard


def test_a_limit_of_mps_is_hard_where_its_daemon_can_be_reached(mps: dict[str, str]) -> None:
    found = limits.gpu_limit(SLOT, {**mps, "PYTORCH_CUDA_ALLOC_CONF": FRACTION})
    assert "the driver keeps every program within that" in found.sentence
    assert dict(found.facts)["hard"] is True


def test_without_being_told_the_limit_is_unknown() -> None:
    assert limits.gpu_limit(Config(), {}).level == "unknown"
