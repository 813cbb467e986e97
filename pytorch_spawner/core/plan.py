"""The container of one start, as a value: computed here, carried out by an adapter.

``build`` is pure and equal when called twice. What protects the lab (user, capabilities, devices,
labels, the GPU variables) is decided here and laid *over* the admin's own settings by ``merge``, so
that no extra setting and no image can widen what the lease grants.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pytorch_spawner.core.gpus import Gpu, GpuUuid
from pytorch_spawner.core.identity import Identity
from pytorch_spawner.core.injection import Injection, device_requests, without_gpus
from pytorch_spawner.core.placement import Holding
from pytorch_spawner.core.request import Request
from pytorch_spawner.core.slot_memory import ALLOC_CONF, MemoryLimit

LABEL: Final = "org.pytorch-spawner."
AGENT_PATH: Final = "/opt/pytorch-spawner/agent.pyz"
CA_PATH: Final = "/opt/pytorch-spawner/ca.pem"
CACHE_DIR: Final = "/var/cache/pytorch-spawner"
TORCH_LABEL: Final = "org.pytorch-spawner.image.torch"
_SLOT: Final = re.compile(r"([0-9]{1,2})/([1-9][0-9]?)")
# Every variable by which a common client finds its CA bundle. Sources: the documentation of pip
# (--cert), requests, curl, git-config (http.sslCAInfo), OpenSSL and Node's tls module.
_CA_VARIABLES: Final = (
    "PIP_CERT",
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "NODE_EXTRA_CA_CERTS",
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a container may use. None leaves that to the admin's own settings.

    Attributes:
        pids: Most processes and threads.
        shm_mib: Size of /dev/shm; PyTorch's DataLoader workers hand tensors over through it.
        cpus: CPU cores, for the number of compile workers; None means not limited.
    """

    pids: int = 4096
    shm_mib: int = 1024
    cpus: float | None = None


@dataclass(frozen=True, slots=True)
class Subject:
    """Whose server this is, and under which names.

    Attributes:
        hub: Id of the hub; two hubs on one engine do not see each other's containers.
        username: As JupyterHub knows it.
        servername: "" for the default server.
        start_id: Id of this start.
        lease_id: Id of the lease; "" without GPUs.
        holdings: What the lease holds, beside ``gpus`` of ``build``; empty for whole GPUs.
        grant: Id of the grant it was given through.
        until: Unix time at which the lease ends at the latest; None for no limit.
        login: What ``whoami`` says.
        identity: uid and gid.
        home: Path of the home in the container.
    """

    hub: str
    username: str
    servername: str
    start_id: str
    lease_id: str
    login: str
    identity: Identity
    home: str
    holdings: tuple[Holding, ...] = ()
    grant: str = ""
    until: float | None = None


@dataclass(frozen=True, slots=True)
class ContainerPlan:
    """Everything this package decides about one container.

    Attributes:
        image: Reference to start.
        user: "uid:gid".
        working_dir: The home.
        environment: Variables that nothing may override.
        labels: ``org.pytorch-spawner.*``; the values hold no braces, because DockerSpawner renders
            templates in every string it is configured with.
        volumes: Volume name or host path -> {"bind": path in the container, "mode": "rw"...}.
        device_requests: As the Docker API's HostConfig.DeviceRequests takes them.
        host_config: Arguments of docker-py's ``create_host_config``, without device_requests.
    """

    image: str
    user: str
    working_dir: str
    environment: Mapping[str, str]
    labels: Mapping[str, str]
    volumes: Mapping[str, Mapping[str, str]]
    device_requests: tuple[Mapping[str, Any], ...]
    host_config: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The plan for people and for ``--json``."""
        return {
            "image": self.image,
            "user": self.user,
            "working_dir": self.working_dir,
            "environment": dict(self.environment),
            "labels": dict(self.labels),
            "volumes": {source: dict(mount) for source, mount in self.volumes.items()},
            "device_requests": [dict(request) for request in self.device_requests],
            "host_config": dict(self.host_config),
        }


def torch_of(image: Mapping[str, Any]) -> tuple[int, int] | None:
    """The PyTorch of an image, by our recipes' label or the official images' PYTORCH_VERSION.

    Args:
        image: What the engine says of it (docker inspect).
    """
    config = image.get("Config") or {}
    said = (config.get("Labels") or {}).get(TORCH_LABEL) or _as_mapping(config.get("Env")).get(
        "PYTORCH_VERSION", ""
    )
    match = re.match(r"(\d+)\.(\d+)", str(said))
    return (int(match[1]), int(match[2])) if match else None


def lay_over(environment: Mapping[str, Any], ours: Mapping[str, str]) -> dict[str, Any]:
    """Our variables over the others; the allocator's options of both are kept, ours last."""
    merged = {**environment, **ours}
    theirs = environment.get(ALLOC_CONF)
    if theirs and ours.get(ALLOC_CONF):
        merged[ALLOC_CONF] = f"{theirs},{ours[ALLOC_CONF]}"
    return merged


@dataclass(frozen=True, slots=True)
class Site:
    """What is the same for every start of a lab.

    Attributes:
        limits: See ``Limits``.
        events_url: Where the agent reports; "" switches reporting off.
        has_ca: The site's CA bundle is copied into containers.
        agent: The agent's settings (warm-up, checks), as JSON.
        volumes: Home and cache of this user: volume or host path -> path in the container.
        memory_limit: How the memory of slots is limited.
        read_only: Like ``volumes``, but nothing in the container may write them.
        environment: Variables beside those that every container gets.
    """

    limits: Limits
    events_url: str
    has_ca: bool
    agent: Mapping[str, Any]
    volumes: Mapping[str, str]
    memory_limit: MemoryLimit = field(default_factory=MemoryLimit)
    read_only: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)


def write_slots(holdings: Sequence[Holding]) -> str:
    """The label ``slot``: "2/4" for the third of four slots, one for each GPU; "" for whole ones.

    The whole ones beside a slot are written "0/1".
    """
    if all(holding.slots == 1 for holding in holdings):
        return ""
    return ",".join(f"{holding.slot}/{holding.slots}" for holding in holdings)


def read_holdings(gpus: str, slots: str) -> tuple[Holding, ...]:
    """Read the labels ``gpus`` and ``slot`` back; what is no slot counts as a whole GPU."""
    uuids = [gpu for gpu in gpus.split(",") if gpu]
    said = slots.split(",")
    found = []
    for place, uuid in enumerate(uuids):
        match = _SLOT.fullmatch(said[place]) if place < len(said) else None
        slot, cut = (int(match[1]), int(match[2])) if match else (0, 1)
        found.append(Holding(GpuUuid(uuid), slot, cut))
    return tuple(found)


def build(
    subject: Subject, request: Request, gpus: tuple[Gpu, ...], injection: Injection, site: Site
) -> ContainerPlan:
    """Plan one container.

    Args:
        subject: Whose it is.
        request: What was asked for.
        gpus: What the lease holds, best first; empty for a server without a GPU.
        injection: How GPUs get in.
        site: What every start shares.

    Raises:
        NoGpuInjection: GPUs are leased, but the engine has no way to give them.
    """
    injection = injection.for_gpus(gpus)
    labels = {
        LABEL + "hub": subject.hub,
        LABEL + "server": f"{subject.username}/{subject.servername}",
        LABEL + "start": subject.start_id,
        LABEL + "lease": subject.lease_id,
        LABEL + "gpus": ",".join(gpu.uuid for gpu in gpus),
        LABEL + "slot": write_slots(subject.holdings),
        # Beyond what runs: what a lost ledger needs to know again.
        LABEL + "grant": subject.grant,
        LABEL + "until": "" if subject.until is None else f"{subject.until:.0f}",
    }
    plan = ContainerPlan(
        image=request.image,
        user=f"{subject.identity.uid}:{subject.identity.gid}",
        working_dir=subject.home,
        environment=_environment(subject, request, gpus, injection, site),
        labels=labels,
        # "nocopy": a volume that is still empty would take over the owner (root) of the mount point
        # that Docker makes in the image, and undo what the helper container prepared.
        volumes={
            **_mounts({**site.volumes, **site.memory_limit.mounts}, "rw"),
            **_mounts(site.read_only, "ro"),
        },
        device_requests=device_requests(gpus, injection),
        host_config={
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges:true"],
            "pids_limit": site.limits.pids,
            "shm_size": site.limits.shm_mib * 2**20,
            "privileged": False,
            # We keep the container until its last log lines are read, then remove it ourselves.
            "auto_remove": False,
            "restart_policy": {"Name": "no"},
        },
    )
    labels[LABEL + "config"] = digest(plan)
    return plan


def _mounts(places: Mapping[str, str], mode: str) -> dict[str, dict[str, str]]:
    return {
        source: {"bind": path, "mode": mode if source.startswith("/") else f"{mode},nocopy"}
        for source, path in places.items()
    }


def digest(plan: ContainerPlan) -> str:
    """Return 16 hex digits that change with the plan, but not with the start's own ids."""
    said = plan.as_json()
    said["labels"] = {
        key: value
        for key, value in said["labels"].items()
        if not key.endswith((".start", ".lease", ".config", ".until"))
    }
    said["environment"] = {
        key: value for key, value in said["environment"].items() if "PYTORCH_SPAWNER" not in key
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


def _environment(
    subject: Subject,
    request: Request,
    gpus: tuple[Gpu, ...],
    injection: Injection,
    site: Site,
) -> dict[str, str]:
    agent = {
        "v": 1,
        "start": subject.start_id,
        "server": f"{subject.username}/{subject.servername}",
        "share": "slot" if any(gpu.slots > 1 for gpu in gpus) else "whole" if gpus else "none",
        "memory_limit": site.memory_limit.kind,
        "cache_dir": CACHE_DIR,
        "shm_expected_mib": site.limits.shm_mib,
        "gpus": [
            {
                "uuid": gpu.uuid,
                "name": gpu.name,
                "memory_mib": gpu.memory_mib,
                "simulated": gpu.is_simulated,
                "slots": gpu.slots,
                "slot_memory_mib": gpu.slot_memory_mib,
            }
            for gpu in gpus
        ],
        **site.agent,
    }
    environment = {
        "HOME": subject.home,
        "USER": subject.login,
        "LOGNAME": subject.login,
        "SHELL": "/bin/bash",
        # Not in the home, where Jupyter puts it: a server then starts though the home is full.
        "JUPYTER_RUNTIME_DIR": "/tmp/jupyter-runtime",  # noqa: S108 (nobody else is there)
        # One and the same path in every container: Triton's cache holds absolute paths, so that a
        # cache seeded at another path is compiled again (triton cache.py, get_group).
        "TORCHINDUCTOR_CACHE_DIR": f"{CACHE_DIR}/inductor",
        "TRITON_CACHE_DIR": f"{CACHE_DIR}/triton",
        "CUDA_CACHE_PATH": f"{CACHE_DIR}/nv",
        # The precompiled C++ header and the vector-ISA probe live outside the cache directory and
        # cost a fresh container 6 to 16 s (docs/explanation/measurements.md).
        "TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS": "0",
        "PYTORCH_SPAWNER_AGENT": json.dumps(agent),
        "PYTORCH_SPAWNER_EVENTS_URL": site.events_url,
        # CDI specifications set this themselves; for everybody else "void" is what keeps an
        # image's own ENV NVIDIA_VISIBLE_DEVICES=all from opening every GPU under a default
        # nvidia runtime (nvidia-container-toolkit #451).
        "NVIDIA_VISIBLE_DEVICES": (
            ",".join(gpu.uuid for gpu in gpus) if gpus and injection.kind == "nvidia" else "void"
        ),
    }
    if agent.get("course") or agent.get("warm_cache"):
        # The agent brings these before JupyterLab opens; else it lets JupyterLab begin first.
        environment["PYTORCH_SPAWNER_BRINGS_FIRST"] = "1"
    environment.update(site.memory_limit.environment)
    environment.update(site.environment)
    if site.limits.cpus:
        # A CFS quota does not change sched_getaffinity, from which inductor counts its compile
        # workers: 32 of them in a small cgroup end in an out-of-memory kill.
        workers = str(max(1, min(8, int(site.limits.cpus))))
        environment["TORCHINDUCTOR_COMPILE_THREADS"] = workers
    if site.has_ca:
        environment.update(dict.fromkeys(_CA_VARIABLES, CA_PATH))
    return environment


def _as_mapping(environment: Any) -> dict[str, str]:
    """Docker takes variables as a mapping or as a list of NAME=value."""
    if isinstance(environment, (list, tuple)):
        return {
            name: value for name, _, value in (str(item).partition("=") for item in environment)
        }
    return dict(environment or {})


def merge(
    plan: ContainerPlan, create: Mapping[str, Any], host: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Lay the plan over an admin's extra_create_kwargs and extra_host_config.

    Lists are concatenated (an admin's own capability stays dropped, an own device request stays),
    single values of the plan win, except those an admin may rightly raise: /dev/shm and pids.
    Device requests that give GPUs are left out: a GPU is given by the ledger, to one server.

    Returns:
        New (create, host) dictionaries; the arguments stay as they were.
    """
    theirs = _as_mapping(create.get("environment"))
    environment = lay_over(theirs, plan.environment)
    if not theirs.get(ALLOC_CONF):
        # What is created anyhow has it, laid over the site's own: again, it would replace that.
        environment.pop(ALLOC_CONF, None)
    merged_create = {
        **create,
        "user": plan.user,
        "working_dir": create.get("working_dir") or plan.working_dir,
        "labels": {**dict(create.get("labels") or {}), **plan.labels},
        "environment": environment,
    }
    merged_host = dict(host)
    for key, value in plan.host_config.items():
        said = merged_host.get(key)
        if isinstance(value, list) and isinstance(said, (list, tuple)):
            merged_host[key] = [*said, *(item for item in value if item not in said)]
        elif key in ("shm_size", "pids_limit") and said is not None:
            merged_host[key] = said
        else:
            merged_host[key] = value
    merged_host["device_requests"] = [
        *(one for one in map(without_gpus, host.get("device_requests") or ()) if one is not None),
        *(dict(request) for request in plan.device_requests),
    ]
    return merged_create, merged_host
