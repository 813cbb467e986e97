"""Lines of the audit log about somebody else's server, written before the deed.

First the line, then the deed: an answer that never comes must not leave it out. So the line says
what was asked for, and a second one, where the deed failed, that it is not known to be done.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pytorch_spawner.errors import LabError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked:
    """Who asks for what of whose server.

    Attributes:
        lab: The running service, for its ledger and its hub's id.
        by: Who asks.
        what: "server" to stop it, "kernel" to shut one down.
        subject: "user/server".
        said: What the line holds beside these (``core.changes`` makes it a sentence).
    """

    lab: Any
    by: str
    what: Literal["server", "kernel"]
    subject: str
    said: Mapping[str, str]

    async def note(self) -> int:
        """Write the line; returns its id.

        Raises:
            LedgerUnavailable: It could not be written, so nothing must be done.
        """
        return await self._write(self.said)

    async def note_failure(self, error: LabError) -> None:
        """Write that it is not known to be done, and why; never raises for the ledger."""
        try:
            await self._write({**self.said, "is": "failed", "why": error.public_message})
        except LabError as unwritten:  # the line before it says only what was asked for
            log.warning("not noted: %s %s: %s", self.what, self.subject, unwritten)

    async def _write(self, said: Mapping[str, str]) -> int:
        hub_id = self.lab.settings.hub_id
        line: int = await asyncio.to_thread(
            self.lab.ledger.note, hub_id, self.by, self.what, self.subject, dict(said)
        )
        return line
