"""Runs in the lab's image: a Jupyter server with standby kernels, asked through its REST API.

Prints one JSON object per question, for test_standby_image.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

from jupyter_client import BlockingKernelClient
from jupyter_core.paths import jupyter_runtime_dir

LOADED = """
import json, sys
names = ("torch", "torch._inductor.compile_fx", "torch._functorch.aot_autograd", "numpy")
print(json.dumps([name in sys.modules for name in names]))
"""
STATE = """
import json, multiprocessing.process, os, sys, torch, torch._dynamo
print(json.dumps({
    "environment": dict(os.environ),
    "path": sys.path,
    "cuda": torch.cuda.is_initialized(),
    "seeded": torch.manual_seed(7) and torch.rand(3).tolist(),
    "dtype": str(torch.get_default_dtype()),
    "threads": torch.get_num_threads(),
    "grad": torch.is_grad_enabled(),
    "folder": torch._dynamo.config.debug_dir_root,
    "where children look": multiprocessing.process.ORIGINAL_DIR,
    "counters": {k: dict(v) for k, v in torch._dynamo.utils.counters.items() if v},
    "frames": torch._dynamo.convert_frame.FRAME_COUNTER,
    "job": torch.compiler.config.job_id,
}))
"""
CELL = """
def of_a_cell(x):
    return x + 1
"""
FILE = """
import json, os
name = of_a_cell.__code__.co_filename
print(json.dumps([open(name).read(), oct(os.stat(os.path.dirname(name)).st_mode & 0o777), name]))
"""


class Server:
    def __init__(self, port: int, standby: str) -> None:
        self.port, self.heard = port, []
        options = ["--no-browser", "--ip=127.0.0.1", f"--port={port}", "--IdentityProvider.token="]
        self.process = subprocess.Popen(
            ["jupyter-lab", *options, "--ServerApp.disable_check_xsrf=True"],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTORCH_SPAWNER_STANDBY": standby},
        )
        threading.Thread(target=self._read, daemon=True).start()
        self.wait_for("is running at")

    def _read(self) -> None:
        self.heard.extend(iter(self.process.stderr.readline, ""))

    def wait_for(self, words: str, times: int = 1) -> None:
        until = time.monotonic() + 90
        while sum(words in line for line in list(self.heard)) < times:
            if time.monotonic() > until:
                raise SystemExit(f"never heard {words!r}:\n{''.join(self.heard)}")
            time.sleep(0.05)

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/api/{path}", data=data, method=method
        )
        with urllib.request.urlopen(request, timeout=60) as reply:
            text = reply.read()
        return json.loads(text) if text else None

    def kernel(self) -> tuple[str, BlockingKernelClient]:
        kernel = self.ask("POST", "kernels", {})["id"]
        file = Path(jupyter_runtime_dir(), f"kernel-{kernel}.json")
        client = BlockingKernelClient(connection_file=str(file))
        client.load_connection_file()
        client.hb_channel.time_to_dead = 20.0  # machines that run tests are busy
        client.start_channels()
        client.wait_for_ready(timeout=60)
        return kernel, client


def run(client: BlockingKernelClient, code: str) -> str:
    said: list[str] = []

    def hear(message: dict[str, Any]) -> None:
        content = message["content"]
        if message["msg_type"] in ("stream", "error"):
            said.append(content.get("text") or "\n".join(content["traceback"]))

    client.execute_interactive(code, timeout=60, output_hook=hear)
    return "".join(said)


def say(**what: Any) -> None:
    print(json.dumps(what), flush=True)


def main() -> None:
    standby, ordinary = Server(8871, "1"), Server(8872, "0")
    standby.wait_for("ready after")
    for name, server in (("standby", standby), ("ordinary", ordinary)):
        kernel, client = server.kernel()
        loaded = json.loads(run(client, LOADED))
        began = time.monotonic()
        run(client, "import torch")
        import_s = time.monotonic() - began
        say(what=name, loaded=loaded, import_s=import_s, state=json.loads(run(client, STATE)))
        run(client, CELL)
        say(what=f"{name} cell", file=json.loads(run(client, FILE)))
        client.stop_channels()
        server.ask("DELETE", f"kernels/{kernel}")
    server_pid = standby.process.pid
    maps = Path(f"/proc/{server_pid}/maps").read_text()
    say(what="server", has_torch="libtorch" in maps, heard=standby.heard, off=ordinary.heard)
    standby.wait_for("ready after", 2)
    for server in (standby, ordinary):
        server.process.terminate()
        server.process.wait(20)
    left = subprocess.run(["pgrep", "-f", "standby.kernel"], capture_output=True, text=True)
    say(
        what="end",
        processes=left.stdout.split(),
        files=[path.name for path in Path("/tmp").iterdir()],
    )


if __name__ == "__main__":
    sys.exit(main())
