"""How GPUs get into a container: as CDI devices, or through the NVIDIA toolkit's runtime. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pytorch_spawner.core.gpus import Gpu
from pytorch_spawner.errors import NoGpuInjection


@dataclass(frozen=True, slots=True)
class Injection:
    """How this engine puts GPUs into containers, as it was found out by asking it.

    Attributes:
        kind: "cdi", "nvidia" (the toolkit's runtime) or "none".
        devices: CDI names that the engine lists; empty where it does not tell (before Engine 28).
        reason: Why there is no way; "" when there is one.
        has_runtime: The toolkit's runtime is there too, for GPUs that no CDI specification names.
    """

    kind: str
    devices: frozenset[str] = frozenset()
    reason: str = ""
    has_runtime: bool = False

    def for_gpus(self, gpus: tuple[Gpu, ...]) -> Injection:
        """The way for these GPUs: CDI where it lists them all, else the runtime if there is one.

        Older toolkits name devices by index only, and other vendors' devices are listed too.
        """
        names = {gpu.qualified_cdi_name for gpu in gpus}
        if self.kind == "cdi" and self.has_runtime and not names <= self.devices:
            return Injection("nvidia", has_runtime=True)
        return self


# CDI devices that are GPUs: all that nvidia-ctk names, by whatever class, and its management
# devices, but for the classes that give none.
_GPU_DEVICE: Final = re.compile(r"(^|\.)nvidia\.com/(?!(gds|mofed|imex-channel)=)")
# Any of these, without a driver's name, is answered by the engine's "nvidia" driver.
# Source: moby, daemon/nvidia_linux.go.
_GPU_CAPABILITIES: Final = frozenset(
    {"gpu", "nvidia", "compute", "compat32", "graphics", "utility", "video", "display"}
)


def without_gpus(request: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """A site's own device request without the NVIDIA GPUs that it gives.

    Args:
        request: In docker-py's words or in the Docker API's.

    Returns:
        The request itself where it gives none, what is left of it, or None.
    """
    said = {key.lower().replace("_", ""): (key, value) for key, value in request.items()}
    driver = said.get("driver", ("", ""))[1] or ""
    if driver == "cdi":
        name, devices = said.get("deviceids", ("", None))
        kept = [one for one in devices or () if not _GPU_DEVICE.search(str(one))]
        if len(kept) == len(devices or ()):
            return request
        return {**request, name: kept} if kept else None
    groups = said.get("capabilities", ("", None))[1] or ()
    is_nvidia = driver == "nvidia" or (
        not driver and any(kind in _GPU_CAPABILITIES for group in groups for kind in group)
    )
    return None if is_nvidia else request


def device_requests(gpus: tuple[Gpu, ...], injection: Injection) -> tuple[Mapping[str, Any], ...]:
    """These GPUs as the Docker API's HostConfig.DeviceRequests takes them.

    Raises:
        NoGpuInjection: The engine has no way to give them.
    """
    if not gpus:
        return ()
    if injection.kind == "cdi":
        names = [gpu.qualified_cdi_name for gpu in gpus]
        if injection.devices and (missing := sorted(set(names) - injection.devices)):
            raise NoGpuInjection(
                "The engine does not know this GPU as a CDI device. Ask an admin to regenerate the "
                "CDI specification (nvidia-ctk cdi generate).",
                detail=f"missing {missing}",
            )
        return ({"driver": "cdi", "device_ids": names},)
    if injection.kind == "nvidia":
        uuids: list[str] = [gpu.uuid for gpu in gpus]
        return ({"driver": "nvidia", "device_ids": uuids, "capabilities": [["gpu"]]},)
    raise NoGpuInjection(
        injection.reason
        or "The engine has no way to put a GPU into a container. Ask an admin to install the "
        "NVIDIA container toolkit or a CDI specification.",
    )
