"""Every cell is written to the file that its code names."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from pytorch_spawner_standby.cells import Cells


class Compiler:
    """Names cells as ipykernel's does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get_code_name(self, raw_code: str, code: str, number: int) -> str:
        return str(self.folder / f"{len(raw_code)}.py")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "ipykernel_1"


@pytest.fixture
def cells(folder: Path) -> Cells:
    return Cells(Compiler(folder), folder)


def test_the_raw_cell_is_written_for_its_owner_alone(cells: Cells, folder: Path) -> None:
    name = cells.get_code_name("%time 1 # é", "transformed", 1)
    assert Path(name).read_text(encoding="utf-8") == "%time 1 # é"
    assert folder.stat().st_mode & 0o777 == 0o700


def test_it_takes_less_than_a_millisecond(cells: Cells) -> None:
    cells.get_code_name("x", "x", 0)
    taken = []
    for length in range(2000, 2050):
        began = time.perf_counter()
        cells.get_code_name("x" * length, "", 0)
        taken.append(time.perf_counter() - began)
    assert sorted(taken)[25] < 0.001


@pytest.mark.parametrize("trouble", ["file", "link", "surrogate"])
def test_no_trouble_reaches_the_cell(trouble: str, cells: Cells, folder: Path) -> None:
    if trouble == "file":
        folder.write_text("")
    if trouble == "link":
        folder.parent.joinpath("other").mkdir()
        folder.symlink_to(folder.parent / "other")
    source = "\udc80" if trouble == "surrogate" else "1"
    assert cells.get_code_name(source, "", 1) == str(folder / "1.py")
    assert not list(folder.parent.glob("other/*"))


def test_a_name_elsewhere_is_nobodys_to_write(cells: Cells, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs.py"
    theirs.write_text("precious")
    cells._names = lambda *said: str(theirs)
    cells.get_code_name("1", "1", 1)
    assert theirs.read_text() == "precious"


def test_nothing_is_left_but_what_others_put_there(cells: Cells, folder: Path) -> None:
    cells.get_code_name("1", "1", 1)
    cells.remove()
    assert not folder.exists()
    cells._written.clear()
    cells.get_code_name("1", "1", 1)
    (folder / "debugger.py").write_text("")
    cells.remove()
    assert [path.name for path in folder.iterdir()] == ["debugger.py"]
