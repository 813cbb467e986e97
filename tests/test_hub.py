from __future__ import annotations

from pathlib import Path

import pytest
from jupyterhub.app import JupyterHub
from jupyterhub.auth import Authenticator
from traitlets.config import Config

from pytorch_spawner.core.courses import SMOKER
from pytorch_spawner.core.warmcache import WARMER
from pytorch_spawner.hub import add_lab

ACCOUNTS = {WARMER, SMOKER}
SCOPE = "access:services!service=lab"


def user_role(config: Config) -> dict:
    (role,) = [role for role in config.JupyterHub.load_roles if role["name"] == "user"]
    return role


def test_what_a_site_has_stays() -> None:
    config = Config()
    config.JupyterHub.services = [{"name": "own"}]
    config.JupyterHub.template_paths = ["/own"]
    config.JupyterHub.load_roles = [{"name": "user", "scopes": ["self", "own:scope"]}]
    config.JupyterHub.custom_scopes = {"custom:own": {"description": "x"}}
    add_lab(config)
    assert [service["name"] for service in config.JupyterHub.services] == ["own", "lab"]
    assert config.JupyterHub.template_paths[0] == "/own"
    assert user_role(config)["scopes"] == ["self", "own:scope", SCOPE]
    assert "custom:own" in config.JupyterHub.custom_scopes


def test_what_a_site_only_added_to_stays_too() -> None:
    config = Config()
    config.JupyterHub.services.append({"name": "culler"})
    config.JupyterHub.template_paths.insert(0, "/own")
    config.JupyterHub.load_roles.append({"name": "culler-role", "scopes": ["list:users"]})
    config.JupyterHub.custom_scopes.update({"custom:own": {"description": "x"}})
    config.JupyterHub.extra_user_scopes.add("access:services!service=own")
    config.Authenticator.blocked_users.add("eve")
    add_lab(config)
    config.JupyterHub.services.append({"name": "later"})
    config.Authenticator.blocked_users.add("mallory")
    hub = JupyterHub(config=config)
    assert [service["name"] for service in hub.services] == ["culler", "lab", "later"]
    assert hub.template_paths[0] == "/own"
    assert [role["name"] for role in hub.load_roles] == ["culler-role", "lab-service", "user"]
    assert {"custom:own", "custom:lab:admin"} <= set(hub.custom_scopes)
    assert "access:services!service=own" in user_role(config)["scopes"]
    assert Authenticator(config=config).blocked_users == {"eve", "mallory", *ACCOUNTS}


def test_blocked_users_may_be_a_list() -> None:
    config = Config()
    config.Authenticator.blocked_users = ["eve"]
    add_lab(config)
    assert Authenticator(config=config).blocked_users == {"eve", *ACCOUNTS}


def test_extra_user_scopes_move_into_the_role_that_would_shadow_them() -> None:
    config = Config()
    config.JupyterHub.extra_user_scopes = {"access:services!service=own"}
    add_lab(config)
    assert user_role(config)["scopes"] == ["self", "access:services!service=own", SCOPE]


@pytest.mark.parametrize("base_url", ["/", "/jupyter/", "jupyter"])
def test_containers_are_told_where_the_service_is(base_url: str) -> None:
    config = Config()
    add_lab(config, address="http://172.17.0.1:10110/", base_url=base_url)
    prefix = "/jupyter" if "jupyter" in base_url else ""
    assert config.PyTorchSpawner.lab_url == f"http://172.17.0.1:10110{prefix}/services/lab/"


@pytest.mark.parametrize("root", ["/srv/courses", "/srv/courses/sources", "courses"])
def test_a_course_root_in_the_directory_of_the_mirrors_is_refused(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mirrors = None if root == "courses" else "/srv/courses"
    with pytest.raises(ValueError, match="Give the mirrors a directory of their own"):
        add_lab(Config(), course_dir=mirrors, course_roots=["/srv/nbs", root])
    add_lab(Config(), course_dir=mirrors, course_roots=["/srv", "/srv/courses-of-cs"])


def test_the_service_reaches_engine_and_sources_as_the_hub_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site = {
        "DOCKER_HOST": "tcp://127.0.0.1:2375",
        "HTTPS_PROXY": "http://127.0.0.1:3128",
        "GIT_SSL_CAINFO": "/etc/site.pem",
    }
    for name in (*site, "DOCKER_CERT_PATH"):
        monkeypatch.delenv(name, raising=False)
    config = Config()
    add_lab(config)
    assert not site.keys() & config.JupyterHub.services[0]["environment"].keys()
    for name, value in site.items():
        monkeypatch.setenv(name, value)
    not_its = {"AWS_SECRET_ACCESS_KEY": "the hub's own", "SSH_AUTH_SOCK": "/run/agent"}
    for name, value in not_its.items():
        monkeypatch.setenv(name, value)
    config = Config()
    add_lab(config)
    told = config.JupyterHub.services[0]["environment"]
    assert {name: told.get(name) for name in site} == site
    assert not {*not_its, "DOCKER_CERT_PATH"} & told.keys()
