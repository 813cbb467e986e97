"""What a notebook waits for in the Jupyter server itself, and need not.

Three waits of Jupyter Server 2 are taken out (figures in docs/explanation/measurements.md):

- A cell answers with several small messages: busy, input, output, reply, idle. TCP's own economy is
  on (RFC 896), so the second waits until the first is acknowledged, which the other side does some
  40 ms late. Tornado names the remedy: ``WebSocketHandler.set_nodelay``.
- A new notebook is connected once the server has heard on the kernel's IOPub channel that it is no
  longer "starting". The server subscribes to that channel while the kernel comes up; a kernel that
  is quick has told it before the subscription arrives. Only another question makes it tell again,
  and the server asks every 0.5 s (``ZMQChannelsWebsocketConnection.nudge``). Here sooner.
- The server knows a new kernel's ports before the kernel listens there (30 ms for a standby).
  ZeroMQ is refused and tries again 100 to 200 ms later (zmq_setsockopt(3), ZMQ_RECONNECT_IVL). Here
  sooner, and ever later where nothing listens.

``PYTORCH_SPAWNER_PROMPT=0`` leaves all of them as they are.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import zmq

_SETTING = "kernel_websocket_connection_class"
# Milliseconds between two attempts to reach a kernel: at first, and at last.
_AGAIN_MS = 10
_AGAIN_MOST_MS = 100
# Seconds between two questions: soon at first, and not for ever; Jupyter's own go on.
_FIRST_S = 0.02
_MOST_S = 0.1
_ALL_S = 2.0


def make_prompt(settings: dict[str, Any]) -> bool:
    """Have each new connection to a kernel be there, and answer, without these waits.

    Args:
        settings: Of the server's web application.

    Returns:
        Whether this version of Jupyter Server has the place for it.
    """
    # A server whose kernels run elsewhere has no context of ZeroMQ.
    with contextlib.suppress(KeyError, AttributeError, zmq.ZMQError):
        context = settings["kernel_manager"].context
        context.setsockopt(zmq.RECONNECT_IVL, _AGAIN_MS)
        context.setsockopt(zmq.RECONNECT_IVL_MAX, _AGAIN_MOST_MS)
    usual = settings.get(_SETTING)
    if not isinstance(usual, type) or not hasattr(usual, "connect"):
        return False
    settings[_SETTING] = prompt(usual)
    return True


def prompt(usual: Any) -> type:
    """The connection class that a site has; it answers at once and asks sooner."""

    class Prompt(usual):  # type: ignore[misc]
        def connect(self) -> Any:
            # Whatever a version lacks: late answers are better than none.
            with contextlib.suppress(Exception):
                self.websocket_handler.set_nodelay(True)
            connected = super().connect()
            with contextlib.suppress(Exception):
                if isinstance(connected, asyncio.Future) and not connected.done():
                    _ask(self, connected)
            return connected

    return Prompt


def _ask(connection: Any, connected: asyncio.Future[Any]) -> None:
    """Ask the kernel until it was heard, over a channel of its own, as ``nudge`` does."""
    channel = connection.kernel_manager.connect_control()
    loop = asyncio.get_running_loop()
    waits = delays()

    def again() -> None:
        if connected.done() or channel.closed():
            return
        with contextlib.suppress(Exception):
            connection.session.send(channel, "kernel_info_request")
        if (wait := next(waits, None)) is not None:
            loop.call_later(wait, again)

    connected.add_done_callback(lambda _: channel.close())
    loop.call_later(next(waits), again)


def delays() -> Iterator[float]:
    """Seconds before each question: 0.02, 0.026, ... 0.1, 0.1, until 2 s are over."""
    wait, total = _FIRST_S, 0.0
    while total + wait <= _ALL_S:
        yield wait
        total += wait
        wait = min(1.3 * wait, _MOST_S)
