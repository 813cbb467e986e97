"""Warm caches on a real hub: built in its own containers, proved, given, and never from a student.

Everything is compiled for the CPU; on a GPU the way is the same (tests/gpu/first_step_run.py).
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from pytorch_spawner.core import suites, warmcache
from pytorch_spawner.core.course_text import parse_manifest
from pytorch_spawner.core.warmcache import WARMER, Cache
from tests.lab_driver import Lab, running_lab

# Two builds in one fixture, on a machine that also does something else.
pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(600)]

IMAGE = "pytorch-spawner/lab:cpu"
OTHER_IMAGE = "pytorch-spawner-test/relabelled"
CACHE_DIR = "/var/cache/pytorch-spawner"
MODEL = """
import torch

def step(batch_size=4):
    torch.manual_seed(0)
    model = torch.nn.Linear(8, WIDTH)
    compiled = torch.compile(model)
    compiled(torch.ones(batch_size, 8)).sum().backward()
"""
# Runs in a student's container as a kernel would: same variables, fresh process.
STEP = """
import json, sys
sys.path.insert(0, "/tmp")
open("/tmp/model.py", "w").write(sys.argv[1])
import model
from torch._dynamo.utils import counters
model.step(int(sys.argv[2]))
inductor = counters["inductor"]
print(json.dumps([inductor["fxgraph_cache_hit"], inductor["fxgraph_cache_miss"]]))
"""


def model(width: int) -> str:
    return MODEL.replace("WIDTH", str(width))


def suite(code: str, *, vary: bool = False, deadline_s: int = 120, **more: Any) -> dict[str, bytes]:
    target: dict[str, Any] = {"name": "step", "function": "model:step", **more}
    if vary:
        target["vary"] = {"batch_size": 4}
    said = {"name": "tiny", "targets": [target], "deadline_s": deadline_s}
    return {"suite.yaml": json.dumps(said).encode(), "model.py": code.encode()}


def ask(lab: Lab, files: dict[str, bytes], scope: str = "") -> Cache:
    """Ask for a cache; the lab's service takes it up."""
    return lab.ledger().request_cache(
        lab.hub_id,
        by="instructor",
        scope=scope,
        image=IMAGE,
        pool="",
        gpus=0,
        suite=suites.read_suite(files).as_json(),
        suite_digest=suites.digest(files),
        archive=suites.pack(files),
    )


def build(lab: Lab, files: dict[str, bytes], scope: str = "", timeout_s: float = 150) -> Cache:
    """Ask for a cache and wait until it is published or failed."""
    return wait_for(lab, ask(lab, files, scope).id, timeout_s)


def wait_for(lab: Lab, cache_id: str, timeout_s: float = 150) -> Cache:
    ends_at = time.monotonic() + timeout_s
    while time.monotonic() < ends_at:
        cache = lab.ledger().cache(lab.hub_id, cache_id)
        assert cache is not None
        if cache.state in ("published", "failed"):
            return cache
        time.sleep(0.2)
    raise AssertionError(f"{cache.state}: {cache.message}\n{cache.log}\n{lab.tail()}")


def volumes(lab: Lab) -> set[str]:
    return {one.name for one in lab.docker.volumes.list() if one.name.startswith(lab.hub_id)}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    subprocess.run(
        ["docker", "build", "-q", "-t", OTHER_IMAGE, "-"],
        input=f"FROM {IMAGE}\nLABEL some=thing\n".encode(),
        check=True,
    )
    traits = {
        "PyTorchSpawner.warmup": True,
        "PyTorchSpawner.warmup_models": ["mlp"],
        "PyTorchSpawner.images": {"usual": IMAGE, "other": OTHER_IMAGE},
    }
    with running_lab(tmp_path_factory.mktemp("warm"), traits=traits) as running:
        running.add_users("ana", "ben", "eve", "kim", "max")
        yield running


@pytest.fixture(scope="module")
def general(lab: Lab) -> Cache:
    """The lab's own cache, for every course that has none."""
    cache = build(lab, suite(model(16), vary=True))
    assert cache.state == "published", f"{cache.message}\n{cache.log}"
    return cache


@pytest.fixture(scope="module")
def of_courses(lab: Lab) -> dict[str, Cache]:
    for name in ("cv", "nlp"):
        said = {"name": name, "title": name, "source": {"git": "https://forge.example/x.git"}}
        lab.ledger().save_course(
            lab.hub_id, parse_manifest({**said, "members": {"users": ["kim"]}}), "bo"
        )
    made = {
        name: build(lab, suite(model(width)), name) for name, width in (("cv", 24), ("nlp", 32))
    }
    assert [one.state for one in made.values()] == ["published"] * 2, made
    return made


@pytest.fixture(autouse=True)
def nothing_left(lab: Lab) -> Iterator[None]:
    yield
    for user in lab.api("GET", "users?state=active").json():
        for name in user["servers"]:
            lab.stop_server(user["name"], name)
    lab.wait_until(lambda: not lab.leases(), 35, "a lease was left over")


def start(lab: Lab, user: str, **options: Any) -> None:
    lab.start_server(user, {"share": "none", **options})
    lab.wait_until(lambda: told(lab, user), 60, "nothing was said about the warm-up")


def told(lab: Lab, user: str) -> list[dict[str, Any]]:
    """How the warm-up's targets ended, or why there is no cache."""
    said = [event["data"] for event in lab.events(user) if event["kind"] == "warmup"]
    return [one for one in said if one["phase"] in ("done", "skipped", "failed")]


def step(lab: Lab, user: str, code: str, size: int = 4) -> list[int]:
    """[hits, misses] of one compiled step in the student's own container."""
    return json.loads(lab.exec(user, "python3", "-c", STEP, code, str(size)).splitlines()[-1])


def cached(lab: Lab, user: str) -> set[str]:
    said = lab.exec(user, "find", CACHE_DIR, "-type", "f", "-printf", "%P\n")
    return {one for one in said.splitlines() if one.startswith(("inductor/", "triton/"))}


# -- building ---------------------------------------------------------------------------------


def test_a_build_is_proved_in_a_second_container_and_leaves_nothing_behind(
    lab: Lab, general: Cache
) -> None:
    assert general.torch.startswith("2.")
    assert [(one.name, one.size) for one in general.targets] == [
        ("step", 4), ("step", 5), ("step", 8), ("step", 1),
    ]  # fmt: skip
    assert all(one.hits and not one.misses and one.warm_s for one in general.targets)
    assert general.targets[0].cold_s is not None
    assert general.files > 2
    assert general.size_bytes > 1000
    assert general.promoted_at is not None
    lab.wait_until(lambda: lab.server(WARMER) is None, 30, "its server runs on")
    made = f"{lab.hub_id}-warm-"
    lab.wait_until(
        lambda: {one for one in volumes(lab) if one.startswith(made)} == {general.volume},
        30,
        "volumes of the build stay",
    )


BAD = {
    "raises": ("def step(): raise RuntimeError('no data here')", "no data here"),
    "cannot be imported": ("import nowhere", "No module named"),
    "has no such function": ("x = 1", "has no attribute"),
    "hangs": ("import time\ndef step(): time.sleep(600)", "deadline"),
    "ends itself": ("def step(): raise SystemExit(0)", "ended itself"),
    "is killed": ("import os\ndef step(): os.kill(os.getpid(), 9)", "signal 9"),
    "compiles nothing": ("import torch\ndef step(): torch.ones(2).sum()", "compiled nothing"),
    "prints without end": (
        "import sys\ndef step():\n    for _ in range(100):\n        sys.stdout.write('x' * 2**20)\n"
        "    raise RuntimeError('printed it all')",
        "printed it all",
    ),
    "fills the disk": (
        "import os, time\ndef step():\n    with open('/tmp/big', 'wb') as file:\n"
        "        os.posix_fallocate(file.fileno(), 0, 5 * 2**30)\n        time.sleep(60)",
        "GiB to the disk",
    ),
    "forks and leaves children behind": (
        "import os, time\ndef step():\n    for _ in range(200):\n        if os.fork() == 0:\n"
        "            os.setsid(); time.sleep(600)\n    raise RuntimeError('forked enough')",
        "forked enough",
    ),
}


@pytest.mark.parametrize(("code", "words"), BAD.values(), ids=BAD.keys())
def test_a_suite_publishes_nothing_that(code: str, words: str, lab: Lab) -> None:
    before = volumes(lab)
    failed = build(lab, suite(code, deadline_s=20))
    assert failed.state == "failed"
    assert words in failed.message, failed
    lab.wait_until(lambda: lab.server(WARMER) is None, 30, "its server runs on")
    lab.wait_until(lambda: volumes(lab) - before == set(), 30, f"{volumes(lab) - before} stay")
    assert not [
        one
        for one in lab.containers()
        if one.labels["org.pytorch-spawner.server"].startswith(WARMER)
    ]


def test_the_log_of_a_failed_build_shows_the_traceback(lab: Lab) -> None:
    failed = build(lab, suite("def step(): raise RuntimeError('look here')"))
    assert "Traceback" in failed.log
    assert "look here" in failed.log


def test_a_build_can_be_stopped(lab: Lab) -> None:
    files = suite("import time\ndef step(): time.sleep(600)", deadline_s=600)
    asked = ask(lab, files)
    lab.wait_until(lambda: lab.container(WARMER), 30, "it did not begin")
    assert lab.ledger().cancel_cache(lab.hub_id, asked.id, "kim")
    ended = wait_for(lab, asked.id, 30)
    assert (ended.state, "stopped" in ended.message) == ("failed", True)


def test_a_build_has_no_network_no_token_and_nobodys_home(lab: Lab) -> None:
    code = (
        "import os, socket\ndef step():\n"
        "    found = [name for name in os.environ if 'TOKEN' in name]\n"
        "    said = open('/proc/net/route').read().split('\\n')[1:]\n"
        "    routes = [line for line in said if line.split('\\t')[1:2] == ['00000000']]\n"
        "    home = os.listdir(os.environ['HOME'])\n"
        "    raise RuntimeError(f'found {found} {routes} {home} {os.getuid() >= 1000}')"
    )
    failed = build(lab, suite(code))
    assert "found [] [] [] True" in failed.message


def test_code_runs_where_a_student_of_the_course_runs_it(lab: Lab) -> None:
    """CUDA's own cache knows the working directory of what it translated."""
    code = "import os\ndef step():\n    raise RuntimeError('in ' + os.getcwd() + '.')"
    assert "in /home/lab." in build(lab, suite(code)).message
    manifest = {
        "name": "optics",
        "title": "Optics",
        "source": {"git": "https://forge.example/optics.git"},
        "target": "Optics 2026",
    }
    lab.ledger().save_course(lab.hub_id, parse_manifest(manifest), "instructor")
    assert "in /home/lab/Optics 2026." in build(lab, suite(code), scope="optics").message
    cell = {
        "cell_type": "code",
        "metadata": {"tags": ["warm-up"]},
        "source": "import os\nraise RuntimeError('in ' + os.getcwd() + '.')",
    }
    target = {"name": "step", "notebook": "week 1/lab.ipynb"}
    files = {
        "suite.yaml": json.dumps({"name": "tiny", "targets": [target]}).encode(),
        "week 1/lab.ipynb": json.dumps({"cells": [cell], "nbformat": 4}).encode(),
    }
    assert "in /home/lab/Optics 2026/week 1." in build(lab, files, scope="optics").message


def test_code_runs_with_the_variables_of_the_courses_students(lab: Lab) -> None:
    """Some are of the key that PyTorch finds a cache by."""
    code = "import os\ndef step(): raise RuntimeError('threads ' + os.environ['OMP_NUM_THREADS'])"
    manifest = {
        "name": "threads",
        "title": "Threads",
        "source": {"git": "https://forge.example/threads.git"},
        "environment": {"OMP_NUM_THREADS": "3"},
    }
    lab.ledger().save_course(lab.hub_id, parse_manifest(manifest), "instructor")
    assert "threads 3" in build(lab, suite(code), "threads").message


def test_nobody_starts_the_warmers_account_for_something_else(lab: Lab) -> None:
    lab.add_users(WARMER)
    answer = lab.api("POST", f"users/{WARMER}/server", json={"share": "none"})
    assert answer.status_code >= 400
    assert "only builds warm caches" in answer.json()["message"]


@pytest.mark.parametrize("name", ["", "other"])
def test_whoever_logs_in_as_the_warmer_changes_nothing_about_a_build(lab: Lab, name: str) -> None:
    files = suite("import time\ndef step(): time.sleep(600)", deadline_s=600)
    asked = ask(lab, files)
    lab.wait_until(lambda: lab.container(WARMER), 30, "it did not begin")
    answer = lab.spawn(WARMER, {"image": "other", "share": "none"}, name)
    if name:
        assert "only builds warm caches" in answer.json()["message"]
    lab.wait_until(lambda: lab.container(WARMER), 30, "its container was not made")
    assert lab.container(WARMER).attrs["Config"]["Image"] == IMAGE
    assert lab.container(WARMER, "other") is None
    assert lab.ledger().cancel_cache(lab.hub_id, asked.id, "kim")
    assert wait_for(lab, asked.id, 40).state == "failed"


def test_a_build_that_the_service_lost_is_said_to_have_failed(lab: Lab) -> None:
    files = suite("import time\ndef step(): time.sleep(600)", deadline_s=600)
    asked = ask(lab, files)
    lab.wait_until(lambda: lab.container(WARMER), 30, "it did not begin")
    pid = lab.service_pid()
    assert pid is not None
    subprocess.run(["kill", "-9", str(pid)], check=True)
    ended = wait_for(lab, asked.id, 90)
    assert (ended.state, "restarted" in ended.message) == ("failed", True)
    lab.wait_until(lambda: lab.server(WARMER) is None, 60, "its server runs on")


# -- using ------------------------------------------------------------------------------------


def test_a_students_first_step_finds_everything_whatever_its_batch_size(
    lab: Lab, general: Cache
) -> None:
    start(lab, "ana")
    ended = told(lab, "ana")
    assert [(one["phase"], one["from_cache"]) for one in ended] == [("done", True)]
    for size in (4, 1, 3, 7, 8):
        hits, misses = step(lab, "ana", model(16), size)
        assert [bool(hits), misses] == [True, 0], size


def test_what_a_student_compiles_is_kept_between_sessions(lab: Lab, general: Cache) -> None:
    start(lab, "ana")
    hits, misses = step(lab, "ana", model(40))
    assert [hits, bool(misses)] == [0, True]
    lab.stop_server("ana")
    start(lab, "ana")
    hits, misses = step(lab, "ana", model(40))
    assert [bool(hits), misses] == [True, 0]


def test_a_poisoned_entry_of_one_student_reaches_no_other(lab: Lab, general: Cache) -> None:
    start(lab, "eve")
    planted = "import os; os.system('touch /tmp/owned')\n"
    wrote = lab.exec(
        "eve", "sh", "-c",
        f"for f in $(find {CACHE_DIR}/inductor -name '*.py'); do "
        f"printf '%s' \"{planted}\" > $f.new; "
        f"cat $f >> $f.new; mv $f.new $f; done; echo x > {warmcache.WARM_DIR}/evil; "
        f"find {warmcache.WARM_DIR} -name '*.py' | head -1 | xargs sh -c 'echo evil >> $0'; "
        "echo tried",
    )  # fmt: skip
    assert "tried" in wrote
    hits, _ = step(lab, "eve", model(16))
    assert hits
    assert lab.exec("eve", "ls", "/tmp/owned").strip() == "/tmp/owned"  # her own harm alone
    start(lab, "ben")
    hits, misses = step(lab, "ben", model(16))
    assert [bool(hits), misses] == [True, 0]
    seen = lab.exec("ben", "sh", "-c", "test -e /tmp/owned && echo owned || echo clean")
    assert seen.strip() == "clean"
    for name in ("eve", "ben"):
        mounted = {
            mount["Name"]: mount["RW"]
            for mount in lab.container(name).attrs["Mounts"]
            if mount["Type"] == "volume"
        }
        assert mounted.pop(general.volume) is False
        assert all(name in one for one in mounted)


def test_an_altered_cache_is_not_used_and_the_student_is_told(lab: Lab, general: Cache) -> None:
    change = "chmod -R u+w /w && for f in $(find /w -name '*.py'); do echo evil >> $f; done"
    run = ["docker", "run", "--rm", "-v", f"{general.volume}:/w", "--user", "0:0"]
    subprocess.run(
        [*run, "--entrypoint", "sh", IMAGE, "-c", f"cp -a /w /tmp/w && {change}"], check=True
    )
    try:
        start(lab, "max")
        ended = told(lab, "max")
        assert ended[0]["phase"] == "skipped"
        assert "changed after it was sealed" in ended[0]["message"]
        assert "evil" not in lab.exec("max", "sh", "-c", f"grep -rl evil {CACHE_DIR} || true")
    finally:
        mend = "for f in $(find /w -name '*.py'); do sed -i '$d' $f; done; chmod -R a-w /w"
        subprocess.run([*run, "--entrypoint", "sh", IMAGE, "-c", mend], check=True)


def test_two_servers_of_one_person_share_the_private_cache(lab: Lab, general: Cache) -> None:
    for name in ("", "second"):
        answer = lab.spawn("ben", {"share": "none"}, name)
        assert answer.status_code in (201, 202), answer.text
    for name in ("", "second"):
        lab.wait_ready("ben", name)
    lab.wait_until(lambda: told(lab, "ben"), 60, "nothing was said")
    assert [one["phase"] for one in told(lab, "ben")] == ["done"]
    assert step(lab, "ben", model(16))[1] == 0


def test_a_student_who_empties_the_cache_gets_it_again(lab: Lab, general: Cache) -> None:
    start(lab, "kim")
    lab.exec("kim", "sh", "-c", f"rm -rf {CACHE_DIR}/*")
    lab.stop_server("kim")
    start(lab, "kim")
    assert step(lab, "kim", model(16))[1] == 0


def test_another_image_gets_no_cache_and_is_told_why(lab: Lab, general: Cache) -> None:
    lab.start_server("max", {"share": "none", "image": "other"})
    said = lab.exec("max", "printenv", "PYTORCH_SPAWNER_AGENT")
    assert "of another image" in json.loads(said)["why_no_cache"]
    assert "TORCH_COMPILE_JOB_ID" not in lab.exec("max", "printenv")
    mounted = [mount["Name"] for mount in lab.container("max").attrs["Mounts"]]
    assert general.volume not in mounted


def test_two_courses_caches_never_mix(
    lab: Lab, general: Cache, of_courses: dict[str, Cache]
) -> None:
    start(lab, "kim", course="cv")
    of_cv = cached(lab, "kim")
    assert step(lab, "kim", model(24))[1] == 0
    assert step(lab, "kim", model(32))[1] > 0
    lab.stop_server("kim")
    start(lab, "kim", course="nlp")
    of_nlp = cached(lab, "kim")
    kernels = {name for name in of_cv if "/fxgraph/" in name}
    assert kernels
    assert kernels.isdisjoint(of_nlp)
    assert step(lab, "kim", model(32))[1] == 0
    lab.stop_server("kim")
    start(lab, "kim")  # neither: the lab's own
    assert kernels.isdisjoint(cached(lab, "kim"))
    assert step(lab, "kim", model(16))[1] == 0


def test_rolling_back_brings_the_cache_before(lab: Lab, general: Cache) -> None:
    newer = build(lab, suite(model(48)))
    start(lab, "ben")
    assert step(lab, "ben", model(48))[1] == 0
    lab.stop_server("ben")
    assert lab.ledger().retire_cache(lab.hub_id, newer.id, "kim")
    start(lab, "ben")
    env = lab.exec("ben", "printenv", "TORCH_COMPILE_JOB_ID").strip()
    assert env == f"pytorch-spawner-{general.id}"


def test_a_home_that_cannot_be_written_does_not_keep_a_server_from_starting(
    lab: Lab, general: Cache
) -> None:
    lab.start_server("ana", {"share": "none"})
    lab.exec("ana", "chmod", "0500", CACHE_DIR)
    lab.stop_server("ana")
    try:
        lab.start_server("ana", {"share": "none"})
        assert lab.server("ana")
    finally:
        lab.exec("ana", "chmod", "0700", CACHE_DIR)


def test_the_files_of_a_removed_cache_go(lab: Lab) -> None:
    cache = build(lab, suite(model(56)), "short")
    assert cache.volume in volumes(lab)
    lab.ledger().remove_cache(lab.hub_id, cache.id, "kim")
    lab.wait_until(lambda: cache.volume not in volumes(lab), 60, "its volume stays")
    lab.start_server("ana", {"share": "none"})
    assert cache.id not in lab.exec("ana", "printenv", "PYTORCH_SPAWNER_AGENT")
