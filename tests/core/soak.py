"""Many random stories of ``lab_model``: ``python -m tests.core.soak --sequences 1000000``."""

from __future__ import annotations

import argparse
import multiprocessing
import random
import sys
import time
from collections.abc import Iterator

from tests.core.lab_model import HEAD, play

_CHUNK = 1000
_SHOWN = 60


def story(seed: int, number: int) -> bytes:
    """The bytes of one story; the same seed and number always give the same."""
    draw = random.Random(f"{seed}/{number}")
    return draw.randbytes(HEAD + 2 * draw.randint(2, 30))


def fault(data: bytes) -> str:
    """What is wrong with a story; "" when nothing is."""
    try:
        play(data)
    except Exception as error:  # noqa: BLE001  (a crash of the scheduler is a finding as well)
        return f"{type(error).__name__}: {error}"
    return ""


def shrink(data: bytes) -> bytes:
    """Leave out operations, then make bytes smaller, while the story still fails."""
    size = (len(data) - HEAD) // 2
    while size >= 1:
        place = HEAD
        while place < len(data):
            shorter = data[:place] + data[place + 2 * size :]
            if fault(shorter):
                data = shorter
            else:
                place += 2 * size
        size //= 2
    for place in range(len(data)):
        for smaller in (0, data[place] & 128, data[place] & 127, data[place] & 15):
            tried = data[:place] + bytes([smaller]) + data[place + 1 :]
            if smaller < data[place] and fault(tried):
                data = tried
                break
    return data


def _chunk(work: tuple[int, int, int]) -> tuple[int, int | None]:
    seed, first, count = work
    for number in range(first, first + count):
        if fault(story(seed, number)):
            return number - first, number
    return count, None


def _chunks(seed: int, sequences: int) -> Iterator[tuple[int, int, int]]:
    for first in range(0, sequences, _CHUNK):
        yield seed, first, min(_CHUNK, sequences - first)


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sequences", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(words)
    began, done = time.monotonic(), 0
    with multiprocessing.Pool(options.workers) as pool:
        for count, failed in pool.imap_unordered(_chunk, _chunks(options.seed, options.sequences)):
            done += count
            if failed is not None:
                pool.terminate()
                return report(options.seed, failed)
            if done % (20 * _CHUNK) == 0 or done == options.sequences:
                rate = done / (time.monotonic() - began)
                print(f"{done} of {options.sequences}, {rate:.0f} a second", flush=True)
    print(f"seed {options.seed}: {done} sequences, no fault.", flush=True)
    return 0


def report(seed: int, number: int) -> int:
    """Print the shortest story that still fails."""
    data = shrink(story(seed, number))
    told: list[str] = []
    print(f"seed {seed}, sequence {number} fails. The shortest story found:", flush=True)
    print(f"  play(bytes.fromhex({data.hex()!r}))")
    try:
        play(data, told)
    except Exception as error:  # noqa: BLE001
        told.append(f"{type(error).__name__}: {error}")
    shown = told if len(told) <= _SHOWN else [*told[: _SHOWN - 1], "...", told[-1]]
    print("\n".join(f"  {line}" for line in shown), flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())
