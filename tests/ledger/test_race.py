"""Real processes that want one GPU at the same moment, on either database."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import queueing

from pytorch_spawner.ledger.store import Ledger

# Waits for locks, and for other processes.
pytestmark = pytest.mark.slow

PROCESSES = 4
ROUNDS = 25


@pytest.mark.parametrize("scheduler", ["first_come", "blind"])
def test_several_processes_never_hold_the_same_gpu(
    ledger_url: str, tmp_path: Path, scheduler: str
) -> None:
    seen = contend(ledger_url, tmp_path / "witness", scheduler)
    assert seen["twice"] == 0
    assert seen["held"] > 0
    assert seen.total() == PROCESSES * ROUNDS
    ledger = Ledger.open(ledger_url)
    assert ledger.leases(queueing.HUB) == ()
    assert ledger.queue(queueing.HUB) == ()
    ledger.close()


def test_processes_that_create_the_ledger_at_once_agree_on_one(
    ledger_url: str, tmp_path: Path
) -> None:
    """Each opens it before any of them writes; what they write then is all there."""
    contend(ledger_url, tmp_path / "witness", "first_come", rounds=1)
    ledger = Ledger.open(ledger_url)
    began = [ledger.latest_start(queueing.HUB, f"u{place}", "") for place in range(PROCESSES)]
    assert None not in began
    ledger.close()


def contend(url: str, witness: Path, scheduler: str, rounds: int = ROUNDS) -> Counter[str]:
    """Let several processes loose at one moment, and count what happened to them."""
    script = str(Path(__file__).with_name("contender.py"))
    running = [
        subprocess.Popen(
            [sys.executable, script, url, str(witness), f"u{place}", scheduler, str(rounds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for place in range(PROCESSES)
    ]
    seen: Counter[str] = Counter()
    try:
        for process in running:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in running:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in running:
            said, _ = process.communicate(timeout=90)
            assert process.returncode == 0
            seen.update(json.loads(said.splitlines()[-1]))
    finally:
        for process in running:
            process.kill()
            process.wait()
    return seen
