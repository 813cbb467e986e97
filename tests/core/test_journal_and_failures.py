from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytorch_spawner.core.failures import explain_exit
from pytorch_spawner.core.journal import (
    AGENT_KINDS,
    MAX_EVENT_BYTES,
    MAX_REPORT_BYTES,
    parse_report,
)
from pytorch_spawner.errors import InvalidEvent


def event(**data: object) -> dict:
    return {"kind": "check", "data": data}


def test_a_report_is_read() -> None:
    report = parse_report(
        json.dumps({"v": 1, "start": "s", "events": [event(code="shm")]}).encode()
    )
    assert report.start == "s"
    assert report.events == (("check", {"code": "shm"}),)
    assert parse_report(json.dumps(event(a=1)).encode()).events == (("check", {"a": 1}),)
    assert parse_report(json.dumps([event(a=1)]).encode()).start == ""


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b"nonsense",
        b"1",
        b'"x"',
        b"[1]",
        b"{}",
        b'{"v": 2, "events": []}',
        b'{"events": {}}',
        b'{"start": 1, "events": []}',
        b'{"kind": "queue", "data": {}}',
        b'{"kind": "start", "data": {}}',
        b'{"kind": "evil"}',
        b'{"kind": "check", "data": []}',
        b'{"kind": "check", "data": {"a": NaN}}',
        b'{"kind": "check", "data": {"a": 1e999}}',
        json.dumps(event(a="x" * MAX_EVENT_BYTES)).encode(),
        b" " * (MAX_REPORT_BYTES + 1),
        json.dumps([event(a=1)] * 65).encode(),
        json.dumps(event(a=[[[[[[[1]]]]]]])).encode(),
        b"[" * 100_000,
    ],
    ids=lambda body: body[:30].decode("latin-1"),
)
def test_what_breaks_the_schema_or_its_limits_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidEvent):
        parse_report(body)


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_give_a_report_or_a_refusal(body: bytes) -> None:
    try:
        report = parse_report(body)
    except InvalidEvent:
        return
    assert all(kind in AGENT_KINDS for kind, _ in report.events)


@pytest.mark.parametrize(
    ("code", "oom", "log", "says"),
    [
        (137, True, (), "ran out of memory"),
        (127, False, ('exec: "python3": executable file not found in $PATH',), "no Python"),
        (
            1,
            False,
            ("ModuleNotFoundError: No module named 'jupyterhub'",),
            "no jupyterhub-singleuser",
        ),
        (1, False, ("OSError: [Errno 28] No space left on device",), "home directory is full"),
        (1, False, ("PermissionError: [Errno 13] Permission denied: '/home/ana/.local'",), "owner"),
        (127, False, ("sh: foo: not found",), "start command"),
        (0, False, (), "ended at once"),
        (3, False, ("<script>alert(1)</script>",), "exit code 3"),
    ],
    ids=["memory", "python", "jupyterhub", "disk", "owner", "command", "zero", "other"],
)
def test_why_a_container_ended(code: int, oom: bool, log: tuple[str, ...], says: str) -> None:
    sentence = explain_exit(code, was_out_of_memory=oom, log_tail=log)
    assert says in sentence
    assert "<script>" not in sentence
