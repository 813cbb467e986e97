"""Hostile names, hostile options, broken images: a sentence each, and nothing lost."""

from __future__ import annotations

import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.lab_driver import Lab, running_lab

pytestmark = [pytest.mark.docker]


@pytest.mark.usefixtures("stopped")
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"gpus": -1}, "gpus"),
        ({"gpus": 99}, "allowed is 0 to 1"),
        ({"gpus": "two"}, '"two"'),
        ({"gpus": [1, 2]}, "one value"),
        ({"gpus": 10**12}, "allowed is 0 to 1"),
        ({"gpus": True}, "gpus"),
        ({"gpus": {"a": 1}}, "gpus"),
        ({"image": "evil:latest"}, "no image"),
        ({"image": ["a"]}, "no image"),
        ({"share": "mig:1g.10gb"}, "MIG"),
        ({"pool": "secret"}, "pool"),
        ({"course": "x"}, "course"),
        ({"mem_limit": "1T"}, "Unknown option"),
        ({"gpus": 1, "share": "none"}, "none"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_options_by_rest_are_refused_with_a_sentence(lab: Lab, options: dict, says: str) -> None:
    lab.add_users("ana")
    answer = lab.spawn("ana", options)
    assert answer.status_code == 400, answer.text
    assert says in answer.json()["message"]
    assert lab.server("ana") is None
    assert lab.container("ana") is None


HOSTILE = ["-rf", "a;b", "<b>", "n" * 255, "straße", "🐍", "a.b", "a-b", "a_b", "{x}", "{}", "a b"]


@pytest.mark.usefixtures("stopped")
def test_hostile_names_get_homes_containers_and_uids_of_their_own(lab: Lab) -> None:
    names, uids, volumes = set(), set(), set()
    for name in HOSTILE:
        # One at a time: a dozen warm-ups at once keep this machine busy for minutes.
        lab.start_server(name, {"gpus": 0})
        container = lab.container(name)
        assert container is not None, name
        names.add(container.name)
        uids.add(lab.exec(name, "id", "-u"))
        volumes |= {
            mount["Name"] for mount in container.attrs["Mounts"] if "-home-" in mount["Name"]
        }
        lab.stop_server(name)
    assert len(names) == len(uids) == len(volumes) == len(HOSTILE)


def test_a_name_with_a_slash_never_becomes_a_user(lab: Lab) -> None:
    answer = lab.api("POST", "users/..%2F..%2Fx")
    assert answer.status_code in (400, 404)


@pytest.fixture(scope="module")
def broken_images() -> None:
    for name, recipe in {
        "nopython": "FROM pytorch-spawner/lab:cpu\nUSER 0\nRUN rm -f /opt/lab/bin/python3 "
        '/opt/lab/bin/python /usr/bin/python3*\nENTRYPOINT []\nCMD ["sleep", "60"]\n',
        "nohub": "FROM pytorch-spawner/lab:cpu\nUSER 0\n"
        "RUN rm -f /opt/lab/bin/jupyterhub-singleuser\n",
        "exits": 'FROM pytorch-spawner/lab:cpu\nCMD ["sh", "-c", "echo I am leaving; exit 3"]\n',
        "sleeps": 'FROM pytorch-spawner/lab:cpu\nCMD ["sleep", "600"]\n',
    }.items():
        subprocess.run(
            [
                "docker",
                "buildx",
                "build",
                "-q",
                "--load",
                "-t",
                f"pytorch-spawner-test/{name}",
                "-",
            ],
            input=recipe.encode(),
            check=True,
            capture_output=True,
        )


@pytest.fixture(scope="module")
def broken_lab(broken_images: None, tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    images = {
        name: f"pytorch-spawner-test/{name}" for name in ("nopython", "nohub", "exits", "sleeps")
    }
    images["missing"] = "pytorch-spawner-test/missing:1"
    traits = {
        "PyTorchSpawner.images": {"good": "pytorch-spawner/lab:cpu", **images},
        "PyTorchSpawner.http_timeout": 6,
        "PyTorchSpawner.helper_image": "pytorch-spawner/lab:cpu",
    }
    with running_lab(tmp_path_factory.mktemp("broken"), traits=traits) as lab:
        lab.start_server("ana", {"image": "good"})  # home and cache are made
        lab.stop_server("ana")
        yield lab


@pytest.mark.parametrize(
    ("image", "says", "log", "within_s"),
    [
        ("nopython", "no Python", "", 2),
        ("nohub", "no jupyterhub-singleuser", "jupyterhub-singleuser", 2),
        ("exits", "exit code 3", "I am leaving", 2),
        ("missing", "not on this machine", "", 2),
        ("sleeps", "did not answer within 6 s", "", 8),
    ],
)
def test_a_broken_image_says_why_at_once_and_gives_the_gpu_back(
    broken_lab: Lab, image: str, says: str, log: str, within_s: float
) -> None:
    began = time.monotonic()
    answer = broken_lab.spawn("ana", {"image": image})
    # The hub answers within its slow_spawn_timeout (10 s), so this is the time to the sentence.
    assert answer.status_code >= 400, answer.text
    took_s = time.monotonic() - began
    assert says in answer.json()["message"]
    failed = next(e for e in broken_lab.events("ana") if e["data"].get("stage") == "failed")
    assert says in failed["data"]["message"]
    assert log in "\n".join(failed["data"]["log_tail"])
    assert took_s <= within_s + 1  # one second for what the machine does besides
    broken_lab.wait_until(lambda: not broken_lab.leases(), 5, "the lease stayed")
    assert broken_lab.container("ana") is None


def test_a_student_with_a_full_home_can_log_in_and_tidy(broken_lab: Lab, tmp_path: Path) -> None:
    """The server starts and notebooks run, though not one more byte fits into the home."""
    uid = broken_lab.ledger().identity("full", None, (20000, 59999)).uid
    options = f"size=4m,mode=0700,uid={uid},gid={uid}"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(tmp_path)], check=False
    )
    if mounted.returncode:
        pytest.skip("mounting needs more rights")
    volume = ["-o", "type=none", "-o", "o=bind", "-o", f"device={tmp_path}"]
    name = f"{broken_lab.hub_id}-home-full"
    try:
        subprocess.run(["docker", "volume", "create", *volume, name], check=True)
        broken_lab.add_users("full")
        broken_lab.start_server("full", {"image": "good", "gpus": 0})
        broken_lab.stop_server("full")
        with suppress(OSError), (tmp_path / "big").open("wb") as big:
            while True:
                big.write(b"x" * 65536)
                big.flush()
        broken_lab.start_server("full", {"image": "good", "gpus": 0})
        broken_lab.exec("full", "sh", "-c", "rm ~/big && echo tidied > ~/note")
        assert (tmp_path / "note").read_text() == "tidied\n"
        broken_lab.stop_server("full")
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=False)


@pytest.mark.usefixtures("stopped")
def test_options_that_were_refused_are_not_remembered(lab: Lab) -> None:
    lab.add_users("ana")
    assert lab.spawn("ana", {"gpus": 99}).status_code == 400
    lab.start_server("ana")
    assert len(lab.leases()) == 1


def test_a_start_that_is_cancelled_leaves_nothing_and_can_be_tried_again(broken_lab: Lab) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(broken_lab.spawn, "ana", {"image": "sleeps"})
        broken_lab.wait_until(lambda: broken_lab.container("ana"), 10, "no container")
        answer = broken_lab.api("DELETE", "users/ana/server")
        assert answer.status_code in (202, 204), answer.text
        pending.result(30)
    broken_lab.wait_until(
        lambda: not broken_lab.leases() and not broken_lab.container("ana"), 15, "leaked"
    )
    broken_lab.wait_until(lambda: broken_lab.server("ana") is None, 15, "still pending")
    broken_lab.start_server("ana", {"image": "good"})
    broken_lab.stop_server("ana")
