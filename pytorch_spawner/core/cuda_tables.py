"""What NVIDIA's documents say of CUDA, drivers and GPUs, as tables. Rules are in ``cuda_rules``.

Each table names its source. Whatever is newer than a table is unknown to it, never impossible.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

Capability = tuple[int, int]
Driver = tuple[int, ...]
Toolkit = tuple[int, int]

# The Linux driver that came with each CUDA toolkit: it knows all of that toolkit, also its PTX.
# Source: NVIDIA CUDA Toolkit Release Notes, "CUDA Driver", table "CUDA Toolkit and Corresponding
# Driver Versions" (of 12.9, 13.0 and 13.3; the general-availability rows, Linux x86_64).
TOOLKIT_DRIVERS: Final[Mapping[Toolkit, Driver]] = {
    (11, 0): (450, 36, 6),
    (11, 1): (455, 23),
    (11, 2): (460, 27, 3),
    (11, 3): (465, 19, 1),
    (11, 4): (470, 42, 1),
    (11, 5): (495, 29, 5),
    (11, 6): (510, 39, 1),
    (11, 7): (515, 43, 4),
    (11, 8): (520, 61, 5),
    (12, 0): (525, 60, 13),
    (12, 1): (530, 30, 2),
    (12, 2): (535, 54, 3),
    (12, 3): (545, 23, 6),
    (12, 4): (550, 54, 14),
    (12, 5): (555, 42, 2),
    (12, 6): (560, 28, 3),
    (12, 8): (570, 26),
    (12, 9): (575, 51, 3),
    (13, 0): (580, 65, 6),
    (13, 1): (590, 44, 1),
    (13, 2): (595, 45, 4),
    (13, 3): (610, 43, 2),
}

# The oldest Linux driver on which any toolkit of a major version runs compiled kernels.
# Source: the same notes, "CUDA Minor Version Compatibility", and NVIDIA's "CUDA Compatibility",
# "Minor Version Compatibility".
FAMILY_DRIVERS: Final[Mapping[int, Driver]] = {
    11: (450, 80, 2),
    12: (525, 60, 13),
    13: (580,),
}

# The first driver that knows a compute capability: the one of the first toolkit that names it.
# Sources: the release notes of CUDA 11.0 (8.0), 11.1 (8.6), 11.8 (8.9, 9.0), 12.8 (10.0, 12.0),
# 12.9 (10.3, 12.1) and 13.0 (11.0). Older ones are known to every driver of the tables above.
FIRST_DRIVERS: Final[Mapping[Capability, Driver]] = {
    (8, 0): (450, 36, 6),
    (8, 6): (455, 23),
    (8, 9): (520, 61, 5),
    (9, 0): (520, 61, 5),
    (10, 0): (570, 26),
    (12, 0): (570, 26),
    (10, 3): (575, 51, 3),
    (12, 1): (575, 51, 3),
    (11, 0): (580, 65, 6),
}

# The last driver branch for what is older than a capability.
# Sources: NVIDIA CUDA Toolkit 13.0 Release Notes, "Deprecated Architectures" (580 is the last
# branch for Maxwell, Pascal and Volta); NVIDIA "Support plan for Kepler-series GPUs" (470).
LAST_BRANCHES: Final[tuple[tuple[Capability, int], ...]] = (((5, 0), 470), ((7, 5), 580))

# Generations by the capability they begin with. Source: CUDA C++ Programming Guide, "Compute
# Capabilities", and NVIDIA's list "CUDA GPU Compute Capability".
GENERATIONS: Final[tuple[tuple[Capability, str], ...]] = (
    ((10, 0), "Blackwell"),
    ((9, 0), "Hopper"),
    ((8, 9), "Ada"),
    ((8, 0), "Ampere"),
    ((7, 5), "Turing"),
    ((7, 0), "Volta"),
    ((6, 0), "Pascal"),
    ((5, 0), "Maxwell"),
    ((3, 0), "Kepler"),
)

# Boards with the GPU on the processor's chip; compiled kernels are exchanged with no other device.
# Source: CUDA C++ Programming Guide, "Binary Compatibility".
ON_CHIP: Final = frozenset({(5, 3), (6, 2), (7, 2), (8, 7)})

# Driver branches that a forward compatibility package may stand on: production and long-term ones;
# and those that it may not: new-feature and developer branches. Of others nothing is said here.
# Sources: NVIDIA "CUDA Compatibility", "Forward Compatibility"; what each branch is: "Supported
# Drivers and CUDA Toolkit Versions" of NVIDIA's data-centre driver documentation.
FORWARD_BRANCHES: Final = frozenset({450, 470, 525, 535, 550, 570, 580, 595})
FEATURE_BRANCHES: Final = frozenset({455, 465, 495, 520, 530, 545, 555, 560, 575, 590, 610})

# Names of data-centre GPUs, which alone take that package. GeForce and RTX cards do not.
# Source: the same chapter, and NVIDIA's list of data-centre products.
DATA_CENTRE: Final = (
    r"Tesla\b|\b(?:[ABHL]|GB|GH)[1-9][0-9]{0,2}[LSX]?\b|\b(?:P|V)100\b|\bP40\b|\bP4\b|\bT4\b"
)
NOT_DATA_CENTRE: Final = r"GeForce|\bRTX\b|\bGTX\b|Quadro|TITAN"
