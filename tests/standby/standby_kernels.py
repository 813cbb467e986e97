"""Standby and ordinary kernels side by side, without a server: a pool in a thread's event loop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

from jupyter_client import AsyncKernelManager, BlockingKernelClient
from jupyter_client.provisioning import KernelProvisionerFactory
from pytorch_spawner_standby import pool, rules

PACKAGE = Path(__file__).resolve().parents[2] / "share/images/standby"
NAME = "pytorch-spawner-standby"
GROUP = "jupyter_client.kernel_provisioners"


def register() -> None:
    """What installing the package does."""
    factory = KernelProvisionerFactory.instance()
    value = "pytorch_spawner_standby.provisioner:StandbyProvisioner"
    factory.provisioners[NAME] = EntryPoint(NAME, value, GROUP)
    factory.default_provisioner_name = NAME


def variables() -> dict[str, str]:
    """Ours, without the one that is another in every test and by which ipykernel knows pytest."""
    return {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}


class Kernel:
    """One kernel and its client."""

    def __init__(self, site: Site, manager: AsyncKernelManager) -> None:
        self.site, self.manager = site, manager
        self.connect()

    def connect(self) -> None:
        self.client = BlockingKernelClient(connection_file=self.manager.connection_file)
        self.client.load_connection_file()
        self.client.hb_channel.time_to_dead = 20.0  # machines that run tests are busy
        self.client.start_channels()
        self.client.wait_for_ready(timeout=30)

    @property
    def pid(self) -> int:
        return self.manager.provisioner.pid

    @property
    def was_standby(self) -> bool:
        return getattr(self.manager.provisioner, "_handed_over_at", None) is not None

    def run(self, code: str, **options: Any) -> str:
        """Run a cell; return what it printed, or the name and text of its error."""
        said: list[str] = []

        def hear(message: dict[str, Any]) -> None:
            content = message["content"]
            if message["msg_type"] == "stream":
                said.append(content["text"])
            elif message["msg_type"] == "error":
                said.append(f"{content['ename']}: {content['evalue']}")

        self.client.execute_interactive(code, timeout=30, output_hook=hear, **options)
        return "".join(said).strip()

    def tell(self, expression: str) -> Any:
        return json.loads(self.run(f"import json as _j; print(_j.dumps({expression}))"))

    def restart(self, now: bool = False) -> None:
        self.client.stop_channels()
        self.site.do(self.manager.restart_kernel(now=now))
        self.connect()

    def interrupt(self) -> None:
        self.site.do(self.manager.interrupt_kernel())

    def is_alive(self) -> bool:
        return self.site.do(self.manager.is_alive())

    def end(self) -> None:
        self.client.stop_channels()
        self.site.do(self.manager.shutdown_kernel(now=True))


class Site:
    """A pool and the kernels of one test."""

    def __init__(
        self,
        available_mib: Callable[[], int | None] = lambda: 8000,
        # This machine runs the other tests, too.
        is_busy: Callable[[], bool] = lambda: False,
        **limits: Any,
    ):
        register()
        # Its server's: what another test changes for a server of its own is nothing to this one.
        self._variables = variables()
        self.heard: list[str] = []
        self.kernels: list[Kernel] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        log = logging.Logger("standby")  # noqa: LOG001 - its own, with no parent
        handler = logging.Handler()
        handler.emit = lambda record: self.heard.append(record.getMessage())  # type: ignore[method-assign]
        log.addHandler(handler)
        quick = {"tick_s": 0.2, "refill_after_s": 0.05, "backoff_s": 0.05, **limits}
        self.pool = pool.Pool(self.ordinary, log, pool.Limits(**quick), available_mib, is_busy)
        pool.use(self.pool)
        self._loop.call_soon_threadsafe(self.pool.begin)

    def ordinary(self) -> rules.Start:
        manager = AsyncKernelManager()
        parts = rules.split_command(manager.kernel_spec.argv)
        assert parts is not None
        spec = manager.kernel_spec.env
        environment = {**self._variables, **spec, "JPY_PARENT_PID": str(os.getpid())}
        return rules.Start(sys.executable, parts[1], environment)

    def do(self, what: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(60)

    def start(self, *, standby: bool = True, ready: int = 1, **options: Any) -> Kernel:
        """Start a kernel: a standby when one is ready, unless ``standby`` is False."""
        if standby and ready:
            self.wait_for_ready(ready)
        pool.use(self.pool if standby else None)
        options.setdefault("env", variables())
        manager = AsyncKernelManager(**options.pop("manager", {}))
        try:
            self.do(manager.start_kernel(**options))
        finally:
            pool.use(self.pool)
        kernel = Kernel(self, manager)
        self.kernels.append(kernel)
        return kernel

    def wait_for_ready(self, kernels: int = 1) -> None:
        self.wait_until(lambda: self.pool.ready >= kernels)

    def wait_until(self, done: Callable[[], Any], most_s: float = 30) -> None:
        until = time.monotonic() + most_s
        while not done():
            assert time.monotonic() < until, self.heard
            time.sleep(0.02)

    def said(self, words: str) -> bool:
        return any(words in line for line in self.heard)

    def close(self) -> None:
        for kernel in self.kernels:
            with contextlib.suppress(Exception):
                kernel.end()
        self.do(self.pool.close())
        pool.use(None)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)


@contextlib.contextmanager
def site(**options: Any) -> Iterator[Site]:
    made = Site(**options)
    try:
        yield made
    finally:
        made.close()
