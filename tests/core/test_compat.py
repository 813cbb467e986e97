from __future__ import annotations

from dataclasses import replace

import pytest
from compat_cases import CASES, GPUS, IMAGES, Case
from hypothesis import given
from hypothesis import strategies as st

from pytorch_spawner.core.catalog import Image
from pytorch_spawner.core.compat import KINDS, best_image, explain, fit, fit_any
from pytorch_spawner.core.cuda_rules import is_data_centre, kernels_for, standing_of
from pytorch_spawner.core.cuda_tables import FAMILY_DRIVERS, FIRST_DRIVERS, TOOLKIT_DRIVERS
from pytorch_spawner.core.gpus import Gpu, GpuUuid

OURS = ("2.1-cu118", "2.1-cu121", "2.6-cu124", "2.8-cu128", "2.13-cu130", "cpu")
CATALOG = tuple(IMAGES[name] for name in OURS)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.says)
def test_the_gate(case: Case) -> None:
    told = fit(IMAGES[case.image], GPUS[case.gpu], case.driver)
    assert (told.kind, case.words in told.sentence) == (case.kind, True), told.sentence


def test_the_table_is_as_large_and_as_wide_as_was_asked() -> None:
    assert len(CASES) >= 60
    assert len({case.says for case in CASES}) == len(CASES)
    assert {case.kind for case in CASES} == set(KINDS)
    branches = {int(case.driver.partition(".")[0]) for case in CASES if case.driver[:1].isdigit()}
    assert {450, 470, 525, 535, 550, 570, 580} <= branches


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.says)
def test_every_sentence_is_one_for_people(case: Case) -> None:
    sentence = fit(IMAGES[case.image], GPUS[case.gpu], case.driver).sentence
    assert sentence[-1] == "."
    assert "None" not in sentence
    assert "()" not in sentence
    assert "  " not in sentence
    assert len(sentence) < 420


def test_the_driver_comes_with_the_gpu_where_none_is_named() -> None:
    card = replace(GPUS["A100"], driver="470.57.02")
    assert fit(IMAGES["2.6-cu124"], card).kind == "no"
    assert fit(IMAGES["2.6-cu124"], card, "550.54.14").kind == "native"


@pytest.mark.parametrize("name", OURS)
def test_without_a_gpu_every_image_runs_on_the_cpu(name: str) -> None:
    assert fit(IMAGES[name], None).kind == "cpu"
    assert fit(IMAGES[name], replace(GPUS["RTX 5090"], is_simulated=True)).kind == "cpu"


# -- the nearest image, and the best ----------------------------------------------------------

NEAREST = [
    ("too new a card: the oldest that knows it", "2.6-cu124", "RTX 5090", "580.65.06", "2.8-cu128"),
    ("too old a card: the newest that knows it", "2.8-cu128", "GTX 1080", "570.26", "2.6-cu124"),
    ("too old a driver: the newest that runs", "2.13-cu130", "A100", "550.54.14", "2.8-cu128"),
    ("a driver of CUDA 11: CUDA 11.8", "2.6-cu124", "V100", "470.57.02", "2.1-cu118"),
    ("nothing fits: none is named", "2.6-cu124", "RTX 5090", "560.35.05", ""),
    ("the CPU's image on a GPU", "cpu", "A100", "580.65.06", "2.13-cu130"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("image", "card", "driver", "nearest"),
    [row[1:] for row in NEAREST],
    ids=[row[0] for row in NEAREST],
)
def test_a_refusal_names_the_nearest_image_that_runs(
    image: str, card: str, driver: str, nearest: str
) -> None:
    told = explain(IMAGES[image], GPUS[card], CATALOG, driver)
    assert told.nearest == (IMAGES[nearest].reference if nearest else "")
    assert not nearest or told.sentence.endswith(
        f"The nearest that runs is {IMAGES[nearest].name}."
    )


def test_an_image_that_fits_needs_no_other() -> None:
    told = explain(IMAGES["2.6-cu124"], GPUS["A100"], CATALOG, "550.54.14")
    assert (told.kind, told.nearest) == ("native", "")


BEST = [
    ("a GTX 1080: the newest with code for Pascal", "GTX 1080", "550.54.14", "2.6-cu124", "native"),
    ("a V100: the newest with code for Volta", "V100", "580.65.06", "2.8-cu128", "native"),
    ("an H100 under the newest driver", "H100", "580.65.06", "2.13-cu130", "native"),
    ("an H100 under 550", "H100", "550.54.14", "2.8-cu128", "native"),
    ("an A100 under a driver of CUDA 11", "A100", "470.57.02", "2.1-cu118", "native"),
    ("an RTX 5090 under 570", "RTX 5090", "570.86.16", "2.8-cu128", "native"),
    ("an RTX 4090 under 580", "RTX 4090", "580.95.05", "2.13-cu130", "native"),
    ("nothing with CUDA runs: the CPU's", "RTX 5090", "560.35.05", "cpu", "cpu"),
    ("an unknown driver: a doubt is better than an idle GPU", "A100", "", "2.13-cu130", "unknown"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("card", "driver", "best", "kind"), [row[1:] for row in BEST], ids=[row[0] for row in BEST]
)
def test_auto_takes_the_best_that_fits(card: str, driver: str, best: str, kind: str) -> None:
    told = best_image(CATALOG, GPUS[card], driver)
    assert told.image is not None
    assert (told.image.reference, told.fit.kind) == (IMAGES[best].reference, kind)
    assert told.sentence.startswith(f"{told.image.name} is the best of 6 for ")


def test_compiled_code_is_better_than_a_newer_pytorch_by_ptx() -> None:
    newer = Image(
        "lab:newer-ptx", torch="2.9.0", cuda="12.4", archs=("sm_80", "compute_80"), compat=""
    )
    told = best_image((newer, IMAGES["2.6-cu124"]), GPUS["H100"], "550.54.14")
    assert told.image == IMAGES["2.6-cu124"]
    assert best_image((newer,), GPUS["H100"], "550.54.14").fit.kind == "ptx"


def test_without_a_gpu_auto_takes_the_newest_without_cuda() -> None:
    told = best_image(CATALOG, None)
    assert told.image == IMAGES["cpu"]


def test_a_simulated_gpu_is_no_reason_for_an_image_with_cuda() -> None:
    told = best_image(CATALOG, replace(GPUS["H100"], is_simulated=True), "580.65.06")
    assert (told.image, told.fit.kind) == (IMAGES["cpu"], "cpu")


def test_of_several_gpus_the_one_that_an_image_fits_best_counts() -> None:
    old, new = (replace(GPUS[name], driver="570.86.16") for name in ("GTX 1080", "RTX 5090"))
    assert fit_any(IMAGES["2.8-cu128"], (old, new)).kind == "native"
    assert fit_any(IMAGES["2.6-cu124"], (old, new)).kind == "native"
    told = fit_any(IMAGES["2.6-cu124"], (new,), CATALOG)
    assert (told.kind, told.nearest) == ("no", IMAGES["2.8-cu128"].reference)
    assert fit_any(IMAGES["2.6-cu124"], ()).kind == "cpu"


def test_auto_never_takes_an_image_whose_scan_failed_or_that_fails() -> None:
    assert (
        best_image((IMAGES["hangs"], IMAGES["no-torch"]), GPUS["A100"], "550.54.14").image is None
    )
    told = best_image((IMAGES["2.6-cu124"],), GPUS["RTX 5090"], "580.65.06")
    assert told.image is None
    assert told.sentence.startswith("No image runs on NVIDIA GeForce RTX 5090 (Blackwell 12.0).")
    assert best_image((), None).image is None


# -- the rules by themselves ------------------------------------------------------------------

CAPABILITIES = st.sampled_from(
    [card.compute_capability for card in GPUS.values() if card.compute_capability]
)
ARCHS = st.lists(
    st.sampled_from(
        [f"{what}_{digits}" for what in ("sm", "compute") for digits in
         ("50", "60", "61", "70", "75", "80", "86", "87", "89", "90", "90a", "100", "100f", "120")]
    ),
    max_size=6,
)  # fmt: skip
DRIVERS = st.tuples(st.integers(440, 620), st.integers(0, 200), st.integers(0, 30))


@given(archs=ARCHS, more=ARCHS, capability=CAPABILITIES)
def test_more_code_in_an_image_never_makes_it_worse(
    archs: list[str], more: list[str], capability: tuple[int, int]
) -> None:
    order = ("compiled", "ptx", "none")
    fewer = order.index(kernels_for(archs, capability))
    assert order.index(kernels_for(archs + more, capability)) <= fewer


@given(driver=DRIVERS, toolkit=st.sampled_from(sorted(TOOLKIT_DRIVERS)))
def test_a_newer_driver_is_never_worse_for_a_toolkit(
    driver: tuple[int, int, int], toolkit: tuple[int, int]
) -> None:
    order = ("full", "minor", "old")
    newer = (driver[0] + 1, *driver[1:])
    now, then = standing_of(toolkit, driver), standing_of(toolkit, newer)
    assert now is not None
    assert then is not None
    assert order.index(then) <= order.index(now)


@given(
    image=st.sampled_from(sorted(IMAGES)),
    card=st.sampled_from(sorted(GPUS)),
    driver=st.one_of(st.text(max_size=12), DRIVERS.map(lambda parts: ".".join(map(str, parts)))),
)
def test_a_no_rests_on_known_facts(image: str, card: str, driver: str) -> None:
    told = fit(IMAGES[image], GPUS[card], driver)
    assert told.kind in KINDS
    unknown = replace(IMAGES[image], archs=None, cuda=None)
    assert fit(unknown, GPUS[card], driver).kind in ("unknown",)
    nothing = replace(GPUS[card], compute_capability=None)
    assert fit(IMAGES[image], nothing, "").kind in ("unknown", "cpu")


def test_the_tables_grow_with_the_versions() -> None:
    toolkits = sorted(TOOLKIT_DRIVERS)
    drivers = [TOOLKIT_DRIVERS[one] for one in toolkits]
    assert drivers == sorted(drivers)
    assert sorted(FAMILY_DRIVERS) == [11, 12, 13]
    for toolkit, driver in TOOLKIT_DRIVERS.items():
        assert driver >= FAMILY_DRIVERS[toolkit[0]] or toolkit == (11, 0)
    assert set(FIRST_DRIVERS.values()) <= set(TOOLKIT_DRIVERS.values())


NAMES = [
    ("NVIDIA A100-SXM4-80GB", True), ("Tesla V100-SXM2-16GB", True), ("NVIDIA L40S", True),
    ("NVIDIA H200", True), ("NVIDIA GH200 480GB", True), ("NVIDIA B200", True), ("NVIDIA A2", True),
    ("NVIDIA GeForce RTX 4090", False), ("NVIDIA TITAN V", False), ("Quadro RTX 6000", None),
    ("NVIDIA RTX PRO 6000 Blackwell Server Edition", None), ("NVIDIA Graphics Device", None),
    ("", None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "expected"), NAMES)
def test_which_gpus_take_the_forward_compatibility_package(
    name: str, expected: bool | None
) -> None:
    assert is_data_centre(name) is expected


def test_a_hostile_name_of_a_gpu_stays_on_its_line() -> None:
    card = Gpu(GpuUuid("GPU-hostile"), name="A\n<b>\x1b[2J" + "x" * 5000, compute_capability=(8, 0))
    told = fit(IMAGES["2.6-cu124"], card, "550.54.14")
    assert "\n" not in told.sentence
    assert "\x1b" not in told.sentence
    assert len(told.sentence) < 600
