"""``api/live``: one stream a page, with everything that moves on the admin's pages."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from tornado.iostream import StreamClosedError

from pytorch_spawner.lab import auth
from pytorch_spawner.lab.handlers import ApiHandler
from pytorch_spawner.lab.rights import RECHECK_S, STREAM_S
from pytorch_spawner.lab.views import describe_message

KEEP_ALIVE_S: Final = 10.0
# A client that takes nothing for this long is gone or wedged.
FLUSH_S: Final = 10.0


class Live(ApiHandler):
    """``api/live``."""

    _gone: asyncio.Event

    def prepare(self) -> None:
        """Make ready to notice that the client goes."""
        self._gone = asyncio.Event()

    def on_connection_close(self) -> None:
        """Tornado calls it when the client hangs up."""
        self._gone.set()

    async def get(self) -> None:
        """Follow the board; for viewers, and for no longer than they are."""
        model = await self.require_viewer()
        async with self.lab.feed.watch(str(model["name"])) as news:
            self.set_header("Content-Type", "text/event-stream; charset=utf-8")
            # nginx would hold events back until its buffer is full.
            self.set_header("X-Accel-Buffering", "no")
            try:
                await self._write("retry: 2000\n\n")
                await self._follow(news)
            except (StreamClosedError, EOFError):
                return
            except (TimeoutError, asyncio.TimeoutError):
                self.hang_up()

    async def _follow(self, news: asyncio.Queue[str | None]) -> None:
        ends_at = time.monotonic() + STREAM_S
        asked_at = time.monotonic()
        while time.monotonic() < ends_at and not self._gone.is_set():
            if time.monotonic() - asked_at > RECHECK_S:
                if not await self.still_may(auth.is_viewer):
                    if self.current_user:
                        said = {"code": "forbidden", "message": "You may not see this any more."}
                        await self._write(describe_message("over", said))
                    # Whose login ended comes back, and is told to log in.
                    return
                asked_at = time.monotonic()
            gone = asyncio.ensure_future(self._gone.wait())
            message = asyncio.ensure_future(news.get())
            done, _ = await asyncio.wait(
                {gone, message}, timeout=KEEP_ALIVE_S, return_when=asyncio.FIRST_COMPLETED
            )
            gone.cancel()
            if message not in done:
                message.cancel()
                # No comment: scripts do not see those, and a silent stream would look alive.
                await self._write(describe_message("alive", {}))
                continue
            text = message.result()
            if text is None:
                return
            await self._write(text)

    async def _write(self, text: str) -> None:
        if self._gone.is_set():
            raise StreamClosedError
        data = text.encode()
        self.write(data)
        await asyncio.wait_for(self.flush(), FLUSH_S)
        self.lab.metrics.stream_bytes.inc(len(data))
