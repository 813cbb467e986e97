"""When a standby may be handed over: what it was started with is what the new kernel would have.

Every question answers "" for yes, or the reason why an ordinary kernel is started instead.
"""

from __future__ import annotations

import os
import shutil
import site
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Variables that may differ between the standby's start and the kernel's, and why.
MAY_DIFFER: Mapping[str, str] = {
    "JPY_SESSION_NAME": "the notebook's path; ipykernel reads it after the hand-over",
    "CUDA_VISIBLE_DEVICES": "CUDA reads it at its first call, and a standby has made none",
    "PWD": "the shell's own note of the working directory",
    "OLDPWD": "the shell's own note of the last one",
    "SHLVL": "how deep shells are nested",
    "_": "the shell's note of the last command",
    "COLUMNS": "a terminal's width, asked when something is printed",
    "LINES": "a terminal's height, likewise",
}
_MOST_ENTRIES = 20_000
_LAUNCHER = "ipykernel_launcher"


@dataclass(frozen=True)
class Start:
    """What a standby was started with.

    Attributes:
        python: The interpreter.
        flags: Its options before ``-m``.
        environment: Of the process.
    """

    python: str
    flags: tuple[str, ...]
    environment: Mapping[str, str]


def split_command(command: Sequence[str]) -> tuple[str, tuple[str, ...], tuple[str, ...]] | None:
    """Return (interpreter, its flags, ipykernel's arguments); None where it is something else."""
    words = list(command)
    if "-m" not in words[1:]:
        return None
    at = words.index("-m", 1)
    flags, rest = words[1:at], words[at + 1 :]
    if rest[:1] != [_LAUNCHER] or not all(flag.startswith("-") for flag in flags):
        return None
    return words[0], tuple(flags), tuple(rest[1:])


def command_trouble(command: Sequence[str], start: Start) -> str:
    """Does it start ipykernel in the standby's own interpreter, with the same options?"""
    parts = split_command(command)
    if parts is None or len(parts[2]) < 2 or parts[2][0] != "-f":
        return "its command is not ipykernel's"
    python, flags, _ = parts
    if flags != start.flags:
        return "its interpreter has other options"
    return "" if _same_python(python, start.python) else "it has another interpreter"


def _same_python(one: str, other: str) -> bool:
    # The target alone is not enough: the interpreters of all virtual environments are links to one.
    first, second = shutil.which(one), shutil.which(other)
    if not first or not second:
        return False
    return Path(first).parent.samefile(Path(second).parent) and Path(first).samefile(second)


def environment_trouble(wanted: Mapping[str, str], start: Start, loaded: Iterable[str] = ()) -> str:
    """Would the variables read at import have been the same?"""
    may = set(MAY_DIFFER)
    if "matplotlib" not in loaded:
        may.add("MPLBACKEND")
    had = start.environment
    names = sorted(
        name
        for name in wanted.keys() | had.keys()
        if name not in may and wanted.get(name) != had.get(name)
    )
    if names:
        return f"its environment differs: {', '.join(names[:8])}"
    paths = wanted.get("PYTHONPATH")
    if paths and not all(Path(path).is_absolute() for path in paths.split(os.pathsep)):
        return "PYTHONPATH has a relative entry"
    return ""


def options_trouble(options: Mapping[str, Any]) -> str:
    """Only an environment and a working directory can be given to a process that runs already."""
    plain = {"env", "cwd", "extra_arguments", "kernel_id"}
    unusual = sorted(name for name, value in options.items() if value and name not in plain)
    return f"unusual options: {', '.join(unusual)}" if unusual else ""


def shadow_trouble(folder: str, loaded: Iterable[str]) -> str:
    """Does the notebook's directory hold a module that an ordinary kernel might import instead?"""
    names = {*loaded, _LAUNCHER}
    if "matplotlib" in names and Path(folder, "matplotlibrc").exists():
        return "matplotlibrc in its directory"
    with os.scandir(folder) as entries:
        for count, entry in enumerate(entries):
            if count >= _MOST_ENTRIES:
                return "its directory is too large to look through"
            stem, dot, ending = entry.name.partition(".")
            if stem not in names:
                continue
            if dot and ending.rpartition(".")[2] in ("py", "pyc", "so"):
                return f"{entry.name} in its directory"
            if not dot and entry.is_dir() and any(Path(entry.path).glob("__init__.*")):
                return f"the package {entry.name} in its directory"
    return ""


def fingerprint(environment: Mapping[str, str]) -> tuple[tuple[str, int, int], ...]:
    """What changes when something is installed where the kernel's interpreter looks.

    Args:
        environment: Of the kernel.
    """
    user_site = _user_site(environment)
    # Not sys.path: a server's may hold the home, which changes with every file.
    folders = [user_site, *map(Path, site.getsitepackages())]
    folders += map(Path, filter(None, environment.get("PYTHONPATH", "").split(os.pathsep)))
    try:
        folders += sorted(user_site.glob("*.pth"))
    except OSError:
        pass
    return tuple((str(path), *_stamp(path)) for path in dict.fromkeys(folders))


def _user_site(environment: Mapping[str, str]) -> Path:
    # site.getusersitepackages answers for the server, which may have another home.
    base = environment.get("PYTHONUSERBASE") or f"{environment.get('HOME', '')}/.local"
    return Path(base, f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages")


def files_trouble(files: Mapping[str, Sequence[int]]) -> str:
    """Has a module been edited that was loaded from outside the image?"""
    for name, stamp in files.items():
        if _stamp(Path(name)) != tuple(stamp):
            return f"{name} changed since"
    return ""


def foreign_files(modules: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Return the loaded files that are not the installation's, with their stamps."""
    own = {os.path.realpath(path) for path in (sys.prefix, sys.base_prefix, "/usr/lib")}
    found = {}
    for module in list(modules.values()):
        name = getattr(module, "__file__", None)
        if not isinstance(name, str) or not Path(name).is_absolute():
            continue
        real = os.path.realpath(name)
        if not any(real.startswith(path + os.sep) for path in own):
            found[name] = _stamp(Path(name))
    return found


def _stamp(path: Path) -> tuple[int, int]:
    try:
        known = path.stat()
    except OSError:
        return (0, 0)
    return (known.st_mtime_ns, known.st_ino)
