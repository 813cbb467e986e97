"""Pages, small routes, rights, headers: everything that is not the journal itself."""

from __future__ import annotations

import re

import aiohttp
import pytest
from lab_fakes import BY_HAND, ENTER, FOR_REAL, GPU, HUB, FakeLease, FakeWaiting
from yarl import URL

from pytorch_spawner.core.gpus import Gpu, GpuUuid, Inventory
from pytorch_spawner.core.grants import Grant
from pytorch_spawner.core.placement import DeviceSetting, Holding
from pytorch_spawner.core.tickets import Decisions, Give, Ticket, Wait
from pytorch_spawner.lab.limits import TokenBuckets, retry_after
from pytorch_spawner.lab.settings import BadSettings, read_settings

ENV = {
    "PYTORCH_SPAWNER_LEDGER": "sqlite:///x",
    "JUPYTERHUB_API_TOKEN": "t",
    "JUPYTERHUB_SERVICE_URL": "http://172.18.0.1:10110",
}


async def test_health_needs_no_login(site):
    assert (await site.get("health", token="")).json == {"status": "ok"}


@BY_HAND
async def test_health_tells_that_the_ledger_is_away(site):
    site.ledger.is_broken = True
    assert (await site.get("health", token="")).status == 503


async def test_me(site):
    site.begin()
    site.begin("ana", "thesis")
    me = (await site.get("api/me")).json
    assert (me["name"], me["can_view_all"], me["can_admin"]) == ("ana", False, False)
    assert {server["page"] for server in me["servers"]} == {
        "/services/lab/servers/ana/",
        "/services/lab/servers/ana/thesis",
    }


@pytest.mark.parametrize("path", ["api/me", "api/gpus", "api/leases", "api/queue"])
async def test_the_api_needs_a_login_and_the_right_to_enter(site, path):
    assert (await site.get(path, token="")).code == "not-logged-in"
    answer = await site.get(path, token="ana-server")
    assert (answer.status, answer.code) == (403, "forbidden")


UUID = GpuUuid(GPU["uuid"])


@pytest.fixture
def held(site):
    """Two of the GPU's four slots are held, and two people wait."""
    site.ledger.all_settings = [DeviceSetting(UUID, pool="vision", mode="shared:4")]
    site.ledger.all_leases = [
        FakeLease("l1", "test", "s1", "ana", "", (Holding(UUID, 2, 4),), {}, 1.0, until=99.0),
        FakeLease("l2", "test", "s2", "bo", "", (Holding(UUID, 0, 4),), {}, 2.0, kept_until=7.0),
    ]
    site.ledger.all_waiting = [
        FakeWaiting(Ticket("s3", "eve", since=3.0), 1, 2, 99.0, "Nobody is ahead of you."),
        FakeWaiting(
            Ticket("s4", "ana", "thesis", gpus=2, since=4.0), 2, 2, None, "1 ahead of you."
        ),
    ]
    return site


@BY_HAND
async def test_a_student_sees_the_own_lease_and_no_other_name(held):
    (lease,) = (await held.get("api/leases")).json["leases"]
    assert (lease["id"], lease["slots"], lease["until"]) == ("l1", [2], 99.0)
    gpus = await held.get("api/gpus")
    assert (gpus.json["gpus"][0]["leases"], gpus.json["gpus"][0]["mine"]) == (2, True)
    assert '"bo"' not in gpus.text
    assert "holders" not in gpus.text


@BY_HAND
async def test_a_viewer_sees_who_holds_which_slot_until_when(held):
    leases = (await held.get("api/leases", token="kim-page")).json["leases"]
    assert [lease["user"] for lease in leases] == ["ana", "bo"]
    (gpu,) = (await held.get("api/gpus", token="kim-page")).json["gpus"]
    assert [
        (one["user"], one["slot"], one["since"], one["until"], one["kept_until"])
        for one in gpu["holders"]
    ] == [("bo", 0, 2.0, None, 7.0), ("ana", 2, 1.0, 99.0, None)]


@BY_HAND
async def test_a_gpu_is_shown_as_the_admin_set_it(held):
    (gpu,) = (await held.get("api/gpus")).json["gpus"]
    assert (gpu["pool"], gpu["mode"], gpu["slots"]) == ("vision", "shared:4", 4)
    cut = Gpu(UUID, memory_mib=GPU["memory_mib"], mode="shared:4")
    assert (gpu["slot_memory_mib"], gpu["drained"]) == (cut.slot_memory_mib, "")
    held.ledger.all_settings = [DeviceSetting(UUID, drained="Its fan is loud.")]
    held.ledger.all_leases = []
    (gpu,) = (await held.get("api/gpus")).json["gpus"]
    assert (gpu["mode"], gpu["drained"]) == ("exclusive", "Its fan is loud.")


@BY_HAND
async def test_a_gpu_in_use_shows_its_old_mode_until_it_is_empty(held):
    held.ledger.all_settings = [DeviceSetting(UUID, mode="exclusive")]
    (gpu,) = (await held.get("api/gpus")).json["gpus"]
    assert (gpu["mode"], gpu["slots"]) == ("shared:4", 4)
    assert gpu["drained"] == "It becomes exclusive once nobody holds it."


@BY_HAND
async def test_a_whole_gpu_has_no_slot_number(held):
    held.ledger.all_settings = []
    held.ledger.all_leases = [FakeLease("l1", "test", "s1", "ana", "", (Holding(UUID),), {}, 1.0)]
    (gpu,) = (await held.get("api/gpus", token="kim-page")).json["gpus"]
    assert [holder["slot"] for holder in gpu["holders"]] == [None]
    assert (await held.get("api/leases")).json["leases"][0]["slots"] == [None]


@BY_HAND
async def test_a_student_sees_the_own_place_and_how_long_the_queue_is(held):
    queue = await held.get("api/queue")
    assert queue.json["length"] == 2
    (mine,) = queue.json["waiting"]
    assert (mine["start"], mine["server"], mine["gpus"]) == ("s4", "thesis", 2)
    assert (mine["place"], mine["of"], mine["ahead"]) == (2, 2, 1)
    assert (mine["reason"], mine["expected_at"], mine["since"]) == ("1 ahead of you.", None, 4.0)
    assert "eve" not in queue.text


@BY_HAND
async def test_a_viewer_sees_the_whole_queue_in_its_order(held):
    waiting = (await held.get("api/queue", token="kim-page")).json["waiting"]
    assert [(one["user"], one["place"], one["expected_at"]) for one in waiting] == [
        ("eve", 1, 99.0),
        ("ana", 2, None),
    ]


@BY_HAND
async def test_a_ledger_in_trouble_is_an_answer_with_a_code(held):
    held.ledger.is_broken = True
    for path in ("api/gpus", "api/queue", "api/leases"):
        answer = await held.get(path)
        assert (answer.status, answer.code) == (503, "ledger-unavailable")


@FOR_REAL
async def test_the_real_ledger_says_who_holds_what_and_who_waits(site):
    ledger, gpu = site.ledger, Gpu(UUID, memory_mib=81559)
    ledger.write_inventory(HUB, Inventory((gpu,)))
    setting = DeviceSetting(UUID, mode="shared:2")
    ledger.change_setting(HUB, UUID, "root", lambda _: setting)
    for name in ("ana", "bo"):
        ledger.join(site.begin(name))

    def decide(state):
        first, second = state.tickets
        give = Give(first, (gpu,), (Holding(UUID, 1, 2),), Grant("all"), state.now + 60, "everyone")
        return Decisions(give=(give,), wait=(Wait(second, 1, 1, state.now + 60, "ana"),))

    ledger.decide(HUB, decide)
    (shown,) = (await site.get("api/gpus", token="kim-page")).json["gpus"]
    (holder,) = shown["holders"]
    assert (holder["user"], holder["slot"], shown["mode"]) == ("ana", 1, "shared:2")
    assert holder["until"] == pytest.approx(holder["since"] + 60, abs=1)
    (lease,) = (await site.get("api/leases")).json["leases"]
    assert (lease["grant"], lease["slots"]) == ("all", [1])
    (waiting,) = (await site.get("api/queue", token="bo-page")).json["waiting"]
    assert (waiting["place"], waiting["of"], waiting["expected_at"]) == (1, 1, holder["until"])
    assert waiting["reason"].endswith("when ana's time ends.")


async def test_metrics_are_for_prometheus_and_viewers(site):
    site.hub.add("prometheus", "prometheus", "read:metrics", kind="service")
    assert (await site.get("metrics")).status == 403
    assert "lab_viewers" in (await site.get("metrics", token="prometheus")).text


async def test_unknown_addresses(site):
    answer = await site.get("api/nothing")
    assert (answer.status, answer.code) == (404, "not-found")
    assert (await site.post([], path="api/me")).status == 405


async def test_home_leads_to_the_one_server_and_lists_several(site):
    assert (await site.get("")).headers["Location"] == "/services/lab/servers/ana/"
    site.begin("ana", "thesis")
    listed = await site.get("")
    assert listed.status == 200
    assert 'href="/services/lab/servers/ana/thesis"' in listed.text


async def test_the_page_of_the_own_server_is_there_before_its_first_start(site):
    answer = await site.get("servers/ana/")
    assert answer.status == 200
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"<script(?![^>]*\bsrc=)", answer.text)
    assert not re.search(r"\son[a-z]+=|style=", answer.text)


@pytest.mark.parametrize(
    ("path", "token", "status"),
    [
        ("servers/ana/", "bo-page", 403),
        ("servers/ana/", "kim-page", 404),
        ("servers/ana/ghost", "ana-page", 404),
        ("servers/ana/", "ana-server", 403),
    ],
    ids=["another student", "a viewer, never started", "a name that is none", "a container"],
)
async def test_pages_that_are_refused(site, path, token, status):
    answer = await site.get(path, token=token)
    assert answer.status == status
    assert answer.headers["Content-Type"].startswith("text/html")


async def test_names_are_escaped_on_the_page(site):
    name = "<'&\">"
    site.hub.add("odd", name, ENTER)
    answer = await site.get(f"servers/{URL.build(path='/' + name).raw_path[1:]}/", token="odd")
    assert answer.status == 200
    assert name not in answer.text


async def test_static_files_need_no_login_and_are_kept_by_version(site):
    page = (await site.get("servers/ana/")).text
    src = re.search(r'src="/services/lab/(static/landing.js\?v=[0-9a-f]{12})"', page)
    versioned = await site.get(src[1], token="")
    assert "immutable" in versioned.headers["Cache-Control"]
    assert "javascript" in versioned.headers["Content-Type"]
    plain = await site.get("static/journal.js", token="")
    assert plain.headers["Cache-Control"] == "no-cache"
    again = await site.get(
        "static/journal.js", token="", **{"If-None-Match": plain.headers["Etag"]}
    )
    assert again.status == 304
    assert (await site.get("static/..%2f..%2fsetup.cfg", token="")).status in (403, 404)


async def test_a_browser_logs_in_by_oauth_and_its_cookie_reads_but_never_writes(site):
    site.hub.browser_user_token = "ana-page"
    start = site.begin()
    # yarl's jar keeps cookies of an address only when told that it may
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as browser:
        async with browser.get(f"{site.url}servers/ana/", max_redirects=5) as page:
            assert page.status == 200
            text = await page.text()
        xsrf = re.search(r"&#34;xsrf&#34;: &#34;([^&]+)&#34;", text)[1]
        events = f"{site.url}api/servers/ana//events?format=json"
        fetch = {"Sec-Fetch-Mode": "cors", "Sec-Fetch-Site": "same-origin"}
        async with browser.get(f"{events}&_xsrf={xsrf}", headers=fetch) as answer:
            assert answer.status == 200
        # A student's page may have the same origin; it must not read, nor find the token.
        for path in ("api/servers/ana//events?format=json", "api/me", "api/gpus", "gpus"):
            async with browser.get(
                f"{site.url}{path}", headers=fetch, allow_redirects=False
            ) as answer:
                assert answer.status in (302, 403)
                assert xsrf not in await answer.text()
        body = b'{"v":1,"events":[{"kind":"check","data":{}}]}'
        async with browser.post(f"{events}&_xsrf={xsrf}", data=body, headers=fetch) as answer:
            assert answer.status == 401
    assert site.ledger.read_events(start.id) == ()


async def test_nobody_is_sent_to_the_hub_and_back_to_where_they_wanted(site):
    answer = await site.get("servers/ana/", token="")
    assert answer.status == 302
    assert answer.headers["Location"].startswith("/hub/api/oauth2/authorize?")


def test_settings_come_from_the_hub():
    settings = read_settings({**ENV, "PYTORCH_SPAWNER_RECONCILE_S": "5"})
    assert (settings.host, settings.port, settings.reconcile_s) == ("172.18.0.1", 10110, 5.0)
    assert (settings.prefix, settings.hub_prefix) == ("/services/lab/", "/hub/")


def test_a_site_below_a_path():
    settings = read_settings(
        {**ENV, "JUPYTERHUB_BASE_URL": "/x/", "JUPYTERHUB_SERVICE_PREFIX": "/x/services/lab/"}
    )
    assert (settings.prefix, settings.hub_prefix) == ("/x/services/lab/", "/x/hub/")


def test_every_missing_setting_is_named():
    with pytest.raises(BadSettings) as caught:
        read_settings({"PYTORCH_SPAWNER_RECONCILE_S": "soon"})
    for name in ("LEDGER", "API_TOKEN", "SERVICE_URL", "RECONCILE_S"):
        assert name in caught.value.public_message


def test_a_bucket_empties_and_fills_again():
    buckets = TokenBuckets(rate=2, burst=4)
    assert [buckets.take("a", 2, 0.0) for _ in range(2)] == [0.0, 0.0]
    assert buckets.take("a", 2, 0.0) == 1.0
    assert buckets.take("b", 4, 0.0) == 0.0
    assert buckets.take("a", 2, 1.0) == 0.0
    assert retry_after(0.01) == "1"


def test_buckets_are_forgotten_when_there_are_too_many():
    buckets = TokenBuckets(rate=1, burst=1, most=2)
    for key in "abc":
        buckets.take(key, 1, 0.0)
    assert buckets.take("a", 1, 0.0) == 0.0
    assert buckets.take("c", 1, 0.0) > 0
