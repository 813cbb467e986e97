"""Sending events: bounded, patient, and never in the way."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from agent_service import Service

from pytorch_spawner.agent import report
from pytorch_spawner.agent.report import Reporter, fit

Make = Callable[..., Reporter]


@pytest.fixture
def logged() -> list[str]:
    return []


@pytest.fixture
def make(service: Service, logged: list[str]) -> Make:
    def reporter(url: str | None = None, **options: Any) -> Reporter:
        options = {"patience_s": 60.0, "first_pause_s": 0.01, **options}
        return Reporter(
            service.url + "/x" if url is None else url, "tok", "s1", log=logged.append, **options
        )

    return reporter


def test_a_report_carries_the_token_the_start_and_its_events_in_order(
    service: Service, make: Make
) -> None:
    reporter = make()
    began = time.time()
    for number in range(100):
        reporter.send("check", {"number": number})
    sent = time.time()
    assert reporter.close(60)
    assert [event["data"]["number"] for event in service.events] == list(range(100))
    assert {(r["v"], r["start"]) for r in service.reports} == {(1, "s1")}
    assert max(len(r["events"]) for r in service.reports) <= report.MAX_BATCH_EVENTS
    _, path, headers = service.requests[0]
    assert (path, headers["Authorization"]) == ("/x", "token tok")
    assert headers["Content-Type"] == "application/json"
    assert service.events[0]["kind"] == "check"
    assert all(began - 0.001 <= event["at"] <= sent + 0.001 for event in service.events)


@pytest.mark.parametrize("status", [500, 502, 503, 429])
def test_a_service_in_trouble_is_asked_again(service: Service, make: Make, status: int) -> None:
    service.statuses = [status] * 3
    reporter = make()
    reporter.send("check", {"code": "shm"})
    assert reporter.close(60)
    assert [event["data"] for event in service.events] == [{"code": "shm"}]
    assert (len(service.requests), reporter.dropped) == (4, 0)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 302])
def test_a_refused_report_is_dropped_and_logged_once(
    service: Service, make: Make, logged: list[str], status: int
) -> None:
    service.headers = {"Location": f"{service.url}/elsewhere"}
    service.statuses = [status, status]
    reporter = make()
    for code in ("a", "b", "c"):
        reporter.send("check", {"code": code})
        assert reporter.close(60)
    assert [event["data"]["code"] for event in service.events] == ["c"]
    assert [line for line in logged if str(status) in line] == logged
    assert (len(logged), reporter.dropped) == (1, 2)
    assert {path for _, path, _ in service.requests} == {"/x"}  # nobody else gets the token


@pytest.mark.parametrize(
    ("status", "settled"),
    [(409, True), (403, True), (400, True), (404, True), (302, False), (503, False), (429, False)],
)
def test_what_the_service_refuses_for_good_is_settled_and_what_it_cannot_take_now_is_not(
    service: Service, make: Make, status: int, settled: bool
) -> None:
    service.statuses = [status]
    reporter = make(patience_s=0.0)
    reporter.send("check", {"code": "a"})
    assert reporter.settle(60) is settled
    assert (reporter.dropped, reporter.refused) == (1, 1 if settled else 0)
    reporter.send("check", {"code": "b"})
    assert reporter.settle(60) is settled, "a later one that arrives does not make up for it"


class Pauses:
    """In the place of the event that ends a reporter's pauses: they take no time."""

    def __init__(self) -> None:
        self.asked_s: list[float] = []

    def wait(self, seconds: float) -> bool:
        self.asked_s.append(seconds)
        return False


@pytest.mark.parametrize(
    ("said", "pause_s"), [("1", 1.0), ("7.5", 7.5), ("0", 0.0), ("x", 0.01), ("", 0.01)]
)
def test_retry_after_is_honoured(service: Service, make: Make, said: str, pause_s: float) -> None:
    service.headers, service.statuses = {"Retry-After": said}, [429]
    reporter = make()
    reporter._closing = pauses = Pauses()  # type: ignore[assignment]
    reporter.send("check", {})
    assert reporter.close(60)
    assert pauses.asked_s == [pause_s]


def test_a_service_that_asks_for_more_than_the_patience_is_given_up(
    service: Service, make: Make
) -> None:
    service.headers, service.statuses = {"Retry-After": "30"}, [429]
    reporter = make(patience_s=29.0)
    reporter.send("check", {})
    assert reporter.close(60)
    assert reporter.dropped == 1


def test_when_nobody_answers_it_gives_up_after_its_patience(make: Make, logged: list[str]) -> None:
    reporter = make("http://127.0.0.1:1/", patience_s=0.3)
    reporter.send("check", {})
    assert reporter.close(60)
    assert reporter.dropped == 1
    assert logged[-1] == "gave up on 1 events: the service does not answer."


@pytest.mark.parametrize("url", ["nonsense", "ftp://x/", "http://[::1", "file:///etc/passwd"])
def test_an_unusable_address_is_given_up_like_a_silent_one(make: Make, url: str) -> None:
    reporter = make(url, patience_s=0.1)
    reporter.send("check", {})
    assert reporter.close(60)
    assert reporter.dropped == 1


def test_without_an_address_nothing_is_kept(make: Make) -> None:
    reporter = make("")
    reporter.send("check", {})
    assert reporter.close(0)


def test_a_flood_never_blocks_and_loses_samples_first(service: Service, make: Make) -> None:
    service.statuses = [503] * 1000
    reporter = make()
    pauses, over = threading.Event(), threading.Event()

    class Endless:
        def wait(self, seconds: float) -> bool:
            pauses.set()
            return over.wait()

    reporter._closing = Endless()  # type: ignore[assignment]
    reporter.send("check", {"number": -1})
    assert pauses.wait(60)
    # From here on the sender does nothing: whoever waited for it would wait for ever.
    reporter.send("check", {"number": 0})
    for number in range(report.MAX_QUEUE):
        reporter.send("sample", {"number": number})
    for number in range(10):
        reporter.send("done", {"number": number})
    assert reporter.dropped == 11
    assert [e["data"]["number"] for e in reporter._queue if e["kind"] == "check"] == [0]
    assert len([e for e in reporter._queue if e["kind"] == "done"]) == 10
    over.set()


def test_proxies_from_the_environment_are_not_used(
    service: Service, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    reporter = make()
    reporter.send("check", {})
    assert reporter.close(60)
    assert len(service.events) == 1


@pytest.mark.parametrize(
    "data",
    [
        {"text": "x" * 100_000},
        {"text": "ü" * 3000, "more": ["é" * 3000] * 5},
        {"facts": {f"k{n}": "y" * 900 for n in range(100)}},
        {"facts": {f"k{n}": n for n in range(5000)}},
        {f"k{n}": "z" * 90 for n in range(5000)},
        {"a" * 9000: {"b" * 9000: 1}},
    ],
    ids=["long text", "not ASCII", "many texts", "many numbers", "wide", "long keys"],
)
def test_an_event_is_made_to_fit(data: dict[str, Any]) -> None:
    event = fit({"kind": "check", "at": 1.0, "data": data})
    assert len(json.dumps(event)) <= report.MAX_EVENT_BYTES


def test_what_json_or_the_service_cannot_take_becomes_something_they_can() -> None:
    deep: dict[str, Any] = {"end": 1}
    for _ in range(50):
        deep = {"in": deep}
    event = fit({"kind": "check", "at": 1.0, "data": {"n": float("nan"), "d": deep, "b": b"x"}})
    said = json.dumps(event, allow_nan=False)
    assert event["data"]["n"] is None
    assert said.count("{") <= 7 + said.count("'in'")


def test_the_service_believes_what_the_reporter_makes_fit() -> None:
    from pytorch_spawner.core.journal import parse_report

    deep: Any = []
    for _ in range(50):
        deep = [deep]
    events = [fit({"kind": "check", "at": 1.0, "data": {"d": deep, "t": "ü" * 9000}})]
    assert (
        len(parse_report(json.dumps({"v": 1, "start": "s", "events": events}).encode()).events) == 1
    )
