"""Every check on a real GPU with its seconds, then faults provoked for real.

Runs on the hosts that ``host_run`` runs on, with one real hub of ours for each scene, and keeps
what the agent reported. OUT/checks.json has the figures; OUT/journals.json has the journals, which
``tests/lab/test_lab_gpu_faults.py`` shows in the page.

    python3 tests/gpu/checks_run.py --out OUT [--site DIR] [--node DIR] [--gpus N]
        [--scenes fine,no-shm,...] [--repeats N] [--budget SECONDS]
        [--image IMAGE --simulated SPEC]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.real_hub import NotStarted, RealHub, lab_network
from tests.gpu.first_step_run import both_arms, lay_out_standby, proxy_of
from tests.gpu.host_run import arguments, machine, make_images, sh

_COMPILER = re.compile(r"(.*-)?(gcc|cc|g\+\+|c\+\+|clang|clang\+\+)(-\d+)?$")
_LEFT_MIB = 300
_CHECKS_S = 150.0

# Holds all of the first GPU's memory but a little, until its standard input ends.
_FILL = f"""
import sys, torch
held = []
for size in (2**30, 2**28, 2**26):
    while torch.cuda.mem_get_info()[0] > size + {_LEFT_MIB} * 2**20:
        held.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
print(torch.cuda.mem_get_info()[0] // 2**20, flush=True)
sys.stdin.read()
"""
# At the end of torch/cuda/__init__.py: an image that was built for other cards.
_OTHER_CARDS = """

def get_arch_list():
    return ["sm_50", "sm_60", "sm_70", "sm_75"]
"""

# Where the host's Python is a virtual environment, as an admin would give pip the home.
_PACKAGES = "/home/lab/packages"

Traits = dict[str, Any]
Scene = Callable[[Path, Traits], "contextlib.AbstractContextManager[Traits]"]


@contextmanager
def fine(folder: Path, traits: Traits) -> Iterator[Traits]:
    """Nothing is wrong."""
    yield traits


@contextmanager
def no_shm(folder: Path, traits: Traits) -> Iterator[Traits]:
    """``/dev/shm`` is 1 MiB."""
    yield {**traits, "extra_host_config": {"shm_size": "1m"}}


@contextmanager
def full_home(folder: Path, traits: Traits) -> Iterator[Traits]:
    """Homes lie on a file system without any space left."""
    homes = folder / "homes"
    homes.mkdir(mode=0o755)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", homes], check=True)
    try:
        yield {**traits, "home_root": str(homes), "_after_first_start": homes}
    finally:
        subprocess.run(["umount", "-l", homes], check=False)


@contextmanager
def no_compiler(folder: Path, traits: Traits) -> Iterator[Traits]:
    """No compiler can be found: PATH leads to links to all programs but those.

    The folder of the Python itself stays as it is, for a virtual environment is known by it.
    """
    environment = {k: v for k, v in traits["environment"].items() if k not in ("CC", "CXX")}
    python, *places = environment["PATH"].split(os.pathsep)
    programs = folder / "programs"
    programs.mkdir(mode=0o755)
    for place in places:
        for file in Path(place).glob("*"):
            if _COMPILER.match(file.name) is None and not (programs / file.name).is_symlink():
                (programs / file.name).symlink_to(file)
    environment["PATH"] = os.pathsep.join((python, str(programs)))
    volumes = {**traits.get("read_only_volumes", {}), str(programs): str(programs)}
    yield {**traits, "environment": environment, "read_only_volumes": volumes}


@contextmanager
def no_libcuda(folder: Path, traits: Traits) -> Iterator[Traits]:
    """The driver's folder without libcuda: nvidia-smi works, CUDA does not."""
    shown = folder / "driver"
    shown.mkdir()
    for place in traits["environment"].get("LD_LIBRARY_PATH", "").split(":"):
        for file in Path(place).glob("*.so*") if place else ():
            if not file.name.startswith("libcuda.so") and not (shown / file.name).exists():
                (shown / file.name).symlink_to(file)
    shown.chmod(0o755)
    with without_libcuda(folder, traits, shown) as changed_traits:
        yield changed_traits


@contextmanager
def no_driver(folder: Path, traits: Traits) -> Iterator[Traits]:
    """None of the driver's libraries can be found."""
    nothing = folder / "nothing"
    nothing.mkdir(mode=0o755)
    with without_libcuda(folder, traits, nothing) as changed_traits:
        yield changed_traits


@contextmanager
def without_libcuda(folder: Path, traits: Traits, libraries: Path) -> Iterator[Traits]:
    """Look for libraries in one folder, and in the host's usual ones, which lose the driver's."""
    names = ("libcuda.so*", "libnvidia-*.so*")
    gone = {str(file) for name in names for file in Path("/usr/lib").rglob(name)}
    # The loader's cache of the host knows the driver's folder, too.
    cache = folder / "ld.so.cache"
    subprocess.run(["ldconfig", "-f", "/dev/null", "-C", cache], check=True)
    with changed(folder, traits, gone) as traits:
        volumes = {k: v for k, v in traits["read_only_volumes"].items() if "ld.so" not in v}
        yield {
            **traits,
            "environment": {**traits["environment"], "LD_LIBRARY_PATH": str(libraries)},
            "read_only_volumes": {
                **volumes,
                str(libraries): str(libraries),
                str(cache): "/etc/ld.so.cache",
            },
        }


@contextmanager
def other_cards(folder: Path, traits: Traits) -> Iterator[Traits]:
    """PyTorch says that it was built for older cards only."""
    said = sh(sys.executable, "-c", "import torch.cuda; print(torch.cuda.__file__)")
    text = Path(said).read_text() + _OTHER_CARDS
    with changed(folder, traits, (), {said: text}) as changed_traits:
        yield changed_traits


@contextmanager
def changed(
    folder: Path, traits: Traits, gone: Iterable[str], written: Mapping[str, str] = {}
) -> Iterator[Traits]:
    """The host's folders that containers see, without some files, and with others in their place.

    A layer over each folder that has one of them; the host itself stays as it is.
    """
    layer = folder / "layer"
    layer.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", layer], check=True)
    volumes = dict(traits.get("read_only_volumes", {}))
    merged: list[Path] = []
    try:
        for number, place in enumerate(list(volumes)):
            mine = [path for path in (*gone, *written) if Path(path).is_relative_to(place)]
            if not mine:
                continue
            parts = {name: layer / f"{name}-{number}" for name in ("upper", "work", "merged")}
            for part in parts.values():
                part.mkdir(mode=0o755)
            options = f"lowerdir={place},upperdir={parts['upper']},workdir={parts['work']}"
            subprocess.run(
                ["mount", "-t", "overlay", "overlay", "-o", options, parts["merged"]], check=True
            )
            merged.append(parts["merged"])
            for path in mine:
                file = parts["merged"] / Path(path).relative_to(place)
                if path in written:
                    file.write_text(written[path])
                else:
                    file.unlink(missing_ok=True)
            volumes[str(parts["merged"])] = volumes.pop(place)
        yield {**traits, "read_only_volumes": volumes}
    finally:
        for place in [*merged, layer]:
            subprocess.run(["umount", "-l", place], check=False)


@contextmanager
def full_gpu(folder: Path, traits: Traits) -> Iterator[Traits]:
    """Another process of the host holds nearly all memory of the GPU."""
    with subprocess.Popen(
        [sys.executable, "-c", _FILL], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        traits["_left_mib"] = holder.stdout.readline().strip()
        try:
            yield traits
        finally:
            holder.communicate()


SCENES: Mapping[str, Scene] = {
    "fine": fine,
    "no-shm": no_shm,
    "full-home": full_home,
    "no-compiler": no_compiler,
    "no-libcuda": no_libcuda,
    "no-driver": no_driver,
    "other-cards": other_cards,
    "full-gpu": full_gpu,
}


def own_arguments() -> argparse.Namespace:
    """Options of this run; what is not known here is ``host_run``'s."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--scenes", default=",".join(SCENES))
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--warm-repeats", type=int, default=3)
    own, rest = parser.parse_known_args()
    sys.argv[1:] = rest
    return own


async def play(hub: RealHub, name: str, traits: Traits, repeats: int) -> list[dict[str, Any]]:
    """Start a server some times; what it reported each time."""
    client = hub.client()
    found = []
    try:
        await hub.answers(client)
        await hub.add_users(client, ["ana"])
        for number in range(repeats):
            if number and (homes := traits.get("_after_first_start")):
                (homes / "ballast").write_bytes(b"")
                with contextlib.suppress(OSError), (homes / "ballast").open("ab") as file:
                    while True:
                        file.write(b"x" * 4096)
                        file.flush()
            asked = time.time()
            try:
                started = await hub.start(client, "ana")
            except NotStarted:
                print(*(await _events(hub, client))[-2:], sep="\n", flush=True)
                raise
            events = await _until_checked(hub, client)
            report = await hub.ask(client, "GET", "services/lab/api/servers/ana//report")
            found.append(
                {
                    "scene": name,
                    "usable_s": round(started.usable_s, 2),
                    "events": events,
                    "report": report.body.decode(errors="replace"),
                    **judged(events, asked + started.usable_s),
                }
            )
            await hub.stop(client, "ana")
        return found
    finally:
        client.close()


async def _events(hub: RealHub, client: Any) -> list[dict[str, Any]]:
    answer = await hub.ask(client, "GET", "services/lab/api/servers/ana//events?format=json")
    return list(json.loads(answer.body)) if answer.code == 200 else []


async def _until_checked(hub: RealHub, client: Any) -> list[dict[str, Any]]:
    ends_at = time.monotonic() + _CHECKS_S
    events: list[dict[str, Any]] = []
    while time.monotonic() < ends_at:
        events = await _events(hub, client)
        if any(e["kind"] == "done" and e["data"].get("part") == "checks" for e in events):
            # What comes a moment later belongs to the picture: the warm-up's plan.
            await asyncio.sleep(0.5)
            return events
        await asyncio.sleep(0.2)
    return events


def judged(events: list[dict[str, Any]], usable_at: float) -> dict[str, Any]:
    """Figures out of a journal; seconds."""
    done = [e for e in events if e["kind"] == "check" and e["data"].get("phase") == "done"]
    checks = [
        {key: e["data"].get(key) for key in ("code", "level", "seconds", "sentence", "facts")}
        for e in done
    ]
    lab = next((e["at"] for e in events if e["data"].get("stage") == "lab"), usable_at)
    over = next((e for e in events if e["kind"] == "done"), None)
    return {
        "checks": checks,
        "first_check_after_lab_s": round(done[0]["at"] - lab, 2) if done else None,
        "all_checks_after_lab_s": round(done[-1]["at"] - lab, 2) if done else None,
        "sum_s": round(sum(one["seconds"] or 0 for one in checks), 2),
        "whole_s": over["data"].get("seconds") if over else None,
        "not_ok": [one["code"] + ": " + one["level"] for one in checks if one["level"] != "ok"],
    }


def main() -> int:
    """Play the scenes; 1 when one raised."""
    own = own_arguments()
    options = arguments(__doc__)
    out = Path(options.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    result |= {"machine": machine(), "scenes": {}, "errors": {}}
    journals: dict[str, Any] = {}
    ends_at = time.monotonic() + options.budget
    if not options.image:
        make_images()
    for name in own.scenes.split(","):
        if time.monotonic() > ends_at - 40:
            result["errors"][name] = "no time was left"
            continue
        try:
            rows = scene(name, own, options, out)
        except Exception:  # noqa: BLE001 (the other scenes are worth having)
            result["errors"][name] = traceback.format_exc()
            continue
        journals[name] = [row.pop("events") for row in rows]
        result["scenes"][name] = rows
        say(name, rows)
        (out / "checks.json").write_text(json.dumps(result, indent=1) + "\n")
        (out / "journals.json").write_text(json.dumps(journals) + "\n")
    (out / "checks.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["errors"]))
    return int(bool(result["errors"]))


def scene(
    name: str, own: argparse.Namespace, options: argparse.Namespace, out: Path
) -> list[dict[str, Any]]:
    """One scene with a hub of its own."""
    site = [Path(options.site).resolve()] if options.site else []
    with contextlib.ExitStack() as stack:
        stack.enter_context(lab_network())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="checks-run-")))
        folder.chmod(0o755)
        standby = None if options.image else lay_out_standby(folder / "standby")
        _, ours = both_arms(options, standby)
        mark = "PyTorchSpawner."
        traits = {key.removeprefix(mark): value for key, value in ours.traits.items()}
        traits |= {"warmup": False, "max_gpus": own.gpus}
        traits = stack.enter_context(SCENES[name](folder, traits))
        gpus = 0 if options.simulated else own.gpus
        environ = traits["environment"]
        if not options.image:
            path = os.pathsep.join(filter(None, [environ.get("PYTHONPATH"), _PACKAGES]))
            traits["environment"] = {**environ, "PIP_TARGET": _PACKAGES, "PYTHONPATH": path}
        kept = {mark + key: value for key, value in traits.items() if not key.startswith("_")}
        arm = replace(ours, traits=kept, options={"gpus": gpus})
        hub = RealHub(folder / "hub", arm, proxy=proxy_of(options.node), python_path=site)
        stack.callback(_keep_log, hub, out, name)
        stack.enter_context(hub.running())
        repeats = own.warm_repeats if name == "fine" else 1 + ("_after_first_start" in traits)
        return asyncio.run(play(hub, name, traits, repeats))


def _keep_log(hub: RealHub, out: Path, name: str) -> None:
    with contextlib.suppress(OSError), (out / "hubs.log").open("a") as file:
        file.write(f"==== {name}\n{hub.log.read_text(errors='replace')}\n")


def say(name: str, rows: list[dict[str, Any]]) -> None:
    """One line for each start, and each check that is not fine or takes long."""
    for row in rows:
        print(
            f"{name}: usable {row['usable_s']} s, first check {row['first_check_after_lab_s']} s, "
            f"last {row['all_checks_after_lab_s']} s, sum {row['sum_s']} s"
        )
        for one in row["checks"]:
            if one["level"] != "ok" or (one["seconds"] or 0) > 0.5:
                print(f"   {one['code']:16} {one['level']:8} {one['seconds']} {one['sentence']}")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
