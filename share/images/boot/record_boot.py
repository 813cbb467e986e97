"""Start a single-user server once, while the image is built, and write down what it loaded."""

import contextlib
import http.client
import http.server
import json
import os
import runpy
import sys
import threading
import time

import boot_archive

_HUB_PORT, _PORT = 18081, 18888
_PREFIX = "/user/nobody/"
_LONGEST_S = 60.0


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers what a server asks a hub at its start."""

    def do_GET(self):
        body = json.dumps({"version": "0", "name": "nobody", "kind": "user", "scopes": ["inherit"]})
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.do_GET()

    def log_message(self, *_):
        return


def wait_and_write(patterns):
    """When the server answers, write the archive, and end the process."""
    began = time.monotonic()
    while time.monotonic() - began < _LONGEST_S:
        time.sleep(0.2)
        connection = http.client.HTTPConnection("127.0.0.1", _PORT, timeout=5)
        try:
            # With a token, so that what asks the hub who that is is loaded as well.
            connection.request("GET", f"{_PREFIX}api", headers={"Authorization": "token nobody"})
            if connection.getresponse().status < 500:
                break
        except OSError:
            continue
        finally:
            connection.close()
    else:
        sys.stderr.write("pytorch-spawner: the server did not start; no boot archive.\n")
        os._exit(1)
    time.sleep(1.0)  # what it does just after it began to answer
    try:
        number = boot_archive.write(dict(sys.modules), dict(patterns))
    except Exception as error:  # noqa: BLE001 (else the build would never end)
        sys.stderr.write(f"pytorch-spawner: no boot archive could be written: {error!r}.\n")
        os._exit(1)
    sys.stderr.write(f"pytorch-spawner: {number} modules, {len(patterns)} patterns recorded.\n")
    os._exit(0)


def main():
    with contextlib.suppress(FileNotFoundError):  # of the image that this one is made from
        os.unlink(boot_archive.PATH)  # noqa: PTH108
    recorder = boot_archive.PatternRecorder()
    os.environ |= {
        "JUPYTERHUB_API_TOKEN": "nobody",
        "JUPYTERHUB_API_URL": f"http://127.0.0.1:{_HUB_PORT}/hub/api",
        "JUPYTERHUB_ACTIVITY_URL": f"http://127.0.0.1:{_HUB_PORT}/hub/api/users/nobody/activity",
        "JUPYTERHUB_BASE_URL": "/",
        "JUPYTERHUB_CLIENT_ID": "nobody",
        "JUPYTERHUB_OAUTH_CALLBACK_URL": f"{_PREFIX}oauth_callback",
        "JUPYTERHUB_OAUTH_SCOPES": '["access:servers"]',
        "JUPYTERHUB_OAUTH_ACCESS_SCOPES": '["access:servers"]',
        "JUPYTERHUB_SERVICE_PREFIX": _PREFIX,
        "JUPYTERHUB_SERVICE_URL": f"http://127.0.0.1:{_PORT}{_PREFIX}",
        "JUPYTERHUB_USER": "nobody",
        "PYTORCH_SPAWNER_STANDBY": "0",
    }
    hub = http.server.ThreadingHTTPServer(("127.0.0.1", _HUB_PORT), Hub)
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    threading.Thread(target=wait_and_write, args=(recorder.patterns,), daemon=True).start()
    server = sys.argv[1]
    sys.argv = [server, "--allow-root"]
    runpy.run_path(server, run_name="__main__")


if __name__ == "__main__":
    main()
