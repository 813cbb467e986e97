"""How many examples Hypothesis makes up: all of them, but a tenth in ``make check``."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

IS_QUICK = os.environ.get("LAB_EXAMPLES") == "few"
# How long an example takes says how busy the machine is. What must be quick has a test of its own.
settings.register_profile("all", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# Of what names no number of its own, Hypothesis makes up 100.
settings.register_profile("few", settings.get_profile("all"), max_examples=10)
settings.load_profile("few" if IS_QUICK else "all")


def examples(count: int) -> int:
    """A test's number of examples, >= 1: for ``settings(max_examples=...)``."""
    return max(5, count // 10) if IS_QUICK else count
