"""Turns templates into pages: our own frame around the hub's style sheet. It holds no request.

The hub's ``page.html`` is not reused: it runs inline scripts, and these pages forbid them.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from pytorch_spawner.lab.paths import lab_templates_dir, static_dir
from pytorch_spawner.lab.settings import LabSettings

# No inline script or style, nothing from elsewhere, no frame. "data:" is for the icons that
# Bootstrap's style sheet holds as data URLs.
POLICY = "; ".join(
    (
        "default-src 'self'",
        "img-src 'self' data:",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)


class Pages:
    """Renders the service's pages.

    Args:
        settings: Where hub and service are mounted.
    """

    def __init__(self, settings: LabSettings) -> None:
        self._settings = settings
        self._version = _version_of(Path(static_dir()))
        self._env = Environment(
            loader=FileSystemLoader(lab_templates_dir()),
            autoescape=select_autoescape(default=True, default_for_string=True),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )

    def static_url(self, path: str) -> str:
        """URL of one of our static files; it changes when any of them does."""
        return f"{self._settings.prefix}static/{path}?v={self._version}"

    def render(self, template: str, **values: Any) -> str:
        """Render a page inside the frame.

        Args:
            template: File name below ``templates/lab``.
            **values: What the template needs; ``user`` is the person's name or "".
        """
        return self._env.get_template(template).render(
            static_url=self.static_url,
            hub_prefix=self._settings.hub_prefix,
            lab_prefix=self._settings.prefix,
            **values,
        )


def _version_of(folder: Path) -> str:
    """A short name for the content of all static files together: modules import each other."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]
