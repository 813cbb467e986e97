"""``api/servers/<user>/<server>/report``: the text; who may have it is in the table of roles."""

from __future__ import annotations

import re
import time

import lab_journals as journals
from lab_containers import put_containers
from lab_fakes import BY_HAND, ENTER, FakeWaiting

from pytorch_spawner.core.report import MAX_BYTES
from pytorch_spawner.core.tickets import Ticket
from pytorch_spawner.lab import report

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
    # The machine may be busy meanwhile.
    assert re.search(r"Queue: place 2 of 5, waiting 9\d s, expected unknown", text)
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


@BY_HAND
async def test_what_the_notebooks_hold_is_in_it_if_somebody_looked_and_nobody_is_asked(site):
    site.begin()
    site.hub.add("admin", "adam", ENTER, "custom:lab:admin")
    containers = put_containers(site)
    assert "Memory" not in (await site.get(PATH)).text
    assert containers.asked == []
    await site.get("api/servers/ana//memory")
    for token in ("ana-page", "admin"):
        text = (await site.get(PATH, token=token)).text
        assert "cv-03.ipynb holds 2.1 GiB of ana's server's memory and is computing." in text
        assert "  week-1/cv-03.ipynb: memory 2.1 GiB, busy" in text.splitlines()
    assert len(containers.asked) == 1
    # A viewer reads the journal, and not what people call their notebooks.
    answer = await site.get(PATH, token="kim-page")
    assert answer.status == 200
    assert "Memory" not in answer.text


@BY_HAND
async def test_a_look_of_a_minute_ago_or_at_the_start_before_is_not_in_it(site, monkeypatch):
    site.begin()
    put_containers(site)
    await site.get("api/servers/ana//memory")
    assert "Memory" in (await site.get(PATH)).text
    with monkeypatch.context() as patch:
        patch.setattr(report, "LOOKED_S", 0.0)
        assert "Memory" not in (await site.get(PATH)).text
    site.begin()
    assert "Memory" not in (await site.get(PATH)).text
