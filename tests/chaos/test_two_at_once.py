"""Two students ask for the one exclusive GPU at the same instant, a hundred times."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.lab_driver import running_lab

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(900)]

ROUNDS = 100
# A server that answers at once: what is tested is who gets the GPU, not how long Lab imports.
_SERVER = """
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"{}")
    def log_message(self, *args): pass
http.server.ThreadingHTTPServer(("0.0.0.0", 8888), Handler).serve_forever()
"""


def test_never_both(tmp_path: Path) -> None:
    traits = {"PyTorchSpawner.cmd": ["python3", "-c", _SERVER]}
    outcomes: list[tuple[bool, bool]] = []
    with running_lab(tmp_path, gpus=1, traits=traits) as lab, ThreadPoolExecutor(2) as pool:
        lab.add_users("ana", "bo")
        for _ in range(ROUNDS):
            answers = list(pool.map(lab.spawn, ("ana", "bo")))
            assert lab.gpus_held_twice() == []
            got = tuple(answer.status_code in (201, 202) for answer in answers)
            outcomes.append((got[0], got[1]))
            for answer in answers:
                if answer.status_code >= 400:
                    assert answer.status_code == 409, answer.text
                    assert "All GPUs are in use" in answer.json()["message"]
            for user, has in zip(("ana", "bo"), got, strict=True):
                if has:
                    lab.stop_server(user)
            lab.wait_until(lambda: not lab.leases(), 10, "a lease stayed")
    assert (True, True) not in outcomes
    assert (False, False) not in outcomes, "one of the two must get the GPU"
    assert len(outcomes) == ROUNDS
