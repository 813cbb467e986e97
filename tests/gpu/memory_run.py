"""Which notebook holds a real GPU's memory: two kernels in one server, named, one shut down.

Runs on the hosts that ``host_run`` runs on. Writes OUT/memory.json and prints it: what the service
answers before and after, what the container's own driver says, what nvidia-smi says on the host,
and whether each of these is right. Status 1 when one is not.

    python3 tests/gpu/memory_run.py --out OUT [--site DIR] [--node DIR] [--gib 11]

With ``--image IMAGE --simulated SPEC`` it is rehearsed without a GPU: memory then, and no GPU's.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.gpu.host_run import Host, arguments, machine, sh

USER = "ana"
AGENT = "/opt/pytorch-spawner/agent.pyz"

# Runs in the container: opens a notebook as JupyterLab does and runs a cell in its kernel. The
# connection file is Jupyter's own way in, so no token and no websocket is needed for that part.
OPEN = """
import json, os, sys, urllib.request
from jupyter_client import BlockingKernelClient
from jupyter_core.paths import jupyter_runtime_dir
path, code = sys.argv[1:]
url = "http://127.0.0.1:8888" + os.environ["JUPYTERHUB_SERVICE_PREFIX"] + "api/sessions"
body = {"path": path, "name": path, "type": "notebook", "kernel": {"name": "python3"}}
head = {"Authorization": "token " + os.environ["JUPYTERHUB_API_TOKEN"],
        "Content-Type": "application/json"}
asked = urllib.request.Request(url, json.dumps(body).encode(), head)
kernel = json.load(urllib.request.urlopen(asked))["kernel"]["id"]
file = os.path.join(jupyter_runtime_dir(), f"kernel-{kernel}.json")
client = BlockingKernelClient(connection_file=file)
client.load_connection_file()
client.start_channels()
client.wait_for_ready(60)
printed = []
reply = client.execute_interactive(
    code, timeout=120, output_hook=lambda said: printed.append(str(said["content"])))
print(json.dumps({"kernel": kernel, "status": reply["content"]["status"], "printed": printed}))
"""
HOLD = """
import torch
device = "cuda" if torch.cuda.is_available() else "cpu"
held = torch.ones(int({gib} * 2**28), device=device)
if device == "cuda":
    torch.cuda.synchronize()
print(device)
"""


def own_arguments() -> argparse.Namespace:
    """Options of this run; what is not known here is ``host_run``'s."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--gib", type=float, default=11.0, help="what the first notebook holds")
    own, rest = parser.parse_known_args()
    sys.argv[1:] = rest
    options = arguments(__doc__.splitlines()[0])
    options.gib = own.gib
    return options


def open_notebook(host: Host, path: str, gib: float) -> dict[str, Any]:
    """Open a notebook whose cell holds so much."""
    code = HOLD.format(gib=gib)
    said = sh("docker", "exec", host.container(USER), "python3", "-c", OPEN, path, code)
    try:
        found: dict[str, Any] = json.loads(said.splitlines()[-1])
    except (ValueError, IndexError):
        return {"error": said[-3000:]}
    return found


def look(host: Host) -> dict[str, Any]:
    """What everybody says just now."""
    began = time.monotonic()
    answer = host.http.get(f"{host.service}/servers/{USER}//memory", timeout=60)
    took_s = round(time.monotonic() - began, 3)
    inside = sh(
        "docker", "exec", host.container(USER), "python3", "-I", "-S", AGENT, "--kernels", "--gpu"
    )
    return {
        "took_s": took_s,
        "status": answer.status_code,
        "service": answer.json(),
        "inside": json.loads(inside) if inside.startswith("{") else inside,
        "host_used_mib": sh(
            "nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"
        ),
        "host_processes": sh(
            "nvidia-smi", "--query-compute-apps=pid,used_gpu_memory", "--format=csv,noheader"
        ),
    }


def run(host: Host, options: argparse.Namespace, found: dict[str, Any]) -> None:
    """Two notebooks, one is named and shut down."""
    found["start"] = host.spawn(USER, 1)
    if not found["start"]["ready"]:
        raise RuntimeError("the server is not ready")
    # The checks use the GPU for some seconds, too.
    for _ in range(200):
        done = [e["data"] for e in host.journal(USER) if e["kind"] == "done"]
        if any(one.get("part") == "checks" for one in done):
            break
        time.sleep(0.5)
    found["opened"] = {
        "cv-03.ipynb": open_notebook(host, "cv-03.ipynb", options.gib),
        "nlp-01.ipynb": open_notebook(host, "nlp-01.ipynb", 0.5),
    }
    time.sleep(12)  # the driver is looked at every 5 s
    found["before"] = look(host)
    kernel = found["opened"]["cv-03.ipynb"]["kernel"]
    began = time.monotonic()
    answer = host.http.delete(f"{host.service}/servers/{USER}//kernels/{kernel}", timeout=60)
    found["shut_down"] = {
        "status": answer.status_code,
        "answer": answer.json(),
        "took_s": round(time.monotonic() - began, 3),
    }
    time.sleep(12)
    found["after"] = look(host)
    found["right"] = judge(found, options)


def judge(found: dict[str, Any], options: argparse.Namespace) -> dict[str, bool]:
    """Whether what was seen is what was done."""
    before, after = found["before"]["service"], found["after"]["service"]
    first = before["kernels"][0]
    wanted_mib = options.gib * 1024
    right = {
        "it is named first": first["notebook"] == "cv-03.ipynb",
        "the sentence names it": "cv-03.ipynb holds" in before["sentence"],
        "only the other is left": [one["notebook"] for one in after["kernels"]] == ["nlp-01.ipynb"],
    }
    if options.simulated:
        return {**right, "its memory is seen": first["memory_mib"] >= wanted_mib}
    inside = found["before"]["inside"]
    by_pid = inside.get("gpu") if isinstance(inside, dict) else None
    found["inside_can_say"] = bool(by_pid)
    (share,), (later,) = before["gpus"], after["gpus"]
    freed_mib = (share["used_mib"] or 0) - (later["used_mib"] or 0)
    return {
        **right,
        "its GPU memory is seen": wanted_mib <= (first["gpu_mib"] or 0) <= wanted_mib + 2048,
        "it uses the GPU": first["uses_gpu"] is True,
        "the GPU is free again": freed_mib >= wanted_mib,
    }


def main() -> int:
    """Run it; 1 when something was not right."""
    options = own_arguments()
    found: dict[str, Any] = {"machine": machine(), "gib": options.gib}
    host = Host(options, warmup=False)
    try:
        host.start()
        run(host, options, found)
    except Exception:  # noqa: BLE001 (what was seen until then is the result)
        found["error"] = traceback.format_exc()
    finally:
        if host.hub is not None and found.get("start", {}).get("ready"):
            found["stop_s"] = host.stop(USER)
        host.end()
    text = json.dumps(found, indent=1, default=str)
    (host.out / "memory.json").write_text(text)
    print(text)
    return 0 if found.get("right") and all(found["right"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
