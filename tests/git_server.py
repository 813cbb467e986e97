"""A real git server over HTTP for tests, and repositories made with plumbing, hostile ones too.

with GitServer(tmp_path) as server:
    commit(server.make("course.git"), {"a.ipynb": b"{}"})
    ... Source(git=server.url("course.git")) ...
    assert server.fetches == 1
"""

from __future__ import annotations

import gzip
import os
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

from tests.ports import free_port_block

_QUIET = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "LC_ALL": "C",
    **{
        f"GIT_{role}_{key}": value
        for role in ("AUTHOR", "COMMITTER")
        for key, value in (("NAME", "Ada"), ("EMAIL", "ada@example.org"))
    },
}


def git(repository: Path | None, *words: str, stdin: bytes = b"", **environment: str) -> bytes:
    """Run git over a repository as its author would; raise with git's words when it fails."""
    where = [f"--git-dir={repository}"] if repository else []
    done = subprocess.run(
        ["git", *where, *words],
        input=stdin,
        capture_output=True,
        env={**os.environ, **_QUIET, **environment},
    )
    if done.returncode:
        raise AssertionError(f"git {' '.join(words)}: {done.stderr.decode(errors='replace')}")
    return done.stdout


@dataclass(frozen=True)
class Link:
    """A symbolic link in ``commit``'s files."""

    target: str


@dataclass(frozen=True)
class Submodule:
    """A submodule in ``commit``'s files."""

    oid: str = "1" * 40


@dataclass(frozen=True)
class Program:
    """A file with the executable bit in ``commit``'s files."""

    content: bytes


What = bytes | Link | Submodule | Program


def make_repository(path: Path, branch: str = "main") -> Path:
    """An empty bare repository."""
    git(None, "init", "--quiet", "--bare", f"--initial-branch={branch}", str(path))
    return path


def blob(repository: Path, content: bytes) -> str:
    """Store some content; its object."""
    words = ("hash-object", "-w", "--stdin", "--no-filters")
    return git(repository, *words, stdin=content).decode().strip()


def tree(repository: Path, entries: Sequence[tuple[str, bytes, str]]) -> str:
    """Store a tree of (mode, name, object), just so: git checks nothing of it."""
    raw = b"".join(
        b"%s %s\0%s" % (mode.lstrip("0").encode(), name, bytes.fromhex(oid))
        for mode, name, oid in entries
    )
    words = ("hash-object", "-t", "tree", "-w", "--stdin", "--literally")
    return git(repository, *words, stdin=raw).decode().strip()


def commit_tree(
    repository: Path, tree_oid: str, message: str = "Hostile", branch: str = "main", at: int = 0
) -> str:
    """Make a branch of one commit with a tree."""
    date = {f"GIT_{role}_DATE": f"@{at or 1_700_000_000} +0000" for role in ("AUTHOR", "COMMITTER")}
    words = ("commit-tree", tree_oid, "-m", message)
    made = git(repository, *words, **date).decode().strip()
    git(repository, "update-ref", f"refs/heads/{branch}", made)
    return made


def commit(
    repository: Path,
    files: Mapping[str, What | str],
    message: str = "Week 1",
    branch: str = "main",
    *,
    is_new: bool = False,
    at: int = 1_700_000_000,
) -> str:
    """Commit exactly these files on top of a branch.

    Args:
        repository: A bare one.
        files: Path -> content, Link, Submodule or Program.
        message: Of the commit.
        branch: Made when it is not there.
        is_new: The commit has no parent: a force-push of another history.
        at: Its date, Unix time in seconds.
    """
    lines = []
    for path, what in files.items():
        mode, oid = "100644", ""
        if isinstance(what, Submodule):
            mode, oid = "160000", what.oid
        elif isinstance(what, Link):
            mode, what = "120000", what.target.encode(errors="surrogateescape")
        elif isinstance(what, Program):
            mode, what = "100755", what.content
        elif isinstance(what, str):
            what = what.encode()
        oid = oid or blob(repository, what)
        lines.append(f"{mode} {oid}\t".encode() + os.fsencode(path) + b"\0")
    index = {"GIT_INDEX_FILE": str(repository / f"test-index-{threading.get_ident()}")}
    git(repository, "read-tree", "--empty", **index)
    git(repository, "update-index", "-z", "--index-info", stdin=b"".join(lines), **index)
    made = git(repository, "write-tree", "--missing-ok", **index).decode().strip()
    heads = git(repository, "for-each-ref", "--format=%(objectname)", f"refs/heads/{branch}")
    parent = [] if is_new or not heads else ["-p", heads.decode().strip()]
    date = {f"GIT_{role}_DATE": f"@{at} +0000" for role in ("AUTHOR", "COMMITTER")}
    words = ("commit-tree", made, *parent, "-m", message)
    done = git(repository, *words, **date).decode().strip()
    git(repository, "update-ref", f"refs/heads/{branch}", done)
    return done


@dataclass
class GitServer:
    """Serves the bare repositories of a folder at ``http://127.0.0.1:<port>/<name>``.

    Attributes:
        folder: Where the repositories are.
        mood: How it answers. "": as git does. "password": 401. "silent": never. "missing": 404.
            "broken": 500. "page": a web page. "away": a redirect to another scheme. "trickle": a
            fetch comes byte by byte. "endless": a fetch brings a file without an end.
        fetches: How many clones and fetches it was asked for.
        requests: Every request, "GET /course.git/info/refs?service=git-upload-pack".
        port: Stays the same when it was off.
    """

    folder: Path
    mood: str = ""
    fetches: int = 0
    requests: list[str] = field(default_factory=list)
    port: int = field(default_factory=free_port_block)
    _server: ThreadingHTTPServer | None = None
    _closing: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> GitServer:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.on()
        return self

    def __exit__(self, *_: object) -> None:
        self.off()

    def url(self, name: str, user: str = "") -> str:
        """The address of a repository, with "user:password" in it where given."""
        return f"http://{f'{user}@' if user else ''}127.0.0.1:{self.port}/{name}"

    def make(self, name: str, branch: str = "main") -> Path:
        """An empty repository."""
        return make_repository(self.folder / name, branch)

    def on(self) -> None:
        """Listen; after ``off`` at the same port."""
        if self._server is None:
            self._closing.clear()
            handler = type("Handler", (_Handler,), {"site": self})
            self._server = ThreadingHTTPServer(("127.0.0.1", self.port), handler)
            self._server.daemon_threads = True
            threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def off(self) -> None:
        """Refuse connections from now on, and end the ones that are open."""
        if self._server is not None:
            self._closing.set()
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def note(self, request: str, *, is_fetch: bool) -> None:
        """Count a request."""
        with self._lock:
            self.requests.append(request)
            self.fetches += is_fetch


class _Handler(BaseHTTPRequestHandler):
    site: GitServer

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        self._answer(self._body())

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        pieces = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def _answer(self, body: bytes) -> None:
        said = body
        if self.headers.get("Content-Encoding") == "gzip":
            said = gzip.decompress(body)
        is_fetch = b"command=fetch" in said or (b"want " in said and b"command=" not in said)
        site = self.site
        site.note(f"{self.command} {self.path}", is_fetch=is_fetch)
        try:
            if site.mood == "silent":
                site._closing.wait(600)
            elif site.mood == "password":
                self._say(401, {"WWW-Authenticate": 'Basic realm="forge"'})
            elif site.mood == "missing":
                self._say(404, {})
            elif site.mood == "broken":
                self._say(500, {})
            elif site.mood == "away":
                self._say(302, {"Location": "ftp://127.0.0.1/course.git/info/refs"})
            elif site.mood == "page":
                page = b"<!DOCTYPE html>\n<html>\n<body>Sign in</body>\n</html>\n"
                self._say(200, {"Content-Type": "text/html"}, page)
            elif site.mood == "endless" and is_fetch:
                self._endless(is_done=b"done" in said)
            else:
                self._backend(body, slowly=site.mood == "trickle" and is_fetch)
        except (BrokenPipeError, ConnectionResetError):
            pass  # whoever asked is gone

    def _say(self, status: int, headers: Mapping[str, str], body: bytes = b"no") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _backend(self, body: bytes, *, slowly: bool) -> None:
        path, _, query = self.path.partition("?")
        environment = {
            **os.environ,
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_PROJECT_ROOT": str(self.site.folder),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": unquote(path),
            "QUERY_STRING": query,
            "REQUEST_METHOD": self.command,
            "REMOTE_ADDR": "127.0.0.1",
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
        }
        with subprocess.Popen(
            ["git", "http-backend"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        ) as backend:
            assert backend.stdin is not None
            assert backend.stdout is not None
            backend.stdin.write(body)
            backend.stdin.close()
            headers = {}
            while (line := backend.stdout.readline().strip()) != b"":
                name, _, value = line.decode().partition(":")
                headers[name] = value.strip()
            self.send_response(int(headers.pop("Status", "200").split()[0]))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            try:
                while piece := backend.stdout.read(1 if slowly else 65536):
                    self.wfile.write(piece)
                    self.wfile.flush()
                    if slowly and self.site._closing.wait(0.05):
                        break
            finally:
                backend.kill()

    def _endless(self, *, is_done: bool) -> None:
        """Protocol v2's answer to a fetch: a pack with one blob of 4 TiB, uncompressed."""
        self.send_response(200)
        self.send_header("Content-Type", "application/x-git-upload-pack-result")
        self.end_headers()
        if not is_done:
            self.wfile.write(_packet(b"acknowledgments\n") + _packet(b"ready\n") + b"0001")
        self.wfile.write(_packet(b"packfile\n"))
        # One object, of type blob (3) and 2**42 bytes, in pack's 4 + 7 + 7 ... bits.
        size, header = 2**42 >> 4, [0x80 | 3 << 4]
        while size:
            header.append(size & 0x7F | (0x80 if size >> 7 else 0))
            size >>= 7
        start = b"PACK" + (2).to_bytes(4, "big") + (1).to_bytes(4, "big")
        self.wfile.write(_packet(b"\x01" + start + bytes(header) + b"\x78\x01"))
        # A stored block of deflate: not the last, its length, the complement of that.
        stored = b"\x00" + (60000).to_bytes(2, "little") + (65535 - 60000).to_bytes(2, "little")
        block = _packet(b"\x01" + stored + os.urandom(60000))
        while not self.site._closing.is_set():
            self.wfile.write(block)


def _packet(content: bytes) -> bytes:
    return f"{len(content) + 4:04x}".encode() + content
