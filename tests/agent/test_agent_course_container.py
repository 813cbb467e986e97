"""A course in the lab image: somebody who is not root, a read-only bundle, a home of any kind."""

from __future__ import annotations

import json
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from agent_service import Service
from course_lab import ONE, TWO, Publisher, lab, notebook

IMAGE = "pytorch-spawner/lab:cpu"
USER = "12345:12345"
COURSE = "/opt/pytorch-spawner/course"

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]


def docker(*arguments: str, check: bool = True) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0 or not check, done.stderr
    return done.stdout.strip()


@pytest.fixture
def service() -> Iterator[Service]:
    running = Service("0.0.0.0")
    yield running
    running.close()


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    made = Publisher(tmp_path / "lab")
    made.publish(ONE)
    for folder in (made.bundle.parent, *made.bundle.parent.parents):
        if folder.is_relative_to(tmp_path):
            folder.chmod(0o755)
    return made


@pytest.fixture
def start(pyz: Path, service: Service, publisher: Publisher) -> Iterator[Callable[..., str]]:
    """Starts a container with the course; returns its name."""
    try:
        docker("image", "inspect", IMAGE)
    except (OSError, AssertionError):
        pytest.skip(f"no Docker Engine answers, or the image {IMAGE} is not built")
    started: list[str] = []

    def run(size: str = "64m", **more: Any) -> str:
        url = f"http://host.docker.internal:{service.port}"
        course = {"name": "cnn", "title": "CNNs", "bundle": f"{COURSE}/course.bundle",
                  "notice": f"{COURSE}/published.json", "branch": "published", "folder": "cnn",
                  "orders_url": "", "smoke": None, **more}  # fmt: skip
        config = {"start": "s1", "gpus": [], "share": "none", "course": course,
                  "warmup": {"enabled": False}, "checks": {"deadline_s": 1}}  # fmt: skip
        environment = {
            "HOME": "/home/ana", "JUPYTERHUB_API_TOKEN": "secret",
            "JUPYTERHUB_SERVICE_URL": f"http://0.0.0.0:{service.port}/",
            "PYTORCH_SPAWNER_AGENT": json.dumps(config),
            "PYTORCH_SPAWNER_EVENTS_URL": f"{url}/events",
        }  # fmt: skip
        name = f"course-test-{uuid.uuid4().hex[:10]}"
        started.append(name)
        docker(
            "create", "--name", name, "--user", USER, "--cap-drop", "ALL", "--pids-limit", "256",
            "--security-opt", "no-new-privileges",
            "--add-host", "host.docker.internal:host-gateway",
            "--mount", f"type=bind,source={publisher.bundle.parent},target={COURSE},readonly",
            "--tmpfs", f"/home/ana:exec,uid=12345,gid=12345,mode=700,size={size}",
            *[f"--env={key}={value}" for key, value in environment.items()],
            IMAGE, "python3", "/opt/agent.pyz", "--", "sleep", "500",
        )  # fmt: skip
        docker("cp", str(pyz), f"{name}:/opt/agent.pyz")
        docker("start", name)
        return name

    yield run
    for name in started:
        docker("rm", "-f", "-v", name)


def said(service: Service, phase: str, timeout_s: float = 60) -> dict[str, Any]:
    """Data of the latest event of a phase, waited for."""

    def found(running: Service) -> list[dict[str, Any]]:
        events = [event["data"] for event in running.events if event["kind"] == "course"]
        return [data for data in events if data["phase"] == phase]

    assert service.wait_for(lambda running: bool(found(running)), timeout_s), service.events
    return found(service)[-1]


def in_home(name: str, program: str) -> str:
    return docker("exec", name, "sh", "-c", f"cd /home/ana && {program}")


def test_somebody_without_a_name_gets_the_course_and_keeps_an_edit(
    start: Callable[..., str], service: Service, publisher: Publisher
) -> None:
    name = start()
    done = said(service, "done")
    assert (done["level"], done["files"]) == ("ok", len(ONE)), done
    assert done["seconds"] < 5
    assert in_home(name, "stat -c %u:%g cnn/lab.ipynb") == USER
    docker("exec", "-i", name, "sh", "-c", "echo mine > /home/ana/cnn/lab.ipynb")
    publisher.publish(TWO)
    wanted = publisher.served[-1]
    assert service.wait_for(
        lambda s: any(e["data"].get("served") == wanted for e in s.events), 60
    ), service.events[-2:]
    done = said(service, "done")
    beside = done["conflicts"]["lab.ipynb"]
    assert in_home(name, "cat cnn/lab.ipynb") == "mine"
    assert in_home(name, f"cat cnn/{beside}") == TWO["lab.ipynb"].decode().strip()
    assert in_home(name, "cat cnn/run.sh") == TWO["run.sh"].decode().strip()
    # The agent of a server with a course stays, small, and leaves no zombie.
    lines = in_home(name, "grep -hE '^(Name|State|VmRSS)' /proc/[0-9]*/status")
    assert "Z (zombie)" not in lines
    program = (
        "for p in /proc/[0-9]*; do grep -q course-idle $p/cmdline && grep VmRSS $p/status; done"
    )
    rss = [int(word) for word in in_home(name, f"{program}; true").split() if word.isdigit()]
    assert rss
    assert max(rss) < 25 * 1024, rss


def test_a_home_that_is_full_gets_a_sentence_and_loses_nothing(
    start: Callable[..., str], service: Service, publisher: Publisher
) -> None:
    name = start(size="3m")
    said(service, "done")
    docker("exec", "-i", name, "sh", "-c", "echo mine > /home/ana/cnn/lab.ipynb")
    in_home(name, "dd if=/dev/zero of=full bs=1k 2>/dev/null; true")
    publisher.publish({**TWO, "large.bin": bytes(range(256)) * 4096})
    failed = said(service, "failed")
    assert failed["code"] == "disk-full", failed
    assert "no room" in failed["message"]
    assert in_home(name, "cat cnn/lab.ipynb") == "mine"
    for path in ("same.ipynb", "data/train.csv", "text.txt"):
        now = docker("exec", name, "cat", f"/home/ana/cnn/{path}") + "\n"
        assert now.encode() in (ONE[path], TWO.get(path)), path


def test_a_directory_that_must_not_be_written_gets_a_sentence(
    start: Callable[..., str], service: Service, publisher: Publisher
) -> None:
    name = start()
    said(service, "done")
    in_home(name, "chmod -R a-w cnn/data && echo mine > cnn/lab.ipynb")
    publisher.publish(TWO)
    failed = said(service, "failed")
    assert failed["code"] == "read-only", failed
    assert "data/train.csv" in failed["message"]
    assert "chmod" in failed["remedy"]
    assert in_home(name, "cat cnn/lab.ipynb") == "mine"
    assert in_home(name, "cat cnn/data/train.csv") == ONE["data/train.csv"].decode().strip()


def test_the_smoke_test_runs_in_the_image_and_a_bomb_does_not_outlive_it(
    start: Callable[..., str], service: Service, publisher: Publisher
) -> None:
    bomb = b"import os\nwhile True:\n    try: os.fork()\n    except OSError: pass\n"
    publisher.publish(
        {"ok.ipynb": notebook("import torch", "print(torch.__version__)"), "bad.ipynb": lab("1/0"),
         "bomb.py": bomb}
    )  # fmt: skip
    names = ["ok.ipynb", "bad.ipynb", "bomb.py"]
    name = start(smoke={"notebooks": names, "deadline_s": 30})
    done = said(service, "smoke-done", 150)
    ran = [e["data"] for e in service.events if e["data"].get("phase") == "smoke"]
    assert [(one["notebook"], one["level"]) for one in ran] == [
        ("ok.ipynb", "ok"), ("bad.ipynb", "fail"), ("bomb.py", "fail"),
    ]  # fmt: skip
    assert "ZeroDivisionError" in ran[1]["message"]
    assert "were over" in ran[2]["message"]
    assert done["message"] == "2 of 3 did not run to the end."
    assert int(in_home(name, "ls -d /proc/[0-9]* | wc -l")) < 20
