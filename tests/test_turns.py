"""Who starts when many come at once. The clock of these tests jumps: nobody waits for it."""

from __future__ import annotations

import asyncio
import random
import selectors
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pytorch_spawner.rules import boots_at_once
from pytorch_spawner.shared import Lab
from pytorch_spawner.spawner import PyTorchSpawner
from pytorch_spawner.traits import LabTraits
from pytorch_spawner.turns import OnWait, Places, StartingPlaces, Turns


class _Jumping(selectors.DefaultSelector):
    """Instead of waiting for the next timer, it moves the clock there."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        found = super().select(0)
        if not found:
            assert timeout is not None, "everybody waits, and nothing will ever happen"
            self.now += max(0.0, timeout)
        return found


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._clock = _Jumping()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now


def run(scene: Coroutine[Any, Any, None], *, is_abandoned: bool = False) -> None:
    """Play a scene in a loop of its own; abandoned, nothing in it gets to its end."""
    loop = _Loop()
    try:
        loop.run_until_complete(scene)
        if not is_abandoned and (tasks := asyncio.all_tasks(loop)):
            for task in tasks:
                task.cancel()
            loop.run_until_complete(asyncio.wait(tasks))
    finally:
        loop.close()


def now() -> float:
    return round(asyncio.get_running_loop().time(), 3)


async def settle() -> None:
    for _ in range(16):
        await asyncio.sleep(0)


Take = Callable[[object], Awaitable[None]]


class Starters:
    """Some who start, by number; ``began`` is the order in which they got what they waited for."""

    def __init__(self, take: Take, leave: Callable[[object], None]) -> None:
        self._take_one, self._leave_one = take, leave
        self.who = [object() for _ in range(200)]
        self.began: list[int] = []
        self.at: dict[int, float] = {}
        self.tasks: dict[int, asyncio.Task[None]] = {}

    async def come(self, *numbers: int) -> None:
        for number in numbers:
            self.tasks[number] = asyncio.create_task(self._take(number))
        await settle()

    async def _take(self, number: int) -> None:
        await self._take_one(self.who[number])
        self.began.append(number)
        self.at[number] = now()

    async def leave(self, number: int) -> None:
        self._leave_one(self.who[number])
        await settle()

    async def cancel(self, number: int) -> None:
        self.tasks[number].cancel()
        await settle()


def at(places: Places, at_once: int) -> Starters:
    return Starters(lambda who: places.take(who, at_once), places.leave)


def test_places_are_given_in_the_order_in_which_people_came() -> None:
    async def scene() -> None:
        starters = at(Places(), 2)
        await starters.come(0, 1, 2, 3)
        assert starters.began == [0, 1]
        await starters.leave(1)
        assert starters.began == [0, 1, 2]
        await starters.leave(0)
        assert starters.began == [0, 1, 2, 3]

    run(scene())


def test_giving_a_place_back_twice_makes_no_second_place() -> None:
    async def scene() -> None:
        starters = at(Places(), 1)
        await starters.come(0, 1, 2)
        await starters.leave(0)
        await starters.leave(0)
        assert starters.began == [0, 1]

    run(scene())


def test_who_has_a_place_has_it_already() -> None:
    async def scene() -> None:
        starters = at(Places(), 1)
        await starters.come(0)
        await starters.come(0)
        assert starters.began == [0, 0]
        await starters.leave(0)
        await starters.come(1)
        assert starters.began == [0, 0, 1]

    run(scene())


def test_who_gives_up_waiting_is_passed_over() -> None:
    async def scene() -> None:
        starters = at(Places(), 1)
        await starters.come(0, 1, 2)
        await starters.cancel(1)
        await starters.leave(0)
        assert starters.began == [0, 2]

    run(scene())


def test_a_place_that_came_too_late_goes_to_the_next() -> None:
    async def scene() -> None:
        places = Places()
        starters = at(places, 1)
        await starters.come(0, 1, 2)
        places.leave(starters.who[0])  # number 1 is served, and does not know it yet
        await starters.cancel(1)
        assert starters.began == [0, 2]

    run(scene())


def test_who_leaves_the_line_while_it_waits_never_gets_a_place() -> None:
    async def scene() -> None:
        starters = at(Places(), 1)
        await starters.come(0, 1, 2)
        await starters.leave(1)  # a stop that nothing was cancelled for
        assert starters.tasks[1].cancelled()
        await starters.leave(0)
        assert starters.began == [0, 2]

    run(scene())


def test_one_who_asks_for_more_room_than_there_is_holds_up_nobody_once_it_has_gone() -> None:
    async def scene() -> None:
        places = Places()
        few, many = at(places, 1), at(places, 2)
        await few.come(0, 1)
        await many.come(2)
        assert many.began == []
        await few.cancel(1)
        assert many.began == [2]

    run(scene())


def test_a_holder_is_not_taken_for_a_new_one_at_its_address() -> None:
    async def scene() -> None:
        places = Places()
        for _ in range(50):  # each is the only reference to itself
            await places.take(object(), 100)
        assert places.ahead(object()) == 0
        mine = object()
        waiting = asyncio.create_task(places.take(mine, 50))
        await settle()
        assert places.ahead(mine) == 50
        assert not waiting.done()

    run(scene())


def test_one_more_begins_at_each_look_while_the_machine_has_a_core_to_spare() -> None:
    async def scene() -> None:
        starters = at(Turns(lambda: False), 1)
        await starters.come(0, 1, 2, 3)
        assert starters.began == [0]
        await asyncio.sleep(10)
        assert starters.at == {0: 0.0, 1: 0.5, 2: 1.0, 3: 1.5}

    run(scene())


def test_on_a_busy_machine_the_next_begins_when_one_is_up_or_its_time_is_over() -> None:
    async def scene() -> None:
        starters = at(Turns(lambda: True), 1)
        await starters.come(0, 1, 2)
        await asyncio.sleep(0.7)
        assert starters.began == [0]
        await starters.leave(0)
        assert starters.began == [0, 1]
        await asyncio.sleep(10)  # number 1 does not come up
        assert starters.at == {0: 0.0, 1: 0.7, 2: 2.2}

    run(scene())


def test_a_second_turn_of_the_same_server_is_as_long_as_its_first() -> None:
    async def scene() -> None:
        starters = at(Turns(lambda: True), 1)
        await starters.come(0)
        await asyncio.sleep(1.0)
        await starters.leave(0)  # the start failed at once
        await starters.come(0, 1)
        await asyncio.sleep(10)
        assert starters.at == {0: 1.0, 1: 2.5}

    run(scene())


def test_a_late_comer_begins_at_the_next_look_on_an_idle_machine() -> None:
    async def scene() -> None:
        starters = at(Turns(lambda: False), 1)
        await starters.come(0)
        await asyncio.sleep(0.6)  # nobody waited so far
        await starters.come(1)
        await asyncio.sleep(10)
        assert starters.at == {0: 0.0, 1: 1.1}

    run(scene())


def test_whoever_is_left_after_a_look_that_gave_nothing_is_looked_at_again() -> None:
    async def scene() -> None:
        starters = at(Turns(lambda: now() < 1.0), 1)
        await starters.come(0, 1)
        await asyncio.sleep(10)
        assert starters.at == {0: 0.0, 1: 1.0}

    run(scene())


def test_nothing_is_left_to_run_once_everybody_has_begun() -> None:
    async def scene() -> None:
        looks = 0

        def is_busy() -> bool:
            nonlocal looks
            looks += 1
            return True

        starters = at(Turns(is_busy), 1)
        await starters.come(0, 1)
        await asyncio.sleep(10)
        assert starters.began == [0, 1]
        assert 0 < looks <= 3  # 1.5 s, a look each half second
        before = looks
        await asyncio.sleep(1000)
        assert looks == before
        assert not vars(asyncio.get_running_loop())["_scheduled"]

    run(scene())


def test_a_loop_that_ended_leaves_neither_timers_nor_holders_behind() -> None:
    turns = Turns(lambda: True)

    async def ends_in_the_middle() -> None:
        starters = at(turns, 1)
        await starters.come(0, 1, 2)
        assert starters.began == [0]
        for task in starters.tasks.values():
            task._log_destroy_pending = False  # type: ignore[attr-defined]

    async def after_it() -> None:
        starters = at(turns, 1)
        turns.leave(starters.who[9])  # a stop comes first, and wakes nobody of the old loop
        await starters.come(0, 1, 2)
        assert starters.began == [0]
        await asyncio.sleep(10)
        assert starters.at == {0: 0.0, 1: 1.5, 2: 3.0}

    run(ends_in_the_middle(), is_abandoned=True)
    run(after_it())


# -- a start: a place, then a turn --------------------------------------------------------------


class Said:
    """What those who wait are told, with the time; and that they may start, with their wait."""

    def __init__(self) -> None:
        self.words: list[tuple[float, int]] = []
        self.given: list[tuple[float, float]] = []

    async def __call__(self, ahead: int, waited_s: float) -> None:
        if ahead:
            self.words.append((now(), ahead))
        else:
            self.given.append((now(), round(waited_s, 3)))


def starting(places: StartingPlaces, at_once: int, boots: int, said: OnWait) -> Starters:
    return Starters(lambda who: places.take(who, at_once, boots, said), places.leave)


def test_whoever_waits_is_told_how_many_are_before_them_and_when_that_changes() -> None:
    async def scene() -> None:
        places, said = StartingPlaces(lambda: True), Said()
        others, mine = starting(places, 3, 0, Said()), starting(places, 3, 0, said)
        await others.come(0, 1, 2, 3)
        await mine.come(10)
        await asyncio.sleep(0.9)
        assert said.words == []  # no more than a moment
        await asyncio.sleep(2.0)
        assert said.words == [(1.02, 4)]  # and nothing new at 2 s
        await others.leave(0)
        await others.leave(1)  # at 2.9 s: number 3 begins, and number 10
        assert mine.began == [10]
        await asyncio.sleep(10)
        assert said.words == [(1.02, 4)]
        assert said.given == [(2.9, 2.9)]

    run(scene())


def test_it_is_told_at_most_each_second_however_often_it_changes() -> None:
    async def scene() -> None:
        places, said = StartingPlaces(lambda: True), Said()
        others, mine = starting(places, 1, 0, Said()), starting(places, 1, 0, said)
        await others.come(*range(9))
        await mine.come(10)
        await asyncio.sleep(0.95)
        for number in range(9):
            await asyncio.sleep(0.3)
            await others.leave(number)
        assert mine.began == [10]
        assert said.words == [(1.045, 9), (2.045, 6), (3.045, 3)]
        assert said.given == [(3.65, 3.65)]

    run(scene())


def test_whoever_is_far_back_is_told_less_often() -> None:
    async def scene() -> None:
        places, said = StartingPlaces(lambda: True), Said()
        others, mine = starting(places, 1, 0, Said()), starting(places, 1, 0, said)
        await others.come(*range(100))
        await mine.come(150)
        await asyncio.sleep(0.25)
        for number in range(100):
            await asyncio.sleep(1)
            await others.leave(number)
        times = [when for when, _ in said.words]
        assert times[:3] == [1.5, 11.4, 20.3]  # a tenth of those ahead, in seconds
        assert {round(b - a, 3) for a, b in zip(times[-8:], times[-7:], strict=False)} == {1.0}
        assert len(times) < 40
        assert [ahead for _, ahead in said.words] == sorted(
            {ahead for _, ahead in said.words}, reverse=True
        )

    run(scene())


def test_who_waits_for_a_turn_is_told_too() -> None:
    async def scene() -> None:
        places, said = StartingPlaces(lambda: True), Said()
        everybody = starting(places, 50, 2, said)
        await everybody.come(*range(5))
        await asyncio.sleep(10)
        assert everybody.at == {0: 0.0, 1: 0.0, 2: 1.5, 3: 1.5, 4: 3.0}
        # After 1 s numbers 2, 3 and 4; after 2 s number 4 again, behind the two that boot now.
        assert said.words == [(1.01, 2), (1.015, 3), (1.02, 4), (2.02, 2)]
        assert said.given == [(1.5, 1.5), (1.5, 1.5), (3.0, 3.0)]

    run(scene())


def test_two_hundred_who_come_at_once_are_not_told_in_the_same_moment() -> None:
    async def scene() -> None:
        places, said = StartingPlaces(lambda: True), Said()
        everybody = starting(places, 1, 0, said)
        await everybody.come(*range(200))
        await asyncio.sleep(2)
        times = [when for when, _ in said.words]
        assert len(times) == len(set(times)) == 199
        assert 1.0 < min(times) < max(times) < 2.0

    run(scene())


def test_who_waited_no_more_than_a_moment_is_told_nothing() -> None:
    async def scene() -> None:
        places, said = StartingPlaces(lambda: False), Said()
        everybody = starting(places, 0, 1, said)
        await everybody.come(0, 1)
        await asyncio.sleep(10)
        assert everybody.at == {0: 0.0, 1: 0.5}
        assert (said.words, said.given) == ([], [])

    run(scene())


def test_without_limits_all_begin_at_once_and_are_told_nothing() -> None:
    async def scene() -> None:
        places, said = StartingPlaces(lambda: True), Said()
        everybody = starting(places, 0, 0, said)
        await everybody.come(*range(30))
        assert everybody.began == list(range(30))
        await asyncio.sleep(10)
        assert said.words == []

    run(scene())


class Slowly:
    """A journal that takes its time: what was written in it, with when."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.written: list[tuple[float, int]] = []

    async def __call__(self, ahead: int, waited_s: float) -> None:
        await asyncio.sleep(self._seconds)
        self.written.append((now(), ahead))


def test_what_is_told_is_written_in_its_order_before_the_start_goes_on() -> None:
    async def scene() -> None:
        places, slowly = StartingPlaces(lambda: True), Slowly(0.1)
        others, mine = starting(places, 1, 0, Said()), starting(places, 1, 0, slowly)
        await others.come(0)
        await mine.come(10)
        await asyncio.sleep(1.025)  # it is being told
        await others.leave(0)
        await asyncio.sleep(10)
        assert slowly.written == [(1.105, 1), (1.205, 0)]
        assert mine.at == {10: 1.205}

    run(scene())


def test_a_start_that_may_begin_does_not_wait_for_a_locked_ledger() -> None:
    async def scene() -> None:
        places, slowly = StartingPlaces(lambda: True), Slowly(5)
        others, mine = starting(places, 1, 0, Said()), starting(places, 1, 0, slowly)
        await others.come(0)
        await mine.come(10)
        await asyncio.sleep(2)
        await others.leave(0)
        await asyncio.sleep(15)
        assert mine.at == {10: 2.25}
        # The last word is that it starts, however late that is; that is what holds.
        assert slowly.written == [(6.005, 1), (11.005, 0)]

    run(scene())


def test_a_start_that_is_over_is_told_nothing_more() -> None:
    async def scene() -> None:
        places, slowly = StartingPlaces(lambda: True), Slowly(5)
        others, mine = starting(places, 1, 0, Said()), starting(places, 1, 0, slowly)
        await others.come(0)
        await mine.come(10)
        await asyncio.sleep(2)
        await others.leave(0)
        await asyncio.sleep(1)
        assert mine.began == [10]
        await mine.leave(10)
        await asyncio.sleep(15)
        assert slowly.written == []

    run(scene())


@pytest.mark.parametrize("after_s", [0.1, 1.0], ids=["in that moment", "after it"])
def test_a_start_that_is_stopped_while_it_is_told_that_it_may_begin_hears_nothing_more(
    after_s: float,
) -> None:
    async def scene() -> None:
        places, slowly = StartingPlaces(lambda: True), Slowly(5)
        others, mine = starting(places, 1, 0, Said()), starting(places, 1, 0, slowly)
        await others.come(0)
        await mine.come(10)
        await asyncio.sleep(2)
        await others.leave(0)
        await asyncio.sleep(after_s)
        mine.tasks[10].cancel()
        await mine.leave(10)
        await asyncio.sleep(15)
        assert slowly.written == []
        assert await all_free(places, 1, 0)

    run(scene())


def test_two_servers_of_one_user_take_two_places_in_their_order() -> None:
    async def scene() -> None:
        # Spawners are told apart as objects, whatever is equal about them.
        class Equal:
            def __eq__(self, other: object) -> bool:
                return True

            __hash__ = None  # type: ignore[assignment]

        places = StartingPlaces(lambda: True)
        starters = starting(places, 1, 1, Said())
        starters.who = [Equal() for _ in range(3)]
        await starters.come(0, 1, 2)
        assert starters.began == [0]
        await starters.leave(1)  # one of them is stopped: the other one's place stays its own
        assert starters.began == [0]
        await starters.leave(0)
        assert starters.began == [0, 2]

    run(scene())


async def all_free(places: StartingPlaces, at_once: int, boots: int) -> bool:
    """Whether as many begin at once as ever: then no place has leaked."""
    fresh = starting(places, at_once, boots, Said())
    most = at_once or boots
    await fresh.come(*range(most + 1))
    began = list(fresh.began)
    for number in range(most + 1):
        await fresh.cancel(number)
        await fresh.leave(number)
    return began == list(range(min(most, boots or most)))


@pytest.mark.parametrize(
    ("at_once", "boots"),
    [(1, 0), (0, 1), (2, 1)],
    ids=["waits for a place", "waits for a turn", "has a place and waits for a turn"],
)
@pytest.mark.parametrize("after_s", [0.0, 0.5, 1.0, 1.4])
def test_a_start_that_is_cancelled_while_it_waits_holds_nothing(
    at_once: int, boots: int, after_s: float
) -> None:
    async def scene() -> None:
        places = StartingPlaces(lambda: True)
        starters = starting(places, at_once, boots, Said())
        await starters.come(0, 1)
        await asyncio.sleep(after_s)
        await starters.cancel(1)
        assert starters.began == [0]
        await starters.leave(0)
        assert await all_free(places, at_once, boots)

    run(scene())


@pytest.mark.parametrize("at_once", [1, 2], ids=["gets a place", "gets a turn"])
def test_a_start_that_is_cancelled_in_the_moment_it_gets_what_it_waits_for_holds_nothing(
    at_once: int,
) -> None:
    async def scene() -> None:
        for steps in range(16):
            places = StartingPlaces(lambda: True)
            starters = starting(places, at_once, 1, Said())
            await starters.come(0, 1)
            places.leave(starters.who[0])
            for _ in range(steps):
                await asyncio.sleep(0)
            has_begun = starters.tasks[1].done()
            await starters.cancel(1)
            if has_begun:  # then its end gives the place back, as every start's does
                await starters.leave(1)
            assert await all_free(places, at_once, 1)

    run(scene())


@pytest.mark.parametrize("at_once", [1, 2], ids=["gets a place", "gets a turn"])
def test_what_comes_in_the_moment_after_a_start_was_cancelled_is_not_kept(at_once: int) -> None:
    async def scene() -> None:
        places = StartingPlaces(lambda: True)
        starters = starting(places, at_once, 1, Said())
        await starters.come(0, 1)
        starters.tasks[1].cancel()  # and before it hears of it
        await starters.leave(0)
        assert await all_free(places, at_once, 1)

    run(scene())


def test_a_start_that_runs_out_of_time_while_it_waits_holds_nothing() -> None:
    async def scene() -> None:
        places = StartingPlaces(lambda: True)
        starters = starting(places, 1, 1, Said())
        await starters.come(0)
        with pytest.raises((TimeoutError, asyncio.TimeoutError)):
            await asyncio.wait_for(places.take(starters.who[1], 1, 1, Said()), 3)
        await starters.leave(0)
        assert await all_free(places, 1, 1)

    run(scene())


def test_a_start_that_fails_while_it_is_told_holds_nothing() -> None:
    async def scene() -> None:
        async def fails(ahead: int, waited_s: float) -> None:
            raise RuntimeError(f"{ahead} ahead")

        places = StartingPlaces(lambda: True)
        others, mine = starting(places, 1, 0, Said()), starting(places, 1, 0, fails)
        await others.come(0)
        await mine.come(10)
        await asyncio.sleep(2)
        with pytest.raises(RuntimeError, match="1 ahead"):
            mine.tasks[10].result()
        await others.leave(0)
        assert await all_free(places, 1, 0)

    run(scene())


def test_a_start_that_is_stopped_while_it_waits_ends_and_holds_nothing() -> None:
    async def scene() -> None:
        places = StartingPlaces(lambda: True)
        starters = starting(places, 2, 1, Said())
        await starters.come(0, 1, 2, 3)  # 1 has a place and waits for a turn; 2 waits for a place
        await starters.leave(2)
        await starters.leave(1)
        assert starters.tasks[1].cancelled()
        assert starters.tasks[2].cancelled()
        await starters.leave(0)
        assert starters.began == [0, 3]
        await starters.leave(3)
        assert await all_free(places, 2, 1)

    run(scene())


@pytest.mark.parametrize("seed", range(30))
def test_whatever_happens_order_is_kept_and_in_the_end_every_place_is_free(seed: int) -> None:
    chance = random.Random(seed)

    async def scene() -> None:
        at_once, boots = chance.choice([(0, 2), (3, 0), (3, 2), (5, 2), (2, 3)])
        places = StartingPlaces(lambda: chance.random() < 0.5)
        starters = starting(places, at_once, boots, Said())
        came = 0
        for _ in range(150):
            what = chance.random()
            if what < 0.45 and came < 60:
                await starters.come(came)
                came += 1
            elif came:
                number = chance.randrange(came)
                if what < 0.6:
                    starters.tasks[number].cancel()
                    places.leave(starters.who[number])  # the hub cleans up after it
                elif what < 0.8:
                    places.leave(starters.who[number])
                else:
                    await asyncio.sleep(chance.choice([0.0, 0.1, 0.5, 1.0]))
            await settle()
            held = [n for n in starters.began if places._places._holders.get(id(starters.who[n]))]
            assert not at_once or len(held) <= at_once
        for number in range(came):
            places.leave(starters.who[number])
            await settle()
        await asyncio.sleep(20)
        assert starters.began == sorted(starters.began)
        assert await all_free(places, at_once, boots)

    run(scene())


@pytest.mark.parametrize(
    ("ahead", "sentence", "more"),
    [
        (1, "1 server is starting before yours.", {}),
        (12, "12 servers are starting before yours.", {}),
        (0, "Your server starts now.", {"waited_s": 20.13}),
    ],
)
async def test_what_is_told_is_a_sentence_in_the_journal(
    tmp_path: Path, ahead: int, sentence: str, more: dict[str, float]
) -> None:
    lab = Lab(f"sqlite:///{tmp_path / 'ledger.sqlite'}", "lab", {})
    start = await lab.call(lambda ledger: ledger.begin_start("lab", "ana", "", {}, ()))
    spawner = cast("Any", SimpleNamespace(lab=lab, _start=start))
    spawner._tell = partial(PyTorchSpawner._tell, spawner)
    await PyTorchSpawner._tell_turn(spawner, ahead, 20.1299)
    (entry,) = await lab.read_events(start, 0)
    assert entry.kind == "start"
    assert entry.data == {"stage": "turn", "message": sentence, "ahead": ahead, **more}


# -- the settings -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "is_local", "expected"),
    [(None, True, 6), (4, True, 4), (0, True, 0), (None, False, 0), (4, False, 0)],
    ids=[
        "nothing said: a server a core",
        "a number",
        "0: no limit",
        "an engine elsewhere: no limit",
        "an engine elsewhere, with a number",
    ],
)
def test_how_many_boot_at_once_is_a_setting(
    setting: int | None, is_local: bool, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    spawner = cast("LabTraits", SimpleNamespace(boots_at_once=setting))
    lab = cast("Any", SimpleNamespace(is_engine_local=is_local))
    assert boots_at_once(spawner, lab) == expected


def test_as_many_boot_at_once_as_there_are_cores_where_nothing_is_said() -> None:
    trait = LabTraits.class_traits()["boots_at_once"]
    assert trait.default() is None
    assert trait.metadata["config"]
