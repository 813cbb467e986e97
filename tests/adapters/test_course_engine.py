from __future__ import annotations

import json
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from pytorch_spawner.adapters import course_engine
from pytorch_spawner.errors import EngineRefused

pytestmark = pytest.mark.docker
HUB = f"test-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def client():
    return docker.APIClient()


@pytest.fixture
def volume(client) -> Iterator[str]:
    name = f"{HUB}-course-{uuid.uuid4().hex[:6]}"
    yield name
    client.remove_volume(name)


def seen(volume: str, *command: str) -> str:
    """What a container of somebody sees in it, at the place where it is mounted."""
    words = ["docker", "run", "--rm", "--user", "12345:12345", "--network", "none"]
    mount = ["-v", f"{volume}:/course:ro,nocopy", "pytorch-spawner/lab:cpu"]
    done = subprocess.run([*words, *mount, *command], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def notice(serial: int) -> bytes:
    return json.dumps({"serial": serial}).encode()


def test_a_bundle_is_read_by_anybody_and_replaced_whole(client, volume: str, tmp_path: Path):
    bundle = tmp_path / "made.bundle"
    for serial, content in enumerate((b"first" * 1000, b"second", b"third" * 5)):
        bundle.write_bytes(content)
        course_engine.fill(client, volume, HUB, bundle, notice(serial))
        assert seen(volume, "cat", "/course/course.bundle").encode() == content
        assert json.loads(seen(volume, "cat", "/course/published.json")) == {"serial": serial}
    # However often it is published, two files are all that is kept.
    names = seen(volume, "ls", "/course").split()
    assert names == ["course-a.bundle", "course-b.bundle", "course.bundle", "published.json"]
    assert volume in course_engine.course_volumes(client, HUB)
    back = tmp_path / "back.bundle"
    course_engine.read_bundle(client, volume, HUB, back)
    assert back.read_bytes() == b"third" * 5
    assert json.loads(course_engine.read_notice(client, volume, HUB)) == {"serial": 2}


def test_a_volume_that_is_not_a_courses_is_never_written_into(client):
    home = f"{HUB}-course-home"
    client.create_volume(name=home, labels={"org.pytorch-spawner.owner": "20001"})
    try:
        with pytest.raises(EngineRefused, match="somebody else's"):
            course_engine.fill(client, home, HUB, None, notice(1))
    finally:
        client.remove_volume(home)


def test_a_notice_alone_leaves_the_bundle_and_has_a_new_time(client, volume: str, tmp_path: Path):
    bundle = tmp_path / "made.bundle"
    bundle.write_bytes(b"first")
    course_engine.fill(client, volume, HUB, bundle, notice(1))
    before = seen(volume, "stat", "-c", "%.Y", "/course/published.json")
    course_engine.fill(client, volume, HUB, None, notice(2))
    assert seen(volume, "cat", "/course/course.bundle") == "first"
    assert seen(volume, "stat", "-c", "%.Y", "/course/published.json") != before


def test_nothing_is_left_running_or_waiting(client, volume: str, tmp_path: Path):
    course_engine.fill(client, volume, HUB, None, notice(1))
    label = f"org.pytorch-spawner.hub={HUB}-helper"
    assert client.containers(all=True, filters={"label": label}) == []
    back = tmp_path / "back.bundle"
    course_engine.read_bundle(client, volume, HUB, back)
    assert not back.exists()
    assert client.containers(all=True, filters={"label": label}) == []


def test_another_hubs_volumes_are_not_seen(client, volume: str):
    course_engine.fill(client, volume, HUB, None, notice(1))
    assert course_engine.course_volumes(client, HUB.rpartition("-")[0]) == ()
    assert course_engine.course_volumes(client, f"{HUB}-course") == ()
