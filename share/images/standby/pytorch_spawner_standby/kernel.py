"""What runs in a standby: import, say so, wait; then become the kernel that was asked for.

Started as ``python -m pytorch_spawner_standby.kernel FD``; FD is one end of a socket pair. Each
message is one line of JSON. The end of the socket is the end of the process.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_MOST_BYTES = 2**22
_OOM_SCORE = Path("/proc/self/oom_score_adj")


def main() -> None:
    """Wait for an order and follow it."""
    began = time.monotonic()
    given = dict(os.environ)
    # python -m put the working directory first; none of its modules is meant.
    if not getattr(sys.flags, "safe_path", False):
        del sys.path[0]
    channel = socket.socket(fileno=int(sys.argv[1]))
    channel.set_inheritable(False)

    from .preload import preload
    from .rules import foreign_files

    said = preload(os.environ.get("PYTORCH_SPAWNER_STANDBY_IMPORTS", ""))
    gc.collect()
    said["seconds"] = round(time.monotonic() - began, 2)
    said["loaded"] = sorted({name.partition(".")[0] for name in sys.modules})
    said["files"] = foreign_files(sys.modules)
    usual = _die_first()
    _send(channel, said)
    order = _receive(channel)
    if order is None:
        os._exit(0)  # the server is gone; nothing here has anything to save
    try:
        if usual:
            _OOM_SCORE.write_text(usual)
        become(order, given)
    except BaseException as error:  # noqa: BLE001 - whatever it is, an ordinary kernel is started
        _send(channel, {"ok": False, "why": f"{type(error).__name__}: {error}"})
        os._exit(1)
    _send(channel, {"ok": True})
    channel.close()
    runpy.run_module("ipykernel_launcher", run_name="__main__", alter_sys=True)


def _die_first() -> str:
    """Where memory runs out, this goes before anything that somebody uses; returns what was.

    Anybody may raise the value and take it back to what it was (proc(5), oom_score_adj).
    """
    try:
        usual = _OOM_SCORE.read_text()
        _OOM_SCORE.write_text("1000")
    except OSError:
        return ""
    return usual


def become(order: Mapping[str, Any], given: Mapping[str, str]) -> None:
    """Take over what an ordinary kernel gets from its start: directory, variables, arguments.

    Args:
        order: What the server sent.
        given: The variables that this process was started with.
    """
    before = Path.cwd()
    os.chdir(order["cwd"])
    # What an import has set stays: the module is loaded, and may count on it.
    wanted: dict[str, str] = {**order["env"], **_set_since(given)}
    for name in [name for name in os.environ if name not in wanted]:
        del os.environ[name]
    for name, value in wanted.items():
        if os.environ.get(name) != value:
            os.environ[name] = value
    command: list[str] = order["command"]
    sys.orig_argv = list(command)
    sys.argv = ["ipykernel_launcher", *command[command.index("-m", 1) + 2 :]]
    # As python -m does; the launcher takes it out again.
    if not getattr(sys.flags, "safe_path", False):
        sys.path.insert(0, str(Path.cwd()))
    _move_debug_folder(before)
    _move_origin()


def _set_since(given: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if given.get(name) != value}


def _move_debug_folder(before: Path) -> None:
    # The one setting of torch's that is made of the working directory at import.
    config: Any = sys.modules.get("torch._dynamo.config")
    if getattr(config, "debug_dir_root", None) == str(before / "torch_compile_debug"):
        config.debug_dir_root = str(Path.cwd() / "torch_compile_debug")


def _move_origin() -> None:
    # multiprocessing notes the working directory at import, and a spawned child (loky's as well)
    # looks there for the notebook's own modules, in the place of the '' of sys.path.
    process: Any = sys.modules.get("multiprocessing.process")
    if process is not None:
        process.ORIGINAL_DIR = str(Path.cwd())


def _send(channel: socket.socket, message: Mapping[str, Any]) -> None:
    try:
        channel.sendall(json.dumps(message).encode() + b"\n")
    except OSError:
        os._exit(0)


def _receive(channel: socket.socket) -> dict[str, Any] | None:
    read = b""
    while not read.endswith(b"\n"):
        try:
            part = channel.recv(2**16)
        except OSError:
            return None
        if not part or len(read) > _MOST_BYTES:
            return None
        read += part
    order: dict[str, Any] = json.loads(read)
    return order


if __name__ == "__main__":
    main()
