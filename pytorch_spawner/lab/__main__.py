"""``python -m pytorch_spawner.lab``: a child of the hub that never outlives it."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Coroutine
from typing import Any, Final

from jupyterhub.services.auth import HubOAuth
from tornado.netutil import bind_sockets

from pytorch_spawner.errors import LabError, LedgerUnavailable
from pytorch_spawner.lab.app import build_lab, make_server
from pytorch_spawner.lab.lifetime import watch_forever
from pytorch_spawner.lab.preloader import Preloader
from pytorch_spawner.lab.reconcile import reconcile_forever
from pytorch_spawner.lab.settings import LabSettings, read_settings
from pytorch_spawner.lab.warmer import Warmer
from pytorch_spawner.ledger.store import Ledger

log = logging.getLogger("pytorch_spawner.lab")

_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
_PARENT_LOOK_S: Final = 1.0
_BIND_PATIENCE_S: Final = 30.0


def follow_parent(parent: int) -> None:
    """Ask the kernel to end this process with its parent, even one that dies by SIGKILL.

    A restarted hub starts a fresh service on the same port; one left over would be in its way.

    Args:
        parent: Process id of the parent when this process began.

    Raises:
        SystemExit: The parent died before the kernel was asked.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        raise SystemExit(0)


async def wait_for_orphanhood(parent: int) -> None:
    """Return when the parent is gone: where the kernel cannot say so, we look."""
    while os.getppid() == parent:  # noqa: ASYNC110 (nobody sets an event for it)
        await asyncio.sleep(_PARENT_LOOK_S)


def listen(settings: LabSettings, patience_s: float = _BIND_PATIENCE_S) -> list[socket.socket]:
    """Bind the address, waiting a while for it to exist (a docker network's) and to be free.

    Raises:
        OSError: It is still not to be had after ``patience_s`` seconds.
    """
    deadline = time.monotonic() + patience_s
    has_told = False
    while True:
        try:
            return bind_sockets(settings.port, settings.host)
        except OSError as error:
            is_passing = error.errno in (errno.EADDRINUSE, errno.EADDRNOTAVAIL)
            if not is_passing or time.monotonic() > deadline:
                raise
            if not has_told:
                log.warning("waiting for %s:%s: %s", settings.host, settings.port, error.strerror)
            has_told = True
            time.sleep(0.25)


def open_ledger(settings: LabSettings) -> Ledger:
    """The ledger that the hub named; one that cannot be read is tried again at each request."""
    ledger = Ledger(settings.ledger)
    try:
        ledger.open_now()
    except LedgerUnavailable as error:
        log.error("%s", error)  # noqa: TRY400 (a sentence for the admin, not a traceback)
    return ledger


def in_background(settings: LabSettings, ledger: Ledger) -> dict[str, Coroutine[Any, Any, None]]:
    """What goes on for ever beside the pages, by name; nothing where the reconcile is off."""
    if settings.reconcile_s <= 0:
        return {}
    return {
        "reconcile": reconcile_forever(settings),
        "lifetime": watch_forever(settings, ledger),
        "warmer": Warmer(settings, ledger).run(),
        "courses": Preloader(settings, ledger).run(),
    }


async def serve(settings: LabSettings, parent: int) -> None:
    """Serve until told to stop or orphaned."""
    ledger = await asyncio.to_thread(open_ledger, settings)
    lab = build_lab(settings, ledger, HubOAuth.instance())
    server = make_server(lab)
    server.add_sockets(await asyncio.to_thread(listen, settings))
    log.info("the lab service listens on %s:%s", settings.host, settings.port)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    work = {"meter": lab.meter.run(), **in_background(settings, ledger)}
    background = [asyncio.create_task(one, name=name) for name, one in work.items()]
    for task in background:
        task.add_done_callback(_tell)
    ends = {
        asyncio.create_task(stop.wait()),
        asyncio.create_task(wait_for_orphanhood(parent)),
    }
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    server.stop()


def _tell(task: asyncio.Task[None]) -> None:
    """A background task that fell over is told once; pages and reports go on."""
    if not task.cancelled() and (error := task.exception()):
        log.error("the background task %s ended", task.get_name(), exc_info=error)


def main() -> None:
    """Read the environment, serve; a setting that is missing is one sentence and status 2."""
    parent = os.getppid()
    follow_parent(parent)
    logging.basicConfig(level=logging.INFO, format="[%(levelname).1s %(asctime)s lab] %(message)s")
    try:
        settings = read_settings()
        asyncio.run(serve(settings, parent))
    except LabError as error:
        log.error("%s", error)  # noqa: TRY400 (a sentence for the admin, not a traceback)
        raise SystemExit(2) from None
    # Threads that still wait for the ledger must not hold up the next service.
    os._exit(0)


if __name__ == "__main__":
    main()
