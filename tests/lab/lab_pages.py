"""A class on eight GPUs, measured, for the admin's pages in a real browser."""

from __future__ import annotations

import math
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from lab_fakes import HUB
from lab_seed import add_roles, stops_servers
from lab_site import Site, run_site

from pytorch_spawner.core.gpus import Gpu, GpuUuid, Inventory
from pytorch_spawner.core.grants import Grant
from pytorch_spawner.core.metering import GpuProcess, Sample
from pytorch_spawner.core.placement import DeviceSetting, Holding
from pytorch_spawner.core.tickets import Decisions, Give, Wait
from pytorch_spawner.ledger.models import StartRow, TicketRow
from pytorch_spawner.ledger.store import Ledger

A100 = "NVIDIA A100-SXM4-80GB"
AXE = Path(__file__).parents[2] / "node_modules" / "axe-core" / "axe.min.js"
PICTURES = os.environ.get("LAB_TEST_SCREENSHOTS", "")
NAMES = ("ana", "bo", "cyd", "dan", "eve", "fay")


def gpu(number: int, **more: Any) -> Gpu:
    uuid = GpuUuid(f"GPU-{number:08x}-1111-2222-3333-444444444444")
    return Gpu(uuid, number, A100, 81_920, (8, 0), "580.95.05", **more)


GPUS = (
    gpu(0, pool="research"),
    gpu(1, pool="research"),
    gpu(2, pool="teaching", mode="shared:4"),
    gpu(3, pool="teaching", mode="shared:4"),
    gpu(4, pool="teaching"),
    gpu(5, pool="teaching", health="Xid 79: the GPU has fallen off the bus."),
)
GRANTS = (
    Grant("everyone", share="slot", pool="teaching", weekly_gpu_hours=10.0),
    Grant("cv", "group", "cv", pool="teaching", count=2, priority=5, weekly_gpu_hours=20.0),
    Grant("thesis-bo", "user", "bo", pool="research", share="whole", priority=10),
)


def fill(ledger: Any) -> None:
    """Six students, three GPUs in use, two who wait."""
    ledger.write_inventory(HUB, Inventory(GPUS))
    ledger.edit_grants(HUB, "admin", lambda _: GRANTS)
    held = {"bo": (0, 0, 1), "ana": (2, 1, 4), "eve": (2, 2, 4), "cyd": (3, 0, 4)}
    for name in NAMES:
        request = {"image": "lab/pytorch:2.13", "gpus": 1, "course": "deep-learning"}
        ledger.join(ledger.begin_start(HUB, name, "", request, ("cv",)))

    def decide(state: Any) -> Decisions:
        gives, waits = [], []
        for ticket in state.tickets:
            if ticket.username not in held:
                waits.append(Wait(ticket, len(waits) + 1, 2, state.now + 1800, "bo"))
                continue
            place, slot, slots = held[ticket.username]
            holding = Holding(GPUS[place].uuid, slot, slots)
            gives.append(Give(ticket, (GPUS[place],), (holding,), GRANTS[1], None, "group cv"))
        return Decisions(give=tuple(gives), wait=tuple(waits))

    ledger.decide(HUB, decide)
    ledger.change_setting(
        HUB, GPUS[4].uuid, "kim", lambda was: DeviceSetting(was.uuid, drained="New fan on Friday")
    )
    today = time.time() // 86_400 * 86_400
    for day in range(10):
        use = [
            (today - day * 86_400, name, "deep-learning", GPUS[place].uuid, 600.0 * (place + day))
            for place, name in enumerate(NAMES[:4])
        ]
        ledger.add_busy(HUB, use)


def measure(meter: Any) -> None:
    """Put a quarter of an hour of measurements into a meter."""
    now = time.time()

    def sample(at: float, place: int) -> Sample:
        wave = math.sin(at / 60 + place)
        is_used = place in (0, 2, 3)
        return Sample(
            at,
            max(0.0, 60 + 35 * wave) if is_used else 0.0,
            int(30_000 + 4_000 * wave) if is_used else 4,
            (62.0 if is_used else 33.0) + wave,
            (280.0 if is_used else 58.0) + 20 * wave,
        )

    for step in range(90, -1, -1):
        at = now - 10 * step
        meter.history.add(at, {one.uuid: sample(at, one.index) for one in GPUS[:5]})
    # Good for as long as a test lasts.
    meter._samples = {one.uuid: sample(now, one.index) for one in GPUS[:5]}
    meter._clock = lambda: now
    meter._processes = {
        GPUS[0].uuid: (GpuProcess(4711, "python3", 30_100, "bo", ""),),
        GPUS[2].uuid: (
            GpuProcess(4821, "python3", 12_800, "ana", ""),
            GpuProcess(4822, "python3", 9_100, "eve", ""),
            GpuProcess(991, "Xorg", 120, None, None),
        ),
    }
    meter._processes_at = now
    meter.source, meter.reason = "driver", ""


async def run_lab(folder: Path) -> AsyncIterator[Site]:
    """The service on such a lab; ``site.stopped`` are the servers that the hub was told to stop."""
    ledger = Ledger.open(f"sqlite:///{folder / 'ledger.sqlite'}")
    fill(ledger)
    async for site in run_site(ledger):
        add_roles(site.hub)
        site.hub.people = {name: ["cv"] for name in (*NAMES, "kim", "zed")}
        measure(site.lab.meter)
        site.stopped = stops_servers(site.app)  # type: ignore[attr-defined]
        yield site


async def open_as(site: Site, page: Any, token: str, path: str) -> None:
    """Open a page of the service as the person of a token."""
    site.hub.browser_user_token = token
    await page.goto(site.url + path)


async def picture(page: Any, name: str, *, is_whole: bool = True) -> None:
    """Keep a picture of the page, or of what the window shows of it."""
    if PICTURES:
        await page.screenshot(path=str(Path(PICTURES) / f"{name}.png"), full_page=is_whole)


_AXE_IS_DONE = "axe-core is done"


async def violations_of(page: Any, where: str = "document") -> list[dict[str, Any]]:
    """What axe-core finds, by WCAG 2.2 A and AA and best practice.

    Args:
        page: Which.
        where: What of it, as JavaScript.
    """
    before = len(page.troubles)
    # Not as a script of the page: its policy forbids that, and shall go on doing so.
    await page.evaluate(f"{AXE.read_text()};0")
    found: list[dict[str, Any]] = await page.evaluate(
        f"axe.run({where}, {{resultTypes: ['violations']}}).then((all) => all.violations)"
    )
    # It tries styles of its own, which the policy refuses; what the page did itself was before. The
    # console tells of that in its own time, but in order.
    async with page.expect_console_message(lambda message: message.text == _AXE_IS_DONE):
        await page.evaluate("console.debug", _AXE_IS_DONE)
    del page.troubles[before:]
    return found


async def faults_of(page: Any) -> list[str]:
    """What axe-core finds serious or critical."""
    found = await violations_of(page)
    return [
        f"{one['id']} ({one['impact']}): {node['target']} {node['failureSummary']}"
        for one in found
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]


# ---- what happens while a page is open -----------------------------------------------------------


def lend(site: Site, name: str, one: Gpu, slot: int = 0, slots: int = 1, course: str = "") -> None:
    """Somebody starts a server and gets a GPU, or a slot of it."""
    request = {"image": "lab/pytorch:2.13", "gpus": 1, "course": course}
    start = site.ledger.begin_start(HUB, name, "", request, ())
    site.ledger.join(start)
    holding = Holding(one.uuid, slot, slots)

    def decide(state: Any) -> Decisions:
        ticket = next(ticket for ticket in state.tickets if ticket.id == start.id)
        return Decisions(give=(Give(ticket, (one,), (holding,), GRANTS[0], None, "everyone"),))

    site.ledger.decide(HUB, decide)


def queue_up(site: Site, *names: str, reason: str = "All GPUs are in use.") -> None:
    """More people want a GPU, and all who wait are told their places."""
    for name in names:
        request = {"image": "lab/pytorch:2.13", "gpus": 1}
        site.ledger.join(site.ledger.begin_start(HUB, name, "", request, ()))

    def decide(state: Any) -> Decisions:
        of, at = len(state.tickets), state.now + 1800
        return Decisions(
            wait=tuple(Wait(one, n, of, at, reason) for n, one in enumerate(state.tickets, 1))
        )

    site.ledger.decide(HUB, decide)


def set_sample(site: Site, uuid: GpuUuid, sample: Sample | None) -> None:
    """The meter measured something else, or cannot measure any more."""
    meter = site.lab.meter
    if sample is None:
        meter._samples.pop(uuid, None)
    else:
        meter._samples[uuid] = sample
    site.lab.feed.measured()


def end_session(site: Site, token: str) -> dict[str, Any]:
    """The hub does not know a token any more, and nobody remembers that it did."""
    model = site.hub.models.pop(token)
    site.lab.hub_auth.cache.clear()
    return model


def newest_change(site: Site) -> Any:
    return site.ledger.changes(HUB, 1)[0]


# ---- what is on a page ---------------------------------------------------------------------------


def gpu_row(page: Any, number: int) -> Any:
    """A GPU's row of the table."""
    opener = page.get_by_role("button", name=f"Details of GPU {number}", exact=True)
    return page.get_by_role("row").filter(has=opener)


async def choose_action(page: Any, number: int, entry: str) -> Any:
    """Choose from a GPU's menu; returns the panel that opens."""
    button = page.get_by_role("button", name=f"Actions for GPU {number}", exact=True)
    await button.click()
    menu = page.get_by_role("menu", name=f"Actions for GPU {number}", exact=True)
    await menu.get_by_role("menuitem", name=entry, exact=True).click()
    return page.get_by_role("dialog")


def messages(page: Any) -> Any:
    """Where the page says what was done."""
    return page.get_by_role("status", name="Messages")


async def tab_to(page: Any, name: str, most: int = 120) -> None:
    """Press Tab until what has this name has the focus."""
    for _ in range(most):
        await page.keyboard.press("Tab")
        if await focused(page) == name:
            return
    raise AssertionError(f"Tab does not reach {name!r}, but {await focused(page)!r}")


async def focused(page: Any) -> str:
    """Name of what has the focus: its label, or its text."""
    said = await page.evaluate(
        """() => {
          const now = document.activeElement;
          const labels = [...(now.labels ?? [])].map((label) => label.textContent);
          return now.getAttribute("aria-label") ?? labels[0] ?? now.textContent;
        }"""
    )
    return str(said).strip()


def queue_up_at_once(site: Site, names: list[str]) -> None:
    """As ``queue_up`` for thousands, in one transaction."""
    ledger = site.ledger
    with ledger._transaction() as session:
        for place, name in enumerate(names, 1):
            start_id = f"start-{name}"
            request = {"image": "lab/pytorch:2.13", "gpus": 1}
            session.add(
                StartRow(
                    id=start_id,
                    hub=HUB,
                    username=name,
                    servername="",
                    image="lab/pytorch:2.13",
                    request=request,
                    created_at=time.time(),
                )
            )
            session.add(
                TicketRow(
                    hub=HUB,
                    username=name,
                    servername="",
                    seq=1000 + place,
                    since=time.time() - 60,
                    boost=0,
                    start_id=start_id,
                    groups=["cv"],
                    request=request,
                    told=[place, len(names), None, "All GPUs that you may use are in use."],
                )
            )
        ledger._count_up(session, HUB, "version")
