"""What the notebooks of this server hold, and the end of one: for whoever looks at the page.

Started in the container for one answer (``docker exec``) and gone again, so a server that nobody
looks at pays nothing. The single-user server is asked with this server's own token: it knows which
notebook a kernel belongs to, /proc knows what the kernel's processes hold. It prints one JSON
object; whoever reads that takes it as hostile.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import sys
from datetime import datetime, timezone
from typing import Any, Dict, List, Mapping, Optional, Tuple
from urllib.parse import quote

from pytorch_spawner.agent import kernel_processes as processes
from pytorch_spawner.agent import own_server
from pytorch_spawner.agent.kernel_processes import Process

# The whole answer; the alarm ends this process, whatever it hangs in.
LIST_S = 10
STOP_S = 25
_ASK_S = 4.0
_MOST_BYTES = 2**20
_MOST_KERNELS = 100
_MOST_OTHERS = 20
_MOST_PIDS = 200
# What runs beside notebooks and holds less is not worth a line.
_WORTH_MIB = 50


def main(arguments: List[str], environ: Optional[Mapping[str, str]] = None) -> int:
    """Print what there is, or end one kernel.

    Args:
        arguments: ``[]``, ``["--gpu"]`` to ask the driver in here as well, or ``["--stop", id]``.
        environ: The container's; ``None`` for this process's own.

    Returns:
        The exit status: 0 whenever an answer was printed.
    """
    environ = os.environ if environ is None else environ
    if arguments[:1] == ["--stop"] and len(arguments) == 2:
        signal.alarm(STOP_S)
        said = stop(arguments[1], environ)
    else:
        signal.alarm(LIST_S)
        said = look(environ, with_gpu="--gpu" in arguments)
    sys.stdout.write(json.dumps(said) + "\n")
    sys.stdout.flush()
    return 0


def look(
    environ: Mapping[str, str], *, with_gpu: bool = False, proc: str = processes.PROC
) -> Dict[str, Any]:
    """Kernels and what else runs here.

    Returns:
        ``{"v": 1, "kernels": [...], "others": [...], "gpu": {pid: MiB} or None, "trouble": str}``.
        A kernel is ``{"id", "path", "name", "state", "idle_s", "pids", "memory_mib",
        "uses_gpu"}``; another is ``{"pid", "name", "kind", "path", "pids", "memory_mib",
        "uses_gpu"}`` with kind "terminal", "leftover" (of a notebook's kernel that is gone), "lab"
        (the lab's own) or "other". What is not known is ``None``. The server's own children that
        are kernels and yet in no row are left out: nobody knows of which notebook they are.
    """
    status, sessions = ask("GET", "api/sessions", environ)
    more, listed = ask("GET", "api/kernels", environ) if status == 200 else (status, None)
    trouble = "" if status == more == 200 else _trouble(status if status != 200 else more)
    rows = _kernels(sessions, listed)
    there = processes.read_all(proc)
    port = own_server.address(environ).port
    server = processes.listeners([port], there, proc).get(port)
    # The server may have been given other directories than the container, its home being full.
    folders = _folders(processes.environment(server, proc) if server else {}) + _folders(environ)
    pids = processes.kernel_pids([row["id"] for row in rows], there, folders, proc)
    taken: Dict[int, str] = {}
    for row in rows:
        pid = pids.get(row["id"])
        tree = sorted(processes.tree(there, pid)) if pid in there else []
        taken.update(dict.fromkeys(tree, row["id"]))
        row.update(_holding(tree, proc))
    others = _others(there, frozenset(taken), server, proc, all_known=not trouble)
    for row in others:
        row["path"] = _below_home(row["path"], environ)
    gpu = _driver(there, proc) if with_gpu else None
    return {"v": 1, "kernels": rows, "others": others, "gpu": gpu, "trouble": trouble}


def stop(kernel: str, environ: Mapping[str, str]) -> Dict[str, Any]:
    """End a kernel as JupyterLab does: it is asked, and after 5 s killed with its processes.

    Returns:
        ``{"v": 1, "status": int}``: of the single-user server's answer; 204 it is over, 404 there
        is none, 0 nobody answered.
    """
    status, _ = ask("DELETE", f"api/kernels/{quote(kernel, safe='')}", environ, STOP_S - 3.0)
    return {"v": 1, "status": status}


# -- the single-user server -----------------------------------------------------------------------


def ask(
    method: str, path: str, environ: Mapping[str, str], timeout_s: float = _ASK_S
) -> Tuple[int, Any]:
    """One request of the single-user server, with this server's own token.

    Returns:
        The status, 0 where nobody answered, and the JSON; ``None`` where there is none.
    """
    server = own_server.address(environ)
    # Whoever looks does not use the server: an idle one has to look idle to the culler.
    url = f"{server.prefix}{path}?no_track_activity=1"
    headers = {"Authorization": f"token {environ.get('JUPYTERHUB_API_TOKEN', '')}"}
    connection = _connection(server, environ, timeout_s)
    try:
        connection.request(method, url, headers=headers)
        answer = connection.getresponse()
        text = answer.read(_MOST_BYTES)
        return answer.status, json.loads(text) if answer.status == 200 else None
    except (OSError, http.client.HTTPException, ValueError, RecursionError):
        return 0, None
    finally:
        connection.close()


def _connection(
    server: own_server.Address, environ: Mapping[str, str], timeout_s: float
) -> http.client.HTTPConnection:
    """A connection; ``environ`` names the certificates of the hub's internal TLS."""
    if not server.tls:
        return http.client.HTTPConnection(server.host, server.port, timeout=timeout_s)
    import ssl

    context = ssl.create_default_context(cafile=environ.get("JUPYTERHUB_SSL_CLIENT_CA"))
    context.check_hostname = False  # the certificate is for the container's name, not for us
    certificate, key = (environ.get(f"JUPYTERHUB_SSL_{x}") for x in ("CERTFILE", "KEYFILE"))
    if certificate and key:
        context.load_cert_chain(certificate, key)
    return http.client.HTTPSConnection(server.host, server.port, timeout=timeout_s, context=context)


def _trouble(status: int) -> str:
    if status == 0:
        return "JupyterLab does not answer just now, so its notebooks are not known."
    return f"JupyterLab does not say which notebooks are open (status {status})."


def _kernels(sessions: Any, listed: Any) -> List[Dict[str, Any]]:
    """One row for each kernel: those of notebooks first, then those that no session names."""
    rows: Dict[str, Dict[str, Any]] = {}
    for session in sessions if isinstance(sessions, list) else ():
        kernel = session.get("kernel") if isinstance(session, dict) else None
        if isinstance(kernel, dict) and isinstance(kernel.get("id"), str):
            row = rows.setdefault(kernel["id"], _row(kernel))
            # A console of a notebook has a session, too; the notebook is what people look for.
            if session.get("type") == "notebook" or not row["path"]:
                row["path"] = str(session.get("path", ""))
    for kernel in listed if isinstance(listed, list) else ():
        if isinstance(kernel, dict) and isinstance(kernel.get("id"), str):
            rows.setdefault(kernel["id"], _row(kernel))
    return list(rows.values())[:_MOST_KERNELS]


def _row(kernel: Mapping[str, Any]) -> Dict[str, Any]:
    state = str(kernel.get("execution_state", ""))
    return {
        "id": kernel["id"],
        "path": "",
        "name": str(kernel.get("name", "")),
        "state": state,
        "idle_s": _since(kernel.get("last_activity")) if state == "idle" else None,
    }


def _since(said: Any) -> Optional[int]:
    """Seconds since a time of Jupyter's, "2025-11-21T09:00:00.123456Z"."""
    try:
        at = datetime.fromisoformat(str(said).replace("Z", "+00:00"))
        return max(0, int((datetime.now(timezone.utc) - at).total_seconds()))
    except (ValueError, TypeError):
        return None


def _folders(environ: Mapping[str, str]) -> List[str]:
    """Where the server keeps connection files; source: jupyter_core.paths.jupyter_runtime_dir."""
    if environ.get("JUPYTER_RUNTIME_DIR"):
        return [environ["JUPYTER_RUNTIME_DIR"]]
    home = environ.get("HOME") or os.path.expanduser("~")  # noqa: PTH111
    data = environ.get("JUPYTER_DATA_DIR") or "{}/jupyter".format(
        environ.get("XDG_DATA_HOME") or f"{home}/.local/share"
    )
    return [f"{data}/runtime"]


# -- processes ------------------------------------------------------------------------------------


def _holding(pids: List[int], proc: str) -> Dict[str, Any]:
    return {
        "pids": pids[:_MOST_PIDS],
        "memory_mib": processes.memory_mib(pids, proc),
        "uses_gpu": processes.uses_gpu(pids, proc),
    }


def _others(
    there: Mapping[int, Process],
    taken: frozenset[int],
    server: Optional[int],
    proc: str,
    *,
    all_known: bool,
) -> List[Dict[str, Any]]:
    """What is of no living kernel and worth a line, what holds most first.

    Args:
        there: Every process.
        taken: Those of the kernels that the server named.
        server: Its process.
        proc: Where procfs is.
        all_known: Whether the server named all of its kernels.
    """
    own = _ancestors(there, os.getpid())
    passed = {1, server}
    groups: Dict[int, List[int]] = {}
    for process in there.values():
        if process.pid not in taken and process.pid not in own and process.pid not in passed:
            groups.setdefault(_root(there, process, passed), []).append(process.pid)
    rows = []
    for root, pids in groups.items():
        first, holding = there[root], _holding(pids, proc)
        if _is_living_kernel(first, server, proc):
            # One that nobody has taken over yet has not computed anything.
            if not (first.was_standby and all_known and holding["uses_gpu"] is False):
                continue
        elif server is None and any(there[pid].was_kernel for pid in pids):
            continue
        row = {**_of_group(there, root, pids, server, proc), **holding}
        if row["uses_gpu"] or (row["memory_mib"] or 0) >= _WORTH_MIB:
            rows.append(row)
    rows.sort(key=lambda row: -(row["memory_mib"] or 0))
    return rows[:_MOST_OTHERS]


def _below_home(path: str, environ: Mapping[str, str]) -> str:
    """As JupyterLab shows it, where notebooks begin at the home."""
    home = (environ.get("HOME") or "/").rstrip("/") + "/"
    return path[len(home) :] if path.startswith(home) else path


def _root(there: Mapping[int, Process], process: Process, passed: Any) -> int:
    """The eldest of a process's forebears below the server or the container's first process."""
    while process.parent in there and process.parent not in passed:
        process = there[process.parent]
    return process.pid


def _is_living_kernel(process: Process, server: Optional[int], proc: str) -> bool:
    """Whether a process is a kernel or standby of the server: what is left of one is orphaned."""
    if server is None or process.parent != server:
        return False
    # Orphans go to the first process. Where the server is that, only the command line tells.
    return process.was_kernel or (server != 1 and bool(processes.origin(process.pid, proc)))


def _of_group(
    there: Mapping[int, Process], root: int, pids: List[int], server: Optional[int], proc: str
) -> Dict[str, Any]:
    largest = max(pids, key=lambda pid: processes.memory_mib([pid], proc) or 0)
    first, name, path = there[root], there[largest].name, ""
    if first.was_standby and first.parent == server:
        kind, name = "lab", "A kernel kept ready"
    elif any(word.endswith("agent.pyz") for word in first.words[:4]):
        kind, name = "lab", "Checks and warm-up"
    elif any(there[pid].has_terminal for pid in pids):
        kind = "terminal"
    else:
        path = next(filter(None, (processes.origin(pid, proc) for pid in pids)), "")
        kind = "leftover" if path or first.was_standby else "other"
    return {"pid": largest, "name": name, "kind": kind, "path": path}


def _ancestors(there: Mapping[int, Process], pid: int) -> frozenset[int]:
    found = set()
    while pid in there and pid not in found:
        found.add(pid)
        pid = there[pid].parent
    return frozenset(found - {1})


def _driver(there: Mapping[int, Process], proc: str) -> Optional[Dict[int, int]]:
    """GPU memory of this container's processes, as the driver says in here; ``None``: it does not.

    Newer drivers number processes as the asking container does. Older ones use the host's numbers
    or list nothing, so a number counts only for a process that has CUDA open.
    """
    from pytorch_spawner.agent import gpus

    said = gpus.answer(
        ["nvidia-smi", "--query-compute-apps=pid,used_gpu_memory", "--format=csv,noheader,nounits"],
        _ASK_S,
    )
    found: Dict[int, int] = {}
    for line in (said or "").splitlines():
        pid, _, used = (part.strip() for part in line.partition(","))
        is_here = pid.isdigit() and used.isdigit() and int(pid) in there
        if is_here and processes.uses_gpu([int(pid)], proc):
            found[int(pid)] = found.get(int(pid), 0) + int(used)
    return found or None
