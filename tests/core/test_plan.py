from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from docker.types import DeviceRequest

from pytorch_spawner.core.gpus import Gpu, GpuUuid
from pytorch_spawner.core.identity import Identity
from pytorch_spawner.core.injection import Injection
from pytorch_spawner.core.plan import Limits, Site, Subject, build, lay_over, merge
from pytorch_spawner.core.request import Request
from pytorch_spawner.core.slot_memory import ALLOC_CONF, MemoryLimit
from pytorch_spawner.errors import NoGpuInjection

SUBJECT = Subject(
    "lab", "ana", "", "s1", "l1", "ana", Identity(20000, 20000, "ledger"), "/home/ana"
)
SITE = Site(Limits(cpus=2), "http://service/events", True, {}, {"lab-home-ana": "/home/ana"})
H100 = Gpu(GpuUuid("GPU-1234"), name="H100")
REQUEST = Request("lab:cpu", 1, "whole")


def test_the_same_input_gives_an_equal_plan() -> None:
    one, other = (build(SUBJECT, REQUEST, (H100,), Injection("cdi"), SITE) for _ in range(2))
    assert one == other
    json.dumps(one.as_json())


@pytest.mark.parametrize(
    ("injection", "requests", "visible"),
    [
        (Injection("cdi"), ({"driver": "cdi", "device_ids": ["nvidia.com/gpu=GPU-1234"]},), "void"),
        (
            Injection("nvidia"),
            ({"driver": "nvidia", "device_ids": ["GPU-1234"], "capabilities": [["gpu"]]},),
            "GPU-1234",
        ),
    ],
    ids=["CDI by name", "NVIDIA's runtime by UUID"],
)
def test_a_gpu_is_given_by_uuid(injection: Injection, requests: tuple, visible: str) -> None:
    plan = build(SUBJECT, REQUEST, (H100,), injection, SITE)
    assert plan.device_requests == requests
    assert plan.environment["NVIDIA_VISIBLE_DEVICES"] == visible


def test_without_a_gpu_the_image_cannot_open_one() -> None:
    plan = build(SUBJECT, Request("lab:cpu"), (), Injection("nvidia"), SITE)
    assert plan.device_requests == ()
    assert plan.environment["NVIDIA_VISIBLE_DEVICES"] == "void"


@pytest.mark.parametrize(
    "injection",
    [Injection("none", reason="No way."), Injection("cdi", frozenset({"nvidia.com/gpu=GPU-9"}))],
    ids=["engine knows no GPU", "engine does not list this GPU"],
)
def test_an_engine_that_cannot_give_the_gpu_is_a_sentence(injection: Injection) -> None:
    with pytest.raises(NoGpuInjection):
        build(SUBJECT, REQUEST, (H100,), injection, SITE)


def test_the_config_label_changes_with_the_plan_and_not_with_the_start() -> None:
    def config(subject: Subject = SUBJECT, request: Request = REQUEST) -> str:
        labels = build(subject, request, (H100,), Injection("cdi"), SITE).labels
        return labels["org.pytorch-spawner.config"]

    again = Subject("lab", "ana", "", "s2", "l2", "ana", SUBJECT.identity, "/home/ana")
    assert config() == config(again)
    assert config() != config(request=Request("lab:cuda", 1, "whole"))


def test_an_admins_settings_stay_and_cannot_weaken_the_plan() -> None:
    plan = build(SUBJECT, REQUEST, (H100,), Injection("cdi"), SITE)
    extra = {"count": -1, "capabilities": [["tpu"]]}
    create, host = merge(
        plan,
        {
            "environment": ["NVIDIA_VISIBLE_DEVICES=all", "TEAM=ml"],
            "user": "0:0",
            "labels": {"team": "ml", "org.pytorch-spawner.gpus": "all"},
            "hostname": "x",
        },
        {
            "privileged": True,
            "cap_drop": ["NET_RAW"],
            "shm_size": "8g",
            "device_requests": [extra],
            "security_opt": ["seccomp=x.json"],
            "auto_remove": True,
            "dns": ["127.0.0.1"],
        },
    )
    assert create["user"] == "20000:20000"
    assert create["labels"]["team"] == "ml"
    assert create["labels"]["org.pytorch-spawner.gpus"] == "GPU-1234"
    assert create["hostname"] == "x"
    assert create["environment"]["NVIDIA_VISIBLE_DEVICES"] == "void"
    assert create["environment"]["TEAM"] == "ml"
    assert host["privileged"] is False
    assert host["auto_remove"] is False
    assert set(host["cap_drop"]) == {"NET_RAW", "ALL"}
    assert host["security_opt"] == ["seccomp=x.json", "no-new-privileges:true"]
    assert host["shm_size"] == "8g"
    assert host["device_requests"] == [extra, *plan.device_requests]
    assert host["dns"] == ["127.0.0.1"]


NET = "vendor.com/net=0"


@pytest.mark.parametrize(
    ("request_", "left"),
    [
        (DeviceRequest(count=-1, capabilities=[["gpu"]]), None),
        (DeviceRequest(driver="nvidia", device_ids=["0"]), None),
        (DeviceRequest(driver="cdi", device_ids=["nvidia.com/gpu=all"]), None),
        ({"driver": "cdi", "device_ids": ["management.nvidia.com/gpu=all"]}, None),
        ({"driver": "cdi", "device_ids": ["nvidia.com/mig-1g.10gb=0"]}, None),
        ({"driver": "cdi", "device_ids": ["nvidia.com/cuda=all"]}, None),
        ({"count": 1, "capabilities": [["gpu", "utility"]]}, None),
        ({"count": -1, "capabilities": [["compute", "utility"]]}, None),
        ({"Count": -1, "Capabilities": [["nvidia"]]}, None),
        (
            {"driver": "cdi", "device_ids": [NET, "nvidia.com/gpu=0"]},
            {"driver": "cdi", "device_ids": [NET]},
        ),
        *(
            (request, request)
            for request in (
                DeviceRequest(driver="cdi", device_ids=[NET]),
                {"driver": "cdi", "device_ids": ["nvidia.com/gds=all"]},
                {"driver": "cdi", "device_ids": ["amd.com/gpu=0"]},
                {"driver": "amd", "capabilities": [["gpu"]]},
                {"count": -1, "capabilities": [["tpu"]]},
                {},
            )
        ),
    ],
)
def test_what_gives_everybody_a_gpu_is_left_out_of_a_sites_own_devices(
    request_: Mapping[str, Any], left: Mapping[str, Any] | None
) -> None:
    plan = build(SUBJECT, REQUEST, (H100,), Injection("cdi"), SITE)
    _, host = merge(plan, {}, {"device_requests": [request_]})
    assert host["device_requests"] == [*([] if left is None else [left]), *plan.device_requests]


def test_a_site_ca_reaches_every_common_client() -> None:
    environment = build(SUBJECT, REQUEST, (H100,), Injection("cdi"), SITE).environment
    for variable in ("PIP_CERT", "GIT_SSL_CAINFO", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"):
        assert environment[variable] == "/opt/pytorch-spawner/ca.pem"


@pytest.mark.parametrize(
    ("listed", "has_runtime", "kind"),
    [
        ({"nvidia.com/gpu=GPU-1234"}, True, "cdi"),
        ({"nvidia.com/gpu=0"}, True, "nvidia"),
        ({"docker.com/gpu=webgpu"}, True, "nvidia"),
        ({"nvidia.com/gpu=0"}, False, "cdi"),
    ],
    ids=[
        "CDI lists it by UUID",
        "CDI lists it by index only: the runtime gives it",
        "another vendor's device: the runtime gives it",
        "no runtime: CDI stays, and its refusal is a sentence",
    ],
)
def test_the_way_in_is_one_that_knows_this_gpu(listed: set, has_runtime: bool, kind: str) -> None:
    injection = Injection("cdi", frozenset(listed), has_runtime=has_runtime)
    assert injection.for_gpus((H100,)).kind == kind


@pytest.mark.parametrize("brought", [{"course": {"name": "cv"}}, {"warm_cache": {"id": "c1"}}])
def test_what_has_to_be_there_when_jupyterlab_opens_is_brought_first(brought: dict) -> None:
    def variable(agent: dict) -> str | None:
        site = replace(SITE, agent=agent)
        plan = build(SUBJECT, REQUEST, (H100,), Injection("cdi"), site)
        return plan.environment.get("PYTORCH_SPAWNER_BRINGS_FIRST")

    assert variable(brought) == "1"
    assert variable(dict.fromkeys(brought)) is None
    assert variable({}) is None


def test_jupyters_own_files_do_not_need_a_place_in_the_home() -> None:
    plan = build(SUBJECT, REQUEST, (H100,), Injection("cdi"), SITE)
    assert not plan.environment["JUPYTER_RUNTIME_DIR"].startswith(SUBJECT.home)


def test_a_sites_own_allocator_options_are_kept_beside_a_slots() -> None:
    limit = MemoryLimit("soft", {ALLOC_CONF: "per_process_memory_fraction:0.2"})
    plan = build(SUBJECT, REQUEST, (H100,), Injection("cdi"), replace(SITE, memory_limit=limit))
    # DockerSpawner lays what we merge here over the environment that it made itself.
    own = lay_over({ALLOC_CONF: "expandable_segments:True"}, plan.environment)
    for extra, kept in (
        ({}, "expandable_segments:True"),
        ({"TEAM": "ml"}, "expandable_segments:True"),
        ({ALLOC_CONF: "backend:native"}, "backend:native"),
    ):
        create, _ = merge(plan, {"environment": extra}, {})
        given = {**own, **create["environment"]}
        assert given[ALLOC_CONF] == f"{kept},per_process_memory_fraction:0.2"
        assert given.items() >= {**extra, **plan.environment, ALLOC_CONF: given[ALLOC_CONF]}.items()
