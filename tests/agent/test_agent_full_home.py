"""A home that takes no files: Jupyter's own go elsewhere; real full and read-only file systems."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pytorch_spawner.agent.full_home import PLACE, elsewhere, takes_files

Mount = Callable[[str], Path]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    mounted: list[Path] = []

    def one(options: str) -> Path:
        folder = tmp_path / f"home-{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield one
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def fill(folder: Path) -> None:
    with suppress(OSError), (folder / "ballast").open("wb") as file:
        while True:
            file.write(b"x" * 65536)
            file.flush()


def test_a_home_with_room_changes_nothing_and_keeps_no_file_of_ours(tmp_path: Path) -> None:
    assert elsewhere({"HOME": str(tmp_path)}) == {}
    assert list(tmp_path.iterdir()) == []


def test_without_a_home_nothing_is_changed() -> None:
    assert elsewhere({}) == {}


def test_in_a_full_home_ipython_and_jupyter_write_elsewhere(mount: Mount) -> None:
    home = mount("size=1m")
    fill(home)
    assert not takes_files(str(home))
    assert elsewhere({"HOME": str(home)}) == {
        "IPYTHONDIR": f"{PLACE}/ipython",
        "JUPYTER_DATA_DIR": f"{PLACE}/jupyter",
        "JUPYTER_CONFIG_DIR": f"{PLACE}/jupyter",
    }
    assert [path.name for path in home.iterdir()] == ["ballast"]


def test_settings_that_are_there_are_still_read(mount: Mount) -> None:
    home = mount("size=1m")
    (home / ".jupyter").mkdir()
    fill(home)
    assert "JUPYTER_CONFIG_DIR" not in elsewhere({"HOME": str(home)})


def test_what_the_image_or_the_admin_has_set_stays(mount: Mount) -> None:
    home = mount("size=1m")
    fill(home)
    found = elsewhere({"HOME": str(home), "IPYTHONDIR": "/scratch/ipython"})
    assert "IPYTHONDIR" not in found


def test_a_read_only_home_counts_as_full(mount: Mount) -> None:
    home = mount("size=1m,ro")
    assert elsewhere({"HOME": str(home)})["IPYTHONDIR"] == f"{PLACE}/ipython"
