"""What NVML measures, again and again: utilisation, memory, temperature, power and processes.

What a GPU *is* asks ``nvml_facts``, each time in a fresh session. This keeps one open, because
without NVIDIA's persistence daemon opening it wakes every GPU, for seconds. As any monitor, an open
session is in the way of ``nvidia-smi --gpu-reset``, of switching MIG on and of unloading the
driver: stop the service for that.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pytorch_spawner.adapters.processes import process_name
from pytorch_spawner.core.gpus import GpuUuid
from pytorch_spawner.core.metering import Sample, make_sample

# Numbers of nvml.h, which never change once they are out.
_UNINITIALIZED: Final = 1
_NO_PERMISSION: Final = 4
_NOT_LOADED: Final = 9
_NO_LIBRARY: Final = 12
_NO_FUNCTION: Final = 13
_IS_LOST: Final = 15
_MISMATCH: Final = 18
_LOST: Final = frozenset({_UNINITIALIZED, _NOT_LOADED, _IS_LOST, _MISMATCH})
_MEMORY_V2: Final = 0x02000028
_GPU_SENSOR: Final = 0

# What _v3 of a function needs: driver 510 or newer; the last name is pynvml's own choice.
_COMPUTE: Final = tuple(f"nvmlDeviceGetComputeRunningProcesses{end}" for end in ("_v3", "_v2", ""))
_OTHERS: Final = (
    tuple(f"nvmlDeviceGetGraphicsRunningProcesses{end}" for end in ("_v3", "_v2", "")),
    tuple(f"nvmlDeviceGetMPSComputeRunningProcesses{end}" for end in ("_v3", "_v2", "")),
)
_MAX_PROCESSES: Final = 1024
_MIB: Final = 2**20
_WAIT_S: Final = 10.0
_LONGEST_WAIT_S: Final = 300.0

_REASONS: Final = {
    _NO_LIBRARY: "There is no NVIDIA driver where the lab service runs. Run the hub on the GPU "
    "host; if it runs in a container, give that the GPUs (NVIDIA_DRIVER_CAPABILITIES=utility).",
    _NOT_LOADED: "The NVIDIA driver is installed but not loaded. Run nvidia-smi on the host and "
    "see dmesg.",
    _NO_PERMISSION: "The lab service may not ask the NVIDIA driver. Give its user access to "
    "/dev/nvidiactl and /dev/nvidia*.",
    _MISMATCH: "The NVIDIA driver was updated, and the loaded one is another. Restart the host; "
    "if that was done, restart JupyterHub.",
    _IS_LOST: "A GPU has fallen off the PCI bus. See dmesg (Xid 79); the host must be restarted.",
}

# (pid, name, MiB)
Process = tuple[int, str, int | None]


@dataclass(frozen=True, slots=True)
class Reading:
    """What one look at all GPUs gave.

    Attributes:
        samples: By UUID, MIG instances too.
        processes: By UUID; a device whose processes cannot be listed is missing.
        reason: Why something, or everything, is missing, and what to do; "" when nothing is.
    """

    samples: dict[GpuUuid, Sample] = field(default_factory=dict)
    processes: dict[GpuUuid, list[Process]] = field(default_factory=dict)
    reason: str = ""


class NvmlMeter:
    """Opens NVML once and reads it; no driver is an empty reading with a reason, never an error.

    A driver that is lost (unloaded, updated, a GPU off the bus) is opened anew at the next read,
    and while that does not help, ever less often. Not for two threads at once.
    """

    def __init__(
        self,
        load: Callable[[], Any] = lambda: importlib.import_module("pynvml"),
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        name_of: Callable[[int], str] = process_name,
    ) -> None:
        """Make a meter; nothing is opened before the first read.

        Args:
            load: Returns the module ``pynvml``.
            clock: Of the samples, Unix time.
            monotonic: Of the back-off.
            name_of: The name of a process.
        """
        self._load = load
        self._clock = clock
        self._monotonic = monotonic
        self._name_of = name_of
        self._nvml: Any = None
        self._is_open = False
        self._is_sick = False
        self._failures = 0
        self._retry_at = -1e9
        self._reason = ""
        self._trouble = 0

    def read(self) -> Reading:
        """Ask for everything now. A sick driver may keep the caller waiting for ever."""
        if not self._be_open():
            return Reading(reason=self._reason)
        self._trouble = 0
        found = Reading()
        count = self._ask(("nvmlDeviceGetCount",))
        answered = 0
        for index in range(count if type(count) is int else 0):
            answered += self._add(found, index)
        self._judge()
        return Reading(found.samples, found.processes, self._say(count, answered))

    def close(self) -> None:
        """Let go of the driver; the next read opens it again."""
        if self._is_open:
            self._is_open = False
            try:
                self._nvml.nvmlShutdown()
            except self._nvml.NVMLError:
                pass  # it was gone already

    # -- open, lost, open again ---------------------------------------------------------------

    def _be_open(self) -> bool:
        if (self._is_open and not self._is_sick) or self._monotonic() < self._retry_at:
            # One lost GPU of eight keeps nobody from reading the others meanwhile.
            return self._is_open
        self.close()
        try:
            self._nvml = self._load()
        except ImportError:
            self._reason = (
                "nvidia-ml-py is not installed beside the lab service: pip install nvidia-ml-py."
            )
            return self._fail()
        try:
            self._nvml.nvmlInit()
        except self._nvml.NVMLError as error:
            said = f"No NVIDIA driver answers ({error}). Run nvidia-smi on the host."
            self._reason = _REASONS.get(getattr(error, "value", 0), said)
            return self._fail()
        self._is_open, self._is_sick = True, False
        return True

    def _fail(self) -> bool:
        self._failures += 1
        self._wait()
        return False

    def _wait(self) -> None:
        wait_s = min(_LONGEST_WAIT_S, _WAIT_S * 2 ** min(self._failures - 1, 10))
        self._retry_at = self._monotonic() + wait_s

    def _judge(self) -> None:
        """Whether the session that was just read is worth keeping."""
        if self._trouble not in _LOST:
            self._failures = 0
            return
        if not self._is_sick:
            self._is_sick = True
            if self._failures:  # the first time it is tried at once
                self._wait()
            self._failures += 1

    def _say(self, count: Any, answered: int) -> str:
        if self._trouble in _LOST:
            return _REASONS.get(self._trouble, "The NVIDIA driver was lost; it is tried again.")
        if type(count) is not int:
            return "The NVIDIA driver does not say how many GPUs there are. Run nvidia-smi."
        if count == 0:
            return "The NVIDIA driver is there, but it sees no GPU."
        missing = count - answered
        return f"{missing} of {count} GPUs gave no answer. Run nvidia-smi." if missing else ""

    # -- one device -----------------------------------------------------------------------------

    def _add(self, found: Reading, index: int) -> bool:
        """Add a GPU and its MIG instances; False when it gives no answer."""
        handle = self._ask(("nvmlDeviceGetHandleByIndex",), index)
        uuid = None if handle is None else self._uuid(handle)
        if uuid is None:
            return False
        modes = self._ask(("nvmlDeviceGetMigMode",), handle)
        # The first is the mode now, the second the one after the next reset.
        is_cut = isinstance(modes, (list, tuple)) and modes[:1] in ([1], (1,))
        found.samples[uuid] = self._sample(handle)
        if not is_cut:
            self._add_processes(found, uuid, handle)
            return True
        # The whole GPU lists what its instances do; there it would show twice.
        places = self._ask(("nvmlDeviceGetMaxMigDeviceCount",), handle)
        for place in range(places if type(places) is int else 0):
            instance = self._ask(("nvmlDeviceGetMigDeviceHandleByIndex",), handle, place)
            name = None if instance is None else self._uuid(instance)
            if name is not None:
                found.samples[name] = self._sample(instance)
                self._add_processes(found, name, instance)
        return True

    def _uuid(self, handle: Any) -> GpuUuid | None:
        said = self._ask(("nvmlDeviceGetUUID",), handle)
        text = said.decode("utf-8", "replace") if isinstance(said, bytes) else said
        return GpuUuid(text) if isinstance(text, str) and text else None

    def _sample(self, handle: Any) -> Sample:
        rates = self._ask(("nvmlDeviceGetUtilizationRates",), handle)
        # What the driver keeps for itself counts as used in the older answer, as not in the newer.
        memory = self._ask(("nvmlDeviceGetMemoryInfo",), handle, _MEMORY_V2)
        if memory is None:
            memory = self._ask(("nvmlDeviceGetMemoryInfo",), handle)
        power_mw = self._ask(("nvmlDeviceGetPowerUsage",), handle)
        heat = ("nvmlDeviceGetTemperature", "nvmlDeviceGetTemperatureV")
        used = getattr(memory, "used", None)
        return make_sample(
            self._clock(),
            {
                "utilisation": getattr(rates, "gpu", None),
                "memory_used_mib": used // _MIB if type(used) is int else None,
                "temperature_c": self._ask(heat, handle, _GPU_SENSOR),
                "power_w": power_mw / 1000 if type(power_mw) is int else None,
            },
        )

    def _add_processes(self, found: Reading, uuid: GpuUuid, handle: Any) -> None:
        computing = self._ask(_COMPUTE, handle)
        if not isinstance(computing, (list, tuple)):
            return
        seen: dict[int, int | None] = {}
        for rows in (computing, *(self._ask(names, handle) for names in _OTHERS)):
            for row in rows[:_MAX_PROCESSES] if isinstance(rows, (list, tuple)) else ():
                pid, used = getattr(row, "pid", 0), _used_mib(row)
                if type(pid) is int and pid > 0:
                    # One process may compute and draw; each list has all of its memory.
                    both = [mib for mib in (seen.get(pid), used) if mib is not None]
                    seen[pid] = max(both, default=None)
        found.processes[uuid] = [(pid, self._name_of(pid), used) for pid, used in seen.items()]

    def _ask(self, names: Sequence[str], *arguments: Any) -> Any:
        """What the first of some functions that exists answers; None where it does not."""
        for name in names:
            try:
                return getattr(self._nvml, name)(*arguments)
            except AttributeError:  # pynvml is older than the function
                continue
            except (TypeError, ValueError):  # an older form of it, or bytes that are no UTF-8
                continue
            except self._nvml.NVMLError as error:
                code = getattr(error, "value", 0)
                if code in _LOST and self._trouble != _UNINITIALIZED:
                    self._trouble = code
                if code != _NO_FUNCTION:  # the driver is older than the function: try the next
                    return None
        return None


def _used_mib(row: Any) -> int | None:
    used = getattr(row, "usedGpuMemory", None)
    # 2**64 - 1 is NVML_VALUE_NOT_AVAILABLE; older drivers have it less the instance's bits.
    return used // _MIB if type(used) is int and 0 <= used < 2**48 else None
