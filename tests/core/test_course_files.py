"""What of a source reaches students: every rule with its sentence, and what holds of any tree."""

from __future__ import annotations

import json
import posixpath
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pytorch_spawner.core.course_files import (
    Checked,
    Entry,
    Limits,
    Note,
    check_notebook,
    check_tree,
)
from pytorch_spawner.core.course_notebooks import MAX_NOTEBOOK_BYTES
from tests.examples import examples

LIMITS = Limits(max_bytes=1000, max_files=12, max_file_bytes=400)
OID = "a" * 40


def file(path: str, size: int = 1, *, is_lfs_pointer: bool = False) -> Entry:
    return Entry(path, "100644", "file", size, OID, is_lfs_pointer=is_lfs_pointer)


def link(path: str, target: str) -> Entry:
    return Entry(path, "120000", "link", len(target), OID, link_target=target)


def submodule(path: str) -> Entry:
    return Entry(path, "160000", "submodule", 0, OID)


def kept(checked: Checked) -> list[str]:
    return [entry.path for entry in checked.kept]


def test_an_ordinary_tree_is_kept_as_it_is_by_path() -> None:
    program = Entry("run.sh", "100755", "file", 3, OID)
    ordinary = [
        file("week 1/a.ipynb"),
        program,
        link("week 1/data", "../data"),
        file("data/cifar/labels.txt"),
        file(".gitignore"),
        file("CON.txt"),
        file("\u00dcbung \u2013 l\u00f6sung \U0001f469\u200d\U0001f3eb.ipynb"),
    ]
    assert check_tree(ordinary, LIMITS) == Checked(
        tuple(sorted(ordinary, key=lambda entry: entry.path)), ()
    )


# What stands beside "a.ipynb" -> what is kept beside it, the note's level, and words of the note.
LEFT_OUT = {
    "a submodule": ([submodule("theirs")], [], "warn", "theirs: it is a submodule and is left out"),
    "a Git LFS pointer": (
        [file("data.bin", 130, is_lfs_pointer=True)],
        [],
        "fail",
        "data.bin: it is a Git LFS pointer",
    ),
    "an absolute link": ([link("l", "/etc/passwd")], [], "warn", "leads out of the course"),
    "a link to the folder above": ([link("l", "..")], [], "warn", "leads out of the course"),
    "a link that goes up and comes back": (
        [link("w/l", "../../course/a.ipynb")],
        [],
        "warn",
        "leads out of the course",
    ),
    "a link whose way leads over another out of the tree": (
        [file("w/b"), link("w/up", ".."), link("w/l", "up/../a.ipynb")],
        ["w/b", "w/up"],
        "warn",
        "w/l: it is a symbolic link that leads out of the course",
    ),
    "two links in a circle": (
        [link("x", "y"), link("y", "x")],
        [],
        "warn",
        "x: it is a symbolic link that leads to what",
    ),
    "a link without a target": ([link("l", "")], [], "warn", "leads to what the course does not"),
    "a link by way of what is not there": (
        [link("l", "later/../a.ipynb")],
        [],
        "warn",
        "leads to what the course does not hold",
    ),
    "a link to what is not there": (
        [link("l", "later.txt")],
        [],
        "warn",
        "leads to what the course does not hold",
    ),
    "a link to what is left out": (
        [submodule("theirs"), link("l", "theirs"), link("m", "l")],
        [],
        "warn",
        "l: it is a symbolic link that leads to what the course does not hold",
    ),
    "a link into git's own folder": (
        [link("l", ".git/hooks/post-checkout")],
        [],
        "warn",
        "leads to what the course does not hold",
    ),
    "a path that goes up": ([file("../a.txt")], [], "fail", 'its path has the part ".."'),
    "a path that goes up in the middle": ([file("w/../../a.txt")], [], "fail", 'the part ".."'),
    "an absolute path": ([file("/etc/passwd")], [], "fail", 'its path has the part ""'),
    "a path with nothing between": ([file("w//a")], [], "fail", 'its path has the part ""'),
    "a path with a dot": ([file("./a.txt")], [], "fail", 'its path has the part "."'),
    "git's own folder": ([file(".git/config")], [], "fail", 'its path has the part ".git"'),
    "git's folder in capitals": ([file("w/.GIT/config")], [], "fail", 'the part ".GIT"'),
    "git's folder as NTFS sees it": ([file("git~1/config")], [], "fail", 'the part "git~1"'),
    "git's folder with dots behind": ([file(".git. ./config")], [], "fail", 'part ".git. ."'),
    "git's folder with a stream": ([file(".git::$INDEX/x")], [], "fail", "no git makes"),
    "git's folder as macOS sees it": ([file(".g\u200cit/config")], [], "fail", "no git makes"),
    "a line break in a name": ([file("a\nb.txt")], [], "warn", "a?b.txt: it is left out: its name"),
    "an escape in a name": ([file("\x1b[2J.txt")], [], "warn", "holds control characters"),
    "a name that runs backwards": ([file("a\u202etxt.ipynb")], [], "warn", "control characters"),
    "a name that is no UTF-8": ([file("b\udcfcro.txt")], [], "warn", "its name is no UTF-8"),
    "a backslash in a name": ([file("w\\a.txt")], [], "warn", "its name holds a backslash"),
    "a path of 201 characters": ([file("d/" * 99 + "abc")], [], "warn", "longer than 200 char"),
    "a path of 200 characters": ([file("d/" * 99 + "ab")], ["d/" * 99 + "ab"], "", ""),
    "a name of 222 bytes": ([file("\u00fc" * 111)], [], "warn", "one name in it longer than 220"),
    "attributes": ([file("w/.gitattributes")], [], "warn", "it tells git how to merge"),
    "the list of submodules": ([file(".gitmodules")], [], "warn", "it is left out"),
    "a file that is too large": ([file("big", 401)], [], "fail", "big: it has 0.0 MiB, and a file"),
    "a path that stands twice": (
        [file("b"), file("b", 2)],
        [],
        "fail",
        "b: the repository names it twice",
    ),
    "a file that is a folder, too": (
        [file("w"), file("w/b")],
        ["w/b"],
        "fail",
        "w: the repository names it twice, or both as a file and as a folder",
    ),
    "a link that is a folder, too": (
        [link("w", "/etc"), file("w/passwd")],
        ["w/passwd"],
        "fail",
        "w: the repository names it twice, or both",
    ),
    "names that differ in case": (
        [file("A.ipynb")],
        ["A.ipynb"],
        "warn",
        "A.ipynb and a.ipynb differ in upper and lower case only. Both are kept",
    ),
    "names that differ in how an accent is stored": (
        [file("\u00fc"), file("u\u0308")],
        ["u\u0308", "\u00fc"],
        "warn",
        "differ in upper and lower case only",
    ),
    "folders that differ in case": (
        [file("w/b"), file("W/b")],
        ["W/b", "w/b"],
        "warn",
        "W and w differ in upper and lower case only",
    ),
    "too many files": (
        [file(f"{number:02}") for number in range(12)],
        [f"{number:02}" for number in range(12)],
        "fail",
        "The course has 13 files, and 12 are allowed",
    ),
    "too large together": (
        [file(name, 400) for name in "bcd"],
        ["b", "c", "d"],
        "fail",
        "The course has 0.0 MiB",
    ),
}


@pytest.mark.parametrize(
    ("entries", "beside", "level", "says"), LEFT_OUT.values(), ids=LEFT_OUT.keys()
)
def test_a_tree_with(entries: list[Entry], beside: list[str], level: str, says: str) -> None:
    checked = check_tree([file("a.ipynb"), *entries], LIMITS)
    assert kept(checked) == sorted([*beside, "a.ipynb"])
    assert all(note.message.isprintable() for note in checked.notes)
    if not level:
        assert checked.notes == ()
    else:
        assert {note.level for note in checked.notes} == {level}
        assert any(says in note.message for note in checked.notes)
        assert all(note.message.endswith(".") for note in checked.notes)


@pytest.mark.parametrize("entries", [[], [submodule("a")], [link("a", "b")], [file("../a")]])
def test_a_tree_without_a_file_is_no_course(entries: list[Entry]) -> None:
    checked = check_tree(entries, LIMITS)
    assert checked.kept == ()
    assert ("fail", "") in [(note.level, note.path) for note in checked.notes]
    assert checked.notes[0].level == "fail"


def test_links_inside_are_kept() -> None:
    entries = [
        file("w/a"),
        link("w/here", "."),
        link("top", ""),
        link("root", "w/.."),
        link("l1", "w/here/a"),
        link("l2", "./l1"),
        link("w/l3", "../w//here/here/../w/a"),
    ]
    assert kept(check_tree(entries, LIMITS)) == ["l1", "l2", "root", "w/a", "w/here", "w/l3"]


def test_forty_links_in_a_row_are_followed_as_linux_does() -> None:
    def row(length: int) -> list[Entry]:
        return [link(f"l{one:02}", f"l{one + 1:02}") for one in range(length)]

    assert len(kept(check_tree([*row(40), file("l40")], Limits()))) == 41
    assert len(kept(check_tree([*row(41), file("l41")], Limits()))) == 41


def test_a_thousand_findings_are_a_handful_of_sentences() -> None:
    entries = [file("a"), *(submodule(f"s{number:04}") for number in range(1000))]
    notes = check_tree(entries, Limits()).notes
    assert [note.path for note in notes] == ["s0000", "s0001", "s0002", "s0003", "s0004", "s0005"]
    assert notes[-1] == Note("warn", "s0005", "There are 995 more submodules left out.")
    twins = [file(f"{letter}{number}") for letter in "aA" for number in range(9)]
    assert check_tree(twins, Limits()).notes[-1].message == (
        "There are 4 more names that differ in case only."
    )


def test_what_is_wrong_comes_first() -> None:
    entries = [file("a"), file("A"), submodule("s"), file("../b"), file("p", is_lfs_pointer=True)]
    levels = [note.level for note in check_tree(entries, LIMITS).notes]
    assert levels == ["fail", "fail", "warn", "warn"]


# Few names, so that they meet; each part that is a trap.
_PART = st.sampled_from(
    ["a", "A", "b", "..", ".", "", ".git", "GIT~1", "\u00fc", "x\n", "\udcff", "l", "a" * 230]
)
_PATH = st.lists(_PART, min_size=1, max_size=4).map("/".join)
_ENTRY = st.one_of(
    st.builds(file, _PATH, st.integers(0, 500)),
    st.builds(link, _PATH, st.one_of(_PATH, st.just("/etc"))),
    st.builds(submodule, _PATH),
)


def walked(path: str, links: dict[str, str], hops: int = 0) -> str | None:
    """Where a path ends by a plain reading of path_resolution(7); None outside of the tree."""
    here: list[str] = []
    parts = path.split("/")
    for place, part in enumerate(parts):
        if part == ".." and not here:
            return None
        if part == "..":
            here.pop()
        elif part not in ("", "."):
            here.append(part)
            target = links.get("/".join(here))
            if target is not None:
                if hops >= 40 or target.startswith("/"):
                    return None
                rest = "/".join([*here[:-1], target, *parts[place + 1 :]])
                return walked(rest, links, hops + 1)
    return "/".join(here)


@given(st.lists(_ENTRY, max_size=12))
@example([file("a/b"), link("a/l", ".."), link("x", "a/l/../b")])
@settings(max_examples=examples(400), deadline=None)
def test_whatever_the_tree_what_is_kept_lies_inside(entries: list[Entry]) -> None:
    checked = check_tree(entries, LIMITS)
    paths = kept(checked)
    ends = {entry.path for entry in checked.kept}
    links = {entry.path: entry.link_target for entry in checked.kept if entry.kind == "link"}
    assert len(ends) == len(paths)
    assert set(checked.kept) <= set(entries)
    for path in paths:
        assert posixpath.normpath(path) == path
        assert not path.startswith(("/", "../"))
        assert {".git", "git~1"}.isdisjoint(path.casefold().split("/"))
        parts = path.split("/")
        above = {"/".join(parts[:depth]) for depth in range(1, len(parts))}
        assert above.isdisjoint(ends), "a kept path lies below a kept file or link"
        end = walked(path, links)
        assert end is not None
        assert end in ends or end == "" or any(one.startswith(f"{end}/") for one in ends)
    # Everything that is not kept has a sentence, by itself or among the rest of its kind.
    assert bool(checked.notes) or set(paths) == {entry.path for entry in entries}
    assert all(note.message.isprintable() for note in checked.notes)


def test_a_tree_of_links_that_multiply_is_read_at_once() -> None:
    many = [link(f"l{one:04}", "/".join([f"l{one + 1:04}"] * 100)) for one in range(3000)]
    began = time.monotonic()
    assert kept(check_tree([file("a"), *many], Limits())) == ["a"]
    assert time.monotonic() - began < 5


# -- notebooks -------------------------------------------------------------------------------------

PYTHON = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}


def code(source: object, *outputs: dict[str, object], **more: object) -> dict[str, object]:
    return {
        "cell_type": "code",
        "id": f"c{abs(hash(str(source))) % 10**8}",
        "metadata": {},
        "execution_count": None,
        "source": source,
        "outputs": list(outputs),
        **more,
    }


def notebook(*cells: object, **more: object) -> bytes:
    whole = {"cells": list(cells), "metadata": PYTHON, "nbformat": 4, "nbformat_minor": 5, **more}
    return json.dumps(whole).encode()


def printed(text: object) -> dict[str, object]:
    return {"output_type": "stream", "name": "stdout", "text": text}


def shown(**data: object) -> dict[str, object]:
    return {"output_type": "display_data", "metadata": {}, "data": data}


# Made here, so that no scanner takes this file for a leak.
_DIGITS = "0a1B2c3D4e5F6g7H8i9JkLmNoPqRsTuVwXyZ"
SECRETS = {
    "a private key": "-----BEGIN OPENSSH " + "PRIVATE KEY-----\nb3BlbnNza",
    "a key of AWS": "AKIA" + "QYLPMN5HHHFPZAM2",
    "a token of GitHub": "ghp_" + _DIGITS,
    "a token of GitLab": "glpat-" + _DIGITS[:20],
    "a token of Hugging Face": "hf_" + _DIGITS[:34],
    "a key of OpenAI or Anthropic": "sk-proj-" + _DIGITS + "_-x",
    "a token of Slack": "xoxb-" + "123456789012-" + _DIGITS[:20],
    "a key of Google": "AIza" + _DIGITS[:35],
}
ERROR = {"output_type": "error", "ename": "E", "evalue": "x", "traceback": ["Traceback\n", "x"]}


def test_a_sound_notebook_has_no_note() -> None:
    sound = notebook(
        {"cell_type": "markdown", "id": "m", "metadata": {}, "source": ["# One\n", "two"]},
        code("print(1)", printed(["1\n"]), shown(**{"image/png": "AKIA" + "ABCD" * 900})),
    )
    assert check_notebook("w/a.ipynb", sound) == ()


@pytest.mark.parametrize(("what", "secret"), SECRETS.items(), ids=SECRETS.keys())
@pytest.mark.parametrize("where", ["source", "stream", "html", "traceback", "json"])
def test_a_secret_is_found_and_not_repeated(what: str, secret: str, where: str) -> None:
    text = f"login with {secret} ok"
    cell = {
        "source": code([text[:8], text[8:]]),
        "stream": code("x", printed([text[:15], text[15:]])),
        "html": code("x", shown(**{"text/html": f"<b>{text}</b>"})),
        "traceback": code("x", {**ERROR, "traceback": ["no", text]}),
        "json": code("x", shown(**{"application/json": {"a": [{"b": text}]}})),
    }[where]
    first = check_notebook("a.ipynb", notebook(code("1"), cell))[0]
    assert (first.level, first.path) == ("fail", "a.ipynb")
    assert first.message.startswith(f"a.ipynb shows {what} (cell 2): everybody in the course")
    assert secret[:12] not in first.message


LOOKS = {
    "a password and its value": ("password=hunter2x", True),
    "a key in a dictionary": ("{'api_key': 'q8w7e6r5t4'}", True),
    "a variable of the environment": ("DB_PASSWORD=correct-horse", True),
    "a URL with a password": ("postgresql://ada:tr0ub4dor@db/x", True),
    "stars": ("password=********", False),
    "a place for one": ("password=<your password>", False),
    "nothing": ("password: None", False),
    "a word of the lesson": ("token: transformer", False),
    "a URL with a port": ("http://localhost:8888/lab", False),
}


@pytest.mark.parametrize(("text", "is_one"), LOOKS.values(), ids=LOOKS.keys())
def test_an_output_that_looks_like_a_password(text: str, is_one: bool) -> None:
    notes = check_notebook("a.ipynb", notebook(code("x", printed(text))))
    assert [note.level for note in notes] == (["warn"] if is_one else [])
    # In code it is as often an example as not.
    assert check_notebook("a.ipynb", notebook(code(text))) == ()


V3 = json.dumps({"nbformat": 3, "nbformat_minor": 0, "metadata": {}, "worksheets": []}).encode()
FAULTS = {
    "nothing in it": (b"", "fail", "is no JSON (line 1), so no notebook opens"),
    "text": (b"print(1)", "fail", "is no JSON (line 1)"),
    "bytes": (b"\xff\xfe{}", "fail", "is no UTF-8 text"),
    "a byte order mark": (b"\xef\xbb\xbf" + notebook(), "fail", "is no JSON"),
    "a conflict in it": (
        b'{\n "cells": [\n<<<<<<< HEAD\n  1\n=======\n  2\n>>>>>>> x\n ]}',
        "fail",
        "marks of a merge that nobody finished",
    ),
    "a number that JSON has not": (notebook(metadata={"a": float("nan")}), "fail", "is no JSON"),
    "lists without end": (b"[" * 200_000, "fail", "is no JSON"),
    "another JSON": (b"[]", "fail", "is JSON, but no notebook"),
    "another JSON object": (b'{"cells": []}', "fail", "is JSON, but no notebook"),
    "an old format": (V3, "fail", "is of notebook format 3, not 4"),
    "a format to come": (notebook(nbformat=5), "fail", "is of notebook format 5"),
    "no cells": (notebook(cells=None), "fail", "has no list of cells"),
    "a cell that is none": (notebook(code("1"), 7), "fail", "has a cell 2 that cannot be read"),
    "a source that is none": (notebook(code({"a": 1})), "fail", "has a cell 1 that cannot"),
    "outputs that are none": (notebook(code("1", outputs=[3])), "fail", "has outputs in cell 1"),
    "more than a browser takes": (b" " * (MAX_NOTEBOOK_BYTES + 1), "fail", "has 50 MiB"),
    "a cell of no kind": (
        notebook({"cell_type": "card", "id": "x", "metadata": {}, "source": ""}),
        "warn",
        "does not keep to the notebook format",
    ),
    "a key that is none": (notebook(colour="red"), "warn", "does not keep to the notebook format"),
    "no minor format": (notebook(nbformat_minor="5"), "warn", "nbformat_minor is missing"),
    "no kernel": (notebook(metadata={}), "warn", "names no kernel"),
    "another Python": (
        notebook(metadata={"kernelspec": {"name": "torch-env", "display_name": "T"}}),
        "warn",
        'names the kernel "torch-env", which the course\'s image has not',
    ),
    "another language": (
        notebook(metadata={"kernelspec": {"name": "ir", "display_name": "R", "language": "R"}}),
        "fail",
        'is for the kernel "ir" (r), and the course\'s image has python3',
    ),
    "a home on Linux": (notebook(code("open('/home/ada/x')")), "warn", "names a home by its path"),
    "a home on macOS": (notebook(code("cd /Users/ada/x")), "warn", "home by its path (cell 1)"),
    "a home on Windows": (notebook(code("'C:\\\\Users\\\\ada'")), "warn", "a home by its path"),
    "an error of an earlier run": (notebook(code("x", ERROR)), "warn", "an error of an earlier"),
    "six megabytes": (notebook(code("x", printed("a" * 6 * 2**20))), "warn", "has 6.0 MiB, and"),
}


@pytest.mark.parametrize(("content", "level", "says"), FAULTS.values(), ids=FAULTS.keys())
def test_a_notebook_with(content: bytes, level: str, says: str) -> None:
    (note,) = check_notebook("w/a.ipynb", content)
    assert (note.level, note.path) == (level, "w/a.ipynb")
    assert note.message.startswith("w/a.ipynb ")
    assert says in note.message
    assert note.message.endswith(".")
    assert note.message.isprintable()


@pytest.mark.parametrize(
    "source", ["x = 'a/home/b'", "url = 'https://x.org/Users/guide'", "Path.home() / 'x'"]
)
def test_what_is_no_home(source: str) -> None:
    assert check_notebook("a.ipynb", notebook(code(source))) == ()


def test_kernels_are_the_images() -> None:
    julia = notebook(metadata={"kernelspec": {"name": "julia", "display_name": "J"}})
    assert check_notebook("a.ipynb", julia, ("python3", "julia")) == ()
    (note,) = check_notebook("a\n.ipynb", julia, ("torch", "python3"))
    assert note.message.startswith('a?.ipynb names the kernel "julia"')
    assert "Choose one of python3, torch in JupyterLab" in note.message


def test_cells_are_counted_once_and_not_all_are_named() -> None:
    many = [code(f"open('/home/a/{one}')") for one in range(8)]
    (note,) = check_notebook("a.ipynb", notebook(*many))
    assert "(cells 1, 2, 3, 4, 5 \u2026)" in note.message


@pytest.mark.parametrize(
    "text",
    [
        "a-" * 500_000,
        "sk-" * 300_000,
        "private key -----BEGIN " + "A " * 500_000,
        "password=" * 100_000,
        "xx://a" * 150_000,
        "hf_a" * 250_000,
        "/home/" * 150_000,
        "<<<<<<<\n " * 100_000,
    ],
    ids=lambda text: text[:12],
)
def test_a_text_that_was_made_to_be_slow_is_read_in_time(text: str) -> None:
    content = notebook(code(text, printed(text)))
    began = time.monotonic()
    check_notebook("a.ipynb", content)
    assert time.monotonic() - began < 10


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "nbformat": st.just(4) | _JSON,
            "nbformat_minor": st.integers(-1, 12) | _JSON,
            "metadata": st.fixed_dictionaries({}, optional={"kernelspec": _JSON}) | _JSON,
            "cells": _JSON
            | st.lists(
                st.fixed_dictionaries(
                    {},
                    optional={
                        "cell_type": st.just("code") | _JSON,
                        "source": _JSON,
                        "outputs": _JSON
                        | st.lists(
                            st.fixed_dictionaries(
                                {}, optional={"text": _JSON, "data": _JSON, "traceback": _JSON}
                            ),
                            max_size=2,
                        ),
                    },
                )
                | _JSON,
                max_size=3,
            ),
        },
    )
)
@example({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [{"cell_type": None}]})
@settings(max_examples=examples(300), deadline=None)
def test_whatever_a_notebook_holds_there_is_a_sentence_and_no_crash(said: object) -> None:
    for note in check_notebook("a.ipynb", json.dumps(said).encode()):
        assert note.message.startswith("a.ipynb ")
        assert note.message.endswith(".")
        assert note.message.isprintable()
