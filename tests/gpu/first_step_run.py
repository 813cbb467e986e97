"""The first compiled step of a new notebook on a real GPU: stock DockerSpawner, and ours.

Runs on the hosts that ``host_run`` runs on, with two real hubs, and measures what
``tests/benchmarks/bench_first_step.py`` describes. Every measurement is written to OUT/result.json
as soon as it is there; OUT/first-step-gpu.json has the table, and so has bench/results/.

    python3 tests/gpu/first_step_run.py --out OUT [--site DIR] [--node DIR]
        [--models gpt,mlp,resnet] [--arms stock,ours,sizes,few,fresh] [--repeats N]
        [--size-repeats N] [--fresh-repeats N] [--few-repeats N] [--add EARLIER/result.json]...
        [--no-build] [--no-standby] [--bare-stock] [--budget SECONDS]
        [--image IMAGE --simulated SPEC]

--bare-stock: stock's containers see the bytecode that the host's packages came with, and no other;
refused where the host's torch has some, and with --image.
A run may be split over several calls; ``--add`` takes what an earlier one found into the table, and
``--report`` only makes the table. With ``--image`` and ``--simulated`` it runs without a GPU.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.bench_first_step import (
    MODELS,
    USUAL_ARMS,
    Measuring,
    Plan,
    Step,
    as_json,
    from_json,
    report,
    write_json,
)
from tests.benchmarks.harness import RESULTS, Bench
from tests.benchmarks.real_hub import NETWORK, Arm, RealHub, lab_network
from tests.gpu.host_run import (
    CAME_WITH,
    ROOT,
    arguments,
    host_root,
    machine,
    make_images,
    nccl_settings,
    only_gpu,
)

_STANDBY = ROOT / "share" / "images" / "standby"
_SETTINGS = ROOT / "share" / "images" / "etc"
_NO_STANDBY = {"PYTORCH_SPAWNER_STANDBY": "0"}
# The host's image has no user of its own; Jupyter does not run as root.
_USER = "1000:1000"
_HOMELESS = {"HOME": "/tmp", "USER": "jovyan", "LOGNAME": "jovyan"}


def own_arguments() -> argparse.Namespace:
    """Options of this run; what is not known here is ``host_run``'s."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--arms", default=",".join(USUAL_ARMS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--size-repeats", type=int, default=3)
    parser.add_argument("--fresh-repeats", type=int, default=1)
    parser.add_argument("--few-repeats", type=int, default=3)
    parser.add_argument("--add", action="append", default=[])
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--no-build", action="store_true")
    parser.add_argument("--no-standby", action="store_true")
    parser.add_argument("--bare-stock", action="store_true")
    own, rest = parser.parse_known_args()
    sys.argv[1:] = rest
    return own


def lay_out_standby(folder: Path) -> Path | None:
    """The standby package as an installed one, with its Jupyter settings; None: there is none.

    Written by hand, because a GPU host has neither a network nor a build tool.
    """
    if not (_STANDBY / "pyproject.toml").exists():
        return None
    import tomllib

    said = tomllib.loads((_STANDBY / "pyproject.toml").read_text())
    project = said["project"]
    ignore = shutil.ignore_patterns("__pycache__", "tests")
    for package in _STANDBY.glob("*/__init__.py"):
        shutil.copytree(package.parent, folder / package.parent.name, ignore=ignore)
    name, version = project["name"].replace("-", "_"), project["version"]
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {version}\n"
    )
    lines = []
    for group, points in project.get("entry-points", {}).items():
        lines += [f"[{group}]", *(f"{point} = {target}" for point, target in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    if _SETTINGS.is_dir():
        shutil.copytree(_SETTINGS, folder / "etc" / "jupyter")
    data = said.get("tool", {}).get("setuptools", {}).get("data-files", {})
    for place, files in data.items():
        (folder / place).mkdir(parents=True, exist_ok=True)
        for file in files:
            shutil.copy(_STANDBY / file, folder / place)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


def both_arms(
    options: argparse.Namespace, standby: Path | None, bytecode: Path | None = None
) -> tuple[Arm, Arm]:
    """Stock and ours on the same image, with the same limits: none but memory.

    Args:
        options: ``host_run``'s.
        standby: Where the standby package lies; None: the image has it, or nobody has.
        bytecode: What stock's Python reads instead of the packages' own; None: those.
    """
    bare = {"PYTHONPYCACHEPREFIX": str(bytecode)} if bytecode else {}
    alone = {**_HOMELESS, **_NO_STANDBY, **bare}
    site = Path(options.site).resolve() if options.site else None
    limits = {"mem_limit": options.mem, "cpu_limit": None}
    if options.image:
        traits: dict[str, Any] = {"environment": nccl_settings()}
        image = options.image
    else:
        traits = host_root(site)
        image = traits.pop("image")
    device = "" if options.simulated else f"nvidia.com/gpu={options.gpu or 0}"
    own = only_gpu(options.gpu)
    stock = Arm(
        "stock",
        False,
        os.environ.get("LAB_BENCH_STOCK_IMAGE") or image,
        _named("DockerSpawner", {k: v for k, v in traits.items() if k != "helper_image"})
        | _named("DockerSpawner", limits)
        | {"DockerSpawner.environment": {**traits["environment"], **alone}},
        network=NETWORK,
        cdi_device=device,
        user=_USER,
    )
    ours = Arm(
        "ours",
        True,
        image,
        _named("PyTorchSpawner", {**with_standby(traits, standby), **limits, **own}),
        {"gpus": 0 if options.simulated else 1},
    )
    return stock, ours


def with_standby(traits: dict[str, Any], standby: Path | None) -> dict[str, Any]:
    """The traits with the standby package on the container's path."""
    if standby is None:
        return traits
    environment = dict(traits["environment"])
    for name, place in (("PYTHONPATH", standby), ("JUPYTER_CONFIG_PATH", standby / "etc/jupyter")):
        environment[name] = os.pathsep.join(filter(None, [environment.get(name), str(place)]))
    volumes = {**traits.get("read_only_volumes", {}), str(standby): str(standby)}
    if (standby / "etc" / "ipython").is_dir():
        # IPython looks in its interpreter's prefix, which is the host's here, and in this place.
        volumes[str(standby / "etc" / "ipython")] = "/etc/ipython"
    return {**traits, "environment": environment, "read_only_volumes": volumes}


def _named(section: str, traits: dict[str, Any]) -> dict[str, Any]:
    return {f"{section}.{name}": value for name, value in traits.items()}


def proxy_of(node: str | None) -> list[str]:
    """Command of the proxy out of the folder with node."""
    if not node:
        return []
    proxy = "node_modules/configurable-http-proxy/bin/configurable-http-proxy"
    return [str(Path(node).resolve() / "node"), str(Path(node).resolve() / proxy)]


def measure(
    options: argparse.Namespace, own: argparse.Namespace, measuring: Measuring, out: Path
) -> None:
    """Both hubs, until the plan is done."""
    bytecode = CAME_WITH if own.bare_stock else None
    if bytecode is not None:
        files = list(bytecode.rglob("*.pyc"))
        if of_torch := [file for file in files if "torch" in file.parent.parts]:
            raise SystemExit(f"--bare-stock: the host's torch has bytecode: {of_torch[0]}")
        measuring.note(f"stock: torch without bytecode, {len(files)} files of others have theirs")
    site = [Path(options.site).resolve()] if options.site else []
    with contextlib.ExitStack() as stack:
        stack.enter_context(lab_network())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="first-step-")))
        folder.chmod(0o755)
        standby = None
        if not own.no_standby and not options.image:  # an image of ours has it already
            standby = lay_out_standby(folder / "standby")
        hubs = []
        for arm in both_arms(options, standby, bytecode):
            if arm.name not in measuring.plan.hubs:
                hubs.append(None)
                continue
            hub = RealHub(
                folder / arm.name, arm, proxy=proxy_of(options.node), python_path=site
            )  # fmt: skip
            stack.callback(keep_log, hub, out)
            hubs.append(stack.enter_context(hub.running()))
        asyncio.run(measuring.run(hubs[0], hubs[1]))


def keep_log(hub: RealHub, out: Path) -> None:
    """The hub's log outlives its folder."""
    with contextlib.suppress(OSError):
        shutil.copy(hub.log, out / f"hub-{hub.arm.name}.log")


def main() -> int:
    """Measure, and write; 1 when something raised."""
    own = own_arguments()
    options = arguments(__doc__)
    if own.bare_stock and options.image:
        raise SystemExit("--bare-stock is about the host's own packages, --image has its own")
    out = Path(options.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    earlier: list[Step] = []
    notes: list[str] = []
    for path in own.add:
        steps, said = from_json(json.loads(Path(path).read_text()))
        earlier, notes = earlier + steps, notes + said
    plan = Plan(
        models=own.models.split(","),
        arms=own.arms.split(","),
        repeats=own.repeats,
        size_repeats=own.size_repeats,
        fresh_repeats=own.fresh_repeats,
        few_repeats=own.few_repeats,
        build=None if own.no_build else ("--cpu",) if options.simulated else (),
        ends_at=time.monotonic() + options.budget - 30,
    )
    result: dict[str, Any] = {"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}

    def keep(found: Measuring) -> None:
        told = as_json(found)
        told["steps"] = as_json_of(earlier) + told["steps"]
        told["notes"] = list(dict.fromkeys([*notes, *told["notes"]]))
        write_json(out / "result.json", {**result, **told})

    measuring = Measuring(plan, keep)
    signal.signal(signal.SIGTERM, leave)
    try:
        if not own.report:
            if not options.image:
                # First of all: whatever imports torch as root leaves bytecode.
                make_images(CAME_WITH if own.bare_stock else None)
            result["machine"] = machine()
            measure(options, own, measuring, out)
    except Exception:  # noqa: BLE001 (what was measured until here is worth keeping)
        result["error"] = traceback.format_exc()
        sys.stderr.write(result["error"])
    finally:
        keep(measuring)
    bench = Bench("first-step-gpu", unit="s")
    report(bench, [*earlier, *measuring.steps], [*notes, *measuring.notes])
    if (gpu := result.get("machine", {}).get("gpu")) and not options.simulated:
        bench.notes.append(f"GPU: {gpu}; {result['machine']['torch_cuda_triton']}")
    bench.write(out)
    with contextlib.suppress(OSError):
        bench.write(RESULTS)
    print(bench.table())
    return int("error" in result)


def as_json_of(steps: list[Step]) -> list[dict[str, Any]]:
    """Steps as result.json has them."""
    found = Measuring(Plan(), lambda _: None)
    found.steps = steps
    return list(as_json(found)["steps"])


def leave(*_: object) -> None:
    """SIGTERM becomes an exception, so that hubs and containers go on the way out."""
    raise SystemExit(143)


if __name__ == "__main__":
    sys.exit(main())
