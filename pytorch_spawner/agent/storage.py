"""What fits into the home directory, and whether installed packages get there and stay."""

from __future__ import annotations

import ast
import configparser
import os
import subprocess
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence

from pytorch_spawner.agent import plain_files
from pytorch_spawner.agent.codes import Outcome, outcome

LOW_SPACE_MIB = 512
LOW_FILES = 1000
_MIB = 1024 * 1024
_ASK_S = 10.0
GLOBAL_CONF = "/etc/pip.conf"

_CLEAN = "Remove what you no longer need; `du -sh ~/* ~/.cache` shows where it is."
_CLEAN_FILES = (
    "Remove folders with many small files, such as unpacked data sets and environments; "
    "`du --inodes -d 2 ~ | sort -n | tail` shows where they are."
)


def home_space(home: Optional[str]) -> Outcome:
    """How much, and how many files, still fit into the home.

    Args:
        home: Its path; ``None`` where ``$HOME`` is not set.
    """
    if not home or not Path(home).is_dir():
        return outcome("unknown", "There is no home directory whose space could be looked at.")
    space = os.statvfs(home)
    free_mib = space.f_bavail * space.f_frsize // _MIB
    # Some file systems (btrfs) count no inodes and say 0 of 0.
    free_files = space.f_favail if space.f_files else None
    facts: Dict[str, Any] = {
        "free_mib": free_mib,
        "total_mib": space.f_blocks * space.f_frsize // _MIB,
        "free_files": free_files,
        "total_files": space.f_files or None,
    }
    if free_mib < 1:
        return outcome("fail", "No space is left in your home directory.", _CLEAN,
                       "Raise the quota or grow the file system.", **facts)  # fmt: skip
    if free_files == 0:
        return outcome(
            "fail", "Your home directory can hold no more files, though there is space.",
            _CLEAN_FILES, "The file system has no free inodes: make more (a new ext4 takes its "
            "number from mkfs -N), or raise the quota.", **facts,
        )  # fmt: skip
    if free_mib < LOW_SPACE_MIB:
        return outcome("warn", f"Your home directory is nearly full: {free_mib} MiB are left.",
                       _CLEAN, "Raise the quota or grow the file system.", **facts)  # fmt: skip
    if free_files is not None and free_files < LOW_FILES:
        return outcome(
            "warn", f"Your home directory can hold only {free_files} more files.", _CLEAN_FILES,
            "The file system is short of inodes: raise the quota or make more.", **facts,
        )  # fmt: skip
    size = f"{free_mib} MiB" if free_mib < 10 * 1024 else f"{free_mib // 1024} GiB"
    return outcome("ok", f"Your home directory has room for {size} more.", **facts)


# Asks a Python where it looks for packages. A module of the student's with one of these names makes
# the answer unknown.
_ASK = """
import sys
sys.path = [path for path in sys.path if path]
import os, site, sysconfig
stdlib = sysconfig.get_path("stdlib")
print(repr({
    "user_site": site.getusersitepackages(),
    "user_on": site.ENABLE_USER_SITE is True,
    "packages": sysconfig.get_path("purelib"),
    "writable": os.access(sysconfig.get_path("purelib"), os.W_OK),
    "virtual": sys.prefix != sys.base_prefix,
    "managed": os.path.exists(os.path.join(stdlib, "EXTERNALLY-MANAGED")),
    "prefix": sys.prefix,
    "path": sys.path,
}))
"""


def ask_python(python: str) -> Optional[Dict[str, Any]]:
    """Where a Python installs packages, and where it looks for them; ``None``: no answer."""
    try:
        said = subprocess.run(
            [python, "-c", _ASK], capture_output=True, timeout=_ASK_S, check=True, text=True,
            stdin=subprocess.DEVNULL, cwd="/",
        )  # fmt: skip
        found = ast.literal_eval(said.stdout.strip().splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, SyntaxError, IndexError):
        return None
    return found if isinstance(found, dict) else None


def pip_user(python: Optional[str], home: Optional[str], environ: Mapping[str, str]) -> Outcome:
    """Whether ``pip install`` in a notebook puts packages into the home.

    Args:
        python: The notebooks' Python.
        home: The home directory.
        environ: The container's environment, with pip's variables.
    """
    asked = ask_python(python) if python else None
    if asked is None or not home:
        return outcome("unknown", "The Python of your notebooks did not say where it installs "
                       "packages.", python=python)  # fmt: skip
    settings = pip_settings(environ, home, asked["prefix"])
    facts: Dict[str, Any] = {
        "user_site": asked["user_site"],
        "packages": asked["packages"],
        "settings": settings,
    }
    redirected = _redirected(settings)
    if redirected is not None:
        return _judge_redirected(*redirected, home, asked["path"], facts)
    if _is_true(settings.get("require-virtualenv")) and not asked["virtual"]:
        return outcome(
            "warn", "pip installs nothing here, because it is told to want a virtual environment.",
            "Make one in your home: `python3 -m venv ~/env`.",
            "Remove require-virtualenv from pip's settings.", **facts,
        )  # fmt: skip
    if (
        asked["managed"]
        and not asked["virtual"]
        and not _is_true(settings.get("break-system-packages"))
    ):
        return outcome(
            "warn", "pip refuses to install packages, because the image's system manages its "
            "Python.", "Use `pip install --break-system-packages`: it goes into your home alone.",
            "Give the image an environment of its own, or set PIP_BREAK_SYSTEM_PACKAGES=1.",
            **facts,
        )  # fmt: skip
    return _judge_usual(settings.get("user"), home, asked, facts)


def _judge_usual(
    user: Optional[str], home: str, asked: Mapping[str, Any], facts: Mapping[str, Any]
) -> Outcome:
    """As pip decides without a target. Source: pip, decide_user_install."""
    to_user = _is_true(user) if user is not None else (asked["user_on"] and not asked["writable"])
    if to_user and not asked["user_on"]:
        return outcome(
            "warn", "pip is told to install into your home, where your notebooks do not look.",
            "Tell your admin.", "PYTHONNOUSERSITE must not be set, and a virtual environment needs "
            "include-system-site-packages = true.", **facts,
        )  # fmt: skip
    place = asked["user_site"] if to_user else asked["packages"]
    if _is_below(place, home):
        return outcome("ok", "Packages that you install with pip are kept in your home.", **facts)
    if to_user:
        return outcome(
            "warn", f"Packages that you install with pip go to {place}, which is not your home: "
            "they are lost when your server stops.",
            f"Unset PYTHONUSERBASE, or use `pip install --target {home}/packages`.",
            "Remove PYTHONUSERBASE from the image.", **facts,
        )  # fmt: skip
    if asked["writable"]:
        return outcome(
            "warn", "Packages that you install with pip are lost when your server stops.",
            "Use `pip install --user`." if asked["user_on"] else
            "Make an environment in your home: `python3 -m venv --system-site-packages ~/env`.",
            "Make the image's packages read-only for its users, or set PIP_USER=1.", **facts,
        )  # fmt: skip
    return outcome(
        "warn", "You cannot install packages with pip: the image's are read-only, and your own are "
        "switched off.",
        "Make an environment in your home: `python3 -m venv --system-site-packages ~/env`.",
        "PYTHONNOUSERSITE must not be set, and a virtual environment needs "
        "include-system-site-packages = true.", **facts,
    )  # fmt: skip


def _judge_redirected(
    option: str, place: str, home: str, path: Sequence[str], facts: Mapping[str, Any]
) -> Outcome:
    where = os.path.normpath(os.path.expanduser(place))  # noqa: PTH111 (os.path throughout)
    if not _is_below(where, home):
        return outcome(
            "warn", f"pip is told to install into {place}, which is not your home: packages are "
            "lost when your server stops.",
            f"Remove the setting `{option}` (`pip config debug` shows where it is).",
            f"Remove PIP_{option.upper()} or `{option}` in pip.conf from the image.", **facts,
        )  # fmt: skip
    # A prefix has its packages somewhere below it, a target is what Python must look at.
    known = [os.path.normpath(folder) for folder in path]
    if not any(one == where or (option != "target" and _is_below(one, where)) for one in known):
        return outcome(
            "warn", f"pip is told to install into {place}, where your notebooks do not look.",
            f"Remove the setting `{option}` (`pip config debug` shows where it is), or add the "
            "folder to PYTHONPATH.",
            f"Remove PIP_{option.upper()} or `{option}` in pip.conf from the image.", **facts,
        )  # fmt: skip
    return outcome("ok", "Packages that you install with pip are kept in your home.", **facts)


def _redirected(settings: Mapping[str, str]) -> Optional[tuple[str, str]]:
    return next(
        ((option, settings[option]) for option in ("target", "prefix", "root")
         if settings.get(option)), None,
    )  # fmt: skip


def pip_settings(environ: Mapping[str, str], home: str, prefix: str) -> Dict[str, str]:
    """The settings of pip that say where it installs, as far as anything sets them.

    Source: pip's documentation, "Configuration", from the weakest to the strongest: global, user,
    site, PIP_CONFIG_FILE, the environment.
    """
    names = ("target", "prefix", "root", "user", "require-virtualenv", "break-system-packages")
    found: Dict[str, str] = {}
    for path in _pip_files(environ, home, prefix):
        # No interpolation: a password in an index URL may hold "%".
        parser = configparser.RawConfigParser()
        try:
            parser.read_string(plain_files.read(path).decode("utf-8"), path)
        except (configparser.Error, OSError, UnicodeDecodeError):
            continue
        for section in ("global", "install"):
            if parser.has_section(section):
                found.update({k: v for k, v in parser.items(section) if k in names})
    for name in names:
        value = environ.get(f"PIP_{name.upper().replace('-', '_')}")
        if value:
            found[name] = value
    return found


def _pip_files(environ: Mapping[str, str], home: str, prefix: str) -> List[str]:
    chosen = environ.get("PIP_CONFIG_FILE")
    if chosen == os.devnull:
        return []
    shared = [f"{d}/pip/pip.conf" for d in environ.get("XDG_CONFIG_DIRS", "/etc/xdg").split(":")]
    config = environ.get("XDG_CONFIG_HOME") or f"{home}/.config"
    files = [*shared, GLOBAL_CONF, f"{home}/.pip/pip.conf", f"{config}/pip/pip.conf",
             f"{prefix}/pip.conf"]  # fmt: skip
    return [*files, chosen] if chosen else files


def _is_true(value: Optional[str]) -> bool:
    return (value or "").strip().lower() in ("1", "y", "yes", "t", "true", "on")


def _is_below(path: str, folder: str) -> bool:
    inner, outer = os.path.realpath(path), os.path.realpath(folder)
    return inner == outer or inner.startswith(outer.rstrip("/") + "/")
