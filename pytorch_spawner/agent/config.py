"""What the spawner tells the agent, read forgivingly: a wrong value is a default and a log line."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from dataclasses import dataclass
from typing import Any, Dict, Optional, Tuple

MODELS = ("mlp", "cnn", "transformer")
SHARES = ("whole", "slot", "none")
_MAX_LIST = 16
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")


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
class WarmCache:
    """A published cache to copy from before anything compiles.

    Attributes:
        id: Of the cache.
        digest: SHA-256 of its manifest, in hex.
        path: Where it is mounted, read-only.
        name: Of the suite it was built from, for people.
        targets: (name, cold seconds, warm seconds) as measured when it was built.
    """

    id: str
    digest: str
    path: str
    name: str = ""
    targets: Tuple[Tuple[str, Optional[float], Optional[float]], ...] = ()


@dataclass(frozen=True)
class Smoke:
    """What has to run without an error in a fresh student's server.

    Attributes:
        notebooks: Paths in the course, executed one after the other.
        deadline_s: Most seconds of all of them together.
    """

    notebooks: Tuple[str, ...]
    deadline_s: float = 600.0


@dataclass(frozen=True)
class Course:
    """The course whose notebooks belong into this home.

    Attributes:
        name: Its name, as in addresses.
        title: For people.
        bundle: What it has published, as a git bundle, read-only.
        notice: A JSON file that says which publication that is; it is watched.
        branch: The bundle's one branch.
        folder: Directory below the home.
        orders_url: Where an instructor's orders are asked for; "" for nowhere.
        smoke: What to run, in a server that is there for nothing else; ``None`` for nothing.
    """

    name: str
    title: str
    bundle: str
    notice: str
    branch: str
    folder: str
    orders_url: str = ""
    smoke: Optional[Smoke] = None


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
        warm_cache: What the lab has compiled for this start; ``None`` when nothing.
        offered_caches: Ids of the warm caches that starts like this are given, on other GPUs as
            well; ``None`` where that is not known.
        why_no_cache: Why there is none, as a sentence; "" when nobody expects one.
        course: The course that this start belongs to; ``None`` for none.
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
    warm_cache: Optional[WarmCache] = None
    offered_caches: Optional[Tuple[str, ...]] = None
    why_no_cache: str = ""
    course: Optional[Course] = None

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
        warm_cache=_warm_cache(said.get("warm_cache")),
        offered_caches=_ids(said.get("offered_caches")),
        why_no_cache=_text(said.get("why_no_cache"), default.why_no_cache)[:300],
        course=_course(said.get("course")),
    ), ""


def build_job(text: Optional[str]) -> Optional[Dict[str, Any]]:
    """The job of a warmer's container; ``None`` where the configuration has none."""
    try:
        said = json.loads(text or "")
    except (ValueError, RecursionError):
        return None
    job = said.get("build") if isinstance(said, dict) else None
    return job if isinstance(job, dict) and isinstance(job.get("suite"), dict) else None


def _warm_cache(value: Any) -> Optional[WarmCache]:
    said = _dict(value)
    needed = {name: _text(said.get(name), "") for name in ("id", "digest", "path")}
    if not all(needed.values()):
        return None
    rows = said.get("targets")
    return WarmCache(
        **needed,
        name=_text(said.get("name"), "")[:60],
        targets=tuple(
            (str(row[0])[:60], _seconds(row[1]), _seconds(row[2]))
            for row in (rows if isinstance(rows, list) else [])[:_MAX_LIST]
            if isinstance(row, list) and len(row) == 3
        ),
    )


def _ids(value: Any) -> Optional[Tuple[str, ...]]:
    is_list = isinstance(value, list) and all(isinstance(one, str) for one in value)
    return tuple(value) if is_list else None


def _course(value: Any) -> Optional[Course]:
    said = _dict(value)
    names = ("name", "bundle", "notice", "branch", "folder")
    needed = {name: _text(said.get(name), "") for name in names}
    # The name is a directory's, too.
    is_fine = _NAME.fullmatch(needed["name"]) and not needed["branch"].startswith("-")
    if not all(needed.values()) or not is_fine:
        return None
    smoke = _dict(said.get("smoke"))
    notebooks = _texts(smoke.get("notebooks"), ())
    deadline_s = _positive(smoke.get("deadline_s"), 600.0)
    return Course(
        **needed,
        title=_text(said.get("title"), needed["name"])[:200],
        orders_url=_text(said.get("orders_url"), ""),
        smoke=Smoke(notebooks, deadline_s) if notebooks else None,
    )


def _seconds(value: Any) -> Optional[float]:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) and value >= 0 else None


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
            # A process with PyTorch has no use for them.
            "warm_cache": None,
            "offered_caches": None,
            "course": None,
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
