"""A hub for a benchmark on a real engine: the demo's configuration, or a stock DockerSpawner.

Everything is said by BENCH_HUB (JSON). Ours is the repository's own jupyterhub_config.py; stock is
what JupyterHub's and DockerSpawner's documentation tell a site to write.
"""

import json
import os
from pathlib import Path

from jupyterhub.auth import DummyAuthenticator

c = get_config()  # noqa: F821
s = json.loads(os.environ["BENCH_HUB"])
state, port = Path(s["state"]), s["port"]

if s["is_ours"]:
    load_subconfig(s["demo"])  # noqa: F821
else:
    from dockerspawner import DockerSpawner

    c.JupyterHub.spawner_class = DockerSpawner
    c.JupyterHub.bind_url = f"http://127.0.0.1:{port}"
    c.JupyterHub.hub_bind_url = f"http://{s['gateway']}:{port + 1}"
    c.JupyterHub.hub_connect_ip = s["gateway"]
    c.JupyterHub.db_url = f"sqlite:///{state / 'jupyterhub.sqlite'}"
    c.JupyterHub.cookie_secret_file = str(state / "cookie_secret")
    c.ConfigurableHTTPProxy.pid_file = str(state / "jupyterhub-proxy.pid")
    c.ConfigurableHTTPProxy.api_url = f"http://127.0.0.1:{port + 2}"
    c.JupyterHub.authenticator_class = DummyAuthenticator
    c.Authenticator.allow_all = True
    c.DummyAuthenticator.password = s["token"]
    c.DockerSpawner.image = s["image"]
    c.DockerSpawner.pull_policy = "never"
    c.DockerSpawner.remove = True
    c.DockerSpawner.prefix = s["hub_id"]
    c.DockerSpawner.extra_create_kwargs = {"labels": {s["label"]: s["hub_id"]}}
    if s["user"]:
        c.DockerSpawner.extra_create_kwargs["user"] = s["user"]
    if s["cdi_device"]:
        from docker.types import DeviceRequest

        request = DeviceRequest(driver="cdi", device_ids=[s["cdi_device"]])
        c.DockerSpawner.extra_host_config = {"device_requests": [request]}

if s["proxy"]:
    c.ConfigurableHTTPProxy.command = s["proxy"]
c.JupyterHub.services.extend([{"name": "bench", "api_token": s["token"]}])
scopes = ["admin:users", "admin:servers", "access:servers"]
if s["is_ours"]:
    scopes += ["access:services", "custom:lab:admin"]
c.JupyterHub.load_roles.extend([{"name": "bench-role", "services": ["bench"], "scopes": scopes}])
# Alike for all: many at once on few cores take longer than the defaults allow, and a start that is
# given up would be no figure at all. Neither is waited for in a start that goes well.
c.Spawner.start_timeout = 600
c.Spawner.http_timeout = 300
for name, value in s["traits"].items():
    section, trait = name.split(".")
    c[section][trait] = value
