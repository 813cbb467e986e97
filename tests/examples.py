"""How many examples Hypothesis makes up: all of them, but a tenth in ``make check``."""

from __future__ import annotations

import os

from hypothesis import settings

IS_QUICK = os.environ.get("LAB_EXAMPLES") == "few"
# Of what names no number of its own, Hypothesis makes up 100.
settings.register_profile("few", max_examples=10)
if IS_QUICK:
    settings.load_profile("few")


def examples(count: int) -> int:
    """A test's number of examples, >= 1: for ``settings(max_examples=...)``."""
    return max(5, count // 10) if IS_QUICK else count
