"""The queue inside the hub: starts wait here, and one task turns tickets into leases.

It decides nothing itself: it gathers what ``core.scheduling.schedule`` needs, lets it run inside
one ledger transaction, and wakes the starts that were served or refused. A pass runs when a start
arrives or leaves, when the ledger says that something changed (the service or an admin wrote), and
now and then because time passes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from pytorch_spawner.adapters import engine
from pytorch_spawner.core.gpus import Gpu, Inventory
from pytorch_spawner.core.grants import Grant, GrantBook
from pytorch_spawner.core.scheduling import schedule
from pytorch_spawner.core.seats import Seats
from pytorch_spawner.core.tickets import Decisions, Policy, Wait
from pytorch_spawner.errors import (
    LabError,
    RemovedFromQueue,
)
from pytorch_spawner.failpoints import reach
from pytorch_spawner.ledger.store import Lease, QueueState, Start
from pytorch_spawner.queue_pass import (
    all_held,
    error_of,
    keeping_places,
    lay_out,
    plan_seats,
    seats_now,
    without_impatient,
)

if TYPE_CHECKING:
    from pytorch_spawner.shared import Lab

log = logging.getLogger("pytorch_spawner.queue")

# How often the ledger is asked whether another process changed something, while anybody waits.
_LOOK_S: Final = 1.0
# A pass at least this often while anybody waits: ends of leases, of kept ones, of patience.
_PASS_S: Final = 10.0
# How long grants are believed where nothing is given out by them: in the form.
_GRANTS_S: Final = 2.0
# How often courses are asked when they meet, while anybody waits. Seats are kept from ten minutes
# before, so nobody notices; the ledger's version moves with every ticket.
_CLASSES_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Rules:
    """What the hub's configuration says about the queue.

    Attributes:
        inventory: Asks for the GPUs; cached by ``shared.Lab``.
        grants: Grants of the configuration, beside those of the ledger.
        policy: How the queue is kept.
        of_groups: Grants that the JupyterHub groups of this very user give, by the group's name;
            None for a group that gives none (any more).
        own: What grants are for this very user alone, by id. All else is the same whoever starts.
    """

    inventory: Callable[[], Awaitable[Inventory]]
    grants: tuple[Grant, ...]
    policy: Policy
    of_groups: Mapping[str, Grant | None] = field(default_factory=dict)
    own: Mapping[str, Grant] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Leased:
    """What a start got: the lease, its devices (best first), and why as a sentence."""

    lease: Lease
    gpus: tuple[Gpu, ...]
    why: str

    @property
    def sentence(self) -> str:
        """What the student is told."""
        names = ", ".join(gpu.name or gpu.uuid for gpu in self.gpus)
        if len(self.gpus) == 1:
            return f"{names} is yours."
        return f"{len(self.gpus)} GPUs are yours: {names}."

    def describe(self) -> list[dict[str, Any]]:
        """The devices, best first, for the journal."""
        return [
            {
                "uuid": gpu.uuid,
                "index": gpu.index,
                "name": gpu.name,
                "memory_mib": gpu.memory_mib,
                "driver": gpu.driver,
                "pool": gpu.pool,
                "is_simulated": gpu.is_simulated,
                "mig_profile": gpu.mig_profile or None,
                "slots": gpu.slots,
                "slot": holding.slot if gpu.slots > 1 else None,
                "slot_memory_mib": gpu.slot_memory_mib,
            }
            for gpu, holding in zip(self.gpus, self.lease.holdings, strict=True)
        ]


class _Waiter:
    """One start that waits in this process."""

    def __init__(self, on_busy: str) -> None:
        self.on_busy = on_busy
        # Whether its ticket is in the ledger for certain.
        self.has_joined = False
        self.served: asyncio.Future[Leased] = asyncio.get_running_loop().create_future()
        self.wait: Wait | None = None
        self.changed = asyncio.Event()

    def tell(self, wait: Wait) -> None:
        if wait != self.wait:
            self.wait = wait
            self.changed.set()


class Dispatcher:
    """One per hub process, ledger and hub id."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._waiters: dict[str, _Waiter] = {}
        self._rules: Rules | None = None
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._beginning = asyncio.Lock()  # protects what is written once
        self._has_begun = False
        self._config_grants: tuple[Grant, ...] | None = None
        self._group_grants: dict[str, Grant] = {}
        self._class_share: float | None = None
        self._read_grants: tuple[float, tuple[Grant, ...]] = (-1e9, ())
        # What grants are for one person alone, by user and id; replaced, never changed.
        self._own: Mapping[str, Mapping[str, Grant]] = {}
        self._book: tuple[Any, GrantBook] = (None, GrantBook(()))
        self._classes: tuple[float, tuple[Seats, ...]] = (-1e9, ())

    # -- what starts call ---------------------------------------------------------------------

    async def acquire(
        self,
        start: Start,
        on_busy: str,
        rules: Rules,
        on_wait: Callable[[Wait], Awaitable[None]],
    ) -> Leased:
        """Wait in the queue until the start is served.

        Args:
            start: With its request and groups.
            on_busy: "queue" waits; "cpu" and "fail" are refused at once where nothing is free.
            rules: The configuration's word.
            on_wait: Called once, with the first word, where the start has to wait.

        Raises:
            NoGpuAvailable: Nothing is free, and the start would not wait.
            NotGranted: No grant covers the request, or its hours are used up.
            BadRequest: The lab could never serve it.
            RemovedFromQueue: An admin took it out.
            LedgerUnavailable: No GPU can be given out safely.
        """
        await self._begin(rules)
        self._rules = rules
        self._note_own(start.username, rules)
        waiter = _Waiter(on_busy)
        # Before the ticket: a pass may serve it as soon as it is in the ledger.
        self._waiters[start.id] = waiter
        try:
            await self._lab.call(lambda ledger: ledger.join(start))
            reach("ticket-written")
            waiter.has_joined = True
            self._keep_running()
            self._news.set()
            told = asyncio.create_task(waiter.changed.wait())
            try:
                ways: set[asyncio.Future[Any]] = {told, waiter.served}
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                told.cancel()
            if waiter.wait is not None and not waiter.served.done():
                await on_wait(waiter.wait)
            return await waiter.served
        finally:
            self._waiters.pop(start.id, None)

    async def grants_of(
        self, username: str, groups: Sequence[str], rules: Rules
    ) -> tuple[Grant, ...]:
        """The grants that a person has now; asked for anew every few seconds at most.

        Raises:
            LedgerUnavailable: Nobody knows.
        """
        await self._begin(rules)
        at, known = self._read_grants
        if time.monotonic() - at > _GRANTS_S:
            known = await self._lab.call(lambda ledger: ledger.grants(self._lab.hub))
            self._read_grants = (time.monotonic(), known)
        self._note_own(username, rules)
        return self._book_of(known, rules).for_person(username, groups, time.time())

    def position(self, start_id: str) -> Wait | None:
        """What a start in the queue is told now; None while it does not wait."""
        waiter = self._waiters.get(start_id)
        return waiter.wait if waiter is not None else None

    def look(self) -> None:
        """Something was given back or changed: decide again."""
        self._news.set()

    # -- the task -------------------------------------------------------------------------------

    async def _begin(self, rules: Rules) -> None:
        """Before anything else: what a process does once, and what the configuration says now.

        In a task of its own: a start that is cancelled meanwhile leaves its ledger thread behind,
        which must not mark away who came after it.
        """
        task = asyncio.create_task(self._begin_in_turn(rules))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.shield(task)

    async def _begin_in_turn(self, rules: Rules) -> None:
        """At the first start of this process nobody waits yet: old tickets lost their waiters."""
        async with self._beginning:
            if not self._has_begun:
                await self._lab.call(lambda ledger: ledger.mark_away(self._lab.hub))
                known = await self._lab.call(lambda ledger: ledger.grants(self._lab.hub))
                self._group_grants = {g.subject: g for g in known if g.source == "group"}
                self._has_begun = True
            if self._config_grants != rules.grants:
                # For the pages and the command line, which do not read the hub's configuration.
                await self._lab.call(
                    lambda ledger: ledger.write_grants(
                        self._lab.hub, rules.grants, "configuration", source="config"
                    )
                )
                self._config_grants = rules.grants
            if self._class_share != rules.policy.class_seats_share:
                share = rules.policy.class_seats_share
                await self._lab.call(lambda ledger: ledger.note_class_share(self._lab.hub, share))
                self._class_share = share
            given = {**self._group_grants, **rules.of_groups}
            kept = {name: grant for name, grant in given.items() if grant is not None}
            if kept != self._group_grants:
                await self._lab.call(
                    lambda ledger: ledger.write_grants(
                        self._lab.hub, list(kept.values()), "JupyterHub", source="group"
                    )
                )
                self._group_grants = kept

    def _keep_running(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="lab-queue")

    async def _run(self) -> None:
        version, passed_at = -1, 0.0
        while self._waiters:
            try:
                has_news = await self._wait_for_news()
                now_at = await self._lab.call(lambda ledger: ledger.version(self._lab.hub))
                is_idle = now_at == version and time.monotonic() - passed_at < _PASS_S
                if is_idle and not has_news:
                    continue
                # As of before the pass: what is written meanwhile, by the pass too, is looked at.
                version = now_at
                await self._pass()
                passed_at = time.monotonic()
            except LabError as error:
                version = -1
                self._fail_new(error)
                await asyncio.sleep(_LOOK_S)
            except Exception as error:  # one odd answer must not leave the queue without a task
                version = -1
                log.exception("a pass of the queue failed")
                self._fail_new(error)
                await asyncio.sleep(_LOOK_S)

    async def _wait_for_news(self) -> bool:
        try:
            await asyncio.wait_for(self._news.wait(), _LOOK_S)
        except (TimeoutError, asyncio.TimeoutError):
            return False
        self._news.clear()
        return True

    def _fail_new(self, error: Exception) -> None:
        """Whoever has just come is told; whoever waits already goes on waiting."""
        for waiter in self._waiters.values():
            if waiter.wait is None and not waiter.served.done():
                waiter.served.set_exception(error)

    async def _pass(self) -> None:
        rules = self._rules
        if rules is None:
            return
        lab = self._lab
        inventory = await rules.inventory()
        containers = await lab.in_lane("queue", lambda: engine.list_containers(lab.client, lab.hub))
        running = [container for container in containers if container.is_running]
        joined = {start_id for start_id, waiter in self._waiters.items() if waiter.has_joined}
        planned = await self._planned(rules.policy)

        def decide(state: QueueState) -> Decisions:
            seen = lay_out(state, inventory, running)
            held, book = all_held(state, running), self._book_of(state.grants, rules)
            seats = seats_now(planned, state)
            decided = without_impatient(
                lambda tickets: schedule(
                    seen, held, tickets, book, state.usage, state.now, rules.policy, seats
                ),
                state.tickets,
                {one for one, waiter in dict(self._waiters).items() if waiter.on_busy != "queue"},
            )
            return keeping_places(decided)

        decisions, leases = await lab.call(lambda ledger: ledger.decide(lab.hub, decide))
        self._tell(joined, decisions, leases)

    async def _planned(self, policy: Policy) -> tuple[Seats, ...]:
        """The seats of all sessions of these hours."""
        at, planned = self._classes
        if time.monotonic() - at > _CLASSES_S:
            try:
                hub = self._lab.hub
                planned = await self._lab.call(lambda ledger: plan_seats(ledger, hub, policy))
            except LabError:
                raise
            except Exception:  # a course that cannot be read must not keep everybody from a GPU
                log.exception("the timetables of the courses cannot be read")
            self._classes = (time.monotonic(), planned)
        return planned

    def _note_own(self, username: str, rules: Rules) -> None:
        if rules.own != self._own.get(username, {}):
            others = {name: own for name, own in self._own.items() if name != username}
            self._own = {**others, username: rules.own} if rules.own else others

    def _book_of(self, known: Iterable[Grant], rules: Rules) -> GrantBook:
        grants = (*(g for g in known if g.source != "config"), *rules.grants)
        said = grants, self._own
        book = self._book
        if book[0] != said:  # called from two threads: the book is taken or made, never mixed
            book = self._book = (said, GrantBook(*said))
        return book[1]

    def _tell(
        self,
        joined: Set[str],
        decisions: Decisions,
        leases: Mapping[str, Lease],
    ) -> None:
        # Whoever came while it was decided may have been served with the others.
        waiting = self._waiters
        heard: set[str] = set()
        for give in decisions.give:
            heard.add(give.ticket.id)
            waiter, lease = waiting.get(give.ticket.id), leases.get(give.ticket.id)
            if waiter is not None and lease is not None and not waiter.served.done():
                waiter.served.set_result(Leased(lease, give.gpus, give.why))
        for refuse in decisions.refuse:
            heard.add(refuse.ticket.id)
            waiter = waiting.get(refuse.ticket.id)
            if waiter is not None and not waiter.served.done():
                waiter.served.set_exception(error_of(refuse))
        for wait in decisions.wait:
            heard.add(wait.ticket.id)
            waiter = waiting.get(wait.ticket.id)
            if waiter is not None:
                waiter.tell(wait)
        for start_id in joined - heard:
            waiter = waiting.get(start_id)
            if waiter is not None and not waiter.served.done():
                waiter.served.set_exception(
                    RemovedFromQueue(
                        "An admin took you out of the queue. Start without a GPU, or ask them why."
                    )
                )
