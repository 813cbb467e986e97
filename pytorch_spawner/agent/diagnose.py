"""The checks that need neither torch nor a GPU, and how any check is run.

They take milliseconds: the page promises the first one within two seconds of the container's
start. A check reports; it must NOT repair or leave anything behind.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

from pytorch_spawner.agent import kernel_processes, plain_files
from pytorch_spawner.agent.codes import Outcome, done, outcome
from pytorch_spawner.agent.report import Send, make_opener

CHEAP_DEADLINE_S = 15.0
_SHELL_S = 3.0
# In the environment of the shell that is asked, so that what its profile starts can be found.
_MARK_ENV = "PYTORCH_SPAWNER_SHELL"
_SWEEPS = 5
_MIB = 1024 * 1024

_FULL = (errno.ENOSPC, errno.EDQUOT)


def run_check(
    code: str, check: Callable[[], Outcome], send: Send, deadline_s: float = CHEAP_DEADLINE_S
) -> Outcome:
    """Run one check with a deadline, sending its "running" and its "done".

    A check that hangs (a home on a dead file server) is left behind in its daemon thread.
    """
    send("check", {"code": code, "phase": "running"})
    began = time.monotonic()
    found: List[Outcome] = []
    thread = threading.Thread(target=lambda: found.append(_guarded(check)), daemon=True, name=code)
    try:
        thread.start()
        thread.join(deadline_s)
    except RuntimeError as error:
        found.append(no_room(str(error)))
    result = found[0] if found else no_answer(deadline_s)
    send("check", done(code, result, time.monotonic() - began))
    return result


def no_answer(deadline_s: float) -> Outcome:
    """The outcome of a check that hangs."""
    return outcome(
        "fail",
        f"This check did not answer within {deadline_s:g} s.",
        "Stop and start your server; if it happens again, send this report to your admin.",
        "Look at the host: a hung file server or GPU driver is the usual cause (dmesg).",
    )


def no_room(why: str) -> Outcome:
    """The outcome of a check for which no process or thread could be started."""
    return outcome(
        "fail", "This check could not begin: your server may start no more processes.",
        "Shut down kernels and terminals that you do not need, then restart your server.",
        "See the container's limits of processes (pids_limit) and memory.", error=why,
    )  # fmt: skip


def _guarded(check: Callable[[], Outcome]) -> Outcome:
    try:
        return check()
    except Exception as error:  # noqa: BLE001 (a faulty check must not take the others along)
        return outcome(
            "unknown", "This check itself failed, which says nothing about your server.",
            admin_remedy="Report it to the pytorch-spawner project.", error=repr(error),
        )  # fmt: skip


def home_writable(home: Optional[str], uid: int) -> Outcome:
    """Create and remove a file in the home.

    Args:
        home: Its path; ``None`` where ``$HOME`` is not set.
        uid: Who the home should belong to.
    """
    if not home or not Path(home).is_dir():
        return outcome(
            "fail", "Your home directory does not exist, so nothing you save is kept.",
            "Tell your admin.", "Look at the volumes of the container and at HOME.", home=home,
        )  # fmt: skip
    owner = Path(home).stat().st_uid
    try:
        with tempfile.NamedTemporaryFile(prefix=".pytorch-spawner-", dir=home) as file:
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return _not_writable(home, owner, error)
    facts: Dict[str, Any] = {"home": home, "owner": owner}
    if owner != uid:
        return outcome(
            "warn", "Your home directory belongs to somebody else, though you can save in it.",
            "Tell your admin before you keep private files there.",
            f"Make uid {uid} the owner of the home directory; it is {owner}.", **facts,
        )  # fmt: skip
    return outcome("ok", "Your files are saved.", **facts)


def _not_writable(home: str, owner: int, error: OSError) -> Outcome:
    facts: Dict[str, Any] = {"home": home, "owner": owner, "error": error.strerror}
    if error.errno in _FULL:
        return outcome(
            "fail", "Your home directory is full, so nothing can be saved.",
            "Remove what you no longer need; `du -sh ~/* ~/.cache` shows where it is.",
            "Raise the quota or grow the file system.", **facts,
        )  # fmt: skip
    return outcome(
        "fail", "Nothing can be saved in your home directory.",
        "Tell your admin; do not start work you want to keep.",
        f"Make it writable for uid {os.getuid()}; its owner is {owner} ({error.strerror}).",
        **facts,
    )  # fmt: skip


def shared_memory(expected_mib: int, path: str = "/dev/shm") -> Outcome:  # noqa: S108
    """Compare the size of the shared memory with what the spawner asked for."""
    try:
        space = os.statvfs(path)
    except OSError as error:
        return outcome(
            "fail", "There is no shared memory, so data loading with workers stops with an error.",
            "Use num_workers=0 in your DataLoader.", "Give the containers a /dev/shm.",
            error=error.strerror,
        )  # fmt: skip
    size_mib = space.f_blocks * space.f_frsize // _MIB
    if size_mib < expected_mib:
        return outcome(
            "warn",
            f"Shared memory is {size_mib} MiB instead of {expected_mib} MiB: data loading with "
            'several workers may stop with "bus error".',
            "Use fewer workers, or num_workers=0, in your DataLoader.",
            f"Start the containers with shm_size of {expected_mib} MiB.",
            size_mib=size_mib, expected_mib=expected_mib,
        )  # fmt: skip
    return outcome(
        "ok", f"Shared memory is {size_mib} MiB, enough for data loading with several workers.",
        size_mib=size_mib, expected_mib=expected_mib,
    )  # fmt: skip


def kernel_python(environ: Mapping[str, str], prefix: str, executable: str) -> Outcome:
    """Compare the Python of notebooks with the one a terminal finds.

    Args:
        environ: The container's environment.
        prefix: ``sys.prefix`` of the Python that serves Lab.
        executable: That Python.
    """
    terminal = terminals_python(environ) or executable
    spec, kernel = find_kernel(environ, prefix, executable)
    facts: Dict[str, Any] = {"kernel": kernel, "terminal": terminal, "kernelspec": spec}
    found = shutil.which(kernel, path=environ.get("PATH"))
    if found is None:
        return outcome(
            "fail", "The Python of your notebooks does not exist, so no notebook can run.",
            f"Remove the kernel description {spec}." if spec else "Tell your admin.",
            f"Correct argv[0] in {spec}.", **facts,
        )  # fmt: skip
    if not same_python(found, terminal):
        return outcome(
            "warn", "Notebooks and the terminal use different Pythons, so a package installed in "
            "one is missing in the other.",
            "Install packages with `%pip install` inside the notebook.",
            "Install ipykernel into the environment that comes first on a login shell's PATH, or "
            "have a file in /etc/profile.d put the notebooks' one first.", **facts,
        )  # fmt: skip
    return outcome("ok", "Notebooks and the terminal use the same Python.", **facts)


def terminals_python(environ: Mapping[str, str]) -> Optional[str]:
    """The ``python3`` of a terminal; the one on PATH where the shell cannot be asked.

    JupyterLab's terminals are login shells (jupyter_server_terminals.app adds ``-l``), and Debian's
    /etc/profile gives those another PATH than the container's. The student's own profile counts,
    too, but one that hangs is not waited for.
    """
    usual = shutil.which("python3", path=environ.get("PATH"))
    ours, theirs = os.pipe()  # its own: what the profile prints is not the answer
    try:
        os.set_blocking(ours, False)
        if not _run_shell(environ, f"command -v python3 > /dev/fd/{theirs}", theirs):
            return usual
        return os.fsdecode(os.read(ours, 4096)).strip()
    except OSError:  # nothing was written, for example
        return usual
    finally:
        os.close(ours)
        os.close(theirs)


def _run_shell(environ: Mapping[str, str], command: str, keep: int) -> bool:
    """Run a command in a login shell with a descriptor kept open; whether it ended in time."""
    mark = secrets.token_hex(16)
    process = subprocess.Popen(
        [environ.get("SHELL") or "sh", "-l", "-c", command], env={**environ, _MARK_ENV: mark},
        pass_fds=[keep], start_new_session=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        process.wait(_SHELL_S)
    except subprocess.TimeoutExpired:
        return False
    finally:
        # What the profile left running goes, too; there may be nothing left.
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        _end_marked(mark)
    return True


def _end_marked(mark: str) -> None:
    """End what left the shell's process group, a tmux server for example.

    A process that hides its environment from its own user (ssh-agent), or has emptied it, stays.
    """
    for _ in range(_SWEEPS):  # again, for what one of them started meanwhile
        running = kernel_processes.read_all()
        marked = [p for p in running if kernel_processes.environment(p).get(_MARK_ENV) == mark]
        if not marked:
            return
        for pid in marked:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)


def notebooks_python(environ: Mapping[str, str], prefix: str, executable: str) -> Optional[str]:
    """The interpreter of notebooks; ``None`` when it does not exist. See ``kernel_python``."""
    return shutil.which(find_kernel(environ, prefix, executable)[1], path=environ.get("PATH"))


def find_kernel(
    environ: Mapping[str, str], prefix: str, executable: str
) -> Tuple[Optional[str], str]:
    """The kernel description of ``python3`` and its interpreter, as Jupyter would choose them.

    Source: jupyter_core.paths.jupyter_path and jupyter_client's native kernel, version 8.

    Returns:
        The path of its kernel.json, ``None`` for the built-in one; and the interpreter.
    """
    home = environ.get("HOME", "/")
    user = environ.get("JUPYTER_DATA_DIR") or f"{home}/.local/share/jupyter"
    folders = [path for path in environ.get("JUPYTER_PATH", "").split(os.pathsep) if path]
    folders += [user, f"{prefix}/share/jupyter", "/usr/local/share/jupyter", "/usr/share/jupyter"]
    for folder in folders:
        spec = Path(folder, "kernels", "python3", "kernel.json")
        try:
            argv = json.loads(plain_files.read(spec))["argv"]
            kernel = str(argv[0])
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            continue
        # Jupyter replaces these names by the Python it runs on itself.
        own = {"python", "python3", f"python3.{sys.version_info[1]}"}
        return str(spec), executable if kernel in own else kernel
    return None, executable


def same_python(one: str, other: str) -> bool:
    """Whether two interpreters are of one environment: one folder, or one ``sys.prefix``."""
    if Path(one).parent.resolve() == Path(other).parent.resolve():
        return True
    return _prefix(one) == _prefix(other) is not None


def _prefix(python: str) -> Optional[str]:
    try:
        said = subprocess.run(
            [python, "-I", "-c", "import sys; print(sys.prefix)"],
            capture_output=True, timeout=5, check=True, text=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return said.stdout.strip()


def hub_reachable(url: Optional[str], timeout_s: float = 5.0) -> Outcome:
    """Ask the hub for anything; every HTTP answer, an error too, proves that it can be reached."""
    if not url:
        return outcome("unknown", "No JupyterHub started this container, so none was asked.")
    try:
        with make_opener().open(url, timeout=timeout_s) as answer:
            status = answer.status
    except urllib.error.HTTPError as error:
        status = error.code
    except Exception as error:  # noqa: BLE001 (http.client, ssl and socket errors share no base)
        reason = getattr(error, "reason", error)
        return outcome(
            "fail", "JupyterHub cannot be reached from your server, so it cannot log you in.",
            "Tell your admin.",
            f"From the container's network {url} must answer; it says: {reason}. "
            "Look at hub_connect_url and the firewall.", error=str(reason),
        )  # fmt: skip
    return outcome("ok", "JupyterHub answers.", status=status)
