"""What building a warm cache asks of the Docker Engine beside what every start does. Blocking."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from docker.errors import APIError, NotFound

from pytorch_spawner.adapters.engine import left_helpers, put_files, remove, translated
from pytorch_spawner.core.plan import LABEL
from pytorch_spawner.errors import EngineRefused

_MAX_LINE_BYTES: Final = 64 * 1024


def make_offline_network(client: Any, name: str, hub: str) -> None:
    """Make a network without a way out, on which containers do not reach each other either."""
    with translated():
        for one in client.networks(names=[name]):
            if one["Name"] == name and not one.get("Internal"):
                raise EngineRefused(
                    f"The network {name} has a way out; warm caches are built without one. Remove "
                    "it, or name another with warmer_network."
                )
            if one["Name"] == name:
                return
        client.create_network(
            name,
            driver="bridge",
            internal=True,
            check_duplicate=True,
            options={"com.docker.network.bridge.enable_icc": "false"},
            labels={f"{LABEL}hub": f"{hub}-helper"},
        )


def has_volume(client: Any, name: str) -> bool:
    """Whether there is a volume of that name."""
    with translated():
        try:
            client.inspect_volume(name)
        except NotFound:
            return False
    return True


def volumes_named(client: Any, prefix: str) -> tuple[str, ...]:
    """The names of all volumes that begin so."""
    with translated():
        listed = client.volumes().get("Volumes") or ()
    return tuple(one["Name"] for one in listed if one["Name"].startswith(prefix))


def remove_volume(client: Any, name: str) -> bool:
    """Remove a volume; False where a container still uses it. One that is gone is fine."""
    with translated():
        try:
            client.remove_volume(name)
        except NotFound:
            return True
        except APIError as error:
            if error.status_code == 409:
                return False
            raise
    return True


def free_volume(client: Any, name: str, hub: str) -> bool:
    """Remove a volume as ``remove_volume`` does, if need be with the helpers left over on it.

    For a volume that nothing else is at work on: a helper about to begin would be removed, too.
    """
    if remove_volume(client, name):
        return True
    for helper in left_helpers(client, hub, volume=name):
        remove(client, helper)
    return remove_volume(client, name)


def log_lines(client: Any, container: str, limit_bytes: int) -> Iterator[bytes]:
    """A container's lines as it prints them, until it ends or printed ``limit_bytes``."""
    rest, left = b"", limit_bytes
    with translated():
        try:
            chunks = client.logs(container, stdout=True, stderr=True, stream=True, follow=True)
            for chunk in chunks:
                left -= len(chunk)
                *lines, rest = (rest + chunk).split(b"\n")
                yield from lines
                rest = rest[-_MAX_LINE_BYTES:]
                if left < 0:
                    chunks.close()
                    return
        except NotFound:
            return


def run_helper(  # noqa: PLR0913  (a container has these settings)
    client: Any,
    image: str,
    command: Sequence[str],
    files: Mapping[str, tuple[bytes, int]],
    volume: str,
    user: str,
    labels: Mapping[str, str],
    deadline_s: float,
) -> tuple[int, str]:
    """Run a command of ours over one volume, mounted at /work, in a container that can do nothing.

    Args:
        client: docker-py's APIClient.
        image: A trusted one with python3.
        command: What to run.
        files: What is copied in before: path -> (content, mode).
        volume: Name of the volume.
        user: "uid:gid".
        labels: For the container, so that a crash leaves nothing unnamed.
        deadline_s: It is ended after so many seconds.

    Returns:
        Its exit status and the end of what it printed.
    """
    with translated():
        host_config = client.create_host_config(
            mounts=[{"Type": "volume", "Source": volume, "Target": "/work", "ReadOnly": False}],
            cap_drop=["ALL"],
            security_opt=["no-new-privileges:true"],
            network_mode="none",
            pids_limit=16,
            mem_limit="512m",
        )
        helper = client.create_container(
            image=image,
            entrypoint=list(command),
            user=user,
            labels=dict(labels),
            environment={"NVIDIA_VISIBLE_DEVICES": "void"},
            host_config=host_config,
        )["Id"]
    try:
        put_files(client, helper, files)
        with translated():
            client.start(helper)
            code = int(client.wait(helper, timeout=deadline_s)["StatusCode"])
            said = client.logs(helper, tail=20).decode("utf-8", "replace").strip()
    finally:
        remove(client, helper)
    return code, said
