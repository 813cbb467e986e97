"""What the service takes from containers, and everything it refuses."""

from __future__ import annotations

import asyncio

import lab_journals as journals
import pytest
from lab_fakes import HUB

from pytorch_spawner.agent import compile_log
from pytorch_spawner.agent.warmup import SAMPLE_S
from pytorch_spawner.core.journal import (
    AGENT_KINDS,
    MAX_REPORT_BYTES,
    MAX_REPORTED_BYTES,
    Report,
)
from pytorch_spawner.errors import LedgerUnavailable
from pytorch_spawner.lab import app
from pytorch_spawner.lab.limits import TokenBuckets

CHECK = {"kind": "check", "at": 1.0, "data": {"code": "gpu", "phase": "running"}}


async def test_a_report_of_the_servers_own_token_is_written_with_our_time(site):
    start = site.begin()
    answer = await site.post([CHECK, CHECK], start=start.id)
    assert (answer.status, answer.json) == (200, {"accepted": 2, "seq": 2})
    events = site.ledger.read_events(start.id)
    assert [event.kind for event in events] == ["check", "check"]
    assert events[0].at > 1e9


@pytest.mark.parametrize(
    "path", ["api/servers/ana//events", "api/servers/ana/events"], ids=["empty name", "no name"]
)
async def test_both_addresses_of_the_default_server_work(site, path):
    site.begin()
    assert (await site.post([CHECK], path=path)).status == 200


async def test_the_owners_own_token_may_report(site):
    site.begin()
    assert (await site.post([CHECK], token="ana-own")).status == 200


async def test_a_report_that_does_not_know_its_start_is_of_the_latest(site):
    site.begin()
    newest = site.begin()
    assert (await site.post([CHECK])).status == 200
    assert len(site.ledger.read_events(newest.id)) == 1


@pytest.mark.parametrize(
    ("token", "status", "code"),
    [
        ("", 401, "no-token"),
        ("nobody", 401, "unknown-token"),
        ("bo-server", 403, "forbidden"),
        ("ana-page", 403, "forbidden"),
        ("ana-thesis", 403, "forbidden"),
        ("kim-page", 403, "forbidden"),
        ("admin-own", 403, "forbidden"),
    ],
    ids=[
        "no token",
        "a token the hub does not know",
        "another student's server",
        "the student's browser session",
        "the same student's other server",
        "a viewer",
        "an admin",
    ],
)
async def test_who_may_not_report(site, token, status, code):
    start = site.begin()
    answer = await site.post([CHECK], token=token)
    assert (answer.status, answer.code) == (status, code)
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Content-Type"].startswith("application/json")
    assert site.ledger.read_events(start.id) == ()


async def test_a_cookie_and_a_token_in_the_address_count_for_nothing(site):
    site.begin()
    path = "api/servers/ana//events?token=ana-server"
    answer = await site.post([CHECK], token="", path=path, Cookie="service-lab=ana-server")
    assert answer.status == 401


async def test_the_token_of_one_server_does_not_reach_a_server_of_another_name(site):
    site.begin("ana", "thesis")
    path = "api/servers/ana/thesis/events"
    assert (await site.post([CHECK], path=path)).status == 403
    assert (await site.post([CHECK], path=path, token="ana-thesis")).status == 200


async def test_a_server_that_never_started_is_unknown(site):
    answer = await site.post([CHECK])
    assert (answer.status, answer.code) == (404, "no-such-server")


async def test_a_container_of_an_earlier_start_is_refused(site):
    old = site.begin()
    new = site.begin()
    answer = await site.post([CHECK], start=old.id)
    assert (answer.status, answer.code) == (409, "stale-start")
    assert site.ledger.read_events(new.id) == ()


async def test_a_start_that_is_over_takes_no_more(site):
    start = site.begin()
    site.ledger.end_start(start.id, "stopped")
    answer = await site.post([CHECK], start=start.id)
    assert (answer.status, answer.code) == (409, "start-ended")


def nested(depth: int) -> dict:
    value: dict = {}
    for _ in range(depth):
        value = {"x": value}
    return value


@pytest.mark.parametrize(
    "raw",
    [
        b'{"v": 1, "events": [{"kind": "sample", "data": {"x": NaN}}]}',
        b'{"v": 1, "events": [{"kind": "sample", "data": {"x": 1e999}}]}',
        b"[" * 100_000,
        b"not json",
        b'"text"',
        b'{"v": 2, "events": []}',
        b'{"v": 1, "start": 7, "events": []}',
        b'{"v": 1, "events": [{"kind": "start", "data": {"stage": "lab"}}]}',
        b'{"v": 1, "events": [{"kind": "queue", "data": {"place": 1}}]}',
        b'{"v": 1, "events": [{"kind": "evil", "data": {}}]}',
        b'{"v": 1, "events": [{"kind": "check", "data": []}]}',
    ],
    ids=[
        "NaN",
        "a number beyond floats",
        "very deep",
        "no JSON",
        "no object",
        "a later version",
        "a start that is no text",
        "the hub's kind start",
        "the hub's kind queue",
        "an unknown kind",
        "data that is no object",
    ],
)
async def test_reports_that_break_the_schema(site, raw):
    start = site.begin()
    answer = await site.post(None, raw=raw)
    assert (answer.status, answer.code) == (400, "invalid-event")
    assert "Traceback" not in answer.text
    assert site.ledger.read_events(start.id) == ()


@pytest.mark.parametrize(
    "data",
    [{"sentence": "x" * 17 * 1024}, nested(7)],
    ids=["an event of 17 KiB", "nested seven deep"],
)
async def test_events_beyond_the_limits_take_the_whole_report_with_them(site, data):
    start = site.begin()
    answer = await site.post([CHECK, {"kind": "check", "data": data}])
    assert (answer.status, answer.code) == (400, "invalid-event")
    assert site.ledger.read_events(start.id) == ()


async def test_too_many_events_in_one_report(site):
    site.begin()
    assert (await site.post([CHECK] * 65)).code == "invalid-event"


async def test_a_megabyte_is_refused_before_it_is_read(site):
    import aiohttp

    site.begin()
    try:
        answer = await site.post(None, raw=b"x" * 1024 * 1024)
    except aiohttp.ClientError:
        return  # hung up on: the usual end
    assert answer.status == 400
    assert MAX_REPORT_BYTES < 1024 * 1024


async def test_a_flood_is_told_to_wait_and_others_are_not(site):
    site.begin()
    site.begin("bo")
    statuses = [(await site.post([CHECK] * 64)).status for _ in range(4)]
    assert statuses == [200, 200, 200, 429]
    answer = await site.post([CHECK] * 64)
    assert answer.code == "too-many-events"
    assert 1 <= int(answer.headers["Retry-After"]) <= 30
    other = await site.post([CHECK], token="bo-server", path="api/servers/bo//events")
    assert other.status == 200


async def test_guessing_tokens_ends_soon_and_asks_the_hub_no_more(site):
    site.begin()
    statuses = [(await site.post([CHECK], token=f"guess-{i}")).status for i in range(40)]
    assert statuses[0] == 401
    assert statuses[-1] == 429
    assert len([token for token in site.hub.asked if token.startswith("guess")]) < 35


async def test_a_journal_keeps_room_for_the_hubs_last_words(site):
    start = site.begin()
    for _ in range(19):
        site.ledger.append_events(start.id, [("sample", {})] * 100)
    site.ledger.append_events(start.id, [("sample", {})] * 30)
    assert (await site.post([CHECK])).status == 200
    answer = await site.post([CHECK])
    assert (answer.status, answer.code) == (409, "journal-full")
    assert site.ledger.append_events(start.id, [("start", {"stage": "stopped"})])


# As many of the largest events as one report holds.
LOUD = [{"kind": "check", "data": {"code": "c", "sentence": "x" * 16_000}}] * 16


def reported(site, start) -> int:
    """What a start's agent reported, in bytes."""
    events = [(event.kind, event.data) for event in site.ledger.read_events(start.id)]
    return Report("", tuple(one for one in events if one[0] in AGENT_KINDS)).stored_bytes


async def test_a_start_reports_so_many_bytes_and_no_more_whatever_process_takes_them(site):
    start = site.begin()
    answers = [await site.post(LOUD) for _ in range(9)]
    assert [answer.status for answer in answers] == [200] * 8 + [409]
    assert answers[-1].code == "journal-full"
    assert MAX_REPORTED_BYTES - 300_000 < reported(site, start) <= MAX_REPORTED_BYTES
    assert site.ledger.reported_bytes(start.id) == reported(site, start)
    site.lab.lengths.clear()  # as in a service that was started anew
    assert (await site.post(LOUD)).code == "journal-full"
    assert site.ledger.append_events(start.id, [("start", {"stage": "stopped"})])
    site.begin()
    assert (await site.post([CHECK])).status == 200


async def test_what_the_hub_says_counts_for_no_agent(site):
    start = site.begin()
    for _ in range(3):
        site.ledger.append_events(start.id, [("start", {"log_tail": "x" * 16_000})] * 50)
    assert (await site.post(LOUD)).status == 200
    assert site.ledger.reported_bytes(start.id) == reported(site, start)


async def test_reports_that_come_at_once_stay_below_the_bound_together(site):
    start = site.begin()
    answers = await asyncio.gather(*(site.post(LOUD) for _ in range(12)))
    assert sorted(answer.status for answer in answers) == [200] * 8 + [409] * 4
    assert reported(site, start) <= MAX_REPORTED_BYTES


async def test_a_report_that_was_not_written_counts_nothing(site, monkeypatch):
    start = site.begin()

    def refuse(*_: object) -> None:
        raise LedgerUnavailable("The ledger is locked.")

    with monkeypatch.context() as patch:
        patch.setattr(site.ledger, "append_events", refuse)
        assert [(await site.post(LOUD)).status for _ in range(2)] == [503, 503]
    assert (await site.post([CHECK])).status == 200
    assert site.lab.lengths[start.id].reported_bytes == reported(site, start)


async def test_a_person_that_starts_again_and_again_reports_no_more_for_it(site):
    object.__setattr__(site.lab, "report_bytes", TokenBuckets(1.0, 600_000))
    statuses = []
    for server in ("", "thesis", ""):
        site.begin("ana", server)
        path = f"api/servers/ana/{server}/events"
        token = "ana-thesis" if server else "ana-server"
        statuses.append((await site.post(LOUD, path=path, token=token)).status)
    assert statuses == [200, 200, 429]
    answer = await site.post(LOUD)
    assert answer.code == "too-many-events"
    assert int(answer.headers["Retry-After"]) > 1000
    site.begin("bo")
    other = await site.post(LOUD, token="bo-server", path="api/servers/bo//events")
    assert other.status == 200


def stored(story: journals.Story) -> int:
    """What a story's agent reports, in bytes."""
    told = tuple((kind, data) for _, kind, data in story if kind in AGENT_KINDS)
    return Report("", told).stored_bytes


def test_no_honest_journal_comes_near_the_bounds():
    honest = [journals.FINE, journals.WARMING, journals.FAILING, journals.CPU, journals.DIED]
    assert max(map(stored, honest)) < 8_000
    log = {
        "error": "x" * compile_log.MAX_ERROR,
        "lines": ["x" * compile_log.MAX_LINE] * compile_log.MAX_LINES,
    }
    failed = {"phase": "failed", "id": "mlp/default", "message": "x" * 200, "log": log}
    ((at, kind, sample),) = journals.samples(12.0)
    all_samples = round(600 / SAMPLE_S)  # until the warm-up's deadline
    fullest = [
        *journals.FINE,
        *[(at, "warmup", {"phase": "running", "id": "mlp/default"}), (at, "warmup", failed)] * 60,
        *[(at, kind, {"gpus": sample["gpus"] * 8})] * all_samples,
    ]
    assert stored(fullest) < 820_000 < MAX_REPORTED_BYTES / 2
    assert 2000 * stored(journals.FINE) < app.REPORT_BYTES_A_DAY


async def test_the_hub_is_asked_once_for_a_token_in_use(site):
    site.begin()
    for _ in range(5):
        await site.post([CHECK])
    assert site.hub.asked.count("ana-server") == 1


async def test_without_the_hub_a_report_is_refused_and_may_come_again(site):
    site.begin()
    site.hub.is_down = True
    answer = await site.post([CHECK], token="bo-server", path="api/servers/bo//events")
    assert answer.status == 502


async def test_what_is_counted(site):
    site.begin()
    await site.post([CHECK])
    await site.post([CHECK], token="bo-server")
    text = (await site.get("metrics", token="kim-page")).text
    assert 'lab_events_accepted_total{kind="check"} 1.0' in text
    assert 'lab_reports_refused_total{code="forbidden"} 1.0' in text


async def test_neither_bodies_nor_tokens_are_logged(site, caplog):
    caplog.set_level("INFO")
    site.begin()
    await site.post([{"kind": "check", "data": {"sentence": "my-secret"}}])
    await site.post([CHECK], token="wrong-token-xyz")
    await site.get("api/me?_xsrf=my-xsrf")
    for word in ("my-secret", "wrong-token-xyz", "ana-server", "my-xsrf"):
        assert word not in caplog.text
    assert HUB
