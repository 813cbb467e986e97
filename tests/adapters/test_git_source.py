"""Real git over a real server: what a source may do to the lab, and what comes of it."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pytorch_spawner.adapters import git_run, git_store
from pytorch_spawner.adapters.git_source import FETCHED, Limits, Mirror
from pytorch_spawner.core.course_files import check_tree
from pytorch_spawner.core.course_manifest import Source
from pytorch_spawner.errors import SourceUnusable
from tests.git_server import (
    GitServer,
    Link,
    Program,
    Submodule,
    blob,
    commit,
    commit_tree,
    git,
    make_repository,
    tree,
)
from tests.ports import free_port_block

pytestmark = pytest.mark.programs

LIMITS = Limits(
    max_bytes=4 * 2**20, max_files=200, max_file_bytes=2**20, deadline_s=60, silence_s=1
)
# Nothing here may take longer than this, however long the other side takes.
BOUND_S = 10.0
NOTEBOOK = b'{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}'
POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)


@pytest.fixture(scope="module")
def first_week(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = make_repository(tmp_path_factory.mktemp("forge") / "course.git")
    commit(made, {"a.ipynb": NOTEBOOK})
    return made


@pytest.fixture
def server(tmp_path: Path, first_week: Path) -> Iterator[GitServer]:
    with GitServer(tmp_path / "forge") as running:
        shutil.copytree(first_week, running.folder / "course.git")
        yield running


@pytest.fixture
def mirror(tmp_path: Path) -> Mirror:
    return Mirror(tmp_path / "state" / "courses" / "cnn", LIMITS, roots=[tmp_path / "teachers"])


@pytest.fixture
def teachers(tmp_path: Path) -> Path:
    (tmp_path / "teachers").mkdir()
    return tmp_path / "teachers"


def course(server: GitServer, **more: str) -> Source:
    return Source(git=server.url("course.git"), **more)


def unchecked(**said: str) -> Source:
    """A source that no manifest could name."""
    return Source.model_construct(**{"git": "", "branch": "", "directory": "", "path": "", **said})


def refused(mirror: Mirror, source: Source, **more: object) -> SourceUnusable:
    began = time.monotonic()
    with pytest.raises(SourceUnusable) as caught:
        mirror.fetch(source, **more)
    assert time.monotonic() - began < BOUND_S
    assert caught.value.public_message.endswith(".")
    assert_no_git_runs()
    return caught.value


def assert_no_git_runs() -> None:
    """No process of ours is a git: it was ended whole, and none is left to itself."""
    left = []
    for status in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = status.read_bytes().split(b"\0")
            parent = int((status.parent / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        is_ours = parent == os.getpid() or any(b"courses/cnn/mirror.git" in one for one in words)
        if is_ours and b"git" in words[0] and b"http-backend" not in words:
            left.append(words)
    assert left == []


def paths(mirror: Mirror, path: str = "") -> list[str]:
    return [entry.path for entry in mirror.entries(path)]


def published(mirror: Mirror, before: str = "", message: str = "Week 1") -> str:
    kept = check_tree(mirror.entries(""), mirror.limits).kept
    return mirror.serve(kept, before, message).served


# -- what is fetched -------------------------------------------------------------------------------


def test_the_newest_commit_is_fetched_with_what_it_says(server: GitServer, mirror: Mirror) -> None:
    made = commit(
        server.folder / "course.git", {"a.ipynb": NOTEBOOK}, "Week 2\n\nlong", at=1_750_000_000
    )
    fetched = mirror.fetch(course(server))
    assert (fetched.commit, fetched.says, fetched.author, fetched.at) == (
        made,
        "Week 2",
        "Ada",
        1_750_000_000.0,
    )
    assert mirror.fetched() == fetched


def test_every_entry_says_what_it_is(server: GitServer, mirror: Mirror) -> None:
    odd = os.fsdecode(b"b\xfcro\n\t.txt")
    commit(
        server.folder / "course.git",
        {
            "a.ipynb": NOTEBOOK,
            "run.sh": Program(b"true"),
            "week 1/lin\u00e9aire.py": "x",
            "week 1/up": Link("../a.ipynb"),
            "theirs": Submodule(),
            "data.bin": POINTER,
            "talk.md": b"On " + POINTER,
            odd: "y",
        },
    )
    mirror.fetch(course(server))
    seen = {
        entry.path: (entry.mode, entry.kind, entry.size, entry.link_target, entry.is_lfs_pointer)
        for entry in mirror.entries("")
    }
    assert seen == {
        "a.ipynb": ("100644", "file", len(NOTEBOOK), "", False),
        "run.sh": ("100755", "file", 4, "", False),
        "week 1/lin\u00e9aire.py": ("100644", "file", 1, "", False),
        "week 1/up": ("120000", "link", 10, "../a.ipynb", False),
        "theirs": ("160000", "submodule", 0, "", False),
        "data.bin": ("100644", "file", len(POINTER), "", True),
        "talk.md": ("100644", "file", len(POINTER) + 3, "", False),
        odd: ("100644", "file", 1, "", False),
    }
    by_path = {entry.path: entry for entry in mirror.entries("")}
    assert mirror.read(by_path["a.ipynb"], 1000) == NOTEBOOK
    assert mirror.read(by_path["a.ipynb"], 5) == NOTEBOOK[:5]
    assert mirror.read(by_path[odd], 5) == b"y"
    with pytest.raises(SourceUnusable, match="theirs has no content here"):
        mirror.read(by_path["theirs"], 5)


def test_a_sub_directory_is_the_course(server: GitServer, mirror: Mirror) -> None:
    commit(server.folder / "course.git", {"b.txt": "", "w: 1/a/c.txt": "", "w: 1/d.txt": ""})
    mirror.fetch(course(server, path="w: 1"))
    assert paths(mirror, "w: 1") == ["a/c.txt", "d.txt"]
    assert paths(mirror, "w: 1/a") == ["c.txt"]


@pytest.mark.parametrize("path", ["nowhere", "a.ipynb", "a.ipynb/x", "theirs", "link"])
def test_a_sub_directory_that_is_none(server: GitServer, mirror: Mirror, path: str) -> None:
    mirror.fetch(course(server))
    files = {"a.ipynb": NOTEBOOK, "theirs": Submodule(), "link": Link("/etc")}
    commit(server.folder / "course.git", files)
    error = refused(mirror, course(server, path=path))
    assert (error.code, error.cause) == ("source-unusable", "path-missing")
    assert f"has no directory {path} on this branch" in error.public_message
    assert paths(mirror) == ["a.ipynb"]


def test_a_source_that_did_not_change_costs_no_fetch(server: GitServer, mirror: Mirror) -> None:
    for _ in range(3):
        mirror.fetch(course(server))
    assert server.fetches == 1
    commit(server.folder / "course.git", {"b.ipynb": NOTEBOOK})
    mirror.fetch(course(server))
    assert server.fetches == 2
    assert paths(mirror) == ["b.ipynb"]


def test_history_stays_where_it_is(server: GitServer, mirror: Mirror) -> None:
    source = server.folder / "course.git"
    commit(source, {"old.bin": os.urandom(3 * 2**19)})
    for week in range(4):
        commit(source, {"a.ipynb": NOTEBOOK}, f"Week {week}")
    commit(source, {"elsewhere.bin": os.urandom(3 * 2**19)}, branch="drafts")
    mirror.fetch(course(server))
    packs = mirror.folder.rglob("*.pack")
    assert sum(pack.stat().st_size for pack in packs) < 10_000


def test_the_branch_that_is_named_and_else_the_repositorys_own(
    server: GitServer, mirror: Mirror
) -> None:
    source = server.folder / "course.git"
    commit(source, {"b.txt": ""}, branch="term/2026")
    mirror.fetch(course(server))
    assert paths(mirror) == ["a.ipynb"]
    mirror.fetch(course(server, branch="term/2026"))
    assert paths(mirror) == ["b.txt"]
    git(source, "symbolic-ref", "HEAD", "refs/heads/term/2026")
    mirror.fetch(course(server))
    assert paths(mirror) == ["b.txt"]


def test_a_force_push_and_a_branch_made_anew_are_fetched(server: GitServer, mirror: Mirror) -> None:
    source = server.folder / "course.git"
    mirror.fetch(course(server))
    commit(source, {"b.txt": "1"}, is_new=True)
    mirror.fetch(course(server))
    assert paths(mirror) == ["b.txt"]
    git(source, "update-ref", "-d", "refs/heads/main")
    git(source, "reflog", "expire", "--all", "--expire=now")
    git(source, "prune", "--expire=now")
    commit(source, {"z.txt": ""}, branch="other")
    error = refused(mirror, course(server, branch="main"))
    assert error.cause == "branch-missing"
    assert "has no branch main. Branches that are there: other." in error.public_message
    assert paths(mirror) == ["b.txt"]
    commit(source, {"c.txt": ""}, branch="main")
    mirror.fetch(course(server, branch="main"))
    assert paths(mirror) == ["c.txt"]


def test_a_repository_that_names_no_branch_of_its_own(server: GitServer, mirror: Mirror) -> None:
    source = server.folder / "course.git"
    git(source, "symbolic-ref", "HEAD", "refs/heads/gone")
    for number in range(10):
        git(source, "update-ref", f"refs/heads/b{number}", "refs/heads/main")
    error = refused(mirror, course(server))
    assert error.cause == "branch-missing"
    assert "has no branch that it names as its own" in error.public_message
    assert "b0, b1, b2, b3, b4, b5, b6, b7 and 3 more" in error.public_message


# -- a source that cannot be had -------------------------------------------------------------------

TROUBLES = {
    "a server that asks for a password": ("password", "password", "asks for a password"),
    "a server that never answers": ("silent", "timed-out", "did not answer in time"),
    "a server that knows no such repository": ("missing", "not-found", "There is no repository at"),
    "a server with an error of its own": ("broken", "server-error", "an error of its own"),
    "a server that sends on to another scheme": ("away", "redirected", "may not follow"),
    "a web page": ("page", "not-git", "is no git repository"),
    "a server that sends byte by byte": ("trickle", "too-slow", "longer than it may"),
    "a server that sends for ever": ("endless", "too-large", "more than 4.0 MiB"),
}


def with_token(server: GitServer) -> Source:
    """A source whose URL no manifest may hold; what it says is repeated nowhere all the same."""
    return Source.model_construct(
        git=server.url("course.git", "s3cret-token"), branch="", directory="", path=""
    )


@pytest.mark.parametrize(("mood", "cause", "says"), TROUBLES.values(), ids=TROUBLES.keys())
def test_what_was_fetched_stays_when_the_forge_is(
    server: GitServer, mirror: Mirror, mood: str, cause: str, says: str
) -> None:
    before = mirror.fetch(course(server))
    first = published(mirror)
    made = commit(server.folder / "course.git", {"b.ipynb": NOTEBOOK})
    server.mood = mood
    mirror.limits = replace(LIMITS, deadline_s=2 if mood == "trickle" else 60)
    error = refused(mirror, with_token(server))
    assert (error.cause, says in error.public_message) == (cause, True)
    assert "s3cret" not in f"{error}{error.public_message}{error.detail}"
    assert mirror.fetched() == before
    assert mirror.read(mirror.entries("")[0], 100) == NOTEBOOK
    assert published(mirror, first) == first
    server.mood = ""
    assert mirror.fetch(course(server)).commit == made


@pytest.mark.parametrize("mood", ["password", "silent", "endless"])
def test_a_first_fetch_that_fails_leaves_a_mirror_that_can_fetch(
    server: GitServer, mirror: Mirror, mood: str
) -> None:
    server.mood = mood
    refused(mirror, course(server))
    assert mirror.fetched() is None
    with pytest.raises(SourceUnusable, match="Nothing was fetched of this course yet"):
        mirror.entries("")
    # What an endless fetch brought is gone from the disk, too.
    assert sum(file.lstat().st_size for file in mirror.folder.rglob("*")) < 2**20
    server.mood = ""
    mirror.fetch(course(server))
    assert paths(mirror) == ["a.ipynb"]


NOBODY = {
    "a name that nobody has": ("https://forge.invalid/c.git", "name-unknown"),
    "a port on which nobody listens": ("http://127.0.0.1:{port}/c.git", "refused"),
    "git's own protocol, and nobody listens": ("git://127.0.0.1:{port}/c.git", "refused"),
    "ssh, and nobody listens": ("ssh://127.0.0.1:{port}/c.git", "refused"),
}


@pytest.mark.parametrize(("url", "cause"), NOBODY.values(), ids=NOBODY.keys())
def test_nobody_is_there(mirror: Mirror, url: str, cause: str) -> None:
    error = refused(mirror, Source(git=url.format(port=free_port_block())))
    assert error.cause == cause


def test_a_forge_that_is_switched_off_and_on(server: GitServer, mirror: Mirror) -> None:
    mirror.fetch(course(server))
    server.off()
    assert refused(mirror, course(server)).cause == "refused"
    assert paths(mirror) == ["a.ipynb"]
    server.on()
    assert mirror.fetch(course(server)).says == "Week 1"


def test_a_repository_without_a_commit_is_empty(server: GitServer, mirror: Mirror) -> None:
    server.make("new.git")
    error = refused(mirror, Source(git=server.url("new.git")))
    assert error.cause == "empty"
    assert "is empty: it has no commit yet" in error.public_message


def test_a_commit_without_a_file_is_no_course(server: GitServer, mirror: Mirror) -> None:
    commit(server.folder / "course.git", {})
    mirror.fetch(course(server))
    assert [note.level for note in check_tree(mirror.entries(""), LIMITS).notes] == ["fail"]


def test_a_source_that_is_too_large(server: GitServer, mirror: Mirror) -> None:
    mirror.fetch(course(server))
    source = server.folder / "course.git"
    commit(source, {"data.bin": os.urandom(6 * 2**20)})
    assert refused(mirror, course(server)).cause == "too-large"
    assert paths(mirror) == ["a.ipynb"]
    assert sum(file.lstat().st_size for file in mirror.folder.rglob("*")) < 2**20
    commit(source, {"small.txt": ""})
    mirror.fetch(course(server))
    assert paths(mirror) == ["small.txt"]


def test_it_is_stopped_at_once(server: GitServer, mirror: Mirror) -> None:
    mirror.fetch(course(server))
    commit(server.folder / "course.git", {"b.ipynb": NOTEBOOK})
    server.mood = "trickle"
    began = time.monotonic()
    error = refused(mirror, course(server), is_stopped=lambda: time.monotonic() > began + 0.5)
    assert error.cause == "stopped"
    assert time.monotonic() - began < 4
    assert paths(mirror) == ["a.ipynb"]


def test_what_a_killed_run_left_is_in_nobodys_way(server: GitServer, mirror: Mirror) -> None:
    mirror.fetch(course(server))
    repository = mirror.folder / "mirror.git"
    left = [
        repository / "shallow.lock",
        repository / "packed-refs.lock",
        repository / f"{FETCHED}.lock",
        repository / "refs/heads/published.lock",
        repository / "objects/pack/tmp_pack_x",
        mirror.folder / "incoming-x",
        mirror.folder / "index-x",
    ]
    for path in left[:5]:
        path.touch()
    for path in left[5:]:
        path.mkdir()
    commit(server.folder / "course.git", {"b.ipynb": NOTEBOOK})
    mirror.fetch(course(server))
    published(mirror)
    assert [path for path in left if path.exists()] == []


def test_two_at_once_do_not_mix(server: GitServer, mirror: Mirror) -> None:
    mirror.fetch(course(server))
    with (mirror.folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for change in (
            lambda: mirror.fetch(course(server)),
            lambda: mirror.serve((), "", ""),
            mirror.remove,
        ):
            with pytest.raises(SourceUnusable) as busy:
                change()
            assert busy.value.cause == "busy"
        assert paths(mirror) == ["a.ipynb"]
    mirror.remove()
    assert not mirror.folder.exists()
    mirror.remove()


def test_a_machine_without_git(
    server: GitServer, mirror: Mirror, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as bare:
        bare.setenv("PATH", str(tmp_path))
        assert refused(mirror, course(server)).cause == "no-git"
    mirror.fetch(course(server))


# -- a source that was built to harm ---------------------------------------------------------------

REFUSED_URLS = {
    "a program as transport": "ext::sh -c touch% {mark}",
    "an option in a URL's place": "--upload-pack=touch {mark}",
    "an option as the host of ssh": "ssh://-oProxyCommand=touch% {mark}/x",
    "an option as the host of ssh, without spaces": "ssh://-oProxyCommand=touch${{IFS}}{mark}/x",
    "a file of the machine": "file://{folder}/course.git",
    "a path of the machine": "{folder}/course.git",
    "an ftp server": "ftp://127.0.0.1/course.git",
    "another helper": "fd::17",
}


@pytest.mark.parametrize("url", REFUSED_URLS.values(), ids=REFUSED_URLS.keys())
def test_a_url_that_is_none(server: GitServer, mirror: Mirror, tmp_path: Path, url: str) -> None:
    mark = tmp_path / "mark"
    said = url.format(mark=mark, folder=server.folder)
    assert refused(mirror, unchecked(git=said)).cause == "protocol"
    assert not mark.exists()


@pytest.mark.parametrize("branch", ["--upload-pack=x", "a..b", "main:refs/heads/x", "*", "a b"])
def test_a_branch_that_is_none(server: GitServer, mirror: Mirror, branch: str) -> None:
    error = refused(mirror, unchecked(git=server.url("course.git"), branch=branch))
    assert error.cause == "branch-missing"


# Trees that no git makes, and that git's own check knows: (mode, name, "file" or "folder").
TREES = {
    "..": [("40000", b"..", "folder")],
    ".": [("40000", b".", "folder")],
    ".git": [("40000", b".git", "folder")],
    ".GiT": [("40000", b".GiT", "folder")],
    "git~1": [("40000", b"git~1", "folder")],
    "a/../../b": [("100644", b"a/../../b", "file")],
    "/etc/passwd": [("100644", b"/etc/passwd", "file")],
    "twice": [("100644", b"a", "file"), ("100755", b"a", "file")],
    "file and folder": [("100644", b"a", "file"), ("40000", b"a", "folder")],
}


def hostile_tree(repository: Path, kind: str) -> str:
    file = blob(repository, b"x")
    folder = tree(repository, [("100644", b"passwd", file)])
    oids = {"file": file, "folder": folder}
    return tree(repository, [(mode, name, oids[what]) for mode, name, what in TREES[kind]])


@pytest.mark.parametrize("kind", TREES)
def test_a_tree_that_no_git_makes_is_not_fetched(
    server: GitServer, mirror: Mirror, kind: str
) -> None:
    mirror.fetch(course(server))
    source = server.folder / "course.git"
    commit_tree(source, hostile_tree(source, kind))
    error = refused(mirror, course(server))
    assert error.cause == "damaged"
    assert "git refuses what it holds (" in error.public_message
    assert paths(mirror) == ["a.ipynb"]


@pytest.mark.parametrize("kind", TREES)
def test_a_tree_that_no_git_makes_is_not_published(
    server: GitServer, mirror: Mirror, kind: str
) -> None:
    mirror.fetch(course(server))
    first = published(mirror)
    # As if git's own check had let it in.
    inside = mirror.folder / "mirror.git"
    made = commit_tree(inside, hostile_tree(inside, kind), branch="hostile")
    git(inside, "update-ref", FETCHED, made)
    checked = check_tree(mirror.entries(""), LIMITS)
    assert "fail" in [note.level for note in checked.notes]
    assert {entry.path for entry in checked.kept} <= {"a/passwd"}
    # And as if that had let it through.
    with pytest.raises(SourceUnusable):
        mirror.serve(mirror.entries(""), first, "")
    assert git(inside, "rev-parse", "published").decode().strip() == first


def test_a_tree_that_never_ends_is_ended(server: GitServer, mirror: Mirror) -> None:
    source = server.folder / "course.git"
    below = tree(source, [("100644", b"f%02d" % one, blob(source, b"x")) for one in range(10)])
    for _ in range(10):
        below = tree(source, [("40000", b"d%02d" % one, below) for one in range(10)])
    commit_tree(source, below)
    mirror.fetch(course(server))
    began = time.monotonic()
    with pytest.raises(SourceUnusable) as caught:
        mirror.entries("")
    assert (caught.value.cause, time.monotonic() - began < BOUND_S) == ("too-large", True)
    assert_no_git_runs()


def test_nothing_of_a_source_is_run(
    server: GitServer, mirror: Mirror, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    program = tmp_path / "program"
    program.write_text(f'#!/bin/sh\necho "$0 $@" >> {mark}\ncat\n')
    program.chmod(0o755)
    home = tmp_path / "home"
    home.mkdir()
    # What an admin's own account may have for daily work; none of it is the lab's.
    (home / ".gitconfig").write_text(
        f'[filter "evil"]\n\tsmudge = {program}\n\tclean = {program}\n\trequired = true\n'
        f"[core]\n\thooksPath = {tmp_path}/hooks\n\tfsmonitor = {program}\n"
        f"[credential]\n\thelper = {program}\n[fetch]\n\trecurseSubmodules = true\n"
        f'[url "ext::{program}"]\n\tinsteadOf = http://\n'
    )
    (tmp_path / "hooks").mkdir()
    for hook in ("reference-transaction", "post-checkout", "post-index-change", "post-merge"):
        (tmp_path / "hooks" / hook).symlink_to(program)
    commit(
        server.folder / "course.git",
        {
            "a.ipynb": NOTEBOOK,
            ".gitattributes": "* filter=evil diff=evil merge=evil\n",
            ".gitmodules": f'[submodule "x"]\n\tpath = x\n\turl = {server.url("x.git")}\n',
            "x": Submodule(),
        },
    )
    for name in ("GIT_ASKPASS", "SSH_ASKPASS", "GIT_SSH", "GIT_EXTERNAL_DIFF", "GIT_PROXY_COMMAND"):
        monkeypatch.setenv(name, str(program))
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home))
    monkeypatch.setenv("GIT_DIR", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_PARAMETERS", f"'core.hooksPath={tmp_path}/hooks'")
    mirror.fetch(course(server))
    kept = check_tree(mirror.entries(""), LIMITS).kept
    assert [mirror.read(entry, 1000) for entry in kept] == [NOTEBOOK]
    mirror.serve(kept, "", "x")
    server.mood = "password"
    assert refused(mirror, course(server)).cause == "password"
    assert not mark.exists()
    assert [one for one in server.requests if "x.git" in one] == []


def fake_ssh(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    (folder / "ssh").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


SSH = {
    "ssh that may not log in": ("Permission denied (publickey,password).", "password"),
    "ssh that does not know the host": ("Host key verification failed.", "host-key"),
    "ssh that does not know the name": (
        "ssh: Could not resolve hostname forge: Name or service not known",
        "name-unknown",
    ),
}


@pytest.mark.parametrize(("said", "cause"), SSH.values(), ids=SSH.keys())
def test_ssh_never_asks(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, cause: str
) -> None:
    words = tmp_path / "words"
    script = f'echo "$@" > {words}; tty -s && exec sleep 60; echo "{said}" >&2; exit 255'
    fake_ssh(tmp_path / "bin", script, monkeypatch)
    error = refused(mirror, Source(git="ssh://git@forge:2222/ada/c.git"))
    assert error.cause == cause
    assert "git@" not in error.public_message
    assert "ssh://forge:2222/ada/c.git" in error.public_message
    assert "-o BatchMode=yes" in words.read_text()


def test_ssh_that_hangs_is_ended_with_all_that_it_started(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids = tmp_path / "pids"
    script = f"trap '' TERM; sleep 600 & echo $! $$ > {pids}; wait; sleep 600"
    fake_ssh(tmp_path / "bin", script, monkeypatch)
    began = time.monotonic()
    error = refused(
        mirror,
        Source(git="ssh://forge/c.git"),
        is_stopped=lambda: pids.exists() and time.monotonic() > began + 0.3,
    )
    assert error.cause == "stopped"
    for pid in pids.read_text().split():
        with pytest.raises(ProcessLookupError):
            _wait_until_gone(int(pid))


def _wait_until_gone(pid: int) -> None:
    # Killed at once; its new parent takes it away a moment later.
    for _ in range(100):
        os.kill(pid, 0)
        if (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] == "Z":
            raise ProcessLookupError
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)


# -- a directory as a source -----------------------------------------------------------------------


def test_a_plain_directory_is_a_course(mirror: Mirror, teachers: Path, tmp_path: Path) -> None:
    folder = teachers / "cnn"
    (folder / "week 1" / ".git" / "hooks").mkdir(parents=True)
    (folder / ".ipynb_checkpoints").mkdir()
    (folder / ".ipynb_checkpoints" / "a-checkpoint.ipynb").write_bytes(NOTEBOOK)
    (folder / "week 1" / ".git" / "config").write_text("x")
    (folder / "a.ipynb").write_bytes(NOTEBOOK)
    (folder / "run.sh").write_text("true")
    (folder / "run.sh").chmod(0o755)
    (folder / 'week 1/"q"\\\n.txt').write_text("odd")
    (folder / "week 1/in").symlink_to("../a.ipynb")
    (folder / "week 1/out").symlink_to("/etc/passwd")
    (tmp_path / "secret").write_text("hidden")
    (folder / "away").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe")
    fetched = mirror.fetch(Source(directory=str(folder)))
    seen = {entry.path: (entry.mode, entry.link_target) for entry in mirror.entries("")}
    assert seen == {
        "a.ipynb": ("100644", ""),
        "away": ("120000", str(tmp_path)),
        "run.sh": ("100755", ""),
        'week 1/"q"\\\n.txt': ("100644", ""),
        "week 1/in": ("120000", "../a.ipynb"),
        "week 1/out": ("120000", "/etc/passwd"),
    }
    assert fetched.says == "Files of the directory cnn"
    assert fetched.at == int(max(file.lstat().st_mtime for file in folder.rglob("*/*")))
    kept = check_tree(mirror.entries(""), LIMITS).kept
    assert [entry.path for entry in kept] == ["a.ipynb", "run.sh", "week 1/in"]
    assert mirror.fetch(Source(directory=str(folder))) == fetched
    (folder / "a.ipynb").write_bytes(b"new")
    assert mirror.fetch(Source(directory=str(folder))).commit != fetched.commit


def work_tree(folder: Path) -> Path:
    """A repository with its files, and one commit."""
    folder.mkdir(parents=True)
    git(None, "-C", str(folder), "init", "--quiet", "--initial-branch=main")
    (folder / "a.ipynb").write_bytes(NOTEBOOK)
    git(None, "-C", str(folder), "add", ".")
    git(None, "-C", str(folder), "commit", "--quiet", "-m", "Week 1")
    return folder


def test_a_repositorys_directory_gives_what_is_committed(mirror: Mirror, teachers: Path) -> None:
    folder = work_tree(teachers / "cnn")
    (folder / "draft.ipynb").write_bytes(NOTEBOOK)
    (folder / "a.ipynb").write_text("not yet")
    assert mirror.fetch(Source(directory=str(folder))).says == "Week 1"
    assert paths(mirror) == ["a.ipynb"]
    assert mirror.read(mirror.entries("")[0], 1000) == NOTEBOOK
    git(folder / ".git", "branch", "term")
    git(folder / ".git", "pack-refs", "--all")
    git(folder / ".git", "gc", "--quiet")
    mirror.fetch(Source(directory=str(folder), branch="term"))
    error = refused(mirror, Source(directory=str(folder), branch="nope"))
    assert "Branches that are there: main, term." in error.public_message
    git(folder / ".git", "update-ref", "--no-deref", "HEAD", "refs/heads/term")
    mirror.fetch(Source(directory=str(folder)))
    bare = make_repository(teachers / "bare.git")
    commit(bare, {"b.txt": ""})
    mirror.fetch(Source(directory=str(bare)))
    assert paths(mirror) == ["b.txt"]


def test_a_repositorys_configuration_is_not_read(
    mirror: Mirror, teachers: Path, tmp_path: Path
) -> None:
    folder = work_tree(teachers / "cnn")
    mark = tmp_path / "mark"
    program = f"sh -c 'touch {mark}'"
    with (folder / ".git" / "config").open("a") as config:
        config.write(f"[core]\n\tfsmonitor = {program}\n\talternateRefsCommand = {program}\n")
        config.write(f"[uploadpack]\n\tpackObjectsHook = {program}\n[include]\n\tpath = /x\n")
    hook = folder / ".git" / "hooks" / "post-upload-pack"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch {mark}\n")
    hook.chmod(0o755)
    mirror.fetch(Source(directory=str(folder)))
    assert paths(mirror) == ["a.ipynb"]
    assert not mark.exists()


def other_repository(tmp_path: Path) -> tuple[Path, str]:
    """A repository that is nobody's source, and its commit."""
    other = make_repository(tmp_path / "exam.git")
    return other, commit(other, {"exam.txt": "42"})


def borrowed_alternates(folder: Path, other: Path, made: str) -> None:
    (folder / ".git/objects/info/alternates").write_text(f"{other}/objects\n")
    (folder / ".git/refs/heads/main").write_text(f"{made}\n")


def borrowed_objects(folder: Path, other: Path, made: str) -> None:
    (folder / ".git/objects").rename(folder / "objects")
    (folder / ".git/objects").symlink_to(other / "objects")
    (folder / ".git/refs/heads/main").write_text(f"{made}\n")


def borrowed_pack(folder: Path, other: Path, made: str) -> None:
    git(other, "repack", "-adq")
    for pack in (other / "objects/pack").iterdir():
        (folder / ".git/objects/pack" / pack.name).symlink_to(pack)
    (folder / ".git/refs/heads/main").write_text(f"{made}\n")


def borrowed_git(folder: Path, other: Path, made: str) -> None:
    (folder / ".git").rename(folder / "old")
    (folder / ".git").symlink_to(other)


def borrowed_by_file(folder: Path, other: Path, made: str) -> None:
    (folder / ".git").rename(folder / "old")
    (folder / ".git").write_text(f"gitdir: {other}\n")


@pytest.mark.parametrize(
    "borrow", [borrowed_alternates, borrowed_objects, borrowed_pack, borrowed_git, borrowed_by_file]
)
def test_another_repositorys_files_are_not_reached(
    mirror: Mirror, teachers: Path, tmp_path: Path, borrow: Callable[[Path, Path, str], None]
) -> None:
    folder = work_tree(teachers / "cnn")
    borrow(folder, *other_repository(tmp_path))
    if borrow is borrowed_by_file:
        # To the lab this is a directory with files.
        mirror.fetch(Source(directory=str(folder)))
        assert "exam.txt" not in paths(mirror)
        return
    error = refused(mirror, Source(directory=str(folder)))
    assert error.cause in ("damaged", "path-missing", "not-git")
    assert mirror.fetched() is None


def test_where_a_directory_may_lie(mirror: Mirror, teachers: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (teachers / "cnn").mkdir()
    (teachers / "cnn" / "a.txt").touch()
    (teachers / "out").symlink_to(tmp_path / "elsewhere")
    (teachers / "in").symlink_to("cnn")
    for outside in (tmp_path / "elsewhere", teachers / "out", teachers / ".." / "elsewhere"):
        error = refused(mirror, Source(directory=str(outside)))
        assert (error.cause, "does not lie below" in error.public_message) == ("not-allowed", True)
    for missing in (teachers / "nowhere", teachers / "cnn" / "a.txt"):
        assert refused(mirror, Source(directory=str(missing))).cause == "path-missing"
    alone = Mirror(tmp_path / "alone")
    assert refused(alone, Source(directory=str(teachers / "cnn"))).cause == "not-allowed"
    branch = Source(directory=str(teachers / "cnn"), branch="main")
    assert refused(mirror, branch).cause == "branch-missing"
    mirror.fetch(Source(directory=str(teachers / "in")))
    assert paths(mirror) == ["a.txt"]


def too_many(folder: Path) -> None:
    for number in range(LIMITS.max_files + 1):
        (folder / str(number)).touch()


def too_large_file(folder: Path) -> None:
    with (folder / "data.bin").open("wb") as file:
        file.truncate(2**40)


def too_large_together(folder: Path) -> None:
    for number in range(6):
        (folder / str(number)).write_bytes(os.urandom(900_000))


def too_deep(folder: Path) -> None:
    below = folder.joinpath(*["d"] * 150)
    below.mkdir(parents=True)
    (below / "f").touch()


@pytest.mark.parametrize("fill", [too_many, too_large_file, too_large_together, too_deep])
def test_a_directory_that_is_too_large(
    mirror: Mirror, teachers: Path, fill: Callable[[Path], None]
) -> None:
    (teachers / "first").mkdir()
    (teachers / "first" / "a.txt").touch()
    mirror.fetch(Source(directory=str(teachers / "first")))
    (teachers / "cnn").mkdir()
    fill(teachers / "cnn")
    assert refused(mirror, Source(directory=str(teachers / "cnn"))).cause == "too-large"
    assert paths(mirror) == ["a.txt"]


def test_a_repositorys_directory_that_is_too_large(mirror: Mirror, teachers: Path) -> None:
    commit(make_repository(teachers / "big.git"), {"data.bin": os.urandom(6 * 2**20)})
    assert refused(mirror, Source(directory=str(teachers / "big.git"))).cause == "too-large"
    assert sum(file.lstat().st_size for file in mirror.folder.rglob("*")) < 2**20


@pytest.mark.skipif(not os.geteuid(), reason="root may read everything")
def test_a_file_that_may_not_be_read(mirror: Mirror, teachers: Path) -> None:
    (teachers / "a.txt").touch(mode=0)
    error = refused(mirror, Source(directory=str(teachers)))
    assert "a.txt cannot be read (permission denied)" in error.public_message


# -- what students get -----------------------------------------------------------------------------


def as_student(*words: str, cwd: Path) -> str:
    """Run git as an ordinary user, with nothing of ours."""
    user = {"user": 65534, "group": 65534, "extra_groups": []} if not os.geteuid() else {}
    done = subprocess.run(
        ["git", *words],
        cwd=cwd,
        env={"PATH": os.environ["PATH"], "HOME": str(cwd), "LC_ALL": "C"},
        capture_output=True,
        text=True,
        check=False,
        **user,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def student_home(tmp_path: Path) -> Path:
    home = tmp_path / "student"
    home.mkdir()
    if not os.geteuid():
        os.chown(home, 65534, 65534)
        # pytest's own directories are closed to other users.
        for folder in (tmp_path, *tmp_path.parents[:2]):
            folder.chmod(folder.stat().st_mode | stat.S_IXGRP | stat.S_IXOTH)
    return home


def test_a_student_clones_the_bundle_and_fetches_the_next(
    server: GitServer, mirror: Mirror, tmp_path: Path
) -> None:
    source = server.folder / "course.git"
    home = student_home(tmp_path)
    bundle = tmp_path / "course.bundle"
    odd = {
        "a.ipynb": NOTEBOOK,
        "run.sh": Program(b"true"),
        "w/\u00fc b": "1",
        "w/l": Link("../a.ipynb"),
    }
    commit(source, {**odd, "theirs": Submodule(), "out": Link("/etc")})
    mirror.fetch(course(server))
    kept = check_tree(mirror.entries(""), LIMITS).kept
    first = mirror.serve(kept, "", "Week 1")
    assert first.bundle == mirror.bundle
    assert (first.files, first.size_bytes) == (4, mirror.bundle.stat().st_size)
    bundle.write_bytes(first.bundle.read_bytes())
    as_student("clone", "--quiet", "--branch", "published", str(bundle), "cnn", cwd=home)
    clone = home / "cnn"
    assert as_student("rev-parse", "HEAD", cwd=clone) == first.served
    assert as_student("ls-remote", str(bundle), cwd=home) == f"{first.served}\trefs/heads/published"
    has = as_student("ls-tree", "-r", "-z", "HEAD", cwd=clone).split("\0")[:-1]
    assert [(line[:6], line.partition("\t")[2]) for line in has] == [
        ("100644", "a.ipynb"),
        ("100755", "run.sh"),
        ("120000", "w/l"),
        ("100644", "w/\u00fc b"),
    ]
    assert os.access(clone / "run.sh", os.X_OK)
    assert (clone / "w/l").readlink() == Path("../a.ipynb")
    # The source starts from nothing; the student takes a step forward.
    commit(source, {"b.ipynb": NOTEBOOK}, is_new=True, at=1)
    mirror.fetch(course(server))
    second = mirror.serve(mirror.entries(""), first.served, "Week 2")
    bundle.write_bytes(second.bundle.read_bytes())
    as_student("fetch", "--quiet", cwd=clone)
    as_student("merge", "--quiet", "--ff-only", "origin/published", cwd=clone)
    assert sorted(path.name for path in clone.iterdir()) == [".git", "b.ipynb"]
    said = as_student("log", "--format=%H %s %ct", cwd=clone).splitlines()
    assert said == [f"{second.served} Week 2 1700000000", f"{first.served} Week 1 1700000000"]
    assert as_student("fsck", "--strict", cwd=clone) == ""


def test_the_same_files_are_the_same_publication(
    server: GitServer, mirror: Mirror, tmp_path: Path
) -> None:
    mirror.fetch(course(server))
    first = published(mirror)
    assert published(mirror, first, "Another message") == first
    other = Mirror(tmp_path / "other", LIMITS)
    other.fetch(course(server))
    assert published(other) == first
    commit(server.folder / "course.git", {"b.ipynb": NOTEBOOK})
    assert mirror.fetch(course(server)) == other.fetch(course(server))
    second = published(mirror, first, "Week 2")
    assert second == published(other, first, "Week 2") != first
    # A candidate that nobody published is not in the way of the next one.
    commit(server.folder / "course.git", {"c.ipynb": NOTEBOOK})
    mirror.fetch(course(server))
    third = published(mirror, first, "Week 2")
    log = git(mirror.folder / "mirror.git", "log", "--format=%H", "published").decode().split()
    assert log == [third, first]
    # Unless it was published in the very moment.
    git(mirror.folder / "mirror.git", "prune", "--expire=now")
    fourth = published(mirror, second, "Week 3")
    log = git(mirror.folder / "mirror.git", "log", "--format=%H", "published").decode().split()
    assert log == [fourth, second, first]


def test_a_mirror_that_was_lost_goes_on_from_a_bundle(
    server: GitServer, mirror: Mirror, tmp_path: Path
) -> None:
    mirror.fetch(course(server))
    first = published(mirror)
    bundle = tmp_path / "students.bundle"
    bundle.write_bytes(mirror.bundle.read_bytes())
    mirror.remove()
    commit(server.folder / "course.git", {"b.ipynb": NOTEBOOK})
    mirror.fetch(course(server))
    with pytest.raises(SourceUnusable) as caught:
        published(mirror, first)
    assert caught.value.cause == "history-missing"
    mirror.adopt(bundle)
    second = published(mirror, first)
    log = git(mirror.folder / "mirror.git", "log", "--format=%H", "published").decode().split()
    assert log == [second, first]


def test_a_term_of_publications_stays_small(
    server: GitServer, mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(git_store, "MAX_PACKS", 5)
    served = ""
    for week in range(14):
        commit(server.folder / "course.git", {"a.txt": str(week)})
        mirror.fetch(course(server))
        served = published(mirror, served, f"Week {week}")
    inside = mirror.folder / "mirror.git"
    assert len(list(inside.glob("objects/pack/*.pack"))) <= 6
    git(None, "clone", "-q", "-b", "published", str(mirror.bundle), str(tmp_path / "clone"))
    log = git(tmp_path / "clone/.git", "log", "--format=%s").decode().splitlines()
    assert log == [f"Week {week}" for week in reversed(range(14))]
    assert mirror.read(mirror.entries("")[0], 10) == b"13"


# -- git as it is run ------------------------------------------------------------------------------

TRANSPORTS = (
    "ext::touch% {mark}",
    "file://{folder}/course.git",
    "{folder}/course.git",
    "http://x/y",
)


@pytest.mark.parametrize("url", TRANSPORTS)
def test_git_uses_no_transport_that_was_not_named(
    server: GitServer, tmp_path: Path, url: str
) -> None:
    mark = tmp_path / "mark"
    words = ("ls-remote", "--", url.format(mark=mark, folder=server.folder))
    for protocols in ((), ("https", "ssh")):
        with pytest.raises(git_run.GitFailed, match="not allowed"):
            git_run.run(git_run.Run(words, protocols=protocols), git_run.Guard.of_seconds(9))
    assert not mark.exists()


def test_what_git_prints_is_cut(server: GitServer) -> None:
    oid = blob(server.folder / "course.git", b"0123456789" * 10**6)
    job = git_run.Run(("cat-file", "blob", oid), server.folder / "course.git", max_bytes=15)
    with pytest.raises(git_run.TooMuch) as caught:
        git_run.run(job, git_run.Guard.of_seconds(9))
    assert caught.value.printed == b"012345678901234"


def test_what_feeds_git_may_fail(mirror: Mirror, server: GitServer) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"blob\ndata 4\nabcd\n"
        raise SourceUnusable("Gone.", cause="path-missing")

    words = ("fast-import", "--quiet", "--done")
    job = git_run.Run(words, server.folder / "course.git", pieces())
    with pytest.raises(SourceUnusable, match="Gone"):
        git_run.run(job, git_run.Guard.of_seconds(9))
    assert_no_git_runs()
