"""The report for the helpdesk: what it says, what it hides, and what nothing can make it do."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytorch_spawner.core.journal import Event
from pytorch_spawner.core.masking import HIDDEN, masked, plain
from pytorch_spawner.core.report import MAX_BYTES, report_of
from pytorch_spawner.core.report_facts import gather
from tests.examples import examples

BEGAN = 1_800_000_000.0  # 2027-01-15 08:00:00 UTC
HEX = "0123456789abcdef0123456789abcdef"
GPU = {
    "uuid": "GPU-1",
    "index": 3,
    "name": "NVIDIA H100",
    "memory_mib": 81_920,
    "driver": "580.1",
    "pool": "teaching",
}


@dataclass(frozen=True)
class Started:
    id: str = "s1"
    username: str = "ana"
    servername: str = ""
    image: str = "lab/base:1"
    request: Any = field(default_factory=lambda: {"gpus": 1, "share": "slot", "course": "cv"})
    created_at: float = BEGAN
    ended_at: float | None = None
    outcome: str = ""


def report(
    *story: tuple[str, Any], start: Started | None = None, after_s: float = 60.0, memory: Any = None
) -> str:
    """The report; the events come one second after the other."""
    events = [Event(n, BEGAN + n, kind, data) for n, (kind, data) in enumerate(story, 1)]
    return report_of(start or Started(), events, BEGAN + after_s, memory)


def gpu(*gpus: dict[str, Any], **more: Any) -> tuple[str, Any]:
    return "start", {"stage": "gpu", "gpus": list(gpus), **more}


def check(code: str, level: Any = "ok", **more: Any) -> tuple[str, Any]:
    return "check", {"code": code, "phase": "done", "level": level, **more}


UP = ("start", {"stage": "lab"})
DIED = {"stage": "failed", "code": "container-died", "message": "It ran out of memory."}
DONE = {"phase": "done", "title": "Vision", "commit": "4f1c2a0" + "0" * 33, "files": 1}

# A story, and lines that its report has.
SAYS: dict[str, tuple[list[tuple[str, Any]], list[str]]] = {
    "who, what and when": (
        [],
        [
            "Server: ana/(default)",
            "Image: lab/base:1",
            "Asked for: 1 GPU, slot, course cv",
            "Started: 2027-01-15 08:00:00 UTC (start s1)",
            "Report made: 2027-01-15 08:01:00 UTC",
        ],
    ),
    "an empty journal: unknown is said": (
        [],
        [
            "The server is starting. It chooses a GPU.",
            "GPU: unknown; the journal names none",
            "Stages: none reached yet",
            "Checks: unknown; none reported",
        ],
    ),
    "a whole GPU": (
        [gpu(GPU), UP],
        [
            "The server runs with 1 GPU.",
            "GPU 3: NVIDIA H100, 80.0 GiB, GPU-1, pool teaching, driver 580.1",
        ],
    ),
    "a slot with a limit, an end and a reason": (
        [
            gpu(
                {**GPU, "slots": 4, "slot": 1, "slot_memory_mib": 20_480},
                limit="hard",
                until=BEGAN + 3600,
                why="because group cv",
            )
        ],
        [
            "GPU 3: NVIDIA H100, 80.0 GiB, slot 2 of 4 with 20.0 GiB, GPU-1, pool teaching, "
            "driver 580.1",
            "Memory limit of the slot: hard",
            "GPU until: 2027-01-15 09:00:00 UTC",
            "Why this GPU: because group cv",
        ],
    ),
    "a GPU of which little is known": (
        [gpu({"uuid": "GPU-1"}), UP],
        ["GPU: unnamed, memory unknown, GPU-1, driver unknown"],
    ),
    "a simulated GPU and a MIG instance": (
        [gpu({"uuid": "A", "is_simulated": True}, {**GPU, "mig_profile": "1g.10gb"}), UP],
        [
            "The server runs with 2 GPUs.",
            "GPU: unnamed, memory unknown, A, simulated",
            "GPU 3: NVIDIA H100, 80.0 GiB, MIG 1g.10gb, GPU-1, pool teaching, driver 580.1",
        ],
    ),
    "no GPU": (
        [gpu(message="This server runs without a GPU."), UP],
        ["The server runs without a GPU.", "GPU: none. This server runs without a GPU."],
    ),
    "stages with their seconds, the queue's own": (
        [("start", {"stage": "requested"}), gpu(GPU, waited_s=0.25), ("start", {"stage": "home"})],
        ["Stages: queue 0.2 s, GPU 0.8 s, home 1.0 s"],
    ),
    "a wait for other starts is a stage of its own, no part of the next": (
        [
            gpu(GPU),
            *[("start", {"stage": "turn", "ahead": ahead}) for ahead in (3, 2, 1)],
            ("start", {"stage": "turn", "ahead": 0, "waited_s": 3.5}),
            ("start", {"stage": "home"}),
        ],
        ["Stages: GPU 1.0 s, waiting for other starts 3.5 s, home 1.5 s"],
    ),
    "a wait for other starts that was written late is none": (
        [
            gpu(GPU),
            ("start", {"stage": "home"}),
            ("start", {"stage": "turn", "ahead": 0, "waited_s": 0.5}),
            ("start", {"stage": "image"}),
        ],
        ["Stages: GPU 1.0 s, home 1.0 s, image 2.0 s"],
    ),
    "a wait for other starts of which nobody knows how long it was": (
        [
            gpu(GPU),
            *[
                ("start", {"stage": "turn", "ahead": ahead, "waited_s": waited})
                for ahead, waited in ((0, "1"), (0, -1), (0, None), (1, 1), ("0", 1), (None, 1))
            ],
            ("start", {"stage": "home"}),
        ],
        ["Stages: GPU 1.0 s, home 7.0 s"],
    ),
    "a place in the queue": (
        [("queue", {"place": 3, "of": 5, "since": BEGAN, "reason": "All are in use."})],
        [
            "The start waits in the queue. All are in use.",
            "Queue: place 3 of 5, waiting 60 s, expected unknown",
        ],
    ),
    "what was measured, and what was not": (
        [
            gpu(GPU),
            (
                "sample",
                {"gpus": [{"uuid": "GPU-1", "utilisation_pct": 7, "memory_used_mib": 1024}]},
            ),
            ("sample", {"gpus": [{"uuid": "somebody else's", "utilisation_pct": 99}]}),
        ],
        [
            "  measured 2027-01-15 08:00:02 UTC: in use 7 %, memory 1.0 GiB of unknown, "
            "temperature unknown, power unknown"
        ],
    ),
    "checks: failures first, then notes with remedies; fine ones in one line": (
        [
            ("check", {"phase": "plan", "codes": ["a", "b", "c", "d", "e", "f"]}),
            check("a", seconds=0.5),
            check("b", "warn", sentence="It is small.", remedy="Wait.", admin_remedy="Enlarge it."),
            check("c", "fail", sentence="It is broken.", seconds=1.25),
            check("d"),
            check("e", "odd"),
            UP,
        ],
        [
            "The server runs, but 1 check failed.",
            "Checks: 1 failed, 1 with a note, 1 unknown, 2 fine, 1 not begun",
            "  fail     c: It is broken. (1.2 s)",
            "  warn     b: It is small.",
            "           what to do: Wait.",
            "           for the admin: Enlarge it.",
            "  unknown  e",
            "  ok       a, d",
        ],
    ),
    "a check that came again counts once": (
        [check("a", "fail"), check("a"), ("done", {"part": "checks", "seconds": 1.5})],
        ["Checks: 1 fine (in 1.5 s)"],
    ),
    "the warm-up and where it came from": (
        [
            (
                "warmup",
                {
                    "phase": "plan",
                    "device": "cuda:0",
                    "device_name": "NVIDIA H100",
                    "message": "The warm cache is of another driver.",
                    "targets": [{"id": "1", "model": "cnn"}, {"id": "2", "model": "gpt"}],
                },
            ),
            ("warmup", {"phase": "done", "id": "1", "cold_s": 8, "warm_s": 1, "from_cache": True}),
            ("warmup", {"phase": "failed", "id": "2", "message": "No compiler."}),
        ],
        [
            "Warm-up: under way, on cuda:0, NVIDIA H100",
            "  from the lab's warm cache: 1 of 2",
            "  The warm cache is of another driver.",
            "  cnn: done, cold 8.0 s, warm 1.0 s, from the cache",
            "  gpt: failed, No compiler.",
        ],
    ),
    "a course's notebooks": (
        [
            ("course", {"phase": "begin", "course": "cv", "title": "Vision"}),
            (
                "course",
                {
                    **DONE,
                    "seconds": 1,
                    "kept": ["a.md"],
                    "conflicts": {"b.ipynb": "b.course.ipynb"},
                },
            ),
            ("course", {"phase": "reset", "message": "c.ipynb is the course's again."}),
        ],
        [
            "Course: Vision: up to date, commit 4f1c2a0, 1 file, in 1.0 s",
            "  reset     c.ipynb is the course's again.",
            "  conflict  b.ipynb (the course's: b.course.ipynb)",
            "  kept      a.md",
        ],
    ),
    "a course that could not be copied": (
        [
            (
                "course",
                {
                    "phase": "failed",
                    "title": "Vision",
                    "code": "disk-full",
                    "message": "There is no room left.",
                    "remedy": "Delete something.",
                    "admin_remedy": "Raise the quota.",
                },
            ),
            UP,
        ],
        [
            "The server runs, but the course's notebooks are not up to date.",
            "Course: Vision: There is no room left. (code disk-full)",
            "  what to do: Delete something.",
            "  for the admin: Raise the quota.",
        ],
    ),
    "a failed start, and the last lines": (
        [
            (
                "start",
                {**DIED, "remedy": "Try again.", "log_tail": ["Traceback:", "  File x", "Bad"]},
            )
        ],
        [
            "It ran out of memory.",
            "Error code: container-died",
            "What to do: Try again.",
            "Last lines of the container's log:",
            "  Traceback:",
            "    File x",
            "  Bad",
        ],
    ),
    "what was compiled: what failed comes last": (
        [
            check(
                "compile",
                facts={"graph_breaks": ["print() in forward"], "printed": "gcc\nbad flag"},
            ),
            (
                "warmup",
                {
                    "phase": "failed",
                    "id": "2",
                    "model": "gpt",
                    "mode": "default",
                    "log": {"lines": ["W: slow"], "error": "Traceback:\n  No compiler."},
                },
            ),
            (
                "warmup",
                {"phase": "done", "id": "1", "model": "cnn", "log": {"reasons": ["item()"]}},
            ),
            ("warmup", {"phase": "done", "id": "3", "log": {"first": {"graphs": 2}}}),
        ],
        [
            "The end of the compile log:",
            "  The check:",
            "    print() in forward",
            "    bad flag",
            "  cnn (done):",
            "    item()",
            "  gpt default (failed):",
            "    W: slow",
            "    Traceback:",
            "      No compiler.",
        ],
    ),
    "a cancelled start": ([("start", {"stage": "cancelled"})], ["The start was cancelled."]),
}


@pytest.mark.parametrize("name", SAYS)
def test_it_says(name: str) -> None:
    story, lines = SAYS[name]
    said = report(*story).splitlines()
    assert [line for line in lines if line not in said] == [], "\n".join(said)


MEMORY = {
    "at": BEGAN + 50,
    "sentence": "nlp.ipynb holds 11 GiB of ana's GPU and has done nothing for 40 min.",
    "trouble": "",
    "kernels": [
        {"notebook": "nlp.ipynb", "path": "week-2/nlp.ipynb", "memory_mib": 2048, "gpu_mib": 11_264,
         "uses_gpu": True, "state": "idle", "idle_s": 2400},
        {"notebook": "cv.ipynb", "path": "cv.ipynb", "memory_mib": None, "gpu_mib": None,
         "uses_gpu": None, "state": "busy", "idle_s": None},
    ],
    "others": [
        {"notebook": "python3 train.py", "path": "", "kind": "terminal", "pid": 99,
         "memory_mib": 300, "gpu_mib": 0, "uses_gpu": False}
    ],
    "gpus": [{"uuid": "GPU-1", "is_slot": False}],
}  # fmt: skip


def test_it_says_which_notebook_holds_what() -> None:
    said = report(gpu(GPU), UP, memory=MEMORY).splitlines()
    place = said.index(f"Memory, looked at 2027-01-15 08:00:50 UTC: {MEMORY['sentence']}")
    assert said[place + 1 :] == [
        "  week-2/nlp.ipynb: GPU 11.0 GiB, memory 2.0 GiB, idle for 40 min",
        "  cv.ipynb: GPU unknown, memory unknown, busy",
        "  python3 train.py: GPU 0.0 GiB, memory 0.3 GiB, terminal, process 99",
    ]
    assert "GPU 0.0" not in report(UP, memory={**MEMORY, "gpus": []}), "it has no GPU"
    trouble = "JupyterLab does not answer."
    assert f"  {trouble}" in report(UP, memory={**MEMORY, "trouble": trouble}).splitlines()


@pytest.mark.parametrize(
    ("story", "memory"),
    [
        pytest.param([UP], None, id="nobody looked"),
        pytest.param([UP], {**MEMORY, "at": BEGAN - 1}, id="somebody looked at the start before"),
        pytest.param([UP], {**MEMORY, "at": None}, id="nobody knows when"),
        pytest.param([UP, ("start", {"stage": "stopped"})], MEMORY, id="it is stopped"),
        pytest.param([UP, ("start", DIED)], MEMORY, id="it died"),
    ],
)
def test_nothing_is_said_of_memory_that_is_not_this_running_start_s(
    story: list[tuple[str, Any]], memory: Any
) -> None:
    assert "Memory" not in report(*story, memory=memory)


def test_of_a_long_compile_log_the_end_is_kept_and_what_failed() -> None:
    lines = [f"line {n} {'ä' * 250}" for n in range(24)]
    log = {"lines": lines}
    text = report(
        ("warmup", {"phase": "failed", "id": "bad", "log": {"lines": lines, "error": "No gcc."}}),
        *[("warmup", {"phase": "done", "id": f"t{n}", "log": log}) for n in range(31)],
        UP,
    )
    part = text[text.index("The end of the compile log:") :].split("\n\n")[0]
    assert part.rstrip().endswith("\n    No gcc.")
    assert "more lines left out" in part
    assert len(part.encode()) <= 3 * 1024 + 100


def test_the_loud_checks_come_before_the_fine_ones() -> None:
    text = report(check("a"), check("b", "warn"), check("c", "unknown"), check("d", "fail"))
    places = [text.index(f"  {level} ") for level in ("fail", "warn", "unknown", "ok")]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        ("stopped", "The server is stopped."),
        ("ready", "The server is stopped."),
        ("cancelled", "The start was cancelled."),
        ("failed", "The server did not start; nothing says why."),
    ],
)
def test_a_start_without_a_last_word_is_told_from_its_outcome(outcome: str, said: str) -> None:
    text = report(UP, start=Started(ended_at=BEGAN + 5, outcome=outcome))
    assert said in text.splitlines()
    assert f"Ended: 2027-01-15 08:00:05 UTC ({outcome})" in text


def test_of_a_long_log_the_end_is_kept() -> None:
    lines = [f"line {n} {'ä' * 400}" for n in range(200)]
    text = report(("start", {**DIED, "log_tail": lines}))
    assert "  line 199 ä" in text
    assert "line 100 " not in text
    assert "more lines left out" in text
    assert len(text.encode()) <= MAX_BYTES


# -- secrets --------------------------------------------------------------------------------------

HIDES = {
    f"JUPYTERHUB_API_TOKEN={HEX}": f"JUPYTERHUB_API_TOKEN={HIDDEN}",
    "export JPY_API_TOKEN='a b'": f"export JPY_API_TOKEN={HIDDEN}",
    "Authorization: token abc def": f"Authorization {HIDDEN}",
    "curl -H Authorization:Basic YTpi": f"curl -H Authorization {HIDDEN}",
    "bad token abc123, go": f"bad token {HIDDEN} go",
    "Bearer xyz": f"Bearer {HIDDEN}",
    "GET /lab?token=abc": f"GET /lab?token={HIDDEN}",
    '{"token": "a\\"b", "x": 1}': f'{{"token": {HIDDEN}, "x": 1}}',
    '{\\"api_key\\": \\"abc\\"}': f'{{\\"api_key\\": {HIDDEN}"}}',
    "password: hunter2": f"password: {HIDDEN}",
    "https://ana:pw@host.example/x": f"https://{HIDDEN}@host.example/x",
    f"seen {HEX.upper()} there": f"seen {HIDDEN} there",
    "hf_abcdefghijk": HIDDEN,
    "Cookie: a=b; c=d": f"Cookie {HIDDEN}",
    f"to\x1b[0mken\u200b={HEX}": f"token={HIDDEN}",
    "token\nabc": f"token {HIDDEN}",
}


@pytest.mark.parametrize("text", HIDES)
def test_a_secret_is_hidden(text: str) -> None:
    assert masked(text) == HIDES[text]
    assert masked(masked(text)) == masked(text)


@pytest.mark.parametrize(
    "text",
    [
        "The token of this server is unknown to the hub.",
        "The token expired.",
        f"image lab@sha256:{HEX}{HEX}",
        "GPU-11111111-2222-3333-4444-555555555555",
        "/opt/conda/lib/python3.11/site-packages/torch/_inductor/codegen/triton.py",
        "4 x 16 tokens",
        "ana@example.org",
        "    raise ValueError(1)",
    ],
)
def test_what_helps_stays(text: str) -> None:
    assert masked(text) == text


def test_a_secret_is_not_cut_into_something_harmless() -> None:
    text = f"{'x ' * 290}{HEX}"
    assert HEX[:8] not in masked(text, 600)
    long = f"{'y ' * 1020}{HEX}"
    assert HEX[:8] not in masked(long, 5000)


def test_a_long_text_of_nothing_but_space_is_nothing() -> None:
    assert masked(" \r" * 3000) == ""


def test_no_control_or_direction_character_passes() -> None:
    assert plain("a\x00b\x1b[31mc\r\n\u202ed\ud800e\tf\x9b") == "abc  de f"
    text = report(("start", {**DIED, "message": "\x1b]0;title\x07Hi\x08\u2066"}))
    assert [char for char in text if not char.isprintable() and char != "\n"] == []


FORMS = (
    "token {}",
    "TOKEN={}",
    "Authorization: {}",
    "Authorization: Bearer {}",
    '{{"token": "{}"}}',
    "?token={}",
    "secret: {}",
    "Traceback: {}",
)
SECRETS = st.text("0123456789abcdef", min_size=32, max_size=64)
FILL = st.text(max_size=30)


@st.composite
def hostile(draw: Any, secret: str) -> str:
    form = draw(st.sampled_from(FORMS)).format(secret)
    return f"{draw(FILL)} {form} {draw(FILL)}"


@settings(max_examples=examples(150), deadline=None)
@given(st.data(), SECRETS)
def test_no_secret_passes_whatever_field_it_is_in(data: Any, secret: str) -> None:
    def text() -> str:
        return str(data.draw(hostile(secret)))

    story = [
        gpu({**GPU, "name": text(), "driver": text(), "uuid": text()}, why=text(), message=text()),
        check(text(), "fail", sentence=text(), remedy=text(), admin_remedy=text()),
        ("warmup", {"phase": "plan", "device": text(), "message": text(), "device_name": text()}),
        ("warmup", {"phase": "done", "id": text(), "model": text(), "message": text()}),
        ("course", {**DONE, "title": text(), "kept": [text()], "conflicts": {text(): text()}}),
        ("course", {"phase": "reset", "message": text()}),
        check("compile", "fail", facts={"graph_breaks": [text()], "error": text()}),
        (
            "warmup",
            {"phase": "failed", "id": text(), "model": text(), "mode": text(),
             "log": {"reasons": [text()], "lines": [text()], "error": text()}},
        ),
    ]  # fmt: skip
    held = {name: text() for name in ("notebook", "path", "kind", "state")}
    memory = {"at": BEGAN, "sentence": text(), "trouble": text(), "others": [held]}
    died = {**DIED, "message": text(), "remedy": text(), "log_tail": [text(), text()]}
    for one in (story, [*story, ("start", died)]):
        assert secret not in report(*one, memory=memory)
        events = [Event(n, BEGAN, kind, data) for n, (kind, data) in enumerate(one)]
        assert secret not in json.dumps(gather(Started(), events, BEGAN, memory))


# -- anything -------------------------------------------------------------------------------------

ODD = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=40)
    | st.sampled_from(
        ["plan", "done", "failed", "begin", "reset", "gpu", "turn", "lab", "checks", "ok", 0]
    ),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
FIELDS = re.findall(
    r"\w+",
    """
stage phase code level sentence remedy admin_remedy seconds codes gpus uuid name memory_mib targets
id model mode cold_s warm_s from_cache message log_tail place of since expected_at until waited_s
slots slot title course commit files kept conflicts part limit why device log facts reasons lines
error printed graph_breaks at kernels others trouble notebook path kind state idle_s pid gpu_mib
ahead
""",
)
KINDS = st.sampled_from(["start", "queue", "check", "warmup", "course", "sample", "done", "odd"])
DATA = ODD | st.dictionaries(st.sampled_from(FIELDS), ODD, max_size=10)
EVENTS = st.lists(
    st.builds(Event, st.integers(), st.floats() | st.integers(), KINDS | ODD, DATA), max_size=12
)
STARTS = st.builds(
    Started,
    username=st.text(max_size=300),
    servername=st.text(max_size=300),
    image=st.text(max_size=500),
    request=ODD,
    created_at=st.floats(),
    ended_at=st.none() | st.floats(),
    outcome=st.text(max_size=9),
)


@settings(max_examples=examples(300), deadline=None)
@given(STARTS, EVENTS, st.floats(), st.none() | st.dictionaries(st.sampled_from(FIELDS), ODD))
def test_nothing_makes_it_raise_or_steer_a_terminal(
    start: Any, events: Any, now: float, memory: Any
) -> None:
    text = report_of(start, events, now, memory)
    assert len(text.encode()) <= MAX_BYTES
    assert [char for char in text if not char.isprintable() and char != "\n"] == []
    json.dumps(gather(start, events, now, memory), allow_nan=False)


@settings(max_examples=examples(15), deadline=None)
@given(st.text(max_size=3), st.integers(1, 200))
def test_the_longest_journal_stays_within_the_bound(fill: str, rows: int) -> None:
    long = (fill or "ü") * 3000
    held = {"notebook": long, "path": long, "kind": long, "state": long, "pid": 1}
    memory = {**MEMORY, "sentence": long, "trouble": f"t{long}", "others": [held] * rows}
    story = [
        gpu(*[{**GPU, "name": long, "uuid": f"{n}{long}"} for n in range(32)], why=long),
        *[check(f"{n}{long}", "fail", sentence=long, remedy=long) for n in range(rows)],
        *[check(f"ok{n}{long}") for n in range(rows)],
        *[
            ("warmup", {"phase": "failed", "id": f"{n}", "message": long, "log": {"error": long}})
            for n in range(rows)
        ],
        (
            "course",
            {**DONE, "kept": [long] * rows, "conflicts": {str(n): long for n in range(rows)}},
        ),
    ]
    died = ("start", {**DIED, "message": long, "log_tail": [long] * rows})
    assert len(report(*story, UP, start=Started(image=long), memory=memory).encode()) <= MAX_BYTES
    text = report(*story, died, start=Started(image=long), memory=memory)
    assert len(text.encode()) <= MAX_BYTES
    assert text.startswith("Server: ana/(default)\n")
    assert "Error code: container-died" in text
