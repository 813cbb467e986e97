"""Room in the home and where pip installs, with real full file systems and real Pythons."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import venv
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytorch_spawner.agent import diagnose, storage


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a small tmpfs with some options; needs root."""
    mounted: list[Path] = []

    def make(options: str) -> Path:
        folder = tmp_path / f"mount{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if os.getuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("nobody but root mounts a file system")
        mounted.append(folder)
        return folder

    yield make
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path) -> None:
    with (folder / "big").open("wb", 0) as file, contextlib.suppress(OSError):
        while file.write(b"x" * 65536):
            pass


def test_a_home_with_room_is_fine_and_says_how_much(tmp_path: Path) -> None:
    found = storage.home_space(str(tmp_path))
    assert found.level == "ok", found
    assert "has room for" in found.sentence


def test_a_full_home_has_no_space_and_cannot_be_written(mount: Callable[[str], Path]) -> None:
    home = mount("size=4m")
    fill(home)
    found = storage.home_space(str(home))
    assert (found.level, found.sentence) == ("fail", "No space is left in your home directory.")
    written = diagnose.home_writable(str(home), os.getuid())
    assert written.sentence == "Your home directory is full, so nothing can be saved."


def test_a_home_without_inodes_says_files_and_not_space(mount: Callable[[str], Path]) -> None:
    home = mount("size=900m,nr_inodes=4")
    for name in ("a", "b", "c"):
        (home / name).touch()
    found = storage.home_space(str(home))
    assert found.level == "fail"
    assert "can hold no more files, though there is space" in found.sentence
    assert "du --inodes" in found.remedy
    assert diagnose.home_writable(str(home), os.getuid()).level == "fail"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("size=100m", "is nearly full: 100 MiB are left"),
        ("size=900m,nr_inodes=500", "can hold only 499 more files"),
    ],
)
def test_a_home_with_little_room_is_a_note(
    mount: Callable[[str], Path], options: str, words: str
) -> None:
    found = storage.home_space(str(mount(options)))
    assert (found.level, words in found.sentence) == ("warn", True), found


def test_a_file_system_that_counts_no_inodes_is_not_out_of_them(
    mount: Callable[[str], Path],
) -> None:
    home = mount("size=900m,nr_inodes=0")
    found = storage.home_space(str(home))
    assert (found.level, dict(found.facts)["free_files"]) == ("ok", None)


@pytest.mark.parametrize("missing", [None, "", "/nonexistent"])
def test_without_a_home_its_space_is_unknown(missing: str | None) -> None:
    assert storage.home_space(missing).level == "unknown"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    made = tmp_path / "home"
    made.mkdir()
    return made


# What an image's Python says, with the packages of the image read-only: the usual case.
USUAL = {
    "user_site": "{home}/.local/lib/python3.11/site-packages",
    "user_on": True,
    "packages": "/opt/lab/lib/python3.11/site-packages",
    "writable": False,
    "virtual": True,
    "managed": False,
    "prefix": "/nonexistent",
    "path": ["/usr/lib/python3.11"],
}


@pytest.mark.parametrize(
    ("python", "environ", "conf", "level", "words"),
    [
        ({}, {}, "", "ok", "are kept in your home"),
        ({"user_on": False}, {}, "", "warn", "You cannot install packages"),
        ({"writable": True}, {}, "", "warn", "are lost when your server stops"),
        ({"writable": True}, {"PIP_USER": "1"}, "", "ok", "are kept"),
        ({"writable": True}, {}, "[install]\nuser = yes\n", "ok", "are kept"),
        ({"writable": True}, {"PIP_USER": "0"}, "[install]\nuser = yes\n", "warn", "are lost"),
        ({"writable": True, "user_on": False}, {"PIP_USER": "1"}, "", "warn", "do not look"),
        ({"writable": True, "packages": "{home}/env/lib"}, {}, "", "ok", "are kept"),
        ({"user_site": "/tmp/u/lib"}, {}, "", "warn", "go to /tmp/u/lib, which is not your home"),
        ({}, {"PIP_TARGET": "/opt/x"}, "", "warn", "told to install into /opt/x, which is not"),
        ({}, {"PIP_TARGET": "/opt/x", "PIP_CONFIG_FILE": "/dev/null"}, "", "warn", "/opt/x"),
        ({}, {}, "[global]\ntarget = /opt/x\n", "warn", "/opt/x"),
        ({}, {}, "[install]\nprefix = /opt/x\n", "warn", "/opt/x"),
        ({}, {"PIP_ROOT": "/opt/x"}, "", "warn", "/opt/x"),
        ({}, {"PIP_CONFIG_FILE": "/dev/null"}, "[global]\ntarget = /opt/x\n", "ok", "are kept"),
        ({}, {}, "[list]\ntarget = /opt/x\n", "ok", "are kept"),
        ({}, {"PIP_TARGET": "{home}/p"}, "", "warn", "where your notebooks do not look"),
        ({"path": ["{home}/p"]}, {"PIP_TARGET": "{home}/p"}, "", "ok", "are kept"),
        ({"path": ["{home}/p/lib/x"]}, {"PIP_PREFIX": "{home}/p"}, "", "ok", "are kept"),
        ({"virtual": False}, {"PIP_REQUIRE_VIRTUALENV": "true"}, "", "warn", "installs nothing"),
        ({}, {"PIP_REQUIRE_VIRTUALENV": "true"}, "", "ok", "are kept"),
        ({"virtual": False, "managed": True}, {}, "", "warn", "pip refuses"),
        ({"virtual": False, "managed": True}, {"PIP_BREAK_SYSTEM_PACKAGES": "1"}, "", "ok", ""),
        ({}, {}, "[global\nindex-url = https://user:p%40ss@host/\n", "ok", "are kept"),
        ({}, {}, "[global]\nindex-url = https://user:p%40ss@host/\n", "ok", "are kept"),
        ({}, {}, "\0\n= \n", "ok", "are kept"),
    ],
)
def test_where_pip_installs(
    home: Path, monkeypatch: pytest.MonkeyPatch, python: dict[str, object],
    environ: dict[str, str], conf: str, level: str, words: str,
) -> None:  # fmt: skip
    def placed(value: object) -> object:
        if isinstance(value, list):
            return [placed(item) for item in value]
        return value.replace("{home}", str(home)) if isinstance(value, str) else value

    asked = {name: placed(value) for name, value in {**USUAL, **python}.items()}
    monkeypatch.setattr(storage, "ask_python", lambda python: asked)
    (home / ".config" / "pip").mkdir(parents=True)
    (home / ".config" / "pip" / "pip.conf").write_text(conf)
    quiet = {"XDG_CONFIG_DIRS": str(home / "none")}  # what the machine of the test is told
    monkeypatch.setattr(storage, "GLOBAL_CONF", str(home / "none"))
    environ = {**quiet, **{name: str(placed(value)) for name, value in environ.items()}}
    found = storage.pip_user("/usr/bin/python3", str(home), environ)
    assert (found.level, words in found.sentence) == (level, True), found
    assert level == "ok" or (found.remedy and found.admin_remedy)
    assert "p%40ss" not in str(found)


def test_a_real_environment_says_where_it_installs(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("PYTHONUSERBASE", raising=False)
    venv.create(home.parent / "env", symlinks=True, system_site_packages=True)
    python = str(home.parent / "env" / "bin" / "python3")
    said = storage.ask_python(python)
    assert said is not None
    assert said["prefix"] == str(home.parent / "env")
    assert said["user_site"].startswith(f"{home}/.local/")
    assert (said["user_on"], said["virtual"]) == (True, True)
    monkeypatch.setenv("PYTHONNOUSERSITE", "1")
    assert (storage.ask_python(python) or {})["user_on"] is False
    venv.create(home / "own", symlinks=True)
    found = storage.pip_user(str(home / "own" / "bin" / "python3"), str(home), {
        "XDG_CONFIG_DIRS": str(home), "PIP_CONFIG_FILE": "/dev/null"})  # fmt: skip
    assert found.level == "ok", found


@pytest.mark.parametrize("script", ["exit 1", "echo nonsense", "echo '[1]'", ":", "printf '\\377'"])
def test_a_python_that_does_not_say_leaves_it_unknown(home: Path, script: str) -> None:
    python = home / "python3"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    assert storage.pip_user(str(python), str(home), {}).level == "unknown"


@pytest.mark.parametrize("python", [None, "/nonexistent/python3"])
def test_without_a_python_it_is_unknown(home: Path, python: str | None) -> None:
    assert storage.pip_user(python, str(home), {}).level == "unknown"
    assert storage.pip_user(sys.executable, None, {}).level == "unknown"


def test_a_students_module_named_like_a_standard_one_does_not_stop_the_question(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("os", "sysconfig"):
        (home / f"{name}.py").write_text("raise RuntimeError('mine')")
    monkeypatch.chdir(home)
    assert storage.ask_python(sys.executable) is not None
    monkeypatch.setenv("PYTHONPATH", str(home))
    assert storage.pip_user(sys.executable, str(home), {}).level in ("ok", "warn", "unknown")


@pytest.mark.parametrize("kind", ["a pipe", "a device"])
def test_settings_of_pip_that_are_no_file_are_passed_over_at_once(home: Path, kind: str) -> None:
    conf = home / ".config" / "pip" / "pip.conf"
    conf.parent.mkdir(parents=True)
    if kind == "a pipe":
        os.mkfifo(conf)
    else:
        conf.symlink_to("/dev/zero")
    chosen = home / "chosen.conf"
    chosen.write_text("[install]\nuser = yes\n")
    said = storage.pip_settings({"PIP_CONFIG_FILE": str(chosen)}, str(home), "/nowhere")
    assert said["user"] == "yes"
