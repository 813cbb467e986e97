"""The Docker Engine: what to ask it, and what its answers mean in our words.

Blocking; callers use a thread. Foreign exceptions are translated at this edge.
"""

from __future__ import annotations

import io
import math
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import docker
import requests
from docker.errors import APIError, DockerException, ImageNotFound, NotFound, TLSParameterError
from docker.utils import kwargs_from_env

from pytorch_spawner.core.injection import Injection
from pytorch_spawner.core.placement import Holding
from pytorch_spawner.core.plan import LABEL, read_holdings
from pytorch_spawner.errors import (
    EngineRefused,
    EngineUnavailable,
    ImageMissing,
    LabError,
    NoGpuInjection,
)

_LOG_LINES = 40
_LOG_LINE_CHARS = 400
_CALL_TIMEOUT_S = 60


@dataclass(frozen=True, slots=True)
class LabContainer:
    """A container that carries our labels."""

    id: str
    name: str
    is_running: bool
    labels: Mapping[str, str]

    def label(self, key: str) -> str:
        """The value of ``org.pytorch-spawner.<key>``, or ""."""
        return self.labels.get(LABEL + key, "")

    @property
    def server(self) -> tuple[str, str]:
        """(username, servername); a username holds no "/" (JupyterHub refuses it)."""
        username, _, servername = self.label("server").rpartition("/")
        return username, servername

    @property
    def gpus(self) -> tuple[str, ...]:
        """UUIDs of the GPUs it was given."""
        return tuple(gpu for gpu in self.label("gpus").split(",") if gpu)

    @property
    def holdings(self) -> tuple[Holding, ...]:
        """What it was given, slots included; a label that is no slot means a whole GPU."""
        return read_holdings(self.label("gpus"), self.label("slot"))


@dataclass(frozen=True, slots=True)
class Ending:
    """How a container ended: exit code, whether for its memory limit, its last lines."""

    exit_code: int
    was_out_of_memory: bool
    log_tail: tuple[str, ...]


def connect(client_kwargs: Mapping[str, Any] | None = None) -> Any:
    """Return a docker-py APIClient for the engine that DOCKER_HOST names.

    Raises:
        EngineUnavailable: Nothing answers there, or its certificates are not where they should be.
    """
    with translated():
        try:
            from_env = kwargs_from_env()
        except TLSParameterError as error:
            raise EngineUnavailable(
                "The hub is told to reach the Docker Engine by TLS, and has no certificates for "
                "it, so no server can start. Ask an admin to put ca.pem, cert.pem and key.pem into "
                "the folder that DOCKER_CERT_PATH names, or to unset DOCKER_CERT_PATH and "
                "DOCKER_TLS_VERIFY.",
                detail=str(error),
            ) from error
        kwargs = {
            "version": "auto",
            "timeout": _CALL_TIMEOUT_S,
            "max_pool_size": 64,
            **from_env,
            **(client_kwargs or {}),
        }
        return docker.APIClient(**kwargs)


@contextmanager
def translated() -> Iterator[None]:
    """Turn the engine's errors into ours; ours pass through."""
    try:
        yield
    except LabError:
        raise
    except APIError as error:  # a RequestException too, but it is the engine's own answer
        raise _refused(error) from error
    except (requests.exceptions.RequestException, OSError) as error:
        raise _unavailable(error) from error
    except DockerException as error:
        raise _unavailable(error) from error


def _unavailable(error: Exception) -> EngineUnavailable:
    return EngineUnavailable(
        "The Docker Engine does not answer, so no server can start just now. Try again in a "
        "minute; if it stays so, tell an admin.",
        detail=str(error),
    )


def _refused(error: APIError) -> LabError:
    said = str(error.explanation or error)
    if isinstance(error, ImageNotFound) or "No such image" in said:
        return ImageMissing(
            "The image is not on this machine and could not be pulled. Choose another image, or "
            "ask an admin to build or pull it.",
            detail=said,
        )
    if "executable file not found" in said or "no such file or directory: unknown" in said:
        return EngineRefused(
            "The image has no Python, which the server needs. Choose another image, or ask an "
            "admin to install python3 in this one.",
            detail=said,
        )
    if "CDI device injection failed" in said or "could not select device driver" in said:
        return NoGpuInjection(
            "The engine could not put the GPU into the container. Ask an admin to check the CDI "
            "specification (nvidia-ctk cdi generate) or the NVIDIA container toolkit.",
            detail=said,
        )
    return EngineRefused(
        "The Docker Engine refused to start the server. Tell an admin; the reason is in the hub's "
        "log.",
        detail=said,
    )


def find_injection(client: Any) -> Injection:
    """Ask the engine how it puts GPUs into containers.

    CDI first (on by default since Engine 28.2, listed in /info since 28), the toolkit's runtime
    second. Source: Docker Engine API /info: DiscoveredDevices, CDISpecDirs, Runtimes.
    """
    with translated():
        info = client.info()
    discovered = frozenset(
        str(device.get("ID", ""))
        for device in info.get("DiscoveredDevices") or ()
        if device.get("Source") == "cdi"
    )
    has_runtime = "nvidia" in (info.get("Runtimes") or {})
    if discovered:
        return Injection("cdi", discovered, has_runtime=has_runtime)
    if has_runtime:
        return Injection("nvidia", has_runtime=True)
    if info.get("CDISpecDirs") and "DiscoveredDevices" not in info and _major(info) < 28:
        # CDI is switched on, but this engine does not list its devices.
        return Injection("cdi")
    return Injection(
        "none",
        reason="This machine's Docker Engine knows no GPU: it lists no CDI device and has no "
        "nvidia runtime. Ask an admin to run `pytorch-spawner doctor`.",
    )


def _major(info: Mapping[str, Any]) -> int:
    version = str(info.get("ServerVersion", "0")).split(".")[0]
    return int(version) if version.isdigit() else 0


def has_image(client: Any, reference: str) -> bool:
    """Whether the engine has an image of this id or name."""
    with translated():
        try:
            client.inspect_image(reference)
        except NotFound:
            return False
    return True


def list_containers(client: Any, hub: str) -> tuple[LabContainer, ...]:
    """Return every container of one hub, running or not."""
    with translated():
        rows = client.containers(all=True, filters={"label": f"{LABEL}hub={hub}"})
    return tuple(
        LabContainer(
            id=row["Id"],
            name=(row.get("Names") or [""])[0].lstrip("/"),
            # "created" holds no device yet; "paused" and "restarting" do, or will.
            is_running=row.get("State") in ("running", "paused", "restarting"),
            labels=row.get("Labels") or {},
        )
        for row in rows
    )


def left_helpers(
    client: Any, hub: str, *, before: float = math.inf, volume: str = ""
) -> tuple[str, ...]:
    """Helper containers that do not run, so that nobody waits for them: their hub was cut off.

    Args:
        client: docker-py's.
        hub: Id of the hub.
        before: Only those that were created before this Unix time.
        volume: Only those that have this volume mounted; "" for all.

    Returns:
        Their ids.
    """
    filters = {
        "label": [f"{LABEL}hub={hub}-helper"],
        "status": ["created", "exited", "dead"],
        **({"volume": [volume]} if volume else {}),
    }
    with translated():
        rows = client.containers(all=True, filters=filters)
    return tuple(
        row["Id"]
        for row in rows
        # A server is another hub's, whose id ends in "-helper".
        if row["Created"] < before and f"{LABEL}server" not in (row.get("Labels") or {})
    )


def remove(client: Any, container: str, *, stop_grace_s: int | None = None) -> None:
    """End and remove a container and wait until it is gone; one that is gone already is fine."""
    with translated():
        try:
            if stop_grace_s is not None:
                client.stop(container, timeout=stop_grace_s)
            client.remove_container(container, v=True, force=True)
        except NotFound:
            return
        except APIError as error:
            if error.status_code != 409:  # 409: its removal is under way
                raise
        try:
            client.wait(container, condition="removed", timeout=_CALL_TIMEOUT_S)
        except NotFound:
            return


def ending(client: Any, container: str) -> Ending | None:
    """Return how a container ended; None while it runs or when it is gone."""
    with translated():
        try:
            state = client.inspect_container(container)["State"]
            if state.get("Running") or state.get("Status") == "created":
                return None
            raw = client.logs(container, tail=_LOG_LINES, stdout=True, stderr=True)
        except NotFound:
            return Ending(0, was_out_of_memory=False, log_tail=("The container was removed.",))
    return Ending(int(state.get("ExitCode", 0)), bool(state.get("OOMKilled")), tail_of(raw))


def tail_of(raw: bytes | str) -> tuple[str, ...]:
    """The last lines of a container's log, each cut: together they fit into one event."""
    text = raw.decode("utf-8", "replace") if isinstance(raw, bytes) else str(raw)
    return tuple(line[:_LOG_LINE_CHARS] for line in text.splitlines()[-_LOG_LINES:])


def put_files(
    client: Any,
    container: str,
    files: Mapping[str, tuple[bytes, int]],
    links: Mapping[str, str] | None = None,
) -> None:
    """Copy files into a container, owned by root; parents are made.

    Args:
        client: docker-py's.
        container: Its id.
        files: Path -> (content, mode).
        links: Path -> where it leads to.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        parents: set[str] = set()
        for path, (content, mode) in files.items():
            name = path.lstrip("/")
            parent = name.rpartition("/")[0]
            if parent.startswith("opt/pytorch-spawner") and parent not in parents:
                parents.add(parent)
                folder = tarfile.TarInfo(parent)
                folder.type, folder.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(folder)
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), mode
            tar.addfile(entry, io.BytesIO(content))
        for path, place in (links or {}).items():
            link = tarfile.TarInfo(path.lstrip("/"))
            link.type, link.linkname = tarfile.SYMTYPE, place
            tar.addfile(link)
    with translated():
        client.put_archive(container, "/", buffer.getvalue())


def read_file(client: Any, container: str, path: str, limit: int = 2**20) -> str:
    """Return a text file of a container; "" when it has none, or it is larger than ``limit``."""
    with translated():
        try:
            chunks, stat = client.get_archive(container, path)
            if int(stat.get("size", 0)) > limit:
                return ""
            archive = io.BytesIO(b"".join(chunks))
        except NotFound:
            return ""
    with tarfile.open(fileobj=archive) as tar:
        for member in tar:
            content = tar.extractfile(member) if member.isfile() else None
            if content is not None:
                return content.read(limit).decode("utf-8", "replace")
    return ""
