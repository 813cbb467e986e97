"""A course with two publications, a student's directory, and nbgitpuller as it is."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from nbgitpuller.pull import GitPuller

from pytorch_spawner.agent.config import Course

BRANCH = "published"
FOLDER = "cnn"


def notebook(*cells: str) -> bytes:
    """A notebook whose cells are lines far enough apart for git to merge them one by one."""
    rows = [
        {"cell_type": "code", "id": f"c{number}", "metadata": {}, "outputs": [], "source": [cell],
         "execution_count": None}
        for number, cell in enumerate(cells)
    ]  # fmt: skip
    said = {"cells": rows, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(said, indent=1).encode() + b"\n"


def lab(first: str = "import torch", last: str = "print(loss)") -> bytes:
    return notebook(first, *(f"step({number})" for number in range(6)), last)


BYTES_NAME = os.fsdecode(b"caf\xe9.txt")
ONE: dict[str, bytes] = {
    "README.md": b"# The course\n",
    "untouched.ipynb": lab("first"),
    "lab.ipynb": lab(),
    "same.ipynb": lab("same"),
    "gone.ipynb": lab("gone"),
    "moved.ipynb": lab("moved"),
    "data/train.csv": b"x,y\n1,2\n",
    "data/test.csv": b"x,y\n3,4\n",
    "run.sh": b"#!/bin/sh\necho one\n",
    "text.txt": b"one\ntwo\nthree\nfour\nfive\nsix\nseven\n",
    "Übung ä.ipynb": lab("umlaut"),
    BYTES_NAME: b"one\n",
}
TWO: dict[str, bytes] = {
    **{path: content for path, content in ONE.items() if path not in ("gone.ipynb", "moved.ipynb")},
    "untouched.ipynb": lab("second"),
    "lab.ipynb": lab("import torch, numpy"),
    "renamed.ipynb": ONE["moved.ipynb"],
    "data/train.csv": b"x,y\n1,2\n5,6\n",
    "run.sh": b"#!/bin/sh\necho two\n",
    "text.txt": ONE["text.txt"].replace(b"one", b"ONE"),
    "Übung ä.ipynb": lab("Umlaut"),
    BYTES_NAME: b"two\n",
    "new.ipynb": lab("new"),
    "week2/intro.ipynb": lab("week 2"),
    "lab2": b"a file\n",
}


def git(folder: Path, *arguments: str, check: bool = True) -> str:
    done = subprocess.run(
        ["git", "-c", "user.name=ana", "-c", "user.email=ana@localhost", *arguments],
        cwd=folder, capture_output=True, text=True, errors="replace", check=False,
        env={**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_EDITOR": "true"},
    )  # fmt: skip
    assert done.returncode == 0 or not check, done.stderr
    return done.stdout.strip()


class Publisher:
    """The lab's side: publications, one commit on top of the other, and the bundle."""

    def __init__(self, folder: Path) -> None:
        self.source = folder / "source"
        self.bundle = folder / "course" / "course.bundle"
        self.notice = folder / "course" / "published.json"
        self.bundle.parent.mkdir(parents=True)
        self.source.mkdir()
        self.serial = 0
        self.served: list[str] = []
        git(self.source, "init", "-q", "-b", BRANCH)

    def publish(self, files: dict[str, bytes], commit: str = "") -> str:
        for path in self.source.iterdir():
            if path.name != ".git":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for name, content in files.items():
            path = self.source / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            path.chmod(0o755 if name.endswith(".sh") else 0o644)
        git(self.source, "add", "-A", "-f")
        git(self.source, "commit", "-q", "--allow-empty", "-m", "publication")
        served = git(self.source, "rev-parse", "HEAD")
        self.served.append(served)
        self.give(served, commit or served)
        return served

    def give(self, served: str, commit: str = "") -> None:
        """What students get from now on."""
        git(self.source, "update-ref", f"refs/heads/{BRANCH}", served)
        draft = self.bundle.with_suffix(".new")
        git(self.source, "bundle", "create", "-q", str(draft), BRANCH)
        draft.replace(self.bundle)
        self.tell(served, commit)

    def tell(self, served: str, commit: str = "") -> None:
        self.serial += 1
        said = {"v": 1, "served": served, "commit": commit or served, "serial": self.serial}
        draft = self.notice.with_suffix(".new")
        draft.write_text(json.dumps(said))
        draft.replace(self.notice)

    def course(self, **more: object) -> Course:
        facts = {"name": "cnn", "title": "CNNs", "branch": BRANCH, "folder": FOLDER, **more}
        return Course(bundle=str(self.bundle), notice=str(self.notice), **facts)  # type: ignore[arg-type]


def pull_alone(bundle: Path, folder: Path) -> str:
    """nbgitpuller as it is; returns its error, "" for none."""
    try:
        for _ in GitPuller(str(bundle), str(folder), branch=BRANCH).pull():
            pass
    except subprocess.CalledProcessError as error:
        words = [word for word in error.cmd[1:] if "=" not in word and word != "-c"]
        return f"git {words[0]} fails"
    except Exception as error:  # noqa: BLE001 (whatever it raises is the finding)
        return type(error).__name__
    return ""


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a directory but git's, by path; a link is what it leads to."""
    found = {}
    for place, folders, names in os.walk(folder):
        here = Path(place)
        folders[:] = [name for name in folders if not (here / name).is_symlink() and name != ".git"]
        links = [path.name for path in here.iterdir() if path.is_symlink()]
        for name in {*names, *links} - {".git"}:
            path = here / name
            key = str(path.relative_to(folder))
            if path.is_symlink():
                found[key] = b"-> " + os.fsencode(path.readlink())
            elif path.stat().st_size > 10_000_000:
                found[key] = b"%d bytes" % path.stat().st_size
            else:
                found[key] = path.read_bytes()
    return found


@contextlib.contextmanager
def somebody(*roots: Path) -> Iterator[None]:
    """As a user who is not root, so that permissions count."""
    if os.geteuid() != 0:
        yield
        return
    for root in roots:
        for path in [root, *root.rglob("*")]:
            os.lchown(path, 54321, 54321)
    os.setegid(54321)
    os.seteuid(54321)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
