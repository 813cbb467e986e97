"""The course that comes with the lab is what a course should be; its smoke test runs it."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
import yaml

from pytorch_spawner.core.course_files import check_notebook
from pytorch_spawner.core.course_manifest import MANIFEST_FILE
from pytorch_spawner.core.course_text import read_manifest
from pytorch_spawner.core.suites import SUITE_FILE, read_suite
from pytorch_spawner.lab.paths import courses_dir

FOLDER = courses_dir() / "example"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MANIFEST = read_manifest((FOLDER / MANIFEST_FILE).read_bytes())


def cells(path: Path, kind: str = "code") -> list[str]:
    said = json.loads(path.read_text())
    return ["".join(one["source"]) for one in said["cells"] if one["cell_type"] == kind]


def test_it_has_three_lessons_and_all_that_the_manifest_names() -> None:
    assert [path.name[:2] for path in NOTEBOOKS] == ["01", "02", "03"]
    assert MANIFEST.smoke is not None
    assert set(MANIFEST.smoke.notebooks) <= {path.name for path in NOTEBOOKS}


def test_its_warm_up_is_a_suite_of_its_own_files() -> None:
    said = {"name": MANIFEST.name, **(MANIFEST.warmup or {})}
    files = {path.name: path.read_bytes() for path in FOLDER.iterdir() if path.is_file()}
    suite = read_suite({**files, SUITE_FILE: yaml.safe_dump(said).encode()})
    assert [(one.name, one.vary) for one in suite.targets] == [
        ("cnn", ("batch_size", 64)),
        ("transformer", ("batch_size", 64)),
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_clean_and_explains_itself(path: Path) -> None:
    said = json.loads(path.read_text())
    code = [one for one in said["cells"] if one["cell_type"] == "code"]
    assert all(not one["outputs"] and one["execution_count"] is None for one in code)
    assert check_notebook(path.name, path.read_bytes()) == ()
    assert len({one["id"] for one in said["cells"]}) == len(said["cells"])
    assert len(cells(path, "markdown")) >= 8
    assert cells(path, "markdown")[-1].startswith("## Try")
    imported = {
        name.split(".")[0]
        for source in cells(path)
        for node in ast.walk(ast.parse(source))
        for name in (
            [one.name for one in node.names]
            if isinstance(node, ast.Import)
            else [str(node.module)]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported <= {"math", "time", "torch", "shapes"}
    for text in cells(path, "markdown"):
        for link in NOTEBOOKS:
            assert f"]({link.name[:3]}" not in text or f"]({link.name})" in text


def test_the_second_lesson_has_the_network_of_the_first() -> None:
    def network(path: Path) -> str:
        (source,) = [one for one in cells(path) if "class Cnn" in one]
        tree = ast.parse(source)
        kept = [one for one in tree.body if getattr(one, "name", "") in ("stage", "Cnn")]
        return "\n".join(map(ast.unparse, kept))

    assert network(NOTEBOOKS[0]) == network(NOTEBOOKS[1])
