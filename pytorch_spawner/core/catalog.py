"""The catalog of images: what one run without a GPU found out about each. Pure.

An image is known by the engine's id of it (its digest); a reference such as a tag may move. What
was not found out is None, never "" or 0: nothing may be decided from it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final

from pytorch_spawner.core.cuda_tables import FAMILY_DRIVERS, TOOLKIT_DRIVERS, Driver

# What an image may say of itself is bounded: it is a program that somebody else wrote.
MAX_TEXT: Final = 200
MAX_ARCHS: Final = 64
MAX_NOTES: Final = 20

LABEL: Final = "org.pytorch-spawner.image."
# Labels that say what the scan finds out, so that an image which lies is found out as well.
CLAIMS: Final = ("torch", "cuda", "archs")

_ARCH: Final = re.compile(r"(sm|compute)_[1-9][0-9]{1,2}[af]?|gfx[0-9a-f]{3,6}[a-z0-9:+-]{0,32}")
_TEXTS: Final = ("python", "torch", "cuda", "cudnn", "nccl", "triton", "compat", "torchvision")


@dataclass(frozen=True, slots=True)
class Image:
    """What is known of an image.

    Attributes:
        reference: What it was asked for by: a tag, or a name with a digest.
        image_id: The engine's id of it, "sha256:..." and 64 hex digits; "" where it was not there.
        size_bytes: As the engine counts it; None where unknown.
        scanned_at: Unix time of the scan; 0.0 for one made by hand.
        problem: Why nothing is known beyond this, as a sentence; "" when the scan succeeded.
        notes: What is odd about it, as sentences.
        python: "3.11.2"; None where unknown, as for all that follow.
        torch: "2.6.0+cu124"; "" where the image has no PyTorch.
        cuda: CUDA its PyTorch was built with, "12.4"; "" for a build without CUDA.
        cudnn: "9.1.0"; "" without.
        nccl: "2.21.5"; "" without.
        triton: "3.2.0"; "" without.
        torchvision: "0.21.0+cu124"; "" without.
        compat: CUDA of the forward compatibility package in the image, "12.4"; "" without.
        archs: ``torch.cuda.get_arch_list()``: ("sm_80", "compute_90"); empty without CUDA.
    """

    reference: str
    image_id: str = ""
    size_bytes: int | None = None
    scanned_at: float = 0.0
    problem: str = ""
    notes: tuple[str, ...] = ()
    python: str | None = None
    torch: str | None = None
    cuda: str | None = None
    cudnn: str | None = None
    nccl: str | None = None
    triton: str | None = None
    torchvision: str | None = None
    compat: str | None = None
    archs: tuple[str, ...] | None = None

    @property
    def name(self) -> str:
        """What people call it: "PyTorch 2.6.0 with CUDA 12.4"; the reference where unknown."""
        if not self.torch:
            return self.reference
        version = self.torch.partition("+")[0]
        if self.cuda is None:
            return f"PyTorch {version}"
        return f"PyTorch {version} {f'with CUDA {self.cuda}' if self.cuda else 'without CUDA'}"

    @property
    def torch_version(self) -> tuple[int, ...]:
        """For comparing: (2, 6, 0); empty where unknown."""
        return numbers((self.torch or "").partition("+")[0])

    def as_json(self) -> dict[str, Any]:
        """As the ledger, the API and ``--json`` have it; ``drivers`` is for readers."""
        data = {part.name: getattr(self, part.name) for part in fields(self)}
        data["notes"] = list(self.notes)
        data["archs"] = None if self.archs is None else list(self.archs)
        return {**data, "name": self.name, "drivers": drivers_of(self.cuda)}


def drivers_of(cuda: str | None) -> dict[str, str] | None:
    """The Linux drivers that a CUDA version asks for; None without CUDA, or where unknown.

    Returns:
        ``minimum``: on which compiled kernels run, by minor-version compatibility; ``full``: the
        toolkit's own, which also knows its PTX; "" where NVIDIA's table has it not.
    """
    version = numbers(cuda or "")
    if len(version) < 2:
        return None
    toolkit = (version[0], version[1])
    full, family = TOOLKIT_DRIVERS.get(toolkit), FAMILY_DRIVERS.get(toolkit[0])
    least = family or full
    if full and family:
        # 11.0 itself came with an older driver than the one that runs the rest of the family.
        least = min(full, family)
    if least is None:
        return None
    return {"minimum": say_driver(least), "full": say_driver(full) if full else ""}


def say_driver(driver: Driver) -> str:
    """A driver as NVIDIA writes it: "550.54.14", "570.26", "580"."""
    head, *rest = driver
    return ".".join([str(head), *(f"{part:02}" for part in rest)])


def numbers(text: str) -> tuple[int, ...]:
    """The numbers a version begins with: "550.54.14" -> (550, 54, 14); empty for anything else."""
    match = re.match(r"[0-9]{1,9}(\.[0-9]{1,9}){0,5}", text)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def read_image(data: Mapping[str, Any]) -> Image:
    """Build an image from what ``as_json`` gave; whatever is not as it gives it becomes unknown."""
    size, at = data.get("size_bytes"), data.get("scanned_at")
    return Image(
        reference=str(data.get("reference") or "")[:512],
        image_id=str(data.get("image_id") or "")[:128],
        size_bytes=size if isinstance(size, int) and size >= 0 else None,
        scanned_at=float(at) if isinstance(at, (int, float)) else 0.0,
        problem=str(data.get("problem") or "")[:2000],
        notes=tuple(str(one)[:500] for one in data.get("notes") or ())[:MAX_NOTES],
        archs=_archs(data.get("archs")),
        **{name: _text(data.get(name)) for name in _TEXTS},
    )


def found(seen: Image, facts: object, labels: Mapping[str, str]) -> Image:
    """Add what an image said of itself when it was run; hostile input.

    Args:
        seen: What the engine says of it: reference, id, size.
        facts: What the program in the container printed, parsed; see ``adapters.image_scan``.
        labels: The image's labels.

    Returns:
        The image; ``problem`` is set where it cannot be used as it is.
    """
    if not isinstance(facts, Mapping):
        return replace(seen, problem="What the image printed is not what the scan asked for.")
    said = {**seen.as_json(), **{name: facts.get(name) for name in (*_TEXTS, "archs")}}
    image = read_image(said)
    error = facts.get("error")
    if image.torch is None and isinstance(error, str) and error:
        problem = f"PyTorch is in the image and cannot be imported: {clean(error)}."
        return replace(image, problem=problem)
    return replace(image, notes=(*_oddities(image), *_lies(image, labels))[:MAX_NOTES])


def _oddities(image: Image) -> list[str]:
    if image.torch == "":
        return ["It has no PyTorch, so nothing is known of the GPUs it can use."]
    notes = []
    if image.cuda and image.archs == ():
        notes.append("Its PyTorch has CUDA and names no GPU architecture.")
    if image.cuda and image.archs is None:
        notes.append("Its PyTorch does not say for which GPUs it was built.")
    if image.archs and any(arch.startswith("gfx") for arch in image.archs):
        notes.append("Its PyTorch is built for AMD's GPUs.")
    return notes


def _lies(image: Image, labels: Mapping[str, str]) -> list[str]:
    true = {
        "torch": image.torch,
        "cuda": image.cuda,
        "archs": None if image.archs is None else ",".join(image.archs),
    }
    said = []
    for claim in CLAIMS:
        label, fact = labels.get(LABEL + claim), true[claim]
        if label is None or fact is None:
            continue
        if ("" if label == "none" else label) != fact:
            said.append(
                f'Its label says "{clean(label)}" for {claim}, and it has "{fact or "none"}"; '
                "what it has is what counts."
            )
    return said


def moved(image: Image, now: str | None) -> str:
    """What became of an image's reference, as a sentence; "" where it is still the same image.

    Args:
        image: As it was scanned.
        now: The engine's id of its reference now; None where there is no such image.
    """
    if now is None:
        return f"{image.reference} is not on the engine any more. Build or pull it again."
    if image.image_id and now != image.image_id:
        return (
            f"{image.reference} moved: {short_id(image.image_id)} was scanned, and it is "
            f"{short_id(now)} now. Starts keep the scanned one; scan again to take the new one."
        )
    return ""


def short_id(image_id: str) -> str:
    """The first twelve digits of an id, as Docker prints it."""
    return image_id.removeprefix("sha256:")[:12]


def by_reference(images: Sequence[Image]) -> dict[str, Image]:
    """The images by what starts ask for them by: their references and their ids."""
    names = {image.image_id: image for image in images if image.image_id}
    return {**names, **{image.reference: image for image in images}}


def clean(text: str) -> str:
    """Text of an image on one line, bounded, without what would steer a terminal or a page."""
    line = "".join(char if char.isprintable() else " " for char in text).strip()
    return line if len(line) <= MAX_TEXT else f"{line[: MAX_TEXT - 3]}..."


def _text(value: object) -> str | None:
    return clean(value) if isinstance(value, str) else None


def _archs(value: object) -> tuple[str, ...] | None:
    if not isinstance(value, (list, tuple)):
        return None
    known = [one for one in value if isinstance(one, str) and _ARCH.fullmatch(one)]
    # One that cannot be read may be the very one that fits: then the list is not known.
    return tuple(known[:MAX_ARCHS]) if len(known) == len(value) else None
