"""How a course's notebooks get to the engine: a volume that a container of no image ever fills.

Nothing runs for it. Files are copied into a container that is created and never started, so no
image has to be trusted or pulled, and it works the same where the engine is another machine.
"""

from __future__ import annotations

import io
import shutil
import tarfile
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from docker.errors import NotFound

from pytorch_spawner.adapters.engine import read_file, remove, translated
from pytorch_spawner.core.courses import BUNDLE, NOTICE
from pytorch_spawner.core.plan import LABEL
from pytorch_spawner.core.warmcache import is_private_of
from pytorch_spawner.errors import EngineRefused

_EMPTY: Final = "pytorch-spawner/empty"
_TAG: Final = "1"
# Two files that take turns, so that whoever reads the last one while the next is written is not
# disturbed; the name that containers know is a link to one of them.
_TURNS: Final = ("a", "b")


def fill(client: Any, volume: str, hub: str, bundle: Path | None, notice: bytes) -> None:
    """Put a course's bundle and its notice into a volume, which is made where it is missing.

    Args:
        client: docker-py's APIClient.
        volume: Its name.
        hub: Id of the hub, for the labels.
        bundle: A file; None leaves the one that is there.
        notice: Content of the file that containers watch; written last.
    """
    carrier = _carrier(client, volume, hub)
    try:
        with tempfile.TemporaryFile() as archive:
            with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tar:
                if bundle is not None:
                    _add_bundle(tar, bundle, _next_name(client, carrier))
                entry = tarfile.TarInfo(NOTICE)
                entry.size, entry.mode = len(notice), 0o444
                # By its time containers see that it is another one: its size seldom differs, and
                # file systems use a number again.
                entry.mtime = time.time()
                tar.addfile(entry, io.BytesIO(notice))
            archive.seek(0)
            with translated():
                client.put_archive(carrier, "/work", archive)
    finally:
        remove(client, carrier)


def read_bundle(client: Any, volume: str, hub: str, to: Path) -> None:
    """Copy a volume's bundle into a file of ours; without one, there is none afterwards."""
    carrier = _carrier(client, volume, hub)
    try:
        with translated():
            if name := _current_name(client, carrier):
                chunks, _ = client.get_archive(carrier, f"/work/{name}")
                _extract(chunks, to)
    finally:
        remove(client, carrier)


def read_notice(client: Any, volume: str, hub: str) -> str:
    """What containers are told; "" where nothing is there."""
    carrier = _carrier(client, volume, hub)
    try:
        return read_file(client, carrier, f"/work/{NOTICE}")
    finally:
        remove(client, carrier)


def _current_name(client: Any, carrier: str) -> str:
    """The file that the link names; "" without one."""
    try:
        stat = client.get_archive(carrier, f"/work/{BUNDLE}")[1]
    except NotFound:
        return ""
    return str(stat.get("linkTarget", "")).rpartition("/")[2]


def _next_name(client: Any, carrier: str) -> str:
    """The file that nobody reads at the moment."""
    names = [_turn_name(turn) for turn in _TURNS]
    with translated():
        return names[_current_name(client, carrier) == names[0]]


def _extract(chunks: Iterable[bytes], to: Path) -> None:
    with tempfile.TemporaryFile() as archive:
        for chunk in chunks:
            archive.write(chunk)
        archive.seek(0)
        with tarfile.open(fileobj=archive) as tar:
            for member in tar:
                content = tar.extractfile(member) if member.isreg() else None
                if content is not None:
                    with to.open("wb") as file:
                        shutil.copyfileobj(content, file)


def _carrier(client: Any, volume: str, hub: str) -> str:
    """A container that never runs, with the volume at /work; the volume is made where missing."""
    image = _empty_image(client)
    with translated():
        made = client.create_volume(name=volume, labels={f"{LABEL}hub": f"{hub}-helper"})
        if (made.get("Labels") or {}).get(f"{LABEL}hub") != f"{hub}-helper":
            # Somebody's home, of another hub with a longer name: never to be written into.
            raise EngineRefused(f"The volume {volume} is somebody else's; name the course anew.")
        host_config = client.create_host_config(
            mounts=[
                {
                    "Type": "volume",
                    "Source": volume,
                    "Target": "/work",
                    "ReadOnly": False,
                    "VolumeOptions": {"NoCopy": True},
                }
            ],
            network_mode="none",
        )
        carrier = client.create_container(
            image=image,
            command=["-"],
            labels={f"{LABEL}hub": f"{hub}-helper"},
            host_config=host_config,
        )
    return str(carrier["Id"])


def course_volumes(client: Any, hub: str) -> tuple[str, ...]:
    """The volumes of a hub that hold courses."""
    with translated():
        found = client.volumes(filters={"label": f"{LABEL}hub={hub}-helper"}).get("Volumes") or ()
    return tuple(one["Name"] for one in found if one["Name"].startswith(f"{hub}-course-"))


def private_caches(client: Any, hub: str, course: str) -> tuple[str, ...]:
    """The volumes in which people's servers of a course keep what they compile."""
    with translated():
        found = client.volumes().get("Volumes") or ()
    return tuple(one["Name"] for one in found if is_private_of(hub, course, one["Name"]))


def _add_bundle(tar: tarfile.TarFile, bundle: Path, name: str) -> None:
    entry = tarfile.TarInfo(name)
    with bundle.open("rb") as content:
        entry.size, entry.mode = bundle.stat().st_size, 0o444
        tar.addfile(entry, content)
    link = tarfile.TarInfo(BUNDLE)
    link.type, link.linkname = tarfile.SYMTYPE, entry.name
    tar.addfile(link)


def _turn_name(turn: str) -> str:
    stem, _, kind = BUNDLE.rpartition(".")
    return f"{stem}-{turn}.{kind}"


def _empty_image(client: Any) -> str:
    """An image with nothing in it; made on the engine itself, from an empty archive."""
    reference = f"{_EMPTY}:{_TAG}"
    with translated():
        try:
            client.inspect_image(reference)
        except NotFound:
            nothing = io.BytesIO()
            tarfile.open(fileobj=nothing, mode="w").close()
            client.import_image_from_data(nothing.getvalue(), repository=_EMPTY, tag=_TAG)
    return reference
