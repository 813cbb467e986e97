"""Writes each cell to the file that ipykernel names as its source, as ipykernel's debugger does.

torch's profile of dynamic shapes knows code by a checksum of its file, or, where there is no such
file, by its name (torch/_dynamo/pgo.py), and the name of a cell's file holds the process id: a
model defined in a notebook would be unknown to every new kernel.
"""

from __future__ import annotations

import atexit
import os
from pathlib import Path
from typing import Any


def load_ipython_extension(shell: Any) -> None:
    """Called by IPython when a kernel of the image starts."""
    try:
        from ipykernel.compiler import XCachingCompiler, get_tmp_directory

        if isinstance(shell.compile, XCachingCompiler):
            Cells(shell.compile, Path(get_tmp_directory())).install()
    except Exception:  # noqa: BLE001 - a kernel without this works as it always did
        pass


class Cells:
    """The files of one kernel's cells."""

    def __init__(self, compiler: Any, folder: Path) -> None:
        self._compiler = compiler
        self._names = compiler.get_code_name
        self._folder = folder
        self._written: dict[str, int] = {}
        self._pid = os.getpid()

    def install(self) -> None:
        """Have the compiler ask here for the names of cells."""
        self._compiler.get_code_name = self.get_code_name
        atexit.register(self.remove)

    def get_code_name(self, raw_code: str, code: str, number: int) -> str:
        """Name a cell's file as ipykernel does, and write it."""
        name: str = self._names(raw_code, code, number)
        try:
            self._write(name, raw_code)
        except Exception:  # noqa: BLE001 - a full disk must not keep a cell from running
            pass
        return name

    def _write(self, name: str, source: str) -> None:
        known = hash(source)
        if self._written.get(name) == known or Path(name).parent != self._folder:
            return
        self._folder.mkdir(mode=0o700, exist_ok=True)
        place = os.lstat(self._folder)
        if place.st_uid != os.getuid() or not self._folder.is_dir() or self._folder.is_symlink():
            return
        options = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        with os.fdopen(os.open(name, options, 0o600), "wb") as file:
            file.write(source.encode())
        self._written[name] = known

    def remove(self) -> None:
        """Leave nothing behind; what a debugger put beside it stays."""
        if os.getpid() != self._pid:
            return  # a forked child's exit
        try:
            for name in self._written:
                Path(name).unlink(missing_ok=True)
            self._folder.rmdir()
        except OSError:
            pass
