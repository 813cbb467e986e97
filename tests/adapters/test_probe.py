"""The inventory by a helper container: what is asked of the engine, and what becomes of answers."""

from __future__ import annotations

import io
import json
import tarfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
import requests
from docker.errors import APIError

from pytorch_spawner.adapters import engine, probe
from pytorch_spawner.core.gpus import Inventory
from pytorch_spawner.core.injection import Injection
from pytorch_spawner.core.plan import LABEL
from pytorch_spawner.errors import EngineUnavailable

CDI_ALL = Injection("cdi", frozenset({"nvidia.com/gpu=0", "nvidia.com/gpu=all"}))
RUNTIME = Injection("nvidia", has_runtime=True)
OTHERS = frozenset({"vendor.com/gpu=all", "management.nvidia.com/gpu=all"})
# Of this run alone: one that was killed may have left its own.
RUN = f"test-{uuid.uuid4().hex[:8]}"
LABELS = {LABEL + "probe": RUN}
ANSWER = json.dumps({"driver": "1", "reason": "", "devices": [{"uuid": "GPU-0001"}]}).encode()


def read(client: Any, injection: Injection = CDI_ALL, image: str = "lab") -> Inventory:
    return probe.read_inventory(client, image, injection, LABELS)


@pytest.mark.parametrize(
    ("injection", "request_", "visible"),
    [
        (CDI_ALL, {"driver": "cdi", "device_ids": ["nvidia.com/gpu=all"]}, "void"),
        (Injection("cdi"), {"driver": "cdi", "device_ids": ["nvidia.com/gpu=all"]}, "void"),
        (
            Injection("cdi", frozenset({"nvidia.com/gpu=1", "nvidia.com/gpu=0", *OTHERS})),
            {"driver": "cdi", "device_ids": ["nvidia.com/gpu=0", "nvidia.com/gpu=1"]},
            "void",
        ),
        (
            Injection("cdi", OTHERS, has_runtime=True),
            {"driver": "nvidia", "count": -1, "capabilities": [["gpu", "utility"]]},
            "all",
        ),
        (RUNTIME, {"driver": "nvidia", "count": -1, "capabilities": [["gpu", "utility"]]}, "all"),
    ],
    ids=[
        "CDI names all of them at once",
        "an engine with CDI that does not list its devices",
        "CDI names each, beside other kinds of devices",
        "CDI names other kinds only, but there is the runtime",
        "the toolkit's runtime alone",
    ],
)
def test_every_gpu_is_asked_for(
    injection: Injection, request_: dict[str, Any], visible: str
) -> None:
    client = FakeEngine(ANSWER)
    assert [gpu.uuid for gpu in read(client, injection).gpus] == ["GPU-0001"]
    assert client.host["device_requests"] == [request_]
    assert client.created["environment"]["NVIDIA_VISIBLE_DEVICES"] == visible
    assert client.created["environment"]["NVIDIA_DRIVER_CAPABILITIES"] == "utility"
    docker.types.DeviceRequest(**request_)


@pytest.mark.parametrize(
    ("injection", "reason"),
    [
        (Injection("none", reason="This engine knows no GPU."), "This engine knows no GPU."),
        (Injection("cdi", OTHERS), "The engine lists no NVIDIA GPU."),
    ],
    ids=["no way to give a GPU", "CDI devices of other kinds only"],
)
def test_without_a_gpu_to_ask_for_nothing_runs(injection: Injection, reason: str) -> None:
    client = FakeEngine(ANSWER)
    assert read(client, injection) == Inventory(reason=reason)
    assert client.calls == []


class FakeEngine:
    """An engine with one container, which says ``answer``; ``failing`` maps calls to errors."""

    def __init__(
        self,
        answer: bytes = b"",
        *,
        code: int = 0,
        is_running: bool = False,
        failing: dict[str, Exception] | None = None,
    ) -> None:
        self.answer = answer
        self.state = {"Running": is_running, "ExitCode": code}
        self.failing = failing or {}
        self.calls: list[str] = []
        self.host: dict[str, Any] = {}
        self.created: dict[str, Any] = {}
        self.files: dict[str, bytes] = {}

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name in self.failing:
            raise self.failing[name]

    def create_host_config(self, **host: Any) -> dict[str, Any]:
        self.host = host
        return host

    def create_container(self, **created: Any) -> dict[str, str]:
        self.created = created
        self._call("create")
        return {"Id": "helper"}

    def put_archive(self, container: str, path: str, archive: bytes) -> None:
        self._call("put")
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            for member in tar:
                if content := tar.extractfile(member):
                    self.files[f"{path}{member.name}"] = content.read()

    def start(self, container: str) -> None:
        self._call("start")

    def wait(self, container: str, **_: Any) -> dict[str, int]:
        self._call("gone" if "remove" in self.calls else "wait")
        return {"StatusCode": 0}

    def inspect_container(self, container: str) -> dict[str, Any]:
        self._call("inspect")
        return {"State": self.state}

    def logs(self, container: str, **asked: Any) -> Any:
        self._call("logs")
        if "tail" in asked:
            return b"Traceback\nMemoryError"
        assert asked == {"stdout": True, "stderr": False, "stream": True, "follow": False}
        pieces = (self.answer[at : at + 4096] for at in range(0, len(self.answer), 4096))
        return (piece for piece in pieces)

    def remove_container(self, container: str, **_: Any) -> None:
        self._call("remove")


def test_the_helper_may_do_nothing_but_ask() -> None:
    client = FakeEngine(ANSWER)
    read(client)
    assert client.created["image"] == "lab"
    assert client.created["user"] == "65534:65534"
    assert client.created["labels"] == LABELS
    assert client.created["entrypoint"][:3] == ["python3", "-I", "-S"]
    assert client.host["network_mode"] == "none"
    assert client.host["cap_drop"] == ["ALL"]
    assert client.host["security_opt"] == ["no-new-privileges:true"]
    assert client.host["pids_limit"] == 32
    assert client.host["mem_limit"] == "256m"
    assert "mounts" not in client.host
    assert sorted(client.files) == [
        "/opt/pytorch-spawner/nvml_facts.py", "/opt/pytorch-spawner/pynvml.py",
    ]  # fmt: skip
    assert b"def nvmlInit" in client.files["/opt/pytorch-spawner/pynvml.py"]
    assert client.calls[-2:] == ["remove", "gone"]


def refused(text: str, status: int = 500) -> APIError:
    response = requests.Response()
    response.status_code = status
    return APIError("x", response, text)


TIMEOUT = requests.exceptions.ConnectionError("Read timed out.")


@pytest.mark.parametrize(
    ("client", "reason"),
    [
        (FakeEngine(b'{"devices": [], "reason": "It sees no GPU."}'), "It sees no GPU."),
        (FakeEngine(b"Traceback"), "What it said is not JSON."),
        (FakeEngine(b""), "What it said is not JSON."),
        (FakeEngine(b"\xff\xfe\x00"), "What it said is not JSON."),
        (FakeEngine(b"[" * 200_000), "What it said is not JSON."),
        (FakeEngine(b"[1, 2]"), "not readable"),
        (FakeEngine(b'{"devices": [{"uuid": 1e999}]}'), "device 0: uuid inf is not"),
        (FakeEngine(b" " * 10 * 2**20), "It said more than 256 KiB."),
        (FakeEngine(ANSWER, code=137), "It ended with exit code 137."),
        (FakeEngine(is_running=True, failing={"wait": TIMEOUT}), "did not answer within 0.5 s."),
        (FakeEngine(failing={"create": refused("No such image: x", 404)}), "image is not on"),
        (FakeEngine(failing={"start": refused("CDI device injection failed: x")}), "CDI spec"),
        (FakeEngine(failing={"start": refused('"python3": executable file not found')}), "Python"),
        (FakeEngine(failing={"put": refused("read-only")}), "refused"),
        (FakeEngine(failing={"logs": refused("no logs")}), "refused"),
    ],
    ids=[
        "no GPU, with a reason",
        "no JSON",
        "nothing",
        "bytes that are no text",
        "brackets without end",
        "JSON that is no inventory",
        "a number for a name",
        "10 MiB",
        "it was killed",
        "it hangs",
        "the image is not there",
        "the engine cannot give the GPUs",
        "the image has no Python",
        "no file can be copied in",
        "its log cannot be read",
    ],
)
def test_a_failure_is_a_reason_and_leaves_no_container(
    monkeypatch: pytest.MonkeyPatch, client: FakeEngine, reason: str
) -> None:
    monkeypatch.setattr(probe, "DEADLINE_S", 0.5)
    inventory = read(client)
    assert inventory.gpus == ()
    assert reason in inventory.reason
    assert inventory.reason.endswith(".")
    assert ("remove" in client.calls) == ("create" not in client.failing)


@pytest.mark.parametrize("call", ["create", "put", "start", "wait", "inspect", "logs"])
def test_an_engine_that_is_gone_is_told_as_such(call: str) -> None:
    client = FakeEngine(ANSWER, failing={call: requests.ConnectionError("refused")})
    with pytest.raises(EngineUnavailable):
        read(client)
    assert ("remove" in client.calls) == (call != "create")


def test_a_container_that_cannot_be_removed_costs_no_answer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    client = FakeEngine(ANSWER, failing={"remove": refused("device or resource busy")})
    assert len(read(client).gpus) == 1
    assert "is still there" in caplog.text


def test_the_log_says_how_a_helper_failed(caplog: pytest.LogCaptureFixture) -> None:
    read(FakeEngine(code=1))
    assert "exit code 1: ('Traceback', 'MemoryError')" in caplog.text


def test_without_the_binding_there_is_nothing_to_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "binding_path", lambda: None)
    client = FakeEngine(ANSWER)
    assert read(client).reason == "nvidia-ml-py is not installed beside the hub."
    assert client.calls == []


# -- on a real engine ---------------------------------------------------------------------------

# Stands in for nvidia-ml-py in the container: two GPUs, of which it tells a few things.
FAKE_BINDING = """
import os
class NVMLError(Exception):
    value = 3
class Memory:
    total = 4096 * 2**20
def nvmlInit(): pass
def nvmlShutdown(): pass
def nvmlSystemGetDriverVersion(): return "999.1"
def nvmlDeviceGetCount(): return 2
def nvmlDeviceGetHandleByIndex(index): return index
def nvmlDeviceGetUUID(handle): return "GPU-fake%04d" % handle
def nvmlDeviceGetName(handle):
    return "uid %d, %d variables" % (os.getuid(), len([k for k in os.environ if "NVIDIA" in k]))
def nvmlDeviceGetMemoryInfo(handle): return Memory
def nvmlDeviceGetP2PStatus(one, other, index): return 0
"""


class WithoutGpus:
    """A real engine that gives no device, for this machine need not have one."""

    def __init__(self, client: Any) -> None:
        self.client = client

    def create_host_config(self, **host: Any) -> Any:
        assert host.pop("device_requests")
        return self.client.create_host_config(**host)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.client, name)


@pytest.fixture
def real() -> Iterator[Any]:
    """The real engine; afterwards no helper container is there."""
    client = engine.connect()
    yield WithoutGpus(client)
    left = client.containers(all=True, filters={"label": f"{LABEL}probe={RUN}"})
    for container in left:
        client.remove_container(container["Id"], force=True)
    client.close()
    assert left == []


def use(monkeypatch: pytest.MonkeyPatch, folder: Path, source: str) -> None:
    binding = folder / "pynvml.py"
    binding.write_text(source)
    monkeypatch.setattr(probe, "binding_path", lambda: binding)


@pytest.mark.docker
def test_two_gpus_of_a_binding_in_a_real_container(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, real: Any, lab_image: str
) -> None:
    use(monkeypatch, tmp_path, FAKE_BINDING)
    inventory = read(real, RUNTIME, lab_image)
    assert inventory.reason == ""
    assert [gpu.uuid for gpu in inventory.gpus] == ["GPU-fake0000", "GPU-fake0001"]
    first = inventory.gpus[0]
    assert (first.name, first.driver) == ("uid 65534, 3 variables", "999.1")
    assert (first.memory_mib, first.compute_capability) == (4096, None)
    assert [(link.uuid, link.kind) for link in first.links] == [("GPU-fake0001", "nvlink")]


@pytest.mark.docker
def test_the_real_binding_in_a_container_without_a_driver(real: Any, lab_image: str) -> None:
    inventory = read(real, RUNTIME, lab_image)
    assert inventory == Inventory(
        reason="No NVIDIA driver answers (NVML Shared Library Not Found)."
    )


@pytest.mark.docker
@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("print('a greeting'); raise SystemExit", "not JSON"),
        ("print('x' * 10 * 2**20); raise SystemExit", "KiB"),
        ("raise SystemExit(3)", "exit code 3"),
        ("import os; os.kill(os.getpid(), 9)", "exit code"),
        ("import time; time.sleep(600)", "did not answer within 3 s"),
        ("import nothing_of_this_name", "nvidia-ml-py cannot be loaded."),
        ("import socket; socket.create_connection(('10.0.0.1', 9))", "exit code 1"),
        ("open('/opt/pytorch-spawner/x', 'w')", "exit code 1"),
    ],
    ids=[
        "it prints garbage",
        "it prints 10 MiB",
        "it gives up",
        "it dies",
        "it hangs",
        "it cannot be loaded",
        "it looks for a network",
        "it writes where it lies",
    ],
)
def test_a_hostile_binding_in_a_real_container(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    real: Any,
    lab_image: str,
    source: str,
    reason: str,
) -> None:
    use(monkeypatch, tmp_path, source)
    monkeypatch.setattr(probe, "DEADLINE_S", 3.0)
    begun = time.monotonic()
    inventory = read(real, RUNTIME, lab_image)
    assert inventory.gpus == ()
    assert reason in inventory.reason
    assert time.monotonic() - begun < 15
