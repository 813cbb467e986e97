"""The meter of the service: with a driver, without one, and with everything around it failing."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
from lab_fakes import FakeLease

from pytorch_spawner.adapters import one_at_a_time
from pytorch_spawner.adapters.engine import LabContainer
from pytorch_spawner.adapters.nvml_meter import Reading
from pytorch_spawner.adapters.one_at_a_time import OneAtATime
from pytorch_spawner.core.gpus import Gpu, GpuUuid, Inventory
from pytorch_spawner.core.metering import GpuProcess, Sample
from pytorch_spawner.core.placement import Holding
from pytorch_spawner.core.plan import LABEL
from pytorch_spawner.errors import EngineUnavailable, LedgerUnavailable
from pytorch_spawner.lab import measure
from pytorch_spawner.lab.measure import Meter
from pytorch_spawner.lab.settings import LabSettings
from pytorch_spawner.ledger.store import Lease, Ledger

A, B = GpuUuid("GPU-aaaa"), GpuUuid("GPU-bbbb")
SETTINGS = LabSettings("hub", "sqlite://", "http://127.0.0.1:1", "token")
# 1000 days after the epoch, at noon.
NOON = 1000 * 86400 + 43200.0


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


class FakeLedger:
    def __init__(self) -> None:
        self.gpus: tuple[Gpu, ...] = (Gpu(A), Gpu(B, 1))
        self.all_leases: list[FakeLease] = []
        self.written: list[list[tuple[int, str, str, str, float]]] = []
        self.looks = 0
        self.read_error: Exception | None = None
        self.write_error: Exception | None = None
        self.hook: Callable[[], Any] = lambda: None

    def leases(self, hub: str) -> list[FakeLease]:
        assert hub == "hub"
        self.looks += 1
        self.hook()
        if self.read_error:
            raise self.read_error
        return list(self.all_leases)

    def read_inventory(self, hub: str) -> Inventory:
        return Inventory(self.gpus, "" if self.gpus else "The hub has seen no GPU.")

    def add_busy(self, hub: str, rows: Sequence[tuple[int, str, str, str, float]]) -> None:
        assert hub == "hub"
        if self.write_error:
            raise self.write_error
        self.written.append(list(rows))


def lease(user: str, *gpus: str, server: str = "", course: str = "", **more: Any) -> FakeLease:
    return FakeLease(
        f"lease-{user}-{server}", "hub", "start", user, server,
        tuple(Holding(GpuUuid(gpu)) for gpu in gpus), {"course": course} if course else {}, 0.0,
        **more,
    )  # fmt: skip


def container(number: int, server: str, hub: str = "hub") -> LabContainer:
    labels = {LABEL + "hub": hub, LABEL + "server": server}
    return LabContainer(f"{number:064x}", f"c{number}", is_running=True, labels=labels)


def threads(name: str) -> int:
    return sum(thread.name == name for thread in threading.enumerate())


class Lab:
    """A meter with everything around it."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.ledger = FakeLedger()
        self.busy: dict[GpuUuid, float | None] = {A: 50.0, B: 0.0}
        self.running: dict[GpuUuid, list[tuple[int, str, int | None]]] = {A: [], B: []}
        self.places: dict[int, Sequence[str] | None] = {}
        self.listed: list[LabContainer] = []
        self.lists = 0
        self.reason = ""
        self.read_hook: Callable[[], Any] = lambda: None
        self.list_hook: Callable[[], Any] = lambda: None
        self.changes = 0
        self.meter = Meter(
            SETTINGS, self.ledger, read=self.read, containers=self.list,
            containers_of=lambda pid: self.places.get(pid), clock=self.clock,
        )  # fmt: skip
        self.meter.on_change.append(self.note)

    def note(self) -> None:
        self.changes += 1

    def read(self) -> Reading:
        at = self.clock()
        self.read_hook()
        samples = {uuid: Sample(at, busy, 100, 40.0, 70.0) for uuid, busy in self.busy.items()}
        return Reading(samples, {u: list(p) for u, p in self.running.items()}, self.reason)

    def list(self) -> list[LabContainer]:
        self.lists += 1
        self.list_hook()
        return self.listed

    async def steps(self, number: int = 1, every_s: float = 5.0) -> None:
        for _ in range(number):
            await self.meter.step()
            self.clock.now += every_s

    def run_in(self, pid: int, number: int) -> None:
        self.places[pid] = (f"{number:064x}",)


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setattr(one_at_a_time, "PATIENCE_S", 0.3)
    return Lab()


# -- with a driver --------------------------------------------------------------------------------


async def test_what_the_driver_says_is_shown_kept_and_told(lab: Lab) -> None:
    assert (lab.meter.source, lab.meter.latest) == ("none", {})
    lab.busy[GpuUuid("GPU-of-another-lab")] = 5.0
    await lab.meter.step()
    assert lab.meter.source == "driver"
    assert lab.meter.reason == ""
    assert lab.meter.latest == {
        A: Sample(NOON, 50.0, 100, 40.0, 70.0),
        B: Sample(NOON, 0.0, 100, 40.0, 70.0),
    }
    assert lab.meter.processes == {A: (), B: ()}
    assert lab.meter.history.as_json()["gpus"][A]["utilisation"] == [50.0]
    assert lab.changes == 1


async def test_processes_are_those_of_servers_or_of_strangers_or_unknown(lab: Lab) -> None:
    lab.listed = [
        container(1, "ana/"), container(2, "bo/second"), container(3, "cy/", hub="other"),
        container(4, ""),
    ]  # fmt: skip
    for pid in (1, 2, 3, 4, 9):
        lab.run_in(pid, pid)
    lab.places |= {10: (), 11: (), 12: None, 13: (f"{9:064x}", f"{2:064x}")}
    lab.running[A] = [
        (1, "python3", 10), (2, "python3", None), (3, "x", 1), (4, "x", 1), (9, "x", 1),
        (10, "Xorg", 1), (11, "nvidia-cuda-mps-server", 1), (12, "", 1), (13, "inner", 1),
    ]  # fmt: skip
    await lab.meter.step()
    assert lab.meter.processes[A] == (
        GpuProcess(1, "python3", 10, "ana", ""),
        GpuProcess(2, "python3", None, "bo", "second"),
        GpuProcess(3, "x", 1),
        GpuProcess(4, "x", 1),
        GpuProcess(9, "x", 1),
        GpuProcess(10, "Xorg", 1),
        GpuProcess(11, "nvidia-cuda-mps-server", 1, is_told=False),
        GpuProcess(12, "", 1, is_told=False),
        GpuProcess(13, "inner", 1, "bo", "second"),
    )
    assert lab.meter.processes[A][0].as_json() == {
        "pid": 1, "name": "python3", "used_mib": 10, "user": "ana", "server": "",
    }  # fmt: skip


async def test_the_engine_is_asked_for_new_containers_only_and_not_too_often(lab: Lab) -> None:
    await lab.steps(5)
    assert lab.lists == 0
    lab.listed = [container(1, "ana/")]
    lab.run_in(1, 1)
    lab.run_in(9, 9)
    lab.running[A] = [(1, "python3", 10), (9, "somebody else's", 1)]
    await lab.steps(20)
    assert lab.lists == 1
    lab.run_in(2, 2)
    lab.listed.append(container(2, "bo/"))
    lab.running[B] = [(2, "python3", 10)]
    await lab.steps(1, every_s=1.0)
    assert lab.lists == 2
    assert lab.meter.processes[B][0].username == "bo"
    # One that comes right after waits for its turn; until then nobody knows whose it is.
    lab.run_in(3, 3)
    lab.listed.append(container(3, "cy/"))
    lab.running[B] = [(3, "python3", 10)]
    await lab.steps(1, every_s=1.0)
    assert lab.lists == 2
    assert lab.meter.processes[B][0] == GpuProcess(3, "python3", 10, is_told=False)
    await lab.steps(6, every_s=1.0)
    assert lab.lists == 3
    assert lab.meter.processes[B][0].username == "cy"


async def test_an_engine_that_is_away_is_asked_every_15_s_and_all_holders_share(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    def away() -> None:
        raise EngineUnavailable("The engine is away.")

    lab.list_hook = away
    lab.run_in(1, 1)
    lab.running[A] = [(1, "python3", 10)]
    lab.ledger.all_leases = [lease("ana", A), lease("bo", A)]
    await lab.steps(13)
    assert lab.lists == 5
    assert lab.meter.source == "driver"
    assert caplog.text.count("containers could not be listed") == 1
    [rows] = lab.ledger.written
    assert {row[1]: row[4] for row in rows} == {"ana": 15.0, "bo": 15.0}


async def test_an_engine_that_hangs_holds_nothing_up_and_its_late_answer_is_of_then(
    lab: Lab,
) -> None:
    go_on = threading.Event()
    lab.list_hook = partial(go_on.wait, 20)
    lab.run_in(1, 1)
    lab.running[A] = [(1, "python3", 10)]
    await lab.steps(2)
    # It began after the engine was asked: the late answer says nothing about it.
    lab.run_in(2, 2)
    lab.running[A].append((2, "python3", 10))
    lab.listed = [container(1, "ana/")]
    go_on.set()
    await lab.steps(1)
    assert [process.username for process in lab.meter.processes[A]] == ["ana", None]
    assert not lab.meter.processes[A][1].is_told
    lab.listed = [container(1, "ana/"), container(2, "bo/")]
    await lab.steps(1)
    assert [process.username for process in lab.meter.processes[A]] == ["ana", "bo"]


async def test_a_driver_that_hangs_stops_nothing_and_what_it_said_goes_stale(lab: Lab) -> None:
    await lab.steps(1)
    go_on = threading.Event()
    lab.read_hook = partial(go_on.wait, 20)
    await lab.steps(4)
    assert lab.meter.latest[A].utilisation == 50.0
    assert lab.meter.source == "driver"
    await lab.steps(4)
    assert threads("meter-driver") == 1
    assert (lab.meter.latest, lab.meter.processes) == ({}, {})
    assert lab.meter.source == "none"
    assert "does not answer" in lab.meter.reason
    assert lab.meter.history.as_json()["gpus"][A]["utilisation"][-1] is None
    lab.read_hook = lambda: None
    go_on.set()
    await lab.steps(2)
    assert lab.meter.source == "driver"
    assert lab.meter.latest[A].utilisation == 50.0


async def test_what_is_stale_is_not_shown_between_two_rounds_either(lab: Lab) -> None:
    await lab.meter.step()
    lab.clock.now += 30
    assert A in lab.meter.latest
    lab.clock.now += 1
    assert (lab.meter.latest, lab.meter.processes) == ({}, {})


async def test_one_gpu_that_gives_no_answer_is_stale_alone(lab: Lab) -> None:
    await lab.steps(1)
    del lab.busy[B], lab.running[B]
    lab.reason = "1 of 2 GPUs gave no answer. Run nvidia-smi."
    await lab.steps(7)
    assert set(lab.meter.latest) == {A}
    assert set(lab.meter.processes) == {A}
    assert (lab.meter.source, lab.meter.reason) == ("driver", lab.reason)


async def test_a_driver_that_raises_is_told_once_and_the_loop_goes_on(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    def fall_over() -> None:
        raise OSError("a binding fell over")

    lab.read_hook = fall_over
    await lab.steps(10)
    assert caplog.text.count("the driver could not be read") == 1
    assert "answers with an error" in lab.meter.reason
    lab.read_hook = lambda: None
    await lab.steps(1)
    assert lab.meter.source == "driver"


async def test_nothing_new_is_told_to_nobody_and_a_listener_that_fails_stops_no_other(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    def fall_over() -> None:
        raise ValueError("a page is gone")

    lab.meter.on_change.insert(0, fall_over)
    lab.busy, lab.running = {}, {}
    lab.reason = "No driver."
    await lab.steps(5)
    assert lab.changes == 1
    lab.reason = "Still no driver."
    await lab.steps(1)
    assert lab.changes == 2
    assert caplog.text.count("a listener failed") == 1


# -- what was used --------------------------------------------------------------------------------


async def test_use_is_written_once_a_minute_by_day_user_course_and_gpu(lab: Lab) -> None:
    lab.listed = [container(1, "ana/")]
    lab.run_in(1, 1)
    lab.running[A] = [(1, "python3", 10)]
    lab.ledger.all_leases = [
        lease("ana", A, course="cv"),
        lease("ana", B, server="two"),
        lease("bo", A),
        lease("cy", B, kept_until=NOON + 600),
    ]
    await lab.steps(12)
    assert lab.ledger.written == []
    await lab.steps(1)
    day = 1000 * 86400
    assert [sorted(rows) for rows in lab.ledger.written] == [
        # Measured and idle is a row of 0; whoever is gone from a kept lease has none.
        [(day, "ana", "", B, 0.0), (day, "ana", "cv", A, 30.0), (day, "bo", "", A, 0.0)]
    ]
    await lab.steps(12)
    assert len(lab.ledger.written) == 2
    assert sum(row[4] for rows in lab.ledger.written for row in rows) == 60.0


async def test_use_is_of_the_utc_day_it_was_measured_on_and_of_no_gap(lab: Lab) -> None:
    lab.ledger.all_leases = [lease("ana", A)]
    lab.clock.now = NOON + 43200 - 10
    await lab.steps(4)
    lab.clock.now += 300  # nothing was measured meanwhile
    await lab.steps(2)
    rows = {row[0]: row[4] for rows in lab.ledger.written for row in rows if row[3] == A}
    assert rows == {1000 * 86400: 2.5, 1001 * 86400: 2.5 + 2.5 + 7.5}


async def test_what_cannot_be_written_is_written_later_and_once(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    lab.ledger.all_leases = [lease("ana", A)]
    lab.ledger.write_error = LedgerUnavailable("The ledger is locked.")
    await lab.steps(26)
    assert lab.ledger.written == []
    assert caplog.text.count("what was used could not be written down") == 1
    lab.ledger.write_error = None
    await lab.steps(12)
    assert sum(row[4] for rows in lab.ledger.written for row in rows) == pytest.approx(36 * 2.5)


async def test_an_unknown_utilisation_is_not_written_at_all(lab: Lab) -> None:
    lab.busy = {A: None, B: None}
    lab.ledger.all_leases = [lease("ana", A, B)]
    await lab.steps(30)
    assert lab.ledger.written == []
    assert lab.meter.latest[A].memory_used_mib == 100


async def test_a_ledger_that_is_away_keeps_nobody_from_seeing_the_gpus(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    lab.ledger.read_error = LedgerUnavailable("The ledger is away.")
    await lab.steps(2)
    assert lab.meter.latest == {}
    assert "ledger cannot be read" in lab.meter.reason
    lab.ledger.read_error = None
    lab.ledger.all_leases = [lease("ana", A)]
    await lab.steps(2)
    lab.ledger.read_error = LedgerUnavailable("The ledger is away.")
    await lab.steps(40)
    assert lab.meter.latest[A].utilisation == 50.0
    assert caplog.text.count("leases could not be read") == 1
    # After a minute nobody can say any more who holds it.
    assert sum(row[4] for rows in lab.ledger.written for row in rows) <= 2.5 * 16


async def test_a_ledger_that_hangs_holds_nothing_up(lab: Lab) -> None:
    await lab.steps(1)
    go_on = threading.Event()
    lab.ledger.hook = partial(go_on.wait, 20)
    began = time.monotonic()
    await lab.steps(3)
    assert time.monotonic() - began < 5
    assert threads("meter-ledger") == 1
    assert lab.meter.latest[A].at == NOON + 15
    go_on.set()


# -- without a driver -----------------------------------------------------------------------------


def report(utilisation: float, *uuids: str) -> dict[str, Any]:
    return {"gpus": [{"uuid": uuid, "utilisation_pct": utilisation} for uuid in uuids]}


async def test_without_a_driver_servers_are_believed_about_what_they_hold(lab: Lab) -> None:
    lab.busy, lab.running, lab.reason = {}, {}, "There is no NVIDIA driver here."
    lab.ledger.gpus = (Gpu(A), Gpu(B, 1), Gpu(GpuUuid("GPU-sim"), 2, is_simulated=True))
    lab.ledger.all_leases = [lease("ana", A, "GPU-sim"), lease("bo", B)]
    await lab.steps(1)
    assert (lab.meter.source, lab.meter.reason) == ("none", lab.reason)
    await lab.meter.take_report("ana", "", report(77.0, A, B, "GPU-sim"))
    await lab.meter.take_report("cy", "", report(1.0, A))
    await lab.meter.take_report("ana", "other", report(1.0, A))
    await lab.steps(1)
    assert lab.meter.source == "reports"
    assert lab.meter.reason.startswith("There is no NVIDIA driver here. Shown is")
    assert {uuid: it.utilisation for uuid, it in lab.meter.latest.items()} == {A: 77.0}
    assert lab.meter.history.as_json()["gpus"][A]["utilisation"][-1] == 77.0
    await lab.steps(30)
    assert (lab.meter.source, lab.meter.latest) == ("none", {})
    assert lab.ledger.written == []  # whoever reports may report anything


async def test_reports_ask_the_ledger_once_in_a_while_and_survive_its_absence(lab: Lab) -> None:
    lab.busy, lab.running = {}, {}
    lab.ledger.all_leases = [lease("ana", A)]
    await asyncio.gather(*(lab.meter.take_report("ana", "", report(5.0, A)) for _ in range(50)))
    assert lab.ledger.looks == 1
    assert lab.meter.latest[A].utilisation == 5.0
    lab.clock.now += 10
    lab.ledger.read_error = LedgerUnavailable("away")
    await lab.meter.take_report("ana", "", report(6.0, A))
    assert lab.meter.latest[A].utilisation == 6.0


async def test_with_a_driver_no_report_counts(lab: Lab) -> None:
    lab.ledger.all_leases = [lease("ana", A)]
    await lab.steps(1)
    await lab.meter.take_report("ana", "", report(1.0, A))
    assert lab.meter.latest[A].utilisation == 50.0


@pytest.mark.parametrize(
    ("gpus", "words"),
    [
        ((), "has seen no GPU"),
        ((Gpu(A, is_simulated=True),), "simulated"),
        ((Gpu(GpuUuid("GPU-far-away")),), "in another machine"),
    ],
)
async def test_an_admin_reads_why_nothing_is_measured(
    lab: Lab, gpus: tuple[Gpu, ...], words: str
) -> None:
    lab.ledger.gpus = gpus
    await lab.steps(2)
    assert lab.meter.source == "none"
    assert words in lab.meter.reason
    assert lab.meter.latest == {}
    assert lab.meter.history.as_json()["gpus"] == {}


# -- around it ------------------------------------------------------------------------------------


async def test_the_loop_survives_whatever_a_round_raises(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rounds = 0

    async def step() -> None:
        nonlocal rounds
        rounds += 1
        raise KeyError("odd")

    monkeypatch.setattr(measure, "PERIOD_S", 0.0)
    monkeypatch.setattr(lab.meter, "step", step)
    task = asyncio.create_task(lab.meter.run())
    await asyncio.sleep(0.35)
    task.cancel()
    assert rounds >= 3
    assert caplog.text.count("the GPUs were not measured") == 1


async def test_a_clock_that_is_set_back_stops_nothing(lab: Lab) -> None:
    lab.ledger.all_leases = [lease("ana", A)]
    await lab.steps(3)
    lab.clock.now -= 86400
    looks = lab.ledger.looks
    await lab.steps(14)
    assert lab.ledger.looks > looks
    assert lab.meter.source == "driver"
    assert lab.meter.latest[A].utilisation == 50.0
    assert all(row[4] >= 0 for rows in lab.ledger.written for row in rows)
    assert lab.ledger.written


async def test_one_call_at_a_time_whoever_asks() -> None:
    calls = 0

    def slow() -> int:
        nonlocal calls
        calls += 1
        time.sleep(0.1)
        return calls

    one = OneAtATime(slow, "test")
    assert await one.ask(0.0) is None
    assert one.is_pending
    assert await asyncio.gather(one.ask(5), one.ask(5), one.ask(5)) == [1, 1, 1]
    assert await one.ask(5) == 2


async def test_64_gpus_with_8_processes_each_cost_the_loop_little(lab: Lab) -> None:
    uuids = [GpuUuid(f"GPU-{number:04d}") for number in range(64)]
    lab.ledger.gpus = tuple(Gpu(uuid, number) for number, uuid in enumerate(uuids))
    lab.busy = dict.fromkeys(uuids, 50.0)
    lab.running = {
        uuid: [(1000 + 8 * number + place, "python3", 100) for place in range(8)]
        for number, uuid in enumerate(uuids)
    }
    for pid in range(1000, 1512):
        lab.run_in(pid, pid)
    lab.listed = [container(pid, f"user{pid}/") for pid in range(1000, 1512)]
    lab.ledger.all_leases = [
        lease(f"user{pid}", uuids[(pid - 1000) // 8]) for pid in range(1000, 1512)
    ]
    await lab.steps(1)
    began = time.perf_counter()
    await lab.steps(10)
    each_ms = (time.perf_counter() - began) * 100
    logging.getLogger(__name__).info("%.1f ms a round", each_ms)
    assert lab.lists == 1
    assert each_ms < 500  # 10 ms on a quiet machine


async def test_the_real_ledger_takes_what_was_measured(lab: Lab, tmp_path: Any) -> None:
    ledger = Ledger.open(f"sqlite:///{tmp_path}/ledger.sqlite", lab.clock)
    ledger.write_inventory("hub", Inventory((Gpu(A), Gpu(B, 1))))
    held = (Holding(A), Holding(B))
    request = {"course": "cv"}
    assert ledger.adopt_lease(Lease("l1", "hub", "s1", "ana", "", held, request, NOON - 60))
    meter = Meter(
        SETTINGS, ledger, read=lab.read, containers=lab.list, containers_of=lab.places.get,
        clock=lab.clock,
    )  # fmt: skip
    for _ in range(25):
        await meter.step()
        lab.clock.now += 5
    day = 1000 * 86400
    _, busy = ledger.used("hub", day, day)
    assert {(one.username, one.course, one.gpu): one.busy_s for one in busy} == {
        ("ana", "cv", A): 60.0,
        ("ana", "cv", B): 0.0,
    }
