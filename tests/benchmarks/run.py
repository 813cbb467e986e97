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

# Fifty containers take a while to remove.
_ENDS_WITHIN_S = 90


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


def _spawn(options: argparse.Namespace) -> Bench:
    from tests.benchmarks import bench_spawn

    if options.short:
        return bench_spawn.run(sequential=3, rounds=1, concurrent=0)
    return bench_spawn.run(concurrent=options.concurrent)


def _recovery(options: argparse.Namespace) -> Bench:
    from tests.benchmarks import bench_recovery

    return bench_recovery.run(rounds=1 if options.short else 3)


def _landing(options: argparse.Namespace) -> Bench:
    from tests.benchmarks import bench_landing

    return bench_landing.run(windows=1 if options.short else 3)


def _first_step(options: argparse.Namespace) -> Bench:
    from tests.benchmarks import bench_first_step

    return bench_first_step.run(
        repeats=1 if options.short else options.repeats,
        models=options.models.split(",") if options.models else (),
        arms=options.arms.split(",") if options.arms else (),
    )


def _courses(options: argparse.Namespace) -> Bench:
    from tests.benchmarks import bench_courses

    if options.short:
        return bench_courses.run(students=3, within_s=6, rounds=1)
    return bench_courses.run()


BENCHMARKS: Mapping[str, Known] = {
    "scheduler": Known("one decision with 2,000 tickets, and longer queues", 120, _scheduler),
    "hub-loop": Known("200 starts at once: does the hub's loop keep turning?", 290, _hub_loop),
    "viewers": Known("200 pages with all GPUs open: CPU of the service, bytes", 200, _viewers),
    "spawn": Known("seconds until a server answers, stock beside ours", 1500, _spawn),
    "recovery": Known("seconds after kill -9 of the hub, stock beside ours", 600, _recovery),
    "landing": Known("CPU of the hub while students wait, stock beside ours", 600, _landing),
    "courses": Known("a class of 30 within a minute, with a course and without", 900, _courses),
    "first-step": Known("a new notebook's first compiled step, stock and ours", 3000, _first_step),
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
    parser.add_argument(
        "--short", action="store_true", help="spawn, recovery, courses, ...: one round, to try it"
    )
    parser.add_argument(
        "--concurrent", type=int, default=50, help="spawn: so many at once as well; 0: only 8"
    )
    parser.add_argument("--repeats", type=int, default=5, help="first-step: of each")
    parser.add_argument("--models", default="", help="first-step: of mlp,gpt,resnet")
    parser.add_argument("--arms", default="", help="first-step: of stock,ours,sizes,fresh")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(BENCHMARKS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there is {', '.join(BENCHMARKS)}")
    _raise_on_terminate()
    failed = [name for name in options.names or BENCHMARKS if not _run_bounded(name, options)]
    if failed:
        sys.stderr.write(f"failed: {', '.join(failed)}\n")
    return 1 if failed else 0


def _run_bounded(name: str, options: argparse.Namespace) -> bool:
    """Run one in a process of its own, which is ended when its time is over."""
    known = BENCHMARKS[name]
    process = multiprocessing.get_context("spawn").Process(target=_run, args=(name, options))
    process.start()
    try:
        process.join(known.at_most_s * options.rounds)
        if process.is_alive():
            sys.stderr.write(f"{name}: not done after {known.at_most_s * options.rounds:g} s\n")
    finally:
        # Also when this process is the one that is ended: hubs and containers go with it.
        if process.is_alive():
            process.terminate()
            process.join(_ENDS_WITHIN_S)
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
