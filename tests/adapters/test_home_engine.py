"""The directories of homes on the engine's host: made, finished, never made up."""

from __future__ import annotations

from pathlib import Path

import docker
import pytest

from pytorch_spawner.adapters import home_engine
from pytorch_spawner.errors import HomeUnusable

pytestmark = pytest.mark.docker
UID = 23456


def prepare(root: Path, *, has_neighbours: bool = False) -> None:
    place = home_engine.Place(root=str(root), name="ana", has_neighbours=has_neighbours)
    client = docker.APIClient(version="auto")
    home_engine.prepare_places(client, "pytorch-spawner/lab:cpu", [place], UID, UID, {})


def owner_and_mode(home: Path) -> tuple[int, int]:
    seen = home.stat()
    return seen.st_uid, seen.st_mode & 0o777


def test_a_home_that_a_killed_helper_gave_to_nobody_is_finished(tmp_path: Path) -> None:
    (tmp_path / "ana").mkdir(mode=0o700)
    prepare(tmp_path)
    assert owner_and_mode(tmp_path / "ana") == (UID, 0o700)


@pytest.mark.parametrize(
    ("mode", "file"), [(0o755, ""), (0o700, "thesis.txt")], ids=["of another mode", "with a file"]
)
def test_a_directory_that_the_helper_did_not_make_stays_roots(
    tmp_path: Path, mode: int, file: str
) -> None:
    home = tmp_path / "ana"
    home.mkdir(mode=mode)
    if file:
        (home / file).write_text("mine")
    with pytest.raises(HomeUnusable, match="does not belong to you"):
        prepare(tmp_path)
    assert owner_and_mode(home) == (0, mode)


def test_a_root_that_is_not_there_is_named_and_not_made(tmp_path: Path) -> None:
    root = tmp_path / "homes"
    with pytest.raises(HomeUnusable, match="not there") as refused:
        prepare(root)
    assert str(root) in refused.value.detail
    assert str(root) not in refused.value.public_message
    assert not root.exists()


def test_a_bare_mount_point_gets_no_home(tmp_path: Path) -> None:
    with pytest.raises(HomeUnusable, match="not there") as refused:
        prepare(tmp_path, has_neighbours=True)
    assert f"{tmp_path} is empty" in refused.value.detail
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "bo").mkdir()
    prepare(tmp_path, has_neighbours=True)
    assert owner_and_mode(tmp_path / "ana") == (UID, 0o700)
