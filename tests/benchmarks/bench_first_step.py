"""A new notebook's first compiled training step: hub, container, kernel, websocket; stock and ours.

The clock begins with the request for the kernel. The notebook's cells are: imports; the source of
the model, read from share/suites/bench and run as a cell; one training step. Arms:

stock   a fresh container with an empty cache ("stock, cold"), then a second notebook in the same
        container ("stock, second run");
ours    new notebooks of one server; before each, its private cache is put back to what the start
        of the server had seeded, so that no notebook profits from the one before;
sizes   the same with the batch size changed;
fresh   a new user's first notebook;
few     "stock, cold" and "ours" in containers with FEW_CPUS CPUs each, as where a class shares a
        host; otherwise a container may use all of the host's. Only where it is asked for.

``tests/gpu/first_step_run.py`` measures the same on a GPU host.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from tornado.httpclient import AsyncHTTPClient

from tests.benchmarks.bench_spawn import say
from tests.benchmarks.harness import RESULTS, ROOT, Bench
from tests.benchmarks.real_hub import Arm, RealHub, calibrate, lab_network
from tests.benchmarks.stock_image import lab_image, stock_image
from tests.kernel_client import Kernel, KernelError, Ran, Server

SUITE = ROOT / "share" / "suites" / "bench"
MODELS = {"gpt": 8, "mlp": 256, "resnet": 32}
# What is measured -> the hubs that it needs.
ARMS = {
    "stock": {"stock"},
    "ours": {"ours"},
    "sizes": {"ours"},
    "few": {"stock", "ours"},
    "fresh": {"ours"},
}
USUAL_ARMS = tuple(arm for arm in ARMS if arm != "few")
COLD, SECOND, OURS, FRESH = "stock, cold", "stock, second run", "ours", "ours, a fresh server"
FEW_CPUS = 4
COLD_FEW, OURS_FEW = f"{COLD}, {FEW_CPUS} CPUs", f"{OURS}, {FEW_CPUS} CPUs"
CACHE_DIR = "/var/cache/pytorch-spawner"
_IMPORTS = "import torch\nfrom torch import nn"
_STEP_S = 280.0
# What is left then is left out, so that there are results before the run is ended.
_ALL_S = 2400.0
_STANDBY_S = 90.0
_NO_STANDBY_S = 12.0
_WARMUP_S = 150.0

# Not part of what is timed.
_EVIDENCE = """
import json as _json, sys as _sys
from torch._dynamo.utils import counters as _counters
_seen = _counters["inductor"], _counters["aot_autograd"]
print(_json.dumps({
    "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    "torch": torch.__version__,
    "is_standby": "pytorch_spawner_standby.preload" in _sys.modules,
    "hits": _seen[0]["fxgraph_cache_hit"], "misses": _seen[0]["fxgraph_cache_miss"],
    "aot_hits": _seen[1]["autograd_cache_hit"], "aot_misses": _seen[1]["autograd_cache_miss"],
}))
"""

# The private cache as the start left it, and torch's own folder in /tmp; both the user's.
_KEEP_SEED = f"""
rm -rf /tmp/.bench-seed && mkdir -p /tmp/.bench-seed/cache /tmp/.bench-seed/tmp &&
cp -a {CACHE_DIR}/. /tmp/.bench-seed/cache/ &&
for d in /tmp/torchinductor_*; do [ ! -e "$d" ] || cp -a "$d" /tmp/.bench-seed/tmp/; done
"""
_BACK_TO_SEED = f"""
find {CACHE_DIR} -mindepth 1 -delete; rm -rf /tmp/torchinductor_*
cp -a /tmp/.bench-seed/cache/. {CACHE_DIR}/ &&
for d in /tmp/.bench-seed/tmp/*; do [ ! -e "$d" ] || cp -a "$d" /tmp/; done
"""


@dataclass(slots=True)
class Step:
    """One notebook; seconds.

    Attributes:
        arm: Whose.
        model: Of ``MODELS``.
        batch_size: Of the training step.
        total_s: From the request for the kernel to the end of the first training step.
        from_import_s: From the import cell to that end.
        kernel_s: From the request until the kernel answered.
        import_s: The cell with the imports.
        define_s: The cell with the model's source.
        step_s: The cell with the training step.
        seen: What the kernel says: device, standby or not, hits and misses of the caches.
        error: Why there are no figures; "" when there are.
        calibration_s: A fixed piece of work just before.
    """

    arm: str
    model: str
    batch_size: int
    total_s: float = 0.0
    from_import_s: float = 0.0
    kernel_s: float = 0.0
    import_s: float = 0.0
    define_s: float = 0.0
    step_s: float = 0.0
    seen: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    calibration_s: float = 0.0


def other_sizes(usual: int) -> tuple[int, ...]:
    """Batch sizes a student might try: one, an odd one, half as many again, twice as many."""
    return (1, usual + usual // 4 + 1 | 1, usual + usual // 2, 2 * usual)


async def first_step(server: Server, arm: str, model: str, batch_size: int) -> Step:
    """Open a notebook, run its cells, and end its kernel."""
    step = Step(arm, model, batch_size, calibration_s=round(calibrate(), 4))
    try:
        async with server.open_kernel() as kernel:
            imports = await _cell(kernel, _IMPORTS)
            define = await _cell(kernel, (SUITE / f"{model}.py").read_text())
            train = await _cell(kernel, f"train_step(batch_size={batch_size})")
            seen = await _cell(kernel, _EVIDENCE)
            step.total_s = round(train.ended - kernel.asked, 3)
            step.from_import_s = round(train.ended - imports.began, 3)
            step.kernel_s = round(kernel.ready - kernel.asked, 3)
            step.import_s, step.define_s, step.step_s = (
                round(ran.seconds, 3) for ran in (imports, define, train)
            )
            step.seen = json.loads(seen.stdout.splitlines()[-1])
    except (KernelError, OSError, ValueError) as error:
        step.error = f"{type(error).__name__}: {error}"[:1000]
    return step


async def _cell(kernel: Kernel, code: str) -> Ran:
    ran = await kernel.execute(code, _STEP_S)
    if ran.status != "ok":
        raise KernelError(f"{ran.error or ran.status}: {ran.stderr[-600:]}")
    return ran


@dataclass
class Plan:
    """What is measured.

    Attributes:
        models: Of ``MODELS``.
        arms: Of ``ARMS``.
        repeats: Of each.
        size_repeats: Of each changed batch size.
        fresh_repeats: Of a new user's first notebook.
        few_repeats: Of each with few CPUs.
        build: Options of ``pytorch-spawner cache build``; None: it is not called.
        ends_at: ``time.monotonic()`` after which nothing new is begun.
    """

    models: Sequence[str] = tuple(MODELS)
    arms: Sequence[str] = USUAL_ARMS
    repeats: int = 5
    size_repeats: int = 3
    fresh_repeats: int = 3
    few_repeats: int = 3
    build: Sequence[str] | None = ("--cpu",)
    ends_at: float = float("inf")

    def __post_init__(self) -> None:
        for named, known in ((self.models, MODELS), (self.arms, ARMS)):
            if unknown := set(named) - set(known):
                raise SystemExit(f"unknown: {', '.join(unknown)}; there is {', '.join(known)}")

    @property
    def hubs(self) -> set[str]:
        """Names of the hubs that have to run."""
        return set().union(*(ARMS[arm] for arm in self.arms))


class Measuring:
    """Takes the measurements of a plan, and hands each over as soon as it is there.

    Args:
        plan: What to take.
        keep: Called with all measurements after each.
    """

    def __init__(self, plan: Plan, keep: Callable[[Measuring], None]) -> None:
        self.plan = plan
        self.steps: list[Step] = []
        self.notes: list[str] = []
        self._keep = keep

    async def run(self, stock: RealHub | None, ours: RealHub | None) -> None:
        """Both hubs run; None leaves an arm out."""
        async with contextlib.AsyncExitStack() as stack:
            lab = await stack.enter_async_context(_Students(ours, self)) if ours else None
            rival = await stack.enter_async_context(_Students(stock, self)) if stock else None
            if lab is not None:
                # A hub that nobody opened a page of knows its GPUs from its first start on; a build
                # for them is refused before.
                await lab.start_once("first")
                self._build(lab.hub)
                if {"ours", "sizes", "few"} & set(self.plan.arms):
                    await lab.open("ours")
            for number in range(self.plan.repeats):
                for model in self.plan.models:
                    await self._repeat(number, model, rival, lab)
            if "few" in self.plan.arms and (os.cpu_count() or 1) <= FEW_CPUS:
                self.note(f"nothing with {FEW_CPUS} CPUs: this machine has no more")
            elif "few" in self.plan.arms:
                for number in range(self.plan.few_repeats):
                    for model in self.plan.models:
                        await self._with_few(number, model, rival, lab)
            if lab is not None and "fresh" in self.plan.arms:
                # A lab with one GPU has it for one server at a time.
                await lab.close("ours")
                for number in range(self.plan.fresh_repeats):
                    for model in self.plan.models:
                        await self._fresh(model, number, lab)

    async def _repeat(
        self, number: int, model: str, rival: _Students | None, lab: _Students | None
    ) -> None:
        usual, arms = MODELS[model], self.plan.arms
        if rival is not None and "stock" in arms and self._has_time():
            user = f"stock{number}{model}"
            await rival.open(user)
            for arm in (COLD, SECOND):
                await rival.measure(user, arm, model, usual)
            await rival.close(user)
        if lab is None:
            return
        if "ours" in arms and self._has_time():
            await lab.measure("ours", OURS, model, usual)
        if "sizes" in arms and number < self.plan.size_repeats:
            for size in other_sizes(usual):
                if self._has_time():
                    await lab.measure("ours", OURS, model, size)

    async def _with_few(
        self, number: int, model: str, rival: _Students | None, lab: _Students | None
    ) -> None:
        """A container keeps its limit: whatever needs all CPUs comes before."""
        if rival is not None and self._has_time():
            user = f"few{number}{model}"
            await rival.open(user)
            rival.limit(user, FEW_CPUS)
            await rival.measure(user, COLD_FEW, model, MODELS[model])
            await rival.close(user)
        if lab is not None and self._has_time():
            lab.limit("ours", FEW_CPUS)
            await lab.measure("ours", OURS_FEW, model, MODELS[model])

    async def _fresh(self, model: str, number: int, lab: _Students) -> None:
        if self._has_time():
            user = f"fresh{number}{model}"
            await lab.open(user)
            await lab.measure(user, FRESH, model, MODELS[model])
            await lab.close(user)

    def add(self, step: Step) -> None:
        self.steps.append(step)
        say(
            f"{step.model} {step.batch_size}, {step.arm}: "
            + (step.error or f"{step.total_s:.2f} s ({step.seen})")
        )
        self._keep(self)

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)
            say(text)

    def _has_time(self) -> bool:
        if time.monotonic() < self.plan.ends_at:
            return True
        self.note("not everything was measured: no time was left")
        return False

    def _build(self, hub: RealHub) -> None:
        """A warm cache of the suite, if this version can build one."""
        if self.plan.build is None:
            self.note("ours: no warm cache was asked for")
            return
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="bench-suite-") as folder:
            suite = suite_of(self.plan.models, Path(folder))
            done = cache_build(hub, suite, self.plan.build)
        if done is None:
            self.note("ours: `pytorch-spawner cache build` does not exist here: no warm cache")
            return
        status, said = done
        took = f"{time.monotonic() - began:.0f} s"
        if status:
            self.note(f"ours: the build of the warm cache FAILED after {took}: {said[-800:]}")
        else:
            self.note(f"ours: the warm cache was built and proved in {took}")


def suite_of(models: Sequence[str], folder: Path) -> Path:
    """The suite with the targets of some models alone, so that a part of a run builds its part."""
    said = yaml.safe_load((SUITE / "suite.yaml").read_text())
    said["targets"] = [target for target in said["targets"] if target["name"] in models]
    (folder / "suite.yaml").write_text(yaml.safe_dump(said, sort_keys=False))
    for model in models:
        shutil.copy(SUITE / f"{model}.py", folder)
    return folder


def cache_build(hub: RealHub, suite: Path, options: Iterable[str]) -> tuple[int, str] | None:
    """Build a warm cache through the CLI, as an instructor does, and tell how far it is.

    Returns:
        Its status and what it said; None where there is no such command.
    """
    command = [sys.executable, "-m", "pytorch_spawner.cli", "cache", "build"]
    where = ["--ledger", f"sqlite:///{hub.folder / 'ledger.sqlite'}", "--hub", hub.hub_id]
    env = {**os.environ, "PYTHONPATH": hub.python_path}
    if subprocess.run([*command, "--help"], env=env, capture_output=True, check=False).returncode:
        return None
    words = [*command, "--suite", str(suite), "--image", hub.arm.image, *options, *where]
    lines = []
    with subprocess.Popen(
        words, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            for line in process.stdout or ():
                lines.append(line)
                say(line.rstrip())
        except BaseException:
            process.kill()
            raise
    return process.returncode, "".join(lines).strip()


class _Students:
    """Servers of one hub, and notebooks in them."""

    def __init__(self, hub: RealHub, measuring: Measuring) -> None:
        self.hub = hub
        self._measuring = measuring
        self._client: AsyncHTTPClient = hub.client()
        self._open: set[str] = set()

    async def __aenter__(self) -> _Students:
        await self.hub.answers(self._client)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._client.close()

    async def open(self, user: str) -> None:
        """Start a server and wait until it is at rest: warm-up over, standby kernel there."""
        await self.hub.add_users(self._client, [user])
        await self.hub.start(self._client, user)
        self._open.add(user)
        if not self.hub.arm.is_ours:
            await asyncio.sleep(2)
            return
        if self.hub.arm.traits.get("PyTorchSpawner.warmup", True):
            await self._warmed_up(user)
        else:
            await asyncio.sleep(2)
        if trouble := self._exec(user, _KEEP_SEED):
            self._measuring.note(f"ours: the private cache could not be kept aside: {trouble}")

    async def start_once(self, user: str) -> None:
        await self.hub.add_users(self._client, [user])
        await self.hub.start(self._client, user)
        await self.hub.stop(self._client, user)

    async def close(self, user: str) -> None:
        if user in self._open:
            self._open.remove(user)
            await self.hub.stop(self._client, user)

    async def measure(self, user: str, arm: str, model: str, batch_size: int) -> None:
        if self.hub.arm.is_ours:
            await self._standby_is_ready(user)
            if trouble := self._exec(user, _BACK_TO_SEED):
                self._measuring.note(f"ours: the private cache was not put back: {trouble}")
        async with Server(self.hub.url, user, self.hub.token) as server:
            self._measuring.add(await first_step(server, arm, model, batch_size))

    def limit(self, user: str, cpus: int) -> None:
        """Give a running server this many CPUs; PyTorch goes on to count the host's, in both."""
        (container,) = self.hub.containers(user)
        words = ["docker", "update", "--cpus", str(cpus), container]
        subprocess.run(words, stdout=subprocess.DEVNULL, check=True)

    def _exec(self, user: str, script: str) -> str:
        """Run a script in the container; what went wrong."""
        container = (self.hub.containers(user) or ["none"])[0]
        done = subprocess.run(
            ["docker", "exec", container, "sh", "-c", script],
            capture_output=True,
            text=True,
            check=False,
        )
        return (done.stderr or f"status {done.returncode}")[-300:] if done.returncode else ""

    async def _warmed_up(self, user: str) -> None:
        path = f"services/lab/api/servers/{user}//events?format=json"
        deadline = time.monotonic() + _WARMUP_S
        while time.monotonic() < deadline:
            answer = await self.hub.ask(self._client, "GET", path, timeout_s=10)
            if answer.code == 200 and any(
                event["kind"] == "done" and event["data"].get("part") == "warmup"
                for event in json.loads(answer.body)
            ):
                return
            await asyncio.sleep(0.5)
        self._measuring.note(f"ours: a warm-up was not over after {_WARMUP_S:g} s")

    async def _standby_is_ready(self, user: str) -> None:
        began = time.monotonic()
        while time.monotonic() - began < _STANDBY_S:
            waiting = standbys(self._log(user))
            if waiting:
                return
            if waiting is None and time.monotonic() - began > _NO_STANDBY_S:
                self._measuring.note("ours: this image has no standby kernels")
                return
            await asyncio.sleep(0.5)
        self._measuring.note(f"ours: no standby kernel within {_STANDBY_S:g} s")

    def _log(self, user: str) -> str:
        container = (self.hub.containers(user) or ["none"])[0]
        done = subprocess.run(
            ["docker", "logs", container], capture_output=True, text=True, check=False
        )
        return done.stdout + done.stderr


def standbys(log: str) -> int | None:
    """How many standby kernels wait, by a server's log; None where it never had one."""
    waiting: set[str] = set()
    has_any = False
    for line in log.splitlines():
        if "pytorch_spawner_standby | extension was successfully loaded" in line:
            has_any = True
        elif "Standby kernels: off" in line:
            return None
        elif found := re.search(r"Standby kernels: (\d+) ready after", line):
            waiting.add(found[1])
            has_any = True
        elif found := re.search(r"Standby kernels: (\d+) (?:handed over|ended)", line):
            waiting.discard(found[1])
        elif "Standby kernels: ended," in line:
            waiting.clear()
    return len(waiting) if has_any else None


# -- what it found -------------------------------------------------------------------------------


def report(bench: Bench, steps: Iterable[Step], notes: Iterable[str] = ()) -> Bench:
    """Rows and ratios of what was measured, however many calls it took."""
    every = list(steps)
    good = [step for step in every if not step.error]
    totals: dict[tuple[str, str, int], list[Step]] = {}
    for step in good:
        totals.setdefault((step.model, step.arm, step.batch_size), []).append(step)
    for (model, arm, size), found in sorted(totals.items(), key=_order):
        label = f"{model} {size}, {arm}"
        bench.add(f"{label}: new kernel to end of step", [step.total_s for step in found])
        if size == MODELS[model]:
            bench.add(f"{label}: import cell to end of step", [s.from_import_s for s in found])
            bench.add(f"{label}: the step's cell", [step.step_s for step in found])
        bench.notes.append(f"{label}: {_evidence(found)}")
    for arm in dict.fromkeys(step.arm for step in good):
        bench.add(f"{arm}: `import torch`", [s.import_s for s in good if s.arm == arm])
        bench.add(f"{arm}: kernel answers", [s.kernel_s for s in good if s.arm == arm])
    if good:
        bench.add("a fixed piece of work before each", [step.calibration_s for step in good])
    medians = {key: statistics.median(s.total_s for s in found) for key, found in totals.items()}
    for model, usual in MODELS.items():
        _add_ratios(bench, medians, model, usual)
    failed = [f"{s.model} {s.batch_size}, {s.arm}: {s.error}" for s in every if s.error]
    bench.notes += [f"failed: {text}" for text in failed] + list(dict.fromkeys(notes))
    return bench


def _add_ratios(
    bench: Bench, medians: Mapping[tuple[str, str, int], float], model: str, usual: int
) -> None:
    pairs = [(ours, stock) for ours in (OURS, FRESH) for stock in (COLD, SECOND)]
    for ours, stock in (*pairs, (OURS_FEW, COLD_FEW)):
        ours_s, stock_s = medians.get((model, ours, usual)), medians.get((model, stock, usual))
        if ours_s and stock_s:
            bench.ratios[f"{model}: {ours}/{stock}"] = ours_s / stock_s
    base = medians.get((model, OURS, usual))
    for size in other_sizes(usual):
        if base and (changed := medians.get((model, OURS, size))):
            bench.ratios[f"{model}: batch size {size}/{usual}"] = changed / base


def _order(item: tuple[tuple[str, str, int], Any]) -> tuple[int, int, int, int]:
    (model, arm, size), _ = item
    arms = (COLD, SECOND, OURS, FRESH, COLD_FEW, OURS_FEW)
    return list(MODELS).index(model), arms.index(arm), size != MODELS[model], size


def _evidence(found: Sequence[Step]) -> str:
    standby = sum(bool(step.seen.get("is_standby")) for step in found)
    caches = sorted({(step.seen.get("hits", 0), step.seen.get("misses", 0)) for step in found})
    told = ", ".join(f"{hits} hits {misses} misses" for hits, misses in caches)
    return f"{standby} of {len(found)} from a standby kernel; graphs: {told}"


def as_json(measuring: Measuring) -> dict[str, Any]:
    """The raw measurements."""
    return {"steps": [asdict(step) for step in measuring.steps], "notes": measuring.notes}


def from_json(said: Mapping[str, Any]) -> tuple[list[Step], list[str]]:
    """What ``as_json`` wrote."""
    return [Step(**step) for step in said.get("steps", [])], list(said.get("notes", []))


def write_json(path: Path, said: Any) -> None:
    """In one step, so that a call that is cut short leaves the last whole one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".new")
    draft.write_text(json.dumps(said, indent=1) + "\n")
    draft.replace(path)


def run(
    *,
    repeats: int = 5,
    models: Sequence[str] = (),
    arms: Sequence[str] = (),
    build: bool = True,
) -> Bench:
    """Measure on this machine's CPU."""
    plan = Plan(
        models=models or tuple(MODELS),
        arms=arms or USUAL_ARMS,
        repeats=repeats,
        size_repeats=min(repeats, 3),
        fresh_repeats=min(repeats, 3),
        build=("--cpu",) if build else None,
        ends_at=time.monotonic() + _ALL_S,
    )
    raw = RESULTS / "raw" / "first-step.json"
    measuring = Measuring(plan, lambda found: write_json(raw, as_json(found)))
    with contextlib.ExitStack() as stack:
        stack.enter_context(lab_network())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-first-step-")))
        lab = rival = None
        if "ours" in plan.hubs:
            # A notebook on a CPU needs no GPU, not even a simulated one.
            ours = Arm("ours", True, lab_image(), {}, {"gpus": 0})
            lab = stack.enter_context(RealHub(folder / "ours", ours).running())
        if "stock" in plan.hubs:
            stock = Arm("stock", False, stock_image())
            rival = stack.enter_context(RealHub(folder / "stock", stock).running())
        asyncio.run(measuring.run(rival, lab))
    return report(Bench("first-step", unit="s"), measuring.steps, measuring.notes)
