# ruff: noqa: E501 - a row of the table is one line
"""What a student did x what the course did: nbgitpuller alone, and as the lab calls it.

Each row asserts bytes. docs/reference/course-merges.md is this table; with LAB_WRITE_DOCS set the
test writes it anew.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from course_lab import (
    BYTES_NAME,
    FOLDER,
    ONE,
    TWO,
    Publisher,
    contents,
    git,
    lab,
    pull_alone,
    somebody,
)

from pytorch_spawner.agent import course as courses
from pytorch_spawner.agent.course_git import Refused

pytestmark = pytest.mark.programs

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "course-merges.md"
MINE = lab(last="print('mine')")
# The line that the course changes, too.
CLASH = lab("import torch as mine")
OUTSIDE = "outside"


@dataclass(frozen=True)
class Row:
    """One case.

    Attributes:
        student: What the student did.
        upstream: What the course did.
        act: Does it, in the course's directory.
        path: The file that it is about.
        mine: What the student had there; None for nothing.
        ours: What is at ``path`` afterwards: "mine", "course", "nothing", or a refusal's code.
        beside: The course's version lies beside.
    """

    student: str
    upstream: str
    act: Callable[[Path], object]
    path: str
    mine: bytes | None
    ours: str
    beside: bool = False


def nothing(root: Path) -> None:
    pass


def write(path: str, content: bytes) -> Callable[[Path], object]:
    def act(root: Path) -> None:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)

    return act


def then(*acts: Callable[[Path], object]) -> Callable[[Path], object]:
    def act(root: Path) -> None:
        for one in acts:
            one(root)

    return act


def run(*arguments: str, check: bool = True) -> Callable[[Path], object]:
    return lambda root: git(root, *arguments, check=check)


def delete(path: str) -> Callable[[Path], object]:
    return lambda root: (root / path).unlink()


def rename(path: str, to: str) -> Callable[[Path], object]:
    return lambda root: (root / path).rename(root / to)


def rename_all(root: Path) -> None:
    for path in sorted(root.glob("*.ipynb")):
        path.rename(path.with_name(f"my {path.name}"))


def link(path: str, to: str) -> Callable[[Path], object]:
    def act(root: Path) -> None:
        place = root / path
        shutil.rmtree(place) if place.is_dir() else place.unlink()
        place.symlink_to(root.parent / OUTSIDE / to)

    return act


def in_the_way(path: str, content: bytes | None) -> Callable[[Path], object]:
    """A directory where there was a file, or a file where there was a directory."""

    def act(root: Path) -> None:
        place = root / path
        if place.is_dir():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)
        if content is None:
            place.mkdir()
            (place / "my.txt").write_bytes(b"mine\n")
        else:
            place.write_bytes(content)

    return act


def drop(path: str) -> Callable[[Path], object]:
    return lambda root: shutil.rmtree(root / path)


def old_lock(root: Path) -> None:
    write(".git/index.lock", b"")(root)
    os.utime(root / ".git" / "index.lock", (time.time() - 3600,) * 2)


def huge(root: Path) -> None:
    with (root / "checkpoint.pt").open("wb") as file:
        file.truncate(3 * 1024**3)


def hook(root: Path) -> None:
    for name in ("pre-commit", "pre-merge-commit", "commit-msg", "post-checkout"):
        write(f".git/hooks/{name}", b"#!/bin/sh\necho no >> hooked; exit 1\n")(root)
        (root / ".git" / "hooks" / name).chmod(0o755)


def unfinished_merge(root: Path) -> None:
    git(root, "checkout", "-q", "-b", "side")
    write("text.txt", b"side\n")(root)
    git(root, "commit", "-qam", "side")
    git(root, "checkout", "-q", "published")
    write("text.txt", b"mine\n")(root)
    git(root, "commit", "-qam", "mine")
    git(root, "merge", "side", check=False)


def unfinished_rebase(root: Path) -> None:
    unfinished_merge(root)
    git(root, "merge", "--abort")
    git(root, "rebase", "side", check=False)


def submodule(root: Path) -> None:
    other = root.parent / OUTSIDE / "other"
    other.mkdir()
    git(other, "init", "-q", "-b", "main")
    git(other, "commit", "-q", "--allow-empty", "-m", "x")
    git(root, "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(other), "theirs")


def move_away(root: Path) -> None:
    root.rename(root.parent / OUTSIDE / "moved")


def whole_is_file(root: Path) -> None:
    move_away(root)
    root.write_bytes(b"mine\n")


def whole_is_link(root: Path) -> None:
    move_away(root)
    root.symlink_to(root.parent / OUTSIDE / "moved")


def own_directory(root: Path) -> None:
    shutil.rmtree(root)
    shutil.rmtree(root.parent / ".local", ignore_errors=True)
    write("lab.ipynb", MINE)(root)


def read_only(root: Path) -> None:
    write("lab.ipynb", MINE)(root)
    root.chmod(0o555)


EDIT = write("lab.ipynb", MINE)
CHANGED, ADDED, DELETED, RENAMED = "changed it", "added it", "deleted it", "renamed it"
NO_NEWS = "nothing to it"
CRLF = ONE["text.txt"].replace(b"\n", b"\r\n")
UNION = b"* merge=union text eol=crlf ident filter=mine\n"
STRIP = ("config", "filter.mine.clean", "sed /print/d")

ROWS = [
    # the course's files that nobody touched
    Row("nothing", CHANGED, nothing, "lab.ipynb", ONE["lab.ipynb"], "course"),
    Row("nothing", ADDED, nothing, "new.ipynb", None, "course"),
    Row("nothing", DELETED, nothing, "gone.ipynb", ONE["gone.ipynb"], "nothing"),
    Row("nothing", RENAMED, nothing, "moved.ipynb", ONE["moved.ipynb"], "nothing"),
    Row("nothing", "changed a file of a name that is no UTF-8", nothing, BYTES_NAME, ONE[BYTES_NAME], "course"),
    # edits
    Row("edited a notebook", NO_NEWS, write("same.ipynb", MINE), "same.ipynb", MINE, "mine"),
    Row("edited a notebook", "changed another cell of it", EDIT, "lab.ipynb", MINE, "mine", beside=True),
    Row("edited a notebook", "changed the same cell", write("lab.ipynb", CLASH), "lab.ipynb", CLASH, "mine", beside=True),
    Row("edited a notebook", DELETED, write("gone.ipynb", MINE), "gone.ipynb", MINE, "mine"),
    Row("edited a notebook", RENAMED, write("moved.ipynb", lab("moved", "mine")), "moved.ipynb", lab("moved", "mine"), "mine"),
    Row("edited a file in a directory", CHANGED, write("data/train.csv", b"x,y\nmine\n"), "data/train.csv", b"x,y\nmine\n", "mine", beside=True),
    Row("edited a file with umlauts in its name", CHANGED, write("Übung ä.ipynb", MINE), "Übung ä.ipynb", MINE, "mine", beside=True),
    Row("edited a file of a name that is no UTF-8", CHANGED, write(BYTES_NAME, b"mine\n"), BYTES_NAME, b"mine\n", "mine", beside=True),
    Row("emptied a notebook", CHANGED, write("lab.ipynb", b""), "lab.ipynb", b"", "mine", beside=True),
    Row("overwrote a notebook with binary data", CHANGED, write("lab.ipynb", b"\0\xff" * 99), "lab.ipynb", b"\0\xff" * 99, "mine", beside=True),
    Row("made the same change", CHANGED, write("lab.ipynb", TWO["lab.ipynb"]), "lab.ipynb", TWO["lab.ipynb"], "course"),
    Row("turned the lines' ends into CRLF", CHANGED, write("text.txt", CRLF), "text.txt", CRLF, "mine", beside=True),
    Row("made a file executable, no more", CHANGED, lambda root: (root / "lab.ipynb").chmod(0o755), "lab.ipynb", ONE["lab.ipynb"], "course"),
    Row("edited a notebook and made it read-only", CHANGED, then(EDIT, lambda root: (root / "lab.ipynb").chmod(0o444)), "lab.ipynb", MINE, "mine", beside=True),
    Row("has a file of the name for the course's version", CHANGED, then(EDIT, lambda root: [write(f"lab.course-{number}.ipynb", b"mine\n")(root) for number in SHORT]), "lab.ipynb", MINE, "mine", beside=True),
    # deleted, renamed, new
    Row("deleted a notebook", NO_NEWS, delete("same.ipynb"), "same.ipynb", None, "course"),
    Row("deleted a notebook", CHANGED, delete("lab.ipynb"), "lab.ipynb", None, "course"),
    Row("deleted a notebook", DELETED, delete("gone.ipynb"), "gone.ipynb", None, "nothing"),
    Row("deleted a file of a name that is no UTF-8", CHANGED, delete(BYTES_NAME), BYTES_NAME, None, "course"),
    Row("deleted a directory", "changed a file in it", drop("data"), "data/train.csv", None, "course"),
    Row("deleted every file", CHANGED, lambda root: [(root / path).unlink() for path in ONE], "lab.ipynb", None, "course"),
    Row("renamed a notebook", CHANGED, rename("lab.ipynb", "my lab.ipynb"), "my lab.ipynb", ONE["lab.ipynb"], "mine"),
    Row("edited a notebook and renamed it", CHANGED, then(EDIT, rename("lab.ipynb", "my.ipynb")), "my.ipynb", MINE, "mine"),
    Row("renamed every notebook", CHANGED, rename_all, "my lab.ipynb", ONE["lab.ipynb"], "mine"),
    Row("made a file of the same name", ADDED, write("new.ipynb", MINE), "new.ipynb", MINE, "mine", beside=True),
    Row("made a file with the same content", ADDED, write("new.ipynb", TWO["new.ipynb"]), "new.ipynb", TWO["new.ipynb"], "course"),
    Row("made a directory of the same name", "added a file", in_the_way("lab2", None), "lab2/my.txt", b"mine\n", "mine", beside=True),
    Row("made a file of the same name", "added a directory", write("week2", b"mine\n"), "week2", b"mine\n", "mine", beside=True),
    Row("put a directory in a notebook's place", CHANGED, in_the_way("lab.ipynb", None), "lab.ipynb/my.txt", b"mine\n", "mine", beside=True),
    Row("put a file in a directory's place", "changed a file in it", in_the_way("data", b"mine\n"), "data", b"mine\n", "mine", beside=True),
    Row("made a notebook of their own", NO_NEWS, write("notes.ipynb", MINE), "notes.ipynb", MINE, "mine"),
    Row("has a checkpoint of 3 GiB", NO_NEWS, huge, "checkpoint.pt", b"3221225472 bytes", "mine"),
    # links
    Row("put a link in a notebook's place", CHANGED, link("lab.ipynb", "kept.txt"), "lab.ipynb", b"-> {home}/outside/kept.txt", "mine", beside=True),
    Row("put a link in a directory's place", "changed a file in it", link("data", "kept"), "data", b"-> {home}/outside/kept", "mine", beside=True),
    # git
    Row("committed an edit", "changed another cell of it", then(EDIT, run("commit", "-qam", "mine")), "lab.ipynb", MINE, "mine", beside=True),
    Row("staged an edit", CHANGED, then(EDIT, run("add", "-A")), "lab.ipynb", MINE, "mine", beside=True),
    Row("staged one edit and made another", CHANGED, then(write("lab.ipynb", CLASH), run("add", "-A"), EDIT), "lab.ipynb", MINE, "mine", beside=True),
    Row("committed a file of the same name", ADDED, then(write("new.ipynb", MINE), run("add", "-A"), run("commit", "-qm", "mine")), "new.ipynb", MINE, "mine", beside=True),
    Row("committed a file of their own and deleted it", CHANGED, then(EDIT, write("own.txt", b"own\n"), run("add", "-A"), run("commit", "-qm", "mine"), delete("own.txt")), "lab.ipynb", MINE, "mine", beside=True),
    Row("works on a branch of their own", CHANGED, then(run("checkout", "-qb", "mine"), EDIT, run("commit", "-qam", "mine")), "lab.ipynb", MINE, "mine", beside=True),
    Row("works on a detached HEAD", CHANGED, then(run("checkout", "-q", "--detach"), EDIT, run("commit", "-qam", "mine")), "lab.ipynb", MINE, "mine", beside=True),
    Row("is in the middle of a merge", CHANGED, then(EDIT, run("add", "-A"), run("commit", "-qm", "x"), unfinished_merge), "lab.ipynb", MINE, "mine", beside=True),
    Row("is in the middle of a rebase", CHANGED, then(EDIT, run("add", "-A"), run("commit", "-qm", "x"), unfinished_rebase), "lab.ipynb", MINE, "mine", beside=True),
    Row("left index.lock a moment ago", CHANGED, then(EDIT, write(".git/index.lock", b"")), "lab.ipynb", MINE, "mine", beside=True),
    Row("left index.lock an hour ago", CHANGED, then(EDIT, old_lock), "lab.ipynb", MINE, "mine", beside=True),
    Row("hid an edit with assume-unchanged", CHANGED, then(run("update-index", "--assume-unchanged", "lab.ipynb"), EDIT), "lab.ipynb", MINE, "mine", beside=True),
    Row("stashed an edit", CHANGED, then(EDIT, run("stash", "-q")), "lab.ipynb", ONE["lab.ipynb"], "course"),
    Row("deleted .git", CHANGED, drop(".git"), "lab.ipynb", ONE["lab.ipynb"], "course"),
    Row("deleted .git and edited a notebook", CHANGED, then(drop(".git"), EDIT), "lab.ipynb", MINE, "mine", beside=True),
    Row("damaged .git", CHANGED, then(EDIT, write(".git/HEAD", b"")), "lab.ipynb", MINE, "mine", beside=True),
    Row("replaced .git by a file", CHANGED, then(drop(".git"), write(".git", b"mine\n"), EDIT), "lab.ipynb", MINE, "mine", beside=True),
    Row("changed the remote", CHANGED, then(run("remote", "set-url", "origin", "/nowhere"), EDIT), "lab.ipynb", MINE, "mine", beside=True),
    Row("added a submodule", CHANGED, then(EDIT, submodule), "lab.ipynb", MINE, "mine", beside=True),
    Row("has a hook that fails", CHANGED, then(EDIT, hook), "lab.ipynb", MINE, "mine", beside=True),
    Row("planted a .gitattributes with a merge driver", CHANGED, then(write(".gitattributes", UNION), EDIT), "lab.ipynb", MINE, "mine", beside=True),
    Row("has a filter that strips notebooks", CHANGED, then(run(*STRIP), write(".git/info/attributes", b"*.ipynb filter=mine merge=union\n"), EDIT), "lab.ipynb", MINE, "mine", beside=True),
    # the directory as a whole
    Row("made the directory beforehand, without git", "published", own_directory, "lab.ipynb", MINE, "mine", beside=True),
    Row("moved the directory away", CHANGED, move_away, "lab.ipynb", None, "course"),
    Row("put a file in the directory's place", CHANGED, whole_is_file, "", b"mine\n", "in-the-way"),
    Row("put a link in the directory's place", CHANGED, whole_is_link, "", b"-> {home}/outside/moved", "in-the-way"),
    Row("edited a notebook and made the directory read-only", CHANGED, read_only, "lab.ipynb", MINE, "read-only"),
]  # fmt: skip
SHORT: list[str] = []


@pytest.fixture
def homes(table: Table) -> Iterator[dict[str, Path]]:
    """A home for nbgitpuller alone and one for the lab, with the first publication."""
    made = {who: table.folder / f"{who} home" for who in ("alone", "ours")}
    for who, home in made.items():
        shutil.copytree(table.folder / who, home, symlinks=True)
    yield made
    for home in made.values():
        root = home / FOLDER
        if root.is_dir() and not root.is_symlink():
            root.chmod(0o755)
        shutil.rmtree(home)


@dataclass
class Table:
    publisher: Publisher
    folder: Path
    said: dict[int, tuple[str, str]]


@pytest.fixture(scope="module")
def table() -> Iterator[Table]:
    # Not below pytest's own folder: a user who is not root has to get there.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="course-table-", dir=memory))
    folder.chmod(0o755)
    publisher = Publisher(folder)
    publisher.publish(ONE)
    for who in ("alone", "ours"):
        (folder / who / OUTSIDE / "kept").mkdir(parents=True)
        (folder / who / OUTSIDE / "kept.txt").write_bytes(b"outside\n")
        (folder / who / OUTSIDE / "kept" / "train.csv").write_bytes(b"outside\n")
    assert pull_alone(publisher.bundle, folder / "alone" / FOLDER) == ""
    courses.sync(publisher.course(), folder / "ours", print)
    publisher.publish(TWO)
    SHORT[:] = [publisher.served[-1][:7]]
    yield Table(publisher, folder, {})
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def _own_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)


@pytest.mark.parametrize(
    "number", range(len(ROWS)), ids=lambda n: f"{ROWS[n].student}, {ROWS[n].upstream}"
)
def test_a_students_bytes_come_out_as_they_went_in(
    table: Table, homes: dict[str, Path], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    row = ROWS[number]
    for each in homes.values():
        row.act(each / FOLDER)
    home, root = homes["ours"], homes["ours"] / FOLDER
    before, outside = look(root), contents(home / OUTSIDE)
    mine = row.mine and row.mine.replace(b"{home}", os.fsencode(home))
    assert before.get(row.path) == mine, "the row says what the student has"
    refused, said = "", "Fine, and more than forty characters long."
    began = time.monotonic()
    with as_somebody(row, home):
        try:
            synced = courses.sync(table.publisher.course(), home, print)
        except Refused as why:
            refused, said = why.code, str(why)
    took_s = time.monotonic() - began
    assert said.endswith(".")
    assert len(said) > 40
    monkeypatch.setenv("HOME", str(homes["alone"]))
    began = time.monotonic()
    with as_somebody(row, homes["alone"]):
        error = pull_alone(table.publisher.bundle, homes["alone"] / FOLDER)
    # Nothing is waited for; a busy machine keeps nbgitpuller alone up just the same.
    assert took_s < max(10, 20 * (time.monotonic() - began))
    after = look(root)
    table.said[number] = (describe(homes["alone"], row, error), describe(home, row, refused))

    assert contents(home / OUTSIDE) == outside, "never out of the directory"
    is_mine = {path: content for path, content in before.items() if content != ONE.get(path)}
    for path, content in is_mine.items():
        assert after.get(path) == content, f"{path!r} is the student's"
    known = {*ONE.values(), *TWO.values(), *before.values()}
    assert not {path for path, content in after.items() if content not in known}, "no mixture"
    if refused:
        assert refused == row.ours
        assert after == before
        return
    expected = {"mine": mine, "course": TWO.get(row.path), "nothing": None}[row.ours]
    assert after.get(row.path) == expected
    blocked = {path for path in TWO if any(path.startswith(f"{one}/") for one in after)}
    blocked |= {path for path in TWO if any(one.startswith(f"{path}/") for one in after)}
    for path, content in TWO.items():
        if path not in is_mine and path not in blocked:
            assert after.get(path) == content, f"{path!r} follows the course"
    assert bool(synced.settled.conflicts) >= row.beside
    for path, place in synced.settled.conflicts.items():
        assert after[place] == TWO[path]
        assert place not in before
    if row.ours == "mine" and row.path in ONE:
        assert row.path in {*synced.settled.kept, *synced.settled.conflicts}
    # Once more: nothing moves, and the conflicts are remembered.
    with as_somebody(row, home):
        again = courses.sync(table.publisher.course(), home, print)
    assert look(root) == after
    assert again.settled.conflicts == synced.settled.conflicts
    assert not list((home / courses.STATE / "cnn").glob("hold-*"))


def as_somebody(row: Row, home: Path) -> contextlib.AbstractContextManager[None]:
    """Permissions count where the row is about them."""
    return somebody(home) if row.ours == "read-only" else contextlib.nullcontext()


def look(root: Path) -> dict[str, bytes]:
    if root.is_symlink():
        return {"": b"-> " + os.fsencode(root.readlink())}
    return {"": root.read_bytes()} if root.is_file() else contents(root)


def describe(home: Path, row: Row, error: str) -> str:
    """What became of the row's file, in words."""
    after = look(home / FOLDER)
    mine = row.mine and row.mine.replace(b"{home}", os.fsencode(home))
    now, course = after.get(row.path), TWO.get(row.path)
    said = []
    if mine is not None and mine not in (ONE.get(row.path), course):
        said.append("the student's" if now == mine else "**lost**")
        if now is not None and now not in (mine, course, ONE.get(row.path)):
            said[-1] = "**a mixture of both**"
        elsewhere = [
            path for path, content in after.items() if content == mine and path != row.path
        ]
        if now != mine and elsewhere:
            said[-1] = f"the student's is now `{stable(elsewhere[0])}`"
    elif now is None:
        said.append("gone")
    elif now == course:
        said.append("the course's")
    elif row.path not in ONE:
        said.append("the student's")
    else:
        said.append("**stays old**")
    stem = row.path.split("/")[0].split(".")[0]
    sides = [
        path
        for path in after
        if path.startswith(f"{stem}.course-")
        or (".course-" in path and path.startswith(f"{stem}/"))
    ]
    if sides:
        said.append(f"the course's beside: `{stable(sorted(sides)[-1])}`")
    if error and error != row.ours:
        said.append(f"**{error}**")
    elif error:
        said = ["untouched, and a sentence on the page"]
    if not error and after.get("untouched.ipynb", TWO["untouched.ipynb"]) != TWO["untouched.ipynb"]:
        said.append("**other files stay old**")
    return "; ".join(said)


def stable(path: str) -> str:
    path = re.sub(r"__\d{14}", "__20260901120000", os.fsencode(path).decode(errors="replace"))
    return re.sub(r"course-[0-9a-f]{7}(?=[.-]|$|/)", "course-4f1c2a0", path)


def page(said: dict[int, tuple[str, str]]) -> str:
    rows = [
        f"| {row.student} | {row.upstream} | {said[number][0]} | {said[number][1]} |"
        for number, row in enumerate(ROWS)
    ]
    lost = sum("**" in alone for alone, _ in said.values())
    return HEAD.format(count=len(ROWS), lost=lost) + "\n".join(rows) + "\n"


HEAD = """# What becomes of a student's edit when the course changes

Written by `tests/agent/test_agent_course_table.py`, which does each of these {count} things with real git and asserts the bytes
afterwards, once with nbgitpuller 1.3.0 as it is and once as the lab calls it. In {lost} of them nbgitpuller alone loses something, mixes
both versions, or stops. [What the lab does before and after it](../how-to/course-notebooks.md#what-the-lab-adds-to-nbgitpuller) is
explained in the how-to.

| the student | the course | nbgitpuller alone | with the lab |
| --- | --- | --- | --- |
"""


def test_the_page_of_the_reference_is_this_table(table: Table) -> None:
    if len(table.said) < len(ROWS):
        pytest.skip("not all rows ran")
    if os.environ.get("LAB_WRITE_DOCS"):
        PAGE.write_text(page(table.said), encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == page(table.said)
    assert len(ROWS) >= 40
    assert not [ours for _, ours in table.said.values() if "**" in ours]
