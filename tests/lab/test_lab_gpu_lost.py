"""A GPU that the host takes away from a running server, for real: cgroup, agent, service and page.

A container has a device file where NVIDIA's would be; its cgroup is told to deny that file, as
systemd does when it reloads (issue 48 of nvidia-container-toolkit).
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import lab_journals as journals
import pytest
from lab_browser import MARKS, expect, new_page, open_page, run_browser, shoot, tell, verdict
from lab_fakes import GPU
from lab_site import Site

from pytorch_spawner.agent.bundle import build

IMAGE = "pytorch-spawner/lab:cpu"
# /dev/zero stands in for it: one can open it, and nothing happens.
DEVICE = "c 1:5 rwm"
WITHIN_S = 60.0
CGROUPS = Path("/sys/fs/cgroup/devices")
pytestmark = [
    *MARKS,
    pytest.mark.docker,
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(
        not CGROUPS.is_dir() or os.geteuid() != 0,
        reason="a device is taken away through cgroup v1's device controller, by root",
    ),
]


def docker(*arguments: str) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def pyz(tmp_path: Path) -> Path:
    build(tmp_path / "agent.pyz")
    return tmp_path / "agent.pyz"


@pytest.fixture
def containers() -> Iterator[list[str]]:
    """Names of containers, which are removed afterwards."""
    try:
        docker("image", "inspect", IMAGE)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip(f"no Docker Engine answers, or the image {IMAGE} is not built")
    names: list[str] = []
    yield names
    for name in names:
        docker("rm", "-f", "-v", name)


def begin(lab: Site, pyz: Path, start: str, containers: list[str]) -> str:
    """Start a student's container with a pretended GPU, whose agent reports to the service."""
    name = f"gpu-lost-{uuid.uuid4().hex[:10]}"
    containers.append(name)
    gpu = {"uuid": GPU["uuid"], "name": GPU["name"], "memory_mib": GPU["memory_mib"]}
    config = {
        "start": start, "gpus": [gpu], "share": "whole", "warmup": {"enabled": False},
        "checks": {"deadline_s": 1}, "shm_expected_mib": 64,
    }  # fmt: skip
    root = lab.url.removesuffix("/services/lab/")
    environment = {
        "HOME": "/home/ana",
        "JUPYTERHUB_API_URL": f"{root}/hub/api",
        "JUPYTERHUB_API_TOKEN": "ana-server",
        "JUPYTERHUB_SERVICE_URL": f"{root}/user/ana/",
        "JUPYTERHUB_SERVICE_PREFIX": "/user/ana/",
        "PYTORCH_SPAWNER_AGENT": json.dumps(config),
        "PYTORCH_SPAWNER_EVENTS_URL": f"{lab.url}api/servers/ana//events",
    }
    options = [f"--env={key}={value}" for key, value in environment.items()]
    for folder in ("/home/ana", "/var/cache/pytorch-spawner"):
        options += ["--tmpfs", f"{folder}:exec,uid=54321,gid=54321,mode=700"]
    docker(
        "create", "--name", name, "--user", "54321:54321", "--cap-drop", "ALL",
        "--security-opt", "no-new-privileges", "--pids-limit", "512", "--network", "host",
        "--device", "/dev/zero:/dev/nvidiactl", *options,
        IMAGE, "python3", "/opt/agent.pyz", "--", "sleep", "1000",
    )  # fmt: skip
    docker("cp", str(pyz), f"{name}:/opt/agent.pyz")
    docker("start", name)
    return name


def cgroup_of(name: str) -> Path:
    """The device cgroup of a container."""
    pid = docker("inspect", name, "--format", "{{.State.Pid}}")
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    path = next(line.split(":", 2)[2] for line in lines if ":devices:" in line)
    return CGROUPS / path.lstrip("/")


def idle_processes(name: str) -> list[int]:
    """Processes of a container that only wait for the GPU to be lost."""
    rows = docker("top", name, "-eo", "pid,args").splitlines()
    return [int(row.split()[0]) for row in rows if "--worker gpu-idle" in row]


async def memory_of_the_one_that_waits(name: str) -> dict[str, int]:
    """Its memory in KiB; there is one such process, sooner or later."""
    give_up_at = time.monotonic() + 150
    while not (found := await asyncio.to_thread(idle_processes, name)):
        assert time.monotonic() < give_up_at, await asyncio.to_thread(docker, "top", name)
        await asyncio.sleep(0.5)
    assert len(found) == 1
    await asyncio.sleep(1)  # it may be about to begin
    rows = Path(f"/proc/{found[0]}/smaps_rollup").read_text().splitlines()[1:]
    return {row.split()[0].rstrip(":"): int(row.split()[1]) for row in rows}


async def test_the_page_says_it_within_a_minute_and_offers_a_restart(lab, pyz, containers):
    start = tell(lab, journals.hub_until("lab"), time.time())
    name = await asyncio.to_thread(begin, lab, pyz, start.id, containers)
    cgroup = await asyncio.to_thread(cgroup_of, name)
    async for browser in run_browser():
        async for page in new_page(browser):
            await open_page(lab, page)
            restart = page.get_by_role("button", name="Restart your server…")
            memory = await memory_of_the_one_that_waits(name)
            # What it wrote. Pages of the interpreter's own files are the image's: every Python of
            # every server shares them, but here there may be no other.
            private_kib = memory["Private_Dirty"]
            assert private_kib < 5 * 1024, memory
            await expect(restart).to_have_count(0)

            (cgroup / "devices.deny").write_text(DEVICE)
            lost_at = time.monotonic()
            lost = "Your server has lost its GPU"
            await expect(verdict(page)).to_contain_text(lost, timeout=1000 * WITHIN_S)
            took_s = time.monotonic() - lost_at
            print(f"said after {took_s:.1f} s; private {private_kib} KiB, all {memory['Rss']} KiB")
            await expect(restart).to_be_visible()
            await expect(page.get_by_text("Save your work, then stop")).to_be_visible()
            await shoot(page, "gpu-lost-for-real")

            (cgroup / "devices.allow").write_text(DEVICE)
            await expect(verdict(page)).not_to_contain_text(lost, timeout=1000 * WITHIN_S)
            await expect(restart).to_have_count(0)
            await memory_of_the_one_that_waits(name)  # it waits on
