"""The Docker Engine: what to ask it, and what its answers mean in our words.

Blocking; callers use a thread. Foreign exceptions are translated at this edge.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import docker
import requests
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.utils import kwargs_from_env

from pytorch_spawner.core.placement import Holding
from pytorch_spawner.core.plan import LABEL, Injection, read_holdings
from pytorch_spawner.errors import (
    EngineRefused,
    EngineUnavailable,
    HomeUnusable,
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


@dataclass(frozen=True, slots=True)
class Place:
    """A home or cache to prepare: a named volume, or a directory on the engine's host.

    Attributes:
        volume: Name of the volume; "" for a bind.
        root: The bind root ("/srv/homes"); "" for a volume.
        name: The directory's name under the root; "" for a volume.
    """

    volume: str = ""
    root: str = ""
    name: str = ""

    @property
    def source(self) -> str:
        """What a container mounts."""
        return self.volume or f"{self.root.rstrip('/')}/{self.name}"


def connect(client_kwargs: Mapping[str, Any] | None = None) -> Any:
    """Return a docker-py APIClient for the engine that DOCKER_HOST names.

    Raises:
        EngineUnavailable: Nothing answers there.
    """
    kwargs = {
        "version": "auto",
        "timeout": _CALL_TIMEOUT_S,
        "max_pool_size": 64,
        **kwargs_from_env(),
        **(client_kwargs or {}),
    }
    with translated():
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


def put_files(client: Any, container: str, files: Mapping[str, tuple[bytes, int]]) -> None:
    """Copy files into a container, owned by root: path -> (content, mode). Parents are made."""
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


# Runs in the helper container, as root with CHOWN, FOWNER and DAC_OVERRIDE alone. It makes what is
# missing and never touches what it did not make: it follows no link (dir_fd and O_NOFOLLOW) and
# changes no owner below the directory itself.
_PREPARE = r"""
import os, stat, sys
uid, gid = int(sys.argv[1]), int(sys.argv[2])
for place in sys.argv[3:]:
    kind, path, name = place.split(":", 2)
    if kind == "bind":
        root = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.mkdir(name, 0o700, dir_fd=root)
            made = True
        except FileExistsError:
            made = False
        try:
            home = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=root)
        except OSError:
            sys.exit("the home %r is a link or no directory" % name)
    else:
        home = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        seen = os.fstat(home)
        made = seen.st_uid == 0 and not os.listdir(home)
    if made:
        os.fchown(home, uid, gid)
        os.fchmod(home, 0o700)
    seen = os.fstat(home)
    if seen.st_uid != uid:
        sys.exit("%s belongs to uid %d, not to uid %d" % (name or path, seen.st_uid, uid))
    if stat.S_IMODE(seen.st_mode) & 0o077 and kind == "volume":
        os.fchmod(home, 0o700)
"""


def prepare_places(
    client: Any, image: str, places: Sequence[Place], uid: int, gid: int, labels: Mapping[str, str]
) -> None:
    """Make homes and caches with the right owner and mode 0700, in a short-lived helper container.

    Args:
        client: docker-py's APIClient.
        image: Any image with python3; a trusted one, for this container runs as root.
        places: What to prepare; at least one.
        uid: Owner, >= 1000.
        gid: Group.
        labels: For the helper container, so that a crash leaves nothing unnamed.

    Raises:
        HomeUnusable: A place exists and belongs to somebody else, or is a link.
    """
    mounts, arguments = [], []
    for number, place in enumerate(places):
        target = f"/prepare/{number}"
        kind = "volume" if place.volume else "bind"
        mounts.append(
            {
                "Type": kind,
                "Source": place.volume or place.root,
                "Target": target,
                "ReadOnly": False,
                **({"BindOptions": {"CreateMountpoint": True}} if kind == "bind" else {}),
                **({"VolumeOptions": {"NoCopy": True}} if kind == "volume" else {}),
            }
        )
        arguments.append(f"{kind}:{target}:{place.name}")
    with translated():
        host_config = client.create_host_config(
            mounts=mounts,
            cap_drop=["ALL"],
            cap_add=["CHOWN", "FOWNER", "DAC_OVERRIDE"],
            security_opt=["no-new-privileges:true"],
            network_mode="none",
            pids_limit=16,
            mem_limit="256m",
        )
        helper = client.create_container(
            image=image,
            entrypoint=["python3", "-I", "-S", "-c", _PREPARE],
            command=[str(uid), str(gid), *arguments],
            user="0:0",
            labels=dict(labels),
            environment={"NVIDIA_VISIBLE_DEVICES": "void"},
            host_config=host_config,
        )["Id"]
    try:
        with translated():
            client.start(helper)
            code = int(client.wait(helper, timeout=_CALL_TIMEOUT_S)["StatusCode"])
            said = client.logs(helper, tail=5).decode("utf-8", "replace").strip()
    finally:
        remove(client, helper)
    if code != 0:
        raise HomeUnusable(
            "Your home directory cannot be used: it exists, but does not belong to you. Ask an "
            "admin to correct its owner.",
            detail=said,
        )


def volume_birth(client: Any, name: str, labels: Mapping[str, str]) -> str:
    """Return when a volume was created, creating it where it is missing."""
    with translated():
        volume = client.create_volume(name=name, labels=dict(labels))
    return str(volume.get("CreatedAt", ""))


def volume_owners(client: Any, hub: str) -> dict[str, int]:
    """The uid that each volume of a hub was made for, by the volume's name."""
    with translated():
        listed = client.volumes(filters={"label": f"{LABEL}owner"})
    owners = {}
    for volume in listed.get("Volumes") or ():
        name, owner = str(volume.get("Name", "")), (volume.get("Labels") or {}).get(LABEL + "owner")
        if name.startswith(f"{hub}-") and str(owner).isdigit():
            owners[name] = int(str(owner))
    return owners
