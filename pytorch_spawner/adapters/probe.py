"""The GPUs of the engine's host, asked by a short-lived helper container on it.

For a hub that has no driver of its own: it runs in a container, or the engine is another machine.
What the container says is hostile input; whatever goes wrong is an empty inventory with a reason.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import requests
from docker.errors import NotFound
from docker.types import LogConfig

from pytorch_spawner.adapters import nvml_facts
from pytorch_spawner.adapters.engine import put_files, remove, tail_of, translated
from pytorch_spawner.core.gpus import Inventory, inventory_of
from pytorch_spawner.core.injection import Injection
from pytorch_spawner.errors import EngineUnavailable, LabError

log = logging.getLogger(__name__)

# How long the helper may take from its start. NVML answers within a second where the driver is
# loaded; without persistence mode it wakes every GPU first, and a sick one never answers.
DEADLINE_S: Final = 20.0
# 16 GPUs, each cut into 7 instances and linked to all others, are about 70 KiB.
MAX_ANSWER_BYTES: Final = 256 * 1024

_FOLDER = "/opt/pytorch-spawner"
_CDI_KIND = "nvidia.com/gpu"
# -I leaves out the script's own directory, -S what the image installed: only these two files and
# the standard library are loaded.
_ASK = f"import sys; sys.path.insert(0, {_FOLDER!r}); import nvml_facts; nvml_facts.main()"
_NOBODY = "65534:65534"
_FAILED = "The GPUs could not be asked about in a helper container."


def read_inventory(
    client: Any, image: str, injection: Injection, labels: Mapping[str, str]
) -> Inventory:
    """Ask NVML in a container that sees every GPU of the engine's host. Blocking.

    Args:
        client: docker-py's APIClient.
        image: Any image with python3 >= 3.9, on the engine already; a trusted one, for what it says
            becomes the inventory.
        injection: How GPUs get in.
        labels: For the helper container, so that a crash leaves nothing unnamed.

    Returns:
        The inventory; without GPUs, ``reason`` says why. The container is gone.

    Raises:
        EngineUnavailable: The engine does not answer.
    """
    request = gpu_request(injection)
    if request is None:
        return Inventory(reason=injection.reason or "The engine lists no NVIDIA GPU.")
    binding = binding_path()
    if binding is None:
        return Inventory(reason="nvidia-ml-py is not installed beside the hub.")
    files = {
        f"{_FOLDER}/nvml_facts.py": (Path(nvml_facts.__file__).read_bytes(), 0o644),
        f"{_FOLDER}/pynvml.py": (binding.read_bytes(), 0o644),
    }
    try:
        with translated():
            helper = _create(client, image, request, labels)
        try:
            return _ask(client, helper, files)
        finally:
            _discard(client, helper)
    except EngineUnavailable:
        raise
    except LabError as error:
        log.warning("the helper container for the inventory: %s", error)
        return Inventory(reason=f"{_FAILED} {error.public_message}")


def gpu_request(injection: Injection) -> dict[str, Any] | None:
    """The device request for every GPU; None where the engine has no way to give one.

    Source: Docker Engine API, HostConfig.DeviceRequests; a count of -1 is every device, and
    excludes device ids (moby, daemon/nvidia_linux.go).
    """
    names = sorted(name for name in injection.devices if name.partition("=")[0] == _CDI_KIND)
    if injection.kind == "cdi" and (names or not injection.devices):
        # "all" is what nvidia-ctk adds. An engine before 28 has CDI, but does not list its devices.
        everything = f"{_CDI_KIND}=all"
        few = [everything] if everything in names or not names else names
        return {"driver": "cdi", "device_ids": few}
    if injection.kind == "nvidia" or injection.has_runtime:
        return {"driver": "nvidia", "count": -1, "capabilities": [["gpu", "utility"]]}
    return None


def binding_path() -> Path | None:
    """The hub's own ``pynvml.py``, which is one file of pure Python; None where there is none."""
    found = importlib.util.find_spec("pynvml")
    return Path(found.origin) if found is not None and found.origin else None


def _create(client: Any, image: str, request: dict[str, Any], labels: Mapping[str, str]) -> str:
    is_runtime = request["driver"] == "nvidia"
    host_config = client.create_host_config(
        device_requests=[request],
        cap_drop=["ALL"],
        security_opt=["no-new-privileges:true"],
        network_mode="none",
        pids_limit=32,
        mem_limit="256m",
        # Readable whatever the engine's default is, and bounded on the host's disk.
        log_config=LogConfig(type=LogConfig.types.JSON, config={"max-size": "1m", "max-file": "1"}),
    )
    created = client.create_container(
        image=image,
        entrypoint=["python3", "-I", "-S", "-B", "-c", _ASK],
        user=_NOBODY,
        labels=dict(labels),
        # The toolkit's runtime obeys these, whether it was asked for or is the engine's default:
        # "all" opens every GPU, "void" leaves the container to CDI; "utility" mounts NVML; an
        # image built for a newer CUDA than the driver's does to ask it. Source: NVIDIA container
        # toolkit, "Environment variables (OCI spec)".
        environment={
            "NVIDIA_VISIBLE_DEVICES": "all" if is_runtime else "void",
            "NVIDIA_DRIVER_CAPABILITIES": "utility",
            "NVIDIA_DISABLE_REQUIRE": "1",
        },
        host_config=host_config,
    )
    return str(created["Id"])


def _ask(client: Any, helper: str, files: Mapping[str, tuple[bytes, int]]) -> Inventory:
    put_files(client, helper, files)
    with translated():
        client.start(helper)
        state = _state_at_end(client, helper)
        if state.get("Running"):
            return Inventory(
                reason=f"The driver of the engine's machine did not answer within {DEADLINE_S:g} s."
            )
        if code := int(state.get("ExitCode") or 0):
            lines = tail_of(client.logs(helper, stdout=False, stderr=True, tail=5))
            log.warning("the helper container ended with exit code %d: %s", code, lines)
            return Inventory(reason=f"{_FAILED} It ended with exit code {code}.")
        answer = _answer(client, helper)
    if answer is None:
        return Inventory(reason=f"{_FAILED} It said more than {MAX_ANSWER_BYTES // 1024} KiB.")
    try:
        facts = json.loads(answer)
    except (ValueError, RecursionError):
        return Inventory(reason=f"{_FAILED} What it said is not JSON.")
    return inventory_of(facts)


def _state_at_end(client: Any, helper: str) -> Mapping[str, Any]:
    """State of the container when it ended, or at the deadline."""
    deadline = time.monotonic() + DEADLINE_S
    try:
        client.wait(helper, timeout=DEADLINE_S)
    except requests.exceptions.RequestException:
        # The wait ran out, or the engine is gone; an engine that is gone says so below.
        if time.monotonic() < deadline - 1:
            raise
    state: Mapping[str, Any] = client.inspect_container(helper)["State"]
    return state


def _answer(client: Any, helper: str) -> bytes | None:
    """What the container printed; None when it is more than anybody should read."""
    said = bytearray()
    chunks = client.logs(helper, stdout=True, stderr=False, stream=True, follow=False)
    try:
        for chunk in chunks:
            said += chunk
            if len(said) > MAX_ANSWER_BYTES:
                return None
    finally:
        chunks.close()
    return bytes(said)


def _discard(client: Any, helper: str) -> None:
    try:
        remove(client, helper)
    except EngineUnavailable:
        raise
    except (LabError, NotFound) as error:
        # A process stuck in a sick driver cannot be killed; its labels name it for later.
        log.warning("the helper container %s is still there: %s", helper[:12], error)
