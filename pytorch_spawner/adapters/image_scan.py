"""Looks into an image: runs it once, without a GPU and without a network. Blocking.

The image is a program that somebody else wrote: it may print without end, never answer, or lie. It
gets a deadline, a cap on what it prints, no right, and nothing to write to. Whatever happens is an
``Image`` with a sentence; only an engine that does not answer, or has no such image, is an error.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final, NamedTuple

from docker.errors import APIError, NotFound, NullResource
from docker.types import LogConfig

from pytorch_spawner.adapters.engine import remove, tail_of, translated
from pytorch_spawner.core.catalog import Image, clean, found
from pytorch_spawner.errors import EngineRefused, EngineUnavailable, ImageMissing, LabError

log = logging.getLogger(__name__)

# PyTorch with CUDA takes 2 s to import from memory, and 30 s where the disk has to read all of it.
DEADLINE_S: Final = 60.0
# What is asked for fits into one; an image that prints more is not one to start servers from.
MAX_PRINTED_BYTES: Final = 1024 * 1024
_MEMORY_GIB: Final = 4
# No image has a user of this number, so it shows whether any uid can run it.
_ANYBODY: Final = "54321:54321"
_MARK: Final = "pytorch-spawner-scan:"

# Runs inside, in any Python from 3.6 on. Each fact by itself: one that cannot be had is unknown.
# Without a GPU torch.cuda.get_arch_list() is empty, so what it would read is asked directly.
_ASK: Final = r"""
import glob, importlib.util, json, os, re, sys
facts = {"python": sys.version.split()[0]}
def note(name, ask):
    try:
        facts[name] = ask()
    except Exception:
        facts[name] = None
def of_package(name):
    from importlib.metadata import PackageNotFoundError, version
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
def cudnn():
    number = torch.backends.cudnn.version()
    if not number:
        return ""
    major, rest = divmod(number, 10000 if number >= 90000 else 1000)
    return "%d.%d.%d" % (major, rest // 100, rest % 100)
def nccl():
    if not torch.version.cuda:
        return ""
    number = torch.cuda.nccl.version()
    return ".".join(map(str, number)) if isinstance(number, tuple) else str(number)
def archs():
    ask = getattr(torch._C, "_cuda_getArchFlags", None)
    return (ask() or "").split() if ask else list(torch.cuda.get_arch_list())
def compat():
    for path in sorted(glob.glob("/usr/local/cuda*/compat/libcuda.so.1")):
        named = re.search(r"/cuda-([0-9]+[.][0-9]+)/", os.path.realpath(path))
        if named:
            return named.group(1)
    return ""
note("compat", compat)
torch = None
if importlib.util.find_spec("torch") is None:
    facts.update(torch="", cuda="", cudnn="", nccl="", triton="", torchvision="", archs=[])
else:
    try:
        import torch
        facts["torch"] = str(torch.__version__)
    except BaseException as error:
        facts["error"] = "%s: %s" % (type(error).__name__, error)
if facts.get("torch"):
    note("cuda", lambda: torch.version.cuda or "")
    note("cudnn", cudnn)
    note("nccl", nccl)
    note("archs", archs)
    note("triton", lambda: of_package("triton"))
    note("torchvision", lambda: of_package("torchvision"))
sys.stdout.flush()
print("\nMARK" + json.dumps(facts), flush=True)
os._exit(0)
""".replace("MARK", _MARK)


def scan(
    client: Any, reference: str, labels: Mapping[str, str], deadline_s: float = DEADLINE_S
) -> Image:
    """Run an image once and write down what it is.

    Args:
        client: docker-py's APIClient.
        reference: What starts would ask for; it is not pulled.
        labels: For the container, so that a crash leaves nothing unnamed.
        deadline_s: How long it may take from its start, in seconds.

    Returns:
        What was found out; ``problem`` says why it is no more. The container is gone.

    Raises:
        ImageMissing: The engine has no such image.
        EngineUnavailable: The engine does not answer.
    """
    seen, claims = look(client, reference)
    try:
        return _run(client, seen, claims, labels, deadline_s)
    except EngineUnavailable:
        raise
    except EngineRefused as error:
        log.warning("image=%s could not be run: %s", reference, error)
        said = clean(error.detail)
        return replace(
            seen,
            problem="It has no python3, which every server needs."
            if "executable file not found" in said or "no such file" in said
            else f"The engine could not run it: {said}.",
        )


def look(client: Any, reference: str) -> tuple[Image, dict[str, str]]:
    """What the engine itself says of an image, and the image's labels.

    Raises:
        ImageMissing: The engine has no such image.
        EngineUnavailable: The engine does not answer.
    """
    with translated():
        try:
            about = client.inspect_image(reference)
        except (APIError, NullResource) as error:
            if isinstance(error, APIError) and error.status_code not in (400, 404):
                raise
            # 400: no image could have such a name.
            raise ImageMissing(
                f'There is no image "{clean(reference)}" on this engine. Build it with '
                "share/images/build, or pull it.",
                detail=str(error),
            ) from error
    labels = (about.get("Config") or {}).get("Labels") or {}
    size = about.get("Size")
    seen = Image(
        reference=reference,
        image_id=str(about.get("Id") or ""),
        size_bytes=size if isinstance(size, int) else None,
        scanned_at=time.time(),
    )
    return seen, {str(key): str(value) for key, value in labels.items()}


def ids_now(client: Any, references: Sequence[str]) -> dict[str, str | None]:
    """The engine's ids of these references now; None for one that is not there."""
    found_ids: dict[str, str | None] = {}
    for reference in references:
        try:
            found_ids[reference] = look(client, reference)[0].image_id
        except ImageMissing:
            found_ids[reference] = None
    return found_ids


class _Ended(NamedTuple):
    """How the container's run went."""

    printed: bytes
    is_too_much: bool
    is_late: bool
    state: Mapping[str, Any]


def _run(
    client: Any,
    seen: Image,
    claims: Mapping[str, str],
    labels: Mapping[str, str],
    deadline_s: float,
) -> Image:
    with translated():
        container = _create(client, seen.image_id, labels)
    try:
        with translated():
            client.start(container)
            with _ended_after(client, container, deadline_s) as is_late:
                printed, is_too_much = _read(client, container)
            state = client.inspect_container(container)["State"]
    finally:
        _discard(client, container)
    answer = _answer(printed)
    if answer is not None and not is_too_much:
        return found(seen, answer, claims)
    ended = _Ended(printed, is_too_much, is_late.is_set(), state)
    return replace(seen, problem=_why(ended, deadline_s))


def _why(ended: _Ended, deadline_s: float) -> str:
    """Why there is no answer, as a sentence."""
    if ended.is_too_much:
        size = MAX_PRINTED_BYTES // 1024**2
        return f"It printed more than {size} MiB where a few lines were asked for."
    if ended.is_late:
        return (
            f"It did not answer within {deadline_s:g} s: importing PyTorch hangs in it, or takes "
            "longer than that."
        )
    if ended.state.get("OOMKilled"):
        return f"It needs more than {_MEMORY_GIB} GiB of memory to import PyTorch."
    last = clean(([line for line in tail_of(ended.printed) if line.strip()] or [""])[-1])
    code = int(ended.state.get("ExitCode") or 0)
    said = f' It said: "{last}".' if last else ""
    return f"Its python3 ended with exit code {code} before it answered.{said}"


def _create(client: Any, image_id: str, labels: Mapping[str, str]) -> str:
    host_config = client.create_host_config(
        cap_drop=["ALL"],
        security_opt=["no-new-privileges:true"],
        network_mode="none",
        read_only=True,
        # Some libraries refuse to be imported without a place for their cache.
        tmpfs={"/tmp": "size=64m,mode=1777"},  # noqa: S108  (inside the container)
        pids_limit=256,
        mem_limit=f"{_MEMORY_GIB}g",
        log_config=LogConfig(type=LogConfig.types.JSON, config={"max-size": "1m", "max-file": "2"}),
    )
    created = client.create_container(
        image=image_id,
        # -I: neither the environment nor the working directory says what is imported.
        entrypoint=["python3", "-I", "-B", "-c", _ASK],
        user=_ANYBODY,
        labels=dict(labels),
        environment={
            "HOME": "/tmp",  # noqa: S108
            # No GPU whatever the image asks for: see ``core.plan``.
            "NVIDIA_VISIBLE_DEVICES": "void",
            "CUDA_VISIBLE_DEVICES": "",
        },
        host_config=host_config,
    )
    return str(created["Id"])


@contextmanager
def _ended_after(client: Any, container: str, seconds: float) -> Iterator[threading.Event]:
    """End the container at the deadline, whatever it is doing; the event says whether it was."""
    is_late = threading.Event()

    def end() -> None:
        is_late.set()
        try:
            with translated():
                client.kill(container)
        except LabError as error:  # it may have ended by itself just now; else it is removed below
            log.info("container=%s was not ended at its deadline: %s", container[:12], error)

    timer = threading.Timer(seconds, end)
    timer.start()
    try:
        yield is_late
    finally:
        timer.cancel()
        timer.join()


def _read(client: Any, container: str) -> tuple[bytes, bool]:
    """What the container prints until it ends; and whether that is more than anybody reads."""
    printed = bytearray()
    chunks = client.logs(container, stdout=True, stderr=True, stream=True, follow=True)
    try:
        for chunk in chunks:
            printed += chunk
            if len(printed) > MAX_PRINTED_BYTES:
                return bytes(printed[:MAX_PRINTED_BYTES]), True
    finally:
        chunks.close()
    return bytes(printed), False


def _answer(printed: bytes) -> Any:
    """What stands behind the last mark; None where there is none that is JSON."""
    _, mark, answer = printed.decode("utf-8", "replace").rpartition("\n" + _MARK)
    if not mark:
        return None
    try:
        return json.loads(answer.splitlines()[0])
    except (ValueError, IndexError, RecursionError):
        return None


def _discard(client: Any, container: str) -> None:
    try:
        remove(client, container)
    except EngineUnavailable:
        raise
    except (LabError, NotFound) as error:
        log.warning("the container %s of a scan is still there: %s", container[:12], error)
