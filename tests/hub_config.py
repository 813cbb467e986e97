"""The repository's own jupyterhub_config.py, with a REST token for the tests and their settings."""

import json
import os

c = get_config()  # noqa: F821
load_subconfig(os.environ["LAB_CONFIG"])  # noqa: F821

c.JupyterHub.services = [
    *c.JupyterHub.services,
    {"name": "tests", "api_token": os.environ["LAB_TEST_TOKEN"]},
]
c.JupyterHub.load_roles = [
    *c.JupyterHub.load_roles,
    {
        "name": "tests-role",
        "services": ["tests"],
        "scopes": ["admin:users", "admin:servers", "tokens", "access:services", "custom:lab:admin"],
    },
]
c.JupyterHub.allow_named_servers = True
c.JupyterHub.log_level = "INFO"
for name, value in json.loads(os.environ.get("LAB_TEST_TRAITS", "{}")).items():
    section, trait = name.split(".")
    setattr(c[section], trait, value)
