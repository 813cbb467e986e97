"""What admins read and change by the API, two of them at once, with what each one is told."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from lab_fakes import ENTER, FOR_REAL, HUB
from tornado.web import RequestHandler

from pytorch_spawner.core.gpus import Gpu, GpuUuid, Inventory
from pytorch_spawner.core.grants import Grant
from pytorch_spawner.core.metering import GpuProcess, Sample
from pytorch_spawner.core.placement import Holding
from pytorch_spawner.core.tickets import Decisions, Give, Wait

pytestmark = FOR_REAL
ONE = Gpu(GpuUuid("GPU-1111"), index=0, name="NVIDIA A100", memory_mib=81_920, pool="teaching")
TWO = Gpu(GpuUuid("GPU-2222"), index=1, name="NVIDIA A100", memory_mib=81_920, pool="research")
MIG = Gpu(
    GpuUuid("MIG-3333"), index=2, name="NVIDIA H100 MIG 1g.10gb", pool="mig", mig_profile="1g.10gb"
)


@pytest.fixture(autouse=True)
def lab(site):
    site.hub.add("admin", "root", ENTER, "custom:lab:admin", "custom:lab:view")
    site.hub.add("second", "kim", ENTER, "custom:lab:admin", "custom:lab:view")
    site.ledger.write_inventory(HUB, Inventory((ONE, TWO, MIG)))


def lend(site: Any, username: str, gpu: Gpu, server: str = "") -> Any:
    start = site.begin(username, server)
    site.ledger.join(start)

    def decide(state: Any) -> Decisions:
        held = (Holding(gpu.uuid),)
        return Decisions(give=(Give(state.tickets[0], (gpu,), held, Grant("all"), None, "all"),))

    site.ledger.decide(HUB, decide)
    return start


async def gpu_row(site: Any, uuid: str = "GPU-1111") -> Any:
    rows = (await site.get("api/gpus", token="admin")).json["gpus"]
    return next(row for row in rows if row["uuid"] == uuid)


# -- devices -------------------------------------------------------------------------------------


async def test_a_drained_gpu_says_why_and_returns_by_undo(site):
    answer = await site.send("PATCH", "api/gpus/GPU-1111", {"drained": "  fan\n is loud "})
    assert answer.status == 200
    assert answer.json["gpu"]["drained"] == "fan is loud"
    undone = await site.send("POST", f"api/log/{answer.json['change']}/undo")
    assert undone.status == 200
    assert (await gpu_row(site))["drained"] == ""


async def test_a_mode_and_a_pool_are_set_and_reset_to_what_is_configured(site):
    said = {"mode": "shared:4", "pool": "research"}
    row = (await site.send("PATCH", "api/gpus/GPU-1111", said)).json["gpu"]
    assert (row["mode"], row["slots"], row["pool"]) == ("shared:4", 4, "research")
    row = (await site.send("PATCH", "api/gpus/GPU-1111", {"mode": None, "pool": None})).json["gpu"]
    assert (row["mode"], row["pool"]) == ("exclusive", "teaching")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"mode": "shared:1"}, "mode"),
        ({"mode": "shared:65"}, "mode"),
        ({"mode": "shared:x"}, "mode"),
        ({"mode": "mig"}, "mode"),
        ({"mode": 4}, "mode"),
        ({"drained": None}, "drained"),
        ({"drained": "x" * 256}, "drained"),
        ({"drained": "bell \x07"}, "drained"),
        ({"pool": ""}, "pool"),
        ({"pool": "a\x1b[31m"}, "pool"),
        ({"colour": "red"}, "colour"),
    ],
)
async def test_a_change_that_is_none_is_refused_beside_its_field(site, change, field):
    answer = await site.send("PATCH", "api/gpus/GPU-1111", change)
    assert (answer.status, answer.code) == (400, "bad-request")
    assert [one["field"] for one in answer.json["problems"]] == [field]
    assert site.ledger.changes(HUB) == ()


async def test_what_mig_cut_is_not_cut_here(site):
    answer = await site.send("PATCH", "api/gpus/MIG-3333", {"mode": "shared:2"})
    assert answer.status == 400
    assert "set on the host" in answer.json["message"]
    assert (await site.send("PATCH", "api/gpus/MIG-3333", {"drained": "x"})).status == 200


async def test_of_two_admins_the_second_is_told_who_was_faster_and_what_is_there(site):
    etag = (await gpu_row(site))["etag"]
    first = await site.send("PATCH", "api/gpus/GPU-1111", {"drained": "mine"}, If_Match=f'"{etag}"')
    assert first.status == 200
    late = await site.send(
        "PATCH", "api/gpus/GPU-1111", {"pool": "x"}, token="second", If_Match=f'"{etag}"'
    )
    assert (late.status, late.code) == (409, "changed-meanwhile")
    assert "by root at" in late.json["message"]
    assert late.json["now"]["drained"] == "mine"
    now = late.json["now"]["etag"]
    again = await site.send(
        "PATCH", "api/gpus/GPU-1111", {"pool": "x"}, token="second", If_Match=f'"{now}"'
    )
    assert again.status == 200


async def test_a_write_without_a_version_is_refused(site):
    answer = await site.send("PATCH", "api/gpus/GPU-1111", {"drained": "x"}, If_Match="")
    assert (answer.status, answer.code) == (428, "version-needed")


async def test_twenty_admins_at_once_and_one_of_them_wins(site):
    etag = (await gpu_row(site))["etag"]
    answers = await asyncio.gather(
        *(
            site.send(
                "PATCH", "api/gpus/GPU-1111", {"drained": f"by {number}"}, If_Match=f'"{etag}"'
            )
            for number in range(20)
        )
    )
    assert sorted(answer.status for answer in answers) == [200] + [409] * 19
    assert len(site.ledger.changes(HUB)) == 1


# -- grants --------------------------------------------------------------------------------------


async def test_a_gpu_is_pinned_to_somebody_who_never_logged_in_only_where_that_is_meant(site):
    pin = {"to": "user", "subject": "zoe", "gpus": ["GPU-1111"], "share": "whole"}
    refused = await site.send("POST", "api/grants", pin)
    assert refused.status == 400
    assert refused.json["problems"][0]["field"] == "subject"
    preview = await site.send("POST", "api/grants/preview?unknown_users=allow", {"put": [pin]})
    assert preview.json["effects"] == [
        "zoe: GPU 0 (NVIDIA A100), whole, reserved for them alone (was: nothing)"
    ]
    assert "does not know zoe yet" in preview.json["warnings"][0]
    answer = await site.send("POST", "api/grants?unknown_users=allow", pin)
    assert answer.status == 201
    pins = (await gpu_row(site))["pins"]
    assert [(one["id"], one["to"], one["subject"]) for one in pins] == [("user-zoe", "user", "zoe")]
    (row,) = (await site.get("api/people?search=zo", token="admin")).json["rows"]
    assert (row["is_known"], row["grants"][0]["id"]) == (False, "user-zoe")
    assert "because user zoe" in row["sentences"][0]


async def test_a_pin_that_another_pin_contradicts_is_named_in_the_preview(site):
    pin = {"to": "user", "subject": "ana", "gpus": ["GPU-1111"]}
    assert (await site.send("POST", "api/grants", pin)).status == 201
    other = {**pin, "subject": "bob"}
    preview = await site.send("POST", "api/grants/preview", {"put": [other]})
    assert "GPU-1111 is pinned to user ana" in preview.json["faults"][0]
    assert (await site.send("POST", "api/grants", other)).status == 400


async def test_one_grant_is_changed_and_removed_with_its_version(site):
    made = (await site.send("POST", "api/grants", {"to": "group", "subject": "cv"})).json
    path, etag = f"api/grants/{made['grant']['id']}", made["grant"]["etag"]
    said = {"to": "group", "subject": "cv", "priority": 5}
    changed = await site.send("PUT", path, said, If_Match=f'"{etag}"')
    assert changed.json["grant"]["priority"] == 5
    late = await site.send("DELETE", path, token="second", If_Match=f'"{etag}"')
    assert (late.status, late.json["now"]["priority"]) == (409, 5)
    gone = await site.send("DELETE", path, If_Match=f'"{changed.json["grant"]["etag"]}"')
    assert gone.status == 200
    assert (await site.send("PUT", path, said)).json["now"] is None


async def test_the_configurations_grants_are_not_changed_here(site):
    site.ledger.write_grants(HUB, [Grant("config:g1", source="config")], "hub", source="config")
    for method in ("PUT", "DELETE"):
        answer = await site.send(method, "api/grants/config:g1", {"to": "everyone"})
        assert answer.status in (400, 409)
    assert [grant.id for grant in site.ledger.grants(HUB)] == ["config:g1"]


async def test_a_preview_of_a_removal_names_who_loses_what(site):
    await site.send("POST", "api/grants", {"id": "cv", "to": "group", "subject": "cv"})
    preview = await site.send("POST", "api/grants/preview", {"remove": ["cv"]})
    assert preview.json["effects"] == ["ana, bob and cyd: nothing (was: 1 GPU)"]
    assert [one["after"] for one in preview.json["changes"]] == [None]
    assert len(site.ledger.grants(HUB)) == 1


async def test_a_table_goes_out_and_comes_back_and_two_imports_do_not_overwrite_each_other(site):
    await site.send("POST", "api/grants", {"id": "cv", "to": "group", "subject": "cv"})
    table = await site.get("api/grants?format=csv", token="admin")
    assert table.headers["Content-Type"].startswith("text/csv")
    etag = table.headers["Etag"]
    same = await site.send(
        "PUT", "api/grants", table.text.encode(), If_Match=etag, Content_Type="text/csv"
    )
    assert (same.status, same.json["changes"]) == (200, [])
    more = table.text + "a,user,ana,,,2,any,7,,,,,\n"
    new = await site.send(
        "PUT", "api/grants", more.encode(), If_Match=etag, Content_Type="text/csv"
    )
    assert len(new.json["changes"]) == 1
    late = await site.send(
        "PUT", "api/grants", table.text.encode(), If_Match=etag, Content_Type="text/csv"
    )
    assert late.status == 409
    assert len(site.ledger.grants(HUB)) == 2
    answer = (await site.get("api/grants", token="admin")).json
    assert new.json["etag"] == answer["etag"]


async def test_a_table_with_bad_rows_writes_nothing_and_names_every_one(site):
    table = b"id,to,subject,count\na,user,ana,1\nb,user,anna,1\nc,user,cyd,0\n"
    for method, path in (("PUT", "api/grants"), ("POST", "api/grants/preview")):
        answer = await site.send(method, path, table, Content_Type="text/csv; charset=utf-8")
        assert [(one["row"], one["field"]) for one in answer.json["problems"]] == [
            (3, "subject"),
            (4, "count"),
        ]
    assert site.ledger.grants(HUB) == ()


async def test_people_are_searched_and_cut_by_the_server(site):
    site.hub.people = {f"user{number:04}": ["cv"] for number in range(2000)}
    site.hub.page = 200
    await site.send("POST", "api/grants", {"to": "user", "subject": "user1500"})
    began = time.monotonic()
    page = (await site.get("api/people?limit=50", token="admin")).json
    assert time.monotonic() - began < 2.0
    assert (page["total"], len(page["rows"])) == (2003, 50)
    kinds = [(row["kind"], row["name"]) for row in page["rows"][:4]]
    assert kinds == [("everyone", ""), ("group", "cv"), ("group", "empty"), ("user", "user1500")]
    assert page["rows"][1]["members"] == 2000
    found = (await site.get("api/people?search=USER19&offset=90&limit=50", token="admin")).json
    assert (found["total"], found["rows"][0]["name"]) == (100, "user1990")
    own = (await site.get("api/people?only=granted&kind=user", token="admin")).json
    assert own["total"] == 1
    for wrong in ("limit=0", "offset=-1", "kind=pet", "only=some"):
        assert (await site.get(f"api/people?{wrong}", token="admin")).status == 400


async def test_a_pool_that_a_gpu_was_moved_to_can_be_granted_and_an_emptied_one_cannot(site):
    for uuid in ("GPU-1111", "GPU-2222"):
        await site.send("PATCH", f"api/gpus/{uuid}", {"pool": "exam"})
    exam = await site.send("POST", "api/grants", {"to": "user", "subject": "ana", "pool": "exam"})
    assert exam.status == 201
    gone = await site.send("POST", "api/grants/preview", {"put": [{"pool": "teaching"}]})
    assert gone.json["faults"] == [
        "grant 1 (everyone): there is no pool 'teaching'; there is exam, mig"
    ]


async def test_a_name_that_differs_in_case_only_is_no_stranger(site):
    pin = {"to": "user", "subject": " Ana ", "gpus": ["GPU-1111"]}
    answer = await site.send("POST", "api/grants?unknown_users=allow", pin)
    assert "there is no user 'Ana', but 'ana'" in answer.json["faults"][0]


async def test_two_new_grants_of_one_person_have_ids_of_their_own_in_a_preview(site):
    rows = [{"to": "user", "subject": "ana", "priority": number} for number in (1, 2)]
    preview = await site.send("POST", "api/grants/preview", {"put": rows})
    assert [one["id"] for one in preview.json["changes"]] == ["user-ana", "user-ana-2"]


async def test_a_grant_that_never_was_is_not_found_and_one_that_went_is_told_as_such(site):
    assert (await site.send("DELETE", "api/grants/none")).code == "no-such-grant"
    await site.send("POST", "api/grants", {"id": "a", "to": "user", "subject": "ana"})
    await site.send("DELETE", "api/grants/a")
    assert (await site.send("DELETE", "api/grants/a")).status == 409


async def test_one_gpu_filled_down_a_table_is_refused_in_few_words(site):
    rows = [
        {"id": f"g{number}", "to": "user", "subject": f"u{number}", "gpus": ["GPU-1111"]}
        for number in range(1500)
    ]
    began = time.monotonic()
    answer = await site.send("POST", "api/grants/preview?unknown_users=allow", {"grants": rows})
    assert time.monotonic() - began < 5
    assert len(answer.json["faults"]) <= 101
    assert len(answer.text) < 100_000


# -- queue and servers ---------------------------------------------------------------------------


async def test_who_waits_is_raised_and_lowered_and_taken_out(site):
    for name in ("ana", "bo"):
        site.ledger.join(site.begin(name))
    rows = (await site.get("api/queue", token="admin")).json["waiting"]
    assert [row["user"] for row in rows] == ["ana", "bo"]
    etag = rows[1]["etag"]
    raised = await site.send("PATCH", "api/queue/bo", {"boost": 10}, If_Match=f'"{etag}"')
    assert raised.json["waiting"]["boost"] == 10
    late = await site.send("PATCH", "api/queue/bo/", {"boost": 3}, If_Match=f'"{etag}"')
    assert (late.status, late.json["now"]["boost"]) == (409, 10)
    assert (await site.send("PATCH", "api/queue/bo", {"boost": 101})).status == 400
    assert (await site.send("DELETE", "api/queue/ana")).status == 200
    assert (await site.send("DELETE", "api/queue/ana")).status == 404
    found = (await site.get("api/queue?search=BO", token="admin")).json
    assert (found["length"], found["total"]) == (1, 1)


async def test_a_server_is_stopped_with_a_word_to_its_student(site):
    start = lend(site, "ana", ONE)
    asked: list[str] = []

    class Hub(RequestHandler):
        def delete(self) -> None:
            asked.append(self.request.path)
            self.set_status(204)

    site.app.add_handlers(r".*", [(r"/hub/api/users/.*", Hub)])
    answer = await site.send("POST", "api/servers/ana/stop", {"message": "Maintenance at noon."})
    assert answer.status == 202
    assert asked == ["/hub/api/users/ana/server"]
    (event,) = site.ledger.read_events(start.id)
    assert event.data["message"] == "An admin stops this server. Maintenance at noon."
    (line,) = site.ledger.changes(HUB)
    assert (line.by, line.what, line.subject) == ("root", "server", "ana/")
    other = await site.send("POST", "api/servers/ana/stop", {"start": "an-earlier-one"})
    assert (other.status, len(asked)) == (409, 1)
    site.ledger.end_start(start.id, "stopped")
    assert (await site.send("POST", "api/servers/ana/stop", {})).code == "not-running"


@pytest.mark.parametrize(
    ("status", "answered", "said"),
    [
        (500, 502, "The hub does not stop it just now (status 500); try again."),
        (404, 404, "This server does not run (any more)."),
    ],
)
async def test_a_stop_that_the_hub_refuses_is_not_logged_as_one(site, status, answered, said):
    lend(site, "ana", ONE)

    class Hub(RequestHandler):
        def delete(self) -> None:
            self.set_status(status)

    site.app.add_handlers(r".*", [(r"/hub/api/users/.*", Hub)])
    answer = await site.send("POST", "api/servers/ana/stop", {"message": "Maintenance at noon."})
    assert answer.status == answered
    rows = (await site.get("api/log", token="admin")).json["rows"]
    assert [row["sentence"] for row in rows] == [
        f"The hub did not confirm that it stops the server ana: {said}",
        'Asked to stop the server ana, saying "Maintenance at noon.".',
    ]


# -- log and usage -------------------------------------------------------------------------------


async def test_the_log_says_in_a_sentence_what_was_changed_and_by_whom(site):
    await site.send("PATCH", "api/gpus/GPU-1111", {"drained": "fan"})
    await site.send("POST", "api/grants", {"to": "group", "subject": "cv"}, token="second")
    rows = (await site.get("api/log", token="admin")).json["rows"]
    assert [(row["by"], row["sentence"], row["can_undo"]) for row in rows] == [
        ("kim", "Added the grant group-cv for group cv.", True),
        ("root", "GPU 0: drained (fan).", True),
    ]
    page = (await site.get("api/log?limit=1", token="admin")).json
    assert page["next"] == rows[0]["id"]
    older = (await site.get(f"api/log?limit=1&before={page['next']}", token="admin")).json
    assert ([row["by"] for row in older["rows"]], older["next"]) == (["root"], None)


async def test_an_undo_that_comes_too_late_says_so(site):
    made = (
        await site.send("POST", "api/grants", {"id": "cv", "to": "group", "subject": "cv"})
    ).json
    await site.send("DELETE", "api/grants/cv", token="second")
    late = await site.send("POST", f"api/log/{made['change']}/undo")
    assert (late.status, late.code) == (409, "changed-meanwhile")
    assert "by kim" in late.json["message"]
    assert (await site.send("POST", "api/log/999/undo")).status == 400


async def test_gpu_hours_are_told_by_day_and_as_a_table(site):
    start = lend(site, "ana", ONE)
    site.ledger.release(HUB, "ana", "", "stopped")
    assert start
    said = (await site.get("api/usage?by=gpu", token="admin")).json
    assert (len(said["days"]), said["rows"][0]["label"]) == (14, "GPU 0 NVIDIA A100")
    assert said["rows"][0]["busy_h"] is None
    table = await site.get("api/usage?by=user&format=csv", token="admin")
    assert table.text.startswith("day,user,held_h,busy_h\n")
    for wrong in (
        "by=pet",
        "first=yesterday",
        "first=2026-01-01&last=2026-12-31",
        "first=2026-02-02&last=2026-02-01",
        "last=0001-01-01",
        "last=9999-12-31",
    ):
        assert (await site.get(f"api/usage?{wrong}", token="admin")).status == 400


async def test_a_service_that_is_named_like_a_student_is_not_that_student(site):
    lend(site, "ana", ONE)
    site.ledger.join(site.begin("ana", "second"))
    site.hub.add("namesake", "ana", ENTER, kind="service")
    assert (await site.get("api/leases", token="namesake")).json == {"leases": []}
    assert (await site.get("api/queue", token="namesake")).json["waiting"] == []
    assert (await site.get("api/me", token="namesake")).json["servers"] == []
    gpus = (await site.get("api/gpus", token="namesake")).json["gpus"]
    assert not any(gpu["mine"] for gpu in gpus)
    assert (await site.get("api/grants", token="namesake")).status == 403


# -- live ----------------------------------------------------------------------------------------


async def test_a_page_hears_of_everything_that_moves_and_of_nothing_else(site):
    async with site.stream("api/live", "admin") as stream:
        name, _, first = await stream.next()
        assert (name, len(first["gpus"]), first["counts"]["in_use"]) == ("snapshot", 3, 0)
        await site.send("PATCH", "api/gpus/GPU-2222", {"drained": "fan"})
        name, _, news = await stream.next()
        assert (name, [row["uuid"] for row in news["gpus"]]) == ("gpus", ["GPU-2222"])
        lend(site, "ana", ONE)
        seen = {}
        while not {"gpus", "counts"} <= set(seen):
            name, _, data = await stream.next()
            seen[name] = data
        assert seen["counts"]["in_use"] == 1
        assert seen["gpus"]["gpus"][0]["holders"][0]["user"] == "ana"
        await site.send("POST", "api/grants", {"to": "group", "subject": "cv"}, token="second")
        while name != "grants":
            name, _, etag = await stream.next()
        assert etag == (await site.get("api/grants", token="admin")).json["etag"]
        site.ledger.write_inventory(HUB, Inventory((ONE,)))
    while site.lab.feed.viewers:
        await asyncio.sleep(0.01)
    async with site.stream("api/live", "admin") as stream:
        _, _, again = await stream.next()
        assert [row["uuid"] for row in again["gpus"]] == ["GPU-1111"]


async def test_a_place_that_is_told_anew_and_one_who_is_served_are_news_of_the_queue(site):
    site.ledger.join(site.begin("ana"))
    ticket = site.ledger.queue(HUB)[0].ticket
    async with site.stream("api/live", "admin") as stream:
        await stream.next()
        site.ledger.decide(HUB, lambda _: Decisions(wait=(Wait(ticket, 1, 1, None, "bo"),)))
        name, _, first = await stream.next()
        assert (name, first["length"]) == ("queue", 1)
        held = (Holding(ONE.uuid),)
        give = Give(ticket, (ONE,), held, Grant("all"), None, "all")
        site.ledger.decide(HUB, lambda _: Decisions(give=(give,)))
        name, data = "", first
        while name != "queue" or data["length"]:
            name, _, data = await stream.next()
        assert data["version"] != first["version"]


async def test_what_the_last_page_was_told_is_not_held_against_the_next(site):
    meter, feed = site.lab.meter, site.lab.feed
    for value in (0.0, 97.0):
        meter._samples = {ONE.uuid: Sample(time.time(), value, 1, 1.0, 1.0)}
        async with feed.watch("ana") as news:
            await news.get()
            feed.measured()
    async with feed.watch("bo") as news:
        assert '"utilisation": 97.0' in await news.get()
        meter._samples = {ONE.uuid: Sample(time.time(), 0.0, 1, 1.0, 1.0)}
        feed.measured()
        assert "[0, 1, 1, 1]" in await news.get()


async def test_samples_are_sent_when_they_differ_and_unknown_stays_unknown(site, monkeypatch):
    meter = site.lab.meter
    now = time.time()
    meter._samples = {ONE.uuid: Sample(now, 38.4, 3_100, None, 121.7)}
    meter._processes = {ONE.uuid: (GpuProcess(4321, "python3", 3_000, "ana", ""),)}
    meter._processes_at = now
    async with site.stream("api/live", "admin") as stream:
        _, _, first = await stream.next()
        (row, other, _) = first["gpus"]
        assert row["sample"]["temperature_c"] is None
        assert row["processes"][0]["user"] == "ana"
        assert other["sample"] is None
        # The snapshot told this already.
        site.lab.feed.measured()
        meter._samples = {ONE.uuid: Sample(now, 50.0, 3_100, None, 121.7)}
        site.lab.feed.measured()
        name, _, data = await stream.next()
        assert (name, data["rows"]) == ("samples", {"GPU-1111": [50, 3100, None, 122]})
        meter._samples = {}
        site.lab.feed.measured()
        name, _, data = await stream.next()
        assert data["rows"] == {"GPU-1111": [None, None, None, None]}
        site.lab.feed.measured()
        assert site.lab.feed._sent == data["rows"]


async def test_a_viewer_who_takes_nothing_is_sent_away_and_holds_up_nobody(site):
    feed = site.lab.feed
    async with feed.watch("ana") as slow, feed.watch("bo") as quick:
        await quick.get()
        for number in range(100):
            site.lab.meter._samples = {ONE.uuid: Sample(time.time(), float(number), 1, 1, 1)}
            feed.measured()
            await quick.get()
        assert feed.viewers == 1
        messages = [slow.get_nowait() for _ in range(slow.qsize())]
        assert messages[-1] is None


async def test_five_hundred_pages_may_watch_and_not_one_more(site, monkeypatch):
    monkeypatch.setattr("pytorch_spawner.lab.feed.MAX_VIEWERS", 1)
    async with site.stream("api/live", "admin") as stream:
        await stream.next()
        assert (await site.get("api/live", token="admin")).status == 429
