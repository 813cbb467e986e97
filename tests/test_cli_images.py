"""`pytorch-spawner images`: what is in an image, whether it moved, which GPUs it fits."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytorch_spawner.cli import images as module
from pytorch_spawner.cli import main
from pytorch_spawner.core.catalog import Image
from pytorch_spawner.core.gpus import Gpu, GpuUuid, Inventory
from pytorch_spawner.errors import ImageMissing
from pytorch_spawner.ledger.store import Ledger

Run = Callable[..., tuple[int, Any]]
ID = "sha256:" + "ab" * 32
OTHER_ID = "sha256:" + "cd" * 32
OLD = Image(
    "lab:2.6", ID, 6_768_057_988, 1.5, python="3.11.2", torch="2.6.0+cu124", cuda="12.4",
    cudnn="9.1.0", nccl="2.21.5", triton="3.2.0", compat="", archs=("sm_50", "sm_80", "sm_90"),
)  # fmt: skip
NEW = replace(OLD, reference="lab:2.8", torch="2.8.0+cu128", cuda="12.8", archs=("sm_80", "sm_120"))
CPU = replace(OLD, reference="lab:cpu", torch="2.13.0+cpu", cuda="", archs=(), size_bytes=None)
DRIVER = "570.86.16"
CARDS = (
    Gpu(GpuUuid("GPU-1111"), 0, "NVIDIA GeForce RTX 5090", None, (12, 0), DRIVER),
    Gpu(GpuUuid("GPU-2222"), 1, "NVIDIA GeForce RTX 5090", None, (12, 0), DRIVER),
    Gpu(GpuUuid("GPU-3333"), 2, "NVIDIA A100-SXM4-40GB", None, (8, 0), DRIVER, mode="mig"),
    Gpu(
        GpuUuid("MIG-4444"), 3, "NVIDIA A100-SXM4-40GB MIG 1g.5gb", None, (8, 0), DRIVER,
        mig_profile="1g.5gb", parent="GPU-3333",
    ),
)  # fmt: skip


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    ledger = Ledger.open(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    ledger.write_inventory("lab", Inventory(CARDS))
    return ledger


@pytest.fixture
def engine_has(monkeypatch: pytest.MonkeyPatch) -> dict[str, Image]:
    """What the engine has, and what a scan of it finds."""
    there: dict[str, Image] = {}

    def scan(_: object, reference: str, labels: dict[str, str], deadline_s: float) -> Image:
        assert labels == {"org.pytorch-spawner.hub": "lab-helper"}
        assert deadline_s > 0
        if reference not in there:
            raise ImageMissing(f"There is no image {reference} on this engine.")
        return there[reference]

    def ids_now(_: object, references: list[str]) -> dict[str, str | None]:
        return {one: there[one].image_id if one in there else None for one in references}

    monkeypatch.setattr(module.engine, "connect", lambda: None)
    monkeypatch.setattr(module.image_scan, "scan", scan)
    monkeypatch.setattr(module.image_scan, "ids_now", ids_now)
    return there


@pytest.fixture
def run(
    ledger: Ledger,
    engine_has: dict[str, Image],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """Run an action; returns its exit status and, by ``--json``, what it says."""
    flags = ["--ledger", f"sqlite:///{tmp_path / 'ledger.sqlite'}", "--hub", "lab"]

    def run(*words: str, as_json: bool = True) -> tuple[int, Any]:
        status = main(["images", *words, *flags, *(["--json"] if as_json else [])])
        out, err = capsys.readouterr()
        return status, json.loads(out) if as_json and out else out + err

    return run


def test_a_scan_is_written_down_and_listed(
    run: Run, ledger: Ledger, engine_has: dict[str, Image]
) -> None:
    engine_has["lab:2.6"] = OLD
    status, said = run("scan", "lab:2.6")
    assert status == 0
    assert said["archs"] == ["sm_50", "sm_80", "sm_90"]
    assert said["drivers"] == {"minimum": "525.60.13", "full": "550.54.14"}
    assert ledger.images("lab") == (OLD,)
    assert run("list") == (0, [said])
    assert run() == (0, [said])


def test_a_scan_says_in_words_what_it_found(run: Run, engine_has: dict[str, Image]) -> None:
    engine_has["lab:2.6"] = OLD
    _, text = run("scan", "lab:2.6", as_json=False)
    assert text.splitlines() == [
        "lab:2.6 (abababababab, 6.77 GB)",
        "PyTorch 2.6.0 with CUDA 12.4; Python 3.11.2",
        "cuDNN 9.1.0, NCCL 2.21.5, Triton 3.2.0",
        "built for sm_50 sm_80 sm_90",
        "needs driver 525.60.13 or newer; its own is 550.54.14",
    ]
    engine_has["lab:cpu"] = CPU
    _, text = run("scan", "lab:cpu", as_json=False)
    assert text.splitlines() == [
        "lab:cpu (abababababab, unknown)",
        "PyTorch 2.13.0 without CUDA; Python 3.11.2",
    ]


def test_an_image_that_cannot_be_used_fails_the_scan_and_is_kept_in_mind(
    run: Run, ledger: Ledger, engine_has: dict[str, Image]
) -> None:
    broken = Image("lab:x", ID, 1, 1.5, problem="It did not answer within 60 s.")
    engine_has["lab:x"] = broken
    status, text = run("scan", "lab:x", as_json=False)
    assert (status, text.splitlines()[1]) == (1, "It did not answer within 60 s.")
    assert ledger.images("lab") == (broken,)
    _, text = run("list", as_json=False)
    assert "unknown" in text
    assert "lab:x: It did not answer within 60 s." in text


def test_hostile_text_of_an_image_does_not_steer_the_terminal(
    run: Run, ledger: Ledger, engine_has: dict[str, Image]
) -> None:
    ledger.save_image("lab", replace(OLD, notes=("\x1b[2J\nno",), torch="2\x1b[31m"), "ana")
    engine_has["lab:2.6"] = OLD
    for words in (("list",), ("check",), ("fit",)):
        _, text = run(*words, as_json=False)
        assert "\x1b" not in text


def test_a_tag_that_moved_or_is_gone_is_reported(run: Run, engine_has: dict[str, Image]) -> None:
    for image in (OLD, NEW, CPU):
        engine_has[image.reference] = image
        run("scan", image.reference)
    assert run("check")[0] == 0
    engine_has["lab:2.8"] = replace(NEW, image_id=OTHER_ID)
    del engine_has["lab:cpu"]
    status, rows = run("check")
    assert status == 1
    assert [(row["reference"], row["now"], bool(row["problem"])) for row in rows] == [
        ("lab:2.6", ID, False),
        ("lab:2.8", OTHER_ID, True),
        ("lab:cpu", None, True),
    ]
    _, text = run("check", as_json=False)
    assert "lab:2.8 moved: abababababab was scanned, and it is cdcdcdcdcdcd now." in text
    assert "lab:cpu is not on the engine any more." in text
    status, text = run("scan", "lab:2.8", as_json=False)
    assert text.splitlines()[-1] == "It was abababababab when it was scanned before."
    del engine_has["lab:2.8"]
    assert run("scan", "lab:2.8")[0] == 1


def test_each_kind_of_gpu_is_told_what_fits_and_what_auto_takes(
    run: Run, ledger: Ledger, engine_has: dict[str, Image]
) -> None:
    for image in (OLD, NEW, CPU):
        ledger.save_image("lab", image, "ana")
    status, rows = run("fit")
    assert status == 0
    assert [(row["gpu"], row["auto"]) for row in rows] == [
        ("NVIDIA GeForce RTX 5090 (Blackwell 12.0)", "lab:2.8"),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb (Ampere 8.0)", "lab:2.8"),
        (None, "lab:cpu"),
    ], "two equal cards are one kind, and what was cut into slices is given to nobody"
    assert [(one["reference"], one["kind"], one["nearest"]) for one in rows[0]["images"]] == [
        ("lab:2.6", "no", "lab:2.8"),
        ("lab:2.8", "native", None),
        ("lab:cpu", "cpu", "lab:2.8"),
    ]
    _, text = run("fit", as_json=False)
    assert "no kernel image is available for execution on the device" in text
    assert "auto: PyTorch 2.8.0 with CUDA 12.8 is the best of 3" in text
    _, older = run("fit", "--driver", "470.57.02")
    assert [row["auto"] for row in older] == ["lab:cpu", "lab:cpu", "lab:cpu"]


def test_a_forgotten_image_is_gone(run: Run, ledger: Ledger) -> None:
    ledger.save_image("lab", OLD, "ana")
    assert run("remove", "lab:2.6")[0] == 0
    assert run("list") == (0, [])
    line = ledger.latest_change("lab", "image", "lab:2.6")
    assert line is not None
    assert line.after is None
    assert line.by.endswith("(command line)")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["scan", "lab:nowhere"], "no image lab:nowhere"),
        (["scan", "lab:2.6", "--deadline", "0"], "above 0"),
        (["scan", "lab:2.6", "--deadline", "nan"], "above 0"),
        (["scan", "lab:2.6", "--deadline", "9999"], "up to 600 s"),
        (["remove", "lab:2.6"], "was never scanned: none"),
        (["fit"], "No image was scanned."),
    ],
    ids=" ".join,
)
def test_what_cannot_be_done_is_refused_with_a_sentence(
    words: list[str], says: str, run: Run
) -> None:
    status, text = run(*words, as_json=False)
    assert status == 1
    assert says in text
    assert run("list", as_json=False) == (
        0,
        "No image was scanned. `pytorch-spawner images scan REF` does it.\n",
    )
