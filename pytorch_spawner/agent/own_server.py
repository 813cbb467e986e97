"""Where this container's own single-user server listens, and whether it does.

``launch`` waits with it before anything else runs, so it imports nothing but ``typing``.
"""

from __future__ import annotations

from typing import Dict, List, Mapping, NamedTuple

URL_ENV = "JUPYTERHUB_SERVICE_URL"
PREFIX_ENV = "JUPYTERHUB_SERVICE_PREFIX"

_USUAL_PORT = 8888
_PORTS = {"http": 80, "https": 443}
# How a server is told to listen at every address, and where it is found then. At "::" Tornado
# listens for IPv6 alone (netutil.bind_sockets sets IPV6_V6ONLY).
_EVERYWHERE = {"": "127.0.0.1", "*": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
_LISTENS = "0A"  # include/net/tcp_states.h: TCP_LISTEN is 10
_MOST_BYTES = 2**20


class Address(NamedTuple):
    """How to reach the server from inside the container.

    Attributes:
        host: A name or an address, without brackets.
        port: 1 to 65535.
        tls: The hub's internal TLS is on.
        prefix: Path of the server, with a slash at both ends.
    """

    host: str
    port: int
    tls: bool
    prefix: str


def is_told(environ: Mapping[str, str]) -> bool:
    """Whether a hub started this container."""
    return bool(environ.get(URL_ENV))


def address(environ: Mapping[str, str]) -> Address:
    """Where the server listens, by the rules it follows itself.

    Where there is no such rule (a port that is none, no hub at all), it is Jupyter's own default.
    Source: jupyterhub 5, singleuser/extension.py, ``load_config_file``.

    Args:
        environ: The container's environment.
    """
    # By hand, for urllib.parse costs more than all else that is imported here.
    before, _, rest = environ.get(URL_ENV, "").strip().partition("//")
    scheme = before.partition(":")[0].lower()
    place = rest.replace("?", "/").replace("#", "/").partition("/")[0].rpartition("@")[2]
    host, colon, said = place.rpartition(":")
    if not colon or place.endswith("]"):
        host, said = place, ""
    host = host.strip("[]").lower()
    path = environ.get(PREFIX_ENV, "").strip("/")
    return Address(
        host=_EVERYWHERE.get(host, host),
        port=_port(said, scheme),
        tls=scheme == "https",
        prefix=f"/{path}/" if path else "/",
    )


def _port(said: str, scheme: str) -> int:
    if not said.strip("0"):  # 0 is none
        return _PORTS.get(scheme, _USUAL_PORT)
    is_number = said.isascii() and said.isdecimal() and len(said) < 10
    return int(said) if is_number and int(said) < 2**16 else _USUAL_PORT


def listening(proc: str = "/proc") -> Dict[int, List[str]]:
    """The TCP ports that anything in this container listens at; no connection is made.

    Args:
        proc: Where procfs is; tests give a directory of their own.

    Returns:
        Inodes of the sockets by port; empty where the kernel does not say.
    """
    found: Dict[int, List[str]] = {}
    for table in ("tcp", "tcp6"):
        try:
            with open(f"{proc}/net/{table}", "rb") as file:  # noqa: PTH123 (pathlib costs 5 ms here)
                rows = file.read(_MOST_BYTES).decode("ascii", "replace").splitlines()[1:]
            for row in rows:
                # proc(5): "0: 00000000:22B8 00000000:0000 0A ...", the inode in the tenth place.
                fields = row.split()
                if len(fields) > 9 and fields[3] == _LISTENS:
                    port = int(fields[1].rpartition(":")[2], 16)
                    found.setdefault(port, []).append(fields[9])
        except (OSError, ValueError):
            continue
    return found
