"""The warmer's container: run a suite's targets, say what they took, answer the hub meanwhile.

The suite is an instructor's code: trusted to run where that course's students run it, and with
nothing else: no student's files, no token, no network. Each target runs in fresh processes, ended
at a deadline, when it fills the disk, and with everything that it forked.
"""

from __future__ import annotations

import errno
import http.server
import json
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

from pytorch_spawner.agent import build_disk, child, evidence, own_server, seed
from pytorch_spawner.agent.build_runs import PROFILE, Learnt, folder_of, plan
from pytorch_spawner.agent.config import Config
from pytorch_spawner.agent.report import Send

PREFIX = "@warm-up "
SUITE_DIR = "/opt/pytorch-spawner/suite"
# What one target may leave on the disk: far more than any cache (tens of MB), far less than a disk.
MAX_DISK_BYTES = 4 * 1024**3
_FULL = f"It wrote more than {MAX_DISK_BYTES // 1024**3} GiB to the disk."
_LOOK_S = 1.0
# The service reads the last line and stops the server; without a service the container ends alone.
_LINGER_S = 120.0
_TAIL = 2000
_MAX_LINE = 8000
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def main(config: Config, job: Mapping[str, Any], environ: Mapping[str, str]) -> int:
    """Build or check, as the configuration says; prints lines after ``PREFIX``.

    Args:
        config: The agent's; its warm cache is seeded first, like a student's.
        job: ``{"suite": {...}, "check": bool, "folder": str}``, the course's in a student's home.
        environ: Of the container, with JupyterHub's address of this server.
    """
    # The first process of a container is ended by no signal that it does not ask for.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    answer_the_hub(environ)
    is_fine = _prepare(config) and _run_all(config, job)
    tell("done", {"ok": is_fine})
    time.sleep(_LINGER_S)
    return 0


def _prepare(config: Config) -> bool:
    if config.warm_cache is None:
        return True
    try:
        cache = config.warm_cache
        seed.seed(Path(cache.path), Path(config.cache_dir), cache.id, cache.digest)
    except seed.SeedRefused as error:
        tell("failed", {"name": "", "size": None, "message": f"{error}.", "tail": ""})
        return False
    return True


def _run_all(config: Config, wanted: Mapping[str, Any]) -> bool:
    suite = wanted["suite"]
    ends_at = time.monotonic() + float(suite["deadline_s"])
    disk = _Disk((config.cache_dir, os.environ.get("HOME", "/tmp"), "/tmp", "/var/tmp"))  # noqa: S108
    name = ""
    try:
        learnt = Learnt(Path(config.cache_dir, *PROFILE))
        for run in plan(list(suite["targets"]), is_check=bool(wanted["check"])):
            name = str(run.target["name"])
            if not (run.is_first or run.is_later):
                learnt.put_back()
            job = {
                "target": dict(run.target),
                "sizes": list(run.sizes),
                "gpu": config.may_use_gpu,
                "folder": folder_of(str(wanted.get("folder", "")), run.target),
            }
            why, tail = _run(job, ends_at - time.monotonic(), disk)
            if why:
                tell("failed", {"name": name, "size": run.sizes[0], "message": why, "tail": tail})
                return False
            if run.is_first:
                learnt.keep()
        learnt.put_back()
    except OSError as error:
        why = f"PyTorch's profile cannot be kept: {error.strerror or type(error).__name__}."
        tell("failed", {"name": name, "size": None, "message": why, "tail": ""})
        return False
    return True


def _run(job: Mapping[str, Any], left_s: float, disk: _Disk) -> Tuple[str, str]:
    """Run one process.

    Args:
        job: Of ``run_target``.
        left_s: Until the suite's deadline.
        disk: Looks at what it writes.

    Returns:
        Why it failed as a sentence ("" when it did not), and the last lines it printed.
    """
    if left_s <= 0:
        return "The suite did not end before its deadline.", ""
    errors: List[str] = []
    told = 0

    def receive(kind: str, data: Dict[str, Any]) -> None:
        nonlocal told
        if kind == "target":
            told += 1
            tell("target", data)
        elif kind == "failed":
            errors.append(str(data.get("message", ""))[:300])
        elif kind == "versions":
            tell("versions", data)

    ended = child.run(
        "warm-target",
        job,
        receive,
        idle_s=disk.patience_s,
        total_s=left_s,
    )
    tail = _ANSI.sub("", ended.tail)[-_TAIL:]
    if disk.is_full:
        return _FULL, tail
    if ended.late:
        return "The suite did not end before its deadline.", tail
    if errors:
        return errors[0], tail
    if ended.status != 0 or told != len(job["sizes"]):
        why = ended.trouble or f"It ended unexpectedly, with {_how(ended.status or 0)}"
        return f"{why}.", tail
    return "", ""


def _how(status: int) -> str:
    if status < 0:
        memory = " (often: memory ran out)" if status == -9 else ""
        return f"signal {-status}{memory}"
    return f"exit status {status}"


class _Disk:
    """Looks now and then at how much a target wrote; beyond the limit nothing is waited for."""

    def __init__(self, places: Tuple[str, ...]) -> None:
        self._places = places
        self._began = self._used()
        self._looked_at = time.monotonic()
        self.is_full = False

    def patience_s(self) -> float:
        """For ``child.run``: how long a silence is fine now."""
        if time.monotonic() - self._looked_at > _LOOK_S:
            self.is_full = self._used() - self._began > MAX_DISK_BYTES
            self._looked_at = time.monotonic()
        return 0.0 if self.is_full else float("inf")

    def _used(self) -> int:
        return sum(map(_size, self._places)) + build_disk.nameless_size()


def _size(place: str) -> int:
    total = 0
    for folder, _, names in os.walk(place):
        for name in names:
            try:
                total += Path(folder, name).lstat().st_blocks * 512
            except OSError:
                continue
    return total


def tell(kind: str, data: Mapping[str, Any]) -> None:
    """Say a line to the service, which reads the container's log."""
    said = {"kind": kind, **data}
    line = json.dumps(said)
    if len(line) > _MAX_LINE and "tail" in said:  # what is beyond ASCII takes six characters each
        said["tail"] = str(said["tail"])[-_TAIL // 8 :]
        line = json.dumps(said)
    sys.stdout.write(f"{PREFIX}{line}\n")
    sys.stdout.flush()


def answer_the_hub(environ: Mapping[str, str]) -> None:
    """Answer every request on the server's port with {}: to the hub the server is ready."""
    port = own_server.address(environ).port
    server = http.server.ThreadingHTTPServer(("", port), _Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()


class _Answer(http.server.BaseHTTPRequestHandler):
    timeout = 5.0

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base class's name)
        """Nothing: the log is for the service."""


# -- in the target's process ------------------------------------------------------------------


def run_target(job: Mapping[str, Any], emit: Send) -> None:
    """Call one target with each size, reporting seconds and counters.

    Args:
        job: ``{"target": {"name", "kind", "what", "tag", "vary"}, "sizes": [...], "gpu": bool,
            "folder": str}``, the folder below the home.
        emit: Takes "target" for each size, "versions" once, and "failed" instead of the rest.
    """
    build_disk.bound_files(MAX_DISK_BYTES)
    sys.path.insert(0, SUITE_DIR)
    place = Path(os.environ.get("HOME", "/"), str(job["folder"]))
    place.mkdir(parents=True, exist_ok=True)
    os.chdir(place)
    import torch
    import torch._dynamo.utils as dynamo

    target = job["target"]
    try:
        emit("versions", _versions(torch))
        call = _callable_of(target)
        for number, size in enumerate(job["sizes"]):
            dynamo.counters.clear()
            began = time.monotonic()
            call(size)
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            seconds = time.monotonic() - began
            found = evidence.read()
            emit(
                "target",
                {
                    "name": target["name"],
                    "size": size,
                    "seconds": round(seconds, 3),
                    "hits": found.fx_hit,
                    "misses": found.fx_miss + found.fx_bypass,
                    "graphs": found.graphs,
                    "graph_breaks": len(found.graph_breaks),
                },
            )
            if found.fx_bypass:
                emit("failed", {"message": _uncached(found.fx_bypass)})
                return
            # A later size may be served by what an earlier one compiled.
            if not found.graphs and not number:
                emit("failed", {"message": "It ran, but torch.compile compiled nothing."})
                return
    except BaseException as error:  # noqa: BLE001  (whatever the suite raises is the finding)
        if isinstance(error, SystemExit) and not error.code:
            emit("failed", {"message": "It ended itself before it was done."})
            return
        is_full = isinstance(error, OSError) and error.errno == errno.EFBIG
        emit("failed", {"message": _FULL if is_full else f"{evidence.cause(error)[0]}."})
        import traceback

        traceback.print_exc()


def _uncached(graphs: int) -> str:
    some = "1 graph" if graphs == 1 else f"{graphs} graphs"
    return f"PyTorch cannot keep {some} in its cache, so every server would compile anew."


def _versions(torch: Any) -> Dict[str, Any]:
    try:
        import triton

        triton_version = str(triton.__version__)
    except Exception:  # noqa: BLE001  (absent or broken: the versions say so)
        triton_version = ""
    return {"torch": str(torch.__version__), "triton": triton_version}


def _callable_of(target: Mapping[str, Any]) -> Callable[[Optional[int]], None]:
    """What to call with each size."""
    name = target["vary"][0] if target.get("vary") else ""
    what = str(target["what"])
    if target["kind"] == "function":
        module, _, function = what.partition(":")
        __import__(module)
        called = getattr(sys.modules[module], function)
        return lambda size: called(**({name: size} if name else {}))
    if target["kind"] == "script":
        _look_beside(what)
        return lambda size: _run_script(what, [f"--{name}", str(size)] if name else [])
    cells = _tagged_cells(Path(SUITE_DIR, what), str(target.get("tag") or "warm-up"))
    shell = _shell()
    _look_beside(what)
    return lambda size: _run_cells(shell, [f"{name} = {size}"] if name else [], cells)


def _look_beside(what: str) -> None:
    """Find the modules beside a notebook or script first, as where students run it.

    After torch and IPython are imported: as in a kernel, a ``code.py`` there is not taken for
    Python's own.
    """
    sys.path.insert(0, str(Path(SUITE_DIR, what).parent))


def _run_script(what: str, arguments: List[str]) -> None:
    import runpy

    kept = sys.argv
    sys.argv = [what, *arguments]
    try:
        runpy.run_path(str(Path(SUITE_DIR, what)), run_name="__main__")
    except SystemExit as error:
        if error.code:
            raise
    finally:
        sys.argv = kept


def _tagged_cells(notebook: Path, tag: str) -> List[str]:
    said = json.loads(notebook.read_text(encoding="utf-8"))
    cells = [
        "".join(cell.get("source", ()))
        for cell in said.get("cells", ())
        if cell.get("cell_type") == "code" and tag in cell.get("metadata", {}).get("tags", ())
    ]
    if not cells:
        raise ValueError(f"no code cell of {notebook.name} has the tag {tag}")
    return cells


def _shell() -> Any:
    """IPython as a kernel uses it: cells have the file names that a kernel gives them.

    PyTorch recognises code by the content of its file, so a cell's file has to be there, as the
    lab's images write it for each cell of a kernel too.
    """
    from ipykernel.compiler import XCachingCompiler, get_file_name
    from IPython.core.interactiveshell import InteractiveShell

    class Shell(InteractiveShell):  # type: ignore[misc]
        compiler_class = XCachingCompiler

    shell = Shell.instance()

    def write(info: Any) -> None:
        path = Path(get_file_name(info.raw_cell))
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.write_text(info.raw_cell, encoding="utf-8")

    shell.events.register("pre_run_cell", write)
    return shell


def _run_cells(shell: Any, first: List[str], cells: List[str]) -> None:
    for source in [*first, *cells]:
        shell.run_cell(source, store_history=False).raise_error()
