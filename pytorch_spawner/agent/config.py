"""What the spawner tells the agent, read forgivingly: a wrong value is a default and a log line."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any, Dict, Optional, Tuple

MODELS = ("mlp", "cnn", "transformer")
SHARES = ("whole", "slot", "none")
_MAX_LIST = 16


@dataclass(frozen=True)
class Gpu:
    """One device that this server's lease holds.

    Attributes:
        uuid: As NVML writes it, ``GPU-...`` or ``MIG-...``.
        name: For people.
        memory_mib: What the lease promises; ``None`` is unknown.
        simulated: There is no such device; the lab only behaves as if.
    """

    uuid: str
    name: str = ""
    memory_mib: Optional[int] = None
    simulated: bool = False


@dataclass(frozen=True)
class Config:
    """Everything the agent can be told.

    Attributes:
        start: Id of this start; "" when unknown.
        server: ``user/servername``, for the log.
        gpus: What the lease holds; ``None`` when the agent was not told.
        share: One of ``SHARES``; "" when the agent was not told.
        cache_dir: The container's private compile cache; the agent's log goes there.
        warmup_enabled: Whether to compile anything ahead of the student.
        warmup_models: Keys of ``models.BUILDERS``.
        warmup_modes: Values of ``torch.compile(mode=...)``.
        warmup_deadline_s: After so many seconds the warm-up is stopped.
        check_deadline_s: After so many seconds a check with PyTorch counts as hung.
        shm_expected_mib: The size ``/dev/shm`` should have.
    """

    start: str = ""
    server: str = ""
    gpus: Optional[Tuple[Gpu, ...]] = None
    share: str = ""
    cache_dir: str = "/var/cache/pytorch-spawner"
    warmup_enabled: bool = True
    warmup_models: Tuple[str, ...] = MODELS
    warmup_modes: Tuple[str, ...] = ("default",)
    warmup_deadline_s: float = 600.0
    check_deadline_s: float = 60.0
    shm_expected_mib: int = 1024

    @property
    def real_gpus(self) -> Tuple[Gpu, ...]:
        """The leased GPUs that exist; () when none or unknown."""
        return tuple(gpu for gpu in self.gpus or () if not gpu.simulated)

    @property
    def may_use_gpu(self) -> bool:
        """Whether PyTorch should look for a GPU: a lease holds one, or nobody told."""
        return self.gpus is None or bool(self.real_gpus)


def parse(text: Optional[str]) -> Tuple[Config, str]:
    """Read the configuration.

    Args:
        text: A JSON object, or ``None`` where the variable is not set. Unknown keys are ignored.

    Returns:
        The configuration, and a sentence on what was wrong with the text ("" when nothing was).
    """
    if not text:
        return Config(), ""
    try:
        said = json.loads(text)
    except (ValueError, RecursionError) as error:
        return Config(), f"The configuration is not JSON ({error}); defaults apply."
    if not isinstance(said, dict):
        return Config(), "The configuration is not a JSON object; defaults apply."
    warmup, checks = _dict(said.get("warmup")), _dict(said.get("checks"))
    gpus = _gpus(said.get("gpus"))
    share = said.get("share")
    if share not in SHARES:
        share = "" if gpus is None else ("whole" if gpus else "none")
    default = Config()
    return Config(
        start=_text(said.get("start"), default.start)[:64],
        server=_text(said.get("server"), default.server),
        gpus=() if gpus is None and share == "none" else gpus,
        share=share,
        cache_dir=_text(said.get("cache_dir"), default.cache_dir),
        warmup_enabled=warmup.get("enabled") is not False,
        warmup_models=_texts(warmup.get("models"), default.warmup_models),
        warmup_modes=_texts(warmup.get("modes"), default.warmup_modes),
        warmup_deadline_s=_positive(warmup.get("deadline_s"), default.warmup_deadline_s),
        check_deadline_s=_positive(checks.get("deadline_s"), default.check_deadline_s),
        shm_expected_mib=int(_positive(said.get("shm_expected_mib"), default.shm_expected_mib)),
    ), ""


def as_job(config: Config) -> Dict[str, Any]:
    """The configuration as a JSON object for a worker process; ``from_job`` reads it."""
    return dataclasses.asdict(config)


def from_job(job: Dict[str, Any]) -> Config:
    """Read what ``as_job`` wrote."""
    gpus = job["gpus"]
    return Config(
        **{
            **job,
            "gpus": None if gpus is None else tuple(Gpu(**gpu) for gpu in gpus),
            "warmup_models": tuple(job["warmup_models"]),
            "warmup_modes": tuple(job["warmup_modes"]),
        }
    )


def _dict(value: Any) -> Dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any, default: str) -> str:
    return value if isinstance(value, str) else default


def _texts(value: Any, default: Tuple[str, ...]) -> Tuple[str, ...]:
    if not isinstance(value, list):
        return default
    return tuple(item for item in value[:_MAX_LIST] if isinstance(item, str))


def _positive(value: Any, default: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return default
    return value if math.isfinite(value) and value > 0 else default


def _gpus(value: Any) -> Optional[Tuple[Gpu, ...]]:
    if not isinstance(value, list):
        return None
    return tuple(
        Gpu(
            uuid=_text(item.get("uuid"), ""),
            name=_text(item.get("name"), ""),
            memory_mib=int(_positive(item.get("memory_mib"), 0)) or None,
            simulated=item.get("simulated") is True,
        )
        for item in value[:_MAX_LIST]
        if isinstance(item, dict)
    )
