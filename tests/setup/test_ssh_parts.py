"""SSH without an engine: what a laptop runs, what sshd is told, and what add-ssh refuses."""

from __future__ import annotations

import asyncio
import importlib.machinery
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from tornado.httpserver import HTTPServer
from tornado.ioloop import IOLoop
from tornado.web import Application, RequestHandler
from tornado.websocket import WebSocketHandler

from tests.ports import free_port_block

pytestmark = pytest.mark.programs

IMAGES = Path(__file__).resolve().parents[2] / "share" / "images"
PROXY = IMAGES / "ssh" / "lab_ssh_proxy.py"


# -- sshd's configuration ----------------------------------------------------------------------


@pytest.fixture
def wrapper() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("lab_sshd", str(IMAGES / "ssh" / "sshd"))
    spec = importlib.util.spec_from_loader("lab_sshd", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    written, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = written
    return module


def given_by(lines: list[str]) -> list[str]:
    (line,) = [line for line in lines if line.startswith("SetEnv ")]
    return shlex.split(line)[1:]


ENVIRONMENTS = {
    "a limit of a GPU's memory": ({"CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": "0=2G"}, None),
    "spaces, quotes and a comment": ({"A": 'x "y" # z'}, None),
    "a backslash at the end": ({"A": "C:\\"}, None),
    "JSON": ({"A": '{"v": 1, "gpus": ["a\\"b"]}'}, None),
    "an empty value": ({"A": ""}, None),
    "several lines are left out": ({"A": "1\nPermitRootLogin yes", "B": "2"}, ["B=2"]),
    "what a session has itself": ({"HOME": "/", "TERM": "x", "SSH_TTY": "y", "B": "2"}, ["B=2"]),
}  # fmt: skip


@pytest.mark.parametrize(("environ", "expected"), ENVIRONMENTS.values(), ids=ENVIRONMENTS)
def test_a_session_gets_the_servers_environment(
    wrapper: ModuleType, environ: dict[str, str], expected: list[str] | None
) -> None:
    lines = wrapper.lines(environ)
    assert given_by(lines) == (expected or [f"{name}={value}" for name, value in environ.items()])
    assert not [line for line in lines if "\n" in line]


def test_without_an_environment_there_is_no_empty_line_for_it(wrapper: ModuleType) -> None:
    assert wrapper.lines({"HOME": "/home/ana"}) == list(wrapper.SETTINGS)


def test_a_key_is_the_only_way_in(wrapper: ModuleType) -> None:
    said = set(wrapper.lines({}))
    assert said >= {"PasswordAuthentication no", "KbdInteractiveAuthentication no", "UsePAM no"}


def test_secrets_are_in_a_file_of_ones_own_and_not_on_the_command_line(
    wrapper: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("JUPYTERHUB_API_TOKEN", "a-secret")
    monkeypatch.setattr(sys, "argv", ["sshd", "-D", "-f", "none"])
    became: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(os, "execv", lambda path, words: became.append((path, words)))
    wrapper.main()
    (file,) = tmp_path.iterdir()
    assert became == [("/usr/sbin/sshd", ["/usr/sbin/sshd", "-D", "-f", "none", "-f", str(file)])]
    assert file.stat().st_mode & 0o777 == 0o600
    assert "JUPYTERHUB_API_TOKEN=a-secret" in given_by(file.read_text().splitlines())


# -- what a laptop runs ------------------------------------------------------------------------


class Sshd(WebSocketHandler):
    """Says what it was given, as the real one would: binary, in any pieces."""

    def open(self) -> None:
        assert self.request.headers["Authorization"] == "token right"
        self.write_message(b"SSH-2.0-", binary=True)

    def on_message(self, message: str | bytes) -> None:
        assert isinstance(message, bytes)
        if message.endswith(b"bye"):
            self.write_message(message[:-3], binary=True)
            self.close()
        else:
            self.write_message(message, binary=True)


class Answer(RequestHandler):
    def initialize(self, code: int, to: str = "") -> None:
        self.code, self.to = code, to

    def get(self) -> None:
        self.set_status(self.code)
        if self.to:
            self.set_header("Location", self.to)


class Trap(RequestHandler):
    asked: list[str] = []  # noqa: RUF012

    def get(self) -> None:
        self.asked.append(self.request.headers.get("Authorization", ""))


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    port = free_port_block()
    started = threading.Event()
    loops: list[IOLoop] = []

    def serve() -> None:
        async def run() -> None:
            answers = [
                ("/user/ana/sshd/", Sshd),
                ("/user/bo/sshd/", Answer, {"code": 403}),
                ("/user/no-ssh/sshd/", Answer, {"code": 302, "to": "/user/no-ssh/sshd"}),
                ("/user/old/sshd/", Answer, {"code": 404}),
                ("/user/off/sshd/", Answer, {"code": 302, "to": "/hub/user/off/sshd/"}),
                ("/user/booting/sshd/", Answer, {"code": 503}),
                (
                    "/user/moved/sshd/",
                    Answer,
                    {"code": 301, "to": f"http://127.0.0.1:{port}/lab/user/moved/sshd/"},
                ),
                ("/hub/.*|/lab/.*|/user/no-ssh/sshd", Trap),
            ]
            server = HTTPServer(Application(answers))
            server.listen(port, "127.0.0.1")
            loops.append(IOLoop.current())
            ended.append(asyncio.Event())
            started.set()
            await ended[0].wait()
            server.stop()

        ended: list[asyncio.Event] = []
        stop.append(lambda: loops[0].add_callback(ended[0].set))
        asyncio.run(run())

    stop: list[Callable[[], None]] = []
    thread = threading.Thread(target=serve)
    thread.start()
    assert started.wait(10)
    yield f"http://127.0.0.1:{port}"
    stop[0]()
    thread.join(10)


def run_proxy(
    address: str, *words: str, given: bytes = b"", token: str = "right"
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, str(PROXY), *words, address],
        input=given,
        env={**os.environ, **({"LAB_TOKEN": token} if token else {})},
        capture_output=True,
        timeout=60,
    )


def test_bytes_go_both_ways_whole_and_it_ends_with_the_other_side(url: str) -> None:
    sent = os.urandom(3_000_000).replace(b"bye", b"eyb")
    # Its end is told by the last piece, so that nothing is cut off before it.
    process = subprocess.Popen(
        [sys.executable, str(PROXY), f"{url}/user/ana/sshd/"],
        env={**os.environ, "LAB_TOKEN": "right"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    writer = threading.Thread(
        target=lambda: (process.stdin.write(sent + b"bye"), process.stdin.flush())
    )
    writer.start()
    try:
        got = process.stdout.read()
        assert process.wait(20) == 0  # though its input is open still
    finally:
        process.kill()
        writer.join(10)
        process.stdin.close()
        process.stdout.close()
    assert got == b"SSH-2.0-" + sent


def test_it_ends_when_ssh_ends(url: str) -> None:
    done = run_proxy(f"{url}/user/ana/sshd/")
    assert (done.returncode, done.stderr) == (0, b"")


NO = {
    "another's server": ("/user/bo/sshd/", "not one for this server"),
    "an image without SSH": ("/user/no-ssh/sshd/", "There is no SSH server at this address"),
    "a page that is not there": ("/user/old/sshd/", "There is no SSH server at this address"),
    "a server that is stopped": ("/user/off/sshd/", "Start it in the browser"),
    "a server that starts": ("/user/booting/sshd/", "is not running, or is just starting"),
    "a lab that has moved": ("/user/moved/sshd/", "/lab/user/moved/sshd/"),
    "the last slash is forgotten": ("/user/bo/sshd", "not one for this server"),
}


@pytest.mark.parametrize(("path", "says"), NO.values(), ids=NO)
def test_a_no_is_said_with_what_to_do(url: str, path: str, says: str) -> None:
    done = run_proxy(url + path)
    assert (done.returncode, done.stdout) == (1, b"")
    said = done.stderr.decode()
    assert said.startswith("lab_ssh_proxy: ")
    assert says in said
    assert "right" not in said, "the token is nobody's to see"
    assert Trap.asked == [], "the token went to an address that nobody named"


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("lab.example.org/user/ana/sshd/", "is no address"),
        ("ftp://lab.example.org/user/ana/sshd/", "is no address"),
        ("http://127.0.0.1:1/user/ana/sshd/", "cannot be reached"),
    ],
)
def test_what_is_no_lab_is_said(address: str, says: str) -> None:
    done = run_proxy(address)
    assert done.returncode == 1
    assert says in done.stderr.decode()


TOKENS = {
    "one that others can read": ("right\n", 0o640, "Others can read"),
    "none": (None, 0o600, "There is no token"),
    "an empty file": ("\n", 0o600, "does not hold a token"),
    "two lines": ("right\nX-Other: header\n", 0o600, "does not hold a token"),
}


@pytest.mark.parametrize(("content", "mode", "says"), TOKENS.values(), ids=TOKENS)
def test_a_token_file_that_is_no_secret_or_no_token_is_refused(
    url: str, tmp_path: Path, content: str | None, mode: int, says: str
) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_text(content)
        file.chmod(mode)
    done = run_proxy(f"{url}/user/ana/sshd/", "--token-file", str(file), token="")
    assert done.returncode == 1
    assert says in done.stderr.decode()


def test_a_token_file_of_ones_own_is_enough(url: str, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("right\n")
    file.chmod(0o600)
    done = run_proxy(f"{url}/user/ana/sshd/", "--token-file", str(file), token="", given=b"bye")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"SSH-2.0-")


# -- the script --------------------------------------------------------------------------------


def test_add_ssh_says_how_it_is_used_and_pins_what_it_adds() -> None:
    ask = [str(IMAGES / "add-ssh"), "--help"]
    said = subprocess.run(ask, capture_output=True, text=True, check=True).stdout
    assert said.startswith("usage: share/images/add-ssh")
    wrong = subprocess.run([ask[0], "--no-such"], capture_output=True, text=True)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    lines = (IMAGES / "ssh" / "requirements.txt").read_text().splitlines()
    pinned = [line for line in lines if not line.startswith("#")]
    assert {line.partition("==")[0] for line in pinned} == {
        "jupyter-server-proxy",
        "jupyter-sshd-proxy",
        "simpervisor",
    }
    for line in pinned:
        assert re.fullmatch(r"[a-z-]+==[0-9.]+ --hash=sha256:[0-9a-f]{64}", line), line


def test_the_images_without_ssh_are_as_they_were(tmp_path: Path) -> None:
    ask = [str(IMAGES / "build"), "cpu", "--recipe-hash"]
    hash_ = subprocess.run(ask, capture_output=True, text=True, check=True).stdout
    copied = tmp_path / "images"
    shutil.copytree(IMAGES, copied, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.rmtree(copied / "ssh")
    (copied / "add-ssh").unlink()
    ask = [str(copied / "build"), "cpu", "--recipe-hash"]
    assert subprocess.run(ask, capture_output=True, text=True, check=True).stdout == hash_
