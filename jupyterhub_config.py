# What `make run` runs. It works without a GPU; every line you may want to change is here.
import os
import subprocess
from pathlib import Path

from jupyterhub.auth import DummyAuthenticator

from pytorch_spawner.demo import demo_gpus, demo_password
from pytorch_spawner.hub import add_lab

c = get_config()

# Where the lab keeps its state: the hub's database, the ledger, the demo password.
lab_dir = Path(os.environ.get("LAB_DIR", ".lab")).resolve()
lab_dir.mkdir(mode=0o700, exist_ok=True)
port = int(os.environ.get("LAB_PORT", "8000"))

# The address people open. Behind a reverse proxy with TLS, keep the loopback address.
c.JupyterHub.bind_url = f"http://127.0.0.1:{port}"
c.JupyterHub.db_url = f"sqlite:///{lab_dir / 'jupyterhub.sqlite'}"
c.JupyterHub.cookie_secret_file = str(lab_dir / "cookie_secret")
c.ConfigurableHTTPProxy.pid_file = str(lab_dir / "jupyterhub-proxy.pid")
c.ConfigurableHTTPProxy.api_url = f"http://127.0.0.1:{port + 2}"

# Containers reach the hub and the lab service at the gateway of their own network, on which
# containers do not reach each other (share/setup/network makes it).
network = os.environ.get("LAB_NETWORK", "pytorch-spawner")
gateway = subprocess.run(
    ["docker", "network", "inspect", network, "--format", "{{(index .IPAM.Config 0).Gateway}}"],
    capture_output=True,
    text=True,
    check=True,
).stdout.strip()
c.JupyterHub.hub_bind_url = f"http://{gateway}:{port + 1}"
c.JupyterHub.hub_connect_ip = gateway

# A site behind a TLS-inspecting proxy names its CA once (LAB_CA): builds and containers get it, and
# git, which fetches courses.
if authorities := os.environ.get("LAB_CA"):
    os.environ.setdefault("GIT_SSL_CAINFO", authorities)

# Spawner, service, roles, pages: all that `pytorch_spawner` needs in a hub, in one call.
add_lab(
    c,
    address=f"http://{gateway}:{port + 3}",
    ledger_url=f"sqlite:///{lab_dir / 'ledger.sqlite'}",
    hub_id=f"lab-{port}",
    course_dir=lab_dir / "courses",
    reconcile_s=float(os.environ.get("LAB_RECONCILE_S", "30")),
)

# Who may log in. DEMO: any name, with the generated password. Put your own authenticator here, for
# example "ldapauthenticator.LDAPAuthenticator" or "oauthenticator.GitHubOAuthenticator".
c.JupyterHub.authenticator_class = DummyAuthenticator
c.DummyAuthenticator.password = demo_password(lab_dir, f"http://127.0.0.1:{port}")
c.Authenticator.allow_all = True
c.Authenticator.admin_users = {"admin"}

# Who prepares courses: admins, and whoever is in this group. Your authenticator may fill it.
c.JupyterHub.load_groups = {"instructors": {"users": ["instructor"]}}
c.JupyterHub.load_roles.append(
    {"name": "instructor", "groups": ["instructors"], "scopes": ["custom:lab:instruct"]}
)

# An instructor's look at a course as a student is a named server.
c.JupyterHub.allow_named_servers = True

# Data sets that courses may ask for by name; each is mounted read-only.
# c.PyTorchSpawner.course_data = {"imagenet": "/srv/data/imagenet"}

# Of each pool, what classes may have around their beginning; the rest stays everybody's.
# c.PyTorchSpawner.class_seats_share = 0.8

# A class starts at nine. The hub's own limit of starts (JupyterHub.concurrent_spawn_limit, 100)
# counts those who only queue for a GPU, and refuses whoever comes after. So it is off (add_lab does
# that), and this one bounds how many containers are started at a time.
c.PyTorchSpawner.starts_at_once = 50

# The image: build others with share/images/build, and offer several with
# c.PyTorchSpawner.images = {"PyTorch 2.13, CPU": "pytorch-spawner/lab:cpu", ...}
c.PyTorchSpawner.image = os.environ.get("LAB_IMAGE", "pytorch-spawner/lab:cpu")
c.PyTorchSpawner.pull_policy = "ifnotpresent"
c.PyTorchSpawner.network_name = network

# GPUs: the NVIDIA driver is asked. Without one, the simulated devices that share/setup/demo-gpus
# described to the engine stand in, so that everything up to the CUDA call works.
c.PyTorchSpawner.inventory = demo_gpus()
c.PyTorchSpawner.max_gpus = 1
c.PyTorchSpawner.on_busy = "queue"

# What one server may use.
c.PyTorchSpawner.mem_limit = "6G"
c.PyTorchSpawner.cpu_limit = 2
c.PyTorchSpawner.shm_mib = 1024

c.PyTorchSpawner.ca_bundle = authorities or ""

# Homes are named volumes; for a directory on the engine's host:
# c.PyTorchSpawner.home_root = "/srv/homes"
# Uids come from the ledger; to take them from the directory service or this machine's passwd:
# c.PyTorchSpawner.uid_auth_state_key = "ldap"
# c.PyTorchSpawner.uid_from_passwd = True
