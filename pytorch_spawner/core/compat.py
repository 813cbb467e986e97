"""Does an image's PyTorch run on a GPU under a driver? The gate before a start. Pure.

Three things have to agree, and each has a rule with a source beside it: the GPU and the code that
is in PyTorch (``kernels_for``), the driver and the CUDA toolkit (``standing_of``), the driver and
the GPU (``refusal_of``). What is not known is answered with "unknown", never with "no".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from pytorch_spawner.core.catalog import Image, numbers, say_driver
from pytorch_spawner.core.cuda_rules import (
    Kernels,
    Standing,
    is_data_centre,
    is_nvidia,
    kernels_for,
    refusal_of,
    say_gpu,
    standing_of,
)
from pytorch_spawner.core.cuda_tables import (
    FAMILY_DRIVERS,
    FEATURE_BRANCHES,
    FORWARD_BRANCHES,
    TOOLKIT_DRIVERS,
    Driver,
    Toolkit,
)
from pytorch_spawner.core.gpus import Gpu

Kind = Literal["native", "forward-compat", "ptx", "unknown", "cpu", "no"]

# Best first. A GPU that stands idle is worse than a doubt about it; what cannot run is last.
KINDS: Final[tuple[Kind, ...]] = ("native", "forward-compat", "ptx", "unknown", "cpu", "no")
# What PyTorch would say, so that who searches for it finds the sentence that explains it.
NO_KERNEL: Final = "no kernel image is available for execution on the device"
OLD_PTX: Final = "the provided PTX was compiled with an unsupported toolchain"
OLD_DRIVER: Final = "CUDA driver version is insufficient for CUDA runtime version"


@dataclass(frozen=True, slots=True)
class Fit:
    """Whether an image fits a GPU.

    Attributes:
        kind: "native": compiled code for this GPU is in the image; "forward-compat": the same, by
            the image's own newer driver library; "ptx": the driver compiles for it at first use;
            "cpu": it runs, on the CPU; "no": it fails; "unknown": too little is known.
        sentence: Why, for people.
        nearest: Reference of the nearest image that does fit; "" where none does, or none was
            looked for.
    """

    kind: Kind
    sentence: str
    nearest: str = ""

    @property
    def is_fit(self) -> bool:
        """Whether PyTorch computes on the GPU."""
        return self.kind in ("native", "forward-compat", "ptx")

    @property
    def is_refused(self) -> bool:
        """Whether a start must not be let through."""
        return self.kind == "no"


@dataclass(frozen=True, slots=True)
class Best:
    """What ``auto`` means for one GPU; ``image`` is None where no image can be taken."""

    image: Image | None
    fit: Fit
    sentence: str


def fit(image: Image, gpu: Gpu | None, driver: str | None = None) -> Fit:
    """Decide whether an image's PyTorch runs on a GPU.

    Args:
        image: As it was scanned.
        gpu: A whole GPU or a MIG instance, which has its GPU's compute capability; None for a
            start without one.
        driver: The host's driver; None takes what the GPU says.
    """
    if gpu is None or gpu.is_simulated:
        why = "there is no GPU" if gpu is None else "the GPU is a simulated one"
        return Fit("cpu", f"{image.name} computes on the CPU, for {why}.")
    if image.problem:
        return Fit("unknown", f"Nothing is known of {image.reference}: {image.problem}")
    if image.torch == "":
        return Fit("unknown", f"{image.reference} has no PyTorch; nobody knows what else it runs.")
    if image.cuda is None:
        return Fit("unknown", f"It is not known which CUDA {image.name} was built with.")
    device = say_gpu(gpu)
    if image.cuda == "":
        return Fit("cpu", f"{image.name} computes on the CPU; {device} would stand idle.")
    return _fit_cuda(_Case.of(image, gpu, gpu.driver if driver is None else driver))


def explain(
    image: Image, gpu: Gpu | None, images: Sequence[Image], driver: str | None = None
) -> Fit:
    """The same, with the nearest image that does fit where this one does not.

    Args:
        image: As it was scanned.
        gpu: See ``fit``.
        images: The catalog.
        driver: See ``fit``.
    """
    told = fit(image, gpu, driver)
    if gpu is None or gpu.is_simulated or told.is_fit:
        return told
    others = [(one, fit(one, gpu, driver)) for one in images if one.reference != image.reference]
    fitting = [(one, its) for one, its in others if its.is_fit]
    if not fitting:
        return told
    near, _ = min(
        fitting,
        key=lambda pair: (
            _distance(pair[0], image),
            KINDS.index(pair[1].kind),
            [-part for part in pair[0].torch_version],
            pair[0].reference,
        ),
    )
    return replace(
        told,
        sentence=f"{told.sentence} The nearest that runs is {near.name}.",
        nearest=near.reference,
    )


def fit_any(image: Image, gpus: Sequence[Gpu], images: Sequence[Image] = ()) -> Fit:
    """The best that an image can do on any of several GPUs: what a form says beside it.

    Args:
        image: As it was scanned.
        gpus: Those that a start might be given; none at all means a start without one.
        images: The catalog, for the nearest that does fit.
    """
    told = [explain(image, gpu, images) for gpu in gpus] or [fit(image, None)]
    return min(told, key=lambda its: KINDS.index(its.kind))


def best_image(images: Sequence[Image], gpu: Gpu | None, driver: str | None = None) -> Best:
    """Choose an image for ``auto``: the best kind of fit, then the newest PyTorch.

    An image whose scan failed is never chosen. Without a GPU the newest PyTorch is taken, of equal
    ones the one without CUDA, then the smaller one.

    Args:
        images: Those that may be chosen.
        gpu: See ``fit``.
        driver: See ``fit``.
    """
    is_real = gpu is not None and not gpu.is_simulated
    ranked = sorted(
        ((fit(one, gpu, driver), one) for one in images if not one.problem and one.torch),
        key=lambda pair: (
            KINDS.index(pair[0].kind),
            [-part for part in (*pair[1].torch_version[:2], 0, 0)[:2]],
            [-part for part in _toolkit_of(pair[1]) or (0, 0)] if is_real else bool(pair[1].cuda),
            [-part for part in pair[1].torch_version],
            pair[1].size_bytes or 0,
            pair[1].reference,
        ),
    )
    device = "a start without a GPU" if gpu is None else say_gpu(gpu)
    if not ranked:
        none = Fit("unknown", "No image of the catalog has been scanned.")
        return Best(None, none, f"There is no image to choose for {device}: {none.sentence}")
    its, image = ranked[0]
    if its.is_refused:
        return Best(None, its, f"No image runs on {device}. {its.sentence}")
    better = f"{image.name} is the best of {len(images)} for {device}. {its.sentence}"
    return Best(image, its, better if len(images) > 1 else its.sentence)


# -- one case ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Case:
    """What was asked, parsed; None is unknown."""

    image: Image
    gpu: Gpu
    device: str
    toolkit: Toolkit | None
    driver: Driver | None
    kernels: Kernels | None
    standing: Standing | None

    @classmethod
    def of(cls, image: Image, gpu: Gpu, driver_text: str) -> _Case:
        toolkit, driver = _toolkit_of(image), numbers(driver_text) or None
        is_named = image.archs is not None and any(map(is_nvidia, image.archs))
        capability = gpu.compute_capability
        return cls(
            image,
            gpu,
            say_gpu(gpu),
            toolkit,
            driver,
            kernels_for(image.archs or (), capability) if is_named and capability else None,
            standing_of(toolkit, driver) if toolkit and driver else None,
        )

    @property
    def driver_said(self) -> str:
        return say_driver(self.driver) if self.driver else "unknown"


def _fit_cuda(case: _Case) -> Fit:
    """The decision for an image with CUDA and a real GPU."""
    capability = case.gpu.compute_capability
    if case.driver and capability:
        refusal = refusal_of(case.driver, capability, case.device)
        if refusal:
            return Fit("no", refusal)
    if case.kernels == "none":
        return Fit("no", _no_kernel(case))
    if case.standing == "old" or (case.standing, case.kernels) == ("minor", "ptx"):
        return _forward(case)
    if case.kernels is None or case.standing is None:
        return Fit("unknown", _what_is_unknown(case))
    if case.kernels == "ptx":
        return _ptx(case)
    sentence = f"{case.image.name} has compiled code for {case.device}"
    if case.standing == "full":
        return Fit("native", f"{sentence}, and driver {case.driver_said} is new enough.")
    own = TOOLKIT_DRIVERS.get(case.toolkit or (0, 0))
    older = f"is older than its {say_driver(own)}" if own else "is of the same family"
    return Fit(
        "native",
        f"{sentence}. Driver {case.driver_said} {older}; minor-version compatibility runs it.",
    )


def _no_kernel(case: _Case) -> str:
    built = ", ".join(case.image.archs or ())
    return (
        f"{case.image.name} has no code for {case.device}: every computation would fail with "
        f'"{NO_KERNEL}". It was built for {built}.'
    )


def _ptx(case: _Case) -> Fit:
    if case.standing == "family":
        return Fit(
            "unknown",
            f"{case.image.name} has only PTX for {case.device}, and it is not known whether driver "
            f"{case.driver_said} can compile it.",
        )
    return Fit(
        "ptx",
        f"{case.image.name} has no compiled code for {case.device}; the driver compiles its PTX at "
        "first use, which takes minutes once.",
    )


def _forward(case: _Case) -> Fit:
    """A driver that is too old by itself: the image may bring its own, newer driver library.

    Source: NVIDIA "CUDA Compatibility", "Forward Compatibility": data-centre GPUs only, on a
    production or long-term driver branch, with a package of at least the toolkit's version.
    """
    toolkit, driver = case.toolkit, case.driver
    if toolkit is None or driver is None:
        return Fit("unknown", _what_is_unknown(case))
    too_old = _too_old(case, toolkit)
    if case.image.compat is None:
        return Fit("unknown", f"{too_old} It is not known whether the image has a newer library.")
    if numbers(case.image.compat)[:2] < toolkit:
        return Fit("no", f"{too_old} {_ADMIN}")
    data_centre = is_data_centre(case.gpu.name)
    if data_centre is None:
        return Fit(
            "unknown", f"{too_old} It is not known whether {case.device} takes the image's library."
        )
    if not data_centre:
        return Fit(
            "no", f"{too_old} NVIDIA's newer library works on data-centre GPUs only. {_ADMIN}"
        )
    if driver[0] in FEATURE_BRANCHES:
        return Fit("no", f"{too_old} NVIDIA's newer library does not work on this branch. {_ADMIN}")
    if driver[0] not in FORWARD_BRANCHES:
        return Fit(
            "unknown", f"{too_old} It is not known whether NVIDIA's newer library works on it."
        )
    if case.kernels is None:
        return Fit("unknown", _what_is_unknown(case))
    return Fit(
        "forward-compat",
        f"Driver {case.driver_said} is too old for {case.image.name}, which brings NVIDIA's newer "
        f"driver library (CUDA {case.image.compat}) and runs on {case.device} with it.",
    )


_ADMIN: Final = "Only an admin can install a newer driver."


def _too_old(case: _Case, toolkit: Toolkit) -> str:
    if case.standing == "minor":
        own = say_driver(TOOLKIT_DRIVERS[toolkit])
        return (
            f"{case.image.name} has only PTX for {case.device}, and driver {case.driver_said} is "
            f'older than its {own} and cannot compile that: "{OLD_PTX}".'
        )
    need = say_driver(FAMILY_DRIVERS[toolkit[0]])
    return (
        f"Driver {case.driver_said} is too old for {case.image.name}, which needs {need} or newer: "
        f'"{OLD_DRIVER}".'
    )


def _what_is_unknown(case: _Case) -> str:
    missing = [
        what
        for what, is_missing in (
            ("the GPU's compute capability", case.gpu.compute_capability is None),
            ("for which GPUs its PyTorch was built", not case.image.archs),
            ("the host's driver", case.driver is None),
            (f"what CUDA {case.image.cuda} asks of a driver", _is_strange(case)),
        )
        if is_missing
    ]
    return (
        f"Whether {case.image.name} runs on {case.device} cannot be said: not known "
        f"{'is' if len(missing) < 2 else 'are'} {' and '.join(missing) or 'its architectures'}."
    )


def _is_strange(case: _Case) -> bool:
    return case.driver is not None and case.standing is None


def _toolkit_of(image: Image) -> Toolkit | None:
    version = numbers(image.cuda or "")
    return (version[0], version[1]) if len(version) >= 2 else None


def _distance(one: Image, other: Image) -> int:
    """How far apart two PyTorch releases are; an unknown one is far from all."""
    if not one.torch_version or not other.torch_version:
        return 1000
    (major, minor), (its_major, its_minor) = (
        (*image.torch_version, 0)[:2] for image in (one, other)
    )
    return abs((major - its_major) * 100 + minor - its_minor)
