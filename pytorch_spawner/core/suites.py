"""Warm-up suites: what a build of a warm cache runs. Read whole or refused whole; pure.

A suite is a directory with a ``suite.yaml`` and the code that it names. What a build compiled can
be built again years later, so a suite is kept as one archive, by the digest of its content.
"""

from __future__ import annotations

import hashlib
import io
import json
import keyword
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from pytorch_spawner.core.grant_rows import problem_of
from pytorch_spawner.errors import BadRequest, Problem

SUITE_FILE: Final = "suite.yaml"
# The tag of a notebook's cells to run, where the suite names no other.
TAG: Final = "warm-up"
# A suite is code, not data: what it trains on, it makes itself. It travels in one message to the
# engine and stays in the ledger.
MAX_FILES: Final = 200
MAX_BYTES: Final = 1024 * 1024
# More than any suite needs, and short enough that no parser is kept busy.
MAX_YAML_BYTES: Final = 64 * 1024
MAX_PATH: Final = 200
# Each target runs in several fresh processes, one after the other, on a GPU that others wait for.
MAX_TARGETS: Final = 16
MAX_IMPORTS: Final = 16
DEADLINE_S: Final = (10, 7200)
MAX_SIZE: Final = 1_000_000
# Headers and padding of each file, and the archive's end.
_MAX_ARCHIVE_BYTES: Final = MAX_BYTES + MAX_FILES * 4 * 512 + 64 * 1024

_NAME: Final = r"^[a-z0-9-]{1,40}$"
_DOTTED: Final = r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*"
_KINDS: Final = ("function", "script", "notebook")


@dataclass(frozen=True, slots=True)
class SuiteTarget:
    """One thing to run.

    Attributes:
        name: Unique in the suite.
        kind: "function", "script" or "notebook".
        what: "module:function", or the file's path in the suite.
        tag: Tag of the notebook's cells that are run.
        vary: Name and usual value of what students change; None where nothing varies.
    """

    name: str
    kind: str
    what: str
    tag: str = TAG
    vary: tuple[str, int] | None = None


@dataclass(frozen=True, slots=True)
class Suite:
    """What a build runs.

    Attributes:
        name: As people write it.
        targets: At least one.
        imports: Modules that standby kernels import in advance.
        network: Whether the warmer's container reaches the network.
        deadline_s: Most seconds of one container.
    """

    name: str
    targets: tuple[SuiteTarget, ...]
    imports: tuple[str, ...] = ()
    network: bool = False
    deadline_s: int = 900

    def as_json(self) -> dict[str, Any]:
        """The suite as the ledger and the warmer's container hold it."""
        return {
            "name": self.name,
            "targets": [
                {
                    "name": one.name,
                    "kind": one.kind,
                    "what": one.what,
                    "tag": one.tag,
                    "vary": list(one.vary) if one.vary else None,
                }
                for one in self.targets
            ],
            "imports": list(self.imports),
            "network": self.network,
            "deadline_s": self.deadline_s,
        }

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> Suite:
        """What ``as_json`` gave."""
        return cls(
            name=said["name"],
            targets=tuple(
                SuiteTarget(
                    one["name"],
                    one["kind"],
                    one["what"],
                    one["tag"],
                    (one["vary"][0], one["vary"][1]) if one["vary"] else None,
                )
                for one in said["targets"]
            ),
            imports=tuple(said["imports"]),
            network=said["network"],
            deadline_s=said["deadline_s"],
        )


# -- reading -------------------------------------------------------------------------------------


def _no_truth(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a whole number, not true or false")  # noqa: TRY004 (pydantic's rule)
    return value


_Size = Annotated[int, Field(ge=1, le=MAX_SIZE), BeforeValidator(_no_truth)]


class _TargetSpec(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(pattern=_NAME)]
    function: Annotated[str, Field(pattern=rf"^{_DOTTED}:[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    script: Annotated[str, Field(pattern=r"\.py$")] | None = None
    notebook: Annotated[str, Field(pattern=r"\.ipynb$")] | None = None
    tag: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:-]{1,40}$")] = TAG
    vary: dict[str, _Size] | None = None


class _SuiteSpec(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(pattern=_NAME)]
    targets: Annotated[list[_TargetSpec], Field(min_length=1, max_length=MAX_TARGETS)]
    imports: Annotated[
        list[Annotated[str, Field(pattern=rf"^{_DOTTED}$", max_length=100)]],
        Field(max_length=MAX_IMPORTS),
    ] = []
    network: bool = False
    deadline_s: Annotated[
        int, Field(ge=DEADLINE_S[0], le=DEADLINE_S[1]), BeforeValidator(_no_truth)
    ] = 900


# What a pattern means, for somebody who writes a suite.
_PATTERNS: Final[Mapping[str, str]] = {
    "name": "a to z, 0 to 9 and -, at most 40 characters",
    "function": "module:function, such as gpt:train_step",
    "script": "a file that ends in .py",
    "notebook": "a file that ends in .ipynb",
    "tag": "a tag of letters, digits and _.:-, at most 40 characters",
    "imports": "names of modules, such as torchvision or numpy.linalg",
}


def read_suite(files: Mapping[str, bytes]) -> Suite:
    """Read a suite, or refuse it whole.

    Args:
        files: Content by path, ``suite.yaml`` among them.

    Raises:
        BadRequest: Anything is wrong; the message lists every fault with its place.
    """
    problems = [*_of_files(files)]
    said = _load(files, problems)
    if said is not None:
        spec: _SuiteSpec | None = None
        try:
            spec = _SuiteSpec.model_validate(said)
        except ValidationError as error:
            problems += [_problem(one) for one in error.errors(include_url=False)]
        # On the raw text, so that a fault of one target hides no fault of another.
        problems += _of_targets(said.get("targets"), files)
        if spec is not None and not problems:
            return _suite(spec)
    raise _refused(problems)


def _refused(problems: list[Problem]) -> BadRequest:
    faults = [f"{one.field}: {one.message}" if one.field else one.message for one in problems]
    text = "The suite is not usable: " + "; ".join(faults) + "."
    return BadRequest(text, faults=faults, problems=problems)


def _load(files: Mapping[str, bytes], problems: list[Problem]) -> dict[str, Any] | None:
    text = files.get(SUITE_FILE)
    if text is None:
        problems.append(Problem(f"there is no {SUITE_FILE} in it"))
        return None
    if len(text) > MAX_YAML_BYTES:
        problems.append(Problem(f"more than {MAX_YAML_BYTES // 1024} KiB", SUITE_FILE))
        return None
    try:
        said = yaml.safe_load(text.decode("utf-8"))
    except UnicodeDecodeError:
        problems.append(Problem("it is no UTF-8 text", SUITE_FILE))
        return None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        why = _plain(" ".join(str(error).split()))[:200]
        problems.append(Problem(f"it is no YAML: {why}", SUITE_FILE))
        return None
    if not isinstance(said, dict):
        problems.append(Problem("it holds no keys, such as name and targets", SUITE_FILE))
        return None
    return said


def _problem(error: Mapping[str, Any]) -> Problem:
    place = _place(error["loc"])
    if error["type"] == "extra_forbidden":
        return Problem("there is no such key", place)
    if error["type"] == "string_pattern_mismatch":
        names = [part for part in error["loc"] if part in _PATTERNS]
        return Problem(_PATTERNS[names[-1]] if names else "not of this form", place)
    if error["type"] in ("model_type", "dict_type"):
        return Problem("a list of keys and values", place)
    if error["type"] in ("bool_type", "bool_parsing"):
        return Problem("true or false", place)
    if error["type"] == "too_short":
        return Problem("at least one", place)
    return Problem(problem_of(error).message, place)


def _place(loc: tuple[int | str, ...]) -> str:
    """`("targets", 1, "script")` as `targets[1].script`."""
    text = ""
    for part in loc:
        if part == "[key]":  # pydantic's own, for a key of a mapping
            continue
        text += f"[{part}]" if isinstance(part, int) else f".{_plain(str(part))[:60]}"
    return text.removeprefix(".")


def _of_targets(said: Any, files: Mapping[str, bytes]) -> Iterator[Problem]:
    if not isinstance(said, list):
        return  # said before
    targets = [(place, one) for place, one in enumerate(said[:MAX_TARGETS])]
    names = Counter(
        one["name"]
        for _, one in targets
        if isinstance(one, dict) and isinstance(one.get("name"), str)
    )
    for place, one in targets:
        if not isinstance(one, dict):
            continue
        where = f"targets[{place}]"
        name = one.get("name")
        if isinstance(name, str) and names[name] > 1:
            yield Problem(
                f"{_plain(name)[:60]} is the name of {names[name]} targets", f"{where}.name"
            )
        kinds = [kind for kind in _KINDS if one.get(kind) is not None]
        if len(kinds) != 1:
            yield Problem("exactly one of function, script and notebook", where)
        if one.get("tag") is not None and "notebook" not in kinds:
            yield Problem("only a notebook has tags", f"{where}.tag")
        yield from _of_vary(one.get("vary"), f"{where}.vary")
        for kind in kinds:
            if isinstance(one[kind], str):
                yield from _of_code(kind, one, f"{where}.{kind}", files)


def _of_vary(said: Any, where: str) -> Iterator[Problem]:
    if not isinstance(said, dict):
        return
    if len(said) != 1:
        yield Problem("one name and its usual value, such as {batch_size: 8}", where)
    for name in said:
        if isinstance(name, str) and (not name.isidentifier() or keyword.iskeyword(name)):
            yield Problem(f"{_plain(name)[:60]} is no name of a variable", where)


def _of_code(
    kind: str, target: Mapping[str, Any], where: str, files: Mapping[str, bytes]
) -> Iterator[Problem]:
    what = target[kind]
    if kind == "function":
        module = what.partition(":")[0].replace(".", "/")
        if re.fullmatch(_DOTTED, what.partition(":")[0]) and not (
            f"{module}.py" in files or f"{module}/__init__.py" in files
        ):
            yield Problem(f"there is no file {module}.py in the suite", where)
        return
    if what not in files:
        yield Problem(f"there is no file {_plain(what)[:MAX_PATH]} in the suite", where)
    elif kind == "notebook":
        tag = target.get("tag") or TAG
        if (why := _why_no_cells(files[what], tag)) and isinstance(tag, str):
            yield Problem(why, where)


def _why_no_cells(content: bytes, tag: str) -> str:
    """Why a notebook has nothing to run; "" when it has."""
    try:
        cells = json.loads(content)["cells"]
        tagged = [
            cell
            for cell in cells
            if cell["cell_type"] == "code" and tag in cell.get("metadata", {}).get("tags", [])
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "it is no notebook"
    return "" if tagged else f"no code cell of it has the tag {_plain(str(tag))[:40]}"


def _suite(spec: _SuiteSpec) -> Suite:
    targets = []
    for one in spec.targets:
        kind = next(kind for kind in _KINDS if getattr(one, kind) is not None)
        vary = next(iter(one.vary.items())) if one.vary else None
        targets.append(SuiteTarget(one.name, kind, getattr(one, kind), one.tag, vary))
    return Suite(spec.name, tuple(targets), tuple(spec.imports), spec.network, spec.deadline_s)


# -- files ---------------------------------------------------------------------------------------


def _of_files(files: Mapping[str, bytes]) -> Iterator[Problem]:
    if len(files) > MAX_FILES:
        yield Problem(f"it has {len(files)} files, and may have {MAX_FILES}")
    if (size := sum(map(len, files.values()))) > MAX_BYTES:
        yield Problem(
            f"its files have {size / 2**20:.1f} MiB together, and may have {MAX_BYTES // 2**20} MiB"
        )
    folders = {path[:at] for path in files for at, char in enumerate(path) if char == "/"}
    for path in sorted(files):
        if why := why_bad_path(path):
            yield Problem(why, _plain(path)[:60])
        elif path in folders:
            yield Problem("it is both a file and a folder", _plain(path)[:60])


def why_bad_path(path: str) -> str:
    """Why no file of a suite may have this path; "" when one may."""
    if not path or path.startswith("/") or not {"", ".", ".."}.isdisjoint(path.split("/")):
        return "not a path inside the suite"
    if not path.isprintable() or "\\" in path:
        return "only printable characters, and no backslash"
    return "" if len(path) <= MAX_PATH else f"at most {MAX_PATH} characters"


def digest(files: Mapping[str, bytes]) -> str:
    """SHA-256 of what a suite is, in hex: every path and content, in the order of the paths."""
    whole = hashlib.sha256()
    for path in sorted(files):
        # With its length, so that no content is taken for the next path.
        whole.update(f"{path}\0{len(files[path])}\0".encode())
        whole.update(files[path])
    return whole.hexdigest()


def pack(files: Mapping[str, bytes]) -> bytes:
    """A suite as an uncompressed tar; the same files give the same bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(files):
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(files[path]), 0o444
            archive.addfile(entry, io.BytesIO(files[path]))
    return buffer.getvalue()


def unpack(archive: bytes) -> dict[str, bytes]:
    """What ``pack`` was given.

    Raises:
        BadRequest: It is no such archive, or is beyond the limits of a suite.
    """
    if len(archive) > _MAX_ARCHIVE_BYTES:
        raise BadRequest(f"The suite's archive is larger than {MAX_BYTES // 2**20} MiB.")
    if len(archive) % tarfile.RECORDSIZE or not archive.endswith(bytes(2 * tarfile.BLOCKSIZE)):
        # tarfile reads one that was cut between two files without a word.
        raise BadRequest("The suite's archive is damaged.", detail="it was cut")
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as opened:
            for entry in opened:
                content = opened.extractfile(entry) if entry.isreg() else None
                if content is None or entry.name in files:
                    raise BadRequest("The suite's archive holds something else than files.")
                files[entry.name] = content.read()
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise BadRequest("The suite's archive is damaged.", detail=str(error)) from error
    if problems := [*_of_files(files)]:
        raise _refused(problems)
    return files


def _plain(text: str) -> str:
    """Text of the suite without what would steer a terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)
