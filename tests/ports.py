"""Ports for a test's servers that nobody else on this machine is given."""

from __future__ import annotations

import random
import socket
from pathlib import Path

RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_port_block(count: int = 1) -> int:
    """The first of `count` free ports in a row.

    They lie below the kernel's ephemeral range: in it, any outgoing connection of this machine
    may take a port between the look and the server that was to have it.
    """
    try:
        ephemeral_from = int(RANGE.read_text().split()[0])
    except (OSError, ValueError):
        ephemeral_from = 32768
    for _ in range(1000):
        first = random.randrange(max(1024, ephemeral_from - 16000), ephemeral_from - count)
        if all(_is_free(port) for port in range(first, first + count)):
            return first
    raise AssertionError(f"no {count} free ports in a row below {ephemeral_from}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("0.0.0.0", port))
        except OSError:
            return False
    return True
