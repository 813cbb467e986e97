"""Grants by the API: what a person sees, and what an admin may change, whole or not at all."""

from __future__ import annotations

import pytest
from lab_fakes import ENTER, FOR_REAL, HUB

from pytorch_spawner.core.gpus import Gpu, GpuUuid, Inventory
from pytorch_spawner.core.grants import Grant

pytestmark = FOR_REAL
CV = {"id": "cv", "to": "group", "subject": "cv", "share": "slot", "weekly_gpu_hours": 20.0}


@pytest.fixture(autouse=True)
def lab(site):
    site.hub.add("admin", "root", ENTER, "custom:lab:admin", "custom:lab:view")
    site.hub.add("viewer", "tutor", ENTER, "custom:lab:view")
    site.hub.models["ana-page"]["groups"] = ["cv"]
    shared = Gpu(GpuUuid("GPU-1234"), memory_mib=81_920, mode="shared:4", pool="teaching")
    site.ledger.write_inventory(HUB, Inventory((shared,)))
    site.ledger.write_grants(HUB, [Grant("config:g1", source="config")], "test", source="config")


async def test_an_admin_replaces_the_grants_and_a_student_sees_why(site):
    answer = await site.send("PUT", "api/grants", {"grants": [CV]})
    assert (answer.status, [row["id"] for row in answer.json["grants"]]) == (200, ["cv"])
    mine = (await site.get("api/grants")).json
    assert mine["sentences"][0] == (
        "ana gets 1 slot of 20 GiB, priority 0, because group cv; 20 of 20 h left this week."
    )
    assert [row["id"] for row in mine["grants"]] == ["cv", "config:g1"]
    everything = (await site.get("api/grants", token="viewer")).json["grants"]
    assert [row["id"] for row in everything] == ["config:g1", "cv"]
    (change,) = [one for one in site.ledger.changes(HUB) if one.by == "root"]
    assert change.subject == "cv"


async def test_a_viewer_asks_about_somebody(site):
    site.ledger.begin_start(HUB, "ana", "", {"image": "i"}, groups=("cv",))
    await site.send("PUT", "api/grants", {"grants": [CV]})
    said = (await site.get("api/grants?user=ana", token="viewer")).json
    assert "because group cv" in said["sentences"][0]
    assert (await site.get("api/grants?user=bob")).code == "forbidden"


async def test_a_body_with_one_fault_changes_nothing_and_every_fault_is_listed(site):
    rows = [
        CV,
        {"to": "user", "subject": "zoe"},
        {"to": "group", "subject": "none"},
        {"count": 0},
        {"colour": "red"},
        {"valid_from": "2026-10-02", "valid_until": "2026-10-01"},
        {"gpus": ["GPU-9999"]},
        {"to": "user", "subject": "ana", "gpus": ["GPU-1234"]},
        {"to": "user", "subject": "cyd", "gpus": ["GPU-1234"]},
    ]
    answer = await site.send("PUT", "api/grants", {"grants": rows})
    assert (answer.status, answer.code) == (400, "bad-request")
    faults = answer.json["faults"]
    for place, words in (
        (2, "no user 'zoe'"),
        (3, "no group 'none'"),
        (4, "count"),
        (5, "unknown key colour"),
        (6, "valid_until is not after"),
        (7, "no GPU GPU-9999"),
    ):
        assert any(f"grant {place}" in fault and words in fault for fault in faults), words
    assert any("pinned to user ana" in fault for fault in faults)
    preview = (await site.send("POST", "api/grants/preview", {"grants": rows})).json
    assert (preview["faults"], preview["changes"], preview["effects"]) == (faults, [], [])
    assert {"row": 2, "field": "subject", "message": "there is no user 'zoe'"} in answer.json[
        "problems"
    ]
    assert [grant.id for grant in site.ledger.grants(HUB)] == ["config:g1"]


async def test_a_preview_says_what_would_change_and_changes_nothing(site):
    said = (await site.send("POST", "api/grants/preview", {"grants": [CV], "user": "bob"})).json
    assert [change["id"] for change in said["changes"]] == ["cv"]
    assert said["explained"]["user"] == "bob"
    assert [grant.id for grant in site.ledger.grants(HUB)] == ["config:g1"]


@pytest.mark.parametrize("token", ["", "ana-page", "ana-server", "viewer"])
async def test_only_an_admin_changes_grants(site, token):
    for method, path in (("PUT", "api/grants"), ("POST", "api/grants/preview")):
        assert (await site.send(method, path, {"grants": []}, token=token)).status in (401, 403)


@pytest.mark.parametrize("body", [b"", b"[", b"[]", b'{"grants": {}}', b'{"grant": []}'])
async def test_a_body_that_is_no_list_of_grants_is_refused(site, body):
    answer = await site.send("PUT", "api/grants", body)
    assert (answer.status, answer.code) == (400, "bad-request")


async def test_without_the_hub_nobody_knows_whom_it_knows(site):
    await site.get("api/me", token="admin")  # whose token it is, is remembered
    site.hub.is_down = True
    answer = await site.send("PUT", "api/grants", {"grants": [CV]})
    assert (answer.status, answer.code) == (502, "hub-unavailable")


async def test_a_cookie_alone_changes_nothing(site):
    """What another site's page could make a browser send."""
    answer = await site.send("PUT", "api/grants", {"grants": []}, token="", Cookie="lab=x")
    assert answer.status in (401, 403)
