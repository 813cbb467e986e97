"""The gate's table of cases: image, GPU, driver -> fit. The tests run it; the docs show it.

Architecture lists are those that the built images were scanned with (docs/how-to/build-images.md),
but for CUDA 11.8 and the two made-up images at the end.
"""

# ruff: noqa: E501  (a table is compared row by row)
from __future__ import annotations

from typing import NamedTuple

from pytorch_spawner.core.catalog import Image
from pytorch_spawner.core.gpus import Gpu, GpuUuid

GIB = 1024


def image(reference: str, torch: str, cuda: str | None, archs: str | None, **more: str) -> Image:
    listed = None if archs is None else tuple(archs.split())
    return Image(reference, torch=torch, cuda=cuda, archs=listed, **{"compat": "", **more})


IMAGES = {
    "2.1-cu118": image(
        "lab:pytorch-2.1-cu118",
        "2.1.2+cu118",
        "11.8",
        "sm_37 sm_50 sm_60 sm_70 sm_75 sm_80 sm_86 sm_90",
    ),
    "2.1-cu121": image(
        "lab:pytorch-2.1-cu121",
        "2.1.2+cu121",
        "12.1",
        "sm_50 sm_60 sm_70 sm_75 sm_80 sm_86 sm_90",
    ),
    "2.6-cu124": image(
        "lab:pytorch-2.6-cu124",
        "2.6.0+cu124",
        "12.4",
        "sm_50 sm_60 sm_70 sm_75 sm_80 sm_86 sm_90",
    ),
    "2.8-cu128": image(
        "lab:pytorch-2.8-cu128",
        "2.8.0+cu128",
        "12.8",
        "sm_70 sm_75 sm_80 sm_86 sm_90 sm_100 sm_120",
    ),
    "2.13-cu130": image(
        "lab:pytorch-2.13-cu130",
        "2.13.0+cu130",
        "13.0",
        "sm_75 sm_80 sm_86 sm_90 sm_100 sm_120",
    ),
    "cpu": image("lab:cpu", "2.13.0+cpu", "", ""),
    # A vendor's: PTX of its newest architecture, and the forward compatibility package.
    "vendor-cu124": image(
        "vendor:24.05", "2.4.0", "12.4", "sm_70 sm_75 sm_80 sm_86 sm_90 compute_90", compat="12.4"
    ),
    "ptx-only": image("lab:ptx", "2.4.0", "12.4", "sm_80 compute_80"),
    "for-one": image("lab:one", "2.9.0", "12.8", "sm_90a compute_90a"),
    "for-family": image("lab:family", "2.9.0", "12.9", "sm_100f compute_100f"),
    "newer-13": image("lab:newer", "3.1.0", "13.9", "sm_80 sm_90 compute_120"),
    "cuda-14": image("lab:cuda-14", "4.0.0", "14.1", "sm_90 sm_100"),
    "no-archs": image("lab:no-archs", "2.6.0", "12.4", None),
    "no-cuda-said": image("lab:unsaid", "2.6.0", None, None),
    "no-torch": image("lab:no-torch", "", "", ""),
    "hangs": Image("lab:hangs", problem="It did not answer within 60 s."),
}


def gpu(name: str, capability: str, **more: str) -> Gpu:
    major, _, minor = capability.partition(".")
    known = (int(major), int(minor)) if capability else None
    uuid = GpuUuid(f"{'MIG' if more else 'GPU'}-{name[-6:]}")
    return Gpu(uuid, name=name, compute_capability=known, memory_mib=16 * GIB, **more)


GPUS = {
    "K80": gpu("Tesla K80", "3.7"),
    "GTX 980": gpu("NVIDIA GeForce GTX 980", "5.2"),
    "P100": gpu("Tesla P100-PCIE-16GB", "6.0"),
    "GTX 1080": gpu("NVIDIA GeForce GTX 1080", "6.1"),
    "V100": gpu("Tesla V100-SXM2-16GB", "7.0"),
    "T4": gpu("Tesla T4", "7.5"),
    "RTX 2080 Ti": gpu("NVIDIA GeForce RTX 2080 Ti", "7.5"),
    "A100": gpu("NVIDIA A100-SXM4-40GB", "8.0"),
    "A100 1g.5gb": gpu("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "8.0", mig_profile="1g.5gb"),
    "RTX 3090": gpu("NVIDIA GeForce RTX 3090", "8.6"),
    "RTX A6000": gpu("NVIDIA RTX A6000", "8.6"),
    "A40": gpu("NVIDIA A40", "8.6"),
    "Orin": gpu("Orin", "8.7"),
    "RTX 4090": gpu("NVIDIA GeForce RTX 4090", "8.9"),
    "L4": gpu("NVIDIA L4", "8.9"),
    "H100": gpu("NVIDIA H100 80GB HBM3", "9.0"),
    "H100 3g.40gb": gpu("NVIDIA H100 80GB HBM3 MIG 3g.40gb", "9.0", mig_profile="3g.40gb"),
    "B200": gpu("NVIDIA B200", "10.0"),
    "B300": gpu("NVIDIA B300", "10.3"),
    "RTX 5090": gpu("NVIDIA GeForce RTX 5090", "12.0"),
    "GB10": gpu("NVIDIA GB10", "12.1"),
    "unknown capability": gpu("NVIDIA Graphics Device", ""),
    "from the future": gpu("NVIDIA X900", "14.0"),
}


class Case(NamedTuple):
    says: str
    image: str
    gpu: str
    driver: str
    kind: str
    words: str


NO_KERNEL = "no kernel image is available"
OLD_PTX = "compiled with an unsupported toolchain"
OLD_DRIVER = "CUDA driver version is insufficient"
MINOR = "minor-version compatibility"

CASES = (
    # -- Kepler, Maxwell, Pascal
    Case("a K80 with the last CUDA that has code for it", "2.1-cu118", "K80", "470.256.02", "native", MINOR),
    Case("a K80 under CUDA 12", "2.1-cu121", "K80", "470.256.02", "no", NO_KERNEL),
    Case("a K80 under a driver that dropped it", "2.1-cu118", "K80", "535.54.03", "no", "last branch that does is 470"),
    Case("a GTX 980 by code of its family", "2.6-cu124", "GTX 980", "550.54.14", "native", "compiled code"),
    Case("a GTX 980 is too old for PyTorch 2.8", "2.8-cu128", "GTX 980", "570.26", "no", NO_KERNEL),
    Case("a P100 under CUDA 11.8 and the oldest driver", "2.1-cu118", "P100", "450.80.02", "native", MINOR),
    Case("a P100 under CUDA 12.4", "2.6-cu124", "P100", "550.54.14", "native", "new enough"),
    Case("a P100 is too old for PyTorch 2.8", "2.8-cu128", "P100", "570.86.10", "no", NO_KERNEL),
    Case("a P100 is too old for CUDA 13", "2.13-cu130", "P100", "580.65.06", "no", NO_KERNEL),
    Case("a GTX 1080 runs code for 6.0", "2.6-cu124", "GTX 1080", "560.28.03", "native", "6.1"),
    Case("a GTX 1080 is too old for PyTorch 2.8", "2.8-cu128", "GTX 1080", "580.65.06", "no", NO_KERNEL),
    Case("a GTX 1080 under a driver that dropped Pascal", "2.6-cu124", "GTX 1080", "590.44.01", "no", "last branch that does is 580"),
    Case("a GTX 1080 under the last driver that knows it", "2.1-cu118", "GTX 1080", "580.95.05", "native", "new enough"),
    # -- Volta, Turing
    Case("a V100 under PyTorch 2.8", "2.8-cu128", "V100", "570.26", "native", "Volta"),
    Case("a V100 is too old for CUDA 13", "2.13-cu130", "V100", "580.65.06", "no", NO_KERNEL),
    Case("a V100 under a driver that dropped Volta", "2.8-cu128", "V100", "595.45.04", "no", "last branch that does is 580"),
    Case("a V100 with CUDA 12 under a driver of CUDA 11", "2.1-cu121", "V100", "470.82.01", "no", OLD_DRIVER),
    Case("a T4 under PyTorch 2.13", "2.13-cu130", "T4", "580.65.06", "native", "Turing"),
    Case("a T4 under PyTorch 2.13 and a driver of CUDA 12", "2.13-cu130", "T4", "575.57.08", "no", OLD_DRIVER),
    Case("a T4 under CUDA 12.4 by minor-version compatibility", "2.6-cu124", "T4", "525.60.13", "native", MINOR),
    Case("a T4 one patch below the oldest driver of CUDA 12", "2.6-cu124", "T4", "525.60.11", "no", OLD_DRIVER),
    Case("an RTX 2080 Ti under CUDA 11.8 and 450.80.02", "2.1-cu118", "RTX 2080 Ti", "450.80.02", "native", MINOR),
    Case("an RTX 2080 Ti one patch below that", "2.1-cu118", "RTX 2080 Ti", "450.51.06", "no", OLD_DRIVER),
    Case("an RTX 2080 Ti is dropped by no driver yet", "2.13-cu130", "RTX 2080 Ti", "595.45.04", "native", "new enough"),
    # -- Ampere
    Case("an A100 under R535 and CUDA 12.4", "2.6-cu124", "A100", "535.104.05", "native", MINOR),
    Case("an A100 under CUDA 12.4's own driver", "2.6-cu124", "A100", "550.54.14", "native", "new enough"),
    Case("an A100 one patch below CUDA 12.4's own driver", "2.6-cu124", "A100", "550.54.13", "native", MINOR),
    Case("an A100 under the oldest driver of CUDA 12", "2.8-cu128", "A100", "525.60.13", "native", MINOR),
    Case("an A100 under 515 and CUDA 12", "2.1-cu121", "A100", "515.105.01", "no", OLD_DRIVER),
    Case("an A100 under 450.36.06, before the family's oldest", "2.1-cu118", "A100", "450.36.06", "no", OLD_DRIVER),
    Case("an A100 under PyTorch 2.13", "2.13-cu130", "A100", "580.65.06", "native", "new enough"),
    Case("an A100 under PyTorch 2.13 and 550", "2.13-cu130", "A100", "550.90.07", "no", "580 or newer"),
    Case("a slice of an A100 is an A100", "2.6-cu124", "A100 1g.5gb", "535.54.03", "native", "MIG 1g.5gb"),
    Case("a slice of an A100 under a driver of CUDA 11", "2.6-cu124", "A100 1g.5gb", "470.57.02", "no", OLD_DRIVER),
    Case("an RTX 3090 runs its own code", "2.6-cu124", "RTX 3090", "550.54.14", "native", "8.6"),
    Case("an RTX 3090 under a driver from before it", "2.1-cu118", "RTX 3090", "450.80.02", "no", "first that does is 455.23"),
    Case("an RTX 3090 runs code for 8.0", "ptx-only", "RTX 3090", "550.54.14", "native", "compiled code"),
    Case("an A40 under CUDA 11.8 and 470", "2.1-cu118", "A40", "470.57.02", "native", MINOR),
    Case("an Orin takes no desktop's code, only PTX", "ptx-only", "Orin", "550.54.14", "ptx", "PTX"),
    Case("an Orin without PTX", "2.6-cu124", "Orin", "550.54.14", "no", NO_KERNEL),
    # -- Ada, Hopper
    Case("an RTX 4090 runs code for 8.6", "2.6-cu124", "RTX 4090", "550.54.14", "native", "Ada"),
    Case("an RTX 4090 under CUDA 11.8", "2.1-cu118", "RTX 4090", "520.61.05", "native", "new enough"),
    Case("an RTX 4090 under a driver from before it", "2.1-cu118", "RTX 4090", "515.65.01", "no", "first that does is 520.61.05"),
    Case("an L4 under PyTorch 2.8 and 535", "2.8-cu128", "L4", "535.183.01", "native", MINOR),
    Case("an H100 under PyTorch 2.6", "2.6-cu124", "H100", "550.54.15", "native", "Hopper"),
    Case("an H100 under PyTorch 2.13", "2.13-cu130", "H100", "580.159.04", "native", "new enough"),
    Case("an H100 under PyTorch 2.13 and 535", "2.13-cu130", "H100", "535.161.08", "no", "580 or newer"),
    Case("an H100 under code for it alone", "for-one", "H100", "570.26", "native", "9.0"),
    Case("an H100 under a driver from before it", "2.1-cu118", "H100", "510.39.01", "no", "first that does is 520.61.05"),
    Case("a slice of an H100 under PyTorch 2.8", "2.8-cu128", "H100 3g.40gb", "570.26", "native", "MIG 3g.40gb"),
    Case("code is never run downwards: 9.0 has none for 8.0", "for-one", "A100", "570.26", "no", NO_KERNEL),
    # -- Blackwell
    Case("an RTX 5090 under PyTorch 2.8", "2.8-cu128", "RTX 5090", "570.86.16", "native", "Blackwell"),
    Case("an RTX 5090 is too new for PyTorch 2.6", "2.6-cu124", "RTX 5090", "570.86.16", "no", NO_KERNEL),
    Case("an RTX 5090 is too new for PyTorch 2.1", "2.1-cu118", "RTX 5090", "580.65.06", "no", NO_KERNEL),
    Case("an RTX 5090 under a driver from before it", "2.8-cu128", "RTX 5090", "560.35.05", "no", "first that does is 570.26"),
    Case("an RTX 5090 by a vendor's PTX", "vendor-cu124", "RTX 5090", "570.86.16", "ptx", "first use"),
    Case("an RTX 5090 under PyTorch 2.13", "2.13-cu130", "RTX 5090", "580.65.06", "native", "new enough"),
    Case("an RTX 5090 under PyTorch 2.13 and 570", "2.13-cu130", "RTX 5090", "570.86.16", "no", OLD_DRIVER),
    Case("a B200 under PyTorch 2.8", "2.8-cu128", "B200", "570.133.20", "native", "10.0"),
    Case("a B200 is too new for PyTorch 2.6", "2.6-cu124", "B200", "570.133.20", "no", NO_KERNEL),
    Case("a B200 cannot use PTX for the H100 alone", "for-one", "B200", "570.133.20", "no", NO_KERNEL),
    Case("a B300 runs code for 10.0", "2.8-cu128", "B300", "580.65.06", "native", "10.3"),
    Case("a B300 runs its family's code", "for-family", "B300", "575.51.03", "native", "compiled code"),
    Case("a B300 under a driver from before it", "2.8-cu128", "B300", "570.26", "no", "first that does is 575.51.03"),
    Case("an RTX 5090 is of another family than a B200", "for-family", "RTX 5090", "580.65.06", "no", NO_KERNEL),
    Case("a GB10 runs code for 12.0", "2.13-cu130", "GB10", "580.95.05", "native", "12.1"),
    # -- PTX and the forward compatibility package
    Case("PTX of a newer CUDA than the driver's", "ptx-only", "H100", "535.104.05", "no", OLD_PTX),
    Case("PTX under the toolkit's own driver", "ptx-only", "H100", "550.54.14", "ptx", "minutes once"),
    Case("PTX never runs downwards", "ptx-only", "V100", "550.54.14", "no", NO_KERNEL),
    Case("a V100 with the vendor's newer library", "vendor-cu124", "V100", "470.57.02", "forward-compat", "CUDA 12.4"),
    Case("a slice of an A100 with that library", "vendor-cu124", "A100 1g.5gb", "470.82.01", "forward-compat", "newer driver library"),
    Case("an RTX 3090 does not take that library", "vendor-cu124", "RTX 3090", "470.82.01", "no", "data-centre GPUs only"),
    Case("an A100 on a branch that library does not stand on", "vendor-cu124", "A100", "495.44", "no", "does not work on this branch"),
    Case("an A100 on a branch of which nothing is said", "vendor-cu124", "A100", "510.39.01", "unknown", "not known whether NVIDIA's newer library"),
    Case("a workstation card might take that library", "vendor-cu124", "RTX A6000", "470.82.01", "unknown", "not known whether"),
    # -- what is not known
    Case("unknown capability", "2.6-cu124", "unknown capability", "550.54.14", "unknown", "compute capability"),
    Case("unknown capability, and the driver is too old anyway", "2.6-cu124", "unknown capability", "470.57.02", "no", OLD_DRIVER),
    Case("unknown driver", "2.6-cu124", "A100", "", "unknown", "the host's driver"),
    Case("unknown driver, and there is no code anyway", "2.6-cu124", "RTX 5090", "", "no", NO_KERNEL),
    Case("a driver that is no version", "2.6-cu124", "A100", "N/A", "unknown", "the host's driver"),
    Case("unknown driver and unknown capability", "2.6-cu124", "unknown capability", "", "unknown", " and "),
    Case("unknown architectures of the image", "no-archs", "A100", "550.54.14", "unknown", "for which GPUs"),
    Case("unknown CUDA of the image", "no-cuda-said", "A100", "550.54.14", "unknown", "which CUDA"),
    Case("an image without PyTorch", "no-torch", "A100", "550.54.14", "unknown", "no PyTorch"),
    Case("an image whose scan failed", "hangs", "A100", "550.54.14", "unknown", "did not answer"),
    Case("a CUDA 13 that is newer than the table", "newer-13", "H100", "580.65.06", "native", "same family"),
    Case("its PTX", "newer-13", "RTX 5090", "580.65.06", "unknown", "not known whether"),
    Case("a CUDA family that is newer than the table", "cuda-14", "H100", "580.65.06", "unknown", "asks of a driver"),
    Case("a GPU that is newer than every image", "2.13-cu130", "from the future", "580.65.06", "no", NO_KERNEL),
    # -- without a GPU that counts
    Case("the image without CUDA on a GPU", "cpu", "A100", "550.54.14", "cpu", "stand idle"),
    Case("the image without CUDA on a slice", "cpu", "H100 3g.40gb", "", "cpu", "stand idle"),
)  # fmt: skip
