"""One container start: the checks in order, then the warm-up; ``send`` takes what they find."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Collection, Dict, List, Mapping, Optional, Tuple

from pytorch_spawner.agent import (
    child,
    course_watch,
    diagnose,
    gpus,
    health,
    limits,
    seed,
    smoke,
    storage,
)
from pytorch_spawner.agent.codes import CODES, TORCH_CODES, Outcome, done, outcome, worst
from pytorch_spawner.agent.config import Config, as_job
from pytorch_spawner.agent.course_watch import Watch
from pytorch_spawner.agent.report import Send
from pytorch_spawner.agent.warmup import SAMPLE_S

# A C++ compiler at low priority takes a minute on a machine where a whole class starts at once.
_COMPILE_PATIENCE = 3
# The driver's probe asks up to three programs, each with its own deadline.
_DRIVER_S = 40.0
# The checks begin at the latest so long after the course's notebooks did.
_COURSE_WAIT_S = 3.0


@dataclass
class Findings:
    """What the checks found so far.

    Attributes:
        levels: Level by code, of the checks that are done.
        device: Where PyTorch computes: "cuda:0" or "cpu".
        device_name: For people.
        denied: The host did not let this container use its GPU any more.
    """

    levels: Dict[str, str] = field(default_factory=dict)
    device: str = "cpu"
    device_name: str = ""
    denied: bool = False

    def note(self, data: Mapping[str, Any]) -> None:
        """Take in the data of a check's event."""
        if data.get("phase") != "done" or data.get("code") not in CODES:
            return
        level, facts = data.get("level"), data.get("facts")
        self.levels[data["code"]] = level if level in ("ok", "warn", "fail") else "unknown"
        if data["code"] == "torch" and isinstance(facts, dict):
            self.device = str(facts.get("device", "cpu"))
            self.device_name = str(facts.get("device_name", ""))
        if data["code"] == "driver" and isinstance(facts, dict):
            self.denied = bool(facts.get("denied"))

    @property
    def why_no_warmup(self) -> str:
        """Why warming up makes no sense; "" when it does."""
        if self.levels.get("torch") != "ok":
            return "There is no PyTorch that could be warmed up; see the checks."
        if self.levels.get("compile") not in ("ok", "warn"):
            return "torch.compile does not work here; see the checks."
        return ""


def begin_course(config: Config, send: Send, log: Callable[[str], None]) -> Optional[Watch]:
    """Bring the course's notebooks, before all else; a large course goes on beside the checks.

    Returns:
        What keeps them up to date from now on; ``None`` without a course.
    """
    if config.course is None:
        return None
    watch = course_watch.start(config.course, send, log)
    watch.first.wait(_COURSE_WAIT_S)
    return watch


def try_course(config: Config, watch: Optional[Watch], send: Send) -> None:
    """Run the course's smoke test, in a server that is there for nothing else."""
    if config.course is None or config.course.smoke is None or watch is None:
        return
    watch.first.wait()
    home = os.environ.get("HOME")
    smoke.after_sync(config.course, home, lambda: watch.synced is not None, send)


def take_warm_cache(config: Config, send: Send) -> bool:
    """Copy what the lab compiled beforehand; before the checks, for a student may be quick.

    Returns:
        Whether it is there, so that nothing needs to be warmed up here.
    """
    cache = config.warm_cache
    if cache is None:
        _clear(config, config.offered_caches)
        return False
    began, offered = time.monotonic(), config.offered_caches
    rows = [
        ({"id": f"warm-cache/{name}", "model": name, "mode": "default"}, cold_s, warm_s)
        for name, cold_s, warm_s in cache.targets or ((cache.name, None, None),)
    ]
    told = [target for target, _, _ in rows]
    send("warmup", {"phase": "plan", "targets": told, "device": "", "device_name": ""})
    try:
        done = seed.seed(Path(cache.path), Path(config.cache_dir), cache.id, cache.digest, offered)
    except (seed.SeedRefused, OSError, ValueError, KeyError, RuntimeError) as error:
        _clear(config, None if offered is None else [one for one in offered if one != cache.id])
        why = str(error) if isinstance(error, seed.SeedRefused) else "The warm cache is damaged"
        # Replaced by the plain warm-up, which begins when the checks are done.
        for target in told:
            send("warmup", {"phase": "skipped", **target, "message": f"{why}."})
        return False
    how = f"{done.files} files copied in {done.seconds:.2f} s" if done.files else "there already"
    for target, cold_s, warm_s in rows:
        send(
            "warmup",
            {
                "phase": "done",
                **target,
                "cold_s": cold_s,
                "warm_s": warm_s,
                "from_cache": True,
                "message": f"Compiled by the lab beforehand; {how}.",
            },
        )
    seconds = round(time.monotonic() - began, 3)
    send("done", {"part": "warmup", "seconds": seconds, "level": "ok"})
    return True


def _clear(config: Config, offered: Optional[Collection[str]]) -> None:
    # Another server of this person may be copying, the place be full, or what is there be no cache.
    with contextlib.suppress(seed.SeedRefused, OSError, ValueError, RuntimeError):
        seed.clear(Path(config.cache_dir), offered)


def run_checks(config: Config, send: Send, before_torch: Callable[[], object]) -> Findings:
    """Run all checks.

    Args:
        config: What the agent was told.
        send: Takes the events.
        before_torch: Called between the cheap checks and the costly ones; may wait.
    """
    began = time.monotonic()
    findings = Findings()

    def tell(kind: str, data: Mapping[str, Any]) -> None:
        if kind == "check":
            findings.note(data)
        send(kind, data)

    send("check", {"code": "", "phase": "plan", "codes": list(CODES)})
    driver = _cheap_checks(config, tell)
    before_torch()
    _torch_checks(config, driver, findings, tell)
    level = worst(list(findings.levels.values()))
    seconds = round(time.monotonic() - began, 3)
    send("done", {"part": "checks", "seconds": seconds, "level": level})
    return findings


def _cheap_checks(config: Config, tell: Send) -> gpus.Driver:
    home, environ = os.environ.get("HOME"), os.environ
    found: List[gpus.Driver] = []

    def driver() -> Outcome:
        found.append(gpus.probe())
        return gpus.driver(config, found[0])

    def visible() -> Outcome:
        return gpus.gpu_visible(config, found[0] if found else gpus.Driver())

    readings: List[Optional[Tuple[health.Reading, ...]]] = []

    def well() -> Outcome:
        # A driver that refused to list any GPU would take its time to refuse again.
        may_answer = found and (found[0].uuids or not found[0].refusal) and config.may_use_gpu
        readings.append(health.look(config) if may_answer else ())
        buses = [row.bus for row in readings[0] or ()]
        return health.gpu_health(config, readings[0], health.xids(buses))

    def link() -> Outcome:
        return health.gpu_link(config, readings[0] if readings else ())

    checks: Dict[str, Callable[[], Outcome]] = {
        "home-writable": lambda: diagnose.home_writable(home, os.getuid()),
        "home-space": lambda: storage.home_space(home),
        "shm": lambda: diagnose.shared_memory(config.shm_expected_mib),
        "hub-reachable": lambda: diagnose.hub_reachable(environ.get("JUPYTERHUB_API_URL")),
        "driver": driver,
        "gpu-visible": visible,
        "gpu-health": well,
        "gpu-link": link,
        "gpu-limit": lambda: limits.gpu_limit(config, environ),
        # Last: they run the student's profile and Python, which may take their time.
        "kernel-python": lambda: diagnose.kernel_python(environ, sys.prefix, sys.executable),
        "pip-user": lambda: storage.pip_user(
            diagnose.notebooks_python(environ, sys.prefix, sys.executable), home, environ
        ),
    }
    for code, check in checks.items():
        deadline_s = _DRIVER_S if code == "driver" else diagnose.CHEAP_DEADLINE_S
        diagnose.run_check(code, check, tell, deadline_s)
    return found[0] if found else gpus.Driver()


def check_driver(config: Config, send: Send) -> Optional[bool]:
    """Run the check of the driver alone.

    Returns:
        Whether the host has taken the GPU away; ``None`` where the driver could not be asked.
    """
    found: List[gpus.Driver] = []

    def driver() -> Outcome:
        found.append(gpus.probe())
        return gpus.driver(config, found[0])

    diagnose.run_check("driver", driver, send, _DRIVER_S)
    return bool(found[0].denied) if found else None


def _torch_checks(config: Config, driver: gpus.Driver, findings: Findings, tell: Send) -> None:
    began = time.monotonic()
    patience_s = config.check_deadline_s

    def receive(kind: str, data: Dict[str, Any]) -> None:
        nonlocal began, patience_s
        began = time.monotonic()
        if kind == "check" and data.get("code") in TORCH_CODES:
            patient = data["code"] == "compile"
            patience_s = config.check_deadline_s * (_COMPILE_PATIENCE if patient else 1)
            tell(kind, data)

    ended = child.run(
        "torch-checks",
        {"config": as_job(config), "cuda": driver.cuda},
        receive,
        idle_s=lambda: patience_s,
    )
    left = [code for code in TORCH_CODES if code not in findings.levels]
    for index, code in enumerate(left):
        if index:
            why = outcome("unknown", "Not checked, because the check before it did not end.")
        elif ended.late:
            why = diagnose.no_answer(patience_s)
        elif ended.trouble:
            why = diagnose.no_room(ended.trouble)
        else:
            why = _died(ended)
        tell("check", done(code, why, 0.0 if index else time.monotonic() - began))


def _died(ended: child.Ended) -> Outcome:
    status = ended.status or 0
    how = f"signal {-status}" if status < 0 else f"exit status {status}"
    memory = " Signal 9 often means that memory ran out." if status == -9 else ""
    return outcome(
        "fail", f"PyTorch ended this check unexpectedly, with {how}.",
        "Stop and start your server; if it happens again, choose another image.",
        f"See the last lines it printed, in the facts.{memory}", printed=ended.tail[-500:],
    )  # fmt: skip


def run_warmup(config: Config, findings: Findings, send: Send) -> None:
    """Run the warm-up, if it is wanted and makes sense; ends with its "done" in any case."""
    began = time.monotonic()
    targets = [
        {"id": f"{model}/{mode}", "model": model, "mode": mode}
        for mode in config.warmup_modes
        for model in config.warmup_models
        if config.warmup_enabled
    ]
    device, name = findings.device, findings.device_name
    plan = {"phase": "plan", "targets": targets, "device": device, "device_name": name}
    send("warmup", {**plan, "message": config.why_no_cache})
    ends: Dict[str, str] = {}

    def receive(kind: str, data: Dict[str, Any]) -> None:
        if kind == "warmup" and data.get("phase") in ("done", "failed"):
            ends[str(data.get("id"))] = data["phase"]
        if kind in ("warmup", "sample"):
            send(kind, data)

    why, log = findings.why_no_warmup, {}
    if targets and not why:
        why, printed = _warm(config, targets, device, receive)
        # Of the first that has no end, which was under way.
        log = {"log": {"error": printed}} if printed else {}
    for target in targets:
        if target["id"] not in ends:
            ends[target["id"]] = "skipped"
            send("warmup", {"phase": "skipped", **target, "message": why, **log})
            log = {}
    levels = {"done": "ok", "skipped": "unknown", "failed": "warn"}
    level = worst([levels[end] for end in ends.values()])
    seconds = round(time.monotonic() - began, 3)
    send("done", {"part": "warmup", "seconds": seconds, "level": level})


def _warm(
    config: Config,
    targets: List[Dict[str, str]],
    device: str,
    receive: Callable[[str, Dict[str, Any]], None],
) -> Tuple[str, str]:
    """Run the process that warms up.

    Returns:
        Why some targets may have no end, and the last that was printed.
    """
    uuids = [gpu.uuid for gpu in config.real_gpus] if device != "cpu" else []
    stop = threading.Event()
    in_child = list(uuids)
    if gpus.sample(uuids):
        in_child = []
        threading.Thread(target=_sample, args=(uuids, stop, receive), daemon=True).start()
    ended = child.run(
        "warmup",
        {"targets": targets, "device": device, "sample": in_child},
        receive,
        total_s=config.warmup_deadline_s,
    )
    stop.set()
    if ended.late:
        why = f"The warm-up was stopped after {config.warmup_deadline_s:g} s."
    elif ended.trouble:
        why = f"{ended.trouble}."
    else:
        why = f"The warm-up ended unexpectedly, with status {ended.status}."
    return why, ended.tail


def _sample(
    uuids: List[str], stop: threading.Event, receive: Callable[[str, Dict[str, Any]], None]
) -> None:
    while not stop.is_set():
        rows = gpus.sample(uuids)
        if rows and not stop.is_set():
            receive("sample", {"gpus": rows})
        stop.wait(SAMPLE_S)
