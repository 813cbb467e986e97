"""Runs the git program over repositories that strangers wrote. Blocking.

Never through a shell, never with anybody's configuration, never asking anybody anything, and never
longer than told: each run has a process group of its own, which is ended whole. What it prints goes
to files, so that nothing of it waits for a reader.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from pytorch_spawner.errors import SourceUnusable

# How a source is reached: the site's proxy and authorities.
NETWORK: Final = (
    *("http_proxy", "https_proxy", "all_proxy", "no_proxy"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "GIT_SSL_CAINFO", "CURL_CA_BUNDLE"),
)
# Old slips of old tools, harmless in a checkout; all else that git's own check knows is refused.
_FORGIVEN: Final = (
    *("badDate", "badDateOverflow", "badEmail", "badFilemode", "badName", "badTimezone"),
    *("missingEmail", "missingNameBeforeEmail", "missingSpaceBeforeDate", "multipleAuthors"),
    *("missingSpaceBeforeEmail", "nulInCommit", "zeroPaddedDate", "zeroPaddedFilemode"),
)
_SETTINGS: Final = (
    "core.hooksPath=/dev/null",
    "core.attributesFile=/dev/null",
    "core.excludesFile=/dev/null",
    "core.fsmonitor=false",
    "core.askPass=/bin/false",
    # A file that is larger goes through in pieces, so that its size costs no memory.
    "core.bigFileThreshold=16m",
    "credential.helper=",
    "fetch.recurseSubmodules=false",
    "submodule.recurse=false",
    # A pack is kept as one, checked on the way; loose objects would be unpacked in memory.
    "fetch.unpackLimit=1",
    "transfer.fsckObjects=true",
    "transfer.bundleURI=false",
    *(f"fetch.fsck.{slip}=ignore" for slip in _FORGIVEN),
    "gc.auto=0",
    "maintenance.auto=false",
    "http.followRedirects=initial",
    "http.emptyAuth=false",
    "http.lowSpeedLimit=1",
    "advice.detachedHead=false",
)
_ENVIRONMENT: Final = {
    "LC_ALL": "C",
    "TZ": "UTC",
    # Neither .netrc nor .gitconfig; ssh takes its keys from the account's own home.
    "HOME": "/nonexistent",
    "XDG_CONFIG_HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_SYSTEM": "/dev/null",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ASKPASS": "/bin/false",
    "SSH_ASKPASS": "/bin/false",
    "SSH_ASKPASS_REQUIRE": "never",
    "GIT_SSH_COMMAND": (
        "ssh -o BatchMode=yes -o ControlMaster=no -o ControlPath=none -o ForwardAgent=no "
        "-o PermitLocalCommand=no -o ClearAllForwardings=yes "
        "-o ConnectTimeout=30 -o ServerAliveInterval=15"
    ),
    # Its options are OpenSSH's; git would run a program of another name to find out.
    "GIT_SSH_VARIANT": "ssh",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_LITERAL_PATHSPECS": "1",
    "GIT_ADVICE": "0",
}
_LOOK_S: Final = 0.2
# git takes its locks and half of a pack away with it when it is asked to end; then it is made to.
_GRACE_S: Final = 2.0
_MAX_SAID_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Guard:
    """What ends a run before its time.

    Attributes:
        deadline: When, as ``time.monotonic`` counts.
        is_stopped: Asked again and again; True ends it.
        look: Called again and again; what it raises ends the run and is raised.
    """

    deadline: float
    is_stopped: Callable[[], bool] = lambda: False
    look: Callable[[], None] = lambda: None

    @classmethod
    def of_seconds(cls, seconds: float) -> Guard:
        """One that ends a run after so many seconds."""
        return cls(time.monotonic() + seconds)


@dataclass(frozen=True, slots=True)
class Run:
    """One run of git.

    Attributes:
        words: After "git" and its settings.
        git_dir: The repository; None for none.
        stdin: What it reads: all of it, or pieces that are made while it runs.
        environment: More variables.
        settings: More settings, "key=value".
        protocols: The transports that it may use; none by default.
        max_bytes: It is ended when it printed more.
        ok: Exit statuses that are no error.
    """

    words: Sequence[str]
    git_dir: Path | None = None
    stdin: bytes | Iterable[bytes] = b""
    environment: Mapping[str, str] = field(default_factory=dict)
    settings: Sequence[str] = ()
    protocols: Sequence[str] = ()
    max_bytes: int = 64 * 2**20
    ok: Sequence[int] = (0,)


class GitFailed(Exception):
    """Git ended with an error.

    Attributes:
        code: Its exit status; negative: the signal that ended it.
        said: The end of its standard error. Hostile text; may hold a URL with a token.
    """

    def __init__(self, code: int, said: str) -> None:
        super().__init__(f"git: status {code}: {said[-300:]}")
        self.code = code
        self.said = said


class TooMuch(Exception):
    """Git printed more than it may.

    Attributes:
        printed: As much as it may.
    """

    def __init__(self, printed: bytes) -> None:
        super().__init__(f"more than {len(printed)} bytes")
        self.printed = printed


def run(job: Run, guard: Guard) -> bytes:
    """Run git and return what it printed.

    Raises:
        GitFailed: It ended with an error.
        TooMuch: It printed more than ``job.max_bytes``.
        SourceUnusable: It took too long ("too-slow"), was stopped ("stopped"), or there is no git
            ("no-git"); also whatever ``guard.look`` or an iterable ``job.stdin`` raises.
    """
    words = ["git"]
    if job.git_dir is not None:
        words.append(f"--git-dir={job.git_dir}")
    for setting in (*_SETTINGS, *job.settings):
        words += ["-c", setting]
    environment = {
        name: os.environ[name] for name in ("PATH", "SSH_AUTH_SOCK", *NETWORK) if name in os.environ
    }
    environment |= {**_ENVIRONMENT, "GIT_ALLOW_PROTOCOL": ":".join(job.protocols) or "none"}
    with tempfile.TemporaryFile() as printed, tempfile.TemporaryFile() as said:
        try:
            process = subprocess.Popen(
                [*words, *job.words],
                stdin=subprocess.PIPE if job.stdin else subprocess.DEVNULL,
                stdout=printed,
                stderr=said,
                env={**environment, **job.environment},
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            raise SourceUnusable(
                "The lab's machine has no git, so no course can be fetched. Ask an admin to "
                "install the package git.",
                cause="no-git",
                detail=str(error),
            ) from error
        feeder = _Feeder(process.stdin, job.stdin)
        try:
            code = _watched(process, feeder, lambda: _go_on(guard, printed, job))
        finally:
            _end(process)
            feeder.close()
        if feeder.error:
            raise feeder.error
        if code is None or os.fstat(printed.fileno()).st_size > job.max_bytes:
            printed.seek(0)
            raise TooMuch(printed.read(job.max_bytes))
        if code not in job.ok:
            raise GitFailed(code, _tail(said))
        printed.seek(0)
        return printed.read()


def check(guard: Guard) -> None:
    """Raise when a guard wants an end: between two pieces of work that are not git's."""
    guard.look()
    if guard.is_stopped():
        raise SourceUnusable("It was stopped. Nothing was changed.", cause="stopped")
    if time.monotonic() > guard.deadline:
        raise SourceUnusable(
            "The course's source took longer than it may. What was fetched before is still there. "
            "Try again later, or offer large files as a data mount.",
            cause="too-slow",
        )


def _watched(
    process: subprocess.Popen[bytes], feeder: _Feeder, go_on: Callable[[], bool]
) -> int | None:
    """Wait for the exit status; None when ``go_on`` wants it no longer, which may raise, too."""
    pause, looked = 0.001, 0.0
    while (code := _status(process)) is None:
        if feeder.error:
            raise feeder.error
        if time.monotonic() - looked > _LOOK_S:
            if not go_on():
                return None
            looked = time.monotonic()
        time.sleep(pause)
        # Most runs take a few milliseconds, a fetch takes minutes.
        pause = min(2 * pause, _LOOK_S / 4)
    return code


def _go_on(guard: Guard, printed: IO[bytes], job: Run) -> bool:
    check(guard)
    return os.fstat(printed.fileno()).st_size <= job.max_bytes


def _status(process: subprocess.Popen[bytes]) -> int | None:
    """The exit status, or None; the process stays a zombie, so that its group keeps its number."""
    seen = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
    if seen is None:
        return None
    return seen.si_status if seen.si_code == os.CLD_EXITED else -seen.si_status


def _end(process: subprocess.Popen[bytes]) -> None:
    """End all of a run's processes; helpers of one that has ended, too."""
    if _status(process) is None:
        _signal(process.pid, signal.SIGTERM)
        by = time.monotonic() + _GRACE_S
        while _status(process) is None and time.monotonic() < by:
            time.sleep(0.02)
    _signal(process.pid, signal.SIGKILL)
    process.wait()


def _signal(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        pass  # nobody is left in it


def _tail(said: IO[bytes]) -> str:
    size = os.fstat(said.fileno()).st_size
    said.seek(max(0, size - _MAX_SAID_BYTES))
    return said.read().decode("utf-8", "replace")


class _Feeder:
    """Gives a process its input on a thread, for it may not read while it is watched."""

    def __init__(self, pipe: IO[bytes] | None, content: bytes | Iterable[bytes]) -> None:
        self.error: BaseException | None = None
        self._pipe = pipe
        self._content = (content,) if isinstance(content, bytes) else content
        self._thread = threading.Thread(target=self._feed, name="git-input", daemon=True)
        if pipe is not None:
            self._thread.start()

    def close(self) -> None:
        """Wait for the thread; the process has ended by now, so that its pipe is broken."""
        if self._thread.is_alive():
            self._thread.join()

    def _feed(self) -> None:
        assert self._pipe is not None
        try:
            for piece in self._content:
                self._pipe.write(piece)
        except BrokenPipeError:
            pass  # git has ended, and says itself why
        except BaseException as error:  # noqa: BLE001 (raised in the thread that waits)
            self.error = error
        finally:
            try:
                self._pipe.close()
            except BrokenPipeError:
                pass  # what was left to write
