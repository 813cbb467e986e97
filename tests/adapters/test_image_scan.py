"""Looking into images: the lab's own, and such that hang, print, lie, break or eat memory."""

from __future__ import annotations

import json
import subprocess
import time
import uuid
from collections.abc import Iterator
from typing import Any

import docker.errors
import pytest

from pytorch_spawner.adapters import engine, image_scan
from pytorch_spawner.core.catalog import Image
from pytorch_spawner.core.plan import LABEL
from pytorch_spawner.errors import EngineUnavailable, ImageMissing

NAME = "pytorch-spawner-test/scan"
# Of this run alone: one that was killed may have left its own.
RUN = f"test-{uuid.uuid4().hex[:8]}"
LABELS = {LABEL + "scan": RUN}
# Far more than any of these takes, so what ends sooner ended by itself.
PATIENCE_S = 40.0

# What stands in the place of PyTorch in the test's images: BEHAVE says what it does.
TORCH = r"""
import os, socket, sys, time
def may_write():
    for place in ("/opt/lab", "/", "/home", "/var/tmp"):
        try:
            open(place + "/scan", "w").close()
            return place
        except OSError:
            pass
    return "nowhere"
class version:
    cuda = "12.4"
class _C:
    _cuda_getArchFlags = staticmethod(lambda: "sm_80 sm_90a compute_90")
class backends:
    class cudnn:
        version = staticmethod(lambda: 90100)
class cuda:
    class nccl:
        version = staticmethod(lambda: (2, 21, 5))
__version__ = "2.6.0"
behave = os.environ.get("BEHAVE")
if behave == "hangs":
    time.sleep(3600)
if behave == "prints":
    for _ in range(1600):
        sys.stdout.write("x" * 65536)
if behave == "prints-lines":
    for _ in range(100):
        print("pytorch-spawner-scan:{}")
if behave == "broken":
    raise ImportError("libcudart.so.12: cannot open shared object file: No such file or directory")
if behave == "ends":
    os.write(2, b"Illegal instruction\n")
    os._exit(132)
if behave == "exits":
    sys.exit("go away")
if behave == "eats":
    eaten = [bytearray(os.urandom(1 << 20)) * 64 for _ in range(64)]
if behave == "says":
    inside = (os.getuid(), may_write(), os.environ["NVIDIA_VISIBLE_DEVICES"],
              "+".join(sorted(os.listdir("/sys/class/net"))), os.path.exists("/dev/nvidia0"))
    __version__ = " ".join(map(str, inside))
if behave == "no-facts":
    del _C._cuda_getArchFlags, version.cuda, backends.cudnn, cuda.nccl
if behave == "old-cudnn":
    backends.cudnn.version = staticmethod(lambda: 8902)
    _C._cuda_getArchFlags = staticmethod(lambda: None)
"""


def build(tag: str, *lines: str) -> str:
    subprocess.run(
        ["docker", "buildx", "build", "-q", "--load", "-t", f"{NAME}:{tag}", "-"],
        input="\n".join(lines).encode(),
        check=True,
        capture_output=True,
    )
    return f"{NAME}:{tag}"


@pytest.fixture(scope="module")
def base(lab_image: str) -> Iterator[str]:
    """The lab's image with another torch; everything built on it goes with it."""
    packages = "/opt/lab/lib/python3.11/site-packages"
    script = f"import os; open('{packages}/torch/__init__.py', 'w').write({TORCH!r})"
    copied = json.dumps(["python3", "-c", script])
    yield build("base", f"FROM {lab_image}", "USER 0", f"RUN {copied}", "USER 65534")
    listed = ["docker", "image", "ls", "--format", "{{.Repository}}:{{.Tag}}", NAME]
    tags = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split()
    subprocess.run(["docker", "image", "rm", "--force", *tags], capture_output=True, check=True)


@pytest.fixture(scope="module")
def client() -> Any:
    return engine.connect()


def scan(client: Any, reference: str, deadline_s: float = PATIENCE_S) -> Image:
    image = image_scan.scan(client, reference, LABELS, deadline_s)
    left = client.containers(all=True, filters={"label": f"{LABEL}scan={RUN}"})
    assert left == [], "the container is gone"
    return image


@pytest.mark.docker
def test_the_labs_own_image_is_known_whole(client: Any, lab_image: str) -> None:
    image = scan(client, lab_image)
    about = client.inspect_image(lab_image)
    assert (image.problem, image.notes) == ("", ())
    assert (image.image_id, image.size_bytes) == (about["Id"], about["Size"])
    assert image.torch == about["Config"]["Labels"]["org.pytorch-spawner.image.torch"]
    assert (image.python or "").startswith("3.")
    if image.torch.endswith("+cpu"):
        assert (image.cuda, image.archs, image.cudnn, image.nccl) == ("", (), "", "")


@pytest.mark.docker
@pytest.mark.parametrize(
    ("behave", "says", "within_s"),
    [
        ("prints", "It printed more than 1 MiB where a few lines were asked for.", 20),
        ("broken", "cannot be imported: ImportError: libcudart.so.12: cannot open shared", 20),
        ("ends", 'ended with exit code 132 before it answered. It said: "Illegal instr', 20),
        ("exits", "cannot be imported: SystemExit: go away.", 20),
    ],
)
def test_an_image_that_cannot_be_used_is_told_so_with_a_sentence(
    client: Any, base: str, behave: str, says: str, within_s: float
) -> None:
    reference = build(behave, f"FROM {base}", f"ENV BEHAVE={behave}")
    began = time.monotonic()
    image = scan(client, reference)
    assert says in image.problem
    assert time.monotonic() - began < within_s
    assert (image.torch, image.archs) == (None, None)
    assert image.image_id.startswith("sha256:")


@pytest.mark.docker
def test_an_image_that_hangs_is_ended_at_its_deadline(client: Any, base: str) -> None:
    reference = build("hangs", f"FROM {base}", "ENV BEHAVE=hangs")
    began = time.monotonic()
    image = scan(client, reference, deadline_s=3)
    assert image.problem.startswith("It did not answer within 3 s: importing PyTorch hangs in it")
    assert 3 <= time.monotonic() - began < 10


@pytest.mark.docker
def test_an_image_that_eats_memory_harms_nobody(
    client: Any, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_scan, "_MEMORY_GIB", 1)
    reference = build("eats", f"FROM {base}", "ENV BEHAVE=eats")
    assert scan(client, reference).problem == (
        "It needs more than 1 GiB of memory to import PyTorch."
    )


@pytest.mark.docker
def test_an_image_without_python_or_pytorch_is_told_so(client: Any, base: str) -> None:
    bare = build(
        "bare", f"FROM {base}", "USER 0", "RUN rm -f /opt/lab/bin/python* /usr/bin/python*"
    )
    assert scan(client, bare).problem == "It has no python3, which every server needs."
    lines = ("USER 0", "RUN rm -r /opt/lab/lib/python3.11/site-packages/torch")
    image = scan(client, build("no-torch", f"FROM {base}", *lines))
    assert (image.problem, image.torch, image.cuda, image.archs) == ("", "", "", ())
    nothing, lie = image.notes
    assert nothing == "It has no PyTorch, so nothing is known of the GPUs it can use."
    assert lie.startswith('Its label says "2.'), "the base's label came along"


@pytest.mark.docker
def test_an_image_that_lies_about_its_labels_is_found_out(client: Any, base: str) -> None:
    lies = ('torch="2.99.0"', 'cuda="13.0"', 'archs="sm_120"')
    labels = [f"LABEL org.pytorch-spawner.image.{lie}" for lie in lies]
    image = scan(client, build("lies", f"FROM {base}", *labels))
    assert (image.torch, image.cuda, image.archs) == (
        "2.6.0",
        "12.4",
        ("sm_80", "sm_90a", "compute_90"),
    )
    assert (image.cudnn, image.nccl) == ("9.1.0", "2.21.5")
    assert [note.partition(",")[0] for note in image.notes] == [
        'Its label says "2.99.0" for torch',
        'Its label says "13.0" for cuda',
        'Its label says "sm_120" for archs',
    ]


@pytest.mark.docker
def test_what_one_pytorch_does_not_say_is_unknown_and_the_rest_is_known(
    client: Any, base: str
) -> None:
    image = scan(client, build("no-facts", f"FROM {base}", "ENV BEHAVE=no-facts"))
    assert (image.torch, image.cuda, image.cudnn, image.nccl) == ("2.6.0", None, None, None)
    assert image.problem == ""
    older = scan(client, build("old", f"FROM {base}", "ENV BEHAVE=old-cudnn"))
    assert (older.cudnn, older.archs) == ("8.9.2", ())
    assert older.notes[0] == "Its PyTorch has CUDA and names no GPU architecture."


@pytest.mark.docker
def test_only_the_last_answer_counts(client: Any, base: str) -> None:
    image = scan(client, build("lines", f"FROM {base}", "ENV BEHAVE=prints-lines"))
    assert (image.problem, image.torch) == ("", "2.6.0")


@pytest.mark.docker
def test_it_runs_as_nobody_who_can_write_or_reach_anything(client: Any, base: str) -> None:
    lines = ("USER 0", "ENV BEHAVE=says NVIDIA_VISIBLE_DEVICES=all", 'ENTRYPOINT ["false"]')
    image = scan(client, build("says", f"FROM {base}", *lines))
    assert image.torch == "54321 nowhere void lo False"


@pytest.mark.docker
def test_the_ids_of_tags_that_moved_and_of_one_that_is_gone(client: Any, base: str) -> None:
    one = build("moves", f"FROM {base}", "ENV BEHAVE=first")
    first = image_scan.ids_now(client, [one])[one]
    build("moves", f"FROM {base}", "ENV BEHAVE=second")
    now = image_scan.ids_now(client, [one, f"{NAME}:nowhere"])
    assert now[one] not in (None, first)
    assert now[f"{NAME}:nowhere"] is None


@pytest.mark.docker
@pytest.mark.parametrize("reference", ["pytorch-spawner-test/scan:nowhere", "No Such Image!", ""])
def test_an_image_that_is_not_there_is_an_error_with_a_sentence(
    client: Any, reference: str
) -> None:
    with pytest.raises(ImageMissing, match="no image"):
        scan(client, reference)


class Gone:
    """An engine that goes away at the call named."""

    def __init__(self, at: str) -> None:
        self.at = at
        self.removed = False

    def __getattr__(self, name: str) -> Any:
        def call(*_args: object, **_settings: object) -> Any:
            if name == self.at:
                raise OSError("connection refused")
            if name == "remove_container":
                self.removed = True
            return {"Id": "sha256:1", "Config": {"Labels": None}, "State": {"ExitCode": 0}}

        return call


@pytest.mark.parametrize("at", ["inspect_image", "create_container", "start", "logs"])
def test_an_engine_that_goes_away_is_an_error_and_what_was_made_is_removed(at: str) -> None:
    gone = Gone(at)
    with pytest.raises(EngineUnavailable):
        image_scan.scan(gone, "lab:1", LABELS)
    assert gone.removed == (at in ("start", "logs"))


class Refusing(Gone):
    def __getattr__(self, name: str) -> Any:
        if name == "start":

            def refuse(*_args: object) -> None:
                raise docker.errors.APIError("no", explanation="exec format error")

            return refuse
        return super().__getattr__(name)


def test_an_image_that_the_engine_cannot_run_is_a_problem_of_the_image() -> None:
    image = image_scan.scan(Refusing(""), "lab:1", LABELS)
    assert image.problem == "The engine could not run it: exec format error."
