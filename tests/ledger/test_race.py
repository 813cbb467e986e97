from __future__ import annotations

from pathlib import Path

import pytest

from pytorch_spawner.core.gpus import Gpu, GpuUuid
from pytorch_spawner.errors import NoGpuAvailable, StartIsOver
from pytorch_spawner.ledger.store import Ledger


def test_the_table_itself_refuses_a_second_holder(tmp_path: Path) -> None:
    """Whatever a scheduler answers, even one that ignores what is held."""
    ledger = Ledger.open(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    gpu = Gpu(GpuUuid("GPU-0001"))
    for user, is_first in (("ana", True), ("bo", False)):
        start = ledger.begin_start("lab", user, "", {"gpus": 1})
        if is_first:
            ledger.take_lease(start, lambda _held: (gpu,))
        else:
            with pytest.raises(NoGpuAvailable, match="a moment ago"):
                ledger.take_lease(start, lambda _held: (gpu,))
    assert [lease.username for lease in ledger.leases("lab")] == ["ana"]
    ledger.close()


def test_a_start_that_was_cancelled_takes_nothing_and_releases_nothing(tmp_path: Path) -> None:
    """Its thread may still wait for the ledger when the student has already started again."""
    ledger = Ledger.open(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    gpu = Gpu(GpuUuid("GPU-0001"))
    cancelled = ledger.begin_start("lab", "ana", "", {"gpus": 1})
    again = ledger.begin_start("lab", "ana", "", {"gpus": 1})
    lease = ledger.take_lease(again, lambda _held: (gpu,))
    with pytest.raises(StartIsOver):
        ledger.take_lease(cancelled, lambda _held: (gpu,))
    assert [held.id for held in ledger.leases("lab")] == [lease.id]
    ledger.close()
