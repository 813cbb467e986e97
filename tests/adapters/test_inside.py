"""The agent of a running container, asked through a real engine, and what goes wrong on the way."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import docker
import pytest

from pytorch_spawner.adapters.inside import NoAnswer, NotRunning, ask_agent
from pytorch_spawner.core.plan import AGENT_PATH, LABEL

pytestmark = pytest.mark.docker
IMAGE = "pytorch-spawner/lab:cpu"
# Stands where the agent does: prints what it was told, ends as it was told.
PROGRAM = f"""
mkdir -p {AGENT_PATH.rpartition("/")[0]} && cat > {AGENT_PATH} <<'END'
import os, sys
what = sys.argv[1]
if what == "flood":
    print("x" * 2**20)
print(sys.argv[1:], os.getuid(), sys.flags.isolated)
sys.exit(int(what) if what.isdigit() else 0)
END
exec sleep 600
"""


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    try:
        connected = docker.APIClient(version="auto", timeout=60)
        connected.inspect_image(IMAGE)
    except docker.errors.DockerException:
        pytest.skip(f"no Docker Engine answers, or the image {IMAGE} is not built")
    yield connected
    connected.close()


@pytest.fixture(scope="module")
def hub(client: Any) -> Iterator[str]:
    name = f"inside-test-{uuid.uuid4().hex[:10]}"
    made = client.create_container(
        IMAGE,
        ["sh", "-c", PROGRAM],
        user="54321:54321",
        entrypoint=["tini", "-g", "--"],
        name=name,
        labels={f"{LABEL}hub": name, f"{LABEL}server": "ana/thesis"},
        host_config=client.create_host_config(
            tmpfs={AGENT_PATH.rpartition("/")[0]: "uid=54321"}, cap_drop=["ALL"]
        ),
    )["Id"]
    client.start(made)
    yield name
    client.remove_container(made, force=True, v=True)


def wait_for_agent(client: Any, hub: str) -> None:
    for _ in range(50):
        try:
            ask_agent(client, hub, "ana", "thesis", ["hello"])
            return
        except NoAnswer:
            continue
    raise AssertionError("the stand-in of the agent did not come")


def test_it_answers_as_the_containers_user_and_alone(client: Any, hub: str) -> None:
    wait_for_agent(client, hub)
    said = ask_agent(client, hub, "ana", "thesis", ["--kernels", "--stop", "a b; c"])
    assert said == "['--kernels', '--stop', 'a b; c'] 54321 1\n"


@pytest.mark.parametrize(("user", "server"), [("ana", ""), ("an", "a/thesis"), ("bo", "thesis")])
def test_a_server_without_a_container_does_not_run(
    client: Any, hub: str, user: str, server: str
) -> None:
    with pytest.raises(NotRunning):
        ask_agent(client, hub, user, server, ["hello"])


def test_another_hubs_container_is_not_asked(client: Any, hub: str) -> None:
    with pytest.raises(NotRunning):
        ask_agent(client, f"{hub}-2", "ana", "thesis", ["hello"])


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("2", "Stop and start it"),
        ("127", "has no python3"),
        ("142", "did not answer in time"),
        ("flood", "more about its processes than can be true"),
    ],
)
def test_what_is_no_answer_is_said_with_a_remedy(
    client: Any, hub: str, argument: str, words: str
) -> None:
    wait_for_agent(client, hub)
    with pytest.raises(NoAnswer, match=words):
        ask_agent(client, hub, "ana", "thesis", [argument])


def test_a_container_that_is_paused_or_stopped_gives_no_answer(client: Any, hub: str) -> None:
    wait_for_agent(client, hub)
    client.pause(hub)
    try:
        with pytest.raises((NotRunning, NoAnswer)):
            ask_agent(client, hub, "ana", "thesis", ["hello"])
    finally:
        client.unpause(hub)
    assert "hello" in ask_agent(client, hub, "ana", "thesis", ["hello"])
