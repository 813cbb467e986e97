"""Where the shared files lie: templates and static files, in a source tree or installed.

It must import nothing heavy: the hub's configuration asks it for ``template_paths``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pytorch_spawner.errors import LabError


class FilesMissing(LabError):
    """The package was installed without its templates."""

    code = "files-missing"


def share_dir() -> Path:
    """Return the folder that holds ``templates`` and ``static``.

    Raises:
        FilesMissing: There is none beside or above the package, nor below ``sys.prefix``.
    """
    here = Path(__file__).resolve()
    # Upwards: the source tree, since an editable install copies no data files; then the prefix that
    # pip installed into, which is not sys.prefix for ``pip install --user`` and on Debian's Python.
    places = [*here.parents[2:], Path(sys.prefix)]
    for place in places:
        folder = place / "share" / "pytorch_spawner"
        if (folder / "templates" / "lab").is_dir():
            return folder
    raise FilesMissing(
        "The lab's templates are not installed; install the package again.",
        detail="there is no share/pytorch_spawner in " + ", ".join(map(str, places)),
    )


def hub_templates_dir() -> str:
    """Folder for ``c.JupyterHub.template_paths``: our changes to the hub's own pages."""
    return str(share_dir() / "templates" / "hub")


def lab_templates_dir() -> str:
    """Folder of the service's own pages."""
    return str(share_dir() / "templates" / "lab")


def static_dir() -> str:
    """Folder of the scripts and the style sheet that both kinds of page use."""
    return str(share_dir() / "static")


def suites_dir() -> Path:
    """Folder of the warm-up suites that come with the package; it may be missing."""
    beside = Path(__file__).resolve().parents[2] / "share" / "suites"
    return beside if beside.is_dir() else share_dir() / "suites"


def courses_dir() -> Path:
    """Folder of the courses that come with the package; it may be missing."""
    beside = Path(__file__).resolve().parents[2] / "share" / "courses"
    return beside if beside.is_dir() else share_dir() / "courses"
