"""What is wrong with a notebook that a whole class is about to open; pure.

nbformat, which Jupyter itself reads notebooks with, says whether one keeps to the format. Secrets
are found by the shapes that their issuers publish, in a table of our own: detect-secrets, made for
source code, takes the images and ids of every notebook for secrets where it measures randomness,
and is no help with Hugging Face's tokens. A secret is never repeated in a note.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from nbformat.validator import iter_validate

from pytorch_spawner.core.course_notes import Note, mib, shown

MAX_NOTEBOOK_BYTES: Final = 50 * 1024**2
LARGE_NOTEBOOK_BYTES: Final = 5 * 1024**2
_NBFORMAT: Final = 4
_OUTPUTS: Final = frozenset({"stream", "display_data", "execute_result", "error"})
_PYTHONS: Final = frozenset({"", "python", "python3", "ipython"})


@dataclass(frozen=True, slots=True)
class _Shape:
    """What a secret looks like.

    A notebook is hostile text, and may have megabytes of it. So a pattern is tried only where one
    of its ``words`` stands in lower case, and each repetition in it has an upper bound.
    """

    words: tuple[str, ...]
    pattern: re.Pattern[str]

    def is_in(self, text: str, lower: str) -> bool:
        """Whether there is one that is not just a place for one."""
        if not any(word in lower for word in self.words):
            return False
        # The group "value" is the secret, where the pattern has more around it.
        return any(
            not _PLACEHOLDER.search(one[one.lastgroup or 0]) for one in self.pattern.finditer(text)
        )


_SECRETS: Final[Mapping[str, _Shape]] = {
    "a private key": _Shape(
        ("private key",),
        re.compile(r"-----BEGIN (?:[A-Z0-9]{1,12} ){0,4}PRIVATE KEY(?: BLOCK)?-----"),
    ),
    "a key of AWS": _Shape(("akia", "asia"), re.compile(r"\b(?:AKIA|ASIA)[A-Z2-7]{16}\b")),
    "a token of GitHub": _Shape(
        ("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
        re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{50,255})\b"),
    ),
    "a token of GitLab": _Shape(("glpat-",), re.compile(r"\bglpat-[A-Za-z0-9_-]{20,255}")),
    "a token of Hugging Face": _Shape(("hf_",), re.compile(r"\bhf_[A-Za-z0-9]{30,255}\b")),
    "a key of OpenAI or Anthropic": _Shape(
        ("sk-",), re.compile(r"\bsk-(?=[A-Za-z_-]{0,40}[0-9])[\w-]{32,255}")
    ),
    "a token of Slack": _Shape(("xox",), re.compile(r"\bxox[abprs]-[A-Za-z0-9-]{20,255}")),
    "a key of Google": _Shape(("aiza",), re.compile(r"\bAIza[A-Za-z0-9_-]{35}\b")),
}
# What looks like one in an output: a word for it and a value, or a URL with a password.
_LOOKS_SECRET: Final = (
    _Shape(
        ("passw", "secret", "key", "token"),
        re.compile(
            r"(?<![A-Za-z])(?:password|passwd|secret[_-]?key|client[_-]secret|api[_-]?key"
            r"|access[_-](?:key|token)|auth[_-]token)['\"]?[ \t]{0,5}[=:][ \t]{0,5}['\"]?"
            r"(?P<value>[^\s'\",;]{6,100})",
            re.IGNORECASE,
        ),
    ),
    _Shape(("://",), re.compile(r"\b[a-z]{2,12}://[^\s/:@]{1,100}:(?P<value>[^\s/:@]{3,100})@")),
)
_PLACEHOLDER: Final = re.compile(
    r"[*<>{}$\[\]()]|\.\.\.|(.)\1{5}|example|your|changeme|none\b|true\b|false\b|password\b",
    re.IGNORECASE,
)
_HOME: Final = re.compile(r"(?<![\w./~])(?:/home/|/Users/|[A-Za-z]:[\\/]{1,2}Users[\\/]{1,2})\w")
_MERGE_MARKS: Final = re.compile(r"^ {0,40}(?:<{7} |>{7} )", re.MULTILINE)


def check_notebook(
    path: str, content: bytes, kernels: Collection[str] = ("python3",)
) -> tuple[Note, ...]:
    """What is wrong with a notebook, worst first; nothing when all is well.

    Args:
        path: In the course, for the sentences.
        content: All of the file.
        kernels: Names of the kernels that the course's image has.
    """
    name = shown(path)
    if len(content) > MAX_NOTEBOOK_BYTES:
        return (
            Note(
                "fail",
                path,
                f"{name} has {mib(len(content))}: JupyterLab would not open it. Clear its outputs "
                "and save it.",
            ),
        )
    notebook, why = _read(content)
    if why:
        return (Note("fail", path, f"{name} {why}."),)
    notes = [
        *_secrets(path, name, notebook),
        *_form(path, name, notebook),
        *_kernel(path, name, notebook, kernels),
        *_size(path, name, content),
        *_code(path, name, notebook),
    ]
    return tuple(sorted(notes, key=lambda note: note.level != "fail"))


def _read(content: bytes) -> tuple[dict[str, Any], str]:
    """A notebook of which cells, sources and outputs can be read; or why it is none."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return {}, "is no UTF-8 text, so no notebook opens. Save it once with JupyterLab"
    try:
        said = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        if _MERGE_MARKS.search(text):
            return {}, (
                "holds the marks of a merge that nobody finished (<<<<<<<), so no notebook opens. "
                "Settle the conflict and commit it again"
            )
        where = f" (line {error.lineno})" if isinstance(error, json.JSONDecodeError) else ""
        return {}, f"is no JSON{where}, so no notebook opens. Save it once with JupyterLab"
    if not isinstance(said, dict) or not isinstance(said.get("nbformat"), int):
        return {}, "is JSON, but no notebook: it does not say its nbformat"
    if said["nbformat"] != _NBFORMAT:
        return {}, (
            f"is of notebook format {shown(str(said['nbformat']), 12)}, not {_NBFORMAT}: it would "
            "be converted in each student's copy, and every later change be a conflict. Open it "
            "with JupyterLab, save it, and commit that"
        )
    return said, _unlike_a_notebook(said)


def _refuse(constant: str) -> Any:
    # Python reads NaN and Infinity; JSON has neither, and the browser refuses all of the file.
    raise ValueError(constant)


def _unlike_a_notebook(said: Mapping[str, Any]) -> str:
    cells = said.get("cells")
    if not isinstance(cells, list) or not isinstance(said.get("metadata", {}), dict):
        return "has no list of cells, so JupyterLab does not open it"
    for number, cell in enumerate(cells, 1):
        if not isinstance(cell, dict) or not _is_text(cell.get("source", "")):
            return f"has a cell {number} that cannot be read, so JupyterLab does not open it"
        outputs = cell.get("outputs", [])
        if not isinstance(outputs, list) or not all(isinstance(one, dict) for one in outputs):
            return f"has outputs in cell {number} that cannot be read. Clear them"
    return ""


def _is_text(said: Any) -> bool:
    return isinstance(said, str) or (
        isinstance(said, list) and all(isinstance(line, str) for line in said)
    )


def _secrets(path: str, name: str, notebook: Mapping[str, Any]) -> Iterator[Note]:
    sure: defaultdict[str, list[int]] = defaultdict(list)
    likely: list[int] = []
    for number, cell in enumerate(notebook["cells"], 1):
        source = _text(cell.get("source", ""))
        for text, is_output in ((source, False), *((one, True) for one in _printed(cell))):
            lower = text.lower()
            for what, shape in _SECRETS.items():
                if shape.is_in(text, lower):
                    sure[what].append(number)
            if is_output and any(shape.is_in(text, lower) for shape in _LOOKS_SECRET):
                likely.append(number)
    for what, cells in sure.items():
        yield Note(
            "fail",
            path,
            f"{name} shows {what} ({_cells(cells)}): everybody in the course would read it. "
            "Withdraw it where it was issued, take it out, clear the outputs, and commit that.",
        )
    if likely:
        yield Note(
            "warn",
            path,
            f"{name} has an output that looks like a password or a key ({_cells(likely)}). Clear "
            "the outputs, and change it if it is one.",
        )


def _printed(cell: Mapping[str, Any]) -> Iterator[str]:
    """Every text of a cell's outputs; no pictures."""
    for output in cell.get("outputs", []):
        for key in ("text", "evalue", "traceback"):
            if _is_text(output.get(key)):
                yield _text(output[key])
        shows = output.get("data")
        for kind, said in shows.items() if isinstance(shows, dict) else ():
            if kind.startswith(("image/", "audio/", "video/")) and "svg" not in kind:
                continue
            yield _text(said) if _is_text(said) else json.dumps(said)


def _text(said: str | list[str]) -> str:
    return said if isinstance(said, str) else "".join(said)


def _form(path: str, name: str, notebook: dict[str, Any]) -> Iterator[Note]:
    minor = notebook.get("nbformat_minor")
    fault = ""
    if not isinstance(minor, int) or not 0 <= minor < 100:
        fault = "nbformat_minor is missing"
    else:
        try:
            found = iter_validate(  # type: ignore[no-untyped-call]
                notebook, version=_NBFORMAT, version_minor=minor
            )
            fault = next((str(one.message) for one in found), "")
        except RecursionError:
            fault = "it is nested too deeply"
        except (TypeError, KeyError, AttributeError):
            # nbformat 5.11 words some faults only of what has the right types.
            fault = "something in it is of another type than the format says"
    if fault:
        yield Note(
            "warn",
            path,
            f"{name} does not keep to the notebook format ({shown(' '.join(fault.split()), 160)}): "
            "each student is shown a warning. Open it with JupyterLab, save it, and commit that.",
        )


def _kernel(
    path: str, name: str, notebook: Mapping[str, Any], kernels: Collection[str]
) -> Iterator[Note]:
    said = notebook.get("metadata", {}).get("kernelspec")
    spec = said if isinstance(said, dict) else {}
    kernel, language = str(spec.get("name", "")), str(spec.get("language", "")).casefold()
    if kernel in kernels:
        return
    have = ", ".join(sorted(kernels)[:5])
    if kernel and language not in _PYTHONS:
        yield Note(
            "fail",
            path,
            f'{name} is for the kernel "{shown(kernel, 60)}" ({shown(language, 30)}), and the '
            f"course's image has {have}. Name an image that has it, or leave the notebook out.",
        )
        return
    names = f'the kernel "{shown(kernel, 60)}", which the course\'s image has not' if kernel else ""
    yield Note(
        "warn",
        path,
        f"{name} names {names or 'no kernel'}: JupyterLab asks each student to choose one. Choose "
        f"one of {have} in JupyterLab, save the notebook, and commit that.",
    )


def _size(path: str, name: str, content: bytes) -> Iterator[Note]:
    if len(content) > LARGE_NOTEBOOK_BYTES:
        yield Note(
            "warn",
            path,
            f"{name} has {mib(len(content))}, and opens slowly. Clear its outputs and save it.",
        )


def _code(path: str, name: str, notebook: Mapping[str, Any]) -> Iterator[Note]:
    homes, failed = [], []
    for number, cell in enumerate(notebook["cells"], 1):
        if cell.get("cell_type") == "code" and _HOME.search(_text(cell.get("source", ""))):
            homes.append(number)
        if any(one.get("output_type") == "error" for one in cell.get("outputs", [])):
            failed.append(number)
    if homes:
        yield Note(
            "warn",
            path,
            f"{name} names a home by its path ({_cells(homes)}), which may be another one in the "
            "lab. Write paths from the notebook on, or use Path.home().",
        )
    if failed:
        yield Note(
            "warn",
            path,
            f"{name} shows an error of an earlier run ({_cells(failed)}). Run it again, or clear "
            "its outputs.",
        )


def _cells(numbers: list[int]) -> str:
    several = sorted(set(numbers))
    said = ", ".join(str(one) for one in several[:5])
    return f"cell{'s' if len(several) > 1 else ''} {said}{' …' if len(several) > 5 else ''}"
