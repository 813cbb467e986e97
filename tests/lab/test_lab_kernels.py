"""Which notebook holds what: what is asked of a container, when, and what becomes of the answer."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio
from lab_containers import IDLE, KERNEL, Containers, kernel, printed, put_containers
from lab_fakes import BY_HAND, ENTER, GPU, HUB, FakeLease, MemoryLedger, server_scope
from lab_site import Answer, Site, run_site

from pytorch_spawner.adapters.inside import NoAnswer, NotRunning
from pytorch_spawner.core.changes import say_change
from pytorch_spawner.core.gpus import GpuUuid
from pytorch_spawner.core.metering import GpuProcess, Sample
from pytorch_spawner.core.placement import Holding
from pytorch_spawner.errors import EngineRefused
from pytorch_spawner.lab import looking
from pytorch_spawner.lab.fair_turns import FairTurns
from pytorch_spawner.lab.looking import Kernels
from pytorch_spawner.lab.settings import LabSettings

pytestmark = BY_HAND
UUID = GpuUuid(GPU["uuid"])
PATH = "api/servers/ana/memory"


@pytest_asyncio.fixture
async def lab(ledger: Any) -> AsyncIterator[Site]:
    async for running in run_site(ledger):
        running.begin("ana")
        running.hub.add("admin", "adam", ENTER, "custom:lab:admin")
        yield running


@pytest.fixture
def containers(lab: Site) -> Containers:
    return put_containers(lab)


def hold(ledger: MemoryLedger, *, slots: int = 1) -> None:
    lease = FakeLease("l", HUB, "s", "ana", "", (Holding(UUID, 0, slots),), {}, 0.0)
    ledger.all_leases.append(lease)


def measured(*processes: GpuProcess, used_mib: int | None = 20_000) -> Any:
    """A meter that saw these processes on the GPU."""
    return SimpleNamespace(
        latest={UUID: Sample(1.0, 5.0, used_mib)}, processes={UUID: tuple(processes)}
    )


def looks(ledger: MemoryLedger, meter: Any, ask: Any, inside: dict[int, int]) -> Kernels:
    settings = LabSettings(HUB, "", "http://127.0.0.1:1", "token")
    return Kernels(settings, ledger, meter, ask=ask, pid_inside=inside.get)  # type: ignore[arg-type]


async def test_the_owner_sees_what_each_notebook_holds(lab: Site, containers: Containers) -> None:
    containers.said["ana/"] = printed(
        kernel(),
        kernel(IDLE, "nlp.ipynb", state="idle", idle_s=2400, memory_mib=11_264, pids=[82, 83]),
        others=[{"pid": 99, "name": "python3 train.py", "kind": "terminal", "path": "",
                 "pids": [98, 99], "memory_mib": 300, "uses_gpu": False}],
    )  # fmt: skip
    said = (await lab.get(PATH)).json
    assert said["sentence"] == (
        "nlp.ipynb holds 11 GiB of your server's memory and has done nothing for 40 min."
    )
    first, second = said["kernels"]
    assert (first["notebook"], first["idle_s"], first["processes"]) == ("nlp.ipynb", 2400, 2)
    assert (second["notebook"], second["path"]) == ("cv-03.ipynb", "week-1/cv-03.ipynb")
    assert (second["state"], second["memory_mib"], second["gpu_mib"]) == ("busy", 2150, 0)
    (other,) = said["others"]
    assert (other["notebook"], other["kind"], other["pid"]) == ("python3 train.py", "terminal", 99)
    assert said["gpus"] == []


async def test_an_admin_reads_whose_it_is(lab: Site, containers: Containers) -> None:
    said = (await lab.get(PATH, token="admin")).json
    assert (
        said["sentence"] == "cv-03.ipynb holds 2.1 GiB of ana's server's memory and is computing."
    )
    assert (await lab.get(PATH, token="kim-page")).status == 403, "who may only look at the lab"
    assert (await lab.get(PATH, token="bo-page")).status == 403


async def test_nobody_is_asked_before_somebody_looks_and_then_once(
    lab: Site, containers: Containers
) -> None:
    await lab.get("servers/ana")
    assert containers.asked == []
    answers = await asyncio.gather(*(lab.get(PATH) for _ in range(5)))
    assert [answer.status for answer in answers] == [200] * 5
    assert containers.asked == [("ana", "", ())]
    lab.lab.kernels._looked.clear()
    await lab.get(PATH)
    assert len(containers.asked) == 2


async def test_a_gpus_memory_is_told_by_notebook(ledger: MemoryLedger) -> None:
    hold(ledger)
    containers = Containers()
    containers.said["ana/"] = printed(
        kernel(uses_gpu=True, pids=[54, 60]),
        kernel(IDLE, "nlp.ipynb", state="idle", idle_s=2400, pids=[82], uses_gpu=True),
        kernel("third", "third.ipynb", pids=[85]),
    )
    meter = measured(
        GpuProcess(1054, "python3", 6000, "ana", ""),
        GpuProcess(1060, "python3", 500, "ana", ""),
        GpuProcess(1082, "python3", 11_264, "ana", ""),
        GpuProcess(4000, "python3", 2000, "bo", ""),
        used_mib=80_000,
    )
    it = looks(ledger, meter, containers, {1054: 54, 1060: 60, 1082: 82, 4000: 54})
    said = (await it.look("ana", "", "ana")).as_json("your")
    assert [(one["notebook"], one["gpu_mib"]) for one in said["kernels"]] == [
        ("nlp.ipynb", 11_264),
        ("cv-03.ipynb", 6500),
        ("third.ipynb", 0),
    ]
    assert said["sentence"] == (
        "Your GPU is nearly full: 78 GiB of 80 GiB in use. "
        "nlp.ipynb holds 11 GiB of your GPU and has done nothing for 40 min."
    )
    assert containers.asked == [("ana", "", ())], "the driver is asked outside"


async def test_of_a_slot_only_the_own_share_counts(ledger: MemoryLedger) -> None:
    hold(ledger, slots=4)
    containers = Containers()
    containers.said["ana/"] = printed(kernel(uses_gpu=True))
    meter = measured(
        GpuProcess(1054, "python3", 19_000, "ana", ""), GpuProcess(2, "x", 60_000, "bo", "")
    )
    (share,) = (
        await looks(ledger, meter, containers, {1054: 54, 2: 2}).look("ana", "", "ana")
    ).shares
    assert (share.total_mib, share.used_mib, share.is_slot) == (81_559 // 4, 19_000, True)
    assert share.is_nearly_full


@pytest.mark.parametrize(
    "processes",
    [
        pytest.param((), id="no process is listed"),
        pytest.param((GpuProcess(1054, "python3", None, "ana", ""),), id="no size is said"),
        pytest.param((GpuProcess(1054, "mps", 900, is_told=False),), id="nobody knows whose"),
    ],
)
async def test_what_the_driver_does_not_say_is_unknown_and_not_nothing(
    ledger: MemoryLedger, processes: tuple[GpuProcess, ...]
) -> None:
    hold(ledger)
    containers = Containers()
    containers.said["ana/"] = printed(kernel(uses_gpu=True))
    it = looks(ledger, measured(*processes), containers, {1054: 54})
    looked = await it.look("ana", "", "ana")
    assert looked.found.kernels[0].gpu_mib is None
    assert "uses your GPU (how much is unknown)" in looked.as_json("your")["sentence"]


async def test_where_the_service_sees_no_driver_the_containers_own_is_asked(
    ledger: MemoryLedger,
) -> None:
    hold(ledger)
    containers = Containers()
    containers.said["ana/"] = printed(kernel(uses_gpu=True), gpu={"54": 7000})
    nothing = SimpleNamespace(latest={}, processes={})
    looked = await looks(ledger, nothing, containers, {}).look("ana", "", "ana")
    assert looked.found.kernels[0].gpu_mib == 7000
    assert looked.shares[0].used_mib is None
    assert containers.asked == [("ana", "", ("--gpu",))]


async def test_a_kernel_is_shut_down_and_the_next_look_is_a_new_one(
    lab: Site, containers: Containers
) -> None:
    await lab.get(PATH)
    answer = await lab.send("DELETE", f"api/servers/ana/kernels/{KERNEL}", token="ana-page")
    assert (answer.status, answer.json) == (
        200,
        {"stopped": KERNEL, "notebook": "cv-03.ipynb", "change": None},
    )
    assert containers.stopped == [f"ana/ {KERNEL}"]
    assert lab.ledger.notes == [], "one's own notebooks are nobody's business"
    containers.said["ana/"] = printed()
    assert (await lab.get(PATH)).json["sentence"] == "No notebook is open."


async def test_of_a_named_server_too(lab: Site, containers: Containers) -> None:
    lab.begin("ana", "thesis")
    assert (await lab.get("api/servers/ana/thesis/memory")).status == 200
    path = f"api/servers/ana/thesis/kernels/{KERNEL}"
    assert (await lab.send("DELETE", path, token="ana-page")).status == 200
    assert containers.stopped == [f"ana/thesis {KERNEL}"]
    # A server may have any name, that of a route as well.
    lab.begin("ana", "kernels")
    assert (await lab.get("api/servers/ana/kernels/memory")).status == 200
    path = f"api/servers/ana/kernels/kernels/{KERNEL}"
    assert (await lab.send("DELETE", path, token="ana-page")).status == 200
    assert containers.stopped[-1] == f"ana/kernels {KERNEL}"


async def test_an_admin_who_does_it_leaves_a_line_first(lab: Site, containers: Containers) -> None:
    containers.said["ana/"] = printed(kernel())
    answer = await lab.send("DELETE", f"api/servers/ana/kernels/{KERNEL}", token="admin")
    assert answer.json["change"] == 1
    line = ("adam", "kernel", "ana/", {"notebook": "cv-03.ipynb", "kernel": KERNEL})
    assert lab.ledger.notes == [line]
    answer = await lab.send("DELETE", f"api/servers/ana/kernels/{KERNEL}", token="bo-page")
    assert (answer.status, answer.code) == (403, "forbidden")
    assert lab.ledger.notes[1][:2] == ("bo", "refused")
    assert len(containers.stopped) == 1


async def test_a_shutdown_that_came_to_nothing_is_said_in_the_log(
    lab: Site, containers: Containers
) -> None:
    def ask(username: str, servername: str, arguments: Any) -> str:
        return '{"v": 1, "status": 500}' if arguments else printed(kernel())

    lab.lab.kernels.ask = ask
    answer = await lab.send("DELETE", f"api/servers/ana/kernels/{KERNEL}", token="admin")
    assert answer.code == "no-answer"
    asked, failed = lab.ledger.notes
    assert say_change("kernel", "ana/", None, asked[3]) == (
        "Asked to shut down the kernel of cv-03.ipynb in the server ana."
    )
    assert failed[:3] == ("adam", "kernel", "ana/")
    assert say_change("kernel", "ana/", None, failed[3]).startswith(
        "It is not known that the kernel of cv-03.ipynb in the server ana was shut down: "
        "JupyterLab did not shut the kernel down."
    )
    await lab.send("DELETE", f"api/servers/ana/kernels/{KERNEL}", token="ana-page")
    assert len(lab.ledger.notes) == 2, "one's own notebooks are nobody's business"


async def test_a_failure_that_cannot_be_noted_is_answered_all_the_same(
    lab: Site, containers: Containers
) -> None:
    def ask(username: str, servername: str, arguments: Any) -> str:
        if arguments:
            lab.ledger.is_broken = True
            raise NoAnswer("It has no python3.")
        return printed(kernel())

    lab.lab.kernels.ask = ask
    answer = await lab.send("DELETE", f"api/servers/ana/kernels/{KERNEL}", token="admin")
    assert (answer.status, answer.json["message"]) == (503, "It has no python3.")
    assert len(lab.ledger.notes) == 1


async def test_a_page_of_another_site_shuts_nothing_down(lab: Site, containers: Containers) -> None:
    answer = await lab.send(
        "DELETE",
        f"api/servers/ana/kernels/{KERNEL}",
        token="ana-page",
        Origin="https://evil.example",
        Sec_Fetch_Site="cross-site",
    )
    assert (answer.status, answer.code) == (403, "foreign-origin")
    assert containers.asked == []


async def test_a_kernel_that_is_not_there_is_none(lab: Site, containers: Containers) -> None:
    answer = await lab.send("DELETE", f"api/servers/ana/kernels/{IDLE}", token="ana-page")
    assert (answer.status, answer.code) == (404, "no-such-kernel")
    assert containers.stopped == []


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (NotRunning("This server does not run (any more)."), 404, "not-running"),
        (NoAnswer("It has no python3."), 503, "no-answer"),
        (EngineRefused("No."), 503, "engine-unavailable"),
    ],
    ids=["no container", "no answer", "no engine"],
)
async def test_a_server_that_cannot_be_asked_is_said_with_a_remedy(
    lab: Site, containers: Containers, error: Exception, status: int, code: str
) -> None:
    containers.error = error
    answer = await lab.get(PATH)
    assert (answer.status, answer.code) == (status, code)
    assert answer.json["message"].endswith(".")
    containers.error = None
    assert (await lab.get(PATH)).status == 200, "a failure is not remembered"


async def test_a_server_that_does_not_run_is_not_asked(lab: Site, containers: Containers) -> None:
    lab.ledger.end_start("start-1", "stopped")
    assert (await lab.get(PATH)).code == "not-running"
    assert (await lab.get("api/servers/ana/never/memory")).code == "not-running"
    assert containers.asked == []


@pytest.mark.parametrize("said", ["", "no JSON", "[]", '{"v": 2}', "[" * 100_000])
async def test_an_answer_that_is_none_is_refused(
    lab: Site, containers: Containers, said: str
) -> None:
    containers.said["ana/"] = said
    answer = await lab.get(PATH)
    assert (answer.status, answer.code) == (503, "no-answer")


async def test_a_container_that_hangs_holds_up_nobody_else(
    lab: Site, containers: Containers, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.begin("bo")
    monkeypatch.setattr(looking, "LIST_PATIENCE_S", 0.5)
    gone = threading.Event()

    asked = []

    def ask(username: str, servername: str, arguments: Any) -> str:
        asked.append(username)
        if username == "ana" and len(asked) < 3:
            gone.wait(20)
        return printed(kernel())

    lab.lab.kernels.ask = ask
    began = time.monotonic()
    hanging = asyncio.create_task(lab.get(PATH))
    assert (await lab.get("api/servers/bo/memory", token="bo-page")).status == 200
    answer = await hanging
    assert (await lab.get(PATH)).code == "no-answer"
    assert asked.count("ana") == 1, "a question that hangs is not asked once more"
    gone.set()
    await asyncio.sleep(0.2)
    assert (await lab.get(PATH)).status == 200
    assert (answer.status, answer.code) == (503, "no-answer")
    assert "short of memory" in answer.json["message"]
    assert time.monotonic() - began < 5


async def test_what_jupyterlab_does_not_do_is_said(lab: Site) -> None:
    def ask(username: str, servername: str, arguments: Any) -> str:
        return '{"v": 1, "status": 500}' if arguments else printed(kernel())

    lab.lab.kernels.ask = ask
    answer = await lab.send("DELETE", f"api/servers/ana/kernels/{KERNEL}", token="ana-page")
    assert (answer.status, answer.code) == (503, "no-answer")
    assert "shut it down in JupyterLab" in answer.json["message"]


async def test_a_page_that_may_not_look_has_no_address_for_it(
    lab: Site, containers: Containers
) -> None:
    def config(text: str) -> dict[str, Any]:
        quoted = text.partition('data-config="')[2].partition('"')[0]
        return dict(json.loads(quoted.replace("&#34;", '"')))

    own = config((await lab.get("servers/ana")).text)
    assert own["memoryUrl"] == "/services/lab/api/servers/ana//memory"
    assert config((await lab.get("servers/ana", token="kim-page")).text)["memoryUrl"] == ""
    lab.hub.add("tutor", "tom", ENTER, server_scope("ana"))
    assert config((await lab.get("servers/ana", token="tutor")).text)["memoryUrl"]


# -- many who look at once -------------------------------------------------------------------------


class Crowded:
    """Containers of which some hang until they are let go; counts what is asked at once."""

    def __init__(self, *hanging: str) -> None:
        self.hanging, self.free = set(hanging), threading.Event()
        self.now, self.most, self.lock = 0, 0, threading.Lock()

    def __call__(self, username: str, servername: str, arguments: Any) -> str:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        if username in self.hanging:
            self.free.wait(30)
        with self.lock:
            self.now -= 1
        return printed(kernel())


async def first_answers(asked: list[asyncio.Task[Answer]], count: int) -> list[Answer]:
    """The answers of so many, which come while the others wait."""
    give_up_at = time.monotonic() + 20
    while sum(task.done() for task in asked) < count and time.monotonic() < give_up_at:
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.2)
    answers = [task.result() for task in asked if task.done()]
    assert len(answers) == count
    return answers


@pytest.fixture
def hanging(lab: Site) -> Iterator[Crowded]:
    """Two hundred servers that answer nobody."""
    names = [f"s{number}" for number in range(200)]
    for name in names:
        lab.begin(name)
    crowded = Crowded(*names)
    lab.lab.kernels.ask = crowded
    yield crowded
    crowded.free.set()


async def test_an_admin_who_opens_200_servers_that_hang_keeps_no_student_waiting(
    lab: Site, hanging: Crowded
) -> None:
    paths = [f"api/servers/{name}/memory" for name in sorted(hanging.hanging)]
    asked = [asyncio.create_task(lab.get(path, token="admin")) for path in paths]
    refused = await first_answers(asked, len(paths) - looking.MOST_OF_ONE)
    assert {(one.status, one.code) for one in refused} == {(429, "too-many-requests")}
    assert {one.headers["Retry-After"] for one in refused} == {"5"}
    assert hanging.most == looking.AT_ONCE // 2
    began = time.monotonic()
    assert (await lab.get(PATH)).status == 200
    assert time.monotonic() - began < looking.TURN_PATIENCE_S / 2
    hanging.free.set()
    assert {task.result().status for task in (await asyncio.wait(asked))[0]} == {200, 429}
    assert (await lab.get(paths[-1], token="admin")).status == 200, "they are counted off again"


async def test_who_asks_for_thousands_of_servers_that_do_not_run_is_refused_before_they_are_read(
    lab: Site, containers: Containers
) -> None:
    reads, going = [], threading.Event()
    latest = lab.ledger.latest_start

    def slow(hub: str, username: str, servername: str) -> Any:
        if servername.startswith("x"):
            reads.append(servername)
            going.wait(30)
        return latest(hub, username, servername)

    lab.ledger.latest_start = slow
    paths = [f"api/servers/ana/x{number}/memory" for number in range(300)]
    asked = [asyncio.create_task(lab.get(path)) for path in paths]
    try:
        refused = await first_answers(asked, len(paths) - looking.MOST_OF_ONE)
        assert {answer.status for answer in refused} == {429}
        assert 0 < len(reads) <= looking.MOST_OF_ONE
    finally:
        going.set()
    statuses = [(await task).status for task in asked]
    assert statuses.count(404) == looking.MOST_OF_ONE
    assert containers.asked == []


async def test_nobody_waits_longer_than_a_while_for_a_turn(lab: Site, hanging: Crowded) -> None:
    lab.lab.kernels.turns = FairTurns(2, 16, 0.3)
    lab.hub.add("second", "eva", ENTER, "custom:lab:admin")
    holds = [
        asyncio.create_task(lab.get(f"api/servers/s{number}/memory", token=token))
        for number, token in enumerate(("admin", "second"))
    ]
    await asyncio.sleep(0.2)
    answer = await lab.get(PATH)
    assert (answer.status, answer.code, answer.headers["Retry-After"]) == (503, "too-busy", "5")
    hanging.free.set()
    assert [(await task).status for task in holds] == [200, 200]
    assert (await lab.get(PATH)).status == 200


async def test_who_joins_anothers_look_does_not_wait_in_the_others_line(
    lab: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ana", "bo", "eve"):
        lab.begin(name)
    crowded = Crowded("bo", "eve")
    lab.lab.kernels.ask = crowded
    lab.lab.kernels.turns = FairTurns(looking.AT_ONCE, looking.MOST_OF_ONE, 1.0)
    try:
        # The admin's half is taken by two that hang; the third waits for a turn in vain.
        admins = [
            asyncio.create_task(lab.get(f"api/servers/{name}/memory", token="admin"))
            for name in ("bo", "eve", "ana")
        ]
        await asyncio.sleep(0.3)
        answer = await lab.get("api/servers/ana//memory", token="ana-page")
        assert answer.status == 200, answer.text
        assert (await admins[2]).code == "too-busy"
    finally:
        crowded.free.set()
    await asyncio.gather(*admins)
