"""`images`: what each image has in it, whether it still is that image, and which GPUs it fits."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from pytorch_spawner.adapters import engine, image_scan
from pytorch_spawner.cli.common import (
    Commands,
    Said,
    add_command,
    clean,
    hub_of,
    moment,
    open_ledger,
    table,
    who,
)
from pytorch_spawner.core.catalog import Image, drivers_of, moved, short_id
from pytorch_spawner.core.compat import best_image, explain
from pytorch_spawner.core.cuda_rules import say_gpu
from pytorch_spawner.core.gpus import Gpu, Inventory
from pytorch_spawner.core.plan import LABEL
from pytorch_spawner.errors import BadRequest, LabError

_LONGEST_S: Final = 600.0


def add_to(commands: Commands) -> None:
    """Add the command and its actions."""
    images = add_command(commands, "images", _list, "the catalog: what each image has in it")
    actions = images.add_subparsers(metavar="action")
    add_command(actions, "list", _list, "every image that was scanned", is_action=True)
    text = "run an image once without a GPU and write down what it has in it"
    scan = add_command(actions, "scan", _scan, text, is_action=True)
    scan.add_argument("reference", metavar="REF", help="the image, as starts ask for it")
    scan.add_argument(
        "--deadline",
        type=float,
        default=image_scan.DEADLINE_S,
        metavar="S",
        help=f"seconds it may take (default {image_scan.DEADLINE_S:g})",
    )
    text = "ask the engine whether every image is still the one that was scanned"
    add_command(actions, "check", _check, text, is_action=True)
    text = "which image runs on which GPU of this lab, and why not"
    fit = add_command(actions, "fit", _fit, text, is_action=True)
    fit.add_argument("--driver", default="", help="as if the host had this driver")
    remove = add_command(
        actions, "remove", _remove, "forget an image; the engine keeps it", is_action=True
    )
    remove.add_argument("reference", metavar="REF", help="the image, as it was scanned")


def _list(options: argparse.Namespace) -> Said:
    images = open_ledger(options).images(hub_of(options))
    data = [one.as_json() for one in images]
    if not images:
        return Said(data, ["No image was scanned. `pytorch-spawner images scan REF` does it."])
    heads = ("IMAGE", "ID", "PYTORCH", "CUDA", "DRIVER", "GPUS", "SIZE", "SCANNED")
    rows = (
        (
            one.reference,
            short_id(one.image_id),
            _or_unknown(one.torch),
            _or_unknown(one.cuda),
            (drivers_of(one.cuda) or {}).get("minimum", ""),
            "unknown" if one.archs is None else " ".join(one.archs) or "none",
            _size(one),
            moment(one.scanned_at),
        )
        for one in images
    )
    return Said(data, [*table(heads, rows), *_remarks(images)])


def _or_unknown(value: str | None) -> str:
    return "unknown" if value is None else value or "none"


def _size(image: Image) -> str:
    return "unknown" if image.size_bytes is None else f"{image.size_bytes / 1e9:.2f} GB"


def _remarks(images: Sequence[Image]) -> list[str]:
    lines = [
        f"{clean(one.reference)}: {clean(said)}"
        for one in images
        for said in (one.problem, *one.notes)
        if said
    ]
    return ["", *lines] if lines else []


def _scan(options: argparse.Namespace) -> Said:
    if not 0 < options.deadline <= _LONGEST_S:
        raise BadRequest(f"A scan may take up to {_LONGEST_S:g} s; name a number above 0.")
    # Looked for first: what cannot be written down need not be run.
    ledger, hub = open_ledger(options), hub_of(options)
    labels = {f"{LABEL}hub": f"{hub}-helper"}
    image = image_scan.scan(engine.connect(), options.reference, labels, options.deadline)
    was = ledger.save_image(hub, image, who())
    lines = _about(image)
    if was is not None and was.image_id != image.image_id:
        lines.append(f"It was {short_id(was.image_id)} when it was scanned before.")
    return Said(image.as_json(), lines, is_fine=not image.problem)


def _about(image: Image) -> list[str]:
    lines = [f"{clean(image.reference)} ({short_id(image.image_id)}, {_size(image)})"]
    if image.problem:
        return [*lines, clean(image.problem)]
    lines.append(f"{image.name}; Python {_or_unknown(image.python)}")
    if image.cuda:
        drivers = drivers_of(image.cuda)
        lines += [
            f"cuDNN {_or_unknown(image.cudnn)}, NCCL {_or_unknown(image.nccl)}, "
            f"Triton {_or_unknown(image.triton)}",
            f"built for {' '.join(image.archs) if image.archs else 'unknown GPUs'}",
            f"needs driver {drivers['minimum']} or newer; its own is {drivers['full'] or 'unknown'}"
            if drivers
            else f"what driver CUDA {image.cuda} needs is not known",
        ]
    return lines + [clean(note) for note in image.notes]


def _check(options: argparse.Namespace) -> Said:
    ledger = open_ledger(options)
    images = ledger.images(hub_of(options))
    now = image_scan.ids_now(engine.connect(), [one.reference for one in images])
    rows = [(one, moved(one, now[one.reference])) for one in images]
    data = [
        {
            "reference": one.reference,
            "image_id": one.image_id,
            "now": now[one.reference],
            "problem": said or one.problem,
        }
        for one, said in rows
    ]
    lines = [
        clean(said or f"{one.reference}: {one.problem or 'as it was scanned.'}")
        for one, said in rows
    ]
    is_fine = not any(row["problem"] for row in data)
    return Said(data, lines or ["No image was scanned."], is_fine=is_fine)


def _fit(options: argparse.Namespace) -> Said:
    ledger, hub = open_ledger(options), hub_of(options)
    images, kinds = ledger.images(hub), _kinds(ledger.read_inventory(hub), options.driver)
    if not images:
        raise LabError("No image was scanned. `pytorch-spawner images scan REF` does it.")
    data, lines = [], []
    for gpu in kinds:
        best = best_image(images, gpu)
        fits = [(one, explain(one, gpu, images)) for one in images]
        data.append(
            {
                "gpu": None if gpu is None else say_gpu(gpu),
                "driver": None if gpu is None else gpu.driver or None,
                "auto": None if best.image is None else best.image.reference,
                "why": best.sentence,
                "images": [
                    {
                        "reference": one.reference,
                        "kind": its.kind,
                        "sentence": its.sentence,
                        "nearest": its.nearest or None,
                    }
                    for one, its in fits
                ],
            }
        )
        device = "without a GPU" if gpu is None else clean(_device(gpu))
        rows = ((one.reference, its.kind, its.sentence) for one, its in fits)
        lines += [
            device,
            *table(("IMAGE", "FIT", "WHY"), rows),
            clean(f"auto: {best.sentence}"),
            "",
        ]
    return Said(data, lines[:-1])


def _device(gpu: Gpu) -> str:
    return f"{say_gpu(gpu)}, driver {gpu.driver or 'unknown'}"


def _kinds(inventory: Inventory, driver: str) -> list[Gpu | None]:
    """One GPU of each kind, and None for a start without one."""
    seen: dict[Any, Gpu] = {}
    for gpu in inventory.gpus:
        one = replace(gpu, driver=driver) if driver else gpu
        key = (one.name, one.compute_capability, one.driver, one.mig_profile, one.is_simulated)
        if one.mode != "mig":
            seen.setdefault(key, one)
    return [*seen.values(), None]


def _remove(options: argparse.Namespace) -> Said:
    ledger, hub = open_ledger(options), hub_of(options)
    was = ledger.remove_image(hub, options.reference, who())
    if was is None:
        known = ", ".join(one.reference for one in ledger.images(hub)) or "none"
        raise LabError(f"{options.reference!r} was never scanned: {known}")
    return Said(was.as_json(), [f"{clean(was.reference)} is forgotten; the engine keeps it."])
