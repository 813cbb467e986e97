"""One of several processes that want the same GPU: ``contender.py URL NAME SCHEDULER ROUNDS``.

Whoever is told that it holds the GPU creates a file that must not be there: a witness that knows
nothing of the ledger. The last line of output is what happened, as JSON.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path

import queueing
from sqlalchemy.exc import IntegrityError

from pytorch_spawner.errors import NoGpuAvailable
from pytorch_spawner.ledger.store import Ledger


def main(url: str, witness: Path, name: str, scheduler: str, rounds: int) -> None:
    ledger = Ledger.open(url)
    print("ready", flush=True)
    sys.stdin.readline()
    seen: Counter[str] = Counter()
    for _ in range(rounds):
        seen[contend(ledger, witness, name, scheduler)] += 1
    print(json.dumps(seen))


def contend(ledger: Ledger, witness: Path, name: str, scheduler: str) -> str:
    """Try once to hold the GPU; returns what came of it."""
    start = queueing.begin(ledger, name)
    try:
        ledger.decide(queueing.HUB, getattr(queueing, scheduler))
    except IntegrityError:
        return "refused" if ledger.leave(start.id) else held(ledger, witness, name)
    except NoGpuAvailable:
        return "busy"
    return "busy" if ledger.leave(start.id) else held(ledger, witness, name)


def held(ledger: Ledger, witness: Path, name: str) -> str:
    """This process was told that it holds the GPU; give it back."""
    try:
        os.close(os.open(witness, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return "twice"
    witness.unlink()
    ledger.release(queueing.HUB, name, "", "stopped")
    return "held"


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4], int(sys.argv[5]))
