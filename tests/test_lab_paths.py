"""Where the templates are found, however the package was installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytorch_spawner.lab import paths

# Folder of the package, folder of its data files.
LAYOUTS = {
    "a source tree": ("checkout/pytorch_spawner", "checkout/share"),
    "a virtual environment": ("venv/lib/python3.12/site-packages/pytorch_spawner", "venv/share"),
    "pip as root on Debian's Python": (
        "usr/local/lib/python3.12/dist-packages/pytorch_spawner",
        "usr/local/share",
    ),
    "pip install --user": (
        "home/ana/.local/lib/python3.12/site-packages/pytorch_spawner",
        "home/ana/.local/share",
    ),
}


@pytest.mark.parametrize(("package", "data"), LAYOUTS.values(), ids=LAYOUTS)
def test_the_templates_are_found_beside_whatever_pip_did(
    package: str, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "__file__", str(tmp_path / package / "lab" / "paths.py"))
    monkeypatch.setattr(paths.sys, "prefix", "/usr")
    with pytest.raises(paths.FilesMissing, match="install the package again"):
        paths.share_dir()
    folder = tmp_path / data / "pytorch_spawner"
    (folder / "templates" / "lab").mkdir(parents=True)
    assert paths.share_dir() == folder
    assert paths.hub_templates_dir() == str(folder / "templates" / "hub")
