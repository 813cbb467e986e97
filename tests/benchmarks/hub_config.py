"""A hub for a benchmark: against a fake engine, with our spawner or with the stock one.

Everything is said by BENCH_HUB (JSON); only the spawner differs between two hubs that are compared.
"""

import json
import os
from pathlib import Path

from dockerspawner import DockerSpawner
from jupyterhub.auth import DummyAuthenticator
from jupyterhub.spawner import Spawner

from pytorch_spawner.hub import add_lab
from pytorch_spawner.spawner import PyTorchSpawner
from tests.benchmarks.loop_meter import meter_hook
from tests.benchmarks.null_spawner import NullSpawner

c = get_config()  # noqa: F821
s = json.loads(os.environ["BENCH_HUB"])
state, port = Path(s["state"]), s["port"]

c.JupyterHub.bind_url = f"http://127.0.0.1:{port}"
c.JupyterHub.hub_bind_url = f"http://127.0.0.1:{port + 1}"
c.JupyterHub.db_url = f"sqlite:///{state / 'jupyterhub.sqlite'}"
c.JupyterHub.cookie_secret_file = str(state / "cookie_secret")
c.ConfigurableHTTPProxy.pid_file = str(state / "proxy.pid")
c.ConfigurableHTTPProxy.api_url = f"http://127.0.0.1:{port + 2}"

c.JupyterHub.services = [{"name": "bench", "api_token": s["token"]}]
c.JupyterHub.load_roles = [
    {"name": "bench-role", "services": ["bench"], "scopes": ["admin:users", "admin:servers"]},
]

if s["spawner"] == "ours":
    add_lab(
        c,
        address=f"http://127.0.0.1:{port + 3}",
        ledger_url=f"sqlite:///{state / 'ledger.sqlite'}",
        hub_id=s["hub_id"],
    )
    c.PyTorchSpawner.inventory = s["inventory"]
    c.PyTorchSpawner.warmup = False
    spawner_class = PyTorchSpawner
elif s["spawner"] == "stock":
    c.DockerSpawner.remove = True
    spawner_class = DockerSpawner
else:
    c.Spawner.port = s["server_port"]
    spawner_class = NullSpawner
c.JupyterHub.spawner_class = spawner_class

c.DockerSpawner.image = "lab:cpu"
c.DockerSpawner.pull_policy = "never"
c.DockerSpawner.network_name = s["network"]
c.DockerSpawner.port = s["server_port"]
c.Spawner.start_timeout = 600
c.Spawner.http_timeout = 120
c.Spawner.pre_spawn_hook = meter_hook(
    Path(s["meter"]), profile=s["profile"], watch=(spawner_class, Spawner)
)

c.JupyterHub.concurrent_spawn_limit = 0
# A start's request is answered when the server is ready, so that nobody has to poll for it.
c.JupyterHub.tornado_settings = {"slow_spawn_timeout": 600}

c.JupyterHub.authenticator_class = DummyAuthenticator
c.Authenticator.allow_all = True
c.DummyAuthenticator.password = s["token"]
