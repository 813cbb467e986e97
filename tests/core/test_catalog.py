from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytorch_spawner.core.catalog import (
    MAX_ARCHS,
    MAX_NOTES,
    MAX_TEXT,
    Image,
    by_reference,
    drivers_of,
    found,
    moved,
    numbers,
    read_image,
    say_driver,
    short_id,
)

SEEN = Image("lab:1", "sha256:" + "ab" * 32, 6_768_057_988, 1.5)
FACTS = {
    "python": "3.11.2",
    "torch": "2.6.0+cu124",
    "cuda": "12.4",
    "cudnn": "9.1.0",
    "nccl": "2.21.5",
    "triton": "3.2.0",
    "torchvision": "0.21.0+cu124",
    "compat": "",
    "archs": ["sm_80", "sm_90a", "compute_90"],
}
LABEL = "org.pytorch-spawner.image."


def test_what_a_scan_found_is_the_same_after_the_ledger() -> None:
    image = found(SEEN, FACTS, {})
    assert (image.name, image.archs) == (
        "PyTorch 2.6.0 with CUDA 12.4",
        ("sm_80", "sm_90a", "compute_90"),
    )
    assert (image.problem, image.notes, image.torch_version) == ("", (), (2, 6, 0))
    assert read_image(json.loads(json.dumps(image.as_json()))) == image


def test_an_image_without_cuda_and_one_without_pytorch_are_known_as_such() -> None:
    nothing = dict.fromkeys(("cudnn", "nccl", "triton", "torchvision", "compat"), "")
    cpu = found(SEEN, {**nothing, "torch": "2.13.0+cpu", "cuda": "", "archs": []}, {})
    assert (cpu.name, cpu.cuda, cpu.archs, cpu.notes) == ("PyTorch 2.13.0 without CUDA", "", (), ())
    bare = found(SEEN, {**nothing, "torch": "", "cuda": "", "archs": []}, {})
    assert (bare.name, bare.problem) == ("lab:1", "")
    assert bare.notes == ("It has no PyTorch, so nothing is known of the GPUs it can use.",)


def test_a_pytorch_that_cannot_be_imported_is_named_with_its_reason() -> None:
    error = "ImportError: libcudart.so.12: cannot open shared object file\n\x1b[31m"
    image = found(SEEN, {"python": "3.11.2", "error": error}, {})
    assert image.problem == (
        "PyTorch is in the image and cannot be imported: ImportError: libcudart.so.12: cannot open "
        "shared object file  [31m."
    )
    assert (image.torch, image.cuda, image.archs) == (None, None, None)


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ({"torch": "2.6.0+cu124", "cuda": "12.4", "archs": "sm_80,sm_90a,compute_90"}, []),
        ({"torch": "2.8.0"}, ['"2.8.0" for torch, and it has "2.6.0+cu124"']),
        ({"cuda": "none"}, ['"" for cuda'.replace('""', '"none"')]),
        ({"archs": "sm_120"}, ['"sm_120" for archs']),
        ({"torch": "9", "cuda": "9", "archs": "9"}, ["for torch", "for cuda", "for archs"]),
        ({"torch": "<script>\n" + "x" * 5000}, ["<script> xxx"]),
    ],
    ids=["true labels", "another torch", "none", "other GPUs", "all of them", "hostile text"],
)
def test_an_image_that_lies_about_its_labels_is_told_so(
    labels: dict[str, str], says: list[str]
) -> None:
    image = found(SEEN, FACTS, {LABEL + key: value for key, value in labels.items()})
    assert len(image.notes) == len(says)
    for note, words in zip(image.notes, says, strict=True):
        assert words in note
        assert len(note) < 2 * MAX_TEXT + 200
    assert image.torch == "2.6.0+cu124", "what it has is what counts"


@pytest.mark.parametrize("facts", [None, [], "no", 7, [FACTS]])
def test_an_answer_that_is_no_answer_is_a_problem(facts: Any) -> None:
    assert found(SEEN, facts, {}).problem == (
        "What the image printed is not what the scan asked for."
    )


@pytest.mark.parametrize(
    "archs", [None, "sm_80", [1], ["sm_80", "rm -rf"], ["sm_80", None], {"sm_80": 1}]
)
def test_a_list_of_gpus_that_cannot_be_read_is_unknown_as_a_whole(archs: Any) -> None:
    image = found(SEEN, {**FACTS, "archs": archs}, {})
    assert image.archs is None
    assert image.notes == ("Its PyTorch does not say for which GPUs it was built.",)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children),
    max_leaves=12,
)
KEYS = st.sampled_from([*FACTS, "error", "reference", "image_id", "problem", "notes", "size_bytes"])


@given(facts=st.dictionaries(KEYS, JSON, max_size=12))
def test_whatever_an_image_says_is_bounded_and_can_be_written_down(facts: dict[str, Any]) -> None:
    image = found(SEEN, facts, {})
    assert (image.reference, image.image_id, image.size_bytes) == (
        SEEN.reference,
        SEEN.image_id,
        SEEN.size_bytes,
    )
    assert len(json.dumps(image.as_json())) < 8192 + 400 * MAX_ARCHS
    assert len(image.notes) <= MAX_NOTES
    for text in (image.python, image.torch, image.cuda, image.problem):
        assert text is None or (text.isprintable() and len(text) <= MAX_TEXT + 100)
    assert read_image(image.as_json()) == image


MOVES = [
    ("the same image", SEEN.image_id, ""),
    ("another image", "sha256:" + "cd" * 32, "abababababab was scanned, and it is cdcdcdcdcdcd"),
    ("no image", None, "is not on the engine any more"),
]


@pytest.mark.parametrize(("now", "says"), [row[1:] for row in MOVES], ids=[row[0] for row in MOVES])
def test_a_tag_that_moved_is_reported(now: str | None, says: str) -> None:
    sentence = moved(SEEN, now)
    assert bool(sentence) == bool(says)
    assert says in sentence


@pytest.mark.parametrize(
    ("cuda", "drivers"),
    [
        ("12.4", {"minimum": "525.60.13", "full": "550.54.14"}),
        ("11.8", {"minimum": "450.80.02", "full": "520.61.05"}),
        ("11.0", {"minimum": "450.36.06", "full": "450.36.06"}),
        ("13.0", {"minimum": "580", "full": "580.65.06"}),
        ("13.9", {"minimum": "580", "full": ""}),
        ("12.8", {"minimum": "525.60.13", "full": "570.26"}),
        ("14.0", None),
        ("", None),
        ("none", None),
        (None, None),
    ],
)
def test_the_drivers_that_a_cuda_asks_for(cuda: str | None, drivers: dict[str, str] | None) -> None:
    assert drivers_of(cuda) == drivers


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("550.54.14", (550, 54, 14)),
        ("525.60.13", (525, 60, 13)),
        ("2.6.0", (2, 6, 0)),
        ("2.6.0a0+git", (2, 6, 0)),
        ("N/A", ()),
        ("", ()),
        ("9" * 40, (999999999,)),
    ],
)
def test_versions_are_read_as_numbers(text: str, parts: tuple[int, ...]) -> None:
    assert numbers(text) == parts
    if len(parts) == 3 and parts[0] > 100:
        assert say_driver(parts) == text


def test_an_image_is_found_by_its_reference_and_by_its_id() -> None:
    other = Image("lab:2", "sha256:" + "cd" * 32)
    names = by_reference((SEEN, other))
    assert names["lab:1"] is names[SEEN.image_id] is SEEN
    assert names["lab:2"] is other
    assert short_id(SEEN.image_id) == "ab" * 6
