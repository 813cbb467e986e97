from __future__ import annotations

from pathlib import Path

import pytest
from traitlets.config import Config

from pytorch_spawner.hub import add_lab

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
