"""A provisioner for jupyter_client: a standby when one fits, an ordinary kernel otherwise."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning.local_provisioner import LocalProvisioner

from . import pool

# A kernel that ended by itself this soon after a hand-over is not replaced by another standby.
_EARLY_S = 30.0
_ORDINARY_ENDS = (None, 0, -9, -15)


class StandbyProvisioner(LocalProvisioner):
    """A ``LocalProvisioner`` whose process may have been started before it was asked for.

    A standby is a child of the server like any kernel, in a session of its own, so that signals,
    waiting and ending are inherited.
    """

    _handed_over_at: float | None = None
    _ended_early = False

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        self._handed_over_at = None
        ready = pool.current()
        if ready is None or self._ended_early:
            self._ended_early = False
            return await super().launch_kernel(cmd, **kwargs)
        process = await ready.take(cmd, kwargs)
        if process is None:
            return await super().launch_kernel(cmd, **kwargs)
        self.process = process
        self.pid = self.pgid = process.pid  # the leader of its own session and group
        self.cwd = kwargs.get("cwd") or Path.cwd()
        self._handed_over_at = time.monotonic()
        return self.connection_info

    async def poll(self) -> int | None:
        ended = await super().poll()
        since = self._handed_over_at
        if since is not None and ended not in _ORDINARY_ENDS:
            self._ended_early = time.monotonic() - since < _EARLY_S
        return ended
