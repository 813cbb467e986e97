"""What the service believes of a build's container."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pytorch_spawner.agent.building import PREFIX
from pytorch_spawner.core.warmcache import Target, is_volume_of, why_not_published
from pytorch_spawner.lab.heard import Heard, targets_of


def heard(*said: Any) -> Heard:
    found = Heard(frozenset({"gpt"}))
    for one in said:
        found.take(one if isinstance(one, bytes) else (PREFIX + json.dumps(one)).encode())
    return found


def row(**more: Any) -> dict[str, Any]:
    return {"kind": "target", "name": "gpt", "size": 8, "seconds": 2.0, "misses": 2, **more}


@pytest.mark.parametrize(
    "odd",
    [
        row(name="another"),
        row(name=["gpt"]),
        row(size=[1]),
        row(size=True),
        row(size="8"),
        row(size={}),
        b"@warm-up {",
        b"@warm-up []",
        b"@warm-up " + b"[" * 50_000,
        b"\xff\xfe",
    ],
)
def test_an_odd_line_is_no_row_and_ends_nothing(odd: Any) -> None:
    found = heard(odd)
    assert found.rows == []
    assert found.failure is None
    assert not found.is_done
    assert targets_of(found.rows, found.rows) == ()


def test_numbers_that_are_none_count_as_nothing() -> None:
    found = heard(row(seconds="x", misses=-1, hits=1e300))
    (target,) = targets_of(found.rows, found.rows)
    assert (target.cold_s, target.warm_s, target.hits, target.misses) == (0.0, 0.0, 0, 0)


@pytest.mark.parametrize("again", [{"misses": 1, "hits": 1}, {"misses": 0, "hits": 0}])
def test_a_size_that_a_check_runs_twice_must_be_found_twice(again: dict[str, int]) -> None:
    cold = heard(row())
    warm = heard(row(seconds=0.4, hits=2, misses=0), row(seconds=0.6, **again))
    (target,) = targets_of(cold.rows, warm.rows)
    assert target == Target("gpt", 8, 2.0, 0.4, again["hits"], again["misses"])
    assert why_not_published([target], [("gpt", 8)])


def test_an_end_that_was_not_fine_is_a_failure_though_its_reason_was_lost() -> None:
    assert heard({"kind": "done", "ok": False}).failure is not None
    assert heard({"kind": "done"}).failure is not None
    assert heard({"kind": "done", "ok": True}).failure is None


def test_a_target_without_a_row_keeps_the_rest_from_being_published() -> None:
    whole = Target("gpt", 8, 20.0, 2.0, 2, 0)
    assert why_not_published([whole], [("gpt", 8)]) == ""
    assert "resnet at size 4 did not run" in why_not_published([whole], [("gpt", 8), ("resnet", 4)])


def test_a_container_that_prints_without_end_keeps_only_the_end() -> None:
    found = heard(*[b"x" * 1000] * 5000)
    assert len(found.text) <= 12_000


@pytest.mark.parametrize(
    ("name", "is_ours"),
    [
        ("lab-warm-0123456789ab", True),
        ("lab-warm-0123456789ab-check", True),
        ("lab-warm-0123456789ab-home-1", True),
        ("lab-warm-home-ana", False),  # the home of ana at a hub named "lab-warm"
        ("lab-warm-cache-ana", False),
        ("lab-warm-warm-0123456789ab", False),
        ("lab-home-ana", False),
        ("other-warm-0123456789ab", False),
        ("lab-warm-0123456789ab-home-3", False),
    ],
)
def test_only_a_builds_own_volumes_are_swept_away(name: str, is_ours: bool) -> None:
    assert is_volume_of("lab", name) is is_ours
