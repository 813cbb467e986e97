"""Chromium that sees no network interface come or go.

A machine that runs containers gets and loses interfaces with them. Chromium fails every request
that waits for a connection just then (ERR_NETWORK_CHANGED), and a page whose modules are such
requests stays empty. A person's computer is not the containers' host; here it is, so Chromium is
started without netlink, by which the kernel tells of interfaces: it then takes them as fixed.

As a program: `quiet_chromium.py CHROMIUM [ARGUMENT ...]`.
"""

from __future__ import annotations

import errno
import os
import shlex
import socket
import sys
from pathlib import Path


def quiet(chromium: str, folder: Path) -> Path:
    """An executable in that folder that starts Chromium so: Playwright takes no command."""
    path = folder / "chromium"
    command = shlex.join([sys.executable, __file__, chromium])
    path.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    path.chmod(0o755)
    return path


def _hide_netlink() -> None:
    try:
        import pyseccomp
    except (ImportError, OSError, RuntimeError) as error:  # no libseccomp on this machine
        print(f"Chromium sees the network change: {error}", file=sys.stderr)
        return
    rules = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    is_netlink = pyseccomp.Arg(0, pyseccomp.EQ, int(socket.AF_NETLINK))
    rules.add_rule(pyseccomp.ERRNO(errno.EAFNOSUPPORT), "socket", is_netlink)
    rules.load()


if __name__ == "__main__":
    _hide_netlink()
    os.execv(sys.argv[1], sys.argv[1:])
