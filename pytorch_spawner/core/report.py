"""The report of one start for the helpdesk: plain text, without secrets, of bounded length.

One implementation for the page's "Copy report", the API and the command line. It says what the
journal says, and what somebody saw the notebooks hold; what neither says is "unknown".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, Final

from pytorch_spawner.core.journal import Event
from pytorch_spawner.core.masking import plain
from pytorch_spawner.core.report_facts import Facts, Start, gather
from pytorch_spawner.core.tickets import Place, describe_place

MAX_BYTES: Final = 32 * 1024
# Bytes of each part; with what says that a part was cut they stay below ``MAX_BYTES``.
_HEAD: Final = 6 * 1024
_CHECKS: Final = 8 * 1024
_WARMUP: Final = 3 * 1024
_COMPILED: Final = 3 * 1024
_COURSE: Final = 3 * 1024
# One start has one of both: memory while it runs, a log when it failed.
_MEMORY: Final = 8 * 1024
_LOG: Final = 8 * 1024
_DOING: Final = {
    "gpu": "It chooses a GPU",
    "home": "It prepares the home directory",
    "image": "It fetches the image",
    "container": "It starts the container",
    "lab": "It waits for JupyterLab",
}


def report_of(
    start: Start, events: Iterable[Event], now: float, memory: Mapping[str, Any] | None = None
) -> str:
    """Say what became of a start.

    Args:
        start: The start.
        events: Its journal, in order, hostile; see ``with_place``.
        now: When the report is made, Unix time in seconds.
        memory: What the notebooks were last seen to hold, see ``gather``.

    Returns:
        At most ``MAX_BYTES`` of UTF-8, lines ended by a line feed; no other control characters.
    """
    return say(gather(start, events, now, memory))


def with_place(
    start: Start, events: Sequence[Event], queue: Iterable[Place], now: float
) -> tuple[Event, ...]:
    """The journal with the present place in the queue, which is no entry of it.

    Args:
        start: Whose journal it is.
        events: The journal.
        queue: All who wait.
        now: Unix time in seconds.
    """
    mine = next((one for one in queue if one.ticket.id == start.id and one.place), None)
    return (*events, *([Event(0, now, "queue", describe_place(mine))] if mine else ()))


def say(facts: Facts) -> str:
    """The report in words, of what ``gather`` found."""
    failure = facts["failure"]
    log = failure["log"] if failure else []
    parts = (
        _within(_HEAD, [*_who(facts), "", *_verdict_lines(facts), "", *_gpus(facts), *_way(facts)]),
        _within(_CHECKS, _checks(facts)),
        _within(_WARMUP, _warmup(facts)),
        _last_within(_COMPILED, "The end of the compile log:", facts["compile_log"]),
        _within(_COURSE, _course(facts)),
        _within(_MEMORY, _memory(facts)),
        _last_within(_LOG, "Last lines of the container's log:", log),
    )
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


# -- who and when ---------------------------------------------------------------------------------


def _who(facts: Facts) -> list[str]:
    asked = facts["asked"]
    gpus = "" if asked["gpus"] is None else _plural(asked["gpus"], "GPU")
    said = [
        *(["no GPU"] if asked["share"] == "none" else [gpus, asked["share"]]),
        f"pool {asked['pool']}" if asked["pool"] else "",
        f"course {asked['course']}" if asked["course"] else "",
    ]
    lines = [
        f"Server: {facts['user']}/{facts['server'] or '(default)'}",
        f"Image: {facts['image'] or 'unknown'}",
        f"Asked for: {', '.join(filter(None, said)) or 'unknown'}",
        f"Started: {_moment(facts['began_at'])} (start {facts['start'] or 'unknown'})",
    ]
    if facts["ended_at"] is not None:
        lines.append(f"Ended: {_moment(facts['ended_at'])} ({facts['outcome'] or 'unknown how'})")
    return [*lines, f"Report made: {_moment(facts['made_at'])}"]


def _verdict_lines(facts: Facts) -> list[str]:
    lines = [verdict(facts)]
    if facts["failure"]:
        lines.append(f"Error code: {facts['failure']['code'] or 'unknown'}")
        if facts["failure"]["remedy"]:
            lines.append(f"What to do: {facts['failure']['remedy']}")
    return lines


def verdict(facts: Facts) -> str:
    """How it is with the server, in a sentence or two."""
    if facts["failure"]:
        return facts["failure"]["message"] or "The server did not start; nothing says why."
    if facts["end"]:
        how = "start was cancelled" if facts["end"] == "cancelled" else "server is stopped"
        how = "server did not start; nothing says why" if facts["end"] == "failed" else how
        return " ".join(filter(None, (f"The {how}.", facts["message"])))
    if facts["is_up"]:
        return _verdict_up(facts)
    if facts["queue"] and facts["gpus"] is None:
        return f"The start waits in the queue. {facts['queue']['reason']}".strip()
    done = [one["stage"] for one in facts["stages"] if one["stage"] in _DOING]
    order = list(_DOING)
    following = order[min(len(order) - 1, max(map(order.index, done), default=-1) + 1)]
    return f"The server is starting. {_DOING[following]}."


def _verdict_up(facts: Facts) -> str:
    failed = sum(check["level"] == "fail" for check in facts["checks"])
    noted = sum(check["level"] == "warn" for check in facts["checks"])
    gpus = facts["gpus"]
    if failed:
        return f"The server runs, but {_plural(failed, 'check')} failed."
    if facts["course"] and facts["course"]["phase"] == "failed":
        return "The server runs, but the course's notebooks are not up to date."
    if gpus is None:
        with_what = "; which GPU it has is unknown"
    elif not gpus:
        with_what = " without a GPU"
    elif all(gpu["is_simulated"] for gpu in gpus):
        with_what = f" with {_plural(len(gpus), 'simulated GPU')}"
    else:
        with_what = f" with {_plural(len(gpus), 'GPU')}"
    notes = f", with {_plural(noted, 'note')} from the checks" if noted else ""
    return f"The server runs{with_what}{notes}."


# -- GPUs and the way there -----------------------------------------------------------------------


def _gpus(facts: Facts) -> list[str]:
    if facts["gpus"] is None:
        return ["GPU: unknown; the journal names none"]
    lines = []
    if not facts["gpus"]:
        lines.append(f"GPU: none. {facts['gpu_message']}".rstrip())
    for gpu in facts["gpus"]:
        known = [
            gpu["name"] or "unnamed",
            _gib(gpu["memory_mib"], "memory unknown"),
            _slot(gpu),
            gpu["uuid"] or "UUID unknown",
            f"pool {gpu['pool']}" if gpu["pool"] else "",
            "" if gpu["is_simulated"] else f"driver {gpu['driver'] or 'unknown'}",
            "simulated" if gpu["is_simulated"] else "",
        ]
        index = "" if gpu["index"] is None else f" {gpu['index']:.0f}"
        lines.append(f"GPU{index}: {', '.join(filter(None, known))}")
        if measured := facts["measured"].get(gpu["uuid"]):
            lines.append(f"  {_measured(measured)}")
    if facts["limit"]:
        lines.append(f"Memory limit of the slot: {facts['limit']}")
    if facts["until"] is not None:
        lines.append(f"GPU until: {_moment(facts['until'])}")
    if facts["why"]:
        lines.append(f"Why this GPU: {facts['why']}")
    return lines


def _slot(gpu: Facts) -> str:
    if gpu["mig_profile"]:
        return f"MIG {gpu['mig_profile']}"
    if gpu["slots"] is None:
        return ""
    which = "one" if gpu["slot"] is None else f"slot {gpu['slot'] + 1:.0f}"
    own = "" if gpu["slot_memory_mib"] is None else f" with {_gib(gpu['slot_memory_mib'])}"
    return f"{which} of {gpu['slots']:.0f}{own}"


def _measured(row: Facts) -> str:
    def known(name: str, unit: str) -> str:
        return "unknown" if row[name] is None else f"{row[name]:.0f} {unit}"

    used, total = _gib(row["memory_used_mib"], "unknown"), _gib(row["memory_total_mib"], "unknown")
    return (
        f"measured {_moment(row['at'])}: in use {known('utilisation_pct', '%')}, "
        f"memory {used} of {total}, temperature {known('temperature_c', '°C')}, "
        f"power {known('power_w', 'W')}"
    )


def _way(facts: Facts) -> list[str]:
    stages = [f"{one['label']} {_seconds(one['seconds'])}" for one in facts["stages"]]
    lines = [f"Stages: {', '.join(stages) or 'none reached yet'}"]
    queue = facts["queue"]
    if queue and facts["gpus"] is None and not facts["end"] and not facts["is_up"]:
        place, of = (_whole(queue[name]) for name in ("place", "of"))
        since, made_at = queue["since"], facts["made_at"]
        waits = None if since is None or made_at is None else max(0.0, made_at - since)
        expected = _moment(queue["expected_at"])
        lines.append(
            f"Queue: place {place} of {of}, waiting {_seconds(waits)}, expected {expected}"
        )
    return lines


# -- what was found -------------------------------------------------------------------------------


def _checks(facts: Facts) -> list[str]:
    checks = facts["checks"]
    if not checks:
        planned = facts["planned_checks"]
        return [f"Checks: {f'none of {planned} done' if planned else 'unknown; none reported'}"]
    counts = {level: sum(one["level"] == level for one in checks) for level in _COUNTED}
    said = [text.format(counts[level]) for level, text in _COUNTED.items() if counts[level]]
    missing = facts["planned_checks"] - len(checks)
    said += [f"{missing} not begun"] if missing > 0 else []
    took = "" if facts["checks_s"] is None else f" (in {_seconds(facts['checks_s'])})"
    lines = [f"Checks: {', '.join(said)}{took}"]
    for check in checks:
        if check["level"] == "ok":
            continue
        took = "" if check["seconds"] is None else f" ({_seconds(check['seconds'])})"
        sentence = f": {check['sentence']}" if check["sentence"] else ""
        lines.append(f"  {check['level']:<7}  {check['code']}{sentence}{took}")
        if check["level"] in ("fail", "warn"):
            lines += [f"           {name}: {it}" for name, it in _advice(check) if it]
    if fine := [one["code"] for one in checks if one["level"] == "ok"]:
        lines.append(f"  ok       {plain(', '.join(fine), 1500)}")
    return lines


_COUNTED: Final = {
    "fail": "{} failed",
    "warn": "{} with a note",
    "unknown": "{} unknown",
    "running": "{} running",
    "ok": "{} fine",
}


def _advice(facts: Facts) -> tuple[tuple[str, str], ...]:
    return (("what to do", facts["remedy"]), ("for the admin", facts["admin_remedy"]))


def _warmup(facts: Facts) -> list[str]:
    warmup = facts["warmup"]
    if warmup is None:
        return ["Warm-up: unknown; none reported"] if facts["is_up"] and not facts["end"] else []
    targets = warmup["targets"]
    device = ", ".join(filter(None, (warmup["device"], warmup["device_name"])))
    took = "" if warmup["seconds"] is None else f" in {_seconds(warmup['seconds'])}"
    how = f"done{took}" if warmup["is_over"] else "under way"
    lines = [f"Warm-up: {how}, on {device or 'an unknown device'}"]
    cached = sum(target["from_cache"] for target in targets)
    if targets:
        lines.append(f"  from the lab's warm cache: {cached} of {len(targets)}")
    if warmup["note"]:
        lines.append(f"  {warmup['note']}")
    for target in targets:
        times = ""
        if target["phase"] == "done":
            times = f"cold {_seconds(target['cold_s'])}, warm {_seconds(target['warm_s'])}"
            times += ", from the cache" if target["from_cache"] else ""
        name = " ".join(filter(None, (target["model"], target["mode"])))
        said = (target["phase"], times, target["message"])
        lines.append(f"  {name}: {', '.join(filter(None, said))}")
    return lines


def _course(facts: Facts) -> list[str]:
    course = facts["course"]
    if course is None:
        return []
    if course["phase"] == "copying":
        over = "still being copied when the server ended"
        said = over if facts["end"] else "still being copied"
    elif course["phase"] == "failed":
        code = f" (code {course['code']})" if course["code"] else ""
        said = f"{course['message'] or 'the notebooks could not be copied'}{code}"
    else:
        commit = f"commit {course['commit'] or 'unknown'}"
        files = "files unknown" if course["files"] is None else _plural(course["files"], "file")
        said = f"up to date, {commit}, {files}, in {_seconds(course['seconds'])}"
    lines = [f"Course: {course['title'] or 'unnamed'}: {said}"]
    if course["phase"] == "failed":
        lines += [f"  {name}: {it}" for name, it in _advice(course) if it]
    lines += [f"  reset     {said}" for said in course["resets"]]
    lines += [f"  conflict  {path} (the course's: {it})" for path, it in course["conflicts"]]
    return [*lines, *(f"  kept      {path}" for path in course["kept"])]


def _memory(facts: Facts) -> list[str]:
    memory = facts["memory"]
    if memory is None:
        return []
    lines = [f"Memory, looked at {_moment(memory['at'])}: {memory['sentence']}".rstrip()]
    if memory["trouble"] and memory["trouble"] not in memory["sentence"]:
        lines.append(f"  {memory['trouble']}")
    for one in memory["holders"]:
        gpu = f"GPU {_gib(one['gpu_mib'], 'unknown')}" if memory["gpus"] else ""
        idle = "" if one["idle_s"] is None else f" for {_seconds(one['idle_s'])}"
        state = f"{one['state'] or 'state unknown'}{idle}"
        pid = "" if one["pid"] is None else f"process {one['pid']:.0f}"
        does = state if one["kind"] == "kernel" else ", ".join(filter(None, (one["kind"], pid)))
        said = (gpu, f"memory {_gib(one['memory_mib'], 'unknown')}", does)
        lines.append(f"  {one['path'] or one['notebook']}: {', '.join(filter(None, said))}")
    return lines


# -- words and bounds -----------------------------------------------------------------------------


def _moment(at: float | None) -> str:
    if at is None:
        return "unknown"
    return f"{datetime.fromtimestamp(at, timezone.utc):%Y-%m-%d %H:%M:%S} UTC"


def _seconds(value: float | None) -> str:
    if value is None:
        return "unknown"
    if value < 10:
        return f"{value:.1f} s"
    if value < 120:
        return f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"


def _gib(mib: float | None, unknown: str = "") -> str:
    return unknown if mib is None else f"{mib / 1024:.1f} GiB"


def _whole(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.0f}"


def _plural(count: Any, noun: str) -> str:
    return f"{count:.0f} {noun}{'' if count == 1 else 's'}"


def _within(limit: int, lines: Sequence[str]) -> list[str]:
    """The first lines that fit into so many bytes, and how many did not."""
    kept: list[str] = []
    left = limit
    for line in lines:
        left -= len(line.encode()) + 1
        if left < 0:
            return [*kept, f"  ({len(lines) - len(kept)} more lines left out)"]
        kept.append(line)
    return kept


def _last_within(limit: int, title: str, lines: Sequence[str]) -> list[str]:
    """The last lines that fit, below a title: why something ended stands at the end."""
    if not lines:
        return []
    shown = [f"  {line}" for line in lines]
    return [title, *_within(limit, shown[::-1])[::-1]]
