"""Real students on a real GPU, on a host whose own /usr and /opt are the image.

Starts a hub with this package, starts servers through its REST API, reads their journals, looks
into their containers, and writes everything to OUT/result.json. It needs root, a Docker Engine with
CDI devices, and an NVIDIA driver; ``share/gpu-host/up`` brings up an engine where there is none.

    python3 tests/gpu/host_run.py --out OUT [--site DIR] [--node DIR]

With ``--image`` and ``--simulated`` it runs without a GPU, on an image and on simulated devices.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import secrets
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import requests

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pytorch_spawner.adapters.nvml import read_inventory

ROOT = Path(__file__).resolve().parents[2]
HOST_IMAGE = "gpu-host-student:latest"
HELPER_IMAGE = "gpu-host-helper:latest"
LABEL = "org.pytorch-spawner."
_COMPILER = ("CC", "CXX", "LIBRARY_PATH")
# What a notebook and its server import; pip compiles them when it installs them into an image.
_COMPILED = ("torch", "triton", "sympy", "mpmath", "networkx", "numpy", "jinja2")
# The bytecode that the host's packages came with, kept aside; containers see all of /opt.
CAME_WITH = Path("/opt/came-with-bytecode")

CONFIG = """
import json, os
from jupyterhub.auth import DummyAuthenticator
from pytorch_spawner.hub import add_lab

c = get_config()
s = json.loads(os.environ["HOST_RUN"])
c.JupyterHub.bind_url = f"http://127.0.0.1:{s['port']}"
c.JupyterHub.db_url = f"sqlite:///{s['state']}/jupyterhub.sqlite"
c.JupyterHub.cookie_secret_file = f"{s['state']}/cookie_secret"
c.ConfigurableHTTPProxy.pid_file = f"{s['state']}/proxy.pid"
c.ConfigurableHTTPProxy.api_url = f"http://127.0.0.1:{s['port'] + 2}"
if s["proxy"]:
    c.ConfigurableHTTPProxy.command = s["proxy"]
c.JupyterHub.hub_bind_url = f"http://{s['gateway']}:{s['port'] + 1}"
c.JupyterHub.hub_connect_ip = s["gateway"]
add_lab(
    c,
    address=f"http://{s['gateway']}:{s['port'] + 3}",
    ledger_url=f"sqlite:///{s['state']}/ledger.sqlite",
    hub_id=s["hub_id"],
)
c.JupyterHub.services = [
    *c.JupyterHub.services, {"name": "measure", "api_token": os.environ["HOST_RUN_TOKEN"]}
]
c.JupyterHub.load_roles = [
    *c.JupyterHub.load_roles,
    {
        "name": "measure-role",
        "services": ["measure"],
        "scopes": ["admin:users", "admin:servers", "access:services", "custom:lab:admin"],
    },
]
c.JupyterHub.authenticator_class = DummyAuthenticator
c.DummyAuthenticator.password = s["password"]
c.Authenticator.allow_all = True
for name, value in s["traits"].items():
    setattr(c.PyTorchSpawner, name, value)
"""

# Runs in the container, as the student: one fresh process, as a notebook's kernel is one.
FIRST_STEP = """
import json, sys, time
began = time.monotonic()
sys.path.insert(0, "/opt/pytorch-spawner/agent.pyz")
import torch
from pytorch_spawner.agent import evidence
from pytorch_spawner.agent.models import BUILDERS, train_step
imported = time.monotonic()
device = "cuda:0" if torch.cuda.is_available() else "cpu"
work = BUILDERS[sys.argv[1]](torch, device)
optimizer = torch.optim.SGD(work.model.parameters(), lr=0.01)
if device != "cpu":
    torch.cuda.synchronize()
built = time.monotonic()
evidence.clear()
built = time.monotonic()
train_step(torch, torch.compile(work.model), work, optimizer)
if device != "cpu":
    torch.cuda.synchronize()
end = time.monotonic()
seen = evidence.read()
print(json.dumps({"device": device, "import_s": round(imported - began, 3),
    "step_s": round(end - built, 3), "total_s": round(end - began, 3),
    "fx_hit": seen.fx_hit, "fx_miss": seen.fx_miss}))
"""


def sh(*words: str, timeout_s: float = 120) -> str:
    """Output of a command, or what went wrong with it; never raises for its status."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=timeout_s)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"[{error}]"
    said = (done.stdout + (done.stderr if done.returncode else "")).strip()
    return said if done.returncode == 0 else f"[status {done.returncode}] {said}"


def make_images(keep: Path | None = None) -> None:
    """An empty root that runs on the host's /usr and /opt, and a small root with the host's Python.

    The helper that prepares homes gets no mounts, so its image holds a Python of its own.

    Args:
        keep: Takes the bytecode that the host's packages came with; None: it is not kept.
    """
    compile_packages(keep)
    if sh("docker", "image", "inspect", HOST_IMAGE).startswith("[status"):
        with tempfile.TemporaryDirectory() as folder:
            root = _skeleton(Path(folder))
            for name in ("bin", "sbin", "lib", "lib64"):
                (root / name).symlink_to(f"usr/{name}")
            _import(root, HOST_IMAGE)
    if sh("docker", "image", "inspect", HELPER_IMAGE).startswith("[status"):
        with tempfile.TemporaryDirectory() as folder:
            root = _skeleton(Path(folder))
            _copy_python(root)
            _import(root, HELPER_IMAGE)


def compile_packages(keep: Path | None = None) -> None:
    """Give the host's Python packages the bytecode that an image's packages have.

    A container sees the host's files read-only. Without bytecode there, each of its processes
    compiles what it imports once more: 8.3 s for torch and its compile stack instead of 3.1 s.

    Args:
        keep: Takes the bytecode that was there before; None: it is not kept.
    """
    packages = Path(sysconfig.get_path("purelib"))
    standard = Path(sysconfig.get_path("stdlib"))
    # The server's own packages travel without theirs, so they do not count as what the host has.
    _compile([Path(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path])
    if keep is not None and not keep.exists():
        keep_bytecode([packages, standard, *map(Path, sys.path)], keep)
    _compile([*(packages / name for name in _COMPILED), standard])


def _compile(places: list[Path]) -> None:
    words = [str(place) for place in places if place.is_dir()]
    # What is up to date is skipped. Some packages bring files for other versions of Python.
    if words:
        subprocess.run([sys.executable, "-m", "compileall", "-q", "-j", "0", *words], check=False)


def keep_bytecode(places: list[Path], keep: Path) -> None:
    """Copy bytecode to where ``PYTHONPYCACHEPREFIX=keep`` looks for it.

    With that variable Python reads no other: so a process sees what these places hold now, whatever
    is compiled in them later (https://docs.python.org/3/library/sys.html#sys.pycache_prefix).
    """
    being_copied = keep.with_name(f"{keep.name}.part")
    shutil.rmtree(being_copied, ignore_errors=True)
    being_copied.mkdir(parents=True)
    for place in places:
        for folder in place.absolute().rglob("__pycache__") if place.is_dir() else ():
            # As sys.path spells it: importlib follows no links here.
            target = being_copied / str(folder.parent).lstrip("/")
            shutil.copytree(folder, target, dirs_exist_ok=True)
    being_copied.rename(keep)


def _skeleton(root: Path) -> Path:
    for name in ("usr", "opt", "etc/ssl", "proc", "sys", "dev", "home", "run", "root"):
        (root / name).mkdir(parents=True)
    for name in ("tmp", "var/tmp"):
        (root / name).mkdir(parents=True)
        (root / name).chmod(0o1777)
    shutil.copy("/etc/os-release", root / "etc/os-release")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")
    return root


def _copy_python(root: Path) -> None:
    base = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    standard = Path(sysconfig.get_path("stdlib")).resolve()
    left_out = shutil.ignore_patterns(
        "site-packages", "dist-packages", "test", "tests", "idlelib", "tkinter", "__pycache__",
        "config-*", "ensurepip", "lib2to3", "pydoc_data", "turtledemo", "lib-dynload",
    )  # fmt: skip
    shutil.copytree(standard, root / str(standard).lstrip("/"), ignore=left_out)
    (root / str(standard).lstrip("/") / "lib-dynload").mkdir()
    files = [base]
    for line in sh("ldd", str(base)).splitlines():
        files += [Path(word) for word in line.split() if word.startswith("/")]
    for file in files:
        target = root / str(file).lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file.resolve(), target)
    link = root / "usr/bin/python3"
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.exists():
        link.symlink_to(base)


def _import(root: Path, name: str) -> None:
    said = sh(sys.executable, "-c", "import torch; print(torch.__version__)")
    # What our recipes write as well: by it a slot's soft limit knows what this torch understands.
    label = f"LABEL {LABEL}image.torch={said.split('+')[0]}"
    archive = root.parent / f"{secrets.token_hex(6)}.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(root, arcname=".")
    try:
        subprocess.run(
            ["docker", "import", "--change", label, str(archive), name],
            check=True,
            capture_output=True,
        )
    finally:
        archive.unlink()


def nccl_settings() -> dict[str, str]:
    """The host's settings of NCCL, which hold in its containers as well."""
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith(("NCCL_", "NVSHMEM_", "TORCH_SYMM_MEM_"))
    }


def host_root(site: Path | None) -> dict[str, Any]:
    """Traits that let a container run on the host's own files, read-only."""
    places = [Path("/usr"), Path("/etc/ld.so.cache"), Path("/etc/alternatives"), Path("/etc/ssl")]
    # Not /opt as a whole: the agent is copied to /opt/pytorch-spawner.
    places += [
        path for path in Path("/opt").iterdir() if path.name not in ("engine", "pytorch-spawner")
    ]
    for extra in (Path(sys.prefix), site):
        if extra and not any(extra.is_relative_to(place) for place in places):
            places.append(extra)
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "LD_LIBRARY_PATH": os.environ.get("LD_LIBRARY_PATH", "/usr/local/nvidia/lib64"),
    }
    environment |= {name: os.environ[name] for name in _COMPILER if name in os.environ}
    environment |= nccl_settings()
    if site:
        environment |= {
            "PYTHONPATH": str(site),
            "JUPYTER_PATH": f"{site}/share/jupyter",
            "JUPYTER_CONFIG_PATH": f"{site}/etc/jupyter",
            "JUPYTERLAB_DIR": f"{site}/share/jupyter/lab",
        }
    return {
        "image": HOST_IMAGE,
        "helper_image": HELPER_IMAGE,
        "cmd": ["python3", "-m", "jupyterhub.singleuser"],
        "read_only_volumes": {str(place): str(place) for place in places if place.exists()},
        "environment": environment,
    }


def only_gpu(index: int | None) -> dict[str, Any]:
    """Traits of a hub that has one of the host's GPUs, so that two hubs can share a host."""
    if index is None:
        return {}
    found = [gpu for gpu in read_inventory().gpus if gpu.index == index and not gpu.parent]
    if not found:
        raise SystemExit(f"--gpu {index}: the driver knows no such GPU")
    gpu = found[0]
    said: dict[str, Any] = {
        "uuid": gpu.uuid,
        "index": index,
        "name": gpu.name,
        "memory_mib": gpu.memory_mib,
        "driver": gpu.driver,  # without it no warm cache could be matched with a start
    }
    if gpu.compute_capability:
        said["compute_capability"] = "{}.{}".format(*gpu.compute_capability)
    return {"inventory": [said]}


class Host:
    """A hub on this machine, and what is asked of it."""

    def __init__(self, options: argparse.Namespace, **traits: Any) -> None:
        self.options = options
        self.traits = traits
        self.out = Path(options.out).resolve()
        self.out.mkdir(parents=True, exist_ok=True)
        self.state = Path(tempfile.mkdtemp(prefix="host-run-"))
        self.token = secrets.token_hex(16)
        self.url = f"http://127.0.0.1:{options.port}"
        self.http = requests.Session()
        self.http.trust_env = False
        self.http.headers["Authorization"] = f"token {self.token}"
        self.journals: dict[str, Any] = {}
        self.hub: subprocess.Popen[bytes] | None = None
        self.service = ""

    def start(self) -> None:
        option = self.options
        network = option.network
        sh(
            "docker",
            "network",
            "create",
            "-o",
            "com.docker.network.bridge.enable_icc=false",
            network,
        )
        gateway = sh(
            "docker", "network", "inspect", network,
            "--format", "{{(index .IPAM.Config 0).Gateway}}",
        )  # fmt: skip
        self.service = f"http://{gateway}:{option.port + 3}/services/lab/api"
        site = Path(option.site).resolve() if option.site else None
        traits: dict[str, Any] = {
            "network_name": network,
            "pull_policy": "never",
            "max_gpus": 1,
            "on_busy": "fail",
            "mem_limit": option.mem,
            "shm_mib": 1024,
        }
        if option.image:
            traits["image"] = option.image
        else:
            make_images()
            traits |= host_root(site)
        if option.simulated:
            spec = json.loads(Path(option.simulated).read_text())
            name = spec["devices"][0]["name"]
            traits["inventory"] = [
                {"uuid": name, "index": 0, "name": "Simulated GPU", "is_simulated": True,
                 "cdi_name": f"{spec['kind']}={name}"}
            ]  # fmt: skip
        traits |= only_gpu(option.gpu) | self.traits
        node = Path(option.node).resolve() if option.node else None
        settings = {
            "port": option.port,
            "state": str(self.state),
            "gateway": gateway,
            "hub_id": option.hub_id,
            "password": secrets.token_hex(8),
            "traits": traits,
            "proxy": [
                str(node / "node"),
                str(node / "node_modules/configurable-http-proxy/bin/configurable-http-proxy"),
            ]
            if node
            else [],
        }
        shown = {key: value for key, value in settings.items() if key != "password"}
        (self.out / "settings.json").write_text(json.dumps(shown, indent=1))
        config = self.state / "jupyterhub_config.py"
        config.write_text(CONFIG)
        paths = [str(ROOT), *([str(site)] if site else []), os.environ.get("PYTHONPATH", "")]
        env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
            "HOST_RUN": json.dumps(settings),
            "HOST_RUN_TOKEN": self.token,
        }
        with (self.out / "hub.log").open("wb") as log:
            self.hub = subprocess.Popen(
                [sys.executable, "-m", "jupyterhub", "-f", str(config)],
                cwd=self.state, env=env, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self._wait(lambda: self.http.get(f"{self.url}/hub/api/", timeout=2).ok, 60, "the hub")
        # Any answer of the service itself counts; the hub starts it after its own API.
        self._wait(
            lambda: self.http.get(f"{self.service}/me", timeout=2).status_code < 500,
            30,
            "the service",
        )

    def _wait(self, condition: Any, timeout_s: float, what: str) -> None:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self.hub is not None and self.hub.poll() is not None:
                raise RuntimeError(f"the hub ended with {self.hub.returncode}")
            try:
                if condition():
                    return
            except requests.RequestException:
                pass
            time.sleep(0.05)
        raise RuntimeError(f"{what} did not answer in {timeout_s} s")

    def api(self, method: str, path: str, **kwargs: Any) -> requests.Response:
        return requests.request(
            method, f"{self.url}/hub/api/{path}", headers=dict(self.http.headers), timeout=240,
            proxies={"http": ""}, **kwargs,
        )  # fmt: skip

    # -- one server --------------------------------------------------------------------------

    def spawn(self, user: str, gpus: int) -> dict[str, Any]:
        """POST a start; how it was answered, and the seconds until Lab answers."""
        self.api("POST", f"users/{user}")
        at, began = time.time(), time.monotonic()
        answer = self.api("POST", f"users/{user}/server", json={"gpus": gpus})
        found: dict[str, Any] = {
            "user": user, "gpus": gpus, "at": at, "status": answer.status_code,
            "answer_s": round(time.monotonic() - began, 3),
        }  # fmt: skip
        if answer.status_code not in (201, 202):
            return {**found, "ready": False, "message": answer.json().get("message", answer.text)}
        deadline = began + 180
        while time.monotonic() < deadline:
            server = self.api("GET", f"users/{user}").json().get("servers", {}).get("")
            if server and server["ready"]:
                return {**found, "ready": True, "ready_s": round(time.monotonic() - began, 3)}
            if not server:
                break
            time.sleep(0.02)
        return {**found, "ready": False, "message": "it never became ready"}

    def journal(self, user: str) -> list[dict[str, Any]]:
        try:
            answer = self.http.get(
                f"{self.service}/servers/{user}//events", params={"format": "json"}, timeout=10
            )
        except requests.RequestException:
            return []
        return list(answer.json()) if answer.ok else []

    def follow(self, name: str, user: str, at: float, timeout_s: float = 240) -> dict[str, Any]:
        """Wait for the end of the warm-up; what the journal says until then."""
        deadline = time.monotonic() + timeout_s
        events: list[dict[str, Any]] = []
        while time.monotonic() < deadline:
            events = self.journal(user)
            if any(e["kind"] == "done" and e["data"].get("part") == "warmup" for e in events):
                break
            time.sleep(0.3)
        self.journals[name] = events
        return summary(events, at)

    def container(self, user: str) -> str:
        return sh(
            "docker", "ps", "-q", "--filter", f"label={LABEL}hub={self.options.hub_id}",
            "--filter", f"label={LABEL}server={user}/",
        )  # fmt: skip

    def look(self, user: str) -> dict[str, Any]:
        """What the engine and a shell in the container say."""
        container = self.container(user)

        def run(*words: str) -> str:
            return sh("docker", "exec", container, *words)

        said = json.loads(sh("docker", "inspect", container) or "[{}]")[0]
        host = said.get("HostConfig", {})
        return {
            "id": run("id"),
            "pid1": run("grep", "-E", "^(Uid|CapEff|CapBnd|NoNewPrivs|Seccomp):", "/proc/1/status"),
            "nvidia_smi": run("nvidia-smi", "-L"),
            "devices": run("sh", "-c", "ls -l /dev | grep -iE 'nvidia|spawner' | cat"),
            "visible": run("sh", "-c", "echo $NVIDIA_VISIBLE_DEVICES"),
            "torch": run(
                "python3", "-c",
                "import torch; n = torch.cuda.device_count(); "
                "print(n, [str(torch.cuda.get_device_properties(i).uuid) for i in range(n)])",
            ),
            "label_gpus": said.get("Config", {}).get("Labels", {}).get(LABEL + "gpus"),
            "requests": host.get("DeviceRequests"),
            "cap_drop": host.get("CapDrop"),
            "security_opt": host.get("SecurityOpt"),
            "cache": run(
                "sh", "-c",
                "cd /var/cache/pytorch-spawner; du -sm .; ls -ld ~ .; find . -type f | wc -l",
            ),
        }  # fmt: skip

    def first_steps(self, user: str, model: str) -> dict[str, Any]:
        """The first compiled step of a fresh process: cache of the warm-up, and an empty one."""
        container = self.container(user)
        found: dict[str, Any] = {"model": model, "warm": [], "empty": []}
        for kind in ("warm", "empty", "warm", "empty", "warm", "empty"):
            folder = f"/tmp/{secrets.token_hex(4)}"
            env = (
                [
                    "-e",
                    f"TORCHINDUCTOR_CACHE_DIR={folder}",
                    "-e",
                    f"TRITON_CACHE_DIR={folder}/triton",
                ]
                if kind == "empty"
                else []
            )
            began = time.monotonic()
            said = sh("docker", "exec", *env, container, "python3", "-c", FIRST_STEP, model)
            try:
                row = json.loads(said.splitlines()[-1])
            except (ValueError, IndexError):
                row = {"error": said[-2000:]}
            found[kind].append({**row, "exec_s": round(time.monotonic() - began, 3)})
        return found

    def stop(self, user: str) -> float:
        """Keep the container's log, stop the server; seconds until it is gone."""
        container = self.container(user)
        if container:
            name = f"container-{user}.log"
            with (self.out / name).open("a") as log:
                log.write(sh("sh", "-c", f"docker logs {container} 2>&1") + "\n")
                log.write("---- agent's log\n" + sh(
                    "docker", "exec", container, "sh", "-c",
                    "cat /var/cache/pytorch-spawner/pytorch-spawner-agent-*.log",
                ) + "\n")  # fmt: skip
        began = time.monotonic()
        self.api("DELETE", f"users/{user}/server")
        while time.monotonic() < began + 60:
            if not self.api("GET", f"users/{user}").json().get("servers"):
                break
            time.sleep(0.05)
        return round(time.monotonic() - began, 3)

    def end(self) -> None:
        (self.out / "journal.json").write_text(json.dumps(self.journals, indent=1))
        if self.hub is not None and self.hub.poll() is None:
            self.hub.terminate()
            try:
                self.hub.wait(20)
            except subprocess.TimeoutExpired:
                self.hub.kill()
        pid_file = self.state / "proxy.pid"
        if pid_file.exists():
            try:
                os.kill(int(pid_file.read_text().split()[0]), signal.SIGTERM)
            except (ProcessLookupError, ValueError):
                pass
        mine = f"label={LABEL}hub={self.options.hub_id}"
        for container in sh("docker", "ps", "-aq", "--filter", mine).split():
            sh("docker", "rm", "-f", container)
        for volume in sh("docker", "volume", "ls", "-q").split():
            if volume.startswith((f"{self.options.hub_id}-home-", f"{self.options.hub_id}-cache-")):
                sh("docker", "volume", "rm", volume)
        sh("docker", "network", "rm", self.options.network)
        shutil.rmtree(self.state, ignore_errors=True)


def summary(events: list[dict[str, Any]], at: float) -> dict[str, Any]:
    """Checks, warm-up and times out of one journal; times in seconds after the POST."""
    checks = [
        e["data"] for e in events if e["kind"] == "check" and e["data"].get("phase") == "done"
    ]
    found: dict[str, Any] = {
        "checks": {c["code"]: [c["level"], c["seconds"], c["sentence"]] for c in checks},
        "not_ok": [e for e in events if e["data"].get("level") in ("warn", "fail", "unknown")],
        "warmup": [
            e["data"]
            for e in events
            if e["kind"] == "warmup" and e["data"].get("phase") in ("done", "failed", "skipped")
        ],
        "plan": next((e["data"] for e in events if e["kind"] == "warmup"), None),
        "done": {e["data"].get("part"): e["data"] for e in events if e["kind"] == "done"},
        "samples": sum(e["kind"] == "sample" for e in events),
        "last_sample": next((e["data"] for e in reversed(events) if e["kind"] == "sample"), None),
        "times": [],
    }
    for e in events:
        what = e["data"].get("stage") or e["data"].get("part") or (
            f"{e['data'].get('code', '')}{e['data'].get('id', '')} {e['data'].get('phase', '')}"
        )  # fmt: skip
        if e["kind"] != "sample":
            found["times"].append([round(e["at"] - at, 2), e["kind"], what.strip()])
    return found


def machine() -> dict[str, Any]:
    """What this was measured on."""
    torch_folder = Path(sysconfig.get_path("purelib")) / "torch"
    torch = sh(
        sys.executable, "-c",
        "import torch, triton; print(torch.__version__, torch.version.cuda, triton.__version__)",
    )  # fmt: skip
    return {
        "gpu": sh(
            "nvidia-smi", "--query-gpu=index,uuid,name,driver_version,memory.total",
            "--format=csv,noheader",
        ),
        "mig": sh("nvidia-smi", "--query-gpu=mig.mode.current", "--format=csv,noheader"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "torch_cuda_triton": torch,
        # Its Python files, and how many of them have bytecode: see compile_packages.
        "torch_files": [len(list(torch_folder.rglob(kind))) for kind in ("*.py", "*.pyc")],
        "engine": sh(
            "docker", "info",
            "--format", "{{.ServerVersion}} cgroup v{{.CgroupVersion}} {{.Driver}}",
        ),
        "cdi": sh("sh", "-c", "docker info 2>/dev/null | grep 'cdi:'"),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
    }  # fmt: skip


def scenes(host: Host, result: dict[str, Any], left: Any, keep: Any) -> None:
    """Everything that is measured; ``left`` says how many seconds there are."""
    n = host.options.repeats
    result["cold"], result["warm"] = [], []
    for index in range(n):
        user = f"student{index}"
        if left() < 100:
            result["not_done"] = f"cold start {index} of {n} on: no time left"
            break
        for kind in ("cold", "warm"):
            row = host.spawn(user, 1)
            result[kind].append(row)
            if not row["ready"]:
                row["journal"] = host.journal(user)
                continue
            row.update(host.follow(f"{user}-{kind}", user, row["at"]))
            if index == 0 and kind == "cold":
                row["container"] = host.look(user)
                # The one GPU is held: the next is told so, and one without a GPU starts.
                result["refused"] = host.spawn("late", 1)
                result["refused"]["journal"] = host.journal("late")
                without = host.spawn("cpuonly", 0)
                if without["ready"]:
                    without["container"] = host.look("cpuonly")
                    time.sleep(4)
                    without["journal"] = host.journal("cpuonly")
                    without["stop_s"] = host.stop("cpuonly")
                result["without_gpu"] = without
            if index == 0 and kind == "warm":
                row["container"] = host.look(user)
            row["stop_s"] = host.stop(user)
            keep()
    result["two_at_once"] = two_at_once(host)
    keep()
    if left() > 150 and result["cold"] and result["cold"][0]["ready"]:
        row = host.spawn("student0", 1)
        host.follow("student0-third", "student0", row["at"])
        result["first_step"] = []
        for model in ("transformer", "mlp"):
            if left() > 110:
                result["first_step"].append(host.first_steps("student0", model))
                keep()
        host.stop("student0")


def two_at_once(host: Host) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for user in ("left", "right"):
        host.api("POST", f"users/{user}")
    threads = [
        threading.Thread(target=lambda user=user: rows.append(host.spawn(user, 1)))
        for user in ("left", "right")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for row in rows:
        if row["ready"]:
            row["stop_s"] = host.stop(row["user"])
    return rows


def arguments(text: str) -> argparse.Namespace:
    """The options of a run on a GPU host."""
    parser = argparse.ArgumentParser(description=text)
    parser.add_argument("--out", required=True, help="where result.json and the logs go")
    parser.add_argument(
        "--site", help="directory with JupyterHub and JupyterLab, put on PYTHONPATH"
    )
    parser.add_argument("--node", help="directory with `node` and `node_modules`")
    parser.add_argument("--image", help="use this image instead of the host's own files")
    parser.add_argument(
        "--simulated", help="CDI specification of simulated devices, for a rehearsal"
    )
    parser.add_argument(
        "--gpu", type=int, help="index of the one GPU that this hub has; all of the host's without"
    )
    parser.add_argument("--port", type=int, default=19000)
    parser.add_argument("--hub-id", default="gpuhost")
    parser.add_argument("--network", default="gpuhost-net")
    parser.add_argument("--mem", default="64G")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--budget", type=float, default=480, help="seconds; scenes are left out")
    options = parser.parse_args()
    if options.gpu is not None and options.simulated:
        parser.error("--gpu is one of the driver's, --simulated has none")
    return options


def main() -> int:
    """Run everything; 1 when a scene raised."""
    options = arguments(__doc__.splitlines()[0])
    ends_at = time.monotonic() + options.budget
    result: dict[str, Any] = {"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    host = Host(options)

    def keep() -> None:
        (host.out / "result.json").write_text(json.dumps(result, indent=1))

    try:
        result["machine"] = machine()
        began = time.monotonic()
        host.start()
        result["hub_up_s"] = round(time.monotonic() - began, 3)
        keep()
        scenes(host, result, lambda: ends_at - time.monotonic(), keep)
    except Exception:  # noqa: BLE001 (what was measured until here is worth keeping)
        result["error"] = traceback.format_exc()
    finally:
        host.end()
        keep()
    print(json.dumps(result, indent=1))
    return int("error" in result)


if __name__ == "__main__":
    sys.exit(main())
