"""The ledger: short transactions, one writer at a time; see ``database`` for how it is opened.

Every method is one transaction and blocks for milliseconds; callers on an event loop use a thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from pytorch_spawner.ledger.courses import Courses
from pytorch_spawner.ledger.images import Images
from pytorch_spawner.ledger.leases import Lease
from pytorch_spawner.ledger.log import Change
from pytorch_spawner.ledger.people import People
from pytorch_spawner.ledger.queueing import QueueState, Waiting
from pytorch_spawner.ledger.starts import Start, Starts
from pytorch_spawner.ledger.undoing import Undoing
from pytorch_spawner.ledger.using import Using

__all__ = ["Change", "Lease", "Ledger", "QueueState", "Start", "Waiting"]


class Ledger(Undoing, Courses, Images, Using, Starts, People):
    """The one shared state of a lab; safe to share between threads."""

    @classmethod
    def open(cls, url: str, clock: Callable[[], float] = time.time) -> Ledger:
        """Open the ledger at a SQLAlchemy URL now, creating or migrating it where needed.

        Raises:
            LedgerUnavailable: It cannot be opened or written, is damaged, or was written by a newer
                version of this package. The file is left as it is.
        """
        ledger = cls(url, clock)
        ledger.open_now()
        return ledger
