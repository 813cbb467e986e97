"""The processes that a build of a warm cache runs: their order, folder and beginning."""

from __future__ import annotations

import errno
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

from pytorch_spawner.agent import plain_files

# PyTorch's profiles below the private cache (torch 2.13, _dynamo/pgo.py: code_state_path).
PROFILE = ("inductor", "dynamo")
_MAX_PROFILE = 16 * 1024**2  # a profile has some kB


@dataclass(frozen=True)
class Run:
    """One process: a target, and the sizes it is called with in turn.

    Attributes:
        is_first: Whether what PyTorch learns from it is what everybody begins with.
        is_later: Whether it begins with what the process before it has learnt as well.
    """

    target: Mapping[str, Any]
    sizes: Tuple[Optional[int], ...]
    is_first: bool = False
    is_later: bool = False


def sizes_of(target: Mapping[str, Any]) -> Tuple[Optional[int], ...]:
    """The sizes that a target is compiled for; (None,) where nothing varies.

    The second makes PyTorch see that the size varies, and from then on one graph serves all of
    them; size 1 is a graph of its own to it ("0/1 specialization", torch 2.13,
    fx/experimental/symbolic_shapes.py), and a graph for 2 * size proves that the range is covered.
    """
    vary = target.get("vary")
    if not vary:
        return (None,)
    size = int(vary[1])
    return tuple(dict.fromkeys((size, size + 1, 1, 2 * size)))


def plan(targets: List[Mapping[str, Any]], *, is_check: bool) -> List[Run]:
    """The processes of a build or of a check, in order; each begins with what ``Learnt`` holds.

    A build begins with each target's usual size. What PyTorch has learnt by then is what a student
    begins with: the usual size is a graph without unknowns, which is traced in less time, and the
    first other one makes the graph for all of them. So the other sizes are compiled by processes
    that begin there, too: one after the usual size, as in a notebook where it is changed, and twice
    the size at once, for which inductor may choose other kernels (a GPT on an H200). After a change
    the usual size is one of the unknowns. Where targets share code, one's size is another's change,
    so all run again.

    A check gives each size a process of its own, as a student's new notebook would be, and the
    usual one another after a change.
    """
    runs = []
    if not is_check:
        runs = [Run(target, sizes_of(target)[:1], is_first=True) for target in targets]
    for target in targets:
        usual, *others = sizes_of(target)
        if is_check:
            runs += [Run(target, (size,)) for size in (usual, *others)]
        elif others or len(targets) > 1:
            runs.append(Run(target, (usual, *others[:1])))
            if others[1:]:
                runs.append(Run(target, tuple(others[:0:-1])))
        if others:
            runs.append(Run(target, (usual,), is_later=True))
    return runs


def folder_of(course: str, target: Mapping[str, Any]) -> str:
    """Where in a student's home the target's code runs: a notebook in its own folder.

    CUDA compilers write the working directory into what they make (NVRTC 13.0 with
    ``--generate-line-info``, as cuDNN calls it), and so into the keys of the driver's cache.

    Args:
        course: The course's folder in a student's home; "" for none.
        target: Of the suite.
    """
    folder = Path(course)
    return str(folder / Path(target["what"]).parent if target["kind"] == "notebook" else folder)


class Learnt:
    """What PyTorch learnt about varying sizes, at the point where every student begins.

    Each process that meets another size adds to PyTorch's profile, and from then on that size is an
    unknown to every process that reads it. A student's first notebook has met nothing yet.

    Kept in memory and looked at with suspicion: the suite's code could write there, too.

    Args:
        place: PyTorch's directory of profiles; there may be none.
    """

    def __init__(self, place: Path) -> None:
        self._place = place
        self._files: Dict[str, bytes] = {}
        self.keep()

    def keep(self) -> None:
        """Take what is there now as the beginning; nothing but plain files.

        Raises:
            OSError: They cannot be read, or are far more than a profile.
        """
        self._files = {}
        if self._place.is_symlink() or not self._place.is_dir():
            return
        left = _MAX_PROFILE
        for path in sorted(self._place.glob("*.pkl")):
            if path.is_symlink() or not path.is_file():
                continue
            content = plain_files.read(path, left + 1)
            if len(content) > left:
                raise OSError(errno.EFBIG, f"it is larger than {_MAX_PROFILE // 1024**2} MiB")
            self._files[path.name] = content
            left -= len(content)

    def put_back(self) -> None:
        """Begin there again.

        Raises:
            OSError: There is no room, or no right.
        """
        if self._place.is_dir() and not self._place.is_symlink():
            shutil.rmtree(self._place)
        else:
            self._place.unlink(missing_ok=True)
        if self._files:
            self._place.mkdir(parents=True)
        for name, content in self._files.items():
            self._place.joinpath(name).write_bytes(content)
