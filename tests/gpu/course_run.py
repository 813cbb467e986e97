"""The example course on a real GPU host: smoke test, warm cache, a student's start, in seconds.

Runs on the hosts that ``host_run`` runs on, with one real hub of ours. The host's Python has to
have nbgitpuller and nbclient beside what ``host_run`` needs. What is found goes to OUT/course.json.

    python3 tests/gpu/course_run.py --out OUT [--site DIR] [--node DIR] [--budget SECONDS]
        [--image IMAGE --simulated SPEC]
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pytorch_spawner.core.course_text import read_manifest
from pytorch_spawner.core.courses import Course
from pytorch_spawner.ledger.store import Ledger
from tests.benchmarks.real_hub import RealHub, lab_network
from tests.gpu.first_step_run import both_arms, keep_log, lay_out_standby, proxy_of
from tests.gpu.host_run import ROOT, arguments, machine, make_images

EXAMPLE = ROOT / "share" / "courses" / "example"
_NAME = "example"


async def preload(
    hub: RealHub, ends_at: float, found: dict[str, Any], keep: Callable[[], None]
) -> Course:
    """Add the example, preload it, and see a student start in it.

    Args:
        hub: Runs.
        ends_at: ``time.monotonic()`` after which nothing is waited for.
        found: Takes what is seen.
        keep: Called after each look, for a run that is cut off.

    Raises:
        RuntimeError: A step failed, or there was no time left.
    """
    client = hub.client()
    ledger = Ledger.open(f"sqlite:///{hub.folder / 'ledger.sqlite'}")
    try:
        await hub.answers(client)
        text = (EXAMPLE / "course.yaml").read_text()
        manifest = read_manifest(text.replace("directory: /\n", f"directory: {EXAMPLE}\n").encode())
        members = manifest.members.model_copy(update={"users": ("ana",), "staff": ("bo",)})
        manifest = manifest.model_copy(update={"members": members})
        ledger.save_course(hub.hub_id, manifest, "bo")
        ledger.ask_course(hub.hub_id, _NAME, "preload", "bo")
        while True:
            course = ledger.course(hub.hub_id, _NAME)
            if course is None:
                raise RuntimeError("the course is gone")
            found["steps"] = [one.as_json() for one in course.steps]
            keep()
            if not course.task:
                break
            if time.monotonic() > ends_at:
                raise RuntimeError("there was no time left")
            await asyncio.sleep(1)
        if any(one.state == "failed" for one in course.steps):
            raise RuntimeError(f"a step failed: {found['steps']}")
        caches = ledger.caches(hub.hub_id)
        found["cache"] = [
            {"name": one.name, "size": one.size, "cold_s": one.cold_s, "warm_s": one.warm_s}
            for one in (caches[0].targets if caches else ())
        ]
        await hub.add_users(client, ["ana"])
        found["student_usable_s"] = round((await hub.start(client, "ana")).usable_s, 2)
        await asyncio.sleep(15)
        start = ledger.latest_start(hub.hub_id, "ana", "")
        events = ledger.read_events(start.id) if start else ()
        kinds = ("course", "warmup", "check")
        found["events"] = [
            {"at": round(one.at - events[0].at, 2), "kind": one.kind, **one.data}
            for one in events
            if one.kind in kinds and one.data.get("phase") in ("done", "failed")
        ]
        await hub.stop(client, "ana")
        return course
    finally:
        client.close()
        ledger.close()


def main() -> int:
    """Run it; 1 when something raised."""
    options = arguments(__doc__)
    out = Path(options.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    ends_at = time.monotonic() + options.budget - 30

    def keep() -> None:
        (out / "course.json").write_text(json.dumps(found, indent=1) + "\n")

    try:
        found["machine"] = machine()
        if not options.image:
            make_images()
        site = [Path(options.site).resolve()] if options.site else []
        with contextlib.ExitStack() as stack:
            stack.enter_context(lab_network())
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="course-run-")))
            folder.chmod(0o755)
            standby = None if options.image else lay_out_standby(folder / "standby")
            _, ours = both_arms(options, standby)
            hub = RealHub(folder / "hub", ours, proxy=proxy_of(options.node), python_path=site)
            stack.callback(keep_log, hub, out)
            stack.enter_context(hub.running())
            asyncio.run(preload(hub, ends_at, found, keep))
    except Exception:  # noqa: BLE001 (what was seen until here is worth keeping)
        found["error"] = traceback.format_exc()
        sys.stderr.write(found["error"])
    finally:
        keep()
    for step in found.get("steps", ()):
        print(f"{step['name']:6} {step['state']:8} {step['seconds']} s  {step['message']}")
    print(json.dumps({key: found.get(key) for key in ("cache", "student_usable_s")}))
    return int("error" in found)


if __name__ == "__main__":
    sys.exit(main())
