"""What is measured through NVML, on a fake that answers, and fails, as real machines do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from pytorch_spawner.adapters.nvml_meter import NvmlMeter, Reading
from pytorch_spawner.core.gpus import GpuUuid
from pytorch_spawner.core.metering import Sample

UNINITIALIZED, NOT_SUPPORTED, NO_PERMISSION, NOT_FOUND = 1, 3, 4, 6
NOT_LOADED, NO_LIBRARY, NO_FUNCTION, LOST, MISMATCH, UNKNOWN = 9, 12, 13, 15, 18, 999
NOT_AVAILABLE = 2**64 - 1
MIB = 2**20


class NVMLError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(f"code {value}")
        self.value = value


def fails(value: int) -> Callable[..., Any]:
    def answer(*_: Any) -> Any:
        raise NVMLError(value)

    return answer


def running(pid: Any, used: Any) -> SimpleNamespace:
    return SimpleNamespace(pid=pid, usedGpuMemory=used)


def memory(_version: int | None = None) -> Any:
    if _version is None:
        return SimpleNamespace(used=1616 * MIB)
    return SimpleNamespace(used=1000 * MIB, reserved=616 * MIB)


def uuid(number: int) -> GpuUuid:
    return GpuUuid(f"GPU-{number:08d}-0000-0000-0000-000000000000")


def gpu(number: int, **answers: Any) -> dict[str, Any]:
    return {
        "UUID": uuid(number),
        "MigMode": [0, 0],
        "UtilizationRates": SimpleNamespace(gpu=37, memory=5),
        "MemoryInfo": memory,
        "Temperature": lambda sensor: 61,
        "PowerUsage": 123_456,
        "ComputeRunningProcesses_v3": lambda: [],
        "GraphicsRunningProcesses_v3": lambda: [],
        "MPSComputeRunningProcesses_v3": lambda: [],
        **answers,
    }


class FakeNvml:
    """Handles are dictionaries; a function that a device has no answer to is not found."""

    NVMLError = NVMLError

    def __init__(self, *gpus: Mapping[str, Any], **functions: Any) -> None:
        self.gpus = list(gpus)
        self.inits = 0
        self.shutdowns = 0
        self.init_fails = 0
        self.functions = functions

    def nvmlInit(self) -> None:
        self.inits += 1
        if self.init_fails:
            raise NVMLError(self.init_fails)

    def nvmlShutdown(self) -> None:
        self.shutdowns += 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:
        handle = self.gpus[index]
        return handle() if callable(handle) else handle

    def __getattr__(self, name: str) -> Any:
        if self.functions.get(name, "") is None or not name.startswith("nvmlDeviceGet"):
            raise AttributeError(name)

        def ask(handle: Mapping[str, Any], *arguments: Any) -> Any:
            key = name.removeprefix("nvmlDeviceGet")
            if key not in handle:
                raise NVMLError(NO_FUNCTION)
            answer = handle[key]
            return answer(*arguments) if callable(answer) else answer

        return ask


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def meter_of(fake: Any, clock: Clock | None = None) -> NvmlMeter:
    clock = clock or Clock()
    return NvmlMeter(lambda: fake, clock, clock, name_of=lambda pid: f"program{pid}")


def read(fake: FakeNvml) -> Reading:
    return meter_of(fake).read()


def test_a_gpu_in_use_is_measured_with_its_processes() -> None:
    fake = FakeNvml(
        gpu(
            0,
            ComputeRunningProcesses_v3=[running(11, 500 * MIB), running(12, None)],
            GraphicsRunningProcesses_v3=[running(11, 700 * MIB), running(13, NOT_AVAILABLE)],
            MPSComputeRunningProcesses_v3=[running(14, 2 * MIB), running(12, 5 * MIB)],
        )
    )
    assert read(fake) == Reading(
        {uuid(0): Sample(1000.0, 37.0, 1000, 61.0, 123.456)},
        {
            uuid(0): [
                (11, "program11", 700),
                (12, "program12", 5),
                (13, "program13", None),
                (14, "program14", 2),
            ]
        },
        "",
    )


@pytest.mark.parametrize("code", [NOT_SUPPORTED, NO_PERMISSION, NO_FUNCTION, UNKNOWN])
def test_where_everything_is_na_the_gpu_is_there_and_all_of_it_unknown(code: int) -> None:
    nothing = {
        name: fails(code)
        for name in gpu(0)
        if name != "UUID"
    }  # fmt: skip
    reading = read(FakeNvml({**gpu(0), **nothing}))
    assert reading == Reading({uuid(0): Sample(1000.0)}, {}, "")


@pytest.mark.parametrize(
    ("answers", "field", "value"),
    [
        ({"UtilizationRates": SimpleNamespace(gpu=0)}, "utilisation", 0.0),
        ({"UtilizationRates": SimpleNamespace(gpu=2**32 - 1)}, "utilisation", None),
        ({"UtilizationRates": SimpleNamespace()}, "utilisation", None),
        ({"UtilizationRates": None}, "utilisation", None),
        ({"MemoryInfo": SimpleNamespace(used=0)}, "memory_used_mib", 0),
        ({"MemoryInfo": SimpleNamespace(used=None)}, "memory_used_mib", None),
        ({"MemoryInfo": lambda: SimpleNamespace(used=7 * MIB)}, "memory_used_mib", 7),
        ({"MemoryInfo": fails(NOT_SUPPORTED)}, "memory_used_mib", None),
        ({"PowerUsage": 0}, "power_w", 0.0),
        ({"PowerUsage": 2**32 - 1}, "power_w", None),
        ({"PowerUsage": "N/A"}, "power_w", None),
        ({"Temperature": lambda sensor: 255}, "temperature_c", None),
        (
            {"Temperature": fails(NO_FUNCTION), "TemperatureV": lambda sensor: 44},
            "temperature_c",
            44.0,
        ),
    ],
)
def test_each_value_is_unknown_by_itself(answers: dict[str, Any], field: str, value: Any) -> None:
    sample = read(FakeNvml(gpu(0, **answers))).samples[uuid(0)]
    assert getattr(sample, field) == value


def test_an_older_driver_or_binding_lists_processes_by_an_older_function() -> None:
    old_driver = gpu(0, ComputeRunningProcesses_v2=[running(5, MIB)])
    del old_driver["ComputeRunningProcesses_v3"]
    old_binding = gpu(1, ComputeRunningProcesses=[running(6, MIB)])
    fake = FakeNvml(old_driver)
    assert read(fake).processes == {uuid(0): [(5, "program5", 1)]}
    fake = FakeNvml(
        old_binding,
        nvmlDeviceGetComputeRunningProcesses_v3=None,
        nvmlDeviceGetComputeRunningProcesses_v2=None,
    )
    assert read(fake).processes == {uuid(1): [(6, "program6", 1)]}


def test_a_list_that_failed_is_unknown_and_not_empty() -> None:
    # More processes began between the two calls that the binding makes.
    assert read(FakeNvml(gpu(0, ComputeRunningProcesses_v3=fails(7)))).processes == {}
    partly = gpu(0, GraphicsRunningProcesses_v3=fails(NOT_SUPPORTED))
    assert read(FakeNvml(partly)).processes == {uuid(0): []}


@pytest.mark.parametrize("row", [running(0, MIB), running(-1, MIB), running("x", 1), object()])
def test_a_process_without_a_number_is_left_out(row: Any) -> None:
    assert read(FakeNvml(gpu(0, ComputeRunningProcesses_v3=[row]))).processes == {uuid(0): []}


def test_mig_instances_have_their_own_memory_and_processes_and_the_gpu_lists_none() -> None:
    instance = {
        "UUID": b"MIG-1111-2222",
        "UtilizationRates": fails(NOT_SUPPORTED),
        "MemoryInfo": lambda *_: SimpleNamespace(used=9 * MIB),
        "Temperature": fails(NOT_SUPPORTED),
        "PowerUsage": fails(NOT_SUPPORTED),
        "ComputeRunningProcesses_v3": [running(21, 8 * MIB)],
    }
    parent = gpu(
        0,
        MigMode=[1, 1],
        UtilizationRates=fails(NOT_SUPPORTED),
        MaxMigDeviceCount=7,
        MigDeviceHandleByIndex=lambda place: instance if place == 2 else fails(NOT_FOUND)(),
        ComputeRunningProcesses_v3=[running(21, 8 * MIB)],
    )
    reading = read(FakeNvml(parent, gpu(1)))
    assert reading.samples[uuid(0)] == Sample(1000.0, None, 1000, 61.0, 123.456)
    assert reading.samples[GpuUuid("MIG-1111-2222")] == Sample(1000.0, None, 9, None, None)
    assert reading.processes == {
        GpuUuid("MIG-1111-2222"): [(21, "program21", 8)],
        uuid(1): [],
    }
    assert reading.reason == ""


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (NO_LIBRARY, "no NVIDIA driver where the lab service runs"),
        (NOT_LOADED, "not loaded"),
        (NO_PERMISSION, "may not ask"),
        (MISMATCH, "was updated"),
        (UNKNOWN, "No NVIDIA driver answers (code 999)"),
    ],
)
def test_no_driver_is_a_reason_and_what_to_do(code: int, words: str) -> None:
    fake = FakeNvml(gpu(0))
    fake.init_fails = code
    reading = read(fake)
    assert (reading.samples, reading.processes) == ({}, {})
    assert words in reading.reason
    assert reading.reason.endswith(".")


def test_no_binding_is_a_reason() -> None:
    def load() -> Any:
        raise ModuleNotFoundError("pynvml")

    assert "nvidia-ml-py" in NvmlMeter(load).read().reason


def test_no_gpu_and_missing_ones_are_reasons() -> None:
    assert "sees no GPU" in read(FakeNvml()).reason
    reading = read(FakeNvml(gpu(0), fails(UNKNOWN), gpu(2, UUID=fails(UNKNOWN))))
    assert set(reading.samples) == {uuid(0)}
    assert reading.reason.startswith("2 of 3 GPUs gave no answer.")


def test_a_session_is_opened_once_and_let_go_of_when_told() -> None:
    fake = FakeNvml(gpu(0))
    meter = meter_of(fake)
    for _ in range(5):
        meter.read()
    assert (fake.inits, fake.shutdowns) == (1, 0)
    meter.close()
    meter.close()
    assert fake.shutdowns == 1
    assert meter.read().samples
    assert fake.inits == 2


def test_a_driver_that_is_not_there_is_asked_for_ever_less_often_and_found_when_it_comes() -> None:
    fake, clock = FakeNvml(gpu(0)), Clock()
    fake.init_fails = NOT_LOADED
    meter = meter_of(fake, clock)
    tried = []
    for _ in range(400):
        before = fake.inits
        reading = meter.read()
        assert "not loaded" in reading.reason
        if fake.inits > before:
            tried.append(clock.now - 1000.0)
        clock.now += 5
    assert tried[:7] == [0, 10, 30, 70, 150, 310, 610]
    fake.init_fails = 0
    clock.now += 300
    assert meter.read().samples
    assert meter.read().reason == ""


def test_a_driver_that_was_lost_is_opened_anew_at_the_next_read() -> None:
    fake, clock = FakeNvml(gpu(0)), Clock()
    meter = meter_of(fake, clock)
    assert meter.read().samples
    working = list(fake.gpus)
    fake.gpus = [fails(UNINITIALIZED)]
    gone = meter.read()
    assert gone.samples == {}
    assert gone.reason
    fake.gpus = working
    clock.now += 5
    assert meter.read() == Reading(
        {uuid(0): Sample(1005.0, 37.0, 1000, 61.0, 123.456)}, {uuid(0): []}, ""
    )
    assert (fake.inits, fake.shutdowns) == (2, 1)


def test_one_gpu_off_the_bus_keeps_nobody_from_reading_the_others() -> None:
    lost = {name: fails(LOST) for name in gpu(1)}
    fake, clock = FakeNvml(gpu(0), lost), Clock()
    meter = meter_of(fake, clock)
    for _ in range(200):
        reading = meter.read()
        assert set(reading.samples) == {uuid(0)}
        assert "fallen off" in reading.reason
        clock.now += 5
    # At once, after 10 s, 20 s, ... and then every 5 minutes: 8 times in 1000 s.
    assert 4 <= fake.inits <= 9
    fake.gpus[1] = gpu(1)
    clock.now += 300
    assert set(meter.read().samples) == {uuid(0), uuid(1)}
    assert meter.read().reason == ""
    clock.now += 5
    assert meter.read().reason == ""
