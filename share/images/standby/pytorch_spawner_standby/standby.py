"""One standby process as the server sees it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import rules

_MOST_LINE_BYTES = 2**22


class Standby:
    """A process that imports, says that it is ready, and is handed over once or ended.

    Attributes:
        start: What it was started with.
        process: Its ``Popen``, with the same settings as ``jupyter_client.launcher``'s.
        said: What it said when it was ready; None before.
    """

    def __init__(self, start: rules.Start) -> None:
        self.start = start
        self.said: Mapping[str, Any] | None = None
        self.fingerprint = rules.fingerprint(start.environment)
        self._ours, theirs = socket.socketpair()
        command = [start.python, *start.flags, "-m", "pytorch_spawner_standby.kernel"]
        with theirs:
            self.process = subprocess.Popen(
                [*command, str(theirs.fileno())],
                stdin=subprocess.PIPE,
                env=dict(start.environment),
                cwd="/",  # not the home: its modules would be imported
                start_new_session=True,
                pass_fds=[theirs.fileno()],
            )
        assert self.process.stdin is not None
        self.process.stdin.close()
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ready(self) -> bool:
        """Wait until it has imported everything; False when it ended instead."""
        self._streams = await asyncio.open_connection(sock=self._ours, limit=_MOST_LINE_BYTES)
        self.said = await self._answer()
        return self.said is not None

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def trouble(self, command: Sequence[str], options: Mapping[str, Any]) -> str:
        """Why it cannot become this kernel, though another might; "" if it can."""
        said = self.said or {}
        wanted, folder = options.get("env") or os.environ, options.get("cwd") or Path.cwd()
        loaded = said.get("loaded", ())
        return (
            rules.options_trouble(options)
            or rules.command_trouble(command, self.start)
            or rules.environment_trouble({**wanted, **_parent()}, self.start, loaded)
            or rules.shadow_trouble(str(folder), loaded)
        )

    def staleness(self) -> str:
        """Why it is of no use to anybody any more; "" if it is fresh."""
        if rules.fingerprint(self.start.environment) != self.fingerprint:
            return "packages were installed or removed since it started"
        return rules.files_trouble((self.said or {}).get("files", {}))

    async def hand_over(
        self, command: Sequence[str], options: Mapping[str, Any], wait_s: float
    ) -> str:
        """Have it become this kernel.

        Returns:
            "" when it did, or why not; it must be ended then.
        """
        order = {
            "command": list(command),
            "env": {**(options.get("env") or os.environ), **_parent()},
            "cwd": str(options.get("cwd") or Path.cwd()),
        }
        if self._streams is None or not self.is_alive:
            return "the standby had ended"
        try:
            self._streams[1].write(json.dumps(order).encode() + b"\n")
            answer = await asyncio.wait_for(self._answer(), wait_s)
        except (TimeoutError, asyncio.TimeoutError):
            return f"the standby did not answer within {wait_s:g} s"
        except OSError as error:
            return f"the standby could not be reached: {error}"
        if answer is None:
            return "the standby ended at the hand-over"
        if not answer.get("ok"):
            return f"the standby could not take over: {answer.get('why')}"
        self.process.args = list(command)
        self.close()
        return ""

    async def ended(self, most_s: float = 5.0) -> int:
        """Wait until it has ended by itself, which it is about to do, and return its status."""
        try:
            return await asyncio.to_thread(self.process.wait, most_s)
        except subprocess.TimeoutExpired:
            return await self.end()

    async def end(self) -> int:
        """Kill it with whatever it started, and return its exit status."""
        self.close()
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except OSError:
            pass
        return await asyncio.to_thread(self.process.wait)

    def close(self) -> None:
        """Close the server's end of the socket: a standby ends then, a kernel does not notice."""
        if self._streams is not None:
            self._streams[1].close()
        else:
            self._ours.close()

    async def _answer(self) -> dict[str, Any] | None:
        assert self._streams is not None
        try:
            line = await self._streams[0].readline()
            return json.loads(line) if line.endswith(b"\n") else None
        except (OSError, ValueError):
            return None


def _parent() -> dict[str, str]:
    # What jupyter_client.launcher adds, for ipykernel to end with the server.
    return {"JPY_PARENT_PID": str(os.getpid())}
