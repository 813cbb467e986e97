"""What the single-user server loads at its start, in one file: code and compiled patterns.

A server imports a thousand small files and compiles half a thousand regular expressions before it
answers, the same ones each time. ``record_boot`` writes them down when the image is built; here
they are read back. A module whose file is not the one that was recorded (size or time differ, as
for Python's own .pyc files) is imported as ever, and so is everything where anything else differs.
"""

# Called a thousand times while a student waits: a Path would cost as much as all the rest.
# ruff: noqa: PTH100, PTH105, PTH116, PTH118, PTH120, PTH123

import marshal
import mmap
import os
import re
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import MAGIC_NUMBER, spec_from_file_location

PATH = os.path.join(os.path.dirname(os.path.abspath(__file__)), "boot.bin")
# Code and patterns are for this very interpreter.
MADE_FOR = (sys.version, MAGIC_NUMBER)
_SIZE_BYTES = 8


class RecordedLoader(SourceFileLoader):
    """Python's own loader of source files, but for where the code comes from."""

    code = b""

    def get_code(self, fullname):
        try:
            return marshal.loads(self.code)
        except (ValueError, EOFError, TypeError):
            return super().get_code(fullname)


class RecordedModules:
    """Finds the modules of an archive.

    Args:
        modules: Name -> (path, mtime in s, size in bytes, is a package, begin, end).
        content: What begin and end count in.
    """

    def __init__(self, modules, content):
        self._modules = modules
        self._content = content

    def find_spec(self, name, path=None, target=None):
        """The module's specification; None for one that is not as it was recorded."""
        recorded = self._modules.get(name)
        if recorded is None:
            return None
        file, mtime, size, is_package, begin, end = recorded
        try:
            seen = os.stat(file)
        except OSError:
            return None
        if int(seen.st_mtime) != mtime or seen.st_size != size:
            return None
        loader = RecordedLoader(name, file)
        loader.code = self._content[begin:end]
        places = [os.path.dirname(file)] if is_package else None
        return spec_from_file_location(name, file, loader=loader, submodule_search_locations=places)


def use(path=PATH):
    """Serve imports and patterns from an archive from now on.

    Returns:
        Whether there is one that fits.
    """
    # Somebody's own folders come first, and their modules may have any name.
    if os.environ.get("PYTHONPATH"):
        return False
    try:
        with open(path, "rb") as file:
            content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        begin = _SIZE_BYTES + int.from_bytes(content[:_SIZE_BYTES], "little")
        made_for, modules, patterns = marshal.loads(content[_SIZE_BYTES:begin])
    except (OSError, ValueError, EOFError, TypeError):
        return False
    if made_for != MADE_FOR:
        return False
    sys.meta_path.insert(0, RecordedModules(modules, content[begin:]))
    use_patterns(patterns)
    return True


def use_patterns(patterns):
    """Let ``re`` take what was compiled before, each once: afterwards it remembers them itself."""
    compiler = re._compiler
    compile_anew, make = compiler.compile, compiler._sre.compile

    def compile_or_take(pattern, flags=0):
        known = patterns.pop((pattern, int(flags)), None) if type(pattern) is str else None
        return compile_anew(pattern, flags) if known is None else make(*known)

    compiler.compile = compile_or_take


class PatternRecorder:
    """Notes what ``re`` compiles, from when it is made.

    Attributes:
        patterns: (pattern, flags) -> what ``_sre.compile`` was given.
    """

    def __init__(self):
        self.patterns = {}
        compiler = re._compiler
        compile_anew, self._sre = compiler.compile, compiler._sre
        self._given = None

        def compile_and_note(pattern, flags=0):
            self._given = None
            made = compile_anew(pattern, flags)
            if type(pattern) is str and self._given and not flags & (re.DEBUG | re.LOCALE):
                self.patterns[pattern, int(flags)] = self._given
            return made

        compiler.compile = compile_and_note
        compiler._sre = self

    def compile(self, pattern, flags, code, groups, names, numbers):
        self._given = (pattern, int(flags), [int(one) for one in code], groups, names, numbers)
        return self._sre.compile(pattern, flags, code, groups, names, numbers)

    def __getattr__(self, name):
        return getattr(self._sre, name)


def write(modules, patterns, path=PATH):
    """Write an archive.

    Args:
        modules: Those of ``sys.modules`` to record; only what comes from a source file is.
        patterns: As ``PatternRecorder`` has them.
        path: Of the archive.

    Returns:
        How many modules it holds.
    """
    recorded, codes, end = {}, [], 0
    for name, module in sorted(modules.items()):
        spec = getattr(module, "__spec__", None)
        if spec is None or spec.name != name or type(spec.loader) is not SourceFileLoader:
            continue
        code = marshal.dumps(spec.loader.get_code(name))
        seen = os.stat(spec.origin)
        is_package = spec.submodule_search_locations is not None
        begin, end = end, end + len(code)
        recorded[name] = (spec.origin, int(seen.st_mtime), seen.st_size, is_package, begin, end)
        codes.append(code)
    head = marshal.dumps((MADE_FOR, recorded, patterns))
    half = f"{path}.half"
    with open(half, "wb") as file:
        file.write(len(head).to_bytes(_SIZE_BYTES, "little"))
        file.write(head)
        file.writelines(codes)
    os.replace(half, path)
    return len(recorded)
