"""What a start's journal says, as values for a report to the helpdesk.

The journal is folded once; every text in the result is masked and on one line, every number is
within what it can be, every list is bounded. None is unknown. It must not put anything into
sentences (``core.report`` does).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Protocol

from pytorch_spawner.core.journal import Event
from pytorch_spawner.core.masking import masked, plain

STAGES: Final = {
    "gpu": "GPU",
    "home": "home",
    "image": "image",
    "container": "container",
    "lab": "Lab answers",
}
ENDS: Final = ("failed", "stopped", "cancelled")
# In the order in which a helpdesk wants to read them.
LEVELS: Final = ("fail", "warn", "unknown", "running", "ok")
_SENTENCE: Final = 600
_ROWS: Final = 100
_GPUS: Final = 32
_TARGETS: Final = 32
_RESETS: Final = 20
_LOG_LINES: Final = 60
_LOG_LINE: Final = 500
_HOLDERS: Final = 40
_ENTRY_LINES: Final = 20
_COMPILE_LINES: Final = 60
_COMPILE_LINE: Final = 300
_SECONDS: Final = 1e7
# The last second of the year 9999.
_LAST: Final = 253_402_300_799.0

Facts = dict[str, Any]


class Start(Protocol):
    """One start of one server, as the ledger keeps it."""

    @property
    def id(self) -> str:
        """Unique in the ledger."""

    @property
    def username(self) -> str:
        """Whose server it is."""

    @property
    def servername(self) -> str:
        """Name of the server; "" is the default one."""

    @property
    def image(self) -> str:
        """Image reference."""

    @property
    def request(self) -> Mapping[str, Any]:
        """What was asked for, as JSON."""

    @property
    def created_at(self) -> float:
        """Unix time in seconds."""

    @property
    def ended_at(self) -> float | None:
        """Unix time in seconds; None while it lasts."""

    @property
    def outcome(self) -> str:
        """How it ended; "" while it lasts."""


def gather(
    start: Start, events: Iterable[Event], now: float, memory: Mapping[str, Any] | None = None
) -> Facts:
    """Fold a journal.

    Args:
        start: Whose start it is, and what was asked for.
        events: Its journal, in order; hostile. Number 0 of kind "queue" is the present place.
        now: When the report is made, Unix time in seconds.
        memory: What the notebooks were last seen to hold, as the API says it; hostile. None where
            nobody looked lately, or the reader may not know.

    Returns:
        A JSON object. ``gpus``, ``queue``, ``warmup``, ``course`` and ``failure`` are None where
        the journal has no word of them, ``memory`` where there is none of this start.
    """
    facts = _begin(start, now)
    for event in events:
        fold = _FOLDS.get(event.kind) if isinstance(event.kind, str) else None
        data = event.data if isinstance(event.data, Mapping) else {}
        if fold is not None:
            fold(facts, data, number(event.at, 0, _LAST))
    if not facts["end"] and (facts["ended_at"] is not None or facts["outcome"]):
        # A start that the reconcile ended has no last word of the hub in its journal.
        facts["end"] = facts["outcome"] if facts["outcome"] in ENDS else "stopped"
    # Only now: of two thousand events most were replaced by later ones.
    facts["compile_log"] = _compile_log(facts["checks"].get("compile"), facts["warmup"])
    checks = [_check_of(data) for data in facts["checks"].values()]
    facts["checks"] = sorted(checks, key=lambda check: LEVELS.index(check["level"]))
    if facts["warmup"] is not None:
        facts["warmup"] = _warmup_of(facts["warmup"])
    if facts["course"] is not None:
        facts["course"] = _course_of(facts["course"])
    facts["memory"] = None if facts["end"] else _memory_of(memory, facts["began_at"])
    for name in ("last_at", "warmup_coming"):
        del facts[name]
    return facts


def number(value: Any, least: float, most: float) -> float | None:
    """A number within its range; anything else is not known."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if least <= value <= most else None


def _begin(start: Start, now: float) -> Facts:
    request = start.request if isinstance(start.request, Mapping) else {}
    return {
        "v": 1,
        "user": plain(start.username, 255),
        "server": plain(start.servername, 255),
        "start": plain(start.id, 64),
        "image": masked(start.image, 300),
        "asked": {
            "gpus": number(request.get("gpus"), 0, 1000),
            **{name: masked(request.get(name)) for name in ("share", "pool", "course")},
        },
        "made_at": number(now, 0, _LAST),
        "began_at": number(start.created_at, 0, _LAST),
        "ended_at": number(start.ended_at, 0, _LAST),
        "outcome": plain(start.outcome),
        "end": "",
        "is_up": False,
        "failure": None,
        "message": "",
        "stages": [],
        "queue": None,
        "gpus": None,
        "gpu_message": "",
        "why": "",
        "limit": "",
        "until": None,
        "measured": {},
        "planned_checks": 0,
        "checks": {},
        "checks_s": None,
        "warmup": None,
        "course": None,
        "last_at": number(start.created_at, 0, _LAST),
        "warmup_coming": False,
    }


def _fold_start(facts: Facts, data: Mapping[str, Any], at: float | None) -> None:
    stage = plain(data.get("stage"))
    if stage in ENDS:
        _end(facts, stage, data)
        return
    if stage == "ending":
        facts["until"] = number(data.get("until"), 0, _LAST) or facts["until"]
        return
    facts["warmup_coming"] = facts["warmup_coming"] or data.get("warmup") is True
    waited = number(data.get("waited_s"), 0, _SECONDS) if stage == "gpu" else None
    reached = {one["stage"] for one in facts["stages"]}
    if stage == "turn":
        if reached <= {"queue", "gpu"}:  # else it was written late: the start had gone on
            _fold_turn(facts, data, at)
        return
    if stage == "gpu":
        _take_gpus(facts, data)
        if waited is not None and "queue" not in reached:
            facts["stages"].append({"stage": "queue", "label": "queue", "seconds": waited})
    if stage == "image" and data.get("image"):
        facts["image"] = masked(data.get("image"), 300) or facts["image"]
    facts["is_up"] = facts["is_up"] or stage == "lab"
    if stage in STAGES and stage not in reached:
        since = facts["last_at"]
        seconds = None if at is None or since is None else max(0.0, at - since - (waited or 0))
        row = {"stage": stage, "label": STAGES[stage], "seconds": seconds}
        facts["stages"].append(row)
    facts["last_at"] = at


def _fold_turn(facts: Facts, data: Mapping[str, Any], at: float | None) -> None:
    """The wait for other starts, which is no part of what was done before or after it."""
    waited = number(data.get("waited_s"), 0, _SECONDS)
    if number(data.get("ahead"), 0, 0) is None or waited is None:
        return
    row = {"stage": "turn", "label": "waiting for other starts", "seconds": waited}
    facts["stages"].append(row)
    if at is not None and facts["last_at"] is not None:
        facts["last_at"] = min(at, facts["last_at"] + waited)


def _end(facts: Facts, stage: str, data: Mapping[str, Any]) -> None:
    facts["end"] = stage
    facts["message"] = masked(data.get("message"), _SENTENCE)
    if stage != "failed":
        return
    lines = [masked(line, _LOG_LINE) for line in _list(data.get("log_tail"), last=_LOG_LINES)]
    facts["failure"] = {
        "code": masked(data.get("code")),
        "message": facts["message"],
        "remedy": masked(data.get("remedy"), _SENTENCE),
        "log": lines,
    }


def _take_gpus(facts: Facts, data: Mapping[str, Any]) -> None:
    facts["gpu_message"] = masked(data.get("message"), _SENTENCE)
    facts["why"] = masked(data.get("why"), _SENTENCE)
    facts["limit"] = data.get("limit") if data.get("limit") in ("soft", "hard") else ""
    facts["until"] = number(data.get("until"), 0, _LAST)
    facts["gpus"] = [
        {
            "uuid": masked(gpu.get("uuid")),
            "index": number(gpu.get("index"), 0, 1e6),
            "name": masked(gpu.get("name")),
            "memory_mib": number(gpu.get("memory_mib"), 1, 1e8),
            "driver": masked(gpu.get("driver")),
            "pool": masked(gpu.get("pool")),
            "is_simulated": gpu.get("is_simulated") is True,
            "mig_profile": masked(gpu.get("mig_profile")),
            "slots": number(gpu.get("slots"), 2, 1000),
            "slot": number(gpu.get("slot"), 0, 999),
            "slot_memory_mib": number(gpu.get("slot_memory_mib"), 0, 1e8),
        }
        for gpu in _list(data.get("gpus"))[:_GPUS]
        if isinstance(gpu, Mapping)
    ]


def _fold_queue(facts: Facts, data: Mapping[str, Any], at: float | None) -> None:
    since = number(data.get("since"), 0, _LAST)
    if since is None:
        since = facts["queue"]["since"] if facts["queue"] else at
    facts["queue"] = {
        "place": number(data.get("place"), 1, 1e6),
        "of": number(data.get("of"), 1, 1e6),
        "since": since,
        "expected_at": number(data.get("expected_at"), 0, _LAST),
        "reason": masked(data.get("reason"), _SENTENCE),
    }


def _fold_check(facts: Facts, data: Mapping[str, Any], _: float | None) -> None:
    if data.get("phase") == "plan":
        facts["planned_checks"] = len(_list(data.get("codes")))
        return
    code, checks = data.get("code"), facts["checks"]
    if isinstance(code, str) and code and (len(checks) < _ROWS or code in checks):
        checks[code] = data


def _check_of(data: Mapping[str, Any]) -> Facts:
    level = data.get("level")
    known = level if level in ("fail", "warn", "ok") else "unknown"
    return {
        "code": masked(data.get("code")),
        "level": known if data.get("phase") == "done" else "running",
        "sentence": masked(data.get("sentence"), _SENTENCE),
        "remedy": masked(data.get("remedy"), _SENTENCE),
        "admin_remedy": masked(data.get("admin_remedy"), _SENTENCE),
        "seconds": number(data.get("seconds"), 0, _SECONDS),
    }


def _fold_warmup(facts: Facts, data: Mapping[str, Any], _: float | None) -> None:
    warmup = facts["warmup"] = facts["warmup"] or _no_warmup()
    if data.get("phase") != "plan":
        _take_target(warmup["targets"], data, data.get("phase"))
        return
    for name, field in (("device", "device"), ("device_name", "device_name"), ("note", "message")):
        warmup[name] = data.get(field) or warmup[name]
    for target in _list(data.get("targets")):
        if isinstance(target, Mapping):
            _take_target(warmup["targets"], target, "planned")


def _no_warmup() -> Facts:
    return {
        "device": "",
        "device_name": "",
        "note": "",
        "is_over": False,
        "seconds": None,
        "targets": {},
    }


def _take_target(targets: Facts, target: Mapping[str, Any], phase: Any) -> None:
    name = target.get("id")
    if not isinstance(name, str) or not name or (len(targets) >= _TARGETS and name not in targets):
        return
    known = targets.get(name, {})
    kept = {key: target.get(key) or known.get(key) for key in ("model", "mode", "log")}
    phases = ("planned", "running", "done", "failed", "skipped")
    targets[name] = {**target, **kept, "phase": phase if phase in phases else "running"}


def _warmup_of(warmup: Facts) -> Facts:
    return {
        "device": masked(warmup["device"]),
        "device_name": masked(warmup["device_name"]),
        "note": masked(warmup["note"], _SENTENCE),
        "is_over": warmup["is_over"],
        "seconds": warmup["seconds"],
        "targets": [
            {
                "model": masked(target["model"]) or masked(name),
                "mode": masked(target["mode"]),
                "phase": target["phase"],
                "cold_s": number(target.get("cold_s"), 0, _SECONDS),
                "warm_s": number(target.get("warm_s"), 0, _SECONDS),
                "from_cache": target.get("from_cache") is True,
                "message": masked(target.get("message"), _SENTENCE),
            }
            for name, target in warmup["targets"].items()
        ],
    }


def _compile_log(check: Any, warmup: Facts | None) -> list[str]:
    """What was said of what was compiled, the end of it: what failed comes last."""
    entries: list[tuple[bool, list[str]]] = []
    told = check.get("facts") if isinstance(check, Mapping) else None
    if isinstance(told, Mapping):
        why = _list(told.get("reasons")) or _list(told.get("graph_breaks"))
        texts = [*why, told.get("error") or told.get("printed")]
        entries.append((check.get("level") == "fail", _entry("The check", texts)))
    for name, target in (warmup["targets"] if warmup else {}).items():
        log = target["log"]
        if isinstance(log, Mapping):
            texts = [*_list(log.get("reasons")), *_list(log.get("lines")), log.get("error")]
            model, mode = masked(target["model"]) or masked(name), masked(target["mode"])
            title = f"{model} {mode}".rstrip()
            phase = target["phase"]
            entries.append((phase == "failed", _entry(f"{title} ({phase})", texts)))
    entries.sort(key=lambda one: one[0])
    lines = [line for _, said in entries for line in said]
    return [masked(line, _COMPILE_LINE) for line in lines[-_COMPILE_LINES:]]


def _entry(title: str, texts: Iterable[Any]) -> list[str]:
    """A title and the last lines of some texts; nothing where they say nothing."""
    known = [text for text in texts if isinstance(text, str)]
    lines = [line for text in known for line in text.splitlines() if line.strip()]
    return [f"{title}:", *(f"  {line}" for line in lines[-_ENTRY_LINES:])] if lines else []


def _memory_of(said: Mapping[str, Any] | None, began_at: float | None) -> Facts | None:
    at = None if said is None else number(said.get("at"), 0, _LAST)
    if said is None or at is None or at < (began_at or 0):
        return None
    return {
        "at": at,
        "sentence": masked(said.get("sentence"), _SENTENCE),
        "trouble": masked(said.get("trouble"), _SENTENCE),
        "gpus": len(_list(said.get("gpus"))),
        "holders": [
            {
                "notebook": masked(one.get("notebook")),
                "path": masked(one.get("path"), 300),
                "kind": masked(one.get("kind"), 20) or "kernel",
                "state": masked(one.get("state"), 20),
                "idle_s": number(one.get("idle_s"), 0, 1e9),
                "pid": number(one.get("pid"), 1, 1e10),
                "memory_mib": number(one.get("memory_mib"), 0, 1e8),
                "gpu_mib": number(one.get("gpu_mib"), 0, 1e8),
            }
            for one in [*_list(said.get("kernels")), *_list(said.get("others"))][:_HOLDERS]
            if isinstance(one, Mapping)
        ],
    }


def _fold_course(facts: Facts, data: Mapping[str, Any], _: float | None) -> None:
    phase = data.get("phase")
    before = facts["course"] or {"phase": "done", "resets": []}
    name = data.get("title") or before.get("title") or data.get("course")
    if phase in ("begin", "done", "failed"):
        facts["course"] = {**data, "title": name, "resets": before["resets"]}
    elif phase == "reset":
        resets = [*before["resets"], data.get("message") or data.get("path")][-_RESETS:]
        facts["course"] = {**before, "title": name, "resets": resets}


def _course_of(data: Facts) -> Facts:
    conflicts = data.get("conflicts")
    pairs = list(conflicts.items())[:_ROWS] if isinstance(conflicts, Mapping) else []
    commit = plain(data.get("commit"), 40)
    is_commit = len(commit) >= 7 and all(char in "0123456789abcdef" for char in commit)
    return {
        "title": masked(data["title"]),
        "phase": "copying" if data["phase"] == "begin" else data["phase"],
        "commit": commit[:7] if is_commit else "",
        "files": number(data.get("files"), 0, 1e6),
        "seconds": number(data.get("seconds"), 0, _SECONDS),
        "code": masked(data.get("code")),
        "message": masked(data.get("message"), _SENTENCE),
        "remedy": masked(data.get("remedy"), _SENTENCE),
        "admin_remedy": masked(data.get("admin_remedy"), _SENTENCE),
        "kept": [masked(path, _SENTENCE) for path in _list(data.get("kept"))],
        "conflicts": [[masked(path, _SENTENCE), masked(it, _SENTENCE)] for path, it in pairs],
        "resets": [masked(said, _SENTENCE) for said in data["resets"]],
    }


def _fold_sample(facts: Facts, data: Mapping[str, Any], at: float | None) -> None:
    ours = {gpu["uuid"] for gpu in facts["gpus"] or ()}
    for row in _list(data.get("gpus"))[:_GPUS]:
        uuid = row.get("uuid") if isinstance(row, Mapping) else None
        if isinstance(uuid, str) and uuid in ours:
            facts["measured"][uuid] = {
                "at": at,
                "utilisation_pct": number(row.get("utilisation_pct"), 0, 100),
                "memory_used_mib": number(row.get("memory_used_mib"), 0, 1e8),
                "memory_total_mib": number(row.get("memory_total_mib"), 1, 1e8),
                "temperature_c": number(row.get("temperature_c"), -100, 300),
                "power_w": number(row.get("power_w"), 0, 1e5),
            }


def _fold_done(facts: Facts, data: Mapping[str, Any], _: float | None) -> None:
    seconds = number(data.get("seconds"), 0, _SECONDS)
    if data.get("part") == "checks":
        facts["checks_s"] = seconds
    elif data.get("part") == "warmup":
        facts["warmup"] = {**(facts["warmup"] or _no_warmup()), "is_over": True, "seconds": seconds}


def _list(value: Any, last: int = 0) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        return []
    return list(value[-last:] if last else value[:_ROWS])


_FOLDS: Final[Mapping[str, Callable[[Facts, Mapping[str, Any], float | None], None]]] = {
    "start": _fold_start,
    "queue": _fold_queue,
    "check": _fold_check,
    "warmup": _fold_warmup,
    "course": _fold_course,
    "sample": _fold_sample,
    "done": _fold_done,
}
