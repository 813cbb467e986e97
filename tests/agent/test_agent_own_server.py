"""Where the container's own server is: as it reads that itself, for everybody who asks."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from pytorch_spawner.agent import own_server, worker
from pytorch_spawner.agent.own_server import Address


def of(url: str, prefix: str = "/user/ana/") -> Address:
    return own_server.address({own_server.URL_ENV: url, own_server.PREFIX_ENV: prefix})


@pytest.mark.parametrize(
    ("url", "host", "port", "tls"),
    [
        ("http://0.0.0.0:8888/user/ana/", "127.0.0.1", 8888, False),
        ("https://0.0.0.0:8889/user/ana/", "127.0.0.1", 8889, True),
        ("http://:8890/user/ana/", "127.0.0.1", 8890, False),
        ("http://*:8890/", "127.0.0.1", 8890, False),
        ("http://[::]:8891/user/ana/", "::1", 8891, False),
        ("http://[fd00::7]:8892", "fd00::7", 8892, False),
        ("http://[fd00::7]/", "fd00::7", 80, False),
        ("http://172.17.0.5:8893?x=:1", "172.17.0.5", 8893, False),
        ("HTTPS://Jupyter-Ana:8894#:1", "jupyter-ana", 8894, True),
        ("http://ana:secret@lab:8895/user/a:1/", "lab", 8895, False),
        ("http://lab/user/ana:7/", "lab", 80, False),
        ("https://lab/", "lab", 443, True),
        ("http://lab:/", "lab", 80, False),
        ("http://lab:0/", "lab", 80, False),
        ("//lab:8896/", "lab", 8896, False),
        ("lab:8897", "127.0.0.1", 8888, False),
        ("http://", "127.0.0.1", 80, False),
        ("", "127.0.0.1", 8888, False),
    ],
)
def test_a_server_is_where_jupyterhub_tells_it_to_listen(
    url: str, host: str, port: int, tls: bool
) -> None:
    assert of(url) == (host, port, tls, "/user/ana/")
    # jupyterhub/singleuser/extension.py reads it so.
    read = urlsplit(url)
    rule = read.port or {"http": 80, "https": 443}.get(read.scheme, 8888)
    assert (read.scheme == "https", rule) == (tls, port)
    assert (read.hostname or "") in (host, "0.0.0.0", "::", "*", "")


@pytest.mark.parametrize(
    "url",
    ["http://lab:x/", "http://lab:99999/", "http://lab:-1/", "http://lab:8888x", "http://lab:٣/",
     "http://[::1]:x", "nonsense", "::", "http://lab:" + "9" * 5000],
    ids=lambda url: url[:20],
)  # fmt: skip
def test_a_port_that_is_none_never_raises_and_means_the_usual_one(url: str) -> None:
    assert of(url).port == 8888


@pytest.mark.parametrize(
    ("said", "prefix"),
    [("/user/ana/", "/user/ana/"), ("/user/ana", "/user/ana/"), ("", "/"), ("/", "/")],
)
def test_the_prefix_has_a_slash_at_both_ends(said: str, prefix: str) -> None:
    assert of("http://lab:1/", said).prefix == prefix


def test_without_a_hub_it_is_jupyters_own_default() -> None:
    assert own_server.address({}) == ("127.0.0.1", 8888, False, "/")
    assert not own_server.is_told({})
    assert own_server.is_told({own_server.URL_ENV: "http://:8888/"})


ROW = "   0: {local}:{port:04X} 0:0 {state} 0:0 00:0 0 1000 0 {inode} 1 0\n"


def table(root: Path, name: str, *rows: str) -> None:
    (root / "net").mkdir(exist_ok=True)
    (root / "net" / name).write_text("  sl  local_address rem_address   st\n" + "".join(rows))


def test_who_listens_is_read_of_both_families_and_by_port(tmp_path: Path) -> None:
    table(
        tmp_path, "tcp",
        ROW.format(local="0100007F", port=8888, state="0A", inode=7),
        ROW.format(local="0100007F", port=8888, state="01", inode=8),
        ROW.format(local="0100007F", port=99, state="06", inode=0),
        "   1: 0100007F:22B8 0:0 0A\n",
    )  # fmt: skip
    table(tmp_path, "tcp6", ROW.format(local="0" * 32, port=8888, state="0A", inode=9),
          ROW.format(local="0" * 32, port=80, state="0A", inode=10))  # fmt: skip
    assert own_server.listening(str(tmp_path)) == {8888: ["7", "9"], 80: ["10"]}


@pytest.mark.parametrize(
    "text", ["", "x", "\n\n", "  sl\n0: 1:zz 0:0 0A 0 0 0 0 0 7\n", "é\0" * 99]
)
def test_a_table_that_says_nothing_names_no_port(tmp_path: Path, text: str) -> None:
    assert own_server.listening(str(tmp_path)) == {}
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "tcp").write_text(text)
    assert own_server.listening(str(tmp_path)) == {}


def test_a_real_socket_is_seen_as_soon_as_it_listens() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
        assert port not in own_server.listening()
        server.listen()
        (inode,) = own_server.listening()[port]
        assert Path(f"/proc/self/fd/{server.fileno()}").readlink() == Path(f"socket:[{inode}]")


@pytest.fixture
def only_ipv6() -> Iterator[int]:
    """Port of a server as Tornado makes it for "::"."""

    class Six(http.server.ThreadingHTTPServer):
        address_family = socket.AF_INET6

        def server_bind(self) -> None:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            super().server_bind()

    try:
        server = Six(("::1", 0), http.server.BaseHTTPRequestHandler)
    except OSError:
        pytest.skip("this machine has no IPv6")
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


def test_a_server_that_listens_for_ipv6_alone_is_found(only_ipv6: int) -> None:
    assert worker.wait_for_lab({own_server.URL_ENV: f"http://[::]:{only_ipv6}/"})
