"""The stream of a journal: replay, resume, restart, several viewers, and who may look."""

from __future__ import annotations

import asyncio

import pytest
from lab_fakes import BY_HAND, FOR_REAL, HUB, FakeWaiting

from pytorch_spawner.core.tickets import Decisions, Ticket, Wait
from pytorch_spawner.lab import events as following
from pytorch_spawner.lab import stream
from pytorch_spawner.lab.queue import Places

CHECK = {"kind": "check", "data": {"code": "gpu", "phase": "running"}}


async def test_a_late_viewer_gets_the_whole_journal_and_then_the_news(site):
    start = site.begin()
    site.ledger.append_events(start.id, [("start", {"stage": "requested"}), ("check", {})])
    async with site.stream() as viewer:
        name, _, server = await viewer.next()
        assert (name, server["start"], server["outcome"]) == ("server", start.id, "")
        assert await viewer.numbers(2) == [1, 2]
        site.ledger.append_events(start.id, [("start", {"stage": "lab"})])
        name, number, event = await viewer.next()
        assert (name, number, event["kind"]) == ("message", "3", "start")
        assert event["data"] == {"stage": "lab"}
        assert event["v"] == 1


async def test_a_report_reaches_two_viewers_at_once(site):
    site.begin()
    object.__setattr__(site.lab.follower, "_poll_s", 30.0)
    async with site.stream() as one, site.stream(token="kim-page") as two:
        await one.next()
        await two.next()
        await asyncio.sleep(0.2)
        await site.post([CHECK])
        assert await one.numbers(1) == [1]
        assert await two.numbers(1) == [1]
        assert site.lab.follower.viewers == 2
    await asyncio.sleep(0.2)
    assert site.lab.follower.viewers == 0
    assert site.lab.follower._watches == {}


@pytest.mark.parametrize(
    ("path", "headers", "expected"),
    [
        ("api/servers/ana//events", {"Last-Event-ID": "2"}, [3, 4]),
        ("api/servers/ana//events?after=3", {}, [4]),
        ("api/servers/ana//events", {"Last-Event-ID": "99"}, [1, 2, 3, 4]),
        ("api/servers/ana//events", {"Last-Event-ID": "x"}, [1, 2, 3, 4]),
        ("api/servers/ana//events?start=another&after=2", {}, [1, 2, 3, 4]),
    ],
    ids=[
        "from where it was",
        "the page's own way",
        "a number beyond the end is of another start",
        "no number",
        "another start",
    ],
)
async def test_a_viewer_that_comes_back(site, path, headers, expected):
    start = site.begin()
    site.ledger.append_events(start.id, [("check", {})] * 4)
    async with site.stream(path, **headers) as viewer:
        assert await viewer.numbers(len(expected)) == expected


@pytest.mark.parametrize(
    ("known", "after", "reads", "expected"),
    [
        ("this", 3, [2], [4]),
        ("", 4, [3], []),
        ("this", 0, [0], [1, 2, 3, 4]),
        ("another", 3, [0], [1, 2, 3, 4]),
        ("this", 99, [98, 0], [1, 2, 3, 4]),
    ],
    ids=[
        "from where it was",
        "it has all of it",
        "it has nothing",
        "another start",
        "a number beyond the end is of another start",
    ],
)
async def test_of_a_journal_only_what_a_viewer_lacks_is_read(
    site, monkeypatch, known, after, reads, expected
):
    start = site.begin()
    site.ledger.append_events(start.id, [("check", {})] * 4)
    asked, read = [], site.ledger.read_events

    def note(start_id: str, after_seq: int = 0):
        asked.append(after_seq)
        return read(start_id, after_seq)

    monkeypatch.setattr(site.ledger, "read_events", note)
    places = Places(site.ledger, HUB, 1.0)
    view = following.View(site.ledger, HUB, ("ana", ""), asyncio.Queue(), places)
    batch = await view.replay(start.id if known == "this" else known, after)
    assert (asked, [event.seq for event in batch.events]) == (reads, expected)


async def test_a_new_start_while_somebody_watches(site):
    old = site.begin()
    site.ledger.append_events(old.id, [("start", {"stage": "lab"})])
    async with site.stream() as viewer:
        assert await viewer.numbers(1) == [1]
        site.ledger.end_start(old.id, "stopped")
        name, _, server = await viewer.next()
        assert (name, server["outcome"]) == ("server", "stopped")
        new = site.begin()
        site.ledger.append_events(new.id, [("start", {"stage": "requested"})])
        name, _, data = await viewer.next()
        assert (name, data) == ("restart", {"start": new.id})
        assert (await viewer.next())[2]["start"] == new.id
        assert await viewer.numbers(1) == [1]


async def test_a_viewer_of_an_earlier_start_is_told_so(site):
    old = site.begin()
    site.begin()
    async with site.stream(f"api/servers/ana//events?start={old.id}&after=5") as viewer:
        assert (await viewer.next())[0] == "restart"


async def test_nothing_is_lost_or_doubled_between_replay_and_news(site):
    start = site.begin()

    async def write() -> None:
        for _ in range(60):
            await asyncio.to_thread(site.ledger.append_events, start.id, [("check", {})])
            site.lab.follower.wake("ana", "")

    writing = asyncio.create_task(write())
    async with site.stream() as one, site.stream() as two:
        assert await one.numbers(60) == list(range(1, 61))
        assert await two.numbers(60) == list(range(1, 61))
    await writing


async def test_a_quiet_stream_is_kept_alive(site, monkeypatch):
    monkeypatch.setattr(stream, "KEEP_ALIVE_S", 0.1)
    site.begin()
    async with site.stream() as viewer:
        await viewer.next()
        seen = b""
        while b": still here" not in seen:
            seen += await asyncio.wait_for(viewer._answer.content.readline(), 2)
        assert b"data:" not in seen, "a comment, not an event"


async def test_a_stream_ends_in_time_so_that_rights_are_asked_again(site, monkeypatch):
    monkeypatch.setattr(stream, "STREAM_S", 0.2)
    monkeypatch.setattr(stream, "KEEP_ALIVE_S", 0.1)
    site.begin()
    async with site.stream() as viewer:
        await viewer.next()
        with pytest.raises(EOFError):
            await viewer.next(3)


async def test_viewers_of_one_server_are_bounded(site, monkeypatch):
    monkeypatch.setattr(following, "MAX_VIEWERS", 2)
    site.begin()
    async with site.stream() as one, site.stream() as two:
        await one.next()
        await two.next()
        answer = await site.get("api/servers/ana//events")
        assert (answer.status, answer.code) == (429, "too-many-viewers")
    await asyncio.sleep(0.2)
    assert (await site.get("api/servers/ana//events?format=json")).status == 200


async def test_the_journal_as_a_list(site):
    start = site.begin()
    site.ledger.append_events(start.id, [("check", {"code": "x"})])
    answer = await site.get("api/servers/ana/events?format=json")
    assert [event["seq"] for event in answer.json] == [1]
    assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    ("token", "status"),
    [
        ("", 401),
        ("nobody", 401),
        ("bo-page", 403),
        ("bo-server", 403),
        ("ana-thesis", 403),
        ("ana-page", 200),
        ("kim-page", 200),
        ("ana-server", 200),
        ("admin-own", 200),
    ],
    ids=[
        "nobody",
        "an unknown token",
        "another student",
        "another student's server",
        "the student's other server",
        "the student",
        "a viewer",
        "the server itself",
        "who may open all servers",
    ],
)
async def test_who_may_watch(site, token, status):
    site.begin()
    answer = await site.get("api/servers/ana//events?format=json", token=token)
    assert answer.status == status
    if status != 200:
        assert set(answer.json) == {"code", "message"}


async def test_whether_a_server_exists_is_told_only_to_who_may_see_it(site):
    assert (await site.get("api/servers/ana//events")).code == "no-such-server"
    assert (await site.get("api/servers/ana//events", token="bo-page")).code == "forbidden"


async def test_a_scope_is_for_the_name_as_a_whole(site):
    site.begin("ana", "x")
    site.hub.add("crafty", "eve", "access:servers!server=ana/x/y", "access:servers!user=an")
    assert (await site.get("api/servers/ana/x/events", token="crafty")).status == 403


@BY_HAND
async def test_the_stream_goes_on_after_the_ledger_was_away(site):
    start = site.begin()
    async with site.stream() as viewer:
        await viewer.next()
        site.ledger.is_broken = True
        await asyncio.sleep(0.2)
        assert (await site.get("api/servers/ana//events")).status == 503
        site.ledger.is_broken = False
        site.ledger.append_events(start.id, [("check", {})])
        assert await viewer.numbers(1) == [1]


# ---- the queue -----------------------------------------------------------------------------------

JOINED = ("queue", {"place": 4, "reason": "3 ahead of you."})


def put(site, start, place: int, expected_at: float | None = None) -> None:
    """Say at which place a start waits."""
    ticket = Ticket(start.id, start.username, since=start.created_at)
    said = f"{place - 1} ahead of you."
    site.ledger.all_waiting = [FakeWaiting(ticket, place, 7, expected_at, said)] if place else []


@BY_HAND
async def test_a_server_that_waits_is_told_its_place_now_and_whenever_it_changes(site):
    start = site.begin()
    put(site, start, 3, 99.0)
    site.ledger.append_events(start.id, [("start", {"stage": "requested"}), JOINED])
    async with site.stream() as viewer:
        assert await viewer.numbers(2) == [1, 2]
        name, number, event = await viewer.next()
        assert (name, number) == ("message", ""), "it must not become a Last-Event-ID"
        assert (event["v"], event["seq"], event["kind"]) == (1, 0, "queue")
        assert event["data"] == {
            "place": 3,
            "of": 7,
            "ahead": 2,
            "reason": "2 ahead of you.",
            "expected_at": 99.0,
            "since": start.created_at,
            "can_start_cpu": True,
        }
        put(site, start, 2)
        assert (await viewer.next())[2]["data"]["place"] == 2


@BY_HAND
async def test_the_place_is_told_once_to_each_viewer_and_to_a_late_one_at_once(site):
    start = site.begin()
    put(site, start, 3)
    site.ledger.append_events(start.id, [JOINED])
    async with site.stream() as one:
        await one.numbers(1)
        await one.next()
        async with site.stream(**{"Last-Event-ID": "1"}) as late:
            assert (await late.next())[0] == "server"
            assert (await late.next())[2]["data"]["place"] == 3
            site.ledger.append_events(start.id, [("start", {"stage": "gpu"})])
            assert (await one.next())[2]["data"] == {"stage": "gpu"}
            assert (await late.next())[2]["data"] == {"stage": "gpu"}


@BY_HAND
async def test_who_comes_back_long_after_it_joined_is_told_its_place_at_once(site):
    start = site.begin()
    put(site, start, 3)
    site.ledger.append_events(start.id, [JOINED, ("check", {}), ("check", {})])
    async with site.stream(**{"Last-Event-ID": "3"}) as late:
        assert (await late.next())[0] == "server"
        assert (await late.next())[2]["data"]["place"] == 3


@BY_HAND
async def test_who_does_not_wait_any_more_hears_nothing_of_the_queue(site):
    start = site.begin()
    put(site, start, 1)
    site.ledger.append_events(start.id, [JOINED, ("start", {"stage": "gpu"})])
    async with site.stream() as viewer:
        assert await viewer.numbers(2) == [1, 2]
        put(site, start, 2)
        await asyncio.sleep(0.3)
        site.ledger.append_events(start.id, [("start", {"stage": "lab"})])
        assert (await viewer.next())[2]["data"] == {"stage": "lab"}


@BY_HAND
async def test_before_the_first_decision_there_is_no_place(site):
    start = site.begin()
    put(site, start, 1)
    site.ledger.all_waiting = [FakeWaiting(Ticket(start.id, "ana"))]
    site.ledger.append_events(start.id, [JOINED])
    async with site.stream() as viewer:
        await viewer.numbers(1)
        await asyncio.sleep(0.3)
        put(site, start, 5)
        assert (await viewer.next())[2]["data"]["place"] == 5


@BY_HAND
async def test_the_queue_is_read_once_for_all_who_watch_and_not_for_those_who_run(site):
    start = site.begin()
    put(site, start, 3)
    reads = 0
    read = site.ledger.queue

    def count(hub: str):
        nonlocal reads
        reads += 1
        return read(hub)

    site.ledger.queue = count
    async with site.stream() as viewer:
        await viewer.next()
        await asyncio.sleep(0.3)
        assert reads == 0
        site.ledger.append_events(start.id, [JOINED])
        async with site.stream() as two, site.stream() as three:
            for one in (viewer, two, three):
                await one.numbers(1)
            reads = 0
            await asyncio.sleep(1.0)
            assert 5 <= reads <= 25, "about every 50 ms, whoever looks"


@BY_HAND
async def test_the_journal_as_a_list_has_no_place_in_it(site):
    start = site.begin()
    put(site, start, 3)
    site.ledger.append_events(start.id, [JOINED])
    listed = (await site.get("api/servers/ana/events?format=json")).json
    assert [event["seq"] for event in listed] == [1]


@FOR_REAL
async def test_the_real_ledger_tells_the_place_that_was_decided(site):
    start = site.begin()
    site.ledger.join(start)
    site.ledger.append_events(start.id, [JOINED])
    async with site.stream() as viewer:
        await viewer.numbers(1)
        for place in (3, 2):
            site.ledger.decide(
                HUB, lambda state, at=place: Decisions(wait=(Wait(state.tickets[0], at, 3),))
            )
            told = (await viewer.next())[2]
            assert (told["seq"], told["data"]["place"], told["data"]["of"]) == (0, place, 3)
        assert told["data"]["since"] == site.ledger.queue(HUB)[0].ticket.since
