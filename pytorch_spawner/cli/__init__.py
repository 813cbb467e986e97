"""`pytorch-spawner`: look at a lab and decide about its GPUs, from a terminal."""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
from collections.abc import Callable, Sequence

from pytorch_spawner import simulate
from pytorch_spawner.cli import cache, courses, gpus, grants, images, look, queue, report
from pytorch_spawner.cli.common import Said
from pytorch_spawner.errors import BadRequest, LabError


def main(words: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 fine, 1 something is wrong, 2 wrong usage."""
    options = parser().parse_args(words)
    run: Callable[[argparse.Namespace], Said | int] = options.run
    try:
        said = run(options)
    except LabError as error:
        _complain(error)
        return 1
    if isinstance(said, int):
        return said  # it has printed by itself, while it ran
    try:
        print(json.dumps(said.data, indent=1) if options.json else "\n".join(said.lines))
    except BrokenPipeError:  # `pytorch-spawner journal ana | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0 if said.is_fine else 1


def _complain(error: LabError) -> None:
    faults = error.faults if isinstance(error, BadRequest) else []
    if len(faults) > 1:
        print(f"pytorch-spawner: {len(faults)} faults, nothing was changed:", file=sys.stderr)
        for fault in faults:
            print(f"  {fault}", file=sys.stderr)
        return
    print(f"pytorch-spawner: {error.public_message}", file=sys.stderr)
    if error.detail:
        print(f"  {error.detail}", file=sys.stderr)


@functools.cache
def parser() -> argparse.ArgumentParser:
    """Every command with its options; parsing changes nothing of it."""
    top = argparse.ArgumentParser(prog="pytorch-spawner", description=__doc__)
    commands = top.add_subparsers(required=True, metavar="command")
    for module in (look, report, gpus, grants, queue, cache, courses, images):
        module.add_to(commands)
    simulate.add_to(commands)
    return top
