"""`gpus`: the lab's devices, who holds which slot, and the admin's decisions about them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from pytorch_spawner.cli.common import (
    Commands,
    Said,
    add_command,
    hub_of,
    moment,
    open_ledger,
    server_name,
    table,
    who,
)
from pytorch_spawner.core.gpus import Gpu, GpuUuid, Inventory, slots_of
from pytorch_spawner.core.placement import DeviceSetting, with_settings
from pytorch_spawner.errors import LabError
from pytorch_spawner.ledger.store import Lease, Ledger


def add_to(commands: Commands) -> None:
    """Add the command and what can be done with a GPU."""
    text = "the lab's GPUs, slot by slot, and who holds them"
    gpus = add_command(commands, "gpus", _list, text)
    actions = gpus.add_subparsers(metavar="action")
    for name, run, help_ in (
        ("drain", _drain, "give a GPU to nobody new; who is on it stays"),
        ("undrain", _undrain, "give it out again"),
        ("mode", _mode, "cut a GPU: exclusive, or shared:N; counts once nobody is on it"),
        ("pool", _pool, "move a GPU to a pool, which need not exist yet"),
    ):
        action = add_command(actions, name, run, help_, is_action=True)
        action.add_argument("gpu", help="UUID, the beginning of one, or index")
        if name == "drain":
            text = "what the pages say of it (An admin drained it.)"
            action.add_argument("--reason", default="An admin drained it.", help=text)
        if name in ("mode", "pool"):
            action.add_argument(name)


def _list(options: argparse.Namespace) -> Said:
    ledger = open_ledger(options)
    inventory, leases = _now(ledger, hub_of(options))
    data = [_as_json(gpu, _holders(gpu, leases)) for gpu in inventory.gpus]
    if not inventory.gpus:
        return Said(data, [inventory.reason])
    rows: list[Sequence[object]] = []
    for gpu in inventory.gpus:
        about = (gpu.index, gpu.name or "unknown", _size(gpu), gpu.pool, gpu.mode)
        slots = _holders(gpu, leases)
        for slot, lease in enumerate(slots):
            rows.append(
                (
                    *(about if slot == 0 else [""] * len(about)),
                    f"{slot + 1}/{len(slots)}" if len(slots) > 1 else "",
                    _holder(lease) or _why_not(gpu) or "free",
                    moment(lease.until) if lease else "",
                    gpu.uuid if slot == 0 else "",
                )
            )
        if not slots:
            rows.append((*about, "", "cut into MIG instances", "", gpu.uuid))
    heads = ("#", "NAME", "MEMORY", "POOL", "MODE", "SLOT", "HOLDER", "UNTIL", "UUID")
    lines = table(heads, rows)
    lines += [f"{gpu.uuid}: {text}" for gpu in inventory.gpus if (text := _why_not(gpu))]
    return Said(data, lines)


def _drain(options: argparse.Namespace) -> Said:
    return _change(options, lambda was: replace(was, drained=options.reason or "drained"))


def _undrain(options: argparse.Namespace) -> Said:
    return _change(options, lambda was: replace(was, drained=""))


def _mode(options: argparse.Namespace) -> Said:
    if slots_of(options.mode) == 0:
        raise LabError("MIG is set on the host: see `nvidia-smi mig` on the GPU's machine.")
    return _change(options, lambda was: replace(was, mode=options.mode))


def _pool(options: argparse.Namespace) -> Said:
    if not options.pool.isprintable() or not 1 <= len(options.pool) <= 255:
        raise LabError("The name of a pool has 1 to 255 printable characters.")
    return _change(options, lambda was: replace(was, pool=options.pool))


def _change(options: argparse.Namespace, change: Callable[[DeviceSetting], DeviceSetting]) -> Said:
    ledger = open_ledger(options)
    gpu = _find(ledger.read_inventory(hub_of(options)), options.gpu)
    if hasattr(options, "mode") and (gpu.mig_profile or gpu.mode == "mig"):
        raise LabError(
            f"{gpu.uuid} is in MIG mode, which is set on the host: see `nvidia-smi mig` on the "
            "GPU's machine."
        )
    ledger.change_setting(hub_of(options), gpu.uuid, who(), change)
    inventory, leases = _now(ledger, hub_of(options))
    now = next(one for one in inventory.gpus if one.uuid == gpu.uuid)
    on_it = [_holder(lease) for lease in _holders(now, leases) if lease]
    text = f"{now.uuid}: pool {now.pool}, {now.mode}, " + (_why_not(now) or "in service.")
    if on_it:
        text += f" On it now: {', '.join(on_it)}."
    return Said(_as_json(now, _holders(now, leases)), [text])


def _find(inventory: Inventory, said: str) -> Gpu:
    found = [gpu for gpu in inventory.gpus if said in (gpu.uuid, str(gpu.index))]
    found = found or [gpu for gpu in inventory.gpus if gpu.uuid.startswith(said)]
    if len(found) == 1:
        return found[0]
    known = ", ".join(gpu.uuid for gpu in (found or inventory.gpus)) or inventory.reason
    how = "names more than one GPU" if found else "is no GPU of this lab"
    raise LabError(f"{said!r} {how}: {known}")


def _now(ledger: Ledger, hub: str) -> tuple[Inventory, tuple[Lease, ...]]:
    """The devices with the admin's decisions, as the scheduler sees them."""
    leases = ledger.leases(hub)
    in_force: dict[str, int] = {
        holding.gpu: holding.slots for lease in leases for holding in lease.holdings
    }
    return with_settings(ledger.read_inventory(hub), ledger.settings(hub), in_force), leases


def _holders(gpu: Gpu, leases: Sequence[Lease]) -> list[Lease | None]:
    by_slot: dict[tuple[GpuUuid, int], Lease] = {
        (holding.gpu, holding.slot): lease for lease in leases for holding in lease.holdings
    }
    return [by_slot.get((gpu.uuid, slot)) for slot in range(gpu.slots)]


def _holder(lease: Lease | None) -> str:
    if lease is None:
        return ""
    kept = " (kept after a crash)" if lease.kept_until is not None else ""
    return server_name(lease.username, lease.servername) + kept


def _why_not(gpu: Gpu) -> str:
    """Why nobody new is given a GPU; "" when somebody is."""
    if gpu.drained:
        return f"drained: {gpu.drained}"
    return f"unhealthy: {gpu.health}" if gpu.health else ""


def _size(gpu: Gpu) -> str:
    if gpu.memory_mib is None:
        return "?"
    each = f"/{gpu.slots}" if gpu.slots > 1 else ""
    return f"{gpu.memory_mib / 1024:.0f} GiB{each}"


def _as_json(gpu: Gpu, holders: Sequence[Lease | None]) -> dict[str, Any]:
    return {
        "uuid": gpu.uuid,
        "index": gpu.index,
        "name": gpu.name,
        "memory_mib": gpu.memory_mib,
        "slot_memory_mib": gpu.slot_memory_mib,
        "pool": gpu.pool,
        "mode": gpu.mode,
        "mig_profile": gpu.mig_profile,
        "parent": gpu.parent,
        "health": gpu.health,
        "drained": gpu.drained,
        "slots": [
            None
            if lease is None
            else {
                "username": lease.username,
                "servername": lease.servername,
                "lease": lease.id,
                "since": lease.since,
                "until": lease.until,
                "kept_until": lease.kept_until,
            }
            for lease in holders
        ],
    }
