"""``api/servers/<user>/<server>/report``: the text; who may have it is in the table of roles."""

from __future__ import annotations

import time

import lab_journals as journals
from lab_fakes import BY_HAND, FakeWaiting

from pytorch_spawner.core.report import MAX_BYTES
from pytorch_spawner.core.tickets import Ticket

PATH = "api/servers/ana//report"


async def test_the_report_of_a_dead_container_is_plain_text_without_its_token(site):
    start = site.begin()
    site.ledger.append_events(start.id, [(kind, data) for _, kind, data in journals.DIED])
    site.ledger.end_start(start.id, "failed")
    answer = await site.get(PATH)
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/plain; charset=utf-8")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    lines = answer.text.splitlines()
    assert lines[:2] == ["Server: ana/(default)", "Image: lab/base:1"]
    assert "The container ran out of memory before JupyterLab answered." in lines
    assert "  MemoryError" in lines
    assert "  JUPYTERHUB_API_TOKEN=[…]" in lines
    assert "0123456789abcdef" not in answer.text


async def test_a_server_that_never_started_has_no_report(site):
    answer = await site.get(PATH)
    assert (answer.status, answer.code) == (404, "no-such-server")


async def test_it_is_of_the_latest_start(site):
    first = site.begin()
    site.ledger.append_events(first.id, [(kind, data) for _, kind, data in journals.DIED])
    second = site.begin()
    text = (await site.get(PATH)).text
    assert f"(start {second.id})" in text
    assert "out of memory" not in text


@BY_HAND
async def test_who_waits_reads_the_present_place_and_not_that_of_the_beginning(site):
    start = site.begin()
    site.ledger.append_events(start.id, [(kind, data) for _, kind, data in journals.QUEUED])
    ticket = Ticket(start.id, "ana", since=time.time() - 90)
    site.ledger.all_waiting = [FakeWaiting(ticket, 2, 5, None, "1 ahead of you.")]
    text = (await site.get(PATH)).text
    assert "Queue: place 2 of 5, waiting 90 s, expected unknown" in text
    assert "The start waits in the queue. 1 ahead of you." in text


async def test_what_a_full_journal_says_stays_within_the_bound(site):
    start = site.begin()
    loud = [
        ("check", {**journals.DRIVER[1], "code": f"c{n}", "remedy": "é" * 3000}) for n in range(400)
    ]
    for place in range(0, 400, 50):
        site.ledger.append_events(start.id, loud[place : place + 50])
    text = (await site.get(PATH)).text
    assert len(text.encode()) <= MAX_BYTES
    assert "more lines left out" in text
