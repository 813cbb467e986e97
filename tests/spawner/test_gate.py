"""An image that does not run on the lab's GPU is never started on it; a real hub says so first."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace

import docker
import pytest

from pytorch_spawner.core.catalog import Image
from pytorch_spawner.core.plan import TORCH_LABEL
from tests.lab_driver import Lab, running_lab, simulated_gpus

pytestmark = [pytest.mark.docker, pytest.mark.slow]

USUAL = "pytorch-spawner/lab:cpu"
OLD = "pytorch-spawner-test/old"
NEW = "pytorch-spawner-test/new"
TOO_OLD = Image(
    OLD, "", 1, 1.0, torch="2.6.0+cu124", cuda="12.4",
    archs=("sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"),
)  # fmt: skip
FITS = Image(
    NEW, "", 1, 1.0, torch="2.8.0+cu128", cuda="12.8",
    archs=("sm_70", "sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"),
)  # fmt: skip


@pytest.fixture(scope="module")
def ids() -> dict[str, str]:
    """Two images that differ from the usual one by a label, as far as an engine can tell."""
    for name in (OLD, NEW):
        subprocess.run(
            ["docker", "build", "-q", "-t", name, "-"],
            input=f"FROM {USUAL}\nLABEL test={name} {TORCH_LABEL}=2.8.0\n".encode(),
            check=True,
            capture_output=True,
        )
    client = docker.from_env()
    return {name: client.images.get(name).id for name in (OLD, NEW)}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, ids: dict[str, str]) -> Iterator[Lab]:
    # A card that is not here, so that everything but CUDA itself happens as with one.
    b200 = {
        "name": "NVIDIA B200",
        "compute_capability": "10.0",
        "driver": "580.65.06",
        "is_simulated": False,
    }
    traits = {
        "PyTorchSpawner.images": {"Old": OLD, "New": NEW, "Usual": USUAL},
        "PyTorchSpawner.inventory": [{**one, **b200} for one in simulated_gpus(1)],
    }
    with running_lab(tmp_path_factory.mktemp("lab"), traits=traits) as running:
        running.add_users("ana")
        yield running


@pytest.fixture(autouse=True)
def only_this(lab: Lab, ids: dict[str, str]) -> Iterator[None]:
    for image in (TOO_OLD, FITS):
        lab.ledger().save_image(lab.hub_id, replace(image, image_id=ids[image.reference]), "root")
    yield
    if lab.server("ana"):
        lab.stop_server("ana")
    lab.wait_until(lambda: not lab.leases(), 35, "a lease was left over")


def test_an_image_without_code_for_the_gpu_is_refused_before_the_queue(lab: Lab) -> None:
    answer = lab.spawn("ana", {"image": "Old", "gpus": 1})
    assert answer.status_code >= 400
    said = answer.json()["message"]
    assert "PyTorch 2.6.0 with CUDA 12.4" in said
    assert "NVIDIA B200" in said
    assert "The nearest that runs is PyTorch 2.8.0" in said
    assert lab.container("ana") is None
    assert not any(event["data"].get("stage") == "gpu" for event in lab.events("ana"))


@pytest.mark.parametrize("options", [{}, {"gpus": 1, "on_busy": "cpu"}])
def test_who_asked_for_no_gpu_or_would_do_without_goes_on_without(lab: Lab, options: dict) -> None:
    lab.start_server("ana", {"image": "Old", **options})
    assert lab.container("ana").labels["org.pytorch-spawner.gpus"] == ""
    (said,) = [e["data"]["message"] for e in lab.events("ana") if e["data"].get("stage") == "gpu"]
    assert said.startswith("This server runs without a GPU. PyTorch 2.6.0")


def test_the_same_image_starts_without_a_gpu(lab: Lab) -> None:
    lab.start_server("ana", {"image": "Old", "share": "none"})
    assert lab.container("ana") is not None


def test_auto_is_the_image_that_fits(lab: Lab, ids: dict[str, str]) -> None:
    lab.start_server("ana", {"image": "auto"})
    container = lab.container("ana")
    assert container.attrs["Image"] == ids[NEW]
    assert container.labels["org.pytorch-spawner.gpus"] != ""
    (image,) = [e["data"]["image"] for e in lab.events("ana") if e["data"].get("stage") == "image"]
    assert image == NEW


def test_a_start_uses_the_image_that_was_scanned_though_its_tag_moved(
    lab: Lab, ids: dict[str, str]
) -> None:
    subprocess.run(["docker", "tag", USUAL, NEW], check=True)
    try:
        lab.start_server("ana", {"image": "New"})
        assert lab.container("ana").attrs["Image"] == ids[NEW]
    finally:
        subprocess.run(["docker", "tag", ids[NEW], NEW], check=True)


@pytest.mark.parametrize(("tag", "limit"), [("New", "none"), ("Usual", "soft")])
def test_a_slots_memory_is_limited_as_the_very_image_that_runs_can(
    lab: Lab, ids: dict[str, str], tag: str, limit: str
) -> None:
    (gpu,) = lab.ledger().read_inventory(lab.hub_id).gpus
    shared = lambda was: replace(was, mode="shared:2")  # noqa: E731
    lab.ledger().change_setting(lab.hub_id, gpu.uuid, "root", shared)
    subprocess.run(["docker", "tag", USUAL, NEW], check=True)
    try:
        lab.start_server("ana", {"image": tag, "gpus": 1})
        environment = "\n".join(lab.container("ana").attrs["Config"]["Env"])
        assert ("per_process_memory_fraction" in environment) == (limit == "soft")
        (told,) = [e["data"] for e in lab.events("ana") if e["data"].get("stage") == "gpu"]
        assert told["limit"] == limit
    finally:
        subprocess.run(["docker", "tag", ids[NEW], NEW], check=True)
        lab.stop_server("ana")
        alone = lambda was: replace(was, mode=None)  # noqa: E731
        lab.ledger().change_setting(lab.hub_id, gpu.uuid, "root", alone)


def test_an_image_that_is_gone_as_it_was_scanned_is_started_by_its_tag(
    lab: Lab, ids: dict[str, str]
) -> None:
    lab.ledger().save_image(lab.hub_id, replace(FITS, image_id="sha256:" + "0" * 64), "root")
    lab.start_server("ana", {"image": "New"})
    assert lab.container("ana").attrs["Image"] == ids[NEW]


def test_an_image_that_nobody_scanned_is_let_through(lab: Lab) -> None:
    lab.ledger().remove_image(lab.hub_id, OLD, "root")
    lab.start_server("ana", {"image": "Old", "gpus": 1})
    assert lab.container("ana") is not None
