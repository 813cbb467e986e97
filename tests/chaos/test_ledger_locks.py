"""Two parts of a process open the ledger; another process uses it and closes it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pytorch_spawner.ledger.store import Ledger

pytestmark = pytest.mark.programs

_OTHER = """
import sys
from pytorch_spawner.ledger.store import Ledger
ledger = Ledger.open(sys.argv[1])
ledger.begin_start("hub", "bo", "", {})
ledger.close()
"""


def test_opening_a_ledger_once_more_gives_up_no_lock_of_the_first(tmp_path: Path) -> None:
    """Without its locks the other process takes itself for the last one and removes the -wal file.

    Then the first one writes to a file that is gone, and the ledger is damaged.
    """
    url = f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    first = Ledger.open(url)
    first.begin_start("hub", "ana", "", {})
    wal = tmp_path / "ledger.sqlite-wal"
    before = wal.stat().st_ino
    second = Ledger.open(url)
    second.close()
    subprocess.run([sys.executable, "-c", _OTHER, url], check=True)
    assert wal.stat().st_ino == before, "the -wal file was removed while it was in use"
    first.begin_start("hub", "cleo", "", {})
    third = Ledger.open(url)
    assert {start.username for start in third.open_starts("hub")} == {"ana", "bo", "cleo"}
    third.close()
    first.close()
