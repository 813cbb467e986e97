"""Suites: every fault by its place, limits, digest and archive."""

from __future__ import annotations

import io
import json
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytorch_spawner.adapters.suite_files import read_directory
from pytorch_spawner.core import suites
from pytorch_spawner.core.suites import Suite, SuiteTarget, digest, pack, read_suite, unpack
from pytorch_spawner.errors import BadRequest

NOTEBOOK = json.dumps(
    {
        "cells": [
            {"cell_type": "markdown", "metadata": {"tags": ["text"]}, "source": ""},
            {"cell_type": "code", "metadata": {"tags": ["warm-up"]}, "source": "step()"},
            {"cell_type": "code", "metadata": {}, "source": ""},
        ]
    }
).encode()
WHOLE = b"""
name: example
targets:
  - name: gpt
    function: models.gpt:train_step
    vary: {batch_size: 8}
  - {name: resnet, script: resnet.py, vary: {batch_size: 32}}
  - {name: lesson, notebook: week1/lesson.ipynb}
imports: [numpy, torchvision.ops]
network: true
deadline_s: 60
"""
FILES = {
    "suite.yaml": WHOLE,
    "models/gpt.py": b"",
    "resnet.py": b"print()",
    "week1/lesson.ipynb": NOTEBOOK,
}


def faults(text, files=FILES):
    with pytest.raises(BadRequest) as refused:
        read_suite({**files, "suite.yaml": text.encode()})
    said = refused.value
    assert len(said.problems) == len(said.faults)
    assert said.public_message.startswith("The suite is not usable: ")
    return list(said.faults)


def test_a_whole_suite_is_read_and_comes_back_from_json():
    suite = read_suite(FILES)
    assert suite == Suite(
        "example",
        (
            SuiteTarget("gpt", "function", "models.gpt:train_step", vary=("batch_size", 8)),
            SuiteTarget("resnet", "script", "resnet.py", vary=("batch_size", 32)),
            SuiteTarget("lesson", "notebook", "week1/lesson.ipynb"),
        ),
        ("numpy", "torchvision.ops"),
        True,
        60,
    )
    said = json.loads(json.dumps(suite.as_json()))
    assert said["targets"][0] == {
        "name": "gpt",
        "kind": "function",
        "what": "models.gpt:train_step",
        "tag": "warm-up",
        "vary": ["batch_size", 8],
    }
    assert Suite.from_json(said) == suite


def test_what_is_left_out_has_its_default():
    suite = read_suite({"suite.yaml": b"name: a\ntargets: [{name: b, function: m:f}]", "m.py": b""})
    assert (suite.imports, suite.network, suite.deadline_s) == ((), False, 900)
    assert suite.targets[0].vary is None


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[]", "suite.yaml: it holds no keys, such as name and targets"),
        ("name: [", "suite.yaml: it is no YAML: "),
        ("name: a", "targets: it is missing"),
        ("targets: [{name: b, script: resnet.py}]", "name: it is missing"),
        ("name: A\ntargets: []", "name: a to z, 0 to 9 and -, at most 40 characters"),
        ("name: a\ntargets: []", "targets: at least one"),
        ("name: a\ntargets: 3", "targets: a list"),
        ("name: a\ntargets: [3]", "targets[0]: a list of keys and values"),
        ("name: a\ntargets: [{name: b}]", "targets[0]: exactly one of function, script and n"),
        (
            "name: a\ntargets: [{name: b, script: resnet.py, function: 'm:f'}]",
            "targets[0]: exactly one of function, script and notebook",
        ),
        (
            "name: a\ntargets: [{name: b, script: x.py}]",
            "targets[0].script: there is no file x.py in the suite",
        ),
        (
            "name: a\ntargets: [{name: b, script: resnet.txt}]",
            "targets[0].script: a file that ends in .py",
        ),
        (
            "name: a\ntargets: [{name: b, function: 'x.y:f'}]",
            "targets[0].function: there is no file x/y.py in the suite",
        ),
        (
            "name: a\ntargets: [{name: b, function: 'x'}]",
            "targets[0].function: module:function, such as gpt:train_step",
        ),
        (
            "name: a\ntargets: [{name: b, notebook: week1/lesson.ipynb, tag: slow}]",
            "targets[0].notebook: no code cell of it has the tag slow",
        ),
        (
            "name: a\ntargets: [{name: b, script: resnet.py, tag: slow}]",
            "targets[0].tag: only a notebook has tags",
        ),
        (
            "name: a\ntargets: [{name: b, script: resnet.py, vary: {x: 0}}]",
            "targets[0].vary.x: at least 1",
        ),
        (
            "name: a\ntargets: [{name: b, script: resnet.py, vary: {x: true}}]",
            "targets[0].vary.x: a whole number, not true or false",
        ),
        (
            "name: a\ntargets: [{name: b, script: resnet.py, vary: {x: 1, y: 2}}]",
            "targets[0].vary: one name and its usual value, such as {batch_size: 8}",
        ),
        (
            "name: a\ntargets: [{name: b, script: resnet.py, vary: {'--x y': 1}}]",
            "targets[0].vary: --x y is no name of a variable",
        ),
        (
            "name: a\nimports: [os;rm]\ntargets: [{name: b, script: resnet.py}]",
            "imports[0]: names of modules, such as torchvision or numpy.linalg",
        ),
        (
            "name: a\nnetwork: perhaps\ntargets: [{name: b, script: resnet.py}]",
            "network: true or false",
        ),
        (
            "name: a\ndeadline_s: 9\ntargets: [{name: b, script: resnet.py}]",
            "deadline_s: at least 10",
        ),
        (
            "name: a\ndeadline: 9\ntargets: [{name: b, script: resnet.py}]",
            "deadline: there is no such key",
        ),
    ],
)
def test_a_fault_is_named_with_its_place(text, fault):
    assert [one for one in faults(text) if one.startswith(fault)], faults(text)


def test_all_faults_are_named_at_once():
    said = faults(
        "name: UP\n"
        "targets:\n"
        "  - {name: one, script: gone.py}\n"
        "  - {name: one, function: resnet:f, size: 3}\n"
        "  - {name: two, notebook: no.ipynb, vary: {x: -1}}\n"
        "deadline_s: 1\n"
    )
    assert sorted(one.partition(":")[0] for one in said) == [
        "deadline_s",
        "name",
        "targets[0].name",
        "targets[0].script",
        "targets[1].name",
        "targets[1].size",
        "targets[2].notebook",
        "targets[2].vary.x",
    ]


def test_a_directory_without_the_file_is_no_suite():
    with pytest.raises(BadRequest, match=r"there is no suite\.yaml in it"):
        read_suite({"gpt.py": b""})


def test_a_notebook_that_is_none_is_said():
    files = {**FILES, "week1/lesson.ipynb": b"[1]"}
    with pytest.raises(BadRequest, match=r"targets\[2\]\.notebook: it is no notebook"):
        read_suite(files)


def test_no_text_of_a_suite_steers_a_terminal():
    for text in ('"a\\x1b[2J": 1\nname: a\ntargets: []', 'name: a\ntargets: [{name: "\\x1b"}]'):
        assert all(fault.isprintable() for fault in faults(text))


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "../a.py", "a/../b.py", "a//b.py", "./a.py", "a\nb", "a\\b", "", "x" * 201],
)
def test_a_path_that_leads_elsewhere_is_refused(path):
    with pytest.raises(BadRequest):
        read_suite({**FILES, path: b""})
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as opened:
        opened.addfile(tarfile.TarInfo(path))
    with pytest.raises(BadRequest):
        unpack(archive.getvalue())


def test_too_many_and_too_large_files_are_refused():
    with pytest.raises(BadRequest, match="it has 204 files, and may have 200"):
        read_suite({**FILES, **{f"f{number}": b"" for number in range(200)}})
    with pytest.raises(BadRequest, match=r"1\.0 MiB together"):
        read_suite({**FILES, "data": b"0" * suites.MAX_BYTES})
    with pytest.raises(BadRequest, match=r"suite\.yaml: more than 64 KiB"):
        read_suite({"suite.yaml": b"#" * (64 * 1024 + 1)})
    with pytest.raises(BadRequest, match="both a file and a folder"):
        read_suite({**FILES, "resnet.py/x": b""})


def test_a_yaml_that_nests_for_ever_is_refused():
    assert faults("[" * 60_000)[0].startswith("suite.yaml: it is no YAML")
    bomb = "a: &a [x]\n" + "".join(
        f"b{n}: &b{n} [*{'a' if n == 0 else f'b{n - 1}'}]\n" for n in range(9)
    )
    assert len(faults(bomb)) > 9


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE]
)
def test_an_archive_holds_files_only(kind):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as opened:
        entry = tarfile.TarInfo("gpt.py")
        entry.type, entry.linkname = kind, "/etc/passwd"
        opened.addfile(entry)
    with pytest.raises(BadRequest, match="something else than files"):
        unpack(archive.getvalue())


def test_an_archive_that_was_cut_or_edited_is_refused():
    archive = pack(FILES)
    for damaged in (b"no tar", archive[:700], b"\0" * suites.MAX_BYTES * 3):
        with pytest.raises(BadRequest):
            unpack(damaged)


_PATHS = st.from_regex(r"[a-zé]{1,4}(/[a-z]{1,3}\.py)?", fullmatch=True)
_FILES = st.dictionaries(_PATHS, st.binary(max_size=700), max_size=6).filter(
    lambda files: not {path.partition("/")[0] for path in files if "/" in path} & set(files)
)


@given(_FILES)
def test_an_archive_gives_back_what_went_in_and_the_same_bytes_each_time(files):
    assert unpack(pack(files)) == files
    assert pack(files) == pack(dict(reversed(files.items())))


@given(_FILES, _FILES)
def test_a_digest_is_of_the_content_and_not_of_the_order(one, other):
    assert (digest(one) == digest(other)) == (one == other)
    assert digest(one) == digest(dict(reversed(one.items())))


# -- from disk -------------------------------------------------------------------------------------


def test_a_directory_is_read_without_caches_and_hidden_files(tmp_path):
    for path, content in FILES.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(content)
    for path in ("__pycache__/gpt.cpython-311.pyc", ".git/config", ".hidden", "models/.x"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(b"no")
    assert read_directory(tmp_path) == FILES


def test_a_link_is_refused_and_not_followed(tmp_path):
    (tmp_path / "suite.yaml").symlink_to("/etc/passwd")
    with pytest.raises(BadRequest, match=r"suite\.yaml is a link"):
        read_directory(tmp_path)


def test_a_directory_beyond_the_limits_is_not_read_whole(tmp_path):
    with (tmp_path / "large").open("wb") as file:
        file.truncate(10 * 2**30)
    with pytest.raises(BadRequest, match="more than 1 MiB"):
        read_directory(tmp_path)
    (tmp_path / "large").unlink()
    for number in range(suites.MAX_FILES + 1):
        (tmp_path / f"f{number}").touch()
    with pytest.raises(BadRequest, match="more than 200 files"):
        read_directory(tmp_path)


def test_a_directory_that_is_none_is_said(tmp_path):
    with pytest.raises(BadRequest, match="gone cannot be read: No such file"):
        read_directory(tmp_path / "gone")
