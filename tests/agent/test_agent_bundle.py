"""The packed agent."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

from pytorch_spawner.agent import bundle


def test_the_same_sources_give_the_same_bytes(tmp_path: Path) -> None:
    first = bundle.build()
    for path in Path(bundle.__file__).parent.glob("*.py"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
        os.utime(tmp_path / path.name, (1, 1))
    target = tmp_path / "agent.pyz"
    assert bundle.build(target) == first
    assert target.read_bytes() == first
    assert target.stat().st_mode & 0o777 == 0o644
    assert [path.name for path in tmp_path.glob("tmp*")] == []


def test_it_holds_the_modules_and_nothing_else() -> None:
    with zipfile.ZipFile(io.BytesIO(bundle.build())) as archive:
        names = archive.namelist()
    assert names == sorted(names)
    assert "__main__.py" in names
    assert "pytorch_spawner/agent/launch.py" in names
    assert not [name for name in names if "bundle" in name or not name.endswith(".py")]
