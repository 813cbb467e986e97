"""The Jupyter server's side: when the pool begins, and what an ordinary kernel would be given."""

from __future__ import annotations

import os
import sys
from typing import Any

from jupyter_client.provisioning.factory import KernelProvisionerFactory

from . import pool, prompt, rules

# After the server's event loop runs: the page that a student waits for comes first.
_BEGIN_AFTER_S = 0.8
_MOST_KERNELS = 8


def load(server: Any) -> None:
    """Begin a moment after the server answers, unless ``PYTORCH_SPAWNER_STANDBY`` is 0.

    Whatever that says, notebooks no longer wait for the server itself
    (``prompt``), unless ``PYTORCH_SPAWNER_PROMPT`` is 0.
    Kernel specifications that name no provisioner get ours, those that students make as well.
    """
    if os.environ.get("PYTORCH_SPAWNER_PROMPT", "1").strip() == "0":
        server.log.info("Prompt answers: off")
    elif not prompt.make_prompt(server.web_app.settings):
        server.log.info("Prompt answers: this Jupyter Server has no place for them")
    kernels = wanted(os.environ.get("PYTORCH_SPAWNER_STANDBY", "1"))
    if not kernels:
        server.log.info("Standby kernels: off")
        return

    factory = KernelProvisionerFactory.instance(parent=server)
    if factory.default_provisioner_name == "local-provisioner":  # a site's own choice stays
        factory.default_provisioner_name = "pytorch-spawner-standby"

    def begin() -> None:
        made = pool.Pool(lambda: ordinary(server), server.log, pool.Limits(kernels=kernels))
        pool.use(made)
        made.begin()

    loop = server.io_loop
    loop.add_callback(lambda: loop.call_later(_BEGIN_AFTER_S, begin))


def wanted(said: str) -> int:
    """How many standbys a setting means; whatever is no number means none."""
    return min(int(said), _MOST_KERNELS) if said.strip().isdigit() else 0


def ordinary(server: Any) -> rules.Start | None:
    """What jupyter_client would start the default kernel with; None if that is no ipykernel."""
    try:
        name = server.kernel_manager.default_kernel_name
        spec = server.kernel_spec_manager.get_kernel_spec(name)
    except Exception:  # noqa: BLE001 - no default kernel, or one that cannot be read
        return None
    parts = rules.split_command(spec.argv)
    if parts is None:
        return None
    python, flags, _ = parts
    if python.startswith("python"):  # as jupyter_client does: not whichever is on PATH
        python = sys.executable
    environment = {**os.environ, **spec.env, "JPY_PARENT_PID": str(os.getpid())}
    return rules.Start(python, flags, environment)
