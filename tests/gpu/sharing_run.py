"""Sharing a real GPU: exclusive with a queue, four slots with the soft limit, four slots with MPS.

Runs like ``host_run`` and on the same hosts; writes OUT/sharing.json. With ``--simulated`` the
scenes that allocate GPU memory are left out, the rest is rehearsed.

    python3 tests/gpu/sharing_run.py --out OUT [--site DIR] [--node DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.gpu.host_run import ROOT, Host, arguments, machine, sh

# Takes memory in pieces until it is refused or MOST is reached, and holds it for a while.
TAKE = """
import ctypes, json, os, sys, time
how, most, hold_s = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
piece, taken, said, began = 256, 0, "", time.time()
facts = {}
if how == "torch":
    import torch
    torch.cuda.init()
    facts["ready_at"] = time.time()
    free, total = torch.cuda.mem_get_info()
    facts["total_mib"], facts["free_mib"] = total >> 20, free >> 20
    kept = []
    while taken < most:
        try:
            kept.append(torch.empty(piece << 20, dtype=torch.uint8, device="cuda"))
        except RuntimeError as error:
            said = f"{type(error).__name__}: {error}"
            break
        taken += piece
else:
    cuda = ctypes.CDLL("libcuda.so.1")
    device, context = ctypes.c_int(), ctypes.c_void_p()
    for call in (
        lambda: cuda.cuInit(0),
        lambda: cuda.cuDeviceGet(ctypes.byref(device), 0),
        lambda: cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device),
        lambda: cuda.cuCtxSetCurrent(context),
    ):
        if status := call():
            print(json.dumps({"how": how, "taken_mib": 0, "said": f"status {status}",
                "seconds": round(time.time() - began, 2)}))
            sys.exit(1)
    facts["ready_at"] = time.time()
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
    facts["total_mib"], facts["free_mib"] = total.value >> 20, free.value >> 20
    while taken < most:
        at = ctypes.c_void_p()
        if status := cuda.cuMemAlloc_v2(ctypes.byref(at), ctypes.c_size_t(piece << 20)):
            said = f"status {status}"
            break
        taken += piece
facts["taken_at"] = time.time()
time.sleep(hold_s)
print(json.dumps({"how": how, "uid": os.getuid(), "taken_mib": taken, "said": said[:600],
    "began": began, "ended": time.time(), **facts}))
"""


def take(
    host: Host,
    user: str,
    how: str,
    most_mib: int,
    hold_s: float = 0,
    without: tuple[str, ...] = (),
) -> dict[str, Any]:
    """What one process in a user's container got; ``without`` names variables it put away."""
    away = ("env", *(word for name in without for word in ("-u", name)))
    words = ("docker", "exec", host.container(user), *away, "python3", "-c", TAKE)
    said = sh(*words, how, str(most_mib), str(hold_s), timeout_s=90)
    try:
        return dict(json.loads(said.splitlines()[-1]), user=user)
    except (ValueError, IndexError):
        return {"user": user, "how": how, "error": said[-1500:]}


def at_once(calls: dict[str, Callable[[], Any]]) -> dict[str, Any]:
    """Run several things at the same time; what each answered."""
    found: dict[str, Any] = {}
    threads = [
        threading.Thread(target=lambda name=name, call=call: found.update({name: call()}))
        for name, call in calls.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def exclusive(host: Host) -> dict[str, Any]:
    """One GPU, two students: the second waits, and gets it when the first stops."""
    found: dict[str, Any] = {"first": host.spawn("ana", 1)}
    found["seen"] = {
        key: value
        for key, value in host.look("ana").items()
        if key in ("nvidia_smi", "torch", "label_gpus")
    }
    second: dict[str, Any] = {}
    thread = threading.Thread(target=lambda: second.update(host.spawn("bo", 1)))
    thread.start()
    time.sleep(2)
    found["queue"] = json.loads(cli(host, "queue", "--json") or "null")
    stop_at = time.time()
    found["stop_s"] = host.stop("ana")
    thread.join(120)
    found["second"] = second
    if second.get("ready"):
        found["second_after_stop_s"] = round(second["at"] + second["ready_s"] - stop_at, 2)
        found["gpu_event"] = gpu_event(host, "bo")
    host.stop("bo")
    return found


def gpu_event(host: Host, user: str) -> dict[str, Any]:
    """What the journal says of the GPUs."""
    for event in host.journal(user):
        if event["data"].get("stage") == "gpu":
            return {
                key: event["data"].get(key) for key in ("gpus", "share", "limit", "why", "waited_s")
            }
    return {}


def cli(host: Host, *words: str) -> str:
    """`pytorch-spawner`, as an admin runs it."""
    done = subprocess.run(
        [
            sys.executable, "-m", "pytorch_spawner.cli", *words,
            "--ledger", f"sqlite:///{host.state}/ledger.sqlite", "--hub", host.options.hub_id,
        ],
        capture_output=True, text=True, cwd=ROOT, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(
            filter(None, [str(ROOT), host.options.site, os.environ.get("PYTHONPATH")])
        )},
    )  # fmt: skip
    return done.stdout + done.stderr


def slots(host: Host, users: tuple[str, ...]) -> dict[str, Any]:
    """Four students on one GPU, a fifth waits."""
    found: dict[str, Any] = {
        "starts": at_once({user: lambda user=user: host.spawn(user, 1) for user in users})
    }
    found["gpus"] = json.loads(cli(host, "gpus", "--json") or "null")
    found["events"] = {user: gpu_event(host, user) for user in users}
    found["fifth"] = host.api("POST", "users/fifth").status_code
    answer = host.api("POST", "users/fifth/server", json={"gpus": 1, "on_busy": "fail"})
    found["fifth"] = [answer.status_code, answer.json().get("message")]
    return found


def soft(host: Host, simulated: bool) -> dict[str, Any]:
    """The limit that PyTorch keeps."""
    users = ("s0", "s1", "s2", "s3")
    found = {"set": cli(host, "gpus", "mode", "0", "shared:4")} | slots(host, users)
    if not simulated:
        found["torch"] = at_once(
            {user: lambda user=user: take(host, user, "torch", 40_000, 8) for user in users}
        )
        # What the soft limit does not bind: a program that asks the driver itself.
        found["driver"] = take(host, "s0", "driver", 26_000)
    for user in users:
        host.stop(user)
    return found


def start_mps(folder: Path, *options: str) -> dict[str, Any]:
    """The MPS daemon of the host."""
    (folder / "log").mkdir(parents=True)
    folder.chmod(0o755)
    os.environ["CUDA_MPS_PIPE_DIRECTORY"] = str(folder)
    os.environ["CUDA_MPS_LOG_DIRECTORY"] = str(folder / "log")
    said = sh("nvidia-cuda-mps-control", *options, "-d", timeout_s=20)
    time.sleep(1)
    return {"said": said, "files": sh("ls", "-la", str(folder))}


def mps(command: str) -> str:
    """Tell the daemon something."""
    return sh("sh", "-c", f"echo {command} | nvidia-cuda-mps-control")


def hard(host: Host, folder: Path) -> dict[str, Any]:
    """The limit that the driver keeps, for two uids at the same time."""
    users = ("m0", "m1", "m2", "m3")
    found = slots(host, users)
    found["driver"] = at_once(
        {user: lambda user=user: take(host, user, "driver", 40_000, 8) for user in users}
    )
    found["torch"] = at_once(
        {user: lambda user=user: take(host, user, "torch", 40_000, 8) for user in users[:2]}
    )
    # What a student can put away, and what then still holds.
    limit, pipe = "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT", "CUDA_MPS_PIPE_DIRECTORY"
    found["without the limit"] = take(host, "m0", "driver", 50_000, without=(limit,))
    found["without the pipe"] = take(host, "m0", "driver", 50_000, without=(pipe,))
    found["default"] = mps("set_default_device_pinned_mem_limit 0 35686M")
    found["without the limit, with a default"] = take(
        host, "m0", "driver", 50_000, without=(limit,)
    )
    found["log"] = sh("sh", "-c", f"tail -n 60 {folder}/log/*.log")
    found["clients"] = sh("nvidia-smi", "--query-compute-apps=pid,name,used_memory", "--format=csv")
    for user in users:
        host.stop(user)
    return found


def probe_mps(folder: Path) -> dict[str, Any]:
    """Two uids at once, against a daemon that was not told that it serves several users."""
    args = Path("/opt/engine/run-args").read_text().split()

    def run(uid: int) -> str:
        return sh(
            "docker", "run", "--rm", "--device", "nvidia.com/gpu=0", *args,
            "--user", f"{uid}:{uid}", "-v", f"{folder}:/mps",
            "-e", "CUDA_MPS_PIPE_DIRECTORY=/mps",
            "-e", "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT=0=4G",
            "gpu-host:latest", "python3", "-c", TAKE, "driver", "9000", "6",
            timeout_s=60,
        )  # fmt: skip

    return at_once({"20001": lambda: run(20001), "20002": lambda: run(20002)})


def main() -> int:
    """Run every scene; 1 when one raised."""
    options = arguments(__doc__.splitlines()[0])
    simulated = bool(options.simulated)
    result: dict[str, Any] = {"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    folder = Path("/tmp/nvidia-mps-lab")

    def scene(name: str, what: Callable[[], Any]) -> None:
        began = time.monotonic()
        try:
            result[name] = what()
        except Exception:  # noqa: BLE001 (what the others find is worth keeping)
            result[name] = {"error": traceback.format_exc()}
        result[f"{name}_s"] = round(time.monotonic() - began, 1)
        (out / "sharing.json").write_text(json.dumps(result, indent=1))

    scene("machine", machine)
    host = Host(options, warmup=False, on_busy="queue")
    try:
        scene("start", host.start)
        scene("exclusive", lambda: exclusive(host))
        scene("soft", lambda: soft(host, simulated))
    finally:
        host.end()
    if not simulated:
        scene("mps_single", lambda: start_mps(folder / "single"))
        scene("probe", lambda: probe_mps(folder / "single"))
        mps("quit")
        scene("mps", lambda: start_mps(folder / "multi", "-multiuser-server"))
        folder /= "multi"
        options = argparse.Namespace(
            **{**vars(options), "port": options.port + 10, "out": str(out / "mps")}
        )
        host = Host(
            options, warmup=False, on_busy="queue", gpu_modes={"*": "shared:4"},
            mps_pipe_dir=str(folder),
        )  # fmt: skip
        try:
            scene("start_again", host.start)
            scene("hard", lambda: hard(host, folder))
        finally:
            host.end()
            mps("quit")
    print(json.dumps(result, indent=1))
    return int(any(isinstance(said, dict) and "error" in said for said in result.values()))


if __name__ == "__main__":
    sys.exit(main())
