"""Pack the agent into one file that any Python runs. This module stays out of it."""

from __future__ import annotations

import io
import os
import tempfile
import zipfile
from pathlib import Path
from typing import Optional

_PACKAGE = Path(__file__).parent
_LEFT_OUT = frozenset({"__main__.py", "bundle.py"})
_EARLIEST = (1980, 1, 1, 0, 0, 0)  # the first moment that zip has a word for


def build(target: Optional[Path] = None) -> bytes:
    """The zipapp; the same sources give the same bytes, anywhere and at any time.

    Nothing is compressed: zlib's output differs between its versions, and reading is faster.

    Args:
        target: Where to write it too, replaced in one step.

    Returns:
        The file's content, about 300 KB.
    """
    sources = {
        f"pytorch_spawner/agent/{path.name}": path.read_bytes()
        for path in _PACKAGE.glob("*.py")
        if path.name not in _LEFT_OUT
    }
    sources["pytorch_spawner/__init__.py"] = b""
    sources["__main__.py"] = (_PACKAGE / "__main__.py").read_bytes()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(sources):
            entry = zipfile.ZipInfo(name, _EARLIEST)
            entry.create_system = 3  # Unix, whatever this runs on
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, sources[name])
    content = packed.getvalue()
    if target is not None:
        _replace(target, content)
    return content


def _replace(target: Path, content: bytes) -> None:
    with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as file:
        temporary = Path(file.name)
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
