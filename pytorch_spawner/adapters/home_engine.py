"""Homes and caches on the engine: their volumes, and the helper that makes them. Blocking."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from docker.errors import APIError

from pytorch_spawner.adapters.engine import remove, translated
from pytorch_spawner.core.plan import LABEL
from pytorch_spawner.errors import HomeUnusable

_PREPARE_S: Final = 60
# Exit code of _PREPARE: the bind root is an empty mount point.
_NO_ROOT: Final = 3
# Source: moby, volume/mounts/validate.go; of a mount of type "bind" without CreateMountpoint.
_GONE: Final = re.compile(r"bind source path does not exist: (.+)")
_IS_IT_MOUNTED: Final = "Ask an admin to see whether its file system is mounted."


@dataclass(frozen=True, slots=True)
class Place:
    """A home or cache to prepare: a named volume, or a directory on the engine's host.

    Attributes:
        volume: Name of the volume; "" for a bind.
        root: The bind root ("/srv/homes"); "" for a volume.
        name: The directory's name under the root; "" for a volume.
        has_neighbours: Homes were made under the root before. When it is empty all the same, it is
            the mount point of a file system that is not mounted, and nothing is made there.
    """

    volume: str = ""
    root: str = ""
    name: str = ""
    has_neighbours: bool = False

    @property
    def source(self) -> str:
        """What a container mounts."""
        return self.volume or f"{self.root.rstrip('/')}/{self.name}"


# Runs in the helper container, as root with CHOWN, FOWNER and DAC_OVERRIDE alone. It makes what is
# missing and never touches what it did not make: it follows no link (dir_fd and O_NOFOLLOW) and
# changes no owner below the directory itself. What it made is known by its owner, its mode and that
# it is empty, also when the helper before was killed and gave it to nobody.
_PREPARE: Final = r"""
import os, stat, sys
uid, gid = int(sys.argv[1]), int(sys.argv[2])
for place in sys.argv[3:]:
    kind, path, name = place.split(":", 2)
    if kind != "volume":
        root = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        if kind == "neighbour" and not os.listdir(root):
            sys.exit(3)
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
        made = False
    seen = os.fstat(home)
    if seen.st_uid == 0 and not os.listdir(home):
        made = made or kind == "volume" or stat.S_IMODE(seen.st_mode) & 0o777 == 0o700
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
        HomeUnusable: A place exists and belongs to somebody else, or is a link; or the bind root
            is not there.
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
                **({"VolumeOptions": {"NoCopy": True}} if kind == "volume" else {}),
            }
        )
        kind = "neighbour" if place.has_neighbours else kind
        arguments.append(f"{kind}:{target}:{place.name}")
    roots = " and ".join(sorted({place.root for place in places if place.root}))
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
        try:
            helper = client.create_container(
                image=image,
                entrypoint=["python3", "-I", "-S", "-c", _PREPARE],
                command=[str(uid), str(gid), *arguments],
                user="0:0",
                labels=dict(labels),
                environment={"NVIDIA_VISIBLE_DEVICES": "void"},
                host_config=host_config,
            )["Id"]
        except APIError as error:
            if missing_source(error):
                raise _root_is_gone(
                    f"home_root {roots} does not exist on the engine's machine: mount or make it"
                ) from error
            raise
    try:
        with translated():
            client.start(helper)
            code = int(client.wait(helper, timeout=_PREPARE_S)["StatusCode"])
            said = client.logs(helper, tail=5).decode("utf-8", "replace").strip()
    finally:
        remove(client, helper)
    if code == _NO_ROOT:
        raise _root_is_gone(
            f"home_root {roots} is empty, though homes were made in it: mount its file system. If "
            "it is right that it is empty, create any file in it"
        )
    if code != 0:
        raise HomeUnusable(
            "Your home directory cannot be used: it exists, but does not belong to you. Ask an "
            "admin to correct its owner.",
            detail=said,
        )


def missing_source(error: APIError) -> str:
    """What the engine could not mount, because it is not on its host; "" for another error."""
    match = _GONE.search(str(error.explanation or ""))
    return match[1].strip() if match else ""


def _root_is_gone(detail: str) -> HomeUnusable:
    return HomeUnusable(
        "The directory that holds the homes is not there, so your server cannot start just now. "
        f"{_IS_IT_MOUNTED}",
        detail=detail,
    )


def home_is_gone(home: str, user: str) -> HomeUnusable:
    """A home that was there before is not: no empty one takes its place unasked.

    Args:
        home: Its path on the engine's host.
        user: "uid:gid" of its owner.
    """
    return HomeUnusable(
        "Your home directory is not where it was, and no empty one was made in its place. "
        f"{_IS_IT_MOUNTED}",
        detail=f"{home} does not exist on the engine's machine: bring it back or, for a new one, "
        f"make it for {user} with mode 0700",
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
