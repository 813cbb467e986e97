"""The stream of a journal: replay, resume, restart, several viewers, and who may look."""

from __future__ import annotations

import asyncio

import pytest

from pytorch_spawner.lab import events as following
from pytorch_spawner.lab import stream

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


async def test_the_stream_goes_on_after_the_ledger_was_away(site):
    if not hasattr(site.ledger, "is_broken"):
        pytest.skip("only the fake breaks on demand")
    start = site.begin()
    async with site.stream() as viewer:
        await viewer.next()
        site.ledger.is_broken = True
        await asyncio.sleep(0.2)
        assert (await site.get("api/servers/ana//events")).status == 503
        site.ledger.is_broken = False
        site.ledger.append_events(start.id, [("check", {})])
        assert await viewer.numbers(1) == [1]
