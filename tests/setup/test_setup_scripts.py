"""The set-up scripts: what they say, what they refuse, and that a second run costs nothing."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from pytorch_spawner.demo import demo_password

ROOT = Path(__file__).resolve().parents[2]
BASH = [
    *(ROOT / "share/setup" / name for name in ("engine", "network", "demo-gpus", "tests", "floor")),
    *(ROOT / "share/images" / name for name in ("base", "build", "smoke")),
    ROOT / ".ci/run",
]
WITH_HELP = [path for path in BASH if path.name not in ("floor", "run")] + [
    ROOT / "share/setup/lab",
    ROOT / "share/setup/assets",
]


def run(
    *words: str | Path, env: Mapping[str, str] | None = None, cwd: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env=dict(os.environ if env is None else env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def without(tmp_path: Path, *tools: str, also: Mapping[str, str] | None = None) -> dict[str, str]:
    """An environment in which the named tools cannot be found, and everything else can."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    for place in os.environ["PATH"].split(os.pathsep):
        for tool in Path(place).glob("*") if Path(place).is_dir() else ():
            if tool.name not in tools and not (shelf / tool.name).is_symlink():
                (shelf / tool.name).symlink_to(tool)
    for name, text in (also or {}).items():
        (shelf / name).unlink(missing_ok=True)
        (shelf / name).write_text(text)
        (shelf / name).chmod(0o755)
    return {**os.environ, "PATH": str(shelf), "DOCKER_HOST": "unix:///nonexistent/docker.sock"}


@pytest.mark.parametrize("script", BASH, ids=lambda path: path.name)
def test_a_script_is_executable_and_bash_reads_it(script: Path) -> None:
    assert os.access(script, os.X_OK)
    checked = run("bash", "-n", script)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("script", WITH_HELP, ids=lambda path: path.name)
def test_help_is_shown_and_nothing_else_is_done(script: Path, tmp_path: Path) -> None:
    lab = tmp_path / "lab"
    shown = run(script, "--help", env={**os.environ, "LAB_DIR": str(lab)})
    assert shown.returncode == 0, shown.stderr
    assert "usage:" in shown.stdout
    assert not lab.exists()


def test_make_help_lists_every_target() -> None:
    targets = re.findall(r"^([a-z-]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    shown = run("make").stdout
    assert {"run", "stop", "test", "check"} <= set(targets)
    assert [target for target in targets if f"make {target} " not in shown] == []


def test_the_lock_names_no_registry() -> None:
    lock = json.loads((ROOT / "package-lock.json").read_text())
    wanted = json.loads((ROOT / "package.json").read_text())["dependencies"]
    assert {name: lock["packages"][f"node_modules/{name}"]["version"] for name in wanted} == wanted
    assert [name for name, package in lock["packages"].items() if "resolved" in package] == []


def test_the_recipe_hash_changes_with_what_is_built_and_with_nothing_else() -> None:
    def of(variant: str, **env: str) -> str:
        said = run(ROOT / "share/images/build", variant, "--recipe-hash", env=os.environ | env)
        return said.stdout.strip()

    assert re.fullmatch("[0-9a-f]{16}", of("cpu"))
    assert of("cpu") == of("cpu", LAB_CA="/elsewhere.pem", LAB_TAG="my/lab:1")
    assert len({of("cpu"), of("cuda"), of("cpu", TORCH_REQUIREMENT="torch==2.12.0")}) == 3


def test_without_root_the_engine_script_says_in_one_sentence_what_to_do(tmp_path: Path) -> None:
    # `id` is replaced: this must hold for who runs the tests as root as well.
    ordinary = "#!/bin/sh\necho 1000\n"
    done = run(ROOT / "share/setup/engine", env=without(tmp_path, also={"id": ordinary}))
    assert done.returncode == 3
    assert "install Docker Engine" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_without_apt_the_engine_script_touches_nothing(tmp_path: Path) -> None:
    env = without(tmp_path, "apt-get", also={"id": "#!/bin/sh\necho 0\n"})
    done = run(ROOT / "share/setup/engine", env=env)
    assert done.returncode == 3
    assert "install Docker Engine" in done.stderr


def test_a_build_without_an_engine_names_the_remedy(tmp_path: Path) -> None:
    done = run(ROOT / "share/images/build", "cpu", env=without(tmp_path))
    assert done.returncode == 1
    assert "share/setup/engine" in done.stderr


def test_the_credentials_are_the_owners_alone_and_are_kept(tmp_path: Path) -> None:
    password = demo_password(tmp_path, "http://127.0.0.1:8000")
    file = tmp_path / "credentials.json"
    known = json.loads(file.read_text())
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert set(known) == {"url", "admin", "password"}
    assert known["password"] == password
    assert len(password) >= 12
    assert demo_password(tmp_path, "http://127.0.0.1:8000") == password


def test_stopping_what_does_not_run_is_no_error(tmp_path: Path, free_lab: dict[str, str]) -> None:
    stopped = run(sys.executable, ROOT / "share/setup/lab", "stop", env=free_lab)
    assert stopped.returncode == 0
    assert "did not run" in stopped.stdout


@pytest.fixture
def bystander() -> Iterator[Callable[[str], subprocess.Popen[bytes]]]:
    """Start a process that goes by a name and does nothing."""
    started: list[subprocess.Popen[bytes]] = []

    def start(name: str) -> subprocess.Popen[bytes]:
        idle = (sys.executable, "-c", "import time; time.sleep(60)")
        started.append(subprocess.Popen([*idle, name]))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize("name", ["somebody-elses", "/lab/bin/configurable-http-proxy"])
def test_stopping_ends_the_proxy_and_nobody_else_who_has_its_number_now(
    name: str, free_lab: dict[str, str], bystander: Callable[[str], subprocess.Popen[bytes]]
) -> None:
    process = bystander(name)
    file = Path(free_lab["LAB_DIR"], "jupyterhub-proxy.pid")
    file.parent.mkdir()
    file.write_text(f"{process.pid}\n/lab/bin/configurable-http-proxy\n")
    assert run(sys.executable, ROOT / "share/setup/lab", "stop", env=free_lab).returncode == 0
    assert not file.exists()
    if "proxy" in name:
        assert process.wait(10) == -signal.SIGTERM
    else:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)


LOOKS_AT_THE_IMAGE = """
import importlib.machinery, importlib.util, sys
sys.dont_write_bytecode = True
loader = importlib.machinery.SourceFileLoader("lab", sys.argv[1])
lab = importlib.util.module_from_spec(importlib.util.spec_from_loader("lab", loader))
loader.exec_module(lab)
try:
    print(lab.image(*lab.choose_image()))
except lab.Trouble as trouble:
    print("trouble:", trouble)
"""


@pytest.mark.parametrize(
    ("name", "docker", "says"),
    [
        ("pytorch-spawner/lab:cpu-ssh", "echo", "pytorch-spawner/lab:cpu-ssh is yours\n"),
        ("my/lab:1", "exit 1", "my/lab:1 is yours\n"),
        ("pytorch-spawner/lab:x", "exit 1", "trouble: there is no recipe x; there are: cpu cuda "),
    ],
)
def test_an_image_that_has_no_recipe_is_ones_own_or_a_sentence(
    name: str, docker: str, says: str, tmp_path: Path, free_lab: dict[str, str]
) -> None:
    shelf = without(tmp_path, also={"docker": f"#!/bin/sh\n{docker}\n"})["PATH"]
    env = {**free_lab, "PATH": shelf, "LAB_IMAGE": name}
    looked = run(sys.executable, "-c", LOOKS_AT_THE_IMAGE, ROOT / "share/setup/lab", env=env)
    assert looked.stdout.startswith(says), looked.stderr


@pytest.fixture
def free_lab(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "LAB_DIR": str(tmp_path / "lab"), "LAB_PORT": "1"}


@pytest.mark.docker
def test_where_an_engine_answers_setting_up_is_no_work() -> None:
    # Three tries: the claim is about the script, not about what else the machine does meanwhile.
    took = []
    for _ in range(3):
        began = time.monotonic()
        assert run(ROOT / "share/setup/engine").returncode == 0
        took.append(time.monotonic() - began)
    assert min(took) < 0.5


@pytest.fixture
def own_network() -> Iterator[str]:
    name = f"pytorch-spawner-test-{os.getpid()}"
    yield name
    subprocess.run(["docker", "network", "rm", name], capture_output=True, check=False)


@pytest.mark.docker
def test_the_network_is_made_once_and_keeps_containers_apart(own_network: str) -> None:
    env = {**os.environ, "LAB_NETWORK": own_network}
    first = run(ROOT / "share/setup/network", env=env)
    again = run(ROOT / "share/setup/network", env=env)
    assert re.fullmatch(r"\d+(\.\d+){3}\n", first.stdout), first.stderr
    assert again.stdout == first.stdout
    made = json.loads(run("docker", "network", "inspect", own_network).stdout)[0]
    assert made["Options"]["com.docker.network.bridge.enable_icc"] == "false"
