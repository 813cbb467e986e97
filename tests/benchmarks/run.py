"""Run benchmarks, each in a process of its own and bounded in time, and write their results."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tests.benchmarks.harness import ROOT, Bench


@dataclass(frozen=True, slots=True)
class Known:
    """One benchmark that can be named.

    Attributes:
        says: What it measures, for --help.
        at_most_s: It is ended after so many seconds.
        run: Measures; takes the options.
    """

    says: str
    at_most_s: float
    run: Callable[[argparse.Namespace], Bench]


def _scheduler(_: argparse.Namespace) -> Bench:
    from tests.benchmarks import bench_scheduler

    return bench_scheduler.run()


def _hub_loop(options: argparse.Namespace) -> Bench:
    from tests.benchmarks import bench_hub_loop

    return bench_hub_loop.run(
        starts=options.starts, rounds=options.rounds, profile=options.profile, keep=options.keep
    )


def _viewers(options: argparse.Namespace) -> Bench:
    from tests.benchmarks import bench_viewers

    return bench_viewers.run(viewers=options.viewers)


BENCHMARKS: Mapping[str, Known] = {
    "scheduler": Known("one decision with 2,000 tickets, and longer queues", 120, _scheduler),
    "hub-loop": Known("200 starts at once: does the hub's loop keep turning?", 290, _hub_loop),
    "viewers": Known("200 pages with all GPUs open: CPU of the service, bytes", 200, _viewers),
}


def main(arguments: list[str] | None = None) -> int:
    """Run what is named, all by default; 1 if any of it failed."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description="Measure, print a table, write bench/results/<name>.json.",
        epilog="\n".join(f"{name}: {known.says}" for name, known in BENCHMARKS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(BENCHMARKS)}")
    parser.add_argument("--starts", type=int, default=200, help="hub-loop: how many start at once")
    parser.add_argument("--viewers", type=int, default=200, help="viewers: how many pages")
    parser.add_argument("--rounds", type=int, default=1, help="hub-loop: hubs of each spawner")
    parser.add_argument(
        "--profile", action="store_true", help="hub-loop: note where a late loop is (S lines)"
    )
    parser.add_argument(
        "--keep", default="", help="hub-loop: new folder for the hubs' logs and the meters' lines"
    )
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(BENCHMARKS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there is {', '.join(BENCHMARKS)}")
    failed = [name for name in options.names or BENCHMARKS if not _run_bounded(name, options)]
    if failed:
        sys.stderr.write(f"failed: {', '.join(failed)}\n")
    return 1 if failed else 0


def _run_bounded(name: str, options: argparse.Namespace) -> bool:
    """Run one in a process of its own, which is ended when its time is over."""
    known = BENCHMARKS[name]
    process = multiprocessing.get_context("spawn").Process(target=_run, args=(name, options))
    process.start()
    process.join(known.at_most_s * options.rounds)
    if process.is_alive():
        sys.stderr.write(f"{name}: not done after {known.at_most_s * options.rounds:g} s\n")
        process.terminate()
        process.join(30)
    return process.exitcode == 0


def _run(name: str, options: Any) -> None:
    _raise_on_terminate()
    before = os.getloadavg()[0]
    bench = BENCHMARKS[name].run(options)
    bench.notes.append(
        f"load average of the machine before and after: {before:.2f}, {os.getloadavg()[0]:.2f}; "
        "what else runs on it is in the figures"
    )
    path = bench.write()
    sys.stdout.write(f"{bench.table()}\n  -> {path.relative_to(ROOT)}\n\n")
    sys.stdout.flush()


def _raise_on_terminate() -> None:
    """SIGTERM becomes an exception, so that hubs and engines are stopped on the way out."""

    def leave(*_: object) -> None:
        raise SystemExit(143)

    signal.signal(signal.SIGTERM, leave)
