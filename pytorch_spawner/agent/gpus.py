"""What the container can see of NVIDIA's driver and GPUs, without torch.

``probe`` asks; ``driver`` and ``gpu_visible`` compare what it found with the lease. Both look at
what the container *may* use (nvidia-smi) and what CUDA *will* use (libcuda): a variable can hide a
GPU from the second only.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from pytorch_spawner.agent.codes import Outcome, outcome
from pytorch_spawner.agent.config import Config
from pytorch_spawner.agent.device_watch import denied
from pytorch_spawner.agent.launch import self_command

_PROBE_S = 12.0
_UUID = re.compile(r"\(UUID:\s*([^)\s]+)\)")


@dataclass(frozen=True)
class Driver:
    """What was found.

    Attributes:
        version: Of the driver, "580.159.04"; ``None`` when none was found.
        cuda: The newest CUDA the driver runs, (13, 0); ``None`` when libcuda did not say.
        uuids: Every GPU or MIG instance that is visible, each once.
        trouble: Why CUDA did not answer; "" when it did or nobody tried.
        refusal: What nvidia-smi said instead of a list of GPUs; "" when it listed some, or is not
            there.
        denied: Device files of the driver that are there, and must not be opened.
    """

    version: Optional[str] = None
    cuda: Optional[Tuple[int, int]] = None
    uuids: Tuple[str, ...] = ()
    trouble: str = ""
    refusal: str = ""
    denied: Tuple[str, ...] = ()

    def as_job(self) -> Dict[str, Any]:
        """As a JSON object for a worker process."""
        return asdict(self)


def probe() -> Driver:
    """Ask nvidia-smi and libcuda. Each runs in a process of its own: a sick driver hangs.

    Both at once: each takes a quarter of a second, and all its patience where the driver is sick.
    """
    smi = shutil.which("nvidia-smi")
    if smi is None and not any(Path("/dev").glob("nvidia*")) and not Path("/dev/dxg").exists():
        return Driver()
    asked = _Aside(lambda: answer([*self_command(isolated=True), "--worker", "cuda"]))
    status, text = (ask([smi, "-L"]) if smi else None) or (0, "")
    listed = parse_list(text)
    version = _kernel_module_version()
    if smi and version is None:
        versions = answer([smi, "--query-gpu=driver_version", "--format=csv,noheader"]) or ""
        version = versions.split("\n")[0].strip() or None
    said = asked.result()
    cuda = json.loads(said) if said and said.startswith("{") else {"trouble": "it does not answer"}
    return Driver(
        version=version,
        cuda=tuple(cuda["version"]) if cuda.get("version") else None,
        uuids=_union(listed, cuda.get("uuids", ())),
        trouble=cuda.get("trouble", ""),
        refusal=" ".join(text.split())[:300] if status else "",
        denied=denied(),
    )


class _Aside:
    """A question that is asked meanwhile; in turn, where no thread can be started.

    Its thread is nobody's to wait for when the agent ends.
    """

    def __init__(self, question: Callable[[], Optional[str]]) -> None:
        self._question = question
        self._said: List[Optional[str]] = []
        self._thread: Optional[threading.Thread] = threading.Thread(target=self._ask, daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # the limit on processes
            self._thread = None

    def _ask(self) -> None:
        self._said.append(self._question())

    def result(self) -> Optional[str]:
        """The answer; the question has a deadline of its own."""
        if self._thread is None:
            self._ask()
        else:
            self._thread.join()
        return self._said[0] if self._said else None


def answer(command: Sequence[str], timeout_s: float = _PROBE_S) -> Optional[str]:
    """What a command prints; ``None`` when it fails or hangs."""
    said = ask(command, timeout_s, stderr=subprocess.DEVNULL)
    return said[1] if said is not None and said[0] == 0 else None


def ask(
    command: Sequence[str], timeout_s: float = _PROBE_S, *, stderr: int = subprocess.STDOUT
) -> Optional[Tuple[int, str]]:
    """The exit status of a command and what it prints; ``None`` when it cannot run, or hangs.

    A process stuck inside the driver cannot be killed, so nobody waits for it after the deadline.
    """
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr
        )
    except OSError:
        return None
    try:
        said, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        return None
    return process.returncode, said.decode(errors="replace")


def parse_list(text: str) -> Tuple[str, ...]:
    """UUIDs in ``nvidia-smi -L``; a GPU split into MIG instances stands for its instances."""
    uuids: List[str] = []
    for line in text.splitlines():
        found = _UUID.search(line)
        if found is None:
            continue
        if line[:1].isspace() and uuids and uuids[-1].startswith("GPU-"):
            uuids.pop()  # the parent of this, its first instance
        uuids.append(found.group(1))
    return tuple(uuids)


def _kernel_module_version() -> Optional[str]:
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(r"\b(\d{3,4}\.\d+(?:\.\d+)?)\b", text)
    return found.group(1) if found else None


def _bare(uuid: str) -> str:
    return uuid.split("-", 1)[-1].lower()


def _union(listed: Sequence[str], by_cuda: Sequence[str]) -> Tuple[str, ...]:
    known = {_bare(uuid) for uuid in listed}
    return (*listed, *(uuid for uuid in by_cuda if _bare(uuid) not in known))


def ask_cuda() -> Dict[str, Any]:
    """Ask libcuda, in this process, which may hang or die of it.

    Returns:
        ``{"version": [major, minor], "uuids": [...], "trouble": str}``.

    Source: CUDA driver API, cuInit, cuDriverGetVersion, cuDeviceGetUuid_v2 (CUDA 11.4; it names
    MIG instances, the older call their parent).
    """
    import ctypes
    import uuid

    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return {"trouble": "libcuda.so.1 is not in the container"}
    number = ctypes.c_int()
    said: Dict[str, Any] = {"uuids": [], "trouble": ""}
    if cuda.cuDriverGetVersion(ctypes.byref(number)) == 0:
        said["version"] = [number.value // 1000, number.value % 1000 // 10]
    status = cuda.cuInit(0)
    if status != 0:
        # 100 is CUDA_ERROR_NO_DEVICE: an answer, not a trouble.
        said["trouble"] = "" if status == 100 else f"cuInit answers {status}"
        return said
    cuda.cuDeviceGetCount(ctypes.byref(number))
    ask = getattr(cuda, "cuDeviceGetUuid_v2", cuda.cuDeviceGetUuid)
    for index in range(number.value):
        raw = (ctypes.c_ubyte * 16)()
        device = ctypes.c_int()
        if cuda.cuDeviceGet(ctypes.byref(device), index) == 0 and ask(raw, device) == 0:
            said["uuids"].append(f"GPU-{uuid.UUID(bytes=bytes(raw))}")
    return said


def driver(config: Config, found: Driver) -> Outcome:
    """Whether the driver answers, if this server needs one."""
    facts: Dict[str, Any] = {
        "version": found.version,
        "cuda": None if found.cuda is None else f"{found.cuda[0]}.{found.cuda[1]}",
        "trouble": found.trouble,
        "refusal": found.refusal,
        "denied": list(found.denied),
    }
    if config.gpus is None and found.version is None and not found.refusal:
        return outcome("unknown", "The agent was not told whether this server has a GPU.", **facts)
    if config.gpus is not None and not config.gpus:
        return outcome("ok", "No GPU was asked for, so no driver is needed.", **facts)
    if config.gpus and not config.real_gpus:
        return outcome("ok", "The GPUs of this lab are simulated, so no driver is needed.", **facts)
    known = _known_refusal(found)
    if known is not None:
        # For a page that wants to offer it: only this one is surely cured by a new container.
        return outcome("fail", *known[1:], restart=known is REFUSALS[0], **facts)
    if found.version is None and found.cuda is None:
        return outcome(
            "fail", "The NVIDIA driver does not answer in your container.",
            "Stop and start your server; if it happens again, tell your admin.",
            "Check nvidia-smi on the host, and the CDI specification or NVIDIA's container "
            "toolkit.", **facts,
        )  # fmt: skip
    if found.trouble:
        return outcome(
            "fail", "The NVIDIA driver is there, but CUDA does not start.",
            "Stop and start your server; if it happens again, tell your admin.",
            f"CUDA: {found.trouble}. Check nvidia-smi and dmesg (Xid) on the host; regenerate the "
            "CDI specification after a driver update.", **facts,
        )  # fmt: skip
    runs = f" and runs programs built for CUDA {facts['cuda']}" if found.cuda else ""
    return outcome("ok", f"The NVIDIA driver {found.version or ''} answers{runs}.", **facts)


_AGAIN = "Stop and start your server; if it happens again, tell your admin."

# (words of nvidia-smi, sentence, what the student can do, what the admin can do). The first is
# issue 48 of nvidia-container-toolkit; NVIDIA's troubleshooting page names these ways out.
REFUSALS: Tuple[Tuple[str, str, str, str], ...] = (
    (
        "Failed to initialize NVML: Unknown Error",
        "Your server has lost its GPU: the host no longer lets this container use it.",
        "Save your work, then stop and start your server: that brings the GPU back.",
        "systemd takes the devices of running containers away when it reloads (systemctl "
        "daemon-reload, an update). Give GPUs by CDI, or set Docker's cgroup driver to cgroupfs, "
        "or make the links in /dev/char (nvidia-ctk system create-dev-char-symlinks).",
    ),
    (
        "Driver/library version mismatch",
        "The NVIDIA driver was updated under your server, which still has the old libraries.",
        _AGAIN,
        "Reboot the host or reload the driver's kernel modules, then regenerate the CDI "
        "specification (nvidia-ctk cdi generate).",
    ),
    (
        "GPU is lost|requires reset|Unable to determine the device handle",
        "A GPU of your server has stopped answering.",
        _AGAIN,
        "Look for Xid messages in dmesg; reset the GPU or reboot the host, and take the GPU out "
        "of service when it happens again.",
    ),
    (
        "communicate with the NVIDIA driver",
        "The NVIDIA driver is not running on the host.",
        "Tell your admin.",
        "Load the kernel modules (modprobe nvidia); after a kernel update, rebuild them (dkms).",
    ),
    (
        "Insufficient Permissions",
        "This container must not ask the NVIDIA driver.",
        "Tell your admin.",
        "Look at the modes of /dev/nvidia* on the host; the container's user needs to open them.",
    ),
    (
        "libnvidia-ml",
        "The libraries of the NVIDIA driver are missing in your container.",
        "Tell your admin.",
        "NVIDIA_DRIVER_CAPABILITIES needs compute and utility; with CDI, regenerate the "
        "specification.",
    ),
)


def _known_refusal(found: Driver) -> Optional[Tuple[str, str, str, str]]:
    """The line of ``REFUSALS`` that explains why there is no GPU; ``None`` where CUDA has some."""
    if found.denied:
        return REFUSALS[0]
    if found.cuda and found.uuids and not found.trouble:
        return None
    for row in REFUSALS:
        if any(words in found.refusal for words in row[0].split("|")):
            return row
    return None


def gpu_visible(config: Config, found: Driver) -> Outcome:
    """Whether exactly the leased GPUs are visible."""
    seen = {_bare(uuid) for uuid in found.uuids}
    leased = {_bare(gpu.uuid) for gpu in config.real_gpus}
    facts: Dict[str, Any] = {
        "leased": [gpu.uuid for gpu in config.gpus or ()],
        "visible": list(found.uuids),
    }
    more = len(seen - leased)
    if config.gpus is None:
        return outcome(
            "unknown", f"Your server sees {_gpus(len(seen))}; how many it should see is not known "
            "here.", **facts,
        )  # fmt: skip
    if more:
        return outcome(
            "fail", f"Your server sees {_gpus(more)} more than it was given.",
            "Tell your admin, and use only what you were given: others work on the rest.",
            "The lease is not what was injected: check the lab's inventory, the runtime's default "
            "devices and NVIDIA_VISIBLE_DEVICES of the image.", **facts,
        )  # fmt: skip
    if leased - seen:
        return outcome(
            "fail", f"Your server was given {_gpus(len(leased))}, but sees "
            f"{len(leased & seen) or 'none'}.",
            "Stop and start your server; if it happens again, tell your admin.",
            "Check that the GPUs are still on the bus (nvidia-smi -L on the host) and listed by "
            "CDI (nvidia-ctk cdi list).", **facts,
        )  # fmt: skip
    if any(gpu.simulated for gpu in config.gpus):
        return outcome(
            "warn", "This lab simulates its GPUs; PyTorch computes on the CPU.", "",
            "Remove the static inventory to use real GPUs.", **facts,
        )  # fmt: skip
    if not leased:
        return outcome("ok", "This server has no GPU: PyTorch computes on the CPU.", **facts)
    return outcome(
        "ok", f"Your server sees {_gpus(len(leased))}, exactly what it was given.", **facts
    )


def _gpus(number: int) -> str:
    return {0: "no GPU", 1: "one GPU"}.get(number, f"{number} GPUs")


def sample(uuids: Sequence[str]) -> List[Dict[str, Any]]:
    """Utilisation, memory, temperature and power of some GPUs, from nvidia-smi.

    Returns:
        One entry per GPU that answered; ``None`` in it is unknown. Empty without nvidia-smi.
    """
    smi = shutil.which("nvidia-smi")
    if smi is None or not uuids:
        return []
    fields = "uuid,utilization.gpu,memory.used,memory.total,temperature.gpu,power.draw"
    said = answer([smi, f"--query-gpu={fields}", "--format=csv,noheader,nounits"], 4.0)
    return parse_sample(said or "", uuids)


def parse_sample(text: str, uuids: Sequence[str]) -> List[Dict[str, Any]]:
    """Read nvidia-smi's table; what is no number ("[N/A]") is ``None``."""
    names = ("utilisation_pct", "memory_used_mib", "memory_total_mib", "temperature_c", "power_w")
    wanted = {_bare(uuid) for uuid in uuids}
    rows: List[Dict[str, Any]] = []
    for cells in csv.reader(text.splitlines(), skipinitialspace=True):
        if len(cells) == len(names) + 1 and _bare(cells[0]) in wanted:
            values = {name: _number(cells[1 + index]) for index, name in enumerate(names)}
            rows.append({"uuid": cells[0], **values})
    return rows


def _number(text: str) -> Optional[float]:
    try:
        return float(text)
    except ValueError:
        return None
