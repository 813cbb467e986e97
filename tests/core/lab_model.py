"""A small lab that is told what to do by bytes, and checks the scheduler after every step.

The checks count devices, slots, memory, hours and grants from the model's own state; of the
scheduler's code they use only the values that go in and come out. The same bytes always give the
same lab and the same story, so that hypothesis can shrink them and the soak can replay them.

Bytes: lab, policy and flags, grants (a mask), then two for each operation: code and argument. The
highest bit of an argument asks for a pass of the scheduler after the operation.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace

from pytorch_spawner.core.gpus import Gpu, GpuUuid, Inventory, Link, slots_of
from pytorch_spawner.core.grants import Grant, GrantBook
from pytorch_spawner.core.placement import (
    PREFERENCES,
    Board,
    DeviceSetting,
    Holding,
    slots_in_use,
    with_settings,
)
from pytorch_spawner.core.scheduling import (
    Decisions,
    Give,
    Held,
    Policy,
    Ticket,
    Usage,
    Wait,
    schedule,
)

_WEEK_S = 7 * 86_400.0
_SOME_MONDAY = 345_600.0  # 1970-01-05, 00:00 UTC
# A Sunday, 19:00 UTC: a story begins with one week's hours and goes on with the next one's.
START = _SOME_MONDAY + 2_960 * _WEEK_S - 5 * 3600.0
# Shorter leases are refused rather than given.
SHORTEST_S = 60.0
# At the end of a story people stop their servers after this long.
LONGEST_S = 3 * 3600.0
KEPT_S = 600.0
GROUPS = {
    "ana": ("cv",),
    "bob": ("ml",),
    "cyd": ("cv", "ml"),
    "dan": (),
    "eve": ("ml",),
}
USERS = tuple(GROUPS)
SERVERS = ("", "two", "three")


class Broken(AssertionError):
    """A property does not hold."""


def gpu(number: int, pool: str = "default", mode: str = "exclusive", **more: object) -> Gpu:
    facts = {"memory_mib": 40_000, **more}
    return Gpu(GpuUuid(f"GPU-{number:04d}"), number, f"G{number}", pool=pool, mode=mode, **facts)


def _linked(gpus: Sequence[Gpu], size: int) -> tuple[Gpu, ...]:
    """NVLink inside groups of ``size``, the system bus between them, one NUMA node a group."""
    return tuple(
        replace(
            one,
            numa_node=place // size,
            links=tuple(
                Link(other.uuid, "nvlink" if place // size == there // size else "system")
                for there, other in enumerate(gpus)
                if other is not one
            ),
        )
        for place, one in enumerate(gpus)
    )


def _mig(number: int, parent: Gpu, profile: str) -> Gpu:
    uuid = GpuUuid(f"MIG-{number:04d}")
    return Gpu(uuid, number, memory_mib=10_000, mig_profile=profile, parent=parent.uuid)


_PARENT = gpu(0, mode="mig")
LABS = (
    (gpu(0), gpu(1)),
    _linked([gpu(number) for number in range(4)], 2),
    (gpu(0, mode="shared:3"), gpu(1)),
    (
        gpu(0, "big", memory_mib=80_000),
        gpu(1, "big"),
        *(gpu(n, "small", "shared:2") for n in (2, 3)),
    ),
    (_PARENT, _mig(1, _PARENT, "1g.10gb"), _mig(2, _PARENT, "1g.10gb"), gpu(3)),
    (gpu(0, "alpha"), gpu(1, "alpha"), gpu(2, "zeta"), gpu(3, "zeta")),
    _linked([gpu(number, "one" if number < 3 else "two") for number in range(6)], 3),
    (gpu(0, mode="shared:4"),),
)


def _grants(gpus: Sequence[Gpu]) -> tuple[Grant, ...]:
    first, last = gpus[0].pool, gpus[-1].pool
    pins = tuple(one.uuid for one in gpus if one.slots)
    return (
        Grant("all", count=1),
        Grant("cv", "group", "cv", count=2, priority=5, max_lease_s=7200),
        Grant("ana", "user", "ana", count=4, priority=20),
        Grant("bob-pin", "user", "bob", gpus=pins[:1], count=1, priority=10),
        Grant("ml-pool", "group", "ml", pool=first, count=2, weekly_gpu_hours=5.0),
        Grant("slots", pool=last, share="slot", count=2, max_lease_s=3600),
        Grant("cv-pins", "group", "cv", gpus=pins[-2:] if len(pins) > 3 else pins[1:2], count=1),
        Grant("brief", count=2, priority=-5, valid_from=START + 1800, valid_until=START + 19_830),
    )


# How many, of what share, in which pool (0: any, 1: the first GPU's, 2: the last one's).
WISHES = (
    (1, "any", 0),
    (2, "any", 0),
    (1, "whole", 0),
    (1, "slot", 0),
    (2, "whole", 2),
    (1, "any", 1),
    (4, "any", 0),
    (1, "mig:1g.10gb", 0),
)


class Lab:
    """Inventory, leases, tickets, grants and a clock; each operation takes one byte."""

    def __init__(self, lab: int, policy: int, mask: int, told: list[str] | None = None) -> None:
        self.gpus = list(LABS[lab % len(LABS)])
        self.every_grant = _grants(self.gpus)
        self.grants = {
            grant.id: grant for bit, grant in enumerate(self.every_grant) if mask >> bit & 1
        }
        self.policy = Policy(
            preference=tuple(PREFERENCES)[policy & 3],
            patience_s=(4 * 3600.0, 1800.0, 0.0, 3600.0)[policy >> 2 & 3],
            max_lease_s=(None, 7200, 3600, 1800)[policy >> 4 & 3],
            usage_step_h=0.5 if policy & 64 else 0.0,
        )
        self.has_rivals = bool(policy & 128)
        # At the end somebody never stops a server, and no limit does it for them.
        self.has_endless = bool(lab >> 3 & 1)
        self.endless = ""
        self.now = START
        self.settings: dict[str, DeviceSetting] = {}
        self.leases: dict[str, Held] = {}
        self.tickets: dict[str, Ticket] = {}
        # GPU-hours by user, grant and week.
        self.used_h: Counter[tuple[str, str, int]] = Counter()
        self.served: Counter[str] = Counter()
        self.by_user_h: Counter[str] = Counter()
        self.number = 0
        self.told = told
        self.pinned: dict[str, set[str]] = {}
        # What was laid over the devices, by what is in force; empty again when an admin or the
        # hardware changes something.
        self._seen: dict[frozenset[tuple[str, int]], Inventory] = {}
        self._shuffle = random.Random(lab * 65536 + policy * 256 + mask)

    def tell(self, text: str) -> None:
        if self.told is not None:
            self.told.append(f"{self.now - START:>7.0f} s  {text}")

    # -- operations -------------------------------------------------------------------------

    def arrive(self, arg: int) -> None:
        user = USERS[arg % 5]
        count, share, where = WISHES[arg // 5 % 8]
        pool = ("", self.gpus[0].pool, self.gpus[-1].pool)[where]
        self.ticket(user, SERVERS[arg // 40 % 3], GROUPS[user], count, share, pool)

    def ticket(
        self, user: str, server: str, groups: tuple[str, ...], gpus: int, share: str, pool: str
    ) -> None:
        running = (held for held in self.leases.values() if held.kept_until is None)
        busy = {(held.username, held.servername) for held in running}
        if (user, server) in busy or any(t.server == (user, server) for t in self.tickets.values()):
            return
        self.number += 1
        ticket = Ticket(
            f"t{self.number}", user, server, groups, gpus, share, pool, "", self.number, self.now
        )
        self.tickets[ticket.id] = ticket
        self.tell(f"{ticket.id}: {user}/{server} arrives for {gpus} {share} {pool}".rstrip())

    def cancel(self, arg: int) -> None:
        if ticket := _pick(self.tickets, arg):
            del self.tickets[ticket.id]
            self.tell(f"{ticket.id} is cancelled")

    def boost(self, arg: int) -> None:
        if ticket := _pick(self.tickets, arg):
            self.tickets[ticket.id] = replace(ticket, boost=50)
            self.tell(f"{ticket.id} is boosted")

    def stop(self, arg: int) -> None:
        known = {held.id: held for held in self.leases.values() if held.id}
        if held := _pick(known, arg):
            self.end(held, "stops")

    def end(self, held: Held, how: str) -> None:
        """A lease ends: on the scheduler's board exactly its slots come back."""
        before = self.free_on_the_board()
        del self.leases[held.id]
        after = self.free_on_the_board()
        cut = {gpu.uuid: gpu.slots for gpu in self.inventory().gpus}
        for holding in held.holdings:
            if cut[holding.gpu] == holding.slots:
                back = after[holding.gpu] - before[holding.gpu]
                _check(back == {holding.slot}, f"{held.id} gave back {back} of {holding}")
        for uuid in before.keys() - {holding.gpu for holding in held.holdings}:
            _check(before[uuid] == after[uuid], f"{held.id} changed {uuid}")
        _check(after == self.free(), f"the board has {after} free, not {self.free()}")
        self.tell(f"{held.id} of {held.username}/{held.servername} {how}")

    def crash(self, arg: int) -> None:
        held = _pick(self.leases, arg)
        if held is not None and held.kept_until is None and held.grant:
            self.leases[held.id] = replace(held, kept_until=self.now + KEPT_S)
            self.tell(f"{held.id} of {held.username} crashes and is kept")

    def return_of_the_crashed(self, arg: int) -> None:
        kept = {held.id: held for held in self.leases.values() if held.kept_until is not None}
        if held := _pick(kept, arg):
            groups = GROUPS.get(held.username, ())
            count = len(held.holdings)
            self.ticket(held.username, held.servername, groups, count, "any", "")

    def stranger(self, arg: int) -> None:
        """A container without a lease is seen on a device that has room."""
        free = {uuid: slots for uuid, slots in self.free().items() if slots}
        if not free:
            return
        uuid = sorted(free)[arg % len(free)]
        slots = next(gpu.slots for gpu in self.inventory().gpus if gpu.uuid == uuid)
        self.number += 1
        holding = Holding(uuid, min(free[uuid]), slots)
        self.leases[f"x{self.number}"] = Held("", "stranger", f"{self.number}", (holding,))
        self.tell(f"a container without a lease on {uuid}")

    def strangers_leave(self, _arg: int) -> None:
        self.leases = {id_: held for id_, held in self.leases.items() if held.grant}

    def drain(self, arg: int) -> None:
        uuid = self.gpus[arg % len(self.gpus)].uuid
        setting = self.settings.get(uuid, DeviceSetting(uuid))
        self.settings[uuid] = replace(setting, drained="" if setting.drained else "Fans.")
        self._seen.clear()
        self.tell(f"{uuid} is {'drained' if self.settings[uuid].drained else 'in service'}")

    def mode(self, arg: int) -> None:
        one = self.gpus[arg % len(self.gpus)]
        if one.mode == "mig" or one.mig_profile:
            return
        mode = ("exclusive", "shared:2", "shared:3")[arg // 8 % 3]
        setting = self.settings.get(one.uuid, DeviceSetting(one.uuid))
        self.settings[one.uuid] = replace(setting, mode=mode)
        self._seen.clear()
        self.tell(f"{one.uuid} shall be {mode}")

    def health(self, arg: int) -> None:
        place = arg % len(self.gpus)
        one = self.gpus[place]
        self.gpus[place] = replace(one, health="" if one.health else "It fell off the bus.")
        self._seen.clear()
        self.tell(f"{one.uuid}: {self.gpus[place].health or 'healthy'}")

    def wait(self, arg: int) -> None:
        self.pass_time((60.0, 570.0, 1800.0, 3600.0, 5 * 3600.0, 20 * 3600.0)[arg % 6])

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.tell("time passes")
        began = self.now - seconds
        for held in list(self.leases.values()):
            ended = self.now if held.until is None else min(self.now, held.until)
            if held.grant and held.kept_until is None:
                for week, used_h in self.hours_by_week(held, max(held.since, began), ended):
                    self.used_h[held.username, held.grant, week] += used_h
                    self.by_user_h[held.username] += used_h
            if held.until is not None and held.until <= self.now and held.kept_until is None:
                self.end(held, "is over")

    # -- hours ------------------------------------------------------------------------------

    @property
    def week(self) -> int:
        return _week(self.now)

    def hours_by_week(self, held: Held, start: float, end: float) -> Iterator[tuple[int, float]]:
        """GPU-hours that a lease uses between two times, each week's by themselves."""
        weight = sum(map(self.weight, held.holdings))
        while start < end:
            week = _week(start)
            until = min(end, _SOME_MONDAY + (week + 1) * _WEEK_S)
            yield week, weight * (until - start) / 3600
            start = until

    def over_h(self, user: str, grant: Grant, leases: Iterable[Held]) -> float:
        """By how much the worst week is overspent if these leases run to their ends; 0.0: none."""
        if grant.weekly_gpu_hours is None:
            return 0.0
        weeks: Counter[int] = Counter({self.week: self.used_h[user, grant.id, self.week]})
        for held in leases:
            if (held.username, held.grant) == (user, grant.id) and held.until is not None:
                for week, used_h in self.hours_by_week(held, self.now, held.until):
                    weeks[week] += used_h
        return max(0.0, max(weeks.values()) - grant.weekly_gpu_hours - 1e-6)

    def has_hours(self, ticket: Ticket, grant: Grant, leases: Iterable[Held]) -> bool:
        """Whether the shortest lease is there, on the devices that count most."""
        if grant.weekly_gpu_hours is None:
            return True
        every = [
            one for pool in lab_pools(self, ticket, grant, self.inventory().gpus) for one in pool
        ]
        if not every:
            return True
        heaviest = max(every, key=lambda one: self.weight(Holding(one.uuid, 0, slots_of(one.mode))))
        slot = Holding(heaviest.uuid, 0, slots_of(heaviest.mode))
        until = self.now + SHORTEST_S
        brief = Held("", ticket.username, "", (slot,) * ticket.gpus, grant.id, self.now, until)
        return not self.over_h(ticket.username, grant, [*leases, brief])

    def weight(self, holding: Holding) -> float:
        profile = next(one for one in self.gpus if one.uuid == holding.gpu).mig_profile
        return (int(profile[0]) / 7 if profile else 1.0) / holding.slots

    def restart(self, _arg: int) -> None:
        self.tickets = {id_: replace(one, is_away=True) for id_, one in self.tickets.items()}
        self.tell("the hub restarts")

    def come_back(self, arg: int) -> None:
        away = {ticket.id: ticket for ticket in self.tickets.values() if ticket.is_away}
        if ticket := _pick(away, arg):
            self.tickets[ticket.id] = replace(ticket, is_away=False)
            self.tell(f"{ticket.id} is back")

    def grant(self, arg: int) -> None:
        grant = self.every_grant[arg % len(self.every_grant)]
        if self.grants.pop(grant.id, None) is None:
            self.grants[grant.id] = grant
        self.tell(f"grant {grant.id} is {'there' if grant.id in self.grants else 'gone'}")

    # -- what the scheduler sees ------------------------------------------------------------

    def in_force(self) -> dict[str, int]:
        return {hold.gpu: hold.slots for held in self.leases.values() for hold in held.holdings}

    def inventory(self) -> Inventory:
        in_force = self.in_force()
        key = frozenset(in_force.items())
        if key not in self._seen:
            laid_over = with_settings(Inventory(tuple(self.gpus)), self.settings.values(), in_force)
            self._seen[key] = laid_over
        return self._seen[key]

    def free(self) -> dict[str, set[int]]:
        """Slots that nobody holds, by device."""
        free = {one.uuid: set(range(slots_of(one.mode))) for one in self.inventory().gpus}
        for held in self.leases.values():
            for holding in held.holdings:
                free[holding.gpu].discard(holding.slot)
        return free

    def free_on_the_board(self) -> dict[str, set[int]]:
        """The same, as the scheduler counts it."""
        inventory = self.inventory()
        holdings = [holding for held in self.leases.values() for holding in held.holdings]
        board = Board(inventory, slots_in_use(inventory, holdings), {}, "index")
        return {device.gpu.uuid: set(device.free) for device in board.devices}

    # -- a pass of the scheduler ------------------------------------------------------------

    def decide(self) -> Decisions:
        """Ask the scheduler, check what it says, and do it."""
        inventory = self.inventory()
        week_h = {key[:2]: used_h for key, used_h in self.used_h.items() if key[2] == self.week}
        usage = Usage(dict(self.by_user_h), week_h)
        leases, tickets = list(self.leases.values()), list(self.tickets.values())
        book = GrantBook(self.grants.values())
        said = schedule(inventory, leases, tickets, book, usage, self.now, self.policy)
        gpus = list(inventory.gpus)
        for pile in (gpus, leases, tickets):
            self._shuffle.shuffle(pile)
        again = schedule(
            Inventory(tuple(gpus)), leases, tickets, book, usage, self.now, self.policy
        )
        _check(said == again, f"shuffled input, other decisions:\n{said}\n{again}")
        self.pinned = self._pins()
        _Check(self, inventory, said).run()
        self._apply(said)
        return said

    def _apply(self, said: Decisions) -> None:
        for id_ in said.release:
            del self.leases[id_]
            self.tell(f"{id_} is released")
        for refused in said.refuse:
            del self.tickets[refused.ticket.id]
            self.tell(f"{refused.ticket.id} is refused: {refused.message}")
        for given in said.give:
            ticket = given.ticket
            del self.tickets[ticket.id]
            self.served[ticket.username] += 1
            self.leases[f"l-{ticket.id}"] = Held(
                f"l-{ticket.id}",
                ticket.username,
                ticket.servername,
                given.holdings,
                given.grant.id,
                self.now,
                given.until,
            )
            end = "no end" if given.until is None else f"{given.until - START:.0f} s"
            self.tell(f"{ticket.id} gets {given.holdings} by {given.grant.id} until {end}")
        for waits in said.wait:
            self.tell(f"{waits.ticket.id} waits, place {waits.place} of {waits.of}")

    def _pins(self) -> dict[str, set[str]]:
        pinned: dict[str, set[str]] = {}
        for grant in self.grants.values():
            if _is_valid(grant, self.now):
                for uuid in grant.gpus:
                    pinned.setdefault(uuid, set()).add(grant.id)
        return pinned

    def check_state(self) -> None:
        """Count what is held, device by device."""
        held_by: Counter[tuple[str, str]] = Counter()
        seen: set[tuple[str, int]] = set()
        cut: dict[str, int] = {}
        used_mib: Counter[str] = Counter()
        memory = {one.uuid: one.memory_mib or 0 for one in self.gpus}
        budget = {one.uuid: one.slot_memory_mib or 0 for one in self.inventory().gpus}
        for held in self.leases.values():
            for hold in held.holdings:
                _check((hold.gpu, hold.slot) not in seen, f"{hold} is held twice")
                _check(0 <= hold.slot < hold.slots, f"{hold} is beyond its slots")
                _check(cut.setdefault(hold.gpu, hold.slots) == hold.slots, f"{hold}: two modes")
                seen.add((hold.gpu, hold.slot))
                used_mib[hold.gpu] += budget[hold.gpu]
            held_by[held.username, held.grant] += len(held.holdings)
        for uuid, mib in used_mib.items():
            _check(mib <= memory[uuid], f"{uuid}: budgets of {mib} MiB")
        for (user, id_), count in held_by.items():
            if id_ in self.grants:
                _check(count <= self.grants[id_].count, f"{user} holds {count} by {id_}")
                over_h = self.over_h(user, self.grants[id_], self.leases.values())
                _check(not over_h, f"{user} may overspend {id_} by {over_h:.3f} h in a week")

    # -- the end of a story -----------------------------------------------------------------

    def settle(self) -> None:
        """The world stops changing: everybody who can be served is, within a bound."""
        self.tickets = {id_: replace(one, is_away=False) for id_, one in self.tickets.items()}
        self.strangers_leave(0)
        self.tell("the world stops changing")
        if self.has_rivals:
            limit_s = None if self.has_endless else 1800
            self.grants["rush"] = Grant("rush", count=1, priority=100, max_lease_s=limit_s)
        if self.has_endless:
            running = (one for one in self.leases.values() if one.id and one.kept_until is None)
            self.endless = next((one.id for one in running if one.until is None), "")
            self.tell(f"{self.endless or 'nothing'} never ends")
        targets = dict(self.tickets)
        promised: dict[str, float] = {}
        in_all = sum(ticket.gpus + 1 for ticket in targets.values())
        ends = self.now + self.policy.patience_s + LONGEST_S * (in_all + 3)
        while targets and self.now <= ends:
            if self.has_rivals:
                waiting = sum(id_ not in targets for id_ in self.tickets)
                for _ in range(len(self.gpus) - waiting):
                    self.ticket(f"r{self.number}", "", (), 1, "any", "")
            said = self.decide()
            self.check_state()
            self._keeps_its_word(said, promised)
            targets = {id_: one for id_, one in targets.items() if id_ in self.tickets}
            if not any(map(self._could_be_served, targets.values())):
                return
            self._next_end(said)
        self.pinned = self._pins()
        waiting = [id_ for id_, one in targets.items() if self._could_be_served(one)]
        _check(not waiting, f"{', '.join(waiting)} waited beyond the bound")

    def _keeps_its_word(self, said: Decisions, promised: dict[str, float]) -> None:
        """Who is first and beyond the patience is served at the expected time or before."""
        for waits in said.wait:
            if at := promised.get(waits.ticket.id):
                _check(self.now < at, f"{waits.ticket.id} was promised {at - START:.0f} s")
        for waits in said.wait[:1]:
            is_next = self.now - waits.ticket.since >= self.policy.patience_s
            if is_next and waits.expected_at is not None and waits.expected_at > self.now:
                promised.setdefault(waits.ticket.id, waits.expected_at)

    def _next_end(self, said: Decisions) -> None:
        at = self.now + LONGEST_S
        for held in self.leases.values():
            if self._is_endless(held):
                continue
            own = min(held.until or float("inf"), self._stops_at(held))
            at = min(at, own, held.kept_until or own)
        self.pass_time(max(1.0, at - self.now))
        for held in list(self.leases.values()):
            is_over = held.kept_until is None and self._stops_at(held) <= self.now
            if is_over and not self._is_endless(held):
                self.end(held, "stops at last")

    def _stops_at(self, held: Held) -> float:
        """Not all at one time: whoever wants several must not find them free together by chance."""
        return held.since + LONGEST_S - 700.0 * (sum(map(ord, held.id)) % 5)

    def _is_endless(self, held: Held) -> bool:
        return bool(held.id) and held.id == self.endless

    def _could_be_served(self, ticket: Ticket) -> bool:
        """Whether it has a way with enough devices in a pool that nobody holds for ever.

        Who waits for such a pool only keeps its other devices, which is why one is too many.
        """
        self.pinned = self._pins()
        empty = with_settings(Inventory(tuple(self.gpus)), self.settings.values(), {}).gpus
        endless = {
            holding.gpu
            for held in self.leases.values()
            if self._is_endless(held)
            for holding in held.holdings
        }
        blocked = {one.pool for one in empty if one.uuid in endless}
        open_ = [
            one for one in empty if not one.drained and not one.health and one.pool not in blocked
        ]
        return any(True for _ in ways(self, ticket, open_, self.leases.values()))


def ways(
    lab: Lab, ticket: Ticket, gpus: Sequence[Gpu], leases: Iterable[Held]
) -> Iterator[tuple[Grant, list[list[Gpu]]]]:
    """Grants that a ticket may be served through beside these leases, with their pools' devices."""
    leases = list(leases)
    held = _counts(leases)
    for grant in lab.grants.values() if len(gpus) >= ticket.gpus else ():
        pools = lab_pools(lab, ticket, grant, gpus)
        if not any(len(members) >= ticket.gpus for members in pools):
            continue
        if grant.valid_until is not None and grant.valid_until - lab.now < SHORTEST_S:
            continue
        if held[ticket.username, grant.id] + ticket.gpus > grant.count:
            continue
        if not lab.has_hours(ticket, grant, leases):
            continue
        yield grant, pools


def lab_pools(lab: Lab, ticket: Ticket, grant: Grant, gpus: Sequence[Gpu]) -> list[list[Gpu]]:
    """The devices that a grant gives a ticket, whatever is free, pool by pool."""
    to = {"user": (ticket.username,), "group": ticket.groups, "everyone": ("",)}[grant.to]
    if grant.subject not in to or not _is_valid(grant, lab.now) or ticket.gpus > grant.count:
        return []
    if "any" not in (grant.share, ticket.share) and grant.share != ticket.share:
        return []
    share = grant.share if ticket.share == "any" else ticket.share
    wanted = {name for name in (grant.pool, ticket.pool) if name}
    if len(wanted) == 2:
        return []
    pinned = lab.pinned
    pools: dict[str, list[Gpu]] = {}
    for one in gpus:
        if (wanted and one.pool not in wanted) or (grant.gpus and one.uuid not in grant.gpus):
            continue
        if one.uuid in pinned and grant.id not in pinned[one.uuid]:
            continue
        slots = slots_of(one.mode)
        is_right = {
            "any": True,
            "whole": slots == 1 and not one.mig_profile,
            "slot": slots > 1,
        }.get(share, one.mig_profile == share[4:])
        if slots and is_right:
            pools.setdefault(one.pool, []).append(one)
    return list(pools.values())


class _Check:
    """One pass, looked at from outside."""

    def __init__(self, lab: Lab, inventory: Inventory, said: Decisions) -> None:
        self.lab, self.inventory, self.said = lab, inventory, said
        self.free = lab.free()
        self.by_id = lab.leases
        self.before = dict(lab.leases)
        over = [
            held
            for held in lab.leases.values()
            if held.kept_until is not None
            and min(held.kept_until, held.until or lab.now + 1) <= lab.now
        ]
        for held in over:
            _check(held.id in said.release, f"{held.id} is over and not released")
            del self.before[held.id]
            for holding in held.holdings:
                self.free[holding.gpu].add(holding.slot)
        self.over = {held.id for held in over}

    def run(self) -> None:
        said, tickets = self.said, self.lab.tickets
        decided = [one.ticket for one in (*said.give, *said.wait, *said.refuse)]
        _check(
            len(decided) == len(tickets) and {one.id for one in decided} == set(tickets),
            "a ticket has not exactly one decision",
        )
        servers = {ticket.server for ticket in decided}
        _check(len(set(said.release)) == len(said.release), "released twice")
        for id_ in said.release:
            held = self.by_id[id_]
            _check(held.kept_until is not None, f"{id_} runs and was released")
            is_own = (held.username, held.servername) in servers
            _check(id_ in self.over or is_own, f"{id_} was released for nothing")
        after = {id_: held for id_, held in self.before.items() if id_ not in said.release}
        for given in said.give:
            after[f"for {given.ticket.id}"] = _as_held(given, self.lab.now)
        for given in said.give:
            if given.resumes:
                self._resumed(given)
            self._given(given)
            self._lasts(given, after.values())
        self._refused()
        self._waiting(after.values())

    def _resumed(self, given: Give) -> None:
        held = self.by_id[given.resumes]
        _check((held.username, held.servername) == given.ticket.server, "resumed another's")
        _check(held.holdings == given.holdings, "resumed with other devices")
        _check(given.resumes in self.said.release, "resumed, and the kept lease stays")
        if held.until is not None:
            _check(given.until is not None and given.until <= held.until, "a crash earned time")
        for holding in held.holdings:
            self.free[holding.gpu].add(holding.slot)

    def _given(self, given: Give) -> None:
        lab, ticket, grant = self.lab, given.ticket, given.grant
        name = f"{ticket.id} by {grant.id}"
        _check(not ticket.is_away, f"{name}: nobody waits for it")
        _check(lab.grants.get(grant.id) == grant, f"{name}: no such grant")
        uuids = [holding.gpu for holding in given.holdings]
        _check(uuids == [one.uuid for one in given.gpus], f"{name}: gpus are not its holdings")
        _check(len(set(uuids)) == ticket.gpus == len(uuids), f"{name}: {uuids}")
        pools = lab_pools(lab, ticket, grant, self.inventory.gpus)
        _check(
            any(set(uuids) <= {one.uuid for one in members} for members in pools),
            f"{name}: the grant does not give {uuids}",
        )
        for one, holding in zip(given.gpus, given.holdings, strict=True):
            _check(not one.drained and not one.health, f"{name}: {one.uuid} is out of service")
            _check(one == self.inventory.get(one.uuid), f"{name}: another {one.uuid}")
            _check(holding.slots == slots_of(one.mode), f"{name}: {holding} in mode {one.mode}")
            wished = lab.settings.get(one.uuid, DeviceSetting(one.uuid)).mode or one.mode
            _check(wished == one.mode, f"{name}: {one.uuid} is to become {wished}")
            _check(holding.slot in self.free[one.uuid], f"{name}: {holding} was not free")
            self.free[one.uuid].remove(holding.slot)
        limits = [lab.policy.max_lease_s, grant.max_lease_s]
        if grant.valid_until is not None:
            limits.append(grant.valid_until - lab.now)
        for limit in limits:
            if limit is not None:
                is_within = given.until is not None and given.until <= lab.now + limit + 1e-3
                _check(is_within, f"{name}: until {given.until}, limit {limit}")
        is_long = given.until is None or given.until >= lab.now + SHORTEST_S - 1e-3
        # What is given back after a crash ends when it would have ended.
        _check(is_long or given.resumes, f"{name}: over as soon as it began")
        _check(given.until is None or given.until > lab.now, f"{name}: over before it began")
        _check(given.why.startswith("You get "), f"{name}: {given.why}")

    def _lasts(self, given: Give, after: Iterable[Held]) -> None:
        """It lasts as long as the limits and each week's hours allow, to the next week's end."""
        lab, grant = self.lab, given.grant
        if given.until is None or given.resumes or grant.weekly_gpu_hours is None:
            return
        limits = [lab.now + s for s in (lab.policy.max_lease_s, grant.max_lease_s) if s is not None]
        limits += [] if grant.valid_until is None else [grant.valid_until]
        limits.append(_SOME_MONDAY + (lab.week + 2) * _WEEK_S)
        longer = replace(_as_held(given, lab.now), until=given.until + 1.0)
        others = [held for held in after if held.id != longer.id]
        is_longest = given.until >= min(limits) - 1e-3
        is_longest |= lab.over_h(given.ticket.username, grant, [*others, longer]) > 0
        _check(is_longest, f"{given.ticket.id} by {grant.id}: its hours last longer")

    def _beside(self, ticket: Ticket, leases: Iterable[Held]) -> list[Held]:
        """Without what is kept for this very server."""
        return [
            held
            for held in leases
            if held.kept_until is None or (held.username, held.servername) != ticket.server
        ]

    def _refused(self) -> None:
        """Nobody is refused who has a way left."""
        if not self.said.refuse:
            return
        most = list(self.before.values())
        most += [_as_held(given, self.lab.now) for given in self.said.give if not given.resumes]
        for refused in self.said.refuse:
            beside = self._beside(refused.ticket, most)
            for grant, _ in ways(self.lab, refused.ticket, self.inventory.gpus, beside):
                raise Broken(f"{refused.ticket.id} was refused in spite of {grant.id}")
            _check(refused.message.endswith("."), refused.message)

    def _waiting(self, after: Collection[Held]) -> None:
        present = [waits for waits in self.said.wait if not waits.ticket.is_away]
        for waits in self.said.wait:
            _check(1 <= waits.place <= waits.of, f"place {waits.place} of {waits.of}")
            _check(waits.expected_at is None or waits.expected_at >= self.lab.now, "in the past")
            _check(waits.reason.strip().endswith("."), waits.reason)
        if not present:
            return
        if all(waits.ticket.gpus == 1 for waits in present):
            for waits in present:
                self._nothing_free(waits, after)
            self._not_overtaken(present, after)
        else:
            self._nothing_free(present[0], after)

    def _nothing_free(self, waits: Wait, after: Collection[Held]) -> None:
        usable = [
            one
            for one in self.inventory.gpus
            if self.free[one.uuid] and not one.drained and not one.health
        ]
        beside = self._beside(waits.ticket, after)
        for grant, _ in ways(self.lab, waits.ticket, usable, beside):
            raise Broken(f"{waits.ticket.id} waits beside free devices of {grant.id}")

    def _not_overtaken(self, present: list[Wait], after: Collection[Held]) -> None:
        given_in_turn = [given for given in self.said.give if not given.resumes]
        if not given_in_turn:
            return
        places = [self._order(given.ticket) for given in given_in_turn]
        for waits in present:
            ahead = self._order(waits.ticket)
            for given, place in zip(given_in_turn, places, strict=True):
                if place < ahead:
                    continue
                for grant, _ in ways(self.lab, waits.ticket, given.gpus, after):
                    raise Broken(f"{given.ticket.id} overtook {waits.ticket.id} ({grant.id})")

    def _order(self, ticket: Ticket) -> tuple[float, ...]:
        lab = self.lab
        if lab.now - ticket.since >= lab.policy.patience_s:
            return (0, ticket.seq)
        beside = self._beside(ticket, self.before.values())
        able = ways(lab, ticket, self.inventory.gpus, beside)
        priorities = [grant.priority for grant, _ in able]
        used_h, step_h = lab.by_user_h[ticket.username], lab.policy.usage_step_h
        used = used_h // step_h if step_h else used_h
        return (1, -max(priorities, default=0) - ticket.boost, used, ticket.seq)


def _check(is_true: object, text: str) -> None:
    if not is_true:
        raise Broken(text)


def _is_valid(grant: Grant, now: float) -> bool:
    return (grant.valid_from or 0.0) <= now < (grant.valid_until or float("inf"))


def _week(at: float) -> int:
    """The number of a week that begins on a Monday, 00:00 UTC."""
    return int((at - _SOME_MONDAY) // _WEEK_S)


def _as_held(given: Give, now: float) -> Held:
    ticket, id_ = given.ticket, f"for {given.ticket.id}"
    return Held(id_, *ticket.server, given.holdings, given.grant.id, now, given.until)


def _counts(leases: object) -> Counter[tuple[str, str]]:
    counts: Counter[tuple[str, str]] = Counter()
    for held in leases:  # type: ignore[attr-defined]
        counts[held.username, held.grant] += len(held.holdings)
    return counts


def _pick(things: dict, arg: int) -> object:
    return things[tuple(things)[arg % len(things)]] if things else None


OPERATIONS: tuple[Callable[[Lab, int], None], ...] = (
    *(Lab.arrive,) * 9,
    *(Lab.wait,) * 5,
    *(Lab.stop,) * 3,
    *(Lab.crash,) * 2,
    *(Lab.return_of_the_crashed,) * 2,
    *(Lab.drain,) * 2,
    *(Lab.health,) * 2,
    *(Lab.mode,) * 2,
    *(Lab.come_back,) * 2,
    Lab.cancel,
    Lab.restart,
    Lab.grant,
    Lab.boost,
    Lab.stranger,
    Lab.strangers_leave,
)
HEAD = 3


def play(data: bytes, told: list[str] | None = None) -> Lab:
    """Tell one story.

    Args:
        data: See the module's text.
        told: Gets the story in words.

    Raises:
        Broken: A property does not hold.
    """
    lab, policy, mask = (*data[:HEAD], 0, 0, 0)[:HEAD]
    it = Lab(lab, policy, mask, told)
    for place in range(HEAD, len(data) - 1, 2):
        code, arg = data[place], data[place + 1]
        OPERATIONS[code % len(OPERATIONS)](it, arg & 127)
        it.check_state()
        if arg & 128:
            it.decide()
            it.check_state()
    it.settle()
    return it
