"""Turns: one person has half of them, nobody waits for ever, and none gets lost."""

from __future__ import annotations

import pytest

from pytorch_spawner.lab.fair_turns import FairTurns, TooBusy, TooMany


async def test_a_turn_that_was_given_up_is_no_turn_less() -> None:
    turns = FairTurns(2, 16, 0.05)
    for _ in range(3):
        async with turns.turn("ana"):
            with pytest.raises(TooBusy):
                async with turns.turn("ana"):
                    raise AssertionError("one person has half of two turns")
            async with turns.turn("bo"):
                with pytest.raises(TooBusy):
                    async with turns.turn("cyd"):
                        raise AssertionError("there are two turns")
    assert (turns._own, turns._open) == ({}, {})


async def test_requests_are_counted_by_person_and_off_again_whatever_became_of_them() -> None:
    turns = FairTurns(2, 2, 1.0)
    for _ in range(3):
        with turns.request("ana"), turns.request("ana"), turns.request("bo"):
            with pytest.raises(TooMany), turns.request("ana"):
                raise AssertionError("she has two open")
            with pytest.raises(ZeroDivisionError), turns.request("bo"):
                raise ZeroDivisionError
    assert turns._open == {}
