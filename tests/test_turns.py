"""Who starts when many come at once."""

from __future__ import annotations

import asyncio

import pytest

from pytorch_spawner import turns
from pytorch_spawner.turns import Places, Turns


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


class Starters:
    """Some who want a place, by number; ``began`` is the order in which they got one."""

    def __init__(self, places: Places, at_once: int) -> None:
        self.places, self.at_once = places, at_once
        self.who = [object() for _ in range(10)]
        self.began: list[int] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def come(self, *numbers: int) -> None:
        for number in numbers:
            self.tasks.append(asyncio.create_task(self._take(number)))
        await settle()

    async def _take(self, number: int) -> None:
        await self.places.take(self.who[number], self.at_once)
        self.began.append(number)

    async def leave(self, number: int) -> None:
        self.places.leave(self.who[number])
        await settle()

    def end(self) -> None:
        for task in self.tasks:
            task.cancel()


async def test_places_are_given_in_the_order_in_which_people_came() -> None:
    starters = Starters(Places(), 2)
    await starters.come(0, 1, 2, 3)
    assert starters.began == [0, 1]
    await starters.leave(1)
    assert starters.began == [0, 1, 2]
    await starters.leave(0)
    assert starters.began == [0, 1, 2, 3]


async def test_giving_a_place_back_twice_makes_no_second_place() -> None:
    starters = Starters(Places(), 1)
    await starters.come(0, 1, 2)
    await starters.leave(0)
    await starters.leave(0)
    assert starters.began == [0, 1]
    starters.end()


async def test_who_has_a_place_has_it_already() -> None:
    starters = Starters(Places(), 1)
    await starters.come(0, 0)
    assert starters.began == [0, 0]


async def test_who_gives_up_waiting_is_passed_over() -> None:
    starters = Starters(Places(), 1)
    await starters.come(0, 1, 2)
    starters.tasks[1].cancel()
    await settle()
    await starters.leave(0)
    assert starters.began == [0, 2]


async def test_a_place_that_came_too_late_goes_to_the_next() -> None:
    starters = Starters(Places(), 1)
    await starters.come(0, 1, 2)
    starters.places.leave(starters.who[0])  # number 1 is served, and does not know it yet
    starters.tasks[1].cancel()
    await settle()
    assert starters.began == [0, 2]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "_HOLD_S", 0.3)
    monkeypatch.setattr(turns, "_LOOK_S", 0.05)


@pytest.mark.usefixtures("quick")
async def test_one_more_begins_at_each_look_while_the_machine_has_a_core_to_spare() -> None:
    starters = Starters(Turns(lambda: False), 1)
    await starters.come(0, 1, 2, 3)
    assert starters.began == [0]
    await asyncio.sleep(0.07)
    assert starters.began == [0, 1]
    await asyncio.sleep(0.12)
    assert starters.began == [0, 1, 2, 3]


@pytest.mark.usefixtures("quick")
async def test_on_a_busy_machine_the_next_begins_when_one_is_up_or_its_time_is_over() -> None:
    starters = Starters(Turns(lambda: True), 1)
    await starters.come(0, 1, 2)
    await asyncio.sleep(0.15)
    assert starters.began == [0]
    await starters.leave(0)
    assert starters.began == [0, 1]
    await asyncio.sleep(0.4)  # number 1 does not come up
    assert starters.began == [0, 1, 2]
