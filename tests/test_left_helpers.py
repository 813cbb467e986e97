"""Helper containers whose hub was cut off: they go, and hold nothing back until then."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import docker
import pytest

from pytorch_spawner.adapters.lanes import Lanes
from pytorch_spawner.errors import HomeUnusable
from pytorch_spawner.lab import reconcile
from pytorch_spawner.lab.settings import LabSettings
from pytorch_spawner.spawner import PyTorchSpawner

pytestmark = pytest.mark.docker
IMAGE = "pytorch-spawner/lab:cpu"
HUB_LABEL = "org.pytorch-spawner.hub"


@pytest.fixture
def client() -> Any:
    return docker.APIClient()


@pytest.fixture
def hub(client: Any) -> Iterator[str]:
    """A hub's id; nothing of it is left afterwards."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    yield name
    for label in (name, f"{name}-helper"):
        filters = {"label": f"{HUB_LABEL}={label}"}
        for row in client.containers(all=True, filters=filters):
            client.remove_container(row["Id"], force=True)
    for volume in client.volumes(filters={"name": name})["Volumes"] or ():
        client.remove_volume(volume["Name"])


def helper(client: Any, hub: str, state: str, volume: str = "", **labels: str) -> str:
    """A helper container that was created, or that runs or has ended."""
    mounts = [{"Type": "volume", "Source": volume, "Target": "/work"}] if volume else []
    made = str(
        client.create_container(
            image=IMAGE,
            entrypoint=["sleep", "0" if state == "exited" else "600"],
            labels={HUB_LABEL: f"{hub}-helper", **labels},
            host_config=client.create_host_config(mounts=mounts, network_mode="none", init=True),
        )["Id"]
    )
    if state != "created":
        client.start(made)
    if state == "exited":
        client.wait(made)
    return made


def there(client: Any, hub: str) -> set[str]:
    filters = {"label": f"{HUB_LABEL}={hub}-helper"}
    return {row["Id"] for row in client.containers(all=True, filters=filters)}


async def test_helpers_that_do_not_run_are_removed_once_nobody_can_wait_for_them(
    client: Any, hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nobody(_settings: LabSettings) -> frozenset[tuple[str, str]]:
        return frozenset()

    monkeypatch.setattr(reconcile, "_active_servers", nobody)
    settings = LabSettings(hub, f"sqlite:///{tmp_path}/ledger.sqlite", "http://127.0.0.1:1", "t")
    left = {helper(client, hub, state) for state in ("created", "exited")}
    kept = {
        helper(client, hub, "running"),
        # What another hub, of the id "…-helper", calls its server.
        helper(client, hub, "exited", **{"org.pytorch-spawner.server": "ana/"}),
    }
    await reconcile.reconcile_once(settings)
    assert there(client, hub) == left | kept, "these may be about to begin, or to be read"
    monkeypatch.setattr(reconcile, "_HELPERS_S", -60.0)
    await reconcile.reconcile_once(settings)
    assert there(client, hub) == kept


@pytest.mark.parametrize("state", ["created", "exited", "running"])
async def test_a_throw_away_home_begins_empty_whatever_helper_was_left_with_it(
    client: Any, hub: str, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus = SimpleNamespace(look_ahead=lambda spec: None)
    lab = SimpleNamespace(hub=hub, client=client, lanes=Lanes(1), gpus=gpus)
    monkeypatch.setattr(PyTorchSpawner, "lab", lab)
    spawner = PyTorchSpawner(
        user=SimpleNamespace(name="bo", escaped_name="bo", url="/", groups=[]),
        orm_spawner=SimpleNamespace(name="try-cv", server=None),
        hub_id=hub,
    )
    spawner._throw_away = volume = f"{hub}-try-bo"
    client.create_volume(volume)
    left = helper(client, hub, state, volume)
    other = helper(client, hub, "created")
    if state == "running":  # somebody's who is at work
        with pytest.raises(HomeUnusable):
            await spawner.clear_throw_away()
        assert there(client, hub) == {left, other}
        client.remove_container(left, force=True)
        return
    await spawner.clear_throw_away()
    assert there(client, hub) == {other}
    assert not client.volumes(filters={"name": volume})["Volumes"]
