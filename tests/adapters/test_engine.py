"""What the engine's answers mean, on answers as real engines gave them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from docker.errors import APIError, DockerException, ImageNotFound

from pytorch_spawner.adapters.engine import connect, find_injection, translated
from pytorch_spawner.errors import (
    EngineRefused,
    EngineUnavailable,
    ImageMissing,
    LabError,
    NoGpuInjection,
)

CDI = [{"Source": "cdi", "ID": "nvidia.com/gpu=GPU-1"}, {"Source": "other", "ID": "x"}]


@pytest.mark.parametrize(
    ("info", "kind"),
    [
        ({"DiscoveredDevices": CDI, "ServerVersion": "28.5.2"}, "cdi"),
        ({"DiscoveredDevices": CDI, "Runtimes": {"nvidia": {}}, "ServerVersion": "28.5.2"}, "cdi"),
        ({"DiscoveredDevices": [], "Runtimes": {"runc": {}, "nvidia": {}}}, "nvidia"),
        ({"CDISpecDirs": ["/etc/cdi"], "ServerVersion": "26.1.5+dfsg1"}, "cdi"),
        ({"CDISpecDirs": ["/etc/cdi"], "ServerVersion": "28.5.2"}, "none"),
        ({"Runtimes": {"runc": {}}, "ServerVersion": "20.10.24"}, "none"),
        ({}, "none"),
    ],
    ids=[
        "CDI devices are listed",
        "CDI comes before the toolkit's runtime",
        "the toolkit's runtime alone",
        "an engine that has CDI but lists nothing",
        "a newer engine that would list devices, and lists none",
        "neither",
        "an engine that says nothing",
    ],
)
def test_how_gpus_get_into_containers(info: dict[str, Any], kind: str) -> None:
    injection = find_injection(SimpleNamespace(info=lambda: info))
    assert injection.kind == kind
    assert bool(injection.reason) == (kind == "none")
    if info.get("DiscoveredDevices") == CDI:
        assert injection.devices == {"nvidia.com/gpu=GPU-1"}


def api_error(text: str, status: int = 500) -> APIError:
    response = requests.Response()
    response.status_code = status
    return APIError("x", response, text)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (requests.ConnectionError("refused"), EngineUnavailable),
        (FileNotFoundError("/var/run/docker.sock"), EngineUnavailable),
        (DockerException("Error while fetching server API version"), EngineUnavailable),
        (ImageNotFound("No such image: x"), ImageMissing),
        (api_error("CDI device injection failed: unresolvable CDI devices x"), NoGpuInjection),
        (api_error('could not select device driver "nvidia"'), NoGpuInjection),
        (api_error('exec: "python3": executable file not found in $PATH', 400), EngineRefused),
        (api_error("conflict", 409), EngineRefused),
    ],
    ids=lambda value: str(value)[:50],
)
def test_foreign_errors_become_sentences(error: Exception, expected: type[LabError]) -> None:
    with pytest.raises(expected) as said, translated():
        raise error
    assert "x" not in said.value.public_message.split()
    assert said.value.public_message.endswith(".")


def test_tls_without_certificates_is_a_sentence_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
    monkeypatch.setenv("DOCKER_CERT_PATH", str(tmp_path))
    with pytest.raises(EngineUnavailable, match=r"cert\.pem and key\.pem") as said:
        connect()
    assert "unset" in said.value.public_message
    assert "certificate" in said.value.detail
