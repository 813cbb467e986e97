"""The state of the GPUs themselves, as the driver tells it: heat, memory errors, their link.

Two calls of nvidia-smi for everything; what it does not say is unknown, never 0. ``look`` asks;
``gpu_health`` and ``gpu_link`` judge and touch nothing.
"""

from __future__ import annotations

import csv
import math
import os
import re
import shutil
import time
from dataclasses import asdict, dataclass
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from pytorch_spawner.agent import gpus
from pytorch_spawner.agent.codes import LEVELS, Outcome, outcome
from pytorch_spawner.agent.config import Config

_ASK_S = 4.0
_TOTAL_S = 6.0
_NO_GPU = "This server has no GPU: PyTorch computes on the CPU."

HOT_C = 90
# A GPU at rest makes its link slower to save power: only one that works tells anything by that.
BUSY_PCT = 50

# Bits of clocks_event_reasons that mean trouble, to words. The others (idle, clocks set by the
# admin, the power limit, sync boost) are ordinary. Source: NVML API, nvmlClocksEventReasons.
SLOWED: Tuple[Tuple[int, str], ...] = (
    (0x08, "the hardware slows it down"),
    (0x20, "it is too hot"),
    (0x40, "it is much too hot"),
    (0x80, "its power supply asks it to"),
)

# Errors of the GPU or its driver; the others are mostly those of programs. Source: NVIDIA, "XID
# Errors": memory (48, 64, 95, 140), NVLink (74), off the bus (79), its firmware (62, 119, 120).
SERIOUS_XIDS = frozenset({48, 62, 64, 74, 79, 95, 119, 120, 140})
_XID = re.compile(r"NVRM: Xid \(PCI:[0-9a-f]+:([0-9a-f]+:[0-9a-f]+)[^)]*\): (\d+)", re.IGNORECASE)
_MAX_RECORDS = 20_000


@dataclass(frozen=True)
class Reading:
    """What the driver says of one GPU; ``None`` is unknown.

    Attributes:
        uuid: Of the whole GPU, also where a MIG instance is leased.
        bus: Its PCI address, "00000000:3B:00.0".
        pstate: "P0", the fastest, to "P15".
        utilisation_pct: Share of the last second in which it worked; unknown with MIG.
        temperature_c: Of the chip.
        memory_temperature_c: Of the memory.
        reasons: Why it does not run at its highest clock, as NVML's bits.
        ecc_uncorrected: Memory errors since the driver was loaded that could not be corrected.
        repair_pending: Whether bad memory waits for a reset to be taken out of use.
        repair_failed: Whether bad memory cannot be replaced any more.
        link_gen: PCIe generation of its link now.
        link_gen_max: The best that GPU and computer can do together.
        link_width: PCIe lanes of its link now.
        link_width_max: The most that GPU and computer can do together.
        memory_free_mib: Free memory.
        memory_total_mib: All memory.
        gone: What the driver says instead of values: "GPU is lost"; "" when it answers.
    """

    uuid: str
    bus: str = ""
    pstate: Optional[str] = None
    utilisation_pct: Optional[float] = None
    temperature_c: Optional[float] = None
    memory_temperature_c: Optional[float] = None
    reasons: Optional[int] = None
    ecc_uncorrected: Optional[float] = None
    repair_pending: Optional[bool] = None
    repair_failed: Optional[bool] = None
    link_gen: Optional[float] = None
    link_gen_max: Optional[float] = None
    link_width: Optional[float] = None
    link_width_max: Optional[float] = None
    memory_free_mib: Optional[float] = None
    memory_total_mib: Optional[float] = None
    gone: str = ""


def _number(text: str) -> Optional[float]:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None


def _bits(text: str) -> Optional[int]:
    try:
        return int(text, 16)
    except ValueError:
        return None


def _yes(text: str) -> Optional[bool]:
    return {"yes": True, "1": True, "no": False, "0": False}.get(text.lower())


def _pstate(text: str) -> Optional[str]:
    return text if re.fullmatch(r"P\d{1,2}", text) else None


# (attribute of Reading, how to read it, its names in nvidia-smi, the newest first).
_FIELDS: Tuple[Tuple[str, Callable[[str], Any], Tuple[str, ...]], ...] = (
    ("uuid", str, ("uuid",)),
    ("bus", str, ("pci.bus_id",)),
    ("pstate", _pstate, ("pstate",)),
    ("utilisation_pct", _number, ("utilization.gpu",)),
    ("temperature_c", _number, ("temperature.gpu",)),
    ("memory_temperature_c", _number, ("temperature.memory",)),
    ("reasons", _bits, ("clocks_event_reasons.active", "clocks_throttle_reasons.active")),
    ("ecc_uncorrected", _number, ("ecc.errors.uncorrected.volatile.total",)),
    ("repair_pending", _yes, ("retired_pages.pending",)),
    ("link_gen", _number, ("pcie.link.gen.current",)),
    ("link_gen_max", _number, ("pcie.link.gen.max",)),
    ("link_width", _number, ("pcie.link.width.current",)),
    ("link_width_max", _number, ("pcie.link.width.max",)),
    ("memory_free_mib", _number, ("memory.free",)),
    ("memory_total_mib", _number, ("memory.total",)),
)
_READERS: Mapping[str, Callable[[str], Any]] = {name: read for name, read, _ in _FIELDS}
_REMAPPED = ("gpu_uuid", "remapped_rows.pending", "remapped_rows.failure")


def look(config: Config) -> Optional[Tuple[Reading, ...]]:
    """Ask nvidia-smi about the GPUs of this server.

    Returns:
        One reading per GPU that it named; ``None`` where there is no nvidia-smi.
    """
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return None
    names, text = _query(smi)
    rows = mine(parse(text, names), config)
    if not rows:
        return ()
    said = gpus.ask(
        [smi, f"--query-remapped-rows={','.join(_REMAPPED)}", "--format=csv,noheader"], _ASK_S
    )
    return with_remapped(rows, said[1]) if said is not None and said[0] == 0 else rows


def _query(smi: str) -> Tuple[Tuple[str, ...], str]:
    """Ask for all fields; drop or rename those that this nvidia-smi refuses, and ask again."""
    left = {name: list(names) for name, _, names in _FIELDS}
    give_up_at = time.monotonic() + _TOTAL_S
    while time.monotonic() < give_up_at:
        asked = {name: names[0] for name, names in left.items() if names}
        said = gpus.ask(
            [smi, f"--query-gpu={','.join(asked.values())}", "--format=csv,noheader,nounits"],
            _ASK_S,
        )
        if said is None:
            break
        refused = re.search(r'Field "([^"]*)" is not a valid field', said[1])
        if refused is None:
            return tuple(asked), said[1]
        owner = [name for name, field in asked.items() if field == refused.group(1)]
        if not owner or owner == ["uuid"]:
            break
        left[owner[0]].pop(0)
    return (), ""


def parse(text: str, names: Sequence[str]) -> Tuple[Reading, ...]:
    """Read nvidia-smi's table.

    Args:
        text: Lines of values; any other line is passed over.
        names: Attributes of ``Reading``, by column.
    """
    rows: List[Reading] = []
    for cells in csv.reader(text.splitlines(), skipinitialspace=True):
        if len(cells) != len(names) or not names:
            continue
        values = {name: _READERS[name](cells[place].strip()) for place, name in enumerate(names)}
        if not re.match(r"(GPU|MIG)-", str(values.get("uuid"))):
            continue
        gone = [c for c in cells if "GPU is lost" in c or "requires reset" in c]
        rows.append(Reading(**{**values, "gone": gone[0].strip(" []") if gone else ""}))
    return tuple(rows)


def with_remapped(rows: Sequence[Reading], text: str) -> Tuple[Reading, ...]:
    """Add what ``--query-remapped-rows`` says: newer GPUs replace rows, older ones retire pages."""
    found = {}
    for cells in csv.reader(text.splitlines(), skipinitialspace=True):
        if len(cells) == len(_REMAPPED):
            found[cells[0].strip()] = tuple(_yes(cell.strip()) for cell in cells[1:])
    full = []
    for row in rows:
        pending, failed = found.get(row.uuid, (None, None))
        if pending is None:
            pending = row.repair_pending
        full.append(Reading(**{**asdict(row), "repair_pending": pending, "repair_failed": failed}))
    return tuple(full)


def mine(rows: Sequence[Reading], config: Config) -> Tuple[Reading, ...]:
    """The rows of the leased GPUs.

    Of MIG instances, nvidia-smi has only the GPUs they are cut from; the container sees no others.
    """
    if config.gpus is None or any(gpu.uuid.startswith("MIG-") for gpu in config.real_gpus):
        return tuple(rows)
    leased = {gpu.uuid.lower() for gpu in config.real_gpus}
    return tuple(row for row in rows if row.uuid.lower() in leased)


def xids(buses: Sequence[str], path: str = "/dev/kmsg") -> Optional[Dict[str, int]]:
    """How often the kernel reported which error of these GPUs since it started.

    Returns:
        Count by Xid; ``None`` where the kernel's messages cannot be read, as in most containers.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    wanted = {":".join(bus.lower().split(".")[0].split(":")[-2:]) for bus in buses if bus}
    counts: Dict[str, int] = {}
    try:
        for _ in range(_MAX_RECORDS):
            try:
                record = os.read(fd, 8192)
            except BrokenPipeError:  # overwritten while we read: the next one is there
                continue
            except BlockingIOError:
                break
            except OSError:
                return None
            if not record:
                break
            for bus, number in _XID.findall(record.decode(errors="replace")):
                if bus.lower() in wanted:
                    counts[number] = counts.get(number, 0) + 1
    finally:
        os.close(fd)
    return counts


def _without_readings(config: Config, rows: Optional[Sequence[Reading]]) -> Optional[Outcome]:
    if config.gpus is not None and not config.real_gpus:
        return outcome("ok", _NO_GPU)
    if rows is None:
        return outcome(
            "unknown", "The driver's tool nvidia-smi is not in this container, so nobody can ask.",
            admin_remedy="NVIDIA_DRIVER_CAPABILITIES needs utility.",
        )  # fmt: skip
    if not rows:
        return outcome("unknown", "The NVIDIA driver says nothing about this server's GPUs.")
    return None


def gpu_health(
    config: Config, rows: Optional[Sequence[Reading]], errors: Optional[Mapping[str, int]]
) -> Outcome:
    """Whether a GPU is hot, slowed down or damaged.

    Args:
        config: What the agent was told.
        rows: What ``look`` found.
        errors: What ``xids`` found.
    """
    early = _without_readings(config, rows)
    if early is not None or rows is None:
        return early or outcome("unknown", "")
    facts: Dict[str, Any] = {"gpus": [asdict(row) for row in rows], "xids": errors}
    troubles = [trouble for row in rows for trouble in _troubles(row)]
    serious = sorted(int(number) for number in errors or {} if int(number) in SERIOUS_XIDS)
    if serious:
        said = ", ".join(map(str, serious))
        troubles.append((
            "warn", f"The GPU has reported errors since the computer was started (Xid {said}).",
            "If your programs stop without a reason, tell your admin.",
            "NVIDIA's page \"XID Errors\" says what the numbers mean; dmesg has the messages.",
        ))  # fmt: skip
    if troubles:
        level, sentence, remedy, admin = max(troubles, key=lambda row: LEVELS.index(row[0]))
        return outcome(level, sentence, remedy, admin, **facts)
    known = _good_news(rows)
    if not known:
        return outcome("unknown", "The NVIDIA driver does not say how this GPU is.", **facts)
    return outcome("ok", f"The GPU is well: {', '.join(known)}.", **facts)


def _troubles(row: Reading) -> List[Tuple[str, str, str, str]]:
    """What is wrong with a GPU: level, sentence, and what student and admin can do."""
    found = []
    if row.gone:
        found.append((
            "fail", f"A GPU of your server has stopped answering ({row.gone}).",
            "Stop and start your server; if it happens again, tell your admin.",
            "Reset the GPU or reboot the host; look for Xid messages in dmesg.",
        ))  # fmt: skip
    if row.repair_failed:
        found.append((
            "fail", "The GPU's memory is damaged and cannot be repaired any more.",
            "Do not trust results from this server; tell your admin.",
            "Row remapping has failed: take the GPU out of service and have it replaced.",
        ))  # fmt: skip
    if row.ecc_uncorrected:
        errors = f"{row.ecc_uncorrected:.0f} error{'s' * (row.ecc_uncorrected != 1)}"
        found.append((
            "fail", f"The GPU's memory has had {errors} that could not be corrected, so results "
            "may be wrong.",
            "Do not trust results from this server; tell your admin.",
            "Drain the GPU and reset it (nvidia-smi --gpu-reset), then test it (dcgmi diag -r 3).",
        ))  # fmt: skip
    if row.repair_pending:
        found.append((
            "warn", "The GPU has found bad memory, which is taken out of use at its next reset.",
            "You can work; save often.", "Reset the GPU (nvidia-smi --gpu-reset) when it is free.",
        ))  # fmt: skip
    slowed = [words for bit, words in SLOWED if (row.reasons or 0) & bit]
    if slowed:
        found.append((
            "warn", f"The GPU runs slower than it could: {' and '.join(slowed)}.",
            "Your programs work, but take longer; tell your admin if it stays so.",
            "Look at fans, dust, the room's temperature and the power cables.",
        ))  # fmt: skip
    elif row.temperature_c is not None and row.temperature_c >= HOT_C:
        found.append((
            "warn", f"The GPU is hot: {row.temperature_c:.0f} °C.", "You can work.",
            "Look at fans, dust and the room's temperature.",
        ))  # fmt: skip
    return found


def _good_news(rows: Sequence[Reading]) -> List[str]:
    """What is known, in words, to be fine of every GPU."""
    said = []
    hottest = [row.temperature_c for row in rows if row.temperature_c is not None]
    if hottest:
        said.append(f"{max(hottest):.0f} °C")
    if all(row.reasons is not None for row in rows):
        said.append("not slowed down")
    if all(row.ecc_uncorrected is not None for row in rows):
        said.append("no memory errors")
    return said


def gpu_link(config: Config, rows: Optional[Sequence[Reading]]) -> Outcome:
    """Whether the link between GPU and computer is as wide and fast as it can be."""
    early = _without_readings(config, rows)
    if early is not None or rows is None:
        return early or outcome("unknown", "")
    names = ("uuid", "link_gen", "link_gen_max", "link_width", "link_width_max", "utilisation_pct")
    facts: Dict[str, Any] = {"gpus": [{name: getattr(row, name) for name in names} for row in rows]}
    remedy = "Your programs work; those that load much data to the GPU take longer."
    for row in rows:
        if row.link_width and row.link_width_max and row.link_width < row.link_width_max:
            return outcome(
                "warn", f"The GPU is connected by {row.link_width:.0f} lanes instead of "
                f"{row.link_width_max:.0f}.", remedy,
                "Look again while the GPU works (some narrow the link at rest), then at the card's "
                "seat and riser; lspci -vv shows both ends (LnkCap, LnkSta).", **facts,
            )  # fmt: skip
        busy = row.utilisation_pct is not None and row.utilisation_pct >= BUSY_PCT
        if busy and row.link_gen and row.link_gen_max and row.link_gen < row.link_gen_max:
            return outcome(
                "warn", f"The GPU works, and its link runs at PCIe {row.link_gen:.0f} instead of "
                f"{row.link_gen_max:.0f}.", remedy,
                "Look at the card's seat, the riser and the BIOS; dmesg shows corrected PCIe "
                "errors (AER).", **facts,
            )  # fmt: skip
    if any(not row.link_width or not row.link_width_max for row in rows):
        return outcome("unknown", "The NVIDIA driver does not say how the GPU is connected.",
                       **facts)  # fmt: skip
    lanes = min(row.link_width or 0 for row in rows)
    return outcome("ok", f"The GPU is connected by all of its {lanes:.0f} lanes.", **facts)
