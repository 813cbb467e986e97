"""How busy GPUs are: samples of them, their last quarter of an hour, and whose the work was.

Nothing here asks a driver. Unknown is None, never 0: a GPU that nobody could measure was not idle.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from pytorch_spawner.core.gpus import GpuUuid

# What a value can be at all; anything else is an answer that means "not known", or a lie.
_MAX_MIB: Final = 2**24
_MAX_C: Final = 150.0
_MAX_W: Final = 5000.0
# GPUs that one report may speak of: no server holds as many.
_MAX_ROWS: Final = 64

# The columns of a history, in the order of ``Sample.as_row``.
MEASURES: Final = ("utilisation", "memory_used_mib", "temperature_c", "power_w")


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at one GPU; None is unknown.

    Attributes:
        at: Unix time in seconds.
        utilisation: Per cent of the time in which a kernel ran, 0 to 100.
        memory_used_mib: Memory in use, by everybody.
        temperature_c: Degrees Celsius.
        power_w: Watts.
    """

    at: float
    utilisation: float | None = None
    memory_used_mib: int | None = None
    temperature_c: float | None = None
    power_w: float | None = None

    def as_json(self) -> dict[str, float | None]:
        """The sample as the API sends it."""
        return {"at": self.at, **dict(zip(MEASURES, self.as_row(), strict=True))}

    def as_row(self) -> list[float | None]:
        """The values in the order of ``MEASURES``."""
        return [
            _rounded(self.utilisation),
            self.memory_used_mib,
            _rounded(self.temperature_c),
            _rounded(self.power_w),
        ]


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process that uses a GPU.

    Attributes:
        pid: On the host.
        name: Of its program; "" where it is gone or not visible.
        used_mib: GPU memory it uses; None where the driver does not say.
        username: Whose server it runs in; None when it is in no container of this lab.
        servername: Which of the user's servers; None like ``username``.
        is_told: Whether it could be found out whose it is. False: ``username`` None says nothing.
    """

    pid: int
    name: str = ""
    used_mib: int | None = None
    username: str | None = None
    servername: str | None = None
    is_told: bool = True

    @property
    def server(self) -> tuple[str, str] | None:
        """(username, servername) where it is this lab's."""
        return None if self.username is None else (self.username, self.servername or "")

    def as_json(self) -> dict[str, Any]:
        """The process as the API sends it."""
        return {
            "pid": self.pid,
            "name": self.name,
            "used_mib": self.used_mib,
            "user": self.username,
            "server": self.servername,
        }


def make_sample(at: float, values: Mapping[str, Any]) -> Sample:
    """A sample of values that may be anything, by the names in ``MEASURES``.

    Whatever is no number, or out of the range of such a value, is unknown.
    """
    memory = _within(values.get("memory_used_mib"), 0, _MAX_MIB)
    return Sample(
        at,
        _within(values.get("utilisation"), 0, 100),
        None if memory is None else int(memory),
        _within(values.get("temperature_c"), -50, _MAX_C),
        _within(values.get("power_w"), 0, _MAX_W),
    )


def from_report(
    data: Mapping[str, Any], allowed_uuids: Collection[str], at: float
) -> dict[GpuUuid, Sample]:
    """What an agent's ``sample`` event says; hostile, like everything out of a container.

    Args:
        data: Of the event: ``{"gpus": [{"uuid", "utilisation_pct", "memory_used_mib",
            "temperature_c", "power_w"}, ...]}``.
        allowed_uuids: GPUs that its server holds; nothing is believed of others.
        at: When it came. A container's own clock is not evidence.

    Returns:
        By UUID; the first row about a GPU counts.
    """
    rows = data.get("gpus")
    found: dict[GpuUuid, Sample] = {}
    for row in rows[:_MAX_ROWS] if isinstance(rows, list) else ():
        uuid = row.get("uuid") if isinstance(row, Mapping) else None
        if isinstance(uuid, str) and uuid in allowed_uuids and uuid not in found:
            values = {**row, "utilisation": row.get("utilisation_pct")}
            found[GpuUuid(uuid)] = make_sample(at, values)
    return found


def _within(value: Any, least: float, most: float) -> float | None:
    # bool is an int to Python, and NaN is within nothing.
    if type(value) not in (int, float) or not least <= value <= most:
        return None
    return float(value)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


# -- the last quarter of an hour ----------------------------------------------------------------


class _Sum:
    """What was measured of one GPU within one step."""

    __slots__ = ("_count", "_most", "_sum")

    def __init__(self) -> None:
        self._sum = [0.0] * len(MEASURES)
        self._count = [0] * len(MEASURES)
        self._most: list[float | None] = [None] * len(MEASURES)

    def add(self, row: Sequence[float | None]) -> None:
        for place, value in enumerate(row):
            if value is not None:
                self._sum[place] += value
                self._count[place] += 1
                most = self._most[place]
                self._most[place] = value if most is None else max(most, value)

    def value(self, place: int) -> float | None:
        if not self._count[place]:
            return None
        if MEASURES[place] in ("memory_used_mib", "temperature_c"):
            return self._most[place]
        return round(self._sum[place] / self._count[place], 1)


class History:
    """The last ``step_s * points`` seconds of every GPU, one value a step.

    Of what falls into one step, utilisation and power are averaged, and of memory and temperature
    the highest counts: a peak that fills the memory is what an admin looks for. A GPU of which
    nothing came for the whole time is forgotten. Memory: points x GPUs x 12 numbers.
    """

    def __init__(self, step_s: int = 10, points: int = 90) -> None:
        self.step_s = step_s
        self.points = points
        self._steps: dict[int, dict[str, _Sum]] = {}

    def add(self, at: float, samples: Mapping[GpuUuid, Sample]) -> None:
        """Take samples of some GPUs; none at all only moves the time on.

        A clock that was set back leaves nothing in the future: what is later than ``at`` is
        dropped.
        """
        step = math.floor(at / self.step_s)
        if any(not step - self.points < known <= step for known in self._steps):
            self._steps = {
                known: sums
                for known, sums in self._steps.items()
                if step - self.points < known <= step
            }
        sums = self._steps.setdefault(step, {})
        for uuid, sample in samples.items():
            sums.setdefault(uuid, _Sum()).add(sample.as_row())

    def as_json(self) -> dict[str, Any]:
        """As ``GET api/gpus/history`` sends it; ``at`` has no gaps and names each step's begin.

        A step in which nothing was measured has None.
        """
        if not self._steps:
            return {"step_s": self.step_s, "at": [], "gpus": {}}
        steps = range(min(self._steps), max(self._steps) + 1)
        uuids = dict.fromkeys(uuid for step in sorted(self._steps) for uuid in self._steps[step])
        return {
            "step_s": self.step_s,
            "at": [step * self.step_s for step in steps],
            "gpus": {
                uuid: {
                    measure: [self._value(step, uuid, place) for step in steps]
                    for place, measure in enumerate(MEASURES)
                }
                for uuid in uuids
            },
        }

    def _value(self, step: int, uuid: str, place: int) -> float | None:
        found = self._steps.get(step, {}).get(uuid)
        return None if found is None else found.value(place)


# -- whose the work was -------------------------------------------------------------------------


class Holds(Protocol):
    """A lease, as far as it matters here."""

    @property
    def id(self) -> str:
        """Unique in the ledger."""

    @property
    def username(self) -> str:
        """Who holds it."""

    @property
    def servername(self) -> str:
        """Which of the user's servers."""

    @property
    def gpus(self) -> Sequence[str]:
        """UUIDs of what it holds."""


Server = tuple[str, str]
# (username, servername, lease, GPU)
BusyKey = tuple[str, str, str, str]


def busy_share(
    sample: Sample | None,
    holders: Collection[Server],
    processes: Iterable[GpuProcess] | None = None,
) -> dict[Server, float]:
    """How much of a device's busy time each of its holders is given.

    Args:
        sample: Of the device.
        holders: Servers that hold it, wholly or a slot.
        processes: What runs on it; None where that is unknown.

    Returns:
        A share from 0 to 1 for every holder, together at most the device's utilisation. Empty when
        that is unknown. It is split evenly among the holders that have a process on the device. If
        none has, all share it, unless every process there is known to be somebody else's: a driver
        that lists no process for a busy device does not know, one that lists others does.
    """
    if sample is None or sample.utilisation is None or not holders:
        return {}
    seen = list(processes or ())
    working = {process.server for process in seen} & set(holders)
    if not working and not (seen and all(process.is_told for process in seen)):
        working = set(holders)
    each = sample.utilisation / 100 / max(1, len(working))
    return {server: each if server in working else 0.0 for server in holders}


def busy_seconds(
    samples: Mapping[GpuUuid, Sample],
    processes: Mapping[GpuUuid, Sequence[GpuProcess]],
    leases: Iterable[Holds],
    dt_s: float,
) -> dict[BusyKey, float]:
    """Seconds that each lease kept each of its devices busy, of the last ``dt_s``.

    Args:
        samples: What was measured.
        processes: By device; one that is missing is unknown.
        leases: Those whose servers run.
        dt_s: How long the samples stand for.

    Returns:
        By lease and device, at most ``dt_s`` for a device in all. A device whose utilisation is
        unknown is missing; 0.0 means that it was measured and this lease did nothing.
    """
    by_gpu: dict[str, dict[Server, str]] = {}
    for lease in leases:
        for uuid in lease.gpus:
            by_gpu.setdefault(uuid, {})[lease.username, lease.servername] = lease.id
    found: dict[BusyKey, float] = {}
    for uuid, holders in by_gpu.items():
        gpu = GpuUuid(uuid)
        shares = busy_share(samples.get(gpu), holders, processes.get(gpu))
        for (username, servername), share in shares.items():
            lease_id = holders[username, servername]
            found[username, servername, lease_id, uuid] = share * max(0.0, dt_s)
    return found
