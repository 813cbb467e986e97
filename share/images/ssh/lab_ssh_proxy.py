#!/usr/bin/env python3
# /// script
# requires-python = ">=3.9"
# dependencies = ["tornado>=6.1"]
# ///
"""The way of `ssh` to a server of the lab, for a laptop: its ProxyCommand.

ssh speaks with this on standard input and output, and this with the lab, over the address that the
browser uses as well. One file; it needs Python 3.9 or newer and tornado.
"""

import argparse
import asyncio
import os
import stat
import sys
import threading
from pathlib import Path
from urllib.parse import urlsplit

from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.websocket import WebSocketClosedError, WebSocketError, websocket_connect

TOKEN_VARIABLE = "LAB_TOKEN"
TOKEN_FILE = Path("~/.ssh/lab-token")
# The first connection after a server's start waits for sshd to start there.
CONNECT_S = 75.0
CHUNK = 65536
# A message is what the server read from sshd at once, at most 256 KiB.
LONGEST_MESSAGE = 16 * 2**20
SCHEMES = {"https": "wss", "http": "ws", "wss": "wss", "ws": "ws"}
WHY = {
    401: "The lab does not know the token. Make a new one on the page /hub/token of the lab.",
    403: "The token is not one for this server, or it is no longer valid. Make a new one on the "
    "page /hub/token of the lab, as the owner of the server.",
}
NO_SSH = (
    "There is no SSH server at this address. It ends in /sshd/; if yours does, start the server "
    "with an image that has SSH, or ask an admin for one."
)
STOPPED = "The server is not running, or is just starting. Start it in the browser, then try again."


class Refused(Exception):
    """No connection; the message says why and what to do."""


def read_token(path):
    """The token: from the environment, else from a file that its owner alone can read.

    Never from the command line, which everybody on the same machine can read.

    Raises:
        Refused: There is none, or others can read it.
    """
    token = os.environ.get(TOKEN_VARIABLE, "")
    named = f"${TOKEN_VARIABLE}"
    if not token:
        named = str(path.expanduser())
        token = read_private(path.expanduser())
    token = token.strip()
    if token.split() != [token]:
        raise Refused(f"{named} does not hold a token, which is one word.")
    return token


def read_private(path):
    """What a file holds that its owner alone can read.

    Raises:
        Refused: It cannot be read, or others can.
    """
    try:
        with path.open(encoding="ascii") as file:
            # Windows has no such modes; a file in the home is its owner's there.
            if os.name == "posix" and stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                raise Refused(f"Others can read {path}. Run: chmod 600 {path}")
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(
            f"There is no token: {path} cannot be read ({error}), and {TOKEN_VARIABLE} is not set. "
            "Make one on the page /hub/token of the lab, and save it there."
        ) from error


def websocket_address(url):
    """The same address for a websocket.

    Raises:
        Refused: It is no address of a web page.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme.lower() not in SCHEMES:
        raise Refused(f"{url} is no address. It looks like https://lab.example.org/user/ana/sshd/.")
    return f"{SCHEMES[scheme.lower()]}://{rest.rstrip('/')}/"


def why(error, address):
    """What an answer means that is no websocket."""
    moved = error.response.headers.get("Location", "") if error.response else ""
    path = urlsplit(moved).path
    # Jupyter sends what it does not know to the same address without its last slash; the hub sends
    # a server that does not run to a page of its own.
    if error.code == 404 or (moved and f"{path}/" == urlsplit(address).path):
        return NO_SSH
    if moved and "/hub/" not in path:
        return f"The lab has another address: {moved}"
    return WHY.get(error.code, STOPPED)


async def connect(url, token):
    """Open the websocket.

    Raises:
        Refused: The lab says no, or cannot be reached.
    """
    address = websocket_address(url)
    request = HTTPRequest(
        address,
        headers={"Authorization": f"token {token}"},
        connect_timeout=CONNECT_S,
        request_timeout=CONNECT_S,
        # To another address goes no token.
        follow_redirects=False,
    )
    try:
        return await websocket_connect(request, max_message_size=LONGEST_MESSAGE)
    except HTTPClientError as error:
        raise Refused(f"{why(error, address)} (HTTP {error.code})") from error
    except (OSError, WebSocketError, ValueError) as error:
        raise Refused(f"{url} cannot be reached: {error}") from error


def write_all(data):
    """Write to standard output, all of it."""
    while data:
        data = data[os.write(1, data) :]


async def bridge(url, token):
    """Carry bytes both ways until one side ends.

    No pings: they would count as use of the server, which then never looks idle.
    """
    connection = await connect(url, token)
    loop = asyncio.get_running_loop()

    async def send(data):
        if data:
            await connection.write_message(data, binary=True)
        else:
            connection.close()

    def read_all():
        try:
            while True:
                data = os.read(0, CHUNK)
                # Waits until the message is on its way: ssh is not read faster than that.
                asyncio.run_coroutine_threadsafe(send(data), loop).result()
                if not data:
                    return
        except (WebSocketClosedError, OSError, RuntimeError):
            return  # the other side ended, which the loop below sees

    threading.Thread(target=read_all, daemon=True).start()
    while (data := await connection.read_message()) is not None:
        await loop.run_in_executor(None, write_all, data)


def main(words=None):
    """Run it; returns 0, or 1 when there was no connection."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="https://LAB/user/NAME/sshd/")
    parser.add_argument(
        "--token-file",
        type=Path,
        default=TOKEN_FILE,
        help=f"holds a token of the lab, for its owner alone (default: {TOKEN_FILE}); "
        f"${TOKEN_VARIABLE} comes first",
    )
    options = parser.parse_args(words)
    if os.name == "nt":
        import msvcrt

        for descriptor in (0, 1):
            msvcrt.setmode(descriptor, os.O_BINARY)
    try:
        asyncio.run(bridge(options.url, read_token(options.token_file)))
    except Refused as error:
        print(f"lab_ssh_proxy: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, BrokenPipeError):
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
