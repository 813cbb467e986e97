"""Reading where a student's programs may have put anything."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pytorch_spawner.agent import plain_files


def test_a_file_is_read_up_to_a_limit_and_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 100)
    (tmp_path / "link").symlink_to("a")
    assert plain_files.read(tmp_path / "a") == b"x" * 100
    assert plain_files.read(str(tmp_path / "link"), 7) == b"x" * 7


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    before = len([*Path("/proc/self/fd").iterdir()])
    for name in ("pipe", "zero", "loop", ".", "nothing"):
        with pytest.raises(OSError, match=r"regular|directory|symbolic|No such"):
            plain_files.read(tmp_path / name)
    assert len([*Path("/proc/self/fd").iterdir()]) == before
