"""What a container may report, with the real token of a real server."""

from __future__ import annotations

import json

import pytest
import requests

from tests.lab_driver import Lab

pytestmark = [pytest.mark.docker, pytest.mark.usefixtures("stopped")]


def post(lab: Lab, token: str, path: str, events: object, start: str = "") -> requests.Response:
    session = requests.Session()
    session.trust_env = False
    body = (
        events
        if isinstance(events, bytes)
        else json.dumps({"v": 1, "start": start, "events": events}).encode()
    )
    return session.post(
        f"{lab.url}/services/lab/api/servers/{path}/events", data=body, timeout=20,
        headers={"Authorization": f"token {token}", "Content-Type": "application/json"},
    )  # fmt: skip


def test_a_server_reports_for_itself_alone(lab: Lab) -> None:
    lab.start_server("ana", {"gpus": 0})
    lab.start_server("bo", {"gpus": 0})
    token = lab.exec("ana", "printenv", "JUPYTERHUB_API_TOKEN")
    start = json.loads(lab.exec("ana", "printenv", "PYTORCH_SPAWNER_AGENT"))["start"]
    check = [{"kind": "check", "data": {"code": "x", "phase": "done", "level": "ok"}}]
    assert post(lab, token, "ana/", check, start).status_code == 200
    assert post(lab, token, "bo/", check, start).status_code == 403
    assert post(lab, token, "ana/other", check, start).status_code in (403, 404)
    assert post(lab, "0" * 32, "ana/", check, start).status_code in (401, 403)
    assert post(lab, token, "ana/", check, "f" * 32).status_code == 409
    assert post(lab, token, "ana/", [{"kind": "start", "data": {}}], start).status_code == 400
    # The service closes the connection before it reads 1 MiB, which the proxy calls 503.
    assert post(lab, token, "ana/", b"x" * 2**20).status_code in (400, 413, 503)
    assert post(lab, token, "ana/", check, start).status_code == 200
    bo = [e for e in lab.events("bo") if e["data"].get("code") == "x"]
    assert bo == []


def test_html_in_a_report_stays_text(lab: Lab) -> None:
    lab.start_server("ana", {"gpus": 0})
    token = lab.exec("ana", "printenv", "JUPYTERHUB_API_TOKEN")
    start = json.loads(lab.exec("ana", "printenv", "PYTORCH_SPAWNER_AGENT"))["start"]
    hostile = "<img src=x onerror=alert(1)>"
    sent = [{"kind": "check", "data": {"code": "x", "phase": "done", "sentence": hostile}}]
    assert post(lab, token, "ana/", sent, start).status_code == 200
    page = lab.session.get(
        f"{lab.url}/services/lab/api/servers/ana//events?format=json", timeout=10
    )
    assert page.headers["Content-Type"].startswith("application/json")
    assert page.headers["X-Content-Type-Options"] == "nosniff"


def test_a_flood_is_slowed_down_and_the_server_lives(lab: Lab) -> None:
    lab.start_server("ana", {"gpus": 0})
    token = lab.exec("ana", "printenv", "JUPYTERHUB_API_TOKEN")
    start = json.loads(lab.exec("ana", "printenv", "PYTORCH_SPAWNER_AGENT"))["start"]
    batch = [{"kind": "check", "data": {"code": "x", "phase": "running"}}] * 50
    codes = [post(lab, token, "ana/", batch, start).status_code for _ in range(30)]
    assert 429 in codes
    assert set(codes) <= {200, 429, 409}
    assert (lab.server("ana") or {})["ready"]
    assert len(lab.events("ana")) <= 2000
