"""The agent of a running container, asked for one answer (``docker exec``). Blocking.

It translates and decides nothing: what comes back is a container's word, to be parsed as hostile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

from docker.errors import APIError, DockerException, NotFound

from pytorch_spawner.adapters.engine import translated
from pytorch_spawner.core.plan import AGENT_PATH, LABEL
from pytorch_spawner.errors import LabError

# -I: nothing that a student puts into PYTHON* variables or their home counts; -S: nor what the
# image has installed, which the agent does not use and which takes half of Python's start.
_COMMAND: Final = ("python3", "-I", "-S", AGENT_PATH)
_MAX_BYTES: Final = 512 * 1024
_MAX_CHUNKS: Final = 10_000
_USAGE: Final = 2
_NO_PYTHON: Final = (126, 127)


class NotRunning(LabError):
    """There is no running container of that server."""

    code = "not-running"


class NoAnswer(LabError):
    """The container runs, and its agent gave no answer."""

    code = "no-answer"


def ask_agent(
    client: Any, hub: str, username: str, servername: str, arguments: Sequence[str]
) -> str:
    """Run the agent in a server's container, as the container's user, and return what it prints.

    Args:
        client: A docker-py APIClient.
        hub: Whose containers.
        username: Whose server.
        servername: Its name; "" for the default one.
        arguments: The agent's.

    Raises:
        NotRunning: No such container runs.
        NoAnswer: It printed nothing, too much, or could not be started.
        EngineUnavailable: The engine does not answer.
    """
    labels = [f"{LABEL}hub={hub}", f"{LABEL}server={username}/{servername}"]
    with translated():
        found = client.containers(filters={"label": labels, "status": ["running"]})
        if not found:
            raise NotRunning("This server does not run (any more).")
        try:
            job = client.exec_create(
                found[0]["Id"], [*_COMMAND, *arguments], stdout=True, stderr=False
            )["Id"]
            said = bytearray()
            with _closing(client.exec_start(job, stream=True)) as stream:
                for count, chunk in enumerate(stream):
                    said += chunk
                    if len(said) > _MAX_BYTES or count > _MAX_CHUNKS:
                        raise NoAnswer("The server says more about its processes than can be true.")
            status = client.exec_inspect(job).get("ExitCode")
        except NotFound as error:
            raise NotRunning("This server does not run (any more).") from error
        except APIError as error:
            raise NoAnswer(
                "The server's container cannot be asked just now. Try again; if it happens again, "
                "stop and start the server.",
                detail=str(error.explanation or error),
            ) from error
    if status == 0:
        return bytes(said).decode("utf-8", "replace")
    raise NoAnswer(_why(status), detail=f"exit status {status}")


@contextmanager
def _closing(stream: Any) -> Iterator[Any]:
    """Hang up however it ends: a program that goes on talking ends then, and the socket is free."""
    try:
        yield stream
    finally:
        # Gone already, or over SSH, where docker-py cannot hang up (7.1, types/daemon.py).
        with suppress(OSError, DockerException, AttributeError):
            stream.close()


def _why(status: int | None) -> str:
    if status == _USAGE:
        return (
            "This server was started before the lab could say what its notebooks hold. Stop and "
            "start it to see that."
        )
    if status in _NO_PYTHON:
        return (
            "No process can be started in this server: its image has no python3, or its limit of "
            "processes is reached. End some in a terminal, or stop and start the server."
        )
    return "The server did not answer in time; it may be short of memory or very busy. Try again."
