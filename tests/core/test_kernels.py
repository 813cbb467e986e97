"""What a container says of its notebooks, read, joined with the driver's word, and said."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytorch_spawner.core.changes import can_undo, say_change
from pytorch_spawner.core.kernels import (
    BadAnswer,
    Found,
    Holder,
    Share,
    gib,
    lasting,
    read_found,
    say,
    sorted_by_weight,
    with_gpu,
)

CV = Holder("a", "week-1/cv-03.ipynb", "python3", "kernel", "idle", 2400, pids=(54, 55))
NLP = Holder("b", "nlp.ipynb", "python3", "kernel", "busy", pids=(82,))
TRAIN = Holder("", "", "python3 train.py", "terminal", pid=99, pids=(98, 99))
WHOLE = Share("GPU-1", 81_559, 20_000, is_slot=False)


def held(holder: Holder, gpu_mib: int | None, memory_mib: int | None = 2048) -> Holder:
    uses = None if gpu_mib is None else gpu_mib > 0
    return replace(holder, gpu_mib=gpu_mib, memory_mib=memory_mib, uses_gpu=uses)


SENTENCES = {
    "an idle notebook with most of the GPU": (
        [held(CV, 11_264), held(NLP, 500)], [], [WHOLE],
        "cv-03.ipynb holds 11 GiB of your GPU and has done nothing for 40 min.",
    ),
    "an idle one is named before a busy one that holds more": (
        [held(CV, 4096), held(NLP, 11_264)], [], [WHOLE],
        "cv-03.ipynb holds 4 GiB of your GPU and has done nothing for 40 min.",
    ),
    "only busy ones: whatever holds most": (
        [held(replace(CV, state="busy", idle_s=None), 1500), held(NLP, 11_264)], [], [WHOLE],
        "nlp.ipynb holds 11 GiB of your GPU and is computing.",
    ),
    "one that was used a minute ago is not called forgotten": (
        [held(replace(CV, idle_s=60), 1536)], [], [WHOLE],
        "cv-03.ipynb holds 1.5 GiB of your GPU.",
    ),
    "an idle one that holds nothing worth it is not named first": (
        [held(CV, 0, 60), held(NLP, 0, 900)], [], [],
        "nlp.ipynb holds 900 MiB of your server's memory and is computing.",
    ),
    "without a GPU it is the memory": (
        [held(CV, 0, 5000)], [], [],
        "cv-03.ipynb holds 4.9 GiB of your server's memory and has done nothing for 40 min.",
    ),
    "a GPU that is full": (
        [held(CV, 70_000)], [], [replace(WHOLE, used_mib=75_000)],
        "Your GPU is nearly full: 73 GiB of 80 GiB in use. "
        "cv-03.ipynb holds 68 GiB of your GPU and has done nothing for 40 min.",
    ),
    "a slot that is full": (
        [held(NLP, 19_000)], [], [Share("GPU-1", 20_389, 19_000, is_slot=True)],
        "Your slot of a GPU is nearly full: 19 GiB of 20 GiB in use. "
        "nlp.ipynb holds 19 GiB of your GPU and is computing.",
    ),
    "how much is unknown": (
        [replace(NLP, uses_gpu=True, memory_mib=2048)], [], [WHOLE],
        "nlp.ipynb uses your GPU (how much is unknown) and is computing.",
    ),
    "nothing is known": (
        [replace(NLP, state="")], [], [WHOLE], "nlp.ipynb is open (what it holds is unknown).",
    ),
    "several GPUs": (
        [held(CV, 11_264)], [], [WHOLE, replace(WHOLE, uuid="GPU-2")],
        "cv-03.ipynb holds 11 GiB of your GPUs and has done nothing for 40 min.",
    ),
    "no notebook": ([], [], [WHOLE], "No notebook is open."),
    "no notebook, but a program in a terminal": (
        [], [held(TRAIN, 30_000)], [WHOLE],
        "No notebook is open. python3 train.py (process 99) holds 29 GiB of your GPU.",
    ),
    "the GPU is with a terminal and not with the notebook": (
        [held(NLP, 0, 300)], [held(TRAIN, 30_000)], [WHOLE],
        "nlp.ipynb holds 300 MiB of your server's memory and is computing. "
        "python3 train.py (process 99) holds 29 GiB of your GPU.",
    ),
    "the lab's own warm-up is not somebody's fault": (
        [], [held(replace(TRAIN, kind="lab"), 30_000)], [WHOLE], "No notebook is open.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SENTENCES)
def test_the_sentence_names_what_to_shut_down(case: str) -> None:
    kernels, others, shares, sentence = SENTENCES[case]
    assert say(Found(tuple(kernels), tuple(others)), shares) == sentence


def test_somebody_elses_page_says_whose_it_is() -> None:
    full = replace(WHOLE, used_mib=81_000)
    said = say(Found((held(CV, 11_264),)), [full], "ana's")
    assert said.startswith("ana's GPU is nearly full: ")
    assert "cv-03.ipynb holds 11 GiB of ana's GPU" in said


def test_trouble_is_said_and_not_that_nothing_is_open() -> None:
    said = say(Found(trouble="JupyterLab does not answer."), [replace(WHOLE, used_mib=81_000)])
    assert said == ("Your GPU is nearly full: 79 GiB of 80 GiB in use. JupyterLab does not answer.")


GPU_CASES = {
    "two processes of one tree": (CV, {54: 6000, 55: 500}, True, 6500),
    "one of them on it": (CV, {55: 500, 82: 1}, True, 500),
    "none listed, and none has a GPU open": (CV, {82: 1}, False, 0),
    "others listed, and these only asked what GPU there is": (CV, {82: 1}, True, 0),
    "none listed at all, but one has CUDA open": (CV, {}, True, None),
    "others listed, and the processes are unknown": (replace(CV, pids=()), {82: 1}, None, None),
    "none listed, and nobody could look": (CV, {}, None, None),
    "listed without a size": (CV, {54: None, 55: 500}, True, None),
    "listed, whatever its open files say": (CV, {54: 700}, False, 700),
}


@pytest.mark.parametrize("case", GPU_CASES)
def test_gpu_memory_of_a_tree_is_its_processes(case: str) -> None:
    holder, by_pid, uses, wanted = GPU_CASES[case]
    found = Found((replace(holder, uses_gpu=uses),), (TRAIN,))
    assert with_gpu(found, by_pid).kernels[0].gpu_mib == wanted


def test_the_service_sees_more_than_the_container_so_its_word_counts() -> None:
    found = Found((replace(CV, uses_gpu=True),), gpu_mib={54: 1})
    assert with_gpu(found, {54: 2}).kernels[0].gpu_mib == 2
    assert with_gpu(found, None).kernels[0].gpu_mib == 1
    assert with_gpu(replace(found, gpu_mib=None), None).kernels[0].gpu_mib is None


def test_what_holds_most_of_the_gpu_comes_first_then_what_may() -> None:
    unknown = replace(TRAIN, uses_gpu=True)
    ranked = sorted_by_weight([held(NLP, 0, 9000), unknown, held(CV, 100, 10)])
    assert [one.notebook for one in ranked] == ["cv-03.ipynb", "python3 train.py", "nlp.ipynb"]


@pytest.mark.parametrize(
    ("total", "used", "is_full"),
    [(80_000, 72_000, True), (80_000, 71_000, False), (None, 72_000, False), (80_000, None, False)],
)
def test_nearly_full_is_nine_tenths_where_both_are_known(
    total: int | None, used: int | None, is_full: bool
) -> None:
    assert Share("GPU-1", total, used, is_slot=False).is_nearly_full is is_full


def test_a_row_that_is_none_is_left_out_and_the_rest_is_read() -> None:
    good = {"id": "a", "path": "x.ipynb", "state": "idle", "idle_s": 5, "pids": [1, "2", -3, True],
            "memory_mib": 10, "uses_gpu": "yes"}  # fmt: skip
    bad = [{"id": "../../etc"}, {"id": 5}, {}, "x", None, {"id": "a" * 65}]
    others = [{"pid": 2**40, "kind": "evil", "name": "a\x1b[31mb\u202e", "memory_mib": -1}, 3]
    said = {
        "v": 1,
        "kernels": [*bad, good, good],
        "others": others,
        "gpu": {"1": 5, "x": 1, "2": -1},
    }
    found = read_found(json.dumps(said))
    assert found.kernels == (
        Holder("a", "x.ipynb", "", "kernel", "idle", 5, pids=(1,), memory_mib=10),
    )
    assert found.others == (Holder("", "", "a[31mb", "other"),)
    assert (found.gpu_mib, found.trouble) == ({1: 5}, "")


def test_a_flood_is_cut() -> None:
    rows = [
        {"id": f"k{number}", "path": "x" * 10_000, "pids": list(range(9999))}
        for number in range(500)
    ]
    found = read_found(json.dumps({"v": 1, "kernels": rows, "others": [{}] * 500}))
    assert (len(found.kernels), len(found.others)) == (100, 20)
    assert len(found.kernels[0].path) == 300
    assert len(found.kernels[0].pids) == 200


@pytest.mark.parametrize("text", ["", "null", "[]", '{"v": 2}', "{" * 5000, '{"kernels": []}'])
def test_what_is_no_answer_is_refused(text: str) -> None:
    with pytest.raises(BadAnswer):
        read_found(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=10,
)
FIELDS = ("id", "path", "name", "state", "idle_s", "pid", "pids", "memory_mib", "uses_gpu", "kind")
ROW = st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS, JSON))


@given(
    st.fixed_dictionaries(
        {"v": st.just(1)},
        optional={
            "kernels": st.lists(ROW | JSON, max_size=4) | JSON,
            "others": st.lists(ROW | JSON, max_size=4) | JSON,
            "gpu": JSON,
            "trouble": JSON,
        },
    )
)
def test_whatever_a_container_says_can_be_shown(said: Any) -> None:
    found = with_gpu(read_found(json.dumps(said)), None)
    for holder in (*found.kernels, *found.others):
        json.dumps(holder.as_json(), allow_nan=False)
        assert holder.notebook.isprintable()
        assert holder.memory_mib is None or holder.memory_mib >= 0
    assert say(found, [WHOLE])


@pytest.mark.parametrize(
    ("mib", "said"),
    [(0, "0 MiB"), (999, "999 MiB"), (1024, "1 GiB"), (1536, "1.5 GiB"), (11_264, "11 GiB")],
)
def test_sizes_have_units(mib: int, said: str) -> None:
    assert gib(mib) == said


@pytest.mark.parametrize(
    ("seconds", "said"), [(600, "10 min"), (7199, "119 min"), (7200, "2 h"), (200_000, "2 days")]
)
def test_times_have_units(seconds: int, said: str) -> None:
    assert lasting(seconds) == said


@pytest.mark.parametrize(
    ("subject", "said"),
    [
        ("ana/", "Asked to shut down the kernel of cv-03.ipynb in the server ana."),
        ("ana/thesis", "Asked to shut down the kernel of cv-03.ipynb in the server ana/thesis."),
    ],
)
def test_the_log_says_which_notebook_an_admin_shut_down(subject: str, said: str) -> None:
    assert say_change("kernel", subject, None, {"notebook": "cv-03.ipynb", "kernel": "a"}) == said
    assert not can_undo("kernel", None, {"notebook": "cv-03.ipynb"})
