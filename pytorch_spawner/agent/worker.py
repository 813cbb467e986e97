"""The processes beside the container's command: the agent itself, and those it starts."""

from __future__ import annotations

import http.client
import json
import os
import stat
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Dict, Mapping, Optional

from pytorch_spawner.agent import launch, own_server
from pytorch_spawner.agent.config import Config, parse
from pytorch_spawner.agent.launch import CONFIG_ENV, FIRST_ENV, URL_ENV
from pytorch_spawner.agent.report import PATIENCE_S, Reporter

if TYPE_CHECKING:
    from pytorch_spawner.agent.course_idle import Seen

_LAB_WAIT_S = 15.0
_LAB_POLL_S = 0.2
_LAST_REPORTS_S = 150.0
# For a service that does not answer: the next try is a smaller process's to wait for.
_GPU_PATIENCE_S = 15.0


def main(role: str) -> int:
    """Be what ``role`` names, a key of ``ROLES``; returns the exit status."""
    if role not in ROLES:
        sys.stderr.write(f"pytorch-spawner: there is no worker {role!r}.\n")
        return 2
    ROLES[role]()
    return 0


def _agent() -> None:
    config, trouble = parse(os.environ.get(CONFIG_ENV))
    open_log(config.cache_dir)
    if trouble:
        log(trouble)
    reporter = _reporter(config)
    # Imported after the log is open: what goes wrong here can be read there.
    from pytorch_spawner.agent import session

    watch = session.begin_course(config, reporter.send, log)
    is_warm = session.take_warm_cache(config, reporter.send)
    if os.environ.get(FIRST_ENV):
        launch.wait_for_turn()
    findings = session.run_checks(config, reporter.send, wait_for_turn)
    session.try_course(config, watch, reporter.send)
    if not is_warm:
        session.run_warmup(config, findings, reporter.send)
    reporter.close(_LAST_REPORTS_S)
    seen = None if watch is None else watch.leave()
    is_delivered = reporter.settle(_LAST_REPORTS_S)
    watched = _watch_gpu(config, is_denied=findings.denied, is_delivered=is_delivered)
    _stay(seen, is_gpu_watched=watched)


def _watch_gpu(config: Config, *, is_denied: bool, is_delivered: bool) -> bool:
    """Begin to look whether the host takes the GPU away; returns whether there is one to watch."""
    from pytorch_spawner.agent import device_watch

    if not config.real_gpus or not device_watch.is_there():
        return False
    device_watch.remember(is_denied=is_denied, is_delivered=is_delivered)
    return True


def _stay(seen: Optional[Seen], *, is_gpu_watched: bool) -> None:
    """Become what stays as long as the container does; returns where nothing has to."""
    if seen is not None:
        from pytorch_spawner.agent import course_idle

        course_idle.become_idle(seen)
    elif is_gpu_watched:
        from pytorch_spawner.agent import device_watch

        device_watch.become_idle()


def _gpu_turn() -> None:
    """Say that the GPU was lost, or that it came back; then wait on.

    With a course, who waits for its publications started this, and reads what is remembered.
    """
    from pytorch_spawner.agent import device_watch, session

    config, _ = parse(os.environ.get(CONFIG_ENV))
    is_denied = is_delivered = False
    try:
        reporter = _reporter(config, _GPU_PATIENCE_S)
        found = session.check_driver(config, reporter.send)
        is_denied = bool(found)
        # Where nothing was found out, no page could offer anything: it is tried again.
        is_delivered = reporter.settle(_LAST_REPORTS_S) and found is not None
    except Exception as error:  # noqa: BLE001 (it is looked again, so the watch must go on)
        log(f"the driver could not be checked: {error!r}")
    device_watch.remember(is_denied=is_denied, is_delivered=is_delivered)
    if config.course is None:
        device_watch.become_idle()
    sys.stdout.write(os.environ[device_watch.STATE_ENV])


def _course_turn() -> None:
    """One look at what the course has published; what is remembered comes and goes on pipes."""
    from pytorch_spawner.agent import course_watch
    from pytorch_spawner.agent.course_idle import Seen

    config, _ = parse(os.environ.get(CONFIG_ENV))
    if config.course is None:
        return
    reporter = _reporter(config)
    watch = course_watch.of_this_container(config.course, reporter.send, log)
    watch.seen = Seen.read(sys.stdin.read())
    watch.turn()
    reporter.close(_LAST_REPORTS_S)
    sys.stdout.write(watch.seen.as_text())


def _reporter(config: Config, patience_s: float = PATIENCE_S) -> Reporter:
    token, url = os.environ.get("JUPYTERHUB_API_TOKEN", ""), os.environ.get(URL_ENV, "")
    return Reporter(url, token, config.start, log=log, patience_s=patience_s)


def build() -> int:
    """Be the warmer's container; returns the exit status."""
    from pytorch_spawner.agent import building
    from pytorch_spawner.agent.config import build_job

    text = os.environ.get(CONFIG_ENV)
    job = build_job(text)
    if job is None:
        sys.stderr.write("pytorch-spawner: the configuration holds nothing to build.\n")
        return 2
    # What a target inherits: everything a student's kernel has but the way into the hub.
    kept = dict(os.environ)
    for name in [*os.environ]:
        if "TOKEN" in name:
            del os.environ[name]
    return building.main(parse(text)[0], job, kept)


def _warm_target() -> None:
    from pytorch_spawner.agent import building, child

    job, emit = child.begin()
    building.run_target(job, emit)
    _leave_at_once()


def _cuda() -> None:
    from pytorch_spawner.agent import gpus

    print(json.dumps(gpus.ask_cuda()))


def _torch_checks() -> None:
    from pytorch_spawner.agent import child, torch_checks

    job, emit = child.begin()
    torch_checks.run(job, emit)
    _leave_at_once()


def _peers() -> None:
    from pytorch_spawner.agent import child, peers

    job, emit = child.begin()
    peers.run(job, emit)
    _leave_at_once()


def _warmup() -> None:
    from pytorch_spawner.agent import child, warmup

    job, emit = child.begin()
    warmup.run(job, emit)
    _leave_at_once()


def _leave_at_once() -> None:
    """End this process without the interpreter's own goodbye.

    Inductor's compile workers make an ordinary exit take 6 to 7.5 s on an H100 (os._exit: 0.2 s),
    and the warm-up would begin that much later. Results went out by os.write; nothing is buffered.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


ROLES: Dict[str, Callable[[], None]] = {
    "agent": _agent,
    "course-turn": _course_turn,
    "cuda": _cuda,
    "gpu-turn": _gpu_turn,
    "torch-checks": _torch_checks,
    "peers": _peers,
    "warmup": _warmup,
    "warm-target": _warm_target,
}


def open_log(cache_dir: str) -> Optional[Path]:
    """Send standard output and error to a new file, replacing the last start's.

    Returns:
        The file; ``None`` when no place could be written, and nothing is logged.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_APPEND
    flags |= os.O_NONBLOCK  # a pipe of this name would be waited for
    for folder in (cache_dir, tempfile.gettempdir()):
        path = Path(folder, f"pytorch-spawner-agent-{os.getuid()}.log")
        try:
            fd = os.open(path, flags, 0o600)
        except (OSError, ValueError):
            continue
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            continue
        os.set_blocking(fd, True)
        os.dup2(fd, 1)
        os.dup2(fd, 2)
        os.close(fd)
        return path
    return None


def log(message: str) -> None:
    """Write a line to the agent's log."""
    stamp = time.strftime("%H:%M:%S")
    try:
        print(stamp, message[:500], file=sys.stderr, flush=True)
    except OSError:  # the disk is full
        return


def wait_for_turn() -> None:
    """Wait until costly work delays nobody's JupyterLab: not this server's, nor another one's."""
    from pytorch_spawner.agent import machine

    if wait_for_lab(os.environ):
        machine.wait_for_quiet()


def wait_for_lab(environ: Mapping[str, str], timeout_s: float = _LAB_WAIT_S) -> bool:
    """Wait until the single-user server answers, so that nothing costly delays it.

    Args:
        environ: The container's environment, with JupyterHub's variables.
        timeout_s: Longest wait.

    Returns:
        Whether it answered.
    """
    server = own_server.address(environ)
    give_up_at = time.monotonic() + timeout_s
    while not _answers(server):
        if time.monotonic() + _LAB_POLL_S > give_up_at:
            return False
        time.sleep(_LAB_POLL_S)
    return True


def _answers(server: own_server.Address) -> bool:
    connection = http.client.HTTPConnection(server.host, server.port, timeout=2.0)
    try:
        connection.connect()
        if not server.tls:  # with TLS, listening has to do: the certificate is for another name
            connection.request("GET", f"{server.prefix}api")
            connection.getresponse()
    except (OSError, http.client.HTTPException, ValueError):
        return False
    finally:
        connection.close()
    return True
