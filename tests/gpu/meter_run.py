"""What the meter sees of a real GPU: one container that computes, one process outside any.

Writes OUT/meter.json and prints it: what NVML says, how long asking takes, which process was told
to be whose, what was booked. It needs a Docker Engine with CDI devices, a driver and torch on the
host (``share/gpu-host/up`` brings up an engine where there is none), and root or its group.

    python3 tests/gpu/meter_run.py --out OUT [--seconds 20]

With ``--simulated`` it runs without a GPU: real containers and process ids (``--image`` names an
image with python3), on an invented driver.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pytorch_spawner.adapters import nvml, processes
from pytorch_spawner.adapters.nvml_meter import NvmlMeter, Reading
from pytorch_spawner.core.gpus import Gpu, GpuUuid, Inventory
from pytorch_spawner.core.metering import Sample
from pytorch_spawner.core.placement import Holding
from pytorch_spawner.lab import measure
from pytorch_spawner.lab.measure import Meter
from pytorch_spawner.lab.settings import LabSettings

LABEL = "org.pytorch-spawner."
HUB = f"meter-run-{secrets.token_hex(3)}"
RUN_ARGS = Path("/opt/engine/run-args")

COMPUTE = """
import sys, time
import torch
a = torch.randn(8192, 8192, device="cuda", dtype=torch.float16)
end = time.time() + float(sys.argv[1])
while time.time() < end:
    for _ in range(20):
        a = (a @ a).clamp(-1, 1)
    torch.cuda.synchronize()
"""
IDLE = "import sys, time; time.sleep(float(sys.argv[1]))"


@dataclass(frozen=True)
class Lease:
    id: str
    start_id: str
    username: str
    servername: str
    holdings: tuple[Holding, ...]
    request: dict[str, Any]
    since: float = 0.0
    until: float | None = None
    kept_until: float | None = None
    grant: str = ""

    @property
    def gpus(self) -> tuple[str, ...]:
        return tuple(holding.gpu for holding in self.holdings)


class OneLease:
    """A ledger: ana holds a slot of the first GPU and computes, bo holds one and does not."""

    def __init__(self, inventory: Inventory) -> None:
        self.inventory = inventory
        self.written: list[Any] = []

    def read_inventory(self, hub: str) -> Inventory:
        return self.inventory

    def leases(self, hub: str) -> list[Lease]:
        gpu = self.inventory.gpus[0].uuid
        return [
            Lease("lease-ana", "s1", "ana", "", (Holding(gpu, 0, 2),), {"course": "cv"}),
            Lease("lease-bo", "s2", "bo", "", (Holding(gpu, 1, 2),), {}),
        ]

    def add_busy(self, hub: str, rows: Any) -> None:
        self.written += rows


def sh(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words[:3])}: {done.stderr.strip()[-800:]}")
    return done.stdout.strip()


def start_container(options: argparse.Namespace, user: str, program: str) -> str:
    words = ["docker", "run", "-d", "--rm", "--label", f"{LABEL}hub={HUB}"]
    words += ["--label", f"{LABEL}server={user}/"]
    if not options.simulated:
        words += ["--device", "nvidia.com/gpu=0"]
        words += RUN_ARGS.read_text().split() if RUN_ARGS.exists() else []
    words += ["--entrypoint", "python3", options.image, "-c", program, str(options.seconds + 60)]
    return sh(*words)


def invented(pids: dict[str, int]) -> Any:
    """A driver that lists these processes on one GPU."""

    def read() -> Reading:
        listed = [(pid, processes.process_name(pid), 100) for pid in pids.values()]
        uuid = GpuUuid("GPU-invented")
        return Reading({uuid: Sample(time.time(), 80.0, 200, 50.0, 300.0)}, {uuid: listed})

    return read


def timed(call: Any) -> float:
    began = time.perf_counter()
    call()
    return round(1000 * (time.perf_counter() - began), 2)


async def watch(meter: Meter, seconds: float) -> list[dict[str, Any]]:
    looks = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        began = time.perf_counter()
        await meter.step()
        looks.append(
            {
                "step_ms": round(1000 * (time.perf_counter() - began), 1),
                "source": meter.source,
                "reason": meter.reason,
                "latest": {uuid: sample.as_json() for uuid, sample in meter.latest.items()},
                "processes": {
                    uuid: [asdict(process) for process in listed]
                    for uuid, listed in meter.processes.items()
                },
            }
        )
        await asyncio.sleep(2)
    return looks


def run(options: argparse.Namespace) -> dict[str, Any]:
    measure._WRITE_S = options.seconds / 2
    found: dict[str, Any] = {"host_namespace": processes._sees_host(processes.PROC)}
    containers: dict[str, str] = {}
    outside: subprocess.Popen[bytes] | None = None
    pids: dict[str, int] = {}
    try:
        program = IDLE if options.simulated else COMPUTE
        containers["ana"] = start_container(options, "ana", program)
        containers["bo"] = start_container(options, "bo", IDLE)
        if options.outside:
            outside = subprocess.Popen([sys.executable, "-c", program, str(options.seconds + 60)])
        for user, container in containers.items():
            pid = int(sh("docker", "inspect", container, "--format", "{{.State.Pid}}"))
            found[user] = {
                "container": container,
                "pid": pid,
                "container_of": processes.container_of(pid),
                "name": processes.process_name(pid),
                "cgroup": Path(f"/proc/{pid}/cgroup").read_text(),
            }
            found[user]["is_right"] = found[user]["container_of"] == container
        pids = {"ana": found["ana"]["pid"]}
        if outside is not None:
            pids["outside"] = outside.pid
            found["outside"] = {
                "pid": outside.pid,
                "containers_of": processes.containers_of(outside.pid),
            }
        if options.simulated:
            read = invented(pids)
            inventory = Inventory((Gpu(GpuUuid("GPU-invented"), mode="shared:2"),))
            found["nvml_here"] = asdict(NvmlMeter().read())
        else:
            inventory = nvml.read_inventory()
            nvml_meter = NvmlMeter()
            found["first_read_ms"] = timed(nvml_meter.read)
            time.sleep(15)  # torch is loading
            found["read_ms"] = sorted(timed(nvml_meter.read) for _ in range(20))
            found["nvml"] = asdict(nvml_meter.read())
            read = nvml_meter.read
            found["nvidia_smi"] = sh(
                "nvidia-smi",
                "--query-gpu=uuid,utilization.gpu,memory.used,temperature.gpu,power.draw",
                "--format=csv,noheader,nounits",
            )
            found["nvidia_smi_processes"] = sh(
                "nvidia-smi", "--query-compute-apps=pid,name,used_memory", "--format=csv"
            )
        ledger = OneLease(inventory)
        settings = LabSettings(HUB, "", "", "")
        meter = Meter(settings, ledger, read=read)  # type: ignore[arg-type]
        found["looks"] = asyncio.run(watch(meter, options.seconds))
        found["history"] = meter.history.as_json()
        found["booked"] = ledger.written
        last = found["looks"][-1]["processes"]
        seen = {row["pid"]: row["username"] for rows in last.values() for row in rows}
        found["ana_was_found"] = seen.get(found["ana"]["pid"]) == "ana"
    finally:
        if outside is not None:
            outside.kill()
            outside.wait()
        for container in containers.values():
            subprocess.run(["docker", "rm", "-f", container], capture_output=True, check=False)
    return found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--image", default="gpu-host:latest")
    parser.add_argument("--simulated", action="store_true")
    parser.add_argument("--no-outside", dest="outside", action="store_false")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    found = run(options)
    text = json.dumps(found, indent=1, default=str)
    (out / "meter.json").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
