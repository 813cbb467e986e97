"""What the container of a warm cache's build is created with; no engine is asked."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from docker import APIClient
from docker.types import DeviceRequest
from traitlets.config import Config

from pytorch_spawner.core import plan
from pytorch_spawner.core.identity import Identity
from pytorch_spawner.core.injection import Injection
from pytorch_spawner.core.request import Request
from pytorch_spawner.spawner import PyTorchSpawner

CLIENT = APIClient(base_url="unix:///nowhere.sock", version="1.44")
ELSEWHERE = CLIENT.create_networking_config({"elsewhere": CLIENT.create_endpoint_config()})
# What a site may say for its people.
TIES: dict[str, Any] = {
    "volumes": {"homes": "/everybody"},
    "read_only_volumes": {"/usr": "/usr"},
    "mounts": [{"source": "data", "target": "/data", "type": "volume"}],
    "links": {"db": "db"},
    "extra_create_kwargs": {"hostname": "x", "networking_config": ELSEWHERE},
    "extra_host_config": {
        "mounts": [{"Source": "more", "Target": "/more", "Type": "volume"}],
        "links": {"other": "other"},
        "volumes_from": ["hub"],
        "network_mode": "elsewhere",
        "dns": ["127.0.0.1"],
    },
}


class Spawner(PyTorchSpawner):
    """Keeps what it would have created."""

    lab: Any = SimpleNamespace(client=CLIENT, gpus=SimpleNamespace(look_ahead=lambda _spec: None))
    created: Any = None

    async def docker(self, method: str, *_: Any, **kwargs: Any) -> None:
        assert method == "create_container"
        self.created = kwargs

    def get_env(self) -> dict[str, Any]:
        return {}


def spawner() -> Spawner:
    user = SimpleNamespace(name="lab-warmer", escaped_name="lab-warmer", url="/", groups=[])
    made = Spawner(
        config=Config(Spawner=TIES),
        user=user,
        orm_spawner=SimpleNamespace(name="", server=None),
        cmd=["x"],
    )
    who = Identity(20000, 20000, "ledger")
    subject = plan.Subject("lab", "lab-warmer", "", "s", "", "lab-warmer", who, "/home/lab")
    site = plan.Site(plan.Limits(), "", False, {}, {"own-home": "/home/lab"})
    made._plan = plan.build(subject, Request("i"), (), Injection("none"), site)
    return made


async def test_a_build_has_nothing_that_a_site_mounts_or_connects_for_its_people() -> None:
    build = spawner()
    before = {name: getattr(build, name) for name in TIES}
    build._build = SimpleNamespace()  # type: ignore[assignment]
    await build.create_object()
    assert "networking_config" not in build.created
    host = build.created["host_config"]
    assert not any(host.get(name) for name in ("Mounts", "Links", "VolumesFrom"))
    assert host["NetworkMode"] == build.network_name
    # All else stays: what an image has of the host's own files, and the site's other settings.
    assert sorted(host["Binds"]) == ["/usr:/usr:ro", "own-home:/home/lab:rw,nocopy"]
    assert host["Dns"] == ["127.0.0.1"]
    assert build.created["hostname"] == "x"
    assert {name: getattr(build, name) for name in TIES} == before


async def test_everybody_elses_container_has_all_of_it() -> None:
    usual = spawner()
    await usual.create_object()
    assert usual.created["networking_config"] == ELSEWHERE
    host = usual.created["host_config"]
    assert "homes:/everybody:rw" in host["Binds"]
    assert host["Mounts"]
    assert host["Links"]


async def test_a_configuration_that_gives_gpus_to_everybody_is_told_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    everybody = spawner()
    everybody.extra_host_config = {
        "device_requests": [DeviceRequest(count=-1, capabilities=[["gpu"]])]
    }
    with caplog.at_level(logging.WARNING):
        await everybody.create_object()
    assert not everybody.created["host_config"].get("DeviceRequests")
    assert "gives GPUs to every server (device_requests)" in caplog.text
