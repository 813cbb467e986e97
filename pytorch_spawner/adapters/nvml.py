"""The GPUs of this machine, as NVIDIA's management library tells them.

No driver, no library, no GPU: each is an empty inventory with a reason, never an error. What is
asked, and how, is in ``nvml_facts``, which asks on other machines too (``probe``).
"""

from __future__ import annotations

from pytorch_spawner.adapters import nvml_facts
from pytorch_spawner.core.gpus import Inventory, inventory_of


def read_inventory() -> Inventory:
    """Ask NVML for every GPU; the instances of one in MIG mode follow it."""
    try:
        import pynvml
    except ImportError:
        return Inventory(reason="nvidia-ml-py is not installed beside the hub.")
    return inventory_of(nvml_facts.read_facts(pynvml))


def no_answer(waited_s: float) -> Inventory:
    """Of a driver that was asked so long ago; nothing in this process can end such a call."""
    return Inventory(
        reason=f"The NVIDIA driver did not answer within {waited_s:g} s. Run nvidia-smi on the "
        "host and see dmesg; if that hangs too, restart the host."
    )
