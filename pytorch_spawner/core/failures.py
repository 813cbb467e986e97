"""Why a container ended before its server answered, in a sentence with a remedy."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

# (pattern over the last log lines, cause and remedy); the first that matches speaks.
_CAUSES: Final = tuple(
    (re.compile(pattern, re.IGNORECASE), sentence)
    for pattern, sentence in (
        (
            r"exec:? \"?python3\"?.*(not found|no such file)|python3: (command )?not found",
            "The image has no Python, which the server needs. Choose another image, or ask an "
            "admin to install python3 in this one.",
        ),
        (
            r"jupyterhub-singleuser.*(not found|no such file|cannot run)"
            r"|No module named '?jupyterhub",
            "The image has no jupyterhub-singleuser. Choose another image, or ask an admin to "
            "install the jupyterhub package in this one.",
        ),
        (
            r"no space left on device|disk quota exceeded",
            "The home directory is full, so the server could not write its files. Delete files "
            "there (an admin can help) and start again.",
        ),
        (
            r"permission denied: '?/home",
            "The server may not write to its home directory. Ask an admin to correct its owner.",
        ),
        (
            r"read-only file system",
            "The home directory is read-only, so the server could not write its files. Ask an "
            "admin to look at the volume.",
        ),
        (
            r"failed to connect to my hub",
            "The container cannot reach the hub over the network. Ask an admin to check "
            "hub_connect_ip and the container network's firewall.",
        ),
    )
)


def explain_exit(exit_code: int, *, was_out_of_memory: bool, log_tail: Sequence[str]) -> str:
    """Say why a container ended.

    Args:
        exit_code: As the engine reports it, 0 to 255.
        was_out_of_memory: The kernel ended it for its memory limit.
        log_tail: Its last lines, oldest first; hostile text, only matched, never repeated.

    Returns:
        One or two sentences: what happened, and what to do.
    """
    if was_out_of_memory:
        return (
            "The server ran out of memory while it started and was ended by the system. Choose a "
            "smaller image, or ask an admin for a higher memory limit."
        )
    text = "\n".join(log_tail)
    for pattern, sentence in _CAUSES:
        if pattern.search(text):
            return sentence
    if exit_code in (126, 127):
        return (
            "The image's start command could not be run. Choose another image, or ask an admin to "
            "look at its command."
        )
    if exit_code == 0:
        return (
            "The image's command ended at once instead of serving. Choose another image, or ask "
            "an admin to look at its command."
        )
    return (
        f"The server ended while it started (exit code {exit_code}). Its last lines are below; try "
        "again, and show them to an admin if it happens again."
    )
